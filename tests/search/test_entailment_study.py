"""The entailment study: slices side by side are as alone, dev examples alone select, the record and what it says."""

import dataclasses
import json

import numpy as np
import pytest

from zeroprompt_jax import config as configs
from zeroprompt_jax.data import cards, entailment
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.methods.entailment import Entailment
from zeroprompt_jax.methods.lora import LoRA
from zeroprompt_jax.models.roberta import RobertaConfig
from zeroprompt_jax.search import (
    encoder_stages,
    entailment_answers,
    entailment_report,
    entailment_slices,
    entailment_study,
)
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
    words = {name: len(put.words(world.vocabulary())) for name, put in suite().tasks.items()}
    assert sorted(words.values()) == [5, 9]  # what is counted is the task's, not the widest one's
    encoder = (MODEL.vocab_size + 32 + 2) * D + 2 * D + 4 * (D * D + D) + D * 16 + 16 + 16 * D + D + 4 * D
    beside = {"slots": 0, "lora": L * 2 * 2 * 2 * D, "full": encoder}
    for r in records:
        trained = beside[r["arm"]] + (r["arm"] != "lora") * words[r["task"]] * D + HEAD
        assert r["trained"] == trained and r["head"] == HEAD and r["share"] == pytest.approx(trained / encoder)
        assert (
            r["rate"] in made.arms[r["arm"]].rates
            and r["step"] in (2, 4)
            and r["start"] == (made.arms[r["arm"]].start or "")
        )
        assert r["examples"] == 12 and r["classes"] == 2 and r["baseline"] == 0.5
        assert all(0 <= r[key] <= 1 for key in ("score", "dev", "train", "positive"))
        # Of two classes, 'positive' is one answer's share.
        assert r["constant"] == pytest.approx(max(r["positive"], 1 - r["positive"])) and r["short"] == {}
    digests = {(r["task"], r["seed"]): r["split"] for r in records}
    assert len(set(digests.values())) == 4 and all(digests[r["task"], r["seed"]] == r["split"] for r in records)
    trained = f"{5 * D + HEAD} to {9 * D + HEAD}"
    for word in ("slots", "lora", "full", "majority", "positive", trained, "warm_or_cold", "2 splits"):
        assert word in table
    constant = [{**r, "positive": 0.5, "constant": 1 if "warm" in r["task"] else 0.5} for r in records]
    told = entailment_report.table([{**r, "short": {"cold": 1}} for r in constant], made.arms)
    assert all(line.endswith(" 50.0     100.0") for line in told.splitlines()[1:4])  # means show no constant predictor
    assert "warm_or_cold: of 'cold' there were only 1 dev examples." in told
    assert (folder / "table.txt").read_text() == table and (folder / "results.png").stat().st_size > 5000


@pytest.mark.parametrize("arm_name", ["slots", "lora"])
def test_a_file_is_answered_as_the_test_was(done, tmp_path, arm_name):
    """Rows of all tasks in one file get from the kept tasks the accuracy that the study recorded."""
    folder, made, _ = done
    rows, gold = [], []
    for task in suite().tasks:
        examples, classes = entailment.classified(task, "test")
        rows += [{"task": task, **example} for example in examples]
        gold += [(task, cards.card(task).options[c]) for c in classes]
    mixed = np.random.default_rng(0).permutation(len(rows)).tolist()
    asked = tmp_path / "rows.jsonl"
    asked.write_text("".join(json.dumps(rows[i]) + "\n" for i in mixed))
    assert entailment_answers.answer(made, asked, tmp_path / "out.jsonl", arm_name, 21) == len(rows)
    answers = dict(zip(mixed, map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())))
    recorded_by = {(r["arm"], r["task"], r["seed"]): r["score"] for r in recorded(folder)}
    for task in suite().tasks:
        mine = [i for i, (of, _) in enumerate(gold) if of == task]
        right = [answers[i]["prediction"] == gold[i][1] for i in mine]
        assert np.mean(right) == pytest.approx(recorded_by[arm_name, task, 21])
    for row in answers.values():
        assert row["score"] == max(row["scores"]) and sum(row["scores"]) == pytest.approx(1)
    assert entailment_answers.answer(made, asked, tmp_path / "out.jsonl", arm_name, 21) == 0  # they are there


