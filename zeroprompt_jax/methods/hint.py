"""HINT: a hypernetwork that reads the instruction once (Ivison et al. 2023, arXiv 2212.10315).

The encoded instruction becomes modules for every layer and joins the encoder's output in cross-attention (instruction
fusion); the input is then answered without its instruction.
"""

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.methods import generated
from zeroprompt_jax.methods.base import Method
from zeroprompt_jax.methods.generated import Kind, Tensor
from zeroprompt_jax.models import t5
from zeroprompt_jax.models.attention import Keys, attend
from zeroprompt_jax.models.backbone import Encoded, logical_axes
from zeroprompt_jax.models.conditioning import Conditioning
from zeroprompt_jax.models.layers import Dense, Dropout, fan_in
from zeroprompt_jax.models.t5 import Backbone, T5Config

Array = jax.Array
_EVERYTHING = (r"backbone/.*", r"method/.*")


class _Default(tuple):
    """What trains where nothing else was said: a changed copy of the method works it out anew."""


@dataclasses.dataclass(frozen=True)
class Hypernetwork(Method, abc.ABC):
    """Base of methods that generate modules from `instruction_tokens` [U, I], of which rows b // (B / U) read the same.

    The hyperencoder is the backbone's own encoder, unconditioned; pads are masked, so that nothing depends on how far an
    instruction is padded.

    Attributes:
      kinds: of modules to generate (see `generated`), each at most once.
      fusion: whether the encoded instruction is `memory` of the decoder.
      separate_encoder: the hyperencoder is a second encoder with embeddings of its own, which start as the backbone's.
      trainable: regexes as in `Method`; the default is all there is, as published.
    Parameters `generator/…`, of the subclass, and `hyperencoder/{encoder, token_embedder}/…`.
    """

    kinds: tuple[Kind, ...]
    fusion: bool
    separate_encoder: bool
    trainable: tuple[str, ...] | None = None

    reads_instructions = True

    def __post_init__(self):
        name = type(self).__name__
        object.__setattr__(self, "kinds", tuple(self.kinds))
        for kind in self.kinds:
            if not isinstance(kind, Kind):
                known = ", ".join(f"@generated.{k.__name__}()" for k in Kind.__subclasses__())
                raise UserError(f"{name}.kinds holds {kind!r}; it takes kinds of modules: {known}.")
        twice = [kind.name for i, kind in enumerate(self.kinds) if kind.name in [k.name for k in self.kinds[:i]]]
        if twice:
            raise UserError(f"{name}.kinds has more than one '{twice[0]}'; a sublayer takes one of each kind.")
        if not self.kinds and not self.fusion:
            raise UserError(f"{name} without kinds and without fusion reads no instruction; give it one of them.")
        if self.trainable is None or isinstance(self.trainable, _Default):
            owns = bool(self.kinds) or self.separate_encoder
            object.__setattr__(self, "trainable", _Default(_EVERYTHING[: 1 + owns]))

    @abc.abstractmethod
    def generator(self, config: T5Config) -> nn.Module:
        """Called with hidden states [U, I, D] and mask [U, I]: {tensor's name: [slots, U, rows, width]}. It has no parent,
        wherever it is made: a module of T5X calls it too."""

    def init(self, rng, setting):
        c, params = setting.config, {}
        keys = jax.random.split(rng)
        if self.kinds:
            encoded = jnp.ones((1, 1, c.emb_dim)), jnp.ones((1, 1), bool)
            params["generator"] = self.generator(c).init(keys[0], *encoded)["params"]
        if self.separate_encoder:
            backbone = t5.init(c, keys[1]) if setting.backbone is None else setting.backbone
            params["hyperencoder"] = {name: backbone[name] for name in ("encoder", "token_embedder")}
        return params

    def logical_axes(self, path):
        match path.split("/"):
            case ["hyperencoder", "encoder" | "token_embedder", *_]:
                return logical_axes(path)
            case ["generator", "attention", _, "kernel"]:
                return logical_axes(path)
            case ["generator", _, *rest] if "/".join(rest) in _AXES:
                return _AXES["/".join(rest)]
        return super().logical_axes(path)

    def encode(self, params: Mapping[str, Any], instruction_tokens: Array, backbone: Backbone) -> Encoded:
        """The hyperencoder's output for instructions [U, I], 0 being padding."""
        # The input's pass through the same encoder draws other dropout.
        rngs = backbone.rngs and {name: jax.random.fold_in(key, 1) for name, key in backbone.rngs.items()}
        weights = params["hyperencoder"] if self.separate_encoder else backbone.params
        return Backbone(backbone.config, weights, rngs).encode(instruction_tokens)

    def generate(self, params: Mapping[str, Any], instruction_tokens: Array, backbone: Backbone) -> Conditioning:
        """What the instructions [U, I] condition with, of U groups. It depends on nothing else, so that it can be kept."""
        encoded, c = self.encode(params, instruction_tokens, backbone), backbone.config
        made = Conditioning()
        if self.kinds:
            args = {"params": params["generator"]}, encoded.hidden, encoded.mask
            made = generated.condition(self.kinds, self.generator(c).apply(*args, rngs=backbone.rngs), c)
        return made.replace(memory=encoded.hidden, memory_mask=encoded.mask) if self.fusion else made

    def condition(self, params, batch, backbone):
        if "instruction_tokens" not in batch:
            raise UserError(
                f"The method {type(self).__name__} reads instruction_tokens; set the feature length 'instructions'."
            )
        return self.generate(params, batch["instruction_tokens"], backbone)


