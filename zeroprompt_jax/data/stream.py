"""The training stream: batches as a pure function of (seed, batch number)."""

from collections.abc import Mapping, Sequence

import numpy as np

from zeroprompt_jax.data import mixture, planners
from zeroprompt_jax.data.assemble import Assembler, Features, Packing
from zeroprompt_jax.data.shards import ragged_positions
from zeroprompt_jax.data.store import Store
from zeroprompt_jax.errors import UserError, unknown

BATCHING = ("padded", "packed", "buckets", "grouped", "few_tasks", "every_task")


class TrainStream:
    """Training batches as a pure function of (seed, batch number).

    Batches are planned a window at a time, so any batch can be had without the ones before it, by any number of hosts.

    Args:
      store: cached tasks.
      rates: task to share, from `mixture.rates`.
      features: token lengths.
      batch_size: B.
      seed: of the whole stream.
      window: number of batches that are planned at once; part of what defines the stream. None is 256, and for packed
        batches as many as make 8,192 rows.
      batching: `padded` (one example a row, T = features.inputs); `packed` (several examples a row, with segment ids);
        `buckets` (rows of a batch are similarly long, and T is the shortest fitting bucket); `grouped` (a batch is
        `groups` equal runs of rows, each with one instruction of its own); `few_tasks` (padded, each batch of a random
        number of tasks); `every_task` (padded, each batch of all tasks, evenly).
      buckets: lengths T for `buckets`; features.inputs is always one of them.
      groups: G, for `grouped`.

    Raises:
      UserError: a task that is not cached or has no training examples, an instruction that does not fit, or batching
        that does not go with the features.
    """

    def __init__(
        self,
        store: Store,
        rates: Mapping[str, float],
        features: Features,
        batch_size: int,
        seed: int,
        window: int | None = None,
        batching: str = "padded",
        buckets: Sequence[int] = (),
        groups: int = 1,
    ):
        if batch_size < 1:
            raise UserError(f"Batch size {batch_size} must be at least 1.")
        if batching not in BATCHING:
            raise unknown("batching", batching, BATCHING)
        tasks = list(rates)
        sizes = {t: store.size(t, "train") for t in tasks}
        mixture.rates(sizes, "explicit", explicit=rates)  # for its checks
        wordings = [store.instructions(t) for t in tasks]
        self.tasks, self.features, self.batch_size, self.seed = tuple(tasks), features, batch_size, seed
        self.batching = batching
        self._assembler = Assembler(store, tasks, "train", features, wordings)
        self._group = 1
        if batching == "grouped" and self._assembler.brings_own:
            raise UserError(
                f"The rows of a group share an instruction, but every example of task "
                f"'{self._assembler.brings_own[0]}' brings its own; use padded batches or buckets."
            )
        counts = {t: len(w) for t, w in zip(tasks, wordings, strict=True)}
        drawing = planners.Drawing(rates, sizes, counts, seed)
        if batching == "packed":
            self._window = window or max(1, planners.PACKED_ROWS // batch_size)
            self._planner = planners.Packed(drawing, self._assembler, self._window, batch_size)
        else:
            self._window = window or 256
            if batching == "padded":
                self._planner = planners.Padded(drawing, self._window, batch_size)
            elif batching in ("few_tasks", "every_task"):
                kind = planners.FewTasks if batching == "few_tasks" else planners.EveryTask
                self._planner = kind(drawing, self._window, batch_size)
            elif batching == "buckets":
                self._planner = planners.Buckets(drawing, self._assembler, self._window, batch_size, buckets)
            else:
                self._planner = planners.Grouped(drawing, features, self._window, batch_size, groups)
                self._group = batch_size // groups

    def batch(self, n: int, rows: slice | np.ndarray = slice(None)) -> dict[str, np.ndarray]:
        """Batch number n.

        Args:
          n: from 0, without end.
          rows: the rows to make, or their numbers, when several hosts share a batch. Grouped batches come in whole
            groups.

        Returns:
          int32 `encoder_input_tokens` [B, T], `decoder_target_tokens`, `decoder_input_tokens` [B, S], float32
          `decoder_loss_weights` [B, S], `task_ids` [B] (places in `store.tasks`) and, where `features` asks for them,
          `instruction_tokens` [B, U], or [G, U] in grouped batches. Packed batches have `encoder_segment_ids` [B, T]
          and `decoder_segment_ids` [B, S], from 1 in each row and 0 on padding, and `task_ids` [B, S // 2] of the
          segments, then -1.
        """
        window, place, first_B, count_B = self._rows(n, rows)
        taken = ragged_positions(first_B, count_B)
        draws, packing = window.draws, None
        if self._group > 1:
            self._check_groups(np.arange(self.batch_size)[rows])
        if window.encoder_E is not None:
            row_E = np.repeat(np.arange(len(first_B)), count_B)
            segment_E = taken - np.repeat(first_B, count_B) + 1
            packing = Packing(len(first_B), row_E, segment_E, window.encoder_E[taken], window.target_E[taken])
        return self._assembler.batch(
            draws.task[taken],
            draws.example[taken],
            draws.wording[taken],
            width=None if window.width_W is None else int(window.width_W[place]),
            group=self._group,
            packing=packing,
            limit=window.limit,
        )

    def drawn(self, n: int) -> list[tuple[str, int, int, int]]:
        """What batch n holds: (task, example, wording, epoch) of each example, row by row."""
        window, _, first_B, count_B = self._rows(n, slice(None))
        taken, draws = ragged_positions(first_B, count_B), window.draws
        columns = (draws.task[taken], draws.example[taken], draws.wording[taken], draws.epoch[taken])
        return [(self.tasks[t], e, w, p) for t, e, w, p in zip(*(c.tolist() for c in columns), strict=True)]

    def fill(self, n: int = 0) -> dict[str, float]:
        """Over the window of batch n: the share of tokens that is not padding, `encoder` and `decoder`, and the
        `examples_per_row`."""
        window = self._planner.window(n // self._window)
        draws, f = window.draws, self.features
        encoder_E, target_E = self._assembler.lengths(draws.task, draws.example, draws.wording, window.limit)
        rows = self._window * self.batch_size
        wide = rows * f.inputs if window.width_W is None else int(window.width_W.sum()) * self.batch_size
        return {
            "encoder": float(encoder_E.sum() / wide),
            "decoder": float(target_E.sum() / (rows * f.targets)),
            "examples_per_row": len(encoder_E) / rows,
        }

    def _rows(self, n: int, rows: slice | np.ndarray) -> tuple[planners.Window, int, np.ndarray, np.ndarray]:
        """The window of batch n, the batch's place in it, and for each row its first example and how many it has."""
        number, place = divmod(n, self._window)
        window = self._planner.window(number)
        row_B = np.arange(place * self.batch_size, (place + 1) * self.batch_size)[rows]
        if window.first_R is None:
            return window, place, row_B, np.ones_like(row_B)
        return window, place, window.first_R[row_B], window.first_R[row_B + 1] - window.first_R[row_B]

    def _check_groups(self, row_B: np.ndarray) -> None:
        g = self._group
        if len(row_B) % g or (row_B.reshape(-1, g) // g != row_B[::g, None] // g).any():
            raise UserError(
                f"Rows {row_B.min()} to {row_B.max()} cut through a group: this batch comes in groups of {g} rows that "
                f"share an instruction; take whole groups."
            )
