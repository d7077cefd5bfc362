"""Attention as one TPU kernel, in which scores never leave the chip's vector memory.

A program of it computes all scores of a tile of queries of one row, for the heads that fill a register, and in the backward
pass computes them again (Dao et al. 2022, "FlashAttention", with whole columns of keys in place of blocks: T5's lengths
allow that). Scores lie with keys along sublanes and queries along lanes, [S, T], so that no array of their size is ever
turned round and what is kept of a query, its highest score and the inverse of its sum, are rows. Unlike the kernels that
JAX brings along it knows T5's learned bias, which all rows share, and sums its gradient over them as it goes.
"""

import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

Array = jax.Array
MASKED = -1e10  # as T5X; finite, so that a row without any visible key stays finite
_LANES = 128
_FAST = ("default", "fastest", "bfloat16")  # values of jax_default_matmul_precision
# Of vector memory, less what the compiler itself needs: v4 has 16 MiB, later chips at least 64. Of those before, 0: their
# units take no products of bfloat16 as they are written here.
_VMEM_BYTES = {"TPU v2": 0, "TPU v3": 0, "TPU v4": 15 * 2**20}
_LATER_VMEM_BYTES = 48 * 2**20


class Sizes(NamedTuple):
    """Of what one device computes. groups: of keys; row b reads group b // (rows / groups). tile: queries of a program.
    heads: of a program, as many as fill the lanes of a register or, where that cannot be, all."""

    rows: int
    groups: int
    num_heads: int
    head_dim: int
    queries: int
    keys: int
    tile: int
    heads: int
    vmem_bytes: int

    @property
    def tiles(self) -> int:
        return pl.cdiv(self.queries, self.tile)


def plan(
    rows: int, groups: int, queries: int, keys: int, num_heads: int, head_dim: int, vmem_bytes: int = _LATER_VMEM_BYTES
) -> Sizes | None:
    """The Sizes of one device's attention: tiles that need the fewest queries as padding, and the largest of those. None
    where no tile fits."""
    heads = _LANES // head_dim if head_dim < _LANES and _LANES % head_dim == 0 else 1
    whole = num_heads % heads or heads * head_dim % _LANES
    heads = num_heads if whole else heads
    width = pl.cdiv(heads * head_dim, _LANES) * _LANES

    def fits(tile: int) -> bool:
        # Bias and its gradient, each twice so that one is moved while the other is used; scores and weights; the rest in
        # float32, twice.
        return keys * tile * (16 * heads + 12) + 32 * width * (keys + tile) <= vmem_bytes

    tiles = [tile for tile in (queries, *range(_LANES, queries, _LANES)) if fits(tile)]
    if not tiles:
        return None
    tile = min(tiles, key=lambda tile: (pl.cdiv(queries, tile) * tile, -tile))
    return Sizes(rows, groups, num_heads, head_dim, queries, keys, tile, heads, vmem_bytes)


