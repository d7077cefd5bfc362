"""What a method is: its parameters, the conditioning they make, and what of backbone and method trains."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from zeroprompt_jax.models.conditioning import Conditioning
from zeroprompt_jax.models.t5 import Backbone, Output, T5Config

Array = jax.Array
Batch = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class Method:
    """Base of all methods: adds nothing, trains nothing. A method is configuration; its parameters are passed in.

    All variables live in one tree {'backbone': …, 'method': …}. trainable: regexes, matched against whole paths such as
    'backbone/encoder/layers/mlp/wo/kernel' or 'method/prompt', of what is trained; everything else stays as it is.
    """

    trainable = ()
    per_task = False  # whether it keeps parameters per task, and so reads `task_ids`

    def init(self, rng: Array, config: T5Config) -> dict[str, Any]:
        """The method's own parameters, float32."""
        del rng, config
        return {}

    def logical_axes(self, path: str) -> tuple[str | None, ...]:
        """Logical axis names of the method's parameter at `path` (without the leading 'method/')."""
        raise KeyError(f"{type(self).__name__} has no parameter {path}.")

    def condition(self, params: Mapping[str, Any], batch: Batch, backbone: Backbone) -> Conditioning:
        """Turns the method's parameters and the batch (task ids, instruction tokens) into conditioning."""
        del params, batch, backbone
        return Conditioning()

    def losses(self, params: Mapping[str, Any], batch: Batch, outputs: Output, backbone: Backbone) -> dict[str, Array]:
        """Further losses by name, each already weighted and normalised; added to the cross-entropy."""
        del params, batch, outputs, backbone
        return {}
