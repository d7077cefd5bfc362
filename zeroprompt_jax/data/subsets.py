"""Nested subsets of tasks, for studies of how scores grow with the number of tasks."""

from collections.abc import Mapping

import numpy as np

from zeroprompt_jax.data.mixture import hash64, name_keys
from zeroprompt_jax.errors import UserError


def nested_order(types: Mapping[str, str], seed: int) -> list[str]:
    """All tasks in an order of which every beginning is a fair sample: the first 20 lie within the first 80, and so on.

    Of the first n tasks, each type has its proportional share n × (tasks of the type) / (all tasks), give or take less
    than one task; which types come first where not all can, and which tasks of a type, is up to the seed.

    The schedule is Tijdeman's ("The chairman assignment problem", Discrete Mathematics 32, 1980), whose bound no other
    nested order improves on.

    Args:
      types: task to its type.
      seed: another seed gives another order.
    """
    names = list(types)
    members: dict[str, list[str]] = {}
    for i in np.argsort(hash64(seed, name_keys(names)), kind="stable") if names else ():
        members.setdefault(types[names[i]], []).append(names[i])
    kinds = sorted(members)
    if len(kinds) < 2:
        return members[kinds[0]] if kinds else []
    size_K = np.array([len(members[k]) for k in kinds], np.float64)
    share_K = size_K / len(names)
    tie_K = np.argsort(np.argsort(hash64(seed, name_keys(kinds))))
    slack = 1 / (2 * len(kinds) - 2)
    taken_K, order = np.zeros(len(kinds)), []
    for n in range(1, len(names) + 1):
        # The small numbers keep equal quotients equal in floating point.
        late = (n * share_K - taken_K >= slack - 1e-9) & (taken_K < size_K)
        deadline_K = np.where(late, np.round((1 - slack + taken_K) / share_K, 9), np.inf)
        chosen = int(np.lexsort((tie_K, deadline_K))[0])
        order.append(members[kinds[chosen]][int(taken_K[chosen])])
        taken_K[chosen] += 1
    return order


def choose(types: Mapping[str, str], count: int, seed: int) -> list[str]:
    """`count` of the tasks, in their given order; the choice for a smaller count is part of that for a larger one.

    Raises:
      UserError: there are not so many tasks, or `count` is below one.
    """
    if not 1 <= count <= len(types):
        raise UserError(f"Data.train_tasks {count} must be from 1 to {len(types)}, the number of tasks in the mixture.")
    chosen = set(nested_order(types, seed)[:count])
    return [name for name in types if name in chosen]
