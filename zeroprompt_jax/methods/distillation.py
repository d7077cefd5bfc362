"""Distillation of a differently conditioned pass through the same backbone: logits and hidden states."""

import dataclasses

import jax
import jax.numpy as jnp

from zeroprompt_jax.errors import UserError, unknown
from zeroprompt_jax.methods.base import Batch
from zeroprompt_jax.models.conditioning import Conditioning
from zeroprompt_jax.models.t5 import Backbone, Output

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Distillation:
    """How much of the teacher's outputs is imitated, and how they are compared.

    The paper (MPT, §3.2) gives the two terms; it leaves open what is flagged here.

    Attributes:
      logits: weight of the KL divergence from the teacher's distribution to the student's, per target token.
      hidden: weight of the squared distance of hidden states, per position and value.
      temperature: both distributions are softened by it; the term is multiplied by its square, so that its gradient
        keeps its size (Hinton et al. 2015).
      layers: `last` compares the output of each stack, `all` every layer's, evenly.
    """

    logits: float = 0.9
    hidden: float = 0.9
    temperature: float = 1.0
    layers: str = "last"

    def __post_init__(self):
        if self.logits < 0 or self.hidden < 0:
            raise UserError(f"Distillation weights are {self.logits} and {self.hidden}; they cannot be negative.")
        if not self.temperature > 0:
            raise UserError(f"Distillation.temperature is {self.temperature}; it must be above 0.")
        if self.layers not in ("last", "all"):
            raise unknown("Distillation.layers", self.layers, ("last", "all"))


def losses(
    settings: Distillation, batch: Batch, student: Output, taught: Conditioning, backbone: Backbone
) -> dict[str, Array]:
    """The distillation terms, weighted, in the units of the batch's `decoder_loss_weights`.

    taught: what conditions the teacher; its pass is not differentiated. Prompts are left out of the comparison, as the
    teacher's may have another length, and so is padding.
    """
    if not (settings.logits or settings.hidden):
        return {}
    keep = settings.hidden > 0
    tokens, targets = batch["encoder_input_tokens"], batch["decoder_input_tokens"]
    exact = dataclasses.replace(backbone, rngs=None)  # a teacher is not dropped out
    teacher = jax.lax.stop_gradient(exact(tokens, targets, taught, hidden=keep))
    weights_BS, out = batch["decoder_loss_weights"], {}
    if settings.logits:
        out["distil_logits"] = settings.logits * _logits(settings.temperature, student, teacher, weights_BS)
    if keep:
        out["distil_hidden"] = settings.hidden * _hidden(settings.layers, student, teacher, tokens > 0, weights_BS)
    return out


def _logits(temperature: float, student: Output, teacher: Output, weights_BS: Array) -> Array:
    log_q, log_p = (jax.nn.log_softmax(o.logits.astype(jnp.float32) / temperature) for o in (student, teacher))
    return temperature**2 * jnp.sum(jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1) * weights_BS)


def _hidden(layers: str, student: Output, teacher: Output, tokens_BT: Array, weights_BS: Array) -> Array:
    # A row counts as much as its target tokens do, its positions alike.
    row_B = weights_BS.sum(-1, keepdims=True)
    own = lambda mask: row_B * mask / jnp.maximum(mask.sum(-1, keepdims=True), 1)
    total = 0.0
    for name, weight_BN in (("encoder_hidden", own(tokens_BT)), ("decoder_hidden", own(weights_BS > 0))):
        a, b = (_unit(getattr(o, name), weight_BN.shape[1], layers) for o in (student, teacher))
        total += jnp.sum(jnp.mean((a - b) ** 2, axis=(0, -1)) * weight_BN)
    return total / 2


def _unit(hidden_LBND: Array, positions: int, layers: str) -> Array:
    """Hidden states of the tokens, each scaled to a mean square of one, as the next norm will: the residual stream grows
    from layer to layer, and prompts change its size."""
    # The first entry is the embeddings, which no prompt changes.
    x = (hidden_LBND[-1:] if layers == "last" else hidden_LBND[1:])[:, :, -positions:].astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)
