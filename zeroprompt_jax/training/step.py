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

_DRAW = 2**31  # no micro-batch has this number
Array = jax.Array
Metrics = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Loss:
    """Cross-entropy per target token: the sum over the global batch, micro-batches included, divided by the number of
    target tokens (the sum of `decoder_loss_weights`). A method's further losses are added.

    Where only banks train, each task's tokens are divided by that task's number of tokens, so that a task trains in a
    mixed batch as it would alone; what is logged is then the mean over the batch's tasks."""

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
        hidden=method.reads_hidden,
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
    Randomness, of dropout and of what a method draws, is a function of (seed, step): a resumed run draws what an
    uninterrupted one would have.
    """

    def loss_sum(params, frozen, batch, rng):
        sums, extra = forward(unflatten(params, frozen), batch, method, config, loss, rng)
        return sums.loss + sum(extra.values()), (sums, extra)

    def train_step(state: State, frozen: Flat, batch) -> tuple[State, Metrics]:
        drawn = jax.random.fold_in(jax.random.key(seed), state.step)
        rng = drawn if config.dropout_rate > 0 else None
        batch = method.draw(batch, jax.random.fold_in(drawn, _DRAW))
        weights_BS = batch["decoder_loss_weights"]
        tokens = jnp.sum(weights_BS)
        scale_B, present = _shares(method, state.params, batch)
        batch = {**batch, "decoder_loss_weights": weights_BS * scale_B[:, None]}
        grad_fn = jax.grad(loss_sum, has_aux=True)
        if accumulate == 1:
            grads, (sums, extra) = grad_fn(state.params, frozen, batch, rng)
        else:
            rows = batch["decoder_target_tokens"].shape[0]
            if rows % accumulate:
                raise UserError(f"A batch of {rows} rows does not divide into {accumulate} micro-batches.")

            def micro(carry, x):
                i, part = x
                part_rng = None if rng is None else jax.random.fold_in(rng, i)
                grads, aux = grad_fn(state.params, frozen, part, part_rng)
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
        extra_args = {} if present is None else {"present": present}
        updates, opt_state = tx.update(grads, state.opt_state, state.params, **extra_args)
        units = jnp.maximum(sums.tokens, 1.0)  # 1, or the number of tasks that are weighted alike
        metrics = {
            "loss": sums.loss / units,
            "z_loss": sums.z_loss / units,
            "token_accuracy": sums.correct / units,
            "target_tokens": tokens,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": rate(state.step),
            **{f"loss/{k}": v / units for k, v in extra.items()},
        }
        metrics = {k: jnp.asarray(v, jnp.float32) for k, v in metrics.items()}
        return State(state.step + 1, optax.apply_updates(state.params, updates), opt_state), metrics

    return train_step


def _shares(method: Method, params: Flat, batch: Mapping[str, Array]) -> tuple[Array, Array | None]:
    """What each row's token weights are multiplied by, [B], and which slices of the banks are in the batch, [N] bool
    (None where there is no bank)."""
    tokens_B = jnp.sum(batch["decoder_loss_weights"], axis=-1)
    banks = [path for path in params if method.banked(path)]
    everything = jnp.full_like(tokens_B, 1.0 / jnp.maximum(tokens_B.sum(), 1.0))
    if not banks:
        return everything, None
    N = params[banks[0]].shape[0]
    if not method.per_task:
        return everything, jnp.ones(N, bool)
    ids = batch["task_ids"]
    if ids.ndim > 1:  # rows read several slices, which tasks share: all tokens weigh alike
        tokens_BF = jnp.broadcast_to(tokens_B[:, None], ids.shape)
        return everything, jax.ops.segment_sum(tokens_BF.ravel(), ids.ravel(), N) > 0
    tokens_N = jax.ops.segment_sum(tokens_B, ids, N)
    own_B = 1.0 / jnp.maximum(tokens_N[ids], 1.0)
    return own_B if len(banks) == len(params) else everything, tokens_N > 0
