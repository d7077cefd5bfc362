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
from zeroprompt_jax.methods import generated
from zeroprompt_jax.methods.base import Run, Setting
from zeroprompt_jax.methods.full import Classification, Full
from zeroprompt_jax.methods.hint import Hint
from zeroprompt_jax.methods.hypter import Hypter
from zeroprompt_jax.methods.initialisers import Uniform
from zeroprompt_jax.methods.mpt import MPT
from zeroprompt_jax.methods.prompt import Prompt
from zeroprompt_jax.models.t5 import Backbone

CONFIG = tiny_t5.config(scan_layers=False)
NAMES = ("decoder_prompt", "adding", "prefix", "series", "mpt")
ALIKE = {"full": Full(), **{name: cases.METHODS[name] for name in NAMES}}
TOLD = {
    "task": cases.per_task("mpt"),
    "instruction": Hint((generated.Prefix(2), generated.Adapter(3))),
    "pooled": Hypter((generated.Adapter(2),)),
}
METHODS = ALIKE | TOLD
ROWS, S = 3, 6


def setting(config):
    return Setting(config, ("one", "two", "three", "four"))


def batch():
    """Rows of two tasks, each with an instruction of its own."""
    encoder, decoder = tiny_t5.tokens(ROWS, 9, S)
    rows = {"encoder_input_tokens": encoder, "decoder_input_tokens": decoder, "decoder_target_tokens": decoder}
    told = {"task_ids": np.array([3, 0, 3], np.int32), "instruction_tokens": tiny_t5.tokens(ROWS, 5, seed=1)[0]}
    return {**rows, "decoder_loss_weights": (decoder > 0).astype(np.float32), **told}


def shapes(method, config=CONFIG):
    tokens = jnp.ones((1, 2))  # T5X gives floats
    module = Transformer(config, method, setting)
    if method in TOLD.values():
        init = lambda: module.init(jax.random.key(0), method=module.make)
    else:
        init = lambda: module.init(jax.random.key(0), tokens, tokens, tokens, enable_dropout=False)
    return jax.eval_shape(init)


def params(method):
    own = {"method": own} if (own := shapes(method)["params"].get("method")) else {}
    return {**tiny_t5.params(CONFIG), **jax.tree_util.tree_map_with_path(tiny_t5.draw, own)}


def flat(tree):
    return flax.traverse_util.flatten_dict(tree, sep="/")


@pytest.mark.parametrize("name", METHODS)
def test_scores_and_decodes_as_the_backbone_that_the_method_conditions(name):
    method, rows = METHODS[name], batch()
    encoder, decoder = rows["encoder_input_tokens"], jnp.asarray(rows["decoder_input_tokens"])
    module = Transformer(CONFIG, method, setting)

    def run(params):
        rest = {key: x for key, x in params.items() if key != "method"}
        backbone = Backbone(CONFIG, rest)
        want = backbone(encoder, decoder, method.condition(params.get("method", {}), rows, backbone)).logits
        apply = lambda *args, **kwargs: module.apply({"params": params}, *args, enable_dropout=False, **kwargs)
        told, _ = apply(rows, method=module.forward)
        given = {}
        if name in TOLD:
            given["conditioning"] = module.apply({"params": params}, rows, method=module.condition)
        got = apply(encoder, decoder, decoder, **given)
        encoded = apply(encoder, method=module.encode, **given)
        # T5X asks for the cache with tokens that say nothing, and then for one token at a time.
        ones = jnp.ones_like
        empty = dict(decode=True, mutable=["cache"], **given)
        _, state = apply(ones(encoder), ones(decoder), ones(decoder), **empty)

        def step(cache, token_B):
            tokens = (encoded, encoder, token_B[:, None], token_B[:, None])
            variables = {"params": params, "cache": cache}
            logits, state = module.apply(
                variables, *tokens, enable_dropout=False, max_decode_length=S, method=module.decode, **empty
            )
            return state["cache"], logits[:, 0]

        cache, logits = jax.lax.scan(step, state["cache"], decoder.T)
        return want, told, got, logits.swapaxes(0, 1), cache["cache_index"]

    want, told, got, stepped, index = tiny_t5.jit(run)(params(method))
    for logits in (told, got, stepped):
        np.testing.assert_allclose(logits, want, atol=tiny_t5.TOLERANCE)
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
    everything = name in ("full", "instruction", "pooled")
    assert trains == (found.keys() if everything else found.keys() - backbone)
    assert name != "task" or found["method/u"].shape[0] == 4


def test_what_is_frozen_gets_no_gradient():
    method, (encoder, decoder) = METHODS["decoder_prompt"], tiny_t5.tokens(ROWS, 9, S)
    score = lambda p: Transformer(CONFIG, method).apply({"params": p}, encoder, decoder, decoder, enable_dropout=False)
    grads = flat(tiny_t5.jit(jax.grad(lambda p: score(p).var()))(params(method)))
    assert {path for path, x in grads.items() if np.any(x)} == {"method/prompt", "method/decoder_prompt"}


def test_the_methods_own_losses_are_told():
    taught = Setting(CONFIG, ("one",), run=lambda path: Run({"prompt": np.ones((1, 2, CONFIG.emb_dim), np.float32)}, ["one"]))
    method = MPT(3, initialiser=Uniform(), teachers="somewhere", per_task=False)
    module = Transformer(CONFIG, method, lambda config: taught)
    init = lambda: module.init(jax.random.key(0), method=module.make)
    params = tiny_t5.jit(init)()["params"]

    def run(params):
        backbone = Backbone(CONFIG, {key: x for key, x in params.items() if key != "method"})
        outputs = method.forward(params["method"], batch(), backbone)[1]
        want = method.losses(params["method"], batch(), outputs, backbone)
        return want, module.apply({"params": params}, batch(), enable_dropout=False, method=module.forward)[1]

    want, got = tiny_t5.jit(run)(params)
    assert got.keys() == want.keys() == {"distil_logits", "distil_hidden"} and all(x > 0 for x in want.values())
    np.testing.assert_allclose([got[name] for name in want], list(want.values()), rtol=1e-5)
    tokens = jnp.ones((1, 2))
    with pytest.raises(UserError, match=r"has losses of its own \(distil_logits, distil_hidden\).*t5x_model"):
        jax.eval_shape(lambda: module.init(jax.random.key(0), tokens, tokens, tokens, enable_dropout=False))


@pytest.mark.parametrize(
    "method, why",
    [
        (Prompt(3, per_task=True), r"reads the tasks of rows.*t5x_model.EncoderDecoderModel"),
        (Hint(), "reads instructions.*t5x_model.EncoderDecoderModel"),
        (Classification(), "predicts 'labels'"),
    ],
    ids=["task", "instruction", "label"],
)
def test_a_method_that_needs_more_than_it_is_given_is_refused(method, why):
    with pytest.raises(UserError, match=why):
        shapes(method)
