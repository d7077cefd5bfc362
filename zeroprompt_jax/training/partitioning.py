"""Meshes and shardings: one ordered table from logical axes to mesh axes, checked before anything compiles."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from zeroprompt_jax.errors import UserError, unknown
from zeroprompt_jax.methods.base import Method
from zeroprompt_jax.models.backbone import logical_axes

MESH_AXES = ("replica", "data", "fsdp", "model")
ROW_AXES = ("replica", "data", "fsdp")

# T5X's standard rules, plus `fsdp`, which shards parameters over the axis that also carries batch rows. First match
# wins; prompts, banks and ranks are small and stay replicated.
RULES = (
    ("batch", ROW_AXES),
    ("vocab", "model"),
    ("mlp", "model"),
    ("heads", "model"),
    ("joined_kv", "model"),
    ("embed", "fsdp"),
    ("kv", None),
    ("length", None),
    ("layers", None),
    ("relpos_buckets", None),
    ("abspos_buckets", None),
    ("prompt", None),
    ("prompt_embed", None),
    ("task", None),
    ("rank", None),
    ("bottleneck", "model"),  # of generated modules: there may be one for every row of a batch
)


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Sizes of the mesh axes. `data` None takes the devices that the others leave, `replica` None one for each TPU slice.

    `model` shards layers, `fsdp` parameters and rows, `data` and `replica` rows alone. Of several TPU slices each holds
    whole replicas, so that only gradients cross the network between them: `replica` is a multiple of their number.
    """

    data: int | None = None
    fsdp: int = 1
    model: int = 1
    replica: int | None = None

    def __post_init__(self):
        for name in MESH_AXES:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"Mesh.{name} is {getattr(self, name)}; it must be at least 1.")

    @classmethod
    def parse(cls, text: str) -> "Mesh":
        """Reads 'data:16,model:4'; an axis that is not named has its default."""
        sizes = {}
        for part in text.split(","):
            name, _, size = part.strip().partition(":")
            if name not in MESH_AXES:
                raise unknown("mesh axis", name, MESH_AXES)
            if not size.isdigit() or name in sizes:
                raise UserError(f"The mesh '{text}' is not a list of axes and sizes, each once, such as data:16,model:4.")
            sizes[name] = int(size)
        return cls(**sizes)

    def build(self, devices: list | None = None) -> jax.sharding.Mesh:
        """The device mesh, with Auto axes: Flax's logical constraints are hints to XLA, not assertions."""
        devices = jax.devices() if devices is None else devices
        slices = len({getattr(device, "slice_index", 0) for device in devices}) if devices[0].platform == "tpu" else 1
        replica = slices if self.replica is None else self.replica
        rest = replica * self.fsdp * self.model
        data = self.data if self.data is not None else len(devices) // rest
        sizes = dict(zip(MESH_AXES, (replica, data, self.fsdp, self.model)))
        if data * rest != len(devices) or data < 1:
            raise UserError(
                f"Mesh {_product(sizes, MESH_AXES)} needs {max(data, 1) * rest} devices; there are {len(devices)}."
            )
        # Axes share a dimension of the torus where they must: of 4 x 4 x 4 chips there is no other way to have two.
        if slices == 1:
            placed = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
        elif replica % slices:
            raise UserError(
                f"Mesh.replica is {replica}, but the devices are {slices} slices; give a multiple of {slices}, so "
                f"that only gradients pass between slices."
            )
        else:
            inside = (replica // slices, data, self.fsdp, self.model)
            placed = mesh_utils.create_hybrid_device_mesh(
                inside, (slices, 1, 1, 1), devices, allow_split_physical_axes=True
            )
        return jax.sharding.Mesh(placed, MESH_AXES, axis_types=(AxisType.Auto,) * len(sizes))


def _product(sizes: Mapping[str, int], axes: Sequence[str]) -> str:
    """Axes and their sizes, such as 'data × fsdp = 4 × 2'; replicas only where there are several."""
    axes = [axis for axis in axes if axis != "replica" or sizes[axis] > 1]
    return f"{' × '.join(axes)} = {' × '.join(str(sizes[axis]) for axis in axes)}"


def row_ways(mesh: jax.sharding.Mesh) -> int:
    """Over how many devices the rows of a batch are spread."""
    return math.prod(mesh.shape[axis] for axis in ROW_AXES)


def split_cpu(mesh: Mesh, *batch_sizes: int) -> None:
    """Makes JAX see a CPU as several devices, one a core as far as the batches divide: on small models data parallelism
    over cores trains much faster than one device that spreads each product over them. Accelerators are untouched.
    Must run before JAX is first used; does nothing later, where the user has set the number of CPU devices, or in one of
    several processes."""
    if jax.distributed.is_initialized():
        return
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "") or jax.config.jax_num_cpu_devices > 0:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    rows = (mesh.replica or 1) * mesh.fsdp
    rest = rows * mesh.model
    fits = (n for n in range(max(cores // rest, 1), 1, -1) if not any(size % (n * rows) for size in batch_sizes))
    wanted = mesh.data or next(fits, 1)
    with contextlib.suppress(RuntimeError):  # JAX is in use and keeps the devices it has
        jax.config.update("jax_num_cpu_devices", wanted * rest)


@contextlib.contextmanager
def activate(mesh: jax.sharding.Mesh):
    """Makes the mesh and the logical axis rules current, for tracing and running."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Rows over all axes but `model`."""
    return NamedSharding(mesh, PartitionSpec(ROW_AXES))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def check_batch(mesh: jax.sharding.Mesh, batch_size: int, what: str = "batch_size") -> None:
    """Raises UserError when the rows do not divide over the mesh."""
    ways = row_ways(mesh)
    if batch_size % ways:
        near = max(ways, round(batch_size / ways) * ways)
        raise UserError(
            f"{what} {batch_size} does not divide over {_product(mesh.shape, ROW_AXES)} devices; {near} would."
        )


def _axes(path: str, method: Method) -> tuple[str | None, ...]:
    kind, rest = path.split("/", 1)
    return logical_axes(rest) if kind == "backbone" else method.logical_axes(rest)


def param_shardings(shapes: Mapping[str, Any], method: Method, mesh: jax.sharding.Mesh) -> dict[str, NamedSharding]:
    """A sharding for every parameter of a flat dict; names the parameter, axis and size that does not divide."""
    out = {}
    for path, leaf in shapes.items():
        axes = _axes(path, method)
        if len(axes) != len(leaf.shape):
            raise ValueError(f"{path} has shape {leaf.shape} but logical axes {axes}.")
        spec = nn.logical_to_mesh_axes(axes, RULES)
        for size, axis, mesh_axes in zip(leaf.shape, axes, spec):
            ways = math.prod(mesh.shape[a] for a in ([mesh_axes] if isinstance(mesh_axes, str) else mesh_axes or ()))
            if size % ways:
                raise UserError(
                    f"Parameter {path}: its axis '{axis}' of size {size} does not divide over the mesh axis "
                    f"'{mesh_axes}' of {ways} devices; {math.gcd(size, ways)} would."
                )
        out[path] = NamedSharding(mesh, spec)
    return out


def state_shardings(abstract_state: Any, params: Mapping[str, NamedSharding], mesh: jax.sharding.Mesh) -> Any:
    """Shardings of a whole State: optimizer leaves shaped like a parameter follow it, the rest is replicated (step
    counts, Adafactor's factored moments: small)."""
    shapes = {path: leaf.shape for path, leaf in abstract_state.params.items()}

    def leaf_sharding(key_path, leaf):
        name = next((k.key for k in reversed(key_path) if isinstance(k, jax.tree_util.DictKey) and k.key in shapes), None)
        same = name is not None and leaf.shape == shapes[name]
        return params[name] if same else replicated(mesh)

    return jax.tree_util.tree_map_with_path(leaf_sharding, abstract_state)


def abstract(shapes: Any, shardings: Any) -> Any:
    """Shapes that know where they lie: what compiles, or is loaded, without being made."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def device_bytes(tree: Any) -> int:
    """What arrays, or shapes with shardings, take on one device."""
    size = lambda leaf: math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return sum(size(leaf) for leaf in jax.tree.leaves(tree))


def is_first() -> bool:
    """Whether this is the process that prints and writes reports, the first of a run's."""
    return jax.process_index() == 0


def local_rows(sharding: NamedSharding, rows: int) -> np.ndarray:
    """Numbers, ascending, of a batch's rows that this process' devices hold. The mesh says which: on a pod the devices of
    a host need not lie next to each other in it, so its rows may come from several places."""
    spans = {span.indices(rows) for (span,) in sharding.addressable_devices_indices_map((rows,)).values()}
    return np.concatenate([np.arange(*span) for span in sorted(spans)])


def put_batch(batch: Mapping[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """Host arrays to device, rows sharded. Each process passes its `local_rows`, in their order."""
    return jax.make_array_from_process_local_data(sharding, dict(batch))


def init_sharded(create: Callable[[], Any], shardings: Any) -> Any:
    """Runs `create` under jit so that parameters are born sharded and never gathered on one device."""
    return jax.jit(create, out_shardings=shardings)()