def planned(rows: int, groups: int, queries: int, keys: int, num_heads: int, head_dim: int) -> Sizes | None:
    """`plan` for a device of the current mesh, which divides rows and heads and, made finer if need be, groups. None where
    the kernel is not for it: there is no mesh, or not of TPUs since v4, it does not divide them, or there are too few
    queries to fill the lanes of a register, as in decoding."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    if device is None or device.platform != "tpu" or queries < _LANES:
        return None
    ways = [math.prod(mesh.shape[axis] for axis in axes) for axes in _axes()]
    if rows % ways[0] or num_heads % ways[1]:
        return None
    vmem_bytes = _VMEM_BYTES.get(device.device_kind, _LATER_VMEM_BYTES)
    groups = math.lcm(groups, ways[0]) // ways[0]
    return plan(rows // ways[0], groups, queries, keys, num_heads // ways[1], head_dim, vmem_bytes)


def _axes() -> list[tuple[str, ...]]:
    """Mesh axes of rows and of heads, by the rules that are current."""
    found = nn.logical_to_mesh_axes(("batch", "heads")) or (None, None)
    return [(axes,) if isinstance(axes, str) else axes or () for axes in found]


def divided(
    sizes: Sizes, query_BTHK: Array, key_BSHK: Array, value_BSHK: Array, bias_HTS: Array | None, mask_BTS: Array | None
) -> Array:
    """`attend` of whole arrays, by every device of the current mesh for its own rows and heads."""
    rows, heads = _axes()
    of_rows, of_heads = PartitionSpec(rows, None, heads), PartitionSpec(heads)
    mapped = jax.shard_map(
        functools.partial(attend, sizes),
        in_specs=(of_rows, of_rows, of_rows, of_heads, PartitionSpec(rows)),
        out_specs=of_rows,
        check_vma=False,
    )
    return mapped(query_BTHK, key_BSHK, value_BSHK, bias_HTS, mask_BTS)


def attend(
    sizes: Sizes,
    query_BTHK: Array,
    key_BSHK: Array,
    value_BSHK: Array,
    bias_HTS: Array | None = None,
    mask_BTS: Array | None = None,
    interpret: bool = False,
) -> Array:
    """Values weighed by the softmax of the scores, in the queries' dtype, on one device: [B, T, H, K]. Keys and values are
    those of groups of rows, [G, S, H, K].

    bias_HTS: added to scores. mask_BTS: bool, [B, 1 or T, S], of the keys that are seen. interpret: runs where there is no
    TPU, slowly. Gradients have no gradients.
    """
    T = sizes.queries
    flat = lambda x: x.reshape(*x.shape[:2], -1)
    over = [(0, 0), (0, sizes.tiles * sizes.tile - T)]
    query = jnp.pad(flat(query_BTHK), [*over, (0, 0)])
    bias = None if bias_HTS is None else jnp.pad(jnp.moveaxis(bias_HTS.astype(jnp.float32), 1, 2), [(0, 0), *over])
    mask = mask_BTS
    if mask is not None:
        mask = mask.astype(jnp.int8)
        mask = mask if mask.shape[1] == 1 else jnp.pad(jnp.moveaxis(mask, 1, 2), [(0, 0), *over])
    out = _attend(sizes, interpret, query, flat(key_BSHK), flat(value_BSHK), bias, mask)
    return out[:, :T].reshape(query_BTHK.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(sizes, interpret, query, key, value, bias, mask):
    """query: [B, T, H * K]. key, value: [G, S, H * K]. bias: [H, S, T]. mask: int8, [B, 1, S] or [B, S, T]."""
    return _forward(sizes, interpret, query, key, value, bias, mask)[0]


def _forward(sizes: Sizes, interpret, query, key, value, bias, mask):
    blocks = _Blocks(sizes, bias, mask)
    return pl.pallas_call(
        functools.partial(_forward_program, sizes, bias is not None, mask is not None),
        grid=blocks.grid,
        in_specs=[blocks.query, blocks.keys, blocks.keys, *blocks.shared],
        out_specs=[blocks.query, blocks.row],
        out_shape=[
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct((sizes.rows, sizes.num_heads, 2, query.shape[1]), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel"), vmem_limit_bytes=sizes.vmem_bytes + 2**20
        ),
        cost_estimate=blocks.cost(2, 1, [query, key, value, query, bias, mask]),
        interpret=interpret,
        name="attend",
    )(query, key, value, *(x for x in (bias, mask) if x is not None))


def _forward_vjp(sizes, interpret, query, key, value, bias, mask):
    wanted = bias is not None and bias.perturbed  # which the residuals tell by being there or not
    query, key, value, bias, mask = (None if x is None else x.value for x in (query, key, value, bias, mask))
    out, kept = _forward(sizes, interpret, query, key, value, bias, mask)
    return out, (query, key, value, bias, mask, out, kept, jnp.zeros(()) if wanted else None)


def _backward_vjp(sizes: Sizes, interpret, saved, grad):
    query, key, value, bias, mask, out, kept, wanted = saved
    grad = jnp.zeros(grad.shape, grad.dtype) if isinstance(grad, SymbolicZero) else grad
    blocks, summed = _Blocks(sizes, bias, mask), wanted is not None
    # Each tile of each row of a group gives a part of the gradients of its keys.
    part = pl.BlockSpec((1, *blocks.keys.block_shape), lambda h, t, b: (t, b, 0, h))
    whole = sizes.tiles == 1 and sizes.rows == sizes.groups
    part_shape = jax.ShapeDtypeStruct((sizes.tiles, sizes.rows, *key.shape[1:]), key.dtype if whole else jnp.float32)
    outs = [(blocks.query, jax.ShapeDtypeStruct(query.shape, query.dtype)), (part, part_shape), (part, part_shape)]
    if summed:
        outs.append((blocks.shared[0], jax.ShapeDtypeStruct(bias.shape, bias.dtype)))
    made = pl.pallas_call(
        functools.partial(_backward_program, sizes, bias is not None, mask is not None, summed),
        grid=blocks.grid,
        in_specs=[blocks.query, blocks.keys, blocks.keys, blocks.query, blocks.row, blocks.query, *blocks.shared],
        out_specs=[spec for spec, _ in outs],
        out_shape=[shape for _, shape in outs],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=sizes.vmem_bytes + 2**20
        ),
        cost_estimate=blocks.cost(5, 2, [query, key, value, query, query, query, key, value, bias, mask]),
        interpret=interpret,
        name="attend_backward",
    )(query, key, value, out, kept, grad, *(x for x in (bias, mask) if x is not None))
    of_groups = lambda x: x.reshape(sizes.tiles, sizes.groups, -1, *key.shape[1:]).sum(axis=(0, 2)).astype(key.dtype)
    return made[0], of_groups(made[1]), of_groups(made[2]), made[3] if summed else None, None


_attend.defvjp(_forward_vjp, _backward_vjp, symbolic_zeros=True)


class _Blocks:
    """What a program (heads, tile of queries, row) is given of each array; rows are innermost, so that what they share
    stays where it is."""

    def __init__(self, sizes: Sizes, bias: Array | None, mask: Array | None):
        self.sizes = sizes
        T, S, heads, width = sizes.tile, sizes.keys, sizes.heads, sizes.heads * sizes.head_dim
        self.grid = (sizes.num_heads // heads, sizes.tiles, sizes.rows)
        self.query = pl.BlockSpec((1, T, width), lambda h, t, b: (b, t, h))
        each = sizes.rows // sizes.groups
        self.keys = pl.BlockSpec((1, S, width), lambda h, t, b: (b // each, 0, h))
        self.row = pl.BlockSpec((1, heads, 2, T), lambda h, t, b: (b, h, 0, t))
        self.shared = []
        if bias is not None:
            self.shared.append(pl.BlockSpec((heads, S, T), lambda h, t, b: (h, 0, t)))
        if mask is not None and mask.shape[1:] == (1, S):
            self.shared.append(pl.BlockSpec((1, 1, S), lambda h, t, b: (b, 0, 0)))
        elif mask is not None:
            self.shared.append(pl.BlockSpec((1, S, T), lambda h, t, b: (b, 0, t)))

    def cost(self, products: int, exponentials: int, moved: list[Array | None]) -> pl.CostEstimate:
        """Of so many products of a head's scores, and so many exponentials a score or as much other work of vectors."""
        s = self.sizes
        scores = s.rows * s.num_heads * s.tiles * s.tile * s.keys
        nbytes = sum(x.size * x.dtype.itemsize for x in moved if x is not None)
        return pl.CostEstimate(
            flops=2 * products * scores * s.head_dim, transcendentals=exponentials * scores, bytes_accessed=nbytes
        )


