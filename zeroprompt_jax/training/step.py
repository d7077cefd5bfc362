"""One training step: loss, gradient of what trains, update. The only place that differentiates."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.methods.base import Method
from zeroprompt_jax.models.objectives import cross_entropy
from zeroprompt_jax.models.t5 import Backbone, T5Config
from zeroprompt_jax.training.state import Flat, State, unflatten

Array = jax.Array
Metrics = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Loss:
    """Cross-entropy per target token: the sum over the global batch, micro-batches included, divided by the number of
    target tokens (the sum of `decoder_loss_weights`). A method's further losses are added as they are."""

    z_loss: float = 1e-4
    label_smoothing: float = 0.0


def forward(variables, batch: Mapping[str, Array], method: Method, config: T5Config, loss: Loss, rng: Array | None):
    """Runs the conditioned model on a batch. Returns (TokenLoss sums, further losses by name)."""
    backbone = Backbone(config, variables["backbone"], None if rng is None else {"dropout": rng})
    conditioning = method.condition(variables["method"], batch, backbone)
    outputs = backbone(
        batch["encoder_input_tokens"],
        batch["decoder_input_tokens"],
        conditioning,
        batch.get("encoder_segment_ids"),
        batch.get("decoder_segment_ids"),
    )
    sums = cross_entropy(
        outputs.logits,
        batch["decoder_target_tokens"],
        batch["decoder_loss_weights"],
        loss.z_loss,
        loss.label_smoothing,
    )
    return sums, method.losses(variables["method"], batch, outputs, backbone)


def make_train_step(
    config: T5Config,
    method: Method,
    tx: optax.GradientTransformation,
    rate: Callable[[Array], Array],
    loss: Loss = Loss(),
    accumulate: int = 1,
    seed: int = 0,
) -> Callable[[State, Flat, Mapping[str, Array]], tuple[State, Metrics]]:
    """The function (state, frozen, batch) -> (state, metrics), to be jitted with the state donated.

    accumulate: number of micro-batches the batch is cut into, of equal rows; the gradient is that of the whole batch.
    Dropout's randomness is a function of (seed, step): a resumed run draws what an uninterrupted one would have.
    """

    def loss_sum(params, frozen, batch, tokens, rng):
        sums, extra = forward(unflatten(params, frozen), batch, method, config, loss, rng)
        total = sums.loss / tokens + sum(extra.values()) / accumulate
        return total, (sums, extra)

    def train_step(state: State, frozen: Flat, batch) -> tuple[State, Metrics]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step) if config.dropout_rate > 0 else None
        tokens = jnp.maximum(jnp.sum(batch["decoder_loss_weights"]), 1.0)
        grad_fn = jax.grad(loss_sum, has_aux=True)
        if accumulate == 1:
            grads, (sums, extra) = grad_fn(state.params, frozen, batch, tokens, rng)
        else:
            rows = batch["decoder_target_tokens"].shape[0]
            if rows % accumulate:
                raise UserError(f"A batch of {rows} rows does not divide into {accumulate} micro-batches.")

            def micro(carry, x):
                i, part = x
                part_rng = None if rng is None else jax.random.fold_in(rng, i)
                grads, aux = grad_fn(state.params, frozen, part, tokens, part_rng)
                return jax.tree.map(jnp.add, carry, grads), aux

            # Interleaved rows, so that every device keeps a share of each micro-batch. Rows that share an instruction
            # stay together.
            units = batch["instruction_tokens"].shape[0] if "instruction_tokens" in batch else rows
            if units % accumulate:
                raise UserError(f"{units} instruction groups do not divide into {accumulate} micro-batches.")

            def interleave(x):
                x = x.reshape(units // accumulate, accumulate, x.shape[0] // units, *x.shape[1:]).swapaxes(0, 1)
                return x.reshape(accumulate, -1, *x.shape[3:])

            parts = jax.tree.map(interleave, dict(batch))
            zeros = jax.tree.map(jnp.zeros_like, state.params)
            grads, aux = jax.lax.scan(micro, zeros, (jnp.arange(accumulate), parts))
            sums, extra = jax.tree.map(lambda x: x.sum(0), aux)
            extra = {k: v / accumulate for k, v in extra.items()}
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        metrics = {
            "loss": sums.loss / tokens,
            "z_loss": sums.z_loss / tokens,
            "token_accuracy": sums.correct / tokens,
            "target_tokens": tokens,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": rate(state.step),
            **{f"loss/{k}": v for k, v in extra.items()},
        }
        metrics = {k: jnp.asarray(v, jnp.float32) for k, v in metrics.items()}
        return State(state.step + 1, optax.apply_updates(state.params, updates), opt_state), metrics

    return train_step
