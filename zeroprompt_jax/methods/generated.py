"""Kinds of modules that a hypernetwork generates from an instruction: which tensors each has, and where they go.

Every tensor is made row by row. A row is one vector of the finished tensor (a key, a value, a column of a matrix's input
side, a row of its output side), so `rows` of them, each of one `width`, make the tensor of one slot; a slot is one layer
of one place (see `places`). To add a kind, subclass `Kind` and give it a line in configurables.CONFIGURABLES.
"""

import abc
import collections
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.methods import places
from zeroprompt_jax.models import conditioning
from zeroprompt_jax.models.conditioning import Conditioning, LowRank, Stack, Sublayer, constrain
from zeroprompt_jax.models.t5 import T5Config

Array = jax.Array
Places = Mapping[str, Array]  # place to its slots' tensors, [L, G, rows, width]


class Tensor(NamedTuple):
    """A tensor to generate. layers: place to its number of slots; rows and width: of every slot's."""

    layers: dict[str, int]
    rows: int
    width: int

    @property
    def slots(self) -> int:
        return sum(self.layers.values())


@dataclasses.dataclass(frozen=True)
class Kind(abc.ABC):
    """One kind of module. `name` begins the names of its parameters."""

    name: ClassVar[str]

    @abc.abstractmethod
    def tensors(self, config: T5Config) -> dict[str, Tensor]:
        """Its tensors by name."""

    @abc.abstractmethod
    def build(self, made: Mapping[str, Places], config: T5Config) -> dict[str, dict[str, Any]]:
        """What each place receives, {place: {field of Sublayer or Stack: part}}, from its tensors by name."""


def _at_least_one(kind: Kind, field: str) -> None:
    if getattr(kind, field) < 1:
        raise UserError(f"generated.{type(kind).__name__}.{field} is {getattr(kind, field)}; it must be at least 1.")


def _matrix(rows: Array, transposed: bool) -> Array:
    """A matrix from its generated rows: [L, G, R, O] as they are or, transposed, [L, G, I, R], each row a column.

    A row thus is all that one hidden unit reads, or all that it writes. The published code reshapes where this transposes:
    there a row becomes I / R consecutive inputs of all units, so that no query stands for a unit."""
    return jnp.swapaxes(rows, -1, -2) if transposed else rows


@dataclasses.dataclass(frozen=True)
class Prefix(Kind):
    """`length` keys and values before those of every attention: encoder, decoder and cross-attention."""

    name = "prefix"
    length: int = 30

    def __post_init__(self):
        _at_least_one(self, "length")

    def tensors(self, config):
        layers = {p: places.layers(config, p) for p in places.sublayers(config) if p.endswith("attention")}
        tensor = Tensor(layers, self.length, config.num_heads * config.head_dim)
        return {"key": tensor, "value": tensor}

    def build(self, made, config):
        def heads(rows):
            return rows.reshape(*rows.shape[:-1], config.num_heads, config.head_dim)

        part = lambda place: conditioning.Prefix(heads(made["key"][place]), heads(made["value"][place]))
        return {place: {"prefix": part(place)} for place in made["key"]}


@dataclasses.dataclass(frozen=True)
class Adapter(Kind):
    """A parallel adapter of `rank` beside every MLP of encoder and decoder, gelu, with both biases."""

    name = "adapter"
    rank: int = 64

    def __post_init__(self):
        _at_least_one(self, "rank")

    def tensors(self, config):
        layers = {p: places.layers(config, p) for p in places.sublayers(config) if p.endswith("/mlp")}
        R, D = self.rank, config.emb_dim
        sizes = {"down": (R, D), "up": (R, D), "down_bias": (1, R), "up_bias": (1, D)}
        return {name: Tensor(layers, *size) for name, size in sizes.items()}

    def build(self, made, config):
        def part(place):
            down, up = _matrix(made["down"][place], True), _matrix(made["up"][place], False)
            return conditioning.Adapter(down, up, made["down_bias"][place][:, :, 0], made["up_bias"][place][:, :, 0])

        return {place: {"adapter": part(place)} for place in made["down"]}


@dataclasses.dataclass(frozen=True)
class LoRA(Kind):
    """Updates a b / rank of projections, both factors generated. targets: regexes of projections (see `places`)."""

    name = "lora"
    rank: int = 16
    targets: tuple[str, ...] = (r".*attention/(query|value)",)

    def __post_init__(self):
        object.__setattr__(self, "targets", places.regexes("generated.LoRA.targets", self.targets))
        _at_least_one(self, "rank")

    def tensors(self, config):
        made: dict[str, Tensor] = {}
        targets = places.matching("generated.LoRA.targets", self.targets, places.projections(config))
        for path, widths in targets.items():
            place, _, name = path.rpartition("/")
            for factor, width in zip("ab", widths):
                tensor = made.setdefault(f"{name}_{factor}", Tensor({}, self.rank, width))
                tensor.layers[place] = places.layers(config, place)
        return made

    def build(self, made, config):
        parts: dict[str, dict[str, LowRank]] = collections.defaultdict(dict)
        for name in dict.fromkeys(tensor[:-2] for tensor in made):
            for place, a in made[f"{name}_a"].items():
                b = made[f"{name}_b"][place] / self.rank
                parts[place][name] = LowRank(_matrix(a, True), _matrix(b, False))
        return {place: {"lora": lora} for place, lora in parts.items()}


@dataclasses.dataclass(frozen=True)
class Prompt(Kind):
    """`length` vectors before the encoder's input."""

    name = "prompt"
    length: int = 20

    def __post_init__(self):
        _at_least_one(self, "length")

    def tensors(self, config):
        return {"vectors": Tensor({"encoder": 1}, self.length, config.emb_dim)}

    def build(self, made, config):
        return {"encoder": {"prompt": made["vectors"]["encoder"][0]}}


def tensors(kinds: Iterable[Kind], config: T5Config) -> dict[str, Tensor]:
    """All tensors of the kinds, by their parameters' name, `{kind}_{tensor}`."""
    return {f"{kind.name}_{name}": tensor for kind in kinds for name, tensor in kind.tensors(config).items()}


def condition(kinds: Iterable[Kind], made: Mapping[str, Array], config: T5Config) -> Conditioning:
    """Conditioning from the tensors by their parameters' name, [slots, G, rows, width], slots in the order of `layers`."""
    received: dict[str, dict[str, Any]] = collections.defaultdict(dict)
    for kind in kinds:
        own = {}
        for name, tensor in kind.tensors(config).items():
            ends = np.cumsum(list(tensor.layers.values()))[:-1]
            own[name] = dict(zip(tensor.layers, jnp.split(made[f"{kind.name}_{name}"], ends)))
        for place, fields in kind.build(own, config).items():
            received[place] |= fields

    def stack(side: str) -> Stack:
        sublayers = {place: Sublayer(**fields) for place, fields in received.items() if place.startswith(f"{side}/")}
        return Stack(**received.get(side, {}), **{place.split("/")[1]: part for place, part in sublayers.items()})

    return constrain(Conditioning(stack("encoder"), stack("decoder")))
