"""One task made into token ids: what caching does with each, here or in a worker process."""

import dataclasses
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from zeroprompt_jax.data import cards
from zeroprompt_jax.data.store import CUTS, FORMAT, OWN
from zeroprompt_jax.data.vocabulary import UNK_ID, Vocabulary
from zeroprompt_jax.errors import UserError, unknown

UNKNOWN_TARGETS = ("error", "drop", "keep")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Which examples are kept; the arguments of `cache.build` of the same names, and described there.

    Raises:
      UserError: a split or a way with unknown targets that there is not, or a cap below one per label.
    """

    splits: tuple[str, ...] = ("train", "test")
    max_examples: Mapping[str, int] = dataclasses.field(default_factory=dict)
    max_per_label: int | None = None
    unknown_targets: str = "error"
    option_seed: int | None = None

    def __post_init__(self):
        for split in (*self.splits, *self.max_examples):
            if split not in cards.SPLITS:
                raise unknown("split", split, cards.SPLITS)
        if self.max_per_label is not None and self.max_per_label < 1:
            raise UserError(f"A cap of {self.max_per_label} examples per label must be at least 1.")
        if self.unknown_targets not in UNKNOWN_TARGETS:
            raise UserError(f"unknown_targets '{self.unknown_targets}' is not one of {', '.join(UNKNOWN_TARGETS)}.")


def find(name: str, vocabulary: Vocabulary) -> tuple[cards.TaskCard, cards.Source]:
    """A task's card and source; one that only seqio knows is read through it."""
    # A seqio task can only exist where somebody imported seqio already, so a wrong name never pays for that import.
    if not cards.is_task(name) and "seqio" in sys.modules:
        from zeroprompt_jax.data import seqio_bridge

        return seqio_bridge.card_from_seqio(name, vocabulary)
    return cards.card(name), cards.source(name)


def fingerprint(card: cards.TaskCard, source: cards.Source, vocabulary: Vocabulary, recipe: Recipe) -> str:
    """Changes whenever what `tokenise` gives would."""
    what = [FORMAT, dataclasses.asdict(card), source.fingerprint, vocabulary.fingerprint]
    caps = [(s, recipe.max_examples.get(s)) for s in sorted(recipe.splits) if s in source.splits]
    what += [caps, recipe.unknown_targets]
    # Appended only where it is set: stores made before there was such a cap stay valid.
    what += [] if recipe.max_per_label is None else [recipe.max_per_label]
    what += [] if recipe.option_seed is None else [{"option_seed": recipe.option_seed}]
    what += [] if cards.cut_at_end(card) else [CUTS]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]


def tokenise(card: cards.TaskCard, source: cards.Source, vocabulary: Vocabulary, recipe: Recipe) -> dict[str, Any]:
    """All that a store keeps of a task.

    Returns:
      `card` as a dict, `counts` of examples per split, `columns`: name to pieces of (flat values, row lengths), with
      `own_instructions` where examples bring their own, `cuts` where inputs are not cut at their end,
      `instruction_counts` (training, held out) and `notes`.

    Raises:
      UserError: an example that does not fit the card, an empty target, a target outside the vocabulary, no examples, a
        file of the task's that cannot be read.
    """
    try:
        return _tokenise(card, source, vocabulary, recipe)
    except OSError as e:
        what = f"{e.filename}: {e.strerror}" if e.filename is not None else str(e) or type(e).__name__
        raise UserError(f"Task '{card.name}': its examples cannot be read ({what}).") from e
    except UnicodeEncodeError as e:
        half, near = f"U+{ord(e.object[e.start]):04X}", e.object[max(0, e.start - 40) : e.start + 40]
        raise UserError(f"Task '{card.name}': an example holds half a character ({half}), which is no text: {near!r}.") from e


