"""The RoBERTa and BERT encoder, conditioned by `Conditioning` and by nothing else (Liu et al. 2019; Devlin et al. 2019).

Layers are the T5's, with biases, scaled scores and norms behind the residual sum; parameter names too, as far as T5
has them: `encoder/layers_0/attention/query/kernel` unscanned; scanned, `encoder/layers/…` with a leading layer axis.
Dropout is on exactly when an rng named 'dropout' is passed, and shared along the length, as the T5's here.
"""

import dataclasses
import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
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
from zeroprompt_jax.models.conditioning import ACTIVATIONS, Conditioning, Layers, check
from zeroprompt_jax.models.layers import MLP, Attention, Dense, Dropout, Embedder, LayerNorm, tied_logits

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class RobertaConfig:
    """Shape and numerics of a RoBERTa or BERT. The defaults are RoBERTa base.

    num_positions: rows of the table of positions. position_offset: the first token's row of it, pad_id + 1 in RoBERTa and
    0 in BERT. num_token_types: 1 in RoBERTa, 2 in BERT.
    mlm_head: whether there is the masked-language-model head, tied to the token embeddings. pooled_head: a tanh layer on
    the first token. labels: names of the classes that a classifier on it tells apart, in the order of its outputs; none
    without a classifier.
    dtype: of activations; parameters, norms and softmax are float32. remat_policy: none, minimal, dots or full.
    init_std: of all kernels and embeddings at initialisation.
    """

    vocab_size: int = 50265
    emb_dim: int = 768
    num_heads: int = 12
    mlp_dim: int = 3072
    num_encoder_layers: int = 12
    num_positions: int = 514
    position_offset: int = 2
    num_token_types: int = 1
    pad_id: int = 1
    mlp_activations: tuple[str, ...] = ("gelu_exact",)
    norm_epsilon: float = 1e-5
    mlm_head: bool = True
    pooled_head: bool = False
    labels: tuple[str, ...] = ()
    dropout_rate: float = 0.1
    dtype: str = "bfloat16"
    scan_layers: bool = True
    remat_policy: str = "none"
    init_std: float = 0.02

    num_decoder_layers: ClassVar[int] = 0

    def __post_init__(self):
        object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
        object.__setattr__(self, "labels", tuple(self.labels))
        check_numerics(self)
        if self.emb_dim % self.num_heads:
            near = max(1, round(self.emb_dim / self.num_heads)) * self.num_heads
            raise UserError(
                f"RobertaConfig.emb_dim {self.emb_dim} does not divide into {self.num_heads} heads; {near} would."
            )
        if self.labels and not self.pooled_head:
            raise UserError(f"RobertaConfig.labels {', '.join(self.labels)} need the pooled head: set pooled_head.")

    @property
    def head_dim(self) -> int:
        return self.emb_dim // self.num_heads

    @property
    def max_length(self) -> int:
        """Positions that a sequence may have, those of a prompt included."""
        return self.num_positions - self.position_offset


@struct.dataclass
class Output:
    """encoded: hidden states of the last layer, [B, P + T, D], and their mask. logits: [B, T, V] float32 over the tokens,
    with the masked-language-model head. pooled: [B, D], with the pooled head. class_logits: [B, C] float32, with labels.
    With `hidden=True`: the input of every layer and the last one's output, [L + 1, B, P + T, D]."""

    encoded: Encoded
    logits: Array | None = None
    pooled: Array | None = None
    class_logits: Array | None = None
    encoder_hidden: Array | None = None


def _dense(config: RobertaConfig):
    return functools.partial(Dense, kernel_init=nn.initializers.normal(config.init_std), use_bias=True)


class EncoderLayer(nn.Module):
    config: RobertaConfig

    @nn.compact
    def __call__(self, x: Array, conditioning: Layers, cache: None, context: Context):
        c, dtype, dense = self.config, jnp.dtype(self.config.dtype), _dense(self.config)
        sub = conditioning.self_attention
        x = put_layer_prompt(x, conditioning.layer_prompt, context)
        kept = x if context.keep_hidden else None
        attention = Attention(
            c.num_heads, c.head_dim, c.emb_dim, dtype, c.dropout_rate, dense, scaled=True, name="attention"
        )
        keys = Keys(*attention.keys_values(x, sub), context.self_mask)
        x = x + Dropout(c.dropout_rate)(attention(x, [keys], sub))
        x = LayerNorm(dtype, c.norm_epsilon, name="post_attention_layer_norm")(x)
        y = MLP(c.mlp_dim, c.emb_dim, c.mlp_activations, dtype, 0.0, dense, name="mlp")(x, conditioning.mlp)
        x = x + Dropout(c.dropout_rate)(y)
        x = LayerNorm(dtype, c.norm_epsilon, name="post_mlp_layer_norm")(x)
        return nn.with_logical_constraint(x, ("batch", "length", "embed")), (kept, None)


class Encoder(nn.Module):
    config: RobertaConfig

    @nn.compact
    def __call__(self, x_BND: Array, conditioning: Layers, context: Context):
        c = self.config
        x = Dropout(c.dropout_rate)(LayerNorm(jnp.dtype(c.dtype), c.norm_epsilon, name="embeddings_norm")(x_BND))
        x, (hidden, _) = run_layers(EncoderLayer, c, c.num_encoder_layers, x, conditioning, None, context)
        return x, hidden


