"""Banks: in a mixed batch every task computes and trains as it would alone, and what is absent stays as it is."""

import dataclasses
import functools
import re

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_model
import tiny_t5
from cases import METHODS, PRESENT

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.methods.bank import check_ids, take
from zeroprompt_jax.methods.full import Full
from zeroprompt_jax.training import state as states
from zeroprompt_jax.training.optimizer import Optimizer, Schedule
from zeroprompt_jax.training.step import make_train_step

STEPS = 10
LEAVES = 5  # the step from which task 0 has no targets any more
EVERY = pytest.mark.parametrize("name", METHODS)
# Each costs ten seconds of compiling; the variants are left to the slow tests.
VARIANTS = ("decoder_prompt", "replacing", "adding", "prefix_mlp", "parallel")
TRAINED = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in VARIANTS)) for name in METHODS]
)
SCHEDULE = Schedule(0.005, "linear")
OPTIMIZERS = [Optimizer(kind, SCHEDULE, weight_decay=1e-3, clip_norm=1e-2) for kind in ("adamw", "adafactor")]


def optimizer(method) -> optax.GradientTransformationExtraArgs:
    """AdamW or Adafactor, as the state says, so that one program trains with both. The state also keeps the gradient."""
    either = [settings.build(2 * STEPS, method.banked) for settings in OPTIMIZERS]

    def init(params):
        return {"which": jnp.int32(0), "gradient": params, "inner": tuple(tx.init(params) for tx in either)}

    def update(gradient, state, params, **extra):
        moves, inner = zip(*[tx.update(gradient, own, params, **extra) for tx, own in zip(either, state["inner"])])
        move = jax.tree.map(lambda *each: jnp.where(state["which"] == 0, *each), *moves)
        return move, {"which": state["which"], "gradient": gradient, "inner": inner}

    return optax.GradientTransformationExtraArgs(init, update)


def create(method, params, which):
    state = states.create(params, optimizer(method))
    return dataclasses.replace(state, opt_state={**state.opt_state, "which": which})


@functools.cache
def start(name):
    """The compiled function (bank, which optimizer) -> training state."""
    return tiny_t5.jit(functools.partial(create, cases.per_task(name)))


def step_of(method):
    return make_train_step(cases.CONFIG, method, optimizer(method), SCHEDULE.build(2 * STEPS))


@functools.cache
def mixed(name):
    """The compiled training step of all tasks together."""
    method = cases.per_task(name)
    state = jax.eval_shape(start(name), cases.bank(name), np.int32(0))
    return tiny_t5.jit(step_of(method)).lower(state, cases.backbone(), cases.batch()).compile()


@functools.cache
def each_alone(name):
    """The step of a method without task ids, on the batch of one task: for eight tasks side by side."""
    method = METHODS[name]
    start_each = jax.vmap(functools.partial(create, method), in_axes=(0, None))
    return tiny_t5.jit(start_each), tiny_t5.jit(jax.vmap(step_of(method), in_axes=(0, None, 0)))


def batches():
    for step in range(STEPS):
        batch = cases.batch(step)
        if step >= LEAVES:
            batch["decoder_loss_weights"] = batch["decoder_loss_weights"] * (batch["task_ids"] != 0)[:, None]
        yield batch


def unequal(found, wanted) -> float:
    """The largest difference, relative to the largest value of its leaf and task; leaves [N, …]."""
    return max(small_model.worst(cases.slices(found, n), cases.slices(wanted, n)) for n in range(len(PRESENT)))


@EVERY
def test_logits_of_a_mixed_batch_are_each_tasks_own(name):
    params, batch = cases.bank(name), cases.batch()
    found = cases.logits(cases.per_task(name), params, batch)
    own = cases.apart({"task_ids": batch["task_ids"], "logits": found})["logits"]
    for place, n in enumerate(PRESENT):
        rows = {key: column[place] for key, column in cases.apart(batch).items()}
        alone = cases.logits(METHODS[name], cases.slices(params, n), rows)
        np.testing.assert_allclose(own[place], alone, atol=1e-5)
    swapped = {**batch, "task_ids": np.roll(batch["task_ids"], 1)}
    assert np.abs(cases.logits(cases.per_task(name), params, swapped) - found).max() > 1e-2


