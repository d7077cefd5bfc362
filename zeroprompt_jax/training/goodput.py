"""Where a run's wall time goes: starting, compiling, waiting for data, training, evaluating, saving."""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping

import jax

# setup: opening the data, making or restoring the model. compile: tracing and compiling, wherever it happens. data: the
# loop waits for a batch. save: the loop waits for a checkpoint.
KINDS = ("setup", "compile", "data", "step", "eval", "save")
_EVENTS = "/jax/core/compile/"


class Goodput:
    """Seconds by kind, which sum to the time since it was entered and to what it carries over from earlier attempts."""

    def __init__(self):
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._kind, self._since = "setup", time.monotonic()
        self._compiled = self._since
        self._thread = threading.get_ident()

    def __enter__(self) -> "Goodput":
        jax.monitoring.register_event_duration_secs_listener(self._hear)
        return self

    def __exit__(self, *_) -> None:
        jax.monitoring.unregister_event_duration_listener(self._hear)

    def _hear(self, event: str, seconds: float, **_) -> None:
        """Takes compiling out of whatever it happened in. Other threads' compiling does not hold up the run."""
        if not event.startswith(_EVENTS) or threading.get_ident() != self._thread:
            return
        now = time.monotonic()
        seconds = now - max(now - seconds, self._compiled)  # events may lie within each other
        self._compiled = now
        self._seconds["compile"] += seconds
        self._seconds[self._kind] -= seconds

    def carry(self, earlier: Mapping[str, float]) -> None:
        """Adds what earlier attempts spent."""
        for kind, seconds in earlier.items():
            self._seconds[kind] += seconds

    def _charge(self) -> None:
        now = time.monotonic()
        self._seconds[self._kind] += now - self._since
        self._since = now

    @contextlib.contextmanager
    def spend(self, kind: str) -> Iterator[None]:
        """Time within goes to this kind, and afterwards to the one before again."""
        self._charge()
        before, self._kind = self._kind, kind
        try:
            yield
        finally:
            self._charge()
            self._kind = before

    def seconds(self) -> dict[str, float]:
        """Until now, by kind."""
        self._charge()
        return dict(self._seconds)

    def __str__(self) -> str:
        """Such as `step 71 %, compile 12 %`, the largest first."""
        seconds = self.seconds()
        total = max(sum(seconds.values()), 1e-9)
        shares = sorted(((s / total, kind) for kind, s in seconds.items()), reverse=True)
        return ", ".join(f"{kind} {share:.0%}" for share, kind in shares if share >= 0.005)
