"""Compiled programs kept for the next process."""

import os
import platform
from pathlib import Path

import jax


def keep() -> None:
    """Keeps them in the user's cache folder, unless JAX_COMPILATION_CACHE_DIR names another one or, empty, none.

    Each machine has a folder of its own, as homes are shared and CPUs differ. Of several processes the first alone writes.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and jax.config.jax_compilation_cache_dir is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(home) / "zeroprompt_jax" / f"jax-{platform.node()}"))