@TRAINED
@pytest.mark.parametrize("which", [0, 1], ids=["adamw", "adafactor"])
def test_tasks_train_together_as_each_would_alone(name, which):
    """Gradients after the first step and parameters after ten, with clipping; what is absent keeps every bit."""
    first = cases.bank(name)
    which = np.int32(which)
    state, (begin, alone_step) = start(name)(first, which), each_alone(name)
    opening = jax.device_get(state)
    present = cases.slices(first, PRESENT)
    alone = begin({path: leaf[:, None] for path, leaf in present.items()}, which)
    squeeze = lambda flat: {path: np.asarray(leaf)[:, 0] for path, leaf in flat.items()}
    for step, batch in enumerate(batches()):
        state, _ = mixed(name)(state, cases.backbone(), batch)
        alone, _ = alone_step(alone, cases.backbone(), cases.apart(batch))
        if step == 0:
            gradient = cases.slices(jax.device_get(state.opt_state["gradient"]), PRESENT)
            assert unequal(gradient, squeeze(alone.opt_state["gradient"])) < 1e-4
            norms = np.sqrt(sum(np.square(g.reshape(len(PRESENT), -1)).sum(1) for g in gradient.values()))
            assert (norms > OPTIMIZERS[0].clip_norm).all()  # clipping is at work in every task
        if step == LEAVES - 1:
            left = squeeze(alone.params), (cases.slices(state.params, 0), own_state(state, 0))
    wanted, (task_0, state_0) = squeeze(alone.params), left[1]
    wanted = {path: np.concatenate([left[0][path][:1], leaf[1:]]) for path, leaf in wanted.items()}  # task 0 stopped
    found = jax.device_get(state.params)
    moved = {path: leaf - present[path] for path, leaf in cases.slices(found, PRESENT).items()}
    wanted_moves = {path: leaf - present[path] for path, leaf in wanted.items()}
    assert max(np.abs(leaf - wanted[path]).max() for path, leaf in cases.slices(found, PRESENT).items()) < 1e-5
    assert unequal(moved, wanted_moves) < 2e-3  # also measured by how far they went

    assert small_model.same_bits(cases.slices(found, 0), task_0) and small_model.same_bits(own_state(state, 0), state_0)
    for n in cases.ABSENT:
        assert small_model.same_bits(cases.slices(found, n), cases.slices(first, n))
        assert small_model.same_bits(own_state(state, n), own_state(opening, n))
    assert not small_model.same_bits(own_state(state, 1), own_state(opening, 1))


def own_state(state, n):
    """The optimizer's state of one task: what is not counted for all together."""
    inner = [part for tx in state.opt_state["inner"] for part in jax.tree.leaves(tx, is_leaf=_is_bank) if _is_bank(part)]
    return [cases.slices(part.inner, n) for part in inner]


def _is_bank(part) -> bool:
    return hasattr(part, "inner") and hasattr(part, "count")


def test_clipping_together_or_counting_tokens_together_would_couple_the_tasks():
    """Negative control: one clipped norm, or one token count, for all tasks is far from each alone."""
    batch, params = cases.batch(), cases.bank("ia3")
    state, _ = mixed("ia3")(start("ia3")(params, np.int32(0)), cases.backbone(), batch)
    gradient = cases.slices(jax.device_get(state.opt_state["gradient"]), PRESENT)
    flat = np.concatenate([g.reshape(len(PRESENT), -1) for g in gradient.values()], axis=1)
    own, joint = np.linalg.norm(flat, axis=1), np.linalg.norm(flat)
    assert (joint / own).max() > 2  # jointly clipped, this task's gradient would be so much smaller
    tokens = np.bincount(batch["task_ids"], batch["decoder_loss_weights"].sum(1))[list(PRESENT)]
    assert tokens.max() > 2 * tokens.min()  # so divided by one number, tasks would weigh so unequally


