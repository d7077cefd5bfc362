"""What every test shares: options and markers, a compilation cache, and the folder of real data.

There is no pytest.ini: plain `pytest` at the root loads this file before it collects, so everything is set here.
"""

import importlib.util
import os
import platform
from pathlib import Path

import pytest

# Before jax or tensorflow is imported, here or in a subprocess a test starts.
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zeroprompt_jax" / f"jax-{platform.node()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")

ROOT = Path(__file__).resolve().parent.parent
MARKERS = (
    "slow: takes more than about ten seconds; left out unless --runslow is given",
    "parity: compares with torch, transformers or peft; skipped where the extra [parity] is not installed",
)


def pytest_addoption(parser):
    parser.addoption("--runslow", action="store_true", help="also run the tests marked slow")


def pytest_configure(config):
    for line in MARKERS:
        config.addinivalue_line("markers", line)
    # Test folders hold no __init__.py and repeat base names; importlib mode keeps their modules apart.
    config.option.importmode = "importlib"


def pytest_collection_modifyitems(config, items):
    if config.getoption("--runslow"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


def pytest_report_header(config):
    return None if config.getoption("--runslow") else "slow tests are left out; --runslow adds them"


def pytest_runtest_setup(item):
    if item.get_closest_marker("parity"):
        missing = [name for name in ("torch", "transformers", "peft") if importlib.util.find_spec(name) is None]
        if missing:
            pytest.skip(f"needs {', '.join(missing)}: pip install -e '.[parity]'")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real task data and vocabularies: $ZEROPROMPT_SHARED_DATA, or shared/data beside or above the
    checkout. Tests that need it are skipped where there is none."""
    if given := os.environ.get("ZEROPROMPT_SHARED_DATA"):
        folders = [Path(given)]
    else:
        folders = [ROOT / "shared" / "data", *(parent / "shared" / "data" for parent in ROOT.parents)]
    for folder in folders:
        if (folder / "t5_vocab.model").is_file():
            return folder
    pytest.skip("no real data: set ZEROPROMPT_SHARED_DATA, or put it in shared/data beside the checkout")


@pytest.fixture(scope="module")
def compile_fast():
    """For tests of which compiling is nearly all the time: XLA is told not to optimise."""
    import jax

    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
