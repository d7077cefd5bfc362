"""What a study of entailment is given: tasks and how they are put, pairs of inference and plain text to train on before."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zeroprompt_jax.data import cards
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

    def facts(self) -> dict[str, Any]:
        """What tells it from other suites: digests of what it trains on, fingerprints of vocabulary and tasks."""
        digest = lambda told: hashlib.blake2b(told, digest_size=8).hexdigest()
        return {
            "vocabulary": self.vocabulary.fingerprint,
            "length": self.length,
            "inference": digest(json.dumps(self.inference, sort_keys=True, default=str).encode()),
            "text": None if self.text is None else digest(repr(self.text.shape).encode() + self.text.tobytes()),
            "tasks": {name: [put, cards.source(name).fingerprint] for name, put in self.tasks.items()},
        }
