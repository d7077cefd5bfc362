"""Mixtures: how often each task is drawn, and the plan that says which example is drawn when.

The plan is a pure function of (seed, window number). All randomness is a hash of integers, so it does not change with
numpy's version, and any window can be had without the ones before it.
"""

import dataclasses
import hashlib
from collections.abc import Mapping

import numpy as np

from zeroprompt_jax.errors import UserError, unknown

POLICIES = ("uniform", "proportional", "temperature", "explicit")
_ROUNDS = (
    32  # of the shuffle; 6 log2(n) is the bound for adversaries, position and pair counts look uniform from half of it
)
_COUNTS, _ROWS, _WORDINGS, _EXAMPLES = range(1, 5)  # keep the uses of one seed apart


def hash64(seed: int, *parts) -> np.ndarray:
    """A uniform uint64 for each combination of integers (SplitMix64's finaliser over every part). Parts broadcast;
    [...] uint64 of at least one dimension."""
    with np.errstate(over="ignore"):
        h = _mix(np.array([seed % (1 << 64)], np.uint64))
        for part in parts:
            h = _mix(h ^ _mix(np.atleast_1d(np.asarray(part)).astype(np.uint64)))
    return h


def _mix(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def name_keys(names) -> np.ndarray:
    """A uint64 [N] per name, so that a task's order does not depend on which other tasks are in the mixture."""
    return np.array(
        [int.from_bytes(hashlib.blake2b(n.encode(), digest_size=8).digest(), "little") for n in names], np.uint64
    )


def shuffled_position(position_N: np.ndarray, size_N: np.ndarray, key_N: np.ndarray) -> np.ndarray:
    """Where `position` of 0 … size - 1 goes under the permutation named by `key`; each row has its own size and key.

    The swap-or-not shuffle (Hoang, Morris, Rogaway 2012): a permutation of any size is evaluated at single places, so
    epochs over a billion examples need no memory.
    """
    x, n = position_N.astype(np.uint64), size_N.astype(np.uint64)
    with np.errstate(over="ignore"):
        for r in range(_ROUNDS):
            key = _mix(key_N + np.uint64(r + 1) * np.uint64(0xD1342543DE82EF95))
            partner = (key % n + n - x) % n
            swap = (_mix(key ^ _mix(np.maximum(x, partner))) >> np.uint64(33)) & np.uint64(1) == 1
            x = np.where(swap, partner, x)
    return x.astype(np.int64)


def in_epochs(at_N: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Which of `size` items each draw takes, [N], counted from 0: all of them once, then all again in another order."""
    return shuffled_position(at_N % size, np.full(len(at_N), size), hash64(seed, at_N // size))


def rates(
    sizes: Mapping[str, int],
    policy: str = "uniform",
    *,
    cap: int | None = None,
    temperature: float = 1.0,
    explicit: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Shares of the tasks in a mixture; they sum to 1.

    Args:
      sizes: task to its number of training examples.
      policy: `uniform`; `proportional` to min(size, cap); `temperature`, the same to the power 1/temperature (T5's
        mixtures: 1 is proportional, large is near uniform); `explicit`, proportional to the numbers given.
      cap: artificial size limit K; none by default.
      temperature: for that policy, above zero.
      explicit: task to relative rate, for that policy; exactly the tasks in `sizes`.

    Raises:
      UserError: unknown policy, no tasks, a task without training examples, bad numbers.
    """
    if policy not in POLICIES:
        raise unknown("rate policy", policy, POLICIES)
    if not sizes:
        raise UserError("A mixture needs at least one task.")
    for task, size in sizes.items():
        if size < 1:
            raise UserError(
                f"Task '{task}' has no training examples in the cache, so it cannot be part of a training mixture."
            )
    if cap is not None and cap < 1:
        raise UserError(f"Mixture cap {cap} must be at least 1.")
    if not temperature > 0:
        raise UserError(f"Mixture temperature {temperature:g} must be above zero.")
    if policy == "explicit":
        explicit = explicit or {}
        for task in explicit:
            if task not in sizes:
                raise unknown("task in the explicit rates", task, sizes)
        for task in sizes:
            if not explicit.get(task, 0) > 0:
                raise UserError(
                    f"Explicit rates: task '{task}' has the rate {explicit.get(task)}; give a number above zero."
                )
        raw = np.array([explicit[t] for t in sizes], np.float64)
    elif policy == "uniform":
        raw = np.ones(len(sizes))
    else:
        raw = np.array([min(n, cap or n) for n in sizes.values()], np.float64)
        raw = raw ** (1 / temperature if policy == "temperature" else 1)
    return dict(zip(sizes, (raw / raw.sum()).tolist(), strict=True))


@dataclasses.dataclass(frozen=True)
class Draws:
    """What a window holds, row by row, in the order the rows are used. All [R] int64.

    Attributes:
      task: number of the task in the mixture.
      example: number of the example within the task.
      wording: number of the training wording.
      epoch: how many times the task had been gone through before.
    """

    task: np.ndarray
    example: np.ndarray
    wording: np.ndarray
    epoch: np.ndarray


class Plan:
    """Which examples a training stream draws.

    Every window of R rows gives task i its share R × rate_i of rows, rounded up or down at random by systematic
    sampling, so that shares hold in every window and are exact on average. A task goes through all its examples before
    it shows one again, in an order of its own for every epoch.

    Args:
      rates: task to share; normalised here.
      sizes: task to number of examples.
      wordings: task to number of training wordings.
      rows: R, rows per window.
      seed: of everything.
    """

    def __init__(
        self, rates: Mapping[str, float], sizes: Mapping[str, int], wordings: Mapping[str, int], rows: int, seed: int
    ):
        names = list(rates)
        share_N = np.array([rates[n] for n in names], np.float64)
        self.rows, self.seed = rows, seed
        self._edges_N = np.cumsum(share_N / share_N.sum()) * rows
        self._edges_N[-1] = rows  # so that every window has exactly this many rows
        self._sizes_N = np.array([sizes[n] for n in names], np.int64)
        self._wordings_N = np.array([wordings[n] for n in names], np.int64)
        self._keys_N = name_keys(names)
        self._before = (0, np.zeros(len(names), np.int64))

    def counts(self, window: int) -> np.ndarray:
        """Rows [N] that each task gets in a window."""
        return self._counts(np.array([window]))[0]

    def _counts(self, windows_W: np.ndarray) -> np.ndarray:
        offset_W = (hash64(self.seed, _COUNTS, windows_W) >> np.uint64(11)) * 2.0**-53
        marks_WN = np.floor(self._edges_N + offset_W[:, None]).astype(np.int64)
        return np.diff(marks_WN, axis=1, prepend=0)

    def drawn_before(self, window: int) -> np.ndarray:
        """Rows [N] that each task got in all windows before this one."""
        at, total_N = self._before
        if at > window:
            at, total_N = 0, np.zeros_like(total_N)
        step = max(1, (1 << 20) // len(total_N))
        for start in range(at, window, step):
            total_N = total_N + self._counts(np.arange(start, min(start + step, window))).sum(axis=0)
        self._before = (window, total_N)
        return total_N

    def window(self, window: int) -> Draws:
        """The rows of a window."""
        counts_N = self.counts(window)
        task_R = np.repeat(np.arange(len(counts_N)), counts_N)
        within_R = np.arange(self.rows) - np.repeat(np.cumsum(counts_N) - counts_N, counts_N)
        drawn_R = self.drawn_before(window)[task_R] + within_R
        order_R = np.argsort(hash64(self.seed, _ROWS, window, np.arange(self.rows)), kind="stable")
        task_R, drawn_R = task_R[order_R], drawn_R[order_R]
        example_R, epoch_R = self.locate(task_R, drawn_R)
        random_R = hash64(self.seed, _WORDINGS, window, np.arange(self.rows)) >> np.uint64(1)
        return Draws(task_R, example_R, random_R.astype(np.int64) % self._wordings_N[task_R], epoch_R)

    def locate(self, task_R: np.ndarray, drawn_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(example, epoch), [R] each, of the draws that come after `drawn_R` others of the same tasks."""
        epoch_R, position_R = np.divmod(drawn_R, self._sizes_N[task_R])
        keys_R = hash64(self.seed, _EXAMPLES, self._keys_N[task_R], epoch_R)
        return shuffled_position(position_R, self._sizes_N[task_R], keys_R), epoch_R
