"""Where runs, caches, reports and tasks' files are written."""

import os
from pathlib import Path

from zeroprompt_jax.errors import UserError


def place(path: str | os.PathLike, name: str) -> str:
    """A local path with `~` expanded, as no shell does within an option's value. name: of the setting, for the error.

    Raises:
      UserError: the path is a URL: only checkpoints could be written there, and the rest would go into a folder 'gs:'.
    """
    path = os.fspath(path)
    if "://" in path:
        raise UserError(
            f"{name} is '{path}'; it must be a local path. Mount the bucket (as tpu_scripts/README.md does) and give a path "
            f"below it, such as /mnt/zeroprompt/{path.rstrip('/').rpartition('/')[2]}."
        )
    return os.path.expanduser(path)


def place_of(task: str, folder: str | os.PathLike, ending: str = "") -> Path:
    """Where a task's file stands among others: task names hold slashes, so many tasks become a tree of folders."""
    return Path(folder) / ("/".join(part for part in task.split("/") if part not in ("", ".", "..")) + ending)
