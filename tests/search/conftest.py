"""What tests of the searches share."""

import jax
import pytest


@pytest.fixture(scope="module")
def compile_fast():
    """Compiling is nearly all of the time these tests take, so XLA is told not to optimise."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
