"""Batches: cached token ids as the padded arrays that models read. Plain numpy; names are SeqIO's and T5X's.

Training reads `TrainStream`, evaluation `EvalSet`; both are put together by `assemble`.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from zeroprompt_jax.data import mixture
from zeroprompt_jax.data.assemble import Assembler, Features, encode_texts
from zeroprompt_jax.data.store import Store
from zeroprompt_jax.data.stream import TrainStream
from zeroprompt_jax.errors import UserError, unknown

__all__ = ["EvalSet", "Example", "Features", "TrainStream", "WORDINGS", "encode_texts"]

WORDINGS = ("held_out", "train", "shuffled", "none")


class Example(NamedTuple):
    """One evaluated example as text. `wording` is its instruction's number among those it was drawn from."""

    task: str
    example: int
    wording: int
    references: tuple[str, ...]
    options: tuple[str, ...]
    input: str


class EvalSet:
    """Evaluation batches: each example of each task exactly once, in order.

    Args:
      store: cached tasks.
      tasks: which tasks, in this order.
      split: which split.
      features: token lengths.
      wordings: `held_out` (wordings that training never used; a task without any is read with its training wordings),
        `train`, `shuffled` (another task's instruction, or another example's where each brings its own: the negative
        control; of tasks with wordings it needs two or none) or `none` (no instruction).
      max_examples: per task; a deterministic sample by `seed` where a task has more.
      seed: of that sample and of the shuffled instructions.

    Attributes:
      tasks: the tasks.
      brings_own: those whose examples bring their own instruction.
      donors: with `shuffled`, task to the task whose instruction it reads; itself where its examples bring their own.
    """

    def __init__(
        self,
        store: Store,
        tasks: Sequence[str],
        split: str,
        features: Features,
        *,
        wordings: str = "held_out",
        max_examples: int | None = None,
        seed: int = 0,
    ):
        if wordings not in WORDINGS:
            raise unknown("kind of wordings", wordings, WORDINGS)
        self.tasks, self.features, self._store, self._split = tuple(tasks), features, store, split
        if not self.tasks:
            raise UserError("An evaluation needs at least one task.")
        for task in self.tasks:
            if not store.size(task, split):
                raise UserError(f"Task '{task}' has no cached examples in the split '{split}'.")
        texts = [[] if wordings == "none" else self._wordings_of(t, wordings) for t in self.tasks]
        self._assembler = Assembler(store, self.tasks, split, features, texts)
        self.brings_own = self._assembler.brings_own
        slots, examples = [], []
        for i, task in enumerate(self.tasks):
            size = store.size(task, split)
            kept = np.arange(size)
            if max_examples is not None and size > max_examples:
                key = np.broadcast_to(mixture.hash64(seed, mixture.name_keys([task])[0]), (max_examples,))
                kept = np.sort(mixture.shuffled_position(np.arange(max_examples), np.full(max_examples, size), key))
            slots.append(np.full(len(kept), i))
            examples.append(kept)
        self._slot_N, self._example_N = np.concatenate(slots), np.concatenate(examples)
        self._donor_N, self.donors = self._slot_N, {}
        if wordings == "shuffled":
            # What is written for a task's own example stands under no other task: such tasks neither give nor take.
            worded = np.flatnonzero([t not in self.brings_own for t in self.tasks])
            donor_of = np.arange(len(self.tasks))
            if len(worded):
                donor_of[worded] = worded[_derange([texts[i] for i in worded], seed)]
            self._donor_N = donor_of[self._slot_N]
            self.donors = {t: self.tasks[d] for t, d in zip(self.tasks, donor_of, strict=True)}
        counts_N = self._assembler.wordings.counts_N
        self._wording_N = None if wordings == "none" else self._example_N % counts_N[self._donor_N]

    def _wordings_of(self, task: str, wordings: str) -> tuple[np.ndarray, ...]:
        held_out = () if wordings == "train" else self._store.held_out_instructions(task)
        return held_out or self._store.instructions(task)

    def __len__(self) -> int:
        return len(self._slot_N)

    @functools.cached_property
    def examples(self) -> list[Example]:
        """The examples as text, in the order of the batches' rows."""
        wordings = np.full(len(self), -1) if self._wording_N is None else self._wording_N
        made = []
        for slot, example, wording in zip(
            self._slot_N.tolist(), self._example_N.tolist(), wordings.tolist(), strict=True
        ):
            task = self.tasks[slot]
            extra = self._store.extra(task, self._split, example)
            made.append(
                Example(task, example, wording, tuple(extra["references"]), tuple(extra["options"]), extra["input"])
            )
        return made

    def batches(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """Batches as `TrainStream.batch` makes them, all of `batch_size` rows, with `row_mask` [B] bool: the last one
        is filled up by repeating its last row, and those rows are False."""
        for start in range(0, len(self), batch_size):
            row_B = np.arange(start, start + batch_size)
            mask_B = row_B < len(self)
            row_B = np.minimum(row_B, len(self) - 1)
            wording_B = None if self._wording_N is None else self._wording_N[row_B]
            donor_B = self._donor_N[row_B] if self.donors else None
            batch = self._assembler.batch(self._slot_N[row_B], self._example_N[row_B], wording_B, donor_B)
            yield {**batch, "row_mask": mask_B}


def _derange(texts: Sequence[Sequence[np.ndarray]], seed: int) -> np.ndarray:
    """For each task the number of another one, and of one with other wordings wherever the tasks allow it."""
    count = len(texts)
    if count < 2:
        raise UserError("Shuffled instructions need at least two tasks that have wordings.")
    content = [frozenset(w.tobytes() for w in t) for t in texts]
    best, fewest = None, count + 1
    for attempt in range(64):
        # One cycle through all tasks in random order: nobody can meet itself.
        order = np.argsort(mixture.hash64(seed, attempt, np.arange(count)))
        donor = np.empty(count, np.int64)
        donor[order] = np.roll(order, 1)
        same = sum(bool(content[i] & content[d]) for i, d in enumerate(donor))
        if same < fewest:
            best, fewest = donor, same
        if not fewest:
            break
    return best
