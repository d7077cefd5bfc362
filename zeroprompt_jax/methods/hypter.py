"""Hypter: adapters from one vector that stands for the whole instruction (Ye & Ren 2021), as HINT's authors compare it."""

import dataclasses
import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from zeroprompt_jax.methods import generated
from zeroprompt_jax.methods.generated import Kind, Tensor
from zeroprompt_jax.methods.hint import Hypernetwork
from zeroprompt_jax.models.layers import Dense, Dropout
from zeroprompt_jax.models.t5 import T5Config

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Hypter(Hypernetwork):
    """Adapters only, made by a head of each layer's own from the mean of the encoded instruction; see `PooledGenerator`."""

    kinds: tuple[Kind, ...] = (generated.Adapter(rank=8),)
    fusion: bool = False
    separate_encoder: bool = True

    def generator(self, config):
        return PooledGenerator(config, generated.tensors(self.kinds, config), parent=None)


class PooledGenerator(nn.Module):
    """The mean over an instruction's tokens, then an MLP for each tensor whose second layer every slot has for itself,
    divided by sqrt(D) as HINT's.

    Parameters {tensor}/{wi/kernel [D, D], heads [slots, D, rows * width]}.
    """

    config: T5Config
    tensors: Mapping[str, Tensor]

    @nn.compact
    def __call__(self, hidden_UID: Array, mask_UI: Array) -> dict[str, Array]:
        mask = mask_UI[..., None].astype(hidden_UID.dtype)
        pooled_UD = jnp.sum(hidden_UID * mask, axis=1) / jnp.maximum(mask.sum(axis=1), 1)
        return {name: _Heads(self.config, tensor, name=name)(pooled_UD) for name, tensor in self.tensors.items()}


class _Heads(nn.Module):
    """[U, D] -> one tensor of every slot, [slots, U, rows, width]."""

    config: T5Config
    tensor: Tensor

    @nn.compact
    def __call__(self, x_UD: Array) -> Array:
        c, (_, rows, width) = self.config, self.tensor
        dtype, slots = jnp.dtype(c.dtype), self.tensor.slots
        hidden_UD = nn.gelu(Dense(c.emb_dim, dtype, name="wi")(x_UD))
        hidden_UD = nn.with_logical_constraint(Dropout(c.dropout_rate)(hidden_UD[:, None])[:, 0], ("batch", "mlp"))
        shape = (slots, c.emb_dim, rows * width)
        init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", batch_axis=0)
        heads = self.param("heads", init, shape, jnp.float32)
        made = jnp.einsum("ud,sdo->suo", hidden_UD, heads.astype(dtype)) / math.sqrt(c.emb_dim)
        return made.reshape(slots, x_UD.shape[0], rows, width)
