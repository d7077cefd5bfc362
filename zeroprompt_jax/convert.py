"""Backbones from one layout into another: Hugging Face's, T5X's and this package's own checkpoints.

Parameters are streamed in blocks, never held all at once, in their own dtype. What was written is read back and
compared bit by bit, and then by its logits, before it gets its name.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from zeroprompt_jax import export, pretrained
from zeroprompt_jax.errors import UserError, unknown
from zeroprompt_jax.experiment import Experiment
from zeroprompt_jax.interop import huggingface, leaves, t5x
from zeroprompt_jax.interop.leaves import Leaf
from zeroprompt_jax.models import t5
from zeroprompt_jax.models.t5 import T5Config
from zeroprompt_jax.training import checkpoint

FORMATS = ("hf", "t5x", "t5x_scanned", "zeroprompt")
TOLERANCE = 1e-4  # of logits, or of the largest logit where that exceeds one: float32 is no finer


@dataclasses.dataclass(frozen=True)
class Source:
    """A backbone that is not read yet. name: as the user gave it. leaves: by unscanned paths. folder: of Hugging Face's
    layout alone. vocabulary: of a run, its spec. assumed: whether its shapes are all that told its configuration."""

    name: str
    config: T5Config
    leaves: Mapping[str, Leaf]
    folder: Path | None = None
    vocabulary: str | None = None
    assumed: bool = False


class Converted(NamedTuple):
    """parameters, arrays: how many. difference: the largest of logits, None where they were not compared. by: what
    computed those of the source and of what was written. assumed: what `config.json` says that the source does not."""

    parameters: int
    arrays: int
    difference: float | None
    by: tuple[str, str] | None
    assumed: Mapping[str, Any]


def source(backbone: str | Experiment) -> Source:
    """Finds a backbone.

    Args:
      backbone: a directory in Hugging Face layout, a model's name (`pretrained`), a T5X checkpoint or a folder of
        several, one of this package's checkpoints, or a run's experiment.

    Raises UserError where it is none of these, or cannot be reached.
    """
    if isinstance(backbone, Experiment):
        return _run(backbone)
    folder = pretrained.directory(backbone) or Path(backbone).expanduser()
    if huggingface.is_directory(folder):
        return Source(backbone, huggingface.read_config(folder), huggingface.read_leaves(folder), folder)
    found = checkpoint.pretrained_leaves(backbone)
    found = checkpoint.backbone_leaves(backbone) if found is None else found
    if not found:
        raise UserError(
            f"The checkpoint '{backbone}' holds no backbone; give its run's MODEL_DIR, which knows where it is."
        )
    return Source(backbone, leaves.config({path: leaf.shape for path, leaf in found.items()}), found, assumed=True)


def _run(experiment: Experiment) -> Source:
    """A run's backbone: what it started from, and over that what it trained."""
    start, model_dir = experiment.train.initial_checkpoint_path, experiment.train.model_dir
    found = dict(source(start).leaves) if start else {}
    found |= checkpoint.backbone_leaves(model_dir)
    if not found:
        raise UserError(f"The run in '{model_dir}' neither trained its backbone nor started from one that was saved.")
    return Source(model_dir, experiment.model, found, vocabulary=experiment.data.vocabulary)


