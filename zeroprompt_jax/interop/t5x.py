"""Checkpoints of T5X (github.com/google-research/t5x, checkpoints.py), read and written without it.

Two layouts are read. The legacy one, in which models are published under gs://t5-data/pretrained_models/t5x: a folder
`checkpoint_STEP` with a msgpack index, `checkpoint`, that holds small arrays itself and of others a TensorStore
specification, and beside it one zarr folder per array, `target.encoder.layers_0.attention.query.kernel`. And Orbax's,
in `checkpoint_STEP/state`. The legacy one is written; T5X restores it in either of its checkpointing modes.

Paths here are T5X's own: `target/…` parameters, `state/step`, `state/param_states/…` the optimizer's state. The published
models are unscanned, `target/encoder/layers_0/…`. Those of T5X's scalable_t5 keep all layers of a stack in one array,
`target/encoder/encoder/…`, with the layers on the second axis; their attention's kernels have an axis for heads, and every
layer a relative position bias.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import flax.traverse_util
import numpy as np

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.interop import leaves as leaf_trees, zarr
from zeroprompt_jax.interop.leaves import Leaf

INDEX = "checkpoint"
VERSION = 3  # of the legacy layout
_PLACEHOLDER = "PLACEHOLDER://"
_FOLDER = re.compile(r"checkpoint_(\d+)")
_SCANNED = re.compile(r"(encoder|decoder)/\1/(.*)")
_STACKED = re.compile(r"(encoder|decoder)/layers/(.*)")
_LAYER = re.compile(r"(encoder|decoder)/layers_\d+/(.*)")
_ATTENTION = re.compile(r".*/(query|key|value|out)/kernel")
_RELPOS = "relpos_bias/rel_embedding"
_IN_INDEX = 2**20  # bytes up to which an array that is no matrix of the model stays in the index


def find(path: str | Path) -> str | None:
    """The checkpoint that `path` means: itself, or of a model's folder the newest `checkpoint_STEP` in it; None where
    there is none. In a bucket only the checkpoint itself is recognised."""
    if _is_checkpoint(path):
        return str(path)
    folder = Path(path).expanduser()
    if "://" in str(path) or not folder.is_dir():
        return None
    steps = [p for p in folder.iterdir() if _FOLDER.fullmatch(p.name) and _is_checkpoint(p)]
    return str(max(steps, key=step_of)) if steps else None


def step_of(path: str | Path) -> int | None:
    """The step that a checkpoint's name tells, None where it tells none."""
    match = _FOLDER.fullmatch(str(path).rstrip("/").rpartition("/")[2])
    return int(match[1]) if match else None


def _is_checkpoint(path: str | Path) -> bool:
    if "://" not in str(path) and not Path(path).expanduser().is_dir():
        return False
    if zarr.read_file(path, INDEX) is not None:
        return True
    state = f"{path}/state"
    # Our own checkpoints have a folder of that name too, and hold no `target`.
    return zarr.read_file(state, INDEX) is not None or b"('target'," in (zarr.read_file(state, "_METADATA") or b"")


def read(path: str | Path, regex: str = ".*") -> dict[str, Leaf]:
    """The arrays whose whole path `regex` matches, none of them read yet: `target/.*` leaves the optimizer's state out.

    Raises UserError where `path` is no T5X checkpoint, or the regex matches nothing."""
    found = find(path)
    if found is None:
        raise UserError(f"'{path}' is no T5X checkpoint: it holds neither '{INDEX}' nor a 'state' that Orbax wrote.")
    arrays = _read_legacy(found) or _read_orbax(found)
    if not (part := {name: make() for name, make in arrays.items() if re.fullmatch(regex, name)}):
        raise UserError(f"The regex '{regex}' matches none of the {len(arrays)} arrays in {found}.")
    return part


def read_t5(path: str | Path) -> dict[str, Leaf]:
    """A model's parameters by our unscanned paths, none of them read yet but relative position biases that layers have of
    their own.

    Raises UserError where those of a stack's layers differ, as in umT5 and in what scalable_t5 trained further: our T5,
    as the published ones, has one bias for a stack.
    """
    stacked = {}
    for name, leaf in read(path, "target/.*").items():
        name = name.removeprefix("target/")
        if match := _SCANNED.fullmatch(name):
            name, leaf = f"{match[1]}/layers/{match[2]}", leaf.swapped()
        stacked[name] = leaf
    out = {}
    for name, leaf in leaf_trees.unstack(stacked).items():
        match = _LAYER.fullmatch(name)
        if match and match[2] == _RELPOS:
            name = f"{match[1]}/{_RELPOS}"
        if (kernel := _ATTENTION.fullmatch(name)) and len(leaf.shape) == 3:
            a, b, c = leaf.shape
            leaf = leaf.reshaped(a * b, c) if kernel[1] == "out" else leaf.reshaped(a, b * c)
        if name in out and not leaf.equals(out[name]):
            raise UserError(
                f"The layers of '{path}' have different relative position biases ({name}); this package's T5 has one for "
                f"all layers of a stack."
            )
        out[name] = leaf
    return out


