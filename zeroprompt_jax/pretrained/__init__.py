"""Models that have a name, each a directory in Hugging Face layout: `packaged:NAME` comes with the package, and
`OWNER/NAME` is fetched from the Hugging Face hub. Whatever takes such a directory takes these names."""

import functools
import re
from pathlib import Path

from zeroprompt_jax.errors import UserError, unknown

PREFIX = "packaged:"
_ON_HUB = re.compile(r"\w[\w.-]*/[\w.-]+")
_FILES = (".json", ".model", ".npy", ".txt")  # a mistyped path of a vocabulary or table is no model's name
_SMALL = ("*.json", "spiece.model", "vocab.txt")


def names() -> tuple[str, ...]:
    return tuple(sorted(path.parent.name for path in Path(__file__).parent.glob("*/config.json")))


def directory(spec: str) -> Path | None:
    """The directory that a model's name means; None for a spec that is no name: any path that is there, or in a folder
    that is there.

    Raises UserError for an unknown packaged model, and for one of the hub where huggingface_hub is not installed or it
    cannot be had."""
    if not spec.startswith(PREFIX):
        return _download(spec) if _is_on_hub(spec) else None
    name = spec.removeprefix(PREFIX)
    if name not in names():
        raise unknown("packaged model", name, names())
    return Path(__file__).parent / name


def _is_on_hub(spec: str) -> bool:
    return bool(_ON_HUB.fullmatch(spec)) and not spec.endswith(_FILES) and not Path(spec).parent.is_dir()


@functools.lru_cache(maxsize=16)  # all of a process reads one revision
def _download(name: str) -> Path:
    instead = f"download it where there is a network (hf download {name} --local-dir FOLDER) and give FOLDER here"
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            f"There is no folder '{name}', and fetching that model from the Hugging Face hub needs huggingface_hub (pip "
            f"install huggingface_hub); or {instead}."
        ) from None
    fetch = functools.partial(huggingface_hub.snapshot_download, name)
    try:
        folder = Path(fetch(allow_patterns=[*_SMALL, "model*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(fetch(allow_patterns=[*_SMALL, "pytorch_model*.bin"]))
    except Exception as e:  # the hub's client and what it calls have dozens of kinds
        raise UserError(
            f"There is no folder '{name}', and the Hugging Face hub did not give that model ({type(e).__name__}); {instead}."
        ) from None
    return folder