def convert(backbone: str | Experiment, destination: str | Path, format: str, logits: bool = True) -> Converted:
    """Converts a backbone. Nothing is at `destination` before all of it is written and checked.

    Args:
      backbone: as of `source`.
      destination: a folder that does not exist, or is empty. A T5X checkpoint is that folder itself where it is called
        checkpoint_STEP, and checkpoint_0 in it otherwise.
      format: `hf`; `t5x`, and `t5x_scanned` for T5X's scalable_t5; `zeroprompt`, a checkpoint for
        `Train.initial_checkpoint_path`.
      logits: also compare logits, for which the whole model is loaded, as float32. Hugging Face's side is computed by
        transformers where that is installed.

    Raises UserError where the source cannot be read, does not fit its configuration, or what was written differs.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    _check_free(str(destination))
    given = source(backbone)
    with _whole(Path(destination)) as partial:
        _write(given, partial, format, t5x.step_of(destination))
        written = source(str(partial))
        _compare(given, written)
        difference, by = _compare_logits(given, written) if logits else (None, None)
    parameters = sum(int(np.prod(leaf.shape)) for leaf in given.leaves.values())
    assumed = ("mlp_activations", "relpos_max_distance") if given.assumed and format == "hf" else ()
    told = {name: getattr(given.config, name) for name in assumed}
    return Converted(parameters, len(given.leaves), difference, by, told)


def _check_free(destination: str) -> None:
    if "://" in destination:
        raise UserError(f"'{destination}' is no folder of this machine; convert to one, and copy that.")
    target = Path(destination).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"'{target}' exists already; give a folder that does not.")


@contextlib.contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A folder beside `target` that gets its name when nothing failed, and is removed otherwise."""
    target = target.expanduser().absolute()
    partial = target.with_name(f".{target.name}.partial.{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        yield partial
        os.replace(partial, target)  # also over an empty folder
    except Exception as e:
        if isinstance(e, UserError) or (cause := checkpoint.disk_fault(e)) is None:
            raise
        raise UserError(f"Writing '{target}' failed ({cause}); nothing is left there.") from e
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(given: Source, folder: Path, format: str, step: int | None) -> None:
    if format == "hf":
        huggingface.write_leaves(folder, given.leaves, given.config)
        if given.vocabulary:
            export.copy_vocabulary(given.vocabulary, folder)
    elif format.startswith("t5x"):
        folder = folder / "checkpoint_0" if step is None else folder
        t5x.write_t5(folder, given.leaves, step or 0, scanned=format == "t5x_scanned")
    else:
        checkpoint.write_backbone(folder, given.leaves)


def _compare(given: Source, written: Source) -> None:
    """Raises UserError naming what was not written as it was read."""
    wrong = sorted(given.leaves.keys() ^ written.leaves.keys())
    for path, leaf in given.leaves.items():
        if not wrong and not leaf.equals(written.leaves[path]):
            wrong = [path]
    if wrong:
        raise UserError(f"{wrong[0]} of '{given.name}' was not written as it was read; is the disk sound?")


def _compare_logits(given: Source, written: Source) -> tuple[float, tuple[str, str]]:
    (a, by_a), (b, by_b) = _logits(given, given.config), _logits(written, given.config)
    difference = float(np.abs(a - b).max())
    if not difference <= TOLERANCE * max(1.0, float(np.abs(a).max())):  # not a number fails too
        raise UserError(
            f"The logits of what was written differ from those of '{given.name}' by {difference:.2g} (computed by "
            f"{by_a} and {by_b}); nothing is left of it. Does the model compute as its configuration says?"
        )
    return difference, (by_a, by_b)


def _tokens(config: T5Config) -> tuple[np.ndarray, np.ndarray]:
    """Encoder rows of different lengths [3, 24], and decoder rows [3, 8], that begin with 0."""
    rng = np.random.default_rng(0)
    encoder, decoder = (rng.integers(2, config.vocab_size, (3, n)).astype(np.int32) for n in (24, 8))
    encoder[1, 17:], encoder[2, 5:], decoder[:, 0] = 0, 0, 0
    return encoder, decoder


def _logits(model: Source, config: T5Config) -> tuple[np.ndarray, str]:
    """(logits [3, 8, V], what computed them)."""
    encoder, decoder = _tokens(config)
    if model.folder and _has_transformers():
        return _transformers_logits(model.folder, encoder, decoder), "transformers"
    flat = {path: leaf.cast(np.float32).read() for path, leaf in leaves.stack(model.leaves).items()}
    params = flax.traverse_util.unflatten_dict(flat, sep="/")
    with jax.default_matmul_precision("highest"):
        run = _forward(dataclasses.replace(config, dtype="float32", scan_layers=True, remat_policy="none"))
        return np.asarray(run(params, jnp.asarray(encoder), jnp.asarray(decoder))), "zeroprompt_jax"


@functools.lru_cache(maxsize=1)
def _forward(config: T5Config) -> Any:
    return jax.jit(lambda params, *tokens: t5.Backbone(config, params)(*tokens).logits)


def _has_transformers() -> bool:
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def _transformers_logits(folder: Path, encoder: np.ndarray, decoder: np.ndarray) -> np.ndarray:
    import torch
    import transformers

    kind: Any = transformers.AutoModelForSeq2SeqLM
    model = kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(encoder).long(),
            attention_mask=torch.tensor(encoder > 0).long(),
            decoder_input_ids=torch.tensor(decoder).long(),
        )
    return out.logits.float().numpy()
