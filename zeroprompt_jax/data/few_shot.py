"""Few-shot tasks by name: `NAME@K.S` is the task NAME with K of its training examples, drawn by the seed S.

`MIXTURE@K.S` is the mixture of these tasks; `MIXTURE@4,16.S-E` that of several K and of all seeds from S to E, each a
task of its own, so that a whole grid trains side by side as slices of one bank.

`per_class` is the few-shot protocol of LM-BFF for classification, with as many examples to select on as to train on.
"""

import dataclasses
import hashlib
import heapq
import json
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from zeroprompt_jax.errors import UserError

SEEDS = (13, 21, 42, 87, 100)  # of the five splits that LM-BFF and those after it report
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


class Split(NamedTuple):
    """Numbers of the examples to train on and to select on, and a digest of both as they stand there."""

    train: tuple[int, ...]
    dev: tuple[int, ...]
    digest: str


def per_class(examples: Sequence[Mapping[str, Any]], classes: Sequence[Hashable], shots: int, seed: int) -> Split:
    """`shots` examples of each class to train on, and the next `shots` of each to select on, after a shuffle by the seed:
    the rule of LM-BFF, and its very split where the examples stand in the order of its files.

    A class with less than twice as many leaves fewer, or none, to select on. Tests use the original validation set.

    Source: Gao et al. 2021, "Making Pre-trained Language Models Better Few-shot Learners" (arXiv 2012.15723), section 3
    and its published generator.

    Raises:
      UserError: a class with fewer than `shots` examples.
    """
    found: dict[Hashable, list[int]] = {}
    # The published generator's own: numpy keeps the stream of this old generator as it is.
    for i in np.random.RandomState(seed).permutation(len(classes)).tolist():
        found.setdefault(classes[i], []).append(i)
    for name, mine in found.items():
        if len(mine) < shots:
            raise UserError(f"Class '{name}' has {len(mine)} training examples, so {shots} cannot be drawn from it.")
    train = tuple(i for mine in found.values() for i in mine[:shots])
    dev = tuple(i for mine in found.values() for i in mine[shots : 2 * shots])
    told = [[[examples[i], classes[i]] for i in part] for part in (train, dev)]
    digest = hashlib.blake2b(json.dumps(told, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()
    return Split(train, dev, digest)
