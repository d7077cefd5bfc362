"""Layers: what the backward pass of a frozen one remembers, and that dropout is one mask per row."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zeroprompt_jax.models.conditioning import Sublayer
from zeroprompt_jax.models.layers import MLP, Dropout

KEY = {"dropout": jax.random.key(0)}


def test_training_through_a_frozen_mlp_remembers_its_two_products_alone():
    """Training a prompt is all activations: gelu's insides and dropout's masks would be most of them."""
    B, T, D, F = 4, 16, 8, 24
    mlp = MLP(F, D, ("gelu", "linear"), jnp.float32, 0.1)
    x = jax.ShapeDtypeStruct((B, T, D), jnp.float32)
    params = jax.eval_shape(lambda x: mlp.init(jax.random.key(0), x, Sublayer()), x)

    def backward(params, x):
        return jax.vjp(lambda x: mlp.apply(params, x, Sublayer(), rngs=KEY), x)[1]

    kept = [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(backward, params, x))]
    assert [shape for shape in kept if np.prod(shape) >= B * T * D] == [(B, T, F)] * 2


def test_dropout_is_one_mask_per_row_and_off_without_an_rng():
    x = np.random.default_rng(0).normal(size=(3, 5, 40)).astype(np.float32)
    dropped = Dropout(0.5).apply({}, x, rngs=KEY)
    ratio = dropped / x
    assert set(np.unique(np.round(ratio, 5))) == {0.0, 2.0} and (ratio == ratio[:, :1]).all()
    assert (ratio[0] != ratio[1]).any() and 0.3 < (ratio == 0).mean() < 0.7
    np.testing.assert_array_equal(Dropout(0.5).apply({}, x), x)
    # The draws are those of flax's own layer.
    flax = type("Plain", (nn.Module,), {"__call__": nn.compact(lambda self, x: nn.Dropout(0.5, (-2,), deterministic=False)(x))})
    np.testing.assert_allclose(flax().apply({}, x, rngs=KEY), dropped, rtol=1e-6)
