"""C4 through TensorFlow Datasets: T5's span corruption, and the prefix language modelling of T5's LM-adapted models.

The documents are divided among tasks, which are cached one by one, also by several processes or machines. They follow
each other with EOS between them, and that run of tokens is cut into chunks of one length. C4's own validation split is
tested on, by the first task. Preparing C4 takes a cluster and days, so it is never downloaded here: name where it is
prepared, or take local text with `span_corruption.register_text`.

Sources: Raffel et al. 2020 (arXiv 1910.10683), sections 2.2 and 3.1.4; Lester et al. 2021 (arXiv 2104.08691), section
3.1, for the LM-adapted models.
"""

import functools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from zeroprompt_jax.data import cards
from zeroprompt_jax.data.mixture import hash64, name_keys
from zeroprompt_jax.data.vocabulary import EOS_ID, Vocabulary, load_vocabulary
from zeroprompt_jax.errors import UserError, unknown
from zeroprompt_jax.tasks import span_corruption, tfds_source

ENGLISH = "c4/en:3.1.0"
OBJECTIVES = ("span_corruption", "prefix_lm")
_CUT = 1  # keeps the uses of one seed apart


def register(
    vocabulary: str,
    *,
    objective: str = "span_corruption",
    inputs: int = 512,
    documents: int = 1_000_000,
    per_task: int = 2_000,
    test_documents: int = 500,
    dataset: str = ENGLISH,
    data_dir: str | os.PathLike | None = None,
    name: str | None = None,
    seed: int = 0,
) -> None:
    """Registers C4 under an objective as the mixture `name`, of the tasks NAME/0, NAME/1, … Nothing is read before the
    examples are.

    Args:
      vocabulary: as `load_vocabulary` takes it, and the same as the experiment's.
      objective: span_corruption, or prefix_lm, which cuts each chunk at a random place: the input is what is before,
        the target what is behind.
      inputs: tokens of every input of span corruption, EOS included (`span_corruption.lengths` says how long targets
        are); of prefix_lm, tokens of a chunk, so that each side and its EOS fits as many.
      documents: how many of the training split.
      per_task: documents of a task.
      test_documents: how many of the validation split.
      dataset: its name in TensorFlow Datasets.
      data_dir: where it was prepared, such as 'gs://BUCKET/tensorflow_datasets'; None looks in the usual places.
      name: of the mixture; c4_OBJECTIVE by default.
      seed: of what is hidden, or of the cuts.

    Raises:
      UserError: an unknown objective, lengths that hold nothing, or no documents; when examples are read, also C4 that
        cannot be reached.
    """
    if objective not in OBJECTIVES:
        raise unknown("objective", objective, OBJECTIVES)
    if inputs < 2:
        raise UserError(f"C4: inputs of {inputs} tokens cannot be cut; give at least 2.")
    L = span_corruption.lengths(inputs)[0] if objective == "span_corruption" else inputs
    name, names = name or f"c4_{objective}", []
    for slices in divided(documents, per_task, test_documents):
        settings = (objective, dataset, None if data_dir is None else str(data_dir), slices, vocabulary, L, seed)
        card = cards.TaskCard(
            name=f"{name}/{len(names)}",
            type=objective,
            instructions=("",),
            domain="text",
            family="c4",
            metrics=("rougeL",),
        )
        source = cards.Source(
            functools.partial(_examples, *settings), fingerprint=f"c4 1 {settings!r}", splits=tuple(slices)
        )
        cards.register(card, source, replace=True)
        names.append(card.name)
    cards.register_mixture(name, names)


def divided(documents: int, per_task: int, test_documents: int) -> list[dict[str, str]]:
    """Of each task, the slices of C4's splits that are its `train`, and of the first also its `test`.

    Raises UserError for numbers below 1."""
    if min(documents, per_task, test_documents) < 1:
        raise UserError(
            f"C4: documents={documents}, per_task={per_task} and test_documents={test_documents} must be at least 1."
        )
    found = [{"train": f"train[{at}:{min(at + per_task, documents)}]"} for at in range(0, documents, per_task)]
    found[0]["test"] = f"validation[:{test_documents}]"
    return found


def chunks(dataset: str, part: str, data_dir: str | None, vocabulary: Vocabulary, L: int) -> np.ndarray:
    """The documents of a slice as one run of tokens with EOS behind each, in chunks [C, L] int32.

    Raises UserError where C4 cannot be reached."""
    instead = "take local text with span_corruption.register_text or text_cuts.register_text(path='books/*.txt', …)"
    texts = (row["text"] for row in tfds_source.load(dataset, part, data_dir, instead=instead, download=False))
    run = np.array([i for text in texts for i in (*vocabulary.encode(text), EOS_ID)], np.int32)
    return run[: len(run) // L * L].reshape(-1, L)


def _examples(
    objective: str, dataset: str, data_dir: str | None, slices: dict[str, str], spec: str, L: int, seed: int, split: str
) -> Iterator[dict[str, Any]]:
    vocabulary = load_vocabulary(spec)
    chunks_CL = chunks(dataset, slices[split], data_dir, vocabulary, L)
    # A number of its own for every chunk of the corpus, or all tasks would be hidden alike.
    numbers_C = hash64(seed, name_keys([slices[split]])[0], np.arange(len(chunks_CL)))
    if objective == "span_corruption":
        yield from span_corruption.examples(chunks_CL, numbers_C, vocabulary, seed)
        return
    cuts_C = 1 + (hash64(seed, _CUT, numbers_C) % np.uint64(L - 1)).astype(np.int64)
    for tokens_L, at in zip(chunks_CL, cuts_C):
        made = {}
        for side, ids in zip(("input", "target"), np.split(tokens_L, [at])):
            made |= {side: vocabulary.decode(ids), f"{side}_ids": ids}
        yield made
