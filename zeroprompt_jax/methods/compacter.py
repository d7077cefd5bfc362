"""Compacters: adapters whose matrices are sums of Kronecker products (Mahabadi et al. 2021, arXiv 2106.04647)."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.methods import places
from zeroprompt_jax.methods.adapter import Adapter


@dataclasses.dataclass(frozen=True)
class Compacter(Adapter):
    """An adapter of which each matrix is sum over i of rule[i] ⊗ (left[i] right[i]ᵀ) (section 3): the small `rule` is
    shared by all layers and by down and up, the vectors are a layer's own, 3 (D + R) values a sublayer in all.

    division: n, of the paper's section 3; it divides the backbone's D and `rank`.
    Parameters `compacter/rule`: [N, n, n, n]; and `compacter/{stack}/{sublayer}/…`: `down_left` and `up_right` [N, L, n, D / n],
    `down_right` and `up_left` [N, L, n, R / n], `down_bias` [N, L, R], `up_bias` [N, L, D]. `up_left` starts at zero, so that
    the backbone is at first unchanged; down at the scale of an adapter's.
    """

    division: int = 4

    def __post_init__(self):
        super().__post_init__()
        if self.division < 1 or self.rank % self.division:
            raise UserError(
                f"Compacter.division is {self.division}; it must be at least 1 and divide rank {self.rank}."
            )

    def init(self, rng, setting):
        N, R, D, n = self.slices(setting), self.rank, setting.config.emb_dim, self.division
        if D % n:
            raise UserError(f"Compacter.division {n} does not divide the backbone's emb_dim {D}; {math.gcd(n, D)} does.")
        chosen = places.matching("Compacter.sublayers", self.sublayers, places.sublayers(setting.config))
        rule, *keys = jax.random.split(rng, 1 + len(chosen))
        params = {"compacter/rule": jax.random.normal(rule, (N, n, n, n)) * n**-0.5}
        for key, place in zip(keys, chosen):
            L, kept = places.layers(setting.config, place), f"compacter/{place}"
            left, right, up = jax.random.split(key, 3)
            params[f"{kept}/down_left"] = jax.random.normal(left, (N, L, n, D // n)) * (3 * D) ** -0.5
            params[f"{kept}/down_right"] = jax.random.normal(right, (N, L, n, R // n))
            params[f"{kept}/down_bias"] = jnp.zeros((N, L, R))
            params[f"{kept}/up_left"] = jnp.zeros((N, L, n, R // n))
            params[f"{kept}/up_right"] = jax.random.normal(up, (N, L, n, D // n))
            params[f"{kept}/up_bias"] = jnp.zeros((N, L, D))
        return unflatten_dict(params, sep="/")

    def logical_axes(self, path):
        match path.split("/"):
            case ["compacter", "rule"]:
                return ("task", None, None, None)
            case ["compacter", _, _, "down_left" | "down_right" | "up_left" | "up_right"]:
                return ("task", "layers", None, None)
            case ["compacter", _, _, "down_bias" | "up_bias"]:
                return ("task", "layers", None)
        raise KeyError(path)

    def build(self, groups):
        rule = groups["compacter"]["rule"]

        def matrix(left, right):
            """[L, G, n, I], [L, G, n, J] -> [L, G, n I, n J]."""
            made = jnp.einsum("giab,lgip,lgiq->lgapbq", rule, left, right)
            L, G, n, I, _, J = made.shape
            return made.reshape(L, G, n * I, n * J)

        def sublayer(leaves):
            down, up = (matrix(leaves[f"{name}_left"], leaves[f"{name}_right"]) for name in ("down", "up"))
            return self.inserted(down, leaves["down_bias"], up, leaves["up_bias"])

        return places.condition(groups["compacter"], sublayer)
