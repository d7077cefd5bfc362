"""Tests here build the models of tests/models and the methods of tests/methods."""

import sys
from pathlib import Path

_TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(_TESTS / name) for name in ("models", "methods", "training")]
