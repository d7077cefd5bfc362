"""Checkpoints with Orbax: saved asynchronously, kept by policy, checked leaf by leaf before anything is loaded.

Restore order of a run, first that exists: (1) its own newest checkpoint, (2) `initial_checkpoint_path`, (3) scratch.
A checkpoint holds the training state only (what trains, its optimizer's state, the step), never a copy of what is frozen.
A save is a directory written under a temporary name and renamed when complete, so a run killed while saving still has the
checkpoint before.
"""

import dataclasses
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from zeroprompt_jax import pretrained
from zeroprompt_jax.errors import UserError, nearest
from zeroprompt_jax.interop import huggingface, huggingface_roberta, leaves, t5x, zarr
from zeroprompt_jax.interop.leaves import Leaf
from zeroprompt_jax.models import roberta
from zeroprompt_jax.models.roberta import RobertaConfig
from zeroprompt_jax.models.t5 import T5Config
from zeroprompt_jax.training.state import Flat, State, flatten

# Orbax reports every directory it touches at INFO and WARNING; a user reads our progress bar instead.
logging.getLogger("absl").setLevel(logging.ERROR)


def _absolute(path: str) -> epath.Path:
    """gs:// and other URLs stay as they are; local paths become absolute, as Orbax demands."""
    return epath.Path(path) if "://" in str(path) else epath.Path(path).expanduser().resolve()


class Checkpointer:
    """The checkpoints of one run, in MODEL_DIR/checkpoints. keep: how many of the newest stay. tasks: names of the tasks
    that the banks hold, kept with each checkpoint."""

    def __init__(self, model_dir: str, keep: int = 2, tasks: Sequence[str] = ()):
        self._about = {"tasks": list(tasks)} if tasks else {}
        self.directory = _absolute(model_dir) / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.directory, options=options)
        self._pending: int | None = None

    def latest(self) -> int | None:
        """The newest step, perhaps still being saved, or None."""
        return self._manager.latest_step()

    def kept(self) -> int | None:
        """The newest step that is whole on disk, or None."""
        folders = {step: self.directory / str(step) for step in self._manager.all_steps()}
        whole = [n for n, folder in folders.items() if folder.exists() and ocp.utils.is_checkpoint_finalized(folder)]
        return max(whole, default=None)

    def save(self, state: State, record: Mapping[str, Any]) -> None:
        """Starts saving; returns once the state is copied off the device. `record` is small JSON that rides along."""
        step = int(state.step)
        if step == self.latest():
            return
        self.wait()
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave({**record, **self._about}))
        self._guard(lambda: self._manager.save(step, args=args), step)
        self._pending = step

    def saved(self) -> int | None:
        """The step of the save begun last, once it is whole on disk; each is told once. Never waits."""
        path = self.directory / str(self._pending)  # renamed when whole, or marked where there is no renaming
        if self._pending is None or not (path.exists() and ocp.utils.is_checkpoint_finalized(path)):
            return None
        step, self._pending = self._pending, None
        return step

    def wait(self) -> None:
        """Waits until the last save is on disk; raises UserError if it failed, naming what is still there."""
        self._guard(self._manager.wait_until_finished, self._pending)

    def _guard(self, action, step):
        try:
            action()
        except Exception as e:
            if (cause := disk_fault(e)) is None:
                raise
            kept = self._manager.latest_step() if step is None else max(
                (s for s in self._manager.all_steps() if s != step), default=None
            )
            have = "no earlier checkpoint exists" if kept is None else f"the checkpoint of step {kept} is intact"
            raise UserError(f"Saving step {step} to {self.directory} failed ({cause}); {have}.") from e

    def restore(self, abstract: State, step: int | None = None) -> tuple[State, dict[str, Any]]:
        """Loads a step (default: the newest) into the shapes and shardings of `abstract`, and its record."""
        step = self.latest() if step is None else step
        if step not in self._manager.all_steps():
            have = ", ".join(map(str, sorted(self._manager.all_steps()))) or "none"
            raise UserError(f"There is no checkpoint of step {step} in {self.directory}; there is {have}.")
        where = self.directory / str(step)
        compare(saved_shapes(where), abstract.params, str(where))
        compare(saved_shapes(where, "opt_state"), ocp.tree.to_flat_dict(abstract.opt_state, sep="/"), str(where))
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), record=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=args)
        return restored.state, dict(restored.record)

    def close(self) -> None:
        self.wait()
        self._manager.close()


