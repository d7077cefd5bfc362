"""The adaptation study: what it trains, from where, what it records, and that it continues."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from zeroprompt_jax.data import cards
from zeroprompt_jax.data.pipeline import Data
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.evaluation.evaluate import Evaluate
from zeroprompt_jax.experiment import Experiment
from zeroprompt_jax.methods.full import Full
from zeroprompt_jax.methods.initialisers import FromRun, Uniform
from zeroprompt_jax.methods.mpt import MPT
from zeroprompt_jax.methods.prompt import Prompt
from zeroprompt_jax.models.t5 import T5Config
from zeroprompt_jax.search import adaptation, adaptation_report, records
from zeroprompt_jax.search.adaptation import AdaptationStudy, Arm
from zeroprompt_jax.training import checkpoint
from zeroprompt_jax.training.loop import Train
from zeroprompt_jax.training.optimizer import Optimizer, Schedule
from zeroprompt_jax.training.partitioning import Mesh

MODEL = dict(vocab_size=384, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1, num_decoder_layers=1)
OPTIMIZER = Optimizer("adamw", Schedule(0.01))
PROMPT = Prompt(per_task=True, length=3)
STAGES = {
    "teachers": Arm(PROMPT, OPTIMIZER, 2, 2),
    "source": Arm(MPT(length=3, initialiser=Uniform(), teachers="stage:teachers"), OPTIMIZER, 2, 2, "few_tasks"),
}
ARMS = {
    "prompt": Arm(PROMPT, OPTIMIZER, 2, 2),
    "spot": Arm(dataclasses.replace(PROMPT, initialiser=FromRun("stage:teachers")), OPTIMIZER, 2, 2),
    "mpt": Arm(MPT(length=3, source="stage:source", copies=True), OPTIMIZER, 2, 2),
    "full": Arm(Full(), OPTIMIZER, 2, 2),
}


@pytest.fixture(autouse=True)
def tasks(monkeypatch):
    monkeypatch.setattr(cards, "_TASKS", {})
    monkeypatch.setattr(cards, "_MIXTURES", {})
    for pool in ("sources", "targets"):
        names = []
        for digit in range(2):

            def examples(split, digit=digit):
                for i in range(12):
                    number = 100 + 7 * i + (split == "test")
                    yield {"input": str(number), "target": str(number)[digit]}

            names.append(f"{pool}_{digit}")
            cards.register(cards.TaskCard(names[-1], "digit", ("",)), cards.Source(examples, pool))
        cards.register_mixture(pool, names)


def study(root, **changes) -> AdaptationStudy:
    base = Experiment(
        Data("targets", feature_lengths={"inputs": 8, "targets": 3}),
        Train(str(root), 1),
        T5Config(**MODEL, logits_via_embedding=True, dropout_rate=0.0, dtype="float32", scan_layers=False),
        mesh=Mesh(data=1),
        evaluate=Evaluate(batch_size=16, control=False),
    )
    made = AdaptationStudy(base, "sources", "targets", STAGES, ARMS, shots=(2, 4), seeds=1)
    return dataclasses.replace(made, **changes)


def test_runs_start_from_their_own_seeds_stages(tmp_path):
    runs = {name: made for name, _, made in adaptation._runs(study(tmp_path), 3)}
    assert runs["source"].method.teachers == str(tmp_path / "seed3/stages/teachers")
    assert runs["spot"].method.initialiser.run == str(tmp_path / "seed3/stages/teachers")
    assert runs["mpt"].method.source == str(tmp_path / "seed3/stages/source")
    assert runs["prompt"].train.seed == runs["prompt"].data.seed == 3
    assert runs["prompt"].data.mixture == "targets@2,4.3" and runs["prompt"].train.batch_size == 2 * 4
    assert runs["source"].data.mixture == "sources" and runs["source"].data.batching == "few_tasks"
    # What is no bank trains task by task.
    labels = [label for name, label, _ in adaptation._runs(study(tmp_path), 3) if name == "full"]
    assert labels == ["targets_0@2.3", "targets_1@2.3", "targets_0@4.3", "targets_1@4.3"]


def test_tasks_named_alike_but_for_a_slash_have_their_own_folders(tmp_path):
    for name in ("a/b", "a_b", "a"):
        cards.register(cards.TaskCard(name, "digit", ("",)), cards.Source(lambda split: [{"input": "1", "target": "1"}], name))
    cards.register_mixture("alike", ["a/b", "a_b", "a"])
    made = study(tmp_path, targets="alike", shots=(1,))
    folders = [run.experiment.train.model_dir for run in adaptation._runs(made, 0) if run.arm == "full"]
    assert [folder.removeprefix(f"{tmp_path}/seed0/arms/full/") for folder in folders] == ["a/b@1.0", "a_b@1.0", "a@1.0"]


def test_a_study_is_one_process_alone(tmp_path):
    with records.alone(tmp_path), pytest.raises(UserError, match="Another process is at work"):
        adaptation.run(study(tmp_path))


def test_unknown_stages_are_refused(tmp_path):
    wrong = {"mpt": Arm(MPT(source="stage:sources"))}
    with pytest.raises(UserError, match="stage that arm 'mpt' starts from 'sources'. Did you mean 'source'"):
        study(tmp_path, arms=wrong)
    with pytest.raises(UserError, match="stage 'source' starts from"):  # a stage cannot start from a later one
        study(tmp_path, stages=dict(reversed(STAGES.items())))
    with pytest.raises(UserError, match="seeds is 0"):
        study(tmp_path, seeds=0)


def record(arm, shots, seed, task, score, baseline=0.2):
    facts = {"type": "t", "examples": 9, "trained": 1234.0, "steps": 5, "minutes": 1.0, "run": ""}
    return {"arm": arm, "shots": shots, "seed": seed, "task": task, "score": score, "baseline": baseline, **facts}


def test_table_and_picture(tmp_path):
    found = [record("source", None, seed, "s", 0.5 + 0.1 * seed) for seed in range(2)]
    for seed in range(2):
        for k in (4, 16):
            found += [record("a", k, seed, "x", 0.4), record("a", k, seed, "y", 0.6 + 0.2 * seed)]
    found += [record("b", 4, 0, "x", 0.1)]
    assert adaptation_report.by_arm(found)["a", 4] == pytest.approx([50, 60])
    text = adaptation_report.write(tmp_path, found, ["source", "later"], ["a", "b", "never"], "zeroprompt adapt")
    assert "a" in text and "55.0 ± 7.1" in text and "1,234" in text and "never" not in text and "later" not in text
    assert "10.0" in text and "means over 2 target and 1 source tasks" in text
    assert (tmp_path / "results.png").stat().st_size > 10_000 and (tmp_path / "table.txt").read_text() == text
    # Halfway through the first seed there may be stages alone.
    assert "source tasks" in adaptation_report.write(tmp_path, found[:1], ["source"], ["a"], "")


@pytest.mark.slow
def test_a_study_from_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(jax.config.values, "jax_disable_most_optimizations", True)
    asked = study(tmp_path)
    table = adaptation.run(asked)
    found = records.read(tmp_path)
    assert {(r["arm"], r["shots"], r["task"]) for r in found} == {
        *((stage, None, f"sources_{i}") for stage in STAGES for i in range(2)),
        *((arm, k, f"targets_{i}") for arm in ARMS for k in (2, 4) for i in range(2)),
    }
    trained = {r["arm"]: r["trained"] for r in found}
    assert trained["prompt"] == trained["spot"] == 3 * 16 and trained["mpt"] == 3 * 16 + 3 + 16
    assert trained["full"] > 5000 and "mpt" in table
    # Each target's copy began at the source's shared prompt.
    source, _ = checkpoint.load_run(str(tmp_path / "seed0/stages/source"))
    target, names = checkpoint.load_run(str(tmp_path / "seed0/arms/mpt"))
    assert names == ["targets_0@2.0", "targets_1@2.0", "targets_0@4.0", "targets_1@4.0"]
    assert 0 < np.abs(target["method/shared"] - source["method/shared"]).max() < 0.05

    # Stopped before a record was written, the study measures that run again, and no other.
    before = (tmp_path / "records.jsonl").read_text()
    lines = [line for line in before.splitlines(True) if json.loads(line)["arm"] != "spot"]
    (tmp_path / "records.jsonl").write_text("".join(lines))
    capsys.readouterr()
    assert adaptation.run(asked) == table
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("Seed")] == [
        "Seed 0, 4 of 9: spot, targets@2,4.0."
    ]
    score = lambda text: {(r["arm"], r["task"], r["shots"]): r["score"] for r in map(json.loads, text.splitlines())}
    assert score((tmp_path / "records.jsonl").read_text()) == score(before)
