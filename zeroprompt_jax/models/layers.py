"""Layers of all backbones, with the insertion points of `Conditioning`. Parameter names and shapes are T5X's."""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from zeroprompt_jax.models.attention import Keys, attend
from zeroprompt_jax.models.conditioning import ACTIVATIONS, Prefix, Sublayer, adapt, project, rescale, to_rows
from zeroprompt_jax.models.masks import relative_buckets

Array = jax.Array


def fan_in(scale: float = 1.0) -> Callable:
    return nn.initializers.variance_scaling(scale, "fan_in", "truncated_normal")


class Dense(nn.Module):
    """x W with a float32 kernel [I, O], computed in `dtype`; with `use_bias`, plus a bias [O]. T5 has none."""

    features: int
    dtype: jnp.dtype
    kernel_init: Callable = fan_in()
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return y + bias.astype(self.dtype)


class Embedder(nn.Module):
    """Looks up rows of a float32 table [size, D], `embedding`, in `dtype`: [...] -> [..., D]."""

    size: int
    emb_dim: int
    dtype: jnp.dtype
    init_std: float

    def setup(self):
        init = nn.initializers.normal(self.init_std)
        self.embedding = self.param("embedding", init, (self.size, self.emb_dim), jnp.float32)

    def __call__(self, ids: Array) -> Array:
        return jnp.take(self.embedding, ids, axis=0).astype(self.dtype)


def tied_logits(x_BTD: Array, embedding_VD: Array) -> Array:
    """Products with the token embeddings, in the dtype of x, as float32: [B, T, V]."""
    return jnp.einsum("btd,vd->btv", x_BTD, embedding_VD.astype(x_BTD.dtype), preferred_element_type=jnp.float32)


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32, with a learned scale and no bias."""

    dtype: jnp.dtype
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        return (x * scale).astype(self.dtype)


class LayerNorm(nn.Module):
    """Layer norm, computed in float32, with a learned scale and bias."""

    dtype: jnp.dtype
    epsilon: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        return (x * scale + bias).astype(self.dtype)


class Dropout(nn.Module):
    """Dropout shared along the length axis, as in T5; active exactly when an rng named 'dropout' is passed."""

    rate: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if not self.has_rng("dropout"):
            return x
        # Dropping x itself would keep, for the backward pass, a mask and zeros of x's whole size.
        ones = jnp.ones((*x.shape[:-2], 1, x.shape[-1]), x.dtype)
        return x * nn.Dropout(self.rate, broadcast_dims=(-2,))(ones, deterministic=False)


class RelativePositionBias(nn.Module):
    """T5's learned bias per head and bucketed distance: [1 or B, Tq], [1 or B, Tk] -> [1 or B, H, Tq, Tk]."""

    num_heads: int
    num_buckets: int
    max_distance: int
    bidirectional: bool
    init_std: float | None

    @nn.compact
    def __call__(self, query_positions: Array, key_positions: Array) -> Array:
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        if self.init_std is not None:
            init = nn.initializers.normal(self.init_std)
        table_HN = self.param("rel_embedding", init, (self.num_heads, self.num_buckets), jnp.float32)
        distance = key_positions[:, None, :] - query_positions[:, :, None]
        buckets = relative_buckets(distance, self.bidirectional, self.num_buckets, self.max_distance)
        # A product with one-hot columns copies entries, at full precision, in the order that attention reads them; from a
        # gather TPUs would turn them round, and scatter their gradient.
        # Where rows have positions of their own that would be a large array.
        if buckets.shape[0] > 1:
            return jnp.moveaxis(jnp.take(table_HN, buckets, axis=1), 0, 1)
        chosen = jax.nn.one_hot(buckets, self.num_buckets, dtype=jnp.float32)
        return jnp.einsum("hn,bqkn->bhqk", table_HN, chosen, precision="highest")


def prefix_keys(prefix: Prefix | None, rows: int) -> list[Keys]:
    """The prefix of one layer (its L axis already taken) as something to attend to."""
    if prefix is None:
        return []
    mask = None if prefix.mask is None else to_rows(prefix.mask.astype(bool), rows)[:, None, None]
    return [Keys(prefix.key, prefix.value, mask)]


