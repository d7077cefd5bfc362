"""How a classification task is put as entailment: which two texts a row holds, and which of their tokens are slots.

A row reads `first S1 separator T1 … Tj S2 separator`. S2 describes a class ('it was great .') or is the second text of a
pair. T are pseudo-tokens; these, the template's words, the label's and the last '.' may be slots: places at which a
method puts trained vectors in place of embeddings.

Source: Kim et al. 2023, "Differentiable Entailment for Parameter Efficient Few Shot Learning" (arXiv 2301.13345), section 3;
Wang et al. 2021, "Entailment as Few-Shot Learner" (arXiv 2104.14690), for classes, negatives and symmetric rows.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from zeroprompt_jax.data import cards
from zeroprompt_jax.data.encoder_vocabulary import EncoderVocabulary
from zeroprompt_jax.errors import UserError, unknown

LABEL = "label"
GROUPS = ("template", "label", "end")


@dataclasses.dataclass(frozen=True)
class Reformulation:
    """How a task's examples become rows.

    Attributes:
      labels: a word or words for each class, in the order of the card's options.
      first, second: templates over an example's fields, of the two segments. `{label}` in the second is the word of the
        class that a row describes; without it the pair itself is judged, which needs two classes.
      positive: which of two classes is the one described, or the one that a pair belongs to when it entails. More than
        two classes are described each by a row of its own.
      extra: how many pseudo-tokens precede the second segment; they are always slots.
      slots: which of the second segment's own words are slots: `template`, `label`, and `end` for its last '.'.
      tied: whether slots of one token share one vector.
      separators: how many stand between the segments; None takes the vocabulary's own way with pairs.
      negatives: in training, so many wrong descriptions beside the right one, drawn per example; None gives all.
      symmetric: of two classes describe both: twice the rows, and what one row affirms the other denies.

    Raises:
      UserError: fewer than two classes or two of the same words, an unknown group, a class that there is not, a field's
        part, a first segment with `{label}`, a second one without for more than two classes, more negatives than wrong
        descriptions.
    """

    labels: tuple[str, ...]
    first: str = "{sentence}"
    second: str = "it was {label} ."
    positive: int = 1
    extra: int = 5
    slots: tuple[str, ...] = GROUPS
    tied: bool = True
    separators: int | None = None
    negatives: int | None = None
    symmetric: bool = False

    def __post_init__(self):
        for field in ("labels", "slots"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        count = len(self.labels)
        if count < 2 or len(set(self.labels)) < count:
            raise UserError(f"Entailment: the labels {', '.join(self.labels)!r} must be two different ones at least.")
        for group in self.slots:
            if group not in GROUPS:
                raise unknown("group of slots", group, GROUPS)
        if not 0 <= self.positive < count:
            raise UserError(f"Entailment: positive {self.positive} is no class; there are 0 to {count - 1}.")
        if self.extra < 0 or (self.separators is not None and self.separators not in (1, 2)):
            raise UserError(
                f"Entailment: extra {self.extra} must not be negative, and separators {self.separators} be 1, 2 or None."
            )
        if (count > 2 or self.symmetric) and not self.describes:
            raise UserError(f"Entailment: '{self.second}' names no {{label}}, so it cannot describe several classes.")
        if self.symmetric and count != 2:
            raise UserError(f"Entailment: symmetric rows are of two classes, not of {count}.")
        most = len(self.described) - 1
        if self.negatives is not None and not 1 <= self.negatives <= most:
            raise UserError(f"Entailment: negatives {self.negatives}; an example has {most} wrong descriptions.")
        for field in self.fields:
            if {*".["} & {*field}:
                raise UserError(f"Entailment: a template names '{field}'; it names whole fields of an example.")
        if any(field == LABEL for field, _ in cards.parts(self.first)):
            raise UserError(f"Entailment: '{self.first}' names {{label}}, which only the second segment describes.")

    @property
    def describes(self) -> bool:
        """Whether rows describe a class, rather than judge a pair."""
        return any(field == LABEL for field, _ in cards.parts(self.second))

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields of an example that the templates name."""
        named = [field for template in (self.first, self.second) for field, _ in cards.parts(template)]
        return tuple(dict.fromkeys(field for field in named if field not in ("", LABEL)))

    @property
    def described(self) -> tuple[int, ...]:
        """Classes that have rows."""
        every = tuple(range(len(self.labels)))
        return every if len(every) > 2 or self.symmetric else (self.positive,)

    def words(self, vocabulary: EncoderVocabulary) -> tuple[int | None, ...]:
        """What each of the S slots begins as: the token it replaces, or None for a pseudo-token."""
        return compiled(self, vocabulary).words

    def ties(self, vocabulary: EncoderVocabulary) -> tuple[int, ...]:
        """For each of the S slots the one whose vector it uses: itself, or with `tied` the first of the same token."""
        words = self.words(vocabulary)
        return tuple(words.index(w) if self.tied and w is not None else i for i, w in enumerate(words))


