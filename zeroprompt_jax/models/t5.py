"""The T5 encoder-decoder (1.0, 1.1, mT5, ByT5), conditioned by `Conditioning` and by nothing else.

Parameter trees are T5X's: `encoder/layers_0/attention/query/kernel` unscanned; scanned, `encoder/layers/…` with a leading
layer axis. Dropout is on exactly when an rng named 'dropout' is passed.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.models import masks
from zeroprompt_jax.models.attention import Keys
from zeroprompt_jax.models.backbone import (
    Bound,
    Context,
    Encoded,
    Params,
    check_numerics,
    put_layer_prompt,
    put_prompt,
    put_slots,
    run_layers,
)
from zeroprompt_jax.models.conditioning import Conditioning, Layers, Stack, Sublayer, check, to_rows
from zeroprompt_jax.models.layers import (
    MLP,
    Attention,
    Dense,
    Dropout,
    Embedder,
    RelativePositionBias,
    RMSNorm,
    tied_logits,
)

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Shape and numerics of a T5. The defaults are T5 1.1 small.

    mlp_activations: one for T5 1.0, two for the gated MLP. logits_via_embedding: tied (T5 1.0) or untied output layer.
    dtype: of activations; parameters, norms and softmax are float32. remat_policy: none, minimal, dots or full.
    embedding_init_std, relpos_init_std: standard deviations at initialisation; relpos None is T5's own. At widths near
    128, relpos 1.5 trains far faster than T5's.
    """

    vocab_size: int = 32128
    emb_dim: int = 512
    num_heads: int = 6
    head_dim: int = 64
    mlp_dim: int = 1024
    num_encoder_layers: int = 8
    num_decoder_layers: int = 8
    mlp_activations: tuple[str, ...] = ("gelu", "linear")
    logits_via_embedding: bool = False
    dropout_rate: float = 0.1
    dtype: str = "bfloat16"
    scan_layers: bool = True
    remat_policy: str = "none"
    relpos_num_buckets: int = 32
    relpos_max_distance: int = 128
    embedding_init_std: float = 1.0
    relpos_init_std: float | None = None

    def __post_init__(self):
        object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
        check_numerics(self)


@struct.dataclass
class Output:
    """logits: [B, S, V] float32. With `hidden=True`: the input of every layer and the stack's output, [L + 1, B, N, D]
    before the final norm, prompt positions included."""

    logits: Array
    encoded: Encoded
    encoder_hidden: Array | None = None
    decoder_hidden: Array | None = None


@struct.dataclass
class Cache:
    """Decoding state. key, value: [L, B, N, H, K]; cross: keys and values of what cross-attention reads, filled by
    `start`, [L, E, T, H, K] each, for the encoder's output and for the memory; index: positions filled so far."""

    key: Array
    value: Array
    index: Array
    cross: tuple[tuple[Array, Array], ...] = ()


