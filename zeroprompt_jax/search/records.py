"""Studies of many runs: what was measured, in a file that grows run by run, and running what it lacks.

A run may start from another one that the study made before, a *stage*: `stage:NAME` in any text field of its experiment
stands for that stage's folder.
"""

import contextlib
import dataclasses
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zeroprompt_jax import experiment as experiments
from zeroprompt_jax.errors import UserError, unknown
from zeroprompt_jax.evaluation import report
from zeroprompt_jax.evaluation.evaluate import Evaluation
from zeroprompt_jax.experiment import Experiment
from zeroprompt_jax.training import checkpoint

_STAGE = "stage:"
Record = dict[str, Any]


class Run(NamedTuple):
    """A run of a study: the stage or arm that it belongs to, what tells it from the arm's others, and what is run."""

    arm: str
    label: str
    experiment: Experiment


def read(root: Path) -> list[Record]:
    """What has been measured."""
    path = root / "records.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def append(root: Path, found: Sequence[Record]) -> None:
    """Adds records, all or none."""
    text = "".join(json.dumps(record) + "\n" for record in [*read(root), *found])
    report.save_text(root / "records.jsonl", text)


def complete(root: Path, seed: int, runs: Sequence[Run], measure: Callable[[Experiment], Sequence[Record]]) -> None:
    """Runs those of a seed that are not yet recorded, and records each when it is finished: what `measure` found, with
    `seed`, `arm` and `run`, its label."""
    done = {(r["arm"], r["run"]) for r in read(root) if r["seed"] == seed}
    for place, (arm, label, made) in enumerate(runs, 1):
        if (arm, label) in done:
            continue
        print(f"Seed {seed}, {place} of {len(runs)}: {arm}{label and f', {label}'}.", file=sys.stderr)
        found = [{"seed": seed, "arm": arm, "run": label, **record} for record in measure(made)]
        append(root, found)


def result(made: Experiment) -> tuple[Evaluation, dict[str, float]]:
    """Trains an experiment, or takes it as it was trained before. Returns its scores, and facts for its records:
    `trained` parameters (per task, where tasks have their own), `steps` and `minutes`."""
    with contextlib.redirect_stdout(io.StringIO()):  # a table for each of a hundred runs would bury the study's
        found = experiments.train(made) or experiments.evaluate_run(made)
    root = made.train.model_dir
    tasks = len(made.data.training()) if made.method.per_task else 1
    trained = sum(int(np.prod(shape)) for shape in checkpoint.saved_shapes(checkpoint.find(root)).values()) / tasks
    minutes = json.loads((Path(root) / "results.json").read_text(encoding="utf-8"))["minutes"]
    return found, {"trained": trained, "steps": made.train.steps, "minutes": minutes}


def check_stages(stages: Mapping[str, Any], arms: Mapping[str, Any], seeds: int, study: str) -> None:
    """Raises UserError where something starts from a stage that there is not, or a stage from a later one."""
    for kind, every in (("stage", stages), ("arm", arms)):
        known: list[str] = []
        for name, arm in every.items():
            for stage in _stages_of(arm):
                if stage not in (known if kind == "stage" else stages):
                    raise unknown(f"stage that {kind} '{name}' starts from", stage, known or stages)
            known.append(name)
    if seeds < 1:
        raise UserError(f"{study}.seeds is {seeds}; it must be at least 1.")


def _stages_of(value: Any) -> Iterator[str]:
    if isinstance(value, str) and value.startswith(_STAGE):
        yield value.removeprefix(_STAGE)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _stages_of(getattr(value, field.name))


def resolve(value: Any, stages: Path) -> Any:
    """Replaces `stage:NAME`, in a dataclass's own fields or those of its parts, by the folder of that stage's run."""
    if isinstance(value, str) and value.startswith(_STAGE):
        return str(stages / value.removeprefix(_STAGE))
    if dataclasses.is_dataclass(value):
        old = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        new = {name: resolve(part, stages) for name, part in old.items()}
        changed = {name: part for name, part in new.items() if part is not old[name]}
        return dataclasses.replace(value, **changed) if changed else value
    return value
