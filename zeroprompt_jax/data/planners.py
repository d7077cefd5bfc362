"""Planners: which examples every row of a window of batches holds.

Each plans a window as a pure function of (seed, window number) and draws a fixed number of examples (or groups) per
window, so that what was drawn before any window is known without planning the windows before it.
"""

import abc
import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from zeroprompt_jax.data import mixture
from zeroprompt_jax.data.assemble import Assembler, Features
from zeroprompt_jax.data.mixture import Draws, hash64
from zeroprompt_jax.data.packing import best_fit, spread
from zeroprompt_jax.errors import UserError

PACKED_ROWS = 8_192  # of a window: enough that its tokens hardly differ from the mean
_PROBE = 16_384  # draws that say how many examples a row takes, roughly
_TRIALS = 4  # windows of that many, which say it exactly
_ORDER, _BATCHES, _SHARED = range(11, 14)  # keep the uses of one seed apart; mixture has those below


@dataclasses.dataclass(frozen=True)
class Drawing:
    """What draws a mixture: task to share, to number of examples and to number of wordings, and the seed."""

    rates: Mapping[str, float]
    sizes: Mapping[str, int]
    wordings: Mapping[str, int]
    seed: int

    def plan(self, rows: int) -> mixture.Plan:
        return mixture.Plan(self.rates, self.sizes, self.wordings, rows, self.seed)


@dataclasses.dataclass(frozen=True)
class Window:
    """A planned window of W batches, R rows.

    Attributes:
      draws: its E examples, row by row.
      first_R: place [R + 1] of each row's first example; None where there is one example a row.
      encoder_E, target_E: for packed rows, first column of each example.
      width_W: encoder length T of each batch, where it is not the same for all.
      limit: inputs are cut so that an example has at most so many tokens; None cuts at the feature length only.
    """

    draws: Draws
    first_R: np.ndarray | None = None
    encoder_E: np.ndarray | None = None
    target_E: np.ndarray | None = None
    width_W: np.ndarray | None = None
    limit: int | None = None


class _Planner(abc.ABC):
    """Keeps the last two windows."""

    def __init__(self):
        self._known: collections.OrderedDict[int, Window] = collections.OrderedDict()

    def window(self, window: int) -> Window:
        """Window number `window`, from 0."""
        if window not in self._known:
            self._known[window] = self._make(window)
            while len(self._known) > 2:
                self._known.popitem(last=False)
        return self._known[window]

    @abc.abstractmethod
    def _make(self, window: int) -> Window:
        """Plans the window."""


def _take(draws: Draws, order_E: np.ndarray) -> Draws:
    return Draws(draws.task[order_E], draws.example[order_E], draws.wording[order_E], draws.epoch[order_E])


class Padded(_Planner):
    """One example a row, in the order drawn."""

    def __init__(self, drawing: Drawing, batches: int, batch_size: int):
        super().__init__()
        self._plan = drawing.plan(batches * batch_size)

    def _make(self, window: int) -> Window:
        return Window(self._plan.window(window))


