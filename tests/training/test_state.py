"""What trains and what is frozen."""

import dataclasses

import jax
import numpy as np
import pytest
import small_model

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.methods.base import Method
from zeroprompt_jax.methods.full import Full
from zeroprompt_jax.methods.prompt import Prompt
from zeroprompt_jax.training import state as states
from zeroprompt_jax.training.optimizer import Optimizer, Schedule
from zeroprompt_jax.training.step import make_train_step

CONFIG = small_model.config()


@dataclasses.dataclass(frozen=True)
class DecoderMLP(Method):
    trainable = (r"backbone/decoder/.*/mlp/.*",)


def test_flatten_and_unflatten_are_inverse():
    variables = {"backbone": {"a": {"b": np.ones(2)}, "c": np.zeros(1)}, "method": {"prompt": np.ones((2, 3))}}
    flat = states.flatten(variables)
    assert list(flat) == ["backbone/a/b", "backbone/c", "method/prompt"] and states.count(flat) == 9
    assert small_model.same_bits(states.unflatten(flat), variables)
    trained, frozen = states.split(flat, ["method/.*"])
    assert small_model.same_bits(states.unflatten(trained, frozen), variables)
    assert states.unflatten({"backbone/c": 1}) == {"backbone": {"c": 1}, "method": {}}


def test_split_takes_whole_paths():
    flat = dict.fromkeys(["backbone/encoder/a", "backbone/decoder/a", "method/prompt"])
    assert states.split(flat, Full.trainable)[1] == {"method/prompt": None}
    assert list(states.split(flat, Prompt.trainable)[0]) == ["method/prompt"]
    trained, frozen = states.split(flat, [".*/decoder/.*", "method/prompt"])
    assert list(trained) == ["backbone/decoder/a", "method/prompt"] and list(frozen) == ["backbone/encoder/a"]
    assert states.split(flat, []) == ({}, flat)


@pytest.mark.parametrize("regex", ["backbone", "encoder/.*", "method/promt"])
def test_a_regex_that_matches_nothing_is_an_error(regex):
    flat = dict.fromkeys(["backbone/encoder/a", "method/prompt"])
    with pytest.raises(UserError, match=f"'{regex}' matches no parameter"):
        states.split(flat, ["method/.*", regex])


@pytest.mark.parametrize("method, name", [(Full(), "adafactor"), (Prompt(length=3), "adamw"), (DecoderMLP(), "adafactor")])
def test_declared_leaves_move_and_frozen_leaves_stay(method, name):
    flat = small_model.flat(CONFIG, method)
    params, frozen = states.split(flat, method.trainable)
    assert set(params) | set(frozen) == set(flat) and not set(params) & set(frozen)
    if isinstance(method, Prompt):
        assert list(params) == ["method/prompt"]
    elif isinstance(method, Full):
        assert not frozen
    tx = Optimizer(name, Schedule(0.03)).build(5)
    step = small_model.jit(make_train_step(CONFIG, method, tx, lambda step: 0.03))
    state, held = states.create(jax.device_put(params), tx), jax.device_put(frozen)
    batch, losses = small_model.batch(), []
    for _ in range(5):
        state, metrics = step(state, held, batch)
        losses.append(float(metrics["loss"]))
    assert int(state.step) == 5 and losses[-1] < losses[0]
    assert set(state.params) == set(params)
    still = [path for path in params if np.array_equal(state.params[path], params[path])]
    assert not still
    assert small_model.same_bits(held, frozen)


def test_frozen_leaves_have_no_optimizer_state():
    params, frozen = states.split(small_model.flat(CONFIG, DecoderMLP()), DecoderMLP.trainable)
    for name, copies in (("adamw", 2), ("adafactor", 1), ("sgd", 0)):
        state = states.create(params, Optimizer(name).build(5))
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state)]
        assert not [path for path in paths for leaf in frozen if f"'{leaf}'" in path]
        size = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim > 1)
        assert size == copies * states.count(params) < states.count(frozen)
