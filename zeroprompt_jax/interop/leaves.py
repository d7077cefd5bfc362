"""Parameters by path that are read when they are needed, block by block: what a conversion streams.

Paths are T5X's, which are our unscanned ones: `encoder/layers_0/attention/query/kernel`.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.models.t5 import T5Config

BLOCK = 4 * 2**20  # bytes read, turned and written at once; several are held when an array is compressed

_SCANNED = re.compile(r"(.*/)layers(/.*)")
_UNSCANNED = re.compile(r"(.*/)layers_(\d+)(/.*)")


@dataclasses.dataclass(frozen=True)
class Leaf:
    """An array that is not read yet. open: gives something that takes a slice of each axis. turned_from: the matrix that
    this one is the transpose of."""

    shape: tuple[int, ...]
    dtype: np.dtype
    open: Callable[[], Any]
    turned_from: "Leaf | None" = None

    @property
    def size(self) -> int:
        """Bytes."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def block_shape(self) -> tuple[int, ...]:
        """Shape of a block: as much of the last axes as `BLOCK` holds, so that blocks follow each other in memory."""
        shape, size = [], self.dtype.itemsize
        for length in reversed(self.shape):
            shape.append(max(1, min(length, BLOCK // max(1, size))))
            size *= length
        return tuple(reversed(shape))

    def places(self) -> Iterator[tuple[slice, ...]]:
        """Where the blocks are, in their order."""
        steps = [range(0, length, step) for length, step in zip(self.shape, self.block_shape)]
        for at in itertools.product(*steps):
            yield tuple(slice(i, min(i + r.step, r.stop)) for i, r in zip(at, steps))

    def blocks(self) -> Iterator[np.ndarray]:
        """The array in the order of its bytes, in blocks of at most `BLOCK` bytes, each a copy of its own."""
        array = self.open()
        for place in self.places():
            yield np.array(array[place], order="C")

    def read(self) -> np.ndarray:
        """The whole array."""
        out = np.empty(self.shape, self.dtype)
        for place, block in zip(self.places(), self.blocks()):
            out[place] = block
        return out

    def turned(self) -> "Leaf":
        """The transposed matrix. Its rows are everywhere in the one that it is read from, which is held while it is."""
        return self.turned_from or Leaf(self.shape[::-1], self.dtype, lambda: _whole(self).T, self)

    def swapped(self) -> "Leaf":
        """The first two axes exchanged."""
        shape = (self.shape[1], self.shape[0], *self.shape[2:])
        return Leaf(shape, self.dtype, lambda: _whole(self).swapaxes(0, 1))

    def reshaped(self, *shape: int) -> "Leaf":
        """The same values, in order, in another shape."""
        return Leaf(shape, self.dtype, lambda: _whole(self).reshape(shape))

    def cast(self, dtype: Any) -> "Leaf":
        """The same values in another dtype."""
        return Leaf(self.shape, np.dtype(dtype), lambda: _Cast(self.open(), np.dtype(dtype)))

    def equals(self, other: "Leaf") -> bool:
        """Whether both have the same shape and dtype and every bit the same."""
        if self is other:
            return True
        if (self.shape, self.dtype) != (other.shape, other.dtype):
            return False
        if self.turned_from and other.turned_from:  # neither need be held
            return self.turned_from.equals(other.turned_from)
        return all(np.array_equal(_bytes(a), _bytes(b)) for a, b in zip(self.blocks(), other.blocks()))


def _bytes(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


def _whole(leaf: Leaf) -> np.ndarray:
    array = leaf.open()
    return array if isinstance(array, np.ndarray) else leaf.read()


def of(array: Any) -> Leaf:
    """The leaf of an array that is in memory already."""
    return Leaf(tuple(np.shape(array)), np.dtype(array.dtype), lambda: np.asarray(array))


class _Cast:
    def __init__(self, array: Any, dtype: np.dtype):
        self._array, self._dtype = array, dtype

    def __getitem__(self, place: tuple[slice, ...]) -> np.ndarray:
        return np.asarray(self._array[place]).astype(self._dtype)


class _Layers:
    """One parameter of all layers [L, …]. The layer that was used last stays open."""

    def __init__(self, layers: list[Leaf]):
        self._layers, self._used, self._opened = layers, -1, None

    def __getitem__(self, place: tuple[slice, ...]) -> np.ndarray:
        return np.stack([self._layer(i)[place[1:]] for i in range(len(self._layers))[place[0]]])

    def _layer(self, i: int) -> Any:
        if self._used != i:
            self._opened = None  # before the next one is read
            self._used, self._opened = i, self._layers[i].open()
        return self._opened


class _Layer:
    """Layer i of an array of all layers."""

    def __init__(self, layers: Any, i: int):
        self._layers, self._i = layers, i

    def __getitem__(self, place: tuple[slice, ...]) -> np.ndarray:
        return self._layers[(slice(self._i, self._i + 1), *place)][0]


def stack(leaves: Mapping[str, Leaf]) -> dict[str, Leaf]:
    """Unscanned -> scanned: `encoder/layers_0/…`, `encoder/layers_1/…`, … become `encoder/layers/…` [L, …].

    Raises UserError where a layer is missing, or layers differ in shape."""
    out, layers = {}, {}
    for path, leaf in leaves.items():
        if match := _UNSCANNED.fullmatch(path):
            layers.setdefault(f"{match[1]}layers{match[3]}", {})[int(match[2])] = leaf
        else:
            out[path] = leaf
    for path, found in layers.items():
        own = [found[i] for i in sorted(found)]
        if sorted(found) != list(range(len(own))) or len({leaf.shape for leaf in own}) != 1:
            raise UserError(f"{path} cannot be stacked: it has the layers {sorted(found)}, or their shapes differ.")
        out[path] = Leaf((len(own), *own[0].shape), own[0].dtype, lambda own=own: _Layers(own))
    return out


def unstack(leaves: Mapping[str, Leaf]) -> dict[str, Leaf]:
    """Scanned -> unscanned, the inverse of `stack`. Of the scanned parameters the one that was used last stays open."""
    held: dict[str, Any] = {}

    def layer(path: str, i: int) -> Any:
        if path not in held:
            held.clear()
            held[path] = leaves[path].open()
        return held[path][i] if isinstance(held[path], np.ndarray) else _Layer(held[path], i)

    out = {}
    for path, leaf in leaves.items():
        if match := _SCANNED.fullmatch(path):
            for i in range(leaf.shape[0]):
                name = f"{match[1]}layers_{i}{match[2]}"
                out[name] = Leaf(leaf.shape[1:], leaf.dtype, lambda path=path, i=i: layer(path, i))
        else:
            out[path] = leaf
    return out


def config(shapes: Mapping[str, tuple[int, ...]]) -> T5Config:
    """What the shapes of unscanned parameters say about a T5. They do not tell activations and the relative position
    from which on all are one: these are taken from the published models (ReLU, or gated GELU; 128).

    Raises UserError where parameters that every T5 has are missing."""
    kernel = next((path for path in shapes if re.fullmatch(r"encoder/layers_0/mlp/wi(_0)?/kernel", path)), "")
    relpos, query = "encoder/relpos_bias/rel_embedding", "encoder/layers_0/attention/query/kernel"
    needed = ("token_embedder/embedding", relpos, query)
    if missing := [path for path in needed if path not in shapes] + ["encoder/layers_0/mlp/wi/kernel"] * (not kernel):
        raise UserError(f"These are no parameters of a T5: missing {', '.join(missing)}.")
    heads, buckets = shapes[relpos]
    count = lambda side: len({m[1] for path in shapes if (m := re.match(rf"{side}/layers_(\d+)/", path))})
    return T5Config(
        vocab_size=shapes["token_embedder/embedding"][0],
        emb_dim=shapes["token_embedder/embedding"][1],
        num_heads=heads,
        head_dim=shapes[query][1] // heads,
        mlp_dim=shapes[kernel][1],
        num_encoder_layers=count("encoder"),
        num_decoder_layers=count("decoder"),
        mlp_activations=("gelu", "linear") if "wi_0" in kernel else ("relu",),
        logits_via_embedding="decoder/logits_dense/kernel" not in shapes,
        relpos_num_buckets=buckets,
    )
