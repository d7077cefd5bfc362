"""The procedural suite with worked examples in its instructions: each wording is followed by some of the task's own.

    write the plural of the noun. for example: star foot silver gives feet.

That is how HINT gives a definition and k positive examples to the hypernetwork (Ivison et al. 2023, "HINT", arXiv
2212.10315). Tasks, wordings, training and test examples are those of `procedural`; the shown examples are those that
would come next, so no split has them. In tokens of the packaged vocabulary an instruction has, at the median and at most,
11 and 18 without examples, 24 and 30 with one, 33 and 42 with two; an input 5 and 12, an answer 2 and 4 (EOS aside).
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator

from zeroprompt_jax.data import cards
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.tasks import procedural, procedural_spec

NAME = "procedural_shown"
MIXTURES = ("train", "seen_tasks", "unseen_tasks", "unseen_types")


def register(examples: int = 1) -> None:
    """Registers every task of the suite as `procedural_shown/…`, and the mixtures `procedural_shown_train`,
    `procedural_shown_seen_tasks`, `procedural_shown_unseen_tasks` and `procedural_shown_unseen_types`.

    Registering again, with another number, replaces what was registered before. It takes a few seconds, as all examples
    are drawn to know which come next.

    Args:
      examples: how many an instruction shows, at least one.

    Raises:
      UserError: fewer than one, or more than a task has left.
    """
    if examples < 1:
        raise UserError(
            f"Procedural suite: examples={examples} to show must be at least 1; without any, it is 'procedural'."
        )
    for name in procedural.SPECS:
        cards.register(card_of(name, examples), _source_of(name), replace=True)
    for mixture in MIXTURES:
        rates = cards.mixture(f"procedural_{mixture}")
        cards.register_mixture(f"{NAME}_{mixture}", {shown_name(name): rate for name, rate in rates.items()})


def shown_name(name: str) -> str:
    """`procedural_shown/…` of a task `procedural/…`."""
    return f"{NAME}/{name.removeprefix('procedural/')}"


@functools.cache
def shown(name: str, count: int) -> tuple[tuple[str, str], ...]:
    """Input and answer of the first examples of a task that no split has."""
    spec = procedural.SPECS[name]
    used = sum(procedural.COUNTS[spec.pool])
    try:
        found = itertools.islice(procedural_spec.examples(spec), used, used + count)
        return tuple((example["input"], example["target"]) for example in found)
    except procedural_spec.Exhausted as e:
        raise UserError(f"Procedural suite: {count} examples to show are too many. {e}") from None


def card_of(name: str, count: int) -> cards.TaskCard:
    """The card of the task `procedural/…` with so many examples after each of its wordings."""
    card = cards.card(name)
    listed = "; ".join(f"{given} gives {answer}" for given, answer in shown(name, count))
    wordings = {
        field: tuple(f"{wording} for example: {listed}." for wording in getattr(card, field))
        for field in ("instructions", "held_out_instructions")
    }
    return dataclasses.replace(card, name=shown_name(name), **wordings)


def _source_of(name: str) -> cards.Source:
    return dataclasses.replace(cards.source(name), examples=functools.partial(_examples, name))


def _examples(name: str, split: str) -> Iterator[dict[str, str]]:
    return cards.source(name).examples(split)
