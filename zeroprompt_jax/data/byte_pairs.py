"""Byte-level byte pair encoding: RoBERTa's and GPT-2's tokens. Every byte is a piece, so no text is unknown.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2; Liu et al. 2019 (arXiv
1907.11692), section 4.4.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence


class BytePairs:
    """Text to ids and back.

    Args:
      pieces: by id, their bytes written in the visible letters that stand for them.
      merges: pairs of pieces that become one, the first ones first.
      begins_words: whether a space is put before a text that begins with none.
    """

    def __init__(self, pieces: Sequence[str], merges: Iterable[tuple[str, str]], begins_words: bool = False):
        self.pieces = list(pieces)
        self._ids = {piece: i for i, piece in enumerate(self.pieces)}
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._begins_words = begins_words
        self._known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        if self._begins_words and text and not text[0].isspace():
            text = " " + text
        return [i for word in _pattern().findall(text) for i in self._word(word)]

    def decode(self, ids: Sequence[int]) -> str:
        byte_of = {letter: byte for byte, letter in _letters().items()}
        text = "".join(self.pieces[i] for i in ids)
        return bytes(byte_of[letter] for letter in text).decode("utf-8", errors="replace")

    def _word(self, word: str) -> list[int]:
        if word not in self._known:
            letters = _letters()
            self._known[word] = [self._ids[p] for p in self._merged([letters[b] for b in word.encode("utf-8")])]
        return self._known[word]

    def _merged(self, parts: list[str]) -> list[str]:
        while len(parts) > 1:
            first = min(zip(parts, parts[1:]), key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if first not in self._ranks:
                break
            made, at = [], 0
            while at < len(parts):
                here = tuple(parts[at : at + 2]) == first
                made.append("".join(first) if here else parts[at])
                at += 2 if here else 1
            parts = made
        return parts


@functools.cache
def _letters() -> dict[int, str]:
    """The visible letter that stands for each byte: itself where it is one, else one from 256 upwards."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return {byte: chr(byte if byte in visible else next(others)) for byte in range(256)}


@functools.cache
def _pattern() -> re.Pattern:
    """GPT-2's cut into words: contractions, and runs of letters, of numbers and of neither, with the space before them."""
    # Python's classes are by another measure: its \w has numbers that are no digits, and '_'.
    space = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
    numbers = r"\d" + "".join(c for c in map(chr, range(0x110000)) if unicodedata.category(c) in ("Nl", "No"))
    letter = rf"[^\W_{numbers}]"
    other = rf"(?:[^{space}\w{numbers}]|_)"
    return re.compile(
        rf"'(?:[stmd]|re|ve|ll)| ?{letter}+| ?[{numbers}]+| ?{other}+|[{space}]+(?![^{space}])|[{space}]+"
    )
