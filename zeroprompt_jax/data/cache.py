"""Caching: every task's examples rendered and tokenised once, into a few shard files under one index."""

import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import json
import pathlib
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tqdm

from zeroprompt_jax.data import cards
from zeroprompt_jax.data.shards import checksum, write_durably, write_shard
from zeroprompt_jax.data.store import FORMAT, INDEX, Store, open_store, read_index
from zeroprompt_jax.data.vocabulary import UNK_ID, Vocabulary
from zeroprompt_jax.errors import UserError, unknown

__all__ = ["Store", "build", "open_store"]

# A shard is closed when one of these is reached. Few shards make fast batches; the time bounds what a kill can lose.
_SHARD_TASKS = 4096
_SHARD_BYTES = 32 << 20
_SHARD_SECONDS = 10.0
UNKNOWN_TARGETS = ("error", "drop", "keep")


def build(
    directory: str | pathlib.Path,
    tasks: Sequence[str],
    vocabulary: Vocabulary,
    *,
    max_examples: Mapping[str, int] | None = None,
    splits: Sequence[str] = ("train", "test"),
    unknown_targets: str = "error",
    progress: bool = True,
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
      unknown_targets: what to do with a target that holds text outside the vocabulary: `error`; `drop` leaves such
        examples out of `train` (never of what is evaluated); `keep` keeps the unknown token in them, as T5's published
        models did.
      progress: show a bar.

    Raises:
      UserError: unknown task, an example that does not fit its card, an empty target, a target outside the vocabulary,
        no examples at all, a directory of another vocabulary, a full disk.
    """
    if unknown_targets not in UNKNOWN_TARGETS:
        raise UserError(f"unknown_targets '{unknown_targets}' is not one of {', '.join(UNKNOWN_TARGETS)}.")
    tasks, caps = list(dict.fromkeys(tasks)), dict(max_examples or {})
    if not tasks:
        raise UserError(f"Cache {directory}: no tasks were given.")
    for split in {*splits, *caps}:
        if split not in cards.SPLITS:
            raise unknown("split", split, cards.SPLITS)
    directory = pathlib.Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"Cache directory {directory} cannot be made: {e.strerror}.") from None
    registered = set(cards.task_names())
    entries = {name: _find(name, vocabulary, registered) for name in tasks}
    prints = {
        name: _fingerprint(card, source, vocabulary, splits, caps, unknown_targets)
        for name, (card, source) in entries.items()
    }
    with _lock(directory):
        index = _clean(directory, vocabulary)
        stale = [name for name in tasks if index["prints"].get(name) != prints[name]]
        bar = tqdm.tqdm(stale, desc="caching tasks", unit="task", disable=not progress or not stale, file=sys.stderr)
        writer = _Writer(directory, index, np.uint16 if vocabulary.size <= 1 << 16 else np.int32)
        for name in bar:
            card, source = entries[name]
            writer.add(name, prints[name], _tokenise(card, source, vocabulary, splits, caps, unknown_targets))
        writer.flush()
        _clean(directory, vocabulary, verify=False)
    return open_store(directory, tasks, verify=False)


def _find(name: str, vocabulary: Vocabulary, registered: set[str]) -> tuple[cards.TaskCard, cards.Source]:
    # A seqio task can only exist where somebody imported seqio already, so a wrong name never pays for that import.
    if name not in registered and "seqio" in sys.modules:
        from zeroprompt_jax.data import seqio_bridge

        return seqio_bridge.card_from_seqio(name, vocabulary)
    return cards.card(name), cards.source(name)


def _fingerprint(card, source, vocabulary, splits, caps, unknown_targets) -> str:
    what = [FORMAT, dataclasses.asdict(card), source.fingerprint, vocabulary.fingerprint]
    what += [[(s, caps.get(s)) for s in sorted(splits) if s in source.splits], unknown_targets]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]


@contextlib.contextmanager
def _lock(directory: pathlib.Path) -> Iterator[None]:
    with open(directory / ".lock", "w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Another process is caching into {directory}; waiting for it.", file=sys.stderr, flush=True)
            fcntl.flock(f, fcntl.LOCK_EX)
        yield  # closing the file releases the lock, also when the process dies


def _clean(directory: pathlib.Path, vocabulary: Vocabulary, verify: bool = True) -> dict[str, Any]:
    """The index, or a new one; removes files it does not name and forgets tasks whose shard is gone or damaged."""
    mine = {"spec": vocabulary.spec, "fingerprint": vocabulary.fingerprint, "separator": list(vocabulary.separator)}
    index = read_index(directory) or {"format": FORMAT, "vocabulary": mine, "tasks": {}, "prints": {}, "shards": {}}
    if index["vocabulary"]["fingerprint"] != vocabulary.fingerprint:
        raise UserError(
            f"Cache {directory} was made with the vocabulary '{index['vocabulary']['spec']}', not '{vocabulary.spec}'; "
            "give another directory or delete this one."
        )
    for file, described in list(index["shards"].items()):
        path = directory / file
        whole = path.exists() and path.stat().st_size == described["bytes"]
        if not whole or (verify and checksum(path) != described["crc32"]):
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
        self._parts = {c: ([], []) for c in ("inputs", "targets", "extra", "instructions")}
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
            }
        )
        self._instructions += trained + held_out
        self._prints[name] = fingerprint
        for column, pieces in tokenised["columns"].items():
            for flat, lengths in pieces:
                flat = flat if column == "extra" else flat.astype(self._dtype)
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
        columns = {c: (np.concatenate(flat), np.concatenate(lengths)) for c, (flat, lengths) in self._parts.items()}
        self._index["shards"][file] = write_shard(self._directory / file, self._tasks, columns)
        for name, fingerprint in self._prints.items():
            self._index["tasks"][name] = file
            self._index["prints"][name] = fingerprint
        # Shards of replaced tasks stay on disk until the next clean-up: somebody may be reading the old index.
        complete = {n: f for n, f in self._index["tasks"].items() if n in self._index["prints"]}
        written = {**self._index, "tasks": complete}
        write_durably(self._directory / INDEX, json.dumps(written).encode())
        self._reset()


def _tokenise(card, source, vocabulary, splits, caps, unknown_targets) -> dict[str, Any]:
    columns: dict[str, list] = {c: [] for c in ("inputs", "targets", "extra", "instructions")}
    counts, notes = {}, {"dropped": 0, "unknown_targets": 0, "unknown_inputs": 0}
    for split in splits:
        if split not in source.splits:
            continue
        examples = list(itertools.islice(source.examples(split), caps.get(split)))
        rendered = [_render(card, e) for e in examples]
        inputs = _ids(vocabulary, [r.input for r in rendered], [e.get("input_ids") for e in examples])
        targets = _ids(vocabulary, [r.target for r in rendered], [e.get("target_ids") for e in examples])
        _check_targets(card, vocabulary, rendered, targets[1])
        bad = _rows_with_unknown(targets)
        notes["unknown_targets"] += int(bad.sum())
        notes["unknown_inputs"] += int(_rows_with_unknown(inputs).sum())
        if bad.any() and unknown_targets == "error":
            text = rendered[int(np.argmax(bad))].target
            raise UserError(
                f"Task '{card.name}': {int(bad.sum())} {split} targets hold text outside the vocabulary "
                f"'{vocabulary.spec}', first "
                f"{text[:80]!r}; use a vocabulary that has it, or unknown_targets='drop' or 'keep'."
            )
        if unknown_targets == "drop" and split == "train":
            inputs, targets = _select(inputs, ~bad), _select(targets, ~bad)
            rendered = [r for r, b in zip(rendered, bad, strict=True) if not b]
            notes["dropped"] += int(bad.sum())
        counts[split] = len(rendered)
        columns["inputs"].append(inputs)
        columns["targets"].append(targets)
        columns["extra"].append(_extras([] if split == "train" else rendered, len(rendered)))
    if not sum(counts.values()):
        why = f" ({notes['dropped']} were dropped for text outside the vocabulary)" if notes["dropped"] else ""
        raise UserError(f"Task '{card.name}': it has no examples in {' or '.join(splits)}{why}.")
    wordings = [*card.instructions, *card.held_out_instructions]
    columns["instructions"].append(vocabulary.encode_ragged(wordings))
    return {
        "card": dataclasses.asdict(card),
        "counts": counts,
        "columns": columns,
        "instruction_counts": (len(card.instructions), len(card.held_out_instructions)),
        "notes": notes,
    }


def _render(card: cards.TaskCard, example: Mapping[str, Any]) -> cards.Rendered:
    try:
        return cards.render(card, example)
    except (AttributeError, IndexError, TypeError, ValueError) as e:
        if isinstance(e, UserError):
            raise
        raise UserError(f"Task '{card.name}': its templates cannot be filled from an example ({e}).") from None


def _ids(vocabulary: Vocabulary, texts: list[str], given: list) -> tuple[np.ndarray, np.ndarray]:
    if not any(g is not None for g in given):
        return vocabulary.encode_ragged(texts)
    rows = [np.asarray(g, np.int32) for g in given]
    return np.concatenate(rows), np.array([len(r) for r in rows], np.int64)


def _check_targets(card, vocabulary, rendered, lengths) -> None:
    if len(empty := np.flatnonzero(lengths == 0)):
        r = rendered[empty[0]]
        raise UserError(
            f"Task '{card.name}': the target {r.target!r} of the input {r.input[:80]!r} is empty in the vocabulary "
            f"'{vocabulary.spec}'."
        )


def _rows_with_unknown(ragged: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    flat, lengths = ragged
    return np.bincount(np.repeat(np.arange(len(lengths)), lengths)[flat == UNK_ID], minlength=len(lengths)) > 0


def _select(ragged: tuple[np.ndarray, np.ndarray], keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    flat, lengths = ragged
    return flat[np.repeat(keep, lengths)], lengths[keep]


def _extras(rendered: list[cards.Rendered], count: int) -> tuple[np.ndarray, np.ndarray]:
    if not rendered:
        return np.zeros(0, np.uint8), np.zeros(count, np.int64)
    texts = [
        json.dumps({"references": r.references, "options": r.options, "input": r.input}, ensure_ascii=False).encode()
        for r in rendered
    ]
    return np.frombuffer(b"".join(texts), np.uint8), np.array([len(t) for t in texts], np.int64)