# Programs. References are to blocks of one row: [1, T or S, heads * K]; of the bias [heads, S, T], of a mask [1, 1, S] or
# [1, S, T], of what is kept [1, heads, 2, T].


def _forward_program(sizes: Sizes, has_bias: bool, has_mask: bool, query_ref, key_ref, value_ref, *refs):
    bias_ref, mask, (out_ref, kept_ref) = _shared(sizes, has_bias, has_mask, refs)
    for i, at in _heads(sizes):
        query, key, value = (ref[0, :, at] for ref in (query_ref, key_ref, value_ref))
        scores_ST = _scores(query, key, bias_ref, mask, i)
        top = scores_ST.max(axis=0, keepdims=True)
        powers = jnp.exp(scores_ST - top)
        total = powers.sum(axis=0, keepdims=True)
        out_KT = _product(value.T, powers.astype(value.dtype), 1, 0) / total
        out_ref[0, :, at] = out_KT.T.astype(out_ref.dtype)
        kept_ref[0, i] = jnp.concatenate([top, 1 / total], axis=0)


def _backward_program(
    sizes: Sizes, has_bias, has_mask, summed, query_ref, key_ref, value_ref, out_ref, kept_ref, grad_ref, *refs
):
    bias_ref, mask, (dq_ref, dk_ref, dv_ref, *to_bias) = _shared(sizes, has_bias, has_mask, refs)
    if summed:
        (dbias_ref,) = to_bias

        @pl.when(pl.program_id(2) == 0)
        def _():
            dbias_ref[...] = jnp.zeros_like(dbias_ref)

    for i, at in _heads(sizes):
        query, key, value, out, grad = (ref[0, :, at] for ref in (query_ref, key_ref, value_ref, out_ref, grad_ref))
        top, inverse = kept_ref[0, i, :1], kept_ref[0, i, 1:]
        weights_ST = jnp.exp(_scores(query, key, bias_ref, mask, i) - top) * inverse
        dv_ref[0, 0, :, at] = _product(weights_ST.astype(grad.dtype), grad, 1, 0).astype(dv_ref.dtype)
        dweights_ST = _product(value, grad, 1, 1)
        if query.dtype == jnp.float32:  # as `attention.weigh`, which says why
            shift_T = (weights_ST * dweights_ST).sum(axis=0, keepdims=True)
        else:
            shift_T = (grad.astype(jnp.float32) * out.astype(jnp.float32)).T.sum(axis=0, keepdims=True)
        dscores_ST = weights_ST * (dweights_ST - shift_T)
        # A query that sees nothing has weights all the same.
        dscores_ST = dscores_ST if mask is None else jnp.where(mask, dscores_ST, 0.0)
        if summed:
            dbias_ref[i] += dscores_ST
        dscores_ST = dscores_ST.astype(query.dtype)
        dk_ref[0, 0, :, at] = _product(dscores_ST, query, 1, 0).astype(dk_ref.dtype)
        dq_ref[0, :, at] = _product(key.T, dscores_ST, 1, 0).T.astype(dq_ref.dtype)


