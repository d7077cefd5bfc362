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

import jax
import numpy as np
import tqdm

from zeroprompt_jax.data import cards, entailment, few_shot
from zeroprompt_jax.data.entailment import Rows
from zeroprompt_jax.data.entailment_suite import Suite
from zeroprompt_jax.data.reformulation import Reformulation
from zeroprompt_jax.errors import UserError, unknown
from zeroprompt_jax.methods.base import Setting
from zeroprompt_jax.methods.entailment import Entailment
from zeroprompt_jax.models import roberta
from zeroprompt_jax.models.roberta import RobertaConfig
from zeroprompt_jax.paths import place, place_of
from zeroprompt_jax.search import encoder_stages, entailment_report, records
from zeroprompt_jax.search.encoder_stages import EncoderStage
from zeroprompt_jax.search.entailment_slices import EntailmentArm, Fitted, Split, fit, slots_of
from zeroprompt_jax.search.records import Record
from zeroprompt_jax.training import checkpoint, task_file
from zeroprompt_jax.training import state as states
from zeroprompt_jax.training.fingerprint import Fingerprint, fingerprint
from zeroprompt_jax.training.state import Flat
from zeroprompt_jax.training.task_file import TaskFile


@dataclasses.dataclass(frozen=True)
class EntailmentStudy:
    """What is compared.

    Attributes:
      model_dir: where records.jsonl, table.txt and results.png are, and under tasks/ARM what was trained of each task and
        split, as task files.
      model: the encoder, of which the stages train every head that it has.
      suite: makes the tasks and what stages train on.
      arms: name to how tasks are trained.
      stages: name to how the encoder is trained before, each from where the one before it ended.
      initial_checkpoint_path: an encoder to begin with, in Hugging Face layout or OWNER/NAME on its hub; heads that it lacks
        are random, and without it everything is.
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
        object.__setattr__(self, "model_dir", place(self.model_dir, "EntailmentStudy.model_dir"))
        object.__setattr__(self, "splits", tuple(self.splits))
        if not self.arms or not self.splits or min(self.shots, self.batch_size) < 1:
            raise UserError("EntailmentStudy needs an arm, a split, and shots and batch_size of at least 1.")
        for name, arm in self.arms.items():
            if arm.start is not None and arm.start not in self.stages:
                raise unknown(f"stage that arm '{name}' starts from", arm.start, self.stages)


def run(study: EntailmentStudy, title: str = "") -> str:
    """Runs the arms that are not yet recorded in MODEL_DIR/records.jsonl, and reports after each. Returns the table.

    A record is of an arm, task and split (`seed`), with `score`, `dev` and `train` accuracy, `baseline` (the test's most
    frequent class), `positive` (share of the test's examples told to be of the positive class), `constant` (that of the
    most frequent answer), the `rate` and `step` selected, `trained` parameters of the task, how many of these are its
    `head`'s, their `share` of the encoder's, the `split`'s digest, and `short`, the classes with fewer dev examples than
    there are to train on, and how many.
    """
    root, suite = Path(study.model_dir), study.suite()
    path = study.initial_checkpoint_path
    loaded = checkpoint.load_encoder(path, study.model) if path else {}
    _check(study, suite, loaded)
    table = ""
    with records.alone(root):
        records.claim(root, {"study": study, "suite": suite.facts()}, root)
        data = _data(study, suite)
        bases = encoder_stages.train(study.model, study.stages, suite, root / "stages", loaded, study.seed)
        for number, (name, arm) in enumerate(study.arms.items(), 1):
            if not any(r["arm"] == name for r in records.read(root)):
                print(f"{number} of {len(study.arms)}: {name}.", file=sys.stderr)
                records.append(root, [{"arm": name, **r} for r in _measure(study, suite, name, bases[arm.start], data)])
            table = entailment_report.write(root, records.read(root), study.arms, title)
    print(table, end="")
    return table


def _check(study: EntailmentStudy, suite: Suite, loaded: Flat) -> None:
    """All that can be told before anything trains."""
    v, c = suite.vocabulary, study.model
    if not suite.tasks:
        raise UserError("The suite has no tasks.")
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
    encoder_stages.check(c, study.stages, suite)
    classifying = encoder_stages.classifying(study.stages, loaded)
    weights = jax.eval_shape(lambda: roberta.init(c, jax.random.key(0)))
    for name, arm in study.arms.items():
        init = lambda weights: _method(arm, suite).init(jax.random.key(0), Setting(c, tuple(suite.tasks), weights))
        try:
            jax.eval_shape(init, weights)
        except UserError as e:
            raise UserError(f"The arm '{name}': {e}") from None
        if arm.method.head != "fresh" and arm.start not in classifying:
            raise UserError(
                f"The arm '{name}' takes its head from the classifier of inference, which is still random "
                f"{'after the stage ' + repr(arm.start) if arm.start else 'at the beginning'}."
            )


def slotted(arm: EntailmentArm) -> bool:
    """Whether the arm's texts have slots: the others read the discrete template."""
    return arm.method.slots > 0 and arm.method.train_slots


def _method(arm: EntailmentArm, suite: Suite) -> Entailment:
    """The arm's, with the slots that the suite's widest task has, as a bank unless it trains the encoder."""
    width = max(map(len, slots_of(suite, tuple(suite.tasks)).words)) if slotted(arm) else 0
    return dataclasses.replace(arm.method, slots=width, per_task=not arm.method.train_backbone)


class Data(NamedTuple):
    """splits: of every task and seed, in order. tests: task to rows."""

    splits: Sequence[Split]
    tests: Mapping[str, Rows]


def plain(task: Reformulation) -> Reformulation:
    """The discrete template: nothing in a row is a slot."""
    return dataclasses.replace(task, extra=0, slots=())


