"""The training step: its loss, its gradient, micro-batches, dropout, metrics."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_model

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.methods.full import Full
from zeroprompt_jax.models import t5
from zeroprompt_jax.models.conditioning import Conditioning, Stack
from zeroprompt_jax.training import state as states
from zeroprompt_jax.training.optimizer import Optimizer, Schedule
from zeroprompt_jax.training.step import Loss, make_train_step

CONFIG = small_model.config()
FLAT = small_model.flat(CONFIG)
BATCH = small_model.batch()
LOSS = Loss(z_loss=1e-2, label_smoothing=0.1)
SGD = Optimizer("sgd", Schedule(1.0)).build(10)


@dataclasses.dataclass(frozen=True)
class Decayed(Full):
    """Full training with a further loss."""

    def losses(self, params, batch, outputs, backbone):
        size = jnp.sum(backbone.params["token_embedder"]["embedding"] ** 2)
        return {"size": 0.01 * size * batch["decoder_loss_weights"].sum()}


def stepper(config=CONFIG, method=Decayed(), **options):
    rate = Schedule(1.0, "linear").build(10)
    return small_model.jit(make_train_step(config, method, SGD, rate, LOSS, **options))


def once(step, flat=FLAT, batch=BATCH, at: int = 0):
    """State and metrics after one update from `flat`, as if `at` updates had been done."""
    state = dataclasses.replace(states.create(flat, SGD), step=jnp.int32(at))
    return jax.device_get(step(state, {}, batch))


def numpy_loss(logits, batch, z_loss, smoothing):
    """Mean over target tokens in float64."""
    logits, V, values = logits.astype(np.float64), logits.shape[-1], []
    for b, s in np.argwhere(batch["decoder_loss_weights"] > 0):
        log_z = np.log(np.exp(logits[b, s]).sum())
        soft = np.full(V, smoothing / (V - 1))
        soft[batch["decoder_target_tokens"][b, s]] = 1 - smoothing
        constant = -((1 - smoothing) * np.log(1 - smoothing) + (V - 1) * soft.min() * np.log(soft.min() + 1e-20))
        values.append(-(soft * (logits[b, s] - log_z)).sum() - constant + z_loss * log_z**2)
    return np.mean(values)


@pytest.fixture(scope="module")
def logits():
    backbone = lambda params, *tokens: t5.Backbone(CONFIG, params)(*tokens).logits
    variables = states.unflatten(FLAT)["backbone"]
    return np.asarray(small_model.jit(backbone)(variables, BATCH["encoder_input_tokens"], BATCH["decoder_input_tokens"]))


@pytest.fixture(scope="module")
def plain():
    """The compiled step, and its result on the batch."""
    step = stepper()
    return step, once(step)


def test_loss_is_the_mean_over_target_tokens(logits, plain):
    metrics = plain[1][1]
    assert metrics["loss"] == pytest.approx(numpy_loss(logits, BATCH, LOSS.z_loss, LOSS.label_smoothing), rel=1e-5)
    assert metrics["loss"] != pytest.approx(numpy_loss(logits, BATCH, 0, LOSS.label_smoothing), rel=1e-3)
    tokens = BATCH["decoder_loss_weights"].sum()
    correct = (logits.argmax(-1) == BATCH["decoder_target_tokens"]) * BATCH["decoder_loss_weights"]
    assert metrics["target_tokens"] == tokens
    assert metrics["token_accuracy"] == pytest.approx(correct.sum() / tokens)
    assert metrics["z_loss"] > 0 and metrics["learning_rate"] == 1.0


def test_update_is_the_gradient_of_the_loss(plain):
    step, (state, metrics) = plain
    gradient = {k: FLAT[k] - state.params[k] for k in FLAT}  # a rate of 1
    square = sum(np.sum(g.astype(np.float64) ** 2) for g in gradient.values())
    assert metrics["grad_norm"] == pytest.approx(np.sqrt(square), rel=1e-5)
    near = 1e-2 / np.sqrt(square)
    moved = [once(step, {k: FLAT[k] + sign * near * gradient[k] for k in FLAT})[1] for sign in (1, -1)]
    losses = [float(m["loss"]) + float(m["loss/size"]) for m in moved]
    assert (losses[0] - losses[1]) / (2 * near) == pytest.approx(square, rel=1e-2)


def test_metrics_count_the_steps(plain):
    state, metrics = once(plain[0], at=5)
    assert state.step == 6 and metrics["learning_rate"] == pytest.approx(0.5)
    assert all(value.dtype == np.float32 and value.shape == () for value in metrics.values())


def test_a_batch_without_targets_changes_nothing(plain):
    empty = {**BATCH, "decoder_loss_weights": np.zeros_like(BATCH["decoder_loss_weights"])}
    state, metrics = once(plain[0], batch=empty)
    assert metrics["loss"] == 0 and all(np.array_equal(state.params[name], FLAT[name]) for name in FLAT)


def test_micro_batches_give_the_gradient_of_the_whole_batch(plain):
    state, metrics = plain[1]
    found, found_metrics = once(stepper(accumulate=4))
    assert small_model.worst(found.params, state.params) < 1e-6
    for name, value in metrics.items():
        assert found_metrics[name] == pytest.approx(value, rel=1e-5), name
    # The micro-batches hold different numbers of tokens: a mean of their means would be another number.
    parts = [{k: v[i::4] for k, v in BATCH.items()} for i in range(4)]
    means = [once(plain[0], batch={k: np.tile(v, (4,) + (1,) * (v.ndim - 1)) for k, v in part.items()})[1] for part in parts]
    assert abs(np.mean([m["loss"] for m in means]) - metrics["loss"]) > 1e-3


def test_rows_that_do_not_divide_are_an_error():
    with pytest.raises(UserError, match="A batch of 8 rows does not divide into 3 micro-batches; 1 would"):
        once(stepper(accumulate=3))


@dataclasses.dataclass(frozen=True)
class Instructed(Full):
    """Full training, with a prompt made of the instruction's embeddings."""

    def condition(self, params, batch, backbone):
        return Conditioning(encoder=Stack(prompt=backbone.embed(batch["instruction_tokens"])))


