"""What tests of the searches share, and their way to a neighbour's helper, tiny_t5."""

import sys
from pathlib import Path

import jax
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "models"))


@pytest.fixture(scope="module")
def compile_fast():
    """Compiling is nearly all of the time these tests take, so XLA is told not to optimise."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
