"""WordPiece: BERT's tokens. Words are cut at white space and punctuation, and each into the longest pieces there are.

Source: Devlin et al. 2019 (arXiv 1810.04805) and its published code, in the reading of Hugging Face's `tokenizers`.
"""

import unicodedata
from collections.abc import Sequence

_LONGEST_WORD = 100  # characters; a longer word is unknown
# Ideographs, each a word of its own: first and last of every block.
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


class WordPieces:
    """Text to ids and back.

    Args:
      pieces: by id; one that goes on within a word begins with `prefix`.
      unknown: the piece of a word that cannot be spelt.
      lowercase, strip_accents, ideographs: what is done to a text before.
      prefix: of pieces that go on within a word.
    """

    def __init__(
        self,
        pieces: Sequence[str],
        *,
        unknown: str = "[UNK]",
        lowercase: bool = True,
        strip_accents: bool = True,
        ideographs: bool = True,
        prefix: str = "##",
    ):
        self.pieces = list(pieces)
        self._ids = {piece: i for i, piece in enumerate(self.pieces)}
        self._unknown, self._prefix = self._ids[unknown], prefix
        self._lowercase, self._strip_accents, self._ideographs = lowercase, strip_accents, ideographs
        self._known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        return [i for word in _words(self._normal(text)) for i in self._word(word)]

    def decode(self, ids: Sequence[int]) -> str:
        words: list[str] = []
        for piece in (self.pieces[i] for i in ids):
            if piece.startswith(self._prefix) and words:
                words[-1] += piece.removeprefix(self._prefix)
            else:
                words.append(piece)
        return " ".join(words)

    def _normal(self, text: str) -> str:
        text = "".join(map(_clean, text))
        if self._ideographs:
            text = "".join(f" {c} " if any(a <= ord(c) <= b for a, b in _IDEOGRAPHS) else c for c in text)
        if self._strip_accents:
            text = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
        # Letter by letter: the whole text's lower() looks at a sigma's neighbours.
        return "".join(c.lower() for c in text) if self._lowercase else text

    def _word(self, word: str) -> list[int]:
        if word not in self._known:
            self._known[word] = self._spell(word)
        return self._known[word]

    def _spell(self, word: str) -> list[int]:
        if len(word) > _LONGEST_WORD:
            return [self._unknown]
        ids, start = [], 0
        while start < len(word):
            before = self._prefix if start else ""
            ends = range(len(word), start, -1)
            end = next((end for end in ends if before + word[start:end] in self._ids), None)
            if end is None:
                return [self._unknown]
            ids.append(self._ids[before + word[start:end]])
            start = end
        return ids


def _clean(c: str) -> str:
    if c.isspace() and not "\x1c" <= c <= "\x1f":
        return " "
    return "" if c == "\ufffd" or unicodedata.category(c).startswith("C") else c


def _words(text: str) -> list[str]:
    """Words and marks of punctuation."""
    return "".join(f" {c} " if _is_mark(c) else c for c in text).split()


def _is_mark(c: str) -> bool:
    plain = c.isascii() and c.isprintable() and not c.isalnum() and c != " "
    return plain or unicodedata.category(c).startswith("P")