def _data(study: EntailmentStudy, suite: Suite) -> dict[bool, Data]:
    """All examples as rows, by whether these have slots."""
    made = {}
    for slotted in (True, False):
        splits, tests = [], {}
        for name, put in suite.tasks.items():
            task = put if slotted else plain(put)
            examples, gold = entailment.classified(name, "train")
            _check_classes(name, gold, study.shots)
            rows = functools.partial(entailment.rows, task, vocabulary=suite.vocabulary, length=suite.length)
            tests[name] = rows(*entailment.classified(name, "test"))
            if not len(tests[name]):
                raise UserError(f"Task '{name}' has no test examples with a class.")
            for seed in study.splits:
                drawn = few_shot.per_class(examples, gold, study.shots, seed)
                train, dev, whole = (
                    rows([examples[i] for i in part], [gold[i] for i in part], seed=chance)
                    for part, chance in ((drawn.train, seed), (drawn.dev, None), (drawn.train, None))
                )
                splits.append(Split(name, seed, drawn.digest, train, dev, whole))
        made[slotted] = Data(splits, tests)
    return made


def _check_classes(task: str, gold: Sequence[int], shots: int) -> None:
    """Raises UserError unless K examples of each class can be drawn, and one besides of any, to select on."""
    counts = np.bincount(gold, minlength=len(cards.card(task).options))
    for option, count in zip(cards.card(task).options, counts.tolist()):
        if count < shots:
            raise UserError(f"Task '{task}' has {count} training examples of '{option}', so {shots} cannot be drawn.")
    if max(counts) == shots:
        raise UserError(f"Task '{task}' has {shots} training examples of each class, and so none besides to select on.")


def _measure(
    study: EntailmentStudy, suite: Suite, name: str, base: Flat, data: Mapping[bool, Data]
) -> list[Record]:
    arm = study.arms[name]
    splits, tests = data[slotted(arm)]
    home = fingerprint(states.unflatten(base)["backbone"])
    method, R = _method(arm, suite), len(arm.rates)

    fits = 1 if method.per_task else len(splits) * R
    every = {"mininterval": 0.5} if sys.stderr.isatty() else {"mininterval": 30, "ascii": True}
    bar = functools.partial(tqdm.tqdm, leave=False, **every)
    trained = bar(desc=f"{name}, train", total=fits * arm.steps, unit="step")

    def fitted(splits: Sequence[Split], rates: Sequence[float]) -> Fitted:
        slots = slots_of(suite, [split.task for split in splits])
        peaks = np.array(rates, np.float32)
        options = {"batch_size": study.batch_size, "seed": study.seed, "tell": trained.update}
        return fit(study.model, suite.vocabulary, arm, method, base, splits, slots, peaks, **options)

    if method.per_task:
        together = fitted([split for split in splits for _ in arm.rates], arm.rates * len(splits))
        trained.close()  # its line is the test's now
    out = []
    tested = bar(splits, desc=f"{name}, test", unit="split", disable=not method.per_task)
    for k, split in enumerate(tested):
        if method.per_task:
            tried = [(together, k * R + r) for r in range(R)]
        else:  # what trains the encoder is no bank
            tried = [(fitted([split], [rate]), 0) for rate in arm.rates]
        best = max(range(R), key=lambda r: tried[r][0].key(tried[r][1]))
        if not all(np.isfinite(tried[best][0].key(tried[best][1]))):
            rates = ", ".join(f"{rate:g}" for rate in arm.rates)
            raise UserError(f"Task '{split.task}', split {split.seed}: training diverged at every rate ({rates}).")
        if method.per_task:
            _keep(kept_at(study, name, split.task, split.seed), suite, split.task, method, home, *tried[best])
        out.append(_record(arm, suite, split, tests[split.task], *tried[best]) | {"rate": arm.rates[best]})
    return out


def kept_at(study: EntailmentStudy, arm: str, task: str, seed: int) -> Path:
    """The task file of what an arm trained of a task on a split."""
    return place_of(f"{task}.{seed}", Path(study.model_dir) / "tasks" / arm, task_file.SUFFIX)


def _keep(
    path: Path, suite: Suite, task: str, method: Entailment, home: Fingerprint, fitted: Fitted, n: int
) -> None:
    params = states.unflatten(fitted.params).get("method", {})
    own, part = task_file.slice_of(method, params, n)
    v = suite.vocabulary
    card, vocabulary = dataclasses.asdict(cards.card(task)), {"spec": v.spec, "fingerprint": v.fingerprint}
    task_file.save(TaskFile(card, own, part, home, vocabulary, {"length": suite.length}), path)


def _record(arm: EntailmentArm, suite: Suite, split: Split, test: Rows, fitted: Fitted, n: int) -> Record:
    put, told = suite.tasks[split.task], lambda rows: entailment.predictions(rows, fitted.ask(rows, n))
    answers, options = told(test), cards.card(split.task).options
    drawn, dev = (np.bincount(rows.gold, minlength=len(options)).tolist() for rows in (split.train, split.dev))
    return {
        "run": split.name,
        "task": split.task,
        "seed": split.seed,
        "score": float(np.mean(answers == test.gold)),
        "dev": float(fitted.right[n]),
        "train": float(np.mean(told(split.whole) == split.whole.gold)),
        "baseline": float(np.bincount(test.gold).max() / len(test.gold)),
        "positive": float(np.mean(answers == put.positive)),
        "constant": float(np.bincount(answers).max() / len(answers)),
        "examples": len(test.gold),
        "classes": len(put.labels),
        "step": int(fitted.steps[n]),
        "split": split.digest,
        "short": {option: have for option, have, wanted in zip(options, dev, drawn) if have < wanted},
        "start": arm.start or "",
        **fitted.facts[n],
    }
