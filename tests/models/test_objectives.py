"""Losses against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zeroprompt_jax.models.objectives import cross_entropy, log_likelihood

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 4, 11)).astype(np.float32) * 3
TARGETS = RNG.integers(1, 11, (3, 4)).astype(np.int32)
WEIGHTS = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0.5, 0, 0]], np.float32)


def log_softmax(logits):
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def reference(logits, targets, weights, z_loss, smoothing):
    """T5X's definition written out: cross-entropy with the smoothed target, less that target's own entropy, and z-loss."""
    V, total = logits.shape[-1], 0.0
    for b, s in np.ndindex(targets.shape):
        soft = np.full(V, smoothing / (V - 1))
        soft[targets[b, s]] = 1 - smoothing
        entropy = -sum(p * np.log(p) for p in soft if p > 0)
        log_z = np.log(np.exp(logits[b, s].astype(np.float64)).sum())
        loss = -(soft * log_softmax(logits[b, s])).sum() - entropy + z_loss * log_z**2
        total += weights[b, s] * loss
    return total


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_the_numpy_sum(z_loss, smoothing):
    found = cross_entropy(LOGITS, TARGETS, WEIGHTS, z_loss, smoothing)
    assert float(found.loss) == pytest.approx(reference(LOGITS, TARGETS, WEIGHTS, z_loss, smoothing), rel=1e-5)
    log_z = np.log(np.exp(LOGITS.astype(np.float64)).sum(-1))
    assert float(found.z_loss) == pytest.approx((z_loss * log_z**2 * WEIGHTS).sum(), rel=1e-5)
    assert float(found.tokens) == 7.5
    assert float(found.correct) == pytest.approx(((LOGITS.argmax(-1) == TARGETS) * WEIGHTS).sum())


def test_a_perfect_smoothed_prediction_has_no_loss():
    soft = np.full((1, 1, 5), 0.1 / 4, np.float32)
    soft[0, 0, 2] = 0.9
    found = cross_entropy(np.log(soft), np.array([[2]]), np.ones((1, 1)), label_smoothing=0.1)
    assert float(found.loss) == pytest.approx(0, abs=1e-6)
    assert float(cross_entropy(np.log(soft), np.array([[3]]), np.ones((1, 1)), label_smoothing=0.1).loss) > 1


def test_positions_without_weight_say_nothing():
    other = np.where(WEIGHTS > 0, TARGETS, 0)
    loud = LOGITS + 50 * (WEIGHTS == 0)[..., None] * RNG.normal(size=LOGITS.shape).astype(np.float32)
    a, b = cross_entropy(LOGITS, TARGETS, WEIGHTS, 1e-2, 0.1), cross_entropy(loud, other, WEIGHTS, 1e-2, 0.1)
    assert float(a.loss) == pytest.approx(float(b.loss), rel=1e-6) and float(a.correct) == float(b.correct)


def test_large_logits_and_bfloat16_stay_finite():
    found = cross_entropy(jnp.asarray(LOGITS * 1e4, jnp.bfloat16), TARGETS, WEIGHTS, 1e-4)
    assert found.loss.dtype == jnp.float32 and np.isfinite(found.loss)
    assert np.isfinite(jax.grad(lambda x: cross_entropy(x, TARGETS, WEIGHTS).loss)(LOGITS * 1e4)).all()


def test_gradient_is_softmax_less_target():
    found = jax.grad(lambda x: cross_entropy(x, TARGETS, WEIGHTS).loss)(LOGITS)
    wanted = (np.exp(log_softmax(LOGITS)) - np.eye(11)[TARGETS]) * WEIGHTS[..., None]
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_log_likelihood_sums_what_is_not_padding():
    targets = np.where(WEIGHTS > 0, TARGETS, 0)
    chosen = np.take_along_axis(log_softmax(LOGITS), targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(log_likelihood(LOGITS, targets), (chosen * (targets > 0)).sum(-1), rtol=1e-5)
