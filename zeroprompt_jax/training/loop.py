"""The training loop: prefetch, step, log, evaluate, save. Knows neither tasks nor configs."""

import collections
import contextlib
import dataclasses
import json
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from etils import epath

from zeroprompt_jax.errors import Stopped, UserError, check_range
from zeroprompt_jax.paths import place
from zeroprompt_jax.training.checkpoint import Checkpointer
from zeroprompt_jax.training.distributed import Preemption
from zeroprompt_jax.training.goodput import Goodput
from zeroprompt_jax.training.partitioning import is_first
from zeroprompt_jax.training.state import Flat, State

Batch = Mapping[str, Any]


class Diverged(UserError):
    """The loss or the gradient became NaN or infinite."""


@dataclasses.dataclass(frozen=True)
class Train:
    """How long and how often. Counts are in steps, one step being one update from one batch.

    model_dir is a local path; a bucket is mounted. batch_size is global, over all devices and micro-batches. eval_every
    None evaluates at the end only; save_every None saves at the end only, and several numbers after these steps too.
    initial_checkpoint_path: parameters to start from (a run's MODEL_DIR or one step of it, or a backbone:
    'packaged:t5_tiny', a directory in Hugging Face layout, OWNER/NAME on the Hugging Face hub or a T5X checkpoint), as
    far as initial_checkpoint_regex matches their paths, such as 'backbone/.*'. profile_steps: the first and the last
    step of a profile that TensorBoard and XProf read, of the first process' devices, in MODEL_DIR/profile.
    """

    model_dir: str
    steps: int
    batch_size: int = 64
    accumulate: int = 1
    seed: int = 0
    log_every: int = 100
    eval_every: int | None = None
    save_every: int | Sequence[int] | None = 1000
    keep: int = 2
    initial_checkpoint_path: str | None = None
    initial_checkpoint_regex: str = ".*"
    profile_steps: Sequence[int] | None = None

    def __post_init__(self):
        object.__setattr__(self, "model_dir", place(self.model_dir, "Train.model_dir"))
        check_range(self, "steps batch_size accumulate log_every keep eval_every save_every")
        if self.batch_size % self.accumulate:
            near = max(1, round(self.batch_size / self.accumulate)) * self.accumulate
            raise UserError(
                f"Train.batch_size {self.batch_size} does not divide into {self.accumulate} micro-batches "
                f"(Train.accumulate); {near} would."
            )
        if self.profile_steps is not None and (
            len(self.profile_steps) != 2 or not 1 <= self.profile_steps[0] <= self.profile_steps[1] <= self.steps
        ):
            raise UserError(
                f"Train.profile_steps is {self.profile_steps}; it must be the first and the last step of the profile, from "
                f"1 to {self.steps}."
            )

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is written after this step."""
        every = self.save_every or ()
        return step == self.steps or (step % every == 0 if isinstance(every, int) else step in every)

    def evaluates(self, step: int) -> bool:
        """Whether the run is evaluated after this step, the last one's final evaluation apart."""
        return bool(self.eval_every) and step % self.eval_every == 0 and step < self.steps

    def profiles(self, step: int) -> bool:
        """Whether this step is part of the profile."""
        return self.profile_steps is not None and self.profile_steps[0] <= step <= self.profile_steps[1]


class Metrics:
    """metrics.jsonl and the same numbers as TensorBoard files (tensorboardX: clu's writer imports TensorFlow), written by
    the first process of a run alone.

    Opening at a step drops what a killed run wrote beyond it, its final evaluation included: the resumed run writes those
    lines again. Every number but the times (`seconds`, `seconds/…`, `examples_per_second`) is then what an uninterrupted
    run would have written.
    """

    def __init__(self, model_dir: str, step: int):
        self._board = None
        if not is_first():
            return
        from tensorboardX import SummaryWriter

        root = epath.Path(model_dir)
        root.mkdir(parents=True, exist_ok=True)
        self._file = root / "metrics.jsonl"
        self._truncate(step)
        self._board = SummaryWriter(str(root / "tensorboard"), purge_step=step + 1)

    def _truncate(self, step: int) -> None:
        kept = []
        for line in self._file.read_text().splitlines() if self._file.exists() else []:
            try:
                values = json.loads(line)
                # Nothing is behind a run at step 0: it writes its first evaluation again.
                if values["step"] < step or (values["step"] == step > 0 and not values.get("final")):
                    kept.append(line + "\n")
            except (json.JSONDecodeError, KeyError):
                break  # half a line, written when the run was killed
        temporary = self._file.parent / "metrics.jsonl.tmp"
        temporary.write_text("".join(kept))
        temporary.replace(self._file)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if self._board is None:
            return
        with self._file.open("a") as f:
            f.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            if np.isscalar(value):
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


