"""`python -m t5x.train` as the headers of gin/t5x have it, on a tiny T5 and three procedural tasks, to its end."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import flax.traverse_util
import jax
import numpy as np
import pytest

from zeroprompt_jax.interop import leaves
from zeroprompt_jax.interop import t5x as ours
from zeroprompt_jax.models import t5
from zeroprompt_jax.tasks import procedural

t5x = pytest.importorskip("t5x", reason="T5X is not installed; it is not on PyPI but at github.com/google-research/t5x")

ROOT = Path(__file__).parents[2]
MODEL = Path(procedural.__file__).with_name("procedural.model")
SIZES = dict(vocab_size=1408, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=2, num_decoder_layers=2)
MODULE = """
from zeroprompt_jax.data import cards, seqio_bridge, vocabulary
from zeroprompt_jax.evaluation import metrics
from zeroprompt_jax.tasks import procedural
cards.register_mixture("few", list(cards.mixture("procedural_train"))[:3])
seqio_bridge.mixture_to_seqio("few", vocabulary.load_vocabulary("{model}:0"), {features}, metrics.compute)
"""
HINT = """
from __gin__ import dynamic_registration
from zeroprompt_jax.methods import generated
from zeroprompt_jax.methods import hint
include "gin/t5x/t5_1_1_small_mpt.gin"
METHOD = @hint.Hint()
hint.Hint.kinds = (@generated.Adapter(),)
generated.Adapter.rank = 4
"""
# By the features that a method reads: a file, and what of the method is trained.
FILES = {
    (): ("t5_1_1_small_prompt.gin", {"prompt"}),
    ("task",): ("t5_1_1_small_mpt.gin", {"shared", "u", "v"}),
    ("instructions",): ("t5_1_1_small_mpt.gin", None),
}


def command(file):
    """The command in the header of a file."""
    lines = (ROOT / "gin/t5x" / file).read_text().split("\n#\n")[0].splitlines()
    words = shlex.split(" ".join(line.removeprefix("#") for line in lines))
    assert words[:3] == ["python", "-m", "t5x.train"]
    return [sys.executable, *words[1:]]


def values(checkpoint):
    return {path.removeprefix("target/"): leaf.read() for path, leaf in ours.read(checkpoint).items() if "target/" in path}


@pytest.mark.slow
@pytest.mark.parametrize("features", FILES, ids=["prompt", "mpt", "hint"])
def test_it_trains_evaluates_and_saves(tmp_path, features):
    file, trained = FILES[features]
    config = t5.T5Config(**SIZES, scan_layers=False)
    flat = flax.traverse_util.flatten_dict(jax.device_get(t5.init(config, jax.random.key(7))), sep="/")
    start = tmp_path / "start" / "checkpoint_100"
    ours.write_t5(start, {path: leaves.of(np.asarray(x)) for path, x in flat.items()}, 100, scanned=False)
    (tmp_path / "my_tasks.py").write_text(MODULE.format(model=MODEL, features=list(features)))
    (tmp_path / "hint.gin").write_text(HINT)
    lengths = {"inputs": 32, "targets": 8} | ({"instructions": 24} if "instructions" in features else {})
    changes = {
        "MODEL_DIR": str(tmp_path / "run"),
        "MIXTURE_OR_TASK_NAME": "few",
        "TASK_FEATURE_LENGTHS": lengths,
        "TRAIN_STEPS": 104,
        "INITIAL_CHECKPOINT_PATH": str(start),
        "seqio.SentencePieceVocabulary.sentencepiece_model_file": str(MODEL),
        **{"BATCH_SIZE": 4, "EVAL_PERIOD": 2, "EVAL_STEPS": 1, "EVALUATOR_NUM_EXAMPLES": 4},
        "utils.SaveCheckpointConfig.period": 2,
        **{f"t5.T5Config.{name}": size for name, size in SIZES.items()},
    }
    words = [*command(file), *(f"--gin.{name}={value!r}" for name, value in changes.items())]
    words.append(f"--gin_search_paths={ROOT},{Path(t5x.__path__[0]).parent}")
    if trained is None:
        words = [re.sub(r"^--gin_file=gin/.*", f"--gin_file={tmp_path / 'hint.gin'}", word) for word in words]
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))

    def run(*more):
        environ = os.environ | {"PYTHONPATH": path}
        done = subprocess.run([*words, *more], env=environ, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]

    run()
    before, after = (values(tmp_path / "run" / f"checkpoint_{step}") for step in (100, 104))
    moved = {name for name in before if (before[name] != after[name]).any()}
    for name, x in flat.items():
        np.testing.assert_array_equal(before[name], x, strict=True, err_msg=name)
    assert moved == (before.keys() if trained is None else {f"method/{name}" for name in trained})
    found = sorted((tmp_path / "run/inference_eval").glob("*-metrics.jsonl"))
    assert len(found) == 3
    for file in found:
        assert [json.loads(line).keys() for line in file.read_text().splitlines()] == [{"step", "exact_match"}] * 2
        written = file.with_name(file.name.replace("-metrics.jsonl", "-000104.jsonl")).read_text().splitlines()
        assert len(written) == 4 and all(isinstance(json.loads(line)["prediction"], str) for line in written)
    assert len(list((tmp_path / "run/training_eval").iterdir())) == 4  # three tasks and their mixture
    if trained != {"prompt"}:
        return
    run("--gin.TRAIN_STEPS=106")
    assert {"104", "106"} <= {folder.name.split("_")[1] for folder in (tmp_path / "run").glob("checkpoint_*")}
    resumed = values(tmp_path / "run" / "checkpoint_106")
    assert {name for name in after if (after[name] != resumed[name]).any()} == moved
