"""The comparison: where its runs start, what it records and shows, and that it continues."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from zeroprompt_jax import config
from zeroprompt_jax.data import cards
from zeroprompt_jax.data.pipeline import Data
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.evaluation.evaluate import Evaluate
from zeroprompt_jax.experiment import Experiment
from zeroprompt_jax.methods.full import Full
from zeroprompt_jax.methods.prompt import Prompt
from zeroprompt_jax.models.t5 import T5Config
from zeroprompt_jax.search import comparison, comparison_report, records
from zeroprompt_jax.search.comparison import Comparison
from zeroprompt_jax.search.records import Shard
from zeroprompt_jax.training import checkpoint
from zeroprompt_jax.training.loop import Train
from zeroprompt_jax.training.optimizer import Optimizer, Schedule
from zeroprompt_jax.training.partitioning import Mesh

SIZES = dict(vocab_size=384, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1, num_decoder_layers=1)


@pytest.fixture(autouse=True)
def tasks(monkeypatch):
    monkeypatch.setattr(cards, "_TASKS", {})
    monkeypatch.setattr(cards, "_MIXTURES", {})
    for name, digit in (("first", 0), ("last", 2)):

        def examples(split, digit=digit):
            for i in range(12):
                number = 100 + 7 * i + (split == "test")
                yield {"input": str(number), "target": str(number)[digit]}

        cards.register(cards.TaskCard(name, f"{name} digit", (f"{name}:",)), cards.Source(examples, name))
    cards.register_mixture("both", ["first", "last"])


BASE = Experiment(
    Data("both", feature_lengths={"inputs": 16, "targets": 3}, evaluation={"unseen_tasks": "both"}),
    Train("nowhere", 2, 4),
    T5Config(**SIZES, logits_via_embedding=True, dropout_rate=0.0, dtype="float32", scan_layers=False),
    Full(),
    Optimizer("adamw", Schedule(0.01)),
    mesh=Mesh(data=1),
    evaluate=Evaluate(batch_size=32, control=False),
)
FROM_STAGE = dataclasses.replace(BASE.train, initial_checkpoint_path="stage:pretraining")
ARMS = {
    "pretrained": dataclasses.replace(BASE, train=FROM_STAGE),
    "no instruction": dataclasses.replace(BASE, data=dataclasses.replace(BASE.data, instruct_inputs=False)),
}


def compared(root, **changes) -> Comparison:
    return dataclasses.replace(Comparison(str(root), ARMS, {"pretraining": BASE}, 1, "no instruction"), **changes)


def test_runs_start_from_their_own_seeds_stages(tmp_path):
    made = {run.arm: run.experiment for run in comparison.runs(compared(tmp_path), 3)}
    assert list(made) == ["pretraining", "pretrained", "no instruction"]
    assert made["pretrained"].train.initial_checkpoint_path == str(tmp_path / "seed3/stages/pretraining")
    assert made["pretraining"].train.model_dir == str(tmp_path / "seed3/stages/pretraining")
    assert made["no instruction"].train.initial_checkpoint_path is None
    assert made["no instruction"].train.model_dir == str(tmp_path / "seed3/arms/no instruction")
    assert {e.train.seed for e in made.values()} == {e.data.seed for e in made.values()} == {3}
    assert {e.data.cache_dir for e in made.values()} == {str(tmp_path / "cache")}
    # Nothing else of an arm changes.
    assert made["pretrained"].optimizer is BASE.optimizer and made["pretrained"].model is BASE.model


def other_groups(made):
    return dataclasses.replace(made, data=dataclasses.replace(made.data, evaluation={"seen_tasks": "both"}))


def sampled(made):
    return dataclasses.replace(made, evaluate=dataclasses.replace(made.evaluate, max_examples_per_task=7))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": {"pretrainin": BASE}}, "'pretrained' starts from 'pretraining'. Did you mean 'pretrainin'"),
        ({"stages": {"later": ARMS["pretrained"], "pretraining": BASE}}, "stage that stage 'later' starts from"),
        ({"seeds": 0}, "Comparison.seeds is 0"),
        ({"arms": {}}, "Comparison.arms is empty"),
        ({"reference": "no instructions"}, "'no instructions'. Did you mean 'no instruction'"),
        ({"arms": {**ARMS, "pretraining": BASE}}, "'pretraining' names both a stage and an arm"),
        ({"arms": {**ARMS, "odd": other_groups(BASE)}}, "'odd' is not tested on what 'pretrained' is"),
        ({"arms": {**ARMS, "odd": sampled(BASE)}}, "'odd' is not tested as 'pretrained' is: .*_per_task is 7, not 50"),
        (
            {"stages": {"pretraining": dataclasses.replace(BASE, data=Data("both"))}},
            "'pretraining' is tested on nothing",
        ),
    ],
)
def test_mistakes_are_told_before_anything_runs(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        compared(tmp_path, **changes)


def test_batch_size_and_control_may_differ_and_several_processes_not_work(tmp_path, monkeypatch):
    other = dataclasses.replace(BASE, evaluate=dataclasses.replace(BASE.evaluate, batch_size=8, control=True))
    made = compared(tmp_path, arms={**ARMS, "other": other})
    with records.alone(tmp_path / "held"), pytest.raises(UserError, match="Another process is at work"):
        comparison.run(dataclasses.replace(made, model_dir=str(tmp_path / "held")))
    shutil.rmtree(tmp_path / "held")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="A study needs one process; this run has 2"):
        comparison.run(made)
    assert not list(tmp_path.iterdir())


def test_jobs_share_the_seeds(tmp_path, monkeypatch):
    done = []

    def result(made):
        done.append((made.train.seed, Path(made.train.model_dir).name))
        return [{key: value for key, value in record("", 0, "x", 0.1 * made.train.seed).items() if key not in ("seed", "arm", "run")}]

    monkeypatch.setattr(comparison, "_result", result)
    made = compared(tmp_path, seeds=3)
    comparison.run(made, Shard(2, 2))
    assert done == [(1, name) for name in ("pretraining", *ARMS)]
    part = comparison.run(made, Shard(1, 2))
    assert len(done) == len(set(done)) == 9 and not (tmp_path / "records.jsonl").exists()
    # Each reads what the others wrote, and nothing is left to do.
    assert comparison.run(made) == part and "3 seeds" in part and len(done) == 9
    with pytest.raises(UserError, match="4 jobs cannot share a comparison of 3 seeds"):
        comparison.run(made, Shard(1, 4))


def record(arm, seed, task, score, group="unseen_tasks", shuffled=None, loss=1.5):
    facts = {"type": task[0], "metric": "exact_match", "baseline": 0.2, "examples": 9, "trained": 1234, "steps": 50}
    facts |= {"labels": 80 if group == "text" else 0}
    return {
        "seed": seed, "arm": arm, "run": "", "group": group, "task": task, "score": score, "shuffled": shuffled,
        "loss": loss + seed, "shuffled_loss": shuffled and loss + seed + 1, "minutes": 1.0 + seed, **facts,
    }  # fmt: skip


def test_table_and_picture(tmp_path):
    found = []
    for seed in range(2):
        found.append(record("text", seed, "t", 0.1, "text", shuffled=0.1))
        # The reference varies from seed to seed, and the arm with it: their distance does not.
        for arm, more in (("a", 0.0), ("b", -0.25)):
            found += [record(arm, seed, task, 0.5 + 0.2 * seed + more, shuffled=0.25) for task in ("x1", "x2", "y1")]
            found += [record(arm, seed, "z1", 0.75 + more, "unseen_types", shuffled=0.25)]
    text = comparison_report.write(tmp_path, found, ["text", "later"], ["a", "b", "never"], "a", "zeroprompt compare")
    lines = {line.strip().split("  ")[0]: line for line in text.splitlines()}
    assert "60.0 ± 14.1" in lines["1 a"] and "35.0 ± 14.1  -25.0 ± 0.0" in lines["2 b"]
    assert "1,234" in lines["1 a"] and lines["1 a"].endswith("1.5")
    assert lines["baseline"].split()[1:] == ["20.0", "20.0"]
    assert "2.000 ± 0.707  3.000 ± 0.707" in lines["text"]  # a stage's losses, in nats
    assert lines["x"].split() == ["x", "2", "60.0", "35.0"] and lines["z"].split() == ["z", "1", "75.0", "50.0"]
    assert "never" not in text and "later" not in text and "± is the standard deviation" in text and "shuffled:" in text
    assert "Labelled examples of a task that training was given: unseen tasks 0, unseen types 0." in text
    assert (tmp_path / "results.png").stat().st_size > 10_000 and (tmp_path / "table.txt").read_text() == text
    # Halfway through the first seed there may be a stage alone, or arms without the reference.
    assert "nats" in comparison_report.write(tmp_path, found[:1], ["text"], ["a"], "a")
    first = [r for r in found if r["arm"] == "b" and r["seed"] == 0]
    alone = comparison_report.table(first, [], ["a", "b"], "a")
    assert "35.0" not in alone and "25.0" in alone and "vs" not in alone and "±" not in alone


def test_a_config_overrides_in_the_arms_scope():
    config.load(
        [],
        [
            'Comparison.model_dir = "runs/x"',
            'Comparison.arms = {"with": @with/Experiment(), "without": @without/Experiment()}',
            "Experiment.data = @Data()",
            "Experiment.train = @Train()",
            "Experiment.method = @methods.Full()",
            "without/Experiment.method = @methods.Prompt()",
            'Train.model_dir = "unused"',
            "Train.steps = 7",
            "without/Train.steps = 9",
            'Data.mixture = "both"',
            'Data.evaluation = {"unseen_tasks": "both"}',
            "without/Data.instruct_inputs = False",
        ],
    )
    arms = config.make("Comparison").arms
    assert [made.train.steps for made in arms.values()] == [7, 9]
    assert [made.data.instruct_inputs for made in arms.values()] == [True, False]
    assert arms["with"].method == Full() and isinstance(arms["without"].method, Prompt)


@pytest.mark.slow
def test_a_comparison_from_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(jax.config.values, "jax_disable_most_optimizations", True)
    stage = dataclasses.replace(
        BASE, train=dataclasses.replace(BASE.train, steps=12), optimizer=Optimizer("adamw", Schedule(0.05))
    )
    asked = compared(tmp_path, stages={"pretraining": stage})
    table = comparison.run(asked)
    found = records.read(tmp_path)
    assert {(r["seed"], r["arm"], r["group"], r["task"]) for r in found} == {
        (0, arm, "unseen_tasks", task) for arm in ("pretraining", *ARMS) for task in ("first", "last")
    }
    assert "pretrained" in table and "vs no instruction" in table and "nats/token" in table

    def trained(folder):
        return checkpoint.load_run(str(tmp_path / "seed0" / folder))[0]["backbone/token_embedder/embedding"]

    # Two small steps lead from the stage to its arm, and not to the other one.
    start = trained("stages/pretraining")
    near, far = (np.abs(trained(f"arms/{arm}") - start).max() for arm in ARMS)
    assert 0 < near < 0.05 < far

    before = (tmp_path / "records.jsonl").read_text()
    lost = [line for line in before.splitlines(True) if json.loads(line)["arm"] != "pretrained"]
    (tmp_path / "records.jsonl").write_text("".join(lost))
    capsys.readouterr()
    assert comparison.run(asked).splitlines()[0] == table.splitlines()[0]
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("Seed")] == [
        "Seed 0, 2 of 3: pretrained."
    ]
    score = lambda text: {(r["arm"], r["task"]): r["score"] for r in map(json.loads, text.splitlines())}
    assert score((tmp_path / "records.jsonl").read_text()) == score(before)