class Prefetch:
    """Makes batches `start`, `start + 1`, … in a thread, a few ahead of the loop, and puts them on the devices."""

    def __init__(self, make: Callable[[int], Batch], start: int, stop: int, ahead: int = 3):
        self._queue: queue.Queue = queue.Queue(ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(make, start, stop), daemon=True)
        self._thread.start()

    def _run(self, make, start, stop):
        for n in range(start, stop):
            try:
                item = make(n)
            except BaseException as e:
                item = e
            while not self._closed.is_set():
                try:
                    self._queue.put(item, timeout=0.1)
                    break
                except queue.Full:
                    pass
            if self._closed.is_set() or isinstance(item, BaseException):
                return

    def next(self) -> Batch:
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        self._closed.set()
        self._thread.join()


class _Window:
    """Sums of step metrics since the last log line. Saved with the checkpoint, so that a resumed run logs the same."""

    def __init__(self, record: Mapping[str, Any]):
        self.sums = collections.defaultdict(float, record.get("sums", {}))
        self.steps = record.get("steps", 0)
        self.started = time.monotonic()
        self.fresh = 0

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.sums[name] += value
        self.steps += 1
        self.fresh += 1

    def record(self) -> dict[str, Any]:
        return {"sums": dict(self.sums), "steps": self.steps}

    def means(self) -> dict[str, float]:
        return {name: total / self.steps for name, total in self.sums.items()}


class _Profile:
    """The profile of some steps: begun before the first that this attempt runs, written after the last."""

    def __init__(self, settings: Train):
        self._settings, self._running = settings, False

    def at(self, step: int) -> bool:
        """Whether the profile begins or ends with this step, so that all before it must be done."""
        return is_first() and self._settings.profiles(step) != self._running

    def turn(self) -> None:
        """Begins or ends it."""
        if self._running:
            jax.profiler.stop_trace()
        else:
            jax.profiler.start_trace(str(epath.Path(self._settings.model_dir) / "profile"))
        self._running = not self._running

    def close(self) -> None:
        if self._running:
            self.turn()