class Attention(nn.Module):
    """Multi-head attention in three steps, so that keys can be cached: `keys_values`, `query`, `attend`.

    dense: makes the projections, from features and dtype. scaled: whether scores are divided by sqrt(head_dim); T5 folds
    that into the initialisation of the query."""

    num_heads: int
    head_dim: int
    emb_dim: int
    dtype: jnp.dtype
    dropout_rate: float
    dense: Callable[..., Dense] = Dense
    scaled: bool = False

    def setup(self):
        joined = self.num_heads * self.head_dim
        folded = {} if self.scaled else {"kernel_init": fan_in(1.0 / self.head_dim)}
        self.query = self.dense(joined, self.dtype, **folded)
        self.key = self.dense(joined, self.dtype)
        self.value = self.dense(joined, self.dtype)
        self.out = self.dense(self.emb_dim, self.dtype)
        self.dropout = Dropout(self.dropout_rate)

    def _project(self, name: str, x: Array, conditioning: Sublayer) -> Array:
        y = project(getattr(self, name)(x), x.astype(self.dtype), name, conditioning)
        return y.reshape(*y.shape[:-1], self.num_heads, self.head_dim)

    def keys_values(self, x_BTD: Array, conditioning: Sublayer) -> tuple[Array, Array]:
        """[B, T, D] -> key and value [B, T, H, K]."""
        key = self._project("key", x_BTD, conditioning)
        value = self._project("value", x_BTD, conditioning)
        axes = ("batch", "length", "heads", "kv")
        return nn.with_logical_constraint(key, axes), nn.with_logical_constraint(value, axes)

    def __call__(self, x_BTD: Array, keys: list[Keys], conditioning: Sublayer) -> Array:
        """Attends from x to the keys and the conditioning's prefix -> [B, T, D]."""
        query = nn.with_logical_constraint(self._project("query", x_BTD, conditioning), ("batch", "length", "heads", "kv"))
        query = query * self.head_dim**-0.5 if self.scaled else query
        y = attend(query, [*prefix_keys(conditioning.prefix, x_BTD.shape[0]), *keys], self.dropout)
        y = y.reshape(*y.shape[:2], -1)
        return adapt(project(self.out(y), y, "out", conditioning), x_BTD, conditioning)


def _gate(activations: tuple[str, ...], *ys_BTF: Array) -> Array:
    return math.prod(ACTIVATIONS[name](y) for name, y in zip(activations, ys_BTF))


class MLP(nn.Module):
    """A feed-forward layer: one activation (T5 1.0, BERT: wi, wo) or a gated product (T5 1.1: wi_0, wi_1, wo).

    dropout_rate: of the hidden activations. dense: makes the projections, from features and dtype."""

    mlp_dim: int
    emb_dim: int
    activations: tuple[str, ...]
    dtype: jnp.dtype
    dropout_rate: float
    dense: Callable[..., Dense] = Dense

    @nn.compact
    def __call__(self, x_BTD: Array, conditioning: Sublayer) -> Array:
        names = ["wi"] if len(self.activations) == 1 else [f"wi_{i}" for i in range(len(self.activations))]
        wide = [self.dense(self.mlp_dim, self.dtype, name=name)(x_BTD) for name in names]
        ys = [project(y, x_BTD, name, conditioning) for name, y in zip(names, wide)]
        # The backward pass recomputes this from the products: a gelu alone would keep five arrays of [B, T, F] per layer,
        # which is half of what training a prompt remembers.
        hidden = jax.checkpoint(functools.partial(_gate, self.activations))(*ys)
        hidden = rescale(hidden, "hidden", conditioning)
        hidden = nn.with_logical_constraint(Dropout(self.dropout_rate)(hidden), ("batch", "length", "mlp"))
        y = project(self.dense(self.emb_dim, self.dtype, name="wo")(hidden), hidden, "wo", conditioning)
        return adapt(y, x_BTD, conditioning)
