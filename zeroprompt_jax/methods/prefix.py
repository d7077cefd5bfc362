"""Prefix tuning: trained keys and values before every attention's own (Li & Liang 2021)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.methods import places
from zeroprompt_jax.methods.bank import Bank
from zeroprompt_jax.models import conditioning
from zeroprompt_jax.models.conditioning import Sublayer


@dataclasses.dataclass(frozen=True)
class Prefix(Bank):
    """`length` keys and values in every layer, without position bias.

    sublayers: regexes of attentions (see `places`); the default is all three: encoder, decoder, cross-attention.
    Parameters `prefix/{stack}/{sublayer}/{key, value}`, [N, L, P, H, K], drawn from N(0, init_std²): a variance of
    one is that of T5's own keys and values at initialisation.

    bottleneck: R; then an MLP makes the keys and values of each attention from one embedding per position (section 4.3,
    R = 512 in the paper), which trains more steadily; `fold` turns the parameters into those above. Parameters
    `reparameterised/{stack}/{sublayer}/…`: embedding [N, P, D], down [N, D, R], down_bias [N, R], and for key and value
    {key, value}_up [N, R, L, H, K], {key, value}_bias [N, L, H, K].
    """

    length: int = 20
    bottleneck: int | None = None
    init_std: float = 1.0
    sublayers: tuple[str, ...] = (".*attention",)

    def __post_init__(self):
        object.__setattr__(self, "sublayers", places.regexes("Prefix.sublayers", self.sublayers))
        if self.length < 1:
            raise UserError(f"Prefix.length is {self.length}; it must be at least 1.")
        if self.bottleneck is not None and self.bottleneck < 1:
            raise UserError(f"Prefix.bottleneck is {self.bottleneck}; it must be at least 1, or None for no MLP.")
        if not self.init_std > 0:
            raise UserError(f"Prefix.init_std is {self.init_std}; it must be positive, as equal prefixes stay equal.")

    def init(self, rng, setting):
        c, N = setting.config, self.slices(setting)
        attentions = {place: size for place, size in places.sublayers(c).items() if place.endswith("attention")}
        chosen = places.matching("Prefix.sublayers", self.sublayers, attentions)
        params = {}
        for key, place in zip(jax.random.split(rng, len(chosen)), chosen):
            heads = (places.layers(c, place), c.num_heads, c.head_dim)
            make = self._plain if self.bottleneck is None else self._reparameterised
            params |= {path.format(place): leaf for path, leaf in make(key, N, c.emb_dim, *heads).items()}
        return unflatten_dict(params, sep="/")

    def _plain(self, rng, N, D, L, H, K):
        del D
        shape = (N, L, self.length, H, K)
        keys = zip(("key", "value"), jax.random.split(rng))
        return {f"prefix/{{}}/{name}": self.init_std * jax.random.normal(key, shape) for name, key in keys}

    def _reparameterised(self, rng, N, D, L, H, K):
        P, R = self.length, self.bottleneck
        keys = jax.random.split(rng, 4)
        wide = lambda key: self.init_std * R**-0.5 * jax.random.normal(key, (N, R, L, H, K))
        made = {
            "embedding": jax.random.normal(keys[0], (N, P, D)),
            "down": D**-0.5 * jax.random.normal(keys[1], (N, D, R)),
            "down_bias": jnp.zeros((N, R)),
            "key_up": wide(keys[2]),
            "key_bias": jnp.zeros((N, L, H, K)),
            "value_up": wide(keys[3]),
            "value_bias": jnp.zeros((N, L, H, K)),
        }
        return {f"reparameterised/{{}}/{name}": leaf for name, leaf in made.items()}

    def logical_axes(self, path):
        match path.split("/"):
            case ["prefix", _, _, "key" | "value"]:
                return ("task", "layers", "prompt", None, None)
            case ["reparameterised", _, _, name] if name in _REPARAMETERISED:
                return _REPARAMETERISED[name]
        return super().logical_axes(path)

    def build(self, groups):
        if self.bottleneck is not None:
            groups = fold(groups)
        return places.condition(groups["prefix"], lambda kv: Sublayer(prefix=conditioning.Prefix(kv["key"], kv["value"])))


_REPARAMETERISED = {
    "embedding": ("task", "prompt", "prompt_embed"),
    "down": ("task", None, "rank"),
    "down_bias": ("task", "rank"),
    "key_up": ("task", "rank", "layers", None, None),
    "key_bias": ("task", "layers", None, None),
    "value_up": ("task", "rank", "layers", None, None),
    "value_bias": ("task", "layers", None, None),
}


def fold(params: Mapping[str, Any]) -> dict[str, Any]:
    """The keys and values that the MLPs make: parameters of `Prefix(bottleneck=R)` -> those of `Prefix()`, which
    condition alike. After training the MLPs are no longer needed."""

    def one(p):
        hidden_NPR = jnp.tanh(jnp.einsum("npd,ndr->npr", p["embedding"], p["down"]) + p["down_bias"][:, None])
        make = lambda name: (
            jnp.einsum("npr,nrlhk->nlphk", hidden_NPR, p[f"{name}_up"]) + p[f"{name}_bias"][:, :, None]
        )
        return {"key": make("key"), "value": make("value")}

    sides = params["reparameterised"]
    return {"prefix": {side: {name: one(p) for name, p in subs.items()} for side, subs in sides.items()}}
