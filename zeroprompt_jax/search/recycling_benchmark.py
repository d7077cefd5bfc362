"""Times the fitting of maps between embedding tables as large as T5 base's and large's."""

import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from zeroprompt_jax.search import recycling
from zeroprompt_jax.search.recycling import Anchors, Combination, Linear, Network, Procrustes

RECYCLERS = {
    "v2v-lin": Linear(),
    "lin-comb": Combination(),
    "procrustes": Procrustes(),
    "anchors": Anchors(),
    "v2v-nn": Network(),
}


def measure(rows: int = 4000, source: int = 768, target: int = 1024) -> Iterator[dict[str, Any]]:
    """For each kind of map the seconds of fitting it to random tables, and those of compiling it, once per shape."""
    rng = np.random.default_rng(0)
    tables = [jax.device_put(rng.normal(size=(rows, width)).astype(np.float32)) for width in (source, target)]
    for name, recycler in RECYCLERS.items():
        began = time.monotonic()
        run = recycling._fit.lower(recycler, *tables).compile()
        compiled = time.monotonic()
        jax.block_until_ready(run(*tables))
        yield {
            "recycler": name,
            "rows": rows,
            "widths": [source, target],
            "seconds": time.monotonic() - compiled,
            "compile_seconds": compiled - began,
        }
