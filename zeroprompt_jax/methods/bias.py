"""Bias tuning: BitFit (Ben Zaken et al. 2022), with the biases beside the backbone."""

import dataclasses

import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from zeroprompt_jax.methods import places
from zeroprompt_jax.methods.bank import Bank
from zeroprompt_jax.models.conditioning import Sublayer


@dataclasses.dataclass(frozen=True)
class Bias(Bank):
    """Adds trained vectors, zero at first, to the output of projections. BitFit trains the biases a model has; T5 has
    none, neither in projections nor in norms, and RoBERTa's belong to the frozen backbone, so here they are added by the
    method. Norms, RoBERTa's biases of them included, stay as they are.

    targets: regexes of projections (see `places`). The default is all but keys: a bias of the keys adds the same number
    to all of a query's scores, which softmax takes out again, so it would train on rounding errors.
    Parameters `bias/{stack}/{sublayer}/{projection}`, [N, L, O].
    """

    targets: tuple[str, ...] = (r".*/(?!key$)\w+",)

    def __post_init__(self):
        object.__setattr__(self, "targets", places.regexes("Bias.targets", self.targets))

    def init(self, rng, setting):
        del rng
        N, config = self.slices(setting), setting.config
        targets = places.matching("Bias.targets", self.targets, places.projections(config))
        vectors = {f"bias/{place}": jnp.zeros((N, places.layers(config, place), out)) for place, (_, out) in targets.items()}
        return unflatten_dict(vectors, sep="/")

    def logical_axes(self, path):
        match path.split("/"):
            case ["bias", _, _, _]:
                return ("task", "layers", None)
        return super().logical_axes(path)

    def build(self, groups):
        return places.condition(groups["bias"], lambda vectors: Sublayer(bias=vectors))