def disk_fault(e: BaseException) -> BaseException | None:
    """What the disk said, such as that it is full, where that is what an error comes from; else None."""
    cause = e
    while cause.__cause__ is not None or cause.__context__ is not None:
        cause = cause.__cause__ or cause.__context__
    # TensorStore tells a full disk or quota by a ValueError that quotes the operating system.
    if code := re.search(r"os_error_code='(\d+)'", str(e)):
        return OSError(int(code[1]), os.strerror(int(code[1])))
    return cause if isinstance(cause, OSError) or "RESOURCE_EXHAUSTED" in str(e) else None


def find(path: str) -> epath.Path:
    """The step directory that `path` means: a step directory itself, or the newest step of a run's MODEL_DIR."""
    root = _absolute(path)
    if found := _newest(root):
        return found
    names = [p.name for p in root.parent.iterdir() if _holds_model(p)] if root.parent.is_dir() else []
    raise UserError(f"No checkpoint at '{path}'.{nearest(root.name, names)}")


def _holds_model(folder: epath.Path) -> bool:
    try:
        return _newest(folder) is not None or huggingface.is_directory(folder)
    except OSError:  # another user's
        return False


def _newest(root: epath.Path) -> epath.Path | None:
    for candidate in (root, root / "checkpoints"):
        if (candidate / "state").exists():
            return candidate
        steps = [p for p in candidate.iterdir() if p.name.isdigit()] if candidate.is_dir() else []
        if steps:
            return max(steps, key=lambda p: int(p.name))
    return None


def saved_shapes(step_dir: epath.Path, part: str = "params") -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters, or of another part of the state, in a step directory, by path, without reading them."""
    tree = ocp.StandardCheckpointer().metadata(step_dir / "state").item_metadata.tree[part]
    return {path: tuple(leaf.shape) for path, leaf in ocp.tree.to_flat_dict(tree, sep="/").items()}


def compare(saved: Mapping[str, tuple[int, ...]], wanted: Mapping[str, Any], where: str, subset: bool = False) -> None:
    """Raises UserError listing every missing, extra and differently shaped leaf. subset: extra leaves are fine."""
    missing = sorted(set(wanted) - set(saved))
    extra = [] if subset else sorted(set(saved) - set(wanted))
    shapes = [
        f"{k} is {list(saved[k])}, wanted {list(wanted[k].shape)}"
        for k in sorted(set(saved) & set(wanted))
        if tuple(saved[k]) != tuple(wanted[k].shape)
    ]
    if missing or extra or shapes:
        parts = [f"missing {', '.join(missing)}"] * bool(missing)
        parts += [f"extra {', '.join(extra)}"] * bool(extra)
        parts += [f"differently shaped: {'; '.join(shapes)}"] * bool(shapes)
        raise UserError(f"The checkpoint {where} does not fit this model: {'; '.join(parts)}.")


def load_params(path: str, wanted: Flat, regex: str = ".*") -> dict[str, jax.Array]:
    """Loads the parameters that `regex` matches, in the shapes and shardings of `wanted`; no optimizer state is read. A
    backbone's layers may be scanned in one and unscanned in the other.

    Args:
      path: a run's MODEL_DIR, a step directory, a directory in Hugging Face layout, a model's name (`pretrained`) or a T5X
        checkpoint; the last three hold a backbone and so leave a method's parameters as they are.
      wanted: parameters by path.
      regex: which of them.

    Raises UserError when the regex matches nothing, or a matching leaf is missing or shaped differently.
    """
    part = {k: v for k, v in wanted.items() if re.fullmatch(regex, k)}
    if not part:
        raise UserError(f"The regex '{regex}' matches none of this model's {len(wanted)} parameters.")
    if (backbone := pretrained_leaves(path)) is not None:
        return _load_pretrained(path, backbone, part)
    step_dir = find(path)
    saved, restacked = saved_shapes(step_dir), {}
    if any(k.startswith("backbone/") for k in saved) and _scanned(saved) != _scanned(part):
        restacked = _load_pretrained(str(step_dir), backbone_leaves(path), part)
        part = {k: v for k, v in part.items() if k not in restacked}
        if not part:
            return restacked
    compare(saved, part, str(step_dir), subset=True)
    args = ocp.args.PyTreeRestore(
        item={"params": part},
        restore_args={"params": {k: ocp.ArrayRestoreArgs(sharding=_sharding(v), dtype=v.dtype) for k, v in part.items()}},
        partial_restore=True,
    )
    with ocp.PyTreeCheckpointer() as checkpointer:
        return restacked | checkpointer.restore(step_dir / "state", args=args)["params"]


def load_run(path: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """All that a run trained, by path, on the host, and the names of the tasks that its banks hold."""
    step_dir = find(path)
    wanted = {k: jax.ShapeDtypeStruct(shape, np.float32) for k, shape in saved_shapes(step_dir).items()}
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        record = checkpointer.restore(step_dir / "record")
    return jax.device_get(load_params(path, wanted)), record.get("tasks", [])


def pretrained_config(path: str) -> T5Config | None:
    """What a directory in Hugging Face layout, or of a model's name (`pretrained`), says it is; None for any other path. A
    T5X checkpoint says it by its shapes, which are compared when it is loaded."""
    folder = _pretrained_directory(path)
    return huggingface.read_config(folder) if folder else None


def load_encoder(path: str, config: RobertaConfig) -> dict[str, np.ndarray]:
    """The parameters, by path, of a BERT or RoBERTa in a directory in Hugging Face layout, or of that name on its hub, on
    the host: its encoder, and of its heads those that `config` has too.

    Raises UserError for no such directory, and for a model that computes otherwise than the config says.
    """
    folder = _pretrained_directory(path)
    if folder is None:
        raise UserError(f"'{path}' is no directory in Hugging Face layout, so no encoder can be read from it.")
    theirs = huggingface_roberta.read_config(folder)
    names = ("num_heads", "mlp_activations", "norm_epsilon", "position_offset", "pad_id")
    for name in (*names, *["labels"] * bool(config.labels and theirs.labels)):
        if (ours := getattr(config, name)) != (given := getattr(theirs, name)):
            raise UserError(f"RobertaConfig.{name} is {ours!r}, but the model in '{path}' has {given!r}.")
    params = huggingface_roberta.read_roberta(folder, dataclasses.replace(theirs, scan_layers=config.scan_layers))
    found = flatten({"backbone": params})
    wanted = jax.eval_shape(lambda: flatten({"backbone": roberta.init(config, jax.random.key(0))}))
    kept = lambda k: "_head/" not in k or (k in found and k in wanted)
    compare({k: leaf.shape for k, leaf in found.items() if kept(k)}, {k: v for k, v in wanted.items() if kept(k)}, path)
    return {k: leaf for k, leaf in found.items() if kept(k)}


def pretrained_leaves(path: str) -> dict[str, Leaf] | None:
    """The parameters, by their unscanned paths and not read yet, of what holds a backbone alone: a directory in
    Hugging Face layout, a model's name (`pretrained`), a T5X checkpoint. None for any other path."""
    if folder := _pretrained_directory(path):
        return huggingface.read_leaves(folder)
    found = t5x.find(path)
    return t5x.read_t5(found) if found else None


