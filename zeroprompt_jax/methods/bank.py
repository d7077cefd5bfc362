"""Banks: parameters with one slice per task, [N, …], read by task id."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.methods.base import Batch, Method, Setting
from zeroprompt_jax.models.conditioning import Conditioning

Array = jax.Array
Params = Mapping[str, Any]


def check_ids(task_ids: Any, tasks: int) -> None:
    """Raises UserError for an id outside the bank. JAX's gathers would clamp it to another task without a word."""
    ids = np.asarray(task_ids)
    if ids.size and not (0 <= ids.min() and ids.max() < tasks):
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise UserError(f"There is no task {wrong}: the bank holds {tasks} tasks, numbered from 0 to {tasks - 1}.")


def take(bank: Any, task_ids: Array) -> Any:
    """The slices of some tasks: leaves [N, …] -> [B, …].

    An unknown id is a UserError; under jit, where values cannot be looked at, its slice is NaN.
    """
    if not isinstance(task_ids, jax.core.Tracer):
        check_ids(task_ids, len(jax.tree.leaves(bank)[0]))
    # A negative id would count from the end.
    ids = jnp.where(task_ids < 0, jnp.iinfo(jnp.int32).max, task_ids)
    return jax.tree.map(lambda leaf: jnp.take(leaf, ids, axis=0, mode="fill", fill_value=jnp.nan), bank)


def per_layer(leaf: Array) -> Array:
    """[G, L, …], as a bank is stored, -> [L, G, …], as conditioning is inserted."""
    return jnp.moveaxis(leaf, 0, 1)


@dataclasses.dataclass(frozen=True)
class Bank(Method, abc.ABC):
    """Base of methods that keep banks. With `per_task` each training task has its own slice; without, there is one
    slice, [1, …], that all tasks share."""

    per_task: bool = dataclasses.field(default=False, kw_only=True)
    trainable = (r"method/.*",)

    def slices(self, setting: Setting) -> int:
        """N, the number of slices to make."""
        return len(setting.tasks) if self.per_task else 1

    @abc.abstractmethod
    def build(self, groups: Params) -> Conditioning:
        """Conditioning from the parameters, of whose banks there is one slice per group of rows, [G, …]."""

    def groups(self, params: Params, batch: Batch) -> Params:
        """The parameters, or some of them, with the slices of the rows' tasks in place of the banks: [B, …]; banks as they
        are, [1, …], where all tasks share one slice."""
        if not self.per_task:
            return params
        flat = flax.traverse_util.flatten_dict(dict(params), sep="/")
        banks = {path: leaf for path, leaf in flat.items() if self.banked(f"method/{path}")}
        taken = {
            path: nn.with_logical_constraint(leaf, ("batch", *self.logical_axes(path)[1:]))
            for path, leaf in take(banks, batch["task_ids"]).items()
        }
        return flax.traverse_util.unflatten_dict(flat | taken, sep="/")

    def condition(self, params, batch, backbone):
        return self.build(self.groups(params, batch))
