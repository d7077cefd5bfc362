"""Analytic floating-point operations of a T5, counted from its shapes: 2 per multiply-add, matrix products only."""

from zeroprompt_jax.models.t5 import T5Config


def forward(config: T5Config, batch: int, inputs: int, targets: int, prompt: int = 0) -> float:
    """FLOPs of one forward pass over `batch` rows; padding counts, as it is computed. prompt: soft prompt positions
    before the encoder's input. Embedding look-ups are free; logits are the decoder's; cross-attention projects the
    encoder's output."""
    D, F, V = config.emb_dim, config.mlp_dim, config.vocab_size
    joined = config.num_heads * config.head_dim
    T, S = inputs + prompt, targets
    mlp = (len(config.mlp_activations) + 1) * D * F
    attention = 4 * D * joined
    encoder = config.num_encoder_layers * (T * (attention + mlp) + 2 * T * T * joined)
    decoder = config.num_decoder_layers * (
        S * (attention + mlp) + 2 * S * S * joined + (2 * S + 2 * T) * D * joined + 2 * S * T * joined
    )
    return 2.0 * batch * (encoder + decoder + S * D * V)


def train(config: T5Config, batch: int, inputs: int, targets: int, prompt: int = 0, frozen: bool = False) -> float:
    """FLOPs of a training step: the backward pass costs two forwards, one when the backbone is frozen (gradients of
    activations but not of weights). Rematerialisation is not counted: it is not useful work."""
    return forward(config, batch, inputs, targets, prompt) * (2 if frozen else 3)


def score(config: T5Config, batch: int, inputs: int, targets: int, options: float) -> float:
    """FLOPs of the log-likelihoods of `options` answers (on average) of `targets` tokens for each of `batch` inputs: the
    encoder, and the projections of its output for cross-attention, once for all of them."""
    one = forward(config, batch, inputs, targets)
    shared = forward(config, batch, inputs, 0)
    return shared + options * (one - shared)
