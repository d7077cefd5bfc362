"""Conditioning: everything a task may add to a backbone, as one pytree of arrays.

Methods make it, backbones insert it. Every field is optional; `Conditioning()` is the plain model. Leaves that belong to
the layers of a stack carry a leading axis L. The row axis G divides the number of rows B and row b reads group
b // (B / G): G = 1 is shared by all rows, G = B is a row's own, anything between serves contiguous groups of rows, and
beams or answer options of one input need neither tiling nor reordering.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from zeroprompt_jax.errors import UserError

Array = jax.Array


@struct.dataclass
class Prefix:
    """Keys and values before an attention's own, with no position bias (Li & Liang 2021).

    key, value: [L, G, P, H, K]. mask: [L, G, P], true where the prefix exists; shorter prefixes are masked, not zeroed.
    """

    key: Array
    value: Array
    mask: Array | None = None


@struct.dataclass
class Adapter:
    """A bottleneck `act(x down + down_bias) up + up_bias`, added to a sublayer's output before the residual.

    down: [L, G, D, R], up: [L, G, R, D], biases [L, G, R] and [L, G, D]. `parallel` reads the sublayer's normalised
    input (He et al. 2022), `series` its output (Houlsby et al. 2019).
    """

    down: Array
    up: Array
    down_bias: Array | None = None
    up_bias: Array | None = None
    placement: str = struct.field(pytree_node=False, default="parallel")
    activation: str = struct.field(pytree_node=False, default="gelu")


@struct.dataclass
class LowRank:
    """LoRA: adds (x a) b to a projection's output, as two thin products. a: [L, G, I, R], b: [L, G, R, O]. Any scaling
    is the method's, folded into b."""

    a: Array
    b: Array


@struct.dataclass
class Sublayer:
    """What one attention or MLP receives. `lora`, `bias` and `scale` map projection names (query, key, value, out; wi or
    wi_0, wi_1, wo) to arrays over the projection's flat output, [L, G, O]; `scale['hidden']` multiplies the MLP's hidden
    activations (IA3). A projection computes (x W + lora) * scale + bias, the backbone's own bias being part of x W."""

    prefix: Prefix | None = None
    adapter: Adapter | None = None
    lora: Mapping[str, LowRank] | None = None
    scale: Mapping[str, Array] | None = None
    bias: Mapping[str, Array] | None = None


@struct.dataclass
class Layers:
    """The per-layer half of a stack's conditioning; every leaf has the leading axis L."""

    layer_prompt: Array | None = None
    self_attention: Sublayer = Sublayer()
    cross_attention: Sublayer = Sublayer()
    mlp: Sublayer = Sublayer()


@struct.dataclass
class Stack:
    """What one stack (encoder or decoder) receives.

    prompt: [G, P, D] before the stack's input embeddings; prompt_mask [G, P] leaves positions out, of the attention and
      of the counting of positions. slots: [G, S, D] replace the embeddings at slot_positions [G', S] (token positions,
      before any prompt; -1 is unused; the token there must not be padding). layer_prompt: [L, G, P, D] replaces, or is
      added to, the first P hidden states before every layer; without `prompt` it brings its own P positions.
    """

    prompt: Array | None = None
    prompt_mask: Array | None = None
    slots: Array | None = None
    slot_positions: Array | None = None
    layer_prompt: Array | None = None
    self_attention: Sublayer = Sublayer()
    cross_attention: Sublayer = Sublayer()
    mlp: Sublayer = Sublayer()
    layer_prompt_mode: str = struct.field(pytree_node=False, default="replace")

    @property
    def prompt_length(self) -> int:
        """Positions that this conditioning puts before the tokens."""
        if self.prompt is not None:
            return self.prompt.shape[-2]
        return 0 if self.layer_prompt is None else self.layer_prompt.shape[-2]

    @property
    def layers(self) -> Layers:
        return Layers(self.layer_prompt, self.self_attention, self.cross_attention, self.mlp)


