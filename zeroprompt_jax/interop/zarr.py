"""Arrays that T5X and Orbax keep as zarr, through TensorStore: in local folders, and at gs:// and other URLs."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tensorstore as ts

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.interop.leaves import BLOCK, Leaf

# Few things at once and nothing kept: TensorStore's defaults hold several chunks of a large array at the same time.
# A bucket that cannot be reached is told within seconds.
_CONTEXT = {
    "cache_pool": {"total_bytes_limit": 0},
    "data_copy_concurrency": {"limit": 1},
    "file_io_concurrency": {"limit": 1},
    "gcs_request_retries": {"max_retries": 3, "initial_delay": "200ms", "max_delay": "1s"},
}


@functools.cache
def _context() -> ts.Context:
    return ts.Context(_CONTEXT)


def store(path: str | Path, name: str = "") -> dict[str, Any]:
    """TensorStore's key-value store of a folder or URL, or of what is called `name` in it."""
    text = str(path)
    if "://" in text:
        try:
            spec = ts.KvStore.Spec(text.rstrip("/") + "/").to_json()
        except ValueError as e:
            raise UserError(f"'{text}' is no address that can be read ({_reason(e)}).") from None
    else:
        spec = {"driver": "file", "path": f"{Path(text).expanduser().resolve()}/"}
    return {**spec, "path": spec["path"] + name}


def read_file(path: str | Path, name: str) -> bytes | None:
    """The file `name` in a folder or URL; None where there is none. UserError where it cannot be reached."""
    try:
        found = ts.KvStore.open(store(path), context=_context()).result().read(name).result()
    except (ValueError, OSError) as e:
        if "://" in str(path):
            raise UserError(
                f"'{path}' cannot be reached ({_reason(e)}); copy it to this machine and give the folder's path."
            ) from None
        return None  # a path below a file, for one
    return bytes(found.value) if found.state == "value" else None


def _reason(e: Exception) -> str:
    """The first sentence of TensorStore's error, without what it quotes of its own source."""
    return str(e).partition(" [")[0].partition("\n")[0][:200]


class _Stored:
    def __init__(self, array: ts.TensorStore, path: str):
        self._array, self._path = array, path

    def __getitem__(self, place: Any) -> np.ndarray:
        try:
            return self._array[place].read().result()
        except (ValueError, OSError) as e:
            raise UserError(f"The array {self._path} cannot be read ({_reason(e)}).") from None


def leaf(kvstore: dict[str, Any], driver: str = "zarr") -> Leaf:
    """An array that is there. UserError where it is not, or cannot be opened."""
    try:
        # A chunk that a broken download lacks would else be read as zeros.
        spec = {"driver": driver, "kvstore": kvstore, "fill_missing_data_reads": False}
        array = ts.open(spec, context=_context(), open=True, read=True).result()
    except (ValueError, OSError) as e:
        raise UserError(f"The array {kvstore['path']} cannot be read ({_reason(e)}).") from None
    shape, dtype = tuple(array.shape), np.dtype(array.dtype.numpy_dtype)
    chunk = int(np.prod(array.chunk_layout.read_chunk.shape or ())) * dtype.itemsize

    def open_stored() -> Any:
        # A chunk is decoded whole each time that a part of it is read.
        stored = _Stored(array, kvstore["path"])
        size = int(np.prod(shape)) * dtype.itemsize
        return stored[...] if chunk > 2 * BLOCK or size <= 2 * BLOCK else stored

    return Leaf(shape, dtype, open_stored)


def metadata(leaf: Leaf) -> dict[str, Any]:
    """zarr metadata of an array as T5X writes it, gzip, with a block for each chunk: T5X reads chunks of any size."""
    return {
        "chunks": list(leaf.block_shape),
        "compressor": {"id": "gzip", "level": 1},
        "dtype": "bfloat16" if leaf.dtype == ml_dtypes.bfloat16 else leaf.dtype.newbyteorder("<").str,
        "shape": list(leaf.shape),
    }


def write(kvstore: dict[str, Any], leaf: Leaf) -> None:
    """Writes an array, in place of one that is there."""
    spec = {"driver": "zarr", "kvstore": kvstore, "metadata": metadata(leaf)}
    # Without this a chunk of zeros is left out, as a lost one would be.
    spec["store_data_equal_to_fill_value"] = True
    array = ts.open(spec, context=_context(), create=True, delete_existing=True).result()
    for place, block in zip(leaf.places(), leaf.blocks()):
        array[place].write(block, can_reference_source_data_indefinitely=True).result()


def orbax(path: str | Path) -> dict[tuple[str, ...], Callable[[], Leaf]] | None:
    """What opens each array of a folder that Orbax's tree handler wrote, by its keys; None where it wrote none."""
    if (text := read_file(path, "_METADATA")) is None:
        return None
    record = json.loads(text)
    driver = "zarr3" if record.get("use_zarr3") else "zarr"
    arrays = {}
    for entry in record["tree_metadata"].values():
        keys = tuple(str(key["key"]) for key in entry["key_metadata"])
        value = entry["value_metadata"]
        if value["skip_deserialize"] or value["value_type"] in ("None", "Dict", "List"):
            continue  # an empty branch
        name = ".".join(keys) + "/"
        if record.get("use_ocdbt", True):
            kvstore = {"driver": "ocdbt", "base": store(path), "path": name}
        else:
            kvstore = store(path, name)
        arrays[keys] = functools.partial(leaf, kvstore, driver)
    return arrays