def _shared(sizes: Sizes, has_bias: bool, has_mask: bool, refs):
    """(bias, mask [S, T], the other references)."""
    refs = list(refs)
    bias_ref = refs.pop(0) if has_bias else None
    if not has_mask:
        return bias_ref, None, refs
    mask = refs.pop(0)[0].astype(jnp.float32)
    if mask.shape == (1, sizes.keys):
        mask = jnp.broadcast_to(mask, (8, sizes.keys)).T[:, :1]  # a column; eight rows are a register's sublanes
    return bias_ref, jnp.broadcast_to(mask > 0, (sizes.keys, sizes.tile)), refs


def _heads(sizes: Sizes):
    return [(i, slice(i * sizes.head_dim, (i + 1) * sizes.head_dim)) for i in range(sizes.heads)]


def _scores(query_TK, key_SK, bias_ref, mask_ST, head: int):
    scores = _product(key_SK, query_TK, 1, 1)
    scores = scores if bias_ref is None else scores + bias_ref[head]
    return scores if mask_ST is None else jnp.where(mask_ST, scores, MASKED)


def _product(x: Array, y: Array, contracted_x: int, contracted_y: int) -> Array:
    axes = (((contracted_x,), (contracted_y,)), ((), ()))
    # Of what users may ask of products of float32, kernels know the two ends.
    exact = x.dtype == jnp.float32 and jax.config.jax_default_matmul_precision not in (None, *_FAST)
    precision = jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(x, y, axes, precision=precision, preferred_element_type=jnp.float32)
