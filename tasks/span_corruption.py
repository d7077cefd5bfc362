"""Span corruption of any text: the model is given a text with holes and writes what was in them.

T5's objective: about 15% of a chunk's tokens are hidden in spans of 3 on average; a sentinel stands for each span in the
input, and the target lists the spans, each after its sentinel. Sentinels are the vocabulary's extra ids, from the last
one down.

Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer"
(arXiv 1910.10683), section 3.1.4; `random_spans_noise_mask` of github.com/google-research/text-to-text-transfer-transformer.
"""

import functools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from zeroprompt_jax.data import cards
from zeroprompt_jax.data.mixture import hash64
from zeroprompt_jax.data.vocabulary import Vocabulary, load_vocabulary
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.tasks import plain_text

NAME = "span_corruption"
DENSITY = 0.15
MEAN_SPAN = 3.0
_HIDDEN, _SHOWN = range(2)  # keep the uses of one seed apart
_AT_ONCE = 4096


def register_text(
    path: str | os.PathLike,
    vocabulary: str,
    *,
    inputs: int = 48,
    chunks: int | None = None,
    test_chunks: int = 500,
    name: str = NAME,
    seed: int = 0,
) -> None:
    """Registers span corruption of plain text files as a task without an instruction.

    The text is read as one long run of tokens and cut into chunks of one length. The last chunks are the test split, so
    that they come from the end of the last file.

    Args:
      path: a UTF-8 file, which may be packed as .xz, or a pattern such as 'books/*.txt'.
      vocabulary: as `load_vocabulary` takes it, and the same as the experiment's; it needs extra ids.
      inputs: tokens of every input, EOS included; `lengths` says how long targets are.
      chunks: most training chunks, spread over the text; None is all.
      test_chunks: chunks of the test split.
      name: of the task.
      seed: of what is hidden.

    Raises:
      UserError: no such file, or lengths that hold no span; when examples are read, also a text too short or a vocabulary
        without enough extra ids.
    """
    lengths(inputs)
    plain_text.check(chunks, test_chunks)
    files = plain_text.find(path)
    digest = plain_text.digest(files)
    settings = (vocabulary, inputs, chunks, test_chunks, seed)
    source = cards.Source(
        functools.partial(_examples, files, digest, *settings),
        fingerprint=f"span corruption 1 {digest} {settings!r}",
    )
    cards.register(cards.TaskCard(name=name, type=NAME, instructions=("",), domain="text"), source, replace=True)


def lengths(inputs: int) -> tuple[int, int]:
    """Most tokens of a chunk whose input fits `inputs` tokens with EOS, and the tokens of its target with EOS.

    Raises UserError where so few tokens hold no span."""
    def used(tokens):
        hidden, spans = _noise(tokens)
        return tokens - hidden + spans + 1

    if inputs < 4:
        raise UserError(f"Span corruption: inputs of {inputs} tokens are too short to hide anything in; give at least 4.")
    tokens = 2
    while used(tokens + 1) <= inputs:
        tokens += 1
    return tokens, sum(_noise(tokens)) + 1


def _noise(tokens: int) -> tuple[int, int]:
    """How many of so many tokens are hidden, and in how many spans."""
    hidden = min(max(round(tokens * DENSITY), 1), tokens - 1)
    return hidden, max(round(hidden / MEAN_SPAN), 1)


def corrupt(tokens_CL: np.ndarray, numbers_C: np.ndarray, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of chunks, without EOS: [C, ·] int32 each.

    Args:
      tokens_CL: the chunks.
      numbers_C: each chunk's number, which with the seed decides what of it is hidden.
      size: of the vocabulary; the first sentinel is its last id.
    """
    C, L = tokens_CL.shape
    hidden_CL = noise_mask(numbers_C, L, seed)
    before_CL = np.pad(hidden_CL[:, :-1], ((0, 0), (1, 0)), constant_values=True)  # a chunk begins with a shown span

    def without(replaced_CL, first_CL):
        """The chunks with a sentinel for each run of replaced tokens."""
        sentinels_CL = size - np.cumsum(first_CL, axis=1)
        kept = ~replaced_CL | first_CL
        return np.where(first_CL, sentinels_CL, tokens_CL)[kept].reshape(C, -1).astype(np.int32)

    return without(hidden_CL, hidden_CL & ~before_CL), without(~hidden_CL, ~hidden_CL & before_CL)


def noise_mask(numbers_C: np.ndarray, L: int, seed: int = 0) -> np.ndarray:
    """Which tokens are hidden, [C, L] bool. Shown and hidden spans alternate, a shown one first; each division of the
    tokens into spans is as likely as any other."""
    hidden, spans = _noise(L)
    shown_CK = _divided(L - hidden, spans, hash64(seed, _SHOWN, numbers_C[:, None], np.arange(L - hidden - 1)))
    hidden_CK = _divided(hidden, spans, hash64(seed, _HIDDEN, numbers_C[:, None], np.arange(hidden - 1)))
    turns = np.stack([shown_CK, hidden_CK], axis=-1)
    return np.repeat(np.tile([False, True], turns.size // 2), turns.reshape(-1)).reshape(-1, L)


def _divided(items: int, parts: int, random_CI: np.ndarray) -> np.ndarray:
    """Sizes [C, parts] of random parts of `items` things; random_CI: a number for each gap between two of them."""
    C = len(random_CI)
    cuts = np.sort(np.argsort(random_CI, axis=1, kind="stable")[:, : parts - 1], axis=1) + 1
    edges = np.concatenate([np.zeros((C, 1), int), cuts, np.full((C, 1), items)], axis=1)
    return np.diff(edges, axis=1)


def _examples(
    files: tuple[str, ...],
    digest: str,
    spec: str,
    inputs: int,
    chunks: int | None,
    test_chunks: int,
    seed: int,
    split: str,
) -> Iterator[dict[str, Any]]:
    vocabulary = load_vocabulary(spec)
    L, _ = lengths(inputs)
    numbers, chunks_CL = plain_text.chunks(files, digest, vocabulary, L, split, chunks, test_chunks)
    yield from examples(chunks_CL[numbers], numbers, vocabulary, seed)


def examples(
    chunks_CL: np.ndarray, numbers_C: np.ndarray, vocabulary: Vocabulary, seed: int
) -> Iterator[dict[str, Any]]:
    """Examples of chunks, each corrupted by its number. UserError where the vocabulary has too few extra ids."""
    spans = _noise(chunks_CL.shape[1])[1]
    if vocabulary.extra_ids < spans:
        raise UserError(
            f"Span corruption needs {spans} extra ids, but the vocabulary '{vocabulary.spec}' has {vocabulary.extra_ids}; "
            f"write '{vocabulary.spec}:100' for T5's hundred."
        )
    for at in range(0, len(numbers_C), _AT_ONCE):
        part = slice(at, at + _AT_ONCE)
        for given, wanted in zip(*corrupt(chunks_CL[part], numbers_C[part], vocabulary.size, seed)):
            # The text leaves the sentinels out, as `decode` does with an answer.
            texts = {"input": vocabulary.decode(given), "target": vocabulary.decode(wanted)}
            yield {**texts, "input_ids": given, "target_ids": wanted}
