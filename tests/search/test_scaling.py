"""The task-scaling study: what its runs train on and cost, that jobs share it and it continues, and its figures."""

import csv
import dataclasses
import io
import itertools

import numpy as np
import pytest
import scipy.stats

from zeroprompt_jax import config
from zeroprompt_jax.data import cards
from zeroprompt_jax.data.pipeline import Data
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.evaluation.evaluate import Evaluate
from zeroprompt_jax.experiment import Experiment, step_flops
from zeroprompt_jax.models.t5 import T5Config
from zeroprompt_jax.search import records, scaling, scaling_report
from zeroprompt_jax.search.records import Shard
from zeroprompt_jax.search.scaling import ScalingStudy
from zeroprompt_jax.training.loop import Train
from zeroprompt_jax.training.optimizer import Optimizer, Schedule
from zeroprompt_jax.training.partitioning import Mesh

SIZES = dict(vocab_size=384, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1, num_decoder_layers=1)
SMALL = T5Config(emb_dim=16, **SIZES, logits_via_embedding=True, dropout_rate=0.0, dtype="float32", scan_layers=False)
TRAINED, TESTED = [f"place{i}" for i in range(8)], ["unseen8", "unseen9"]


@pytest.fixture(autouse=True)
def tasks(monkeypatch):
    """Which digit of a number: eight tasks of two types to train on, two others to test on."""
    monkeypatch.setattr(cards, "_TASKS", {})
    monkeypatch.setattr(cards, "_MIXTURES", {})
    for place, name in enumerate([*TRAINED, *TESTED]):

        def examples(split, place=place):
            for i in range(8):
                number = f"{(7919 * (i + 1) + 31 * place + (split == 'test')) * 12347:010d}"[-10:]
                yield {"input": number, "target": number[place]}

        card = cards.TaskCard(name, f"type{place % 2}", (f"{place}?", f"{place}."))
        cards.register(card, cards.Source(examples, name))
    cards.register_mixture("trained", TRAINED)
    cards.register_mixture("unseen", TESTED)


BASE = Experiment(
    Data("trained", feature_lengths={"inputs": 16, "targets": 3}, evaluation={"unseen_tasks": "unseen"}),
    Train("nowhere", 4, 4, eval_every=2),
    SMALL,
    optimizer=Optimizer("adamw", Schedule(0.01)),
    mesh=Mesh(data=1),
    evaluate=Evaluate(batch_size=16, control=False),
)
BIG = dataclasses.replace(BASE, model=dataclasses.replace(SMALL, emb_dim=32))


def study(root, **changes) -> ScalingStudy:
    return dataclasses.replace(ScalingStudy(str(root), {"small": BASE, "big": BIG}, (2, 4, 8), seeds=2), **changes)


def test_runs_are_nested_and_differ_in_nothing_but_their_tasks(tmp_path):
    asked = study(tmp_path)
    chosen = {}
    for seed in range(2):
        made = scaling.runs(asked, seed)
        assert [(r.arm, r.label) for r in made] == [(s, f"{n} tasks") for s in ("small", "big") for n in (2, 4, 8)]
        for size, label, run in made:
            assert run.train.model_dir == str(tmp_path / f"seed{seed}" / size / label.replace(" ", ""))
            assert {run.data.seed, run.data.subset_seed, run.train.seed} == {seed}
            assert run.data.groups() == {"unseen_tasks": tuple(TESTED)}  # one test pool
            assert (run.train.steps, run.train.batch_size) == (4, 4) and run.model == asked.sizes[size].model
            mine = set(run.data.training())
            assert mine <= set(TRAINED)
            # Sizes are trained on the same tasks.
            assert chosen.setdefault((seed, len(mine)), mine) == mine
        assert chosen[seed, 2] < chosen[seed, 4] < chosen[seed, 8]
    assert chosen[0, 4] != chosen[1, 4]  # another seed is another choice


def test_every_run_reads_as_many_examples_and_padded_tokens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shapes = set()
    for _, _, made in scaling.runs(study(tmp_path), 0):
        store, _ = made.data.open(made.train.model_dir, progress=False)
        batch = made.data.stream(store, made.train.batch_size).batch(0)
        shapes.add((made.train.steps, batch["encoder_input_tokens"].shape, batch["decoder_target_tokens"].shape))
    assert shapes == {(4, (4, 16), (4, 3))}


