"""Places: the sublayers and projections of a backbone that a method conditions, named by regexes.

A sublayer's place is encoder/self_attention, encoder/mlp, decoder/self_attention, decoder/cross_attention or decoder/mlp;
a projection's has its name (query, key, value, out; wi or wi_0, wi_1, wo) behind it: decoder/mlp/wo. A RoBERTa has the
encoder's alone.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.methods.bank import per_layer
from zeroprompt_jax.methods.base import Config
from zeroprompt_jax.models import conditioning
from zeroprompt_jax.models.conditioning import Conditioning, Stack, Sublayer

Array = jax.Array
T = TypeVar("T")


def stacks(config: Config) -> dict[str, int]:
    """The backbone's stacks, encoder and decoder or the encoder alone, with their numbers of layers."""
    layers = {"encoder": config.num_encoder_layers, "decoder": config.num_decoder_layers}
    return {side: L for side, L in layers.items() if L}


def sublayers(config: Config) -> dict[str, dict[str, tuple[int, int]]]:
    """Every sublayer's place, with its projections' input and output widths."""
    found = {side: conditioning.projections(config, side) for side in stacks(config)}
    return {f"{side}/{name}": sizes for side, names in found.items() for name, sizes in names.items()}


def projections(config: Config) -> dict[str, tuple[int, int]]:
    """Every projection's place, with its input and output width."""
    return {f"{place}/{name}": size for place, sizes in sublayers(config).items() for name, size in sizes.items()}


def layers(config: Config, place: str) -> int:
    """L, the number of layers of the place's stack."""
    return stacks(config)[place.split("/")[0]]


def matching(option: str, regexes: Iterable[str], places: Mapping[str, T]) -> dict[str, T]:
    """The places that some regex matches whole. UserError, naming the option, for a regex that matches none."""
    for regex in regexes:
        if not any(re.fullmatch(regex, place) for place in places):
            raise UserError(f"{option}: '{regex}' matches no place; there is {', '.join(places)}.")
    return {place: size for place, size in places.items() if any(re.fullmatch(regex, place) for regex in regexes)}


def regexes(option: str, given: str | Sequence[str]) -> tuple[str, ...]:
    """One regex or several, as a tuple. UserError for none and for what is not a regex."""
    given = (given,) if isinstance(given, str) else tuple(given)
    if not given:
        raise UserError(f"{option} is empty; name at least one place, such as '.*'.")
    for regex in given:
        try:
            re.compile(regex)
        except re.error as e:
            raise UserError(f"{option}: '{regex}' is not a regular expression ({e}).") from None
    return given


def condition(groups: Mapping[str, Mapping[str, Any]], make: Callable[[Any], Sublayer]) -> Conditioning:
    """Conditioning from what each sublayer receives, {stack: {sublayer: leaves [G, L, …]}}. `make` gets the sublayer's
    leaves as they are inserted, [L, G, …]."""

    def stack(side: str) -> Stack:
        return Stack(**{name: make(jax.tree.map(per_layer, leaves)) for name, leaves in groups.get(side, {}).items()})

    return Conditioning(stack("encoder"), stack("decoder"))


def uniform_fan_in(rng: Array, shape: Sequence[int]) -> Array:
    """U(-1/sqrt(I), 1/sqrt(I)) for matrices [..., I, R]: PyTorch's default, which published LoRA and adapters start from."""
    bound = shape[-2] ** -0.5
    return jax.random.uniform(rng, shape, jnp.float32, -bound, bound)
