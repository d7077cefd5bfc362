"""Analytic floating-point operations of a T5, counted from its shapes: 2 per multiply-add, matrix products only."""

import collections

from zeroprompt_jax.models.conditioning import Conditioning, projections
from zeroprompt_jax.models.t5 import T5Config


def forward(config: T5Config, batch: int, inputs: int, targets: int, prompt: int = 0) -> float:
    """FLOPs of one forward pass over `batch` rows; padding counts, as it is computed. prompt: soft prompt positions
    before the encoder's input. Embedding look-ups are free; logits are the decoder's; cross-attention projects the
    encoder's output."""
    T = inputs + prompt
    return batch * (encode(config, T) + decode(config, T, targets, targets))


def _layer(config: T5Config) -> int:
    """Multiply-adds per token of self-attention's projections and the MLP."""
    D, joined = config.emb_dim, config.num_heads * config.head_dim
    return 4 * D * joined + (len(config.mlp_activations) + 1) * D * config.mlp_dim


def encode(config: T5Config, length: int) -> float:
    """FLOPs of the encoder on one row of so many positions."""
    joined = config.num_heads * config.head_dim
    return 2.0 * config.num_encoder_layers * (length * _layer(config) + 2 * length**2 * joined)


def decode(config: T5Config, encoded: int, length: int, targets: int) -> float:
    """FLOPs of the decoder on one row: `length` positions, `targets` of them with logits, over so many encoded ones."""
    D, joined = config.emb_dim, config.num_heads * config.head_dim
    own = length * _layer(config) + 2 * length**2 * joined
    cross = 2 * (length + encoded) * D * joined + 2 * length * encoded * joined
    return 2.0 * (config.num_decoder_layers * (own + cross) + targets * D * config.vocab_size)


def conditioned(config: T5Config, conditioning: Conditioning, inputs: int, targets: int) -> dict[str, float]:
    """FLOPs of one conditioned row by part; only shapes are read.

    encoder, decoder: the backbone's, prompt positions included; prefixes, adapters, lora: what these add; memory:
    scores and values over the memory; memory_keys: its projection to keys and values, which lowering does once per
    task.
    """
    stacks = {"encoder": conditioning.encoder, "decoder": conditioning.decoder}
    T, S = inputs + stacks["encoder"].prompt_length, targets + stacks["decoder"].prompt_length
    joined, L = config.num_heads * config.head_dim, config.num_decoder_layers
    M = 0 if conditioning.memory is None else conditioning.memory.shape[1]
    found = collections.Counter(encoder=encode(config, T), decoder=decode(config, T, S, targets))
    for side, stack in stacks.items():
        for name, sizes in projections(config, side).items():
            sub, length = getattr(stack, name), T if side == "encoder" else S
            if sub.prefix is not None:
                layers, _, P = sub.prefix.key.shape[:3]
                found["prefixes"] += 4.0 * layers * length * P * joined
            if sub.adapter is not None:
                layers, _, D, R = sub.adapter.down.shape
                found["adapters"] += 4.0 * layers * length * D * R
            for projection, lora in (sub.lora or {}).items():
                layers, _, _, R = lora.a.shape
                each = 2.0 * layers * R * sum(sizes[projection])
                reads_encoder = name == "cross_attention" and projection in ("key", "value")
                found["lora"] += each * (T if reads_encoder else length)
                found["memory_keys"] += each * M * reads_encoder
    found["memory"] = 4.0 * L * S * M * joined
    found["memory_keys"] += 4.0 * L * M * config.emb_dim * joined
    return {part: flops for part, flops in found.items() if flops}


def train(config: T5Config, batch: int, inputs: int, targets: int, prompt: int = 0, frozen: bool = False) -> float:
    """FLOPs of a training step: the backward pass costs two forwards, one when the backbone is frozen (gradients of
    activations but not of weights). Padding counts. Neither the optimizer nor rematerialisation is counted: the former
    does not grow with the batch, the latter is not useful work."""
    return forward(config, batch, inputs, targets, prompt) * (2 if frozen else 3)


def train_conditioned(
    config: T5Config, conditioning: Conditioning, batch: int, inputs: int, targets: int, frozen: bool = False
) -> float:
    """As `train`, of a model with this conditioning, of which only shapes are read; what makes it is not counted."""
    return batch * sum(conditioned(config, conditioning, inputs, targets).values()) * (2 if frozen else 3)


def score(config: T5Config, batch: int, inputs: int, targets: int, options: float) -> float:
    """FLOPs of the log-likelihoods of `options` answers (on average) of `targets` tokens for each of `batch` inputs: the
    encoder, and the projections of its output for cross-attention, once for all of them."""
    one = forward(config, batch, inputs, targets)
    shared = forward(config, batch, inputs, 0)
    return shared + options * (one - shared)