def fit(
    settings: Train,
    state: State,
    frozen: Flat,
    train_step: Callable[[State, Flat, Batch], tuple[State, Mapping[str, jax.Array]]],
    make_batch: Callable[[int], Batch],
    checkpointer: Checkpointer,
    metrics: Metrics,
    *,
    record: Mapping[str, Any] | None = None,
    evaluate: Callable[[State], Mapping[str, float]] | None = None,
    tasks_of: Callable[[int], list[str]] = lambda n: [],
    examples_per_row: float = 1.0,
    progress: bool = True,
    goodput: Goodput | None = None,
) -> tuple[State, float]:
    """Trains from state.step to settings.steps. Returns the last state and the seconds spent, earlier attempts included.

    SIGTERM stops it after the step at hand, which is saved.

    Args:
      train_step: jitted (state, frozen, batch) -> (state, metrics); the state is donated.
      make_batch: batch number -> batch on the devices; a pure function, so that resuming is one integer.
      record: what the checkpoint that `state` came from carried along.
      evaluate: called every `eval_every` steps; its scalars go to the metrics.
      tasks_of: batch number -> names of its tasks, for the message when training diverges.
      examples_per_row: of packed batches, so that `examples_per_second` counts examples.
      progress: show a bar, what every evaluation found, and each step that is saved once it is on disk.
      goodput: takes what was spent on what.

    Raises:
      Stopped: by SIGTERM.
      Diverged: at the first step whose loss or gradient norm is not finite; nothing from that step on is saved.
    """
    record, goodput = dict(record or {}), goodput or Goodput()
    start = int(state.step)
    window = _Window(record.get("window", {}))
    earlier, began = record.get("seconds", 0.0), time.monotonic()
    seconds = lambda: earlier + time.monotonic() - began
    examples_per_batch = settings.batch_size * examples_per_row
    feed = Prefetch(make_batch, start, settings.steps)
    # A terminal redraws in place; a log file gets a line a minute.
    every = {"mininterval": 0.5} if sys.stderr.isatty() else {"mininterval": 30, "ascii": True}
    shape = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed} elapsed, {remaining} left{postfix}]"
    bar = tqdm.tqdm(
        total=settings.steps, initial=start, desc="train", unit="step", bar_format=shape, disable=not progress, **every
    )
    bar.set_postfix_str("compiling", refresh=True)

    def finish(step: int, device_metrics: Mapping[str, jax.Array]) -> None:
        """Takes in the metrics of update `step`, counted from 1."""
        values = {k: float(v) for k, v in jax.device_get(device_metrics).items()}
        if not (np.isfinite(values["loss"]) and np.isfinite(values["grad_norm"])):
            names = sorted(set(tasks_of(step - 1)))
            shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
            saved = checkpointer.latest()
            raise Diverged(
                f"Training diverged at step {step}: loss {values['loss']}, gradient norm {values['grad_norm']}; "
                f"its batch held {shown or 'unnamed tasks'}. "
                + ("No checkpoint was saved." if saved is None else f"The last checkpoint is of step {saved}.")
            )
        window.add(values)
        rate = window.fresh * examples_per_batch / max(time.monotonic() - window.started, 1e-9)
        bar.set_postfix_str(f"loss {values['loss']:.3f}, {rate:,.0f} examples/s", refresh=False)
        bar.update()
        if step % settings.log_every == 0 or step == settings.steps:
            spent = {f"seconds/{kind}": value for kind, value in goodput.seconds().items()}
            metrics.write(step, {**window.means(), "examples_per_second": rate, "seconds": seconds(), **spent})
            window.__init__({})

    def evaluate_at(step: int) -> None:
        paused = time.monotonic()
        with goodput.spend("eval"):
            scores = dict(evaluate(state))
        metrics.write(step, scores)
        if progress:
            bar.write("  ".join([f"step {step}:", *(f"{k} {v:.3f}" for k, v in scores.items())]), file=sys.stderr)
        window.started += time.monotonic() - paused

    def tell_saved() -> None:
        if progress and (saved := checkpointer.saved()) is not None:
            bar.write(f"Saved step {saved:,}.", file=sys.stderr)

    def save(step: int, evaluates: bool) -> None:
        with goodput.spend("save"):
            checkpointer.wait()
            tell_saved()
            spent = {"seconds": seconds(), "spent": goodput.seconds()}
            checkpointer.save(state, {"window": window.record(), "evaluates": evaluates, **spent})

    waiting = None
    profile = _Profile(settings)

    def catch_up() -> None:
        """Waits for the device and takes in what the last step found."""
        nonlocal waiting
        if waiting:
            finish(*waiting)
        waiting = None

    with contextlib.ExitStack() as stack:
        stack.callback(bar.close)
        stack.callback(feed.close)
        stack.callback(profile.close)
        stack.enter_context(goodput.spend("step"))
        preemption = stack.enter_context(Preemption(start))
        # What a preempted run had yet to evaluate is evaluated now.
        if evaluate is not None and (settings.evaluates(0) if start == 0 else record.get("evaluates")):
            evaluate_at(start)
        for step in range(start + 1, settings.steps + 1):
            with goodput.spend("data"):
                batch = feed.next()
            if profile.at(step):
                catch_up()
                profile.turn()
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, device_metrics = train_step(state, frozen, batch)
            # One step late: the host reads the last step's metrics while the device runs this one.
            catch_up()
            waiting = (step, device_metrics)
            tell_saved()
            preempted = preemption.reached(step)
            evaluates = evaluate is not None and settings.evaluates(step)
            saves = settings.saves(step) or preempted
            if evaluates or saves:
                catch_up()
            if evaluates and not preempted:
                evaluate_at(step)
            if saves:
                save(step, evaluates and preempted)
            if preempted:
                with goodput.spend("save"):
                    checkpointer.wait()
                tell_saved()
                raise Stopped(
                    f"SIGTERM stopped this run; step {step:,} of {settings.steps:,} is saved, and the same command goes on."
                )
        with goodput.spend("save"):
            checkpointer.wait()
        tell_saved()
    return state, seconds()