def test_what_cannot_be_answered_is_told(done, tmp_path):
    folder, made, _ = done
    task, asked = next(iter(suite().tasks)), tmp_path / "rows.jsonl"

    def told(row, match, study=made, **options):
        asked.write_text(json.dumps(row))
        with pytest.raises(UserError, match=match):
            entailment_answers.answer(study, asked, tmp_path / "out.jsonl", **options)
        assert not (tmp_path / "out.jsonl").exists()

    told({"task": task + "s"}, f"line 1, '{task}s'. Did you mean '{task}'")
    told({"task": task, "txt": "a"}, f"line 1: a row of '{task}' has no text under")
    told({"task": task}, "Unknown arm 'slot'. Did you mean 'slots'", arm="slot")
    told({"task": task}, "The arm 'full' trains an encoder for each task", arm="full")
    told({"task": task}, "There is no split 7; the arm 'slots' was trained on 13, 21", split=7)
    told({"task": task}, "holds results of another configuration", dataclasses.replace(made, shots=3))
    told({"task": task}, "The arm 'slots' is not trained yet", study(tmp_path / "new", {"slots": arm()}))


def test_a_finished_study_is_only_told_again(done, monkeypatch):
    folder, made, table = done
    monkeypatch.setattr(entailment_study, "_measure", None)
    assert entailment_study.run(made, "a title") == table and len(recorded(folder)) == 12
    with pytest.raises(UserError, match="holds results of another configuration"):
        entailment_study.run(dataclasses.replace(made, shots=3))
    chunks = world.chunks
    monkeypatch.setattr(world, "chunks", lambda *given: chunks(*given)[::-1])  # configured alike, and other data
    with pytest.raises(UserError, match="holds results of another configuration"):
        entailment_study.run(made)


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


def test_slices_side_by_side_are_as_alone(done, monkeypatch):
    """One slice of eight, and the same beside other tasks, splits and rates."""
    _, made, _ = done
    given, fitted = suite(), made.arms["slots"]
    splits = entailment_study._data(made, given)[True].splits
    base = encoder_stages.train(MODEL, {}, given, None, {})[None]

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
    beside = fit([splits[n] for n in (3, 2, 0, 2, 0, 1, 3, 1)], [0.3, 0.2, 0.01, 0.01, 0.1, 0.01, 1e38, 0.1])
    np.testing.assert_allclose(beside.ask(test, 5), answers, atol=1e-5)
    assert (beside.right[5], beside.steps[5]) == (together.right[2], together.steps[2])
    # One that diverged is the worst of its split's, and alone so.
    assert (beside.right == -1).tolist() == [False] * 6 + [True, False] and beside.key(6) < beside.key(0)
    diverged = entailment_slices.Fitted(np.full(8, -1.0), np.full(8, np.inf), np.zeros(8, int), {}, None, [])
    monkeypatch.setattr(entailment_study, "fit", lambda *given, **options: diverged)
    with pytest.raises(UserError, match="warm_or_cold', split 13: training diverged at every rate .0.01, 0.1"):
        entailment_study._measure(made, given, "slots", base, entailment_study._data(made, given))


def test_rates_share_what_they_begin_as(done):
    """Else dev examples would choose among draws. Extra tokens are within their label's range, or a pair's the mask's."""
    _, made, _ = done
    given = suite()
    splits = [split for split in entailment_study._data(made, given)[True].splits for _ in range(2)]
    base = encoder_stages.train(MODEL, {}, given, None, {})[None]
    slots = entailment_slices.slots_of(given, [split.task for split in splits])
    method = dataclasses.replace(EFFICIENT, per_task=True)
    for leaf in entailment_slices._begun(MODEL, method, base, splits, slots, 0).values():
        leaf = np.asarray(leaf).reshape(4, 2, -1)
        np.testing.assert_array_equal(leaf[:, 0], leaf[:, 1])
        assert len({rows.tobytes() for rows in leaf}) == 4 or not leaf.any()
    assert slots.like[4:] == (given.vocabulary.mask_id,) * 4


