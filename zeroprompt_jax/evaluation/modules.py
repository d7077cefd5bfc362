"""The module store: what a method makes of an instruction, made once per task and kept for all of the task's rows.

A task's modules are its Conditioning, memory lowered to keys and values. They lie in one bank on the device, of fixed
capacity, from which the rows of a batch, of any tasks, take theirs; what the bank has no room for goes to the host's
memory, of fixed capacity too, or lies in a directory, one file per task.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.flax

import zeroprompt_jax
from zeroprompt_jax.errors import UserError, unknown
from zeroprompt_jax.evaluation.ranking import bucket
from zeroprompt_jax.methods.base import Method
from zeroprompt_jax.models.conditioning import Conditioning, constrain, describe, finest, map_axes, map_groups
from zeroprompt_jax.models.lowering import lower
from zeroprompt_jax.models.t5 import Backbone, T5Config
from zeroprompt_jax.training import partitioning
from zeroprompt_jax.training.fingerprint import fingerprint

SUFFIX = ".safetensors"
DTYPES = ("float32", "bfloat16")
# One header entry: safetensors writes several in no fixed order, and the same task should be the same bytes.
_HEADER = "zeroprompt_jax"
# Least instruction length that is compiled for; longer ones are multiples by powers of two, up to the store's.
_SHORT = 16
# Tasks that are generated at a time, where more than one is missing.
AT_ONCE = 8


class ModuleStore:
    """Modules of the tasks that were asked for lately.

    A task is its instruction's tokens. Adding one within the capacity compiles nothing; beyond it, the task that was
    asked for least recently gives up its place.

    Args:
      variables: {'backbone': …, 'method': …}; another model needs another store.
      config: of the backbone.
      method: makes conditioning of `instruction_tokens` alone (`reads_instructions`); what it makes has the same shapes
        for every instruction length, memory excepted.
      length: most tokens of an instruction, EOS included. Memories are padded, masked, to what it makes of so many.
      capacity: N, tasks in the bank; at least the distinct tasks of a batch.
      dtype: of stored floating-point values, float32 or bfloat16; by default the backbone's, which loses nothing: they
        are rounded to it wherever they are inserted.
      directory: keeps every task's modules as a file; None keeps what leaves the bank in the host's memory.
      mesh: of the variables. The bank's heads and ranks are divided over its `model` axis, where they divide; its tasks are
        not divided, as a row may be of any of them.
      host_capacity: most tasks in the host's memory, those asked for lately; 0 keeps none, for tasks that do not come back.

    Attributes:
      bank: Conditioning whose leaves have N groups: [N, …], [L, N, …].
      generated: tasks generated so far.
    """

    def __init__(
        self,
        variables: Mapping[str, Any],
        config: T5Config,
        method: Method,
        length: int,
        capacity: int,
        dtype: str | None = None,
        directory: str | os.PathLike | None = None,
        mesh: jax.sharding.Mesh | None = None,
        host_capacity: int = 256,
    ):
        dtype = config.dtype if dtype is None else dtype
        if dtype not in DTYPES:
            raise unknown("dtype of a module store", dtype, DTYPES)
        if capacity < 1:
            raise UserError(f"The module store's capacity is {capacity}; it must be at least 1.")
        if not method.reads_instructions:
            raise UserError(
                f"The method {type(method).__name__} reads no instruction, so there is nothing to store per task."
            )
        self._variables, self._length, self.capacity = variables, length, capacity
        self._static = {"config": config, "method": method, "dtype": dtype}
        self._static["memory"] = memory_length(variables, config, method, length)
        self._shapes = jax.eval_shape(functools.partial(_make, **self._static), variables, _tokens(1, length))
        self._directory = None if directory is None else Path(directory)
        if self._directory is not None:
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
            except OSError as e:
                raise UserError(f"The module store's directory {directory} cannot be made ({e.strerror}).") from None
        self._ways = 1 if mesh is None else partitioning.row_ways(mesh)
        self._placed = None if mesh is None else shardings(self._shapes, mesh)
        self._write = jax.jit(_write, donate_argnums=0, out_shardings=self._placed)
        # Whole on every device, so that each host can read it.
        self._take = jax.jit(take, out_shardings=None if mesh is None else partitioning.replicated(mesh))
        self.bank = jax.jit(functools.partial(empty, self._shapes, capacity), out_shardings=self._placed)()
        self._places: collections.OrderedDict[bytes, int] = collections.OrderedDict()  # the least recent first
        self._host: dict[bytes, Conditioning] = {}  # the least recent first
        self._host_capacity = host_capacity
        self.generated = 0

    def grow(self, capacity: int) -> None:
        """Makes room for so many tasks, if there is less; what reads the bank compiles again. The tasks in it stay."""
        if capacity > self.capacity:

            def append(bank):
                join = lambda axis, old, new: jnp.concatenate([old, new], axis)
                return map_groups(join, bank, empty(self._shapes, capacity - self.capacity))

            self.bank = jax.jit(append, out_shardings=self._placed)(self.bank)
            self.capacity = capacity

    @property
    def task_bytes(self) -> int:
        """Size of one task's modules, by their shapes: nothing has to be made."""
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(self._shapes))

    @property
    def nbytes(self) -> int:
        """Size of the bank."""
        return self.capacity * self.task_bytes

    def __str__(self) -> str:
        each, whole = self.task_bytes / 2**20, self.nbytes / 2**20
        dtype = self._static["dtype"]
        return f"{self.capacity} tasks of {each:,.3g} MiB in {dtype}, {whole:,.3g} MiB on the device"

    def places(self, instruction_tokens: np.ndarray) -> np.ndarray:
        """Where in the bank the modules of each row's task are: [B, U] tokens, 0 as padding -> [B] int32, or [1] where
        all rows are of one task. What is missing is loaded or generated; the places hold until the next call.

        Raises:
          UserError: more distinct tasks than the capacity, or an instruction that is longer than the store's length.
        """
        rows = np.asarray(instruction_tokens, np.int32)
        tasks = [_trim(row).tobytes() for row in rows]
        wanted = dict.fromkeys(tasks)
        if len(wanted) > self.capacity:
            raise UserError(
                f"A batch has {len(wanted)} different instructions, more than the {self.capacity} that the module "
                f"store holds."
            )
        if (longest := max((len(task) // 4 for task in wanted), default=0)) > self._length:
            raise UserError(f"An instruction has {longest} tokens, more than the module store's {self._length}.")
        for task in wanted:
            if task in self._places:
                self._places.move_to_end(task)
        self._fill([task for task in wanted if task not in self._places])
        if len(wanted) == 1:
            tasks = tasks[:1]
        return np.array([self._places[task] for task in tasks], np.int32)

    def attach(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch with its rows' places and the bank instead of its instructions: what `condition` reads."""
        batch = dict(batch)
        places = self.places(batch.pop("instruction_tokens"))
        return {**batch, "modules": self.bank, "module_places": places}

    def _fill(self, missing: list[bytes]) -> None:
        absent = []
        for task in missing:
            kept = self._host.pop(task, None) if self._directory is None else self._load(task)
            if kept is None:
                absent.append(task)
            else:
                self._put([task], kept)
        by_length = collections.defaultdict(list)
        for task in absent:
            by_length[min(bucket(len(task) // 4, _SHORT), self._length)].append(task)
        for length, tasks in sorted(by_length.items()):
            for start in range(0, len(tasks), AT_ONCE):
                part = tasks[start : start + AT_ONCE]
                rows = 1 if len(part) == 1 else AT_ONCE
                tokens = np.zeros((-(-rows // self._ways) * self._ways, length), np.int32)
                for row, task in zip(tokens, part):
                    ids = np.frombuffer(task, np.int32)
                    row[: len(ids)] = ids
                tokens[len(part) :] = tokens[0]  # a row without any token is nothing to encode
                made = generate_step(self._variables, tokens, **self._static)
                self.generated += len(part)
                if self._directory is not None:
                    host = jax.device_get(made)
                    for row, task in enumerate(part):
                        self._save(task, take(host, np.array([row])))
                self._put(part, made)

    def _put(self, tasks: list[bytes], made: Conditioning) -> None:
        """Puts the first groups of `made` into places of the bank, which others may have to leave.

        A task is listed in `_places` only while its modules are what lies there, so that one who interrupts this and goes
        on is never given another task's.
        """
        free = sorted(set(range(self.capacity)) - set(self._places.values()))
        for task in list(self._places)[: max(len(tasks) - len(free), 0)]:  # the least recent
            place = self._places[task]
            if self._directory is None and self._host_capacity:
                self._host[task] = jax.device_get(self._take(self.bank, np.array([place], np.int32)))
                if len(self._host) > self._host_capacity:
                    del self._host[next(iter(self._host))]
            del self._places[task]
            free.append(place)
        places = np.full(finest(made), self.capacity, np.int32)  # beyond the bank: dropped
        places[: len(tasks)] = free[: len(tasks)]
        self.bank = self._write(self.bank, made, places)
        self._places.update(zip(tasks, places.tolist()))

    # Files.

    @functools.cached_property
    def _record(self) -> dict[str, Any]:
        """All that a task's modules depend on, its tokens excepted, and how they are laid out."""
        prints = {name: dataclasses.asdict(fingerprint(self._variables[name])) for name in ("backbone", "method")}
        static = {name: repr(value) for name, value in self._static.items()}
        shapes = {path: list(shape) for path, shape in describe(self._shapes)}
        return {"version": zeroprompt_jax.__version__, "weights": prints, **static, "shapes": shapes}

    def _header(self, task: bytes) -> str:
        record = {**self._record, "tokens": hashlib.sha256(task).hexdigest()}
        return json.dumps(record, sort_keys=True)

    def path(self, task: bytes) -> Path:
        """The file of a task, its tokens given as int32 bytes without padding."""
        return self._directory / f"{hashlib.sha256(self._header(task).encode()).hexdigest()}{SUFFIX}"

    def _save(self, task: bytes, made: Conditioning) -> None:
        path = self.path(task)
        tensors = {name: jnp.asarray(leaf) for (name, _), leaf in zip(describe(made), jax.tree.leaves(made))}
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            safetensors.flax.save_file(tensors, partial, {_HEADER: self._header(task)})
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def _load(self, task: bytes) -> Conditioning | None:
        """What the task's file holds; None where there is none, or one that is damaged or of something else."""
        try:
            # As 'flax': 'np' does not know bfloat16.
            with safetensors.safe_open(self.path(task), "flax") as f:
                if (f.metadata() or {}).get(_HEADER) != self._header(task):
                    return None
                leaves = [f.get_tensor(name) for name, _ in describe(self._shapes)]
        except (OSError, safetensors.SafetensorError):
            return None
        return jax.tree.unflatten(jax.tree.structure(self._shapes), leaves)


def _trim(tokens: np.ndarray) -> np.ndarray:
    """Tokens without the padding behind them."""
    used = np.flatnonzero(tokens)
    return tokens[: used[-1] + 1 if len(used) else 0]


def take(bank: Conditioning, places: jax.Array) -> Conditioning:
    """The modules at these places, [G]: leaves with G groups."""
    # The store's places are all in the bank; the default mode would look for others, and touch every value again.
    return map_groups(lambda axis, leaf: jnp.take(leaf, places, axis=axis, mode="clip"), bank)


def condition(
    variables: Mapping[str, Any], batch: Mapping[str, Any], method: Method, backbone: Backbone
) -> Conditioning:
    """A batch's conditioning: taken from the store that was attached to it, or made by the method."""
    if "modules" in batch:
        return constrain(take(batch["modules"], batch["module_places"]))
    return method.condition(variables["method"], batch, backbone)


def _condition(config: T5Config, method: Method, variables, tokens_UT) -> Conditioning:
    batch = {"instruction_tokens": tokens_UT}
    return method.condition(variables["method"], batch, Backbone(config, variables["backbone"]))


def _make(variables, tokens_UT, *, config: T5Config, method: Method, memory: int, dtype: str) -> Conditioning:
    """Modules of U instructions, every leaf with U groups; a memory is padded to so many positions and lowered."""
    made = _condition(config, method, variables, tokens_UT)
    if made.memory is not None:
        short = ((0, 0), (0, memory - made.memory.shape[1]))
        mask = made.memory_mask
        mask = jnp.ones(made.memory.shape[:2], bool) if mask is None else mask.astype(bool)
        made = made.replace(memory=jnp.pad(made.memory, (*short, (0, 0))), memory_mask=jnp.pad(mask, short))

    def keep(axis, leaf):
        leaf = jnp.repeat(leaf, len(tokens_UT) // leaf.shape[axis], axis=axis)
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return map_groups(keep, lower(Backbone(config, variables["backbone"]), made))


generate_step = jax.jit(_make, static_argnames=("config", "method", "memory", "dtype"))


def memory_length(variables: Mapping[str, Any], config: T5Config, method: Method, length: int) -> int:
    """Positions of the memory that the method makes of an instruction of so many tokens; 0 where it makes none."""
    full = jax.eval_shape(functools.partial(_condition, config, method), variables, _tokens(1, length)).memory
    return 0 if full is None else full.shape[1]


def empty(task: Conditioning, capacity: int) -> Conditioning:
    """A bank for so many tasks of one task's shapes, all zeros."""

    def zeros(axis, leaf):
        return jnp.zeros((*leaf.shape[:axis], capacity, *leaf.shape[axis + 1 :]), leaf.dtype)

    return map_groups(zeros, task)


def shardings(shapes: Conditioning, mesh: jax.sharding.Mesh) -> Conditioning:
    """Where a bank of such modules lies."""

    def sharding(leaf, axes):
        spec = nn.logical_to_mesh_axes(axes, partitioning.RULES)
        # `task`, and all else that is divided over nothing, has no mesh axis.
        kept = (name if name and size % mesh.shape[name] == 0 else None for size, name in zip(leaf.shape, spec))
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*kept))

    return map_axes(sharding, shapes, group="task")


def _tokens(rows: int, length: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((rows, length), jnp.int32)


def _write(bank: Conditioning, made: Conditioning, places: jax.Array) -> Conditioning:
    def write(axis, leaf, new):
        index = (slice(None),) * axis + (places,)
        return leaf.at[index].set(new, mode="drop")

    return map_groups(write, bank, made)
