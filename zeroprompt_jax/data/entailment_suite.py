"""What a study of entailment is given: tasks and how they are put, pairs of inference and plain text to train on before."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zeroprompt_jax.data.encoder_vocabulary import EncoderVocabulary
from zeroprompt_jax.data.reformulation import Reformulation


@dataclasses.dataclass(frozen=True)
class Suite:
    """Attributes:
    vocabulary: of the encoder.
    tasks: names of registered tasks with fixed options, and how each is put.
    length: T, tokens of a row.
    inference: pairs with `premise`, `hypothesis` and `label`.
    text: [C, L] int32, chunks of plain text; None without.
    """

    vocabulary: EncoderVocabulary
    tasks: Mapping[str, Reformulation]
    length: int
    inference: Sequence[Mapping[str, Any]] = ()
    text: np.ndarray | None = None
