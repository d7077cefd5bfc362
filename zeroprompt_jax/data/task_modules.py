"""Modules that register tasks when they are imported."""

import importlib
import pkgutil
import re

from zeroprompt_jax.errors import UserError, nearest

PACKAGED = "zeroprompt_jax.tasks"


def packaged() -> list[str]:
    """The task modules of this package."""
    return [f"{PACKAGED}.{found.name}" for found in pkgutil.iter_modules(importlib.import_module(PACKAGED).__path__)]


def import_module(name: str) -> None:
    """Imports a task module by its import path. Raises UserError where there is none, or where what it imports itself is
    missing."""
    missing = bool(re.search(r"^$|^\.|/|\.py$", name))  # no import path, but perhaps a file's
    if not missing:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as e:
            missing = e.name is not None and f"{name}.".startswith(f"{e.name}.")
            if not missing:
                raise UserError(f"Task module '{name}' cannot be imported ({e}).") from e
        except ImportError as e:
            raise UserError(f"Task module '{name}' cannot be imported ({e}).") from e
    if missing:
        raise UserError(
            f"There is no task module '{name}': Python looks in the current folder and in PYTHONPATH, and films.py is written "
            f"as films; packaged ones are in {PACKAGED}.{nearest(name, packaged())}"
        )