def test_training_examples_are_asked_as_the_test_is(tmp_path):
    given, name = world.suite(per_class=6, pairs=12, texts=8), f"{world.NAME}/one_of_four"
    put = dataclasses.replace(given.tasks[name], negatives=1)
    made = entailment_study._data(study(tmp_path, {"a": arm()}), dataclasses.replace(given, tasks={name: put}))[True]
    assert [[len(part) for part in (s.train, s.whole, s.dev)] for s in made.splits] == [[16, 32, 32]] * 2


def test_splits_that_cannot_be_drawn_are_told(tmp_path, monkeypatch):
    data = lambda **changes: entailment_study._data(study(tmp_path, {"a": arm()}, **changes), suite())
    with pytest.raises(UserError, match="warm_or_cold' has 6 training examples of 'cold', so 7"):
        data(shots=7)
    with pytest.raises(UserError, match="has 6 training examples of each class, and so none besides"):
        data(shots=6)
    told = entailment.classified
    monkeypatch.setattr(entailment, "classified", lambda *given: ([], []) if given[1] == "test" else told(*given))
    with pytest.raises(UserError, match="warm_or_cold' has no test examples"):
        data()


@pytest.mark.parametrize(
    "model, changes, method, match",
    [
        ({}, {"start": "text"}, Entailment(head="shared"), "'a' takes its head .* still random after the stage 'text'"),
        ({}, {"start": None}, Entailment(head="copied"), "still random at the beginning"),
        ({"labels": ()}, {}, EFFICIENT, "'inference' trains on inference, which needs RobertaConfig.labels"),
        ({"mlm_head": False}, {}, EFFICIENT, "'text' trains on text, which needs RobertaConfig.mlm_head"),
        ({}, {}, Entailment(beside=LoRA(targets="decoder/.*")), "The arm 'a': .*LoRA.targets"),
    ],
)
def test_what_would_fail_after_the_stages_is_told_before(tmp_path, monkeypatch, model, changes, method, match):
    monkeypatch.setattr(encoder_stages, "train", None)
    made = study(tmp_path, {"a": arm(method, **changes)})
    with pytest.raises(UserError, match=match):
        entailment_study.run(dataclasses.replace(made, model=dataclasses.replace(MODEL, **model)))


def test_what_cannot_be_meant_is_told(tmp_path):
    with pytest.raises(UserError, match="Unknown EncoderStage.data 'texts'. Did you mean 'text'"):
        EncoderStage("texts", 3)
    with pytest.raises(UserError, match="Unknown stage that arm 'a' starts from 'infer'. Did you mean 'inference'"):
        study(tmp_path, {"a": arm(start="infer")})
    with pytest.raises(UserError, match="RobertaConfig does not fit: vocab_size 9"):
        made = study(tmp_path, {"a": arm()})
        entailment_study.run(dataclasses.replace(made, model=dataclasses.replace(MODEL, vocab_size=9)))
    with pytest.raises(UserError, match="batch_size of at least 1"):
        study(tmp_path, {"a": arm()}, batch_size=0)
    with pytest.raises(UserError, match="The suite has no tasks"):
        entailment_study._check(made, dataclasses.replace(suite(), tasks={}), {})
    for wrong in ({"rates": ()}, {"steps": 0}):
        with pytest.raises(UserError, match="EntailmentArm needs"):
            arm(**wrong)


def test_the_experiment_resolves():
    try:
        configs.load(["experiments/entailment.gin"])
        made = configs.make("EntailmentStudy")
    finally:
        configs.load()
    entailment_study._check(made, made.suite(), {})
    assert len(made.arms) == 14 and made.splits == (13, 21, 42, 87, 100)