def test_micro_batches_keep_rows_with_their_groups_instruction():
    instructions = np.random.default_rng(1).integers(2, 64, (4, 3)).astype(np.int32)  # 8 rows, two of each
    batch = {**BATCH, "instruction_tokens": instructions}
    wanted, _ = once(stepper(method=Instructed()), batch=batch)
    step = stepper(method=Instructed(), accumulate=2)
    found, _ = once(step, batch=batch)
    assert small_model.worst(found.params, wanted.params) < 1e-5
    other, _ = once(step, batch={**batch, "instruction_tokens": instructions[[0, 2, 1, 3]]})
    assert small_model.worst(other.params, wanted.params) > 1e-3
    with pytest.raises(UserError, match="4 instruction groups do not divide into 8 micro-batches; 4 would"):
        once(stepper(method=Instructed(), accumulate=8), batch=batch)


def test_further_losses_are_added_once(plain):
    name = "backbone/token_embedder/embedding"
    assert plain[1][1]["loss/size"] == pytest.approx(0.01 * np.sum(FLAT[name].astype(np.float64) ** 2), rel=1e-5)


def test_dropout_is_a_function_of_seed_and_step(plain):
    config = small_model.config(dropout_rate=0.3)
    rate = Schedule(1.0).build(10)

    @small_model.jit  # the seed as an argument: one function to compile
    def seeded(seed, state, batch):
        return make_train_step(config, Full(), SGD, rate, LOSS, seed=seed)(state, {}, batch)

    step, other = (lambda state, _, batch, seed=seed: seeded(seed, state, batch) for seed in (1, 2))
    first = once(step, at=3)
    assert small_model.same_bits(once(step, at=3), first)
    losses = {float(first[1]["loss"]), float(once(step, at=4)[1]["loss"]), float(once(other, at=3)[1]["loss"])}
    assert len({*losses, float(plain[1][1]["loss"])}) == 4


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"label_smoothing": 1.0}, "Loss.label_smoothing is 1.0; it must be at least 0 and below 1."),
        ({"label_smoothing": -0.1}, "Loss.label_smoothing is -0.1; it must be at least 0 and below 1."),
        ({"z_loss": -1e-4}, "Loss.z_loss is -0.0001; it must be at least 0."),
    ],
)
def test_losses_out_of_range(wrong, words):
    with pytest.raises(UserError) as e:
        Loss(**wrong)
    assert str(e.value) == words
