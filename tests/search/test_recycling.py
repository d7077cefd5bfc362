"""Maps between embedding tables: what is exactly true of them, what they refuse, and what the network learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.search import recycling
from zeroprompt_jax.search.recycling import Anchors, Combination, Linear, Network, Procrustes

D, E = 12, 18
CLOSED = (Linear(), Combination(), Procrustes(), Anchors())
name = lambda recycler: type(recycler).__name__


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def orthogonal(width, seed=3):
    return np.linalg.qr(draw(width, width, seed=seed))[0]


def recycled(source, target, prompt, recycler=Linear()):
    return np.asarray(recycling.apply(recycling.fit(source, target, recycler), prompt))


def off(a, b):
    """The largest difference, relative to the largest value."""
    return np.abs(a - b).max() / np.abs(b).max()


SOURCE, TARGET, PROMPT = draw(50, D), draw(50, E, seed=1), 5 * draw(7, D, seed=2)


@pytest.mark.parametrize("recycler", CLOSED, ids=name)
def test_to_itself_a_prompt_stays(recycler):
    assert off(recycled(SOURCE, SOURCE, PROMPT, recycler), PROMPT) < 1e-4


@pytest.mark.parametrize("recycler", CLOSED, ids=name)
def test_turned_and_scaled_tables_turn_and_scale_the_prompt(recycler):
    Q = 2.5 * orthogonal(D)
    got = recycled(SOURCE, SOURCE @ Q, PROMPT, recycler)
    assert off(got, PROMPT @ Q) < 1e-4
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 2.5 * np.linalg.norm(PROMPT, axis=1), rtol=1e-4)


def test_a_linear_relation_is_found():
    A = draw(D, E, seed=4)
    for recycler in (Linear(), Combination()):
        assert off(recycled(SOURCE, SOURCE @ A, PROMPT, recycler), PROMPT @ A) < 1e-4
    # What keeps angles, and what reads nothing else, cannot.
    for recycler in (Procrustes(), Anchors()):
        assert off(recycled(SOURCE, SOURCE @ A, PROMPT, recycler), PROMPT @ A) > 0.1


TABLES = {
    "more rows than width": SOURCE,
    "fewer rows than width": SOURCE[:5],
    "duplicated rows": np.repeat(SOURCE[:9], 4, axis=0),
    "as many, one twice": np.concatenate([SOURCE[: D - 1], SOURCE[:1]]),
    "a constant feature": SOURCE * (np.arange(D) != 3),
}


CASES = [
    *((kind, {}) for kind in TABLES),
    ("duplicated rows", {"ridge": 0.1}),
    ("fewer rows than width", {"bias": True}),
]


@pytest.mark.parametrize(("kind", "options"), CASES, ids=str)
def test_both_closed_forms_of_the_paper_are_one_map(kind, options):
    source = TABLES[kind]
    target = TARGET[: len(source)]
    a, b = (recycled(source, target, PROMPT, kind(**options)) for kind in (Linear, Combination))
    assert np.isfinite(a).all() and np.isfinite(b).all() and off(a, b) <= 1e-5


def test_normal_equations_would_not_do():
    # The negative control: what the public code solves, on repeated rows.
    source = np.repeat(SOURCE[:5], 4, axis=0)
    factor = jax.scipy.linalg.cho_factor(jnp.asarray(source.T @ source))
    assert not np.isfinite(jax.scipy.linalg.cho_solve(factor, jnp.asarray(source.T @ TARGET[:20]))).all()
    kernel = recycling.fit(source, TARGET[:20]).arrays["kernel"]
    assert np.isfinite(kernel).all() and np.abs(kernel).max() < 100


def test_fewer_rows_than_width_keep_their_space_alone():
    few = SOURCE[:5]
    inside = draw(7, 5) @ few
    outside = PROMPT - PROMPT @ np.linalg.pinv(few) @ few
    assert off(recycled(few, few, inside), inside) < 1e-4
    assert np.abs(recycled(few, few, outside)).max() < 1e-4 * np.abs(outside).max()


@pytest.mark.parametrize("recycler", [Combination(), Linear(ridge=0.1, centre=True)], ids=str)
def test_linear_maps_are_linear_and_read_each_vector_alone(recycler):
    found = recycling.fit(SOURCE, TARGET, recycler)
    one, two = PROMPT, draw(7, D, seed=8)
    run = lambda prompt: np.asarray(recycling.apply(found, prompt))
    np.testing.assert_allclose(run(2 * one + two), 2 * run(one) + run(two), atol=1e-4)
    order = np.random.default_rng(0).permutation(7)
    np.testing.assert_allclose(run(one[order]), run(one)[order], atol=1e-5)
    np.testing.assert_allclose(run(np.stack([one, two])), np.stack([run(one), run(two)]), atol=1e-5)


def test_bias_is_the_intercept_and_centring_ignores_offsets():
    source, target = SOURCE + 3, TARGET - 2
    ones = lambda x: np.concatenate([x, np.ones((len(x), 1), np.float32)], 1)
    want = ones(PROMPT) @ np.linalg.lstsq(ones(source), target, rcond=None)[0]
    assert off(recycled(source, target, PROMPT, Linear(bias=True)), want) < 1e-4
    assert off(recycled(source, target, PROMPT), want) > 0.01
    centred = recycled(source, target, PROMPT, Linear(centre=True))
    assert off(recycled(SOURCE, TARGET, PROMPT, Linear(centre=True)), centred) < 1e-4


def test_ridge_shrinks_and_the_cutoff_drops_directions():
    size = lambda recycler: np.linalg.norm(recycling.fit(SOURCE, TARGET, recycler).arrays["kernel"])
    assert size(Linear()) > size(Linear(ridge=0.1)) > size(Linear(ridge=1.0)) > 0
    rank = lambda cutoff: np.linalg.matrix_rank(
        recycling.fit(SOURCE, TARGET, Linear(cutoff)).arrays["kernel"], tol=1e-4
    )
    values = np.linalg.svd(SOURCE, compute_uv=False)
    assert rank(None) == D and rank(float(values[5] + values[6]) / 2 / values[0]) == 6


def test_procrustes_keeps_angles_whatever_the_widths():
    wide = recycling.fit(SOURCE, TARGET, Procrustes(scaled=False)).arrays["kernel"]
    np.testing.assert_allclose(wide @ wide.T, np.eye(D), atol=1e-5)
    narrow = recycling.fit(TARGET, SOURCE, Procrustes(scaled=False)).arrays["kernel"]
    np.testing.assert_allclose(narrow.T @ narrow, np.eye(D), atol=1e-5)
    # The scale is the best one.
    for source, target in ((SOURCE, TARGET), (TARGET, SOURCE)):
        kernel = np.asarray(recycling.fit(source, target, Procrustes()).arrays["kernel"])
        error = lambda c: ((c * source @ kernel - target) ** 2).sum()
        assert error(1) < min(error(0.99), error(1.01))


@pytest.mark.parametrize("recycler", [Anchors(), Network(updates=5)], ids=name)
def test_matched_norms(recycler):
    source, target = SOURCE, 4 * TARGET
    got = recycled(source, target, PROMPT, dataclasses.replace(recycler, match_norms=True))
    ratio = np.linalg.norm(target, axis=1).mean() / np.linalg.norm(source, axis=1).mean()
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), ratio * np.linalg.norm(PROMPT, axis=1), rtol=1e-4)
    assert np.isfinite(recycled(source, target, 0 * PROMPT, dataclasses.replace(recycler, match_norms=True))).all()


def test_the_network_is_deterministic_and_learns():
    target = SOURCE @ draw(D, E, seed=4) / 4
    fit = lambda **options: recycling.fit(SOURCE, target, Network(**{"updates": 400, "learning_rate": 3e-3, **options}))
    error = lambda found: float(np.mean((recycling.apply(found, SOURCE) - target) ** 2) / np.mean(target**2))
    first = fit()
    jax.tree.map(np.testing.assert_array_equal, first.arrays, fit().arrays)
    assert error(first) < 0.05 < 0.5 < error(fit(updates=1))
    assert first.arrays["kernel_0"].shape == (D, 4 * E)
    other = recycling.apply(fit(seed=1), SOURCE)
    assert np.abs(other - recycling.apply(first, SOURCE)).max() > 1e-3


def test_the_network_is_trained_by_optax_adam():
    # The same training written plainly: rows as they are, kernels as `transform` reads them. One batch holds all rows, so
    # that their order is of no matter.
    network = Network(updates=6, batch=50, learning_rate=0.01)
    start = Network(updates=6, batch=50, learning_rate=0.0).learn(jnp.asarray(SOURCE), jnp.asarray(TARGET))
    adam, params = optax.adam(0.01), start
    state, loss = adam.init(params), lambda p: jnp.mean(optax.l2_loss(network.transform(p, SOURCE), TARGET))
    for _ in range(6):
        changes, state = adam.update(jax.grad(loss)(params), state)
        params = optax.apply_updates(params, changes)
    found = network.learn(jnp.asarray(SOURCE), jnp.asarray(TARGET))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, params)
    assert np.abs(found["kernel_0"] - start["kernel_0"]).max() > 0.03


def test_every_epoch_sees_every_row_once(monkeypatch):
    seen = []
    monkeypatch.setattr(jax.lax, "scan", lambda f, init, batches: (seen.append(np.asarray(batches)), (init, None))[1])
    Network(updates=7, batch=10).learn(jnp.asarray(SOURCE), jnp.asarray(TARGET))
    (batches,) = seen
    assert batches.shape == (7, 10)
    assert sorted(batches[:5].ravel()) == list(range(50)) and not np.array_equal(
        batches[5:7].ravel(), batches[:2].ravel()
    )
    Network(updates=3, batch=50).learn(jnp.asarray(SOURCE[:6]), jnp.asarray(TARGET[:6]))
    assert seen[1].shape == (3, 6)


def test_explained_variance_tells_related_tables():
    A = draw(D, E, seed=4)
    related = SOURCE @ A + 0.1 * TARGET
    train, test = slice(0, 40), slice(40, 50)
    share = lambda target: recycling.explained(recycling.fit(SOURCE[train], target[train]), SOURCE[test], target[test])
    assert share(related) > 0.9 and share(TARGET) < 0.3
    assert share(related[np.random.default_rng(0).permutation(50)]) < 0.3  # renumbered


def test_fit_and_apply_run_under_jit():
    run = jax.jit(lambda s, t, p: recycling.apply(recycling.fit(s, t, Linear(ridge=0.1)), p))
    np.testing.assert_allclose(
        run(SOURCE, TARGET, PROMPT), recycled(SOURCE, TARGET, PROMPT, Linear(ridge=0.1)), atol=1e-5
    )


def test_refusals():
    bad = SOURCE.copy()
    bad[3, 3] = np.nan
    found = recycling.fit(SOURCE, TARGET)
    for call, match in (
        (lambda: recycling.fit(SOURCE[0], TARGET), r"source's embeddings have shape \[12\]"),
        (lambda: recycling.fit(SOURCE, TARGET[:9]), "source has 50 rows of embeddings and the target 9"),
        (lambda: recycling.fit(SOURCE[:1], TARGET[:1]), "too few rows to fit a map to: 1"),
        (lambda: recycling.fit(bad, TARGET), "There are 1 values that are NaN or infinite in the source's"),
        (lambda: recycling.fit(SOURCE, np.inf * TARGET), "There are 900 values .* in the target's embeddings"),
        (
            lambda: recycling.apply(found, TARGET),
            r"prompt has shape \[50, 18\], and the source's embeddings have width 12",
        ),
        (lambda: recycling.apply(found, bad), "There are 1 values .* in the prompt"),
        (lambda: Linear(cutoff=1.0), "Linear.cutoff is 1.0"),
        (lambda: Combination(ridge=-1), "Combination.ridge is -1"),
        (lambda: Network(updates=0), "Network.updates is 0"),
    ):
        with pytest.raises(UserError, match=match):
            call()
