"""Attention of rows over several sources of keys at once: one softmax, in float32, and what it keeps for the way back."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zeroprompt_jax.models import attention_kernel
from zeroprompt_jax.models.attention_kernel import MASKED
from zeroprompt_jax.models.conditioning import split_rows

Array = jax.Array


class Keys(NamedTuple):
    """What an attention may look at: key, value [G, T, H, K], mask (bool) and bias, both broadcastable to [B, H, Tq, T].
    G divides the number of query rows: a prefix, an encoder's output, a fused instruction serve groups of rows uncopied."""

    key: Array
    value: Array
    mask: Array | None = None
    bias: Array | None = None


def attend(query_BTHK: Array, keys: list[Keys], dropout: Callable[[Array], Array] = lambda x: x) -> Array:
    """One softmax, in float32, over all the keys together, of scores as they are: what scales is in the query.
    -> [B, T, H, K]. On a mesh of TPUs by a kernel, where that divides the arrays and suits their sizes; it rounds
    otherwise."""
    B, T, H, K = query_BTHK.shape
    dtype = query_BTHK.dtype
    lengths = [source.key.shape[1] for source in keys]
    ones = jnp.ones((B, H, 1, sum(lengths)), dtype)
    kept = dropout(ones)  # one mask of keys for all queries of a head
    sizes = None
    alike = (x is None or x.shape[axis] == 1 for s in keys for x, axis in ((s.bias, 0), (s.mask, 1)))
    if all(alike):
        groups = math.lcm(*(len(source.key) for source in keys)) if kept is ones else B
        sizes = attention_kernel.planned(B, groups, T, sum(lengths), H, K)
    if sizes is not None:
        key, value, bias, mask = _joined(keys, B, sizes.groups * B // sizes.rows, T, H)
        # Weights dropped for all queries alike are values dropped.
        value = value.astype(dtype) if kept is ones else value.astype(dtype) * jnp.moveaxis(kept, 3, 1)
        return attention_kernel.divided(sizes, query_BTHK, key.astype(dtype), value, bias, mask)
    scores = []
    for source in keys:
        s = _by_group("grqhk,gphk->grhqp", query_BTHK, source.key.astype(dtype), len(source.key), jnp.float32)
        s = s if source.bias is None else s + source.bias
        scores.append(s if source.mask is None else jnp.where(source.mask, s, MASKED))
    values = tuple(source.value.astype(dtype) for source in keys)
    kept = tuple(jnp.split(kept, np.cumsum(lengths)[:-1], axis=-1))
    return weigh(tuple(scores), values, kept)


def _joined(keys: list[Keys], B: int, G: int, T: int, H: int) -> tuple[Array, Array, Array | None, Array | None]:
    """All sources as one: key and value [G, P, H, K], bias [H, T, P], mask [B, 1 or T, P]. What larger groups share is
    repeated for G of them; prefixes are little beside the scores that are not written."""
    grouped = lambda x: jnp.repeat(x, G // len(x), axis=0)
    bias = mask = None
    if any(source.bias is not None for source in keys):
        parts = (jnp.zeros(()) if source.bias is None else source.bias[0] for source in keys)
        bias = jnp.concatenate([jnp.broadcast_to(x, (H, T, s.key.shape[1])) for x, s in zip(parts, keys)], axis=-1)
    masks = [None if source.mask is None else source.mask[:, 0] for source in keys]
    if any(x is not None for x in masks):
        asking = max(x.shape[1] for x in masks if x is not None)
        parts = (jnp.ones((1, 1, 1), bool) if x is None else x for x in masks)
        mask = jnp.concatenate([jnp.broadcast_to(x, (B, asking, s.key.shape[1])) for x, s in zip(parts, keys)], axis=-1)
    key, value = (jnp.concatenate([grouped(x) for x in xs], axis=1) for xs in zip(*((s.key, s.value) for s in keys)))
    return key, value, bias, mask


@jax.custom_vjp
def weigh(scores: tuple[Array, ...], values: tuple[Array, ...], kept: tuple[Array, ...]) -> Array:
    """The values' mean by the softmax of all scores together, in the values' dtype.

    scores: [B, H, T, P] float32 of each source; values: [G, P, H, K]; kept: [B, H, 1, P], what weights are multiplied by
    once they are normalised, and without a gradient. -> [B, T, H, K].

    The softmax is divided by its sum behind the product with the values, which are fewer numbers than weights, and in
    bfloat16 its backward pass subtracts the product of the output and its gradient in place of a sum over keys (as Dao et
    al. 2022, "FlashAttention", section 3.1 and appendix B). So all that is kept of a score is one number in the values'
    dtype.
    """
    return _weigh(scores, values, kept)[0]


def _weigh(scores, values, kept):
    top = functools.reduce(jnp.maximum, [s.max(axis=-1, keepdims=True, initial=-jnp.inf) for s in scores])
    powers = tuple(jnp.exp(s - top).astype(v.dtype) for s, v in zip(scores, values))
    inverse_BHT = 1 / sum(e.astype(jnp.float32).sum(axis=-1) for e in powers)
    parts = (_by_group("grhqp,gphk->grqhk", e * mask, v, len(v), jnp.float32) for e, v, mask in zip(powers, values, kept))
    out = sum(parts) * _by_query(inverse_BHT)
    return out.astype(values[0].dtype), (powers, inverse_BHT, values, kept, out)


def _weigh_backward(saved, grad_BTHK):
    powers, inverse_BHT, values, kept, out = saved
    dtype = values[0].dtype
    scaled_f32 = grad_BTHK.astype(jnp.float32) * _by_query(inverse_BHT)
    scaled = scaled_f32.astype(dtype)
    to_weights = [
        _by_group("grqhk,gphk->grhqp", scaled, v, len(v), jnp.float32) * mask for v, mask in zip(values, kept)
    ]
    if dtype == jnp.float32:
        # Summed from the very numbers that it is subtracted from, it leaves nothing where a query looks at one key alone.
        shift = inverse_BHT * sum((e * d).sum(axis=-1) for e, d in zip(powers, to_weights))
    else:
        shift = jnp.moveaxis((scaled_f32 * out).sum(axis=-1), 1, 2)
    to_scores = ((e * (d - shift[..., None])).astype(dtype).astype(jnp.float32) for e, d in zip(powers, to_weights))
    to_values = (_by_group("grhqp,grqhk->gphk", e * mask, scaled, len(v), dtype) for e, v, mask in zip(powers, values, kept))
    return tuple(to_scores), tuple(to_values), tuple(jnp.zeros_like(mask) for mask in kept)


weigh.defvjp(_weigh, _weigh_backward)


def _by_group(spec: str, x: Array, y: Array, groups: int, dtype: jnp.dtype) -> Array:
    """The product that `spec` names, of rows `gr` in groups `g`; rows go in and come out as [B, ...].

    Where each row is a group of its own the axis `r` is left out: with it, TPUs lay out scores so that attention takes
    twice as long."""
    if groups == len(x):
        return jnp.einsum(spec.replace("r", ""), x, y, preferred_element_type=dtype)
    rows = len(x)
    left, right, out = spec.replace("->", ",").split(",")
    x, y = (split_rows(z, groups) if axes.startswith("gr") else z for z, axes in ((x, left), (y, right)))
    z = jnp.einsum(spec, x, y, preferred_element_type=dtype)
    return z.reshape(rows, *z.shape[2:]) if out.startswith("gr") else z


def _by_query(x_BHT: Array) -> Array:
    """[B, H, T] -> [B, T, H, 1]."""
    return jnp.moveaxis(x_BHT, 1, 2)[..., None]
