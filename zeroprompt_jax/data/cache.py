"""Caching: every task's examples rendered and tokenised once, into a few shard files under one index."""

import contextlib
import fcntl
import functools
import json
import pathlib
import sys
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tqdm

from zeroprompt_jax.data.shards import checksum, write_durably, write_shard
from zeroprompt_jax.data.store import CUTS, FORMAT, INDEX, OWN, Store, open_store, read_index
from zeroprompt_jax.data.tokenise import Recipe, find, fingerprint
from zeroprompt_jax.data.vocabulary import Vocabulary
from zeroprompt_jax.data.workers import Job, processors, tokenise_all
from zeroprompt_jax.errors import UserError

__all__ = ["Store", "build", "open_store"]

# A shard is closed when one of these is reached. Few shards make fast batches; the time bounds what a kill can lose.
_SHARD_TASKS = 4096
_SHARD_BYTES = 32 << 20
_SHARD_SECONDS = 10.0
# (jobs, vocabulary, recipe, modules) to what `tokenise` makes of each job, in order.
Engine = Callable[[Sequence[Job], Vocabulary, Recipe, Sequence[str]], Generator[dict[str, Any], None, None]]
_TASKS_PER_WORKER = 64  # fewer are tokenised sooner than a process starts


def build(
    directory: str | pathlib.Path,
    tasks: Sequence[str],
    vocabulary: Vocabulary,
    *,
    max_examples: Mapping[str, int] | None = None,
    splits: Sequence[str] = ("train", "test"),
    max_per_label: int | None = None,
    unknown_targets: str = "error",
    option_seed: int | None = None,
    progress: bool = True,
    modules: Sequence[str] = (),
    workers: int | None = None,
    engine: Engine | None = None,
) -> Store:
    """Caches tasks and opens the result, with task ids in the order given.

    A task is left alone when its card, its source's fingerprint, the vocabulary and the caps are those it was cached
    with. What is finished is kept whenever the process stops; a second process caching into the same directory waits.

    Args:
      directory: made when missing; may hold other tasks already.
      tasks: names of registered tasks; those known only to seqio are read through it.
      vocabulary: one per directory.
      max_examples: split to the largest number of examples, the first ones, per task.
      splits: which splits to cache, where a task has them.
      max_per_label: the largest number of examples per task and answer (rendered target), in `train` alone: the first
        ones, of which `max_examples` then takes the first.
      unknown_targets: what to do with a target that holds text outside the vocabulary: `error`; `drop` leaves such
        examples out of `train` (never of what is evaluated); `keep` keeps the unknown token in them, as T5's published
        models did.
      option_seed: of the order in which each example lists its answer options; None keeps the card's or the source's.
      progress: show a bar.
      modules: what worker processes import to find tasks that cannot be sent to them; without it, such tasks are
        tokenised in this process.
      workers: processes that tokenise; by default one per processor, but none for fewer than 64 tasks each. What is
        written does not depend on it, save where a shard ends because time has passed.
      engine: what tokenises instead of worker processes, such as `beam.Beam`.

    Raises:
      UserError: unknown task, an example that does not fit its card, an empty target, a target outside the vocabulary,
        no examples at all, a directory of another vocabulary, a full disk.
    """
    recipe = Recipe(tuple(splits), dict(max_examples or {}), max_per_label, unknown_targets, option_seed)
    tasks = list(dict.fromkeys(tasks))
    if not tasks:
        raise UserError(f"Cache {directory}: no tasks were given.")
    directory = pathlib.Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"Cache directory {directory} cannot be made: {e.strerror}.") from None
    entries = {name: find(name, vocabulary) for name in tasks}
    prints = {name: fingerprint(*entry, vocabulary, recipe) for name, entry in entries.items()}
    if store := _opened(directory, prints, vocabulary):
        return store
    with _lock(directory):
        index = _clean(directory, vocabulary, tasks)
        stale = [name for name in tasks if index["prints"].get(name) != prints[name]]
        jobs = [Job(name, prints[name], *entries[name]) for name in stale]
        writer = _Writer(directory, index, np.uint16 if vocabulary.size <= 1 << 16 else np.int32)
        if engine is None:
            count = min(processors(), len(stale) // _TASKS_PER_WORKER) if workers is None else workers
            engine = functools.partial(tokenise_all, workers=count)
        # Closed, so that an error ends the workers before the lock is given up.
        with contextlib.closing(engine(jobs, vocabulary, recipe, modules)) as made:
            shown = progress and stale
            bar = tqdm.tqdm(made, "caching tasks", len(jobs), unit="task", disable=not shown, file=sys.stderr)
            for job, tokenised in zip(jobs, bar, strict=True):
                writer.add(job.name, job.fingerprint, tokenised)
        writer.flush()
        _clean(directory, vocabulary)
        # Still locked: whoever comes next may want these tasks otherwise and replace them. What is mapped stays.
        store = Store(directory, read_index(directory), tasks, verify=False)
    _check_prints(store, prints)
    return store


def _opened(directory: pathlib.Path, prints: Mapping[str, str], vocabulary: Vocabulary) -> Store | None:
    """The store as it lies there, where it holds all tasks as they are wanted: no lock is taken and nothing is written, so
    that a cache may be another user's. None where there is anything to do."""
    index = read_index(directory)
    if index is None:
        return None
    _check_vocabulary(directory, index, vocabulary)
    if any(index["prints"].get(name) != wanted for name, wanted in prints.items()):
        return None
    try:
        store = Store(directory, index, list(prints))
    except UserError:  # damaged, or replaced since the index was read
        return None
    _check_prints(store, prints)
    return store


def _check_prints(store: Store, prints: Mapping[str, str]) -> None:
    """Refuses examples of another recipe, whatever the index said."""
    if other := [name for name, wanted in prints.items() if store.fingerprint(name) != wanted]:
        raise UserError(f"Cache {store.directory} holds '{other[0]}' as another run wants it; delete it and cache again.")


def _check_vocabulary(directory: pathlib.Path, index: Mapping[str, Any], vocabulary: Vocabulary) -> None:
    if index["vocabulary"]["fingerprint"] != vocabulary.fingerprint:
        raise UserError(
            f"Cache {directory} was made with the vocabulary '{index['vocabulary']['spec']}', not '{vocabulary.spec}'; "
            "give another directory or delete this one."
        )


@contextlib.contextmanager
def _lock(directory: pathlib.Path) -> Iterator[None]:
    with contextlib.ExitStack() as held:  # closing the file releases the lock, also when the process dies
        try:
            f = held.enter_context(open(directory / ".lock", "w"))
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"Another process is caching into {directory}; waiting for it.", file=sys.stderr, flush=True)
                fcntl.flock(f, fcntl.LOCK_EX)
        except OSError as e:
            raise _unwritable(directory, e) from None
        yield


