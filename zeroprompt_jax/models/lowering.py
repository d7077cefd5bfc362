"""Lowering: a conditioning's memory turned once into the keys and values that cross-attention would make of it.

A memory, [G, M, D], is projected by every decoder layer whenever a decoder runs. For a task that is served again and
again the projections are the same each time; lowered, they are a prefix of cross-attention, and only scores and values
are left.
"""

import math

import jax
import jax.numpy as jnp

from zeroprompt_jax.models.conditioning import Conditioning, Prefix, check, finest
from zeroprompt_jax.models.layers import Attention
from zeroprompt_jax.models.t5 import Backbone, align

Array = jax.Array


def lower(backbone: Backbone, conditioning: Conditioning) -> Conditioning:
    """The same conditioning without memory: its keys and values, [L, G, M, H, K] in the backbone's dtype, follow those
    of the prefix that decoder cross-attention has already. Conditions alike, exactly; LoRA, scale and bias of these
    projections are applied here.

    Raises:
      UserError: a memory, or what conditions the projections, does not fit the backbone.
    """
    if conditioning.memory is None:
        return conditioning
    c, sub, memory = backbone.config, conditioning.decoder.cross_attention, conditioning.memory
    check(conditioning, c, "decoder", finest(conditioning))
    attention = Attention(c.num_heads, c.head_dim, c.emb_dim, jnp.dtype(c.dtype), dropout_rate=0.0)

    def layer(params, sub):
        return attention.apply({"params": params}, align(memory, sub), sub, method="keys_values")

    bare = sub.replace(prefix=None, adapter=None)
    key, value = jax.vmap(layer)(_cross_attention(backbone), bare)
    mask = conditioning.memory_mask
    mask = jnp.ones(memory.shape[:2], bool) if mask is None else mask.astype(bool)
    fused = Prefix(key, value, jnp.broadcast_to(mask, (c.num_decoder_layers, *mask.shape)))
    sub = sub.replace(prefix=fused if sub.prefix is None else join(sub.prefix, fused))
    decoder = conditioning.decoder.replace(cross_attention=sub)
    return conditioning.replace(decoder=decoder, memory=None, memory_mask=None)


def _cross_attention(backbone: Backbone):
    """The parameters of decoder cross-attention, with a leading layer axis."""
    decoder, name = backbone.params["decoder"], "encoder_decoder_attention"
    if "layers" in decoder:
        return decoder["layers"][name]
    layers = (decoder[f"layers_{i}"][name] for i in range(backbone.config.num_decoder_layers))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)


def join(first: Prefix, second: Prefix) -> Prefix:
    """Two prefixes, one after the other, in the finer of their groups and the dtype of the second."""
    G = math.lcm(*(leaf.shape[1] for leaf in jax.tree.leaves((first, second))))

    def put(a: Array, b: Array) -> Array:
        a, b = (x if x.shape[1] == G else jnp.repeat(x, G // x.shape[1], axis=1) for x in (a, b))
        return jnp.concatenate([a.astype(b.dtype), b], axis=2)

    masks = [jnp.ones(x.key.shape[:3], bool) if x.mask is None else x.mask.astype(bool) for x in (first, second)]
    return Prefix(put(first.key, second.key), put(first.value, second.value), put(*masks))
