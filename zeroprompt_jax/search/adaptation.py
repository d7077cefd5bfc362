"""The adaptation study: ways to adapt one backbone, compared on few-shot targets over seeds, resumable run by run.

Stages train on source tasks first (teachers, shared prompts); arms then adapt to the targets, starting where their
methods say, `stage:NAME` standing for the run of that stage with the same seed. A seed repeats everything: the stages, the
drawn examples, the initialisation. All targets and numbers of examples of an arm train side by side as slices of one bank.
"""

import contextlib
import dataclasses
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zeroprompt_jax import experiment as experiments
from zeroprompt_jax.data import seqio_bridge
from zeroprompt_jax.errors import UserError, unknown
from zeroprompt_jax.experiment import Experiment
from zeroprompt_jax.methods.bank import Bank
from zeroprompt_jax.methods.base import Method
from zeroprompt_jax.methods.full import Full
from zeroprompt_jax.search import adaptation_report
from zeroprompt_jax.training import checkpoint
from zeroprompt_jax.training.optimizer import Optimizer

_STAGE = "stage:"
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train: a method, its optimizer, steps, and the rows that each task has in a batch (on average, where
    batches are of a few tasks)."""

    method: Method = Full()
    optimizer: Optimizer = Optimizer()
    steps: int = 100
    rows: int = 4
    batching: str = "every_task"


@dataclasses.dataclass(frozen=True)
class AdaptationStudy:
    """What is compared.

    Attributes:
      base: the experiment that every run is made from: backbone, data, evaluation, MODEL_DIR.
      sources, targets: mixtures.
      stages: name to what is trained on all sources' examples, in order.
      arms: name to what is trained on each target.
      shots: numbers of training examples of a target.
      seeds: how often everything is repeated.
    """

    base: Experiment
    sources: str
    targets: str
    stages: Mapping[str, Arm]
    arms: Mapping[str, Arm]
    shots: Sequence[int] = (4, 16, 32)
    seeds: int = 3

    def __post_init__(self):
        for kind, arms in (("stage", self.stages), ("arm", self.arms)):
            known: list[str] = []
            for name, arm in arms.items():
                for stage in _stages_of(arm.method):
                    if stage not in (known if kind == "stage" else self.stages):
                        raise unknown(f"stage that {kind} '{name}' starts from", stage, known or self.stages)
                known.append(name)
        if self.seeds < 1:
            raise UserError(f"AdaptationStudy.seeds is {self.seeds}; it must be at least 1.")


def run(study: AdaptationStudy, title: str = "") -> str:
    """Runs what is not yet recorded in MODEL_DIR/records.jsonl, and reports after every seed. Returns the table."""
    root = Path(study.base.train.model_dir)
    study.base.data.register()
    for seed in range(study.seeds):
        done = {(r["arm"], r["run"]) for r in records(root) if r["seed"] == seed}
        runs = [*_runs(study, seed)]
        for place, (name, label, made) in enumerate(runs):
            if (name, label) in done:
                continue
            print(f"Seed {seed}, {place + 1} of {len(runs)}: {name}, {label}.", file=sys.stderr)
            _record(root, [{"seed": seed, "arm": name, "run": label, **found} for found in _result(made)])
        table = adaptation_report.write(root, records(root), study.stages, study.arms, title)
    print(table, end="")
    return table


def records(root: Path) -> list[Record]:
    """What has been measured: a record per seed, arm and task, with `score`, `baseline`, `shots`, `trained` values per
    task, `steps` and `minutes`."""
    path = root / "records.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _record(root: Path, found: Sequence[Record]) -> None:
    """Adds a run's records, all or none."""
    partial = root / f".records.{os.getpid()}.tmp"
    partial.write_text("".join(json.dumps(r) + "\n" for r in [*records(root), *found]), encoding="utf-8")
    os.replace(partial, root / "records.jsonl")


def _runs(study: AdaptationStudy, seed: int) -> Iterator[tuple[str, str, Experiment]]:
    """(stage or arm, label of the run, its experiment), in order."""
    for name, stage in study.stages.items():
        yield name, study.sources, _experiment(study, stage, study.sources, seed, f"stages/{name}")
    shots = ",".join(map(str, study.shots))
    mixture = f"{study.targets}@{shots}.{seed}"
    for name, arm in study.arms.items():
        if isinstance(arm.method, Bank):
            yield name, mixture, _experiment(study, arm, mixture, seed, f"arms/{name}")
            continue
        # What is no bank trains one task at a time.
        for task in seqio_bridge.find_mixture(mixture):
            yield name, task, _experiment(study, arm, task, seed, f"arms/{name}/{task.replace('/', '_')}")


def _experiment(study: AdaptationStudy, arm: Arm, mixture: str, seed: int, folder: str) -> Experiment:
    base, root = study.base, Path(study.base.train.model_dir)
    tasks = len(seqio_bridge.find_mixture(mixture))
    data = dataclasses.replace(
        base.data,
        mixture=mixture,
        evaluation={"tasks": mixture},
        rates="uniform",
        batching=arm.batching,
        cache_dir=base.data.cache_dir or str(root / "cache"),
        seed=seed,
    )
    train = dataclasses.replace(
        base.train,
        model_dir=str(root / f"seed{seed}" / folder),
        steps=arm.steps,
        batch_size=arm.rows * tasks,
        seed=seed,
        save_every=None,
    )
    method = _resolve(arm.method, root / f"seed{seed}" / "stages")
    return dataclasses.replace(base, data=data, train=train, method=method, optimizer=arm.optimizer)


def _stages_of(value: Any) -> Iterator[str]:
    """The stages that a method starts from, in its own fields or those of its parts."""
    if isinstance(value, str) and value.startswith(_STAGE):
        yield value.removeprefix(_STAGE)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _stages_of(getattr(value, field.name))


def _resolve(value: Any, stages: Path) -> Any:
    """Replaces `stage:NAME` by the folder of that stage's run."""
    if isinstance(value, str) and value.startswith(_STAGE):
        return str(stages / value.removeprefix(_STAGE))
    if dataclasses.is_dataclass(value):
        new = {f.name: _resolve(getattr(value, f.name), stages) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **new)
    return value


def _result(made: Experiment) -> list[Record]:
    with contextlib.redirect_stdout(io.StringIO()):  # a table for each of a hundred runs would bury ours
        found = experiments.train(made) or experiments.evaluate_run(made)
    where = checkpoint.find(made.train.model_dir)
    tasks = len(made.data.training()) if made.method.per_task else 1
    trained = sum(int(np.prod(shape)) for shape in checkpoint.saved_shapes(where).values()) / tasks
    minutes = json.loads((Path(made.train.model_dir) / "results.json").read_text(encoding="utf-8"))["minutes"]
    out = []
    for result in found.tasks:
        task, _, few = result["task"].rpartition("@")
        shots = int(few.split(".")[0]) if task else None
        keep = {key: result[key] for key in ("type", "score", "baseline", "examples")}
        facts = {"trained": trained, "steps": made.train.steps, "minutes": minutes}
        out.append({"task": task or few, "shots": shots, **keep, **facts})
    return out
