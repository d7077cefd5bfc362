"""Operators of the genetic prompt search: what makes new wordings of old ones.

An operator is a frozen dataclass with `propose(parents, seeds, writer)`: for each parent a list of new texts, which
depend on the parent, its seed and (for crossover) the other parents alone. Parents come with marks (X1, X2, …) where
they name placeholders or answer options; the search puts these back and rejects a text that lost or repeated one. Your
own operator needs no more than that: a class of your module with `@gin.configurable`, that a config imports.

Source: Xu et al. 2022, "GPS: Genetic Prompt Search for Efficient Few-shot Learning" (arXiv 2210.17041):
back-translation, cloze and sentence continuation. The synonym table and crossover are extensions.
"""

import dataclasses
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from zeroprompt_jax.data.wordings import is_mark
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.models.decoding import Greedy, Sample, Strategy
from zeroprompt_jax.search import writer as writers
from zeroprompt_jax.search.writer import Writer

# GPS's eleven.
_LANGUAGES = "Chinese Japanese Korean French Spanish Italian Russian German Arabic Greek Cantonese"
LANGUAGES = tuple(_LANGUAGES.split())


class Operator(Protocol):
    """What makes new wordings."""

    def propose(self, parents: Sequence[str], seeds: Sequence[int], writer: Writer) -> list[list[str]]:
        """New texts for each parent."""


@dataclasses.dataclass(frozen=True)
class Cloze:
    """Hides words of a wording and lets the model fill the holes, as T5 was trained to (span corruption).

    Attributes:
      children: per parent, each with holes of its own.
      holes: in a wording, where it has so many words.
      longest: most words in a hole.
      strategy: how a filling is chosen.
      max_length: most tokens of all fillings with their sentinels and EOS.
    """

    children: int = 10
    holes: int = 1
    longest: int = 3
    strategy: Strategy = Sample(top_p=0.9)
    max_length: int = 16

    def __post_init__(self):
        for name in ("children", "holes", "longest"):
            if getattr(self, name) < 1:
                raise UserError(f"Cloze.{name} is {getattr(self, name)}; it must be at least 1.")

    def propose(self, parents, seeds, writer):
        made = []
        for place, (parent, seed) in enumerate(zip(parents, seeds)):
            draw = random.Random(seed)
            for _ in range(self.children):
                if pieces := self._pierce(parent.split(), draw):
                    made.append((place, pieces, draw.getrandbits(32)))
        rows = [self._row(pieces, writer) for _, pieces, _ in made]
        answers = writer.write(rows, [seed for *_, seed in made], self.strategy, self.max_length)
        out: list[list[str]] = [[] for _ in parents]
        for (place, pieces, _), (ids,) in zip(made, answers):
            if (fills := writer.fills(ids, len(pieces) - 1)) is not None:
                out[place].append(_joined([text for pair in zip(pieces, [*fills, ""]) for text in pair]))
        return out

    def _pierce(self, words: list[str], draw: random.Random) -> list[str]:
        """The texts around the holes; none where there is no word to hide."""
        hidden: set[int] = set()
        for _ in range(self.holes):
            # A hole never touches another, or two sentinels would stand for one gap.
            free = [i for i, w in enumerate(words) if not is_mark(w) and not {i - 1, i, i + 1} & hidden]
            if not free:
                break
            first = draw.choice(free)
            for i in range(first, first + draw.randint(1, self.longest)):
                if i not in free:
                    break
                hidden.add(i)
        if not hidden:
            return []
        pieces, before = [""], False
        for i, word in enumerate(words):
            if i in hidden and not before:
                pieces.append("")
            elif i not in hidden:
                pieces[-1] = f"{pieces[-1]} {word}".strip()
            before = i in hidden
        return pieces

    @staticmethod
    def _row(pieces: Sequence[str], writer: Writer) -> list[int]:
        v = writer.vocabulary
        ids = v.encode(pieces[0])
        for number, piece in enumerate(pieces[1:]):
            ids = v.join(v.join(ids, [writer.sentinel(number)]), v.encode(piece))
        return ids


@dataclasses.dataclass(frozen=True)
class Continuation:
    """Asks the model for a second sentence that means the same (DINO, Schick & Schütze 2021), as GPS does.

    Attributes:
      children: samples per parent.
      prompt: what the model is given, with {wording}; what it writes up to a quotation mark is the new wording.
      sentinel: whether a sentinel stands where the model is to write, as a T5 trained on span corruption alone needs;
        not for an LM-adapted one.
      strategy: how it is sampled.
      max_length: most tokens of a sample, EOS included.
    """

    children: int = 30
    prompt: str = 'Write two sentences that mean the same thing. Sentence 1: "{wording}" Sentence 2: "'
    sentinel: bool = True
    strategy: Strategy = Sample(top_p=0.9)
    max_length: int = 50

    def __post_init__(self):
        if "{wording}" not in self.prompt:
            raise UserError(f"Continuation.prompt is {self.prompt!r}; it must name {{wording}}.")
        if self.children < 1:
            raise UserError(f"Continuation.children is {self.children}; it must be at least 1.")

    def propose(self, parents, seeds, writer):
        v = writer.vocabulary
        rows = [v.encode(self.prompt.replace("{wording}", parent)) for parent in parents]
        if self.sentinel:
            rows = [v.join(v.join(row, [writer.sentinel()]), v.encode('"')) for row in rows]
        answers = writer.write(rows, seeds, self.strategy, self.max_length, self.children)
        return [[text for ids in own if (text := self._cut(ids, writer))] for own in answers]

    def _cut(self, ids: list[int], writer: Writer) -> str | None:
        """A sample up to its closing quotation mark; None where it has none or breaks the line."""
        if self.sentinel:
            fills = writer.fills(ids, 1)
            # The mark is part of what follows the hole, so the filling ends by itself.
            text = f'{fills[0]}"' if fills else ""
        else:
            text = writer.vocabulary.decode(ids)
        before, mark, _ = text.partition('"')
        return None if not mark or "\n" in before else _joined([before])