class Piece(NamedTuple):
    """A part of a segment: an example's field (its format, and the space before it), or tokens and their slots (-1 none)."""

    field: str
    ids: tuple[int, ...] = ()
    slots: tuple[int, ...] = ()


class Compiled(NamedTuple):
    first: tuple[Piece, ...]
    second: dict[int, tuple[Piece, ...]]
    words: tuple[int | None, ...]


@functools.lru_cache(maxsize=1024)
def compiled(task: Reformulation, vocabulary: EncoderVocabulary) -> Compiled:
    """The segments in tokens, the second for each described class. Slots are numbered: pseudo-tokens, then the second
    segment's from left to right, of a label those of one class behind those of another.

    Raises UserError where a described class's words are none, or unknown, or another's to the vocabulary."""
    words: list[int | None] = [None] * task.extra
    extra = Piece("", (vocabulary.mask_id,) * task.extra, tuple(range(task.extra)))
    second: dict[int, list[Piece]] = {klass: [extra] for klass in task.described}

    def own(text: str, group: str | None) -> Piece:
        ids = tuple(vocabulary.encode(text))
        if group not in task.slots:
            return Piece("", ids, (-1,) * len(ids))
        words.extend(ids)
        return Piece("", ids, tuple(range(len(words) - len(ids), len(words))))

    parts = _spaced(task.second)
    for i, (field, text) in enumerate(parts):
        if field == LABEL:
            space = text[: len(text) - len(text.lstrip())]
            for klass, pieces in second.items():
                pieces.append(own(space + task.labels[klass], "label"))
            _check_labels(task, {klass: pieces[-1].ids for klass, pieces in second.items()}, vocabulary)
        else:
            ends = i == len(parts) - 1 and text.strip() == "."
            piece = Piece(text) if field else own(text, "end" if ends else "template")
            for pieces in second.values():
                pieces.append(piece)
    first = tuple(Piece(text) if field else own(text, None) for field, text in _spaced(task.first))
    return Compiled(first, {klass: tuple(pieces) for klass, pieces in second.items()}, tuple(words))


def _check_labels(task: Reformulation, ids: Mapping[int, tuple[int, ...]], vocabulary: EncoderVocabulary) -> None:
    known: dict[tuple[int, ...], str] = {}
    for klass, own in ids.items():
        label = task.labels[klass]
        if not own or vocabulary.unk_id in own:
            raise UserError(f"Entailment: the label '{label}' is not in the vocabulary '{vocabulary.spec}'.")
        if (other := known.setdefault(own, label)) != label:
            raise UserError(
                f"Entailment: the labels '{other}' and '{label}' are the same tokens in the vocabulary '{vocabulary.spec}'."
            )


def _spaced(template: str) -> list[tuple[str, str]]:
    """A template's parts, each with the space before it and none behind it, as byte pairs have it; a '.' at the end is a
    part of its own."""
    parts, space = [], ""
    for field, text in cards.parts(template):
        if field:
            parts.append((field, space + text))
            space = ""
        else:
            kept = (space + text).rstrip()
            space = (space + text)[len(kept) :]
            parts += [("", kept)] if kept else []
    if parts and not parts[-1][0] and parts[-1][1].endswith(".") and parts[-1][1].strip() != ".":
        words = parts.pop()[1][:-1]
        parts += [("", words.rstrip()), ("", words[len(words.rstrip()) :] + ".")]
    return [(field, text if i else text.lstrip()) for i, (field, text) in enumerate(parts)]


def as_text(card: cards.TaskCard, source: cards.Source, task: Reformulation) -> tuple[cards.TaskCard, cards.Source]:
    """A task with fixed options as one of text to text, CARD/entailment: whether a premise entails a hypothesis, the same
    rows as `rows` gives for evaluation, answered by yes or no. This is how a T5 trains on and answers what encoders do;
    slots and extra tokens are an encoder's alone, and a text-to-text model's soft prompts stand in their place."""
    put = cards.TaskCard(
        name=f"{card.name}/entailment",
        type="textual entailment",
        instructions=("Does the premise entail the hypothesis?",),
        domain=card.domain,
        family=card.family,
        pool=card.pool,
        input_template="premise: {premise} hypothesis: {hypothesis}",
        options=("no", "yes"),
    )
    told = f"{source.fingerprint} as text 1 {dataclasses.asdict(task)}"
    return put, dataclasses.replace(source, examples=functools.partial(_texts, card, source, task), fingerprint=told)


def _texts(card: cards.TaskCard, source: cards.Source, task: Reformulation, split: str) -> Iterator[dict[str, str]]:
    for example in source.examples(split):
        right = card.options.index(cards.render(card, example).target)
        for klass in task.described:
            described = {**example, LABEL: task.labels[klass]}
            answer = ("no", "yes")[klass == right]
            yield {
                "premise": task.first.format(**example),
                "hypothesis": task.second.format(**described),
                "target": answer,
            }
