"""The adaptation study: ways to adapt one backbone, compared on few-shot targets over seeds, resumable run by run.

Stages train on source tasks first (teachers, shared prompts); arms then adapt to the targets, starting where their
methods say, `stage:NAME` standing for the run of that stage with the same seed. A seed repeats everything: the stages, the
drawn examples, the initialisation. All targets and numbers of examples of an arm train side by side as slices of one bank.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from zeroprompt_jax.data import seqio_bridge
from zeroprompt_jax.experiment import Experiment
from zeroprompt_jax.methods.bank import Bank
from zeroprompt_jax.methods.base import Method
from zeroprompt_jax.methods.full import Full
from zeroprompt_jax.paths import place_of
from zeroprompt_jax.search import adaptation_report, records
from zeroprompt_jax.search.records import Record, Run
from zeroprompt_jax.training.optimizer import Optimizer


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
        records.check_stages(self.stages, self.arms, self.seeds, "AdaptationStudy")


def run(study: AdaptationStudy, title: str = "") -> str:
    """Runs what is not yet recorded in MODEL_DIR/records.jsonl, and reports after every seed. Returns the table.

    A record is of a seed, arm and task, with `score`, `baseline`, `shots`, `trained` values per task, `steps` and `minutes`.
    """
    root = Path(study.base.train.model_dir)
    study.base.data.register()
    with records.alone(root):
        for seed in range(study.seeds):
            records.complete(root, seed, list(_runs(study, seed)), _result)
            table = adaptation_report.write(root, records.read(root), study.stages, study.arms, title)
    print(table, end="")
    return table


def _runs(study: AdaptationStudy, seed: int) -> Iterator[Run]:
    """The runs of a seed in order, labelled by what they train on."""
    for name, stage in study.stages.items():
        yield Run(name, study.sources, _experiment(study, stage, study.sources, seed, f"stages/{name}"))
    shots = ",".join(map(str, study.shots))
    mixture = f"{study.targets}@{shots}.{seed}"
    for name, arm in study.arms.items():
        if isinstance(arm.method, Bank):
            yield Run(name, mixture, _experiment(study, arm, mixture, seed, f"arms/{name}"))
            continue
        # What is no bank trains one task at a time.
        for task in seqio_bridge.find_mixture(mixture):
            folder = str(place_of(task, f"arms/{name}"))
            yield Run(name, task, _experiment(study, arm, task, seed, folder))


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
    method = records.resolve(arm.method, root / f"seed{seed}" / "stages")
    return dataclasses.replace(base, data=data, train=train, method=method, optimizer=arm.optimizer)


def _result(made: Experiment) -> list[Record]:
    found, facts = records.result(made)
    out = []
    for result in found.tasks:
        task, _, few = result["task"].rpartition("@")
        shots = int(few.split(".")[0]) if task else None
        keep = {key: result[key] for key in ("type", "score", "baseline", "examples")}
        out.append({"task": task or few, "shots": shots, **keep, **facts})
    return out
