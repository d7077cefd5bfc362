"""Losses as sums over tokens, so that whoever adds micro-batches or hosts can normalise once."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

Array = jax.Array


@struct.dataclass
class TokenLoss:
    """Sums over weighted target tokens, float32 scalars. `z_loss` is the part of `loss` that it added."""

    loss: Array
    z_loss: Array
    correct: Array
    tokens: Array


def cross_entropy(
    logits_BSV: Array, targets_BS: Array, weights_BS: Array, z_loss: float = 0.0, label_smoothing: float = 0.0
) -> TokenLoss:
    """Cross-entropy in float32 with T5X's z-loss, z_loss * log(Z)^2 (Mesh TensorFlow), and label smoothing.

    Smoothing takes the entropy of the smoothed target away, as T5X does, so that a perfect prediction has loss zero.
    """
    logits = logits_BSV.astype(jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    target_logit = jnp.take_along_axis(logits, targets_BS[..., None], axis=-1)[..., 0]
    loss = log_z - target_logit
    if label_smoothing:
        V = logits.shape[-1]
        on, off = 1.0 - label_smoothing, label_smoothing / (V - 1)
        entropy = -(on * np.log(on) + (V - 1) * off * np.log(off + 1e-20))
        loss = log_z - (on - off) * target_logit - off * logits.sum(-1) - entropy
    z = z_loss * jnp.square(log_z)
    correct = (logits.argmax(-1) == targets_BS).astype(jnp.float32)
    total = lambda x: jnp.sum(x * weights_BS)
    return TokenLoss(total(loss + z), total(z), total(correct), jnp.sum(weights_BS))


def log_likelihood(logits_BSV: Array, targets_BS: Array) -> Array:
    """Log-probability of each row's targets, 0 being padding: [B] float32 sums."""
    logits = logits_BSV.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets_BS[..., None], axis=-1)[..., 0] - jax.nn.logsumexp(logits, axis=-1)
    return jnp.sum(jnp.where(targets_BS > 0, chosen, 0.0), axis=-1)
