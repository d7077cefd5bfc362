"""Plain text as chunks of tokens: what the tasks that are made from any text share."""

import functools
import glob
import hashlib
import lzma
import os
import pathlib

import numpy as np

from zeroprompt_jax.data.vocabulary import Vocabulary
from zeroprompt_jax.errors import UserError

_LINES = 4096


def find(path: str | os.PathLike) -> tuple[str, ...]:
    """The files that a path or a pattern means, sorted. Raises UserError where there is none."""
    files = tuple(sorted(glob.glob(os.path.expanduser(str(path)))))
    if not files:
        raise UserError(f"There is no text file '{path}'; give the path of plain text, or a pattern.")
    return files


def digest(files: tuple[str, ...]) -> str:
    """Changes whenever the files do."""
    made = hashlib.blake2b(digest_size=12)
    for file in files:
        made.update(_read(file))
    return made.hexdigest()


def _read(file: str) -> bytes:
    try:
        return pathlib.Path(file).read_bytes()
    except OSError as e:
        raise UserError(f"The text file {file} cannot be read ({e.strerror}).") from None


def _text(file: str) -> str:
    data = _read(file)
    try:
        return (lzma.decompress(data) if file.endswith(".xz") else data).decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"The text file {file} is not UTF-8.") from None
    except lzma.LZMAError as e:
        raise UserError(f"The text file {file} cannot be unpacked ({e}).") from None


@functools.lru_cache(maxsize=1)  # caching asks for one split after the other
def _tokens(files: tuple[str, ...], digest: str, vocabulary: Vocabulary) -> np.ndarray:
    """All tokens of the files, [N] int32."""
    del digest  # tells changed files apart
    parts = []
    for file in files:
        lines = _text(file).split("\n")
        parts += [vocabulary.encode_ragged(lines[at : at + _LINES])[0] for at in range(0, len(lines), _LINES)]
    return np.concatenate(parts)


def check(most: int | None, tested: int) -> None:
    """Raises UserError for numbers of chunks below 1."""
    for name, count in (("chunks", most), ("test_chunks", tested)):
        if count is not None and count < 1:
            every = ", or None for all" if name == "chunks" else ""
            raise UserError(f"Plain text: {name} is {count}; it must be at least 1{every}.")


def chunks(
    files: tuple[str, ...], digest: str, vocabulary: Vocabulary, L: int, split: str, most: int | None, tested: int
) -> tuple[np.ndarray, np.ndarray]:
    """The text as one long run of tokens, in chunks of L of which the last are the test split.

    Args:
      files, digest: from the functions of these names.
      vocabulary: makes the tokens.
      L: tokens of a chunk.
      split: `train` or `test`.
      most: training chunks at most, spread over the text; None is all.
      tested: chunks of the test split.

    Returns:
      (numbers [C] of the split's chunks, all tokens as chunks [·, L] int32).

    Raises:
      UserError: a file that cannot be read, or too little text.
    """
    tokens = _tokens(files, digest, vocabulary)
    have = len(tokens) // L - tested
    if have < 1:
        raise UserError(
            f"{', '.join(files)} have {len(tokens) // L:,} chunks of {L} tokens, too few for {tested:,} to test on and any "
            f"to train on."
        )
    numbers = np.arange(have, have + tested)
    if split == "train":
        count = have if most is None else min(have, most)
        numbers = np.arange(count) * have // count
    return numbers, tokens[: (have + tested) * L].reshape(-1, L)
