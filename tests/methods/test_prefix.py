"""Prefixes: the reparameterised form is the plain form, made by an MLP."""

import cases
import jax
import numpy as np
import pytest
from cases import CONFIG, METHODS

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.methods.prefix import Prefix, fold
from zeroprompt_jax.training import state as states


def test_folded_parameters_are_the_plain_methods_and_condition_alike():
    reparameterised, bank, batch = METHODS["prefix_mlp"], cases.bank("prefix_mlp"), cases.batch()
    plain = Prefix(reparameterised.length, sublayers=reparameterised.sublayers, per_task=True)
    folded = states.flatten({"method": fold(states.unflatten(bank)["method"])})
    wanted = states.flatten({"method": jax.eval_shape(lambda: plain.init(jax.random.key(0), cases.setting(cases.TASKS)))})
    assert {k: v.shape for k, v in folded.items()} == {k: v.shape for k, v in wanted.items()}
    before = cases.logits(cases.per_task("prefix_mlp"), bank, batch)
    np.testing.assert_allclose(cases.logits(plain, folded, batch), before, atol=1e-5)


def test_folding_is_the_mlp_of_the_paper():
    bank = cases.bank("prefix_mlp")
    p = {path.rpartition("/")[2]: leaf[4] for path, leaf in bank.items() if "cross_attention" in path}
    found = fold(states.unflatten(bank)["method"])["prefix"]["decoder"]["cross_attention"]["value"][4]
    for layer in range(CONFIG.num_decoder_layers):
        for position in range(2):
            hidden = np.tanh(p["embedding"][position] @ p["down"] + p["down_bias"])
            value = np.einsum("r,rhk->hk", hidden, p["value_up"][:, layer]) + p["value_bias"][layer]
            np.testing.assert_allclose(found[layer, position], value, atol=1e-6)


def test_first_values_have_the_asked_deviation():
    for method in (Prefix(200, init_std=0.5), Prefix(200, 64, 0.5)):
        params = method.init(jax.random.key(0), cases.setting())
        params = params if method.bottleneck is None else fold(params)
        for leaf in jax.tree.leaves(params):
            assert 0.25 < leaf.std() < 0.6


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(length=0), "Prefix.length is 0"),
        (dict(bottleneck=0), "Prefix.bottleneck is 0"),
        (dict(init_std=0.0), "Prefix.init_std is 0.0"),
        (dict(sublayers=".*mlp"), "Prefix.sublayers: '.*mlp' matches no place; there is encoder/self_attention, dec"),
    ],
)
def test_mistakes(given, message):
    with pytest.raises(UserError, match=message.replace("*", r"\*")):
        Prefix(**given).init(jax.random.key(0), cases.setting())
