"""The training state: what trains, its optimizer's state, the step; and apart from it what is frozen.

Variables are one tree {'backbone': …, 'method': …}. Training works on flat dicts named by path ('method/prompt'): one
regular name for sharding, freezing, saving and error messages. What is frozen is not part of the state, so it is never
differentiated, never given optimizer state, never saved again.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct, traverse_util

from zeroprompt_jax.errors import UserError

Array = jax.Array
Flat = dict[str, Array]


@struct.dataclass
class State:
    """step: int32 scalar, the number of updates done. params: what trains, by path. opt_state: optax's."""

    step: Array
    params: Flat
    opt_state: Any


def flatten(variables: Mapping[str, Any]) -> Flat:
    """{'backbone': {'encoder': …}} -> {'backbone/encoder/…': leaf}."""
    return traverse_util.flatten_dict(dict(variables), sep="/")


def unflatten(*flats: Mapping[str, Array]) -> dict[str, Any]:
    """Merges flat dicts back into one tree of variables; an empty method keeps its place."""
    merged = {k: v for flat in flats for k, v in flat.items()}
    return {"method": {}, **traverse_util.unflatten_dict(merged, sep="/")}


def split(flat: Mapping[str, Any], trainable: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits by regex into (trained, frozen). A regex that matches no path is an error: it is never what was meant."""
    patterns = [re.compile(p) for p in trainable]
    for p in patterns:
        if not any(p.fullmatch(path) for path in flat):
            shown = ", ".join(sorted(flat)[:4])
            raise UserError(f"The trainable regex '{p.pattern}' matches no parameter (there are {len(flat)}: {shown}, …).")
    trained = {k: v for k, v in flat.items() if any(p.fullmatch(k) for p in patterns)}
    return trained, {k: v for k, v in flat.items() if k not in trained}


def create(params: Flat, tx: optax.GradientTransformation) -> State:
    return State(jnp.zeros((), jnp.int32), params, tx.init(params))


def count(flat: Mapping[str, Any]) -> int:
    """Number of values in a flat dict of arrays or shapes."""
    return sum(leaf.size for leaf in flat.values())