class Buckets(_Planner):
    """One example a row; the rows of a batch are about as long, and the batch no longer than the bucket they need.

    The window's examples are sorted by bucket and cut into batches, which come in random order. Where two buckets meet,
    a batch holds some of both.
    """

    def __init__(
        self, drawing: Drawing, assembler: Assembler, batches: int, batch_size: int, lengths: Sequence[int] = ()
    ):
        super().__init__()
        T = assembler.features.inputs
        for length in lengths:
            if not 2 <= length <= T:
                raise UserError(f"Bucket length {length} is not between 2 and the feature length inputs={T}.")
        # Quarters waste an eighth of T per row at most on average.
        self.lengths = np.unique([*(lengths or (max(2, T * k // 4) for k in (1, 2, 3))), T])
        self._seed, self._batches, self._batch_size, self._assembler = drawing.seed, batches, batch_size, assembler
        self._plan = drawing.plan(batches * batch_size)

    def _make(self, window: int) -> Window:
        draws = self._plan.window(window)
        encoder_R, _ = self._assembler.lengths(draws.task, draws.example, draws.wording)
        bucket_R = np.searchsorted(self.lengths, encoder_R)
        order_WB = np.argsort(bucket_R, kind="stable").reshape(self._batches, self._batch_size)  # draws are shuffled
        order_WB = order_WB[np.argsort(hash64(self._seed, _BATCHES, window, np.arange(self._batches)), kind="stable")]
        width_W = self.lengths[bucket_R[order_WB].max(axis=1)]
        return Window(_take(draws, order_WB.reshape(-1)), width_W=width_W)


class Grouped(_Planner):
    """Batches of G equal runs of rows, each of one task and one wording, no two of a batch the same.

    Shares are of groups, so of rows. A group takes the next examples of its task's epoch.
    """

    def __init__(self, drawing: Drawing, features: Features, batches: int, batch_size: int, groups: int):
        super().__init__()
        if not features.instructions:
            raise UserError("Grouped batches are for instructions read apart: give the feature length 'instructions'.")
        if groups < 1 or batch_size % groups:
            near = math.gcd(batch_size, groups) if groups > 0 else 1
            raise UserError(
                f"Batch size {batch_size} does not divide into {groups} instruction groups (Data.instruction_groups); "
                f"{near} would."
            )
        total = sum(drawing.rates.values())
        for task, rate in drawing.rates.items():
            # Rounded, because 1/10 × 10 may come out above 1.
            if int(np.ceil(round(rate / total * groups, 9))) > drawing.wordings[task]:
                raise UserError(
                    f"Task '{task}' has the share {rate / total:.3g} and {drawing.wordings[task]} training wordings, "
                    f"too few for batches of {groups} distinct instructions; use fewer groups."
                )
        self._drawing, self._batches, self._groups, self._rows = drawing, batches, groups, batch_size // groups
        self._plan = drawing.plan(batches * groups)  # a row of this plan is a group
        self._wordings_N = np.array([drawing.wordings[t] for t in drawing.rates], np.int64)

    def _make(self, window: int) -> Window:
        seed, W, G = self._drawing.seed, self._batches, self._groups
        counts_N = self._plan.counts(window)
        N = len(counts_N)
        # Groups of a task lie together and are dealt out one batch after the other, so a batch has as few of a task as
        # its share allows.
        tasks_N = np.argsort(hash64(seed, _ORDER, window, np.arange(N)), kind="stable")
        task_J = np.repeat(tasks_N, counts_N[tasks_N])
        rank_J = np.arange(W * G) - np.repeat(np.cumsum(counts_N[tasks_N]) - counts_N[tasks_N], counts_N[tasks_N])
        batch_J = np.arange(W * G) % W
        base_J = hash64(seed, _SHARED, window, batch_J, task_J) >> np.uint64(2)  # leaves room to add
        wording_J = (base_J.astype(np.int64) + rank_J // W) % self._wordings_N[task_J]
        place_W = np.argsort(hash64(seed, _BATCHES, window, np.arange(W)), kind="stable")
        order_J = np.lexsort((hash64(seed, _ORDER, window, N + np.arange(W * G)), place_W[batch_J]))
        task_J, rank_J, wording_J = task_J[order_J], rank_J[order_J], wording_J[order_J]
        first_J = (self._plan.drawn_before(window)[task_J] + rank_J) * self._rows
        task_R = np.repeat(task_J, self._rows)
        example_R, epoch_R = self._plan.locate(task_R, (first_J[:, None] + np.arange(self._rows)).reshape(-1))
        return Window(Draws(task_R, example_R, np.repeat(wording_J, self._rows), epoch_R))


class _ByTask(_Planner):
    """Base of planners that decide the task of every row first; each task's rows take its next examples."""

    def __init__(self, drawing: Drawing, batches: int, batch_size: int):
        super().__init__()
        self._batch_size, self._batches, self._seed = batch_size, batches, drawing.seed
        self._plan = drawing.plan(batches * batch_size)
        self._wordings_N = np.array([drawing.wordings[t] for t in drawing.rates], np.int64)
        self._before = (0, np.zeros(len(drawing.rates), np.int64))

    @abc.abstractmethod
    def _tasks(self, window: int) -> np.ndarray:
        """The task of every row of a window, [W, B]."""

    def _drawn_before(self, window: int) -> np.ndarray:
        at, total_N = self._before if self._before[0] <= window else (0, np.zeros_like(self._before[1]))
        for w in range(at, window):
            total_N = total_N + np.bincount(self._tasks(w).reshape(-1), minlength=len(total_N))
        self._before = (window, total_N)
        return total_N

    def _make(self, window: int) -> Window:
        task_R = self._tasks(window).reshape(-1)
        order_R = np.argsort(task_R, kind="stable")
        counts_N = np.bincount(task_R, minlength=len(self._wordings_N))
        within_R = np.empty_like(task_R)
        within_R[order_R] = np.arange(len(task_R)) - np.repeat(np.cumsum(counts_N) - counts_N, counts_N)
        example_R, epoch_R = self._plan.locate(task_R, self._drawn_before(window)[task_R] + within_R)
        random_R = hash64(self._seed, _SHARED, window, np.arange(len(task_R))) >> np.uint64(1)
        return Window(Draws(task_R, example_R, random_R.astype(np.int64) % self._wordings_N[task_R], epoch_R))


class FewTasks(_ByTask):
    """Each batch holds a few of the tasks: how many are drawn is uniform from 2 to all, each is drawn by its share, with
    repetition, and the rows divide evenly among them (MPT's stochastic task sampling, arXiv 2303.02861)."""

    def __init__(self, drawing: Drawing, batches: int, batch_size: int):
        super().__init__(drawing, batches, batch_size)
        N = len(drawing.rates)
        if N < 2 or batch_size < N:
            raise UserError(
                f"Batches of a few tasks need at least 2 tasks and a row for each; there are {N} tasks and {batch_size} "
                f"rows."
            )
        share_N = np.array(list(drawing.rates.values()), np.float64)
        self._edges_N = np.cumsum(share_N / share_N.sum())[:-1]

    def _tasks(self, window: int) -> np.ndarray:
        N, B, W = len(self._wordings_N), self._batch_size, self._batches
        batch_W = window * W + np.arange(W)
        count_W = 2 + (hash64(self._seed, _BATCHES, batch_W) % np.uint64(N - 1)).astype(np.int64)
        uniform_WN = (hash64(self._seed, _ORDER, batch_W[:, None], np.arange(N)) >> np.uint64(11)) * 2.0**-53
        task_WN = np.searchsorted(self._edges_N, uniform_WN, side="right")
        return np.take_along_axis(task_WN, np.sort(np.arange(B) % count_W[:, None], axis=1), axis=1)


class EveryTask(_ByTask):
    """Each batch holds equally many rows of every task, so that the slices of a bank train side by side as each would
    alone. Shares must be equal."""

    def __init__(self, drawing: Drawing, batches: int, batch_size: int):
        super().__init__(drawing, batches, batch_size)
        N = len(drawing.rates)
        if batch_size % N:
            raise UserError(f"A batch of {batch_size} rows does not hold equally many of {N} tasks; give a multiple of {N}.")
        if len({round(rate, 9) for rate in drawing.rates.values()}) > 1:
            raise UserError("Batches of every task show all tasks equally often; set Data.rates to 'uniform'.")

    def _tasks(self, window: int) -> np.ndarray:
        del window
        N = len(self._wordings_N)
        return np.tile(np.repeat(np.arange(N), self._batch_size // N), (self._batches, 1))


class Packed(_Planner):
    """Several examples a row, best fit.

    Every window draws the same number of examples: what its rows take on average, less a margin for how much that
    varies. Should a window's examples still not fit, its longest inputs are cut a little; nothing is left out.
    """

    def __init__(self, drawing: Drawing, assembler: Assembler, batches: int, batch_size: int):
        super().__init__()
        if assembler.features.instructions:
            raise UserError(
                "Packed batches hold several tasks in a row, so no instruction can condition it: leave out the feature "
                "length 'instructions', or use grouped batches."
            )
        self._seed, self._rows, self._assembler = drawing.seed, batches * batch_size, assembler
        self._plan = drawing.plan(self._draws(drawing))

    def _draws(self, drawing: Drawing) -> int:
        """How many examples fill a window's rows."""
        R = self._rows
        guess = max(R, int(_PROBE / self._needed(drawing.plan(_PROBE), 0) * R))
        plan = drawing.plan(guess)
        needed = [self._needed(plan, w) for w in range(_TRIALS)]
        # Windows of the same mixture differ little: in thousands of rows by a few. Small windows get a larger margin.
        margin = 2 * (max(needed) - min(needed)) + np.sqrt(R) / 2
        return max(R, int(guess * (R - margin) / np.mean(needed)))

    def _needed(self, plan: mixture.Plan, window: int) -> int:
        """Rows that a window's draws take."""
        draws, f = plan.window(window), self._assembler.features
        lengths = self._assembler.lengths(draws.task, draws.example, draws.wording)
        return int(best_fit(*lengths, f.inputs, f.targets).max()) + 1

    def _make(self, window: int) -> Window:
        draws, f, R = self._plan.window(window), self._assembler.features, self._rows
        for sixteenths in range(16, 0, -1):
            limit = None if sixteenths == 16 else f.inputs * sixteenths // 16
            encoder_E, target_E = self._assembler.lengths(draws.task, draws.example, draws.wording, limit)
            row_E = best_fit(encoder_E, target_E, f.inputs, f.targets)
            if row_E.max() < R:
                break
        else:
            raise UserError(
                f"Window {window} of the packed stream does not fit its {R} rows of {f.inputs} x {f.targets} tokens; "
                f"give a larger batch, or another seed."
            )
        row_E = spread(row_E, R)
        # Rows were opened for the longest examples first: shuffle them. A row keeps its examples in the order drawn.
        row_E = np.argsort(hash64(self._seed, _ORDER, window, np.arange(R)), kind="stable")[row_E]
        order_E = np.argsort(row_E, kind="stable")
        first_R = np.searchsorted(row_E[order_E], np.arange(R + 1))
        begins_E = np.repeat(first_R[:-1], np.diff(first_R))
        offsets = []
        for lengths_E in (encoder_E[order_E], target_E[order_E]):
            before_E = np.cumsum(lengths_E) - lengths_E
            offsets.append(before_E - before_E[begins_E])
        return Window(_take(draws, order_E), first_R, *offsets, limit=limit)
