import collections

import numpy as np
import pytest

from zeroprompt_jax.data import mixture
from zeroprompt_jax.errors import UserError


def plan(sizes, rates=None, rows=64, seed=0, wordings=3):
    rates = rates or mixture.rates(sizes)
    return mixture.Plan(rates, sizes, {t: wordings for t in sizes}, rows, seed)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 1000])
def test_shuffle_is_a_permutation(size):
    for key in range(20):
        keys = np.full(size, mixture.hash64(key, 5)[0])
        shuffled = mixture.shuffled_position(np.arange(size), np.full(size, size), keys)
        assert sorted(shuffled.tolist()) == list(range(size))


@pytest.mark.parametrize("size", [3, 5])
def test_every_order_of_few_examples_is_equally_likely(size):
    keys = mixture.hash64(1, np.arange(24_000))
    columns = [mixture.shuffled_position(np.full(len(keys), p), np.full(len(keys), size), keys) for p in range(size)]
    counts = np.array(list(collections.Counter(zip(*(c.tolist() for c in columns), strict=True)).values()))
    orders = int(np.prod(range(1, size + 1)))
    assert len(counts) == orders
    expected = len(keys) / orders
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < orders - 1 + 5 * np.sqrt(2 * (orders - 1))


def test_hash_is_fixed():
    # A stream must not change between versions: resumed runs would see other data.
    assert mixture.hash64(7, 1, [2, 3]).tolist() == [17454042800205077828, 3218176057848452656]


def test_first_epoch_shows_each_example_once_and_epochs_differ():
    sizes = {"a": 5, "b": 40, "c": 17}
    p = plan(sizes)
    seen = {t: [] for t in sizes}
    for w in range(8):
        draws = p.window(w)
        for t, e, epoch in zip(draws.task, draws.example, draws.epoch, strict=True):
            seen[list(sizes)[t]].append((int(epoch), int(e)))
    for task, size in sizes.items():
        for epoch in range(max(e for e, _ in seen[task])):
            assert sorted(e for k, e in seen[task] if k == epoch) == list(range(size))
        first, second = ([e for k, e in seen[task] if k == epoch] for epoch in (0, 1))
        assert len(set(first)) == size
        assert size < 6 or sorted(first) == sorted(second) and first != second


def test_windows_are_pure_functions_of_seed_and_number():
    sizes = {f"t{i}": 7 + i for i in range(9)}
    forward, backward = plan(sizes), plan(sizes)
    windows = {w: backward.window(w) for w in (6, 2, 9, 0)}
    for w in range(10):
        draws = forward.window(w)
        for field in ("task", "example", "wording", "epoch"):
            if w in windows:
                np.testing.assert_array_equal(getattr(draws, field), getattr(windows[w], field))
    assert not np.array_equal(plan(sizes, seed=1).window(0).task, plan(sizes).window(0).task)
    assert not np.array_equal(plan(sizes).window(0).task, plan(sizes).window(1).task)


def test_drawn_before_is_the_sum_of_counts():
    sizes = {f"t{i}": 7 for i in range(5)}
    p = plan(sizes, rates={f"t{i}": i + 0.5 for i in range(5)}, rows=7)
    total = np.zeros(5, int)
    for w in range(30):
        np.testing.assert_array_equal(
            plan(sizes, rates={f"t{i}": i + 0.5 for i in range(5)}, rows=7).drawn_before(w), total
        )
        np.testing.assert_array_equal(p.drawn_before(w), total)
        counts = p.counts(w)
        assert counts.sum() == 7 and (counts >= 0).all()
        total = total + counts


def test_shares_are_the_rates_in_every_window_and_exact_on_average():
    raw = {f"t{i}": 1.0 / (1 + i) for i in range(40)}
    rates = mixture.rates({t: 10 for t in raw}, "explicit", explicit=raw)
    p = plan({t: 10 for t in raw}, rates, rows=100)
    expected = np.array(list(rates.values())) * 100
    counts = np.stack([p.counts(w) for w in range(2000)])
    assert (np.abs(counts - expected) < 1).all()
    # Each window rounds at random: the error of the mean of 2,000 is far below one standard deviation of a coin.
    assert np.abs(counts.mean(axis=0) - expected).max() < 5 * 0.5 / np.sqrt(2000)


def test_wordings_are_uniform():
    p = plan({"a": 50}, rows=9000, wordings=4)
    counts = np.bincount(p.window(0).wording, minlength=4)
    assert np.abs(counts - 2250).max() < 5 * np.sqrt(9000 * 0.25 * 0.75)


def test_a_tasks_order_does_not_depend_on_its_neighbours():
    # Half an epoch: which half it is depends on the order alone.
    alone, together = plan({"a": 20}, rows=10).window(0), plan({"b": 20, "a": 20}, rows=20).window(0)
    assert set(alone.example.tolist()) == set(together.example[together.task == 1].tolist())
    assert set(alone.example.tolist()) != set(together.example[together.task == 0].tolist())
    keys = mixture.name_keys(["a", "b"])
    assert keys[0] == mixture.name_keys(["b", "a"])[1] != keys[1]


def test_rates():
    sizes = {"a": 100, "b": 300, "c": 10_000}
    assert mixture.rates(sizes) == pytest.approx({t: 1 / 3 for t in sizes})
    assert mixture.rates(sizes, "proportional")["b"] == pytest.approx(300 / 10_400)
    assert mixture.rates(sizes, "proportional", cap=300)["c"] == pytest.approx(300 / 700)
    hot = mixture.rates(sizes, "temperature", temperature=2.0)
    assert hot["c"] / hot["a"] == pytest.approx(10.0)
    assert mixture.rates(sizes, "temperature", temperature=1.0) == mixture.rates(sizes, "proportional")
    assert mixture.rates(sizes, "explicit", explicit={"a": 1, "b": 1, "c": 2})["c"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(policy="propotional"), "Did you mean 'proportional'"),
        (dict(policy="explicit", explicit={"a": 1.0}), "'bb'"),
        (dict(policy="explicit", explicit={"a": 1.0, "bb": 0.0}), "'bb'"),
        (dict(policy="explicit", explicit={"a": 1.0, "bb": 1.0, "bbb": 1.0}), "Did you mean 'bb'"),
        (dict(policy="temperature", temperature=0.0), "temperature 0"),
        (dict(policy="proportional", cap=0), "cap 0"),
    ],
)
def test_bad_rates_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        mixture.rates({"a": 1, "bb": 2}, **arguments)
    with pytest.raises(UserError, match="'empty' has no training examples"):
        mixture.rates({"empty": 0})