@TRAINED
def test_every_declared_leaf_moves_and_no_frozen_leaf(name):
    """From the method's own first values, after twenty steps."""
    params, frozen = cases.initial(name), {path: leaf.copy() for path, leaf in cases.backbone().items()}
    state = start(name)(params, np.int32(0))
    assert state.params.keys() == states.split(frozen | params, METHODS[name].trainable)[0].keys()
    for step in range(20):
        state, _ = mixed(name)(state, frozen, cases.batch(step))
    found = jax.device_get(state.params)
    for path, leaf in found.items():
        change = np.abs(leaf - params[path]).reshape(cases.TASKS, -1)
        assert (change.max(1)[list(PRESENT)] > 1e-3).all(), path
        assert (change[list(cases.ABSENT)] == 0).all(), path
    assert small_model.same_bits(frozen, cases.backbone())


def test_a_regex_of_what_trains_that_matches_nothing_is_an_error():
    class Misspelt(type(METHODS["lora"])):
        trainable = (r"method/lora/.*", r"method/lore/.*")

    with pytest.raises(UserError, match="'method/lore/.*' matches no parameter"):
        states.split(cases.backbone() | cases.bank("lora"), Misspelt.trainable)


def weight_gradients(program: str) -> set[str]:
    """Shapes of kernels and of the embedding that some product or scatter of a compiled program makes."""
    shapes = {leaf.shape[-2:] for path, leaf in cases.backbone().items() if path.endswith(("kernel", "embedding"))}
    shapes |= {shape[::-1] for shape in shapes}
    made = re.findall(r"= f32\[([\d,]+)\]\S* (?:dot|scatter|convolution)\(", program)
    assert len(made) > 20
    return {shape for shape in made if tuple(map(int, shape.split(","))) in shapes}


@TRAINED
def test_the_compiled_step_makes_no_gradient_of_a_frozen_kernel(name):
    assert weight_gradients(mixed(name).as_text()) == set()


def test_the_compiled_step_of_full_training_makes_them_all():
    tx = optax.sgd(0.1)
    step = make_train_step(cases.CONFIG, Full(), tx, SCHEDULE.build(STEPS))
    compiled = tiny_t5.jit(step).lower(states.create(cases.backbone(), tx), {}, cases.batch()).compile()
    found = weight_gradients(compiled.as_text())
    for sides in ({"16", "8"}, {"16", "24"}, {"16", "32"}):  # D × HK, D × F, D × V
        assert any(set(shape.split(",")) == sides for shape in found)


@EVERY
def test_an_unknown_task_is_an_error_and_under_jit_nan(name):
    params, batch = cases.bank(name), cases.batch()
    known = cases.logits(cases.per_task(name), params, batch)
    for wrong in (cases.TASKS, cases.TASKS + 5, -1, -cases.TASKS, 2**31 - 1):
        ids = batch["task_ids"].copy()
        ids[5] = wrong
        found = cases.logits(cases.per_task(name), params, {**batch, "task_ids": ids})
        assert np.isnan(found[5]).all()
        np.testing.assert_array_equal(np.delete(found, 5, 0), np.delete(known, 5, 0))
    with pytest.raises(UserError, match="There is no task -1: the bank holds 10 tasks, numbered from 0 to 9"):
        cases.per_task(name).condition(states.unflatten(params)["method"], {"task_ids": np.array([0, -1])}, None)


def test_ids_are_checked():
    check_ids(np.array([0, 2, 1]), 3)
    check_ids(np.array([], int), 3)
    with pytest.raises(UserError, match="There is no task 3: the bank holds 3 tasks"):
        check_ids([0, 3], 3)
    leaf = jnp.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(take({"a": leaf}, jnp.array([2, 0, 2]))["a"], leaf[jnp.array([2, 0, 2])])
