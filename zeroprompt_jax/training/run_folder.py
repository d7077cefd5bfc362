"""A run's folder: which config it belongs to, who is at work in it, and whether it has its results."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.training import partitioning

# A run may be continued with these changed; anything else would make it another experiment.
_MAY_CHANGE = (
    *("MODEL_DIR", "TRAIN_STEPS", "CACHE_DIR", "Data.cache_dir", "Experiment.mesh", "T5Config.remat_policy"),
    *(f"Train.{name}" for name in ("model_dir", "steps", "keep", "save_every", "profile_steps")),
    *(f"Mesh.{name}" for name in partitioning.MESH_AXES),
)


def refuse_another(root: Path, config_text: str) -> None:
    """Raises UserError where `root` holds a run of another config."""
    saved = root / "config.gin"
    if config_text and saved.exists():
        old, new = (_comparable(text) for text in (saved.read_text(encoding="utf-8"), config_text))
        # An option that is newer than the run, and off, is none that the run had otherwise.
        changed = sorted(k for k in old.keys() | new.keys() if old.get(k, "None") != new.get(k, "None"))
        if changed:
            name = changed[0]
            raise UserError(
                f"MODEL_DIR {root} holds a run with {name} = {old.get(name)}, not {new.get(name)}; choose another "
                f"MODEL_DIR for a new run, or the old value to continue this one."
            )


def claim(root: Path, config_text: str) -> None:
    """Writes the resolved config into the run's folder."""
    if config_text:
        root.mkdir(parents=True, exist_ok=True)
        partial = root / f".config.gin.{os.getpid()}"
        partial.write_text(config_text, encoding="utf-8")
        os.replace(partial, root / "config.gin")


@contextlib.contextmanager
def alone(root: Path, file: str = ".lock") -> Iterator[None]:
    """Holds a run's folder, so that nobody else trains into it: two processes would delete each other's half-written saves.

    Of a run's processes only the first holds it. The kernel gives it up when the process ends, however it ends. A file
    system that knows no locks is let through.

    Raises UserError where another process holds it.
    """
    with contextlib.ExitStack() as held:
        if partitioning.is_first():
            try:
                root.mkdir(parents=True, exist_ok=True)
                fcntl.flock(held.enter_context(open(root / file, "a")), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"Another process is at work in MODEL_DIR {root}; let it end or stop it, or choose another MODEL_DIR."
                ) from None
            except OSError:
                pass
        yield


def _comparable(text: str) -> dict[str, str]:
    """Statements of a resolved config by name, without those that may change between attempts."""
    joined = text.replace("\\\n", " ")
    out, name = {}, ""
    for line in joined.splitlines():
        if line[:1].isspace() and name:
            out[name] += " " + line.strip()
        elif " = " in line:
            name, value = line.split(" = ", 1)
            out[name] = value.strip()
    return {k: v for k, v in out.items() if k not in _MAY_CHANGE}


def finished(root: Path, steps: int) -> bool:
    """Whether a run of at least so many steps has left its results here, its table among them."""
    try:
        return (root / "table.txt").exists() and json.loads((root / "results.json").read_text(encoding="utf-8"))["steps"] >= steps
    except (OSError, ValueError, KeyError):
        return False
