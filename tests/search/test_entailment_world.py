"""What the entailment study finds on the small world: with slots and heads alone, few labels teach an encoder nothing before it
has learnt inference, and most tasks after."""

import dataclasses
import json

import numpy as np
import pytest

from zeroprompt_jax import config as configs
from zeroprompt_jax.search import entailment_study


@pytest.mark.slow
def test_few_labels_are_enough_after_inference_and_useless_before(tmp_path):
    try:
        configs.load(["experiments/entailment.gin"])
        made = configs.make("EntailmentStudy")
    finally:
        configs.load()
    names = ("slots and head", "slots and head, text")
    arms = {name: dataclasses.replace(made.arms[name], rates=(3e-3,)) for name in names}
    options = {"arms": arms, "splits": (13, 21, 42), "batch_size": 256}
    entailment_study.run(dataclasses.replace(made, model_dir=str(tmp_path), **options))
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    of = lambda arm, key: np.mean([r[key] for r in records if r["arm"] == arm])
    after, before = (of(name, "score") for name in names)
    assert after > before + 0.3 and abs(before - of(names[1], "baseline")) < 0.1
    assert of(names[0], "train") > 0.8  # a constant predictor would not
