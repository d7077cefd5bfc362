"""Several processes, one run: how they find each other, hear together that they must stop, and end when one is gone."""

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Mapping
from importlib import util
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from zeroprompt_jax.errors import UserError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
TRY_AGAIN = 75  # sysexits.h, EX_TEMPFAIL

# What the launchers of clusters say, and JAX reads itself: Slurm's srun, Open MPI, Cloud TPU's several slices.
_LAUNCHED = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")
_LOST = re.compile(
    r"Gloo .* failed|NCCL|Connection (reset|closed|refused)|[Hh]eartbeat|[Cc]oordination ?[Ss]ervice|Barrier (failed|timed out)"
)
_LAST = 1.0  # seconds


def start(environment: Mapping[str, str] = os.environ, timeout: int = 120, heartbeat: int = 60) -> None:
    """Joins the other processes of the run, if the environment says that there are any; before JAX is first used.

    They are told by JAX_COORDINATOR_ADDRESS (host:port of the first), JAX_NUM_PROCESSES and JAX_PROCESS_ID, by Slurm or
    Open MPI, or by a Cloud TPU itself. On one machine without these nothing happens.

    Args:
      timeout: seconds until the process ends, saying so, because others are missing.
      heartbeat: seconds without a sign of life after which JAX ends the processes that are left.

    Raises UserError where the variables are incomplete or not numbers.
    """
    if jax.distributed.is_initialized():
        return
    given = _given(environment)
    if given is None:
        return
    which = f"process {given['process_id']} of {given['num_processes']}" if given else "this process"

    def give_up() -> None:  # JAX would abort with a stack trace
        where = f" at {given['coordinator_address']}" if given else ""
        print(f"zeroprompt: {which} waited {timeout} s for the others{where}; start all of them.", file=sys.stderr)
        sys.stderr.flush()
        os._exit(TRY_AGAIN)

    timer = threading.Timer(timeout, give_up)
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(**given, initialization_timeout=2 * timeout, heartbeat_timeout_seconds=heartbeat)
    except ValueError as e:
        if given or "coordinator_address" not in str(e):
            raise
        if told := _launched(environment):
            raise UserError(f"{told} is {environment[told]}, but JAX finds no cluster; set {ADDRESS}, {COUNT}, {INDEX}.") from e
        # Else a TPU on a machine of its own.
    finally:
        timer.cancel()


def _given(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """What to give to `jax.distributed.initialize`: nothing where JAX finds out itself; None where there is one process."""
    if environment.get(COUNT) or environment.get(INDEX):
        missing = [name for name in (ADDRESS, COUNT, INDEX) if not environment.get(name)]
        if missing:
            have = next(name for name in (COUNT, INDEX) if environment.get(name))
            raise UserError(f"{have} is {environment[have]}, but {' and '.join(missing)} is not set; a run needs all three.")
        count, index = _number(environment, COUNT), _number(environment, INDEX)
        if not 0 <= index < count:
            raise UserError(f"{INDEX} is {index}; of {COUNT} {count} processes it must be 0 to {count - 1}.")
        if not re.fullmatch(r".+:\d+", environment[ADDRESS]):
            raise UserError(f"{ADDRESS} is '{environment[ADDRESS]}'; it must be HOST:PORT of process 0.")
        given = {"coordinator_address": environment[ADDRESS], "num_processes": count, "process_id": index}
        return given if count > 1 else None
    return {} if _launched(environment) or _has_tpu(environment) else None


def _launched(environment: Mapping[str, str]) -> str | None:
    """The variable by which a launcher says that it started several processes."""
    return next((name for name in _LAUNCHED if environment.get(name, "") not in ("", "1")), None)


def _number(environment: Mapping[str, str], name: str) -> int:
    if not environment[name].isdecimal():
        raise UserError(f"{name} is '{environment[name]}'; it must be a number.")
    return int(environment[name])


def _has_tpu(environment: Mapping[str, str]) -> bool:
    """Whether JAX will run on TPU chips of this machine."""
    platforms = environment.get("JAX_PLATFORMS", "") or "tpu"
    chips = (path for pattern in ("accel*", "vfio/[0-9]*") for path in Path("/dev").glob(pattern))
    return "tpu" in platforms and util.find_spec("libtpu") is not None and any(chips)


class Preemption:
    """Whether SIGTERM has asked the run to stop. Several processes are told at the same step, whichever was asked."""

    def __init__(self, step: int):
        self._start, self._asked, self._before = step, False, None

    def __enter__(self) -> "Preemption":
        self._before = None
        if jax.distributed.is_initialized():
            self.reached(self._start)  # the step that the processes agree on counts from here, not from 0
        elif threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._hear) or signal.SIG_DFL
        return self

    def _hear(self, *_: Any) -> None:
        self._asked = True

    def reached(self, step: int) -> bool:
        """To be asked after every update, with the number of updates."""
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def __exit__(self, *_: Any) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)


def is_loss(e: BaseException) -> bool:
    """Whether an error says that another process of the run is gone."""
    if not jax.distributed.is_initialized() or isinstance(e, UserError):
        return False
    return isinstance(e, (RuntimeError, ValueError)) and _LOST.search(str(e)) is not None


def loss(e: BaseException) -> str:
    """What such an error says, as the beginning of a sentence."""
    return f"Another process of this run is gone ({str(e).splitlines()[0][:200]})"


def leave(code: int) -> None:
    """Ends one of several processes after an error. The ordinary way out waits for the others, which may be waiting for
    this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.process_index() == 0:
        time.sleep(_LAST)  # the others speak to its service: without it they would end without their own words
    os._exit(code)
