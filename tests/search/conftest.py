"""The searches' way to a neighbour's helper, tiny_t5."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "models"))