def test_equal_flops_give_the_larger_model_fewer_steps(tmp_path):
    longer = {n: changed(e, "train", steps=1000) for n, e in study("").sizes.items()}
    asked = study(tmp_path, sizes=longer, compute="flops")
    cost = {r.arm: r.experiment.train.steps * step_flops(r.experiment) for r in scaling.runs(asked, 0)[::3]}
    small, big = (1000 * step_flops(e) for e in longer.values())
    assert big > 1.5 * small
    assert cost["small"] == small and cost["big"] == pytest.approx(small, rel=0.002)


def changed(made, part, **changes):
    return dataclasses.replace(made, **{part: dataclasses.replace(getattr(made, part), **changes)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": (4, 2)}, r"ScalingStudy.tasks is \[4, 2\]; give two or more"),
        ({"tasks": (4, 4)}, r"tasks is \[4, 4\]"),
        ({"tasks": (0, 4)}, r"tasks is \[0, 4\]"),
        ({"tasks": (4,)}, r"tasks is \[4\]"),
        ({"sizes": {}}, "ScalingStudy.sizes is empty"),
        ({"seeds": 0}, "ScalingStudy.seeds is 0"),
        ({"compute": "flop"}, "Unknown ScalingStudy.compute 'flop'. Did you mean 'flops'"),
        ({"sizes": {"a": changed(BASE, "data", evaluation={})}}, "'a' is tested on nothing"),
        ({"tasks": 16}, r"ScalingStudy.tasks is \[16\]; give two or more"),
        ({"sizes": {"a": changed(BASE, "data", train_tasks=3)}}, "leave out Data.train_tasks"),
        (
            {"sizes": {"a": changed(BASE, "data", batching="buckets")}},
            "Data.batching of 'a' is 'buckets'.*padded or packed",
        ),
        (
            {"sizes": {"a": BASE, "b": changed(BIG, "train", steps=5)}},
            "'b' is not trained as 'a' is: Train.steps is 5, not 4",
        ),
        ({"sizes": {"a": BASE, "b": changed(BIG, "train", batch_size=8)}}, "Train.batch_size is 8, not 4"),
        ({"sizes": {"a": BASE, "b": changed(BIG, "data", rates="uniform")}}, "Data.rates is uniform, not explicit"),
        ({"sizes": {"a": BASE, "b": changed(BIG, "evaluate", wordings="none")}}, "'b' is not tested as 'a' is"),
    ],
)
def test_mistakes_are_told_before_anything_runs(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        study(tmp_path, **changes)


def test_a_study_is_one_process_alone(tmp_path):
    with records.alone(tmp_path), pytest.raises(UserError, match="Another process is at work"):
        scaling.run(study(tmp_path))


def test_too_many_tasks_and_tested_training_tasks_are_refused(tmp_path):
    with pytest.raises(UserError, match="asks for 9 training tasks, but 'trained' has 8"):
        scaling.run(study(tmp_path, tasks=(2, 9)))
    seen = changed(BASE, "data", evaluation={"unseen_tasks": "unseen", "seen_tasks": "trained"})
    with pytest.raises(UserError, match="group 'seen_tasks' tests 'place0', which is in the training mixture"):
        scaling.run(study(tmp_path, sizes={"a": seen}))
    assert not list(tmp_path.iterdir())


# Jobs. What a run finds is made up; what is run, skipped, written and read is not.


def run_record(size, tasks, score, curve=(), flops=100.0, parameters=10, baseline=0.2, steps=4, kind="t"):
    groups = {"unseen_tasks": {"score": score, "baseline": baseline, "loss": 1.0, "tasks": 2, "labels": 0}}
    test = {
        "group": "unseen_tasks",
        "task": "x",
        "type": kind,
        "metric": "exact_match",
        "score": score,
        "baseline": baseline,
    }
    tests = [{**test, "examples": 20, "labels": 0, "wordings": {"0": score - 0.1, "1": score + 0.1}}]
    return {
        "arm": size, "run": f"{tasks} tasks", "tasks": tasks, "types": 2, "parameters": parameters, "steps": steps,
        "trained": parameters, "batch": 4, "minutes": 1.5, "flops": flops, "counted": 1.05 * flops, "groups": groups,
        "curve": [[step, {"unseen_tasks": s}] for step, s in curve], "tests": tests,
    }  # fmt: skip


@pytest.fixture
def measured(monkeypatch):
    """Replaces training by made-up scores; lists what was run."""
    done = []

    def measure(made):
        size = "small" if made.model == SMALL else "big"
        done.append((made.train.seed, size, made.data.train_tasks))
        score = 0.05 * made.data.train_tasks + 0.1 * (size == "big") + 0.01 * made.train.seed
        return [run_record(size, made.data.train_tasks, score)]

    monkeypatch.setattr(scaling, "_measure", measure)
    monkeypatch.setattr(scaling_report, "_pictures", lambda *_: None)
    return done


def test_jobs_together_are_one_study(tmp_path, measured):
    whole = scaling.run(study(tmp_path / "whole"))
    every = sorted(measured)
    assert len(every) == len(set(every)) == 12
    for jobs in (2, 5):
        measured.clear()
        root = tmp_path / f"of{jobs}"
        shares = []
        for job in range(jobs, 0, -1):
            before = len(measured)
            table = scaling.run(study(root), Shard(job, jobs))
            shares.append(len(measured) - before)
            lines = (root / f"records-{job}-of-{jobs}.jsonl").read_text().splitlines()
            assert len(lines) == shares[-1]
        assert sorted(measured) == every and max(shares) - min(shares) <= 1
        assert table == whole and not (root / "records.jsonl").exists()
        # Nothing is left to the study itself, nor to jobs of another number; a run that two jobs made counts once.
        assert scaling.run(study(root)) == scaling.run(study(root), Shard(1, 3)) == whole and len(measured) == 12
        (root / "records-9-of-9.jsonl").write_text((root / f"records-1-of-{jobs}.jsonl").read_text())
        assert scaling.run(study(root)) == whole
    # A job that has nothing to do says so.
    assert "No run" in scaling.run(study(tmp_path / "idle"), Shard(13, 13))


def test_a_stopped_study_does_what_is_missing(tmp_path, measured, monkeypatch, capsys):
    measure = scaling._measure

    def stopped(made):
        if len(measured) == 4:
            raise KeyboardInterrupt
        return measure(made)

    monkeypatch.setattr(scaling, "_measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        scaling.run(study(tmp_path))
    assert len(records.read(tmp_path)) == 4
    monkeypatch.setattr(scaling, "_measure", measure)
    capsys.readouterr()
    scaling.run(study(tmp_path))
    assert len(measured) == len(set(measured)) == 12
    assert capsys.readouterr().err.splitlines()[0] == "Seed 0, 5 of 6: big, 4 tasks."
    # More task counts and seeds are added to what there is.
    scaling.run(study(tmp_path, tasks=(2, 3, 4, 8), seeds=3))
    assert len(measured) == len(set(measured)) == 24


def test_records_of_other_compute_are_refused(tmp_path, measured):
    scaling.run(study(tmp_path))
    other = {n: changed(e, "train", steps=5) for n, e in study("").sizes.items()}
    (tmp_path / "copied").mkdir()
    (tmp_path / "records.jsonl").rename(tmp_path / "copied/records-1-of-2.jsonl")
    with pytest.raises(UserError, match="record of 'small' with 4 steps of 4 examples, not 5 of 4: give another"):
        scaling.run(study(tmp_path / "copied", sizes=other))
    # A study of one size reports that one, whatever lies beside it.
    alone = scaling.run(study(tmp_path / "copied", sizes={"small": BASE}))
    assert len(measured) == 12 and "big" not in alone and "small" in alone


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/", "a/2", "1/2/3", "-1/2"])
def test_bad_shards_are_named(text):
    with pytest.raises(UserError, match=f"The shard '{text}' must be I/N"):
        records.parse_shard(text)
    assert records.parse_shard("2/3") == Shard(2, 3)


# The report's figures.


def made_up(scores, **facts):
    """{(size, tasks): scores by seed} as records."""
    return [
        {"seed": seed, **run_record(size, n, score, **facts)}
        for (size, n), own in scores.items()
        for seed, score in enumerate(own)
    ]


def test_correlation_and_gap_by_hand():
    values = {("small", 16): (0.1, 0.3), ("small", 64): (0.2, 0.25), ("small", 256): (0.6, 0.5)}
    found = scaling_report.cells(made_up(values))
    x, y = zip(*((n, s) for (_, n), own in values.items() for s in own))
    wanted = scipy.stats.spearmanr(x, y).statistic
    assert scaling_report.correlation(found, "small", "unseen_tasks") == pytest.approx(wanted) and 0.5 < wanted < 0.9
    assert scaling_report.gap(found, "small", "unseen_tasks") == pytest.approx([50, 20])
    level = scaling_report.cells(made_up({("small", 16): (0.2,), ("small", 64): (0.2,)}))
    assert np.isnan(scaling_report.correlation(level, "small", "unseen_tasks"))


def test_efficiency_by_hand():
    """4 steps of 100 and of 400 FLOPs: what 16 tasks reach at the end, 256 tasks reach on the way."""
    runs = [
        run_record("small", 16, 0.30, [(0, 0.9), (2, 0.1)], 100, 10),  # an untrained model costs nothing and counts not
        run_record("big", 16, 0.40, [(0, 0.0), (2, 0.39)], 400, 40),
        run_record("small", 256, 0.50, [(0, 0.0), (1, 0.35), (2, 0.41), (3, 0.45)], 100, 10),
        run_record("big", 256, 0.80, [(1, 0.5)], 400, 40),
        run_record("small", 64, 0.20, [], 100, 10),
        run_record("big", 64, 0.10, [], 400, 40),
    ]
    found = scaling_report.cells([{"seed": 0, **r} for r in runs])
    (e,) = scaling_report.efficiency(found, 16, 256, "unseen_tasks").values()
    assert e.target == pytest.approx(40) and (e.few_flops, e.many_flops) == (400, 50)  # the small model after 2 steps
    assert (e.few_parameters, e.many_parameters) == (40, 10)
    # At the score of 64 tasks the first evaluation is enough.
    (e,) = scaling_report.efficiency(found, 64, 256, "unseen_tasks").values()
    assert (e.few_flops, e.many_flops) == (100, 25)
    # Fewer tasks that do better are never reached.
    (e,) = scaling_report.efficiency(found, 256, 16, "unseen_tasks").values()
    assert e.many_flops is None and e.many_parameters is None
    text = scaling_report.table([{"seed": 0, **r} for r in runs], ["small", "big"])
    line = next(
        line for line in text.splitlines() if line.startswith("unseen tasks") and "40.0" in line and " 8.0" in line
    )
    assert line.split()[-2:] == ["8.0", "4.0"]


def test_sizes_by_hand_and_the_verdict_either_way():
    less = {("small", 16): (0.10, 0.12, 0.11), ("big", 16): (0.40, 0.42, 0.42)}
    less |= {("small", 256): (0.70, 0.71, 0.72), ("big", 256): (0.72, 0.74, 0.74)}
    found = scaling_report.cells(made_up(less))
    assert scaling_report.size_gain(found, ["small", "big"], 16, "unseen_tasks") == pytest.approx({0: 30, 1: 30, 2: 31})
    assert "256 tasks against 16: size matters less (-28.0 ±" in scaling_report.table(made_up(less), ["small", "big"])
    more = {(size, 272 - n): own for (size, n), own in less.items()}
    assert "size matters more (+28.0 ±" in scaling_report.table(made_up(more), ["small", "big"])
    noisy = {**less, ("big", 256): (0.9, 1.0, 1.1)}
    assert "not told apart from chance" in scaling_report.table(made_up(noisy), ["small", "big"])


def test_wordings_differ_beyond_chance_or_not():
    rng = np.random.default_rng(0)

    def runs(spread):
        tests = []
        for _ in range(4000):
            chances = np.clip(0.5 + spread * rng.normal(size=3), 0, 1)
            scored = {str(i): rng.binomial(20, p) / 20 for i, p in enumerate(chances)}
            tests.append({"group": "g", "wordings": scored, "examples": 60})
        return [{"tests": tests}, {"tests": [{"group": "g", "wordings": {"0": 1.0}, "examples": 60}]}]

    apart, beyond = scaling_report.wording_spread(runs(0.0), "g")
    assert 15 < apart < 22 and beyond < 3  # the best of three is ahead by chance alone
    assert scaling_report.wording_spread(runs(0.15), "g")[1] == pytest.approx(15, abs=2)
    assert scaling_report.wording_spread(runs(0.0)[1:], "g") is None


def test_table_pictures_and_wordings(tmp_path):
    rises = {(s, n): (0.1 * i, 0.1 * i + 0.02) for s in ("small", "big") for i, n in enumerate((16, 64, 1000), 1)}
    found = made_up(rises) + made_up({("small", 2000): (0.5,)}, kind="u")  # the study is not finished
    text = scaling_report.write(tmp_path, found, ["small", "big", "never"], "zeroprompt scale")
    assert (
        "unseen tasks (2 tasks, 0 labels)" in text and "never" not in text and "31.0 ± 1.4" in text and "2,000" in text
    )
    assert "formula / XLA" in text and "0.952" in text and all(len(line) <= 160 for line in text.splitlines())
    for name in ("results.png", "flops.png", "types.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    assert (tmp_path / "table.txt").read_text() == text
    lines = list(csv.DictReader(io.StringIO((tmp_path / "wordings.csv").read_text())))
    assert len(lines) == 2 * len(found) and {line["labels"] for line in lines} == {"0"}
    assert {(line["wording"], line["score"]) for line in lines if line["training_tasks"] == "2000"} == {
        ("0", "0.4"),
        ("1", "0.6"),
    }
    # From the first run on there is a report.
    for count in range(1, len(found)):
        assert scaling_report.table(found[:count], ["small", "big"])


def test_a_config_gives_each_size_its_own_model():
    config.load(["experiments/task_scaling.gin"], ["SEEDS = 1"])
    made = config.make("ScalingStudy")
    widths = [e.model.emb_dim for e in made.sizes.values()]
    assert widths == [64, 128] and all(e.train.initial_checkpoint_path is None for e in made.sizes.values())
    assert made.tasks[0] <= 16 and made.tasks[-1] >= 1000 and len(made.tasks) >= 5 and made.seeds == 1


@pytest.mark.slow
def test_a_study_from_end_to_end(tmp_path, monkeypatch, compile_fast):
    """Two sizes, two numbers of tasks, one seed, in two jobs."""
    asked = study(tmp_path, tasks=(2, 8), seeds=1)
    for job in (1, 2):
        table = scaling.run(asked, Shard(job, 2))
    found = {(r["arm"], r["tasks"]): r for r in records.read(tmp_path)}
    assert set(found) == set(itertools.product(("small", "big"), (2, 8)))
    for (size, _), r in found.items():
        made = asked.sizes[size]
        assert r["types"] == 2 and r["steps"] == 4 and r["batch"] == 4 and r["parameters"] == r["trained"]
        assert r["flops"] == 4 * step_flops(made)
        assert [step for step, _ in r["curve"]] == [0, 2, 4]
        assert r["curve"][-1][1] == {"unseen_tasks": r["groups"]["unseen_tasks"]["score"]}
        assert r["groups"]["unseen_tasks"]["labels"] == 0 and r["groups"]["unseen_tasks"]["tasks"] == 2
        assert {t["task"] for t in r["tests"]} == set(TESTED) and all(
            set(t["wordings"]) == {"0", "1"} for t in r["tests"]
        )
    assert found["big", 2]["parameters"] > found["small", 2]["parameters"] and "0 labels" in table
    assert {path.name for path in tmp_path.iterdir()} >= {
        "table.txt",
        "wordings.csv",
        "results.png",
        "flops.png",
        "types.png",
    }

    # A run whose record was lost is not trained again.
    (tmp_path / "records-1-of-2.jsonl").unlink()
    monkeypatch.setattr(scaling.experiments, "fit", None)
    again = scaling.run(asked)
    assert again == table
