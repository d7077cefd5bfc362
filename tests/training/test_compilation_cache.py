"""Where compiled programs are kept."""

import jax
import pytest

from zeroprompt_jax.training import compilation_cache


@pytest.mark.parametrize("given, kept", [(None, True), ("", False), ("elsewhere", False)])
def test_the_users_cache_folder_unless_the_environment_says_otherwise(monkeypatch, tmp_path, given, kept):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    if given is not None:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", given)
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        compilation_cache.keep()
        found = jax.config.jax_compilation_cache_dir
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert (found or "").startswith(str(tmp_path / "zeroprompt_jax" / "jax-")) is kept
    assert kept or found is None  # JAX reads the variable itself
