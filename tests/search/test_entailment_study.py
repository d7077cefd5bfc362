"""The entailment study: slices side by side are as alone, dev examples alone select, the record and what it says."""

import dataclasses
import json

import numpy as np
import pytest

from zeroprompt_jax import config as configs
from zeroprompt_jax.data import entailment
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.methods.entailment import Entailment
from zeroprompt_jax.methods.lora import LoRA
from zeroprompt_jax.models.roberta import RobertaConfig
from zeroprompt_jax.search import encoder_stages, entailment_slices, entailment_study
from zeroprompt_jax.search.encoder_stages import EncoderStage
from zeroprompt_jax.search.entailment_slices import EntailmentArm
from zeroprompt_jax.search.entailment_study import EntailmentStudy
from zeroprompt_jax.tasks import procedural_entailment as world

pytestmark = pytest.mark.usefixtures("compile_fast")

MODEL = RobertaConfig(
    vocab_size=world.vocabulary().size,
    emb_dim=8,
    num_heads=2,
    mlp_dim=16,
    num_encoder_layers=1,
    num_positions=32,
    position_offset=0,
    num_token_types=2,
    pad_id=world.vocabulary().pad_id,
    pooled_head=True,
    labels=("entailment", "neutral", "contradiction"),
    dtype="float32",
    dropout_rate=0.0,
)
EFFICIENT = Entailment()
STAGES = {name: EncoderStage(name, steps=2, batch_size=4) for name in ("text", "inference")}
D, L = 8, 1
HEAD = D * D + D + 2 * D + 2


def suite():
    """Two tasks: one text and its theme; a pair, which has extra tokens alone."""
    whole = world.suite(per_class=6, pairs=12, texts=8)
    kept = {name: whole.tasks[f"{world.NAME}/{name}"] for name in ("warm_or_cold", "same_theme")}
    return dataclasses.replace(whole, tasks={f"{world.NAME}/{name}": put for name, put in kept.items()})


def study(folder, arms, **changes):
    options = {"stages": STAGES, "shots": 2, "splits": (13, 21), "batch_size": 16, **changes}
    return EntailmentStudy(str(folder), MODEL, suite, arms, **options)


def arm(method=EFFICIENT, **changes):
    return EntailmentArm(
        method, **{"start": "inference", "rates": (0.01, 0.1), "steps": 4, "rows": 2, "eval_every": 2, **changes}
    )


