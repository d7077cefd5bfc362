"""One process of a run that the tests stop: `COMMAND …`, as `zeroprompt COMMAND …`, on toy tasks of processes.py. The
environment says which process it is."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import jax
import processes

from zeroprompt_jax.cli import main, runs
from zeroprompt_jax.training import distributed

if __name__ == "__main__":
    processes.register()
    jax.config.update("jax_disable_most_optimizations", True)
    if heartbeat := os.environ.get("TEST_HEARTBEAT"):
        runs.begin = lambda: distributed.start(heartbeat=int(heartbeat))
    sys.exit(main.main())
