"""A comparison: experiments on the same tests over seeds, resumable run by run.

Stages train first, in order, such as a pretraining; an experiment starts from one where its own fields say 'stage:NAME'
(`Train.initial_checkpoint_path`, or a field of its method), which is the run of that stage with the same seed. A seed
repeats everything: stages, order of the examples, initialisation.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from zeroprompt_jax.errors import UserError, unknown
from zeroprompt_jax.experiment import Experiment
from zeroprompt_jax.paths import place
from zeroprompt_jax.search import comparison_report, records
from zeroprompt_jax.search.records import Record, Run, Shard


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
      model_dir: of the whole; every run gets a folder in it, and they share one cache unless their data names another.
      arms: name to experiment. They are tested alike: on the same groups, by the same Evaluate (batch_size and control
        excepted).
      stages: name to experiment, each trained once per seed for the arms that start from it.
      seeds: how often everything is repeated, with the seeds 0, 1, …
      reference: the arm from which the others' distance is shown.
    """

    model_dir: str
    arms: Mapping[str, Experiment]
    stages: Mapping[str, Experiment] = dataclasses.field(default_factory=dict)
    seeds: int = 3
    reference: str | None = None

    def __post_init__(self):
        object.__setattr__(self, "model_dir", place(self.model_dir, "Comparison.model_dir"))
        records.check_stages(self.stages, self.arms, self.seeds, "Comparison")
        if not self.arms:
            raise UserError("Comparison.arms is empty; give at least one experiment to compare.")
        if both := self.stages.keys() & self.arms.keys():
            raise UserError(f"Comparison: '{min(both)}' names both a stage and an arm.")
        if self.reference is not None and self.reference not in self.arms:
            raise unknown("Comparison.reference", self.reference, self.arms)
        for name, made in {**self.stages, **self.arms}.items():
            if not made.data.evaluation:
                raise UserError(f"Comparison: '{name}' is tested on nothing; give its Data.evaluation a group.")
        records.check_tests(self.arms, "Comparison")


def run(comparison: Comparison, shard: Shard = Shard(), title: str = "") -> str:
    """Runs what is not yet recorded of a shard's seeds, and reports all jobs' after every seed. Returns the table.

    A job of several writes MODEL_DIR/records-I-of-N.jsonl; jobs without a common disk are put together by copying these
    files into one MODEL_DIR and running the comparison there. A record is of a seed, arm, group and task, with `type`,
    `score`, `baseline`, `shuffled`, `loss`, `shuffled_loss`, `examples`, `labels`, and of its run `trained` parameters,
    `steps` and `minutes`.
    """
    root = Path(comparison.model_dir)
    if shard.jobs > comparison.seeds:
        raise UserError(f"{shard.jobs} jobs cannot share a comparison of {comparison.seeds} seeds; give at most as many jobs.")
    with records.alone(root, shard.file):
        for seed in filter(shard.holds, range(comparison.seeds)):
            records.complete(root, seed, runs(comparison, seed), _result, shard.file)
            table = comparison_report.write(
                root, records.read(root), comparison.stages, comparison.arms, comparison.reference, title
            )
    print(table, end="")
    return table


def runs(comparison: Comparison, seed: int) -> list[Run]:
    """The runs of a seed, stages first."""
    root = Path(comparison.model_dir)
    return [
        Run(name, "", _experiment(made, seed, root, f"{kind}/{name}"))
        for kind, every in (("stages", comparison.stages), ("arms", comparison.arms))
        for name, made in every.items()
    ]


def _experiment(made: Experiment, seed: int, root: Path, folder: str) -> Experiment:
    made = records.resolve(made, root / f"seed{seed}" / "stages")
    data = dataclasses.replace(made.data, seed=seed, cache_dir=made.data.cache_dir or str(root / "cache"))
    train = dataclasses.replace(made.train, seed=seed, model_dir=str(root / f"seed{seed}" / folder))
    return dataclasses.replace(made, data=data, train=train)


def _result(made: Experiment) -> list[Record]:
    found, facts = records.result(made)
    scored = ("score", "baseline", "shuffled", "loss", "shuffled_loss")
    kept = ("group", "task", "type", "metric", *scored, "examples", "labels")
    return [{**{key: result[key] for key in kept}, **facts} for result in found.tasks]
