"""The entailment study: what few labels teach an encoder at what number of trained parameters.

An encoder is trained in stages first, on masked text and on pairs of inference. Arms then train tasks from K examples of each
class by the protocol of LM-BFF (Gao et al. 2021, section 3; Kim et al. 2023, section 4): K more of each class select the
learning rate and the step, several named splits repeat everything, and only what was selected meets the test. All tasks,
splits and rates of an arm are slices of one bank and train side by side, in the same batches.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from zeroprompt_jax.data import entailment, few_shot
from zeroprompt_jax.data.entailment import Rows
from zeroprompt_jax.data.entailment_suite import Suite
from zeroprompt_jax.data.reformulation import Reformulation
from zeroprompt_jax.errors import UserError, unknown
from zeroprompt_jax.models.roberta import RobertaConfig
from zeroprompt_jax.search import encoder_stages, entailment_report, records
from zeroprompt_jax.search.encoder_stages import EncoderStage
from zeroprompt_jax.search.entailment_slices import EntailmentArm, Fitted, Split, fit, slots_of
from zeroprompt_jax.search.records import Record
from zeroprompt_jax.training.state import Flat


@dataclasses.dataclass(frozen=True)
class EntailmentStudy:
    """What is compared.

    Attributes:
      model_dir: where records.jsonl, table.txt and results.png are.
      model: the encoder, of which the stages train every head that it has.
      suite: makes the tasks and what stages train on.
      arms: name to how tasks are trained.
      stages: name to how the encoder is trained before, each from where the one before it ended.
      initial_checkpoint_path: an encoder to begin with, in Hugging Face layout; heads that it lacks are random, and without
        it everything is.
      shots: K.
      splits: seeds of the splits.
      batch_size: rows at a time when tasks are asked.
      seed: of everything else.
    """

    model_dir: str
    model: RobertaConfig
    suite: Callable[[], Suite]
    arms: Mapping[str, EntailmentArm]
    stages: Mapping[str, EncoderStage] = dataclasses.field(default_factory=dict)
    initial_checkpoint_path: str | None = None
    shots: int = 16
    splits: tuple[int, ...] = few_shot.SEEDS
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self):
        object.__setattr__(self, "splits", tuple(self.splits))
        if not self.arms or not self.splits or self.shots < 1:
            raise UserError("EntailmentStudy needs an arm, a split and shots of at least 1.")
        for name, arm in self.arms.items():
            if arm.start is not None and arm.start not in self.stages:
                raise unknown(f"stage that arm '{name}' starts from", arm.start, self.stages)


def run(study: EntailmentStudy, title: str = "") -> str:
    """Runs the arms that are not yet recorded in MODEL_DIR/records.jsonl, and reports after each. Returns the table.

    A record is of an arm, task and split (`seed`), with `score`, `dev` and `train` accuracy, `baseline` (the test's most
    frequent class), `positive` (share of the test's examples told to be of the positive class), the `rate` and `step`
    selected, `trained` parameters per task, how many of these are its `head`'s, their `share` of the encoder's, and the
    `split`'s digest.
    """
    root, suite = Path(study.model_dir), study.suite()
    _check(study, suite)
    records.claim(root, study, root)
    data = _data(study, suite)
    bases = encoder_stages.train(
        study.model, study.stages, suite, root / "stages", study.initial_checkpoint_path, study.seed
    )
    table = ""
    for number, (name, arm) in enumerate(study.arms.items(), 1):
        if not any(r["arm"] == name for r in records.read(root)):
            print(f"{number} of {len(study.arms)}: {name}.", file=sys.stderr)
            records.append(root, [{"arm": name, **r} for r in _measure(study, suite, arm, bases[arm.start], data)])
        table = entailment_report.write(root, records.read(root), study.arms, title)
    print(table, end="")
    return table


def _check(study: EntailmentStudy, suite: Suite) -> None:
    v, c = suite.vocabulary, study.model
    if (
        v.size > c.vocab_size
        or v.pad_id != c.pad_id
        or v.token_types > c.num_token_types
        or suite.length > c.max_length
    ):
        raise UserError(
            f"The suite's vocabulary '{v.spec}' has {v.size} pieces, pad_id {v.pad_id}, {v.token_types} token types and rows of "
            f"{suite.length}, which RobertaConfig does not fit: vocab_size {c.vocab_size}, pad_id {c.pad_id}, "
            f"num_token_types {c.num_token_types}, max_length {c.max_length}."
        )
    encoder_stages.check(study.stages, suite)


class Data(NamedTuple):
    """splits: of every task and seed, in order. tests: task to rows."""

    splits: Sequence[Split]
    tests: Mapping[str, Rows]


def _plain(task: Reformulation) -> Reformulation:
    """The discrete template: nothing in a row is a slot."""
    return dataclasses.replace(task, extra=0, slots=())


def _data(study: EntailmentStudy, suite: Suite) -> dict[bool, Data]:
    """All examples as rows, by whether these have slots."""
    made = {}
    for slotted in (True, False):
        splits, tests = [], {}
        for name, put in suite.tasks.items():
            task = put if slotted else _plain(put)
            examples, gold = entailment.classified(name, "train")
            rows = functools.partial(entailment.rows, task, vocabulary=suite.vocabulary, length=suite.length)
            tests[name] = rows(*entailment.classified(name, "test"))
            for seed in study.splits:
                drawn = few_shot.per_class(examples, gold, study.shots, seed)
                train, dev = (
                    rows([examples[i] for i in part], [gold[i] for i in part], seed=chance)
                    for part, chance in ((drawn.train, seed), (drawn.dev, None))
                )
                splits.append(Split(name, seed, drawn.digest, train, dev))
        made[slotted] = Data(splits, tests)
    return made


def _measure(
    study: EntailmentStudy, suite: Suite, arm: EntailmentArm, base: Flat, data: Mapping[bool, Data]
) -> list[Record]:
    slotted = arm.method.slots > 0 and arm.method.train_slots
    splits, tests = data[slotted]
    width = max(map(len, slots_of(suite, tuple(suite.tasks)).words)) if slotted else 0
    method = dataclasses.replace(arm.method, slots=width, per_task=not arm.method.train_backbone)
    R = len(arm.rates)

    def fitted(splits: Sequence[Split], rates: Sequence[float]) -> Fitted:
        slots = slots_of(suite, [split.task for split in splits])
        peaks = np.array(rates, np.float32)
        options = {"batch_size": study.batch_size, "seed": study.seed}
        return fit(study.model, suite.vocabulary, arm, method, base, splits, slots, peaks, **options)

    if method.per_task:
        together = fitted([split for split in splits for _ in arm.rates], arm.rates * len(splits))
    out = []
    for k, split in enumerate(splits):
        if method.per_task:
            tried = [(together, k * R + r) for r in range(R)]
        else:  # what trains the encoder is no bank
            tried = [(fitted([split], [rate]), 0) for rate in arm.rates]
        best = max(range(R), key=lambda r: tried[r][0].key(tried[r][1]))
        out.append(_record(arm, suite, split, tests[split.task], *tried[best]) | {"rate": arm.rates[best]})
    return out


def _record(arm: EntailmentArm, suite: Suite, split: Split, test: Rows, fitted: Fitted, n: int) -> Record:
    put, told = suite.tasks[split.task], lambda rows: entailment.predictions(rows, fitted.ask(rows, n))
    answers = told(test)
    return {
        "run": f"{split.task}.{split.seed}",
        "task": split.task,
        "seed": split.seed,
        "score": float(np.mean(answers == test.gold)),
        "dev": float(fitted.right[n]),
        "train": float(np.mean(told(split.train) == split.train.gold)),
        "baseline": float(np.bincount(test.gold).max() / len(test.gold)),
        "positive": float(np.mean(answers == put.positive)),
        "examples": len(test.gold),
        "classes": len(put.labels),
        "step": int(fitted.steps[n]),
        "split": split.digest,
        "start": arm.start or "",
        **fitted.facts,
    }