@dataclasses.dataclass(frozen=True)
class BackTranslation:
    """Translates a wording to other languages and back.

    Attributes:
      translate: `translate(texts, source, target)` gives the translated texts; or a directory in Hugging Face layout, or
        a model's name (`pretrained`), of a T5 that follows "translate English to German: …", as the original T5 does for
        German, French and Romanian.
      languages: one new wording for each.
      source: the wordings' own language.
      max_length: most tokens of a translation by a T5, EOS included.
    """

    translate: Callable[[Sequence[str], str, str], Sequence[str]] | str
    languages: Sequence[str] = LANGUAGES
    source: str = "English"
    max_length: int = 64

    def propose(self, parents, seeds, writer):
        translate = self._by_model if isinstance(self.translate, str) else self.translate
        out: list[list[str]] = [[] for _ in parents]
        for language in self.languages:
            there = translate(list(parents), self.source, language)
            back = translate(list(there), language, self.source)
            if len(back) != len(parents):
                raise UserError(f"BackTranslation.translate gave {len(back)} texts in {language} for {len(parents)}.")
            for own, text in zip(out, back):
                own.append(_joined([text]))
        return out

    def _by_model(self, texts: Sequence[str], source: str, target: str) -> list[str]:
        model = writers.load(self.translate)
        rows = [model.vocabulary.encode(f"translate {source} to {target}: {text}") for text in texts]
        answers = model.write(rows, [0] * len(rows), Greedy(), self.max_length)
        return [model.vocabulary.decode(ids) for (ids,) in answers]


@dataclasses.dataclass(frozen=True)
class Synonyms:
    """Swaps words for others of a table.

    Attributes:
      table: groups of words or phrases that may stand for each other; or a text file with a group per line, separated
        by commas.
      children: per parent.
      most: words swapped at once.
    """

    table: str | Sequence[Sequence[str]]
    children: int = 10
    most: int = 2

    def __post_init__(self):
        for name in ("children", "most"):
            if getattr(self, name) < 1:
                raise UserError(f"Synonyms.{name} is {getattr(self, name)}; it must be at least 1.")

    def propose(self, parents, seeds, writer):
        others: dict[str, list[str]] = {}
        for group in self._groups():
            for word in group:
                others.setdefault(word.lower(), []).extend(o for o in group if o != word)
        others = {word: own for word, own in others.items() if own}  # a group of one word has no other
        if not others:
            raise UserError(f"Synonyms.table {self.table!r} has no group of words.")
        words = "|".join(re.escape(w) for w in sorted(others, key=len, reverse=True))
        pattern = re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)
        return [self._swap(parent, pattern, others, random.Random(seed)) for parent, seed in zip(parents, seeds)]

    def _swap(self, parent: str, pattern: re.Pattern, others: dict[str, list[str]], draw: random.Random) -> list[str]:
        found = [m for m in pattern.finditer(parent) if not is_mark(m[0])]
        out = []
        for _ in range(self.children if found else 0):
            text = parent
            # From the end, so that earlier places stay where they are.
            chosen = draw.sample(found, draw.randint(1, min(self.most, len(found))))
            for m in sorted(chosen, key=lambda m: -m.start()):
                text = text[: m.start()] + draw.choice(others[m[0].lower()]) + text[m.end() :]
            out.append(_joined([text]))
        return out

    def _groups(self) -> list[list[str]]:
        if not isinstance(self.table, str):
            return [list(group) for group in self.table]
        try:
            lines = Path(self.table).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f"Synonyms.table '{self.table}' cannot be read ({e}).") from None
        return [[w.strip() for w in line.split(",") if w.strip()] for line in lines if line.strip()]


@dataclasses.dataclass(frozen=True)
class Crossover:
    """The beginning of one wording and the end of another. An extension: GPS has no crossover.

    Attributes:
      children: per parent.
    """

    children: int = 5

    def propose(self, parents, seeds, writer):
        out = []
        for place, (parent, seed) in enumerate(zip(parents, seeds)):
            draw, words = random.Random(seed), parent.split()
            mates = [mate.split() for i, mate in enumerate(parents) if i != place]
            own = []
            for _ in range(self.children if mates and len(words) > 1 else 0):
                mate, cut = draw.choice(mates), draw.randint(1, len(words) - 1)
                own.append(" ".join([*words[:cut], *mate[draw.randint(0, len(mate) - 1) :]]))
            out.append(own)
        return out


def _joined(texts: Sequence[str]) -> str:
    """Texts as one, words a space apart and none before a full stop."""
    return re.sub(r" ([.,;:?!])", r"\1", " ".join(" ".join(texts).split()))
