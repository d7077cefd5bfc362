"""Masked language modelling: which tokens of a batch are hidden, and by what. Plain numpy.

Source: Devlin et al. 2019 (arXiv 1810.04805), section 3.1; drawn anew for every batch, as Liu et al. 2019 (arXiv
1907.11692), section 4.1.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from zeroprompt_jax.data.encoder_vocabulary import EncoderVocabulary
from zeroprompt_jax.data.mixture import hash64, in_epochs
from zeroprompt_jax.errors import UserError

_MASKED, _KEPT = 0.8, 0.1  # of the chosen tokens: hidden by the mask, left as they are; the rest become another token


def masked(
    batch: Mapping[str, np.ndarray], vocabulary: EncoderVocabulary, seed: int, number: int, rate: float = 0.15
) -> dict[str, np.ndarray]:
    """The batch with tokens hidden, and `mlm_targets` [B, T] int32 (the tokens as they were) and `mlm_weights` [B, T]
    float32 (1 where one is to be told, in rows of weight above 0).

    Marks, padding and slots are never chosen. seed, number: of the draw, which for a task's rows is the same beside
    others' as alone: of a row it knows which of its task's it is.

    Raises:
      UserError: a rate that is not between 0 and 1.
    """
    if not 0 < rate < 1:
        raise UserError(f"Masking: the rate {rate:g} must be between 0 and 1.")
    tokens_BT = batch["encoder_input_tokens"]
    B, T = tokens_BT.shape
    place_BT = _within(batch["task_ids"])[:, None] * T + np.arange(T)
    free_BT = ~np.isin(tokens_BT, list(vocabulary.marks))
    rows_BS = np.broadcast_to(np.arange(B)[:, None], batch["slot_positions"].shape)
    here_BS = batch["slot_positions"] >= 0
    free_BT[rows_BS[here_BS], batch["slot_positions"][here_BS]] = False
    chance = [hash64(seed, number, use, place_BT).astype(np.float64) / 2.0**64 for use in range(2)]
    chosen_BT = free_BT & (chance[0] < rate) & (batch["row_weights"][:, None] > 0)
    words = np.setdiff1d(np.arange(vocabulary.size), list(vocabulary.marks)).astype(np.int32)
    other_BT = words[hash64(seed, number, 2, place_BT) % np.uint64(len(words))]
    hidden_BT = np.where(chance[1] < _MASKED, vocabulary.mask_id, np.where(chance[1] < 1 - _KEPT, other_BT, tokens_BT))
    return {
        **batch,
        "encoder_input_tokens": np.where(chosen_BT, hidden_BT, tokens_BT).astype(np.int32),
        "mlm_targets": tokens_BT,
        "mlm_weights": chosen_BT.astype(np.float32),
    }


def _within(ids_B: np.ndarray) -> np.ndarray:
    """How many rows of its task precede each row, [B]."""
    order = np.argsort(ids_B, kind="stable")
    within_B = np.empty(len(ids_B), int)
    within_B[order] = np.arange(len(ids_B)) - np.searchsorted(ids_B[order], ids_B[order])
    return within_B


@dataclasses.dataclass(frozen=True)
class MaskedStream:
    """Training batches of masked text, a function of (seed, number).

    chunks: [C, L] int32, tokens of plain text; a row is a chunk between the first mark and a separator, T = L + 2.
    """

    chunks: np.ndarray
    vocabulary: EncoderVocabulary
    batch_size: int
    seed: int = 0
    rate: float = 0.15

    def batch(self, number: int) -> dict[str, np.ndarray]:
        """`encoder_input_tokens`, `mlm_targets`, `mlm_weights`, and what an encoder's batch has besides."""
        at_B = number * self.batch_size + np.arange(self.batch_size)
        chosen_B = in_epochs(at_B, len(self.chunks), self.seed)
        v, zeros_B = self.vocabulary, np.zeros(self.batch_size, np.int32)
        tokens = np.pad(self.chunks[chosen_B], ((0, 0), (1, 0)), constant_values=v.first_id)
        tokens = np.pad(tokens, ((0, 0), (0, 1)), constant_values=v.separator_id).astype(np.int32)
        batch = {
            "encoder_input_tokens": tokens,
            "slot_positions": np.zeros((self.batch_size, 0), np.int32),
            "task_ids": zeros_B,
            "labels": zeros_B,
            "row_weights": np.ones(self.batch_size, np.float32),
        }
        batch |= {"token_types": np.zeros_like(tokens)} if v.token_types > 1 else {}
        return masked(batch, v, self.seed, number, self.rate)