class MLMHead(nn.Module):
    """Logits of the masked language model: a layer like the MLP's first, a norm, and the token embeddings."""

    config: RobertaConfig

    @nn.compact
    def __call__(self, x_BTD: Array, embedding_VD: Array) -> Array:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        x = ACTIVATIONS[c.mlp_activations[0]](_dense(c)(c.emb_dim, dtype, name="dense")(x_BTD))
        x = LayerNorm(dtype, c.norm_epsilon, name="layer_norm")(x)
        logits = tied_logits(x, embedding_VD) + self.param("bias", nn.initializers.zeros, (c.vocab_size,), jnp.float32)
        return nn.with_logical_constraint(logits, ("batch", "length", "vocab"))


class PooledHead(nn.Module):
    """The first token's state through a tanh layer, [B, D], and the classifier's logits of it, [B, C] or None."""

    config: RobertaConfig

    @nn.compact
    def __call__(self, first_BD: Array) -> tuple[Array, Array | None]:
        c = self.config
        pooled = jnp.tanh(_dense(c)(c.emb_dim, jnp.dtype(c.dtype), name="dense")(first_BD))
        if not c.labels:
            return pooled, None
        dropped = Dropout(c.dropout_rate)(pooled[:, None])[:, 0]  # a mask of each row's own
        return pooled, _dense(c)(len(c.labels), jnp.float32, name="classifier")(dropped)


class Roberta(nn.Module):
    """The backbone. It knows nothing of tasks: rows, and what conditions them."""

    config: RobertaConfig

    def setup(self):
        c = self.config
        embedder = functools.partial(Embedder, emb_dim=c.emb_dim, dtype=jnp.dtype(c.dtype), init_std=c.init_std)
        self.token_embedder = embedder(c.vocab_size)
        self.position_embedder = embedder(c.num_positions)
        self.token_type_embedder = embedder(c.num_token_types)
        self.encoder = Encoder(c)
        if c.mlm_head:
            self.mlm_head = MLMHead(c)
        if c.pooled_head:
            self.pooled_head = PooledHead(c)

    def __call__(
        self,
        tokens: Array,
        conditioning: Conditioning = Conditioning(),
        token_types: Array | None = None,
        hidden: bool = False,
    ) -> Output:
        """Hidden states and whatever the heads make of them.

        tokens: [B, T]; `pad_id` is padding. token_types: [B, T], all 0 unless given. The heads read tokens, never the
        prompt's positions.
        """
        encoded, states = self.encode(tokens, conditioning, token_types, hidden=True, keep=hidden)
        x = encoded.hidden[:, conditioning.encoder.prompt_length :]
        logits = self.mlm_head(x, self.token_embedder.embedding) if self.config.mlm_head else None
        pooled, class_logits = self.pooled_head(x[:, 0]) if self.config.pooled_head else (None, None)
        return Output(encoded, logits, pooled, class_logits, states)

    def embed(self, tokens: Array) -> Array:
        """[B, T] -> [B, T, D]: the token embeddings alone, which prompts and slots stand beside."""
        return self.token_embedder(tokens)

    def encode(
        self,
        tokens: Array,
        conditioning: Conditioning = Conditioning(),
        token_types: Array | None = None,
        hidden: bool = False,
        keep: bool = True,
    ):
        """Runs the encoder. Returns Encoded, or (Encoded, hidden states [L + 1, B, P + T, D]) when `hidden`.

        A prompt and slots stand for token embeddings: positions and token types (a prompt's is 0) are added to them. Valid
        positions are counted, so padding may stand anywhere and a masked prompt position changes nothing.
        """
        c, stack = self.config, conditioning.encoder
        check(conditioning, c, "encoder", tokens.shape[0])
        P, T = stack.prompt_length, tokens.shape[1]
        if P + T > c.max_length:
            raise UserError(
                f"{T} tokens and a prompt of {P} are more than the {c.max_length} positions of this backbone."
            )
        if token_types is not None and token_types.shape != tokens.shape:
            raise UserError(f"token_types have shape {token_types.shape}, but tokens {tokens.shape}.")
        if token_types is not None and not isinstance(token_types, jax.core.Tracer):
            if (most := int(np.max(token_types))) >= c.num_token_types:
                raise UserError(f"A token type is {most}; this backbone has {c.num_token_types}, from 0 on.")
        seq = masks.sequence(stack, tokens != c.pad_id)
        x = put_prompt(put_slots(self.token_embedder(tokens), stack), stack)
        positions = jnp.maximum(jnp.cumsum(seq.valid, axis=1, dtype=jnp.int32) - 1, 0)
        types = jnp.zeros((1, P + T), jnp.int32) if token_types is None else jnp.pad(token_types, ((0, 0), (P, 0)))
        x = x + self.position_embedder(positions + c.position_offset) + self.token_type_embedder(types)
        x = nn.with_logical_constraint(x, ("batch", "length", "embed"))
        context = Context(
            masks.attention_mask(seq), layer_prompt_mode=stack.layer_prompt_mode, keep_hidden=hidden and keep
        )
        x, states = self.encoder(x, stack.layers, context)
        encoded = Encoded(x, seq.valid)
        return (encoded, states) if hidden else encoded


class Backbone(Bound):
    """A RoBERTa with its parameters bound: `embed`, `encode` and the call itself."""

    module = Roberta


def init(config: RobertaConfig, rng: Array) -> Params:
    """Random parameters in BERT's initialisation. Jit-able, so that sharded parameters are born sharded."""
    return Roberta(config).init(rng, jnp.full((1, 2), config.pad_id + 1, jnp.int32))["params"]