def _read_legacy(path: str) -> dict[str, Callable[[], Leaf]]:
    index = _index(path)
    if index is None:
        return {}
    if "optimizer" not in index:
        raise UserError(f"The index of '{path}' has no part 'optimizer': no checkpoint of T5X's version {VERSION}.")
    return {name: _opener(path, value) for name, value in _flatten(index["optimizer"]).items()}


def _read_orbax(path: str) -> dict[str, Callable[[], Leaf]]:
    state = f"{path}/state"
    if (found := zarr.orbax(state)) is not None:
        return {"/".join(keys): make for keys, make in found.items()}
    # Earlier Orbax kept the tree in a msgpack index too, with placeholders for what lies beside it.
    return {name: _opener(state, value) for name, value in _flatten(_index(state)).items()}


def _index(path: str) -> dict[str, Any] | None:
    raw = zarr.read_file(path, INDEX)
    if raw is None:
        return None
    if raw.startswith(b"model_checkpoint_path"):
        raise UserError(f"'{path}' is a TensorFlow checkpoint of Mesh T5; convert it with T5X's own tools first.")
    try:
        index = flax.serialization.msgpack_restore(raw)
    except Exception as e:  # msgpack and NumPy raise errors of many kinds for damaged bytes
        why = type(e).__name__
        raise UserError(f"The index of '{path}' cannot be read as msgpack ({why}); is the file whole?") from None
    if not isinstance(index, dict):
        raise UserError(f"The index of '{path}' holds no tree; is it a T5X checkpoint?")
    return index


def _flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    is_leaf = lambda _, value: _is_spec(value)
    flat = flax.traverse_util.flatten_dict(dict(tree), is_leaf=is_leaf, sep="/")
    return {name: value for name, value in flat.items() if value is not None}


def _is_spec(value: Any) -> bool:
    return isinstance(value, Mapping) and {"driver", "kvstore", "metadata"} <= set(value)


def _opener(path: str, value: Any) -> Callable[[], Leaf]:
    """What gives the leaf of an index's entry: a specification, a placeholder or the array itself."""
    if _is_spec(value):
        # Its path is relative to the checkpoint, whatever the driver: it may have been written in a bucket.
        name = value["kvstore"]["path"].rstrip("/")
    elif isinstance(value, str) and value.startswith(_PLACEHOLDER):
        name = value.removeprefix(_PLACEHOLDER)
    else:
        return lambda: leaf_trees.of(np.asarray(value))
    return lambda: zarr.leaf(zarr.store(path, name + "/"))


def write(path: str | Path, arrays: Mapping[str, Leaf]) -> None:
    """Writes a checkpoint in the legacy layout.

    Args:
      path: the folder, made when missing; T5X finds it when it is called checkpoint_STEP.
      arrays: by T5X's paths, unscanned. Without `state/param_states/…` T5X restores it for inference, and for training
        with `RestoreCheckpointConfig.fallback_to_scratch = True`, which starts the optimizer anew.
    """
    Path(path).mkdir(parents=True, exist_ok=True)
    index = {}
    for name, leaf in arrays.items():
        matrix = name.startswith("target/") and re.search(r"(kernel|token_embedder/embedding)$", name)
        if not matrix and leaf.size <= _IN_INDEX:
            index[name] = leaf.read()
            continue
        folder = name.replace("/", ".")
        zarr.write(zarr.store(path, folder + "/"), leaf)
        kvstore = {"driver": "file", "path": folder}
        index[name] = {"driver": "zarr", "kvstore": kvstore, "metadata": zarr.metadata(leaf)}
    tree = {"version": VERSION, "optimizer": flax.traverse_util.unflatten_dict(index, sep="/")}
    # The index is what makes a folder a checkpoint, so it comes last.
    (Path(path) / INDEX).write_bytes(flax.serialization.msgpack_serialize(tree))


def write_t5(path: str | Path, params: Mapping[str, Leaf], step: int = 0, scanned: bool = False) -> None:
    """Writes a model's parameters, by our unscanned paths, without an optimizer's state. scanned: as scalable_t5 restores
    them, each layer with a copy of the relative position bias; T5X trains the copies apart."""
    params = _scanned(params) if scanned else params
    counter = leaf_trees.of(np.asarray(step, np.int32))
    write(path, {**{f"target/{name}": leaf for name, leaf in params.items()}, "state/step": counter})


def _scanned(params: Mapping[str, Leaf]) -> dict[str, Leaf]:
    out, heads = {}, params[f"encoder/{_RELPOS}"].shape[0]
    for name, leaf in params.items():
        if kernel := _ATTENTION.fullmatch(name):
            a, b = leaf.shape
            leaf = leaf.reshaped(heads, a // heads, b) if kernel[1] == "out" else leaf.reshaped(a, heads, b // heads)
        if match := _LAYER.fullmatch(name):
            out[name.removesuffix(match[2]) + _RELPOS] = params[f"{match[1]}/{_RELPOS}"]
        if not name.endswith(_RELPOS):
            out[name] = leaf
    return {
        _STACKED.sub(r"\1/\1/\2", name): leaf.swapped() if _STACKED.fullmatch(name) else leaf
        for name, leaf in leaf_trees.stack(out).items()
    }