def align(x: Array, conditioning: Sublayer) -> Array:
    """Repeats what cross-attention reads when its keys are conditioned per finer groups of rows than it has."""
    leaves = jax.tree.leaves([conditioning.lora, conditioning.scale, conditioning.bias])
    groups = math.lcm(x.shape[0], *(leaf.shape[0] for leaf in leaves))
    return x if groups == x.shape[0] else jnp.repeat(x, groups // x.shape[0], axis=0)


class EncoderLayer(nn.Module):
    config: T5Config

    @nn.compact
    def __call__(self, x: Array, conditioning: Layers, cache: None, context: Context):
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        x = put_layer_prompt(x, conditioning.layer_prompt, context)
        kept = x if context.keep_hidden else None
        attention = Attention(c.num_heads, c.head_dim, c.emb_dim, dtype, c.dropout_rate, name="attention")
        y = RMSNorm(dtype, name="pre_attention_layer_norm")(x)
        keys = Keys(*attention.keys_values(y, conditioning.self_attention), context.self_mask, context.self_bias)
        x = x + Dropout(c.dropout_rate)(attention(y, [keys], conditioning.self_attention))
        y = RMSNorm(dtype, name="pre_mlp_layer_norm")(x)
        y = MLP(c.mlp_dim, c.emb_dim, c.mlp_activations, dtype, c.dropout_rate, name="mlp")(y, conditioning.mlp)
        x = x + Dropout(c.dropout_rate)(y)
        return nn.with_logical_constraint(x, ("batch", "length", "embed")), (kept, None)


class DecoderLayer(nn.Module):
    config: T5Config

    @nn.compact
    def __call__(self, x: Array, conditioning: Layers, cache, context: Context):
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        sub = conditioning.self_attention
        x = put_layer_prompt(x, conditioning.layer_prompt, context)
        kept = x if context.keep_hidden else None

        attention = Attention(c.num_heads, c.head_dim, c.emb_dim, dtype, c.dropout_rate, name="self_attention")
        y = RMSNorm(dtype, name="pre_self_attention_layer_norm")(x)
        key, value = attention.keys_values(y, sub)
        if cache is not None:
            write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=context.index, axis=1)
            key, value = write(cache[0], key), write(cache[1], value)
        x = x + Dropout(c.dropout_rate)(attention(y, [Keys(key, value, context.self_mask, context.self_bias)], sub))

        attention = Attention(c.num_heads, c.head_dim, c.emb_dim, dtype, c.dropout_rate, name="encoder_decoder_attention")
        y = RMSNorm(dtype, name="pre_cross_attention_layer_norm")(x)
        sub = conditioning.cross_attention
        if cache is not None and cache[2]:
            cross = cache[2]
        else:
            cross = tuple(attention.keys_values(align(z, sub), sub) for z in context.cross_inputs)
        keys = [Keys(*kv, mask) for kv, mask in zip(cross, context.cross_masks)]
        x = x + Dropout(c.dropout_rate)(attention(y, keys, sub))

        y = RMSNorm(dtype, name="pre_mlp_layer_norm")(x)
        y = MLP(c.mlp_dim, c.emb_dim, c.mlp_activations, dtype, c.dropout_rate, name="mlp")(y, conditioning.mlp)
        x = x + Dropout(c.dropout_rate)(y)
        cache = None if cache is None else (key, value, cross)
        return nn.with_logical_constraint(x, ("batch", "length", "embed")), (kept, cache)


class Encoder(nn.Module):
    config: T5Config

    @nn.compact
    def __call__(self, x_BND: Array, conditioning: Layers, context: Context, positions: Array):
        c = self.config
        bias = _relative_bias(c, bidirectional=True)(positions, positions)
        context = context.replace(self_bias=bias)
        x = Dropout(c.dropout_rate)(x_BND)
        x, (hidden, _) = run_layers(EncoderLayer, c, c.num_encoder_layers, x, conditioning, None, context)
        x = RMSNorm(jnp.dtype(c.dtype), name="encoder_norm")(x)
        return Dropout(c.dropout_rate)(x), hidden


class Decoder(nn.Module):
    config: T5Config

    @nn.compact
    def __call__(self, x_BND: Array, conditioning: Layers, cache, context: Context, positions, embedding_VD: Array):
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        queries, keys, prompt_length = positions
        context = context.replace(self_bias=_relative_bias(c, bidirectional=False)(queries, keys))
        x = Dropout(c.dropout_rate)(x_BND)
        x, (hidden, cache) = run_layers(DecoderLayer, c, c.num_decoder_layers, x, conditioning, cache, context)
        x = Dropout(c.dropout_rate)(RMSNorm(dtype, name="decoder_norm")(x[:, prompt_length:]))
        if c.logits_via_embedding:
            # Tied embeddings have unit variance, so T5 scales the logits back.
            logits = tied_logits(x / math.sqrt(c.emb_dim), embedding_VD)
        else:
            logits = Dense(c.vocab_size, jnp.float32, name="logits_dense")(x)
        return nn.with_logical_constraint(logits, ("batch", "length", "vocab")), hidden, cache


