"""Relatives of a T5: what stays the same when its parameters are turned, widened, disturbed or renumbered."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny_t5

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.models.conditioning import Conditioning, Stack
from zeroprompt_jax.search import variants

ENCODER, DECODER = tiny_t5.tokens()


def logits(params, config, prompt=None):
    conditioning = Conditioning() if prompt is None else Conditioning(encoder=Stack(prompt=prompt[None]))
    return tiny_t5.logits(config, ENCODER, DECODER, conditioning, weights=params)


@pytest.mark.parametrize(
    "changes", [{}, {"scan_layers": False, "logits_via_embedding": True, "mlp_activations": ("relu",)}]
)
@pytest.mark.parametrize("width", [16, 24])
def test_a_rotated_copy_is_the_same_function(changes, width):
    config = tiny_t5.config(**changes)
    params = tiny_t5.params(config)
    prompt = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    turned, other = variants.rotate(params, config, width=width)
    assert other.emb_dim == width and not other.logits_via_embedding
    # Random norms, so that forgetting to fold one, or the mean's correction in the wider stream, would show.
    np.testing.assert_allclose(logits(turned, other), logits(params, config), atol=1e-4)
    old, new = params["token_embedder"]["embedding"], turned["token_embedder"]["embedding"]
    Q = np.linalg.lstsq(old, new, rcond=None)[0]
    want = logits(params, config, prompt)
    np.testing.assert_allclose(logits(turned, other, (prompt @ Q).astype(np.float32)), want, atol=1e-4)
    if width == 16:
        assert np.abs(logits(turned, other, prompt) - want).max() > 0.1


def test_a_narrower_copy_is_refused():
    config = tiny_t5.config()
    with pytest.raises(UserError, match="width 8 cannot do what a model of width 16"):
        variants.rotate(tiny_t5.params(config), config, width=8)


def test_noise_is_as_large_as_asked():
    params = tiny_t5.params(tiny_t5.config())
    noisy = variants.add_noise(params, 0.1)
    for old, new in zip(jax.tree.leaves(params), jax.tree.leaves(noisy)):
        if old.size > 100:
            assert np.std(new - old) / np.std(old) == pytest.approx(0.1, rel=0.2)
    jax.tree.map(np.testing.assert_array_equal, variants.add_noise(params, 0.0), params)


@pytest.mark.parametrize("tied", [False, True])
def test_a_permuted_vocabulary_is_the_same_model_with_other_ids(tied):
    config = dataclasses.replace(tiny_t5.config(), logits_via_embedding=tied)
    params = tiny_t5.params(config)
    permuted = variants.permute_vocabulary(params)
    old, new = params["token_embedder"]["embedding"], permuted["token_embedder"]["embedding"]
    np.testing.assert_array_equal(old[:3], new[:3])
    new_id = np.array([int(np.flatnonzero((new == row).all(1))[0]) for row in old])  # of each old token
    assert (new_id[3:] != np.arange(3, 32)).mean() > 0.8
    found = tiny_t5.logits(config, new_id[ENCODER], new_id[DECODER], weights=permuted)
    np.testing.assert_allclose(found[..., new_id], logits(params, config), atol=1e-5)