@struct.dataclass
class Conditioning:
    """All that a task adds. memory: [G, M, D] joins the encoder's output in cross-attention, memory_mask [G, M]."""

    encoder: Stack = Stack()
    decoder: Stack = Stack()
    memory: Array | None = None
    memory_mask: Array | None = None


_PER_LAYER = ("layer_prompt", "self_attention", "cross_attention", "mlp")


def map_groups(function: Callable[..., Any], conditioning: Conditioning, *others: Conditioning) -> Conditioning:
    """Applies function(axis, leaf, …) to every leaf; axis is the leaf's G: 0, or 1 behind the layers."""

    def apply(path, *leaves):
        return function(int(any(getattr(key, "name", None) in _PER_LAYER for key in path)), *leaves)

    return jax.tree_util.tree_map_with_path(apply, conditioning, *others)


# Logical axes behind G, of the parts that devices can divide: each has its own heads or hidden units.
_DIVIDED = {
    "key": ("prompt", "heads", "kv"),
    "value": ("prompt", "heads", "kv"),
    "down": (None, "bottleneck"),
    "down_bias": ("bottleneck",),
    "up": ("bottleneck", None),
    "a": (None, "bottleneck"),
    "b": ("bottleneck", None),
}


def map_axes(function: Callable[..., Any], conditioning: Conditioning, group: str = "batch") -> Conditioning:
    """Applies function(leaf, axes) to every leaf; axes are its logical axes, that of G being `group`."""

    def apply(path, leaf):
        names = [getattr(key, "name", None) for key in path]  # None is a key of a mapping, such as a projection's name
        leading = ("layers", group) if any(name in _PER_LAYER for name in names) else (group,)
        return function(leaf, (*leading, *_DIVIDED.get(names[-1], (None,) * (leaf.ndim - len(leading)))))

    return jax.tree_util.tree_map_with_path(apply, conditioning)


def constrain(conditioning: Conditioning) -> Conditioning:
    """The same, told to lie over the devices of the current mesh: groups with the rows, heads and ranks with the model."""
    return map_axes(nn.with_logical_constraint, conditioning)


def finest(conditioning: Conditioning) -> int:
    """The fewest rows that every leaf's G divides."""
    sizes: list[int] = []
    map_groups(lambda axis, leaf: sizes.append(leaf.shape[axis]), conditioning)
    return math.lcm(*sizes)


