"""Soft prompts: where they stand and what they are."""

import cases
import jax
import numpy as np
import pytest
import tiny_t5
from cases import CONFIG

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.methods.initialisers import Uniform
from zeroprompt_jax.methods.prompt import Prompt
from zeroprompt_jax.models.conditioning import describe


def made(method, tasks=1):
    params = method.init(jax.random.key(1), cases.setting(tasks))
    return params, dict(describe(method.condition(params, {"task_ids": np.array([1, 0])}, None)))


def test_a_prompt_stands_where_it_is_asked_for():
    D, Le, Ld = CONFIG.emb_dim, CONFIG.num_encoder_layers, CONFIG.num_decoder_layers
    params, placed = made(Prompt(40))
    assert list(params) == ["prompt"] and placed == {"encoder.prompt": (1, 40, D)}  # for all rows, without a copy
    params, placed = made(Prompt(4, "decoder", per_task=True), tasks=3)
    assert params["decoder_prompt"].shape == (3, 4, D) and placed == {"decoder.prompt": (2, 4, D)}
    params, placed = made(Prompt(4, ("encoder", "decoder"), "replace"))
    assert params["layer_prompt"]["decoder"].shape == (1, Ld, 4, D) and list(params) == ["layer_prompt"]
    assert placed == {"encoder.layer_prompt": (Le, 1, 4, D), "decoder.layer_prompt": (Ld, 1, 4, D)}


def test_every_prompt_task_and_layer_is_drawn_apart():
    params, _ = made(Prompt(4, ("encoder", "decoder"), "add", Uniform(1.0, 2.0), per_task=True), tasks=3)
    drawn = np.concatenate([leaf.reshape(-1, 4, CONFIG.emb_dim) for leaf in jax.tree.leaves(params)])
    assert len(drawn) == 3 * (CONFIG.num_encoder_layers + CONFIG.num_decoder_layers)
    assert len(np.unique(drawn)) > 0.99 * drawn.size and drawn.min() >= 1 and drawn.max() < 2


def test_a_prompt_of_token_embeddings_is_those_tokens():
    batch, tokens = cases.batch(), np.array([5, 6, 7])
    embedding = tiny_t5.params(CONFIG)["token_embedder"]["embedding"]
    found = cases.logits(Prompt(3), {"method/prompt": embedding[tokens][None]}, batch)
    written = np.concatenate([np.tile(tokens, (len(found), 1)), batch["encoder_input_tokens"]], axis=1)
    wanted = tiny_t5.logits(CONFIG, written, batch["decoder_input_tokens"])
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(length=0), "Prompt.length is 0"),
        (dict(stacks=()), "Prompt.stacks is empty"),
        (dict(stacks=("encodr",)), "Unknown stack 'encodr'. Did you mean 'encoder'"),
        (dict(layers="replaces"), "Unknown Prompt.layers 'replaces'. Did you mean 'replace'"),
    ],
)
def test_mistakes(given, message):
    with pytest.raises(UserError, match=message):
        Prompt(**given)
