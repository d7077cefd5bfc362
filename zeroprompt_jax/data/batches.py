"""Batches: cached token ids as the padded arrays that models read. Plain numpy; names are SeqIO's and T5X's."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from zeroprompt_jax.data import mixture
from zeroprompt_jax.data.shards import ragged_positions
from zeroprompt_jax.data.store import Store
from zeroprompt_jax.data.vocabulary import EOS_ID, Vocabulary
from zeroprompt_jax.errors import UserError, unknown

WORDINGS = ("held_out", "train", "shuffled", "none")
_LEAST_INPUT = 8


@dataclasses.dataclass(frozen=True)
class Features:
    """Token lengths of a batch, EOS included.

    Attributes:
      inputs: T, of the encoder's input: instruction, input, EOS. Only the input is ever cut to fit.
      targets: S, of the decoder. A longer target is cut and then has no EOS, so that nothing teaches to stop early.
      instructions: U, of `instruction_tokens`, the instruction and EOS alone; 0 leaves them out.
      instruction_limit: cut instructions to so many tokens; with None one that does not fit is an error.
      instruct_inputs: whether the encoder's input begins with the instruction.
    """

    inputs: int
    targets: int
    instructions: int = 0
    instruction_limit: int | None = None
    instruct_inputs: bool = True

    def __post_init__(self):
        for name in ("inputs", "targets"):
            if getattr(self, name) < 2:
                raise UserError(
                    f"Feature length {name}={getattr(self, name)} is too short; it must hold a token and EOS."
                )
        if self.instruction_limit is not None and self.instruction_limit < 1:
            raise UserError(f"Feature length instruction_limit={self.instruction_limit} must be at least 1, or None.")


class Example(NamedTuple):
    """One evaluated example as text. `wording` is its instruction's number among those it was drawn from."""

    task: str
    example: int
    wording: int
    references: tuple[str, ...]
    options: tuple[str, ...]
    input: str


