"""The task-scaling study (ZeroPrompt, 2201.06910): models of several sizes, each trained on nested subsets of the
training tasks at fixed compute, and tested on tasks, and on types of tasks, that none of them saw. Resumable run by
run; its runs may be shared among independent jobs.

A seed repeats everything: which tasks are chosen, the order of the examples, the initialisation. With one seed a
smaller number's tasks are among a larger one's. All runs take as many examples and padded tokens, so that more tasks
mean fewer looks at each.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from zeroprompt_jax import experiment as experiments
from zeroprompt_jax.data import seqio_bridge
from zeroprompt_jax.errors import UserError, unknown
from zeroprompt_jax.evaluation import report
from zeroprompt_jax.experiment import Experiment
from zeroprompt_jax.models import t5
from zeroprompt_jax.paths import place
from zeroprompt_jax.search import records, scaling_report
from zeroprompt_jax.search.records import Record, Run, Shard

COMPUTE = ("steps", "flops")
# What is trained on, and how much: the same for all sizes, and the batches of one shape.
_ALIKE = (
    "mixture",
    "feature_lengths",
    "rates",
    "cap",
    "temperature",
    "batching",
    "instruct_inputs",
    "max_train_examples",
    "max_examples_per_label",
    "option_seed",
    "instruction_limit",
    "unknown_targets",
)
_ONE_SHAPE = ("padded", "packed")


@dataclasses.dataclass(frozen=True)
class ScalingStudy:
    """What is trained.

    Attributes:
      model_dir: of the whole; every run gets a folder in it, and they share one cache unless their data names another.
      sizes: name to experiment, from the smallest model to the largest. All are trained on the same mixture with the
        same Train.batch_size and tested alike, on groups without any task of the mixture.
      tasks: numbers of training tasks, increasing.
      seeds: how often everything is repeated, with the seeds 0, 1, … (of Data.seed, Data.subset_seed and Train.seed).
      compute: what all runs have alike: 'steps', the same Train.steps; 'flops', the training FLOPs of the first size,
        so that the other sizes take correspondingly fewer steps.
    """

    model_dir: str
    sizes: Mapping[str, Experiment]
    tasks: Sequence[int]
    seeds: int = 3
    compute: str = "steps"

    def __post_init__(self):
        object.__setattr__(self, "model_dir", place(self.model_dir, "ScalingStudy.model_dir"))
        if not self.sizes:
            raise UserError("ScalingStudy.sizes is empty; give at least one experiment.")
        if self.seeds < 1:
            raise UserError(f"ScalingStudy.seeds is {self.seeds}; it must be at least 1.")
        if self.compute not in COMPUTE:
            raise unknown("ScalingStudy.compute", self.compute, COMPUTE)
        counts = list(self.tasks) if isinstance(self.tasks, Sequence) else [self.tasks]
        if len(counts) < 2 or counts[0] < 1 or any(b <= a for a, b in zip(counts, counts[1:])):
            raise UserError(
                f"ScalingStudy.tasks is {counts}; give two or more numbers of training tasks, each larger than the one "
                f"before."
            )
        for name, made in self.sizes.items():
            if not made.data.evaluation:
                raise UserError(f"ScalingStudy: '{name}' is tested on nothing; give its Data.evaluation a group.")
            if made.data.train_tasks is not None:
                raise UserError(
                    f"ScalingStudy.tasks says how many tasks '{name}' trains on; leave out Data.train_tasks."
                )
            if made.data.batching not in _ONE_SHAPE:
                raise UserError(
                    f"Data.batching of '{name}' is '{made.data.batching}'; at fixed compute it must be "
                    f"{' or '.join(_ONE_SHAPE)}, whose batches have one shape."
                )
            if made.method.reads_instructions:
                raise UserError(
                    f"The method of '{name}' reads instructions apart, whose FLOPs this study does not count."
                )
        records.check_tests(self.sizes, "ScalingStudy")
        first, *others = self.sizes
        for name in others:
            self._check_alike(first, name)

    def _check_alike(self, first: str, name: str) -> None:
        one, other = self.sizes[first], self.sizes[name]
        pairs = [("Data", field, one.data, other.data) for field in _ALIKE]
        fields = ("batch_size", "steps") if self.compute == "steps" else ("batch_size",)
        for kind, field, wanted, own in [*pairs, *(("Train", field, one.train, other.train) for field in fields)]:
            if getattr(own, field) != getattr(wanted, field):
                raise UserError(
                    f"ScalingStudy: '{name}' is not trained as '{first}' is: {kind}.{field} is {getattr(own, field)}, "
                    f"not {getattr(wanted, field)}."
                )


def run(study: ScalingStudy, shard: Shard = Shard(), title: str = "") -> str:
    """Runs what is not yet recorded of a shard's runs, and reports all jobs' after every seed. Returns the table.

    A job of several writes MODEL_DIR/records-I-of-N.jsonl; jobs without a common disk are put together by copying these
    files into one MODEL_DIR and running the study there, which does what is still missing. There is one record a run,
    see `_measure`.
    """
    root = Path(study.model_dir)
    check_tasks(study)
    known = {(made.arm, made.label) for made in runs(study, 0)}

    def recorded() -> list[Record]:
        """Of this study: an earlier one in the same place may have had other numbers of tasks, or more seeds."""
        return [r for r in records.read(root) if (r["arm"], r["run"]) in known and r["seed"] < study.seeds]

    _check_records(study, recorded())
    table = "No run of the study is recorded yet.\n"
    with records.alone(root, shard.file):
        for seed in range(study.seeds):
            every = runs(study, seed)
            mine = [made for place, made in enumerate(every) if shard.holds(seed * len(every) + place)]
            records.complete(root, seed, mine, _measure, shard.file)
            if found := recorded():
                table = scaling_report.write(root, found, list(study.sizes), title)
    print(table, end="")
    return table


def check_tasks(study: ScalingStudy) -> None:
    """Raises UserError where there are fewer training tasks than asked for, or where one of them is tested."""
    data = next(iter(study.sizes.values())).data
    data.register()
    training = seqio_bridge.find_mixture(data.mixture)
    if study.tasks[-1] > len(training):
        raise UserError(
            f"ScalingStudy.tasks asks for {study.tasks[-1]:,} training tasks, but '{data.mixture}' has "
            f"{len(training):,}."
        )
    for group, tasks in data.groups().items():
        if seen := [task for task in tasks if task in training]:
            raise UserError(
                f"The group '{group}' tests '{seen[0]}', which is in the training mixture '{data.mixture}'; the study "
                f"is of tasks that training never sees."
            )


def _check_records(study: ScalingStudy, found: Sequence[Record]) -> None:
    """Raises UserError for records that were copied from a study with other compute."""
    known = {(made.arm, made.label): made.experiment for made in runs(study, 0)}
    for record in found:
        made = known.get((record["arm"], record["run"]))
        if made is not None and (record["steps"], record["batch"]) != (made.train.steps, made.train.batch_size):
            raise UserError(
                f"{study.model_dir} holds a record of '{record['arm']}' with {record['steps']:,} steps of "
                f"{record['batch']} examples, not {made.train.steps:,} of {made.train.batch_size}: give another model_dir."
            )


def runs(study: ScalingStudy, seed: int) -> list[Run]:
    """The runs of a seed, size by size, so that a size's are compiled once. Needs the tasks registered."""
    root = Path(study.model_dir)
    first = next(iter(study.sizes.values()))
    out = []
    for name, made in study.sizes.items():
        steps = made.train.steps
        if study.compute == "flops":
            steps = max(1, round(first.train.steps * experiments.step_flops(first) / experiments.step_flops(made)))
        for count in study.tasks:
            folder = root / f"seed{seed}" / name / f"{count}tasks"
            cache = made.data.cache_dir or str(root / "cache")
            data = dataclasses.replace(made.data, train_tasks=count, subset_seed=seed, seed=seed, cache_dir=cache)
            train = dataclasses.replace(made.train, model_dir=str(folder), steps=steps, seed=seed)
            out.append(Run(name, f"{count} tasks", dataclasses.replace(made, data=data, train=train)))
    return out


