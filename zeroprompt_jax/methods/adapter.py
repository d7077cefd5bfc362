"""Adapters: bottlenecks beside or behind every sublayer (Houlsby et al. 2019; He et al. 2022)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from zeroprompt_jax.errors import UserError, unknown
from zeroprompt_jax.methods import places
from zeroprompt_jax.methods.bank import Bank
from zeroprompt_jax.models import conditioning
from zeroprompt_jax.models.conditioning import ACTIVATIONS, Sublayer


@dataclasses.dataclass(frozen=True)
class Adapter(Bank):
    """Adds act(x down + down_bias) up + up_bias, times `scaling`, to a sublayer's output before the residual. `up` starts
    at zero, so that the backbone is at first unchanged.

    placement: 'series' reads the sublayer's output (Houlsby et al., section 2.1), 'parallel' its normalised input (He et
    al., section 4; their best has scaling 4 and stands at the MLPs alone).
    rank: R, the bottleneck's width. sublayers: regexes (see `places`); the default is all, cross-attention included.
    Parameters `adapter/{stack}/{sublayer}/{down, down_bias, up, up_bias}`: [N, L, D, R], [N, L, R], [N, L, R, D], [N, L, D].
    """

    rank: int = 64
    placement: str = "series"
    activation: str = "gelu"
    scaling: float = 1.0
    sublayers: tuple[str, ...] = (".*",)

    def __post_init__(self):
        kind = type(self).__name__
        object.__setattr__(self, "sublayers", places.regexes(f"{kind}.sublayers", self.sublayers))
        if self.rank < 1:
            raise UserError(f"{kind}.rank is {self.rank}; it must be at least 1.")
        if self.placement not in ("series", "parallel"):
            raise unknown("adapter placement", self.placement, ("series", "parallel"))
        if self.activation not in ACTIVATIONS:
            raise unknown("activation", self.activation, ACTIVATIONS)

    def init(self, rng, setting):
        N, R, D = self.slices(setting), self.rank, setting.config.emb_dim
        chosen = places.matching("Adapter.sublayers", self.sublayers, places.sublayers(setting.config))
        params = {}
        for key, place in zip(jax.random.split(rng, len(chosen)), chosen):
            L = places.layers(setting.config, place)
            params[f"adapter/{place}/down"] = places.uniform_fan_in(key, (N, L, D, R))
            params[f"adapter/{place}/down_bias"] = jnp.zeros((N, L, R))
            params[f"adapter/{place}/up"] = jnp.zeros((N, L, R, D))
            params[f"adapter/{place}/up_bias"] = jnp.zeros((N, L, D))
        return unflatten_dict(params, sep="/")

    def logical_axes(self, path):
        match path.split("/"):
            case ["adapter", _, _, "down"]:
                return ("task", "layers", None, "rank")
            case ["adapter", _, _, "down_bias"]:
                return ("task", "layers", "rank")
            case ["adapter", _, _, "up"]:
                return ("task", "layers", "rank", None)
            case ["adapter", _, _, "up_bias"]:
                return ("task", "layers", None)
        return super().logical_axes(path)

    def build(self, groups):
        made = lambda leaves: self.inserted(leaves["down"], leaves["down_bias"], leaves["up"], leaves["up_bias"])
        return places.condition(groups["adapter"], made)

    def inserted(self, down: jax.Array, down_bias: jax.Array, up: jax.Array, up_bias: jax.Array) -> Sublayer:
        """What a sublayer receives of [L, G, D, R], [L, G, R], [L, G, R, D] and [L, G, D]."""
        options = dict(placement=self.placement, activation=self.activation)
        up, up_bias = self.scaling * up, self.scaling * up_bias
        return Sublayer(adapter=conditioning.Adapter(down, up, down_bias, up_bias, **options))
