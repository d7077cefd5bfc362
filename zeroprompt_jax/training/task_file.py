"""Task files: a trained task as one safetensors file, without the backbone that it needs.

A file holds the method's parameters of that task and, as JSON in its header, what reads them: the method, the backbone's
fingerprint, the vocabulary, the token lengths and the task's card. Files of one method assemble into one bank, so that
thousands of tasks are served by one compiled function.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

import zeroprompt_jax
from zeroprompt_jax.errors import UserError, nearest
from zeroprompt_jax.methods.bank import Bank, check_ids
from zeroprompt_jax.methods.base import Method
from zeroprompt_jax.training.fingerprint import Fingerprint

FORMAT = 1
SUFFIX = ".safetensors"
# One header entry: safetensors writes several in no fixed order, and the same task should be the same bytes.
_HEADER = "zeroprompt_jax"

Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class TaskFile:
    """A trained task.

    Attributes:
      card: the task's card, as plain values.
      method: with `per_task` off.
      params: the method's parameters, float32; banks have one slice, [1, …].
      backbone: the fingerprint of what it was trained on.
      vocabulary: {'spec': …, 'fingerprint': …}.
      features: token lengths and what else makes a text's tokens.
      version: of zeroprompt_jax, which wrote it.
    """

    card: Mapping[str, Any]
    method: Method
    params: Params
    backbone: Fingerprint
    vocabulary: Mapping[str, str]
    features: Mapping[str, Any]
    version: str = zeroprompt_jax.__version__

    @property
    def task(self) -> str:
        return self.card["name"]


def slice_of(method: Method, params: Params, place: int) -> tuple[Method, dict[str, Any]]:
    """One task's part of a method's parameters, as numpy: banks [N, …] -> [1, …], and what tasks share as it is; with
    the method that reads it. UserError for a place outside the bank, and for a method without parameters or banks."""
    if not isinstance(method, Bank) or not params:
        raise UserError(f"The method {type(method).__name__} keeps nothing per task that could be handed on as a file.")

    def part(path: str, leaf):
        if not method.banked(f"method/{path}"):
            return np.asarray(jax.device_get(leaf), np.float32)
        check_ids(place, leaf.shape[0])
        return np.asarray(jax.device_get(leaf[place : place + 1]), np.float32)

    flat = {path: part(path, leaf) for path, leaf in _flat(params).items()}
    return dataclasses.replace(method, per_task=False), _tree(flat)


def save(file: TaskFile, path: str | Path) -> None:
    """Writes a task file under a temporary name and renames it: what is there under `path` is whole, always."""
    path = Path(path)
    if path.suffix != SUFFIX:
        raise UserError(f"A task file's name ends in {SUFFIX}; '{path.name}' does not.")
    # A slice is written without its bank's axis, so that others read a prompt as [P, D].
    of = lambda name, leaf: leaf[0] if file.method.banked(f"method/{name}") else leaf
    tensors = {name: np.ascontiguousarray(of(name, leaf), np.float32) for name, leaf in _flat(file.params).items()}
    record = {field.name: getattr(file, field.name) for field in dataclasses.fields(file) if field.name != "params"}
    record |= {"format": FORMAT, "method": _encode(file.method), "backbone": dataclasses.asdict(file.backbone)}
    record["shapes"] = {name: list(leaf.shape) for name, leaf in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        safetensors.numpy.save_file(tensors, partial, {_HEADER: json.dumps(record, ensure_ascii=False, sort_keys=True)})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def is_task_file(path: str | Path) -> bool:
    """Whether a file was written by `save`, and not by another program that keeps tensors alone."""
    try:
        with safetensors.safe_open(path, "np") as f:
            return _HEADER in (f.metadata() or {})
    except (OSError, safetensors.SafetensorError):
        return False


def read(path: str | Path) -> TaskFile:
    """Reads a task file. UserError for one that is missing, truncated, foreign, or of a newer format or method."""
    path = Path(path)
    try:
        with safetensors.safe_open(path, "np") as f:
            header = (f.metadata() or {}).get(_HEADER)
            tensors = {name: f.get_tensor(name) for name in f.keys()} if header else {}
    except FileNotFoundError:
        hint = nearest(path.name, [p.name for p in path.parent.glob(f"*{SUFFIX}")])
        raise UserError(f"There is no task file '{path}'.{hint}") from None
    except (OSError, safetensors.SafetensorError) as e:
        raise UserError(f"The task file '{path}' cannot be read: it is cut short, or no safetensors file ({e}).") from None
    if header is None:
        raise UserError(f"'{path}' is a safetensors file, but no task file: its header has no entry '{_HEADER}'.")
    record = json.loads(header)
    if record["format"] > FORMAT:
        raise UserError(
            f"The task file '{path}' has format {record['format']}, written by zeroprompt_jax {record['version']}; this "
            f"version ({zeroprompt_jax.__version__}) reads up to {FORMAT}."
        )
    if record["shapes"] != {name: list(leaf.shape) for name, leaf in tensors.items()}:
        raise UserError(f"The task file '{path}' is damaged: its tensors are not those that its header lists.")
    method = _decode(record["method"], path)
    try:
        banked = {name: method.banked(f"method/{name}") for name in tensors}
    except KeyError as e:
        raise UserError(f"The task file '{path}' does not fit this version's {type(method).__name__}: {e.args[0]}") from None
    return TaskFile(
        record["card"],
        method,
        _tree({name: leaf[None] if banked[name] else leaf for name, leaf in tensors.items()}),
        Fingerprint(**record["backbone"]),
        record["vocabulary"],
        record["features"],
        record["version"],
    )


def check(file: TaskFile, backbone: Fingerprint, vocabulary: str, where: str = "this one") -> None:
    """Raises UserError where a task was trained on another backbone, or its texts became other tokens (another
    vocabulary fingerprint). There is no way around it: on another backbone a prompt is noise."""
    if why := file.backbone.unlike(backbone):
        raise UserError(f"Task '{file.task}' was trained on another backbone than {where}: {why}.")
    if file.vocabulary["fingerprint"] != vocabulary:
        raise UserError(
            f"Task '{file.task}' was trained with the vocabulary '{file.vocabulary['spec']}', and {where} has another one."
        )


class Assembled(NamedTuple):
    """Tasks in one bank. method: with `per_task` on. params: banks [N or capacity, …]. tasks: their names, by place."""

    method: Method
    params: dict[str, Any]
    tasks: tuple[str, ...]


def assemble(files: Sequence[TaskFile | str | Path], capacity: int | None = None) -> Assembled:
    """Puts tasks' files into one bank, in order.

    Args:
      files: tasks or paths of task files, of one method and one backbone.
      capacity: slices of the bank; more than there are files leaves room, so that what is compiled for the bank stays
        when a task is added. Nobody's slices hold NaN.

    Raises:
      UserError: no file, a task twice, more files than the capacity, or one that differs in method, shapes, backbone or
        in what all tasks share; the odd one is named.
    """
    read_ones = [file if isinstance(file, TaskFile) else read(file) for file in files]
    if not read_ones:
        raise UserError("A bank needs at least one task file.")
    first = read_ones[0]
    N = len(read_ones) if capacity is None else capacity
    if N < len(read_ones):
        raise UserError(f"A bank with capacity {N} has no room for {len(read_ones)} tasks.")
    seen = set()
    for file in read_ones:
        if file.task in seen:
            raise UserError(f"Task '{file.task}' is given twice.")
        seen.add(file.task)
        _check_alike(first, file)

    def bank(path: str, leaf: np.ndarray):
        if not first.method.banked(f"method/{path}"):
            return jnp.asarray(leaf)
        out = np.full((N, *leaf.shape[1:]), np.nan, np.float32)
        for place, flat in enumerate(flats):
            out[place] = flat[path][0]
        return jnp.asarray(out)

    flats = [_flat(file.params) for file in read_ones]
    params = {path: bank(path, leaf) for path, leaf in flats[0].items()}
    method = dataclasses.replace(first.method, per_task=True)
    return Assembled(method, _tree(params), tuple(file.task for file in read_ones))


def _check_alike(first: TaskFile, file: TaskFile) -> None:
    def odd(why: str):
        raise UserError(f"Task '{file.task}' cannot share a bank with '{first.task}': {why}.")

    if file.method != first.method:
        odd(f"its method is {file.method}, not {first.method}")
    flat, wanted = _flat(file.params), _flat(first.params)
    if shapes := {path: flat[path].shape for path in flat if path not in wanted or flat[path].shape != wanted[path].shape}:
        path, shape = next(iter(shapes.items()))
        odd(f"its {path} is {list(shape)}, not {list(wanted[path].shape) if path in wanted else 'there'}")
    if missing := [path for path in wanted if path not in flat]:
        odd(f"it has no {missing[0]}")
    if why := first.backbone.unlike(file.backbone):
        odd(f"its backbone is another one, {why}")
    for path, leaf in flat.items():
        if not first.method.banked(f"method/{path}") and not np.array_equal(leaf, wanted[path]):
            odd(f"{path}, which all tasks of a bank share, differs; export tasks folded")


def _flat(params: Params) -> dict[str, Any]:
    return flax.traverse_util.flatten_dict(dict(params), sep="/")


def _tree(flat: Mapping[str, Any]) -> dict[str, Any]:
    return flax.traverse_util.unflatten_dict(dict(flat), sep="/")


def _encode(value: Any) -> Any:
    """A method, or a value of one of its fields, as JSON. How it was begun (`init…`) is no longer part of it."""
    if dataclasses.is_dataclass(value):
        fields = (f.name for f in dataclasses.fields(value) if f.init and not f.name.startswith("init"))
        kind = type(value)
        return {"class": f"{kind.__module__}:{kind.__qualname__}", **{name: _encode(getattr(value, name)) for name in fields}}
    return [_encode(x) for x in value] if isinstance(value, (tuple, list)) else value


def _decode(value: Any, where: Path) -> Any:
    if isinstance(value, list):
        return tuple(_decode(x, where) for x in value)
    if not isinstance(value, dict) or "class" not in value:
        return value
    module, _, name = value["class"].partition(":")
    # A file may only name what is here already: reading it must not import modules of its choice.
    if module.startswith("zeroprompt_jax.methods."):
        try:
            __import__(module)
        except ImportError:
            pass
    kind = getattr(sys.modules.get(module), name, None)
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise UserError(f"The task file '{where}' needs {value['class']}: import its module first, or update zeroprompt_jax.")
    fields = {key: _decode(x, where) for key, x in value.items() if key != "class"}
    if extra := set(fields) - {f.name for f in dataclasses.fields(kind)}:
        raise UserError(f"The task file '{where}' sets {name}.{min(extra)}, which this version does not have.")
    return kind(**fields)
