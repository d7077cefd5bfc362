"""The pieces of a vocabulary, and which of them are English words: the rows that maps between models are fitted to."""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

from zeroprompt_jax import pretrained
from zeroprompt_jax.data.vocabulary import file_in, load_vocabulary
from zeroprompt_jax.errors import UserError

_BEGINS = ("▁", "Ġ")  # the mark of a word's beginning: SentencePiece's, and that of byte-level BPE
_GOES_ON = "##"  # WordPiece's mark of what is no beginning
_SENTINEL = re.compile(r"▁?<extra_id_\d+>")


def read(spec: str) -> tuple[str, ...]:
    """The pieces of a vocabulary by id, without T5's sentinels.

    Args:
      spec: a Hugging Face `tokenizer.json`, or what `load_vocabulary` takes; of a directory in Hugging Face layout the
        `spiece.model` or else the `tokenizer.json`.

    Raises:
      UserError: neither of these, or damaged.
    """
    path = pretrained.directory(spec) or Path(spec).expanduser()
    if path.is_dir():
        path = file_in(path)
        spec = str(path)
    pieces = _tokenizer(path) if path.suffix == ".json" else load_vocabulary(spec).pieces()
    while pieces and _SENTINEL.fullmatch(pieces[-1]):
        pieces = pieces[:-1]
    return tuple(pieces)


def _tokenizer(path: Path) -> list[str]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        vocab = record["model"]["vocab"]
        # Unigram models list [piece, score] by id; the others map pieces to ids.
        ids = vocab if isinstance(vocab, dict) else {piece: i for i, (piece, _) in enumerate(vocab)}
        ids = {**ids, **{token["content"]: token["id"] for token in record.get("added_tokens", ())}}
    except OSError as e:
        raise UserError(f"The vocabulary {path} cannot be read ({e.strerror}).") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"The vocabulary {path} is no tokenizer.json of Hugging Face, or is damaged.") from None
    pieces = [""] * (1 + max(ids.values(), default=-1))
    for piece, i in ids.items():
        pieces[i] = piece
    return pieces


def check_same(source: Sequence[str], target: Sequence[str], names: tuple[str, str] = ("source", "target")) -> None:
    """Raises UserError where two vocabularies differ, naming the first id that does."""
    for i, (a, b) in enumerate(zip(source, target)):
        if a != b:
            raise UserError(
                f"{names[0]} and {names[1]} have different vocabularies: id {i} is '{a}' in one, '{b}' in the other."
            )
    if len(source) != len(target):
        shorter, longer = sorted((source, target), key=len)
        raise UserError(
            f"{names[0]} and {names[1]} have different vocabularies, of {len(source):,} and {len(target):,} pieces: id "
            f"{len(shorter)} is '{longer[len(shorter)]}' in one and missing in the other."
        )


def english_words(pieces: Sequence[str]) -> list[int]:
    """Ids of the pieces that begin a word and have two plain letters or more."""
    marked, unmarked = (sum(piece.startswith(mark) for piece in pieces) for mark in (_BEGINS, _GOES_ON))
    word = re.compile("[▁Ġ][A-Za-z]{2,}" if marked >= unmarked else "[A-Za-z]{2,}")
    return [i for i, piece in enumerate(pieces) if word.fullmatch(piece)]


@dataclasses.dataclass(frozen=True)
class EnglishWords:
    """Which rows of the embeddings a map is fitted to: of the `english_words`, in the order of their ids, which in trained
    vocabularies is that of frequency, the first `skip` are left out and the next `count` taken.

    The defaults are those of prompt recycling: the commonest tokens behave unlike the others, and rare ones are trained
    too little. Letters alone do not tell languages apart: French words without accents stay.
    """

    skip: int = 1000
    count: int = 4000

    def __post_init__(self):
        if self.skip < 0 or self.count < 1:
            raise UserError(f"EnglishWords has skip {self.skip} and count {self.count}; it needs 0 and 1 at least.")

    def choose(self, pieces: Sequence[str]) -> list[int]:
        """Ids, ascending. UserError where the vocabulary has too few words."""
        words = english_words(pieces)
        chosen = words[self.skip : self.skip + self.count]
        if len(chosen) < self.count:
            raise UserError(
                f"The vocabulary has {len(words):,} pieces that are English words: too few rows for "
                f"EnglishWords.skip {self.skip:,} and count {self.count:,}; set smaller ones."
            )
        return chosen

    def rest(self, pieces: Sequence[str]) -> list[int]:
        """Ids of up to `count` words behind the chosen ones, to test a map on."""
        return english_words(pieces)[self.skip + self.count :][: self.count]
