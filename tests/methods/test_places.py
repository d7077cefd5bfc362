"""Places: every method that names some by regexes takes what they match whole, and refuses what they cannot mean."""

import cases
import jax
import numpy as np
import pytest
from cases import CONFIG

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.methods import places
from zeroprompt_jax.methods.adapter import Adapter
from zeroprompt_jax.methods.bias import Bias
from zeroprompt_jax.methods.compacter import Compacter
from zeroprompt_jax.methods.ia3 import IA3
from zeroprompt_jax.methods.lora import LoRA
from zeroprompt_jax.models import t5
from zeroprompt_jax.models.conditioning import describe


def test_places_are_the_backbones_kernels():
    """One for each kernel of a layer, with its widths."""
    for config in (CONFIG, t5.T5Config(**{**vars(CONFIG), "mlp_activations": ("relu",)})):
        shapes = jax.eval_shape(lambda: t5.init(config, jax.random.key(0)))
        names = {"attention": "self_attention", "encoder_decoder_attention": "cross_attention"}
        found = {}
        for side in ("encoder", "decoder"):
            for sublayer, inside in shapes[side]["layers"].items():
                for projection, leaves in inside.items():
                    if "kernel" in getattr(leaves, "keys", tuple)():
                        place = f"{side}/{names.get(sublayer, sublayer)}"
                        found[f"{place}/{projection}"] = leaves["kernel"].shape[1:]
                        assert leaves["kernel"].shape[0] == places.layers(config, place)
        assert found == places.projections(config)


def test_targets_are_what_regexes_match_whole():
    paths = lambda method: {path for path, _ in describe(method.build(method.init(jax.random.key(0), cases.setting())))}
    assert paths(IA3("decoder/mlp/hidden")) == {"decoder.mlp.scale.hidden"}
    assert paths(Bias(("encoder/.*/out", "decoder/mlp/wi_1"))) == {
        "encoder.self_attention.bias.out",
        "decoder.mlp.bias.wi_1",
    }
    assert len(paths(LoRA(2))) == 2 * 6 and len(paths(Bias())) == 3 * 3 + 2 * 3 and len(paths(IA3())) == 3 * 2 + 2
    assert len(paths(Adapter(2))) == 5 * 4


@pytest.mark.parametrize("kind, option", [(LoRA, "targets"), (IA3, "targets"), (Bias, "targets"), (Adapter, "sublayers")])
def test_mistakes(kind, option):
    name = f"{kind.__name__}.{option}"
    with pytest.raises(UserError, match=f"{name} is empty"):
        kind(**{option: ()})
    with pytest.raises(UserError, match=rf"{name}: '\(' is not a regular expression"):
        kind(**{option: "("})
    with pytest.raises(UserError, match=f"{name}: 'encoder/cross_attention.*' matches no place; there is encoder/self_att"):
        kind(**{option: ("decoder/.*", "encoder/cross_attention.*")}).init(jax.random.key(0), cases.setting())


def test_other_mistakes():
    for method, message in [
        (lambda: LoRA(0), "LoRA.rank is 0"),
        (lambda: Adapter(0), "Adapter.rank is 0"),
        (lambda: Adapter(placement="serial"), "Unknown adapter placement 'serial'. Did you mean 'series'"),
        (lambda: Compacter(0), "Compacter.rank is 0"),
        (lambda: Compacter(6), "Compacter.division is 4; it must be at least 1 and divide rank 6"),
        (lambda: Compacter(9, division=3).init(None, cases.setting()), "division 3 does not divide the backbone's emb_dim 16; 1 does"),
        (lambda: Adapter(activation="gelo"), "Unknown activation 'gelo'. Did you mean 'gelu'"),
    ]:
        with pytest.raises(UserError, match=message):
            method()


def test_scalings_multiply_what_is_added():
    """alpha / rank for LoRA (Hu et al. 2021, section 4.1), scaling for adapters."""
    params = LoRA(4, alpha=2.0).init(jax.random.key(0), cases.setting())
    ab = params["lora"]["decoder"]["self_attention"]["query"]
    ab["b"] = np.ones_like(ab["b"])
    made = LoRA(4, alpha=2.0).build(params).decoder.self_attention.lora["query"]
    np.testing.assert_array_equal(made.b, 0.5 * ab["b"].swapaxes(0, 1))
    np.testing.assert_array_equal(made.a, ab["a"].swapaxes(0, 1))
    bound = CONFIG.emb_dim**-0.5
    assert 0.8 * bound < np.abs(ab["a"]).max() <= bound
    params = Adapter(4).init(jax.random.key(0), cases.setting())
    inside = params["adapter"]["encoder"]["mlp"]
    inside["up"], inside["up_bias"] = np.ones_like(inside["up"]), np.ones_like(inside["up_bias"])
    made = Adapter(4, scaling=3.0).build(params).encoder.mlp.adapter
    assert (np.asarray(made.up) == 3).all() and (np.asarray(made.up_bias) == 3).all() and made.placement == "series"
