"""What studies record of themselves: results of two configurations never stand in one table."""

import dataclasses

import pytest

from zeroprompt_jax.data.pipeline import Data
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.experiment import Experiment
from zeroprompt_jax.search import records
from zeroprompt_jax.search.records import Run, Shard
from zeroprompt_jax.training.loop import Train
from zeroprompt_jax.training.optimizer import Optimizer, Schedule
from zeroprompt_jax.training.partitioning import Mesh


def experiment(root, rate=0.1, **train) -> Experiment:
    settings = Train(str(root / "seed0/arms/a"), 5, initial_checkpoint_path=str(root / "seed0/stages/s"), **train)
    return Experiment(Data("both"), settings, optimizer=Optimizer(schedule=Schedule(rate), multipliers={"a/.*": rate}))


def complete(root, made):
    measured = []

    def measure(made):
        measured.append(made)
        return [{"score": 1.0}]

    records.complete(root, 0, [Run("a", "", made)], measure)
    return len(measured)


def test_a_recorded_run_is_not_repeated_nor_taken_for_another(tmp_path):
    made = experiment(tmp_path)
    (tmp_path / "seed0/arms/a/checkpoints").mkdir(parents=True)
    assert complete(tmp_path, made) == 1
    assert complete(tmp_path, made) == 0
    assert records.read(tmp_path) == [{"seed": 0, "arm": "a", "run": "", "score": 1.0}]
    with pytest.raises(
        UserError, match="seed0/arms/a holds results of another configuration .*peak=0.1.*not .*peak=0.2"
    ):
        complete(tmp_path, experiment(tmp_path, 0.2))
    # Where results lie and what computes them changes nothing.
    moved = dataclasses.replace(experiment(tmp_path, keep=1), mesh=Mesh(data=1))
    assert complete(tmp_path, moved) == 0
    (tmp_path / "seed0").rename(tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "moved").rename(tmp_path / "elsewhere/seed0")
    (tmp_path / "records.jsonl").rename(tmp_path / "elsewhere/records.jsonl")
    assert complete(tmp_path / "elsewhere", experiment(tmp_path / "elsewhere")) == 0


def test_a_file_of_records_is_one_process_alone(tmp_path, monkeypatch):
    with records.alone(tmp_path):
        with pytest.raises(UserError, match="Another process"), records.alone(tmp_path):
            pass
        with records.alone(tmp_path, Shard(1, 2).file), records.alone(tmp_path, Shard(2, 2).file):
            assert records.read(tmp_path) == []  # what holds it is no record
    with records.alone(tmp_path):  # and again
        pass
    monkeypatch.setattr(records.jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="needs one process; this run has 2"), records.alone(tmp_path):
        pass


def test_a_configuration_that_came_to_nothing_claims_nothing(tmp_path):
    records.claim(tmp_path, experiment(tmp_path), tmp_path)
    records.claim(tmp_path, experiment(tmp_path, 0.2), tmp_path)
    for name, begin in (("records.jsonl", "touch"), ("stages", "mkdir")):  # a stage that was trained is a result
        (folder := tmp_path / f"with {name}").mkdir()
        records.claim(folder, experiment(tmp_path, 0.2), tmp_path)
        getattr(folder / name, begin)()
        with pytest.raises(UserError, match="another configuration"):
            records.claim(folder, experiment(tmp_path), tmp_path)