def split_rows(x: Array, groups: int) -> Array:
    """[B, ...] -> [G, B / G, ...]."""
    return x.reshape(groups, x.shape[0] // groups, *x.shape[1:])


def to_rows(x: Array, rows: int) -> Array:
    """[G, ...] -> [B, ...] (or [1, ...] left as it is, to broadcast). Only for small leaves: vectors and masks."""
    return x if x.shape[0] in (1, rows) else jnp.repeat(x, rows // x.shape[0], axis=0)


def matmul(x_BTI: Array, w_GIO: Array) -> Array:
    """x W with a matrix per group of rows, without copying a matrix per row."""
    w_GIO = w_GIO.astype(x_BTI.dtype)
    if w_GIO.shape[0] == 1:
        return x_BTI @ w_GIO[0]
    y = jnp.einsum("grti,gio->grto", split_rows(x_BTI, w_GIO.shape[0]), w_GIO)
    return y.reshape(*x_BTI.shape[:-1], w_GIO.shape[-1])


def _per_row(v_GO: Array, x_BTO: Array) -> Array:
    return to_rows(v_GO, x_BTO.shape[0])[:, None].astype(x_BTO.dtype)


def project(y_BTO: Array, x_BTI: Array, name: str, conditioning: Sublayer) -> Array:
    """Conditions the output y = x W of the projection `name`."""
    if conditioning.lora and name in conditioning.lora:
        lora = conditioning.lora[name]
        y_BTO = y_BTO + matmul(matmul(x_BTI, lora.a), lora.b)
    y_BTO = rescale(y_BTO, name, conditioning)
    if conditioning.bias and name in conditioning.bias:
        y_BTO = y_BTO + _per_row(conditioning.bias[name], y_BTO)
    return y_BTO


def rescale(x_BTO: Array, name: str, conditioning: Sublayer) -> Array:
    """Multiplies activations by the group's vector `name`, if there is one."""
    if conditioning.scale and name in conditioning.scale:
        return x_BTO * _per_row(conditioning.scale[name], x_BTO)
    return x_BTO


def adapt(output_BTD: Array, input_BTD: Array, conditioning: Sublayer) -> Array:
    """Adds the adapter to a sublayer's output."""
    adapter = conditioning.adapter
    if adapter is None:
        return output_BTD
    x = input_BTD if adapter.placement == "parallel" else output_BTD
    hidden = matmul(x, adapter.down)
    if adapter.down_bias is not None:
        hidden = hidden + _per_row(adapter.down_bias, hidden)
    y = matmul(ACTIVATIONS[adapter.activation](hidden), adapter.up)
    if adapter.up_bias is not None:
        y = y + _per_row(adapter.up_bias, y)
    return output_BTD + y


# 'gelu' is the tanh approximation, as in T5 1.1; BERT's is the exact one.
ACTIVATIONS = {
    "gelu": jax.nn.gelu,
    "relu": jax.nn.relu,
    "swish": jax.nn.swish,
    "tanh": jnp.tanh,
    "linear": lambda x: x,
    "gelu_exact": functools.partial(jax.nn.gelu, approximate=False),
}


def projections(config: Any, side: str) -> dict[str, dict[str, tuple[int, int]]]:
    """The projections that can be conditioned in a stack (encoder, decoder), by sublayer and name, with the widths of
    their input and output: {'self_attention': {'query': (D, H * K), …}, …, 'mlp': {'wi': (D, F), 'wo': (F, D)}}."""
    D, F, HK = config.emb_dim, config.mlp_dim, config.num_heads * config.head_dim
    gates = len(config.mlp_activations)
    attention = {"query": (D, HK), "key": (D, HK), "value": (D, HK), "out": (HK, D)}
    mlp = {**{f"wi_{i}" if gates > 1 else "wi": (D, F) for i in range(gates)}, "wo": (F, D)}
    cross = {"cross_attention": attention} if side == "decoder" else {}
    return {"self_attention": attention, **cross, "mlp": mlp}


def check(conditioning: Conditioning, config: Any, side: str, rows: int, packed: bool = False) -> None:
    """Raises UserError when what conditions one side (encoder, decoder) does not fit a backbone of this config and rows.

    Works on shapes alone, so it costs nothing under jit. With packed rows only what is shared (G = 1) and adds no
    position is allowed: a packed row holds several tasks' examples.
    """
    H, K, D, F = config.num_heads, config.head_dim, config.emb_dim, config.mlp_dim
    sublayers = projections(config, side)

    def leaf(path: str, x, want: tuple):
        if x is None:
            return
        if x.ndim != len(want) or any(isinstance(w, int) and w != s for w, s in zip(want, x.shape)):
            shown = ", ".join(str(w) for w in want)
            raise UserError(f"Conditioning {path} has shape {tuple(x.shape)}; this backbone needs [{shown}].")
        groups = x.shape[want.index("G")]
        if not groups or rows % groups:
            raise UserError(f"Conditioning {path} has {groups} groups, which do not divide {rows} rows.")
        if packed and groups != 1:
            raise UserError(f"Packed batches cannot take conditioning of their own: {path} has {groups} groups, not 1.")

    L = getattr(config, f"num_{side}_layers")
    stack: Stack = getattr(conditioning, side)
    for name in ("prompt", "slots", "layer_prompt"):
        if packed and getattr(stack, name) is not None:
            raise UserError(f"Packed batches cannot take {side}.{name}: it would move the positions of every segment.")
    leaf(f"{side}.prompt", stack.prompt, ("G", "P", D))
    leaf(f"{side}.prompt_mask", stack.prompt_mask, ("G", stack.prompt_length))
    leaf(f"{side}.slots", stack.slots, ("G", "S", D))
    if (stack.slots is None) != (stack.slot_positions is None):
        raise UserError(f"Conditioning {side}.slots and {side}.slot_positions must be given together.")
    if stack.slots is not None:
        leaf(f"{side}.slot_positions", stack.slot_positions, ("G", stack.slots.shape[1]))
    leaf(f"{side}.layer_prompt", stack.layer_prompt, (L, "G", stack.prompt_length, D))
    if stack.layer_prompt_mode not in ("replace", "add"):
        raise UserError(f"Conditioning {side}.layer_prompt_mode is '{stack.layer_prompt_mode}'; use replace or add.")
    for kind in ("self_attention", "cross_attention", "mlp"):
        sub: Sublayer = getattr(stack, kind)
        path = f"{side}.{kind}"
        if kind not in sublayers:
            if jax.tree.leaves(sub):
                raise UserError("Conditioning encoder.cross_attention is set, but an encoder has no cross-attention.")
            continue
        names = sublayers[kind]
        if sub.prefix is not None:
            if kind == "mlp":
                raise UserError(f"Conditioning {path}.prefix is set, but an MLP attends to nothing.")
            P = sub.prefix.key.shape[2] if sub.prefix.key.ndim > 2 else "P"
            leaf(f"{path}.prefix.key", sub.prefix.key, (L, "G", P, H, K))
            leaf(f"{path}.prefix.value", sub.prefix.value, (L, "G", P, H, K))
            leaf(f"{path}.prefix.mask", sub.prefix.mask, (L, "G", P))
        if sub.adapter is not None:
            R = sub.adapter.down.shape[-1]
            leaf(f"{path}.adapter.down", sub.adapter.down, (L, "G", D, R))
            leaf(f"{path}.adapter.up", sub.adapter.up, (L, "G", R, D))
            leaf(f"{path}.adapter.down_bias", sub.adapter.down_bias, (L, "G", R))
            leaf(f"{path}.adapter.up_bias", sub.adapter.up_bias, (L, "G", D))
            if sub.adapter.activation not in ACTIVATIONS or sub.adapter.placement not in ("parallel", "series"):
                raise UserError(
                    f"Conditioning {path}.adapter is {sub.adapter.placement} with {sub.adapter.activation}; use "
                    f"parallel or series with one of {', '.join(ACTIVATIONS)}."
                )
        for field in ("lora", "scale", "bias"):
            for name, value in (getattr(sub, field) or {}).items():
                sizes = {**names, "hidden": (F, F)} if field == "scale" and kind == "mlp" else names
                if name not in sizes:
                    raise UserError(f"Conditioning {path}.{field} names '{name}'; there is {', '.join(sizes)}.")
                wide, out = sizes[name]
                if field == "lora":
                    leaf(f"{path}.lora.{name}.a", value.a, (L, "G", wide, "R"))
                    leaf(f"{path}.lora.{name}.b", value.b, (L, "G", value.a.shape[-1], out))
                else:
                    leaf(f"{path}.{field}.{name}", value, (L, "G", out))
    if side == "encoder":
        beside = [path for path, _ in describe(conditioning) if not path.startswith("encoder.")]
        if beside and not config.num_decoder_layers:
            raise UserError(f"Conditioning {beside[0]} is set, but this backbone is an encoder without a decoder.")
        return
    if packed and conditioning.memory is not None:
        raise UserError("Packed batches cannot take memory: it would be read by every segment of a row.")
    leaf("memory", conditioning.memory, ("G", "M", D))
    leaf("memory_mask", conditioning.memory_mask, ("G", 0 if conditioning.memory is None else conditioning.memory.shape[1]))


def describe(conditioning: Conditioning) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the path and shape of every leaf that is set."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(conditioning):
        yield jax.tree_util.keystr(path, simple=True, separator="."), tuple(leaf.shape)