def recorded(folder):
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished study: its folder, configuration and table."""
    folder = tmp_path_factory.mktemp("study")
    arms = {
        "slots": arm(),
        "lora": arm(Entailment(0, beside=LoRA(2), fluency=0.05), rates=(0.01,), start="text"),
        "full": arm(Entailment(train_backbone=True), rates=(0.01,), steps=2, start=None),
    }
    made = study(folder, arms)
    return folder, made, entailment_study.run(made, "a title")


def test_every_task_and_split_is_recorded_with_what_was_selected(done):
    folder, made, table = done
    records = recorded(folder)
    assert len(records) == 3 * 2 * 2
    words = len(suite().tasks[f"{world.NAME}/warm_or_cold"].words(world.vocabulary()))
    encoder = (MODEL.vocab_size + 32 + 2) * D + 2 * D + 4 * (D * D + D) + D * 16 + 16 + 16 * D + D + 4 * D
    wanted = {"slots": words * D + HEAD, "lora": L * 2 * 2 * 2 * D + HEAD, "full": encoder + words * D + HEAD}
    for r in records:
        assert r["trained"] == wanted[r["arm"]] and r["head"] == HEAD
        assert r["share"] == pytest.approx(wanted[r["arm"]] / encoder)
        assert (
            r["rate"] in made.arms[r["arm"]].rates
            and r["step"] in (2, 4)
            and r["start"] == (made.arms[r["arm"]].start or "")
        )
        assert r["examples"] == 12 and r["classes"] == 2 and r["baseline"] == 0.5
        assert all(0 <= r[key] <= 1 for key in ("score", "dev", "train", "positive"))
    digests = {(r["task"], r["seed"]): r["split"] for r in records}
    assert len(set(digests.values())) == 4 and all(digests[r["task"], r["seed"]] == r["split"] for r in records)
    for word in ("slots", "lora", "full", "majority", "positive", f"{wanted['slots']}", "warm_or_cold", "2 splits"):
        assert word in table
    assert (folder / "table.txt").read_text() == table and (folder / "results.png").stat().st_size > 5000


def test_a_finished_study_is_only_told_again(done, monkeypatch):
    folder, made, table = done
    monkeypatch.setattr(entailment_study, "_measure", None)
    assert entailment_study.run(made, "a title") == table and len(recorded(folder)) == 12
    with pytest.raises(UserError, match="holds results of another configuration"):
        entailment_study.run(dataclasses.replace(made, shots=3))


def test_test_labels_select_nothing(done, tmp_path, monkeypatch):
    """Poisoned, they change what is scored and nothing of what was trained and chosen. Slices are the same alone, too."""
    folder, made, _ = done
    told = entailment.classified

    def poisoned(name, split):
        examples, gold = told(name, split)
        return examples, [1 - klass for klass in gold] if split == "test" else gold

    monkeypatch.setattr(entailment, "classified", poisoned)
    entailment_study.run(dataclasses.replace(made, model_dir=str(tmp_path), arms={"slots": made.arms["slots"]}))
    wanted = [r for r in recorded(folder) if r["arm"] == "slots"]
    for found, r in zip(recorded(tmp_path), wanted, strict=True):
        assert found["score"] == pytest.approx(1 - r["score"])
        assert {**found, "score": 0} == {**r, "score": 0}


def test_slices_side_by_side_are_as_alone(done):
    """One slice of eight, and the same beside other tasks, splits and rates."""
    _, made, _ = done
    given, fitted = suite(), made.arms["slots"]
    splits = entailment_study._data(made, given)[True].splits
    base = encoder_stages.train(MODEL, {}, given, None)[None]

    def fit(slices, rates):
        slots = entailment_slices.slots_of(given, [split.task for split in slices])
        method = dataclasses.replace(EFFICIENT, slots=max(map(len, slots.words)), per_task=True)
        options = {"batch_size": made.batch_size, "seed": made.seed}
        return entailment_slices.fit(
            MODEL, given.vocabulary, fitted, method, base, slices, slots, np.float32(rates), **options
        )

    together = fit([splits[n // 2] for n in range(8)], [0.01, 0.1] * 4)
    test = next(iter(entailment_study._data(made, given)[True].tests.values()))
    answers = together.ask(test, 2)
    assert np.abs(answers - together.ask(test, 3)).max() > 1e-3
    beside = fit([splits[n] for n in (3, 2, 1, 2, 0, 0, 3, 1)], [0.3, 0.2, 0.01, 0.01, 0.1, 0.3, 0.01, 0.1])
    np.testing.assert_allclose(beside.ask(test, 2), answers, atol=1e-5)
    assert (beside.right[2], beside.steps[2]) == (together.right[2], together.steps[2])


def test_what_cannot_be_meant_is_told(tmp_path):
    with pytest.raises(UserError, match="Unknown EncoderStage.data 'texts'. Did you mean 'text'"):
        EncoderStage("texts", 3)
    with pytest.raises(UserError, match="Unknown stage that arm 'a' starts from 'infer'. Did you mean 'inference'"):
        study(tmp_path, {"a": arm(start="infer")})
    with pytest.raises(UserError, match="RobertaConfig does not fit: vocab_size 9"):
        made = study(tmp_path, {"a": arm()})
        entailment_study.run(dataclasses.replace(made, model=dataclasses.replace(MODEL, vocab_size=9)))
    for wrong in ({"rates": ()}, {"steps": 0}):
        with pytest.raises(UserError, match="EntailmentArm needs"):
            arm(**wrong)


def test_the_experiment_resolves():
    try:
        configs.load(["experiments/entailment.gin"])
        made = configs.make("EntailmentStudy")
    finally:
        configs.load()
    entailment_study._check(made, made.suite())
    assert len(made.arms) == 13 and made.splits == (13, 21, 42, 87, 100)
