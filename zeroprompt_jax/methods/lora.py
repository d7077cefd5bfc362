"""LoRA: low-rank updates of the backbone's projections (Hu et al. 2021)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.methods import places
from zeroprompt_jax.methods.bank import Bank
from zeroprompt_jax.models.conditioning import LowRank, Sublayer


@dataclasses.dataclass(frozen=True)
class LoRA(Bank):
    """Adds (alpha / rank) x a b to the output of projections (section 4.1); b starts at zero, a as in PEFT.

    targets: regexes of projections (see `places`); the default is the paper's, query and value of every attention.
    Parameters `lora/{stack}/{sublayer}/{projection}/{a, b}`, [N, L, I, R] and [N, L, R, O].
    """

    rank: int = 8
    alpha: float = 8.0
    targets: tuple[str, ...] = (r".*attention/(query|value)",)

    def __post_init__(self):
        object.__setattr__(self, "targets", places.regexes("LoRA.targets", self.targets))
        if self.rank < 1:
            raise UserError(f"LoRA.rank is {self.rank}; it must be at least 1.")

    def init(self, rng, setting):
        N, R = self.slices(setting), self.rank
        targets = places.matching("LoRA.targets", self.targets, places.projections(setting.config))
        params = {}
        for key, (place, (wide, out)) in zip(jax.random.split(rng, len(targets)), targets.items()):
            L = places.layers(setting.config, place)
            params[f"lora/{place}/a"] = places.uniform_fan_in(key, (N, L, wide, R))
            params[f"lora/{place}/b"] = jnp.zeros((N, L, R, out))
        return unflatten_dict(params, sep="/")

    def logical_axes(self, path):
        match path.split("/"):
            case ["lora", _, _, _, "a"]:
                return ("task", "layers", None, "rank")
            case ["lora", _, _, _, "b"]:
                return ("task", "layers", "rank", None)
        return super().logical_axes(path)

    def build(self, groups):
        scaling = self.alpha / self.rank

        def sublayer(leaves):
            return Sublayer(lora={name: LowRank(ab["a"], scaling * ab["b"]) for name, ab in leaves.items()})

        return places.condition(groups["lora"], sublayer)
