"""Lets the tests of this folder import its helper, cases, and those of its neighbours: tiny_t5 and small_model."""

import sys
from pathlib import Path

for folder in ("methods", "models", "training"):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / folder))
