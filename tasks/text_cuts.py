"""Cut text, to pretrain hypernetworks on: part of a chunk is the instruction, part the input, part the answer.

A chunk of tokens is cut into three parts. The hypernetwork is given the first, the encoder the second, and the decoder
writes the third. The first cut is uniform, the second uniform over what the first left, each from a seed of its own, so
that on average a half of the chunk is instruction, a quarter input and a quarter answer. Two more layouts:

- 4 parts: a fourth, cut from the third by another uniform cut, is the instruction's second part (the layout of
  HyperTuning's context-augmented language modelling);
- 6 parts: each half of the chunk is cut into three, and what is given, read and written is that of both halves in turn.

The parts of one role follow each other without a mark.

Sources: Ivison et al. 2023, "HINT: Hypernetwork Instruction Tuning for Efficient Zero- and Few-Shot Generalisation" (arXiv
2212.10315); Phang et al. 2022, "HyperTuning" (arXiv 2211.12485).
"""

import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from zeroprompt_jax.data import cards
from zeroprompt_jax.data.mixture import hash64, name_keys
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.tasks import c4, plain_text

NAME = "text_cuts"
INSTRUCTION, INPUT, TARGET = range(3)
# Role of each part, by number of parts.
LAYOUTS = {
    3: (INSTRUCTION, INPUT, TARGET),
    4: (INSTRUCTION, INPUT, TARGET, INSTRUCTION),
    6: (INSTRUCTION, INPUT, TARGET, INSTRUCTION, INPUT, TARGET),
}
_AT_ONCE = 4096


def register_text(
    path: str | os.PathLike,
    vocabulary: str,
    *,
    tokens: int = 96,
    parts: int = 3,
    least: int = 1,
    chunks: int | None = None,
    test_chunks: int = 200,
    name: str = NAME,
    seed: int = 0,
) -> None:
    """Registers the cuts of plain text files as a task whose every example brings its own instruction.

    The text is read as one long run of tokens and cut into chunks of one length. The last chunks are the test split.

    Args:
      path: a UTF-8 file, which may be packed as .xz, or a pattern such as 'books/*.txt'.
      vocabulary: as `load_vocabulary` takes it, and the same as the experiment's.
      tokens: of a chunk; feature lengths of `tokens` hold every part with its EOS.
      parts: 3, 4 or 6.
      least: fewest tokens of every part.
      chunks: most training chunks, spread over the text; None is all.
      test_chunks: chunks of the test split.
      name: of the task.
      seed: of the cuts.

    Raises:
      UserError: no such file, or chunks too short for the parts; when examples are read, also a text too short.
    """
    _check(tokens, parts, least)
    plain_text.check(chunks, test_chunks)
    files = plain_text.find(path)
    digest = plain_text.digest(files)
    settings = (vocabulary, tokens, parts, least, chunks, test_chunks, seed)
    source = cards.Source(
        functools.partial(_text_examples, files, digest, *settings), fingerprint=f"text cuts 1 {digest} {settings!r}"
    )
    _register(name, source)


def register_c4(
    vocabulary: str,
    *,
    documents: int = 1_000_000,
    per_task: int = 2_000,
    test_documents: int = 500,
    tokens: int = 512,
    parts: int = 3,
    least: int = 1,
    dataset: str = c4.ENGLISH,
    data_dir: str | None = None,
    name: str = "c4_cuts",
    seed: int = 0,
) -> None:
    """Registers the cuts of C4, read through TensorFlow Datasets, as the mixture `name`.

    Its documents are divided among tasks, which are cached one by one, also by several processes or machines; documents
    follow each other with EOS between them. Nothing is read before the examples are.

    Args:
      vocabulary: as in `register_text`.
      documents: how many of the training split.
      per_task: documents of a task.
      test_documents: how many of the validation split form the `test` split of the first task.
      tokens, parts, least, seed: as in `register_text`.
      dataset: its name in TensorFlow Datasets.
      data_dir: where it was prepared, such as 'gs://BUCKET/tensorflow_datasets'; None looks in the usual places.
      name: of the mixture; tasks are NAME/0, NAME/1, …

    Raises:
      UserError: chunks too short for the parts, or no documents; when examples are read, also C4 that cannot be reached.
    """
    _check(tokens, parts, least)
    names = []
    for slices in c4.divided(documents, per_task, test_documents):
        settings = (dataset, data_dir, slices, vocabulary, tokens, parts, least, seed)
        source = cards.Source(
            functools.partial(_c4_examples, *settings), fingerprint=f"text cuts 1 {settings!r}", splits=tuple(slices)
        )
        names.append(_register(f"{name}/{len(names)}", source))
    cards.register_mixture(name, names)


