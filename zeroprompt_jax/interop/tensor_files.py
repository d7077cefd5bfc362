"""Files of tensors by name, read and written one block at a time: safetensors, and PyTorch's .bin.

safetensors (github.com/huggingface/safetensors, Format): eight bytes, the length of a JSON header; the header with each
tensor's dtype, shape and place; the tensors. Its own library writes only what is whole in memory.
"""

import functools
import json
import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.interop.leaves import Leaf, of

_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U8": np.dtype("u1"),
}
_HEADER_LIMIT = 100_000_000  # as safetensors' own


def read_directory(folder: str | os.PathLike) -> dict[str, Leaf]:
    """Tensors of all .safetensors files of a directory, or where there is none of its pytorch_model*.bin files.

    Raises UserError where there are neither, where one that the index names is missing, and for damaged files."""
    folder = Path(folder)
    for pattern, read in (("*.safetensors", read_safetensors), ("pytorch_model*.bin", read_torch)):
        files = sorted(folder.glob(pattern))
        if not files:
            continue
        for index in folder.glob(f"{pattern}.index.json"):
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            if lost := sorted(named - {file.name for file in files}):
                raise UserError(f"{folder} lacks {', '.join(lost)}, which {index.name} names.")
            files = [folder / name for name in sorted(named)]
        return {name: leaf for file in files for name, leaf in read(file).items()}
    raise UserError(
        f"{folder} holds no .safetensors file and no pytorch_model.bin; save the model with save_pretrained, which writes "
        f"the first."
    )


def read_safetensors(file: Path) -> dict[str, Leaf]:
    """Tensors of one file. UserError where it is damaged."""
    try:
        with open(file, "rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            if length > _HEADER_LIMIT:
                raise ValueError(f"its header would have {length:,} bytes")
            header = json.loads(f.read(length))
        start, size = 8 + length, file.stat().st_size
        header.pop("__metadata__", None)
        leaves = {}
        for name, record in header.items():
            dtype, shape = _DTYPES[record["dtype"]], tuple(record["shape"])
            at, end = record["data_offsets"]
            if end - at != int(np.prod(shape)) * dtype.itemsize or start + end > size:
                raise ValueError(f"tensor {name} is cut short")
            leaves[name] = Leaf(shape, dtype, functools.partial(_Mapped, file, dtype, start + at, shape))
        return leaves
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as e:
        raise UserError(f"{file} cannot be read as safetensors ({e}).") from None


class _Mapped:
    """A tensor in a file, mapped anew for each block: pages of those that are done do not stay with the process."""

    def __init__(self, *where: Any):
        self._where = where

    def __getitem__(self, place: tuple[slice, ...]) -> np.ndarray:
        file, dtype, offset, shape = self._where
        return np.memmap(file, dtype, "r", offset, shape)[place]


def read_torch(file: Path) -> dict[str, Leaf]:
    """Tensors of one file that `torch.save` wrote. What it wrote before version 1.6 is read whole.

    Raises UserError where torch is not installed, or cannot read the file."""
    mapped = zipfile.is_zipfile(file)
    state = {name: _to_numpy(tensor) for name, tensor in _load_torch(file, mapped).items()}
    if not mapped:
        return {name: of(array) for name, array in state.items()}
    # Mapped anew for each tensor. Names of one tensor share a leaf, or comparing them would map it twice.
    again = lambda name: _to_numpy(_load_torch(file, mapped)[name])
    leaves = {}
    for name, x in state.items():
        key = (x.ctypes.data, x.shape, x.strides, x.dtype)
        leaves.setdefault(key, Leaf(x.shape, x.dtype, functools.partial(again, name)))
    return {name: leaves[x.ctypes.data, x.shape, x.strides, x.dtype] for name, x in state.items()}


def _load_torch(file: Path, mapped: bool) -> Mapping[str, Any]:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"Reading {file} needs PyTorch (pip install torch); or save the model as safetensors where it is installed."
        ) from None
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as e:  # what it raises for a damaged file differs with where the damage is
        why = (str(e).splitlines() or [type(e).__name__])[0]
        raise UserError(f"{file} cannot be read as a PyTorch state dict ({why}).") from None


def _to_numpy(tensor: Any) -> np.ndarray:
    import torch

    if tensor.dtype == torch.bfloat16:  # NumPy has it only through ml_dtypes
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def write_safetensors(file: str | os.PathLike, leaves: Mapping[str, Leaf]) -> None:
    """Writes tensors by name, in their order, block by block, under a temporary name first."""
    names = {dtype: name for name, dtype in _DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for the framework
    at = 0
    for name, leaf in leaves.items():
        if leaf.dtype not in names:
            raise UserError(f"Tensor {name} is {leaf.dtype}, which a safetensors file here does not hold.")
        header[name] = {"dtype": names[leaf.dtype], "shape": list(leaf.shape), "data_offsets": [at, at + leaf.size]}
        at += leaf.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin aligned
    file = Path(file)
    partial = file.with_name(f".{file.name}.partial.{os.getpid()}")
    try:
        with open(partial, "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text)
            # As bytes: bfloat16 has no buffer of its own.
            f.writelines(block.reshape(-1).view(np.uint8).data for leaf in leaves.values() for block in leaf.blocks())
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
