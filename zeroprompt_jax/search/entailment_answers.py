"""Answers by what a study of entailment trained: rows of any of an arm's tasks, through one compiled function."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zeroprompt_jax.data import cards, entailment
from zeroprompt_jax.data.entailment import Rows
from zeroprompt_jax.data.entailment_suite import Suite
from zeroprompt_jax.errors import UserError, unknown
from zeroprompt_jax.evaluation import infer
from zeroprompt_jax.evaluation.entailment import probabilities
from zeroprompt_jax.search import encoder_stages, entailment_study, records
from zeroprompt_jax.search.entailment_slices import columns, slots_of
from zeroprompt_jax.search.entailment_study import EntailmentStudy, plain, slotted
from zeroprompt_jax.search.records import Record
from zeroprompt_jax.training import checkpoint, task_file
from zeroprompt_jax.training import state as states
from zeroprompt_jax.training.fingerprint import fingerprint

Row = dict[str, Any]


def answer(study: EntailmentStudy, path: str, output: str, arm: str | None = None, split: int | None = None) -> int:
    """Answers a file's rows into a JSONL file, as `infer.infer` does: `prediction`, one of the task's options, its `score`,
    and `scores`, the probability of each class as its rows have it. Returns how many were answered now.

    Args:
      path: .jsonl or .tsv of rows with `task` and the fields that the task's templates name.
      arm: which answers; None is the first that trained no encoder.
      split: seed of the split that tasks were trained on; None is for each the one whose dev examples did best.

    Raises:
      UserError: a study that was run as another one; an arm that is not there, trained the encoder or is not finished; a
        row of another task or without a field.
    """
    suite, banks = study.suite(), [name for name, own in study.arms.items() if not own.method.train_backbone]
    if arm is not None and arm not in study.arms:
        raise unknown("arm", arm, study.arms)
    if not banks or arm not in (None, *banks):
        raise UserError(f"The arm '{arm or next(iter(study.arms))}' trains an encoder for each task, of which none is kept.")
    arm = arm or banks[0]
    done = [r for r in records.read(Path(study.model_dir)) if r["arm"] == arm]
    if not done:
        raise UserError(f"The arm '{arm}' is not trained yet: type the command without --input first.")
    root = Path(study.model_dir)
    records.claim(root, {"study": study, "suite": suite.facts()}, root)  # other templates would ask something else
    if split is not None and split not in (seeds := sorted({r["seed"] for r in done})):
        raise UserError(f"There is no split {split}; the arm '{arm}' was trained on {', '.join(map(str, seeds))}.")
    rows = infer.numbered_rows(path, "task")
    for number, row in rows:
        if row.get("task") not in suite.tasks:
            raise unknown(f"task in {path}, line {number},", str(row.get("task")), suite.tasks)
        if missing := [field for field in suite.tasks[row["task"]].fields if not isinstance(row.get(field), str)]:
            raise UserError(f"{path}, line {number}: a row of '{row['task']}' has no text under '{missing[0]}'.")
    if not rows:
        raise UserError(f"The input file '{path}' holds no rows.")
    infer.answered(output, [row for _, row in rows])  # a mistake is told before the models are loaded
    ask = _asker(study, suite, arm, {task: _seed(done, task, split) for task in sorted({row["task"] for _, row in rows})})
    return infer.write_answers(ask, [row for _, row in rows], output)


def _seed(done: Sequence[Record], task: str, split: int | None) -> int:
    """The split given, or that of the task whose dev examples did best, of equals the first."""
    own = [r for r in done if r["task"] == task]
    return split if split is not None else max(own, key=lambda r: r["dev"])["seed"]


def _asker(
    study: EntailmentStudy, suite: Suite, arm: str, seeds: Mapping[str, int]
) -> Callable[[Sequence[Row]], list[Row]]:
    """What answers rows by one bank of the tasks, each as it was trained on its split."""
    folder, own = Path(study.model_dir) / "stages", study.arms[arm]
    loaded = checkpoint.load_encoder(study.initial_checkpoint_path, study.model) if study.initial_checkpoint_path else {}
    base = encoder_stages.train(study.model, study.stages, suite, folder, loaded, study.seed)[own.start]
    backbone = states.unflatten(base)["backbone"]
    files = [task_file.read(entailment_study.kept_at(study, arm, task, seed)) for task, seed in seeds.items()]
    for file in files:
        task_file.check(file, fingerprint(backbone), suite.vocabulary.fingerprint, f"arm '{arm}'")
    bank = task_file.assemble(files)
    variables, slots = {"backbone": backbone, "method": bank.params}, slots_of(suite, bank.tasks)
    puts = {task: suite.tasks[task] if slotted(own) else plain(suite.tasks[task]) for task in bank.tasks}

    def one(row: Row) -> Rows:
        place = bank.tasks.index(row["task"])
        return entailment.rows(puts[row["task"]], [row], [0], suite.vocabulary, suite.length, task_id=place)

    def ask(part: Sequence[Row]) -> list[Row]:
        rows = entailment.join([one(row) for row in part])
        batch = columns(rows.batch(np.arange(len(rows))), slots, bank.method.slots)
        entails_R = probabilities(study.model, variables, bank.method, batch, study.batch_size)
        classes = entailment.predictions(rows, entails_R)
        return [told(row["task"], entails_R[rows.example == e], klass) for e, (row, klass) in enumerate(zip(part, classes))]

    def told(task: str, entails: np.ndarray, klass: int) -> Row:
        """A single row is of the class that it describes, and what it denies of the other one."""
        scores = entails.tolist() if len(entails) > 1 else [1.0 - float(entails[0])] * 2
        if len(entails) == 1:
            scores[puts[task].described[0]] = float(entails[0])
        return {"prediction": cards.card(task).options[klass], "score": scores[klass], "scores": scores}

    return ask
