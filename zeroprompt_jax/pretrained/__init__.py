"""Models that come with the package, each a directory in Hugging Face layout: `packaged:NAME` in configs."""

from pathlib import Path

from zeroprompt_jax.errors import unknown

PREFIX = "packaged:"


def names() -> tuple[str, ...]:
    return tuple(sorted(path.parent.name for path in Path(__file__).parent.glob("*/config.json")))


def directory(spec: str) -> Path | None:
    """The directory that `packaged:NAME` means; None for a spec that is no such one. UserError for an unknown name."""
    if not spec.startswith(PREFIX):
        return None
    name = spec.removeprefix(PREFIX)
    if name not in names():
        raise unknown("packaged model", name, names())
    return Path(__file__).parent / name
