"""What every backbone is made of: how prompts and slots enter, how layers run, which axes parameters have.

A backbone is a Flax module of its own (`t5`, `roberta`) that knows nothing of tasks; `Bound` is how methods see it.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from zeroprompt_jax.errors import check_range, unknown
from zeroprompt_jax.models.conditioning import ACTIVATIONS, Layers, Stack, to_rows

Array = jax.Array
Params = Mapping[str, Any]

REMAT_POLICIES = {
    "none": None,
    "minimal": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def check_numerics(config: Any) -> None:
    """Raises UserError for a remat policy, dtype or activation of a backbone's config that there is not, and for a dropout
    rate that cannot be."""
    if config.remat_policy not in REMAT_POLICIES:
        raise unknown("remat_policy", config.remat_policy, REMAT_POLICIES)
    if config.dtype not in ("float32", "bfloat16"):
        raise unknown("dtype", config.dtype, ("float32", "bfloat16"))
    for name in config.mlp_activations:
        if name not in ACTIVATIONS:
            raise unknown("activation", name, ACTIVATIONS)
    check_range(config, "dropout_rate", 0, below=1)


@struct.dataclass
class Encoded:
    """The encoder's output. hidden: [E, N, D] over prompt and tokens; mask: [E, N] bool; segments: [E, N] or None."""

    hidden: Array
    mask: Array
    segments: Array | None = None


@struct.dataclass
class Context:
    """What all layers of a stack share: masks, bias, what cross-attention reads, and where a cached chunk starts."""

    self_mask: Array
    self_bias: Array | None = None
    cross_inputs: tuple[Array, ...] = ()
    cross_masks: tuple[Array | None, ...] = ()
    index: Array | None = None
    layer_prompt_mode: str = struct.field(pytree_node=False, default="replace")
    layer_prompt_applies: bool = struct.field(pytree_node=False, default=True)
    keep_hidden: bool = struct.field(pytree_node=False, default=False)


def put_slots(x_BTD: Array, stack: Stack, start: Array | int = 0) -> Array:
    """Token embeddings with the slots put in their places. `start` is the first token's index."""
    if stack.slots is None:
        return x_BTD
    rows = x_BTD.shape[0]
    index = start + jnp.arange(x_BTD.shape[1])
    here = to_rows(stack.slot_positions, rows)[:, None, :] == index[None, :, None]
    slots = jnp.broadcast_to(to_rows(stack.slots, rows), (rows, *stack.slots.shape[1:])).astype(x_BTD.dtype)
    chosen = jnp.broadcast_to(here, (rows, *here.shape[1:])).astype(x_BTD.dtype)
    # A product with one-hot rows is a copy only at full precision, which accelerators do not use unasked.
    put = jnp.einsum("bts,bsd->btd", chosen, slots, precision="highest")
    return jnp.where(here.any(-1, keepdims=True), put, x_BTD)


def put_prompt(x_BTD: Array, stack: Stack) -> Array:
    """Token embeddings with the prompt before them: [B, P + T, D]. A layer prompt alone brings zeros."""
    P = stack.prompt_length
    if not P:
        return x_BTD
    rows = x_BTD.shape[0]
    first = jnp.zeros((1, P, x_BTD.shape[-1])) if stack.prompt is None else stack.prompt
    first = jnp.broadcast_to(to_rows(first, rows), (rows, *first.shape[1:])).astype(x_BTD.dtype)
    return jnp.concatenate([first, x_BTD], axis=1)


def put_layer_prompt(x: Array, prompt: Array | None, context: Context) -> Array:
    """A layer's input with the layer's prompt in, or on, its first positions."""
    if prompt is None or not context.layer_prompt_applies:
        return x
    P = prompt.shape[1]
    rows = jnp.broadcast_to(to_rows(prompt, x.shape[0]), (x.shape[0], *prompt.shape[1:])).astype(x.dtype)
    first = rows if context.layer_prompt_mode == "replace" else x[:, :P] + rows
    return jnp.concatenate([first, x[:, P:]], axis=1)