# The rows of a table are many and need not divide over devices; their width does.
_AXES = {
    "queries": (None, "embed"),
    "wi/kernel": ("embed", "mlp"),
    "wo/kernel": ("mlp", None),
    "heads": ("layers", "mlp", None),
}


@dataclasses.dataclass(frozen=True)
class Hint(Hypernetwork):
    """The paper's hypernetwork (section 3), see `Generator`. The defaults are its base size's; its larger models have
    adapters of rank 512. No kinds is its "no hypernetwork"; no fusion, other kinds and a separate encoder are its other
    ablations."""

    kinds: tuple[Kind, ...] = (generated.Prefix(), generated.Adapter())
    fusion: bool = True
    separate_encoder: bool = False

    def generator(self, config):
        return Generator(config, generated.tensors(self.kinds, config), parent=None)


class _Queries(nn.Module):
    """What makes one tensor: its part of the table of position queries, and the MLP that all its slots share."""

    config: T5Config
    tensor: Tensor

    def setup(self):
        c, (_, rows, width) = self.config, self.tensor
        shape, dtype = (self.tensor.slots * rows, c.emb_dim), jnp.dtype(c.dtype)
        self.queries = self.param("queries", nn.initializers.normal(c.emb_dim**-0.5), shape, jnp.float32)
        self.wi, self.wo = Dense(c.emb_dim, dtype), Dense(width, dtype)
        self.dropout = Dropout(c.dropout_rate)

    def __call__(self, x_UQD: Array) -> Array:
        hidden = nn.with_logical_constraint(nn.gelu(self.wi(x_UQD)), ("batch", None, "mlp"))
        return self.wo(self.dropout(hidden))


class Generator(nn.Module):
    """One position query for every row to generate. All attend to the encoded instruction, with one multi-head attention
    that has neither residual nor norm, nor bias; then a two-layer MLP for each tensor, shared by its slots. What comes out
    is divided by sqrt(D), so that fresh modules change the backbone little.

    Parameters: attention/{query, key, value, out}/kernel as in T5, and {tensor}/{queries [slots * rows, D], wi/kernel
    [D, D], wo/kernel [D, width]}.
    """

    config: T5Config
    tensors: Mapping[str, Tensor]

    @nn.compact
    def __call__(self, hidden_UID: Array, mask_UI: Array) -> dict[str, Array]:
        c, U = self.config, hidden_UID.shape[0]
        parts = {name: _Queries(c, tensor, name=name) for name, tensor in self.tensors.items()}
        table_QD = jnp.concatenate([part.queries for part in parts.values()])
        read_UQD = _Reading(c, name="attention")(table_QD, hidden_UID, mask_UI)
        made, start = {}, 0
        for name, tensor in self.tensors.items():
            own = read_UQD[:, start : start + tensor.slots * tensor.rows]
            rows = parts[name](own).reshape(U, tensor.slots, tensor.rows, tensor.width)
            made[name] = jnp.swapaxes(rows, 0, 1) / math.sqrt(c.emb_dim)
            start += own.shape[1]
        return made


class _Reading(nn.Module):
    """Queries [Q, D], the same for all, attend to hidden states [U, I, D] -> [U, Q, D]."""

    config: T5Config

    @nn.compact
    def __call__(self, queries_QD: Array, hidden_UID: Array, mask_UI: Array) -> Array:
        c, dtype, U = self.config, jnp.dtype(self.config.dtype), hidden_UID.shape[0]

        def heads(name, x, init=fan_in()):
            y = Dense(c.num_heads * c.head_dim, dtype, init, name=name)(x)
            # The queries are projected once for all instructions.
            y = jnp.broadcast_to(y, (U, *y.shape[1:])).reshape(U, -1, c.num_heads, c.head_dim)
            return nn.with_logical_constraint(y, ("batch", None, "heads", "kv"))

        query = heads("query", queries_QD[None], fan_in(1.0 / c.head_dim))
        keys = Keys(heads("key", hidden_UID), heads("value", hidden_UID), mask_UI[:, None, None])
        y = attend(query, [keys], Dropout(c.dropout_rate))
        return Dense(c.emb_dim, dtype, name="out")(y.reshape(*y.shape[:2], -1))
