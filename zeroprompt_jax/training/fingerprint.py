"""A backbone's fingerprint: tells cheaply whether parameters are those that a task was trained with."""

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

SAMPLE = 4096  # values read of every leaf; of a scanned stack, of every layer of a leaf


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """Digests (SHA-256, hexadecimal) of a backbone, the same for scanned and unscanned layers, sharded or not.

    Attributes:
      size: number of parameters.
      shapes: of all paths and shapes.
      weights: of these and evenly spaced values of every leaf, as float32.
      rounded: of the same values rounded to bfloat16, which is how a model that was stored in bfloat16 is recognised.
    """

    size: int
    shapes: str
    weights: str
    rounded: str

    def unlike(self, other: "Fingerprint") -> str | None:
        """Why `other` is another backbone than this one, as the end of a sentence; None where it is the same."""
        if self == other:
            return None
        if self.shapes != other.shapes:
            return f"of another shape ({self.size:,} parameters there, {other.size:,} here)"
        if self.rounded == other.rounded:
            return "of the same weights at another precision (one of the two was rounded to bfloat16)"
        return "of the same shape, but with other weights"


def fingerprint(backbone: Mapping[str, Any]) -> Fingerprint:
    """The fingerprint of a backbone's parameters. Reads at most `SAMPLE` values of every leaf of every layer."""
    shapes, weights, rounded = (hashlib.sha256() for _ in range(3))
    size = 0
    for path, shape, values in sorted(_leaves(backbone), key=lambda leaf: leaf[0]):
        name = f"{path} {list(shape)}\n".encode()
        for digest in (shapes, weights, rounded):
            digest.update(name)
        weights.update(values.astype("<f4").tobytes())
        rounded.update(values.astype(jnp.bfloat16).astype("<f4").tobytes())
        size += int(np.prod(shape))
    return Fingerprint(size, shapes.hexdigest(), weights.hexdigest(), rounded.hexdigest())


def _leaves(backbone: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...], np.ndarray]]:
    """(path, shape, sampled values) of every parameter, with the layers of a scanned stack told apart."""
    for path, leaf in flax.traverse_util.flatten_dict(dict(backbone), sep="/").items():
        if "/layers/" not in path:
            yield path, leaf.shape, _read(leaf, _positions(leaf.shape))
            continue
        layer = np.arange(leaf.shape[0])[:, None]
        for i, values in enumerate(_read(leaf, (layer, *_positions(leaf.shape[1:])))):
            yield re.sub("/layers/", f"/layers_{i}/", path), leaf.shape[1:], values


def _positions(shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Where the sample is read: evenly spaced over the flat array, as indices per axis."""
    size = int(np.prod(shape))
    count = min(size, SAMPLE)
    return np.unravel_index(np.arange(count) * size // count, shape)


def _read(leaf: Any, index: tuple[np.ndarray, ...]) -> np.ndarray:
    if isinstance(leaf, jax.Array):
        # Flattening a sharded array would gather all of it; reading single places gathers only those.
        sharding, out = leaf.sharding, None
        if isinstance(sharding, jax.sharding.NamedSharding):
            out = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
        return np.asarray(jax.jit(lambda leaf, index: leaf[index], out_shardings=out)(leaf, index), np.float32)
    return np.asarray(np.asarray(leaf)[index], np.float32)