def _register(name: str, source: cards.Source) -> str:
    card = cards.TaskCard(name=name, type=NAME, instructions=("",), domain="text", metrics=("rougeL",))
    cards.register(card, source, replace=True)
    return name


def _check(tokens: int, parts: int, least: int) -> None:
    if parts not in LAYOUTS:
        raise UserError(f"Text cuts: {parts} parts are not one of {', '.join(map(str, LAYOUTS))}.")
    if least < 1:
        raise UserError(f"Text cuts: least={least} must be at least 1, as an answer needs a token.")
    if tokens < (shortest := parts * least):
        raise UserError(
            f"Text cuts: chunks of {tokens} tokens are too short for {parts} parts of at least {least}; give at least "
            f"{shortest}."
        )


def cut(L: int, numbers_C: np.ndarray, parts: int = 3, least: int = 1, seed: int = 0) -> np.ndarray:
    """Where the parts of chunks of L tokens begin and end, [C, parts + 1] int64, from 0 to L.

    Args:
      L: tokens of a chunk.
      numbers_C: each chunk's number, which with the seed decides its cuts.
      parts: 3, 4 or 6.
      least: fewest tokens of every part.
      seed: of the cuts; each of them has a seed of its own.
    """
    if parts == 6:
        halves = [_cuts(size, numbers_C, 3, least, seed, 3 * i) for i, size in enumerate((L - L // 2, L // 2))]
        return np.concatenate([halves[0], L - L // 2 + halves[1][:, 1:]], axis=1)
    return _cuts(L, numbers_C, parts, least, seed, 0)


def _cuts(L: int, numbers_C: np.ndarray, parts: int, least: int, seed: int, use: int) -> np.ndarray:
    """One cut after the other, each uniform over what the cuts before it left. use: keeps the uses of one seed apart."""
    edges = [np.zeros(len(numbers_C), np.int64)]
    for i in range(1, parts):
        uniform_C = (hash64(seed, use + i, numbers_C) >> np.uint64(11)) * 2.0**-53
        first_C, last = edges[-1] + least, L - (parts - i) * least
        edges.append(first_C + (uniform_C * (last - first_C + 1)).astype(np.int64))
    return np.stack([*edges, np.full_like(edges[0], L)], axis=1)


def divide(tokens_L: np.ndarray, edges: Sequence[int]) -> list[np.ndarray]:
    """What of a chunk that is cut there is instruction, input and target, without EOS."""
    pieces = np.split(tokens_L, edges[1:-1])
    roles = LAYOUTS[len(pieces)]
    return [np.concatenate([piece for piece, r in zip(pieces, roles) if r == role]) for role in range(3)]


def _examples(chunks_CL: np.ndarray, numbers_C: np.ndarray, vocabulary, parts: int, least: int, seed: int):
    for tokens_L, edges in zip(chunks_CL, cut(chunks_CL.shape[1], numbers_C, parts, least, seed)):
        made = {}
        for role, ids in zip(("instruction", "input", "target"), divide(tokens_L, edges)):
            made |= {role: vocabulary.decode(ids), f"{role}_ids": ids}
        yield made


def _text_examples(
    files: tuple[str, ...],
    digest: str,
    spec: str,
    tokens: int,
    parts: int,
    least: int,
    chunks: int | None,
    test_chunks: int,
    seed: int,
    split: str,
) -> Iterator[dict[str, Any]]:
    vocabulary = load_vocabulary(spec)
    numbers, chunks_CL = plain_text.chunks(files, digest, vocabulary, tokens, split, chunks, test_chunks)
    for at in range(0, len(numbers), _AT_ONCE):
        numbers_C = numbers[at : at + _AT_ONCE]
        yield from _examples(chunks_CL[numbers_C], numbers_C, vocabulary, parts, least, seed)


def _c4_examples(
    dataset: str,
    data_dir: str | None,
    slices: dict[str, str],
    spec: str,
    tokens: int,
    parts: int,
    least: int,
    seed: int,
    split: str,
) -> Iterator[dict[str, Any]]:
    vocabulary = load_vocabulary(spec)
    chunks_CL = c4.chunks(dataset, slices[split], data_dir, vocabulary, tokens)
    # A number of its own for every chunk of the corpus, or all tasks would be cut alike.
    numbers_C = hash64(seed, name_keys([slices[split]])[0], np.arange(len(chunks_CL)))
    yield from _examples(chunks_CL, numbers_C, vocabulary, parts, least, seed)
