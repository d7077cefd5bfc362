"""Lets the tests of this folder import its helpers: reference_t5 and tiny_t5."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
