import numpy as np

from zeroprompt_jax.data import mixture, shares


def told(rates, sizes, draws, types=None):
    found = mixture.rates(sizes, "explicit", explicit=rates)
    return shares.describe(found, types or dict.fromkeys(sizes, "one"), sizes, draws)


def test_every_type_and_both_extremes_are_told():
    sizes = {f"t{i}": 1000 for i in range(40)}
    types = {task: f"a_long_type_name_{i % 20}" for i, task in enumerate(sizes)}
    rates = {task: 1 + i % 3 for i, task in enumerate(sizes)}
    lines = told(rates, sizes, 40_000, types)
    text = " ".join(line.strip() for line in lines)
    by_type = {kind: sum(rates[t] for t in types if types[t] == kind) for kind in types.values()}
    for kind, rate in by_type.items():
        assert f"{kind} {100 * rate / sum(rates.values()):.2g}%" in text
    assert max(map(len, lines)) <= 120
    assert "Most drawn: t11 3.8%" in text and "Least drawn: t9 1.3%" in text and "Warning" not in text


def test_equal_shares_are_one_line_and_no_warning():
    lines = told(dict.fromkeys("abcd", 7), dict.fromkeys("abcd", 100), 1000)
    assert lines == ["Shares by type: one 100.0%.", "Every task has the share 25.0%, 250 of 1,000 draws."]


def test_each_surprise_is_told_and_only_then():
    def warning(rates, sizes, draws):
        lines = told(rates, sizes, draws)
        assert sum(line.startswith("Warning") for line in lines) == lines[-1].startswith("Warning") <= 1
        return lines[-1] if lines[-1].startswith("Warning") else ""

    sizes = {f"t{i}": 1000 for i in range(50)}
    even = dict.fromkeys(sizes, 1.0)
    assert warning(even, sizes, 50_000) == ""
    small = warning(even, {**sizes, "t3": 50}, 50_000)
    assert "1 task is gone through 10 times or more in this run (most: t3, its 50 examples 20 times)" in small
    assert warning(even, {**sizes, "t3": 101}, 50_000) == ""  # 9.9 times
    large = warning({**even, "t3": 15.0}, {**sizes, "t3": 10**6}, 50_000)
    assert "1 task is drawn over 10 times as often as at equal shares (most: t3, 12 times)" in large
    assert warning({**even, "t3": 12.0}, {**sizes, "t3": 10**6}, 50_000) == ""  # 9.8 times
    rare = warning({**even, "t3": 1e-4, "t4": 1e-5}, sizes, 48_000)
    assert "2 tasks are expected less than once in this run's 48,000 draws (least: t4, 0.01)" in rare
    assert all(part in warning({**even, "t3": 40.0, "t4": 1e-5}, sizes, 48_000) for part in ("gone", "over", "less"))


def test_the_expected_numbers_are_those_that_are_drawn():
    sizes = {f"t{i}": 100 for i in range(30)}
    found = mixture.rates(sizes, "explicit", explicit={t: 1.0 + i for i, t in enumerate(sizes)})
    plan = mixture.Plan(found, sizes, dict.fromkeys(sizes, 1), rows=640, seed=1)
    expected = np.array(list(found.values())) * 640 * 20
    assert np.abs(plan.drawn_before(20) - expected).max() < 20  # within one row a window
