"""Who sees whom, and at which distance: positions and masks of both stacks, in this one place.

A stack's sequence is its prompt followed by its tokens. Teacher forcing, incremental decoding and scoring all build
their masks here, so that what trains, what scores and what generates agree.
"""

import jax
import jax.numpy as jnp
from flax import struct

from zeroprompt_jax.models.conditioning import Stack, to_rows

Array = jax.Array


@struct.dataclass
class Sequence:
    """A stack's whole sequence of N = P + T positions. valid: [B, N] bool. positions: [1 or B, N] int32, counting valid
    prompt positions only, so that a masked prompt position changes nothing. segments: [B, N] or None."""

    valid: Array
    positions: Array
    segments: Array | None


def sequence(stack: Stack, token_valid_BT: Array, segments_BT: Array | None = None) -> Sequence:
    """Extends the tokens' mask, positions and segments by the stack's prompt."""
    rows, T = token_valid_BT.shape
    P = stack.prompt_length
    positions = jnp.arange(P + T, dtype=jnp.int32)[None]
    prompt_valid = jnp.ones((rows, P), bool)
    if stack.prompt_mask is not None:
        mask = to_rows(stack.prompt_mask.astype(bool), rows)
        counted = jnp.cumsum(mask, axis=1, dtype=jnp.int32)
        after = mask.sum(axis=1, keepdims=True, dtype=jnp.int32) + jnp.arange(T, dtype=jnp.int32)
        # One row while the mask is shared: the position bias, [rows, H, N, N], is then shared too.
        positions = jnp.concatenate([jnp.maximum(counted - 1, 0), after], axis=1)
        prompt_valid = jnp.broadcast_to(mask, (rows, P))
    # Packing admits no prompt (conditioning.check), so segments need no extension.
    return Sequence(jnp.concatenate([prompt_valid, token_valid_BT], axis=1), positions, segments_BT)


def chunk(x: Array, start: Array | int, length: int) -> Array:
    """The `length` positions of [B, N] from `start`, which may be traced."""
    return jax.lax.dynamic_slice_in_dim(x, start, length, axis=1)


def attention_mask(keys: Sequence, queries: Sequence | None = None) -> Array:
    """[B, 1, 1 or Tq, Tk] bool: a query sees valid keys, of its own segment where rows are packed."""
    mask = keys.valid[:, None, None]
    if keys.segments is not None:
        asking = keys.segments if queries is None else queries.segments
        mask = mask & (asking[:, None, :, None] == keys.segments[:, None, None, :])
    return mask


def causal_mask(keys: Sequence, start: Array | int = 0, length: int | None = None) -> Array:
    """[B, 1, Tq, Tk] bool for the queries at `start` … `start + length`: order in the sequence, not position, decides."""
    N = keys.valid.shape[1]
    length = N if length is None else length
    order = jnp.arange(N) <= (start + jnp.arange(length))[:, None]
    mask = keys.valid[:, None, None] & order[None, None]
    if keys.segments is not None:
        mask = mask & (chunk(keys.segments, start, length)[:, None, :, None] == keys.segments[:, None, None, :])
    return mask


def relative_buckets(distance: Array, bidirectional: bool, num_buckets: int, max_distance: int) -> Array:
    """T5's buckets of key position - query position (Raffel et al. 2020, as in T5X's relative position bias)."""
    buckets = jnp.zeros_like(distance)
    n = -distance
    if bidirectional:
        num_buckets //= 2
        buckets = buckets + (n < 0) * num_buckets
        n = jnp.abs(n)
    else:
        n = jnp.maximum(n, 0)
    exact = num_buckets // 2
    log_ratio = jnp.log(n.astype(jnp.float32) / exact + jnp.finfo(jnp.float32).eps) / jnp.log(max_distance / exact)
    far = jnp.minimum(exact + (log_ratio * (num_buckets - exact)).astype(jnp.int32), num_buckets - 1)
    return buckets + jnp.where(n < exact, n, far)
