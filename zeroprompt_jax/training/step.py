"""One training step: loss, gradient of what trains, update. The only place that differentiates."""

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from zeroprompt_jax.errors import UserError, check_range
from zeroprompt_jax.methods.base import Config, Method, bind
from zeroprompt_jax.models.objectives import cross_entropy
from zeroprompt_jax.training.state import Flat, State, unflatten

_DRAW = 2**31  # no micro-batch has this number
Array = jax.Array
Metrics = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Loss:
    """Cross-entropy per target token: the sum over the global batch, micro-batches included, divided by the number of
    target tokens (the sum of their weights). A method's further losses are added. Where a method tells classes apart, a
    row's label is its one target token.

    Where only banks train, each task's tokens are divided by that task's number of tokens, so that a task trains in a
    mixed batch as it would alone; what is logged is then the mean over the batch's tasks."""

    z_loss: float = 1e-4
    label_smoothing: float = 0.0

    def __post_init__(self):
        check_range(self, "z_loss", 0)
        check_range(self, "label_smoothing", 0, below=1)


def forward(variables, batch: Mapping[str, Array], method: Method, config: Config, loss: Loss, rng: Array | None):
    """Runs the conditioned model on a batch. Returns (TokenLoss sums, further losses by name)."""
    backbone = bind(config, variables["backbone"], None if rng is None else {"dropout": rng})
    logits, outputs = method.forward(variables["method"], batch, backbone)
    sums = cross_entropy(logits, batch[method.targets_in], batch[method.weights_in], loss.z_loss, loss.label_smoothing)
    return sums, method.losses(variables["method"], batch, outputs, backbone)


def make_train_step(
    config: Config,
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
        _check_columns(method, batch)
        batch = method.draw(batch, jax.random.fold_in(drawn, _DRAW))
        weights = batch[method.weights_in]
        tokens = jnp.sum(weights)
        scale_B, present = _shares(method, state.params, batch)
        batch = {**batch, method.weights_in: weights * scale_B.reshape(-1, *[1] * (weights.ndim - 1))}
        grad_fn = jax.grad(loss_sum, has_aux=True)
        if accumulate == 1:
            grads, (sums, extra) = grad_fn(state.params, frozen, batch, rng)
        else:
            rows = len(weights)
            if rows % accumulate:
                near = math.gcd(rows, accumulate)
                raise UserError(f"A batch of {rows} rows does not divide into {accumulate} micro-batches; {near} would.")

            def micro(carry, x):
                i, part = x
                part_rng = None if rng is None else jax.random.fold_in(rng, i)
                grads, aux = grad_fn(state.params, frozen, part, part_rng)
                return jax.tree.map(jnp.add, carry, grads), aux

            # Interleaved rows, so that every device keeps a share of each micro-batch. Rows that share an instruction
            # stay together.
            units = batch["instruction_tokens"].shape[0] if "instruction_tokens" in batch else rows
            if units % accumulate:
                near = math.gcd(units, accumulate)
                raise UserError(f"{units} instruction groups do not divide into {accumulate} micro-batches; {near} would.")

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


def _check_columns(method: Method, batch: Mapping[str, Array]) -> None:
    """Raises UserError where a batch lacks what the method is trained on, as an encoder's lacks a decoder's tokens."""
    for name in (method.targets_in, method.weights_in):
        if name not in batch:
            raise UserError(f"The method {type(method).__name__} trains on '{name}'; the batch has {', '.join(sorted(batch))}.")


def _shares(method: Method, params: Flat, batch: Mapping[str, Array]) -> tuple[Array, Array | None]:
    """What each row's token weights are multiplied by, [B], and which slices of the banks are in the batch, [N] bool
    (None where there is no bank)."""
    weights = batch[method.weights_in]
    tokens_B = jnp.sum(weights.reshape(weights.shape[0], -1), axis=-1)
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
