"""Entailment from Python: rows of any tasks in, the probability that each text entails its description out."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.methods.bank import check_ids
from zeroprompt_jax.methods.base import bind
from zeroprompt_jax.methods.entailment import Entailment
from zeroprompt_jax.models.roberta import RobertaConfig


def probabilities(
    config: RobertaConfig,
    variables: Mapping[str, Any],
    method: Entailment,
    rows: Mapping[str, np.ndarray],
    batch_size: int = 64,
) -> np.ndarray:
    """The probability of entailment of each row, [R], float32.

    All rows, of whichever tasks, go through one compiled function in batches of one shape, the last being filled up; a task
    that is added to the bank within its capacity needs no other.

    Args:
      variables: {'backbone': …, 'method': …}.
      rows: the columns that `Entailment` reads, over R rows. Others are passed by.

    Raises:
      UserError: a task id outside the bank, or of a place that no task has yet.
    """
    found = outputs(config, variables, method, rows, batch_size)
    if (lost := np.isnan(found)).any():
        where = f"task {np.asarray(rows['task_ids'])[lost][0]}" if "task_ids" in rows else "some rows"
        raise UserError(
            f"The model's output for {where} is not a number: the bank holds no task there, or training diverged."
        )
    return found


def outputs(
    config: RobertaConfig,
    variables: Mapping[str, Any],
    method: Entailment,
    rows: Mapping[str, np.ndarray],
    batch_size: int = 64,
) -> np.ndarray:
    """As `probabilities`, but NaN where the model's output is not a number."""
    read = ("encoder_input_tokens", "token_types", "slot_positions", "slot_rows", "task_ids")
    columns = {name: np.asarray(rows[name]) for name in read if name in rows}
    R = len(columns["encoder_input_tokens"])
    banks = jax.tree.leaves(variables["method"])
    if method.per_task and banks:
        if "task_ids" not in columns:
            raise UserError("Rows of a bank with a slice for each task need 'task_ids', which say whose they are.")
        check_ids(columns["task_ids"], len(banks[0]))
    found = np.zeros(R, np.float32)
    for start in range(0, R, batch_size):
        part = slice(start, min(start + batch_size, R))
        fill = batch_size - (part.stop - start)
        batch = {name: np.concatenate([leaf[part], np.repeat(leaf[:1], fill, 0)]) for name, leaf in columns.items()}
        found[part] = jax.device_get(_run(variables, batch, config=config, method=method))[: part.stop - start]
    return found


@functools.partial(jax.jit, static_argnames=("config", "method"))
def _run(variables, batch, *, config, method):
    return method.probability(variables["method"], batch, bind(config, variables["backbone"]))
