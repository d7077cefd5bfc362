"""Answer options: token ids padded into a few fixed shapes, and the choice among their log-likelihoods. Plain numpy."""

from collections.abc import Sequence

import numpy as np

from zeroprompt_jax.errors import UserError


def bucket(n: int, least: int = 1, factor: int = 2) -> int:
    """The smallest of least, least * factor, least * factor², … that is at least n, so that few shapes compile."""
    size = least
    while size < n:
        size *= factor
    return size


def pack(
    options: Sequence[Sequence[Sequence[int]]], eos_id: int = 1, count: int | None = None, length: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pads a ragged set of tokenised options.

    Args:
      options: per row its options' token ids without EOS.
      eos_id: ends every option, so that "no" does not win by being the beginning of "not sure".
      count, length: O and S of the result; by default powers of two that hold the longest.

    Returns:
      (tokens [E, O, S] int32 with 0 as padding, mask [E, O] bool).

    Raises:
      UserError: a row without options.
    """
    if empty := [i for i, row in enumerate(options) if not len(row)]:
        raise UserError(f"The option list of example {empty[0]} is empty; ranking needs at least one answer option.")
    count = count or bucket(max(map(len, options), default=1))
    length = length or bucket(max((len(ids) + 1 for row in options for ids in row), default=1), least=4)
    tokens = np.zeros((len(options), count, length), np.int32)
    mask = np.zeros((len(options), count), bool)
    for i, row in enumerate(options):
        mask[i, : len(row)] = True
        for j, ids in enumerate(row):
            tokens[i, j, : len(ids) + 1] = [*ids, eos_id]
    return tokens, mask


def choose(sum_EO: np.ndarray, length_EO: np.ndarray | None = None, length_normalised: bool = False) -> np.ndarray:
    """The number of each row's most likely option, [E] int.

    Args:
      sum_EO: log-likelihoods, -inf for absent options.
      length_EO: their numbers of tokens; needed with `length_normalised`.
      length_normalised: compare the mean per token (Brown et al. 2020) and not the sum.

    Of equally likely options the first listed is chosen, so the result never depends on chance or on padding.

    Raises:
      UserError: a row without options.
      ValueError: a log-likelihood that is not a number.
    """
    scores_EO = np.asarray(sum_EO, np.float64)
    if np.isnan(scores_EO).any():
        raise ValueError(
            f"The log-likelihood of an option of example {int(np.argmax(np.isnan(scores_EO).any(-1)))} is NaN."
        )
    present_EO = scores_EO > -np.inf
    if length_EO is not None:
        # An impossible option (-inf by the model itself) is still an option.
        present_EO |= np.asarray(length_EO) > 0
    if not present_EO.any(-1).all():
        row = int(np.argmin(present_EO.any(-1)))
        raise UserError(f"The option list of example {row} is empty; ranking needs at least one answer option.")
    if length_normalised:
        if length_EO is None:
            raise ValueError("length_normalised needs length_EO.")
        scores_EO = scores_EO / np.maximum(length_EO, 1)
    # Present options come before absent ones at equal score, and np.argmax takes the first of equals.
    scores_EO = np.where(present_EO & np.isneginf(scores_EO), np.finfo(np.float64).min, scores_EO)
    return np.argmax(scores_EO, axis=-1)