def _tokenise(card: cards.TaskCard, source: cards.Source, vocabulary: Vocabulary, recipe: Recipe) -> dict[str, Any]:
    columns: dict[str, list] = {c: [] for c in ("inputs", "targets", "extra", "instructions", OWN, CUTS)}
    counts, notes = {}, {"dropped": 0, "unknown_targets": 0, "unknown_inputs": 0}
    for split in recipe.splits:
        if split not in source.splits:
            continue
        kept = _kept(card, source, split, recipe)
        examples, rendered = [e for e, _ in kept], [r for _, r in kept]
        "\n".join(text for r in rendered for text in (r.input, r.target, r.instruction)).encode()  # half a character raises
        inputs = _ids(vocabulary, [r.input for r in rendered], [e.get("input_ids") for e in examples])
        targets = _ids(vocabulary, [r.target for r in rendered], [e.get("target_ids") for e in examples])
        own = _ids(vocabulary, [r.instruction for r in rendered], [e.get("instruction_ids") for e in examples])
        whole = cards.cut_at_end(card) or any(e.get("input_ids") is not None for e in examples)
        cuts = _cuts(vocabulary, [] if whole else rendered, *inputs)
        _check_targets(card, vocabulary, rendered, targets[1])
        bad = _rows_with_unknown(targets)
        notes["unknown_targets"] += int(bad.sum())
        notes["unknown_inputs"] += int(_rows_with_unknown(inputs).sum())
        if bad.any() and recipe.unknown_targets == "error":
            text = rendered[int(np.argmax(bad))].target
            raise UserError(
                f"Task '{card.name}': {int(bad.sum())} {split} targets hold text outside the vocabulary "
                f"'{vocabulary.spec}', first "
                f"{text[:80]!r}; use a vocabulary that has it, or unknown_targets='drop' or 'keep'."
            )
        if recipe.unknown_targets == "drop" and split == "train":
            inputs, targets, own, cuts = (_select(column, ~bad) for column in (inputs, targets, own, cuts))
            rendered = [r for r, b in zip(rendered, bad, strict=True) if not b]
            notes["dropped"] += int(bad.sum())
        counts[split] = len(rendered)
        columns["inputs"].append(inputs)
        columns["targets"].append(targets)
        columns[OWN].append(own)
        columns[CUTS].append(cuts)
        columns["extra"].append(_extras([] if split == "train" else rendered, len(rendered)))
    if not sum(counts.values()):
        why = f" ({notes['dropped']} were dropped for text outside the vocabulary)" if notes["dropped"] else ""
        raise UserError(f"Task '{card.name}': it has no examples in {' or '.join(recipe.splits)}{why}.")
    wordings = [*card.instructions, *card.held_out_instructions]
    columns["instructions"].append(vocabulary.encode_ragged(wordings))
    if not any(len(flat) for flat, _ in columns[OWN]):
        del columns[OWN]
    elif any(wordings):
        raise UserError(f"Task '{card.name}': its examples bring their own instructions, so its one wording must be empty.")
    if not any(len(flat) for flat, _ in columns[CUTS]):
        del columns[CUTS]
    return {
        "card": dataclasses.asdict(card),
        "counts": counts,
        "columns": columns,
        "instruction_counts": (len(card.instructions), len(card.held_out_instructions)),
        "notes": notes,
    }


def _kept(card, source, split: str, recipe: Recipe) -> list[tuple[Mapping[str, Any], cards.Rendered]]:
    """The examples that the caps leave, as they came and rendered; reads no further than it must."""
    cap = recipe.max_examples.get(split)
    per_label = recipe.max_per_label if split == "train" else None
    kept, labels = [], Counter()
    if cap == 0:
        return kept
    for example in source.examples(split):
        rendered = _render(card, example, recipe.option_seed)
        if per_label is not None:
            if labels[rendered.target] == per_label:
                continue
            labels[rendered.target] += 1
        kept.append((example, rendered))
        if len(kept) == cap:
            break
        if per_label is not None and card.options and all(labels[o] == per_label for o in card.options):
            break
    return kept


def _render(card: cards.TaskCard, example: Mapping[str, Any], option_seed: int | None) -> cards.Rendered:
    try:
        return cards.render(card, example, option_seed)
    except (AttributeError, IndexError, TypeError, ValueError) as e:
        if isinstance(e, UserError):
            raise
        raise UserError(f"Task '{card.name}': its templates cannot be filled from an example ({e}).") from None


def _ids(vocabulary: Vocabulary, texts: list[str], given: list) -> tuple[np.ndarray, np.ndarray]:
    if not any(g is not None for g in given):
        return vocabulary.encode_ragged(texts)
    rows = [np.asarray(g, np.int32) for g in given]
    return np.concatenate(rows), np.array([len(r) for r in rows], np.int64)


def _cuts(
    vocabulary: Vocabulary, rendered: list[cards.Rendered], flat: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where inputs may be cut, as spans of their token ids: rows of start, end, start, end, …, empty where `rendered` is.
    A token that a field shares with the text behind it stays with that text."""
    if not rendered:
        return np.zeros(0, np.int32), np.zeros(len(lengths), np.int64)
    spans = [r.cuts or ((0, 0),) for r in rendered]
    begun = [r.input[:place] for r, own in zip(rendered, spans) for span in own for place in span]
    made, made_lengths = vocabulary.encode_ragged(begun)
    counts = np.array([2 * len(own) for own in spans], np.int64)
    starts = np.repeat(np.cumsum(lengths) - lengths, counts)
    made_starts = np.cumsum(made_lengths) - made_lengths
    places = np.minimum(made_lengths, np.repeat(lengths, counts)).astype(np.int32)
    for k, (a, b, n) in enumerate(zip(starts.tolist(), made_starts.tolist(), places.tolist())):
        same = flat[a : a + n] == made[b : b + n]
        places[k] = n if same.all() else np.argmin(same)
    return places, counts


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
