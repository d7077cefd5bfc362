"""Few-shot tasks by name: `NAME@K.S` is the task NAME with K of its training examples, drawn by the seed S.

`MIXTURE@K.S` is the mixture of these tasks; `MIXTURE@4,16.S-E` that of several K and of all seeds from S to E, each a
task of its own, so that a whole grid trains side by side as slices of one bank.
"""

import dataclasses
import hashlib
import heapq
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from zeroprompt_jax.errors import UserError

_NAME = re.compile(r"(.+)@(\d+(?:,\d+)*)\.(\d+)(?:-(\d+))?")


class FewShot(NamedTuple):
    """What a few-shot name says."""

    base: str
    shots: tuple[int, ...]
    seeds: range

    @property
    def single(self) -> bool:
        """Whether it names one number of examples and one seed, as a task does."""
        return len(self.shots) == len(self.seeds) == 1

    def names(self, tasks: Iterable[str]) -> list[str]:
        """The few-shot tasks made of these tasks."""
        return [f"{task}@{k}.{seed}" for seed in self.seeds for k in self.shots for task in tasks]


def parse(name: str) -> FewShot | None:
    """Reads NAME@K,K.S-E; None for any other name."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    shots = tuple(int(k) for k in found[2].split(","))
    first, last = int(found[3]), int(found[4] or found[3])
    if min(shots) < 1 or last < first or len(set(shots)) < len(shots):
        raise UserError(f"'{name}' is not a few-shot name: NAME@K,K.S-E needs different K above 0 and seeds S up to E.")
    return FewShot(found[1], shots, range(first, last + 1))


@dataclasses.dataclass(frozen=True)
class Drawn:
    """`examples` of a source whose training examples are K drawn ones, in a random order; other splits are whole.

    The K that are drawn are among the K + 1 that the same seed draws.
    """

    source: Any
    name: str
    shots: int
    seed: int

    def __call__(self, split: str) -> Iterable[Mapping[str, Any]]:
        examples = self.source.examples(split)
        return self._draw(examples) if split == "train" else examples

    def _draw(self, examples: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        def key(item):
            return hashlib.blake2b(f"{self.seed}/{self.name}/{item[0]}".encode(), digest_size=8).digest()

        drawn = [example for _, example in heapq.nsmallest(self.shots, enumerate(examples), key=key)]
        if len(drawn) < self.shots:
            raise UserError(
                f"Task '{self.name}' has {len(drawn)} training examples, so {self.shots} cannot be drawn from it."
            )
        return drawn


def draw(card: Any, source: Any, shots: int, seed: int) -> tuple[Any, Any]:
    """The card and source of `CARD@shots.seed`."""
    mark = f"@{shots}.{seed}"
    examples = Drawn(source, card.name, shots, seed)
    return (
        dataclasses.replace(card, name=card.name + mark),
        dataclasses.replace(source, examples=examples, fingerprint=source.fingerprint + mark),
    )
