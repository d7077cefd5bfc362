import collections

import numpy as np
import pytest

from zeroprompt_jax.data import subsets
from zeroprompt_jax.errors import UserError


def uneven(seed: int, kinds: int = 9, scale: float = 30) -> dict[str, str]:
    """Tasks of types of very different sizes, in no order."""
    rng = np.random.default_rng(seed)
    names = [f"type{k}" for k in range(kinds) for _ in range(1 + int(rng.exponential(scale)))]
    return {f"task{i}": kind for i, kind in enumerate(rng.permutation(names))}


def furthest(order, types) -> float:
    """How far any beginning of the order is from any type's proportional share, in tasks."""
    total, seen, worst = collections.Counter(types.values()), collections.Counter(), 0.0
    for n, task in enumerate(order, 1):
        seen[types[task]] += 1
        worst = max(worst, max(abs(seen[k] - n * total[k] / len(types)) for k in total))
    return worst


@pytest.mark.parametrize("seed", range(8))
def test_every_beginning_has_every_types_share_within_one_task(seed):
    types = uneven(seed, kinds=2 + 3 * seed)
    order = subsets.nested_order(types, seed)
    assert sorted(order) == sorted(types)
    assert furthest(order, types) < 1
    shuffled = np.random.default_rng(seed).permutation(list(types)).tolist()
    assert furthest(shuffled, types) > 1  # the measure can fail


def test_subsets_are_nested_and_keep_the_mixtures_order():
    types = uneven(0, kinds=12, scale=80)
    assert len(types) > 800
    chosen = [subsets.choose(types, n, seed=3) for n in (20, 80, 200, 800, len(types))]
    for small, large in zip(chosen, chosen[1:], strict=False):
        assert set(small) < set(large)
    assert [len(c) for c in chosen] == [20, 80, 200, 800, len(types)]
    assert chosen[-1] == list(types) and all(c == [t for t in types if t in set(c)] for c in chosen)
    assert not set(subsets.choose(types, 20, seed=4)) <= set(chosen[1])  # another seed is another choice


def test_the_choice_depends_on_the_tasks_and_the_seed_alone():
    types = uneven(1)
    backwards = dict(reversed(types.items()))
    assert subsets.nested_order(types, 5) == subsets.nested_order(backwards, 5)
    assert subsets.nested_order(types, 5) != subsets.nested_order(types, 6)
    alike = {f"t{i}": f"type{i % 4}" for i in range(40)}
    firsts = {alike[subsets.nested_order(alike, seed)[0]] for seed in range(40)}
    assert len(firsts) == 4  # among types of one size none has a right to be first
    one = dict.fromkeys(types, "all")
    assert sorted(subsets.nested_order(one, 0)) == sorted(one)


def test_impossible_numbers_are_named():
    types = {"a": "x", "b": "y"}
    for count in (0, 3):
        with pytest.raises(UserError, match=f"Data.train_tasks {count} must be from 1 to 2"):
            subsets.choose(types, count, 0)
