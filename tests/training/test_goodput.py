"""The ledger of wall time: every second is of one kind."""

import threading
import types

import jax
import jax.numpy as jnp
import pytest

from zeroprompt_jax.training import goodput as module
from zeroprompt_jax.training.goodput import Goodput


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves: `clock.now += 1`."""
    fake = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: fake.now))
    return fake


def spent(goodput):
    return {kind: seconds for kind, seconds in goodput.seconds().items() if seconds}


def test_time_goes_to_the_innermost_kind(clock):
    goodput = Goodput()
    clock.now += 2
    with goodput.spend("step"):
        clock.now += 5
        with pytest.raises(KeyError), goodput.spend("data"):
            clock.now += 1
            raise KeyError
        clock.now += 10
        assert spent(goodput) == {"setup": 2, "step": 15, "data": 1}  # while it goes on
    clock.now += 1
    goodput.carry({"step": 7, "eval": 3})
    assert spent(goodput) == {"setup": 3, "step": 22, "data": 1, "eval": 3}
    assert str(goodput) == "step 76%, setup 10%, eval 10%, data 3%"


def test_compiling_is_taken_out_of_what_it_happened_in(clock):
    event = "/jax/core/compile/backend_compile_duration"
    with Goodput() as goodput, goodput.spend("eval"):
        clock.now += 10
        jax.monitoring.record_event_duration_secs(event, 4.0)
        jax.monitoring.record_event_duration_secs(event, 6.0)  # around the one before: 2 more, not told twice
        jax.monitoring.record_event_duration_secs("/jax/checkpoint/write", 5.0)
        clock.now += 3
        jax.monitoring.record_event_duration_secs(event, 1.0)
        other = threading.Thread(target=jax.monitoring.record_event_duration_secs, args=(event, 2.0))
        other.start()
        other.join()
        assert spent(goodput) == {"compile": 5, "eval": 8}
    jax.monitoring.record_event_duration_secs(event, 1.0)  # nobody listens any longer
    assert spent(goodput) == {"compile": 5, "eval": 8}


def test_what_jax_compiles_is_told():
    with Goodput() as goodput, goodput.spend("step"):
        jax.jit(lambda x: jnp.sin(x) + 0.123)(jnp.ones(3)).block_until_ready()
        first = goodput.seconds()["compile"]
    assert first > 0
