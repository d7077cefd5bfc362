"""IA3: learned vectors that rescale activations (Liu et al. 2022, "Few-shot parameter-efficient fine-tuning")."""

import dataclasses

import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from zeroprompt_jax.methods import places
from zeroprompt_jax.methods.bank import Bank
from zeroprompt_jax.models.conditioning import Sublayer


@dataclasses.dataclass(frozen=True)
class IA3(Bank):
    """Multiplies activations by vectors that start at one (section 3.3).

    targets: regexes of projections (see `places`), or an MLP's place with `hidden` behind it, the activations between its
    projections; the default is the paper's, keys and values of every attention and the hidden activations of every MLP.
    Parameters `scale/{stack}/{sublayer}/{projection}`, [N, L, O].
    """

    targets: tuple[str, ...] = (r".*attention/(key|value)", r".*mlp/hidden")

    def __post_init__(self):
        object.__setattr__(self, "targets", places.regexes("IA3.targets", self.targets))

    def init(self, rng, setting):
        del rng
        N, config = self.slices(setting), setting.config
        known = places.projections(config)
        known |= {f"{side}/mlp/hidden": (config.mlp_dim, config.mlp_dim) for side in places.stacks(config)}
        targets = places.matching("IA3.targets", self.targets, known)
        vectors = {f"scale/{place}": jnp.ones((N, places.layers(config, place), out)) for place, (_, out) in targets.items()}
        return unflatten_dict(vectors, sep="/")

    def logical_axes(self, path):
        match path.split("/"):
            case ["scale", _, _, _]:
                return ("task", "layers", None)
        return super().logical_axes(path)

    def build(self, groups):
        return places.condition(groups["scale"], lambda vectors: Sublayer(scale=vectors))
