"""The module that T5X trains: its parameters and axes, scores, and decoding token by token; without T5X."""

import cases
import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_t5

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.interop.t5x_module import Transformer, trained
from zeroprompt_jax.methods.full import Classification, Full
from zeroprompt_jax.methods.hint import Hint
from zeroprompt_jax.methods.prompt import Prompt
from zeroprompt_jax.models.t5 import Backbone

CONFIG = tiny_t5.config(scan_layers=False)
NAMES = ("decoder_prompt", "adding", "prefix", "series", "mpt")
METHODS = {"full": Full(), **{name: cases.METHODS[name] for name in NAMES}}
ROWS, S = 3, 6


def shapes(method, config=CONFIG):
    tokens = jnp.ones((1, 2))  # T5X gives floats
    init = lambda: Transformer(config, method).init(jax.random.key(0), tokens, tokens, tokens, enable_dropout=False)
    return jax.eval_shape(init)


def params(method):
    own = {"method": own} if (own := shapes(method)["params"].get("method")) else {}
    return {**tiny_t5.params(CONFIG), **jax.tree_util.tree_map_with_path(tiny_t5.draw, own)}


def flat(tree):
    return flax.traverse_util.flatten_dict(tree, sep="/")


@pytest.mark.parametrize("name", METHODS)
def test_scores_and_decodes_as_the_backbone_that_the_method_conditions(name):
    method, (encoder, decoder) = METHODS[name], tiny_t5.tokens(ROWS, 9, S)
    module, decoder = Transformer(CONFIG, method), jnp.asarray(decoder)

    def run(params):
        rest = {key: x for key, x in params.items() if key != "method"}
        backbone = Backbone(CONFIG, rest)
        want = backbone(encoder, decoder, method.condition(params.get("method", {}), {}, backbone)).logits
        got = module.apply({"params": params}, encoder, decoder, decoder, enable_dropout=False)
        encoded = module.apply({"params": params}, encoder, enable_dropout=False, method=module.encode)
        # T5X asks for the cache with tokens that say nothing, and then for one token at a time.
        ones = jnp.ones_like
        empty = dict(enable_dropout=False, decode=True, mutable=["cache"])
        _, state = module.apply({"params": params}, ones(encoder), ones(decoder), ones(decoder), **empty)

        def step(cache, token_B):
            tokens = (encoded, encoder, token_B[:, None], token_B[:, None])
            logits, state = module.apply(
                {"params": params, "cache": cache}, *tokens, max_decode_length=S, method=module.decode, **empty
            )
            return state["cache"], logits[:, 0]

        cache, logits = jax.lax.scan(step, state["cache"], decoder.T)
        return want, got, logits.swapaxes(0, 1), cache["cache_index"]

    want, got, stepped, index = tiny_t5.jit(run)(params(method))
    np.testing.assert_allclose(got, want, atol=tiny_t5.TOLERANCE)
    np.testing.assert_allclose(stepped, want, atol=tiny_t5.TOLERANCE)
    assert index == S + {"decoder_prompt": 3, "adding": 2}.get(name, 0)


@pytest.mark.parametrize("name", METHODS)
def test_every_parameter_has_axes_and_lies_where_t5x_looks_for_it(name):
    made = shapes(METHODS[name])
    found, axes = flat(made["params"]), flat(nn.partitioning.get_axis_names(made["params_axes"]).unfreeze())
    assert found.keys() == axes.keys()
    known = {"vocab", "embed", "mlp", "heads", "kv", "joined_kv", "relpos_buckets", "layers", "stack", "mlp_activations"}
    for path, leaf in found.items():
        assert len(axes[path]) == len(set(axes[path])) == leaf.ndim and set(axes[path]) <= known, path
    backbone = {path for path in found if not path.startswith("method/")}
    assert backbone == flat(tiny_t5.params(CONFIG)).keys()
    trains = {path for path in found if trained(METHODS[name])(f"/{path}", None)}
    assert trains == (backbone if name == "full" else found.keys() - backbone)


def test_what_is_frozen_gets_no_gradient():
    method, (encoder, decoder) = METHODS["decoder_prompt"], tiny_t5.tokens(ROWS, 9, S)
    score = lambda p: Transformer(CONFIG, method).apply({"params": p}, encoder, decoder, decoder, enable_dropout=False)
    grads = flat(tiny_t5.jit(jax.grad(lambda p: score(p).var()))(params(method)))
    assert {path for path, x in grads.items() if np.any(x)} == {"method/prompt", "method/decoder_prompt"}


@pytest.mark.parametrize(
    "method, why",
    [(Prompt(3, per_task=True), "batches"), (Hint(), "batches"), (Classification(), "loss of its own")],
    ids=["task", "instruction", "loss"],
)
def test_a_method_that_needs_more_than_t5x_gives_is_refused(method, why):
    with pytest.raises(UserError, match=why):
        shapes(method)
