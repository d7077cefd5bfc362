"""Shard files of the token store: several tasks' examples as a few flat arrays in one file, read through a memory map.

Layout: 8 bytes magic, the header's length (uint64, little endian), the header (JSON), then the arrays, each aligned to
64 bytes. For every column there is a flat array and an int64 array of offsets [rows + 1].
"""

import json
import os
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from zeroprompt_jax.errors import UserError

MAGIC = b"ZPSTORE1"
_ALIGN = 64


def ragged_positions(starts_N: np.ndarray, lengths_N: np.ndarray) -> np.ndarray:
    """Concatenation of `arange(start, start + length)` over N rows, without a loop."""
    ends_N = np.cumsum(lengths_N)
    total = int(ends_N[-1]) if len(ends_N) else 0
    return np.repeat(starts_N - ends_N + lengths_N, lengths_N) + np.arange(total)


def write_durably(path: pathlib.Path, *parts: bytes) -> None:
    """Writes a file so that, whenever the machine stops, `path` holds either all of it or what it held before."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as f:
            for part in parts:
                f.write(part)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)  # else the new name itself may be lost
        finally:
            os.close(directory)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        raise UserError(f"Cannot write {path}: {e.strerror}. What was cached before is kept.") from None


def write_shard(
    path: pathlib.Path, tasks: list[dict[str, Any]], columns: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> dict:
    """Writes one shard.

    Args:
      path: file to make.
      tasks: JSON descriptions of the tasks inside.
      columns: name to (flat values, row lengths).

    Returns:
      `{"bytes", "crc32", "tasks"}` for the index.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, (flat, lengths) in columns.items():
        arrays[name] = np.ascontiguousarray(flat)
        arrays[f"{name}/offsets"] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    described, position = {}, 0
    for name, array in arrays.items():
        described[name] = {"dtype": array.dtype.str, "count": len(array), "at": position}
        position += -(-array.nbytes // _ALIGN) * _ALIGN
    header = json.dumps({"arrays": described, "tasks": tasks}, ensure_ascii=False).encode("utf-8")
    header += b" " * (-(len(MAGIC) + 8 + len(header)) % _ALIGN)
    parts = [MAGIC + len(header).to_bytes(8, "little") + header]
    for array in arrays.values():
        parts.append(array.tobytes())
        parts.append(b"\0" * (-array.nbytes % _ALIGN))
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    write_durably(path, *parts)
    return {"bytes": sum(map(len, parts)), "crc32": crc, "tasks": [t["name"] for t in tasks]}


class Shard:
    """A shard opened for reading.

    Attributes:
      tasks: the header's task descriptions.

    Raises:
      UserError: the file is missing, cut short or damaged; names it and its tasks.
    """

    def __init__(self, path: pathlib.Path, described: Mapping[str, Any], verify: bool = True):
        def damaged(why: str) -> UserError:
            names = described["tasks"]
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more tasks" if len(names) > 3 else "")
            return UserError(
                f"Cache shard {path} {why}; it holds {shown}. Delete the file and cache these tasks again."
            )

        try:
            size = path.stat().st_size
            if size != described["bytes"]:
                raise damaged(f"is {size} bytes long instead of {described['bytes']}")
            if verify and checksum(path) != described["crc32"]:
                raise damaged("is damaged (its checksum differs)")
            data = np.memmap(path, np.uint8, "r")
        except OSError as e:
            raise damaged(f"cannot be read ({e.strerror})") from None
        if bytes(data[:8]) != MAGIC:
            raise damaged("is not a cache shard of this version")
        length = int(data[8:16].view("<u8")[0])
        header = json.loads(bytes(data[16 : 16 + length]))
        self.tasks = header["tasks"]
        self._arrays = {}
        for name, a in header["arrays"].items():
            dtype, start = np.dtype(a["dtype"]), 16 + length + a["at"]
            # A plain view: every operation on np.memmap itself pays for its subclass.
            self._arrays[name] = data[start : start + a["count"] * dtype.itemsize].view(np.ndarray).view(dtype)

    def lengths(self, column: str, rows_N: np.ndarray) -> np.ndarray:
        """Lengths [N] of the rows of a column; of one that the shard lacks, zeros."""
        if column not in self._arrays:
            return np.zeros(len(rows_N), np.int64)
        offsets = self._arrays[f"{column}/offsets"]
        return offsets[rows_N + 1] - offsets[rows_N]

    def take(self, column: str, rows_N: np.ndarray, lengths_N: np.ndarray) -> np.ndarray:
        """The first `lengths_N` values of each row, concatenated."""
        if column not in self._arrays:
            return np.zeros(0, np.int32)
        return self._arrays[column][ragged_positions(self._arrays[f"{column}/offsets"][rows_N], lengths_N)]

    def row(self, column: str, row: int) -> np.ndarray:
        """All values of one row."""
        offsets = self._arrays[f"{column}/offsets"]
        return self._arrays[column][offsets[row] : offsets[row + 1]]


def checksum(path: pathlib.Path) -> int:
    """crc32 of a file."""
    crc = 0
    # Read, not mapped: mapped pages would count as this process's memory.
    with open(path, "rb") as f:
        while block := f.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc
