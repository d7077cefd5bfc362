"""Several processes: what the environment says, who is missing, who is gone."""

import os
import re
import socket
import subprocess
import sys

import jax
import pytest

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.training import distributed

ALL = {"JAX_COORDINATOR_ADDRESS": "host:1234", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}


@pytest.fixture
def started(monkeypatch):
    """started(environment): what jax.distributed.initialize would get, or None. fails: raises this instead."""

    def start(environment, tpu=False, fails=None):
        calls = []

        def initialize(**given):
            calls.append(given)
            if fails:
                raise fails

        monkeypatch.setattr(jax.distributed, "initialize", initialize)
        monkeypatch.setattr(distributed, "_has_tpu", lambda environment: tpu)
        distributed.start(environment)
        times = ("initialization_timeout", "heartbeat_timeout_seconds")
        return {k: v for k, v in calls[0].items() if k not in times} if calls else None

    return start


def test_one_machine_stays_alone(started):
    assert started({}) is None
    assert started({**ALL, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}) is None
    assert started({"SLURM_STEP_NUM_TASKS": "1", "JAX_COORDINATOR_ADDRESS": "host:1234"}) is None


def test_the_environment_says_who_takes_part(started):
    assert started(ALL) == {"coordinator_address": "host:1234", "num_processes": 2, "process_id": 1}
    for told in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES"):
        assert started({told: "8"}) == {}  # JAX asks the launcher itself
    assert started({}, tpu=True) == {}
    assert started({"JAX_PLATFORMS": "cpu"}) is None


def test_a_tpu_on_its_own_is_one_machine(started):
    none = ValueError("coordinator_address should be defined.")
    assert started({}, tpu=True, fails=none) == {}
    with pytest.raises(ValueError, match="another reason"):
        started({}, tpu=True, fails=ValueError("another reason"))
    with pytest.raises(UserError, match="^SLURM_STEP_NUM_TASKS is 4, but JAX finds no cluster; set JAX_COORD"):
        started({"SLURM_STEP_NUM_TASKS": "4"}, tpu=True, fails=none)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"JAX_PROCESS_ID": ""}, "JAX_NUM_PROCESSES is 2, but JAX_PROCESS_ID is not set; a run needs all three."),
        (
            {"JAX_NUM_PROCESSES": "", "JAX_COORDINATOR_ADDRESS": ""},
            "JAX_PROCESS_ID is 1, but JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES is not set; a run needs all three.",
        ),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is 'two'; it must be a number."),
        ({"JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID is 2; of JAX_NUM_PROCESSES 2 processes it must be 0 to 1."),
        ({"JAX_COORDINATOR_ADDRESS": "host"}, "JAX_COORDINATOR_ADDRESS is 'host'; it must be HOST:PORT of process 0."),
    ],
)
def test_what_cannot_be_meant(started, changes, sentence):
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        started({**ALL, **changes})


def test_errors_that_mean_a_lost_process(monkeypatch):
    lost = [
        ValueError("UNKNOWN: Gloo all-reduce failed: [pair.cc:538] Read error: Connection reset by peer"),
        RuntimeError("UNAVAILABLE: Task 1 heartbeat timeout. This indicates that the remote task has failed"),
        RuntimeError("INTERNAL: RPC: /xla.coordination.CoordinationService/Barrier"),
    ]
    other = [ValueError("shapes differ"), UserError("Connection reset by peer"), KeyError("Gloo all-reduce failed")]
    assert not any(map(distributed.is_loss, lost))  # there is no other process
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    assert all(map(distributed.is_loss, lost)) and not any(map(distributed.is_loss, other))
    said = distributed.loss(RuntimeError("Barrier failed: task 1\nand much more"))
    assert said == "Another process of this run is gone (Barrier failed: task 1)"


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_a_missing_process_is_told_soon(index):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {**os.environ, **ALL, "JAX_COORDINATOR_ADDRESS": address, "JAX_PROCESS_ID": str(index)}
    code = "from zeroprompt_jax.training import distributed; distributed.start(timeout=2)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 75
    assert done.stderr.endswith(
        f"zeroprompt: process {index} of 2 waited 2 s for the others at {address}; start all of them.\n"
    )
    assert "Traceback" not in done.stderr and "stack trace" not in done.stderr