def backbone_leaves(path: str) -> dict[str, Leaf]:
    """As `pretrained_leaves`, of one of our checkpoints: what a run trained of its backbone, which may be nothing."""
    state = find(path) / "state"
    saved = {keys[1]: make for keys, make in zarr.orbax(state).items() if keys[0] == "params"}
    kept = {name.removeprefix("backbone/"): make() for name, make in saved.items() if name.startswith("backbone/")}
    return leaves.unstack(kept)


def write_backbone(folder: str | Path, params: Mapping[str, Leaf]) -> None:
    """Writes a step directory of a backbone alone, its layers scanned, block by block. params: by unscanned paths."""
    stacked = leaves.stack(params)
    state = _absolute(str(folder)) / "state"
    # Orbax would hold all arrays at once, so it is given small ones, and these are replaced.
    small = {f"backbone/{path}": np.zeros((), leaf.dtype) for path, leaf in stacked.items()}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
        checkpointer.save(state, args=ocp.args.PyTreeSave({"params": small, "step": np.int32(0)}))
    for path, leaf in stacked.items():
        zarr.write(zarr.store(state, f"params.backbone/{path}/"), leaf)


def _pretrained_directory(path: str) -> Path | None:
    folder = pretrained.directory(path) or Path(path).expanduser()
    return folder if huggingface.is_directory(folder) else None


def _load_pretrained(path: str, params: Mapping[str, Leaf], part: Flat) -> dict[str, jax.Array]:
    wanted = {k: v for k, v in part.items() if k.startswith("backbone/")}
    found = {f"backbone/{k}": leaf for k, leaf in (leaves.stack(params) if _scanned(wanted) else params).items()}
    compare({k: leaf.shape for k, leaf in found.items()}, wanted, path, subset=True)
    return {k: jax.device_put(found[k].cast(v.dtype).read(), _sharding(v)) for k, v in wanted.items()}


def _scanned(paths: Iterable[str]) -> bool:
    """Whether a backbone's layers are stacked."""
    return any(path.startswith("backbone/") and "/layers/" in path for path in paths)


def _sharding(leaf: Any) -> Any:
    return getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