def run_layers(
    layer: type[nn.Module], config: Any, length: int, x: Array, conditioning: Layers, cache, context: Context
):
    """Runs a stack's layers, scanned or not, over the leading axis of conditioning and cache.

    layer: makes a module of `config` that maps (x, conditioning, cache, context) to (x, (kept, cache)). Returns x and, of
    all layers stacked, (hidden, cache): hidden is every layer's input and the last one's output, where layers keep them.
    """
    if config.remat_policy != "none":
        policy = REMAT_POLICIES[config.remat_policy]
        layer = nn.remat(layer, policy=policy, prevent_cse=not config.scan_layers)
    if config.scan_layers:
        scanned = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, 0, nn.broadcast),
            length=length,
        )
        x, (kept, cache) = scanned(config, name="layers")(x, conditioning, cache, context)
    else:
        outs = []
        for i in range(length):
            take = functools.partial(jax.tree.map, lambda leaf: leaf[i])
            x, out = layer(config, name=f"layers_{i}")(x, take(conditioning), take(cache), context)
            outs.append(out)
        kept, cache = jax.tree.map(lambda *leaves: jnp.stack(leaves), *outs)
    return x, (None if kept is None else jnp.concatenate([kept, x[None]]), cache)


@dataclasses.dataclass(frozen=True)
class Bound:
    """A backbone with its parameters bound, as methods see it. `rngs` (for example {'dropout': key}) switches dropout on."""

    module: ClassVar[type[nn.Module]]
    config: Any
    params: Params
    rngs: Mapping[str, Array] | None = None

    def _apply(self, method, *args, **kwargs):
        module = self.module(self.config, parent=None)  # of its own, also where another module's method calls this
        return module.apply({"params": self.params}, *args, method=method, rngs=self.rngs, **kwargs)

    def __call__(self, *args, **kwargs):
        return self._apply("__call__", *args, **kwargs)

    def embed(self, *args, **kwargs) -> Array:
        return self._apply("embed", *args, **kwargs)

    def encode(self, *args, **kwargs):
        return self._apply("encode", *args, **kwargs)


# Logical axes of every parameter by name (T5X's, where it has one), the layer axis aside. The first match wins.
LOGICAL_AXES = (
    (r"token_embedder/embedding", ("vocab", "embed")),
    (r"position_embedder/embedding", ("abspos_buckets", "embed")),
    (r"token_type_embedder/embedding", (None, "embed")),
    (r"relpos_bias/rel_embedding", ("heads", "relpos_buckets")),
    (r"(query|key|value)/kernel", ("embed", "joined_kv")),
    (r"(query|key|value)/bias", ("joined_kv",)),
    (r"out/kernel", ("joined_kv", "embed")),
    (r"mlp/wi(_\d+)?/kernel", ("embed", "mlp")),
    (r"mlp/wi(_\d+)?/bias", ("mlp",)),
    (r"mlp/wo/kernel", ("mlp", "embed")),
    (r"(out|mlp/wo)/bias", ("embed",)),
    (r"logits_dense/kernel", ("embed", "vocab")),
    (r"mlm_head/bias", ("vocab",)),
    (r"(mlm_head|pooled_head)/dense/kernel", ("embed", None)),
    (r"(mlm_head|pooled_head)/dense/bias", (None,)),
    (r"pooled_head/classifier/kernel", ("embed", None)),
    (r"pooled_head/classifier/bias", (None,)),
    (r"(layer_norm|embeddings_norm|encoder_norm|decoder_norm)/(scale|bias)", ("embed",)),
)


def logical_axes(path: str) -> tuple[str | None, ...]:
    """Logical axis names of a backbone's parameter at `path`, for example 'encoder/layers/mlp/wo/kernel'."""
    for pattern, axes in LOGICAL_AXES:
        if re.search(pattern + "$", path):
            return ("layers", *axes) if "/layers/" in path else axes
    raise KeyError(f"No logical axes for the parameter {path}: add it to LOGICAL_AXES.")


def stack_layers(params: Params) -> dict:
    """Unscanned `layers_0`, `layers_1`, … -> scanned `layers` with a leading axis, in every stack."""
    out = dict(params)
    for side in _stacks(params):
        stack = dict(params[side])
        names = sorted((k for k in stack if re.fullmatch(r"layers_\d+", k)), key=lambda k: int(k.split("_")[1]))
        if names:
            stack["layers"] = jax.tree.map(lambda *leaves: np.stack(leaves), *(stack.pop(k) for k in names))
        out[side] = stack
    return out


def unstack_layers(params: Params) -> dict:
    """Scanned `layers` -> unscanned `layers_0`, `layers_1`, …, in every stack."""
    out = dict(params)
    for side in _stacks(params):
        stack = dict(params[side])
        if "layers" in stack:
            layers = stack.pop("layers")
            for i in range(jax.tree.leaves(layers)[0].shape[0]):
                stack[f"layers_{i}"] = jax.tree.map(lambda leaf: leaf[i], layers)
        out[side] = stack
    return out


def _stacks(params: Params) -> list[str]:
    return [side for side in ("encoder", "decoder") if side in params]