class _Wordings:
    """Instructions of several tasks as one ragged table."""

    def __init__(self, wordings: Sequence[Sequence[np.ndarray]], limit: int | None):
        self.counts_N = np.array([len(w) for w in wordings], np.int64)
        self._first_N = np.cumsum(self.counts_N) - self.counts_N
        rows = [row[:limit] for w in wordings for row in w]
        self._lengths = np.array([len(r) for r in rows], np.int64)
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._flat = np.concatenate([*rows, np.zeros(0, np.int32)]).astype(np.int32)

    def take(self, slots_B: np.ndarray, wording_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(flat ids, lengths [B]) of the given wordings of the given places in the table."""
        row_B = self._first_N[slots_B] + wording_B
        lengths_B = self._lengths[row_B]
        return self._flat[ragged_positions(self._starts[row_B], lengths_B)], lengths_B

    def longest(self) -> np.ndarray:
        """Length [N] of each place's longest wording."""
        longest_N = np.zeros(len(self.counts_N), np.int64)
        np.maximum.at(longest_N, np.repeat(np.arange(len(self.counts_N)), self.counts_N), self._lengths)
        return longest_N


class _Assembler:
    """Puts instruction, input and target of B examples into padded arrays."""

    def __init__(
        self,
        store: Store,
        tasks: Sequence[str],
        split: str,
        features: Features,
        wordings: Sequence[Sequence[np.ndarray]],
    ):
        self.features, self.store, self.split = features, store, split
        self.ids_N = np.array([store.task_id(t) for t in tasks], np.int64)
        self.separator = store.separator
        self.wordings = _Wordings(wordings, features.instruction_limit)
        self._check(tasks)

    def _check(self, tasks: Sequence[str]) -> None:
        f, cut = self.features, "" if self.features.instruction_limit else " Set instruction_limit to cut instructions."
        longest_N = self.wordings.longest()
        room_N = f.inputs - 1 - len(self.separator) - longest_N
        for i in np.flatnonzero(room_N < _LEAST_INPUT) if f.instruct_inputs else ():
            # Short inputs need less room than we ask for in general.
            if room_N[i] < min(_LEAST_INPUT, self.store.lengths(tasks[i], self.split, "inputs").max(initial=0)):
                raise UserError(
                    f"Feature length inputs={f.inputs} is too short for task '{tasks[i]}': its longest instruction has "
                    f"{longest_N[i]} tokens, which leaves {max(room_N[i], 0)} for the input.{cut}"
                )
        if f.instructions and not f.instruction_limit:
            for i in np.flatnonzero(longest_N + 1 > f.instructions):
                raise UserError(
                    f"Feature length instructions={f.instructions} is too short for task '{tasks[i]}': its longest "
                    f"instruction has "
                    f"{longest_N[i]} tokens and EOS.{cut}"
                )

    def batch(
        self,
        slots_B: np.ndarray,
        example_B: np.ndarray,
        wording_B: np.ndarray | None,
        donors_B: np.ndarray | None = None,
    ):
        """The batch of B rows; `slots_B` number the tasks, `donors_B` the tasks whose instructions are read instead."""
        f, ids_B, rows = self.features, self.ids_N[slots_B], len(slots_B)
        batch = {}
        if wording_B is None:
            flat, lengths_B = np.zeros(0, np.int32), np.zeros(rows, np.int64)
        else:
            flat, lengths_B = self.wordings.take(slots_B if donors_B is None else donors_B, wording_B)
        if f.instructions:
            batch["instruction_tokens"] = _pad(flat, lengths_B, f.instructions)
        if not f.instruct_inputs:
            flat, lengths_B = np.zeros(0, np.int32), np.zeros(rows, np.int64)
        start_B = lengths_B + (lengths_B > 0) * len(self.separator)
        inputs, inputs_B = self.store.gather(ids_B, self.split, example_B, "inputs", f.inputs - 1 - start_B)
        encoder_BT = np.zeros((rows, f.inputs), np.int32)
        _fill(encoder_BT, np.zeros(rows, np.int64), flat, lengths_B)
        _fill(encoder_BT, start_B, inputs, inputs_B)
        apart_B = np.flatnonzero((start_B > lengths_B) & (inputs_B > 0))
        for k, token in enumerate(self.separator):
            encoder_BT[apart_B, lengths_B[apart_B] + k] = token
        encoder_BT[np.arange(rows), np.where(inputs_B > 0, start_B + inputs_B, lengths_B)] = EOS_ID
        targets, targets_B = self.store.gather(ids_B, self.split, example_B, "targets", f.targets)
        target_BS = np.zeros((rows, f.targets), np.int32)
        _fill(target_BS, np.zeros(rows, np.int64), targets, targets_B)
        ends = np.flatnonzero(targets_B < f.targets)
        target_BS[ends, targets_B[ends]] = EOS_ID
        used = np.minimum(targets_B + 1, f.targets)
        shifted_BS = np.zeros_like(target_BS)
        shifted_BS[:, 1:] = target_BS[:, :-1]
        weights_BS = (np.arange(f.targets) < used[:, None]).astype(np.float32)
        return {
            "encoder_input_tokens": encoder_BT,
            "decoder_target_tokens": target_BS,
            "decoder_input_tokens": shifted_BS,
            "decoder_loss_weights": weights_BS,
            "task_ids": ids_B.astype(np.int32),
            **batch,
        }


def _fill(out_BT: np.ndarray, offset_B: np.ndarray, flat: np.ndarray, lengths_B: np.ndarray) -> None:
    """Writes ragged rows into `out_BT`, row b from column `offset_B[b]`."""
    out_BT.reshape(-1)[ragged_positions(np.arange(len(out_BT)) * out_BT.shape[1] + offset_B, lengths_B)] = flat


class TrainStream:
    """Training batches as a pure function of (seed, batch number).

    Args:
      store: cached tasks.
      rates: task to share, from `mixture.rates`.
      features: token lengths.
      batch_size: B.
      seed: of the whole stream.
      window: number of batches that are planned at once; part of what defines the stream.

    Raises:
      UserError: a task that is not cached or has no training examples, or an instruction that does not fit.
    """

    def __init__(
        self,
        store: Store,
        rates: Mapping[str, float],
        features: Features,
        batch_size: int,
        seed: int,
        window: int = 256,
    ):
        if batch_size < 1:
            raise UserError(f"Batch size {batch_size} must be at least 1.")
        tasks = list(rates)
        sizes = {t: store.size(t, "train") for t in tasks}
        mixture.rates(sizes, "explicit", explicit=rates)  # for its checks
        wordings = [store.instructions(t) for t in tasks]
        self.tasks, self.features, self.batch_size, self.seed = tuple(tasks), features, batch_size, seed
        self._window = window
        self._assembler = _Assembler(store, tasks, "train", features, wordings)
        counts = {t: len(w) for t, w in zip(tasks, wordings, strict=True)}
        self._plan = mixture.Plan(rates, sizes, counts, window * batch_size, seed)

    def batch(self, n: int, rows: slice = slice(None)) -> dict[str, np.ndarray]:
        """Batch number n.

        Args:
          n: from 0, without end.
          rows: the rows to make, when several hosts share a batch.

        Returns:
          int32 `encoder_input_tokens` [B, T], `decoder_target_tokens`, `decoder_input_tokens` [B, S], float32
          `decoder_loss_weights` [B, S], `task_ids` [B] (places in `store.tasks`) and, where `features` asks for them,
          `instruction_tokens` [B, U].
        """
        draws, taken = self._draws(n, rows)
        return self._assembler.batch(draws.task[taken], draws.example[taken], draws.wording[taken])

    def drawn(self, n: int) -> list[tuple[str, int, int, int]]:
        """What batch n holds: (task, example, wording, epoch) of each row."""
        draws, taken = self._draws(n, slice(None))
        columns = (draws.task[taken], draws.example[taken], draws.wording[taken], draws.epoch[taken])
        return [(self.tasks[t], e, w, p) for t, e, w, p in zip(*(c.tolist() for c in columns), strict=True)]

    def _draws(self, n: int, rows: slice) -> tuple[mixture.Draws, np.ndarray]:
        window, place = divmod(n, self._window)
        first = place * self.batch_size
        return self._plan.window(window), np.arange(first, first + self.batch_size)[rows]


class EvalSet:
    """Evaluation batches: each example of each task exactly once, in order.

    Args:
      store: cached tasks.
      tasks: which tasks, in this order.
      split: which split.
      features: token lengths.
      wordings: `held_out` (wordings that training never used; a task without any is read with its training wordings),
        `train`, `shuffled` (another task's instruction: the negative control) or `none` (no instruction).
      max_examples: per task; a deterministic sample by `seed` where a task has more.
      seed: of that sample and of the shuffled instructions.

    Attributes:
      tasks: the tasks.
      donors: with `shuffled`, task to the task whose instruction it reads.
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
        self._assembler = _Assembler(store, self.tasks, split, features, texts)
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
            donor_of = _derange(texts, seed)
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
            batch = self._assembler.batch(self._slot_N[row_B], self._example_N[row_B], wording_B, self._donor_N[row_B])
            yield {**batch, "row_mask": mask_B}


def _derange(texts: Sequence[Sequence[np.ndarray]], seed: int) -> np.ndarray:
    """For each task the number of another one, and of one with other wordings wherever the tasks allow it."""
    count = len(texts)
    if count < 2:
        raise UserError("Shuffled instructions need at least two tasks.")
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


def encode_texts(texts: Sequence[str], vocabulary: Vocabulary, length: int) -> np.ndarray:
    """Token ids [B, length] int32 of texts, each cut to leave room for its EOS, padded with 0."""
    return _pad(*vocabulary.encode_ragged(list(texts)), length)


def _pad(flat: np.ndarray, lengths_B: np.ndarray, length: int) -> np.ndarray:
    """Ragged rows, each cut to leave room for its EOS, as [B, length]."""
    kept_B = np.minimum(lengths_B, length - 1)
    out_BT = np.zeros((len(lengths_B), length), np.int32)
    starts_B = np.cumsum(lengths_B) - lengths_B
    _fill(out_BT, np.zeros(len(lengths_B), np.int64), flat[ragged_positions(starts_B, kept_B)], kept_B)
    out_BT[np.arange(len(lengths_B)), kept_B] = EOS_ID
    return out_BT
