"""Methods on an encoder without a decoder: the places they find there, and what their banks do to its rows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_roberta
import tiny_t5

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.methods import places
from zeroprompt_jax.methods.adapter import Adapter
from zeroprompt_jax.methods.base import Setting
from zeroprompt_jax.methods.bias import Bias
from zeroprompt_jax.methods.ia3 import IA3
from zeroprompt_jax.methods.initialisers import SampledVocabulary
from zeroprompt_jax.methods.lora import LoRA
from zeroprompt_jax.methods.prefix import Prefix
from zeroprompt_jax.methods.prompt import Prompt
from zeroprompt_jax.models import roberta
from zeroprompt_jax.training import state as states

CONFIG = tiny_roberta.config(mlm_head=False)
TOKENS = tiny_roberta.tokens(CONFIG)
METHODS = {
    "prompt": Prompt(3),
    "adding": Prompt(2, layers="add"),
    "prefix": Prefix(2),
    "series": Adapter(3),
    "parallel": Adapter(3, "parallel", scaling=4.0, sublayers=".*mlp"),
    "lora": LoRA(2, targets=".*"),
    "ia3": IA3(),
    "bias": Bias(),
}
AT_FIRST_UNCHANGED = ("series", "parallel", "lora", "ia3", "bias")
IDS = np.array([2, 0, 0, 2], np.int32)  # of three tasks, the second is absent


def setting(tasks: int = 3) -> Setting:
    return Setting(CONFIG, tuple(map(str, range(tasks))), tiny_roberta.params(CONFIG))


@functools.cache
def _run(name):
    method = dataclasses.replace(METHODS[name], per_task=True)

    def loss(params, ids):
        backbone = roberta.Backbone(CONFIG, tiny_roberta.params(CONFIG))
        found = backbone(TOKENS, method.condition(states.unflatten(params)["method"], {"task_ids": ids}, backbone))
        return jnp.square(found.class_logits).sum(), found.class_logits

    return tiny_t5.jit(jax.grad(loss, has_aux=True))


def banks(name):
    """What makes the method's banks for three tasks, and banks as if trained: nothing zero or one, no two tasks alike."""
    method, rng = dataclasses.replace(METHODS[name], per_task=True), np.random.default_rng(0)
    make = lambda: states.flatten({"method": method.init(jax.random.key(0), setting())})
    draw = lambda path, leaf: rng.normal("scale" in path, 0.3, leaf.shape).astype(np.float32)
    return make, {path: draw(path, leaf) for path, leaf in jax.eval_shape(make).items()}


def test_places_are_the_encoders_kernels():
    shapes = jax.eval_shape(lambda: roberta.init(CONFIG, jax.random.key(0)))["encoder"]["layers"]
    found = {}
    for module, place in {"attention": "self_attention", "mlp": "mlp"}.items():
        for projection, leaves in shapes[module].items():
            found[f"encoder/{place}/{projection}"] = leaves["kernel"].shape[1:]
    assert found == places.projections(CONFIG)
    assert {places.layers(CONFIG, place) for place in found} == {CONFIG.num_encoder_layers}


@pytest.mark.parametrize("name", METHODS)
def test_in_a_mixed_batch_every_task_is_as_alone(name):
    run, (make, trained) = _run(name), banks(name)
    plain = tiny_roberta.outputs(CONFIG, TOKENS).class_logits
    gradients, mixed = jax.device_get(run(trained, IDS))
    assert np.abs(mixed - plain).max(1).min() > 1e-3
    for task in (0, 2):
        _, alone = run(trained, np.full(4, task, np.int32))
        np.testing.assert_array_equal(mixed[task == IDS], alone[task == IDS])
        assert np.abs(mixed - alone)[task != IDS].max() > 1e-3
    for path, gradient in gradients.items():
        assert (gradient[1] == 0).all() and np.abs(gradient[[0, 2]]).reshape(2, -1).max(1).min() > 0, path
    if name in AT_FIRST_UNCHANGED:
        np.testing.assert_allclose(run(tiny_t5.jit(make)(), IDS)[1], plain, atol=1e-5)


def test_a_prompt_may_start_from_the_vocabulary():
    made = Prompt(4, initialiser=SampledVocabulary()).init(jax.random.key(0), setting())["prompt"][0]
    rows = {row.tobytes() for row in tiny_roberta.params(CONFIG)["token_embedder"]["embedding"]}
    assert all(np.asarray(row).tobytes() in rows for row in made)


def test_what_an_encoder_does_not_have_is_named():
    for method, message in [
        (Prompt(2, ("encoder", "decoder")), "Prompt.stacks names 'decoder', which this backbone does not have"),
        (Prompt(2, "decoder", "add"), "Prompt.stacks names 'decoder'"),
        (LoRA(2, targets="decoder/.*"), "matches no place; there is encoder/self_attention/query.*encoder/mlp/wo"),
        (IA3("decoder/mlp/hidden"), "matches no place; .* encoder/mlp/hidden"),
        (Prefix(2, sublayers=".*/cross_attention"), "matches no place; there is encoder/self_attention"),
    ]:
        with pytest.raises(UserError, match=message):
            method.init(jax.random.key(0), setting())


D, L, F = 1024, 24, 4096
COUNTS = {
    Prompt(20): 20 * D,
    Prefix(20): L * 2 * 20 * D,
    Adapter(64): 2 * L * (2 * D * 64 + 64 + D),
    LoRA(8): L * 2 * 8 * 2 * D,
    IA3(): L * (2 * D + F),
    Bias(): L * (3 * D + F + D),
}


@pytest.mark.parametrize("method", COUNTS, ids=lambda method: type(method).__name__)
def test_numbers_of_parameters_at_roberta_large(method):
    large = roberta.RobertaConfig(emb_dim=D, num_heads=16, mlp_dim=F, num_encoder_layers=L)
    made = jax.eval_shape(lambda: method.init(jax.random.key(0), Setting(large)))
    assert states.count(states.flatten(made)) == COUNTS[method]
