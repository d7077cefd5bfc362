"""Methods: what they add, what trains, and what they make of a batch."""

import functools
import re

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.methods.base import Method, Setting
from zeroprompt_jax.methods.full import Full
from zeroprompt_jax.methods.prompt import Prompt
from zeroprompt_jax.models import t5
from zeroprompt_jax.models.conditioning import Conditioning, describe

CONFIG = t5.T5Config(
    vocab_size=24,
    emb_dim=8,
    num_heads=2,
    head_dim=4,
    mlp_dim=12,
    num_encoder_layers=1,
    num_decoder_layers=1,
    dtype="float32",
)
SETTING = Setting(CONFIG)
METHODS = [Full(), Prompt(length=3)]


@functools.cache
def backbone():
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: t5.init(CONFIG, jax.random.key(0)))
    return t5.Backbone(CONFIG, jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes))


def batch(rows):
    tokens = np.arange(2, 2 + rows * 5, dtype=np.int32).reshape(rows, 5) % 22 + 2
    return {"encoder_input_tokens": tokens, "decoder_input_tokens": tokens * (np.arange(5) > 0)}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_what_every_method_keeps_to(method):
    params = method.init(jax.random.key(0), SETTING)
    for path, leaf in flax.traverse_util.flatten_dict(params, sep="/").items():
        assert leaf.dtype == jnp.float32
        assert len(method.logical_axes(path)) == leaf.ndim
    with pytest.raises(KeyError):
        method.logical_axes("nothing")
    variables = {"backbone": backbone().params, "method": params}
    paths = list(flax.traverse_util.flatten_dict(variables, sep="/"))
    trained = [path for path in paths if any(re.fullmatch(pattern, path) for pattern in method.trainable)]
    assert trained == [path for path in paths if path.startswith("method/" if params else "backbone/")]
    again = method.init(jax.random.key(0), SETTING)
    jax.tree.map(np.testing.assert_array_equal, params, again)
    assert method == type(method)(**vars(method)) and hash(method) == hash(type(method)(**vars(method)))
    for rows in (1, 4):  # conditioning fits any number of rows
        made = method.condition(params, batch(rows), backbone())
        shape = jax.eval_shape(lambda *args: backbone()(*args).logits, *batch(rows).values(), made).shape
        assert shape == (rows, 5, 24)
    assert method.losses(params, batch(2), None, backbone()) == {}


def test_full_adds_nothing():
    assert Full().init(jax.random.key(0), SETTING) == {}
    assert list(describe(Full().condition({}, batch(2), backbone()))) == []
    assert Method().trainable == ()


def test_prompt_is_drawn_from_its_range_and_stands_before_the_input():
    method = Prompt(length=40, init_range=0.25)
    prompt = method.init(jax.random.key(1), SETTING)["prompt"]
    assert prompt.shape == (1, 40, 8) and 0.2 < np.abs(prompt).max() <= 0.25
    assert np.abs(prompt - method.init(jax.random.key(2), SETTING)["prompt"]).max() > 0.1
    assert method.logical_axes("prompt") == ("task", "prompt", "prompt_embed")
    assert Prompt().length == 100 and Prompt().init_range == 0.5

    made = method.condition({"prompt": prompt}, batch(4), backbone())
    assert list(describe(made)) == [("encoder.prompt", (1, 40, 8))]  # one for all rows, without a copy
    np.testing.assert_array_equal(made.encoder.prompt, prompt)


def test_prompt_of_token_embeddings_is_those_tokens():
    tokens, rows = np.array([5, 6, 7]), batch(4)
    params = {"prompt": backbone().params["token_embedder"]["embedding"][tokens][None]}
    run = jax.jit(lambda encoder, conditioning: backbone()(encoder, rows["decoder_input_tokens"], conditioning).logits)
    got = run(rows["encoder_input_tokens"], Prompt(length=3).condition(params, rows, backbone()))
    written = np.concatenate([np.tile(tokens, (4, 1)), rows["encoder_input_tokens"]], axis=1)
    want = run(written, Conditioning())
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
    assert np.abs(want - run(rows["encoder_input_tokens"], Conditioning())).max() > 0.1


def test_prompt_of_no_length_is_refused():
    with pytest.raises(UserError, match="Prompt length is 0"):
        Prompt(length=0)