def _relative_bias(config: T5Config, bidirectional: bool) -> RelativePositionBias:
    return RelativePositionBias(
        config.num_heads,
        config.relpos_num_buckets,
        config.relpos_max_distance,
        bidirectional,
        config.relpos_init_std,
        name="relpos_bias",
    )


class T5(nn.Module):
    """The backbone. It knows nothing of tasks: rows, and what conditions them."""

    config: T5Config

    def setup(self):
        c = self.config
        self.token_embedder = Embedder(c.vocab_size, c.emb_dim, jnp.dtype(c.dtype), c.embedding_init_std)
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    def __call__(
        self,
        encoder_tokens: Array,
        decoder_tokens: Array,
        conditioning: Conditioning = Conditioning(),
        encoder_segments: Array | None = None,
        decoder_segments: Array | None = None,
        hidden: bool = False,
    ) -> Output:
        """Teacher-forced logits.

        encoder_tokens: [E, T]; 0 is padding. decoder_tokens: [B, S], shifted right; E divides B, and decoder row b reads
        encoder row b // (B / E). Segments: [E, T], [B, S] ids of packed examples, 0 on padding.
        """
        encoded, encoder_hidden = self.encode(encoder_tokens, conditioning, encoder_segments, hidden=True, keep=hidden)
        logits, decoder_hidden = self.decode(decoder_tokens, encoded, conditioning, decoder_segments, hidden=True, keep=hidden)
        return Output(logits, encoded, encoder_hidden, decoder_hidden)

    def embed(self, tokens: Array) -> Array:
        """[B, T] -> [B, T, D], without slots or prompts."""
        return self.token_embedder(tokens)

    def _inputs(self, stack: Stack, tokens_BT: Array, start: Array | int, prompt: bool) -> Array:
        """Embeddings with the slots put in and the prompt before them. `start` is the first token's index."""
        x = put_slots(self.token_embedder(tokens_BT), stack, start)
        x = put_prompt(x, stack) if prompt else x
        return nn.with_logical_constraint(x, ("batch", "length", "embed"))

    def encode(
        self,
        tokens_ET: Array,
        conditioning: Conditioning = Conditioning(),
        segments_ET: Array | None = None,
        hidden: bool = False,
        keep: bool = True,
    ):
        """Runs the encoder. Returns Encoded, or (Encoded, hidden states [L + 1, E, N, D]) when `hidden`."""
        check(conditioning, self.config, "encoder", tokens_ET.shape[0], packed=segments_ET is not None)
        stack = conditioning.encoder
        seq = masks.sequence(stack, tokens_ET > 0, segments_ET)
        context = Context(
            masks.attention_mask(seq),
            layer_prompt_mode=stack.layer_prompt_mode,
            keep_hidden=hidden and keep,
        )
        x, states = self.encoder(self._inputs(stack, tokens_ET, 0, prompt=True), stack.layers, context, seq.positions)
        encoded = Encoded(x, seq.valid, seq.segments)
        return (encoded, states) if hidden else encoded

    def decode(
        self,
        tokens_BS: Array,
        encoded: Encoded,
        conditioning: Conditioning = Conditioning(),
        segments_BS: Array | None = None,
        hidden: bool = False,
        keep: bool = True,
    ):
        """Runs the decoder on whole sequences. Returns logits [B, S, V], or (logits, hidden states) when `hidden`."""
        logits, states, _ = self._decode(tokens_BS, encoded, conditioning, None, segments_BS, 0, hidden and keep)
        return (logits, states) if hidden else logits

    def start(self, tokens_Bs: Array, encoded: Encoded, conditioning: Conditioning, length: int) -> tuple[Array, Cache]:
        """Begins incremental decoding of up to `length` tokens: runs the decoder's prompt and the first tokens.

        Returns their logits [B, s, V] and the cache. Nothing of `length` is computed before it is reached.
        """
        c, B = self.config, tokens_Bs.shape[0]
        N = conditioning.decoder.prompt_length + length
        shape = (c.num_decoder_layers, B, N, c.num_heads, c.head_dim)
        empty = jnp.zeros(shape, jnp.dtype(c.dtype))
        cache = Cache(empty, empty, jnp.zeros((), jnp.int32))
        logits, _, cache = self._decode(tokens_Bs, encoded, conditioning, cache, None, 0, False)
        return logits, cache

    def step(self, tokens_Bs: Array, encoded: Encoded, conditioning: Conditioning, cache: Cache) -> tuple[Array, Cache]:
        """Decodes the next tokens (usually s = 1) from the cache; of `encoded` and memory only the masks are read."""
        logits, _, cache = self._decode(tokens_Bs, encoded, conditioning, cache, None, cache.index, False)
        return logits, cache

    def _decode(self, tokens, encoded: Encoded, conditioning, cache: Cache | None, segments, start, keep_hidden):
        rows, s = tokens.shape
        if rows % encoded.hidden.shape[0]:
            raise UserError(f"{rows} decoder rows cannot share {encoded.hidden.shape[0]} encoder rows: it does not divide.")
        if (segments is None) != (encoded.segments is None):
            raise UserError("Packed batches need segments on both sides: encoder_segments and decoder_segments.")
        check(conditioning, self.config, "decoder", rows, packed=segments is not None)
        stack = conditioning.decoder
        begins = cache is None or not cache.cross
        P = stack.prompt_length if begins else 0
        N = P + s if cache is None else cache.key.shape[2]
        valid = jnp.ones((rows, N - stack.prompt_length), bool)
        seq = masks.sequence(stack, valid, segments)

        cross_mask = to_rows(masks.attention_mask(masks.Sequence(encoded.mask, None, None)), rows)
        if segments is not None:
            cross_mask = cross_mask & (segments[:, None, :, None] == to_rows(encoded.segments, rows)[:, None, None, :])
        inputs, cross_masks = (encoded.hidden,), (cross_mask,)
        if conditioning.memory is not None:
            mask = conditioning.memory_mask
            mask = None if mask is None else to_rows(mask.astype(bool), rows)[:, None, None]
            inputs, cross_masks = (*inputs, conditioning.memory), (*cross_masks, mask)

        context = Context(
            masks.causal_mask(seq, start, P + s),
            cross_inputs=inputs,
            cross_masks=cross_masks,
            index=None if cache is None else cache.index,
            layer_prompt_mode=stack.layer_prompt_mode,
            layer_prompt_applies=begins,
            keep_hidden=keep_hidden,
        )
        x = self._inputs(stack, tokens, 0 if begins else start - stack.prompt_length, prompt=begins)
        layer_cache = None if cache is None else (cache.key, cache.value, cache.cross)
        positions = (masks.chunk(seq.positions, start, P + s), seq.positions, P)
        logits, hidden, layer_cache = self.decoder(
            x, stack.layers, layer_cache, context, positions, self.token_embedder.embedding
        )
        if cache is not None:
            key, value, cross = layer_cache
            cache = Cache(key, value, cache.index + P + s, cross)
        return logits, hidden, cache


class Backbone(Bound):
    """A T5 with its parameters bound: `embed`, `encode`, `decode`, `start`, `step` and the call itself."""

    module = T5

    def decode(self, *args, **kwargs):
        return self._apply("decode", *args, **kwargs)

    def start(self, *args, **kwargs) -> tuple[Array, Cache]:
        return self._apply("start", *args, **kwargs)

    def step(self, *args, **kwargs) -> tuple[Array, Cache]:
        return self._apply("step", *args, **kwargs)


def init(config: T5Config, rng: Array) -> Params:
    """Random parameters in T5's initialisation. Jit-able, so that sharded parameters are born sharded."""
    tokens = jnp.ones((1, 2), jnp.int32)
    return T5(config, parent=None).init(rng, tokens, tokens)["params"]
