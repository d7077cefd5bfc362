"""Banks: parameters with one slice per task, [N, …], read by task id."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.methods.base import Method, Setting
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
class Bank(Method):
    """Base of methods whose parameters are all banks. With `per_task` each training task has its own slice; without,
    there is one slice, [1, …], that all tasks share."""

    per_task: bool = dataclasses.field(default=False, kw_only=True)
    trainable = (r"method/.*",)

    def slices(self, setting: Setting) -> int:
        """N, the number of slices to make."""
        return len(setting.tasks) if self.per_task else 1

    def build(self, groups: Params) -> Conditioning:
        """Conditioning from leaves [G, …], one slice per group of rows."""
        raise NotImplementedError

    def condition(self, params, batch, backbone):
        return self.build(take(params, batch["task_ids"]) if self.per_task else params)
