"""What the packaged backbone is trained on: span corruption of a text beside the procedural suite's training tasks.

The suite's held-out tasks and types are not in it, so that they stay new to whoever adapts the backbone; see
`procedural_adaptation`.
"""

import dataclasses
import functools
import itertools
import os

from zeroprompt_jax.data import cards
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.tasks import procedural, span_corruption
from zeroprompt_jax.tasks.procedural_spec import CODE_VERSION, SEED, Exhausted, Spec, examples

MIXTURE = "backbone"


def register(
    text: str | os.PathLike, vocabulary: str, *, text_share: float = 0.15, chunks: int | None = None, per_task: int = 80
) -> None:
    """Registers the mixture `backbone`.

    Args:
      text: plain English text, as `span_corruption.register_text` takes it.
      vocabulary: of the experiment.
      text_share: share of the mixture's examples that are span corruption.
      chunks: of the text; None is all.
      per_task: examples of each procedural task. The suite's own test examples are never among them.

    Raises:
      UserError: no such text, or a share outside 0 to 1.
    """
    if not 0 < text_share < 1:
        raise UserError(f"backbone.register.text_share is {text_share:g}; it must be between 0 and 1.")
    span_corruption.register_text(text, vocabulary, chunks=chunks)
    names = [_register(procedural.SPECS[name], per_task) for name in cards.mixture("procedural_train")]
    share = len(names) * text_share / (1 - text_share)
    cards.register_mixture(MIXTURE, {span_corruption.NAME: share, **dict.fromkeys(names, 1.0)})


def _register(spec: Spec, per_task: int) -> str:
    """The procedural task with `per_task` training examples, as a task of its own. Returns its name."""
    name = spec.name.replace("procedural/", "backbone/", 1)
    source = cards.Source(
        functools.partial(_examples, spec, per_task), f"backbone:{CODE_VERSION}:{SEED}:{per_task}:{spec.name}", ("train",)
    )
    card = procedural.card_of(spec, unseen_wordings=False)
    cards.register(dataclasses.replace(card, name=name), source, replace=True)
    return name


def _examples(spec: Spec, per_task: int, split: str):
    train, test = procedural.COUNTS[spec.pool]
    every = (e for i, e in enumerate(examples(spec)) if not train <= i < train + test)
    try:
        yield from itertools.islice(every, per_task)
    except Exhausted:
        return  # a small operation has fewer
