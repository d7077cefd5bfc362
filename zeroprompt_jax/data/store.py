"""The token store: what `cache.build` wrote, opened for reading. Needs neither the tasks' modules nor seqio."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zeroprompt_jax.data.cards import TaskCard
from zeroprompt_jax.data.shards import Shard, ragged_positions
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.errors import UserError, unknown

FORMAT = 1
INDEX = "index.json"
OWN = "own_instructions"  # the column of what examples bring themselves; a shard without such examples lacks it
CUTS = "cuts"  # the column of where inputs may be cut; a shard whose inputs are all cut at their end lacks it


def read_index(directory: pathlib.Path) -> dict[str, Any] | None:
    """The index of a store, or None where there is none."""
    path = directory / INDEX
    try:
        index = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise UserError(f"Cache index {path} cannot be read ({e}). Delete {directory} and cache again.") from None
    if index.get("format") != FORMAT:
        raise UserError(
            f"Cache {directory} has format {index.get('format')}, this version reads {FORMAT}. Delete it and cache "
            f"again."
        )
    return index


class Store:
    """Token ids of many tasks, memory-mapped. Open one with `open_store`, make one with `cache.build`.

    A task's id is its place in `tasks`. Splits hold examples 0 … size - 1, each with the columns `inputs` and
    `targets`: token ids without EOS, the instruction not among them; and `own_instructions` where the examples bring an
    instruction each, in place of the task's wordings. Where not all of an input may be cut, `cuts` has the start and end
    of each part that may, in tokens of `inputs`.

    Attributes:
      directory: where it lies.
      tasks: task names, in id order.
      vocabulary_spec, vocabulary_fingerprint: of the vocabulary it was written with.
      separator: ids that belong between an instruction and an input, usually none or one.
      notes: task name to a dict of what caching found (`dropped`, `unknown_targets`, `unknown_inputs`: numbers of
        examples).
    """

    def __init__(self, directory: pathlib.Path, index: Mapping[str, Any], tasks: Sequence[str], verify: bool = True):
        self.directory = directory
        self.tasks = tuple(tasks)
        self.vocabulary_spec = index["vocabulary"]["spec"]
        self.vocabulary_fingerprint = index["vocabulary"]["fingerprint"]
        self.separator = np.array(index["vocabulary"]["separator"], np.int32)
        self._ids = {name: i for i, name in enumerate(self.tasks)}
        if len(self._ids) != len(self.tasks):
            raise UserError(f"Cache {directory}: a task was asked for twice.")
        files = list(dict.fromkeys(index["tasks"][name] for name in self.tasks))
        self._shards = [Shard(directory / f, index["shards"][f], verify) for f in files]
        shard_of = {f: i for i, f in enumerate(files)}
        # A shard may also hold an older version of a task that now lives in another one.
        described = [{t["name"]: t for t in s.tasks} for s in self._shards]
        self._described = [described[shard_of[index["tasks"][name]]][name] for name in self.tasks]
        self._shard_N = np.array([shard_of[index["tasks"][name]] for name in self.tasks], np.int64)
        self._splits = sorted({s for d in self._described for s in d["splits"]})
        self._first = {
            s: np.array([d["splits"].get(s, (0, 0))[0] for d in self._described], np.int64) for s in self._splits
        }
        self._count = {
            s: np.array([d["splits"].get(s, (0, 0))[1] for d in self._described], np.int64) for s in self._splits
        }
        self.notes = {d["name"]: d["notes"] for d in self._described}
        self._cards: dict[str, TaskCard] = {}

    def task_id(self, name: str) -> int:
        """Place of a task in `tasks`."""
        if name not in self._ids:
            raise unknown("cached task", name, self.tasks)
        return self._ids[name]

    def card(self, name: str) -> TaskCard:
        """The task's card as it was when cached."""
        if name not in self._cards:
            self._cards[name] = TaskCard(**self._described[self.task_id(name)]["card"])
        return self._cards[name]

    def fingerprint(self, name: str) -> str:
        """Changes whenever the task's cached examples may."""
        return self._described[self.task_id(name)]["fingerprint"]

    def brings_own(self, name: str) -> bool:
        """Whether the task's examples bring an instruction each."""
        return self._described[self.task_id(name)].get(OWN, False)

    def has_cuts(self, name: str) -> bool:
        """Whether the task's inputs are not cut at their end."""
        return self._described[self.task_id(name)].get(CUTS, False)

    def size(self, name: str, split: str = "train") -> int:
        """Number of examples; 0 for a split the task does not have."""
        i = self.task_id(name)
        return int(self._count[split][i]) if split in self._count else 0

    def instructions(self, name: str) -> tuple[np.ndarray, ...]:
        """Token ids of the training wordings."""
        d = self._described[self.task_id(name)]
        first, count, _ = d["instructions"]
        return self._instruction_rows(name, first, count)

    def held_out_instructions(self, name: str) -> tuple[np.ndarray, ...]:
        """Token ids of the wordings that training never uses; may be empty."""
        d = self._described[self.task_id(name)]
        first, count, held_out = d["instructions"]
        return self._instruction_rows(name, first + count, held_out)

    def _instruction_rows(self, name: str, first: int, count: int) -> tuple[np.ndarray, ...]:
        shard = self._shards[self._shard_N[self.task_id(name)]]
        return tuple(np.asarray(shard.row("instructions", r), np.int32) for r in range(first, first + count))

    def _rows(self, task_ids_N: np.ndarray, split: str, example_ids_N: np.ndarray) -> np.ndarray:
        if split not in self._first:
            raise unknown("cached split", split, self._splits)
        task_ids_N, example_ids_N = np.asarray(task_ids_N, np.int64), np.asarray(example_ids_N, np.int64)
        bad = (example_ids_N < 0) | (example_ids_N >= self._count[split][task_ids_N])
        if bad.any():
            n = int(np.argmax(bad))
            name = self.tasks[task_ids_N[n]]
            raise IndexError(
                f"task '{name}' has {self.size(name, split)} {split} examples, not number {example_ids_N[n]}"
            )
        return self._first[split][task_ids_N] + example_ids_N

    def gather_lengths(self, task_ids_N: np.ndarray, split: str, example_ids_N: np.ndarray, column: str) -> np.ndarray:
        """Lengths [N] int64 of the given examples' `inputs`, `targets`, `own_instructions` or `cuts`."""
        rows_N = self._rows(task_ids_N, split, example_ids_N)
        lengths_N = np.zeros(len(rows_N), np.int64)
        for shard, here in self._by_shard(task_ids_N):
            lengths_N[here] = shard.lengths(column, rows_N[here])
        return lengths_N

    def gather(
        self,
        task_ids_N: np.ndarray,
        split: str,
        example_ids_N: np.ndarray,
        column: str,
        limits_N: np.ndarray | int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of N examples, vectorised.

        Args:
          task_ids_N: places in `tasks`.
          split: which split.
          example_ids_N: numbers of the examples within their tasks' split.
          column: `inputs`, `targets`, `own_instructions` or `cuts`.
          limits_N: read at most so many ids of each.

        Returns:
          (flat ids int32, lengths [N] int64), in the order asked.
        """
        rows_N = self._rows(task_ids_N, split, example_ids_N)
        lengths_N = np.zeros(len(rows_N), np.int64)
        groups = list(self._by_shard(task_ids_N))
        for shard, here in groups:
            lengths_N[here] = shard.lengths(column, rows_N[here])
        if limits_N is not None:
            lengths_N = np.minimum(lengths_N, limits_N)
        if len(groups) == 1:
            return groups[0][0].take(column, rows_N, lengths_N).astype(np.int32), lengths_N
        starts_N = np.cumsum(lengths_N) - lengths_N
        flat = np.empty(int(lengths_N.sum()), np.int32)
        for shard, here in groups:
            flat[ragged_positions(starts_N[here], lengths_N[here])] = shard.take(column, rows_N[here], lengths_N[here])
        return flat, lengths_N

    def _by_shard(self, task_ids_N: np.ndarray):
        shard_N = self._shard_N[task_ids_N]
        for i in np.flatnonzero(np.bincount(shard_N, minlength=0)):
            yield self._shards[i], np.flatnonzero(shard_N == i)

    def lengths(self, name: str, split: str, column: str) -> np.ndarray:
        """Lengths of all of one task's rows of a column in a split, in example order."""
        count = self.size(name, split)
        return (
            self.gather_lengths(np.full(count, self.task_id(name)), split, np.arange(count), column)
            if count
            else np.zeros(0, np.int64)
        )

    def extra(self, name: str, split: str, example: int) -> dict[str, Any]:
        """`references`, `options` and `input` (text) of one example. Training splits do not keep them: there they are
        decoded from the token ids, with the target as the only reference."""
        i = self.task_id(name)
        if not 0 <= example < self.size(name, split):
            raise IndexError(f"task '{name}' has {self.size(name, split)} {split} examples, not number {example}")
        shard, row = self._shards[self._shard_N[i]], int(self._first[split][i]) + example
        text = shard.row("extra", row).tobytes()
        if text:
            return json.loads(text)
        vocabulary = load_vocabulary(self.vocabulary_spec)
        source, target = (vocabulary.decode(shard.row(column, row).tolist()) for column in ("inputs", "targets"))
        return {"references": [target], "options": list(self.card(name).options), "input": source}


def open_store(directory: str | pathlib.Path, tasks: Sequence[str] | None = None, verify: bool = True) -> Store:
    """Opens a store.

    Args:
      directory: where it was cached.
      tasks: which tasks, in this order (their ids follow it); all in the order they were cached when None.
      verify: check every shard's checksum (about 1 s per 2 GB), not only its length.

    Raises:
      UserError: no store there, a task is not cached, or a shard is damaged.
    """
    directory = pathlib.Path(directory)
    for attempt in range(2):
        index = read_index(directory)
        if index is None:
            raise UserError(f"There is no cache at {directory}.")
        for name in tasks if tasks is not None else ():
            if name not in index["tasks"]:
                raise UserError(f"Cache {directory}: {unknown('cached task', name, index['tasks'])}")
        try:
            return Store(directory, index, tuple(index["tasks"]) if tasks is None else tasks, verify)
        except UserError:
            # A builder may have replaced a shard between our reading the index and opening the file.
            if attempt or read_index(directory) == index:
                raise
    raise AssertionError("unreachable")