def _unwritable(directory: pathlib.Path, e: OSError) -> UserError:
    return UserError(
        f"Cache {directory} does not hold all of this run's tasks as it wants them, and cannot be written ({e.strerror}); "
        f"give another cache directory."
    )


def _clean(directory: pathlib.Path, vocabulary: Vocabulary, verify: Sequence[str] = ()) -> dict[str, Any]:
    """The index, or a new one; removes files it does not name and forgets tasks whose shard is gone or damaged. verify:
    tasks whose shards' checksums are compared, not only their lengths."""
    try:
        return _cleaned(directory, vocabulary, verify)
    except OSError as e:
        raise _unwritable(directory, e) from None


def _cleaned(directory: pathlib.Path, vocabulary: Vocabulary, verify: Sequence[str]) -> dict[str, Any]:
    mine = {"spec": vocabulary.spec, "fingerprint": vocabulary.fingerprint, "separator": list(vocabulary.separator)}
    index = read_index(directory) or {"format": FORMAT, "vocabulary": mine, "tasks": {}, "prints": {}, "shards": {}}
    _check_vocabulary(directory, index, vocabulary)
    asked = {index["tasks"].get(name) for name in verify}
    for file, described in list(index["shards"].items()):
        path = directory / file
        whole = path.exists() and path.stat().st_size == described["bytes"]
        if not whole or (file in asked and checksum(path) != described["crc32"]):
            print(f"Cache shard {path} is missing or damaged; its tasks are cached again.", file=sys.stderr)
            del index["shards"][file]
    for name, file in index["tasks"].items():
        if file not in index["shards"]:
            index["prints"].pop(name, None)
    live = set(index["tasks"].values())
    index["shards"] = {f: d for f, d in index["shards"].items() if f in live}
    for path in [*directory.glob("*.shard"), *directory.glob("*.tmp-*")]:
        if path.name not in index["shards"]:
            path.unlink(missing_ok=True)
    return index


class _Writer:
    """Collects tokenised tasks and writes a shard and the index whenever enough have come together."""

    def __init__(self, directory: pathlib.Path, index: dict[str, Any], dtype):
        self._directory, self._index, self._dtype = directory, index, dtype
        self._reset()

    def _reset(self):
        self._tasks, self._prints, self._bytes = [], {}, 0
        self._parts = {c: ([], []) for c in ("inputs", "targets", "extra", "instructions", OWN, CUTS)}
        self._examples = self._instructions = 0
        self._opened = time.monotonic()

    def add(self, name: str, fingerprint: str, tokenised: dict[str, Any]) -> None:
        splits = {}
        for split, count in tokenised["counts"].items():
            splits[split] = [self._examples, count]
            self._examples += count
        trained, held_out = tokenised["instruction_counts"]
        self._tasks.append(
            {
                "name": name,
                "fingerprint": fingerprint,
                "card": tokenised["card"],
                "splits": splits,
                "instructions": [self._instructions, trained, held_out],
                "notes": tokenised["notes"],
                **{column: True for column in (OWN, CUTS) if column in tokenised["columns"]},
            }
        )
        self._instructions += trained + held_out
        self._prints[name] = fingerprint
        for column in {OWN, CUTS} - tokenised["columns"].keys():
            self._parts[column][1].append(np.zeros(sum(tokenised["counts"].values()), np.int64))
        for column, pieces in tokenised["columns"].items():
            for flat, lengths in pieces:
                flat = flat if column in ("extra", CUTS) else flat.astype(self._dtype)
                self._parts[column][0].append(flat)
                self._parts[column][1].append(lengths)
                self._bytes += flat.nbytes
        old = time.monotonic() - self._opened >= _SHARD_SECONDS
        if len(self._tasks) >= _SHARD_TASKS or self._bytes >= _SHARD_BYTES or old:
            self.flush()

    def flush(self) -> None:
        if not self._tasks:
            return
        file = f"{uuid.uuid4().hex[:12]}.shard"
        parts = {c: p for c, p in self._parts.items() if p[0]}  # most shards have none of OWN and CUTS
        columns = {c: (np.concatenate(flat), np.concatenate(lengths)) for c, (flat, lengths) in parts.items()}
        self._index["shards"][file] = write_shard(self._directory / file, self._tasks, columns)
        self._index["tasks"] |= dict.fromkeys(self._prints, file)
        self._index["prints"] |= self._prints
        # Shards of replaced tasks stay on disk until the next clean-up: somebody may be reading the old index.
        complete = {n: f for n, f in self._index["tasks"].items() if n in self._index["prints"]}
        written = {**self._index, "tasks": complete}
        write_durably(self._directory / INDEX, json.dumps(written).encode())
        self._reset()
