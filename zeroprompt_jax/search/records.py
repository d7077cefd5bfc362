"""Studies of many runs: what was measured, in a file that grows run by run, and running what it lacks.

A run may start from another one that the study made before, a *stage*: `stage:NAME` in any text field of its experiment
stands for that stage's folder.
"""

import contextlib
import dataclasses
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from zeroprompt_jax import experiment as experiments
from zeroprompt_jax.errors import UserError, unknown
from zeroprompt_jax.evaluation import report
from zeroprompt_jax.evaluation.evaluate import Evaluation
from zeroprompt_jax.experiment import Experiment
from zeroprompt_jax.training import checkpoint, run_folder

_STAGE = "stage:"
# Where results are, what they are computed on and what is recorded besides does not tell one configuration from another.
_PLACES = ("model_dir", "cache_dir", "mesh", "keep", "save_every", "profile_steps")
# What studies that were begun earlier do not name, and which does nothing while it is None.
_ADDED = ("option_seed",)
# What there is once something was trained or measured.
_RESULTS = ("checkpoints", "records.jsonl", "models", "tasks", "stages")
_FILE = "records.jsonl"
Record = dict[str, Any]


class Run(NamedTuple):
    """A run of a study: the stage or arm that it belongs to, what tells it from the arm's others, and what is run."""

    arm: str
    label: str
    experiment: Experiment


class Shard(NamedTuple):
    """One of several jobs that share a study's runs, counted from 1. Each writes a file of its own; all are read."""

    job: int = 1
    jobs: int = 1

    @property
    def file(self) -> str:
        return _FILE if self.jobs == 1 else f"records-{self.job}-of-{self.jobs}.jsonl"

    def holds(self, place: int) -> bool:
        """Whether the run at this place among all, from 0 on, is this job's."""
        return place % self.jobs == self.job - 1


def parse_shard(text: str) -> Shard:
    """Reads `I/N`. Raises UserError unless I is from 1 to N."""
    job, slash, jobs = text.partition("/")
    if not (slash and job.isdecimal() and jobs.isdecimal() and 1 <= int(job) <= int(jobs)):
        raise UserError(f"The shard '{text}' must be I/N, job I of N, with I from 1 to N, such as 1/4.")
    return Shard(int(job), int(jobs))


def read(root: Path) -> list[Record]:
    """What has been measured, by all jobs."""
    files = [root / _FILE, *sorted(root.glob("records-*-of-*.jsonl"))]
    return [record for path in files for record in _read(path)]


def _read(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def append(root: Path, found: Sequence[Record], file: str = _FILE) -> None:
    """Adds records, all or none."""
    text = "".join(json.dumps(record) + "\n" for record in [*_read(root / file), *found])
    report.save_text(root / file, text)


def complete(
    root: Path,
    seed: int,
    runs: Sequence[Run],
    measure: Callable[[Experiment], Sequence[Record]],
    file: str = _FILE,
) -> None:
    """Runs those of a seed that are not yet recorded, and records each when it is finished: what `measure` found, with
    `seed`, `arm` and `run`, its label."""
    done = {(r["arm"], r["run"]) for r in read(root) if r["seed"] == seed}
    for _, _, made in runs:
        claim(Path(made.train.model_dir), made, root)
    for place, (arm, label, made) in enumerate(runs, 1):
        if (arm, label) in done:
            continue
        print(f"Seed {seed}, {place} of {len(runs)}: {arm}{label and f', {label}'}.", file=sys.stderr)
        found = [{"seed": seed, "arm": arm, "run": label, **record} for record in measure(made)]
        append(root, found, file)


@contextlib.contextmanager
def alone(root: Path, file: str = _FILE) -> Iterator[None]:
    """Holds a study's file of records, which `append` reads and writes anew, and what is made for it. Raises UserError
    where another process holds it, and in several processes, which would all write it."""
    if jax.process_count() > 1:
        raise UserError(f"A study needs one process; this run has {jax.process_count()}.")
    with run_folder.alone(root, f".{file}.lock"):
        yield


def describe(value: Any) -> str:
    """A configured value as text that is the same in every process, without where its results are kept."""
    if dataclasses.is_dataclass(value):
        fields = [f.name for f in dataclasses.fields(value) if f.name not in _PLACES]
        fields = [name for name in fields if name not in _ADDED or getattr(value, name) is not None]
        return f"{type(value).__name__}({', '.join(f'{name}={describe(getattr(value, name))}' for name in fields)})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {describe(part)}' for name, part in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(describe, value))}]"
    if callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__name__)}"
    return repr(value)


def claim(folder: Path, configured: Any, root: Path) -> None:
    """Says in `folder` what its results are configured as; paths below `root`, the study's, count as the same wherever
    that lies. Raises UserError where it says otherwise: results of two configurations would stand in one table."""
    text, saved = describe(configured).replace(str(root), "MODEL_DIR") + "\n", folder / "study.txt"
    begun = any((folder / name).exists() for name in _RESULTS)  # a config with a mistake in it claims nothing
    if begun and saved.exists() and (old := saved.read_text(encoding="utf-8")) != text:
        at = next((i for i, (a, b) in enumerate(zip(old, text)) if a != b), min(len(old), len(text)))
        was, now = (x[x.rfind(", ", 0, at) + 1 :][:60].strip() for x in (old, text))
        raise UserError(
            f"{folder} holds results of another configuration ('{was} …', not '{now} …'); give another MODEL_DIR, or the old "
            f"configuration to continue."
        )
    report.save_text(saved, text)


def result(made: Experiment) -> tuple[Evaluation, dict[str, float]]:
    """Trains an experiment, or takes it as it was trained before. Returns its scores, and facts for its records:
    `trained` parameters (per task, where tasks have their own), `steps` and `minutes`."""
    with contextlib.redirect_stdout(io.StringIO()):  # a table for each of a hundred runs would bury the study's
        found = experiments.train(made) or experiments.evaluate_run(made)
    root = made.train.model_dir
    shapes = checkpoint.saved_shapes(checkpoint.find(root))
    shared = any(path.startswith("backbone/") for path in shapes)
    tasks = len(made.data.training()) if made.method.per_task and not shared else 1
    trained = sum(int(np.prod(shape)) for shape in shapes.values()) / tasks
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


def check_tests(arms: Mapping[str, Experiment], study: str) -> None:
    """Raises UserError unless all arms are tested alike: on the same groups, by the same Evaluate."""
    first, *others = arms
    # Neither changes a score; the control costs as much as the test itself, so that some arms may go without.
    alike = lambda name: dataclasses.replace(arms[name].evaluate, batch_size=1, control=False)
    for name in others:
        if (own := alike(name)) != (wanted := alike(first)):
            field = next(f.name for f in dataclasses.fields(own) if getattr(own, f.name) != getattr(wanted, f.name))
            raise UserError(
                f"{study}: '{name}' is not tested as '{first}' is: Evaluate.{field} is {getattr(own, field)}, not "
                f"{getattr(wanted, field)}."
            )
        tested = lambda name: (dict((d := arms[name].data).evaluation), d.max_test_examples, d.option_seed)
        if tested(name) != tested(first):
            raise UserError(f"{study}: '{name}' is not tested on what '{first}' is; give both one Data.evaluation, max_test_examples and option_seed.")


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