def _measure(made: Experiment) -> list[Record]:
    """Trains one model and tests it. Returns its one record: `tasks` and their `types`, `parameters` of the backbone,
    `trained` values, `steps`, `batch`, `minutes`, `flops` of the whole training by formula and `counted` by XLA; by
    group the means over tasks (`groups`); those of the evaluations during training (`curve`: step, group to score); and
    by group and task (`tests`) the score, with that of every wording."""
    flops, counted = experiments.step_flops(made), experiments.counted_flops(made)
    found, facts = records.result(made)
    training = made.data.training()
    shapes = jax.eval_shape(functools.partial(t5.init, made.model), jax.random.key(0))
    rows = found.rows()
    kept = ("group", "task", "type", "metric", "score", "baseline", "examples", "labels")
    return [
        {
            "tasks": len(training),
            "types": len({seqio_bridge.type_of(task) for task in training}),
            "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)),
            **facts,
            "batch": made.train.batch_size,
            "flops": made.train.steps * flops,
            "counted": made.train.steps * counted,
            "groups": {group: _means(rows, group, loss) for group, loss in found.losses.items()},
            "curve": _curve(Path(made.train.model_dir), list(found.losses)),
            "tests": [{**{key: r[key] for key in kept}, "wordings": r["per_wording"]} for r in found.tasks],
        }
    ]


def _means(rows: Sequence[Any], group: str, loss: float) -> dict[str, Any]:
    whole = report.mean(rows, group)
    return {
        "score": whole.score,
        "baseline": whole.baseline,
        "loss": loss,
        "tasks": whole.tasks,
        "labels": whole.labels,
    }


def _curve(folder: Path, groups: Sequence[str]) -> list[tuple[int, dict[str, float]]]:
    """(step, group to score) of every evaluation of a run, the last one included."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    every = {values["step"]: values for values in map(json.loads, lines) if f"{groups[0]}/score" in values}
    return [(step, {group: values[f"{group}/score"] for group in groups}) for step, values in sorted(every.items())]
