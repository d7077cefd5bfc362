"""Classification as entailment: rows in which one text does or does not entail a description of a class, their batches,
and the classes that their scores say. Plain numpy; `reformulation` says what a row holds.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from zeroprompt_jax.data import cards
from zeroprompt_jax.data.encoder_vocabulary import EncoderVocabulary
from zeroprompt_jax.data.mixture import hash64, in_epochs
from zeroprompt_jax.data.reformulation import Piece, Reformulation, compiled
from zeroprompt_jax.errors import UserError, unknown


@dataclasses.dataclass(frozen=True)
class Rows:
    """R rows of E examples, of one task or of several.

    Attributes:
      encoder_input_tokens: [R, T] int32, padded with the vocabulary's pad_id.
      token_types: [R, T] int32, 1 from the second segment on; None where the vocabulary has one type.
      slot_positions: [R, S] int32, where each slot is in a row; -1 where it is not.
      task_ids: [R] int32.
      labels: [R] int32. 1 where the text entails the description, else 0; the class, in rows of `nli_rows`.
      example: [R] int32, whose row it is. klass: [R] int32, which class the row describes.
      gold: [E] int32, the examples' classes.
    """

    encoder_input_tokens: np.ndarray
    token_types: np.ndarray | None
    slot_positions: np.ndarray
    task_ids: np.ndarray
    labels: np.ndarray
    example: np.ndarray
    klass: np.ndarray
    gold: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, row_B: np.ndarray) -> dict[str, np.ndarray]:
        """Rows by number as an encoder's batch. A number below 0 is a filler: the first row, of weight 0."""
        kept_B, weights_B = np.maximum(row_B, 0), (np.asarray(row_B) >= 0).astype(np.float32)
        names = ["encoder_input_tokens", "slot_positions", "task_ids", "labels"]
        names += [] if self.token_types is None else ["token_types"]
        return {**{name: getattr(self, name)[kept_B] for name in names}, "row_weights": weights_B}

    def batches(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """Every row once, in order; the last batch is filled up."""
        for start in range(0, len(self), batch_size):
            row_B = np.arange(start, start + batch_size)
            yield self.batch(np.where(row_B < len(self), row_B, -1))


def rows(
    task: Reformulation,
    examples: Sequence[Mapping[str, Any]],
    gold: Sequence[int],
    vocabulary: EncoderVocabulary,
    length: int,
    *,
    task_id: int = 0,
    seed: int | None = None,
) -> Rows:
    """A task's examples as rows, an example's rows one after the other in the order of their classes.

    Args:
      task: how.
      examples: with the fields that the templates name.
      gold: class of each.
      length: T. Only fields of examples are cut to fit, the longest first.
      task_id: of every row.
      seed: of the negatives, in training; None is evaluation, in which every description stands.

    Raises:
      UserError: a field that is missing, a class that there is not, a length that leaves no room for the fields.
    """
    segments = compiled(task, vocabulary)
    made = _Rows(vocabulary, length, len(segments.words))
    separators = task.separators or vocabulary.pair_separators
    for e, (example, right) in enumerate(zip(examples, gold, strict=True)):
        if not 0 <= right < len(task.labels):
            raise UserError(f"Entailment: example {e} is of class {right}; there are 0 to {len(task.labels) - 1}.")
        described = task.described
        if seed is not None and task.negatives is not None:
            described = _with_negatives(described, right, task.negatives, hash64(seed, e, np.arange(len(task.labels))))
        for klass in described:
            made.add(example, segments.first, segments.second[klass], separators)
            made.told.append((klass == right, e, klass))
    return made.rows(task_id, gold)


def _with_negatives(classes: Sequence[int], right: int, negatives: int, chance_C: np.ndarray) -> list[int]:
    wrong = sorted((c for c in classes if c != right), key=lambda c: chance_C[c])
    return sorted([right, *wrong[:negatives]])


def nli_rows(
    examples: Sequence[Mapping[str, Any]],
    vocabulary: EncoderVocabulary,
    length: int,
    labels: Sequence[str],
    *,
    separators: int | None = None,
) -> Rows:
    """Pairs of `premise` and `hypothesis` for the training of a classifier in between; no slots.

    Args:
      examples: with a `label` that names one of `labels`, in whatever case.
      labels: the classifier's, in the order of its outputs.
      length, separators: as in `rows` and `Reformulation`.

    Raises:
      UserError: a label that there is not; and as `rows`.
    """
    known = {label.lower(): i for i, label in enumerate(labels)}
    made = _Rows(vocabulary, length, 0)
    first, second = (Piece("{premise}"),), (Piece("{hypothesis}"),)
    gold = []
    for e, example in enumerate(examples):
        label = str(example.get("label", "")).lower()
        if label not in known:
            raise unknown("label of inference", str(example.get("label")), labels)
        gold.append(known[label])
        made.add(example, first, second, separators or vocabulary.pair_separators)
        made.told.append((known[label], e, known[label]))
    return made.rows(0, gold)


class _Rows:
    """Rows while they are made."""

    def __init__(self, vocabulary: EncoderVocabulary, length: int, slots: int):
        self.vocabulary, self.length, self.slots = vocabulary, length, slots
        self.ids: list[list[int]] = []
        self.starts: list[int] = []
        self.positions: list[np.ndarray] = []
        self.told: list[tuple[int, int, int]] = []  # label, example, class
        self._encoded: dict[str, list[int]] = {}

    def add(self, example: Mapping[str, Any], first: Sequence[Piece], second: Sequence[Piece], separators: int) -> None:
        v = self.vocabulary
        parts = [(piece, self._tokens(piece, example)) for piece in (*first, *second)]
        _cut(parts, self.length - 2 - separators)
        row, positions, start = [v.first_id], np.full(self.slots, -1, np.int32), 0
        for i, (piece, ids) in enumerate(parts):
            if i == len(first):
                row += [v.separator_id] * separators
                start = len(row)
            for at, slot in enumerate(piece.slots):
                if slot >= 0:
                    positions[slot] = len(row) + at
            row += ids
        self.ids.append([*row, v.separator_id])
        self.starts.append(start)
        self.positions.append(positions)

    def _tokens(self, piece: Piece, example: Mapping[str, Any]) -> list[int]:
        if not piece.field:
            return list(piece.ids)
        space = piece.field[: len(piece.field) - len(piece.field.lstrip())]
        try:
            text = space + piece.field.strip().format(**example).strip()
        except KeyError as e:
            have = ", ".join(sorted(map(str, example)))
            raise UserError(f"Entailment: a template names the field {e}, but an example has {have}.") from None
        if text not in self._encoded:
            self._encoded[text] = self.vocabulary.encode(text)
        return list(self._encoded[text])

    def rows(self, task_id: int, gold: Sequence[int]) -> Rows:
        tokens = np.full((len(self.ids), self.length), self.vocabulary.pad_id, np.int32)
        types = np.zeros_like(tokens)
        for r, (ids, start) in enumerate(zip(self.ids, self.starts)):
            tokens[r, : len(ids)] = ids
            types[r, start : len(ids)] = 1
        labels, example, klass = np.array(self.told, np.int32).reshape(-1, 3).T
        return Rows(
            encoder_input_tokens=tokens,
            token_types=types if self.vocabulary.token_types > 1 else None,
            slot_positions=np.array(self.positions, np.int32).reshape(len(tokens), self.slots),
            task_ids=np.full(len(tokens), task_id, np.int32),
            labels=labels,
            example=example,
            klass=klass,
            gold=np.array(gold, np.int32),
        )


def _cut(parts: Sequence[tuple[Piece, list[int]]], room: int) -> None:
    """Cuts the ends of fields, always the longest one's, until all parts together have `room` tokens."""
    fields = [ids for piece, ids in parts if piece.field]
    rest = room - sum(len(ids) for piece, ids in parts if not piece.field)
    if rest < min(cards.LEAST_INPUT, sum(map(len, fields))):
        raise UserError(
            f"Entailment: descriptions and marks leave {max(rest, 0)} tokens for an example's texts; give a larger length."
        )
    while sum(map(len, fields)) > rest:
        max(fields, key=len).pop()


def join(parts: Sequence[Rows]) -> Rows:
    """Rows of several tasks as those of one set, with the slots of the task that has most; examples are counted on.

    Raises UserError where there are none, or of different lengths."""
    if len({p.encoder_input_tokens.shape[1] for p in parts}) != 1:
        raise UserError("Rows are joined from one set at least, and all of one length.")
    most = max(p.slot_positions.shape[1] for p in parts)
    before = np.cumsum([0, *(len(p.gold) for p in parts)])

    def wide(slots_RS: np.ndarray) -> np.ndarray:
        return np.pad(slots_RS, ((0, 0), (0, most - slots_RS.shape[1])), constant_values=-1)

    made = {
        "slot_positions": [wide(p.slot_positions) for p in parts],
        "example": [p.example + np.int32(start) for p, start in zip(parts, before)],
        "token_types": None if parts[0].token_types is None else [p.token_types for p in parts],
        **{n: [getattr(p, n) for p in parts] for n in ("encoder_input_tokens", "task_ids", "labels", "klass", "gold")},
    }
    return Rows(**{name: None if arrays is None else np.concatenate(arrays) for name, arrays in made.items()})


@dataclasses.dataclass(frozen=True)
class RowStream:
    """Training batches: of every task `per_task` rows, each task by its own shuffled epochs.

    A batch is a function of (seed, number), and what it holds of a task does not depend on which other tasks there are.
    """

    rows: Rows
    per_task: int
    seed: int = 0

    def __post_init__(self):
        if self.per_task < 1 or not len(self.rows):
            raise UserError(
                f"A stream takes {self.per_task} of {len(self.rows)} rows for each task; both must be above 0."
            )

    @functools.cached_property
    def _of_task(self) -> list[np.ndarray]:
        return [np.flatnonzero(self.rows.task_ids == task) for task in np.unique(self.rows.task_ids)]

    def batch(self, number: int) -> dict[str, np.ndarray]:
        """Batch `number`: rows of the first task, then of the second, ..."""
        at = number * self.per_task + np.arange(self.per_task)
        return self.rows.batch(np.concatenate([mine[in_epochs(at, len(mine), self.seed)] for mine in self._of_task]))


def predictions(rows: Rows, entails_R: np.ndarray) -> np.ndarray:
    """Class of each example, [E] int32, from the probabilities with which its rows entail.

    An example's class is the one of its likeliest row. One with a single row, of two classes, is of the row's class above
    1/2, and else of the other."""
    entails_R = np.asarray(entails_R)
    chosen_E = np.full(len(rows.gold), -1)
    for r in np.lexsort((np.arange(len(rows))[::-1], entails_R)):  # the likeliest, of equals the first, is written last
        chosen_E[rows.example[r]] = r
    alone_E = np.bincount(rows.example, minlength=len(rows.gold)) == 1
    denied_E = alone_E & (entails_R[chosen_E] <= 0.5)
    return np.where(denied_E, 1 - rows.klass[chosen_E], rows.klass[chosen_E]).astype(np.int32)


def classified(name: str, split: str) -> tuple[list[Mapping[str, Any]], list[int]]:
    """(examples, their classes) of a registered task with fixed options: what `rows` takes.

    Raises UserError for a task without options, or a target that is none of them."""
    card = cards.card(name)
    if not card.options:
        raise UserError(f"Task '{name}' has no fixed answer options, so its examples have no classes.")
    examples = list(cards.source(name).examples(split))
    return examples, [card.options.index(cards.render(card, example).target) for example in examples]
