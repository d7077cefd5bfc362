"""A public data set as a text-to-text task: what the registries glue, super_glue, mrqa, nli_sets, mpt_sets, lm_bff and
flan are tables of.

Rules that keep scores honest:

- What is tested on is what the public scores are of: where a benchmark hides its test labels its validation split is
  the test split here (the T5 papers' convention), and training sees none of it.
- Tasks of one data set share a `family`, whatever registry they are in: `leakage` compares two mixtures by it.
- Rows without a label (SNLI's disputed pairs, hidden test labels) are left out.
- Training selects nothing on the validation splits: they are for `zeroprompt eval --split=validation`.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from zeroprompt_jax.data import cards
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.tasks import tfds_source
from zeroprompt_jax.tasks.tfds_source import Dataset, Part, Places

# Splits of the data set that training, selection and test read.
VALIDATED = {"train": Part("train"), "test": Part("validation")}
OFFICIAL = {"train": Part("train"), "validation": Part("validation"), "test": Part("test")}
TESTED = {"train": Part("train"), "test": Part("test")}
Made = Iterable[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class TextSet:
    """One data set as text to text.

    Attributes:
      name: of the task, behind the registry's name.
      dataset: where its rows are.
      type: of the task.
      text: the input's template over a row's fields.
      words: the answer for each class, in the classes' order; empty for free answers, which are a row's `target`.
      classes: the data set's names of the classes, which local files may give instead of numbers; `words` by default.
      named: other names that files have for classes.
      label: the field of the class.
      splits: train, validation and test as parts of the data set's splits.
      metrics: the first is the one that is reported.
      instructions: wordings; the default is the name, as T5 begins its inputs.
      held_out_instructions: wordings that training never uses.
      family: the data set, across registries; `name` by default.
      domain: what the texts are about.
      prepare: row to rows with the fields that the template names, for sets that are not a row an example; may set
        `target` and `references`. Told the split as well. A class it is given as its number, and no row without one.
    """

    name: str
    dataset: Dataset
    type: str
    text: str
    words: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    named: Mapping[str, str] = dataclasses.field(default_factory=dict)
    label: str = "label"
    splits: Mapping[str, Part] = dataclasses.field(default_factory=lambda: VALIDATED)
    metrics: tuple[str, ...] = ("accuracy",)
    instructions: tuple[str, ...] = ()
    held_out_instructions: tuple[str, ...] = ()
    family: str = ""
    domain: str = "general"
    prepare: Callable[[Mapping[str, Any], str], Made] | None = None

    def card(self, registry: str) -> cards.TaskCard:
        return cards.TaskCard(
            name=f"{registry}/{self.name}",
            type=self.type,
            instructions=self.instructions or (self.name,),
            held_out_instructions=self.held_out_instructions,
            domain=self.domain,
            family=self.family or self.name,
            input_template=self.text,
            options=self.words,
            metrics=self.metrics,
        )

    def source(self, registry: str, places: Places) -> cards.Source:
        prepare = getattr(self.prepare, "__qualname__", None)
        told = repr((registry, self.words, self.classes, self.named, self.label, prepare))
        digest = hashlib.blake2b(told.encode(), digest_size=8).hexdigest()
        return tfds_source.source(self.dataset, self.splits, places, self.examples, digest)

    def examples(self, row: Mapping[str, Any], split: str) -> Iterator[Mapping[str, Any]]:
        """The examples of a row: none where it has no label. UserError for a label that is none, or a missing field."""
        try:
            target = {}
            if self.words or self.classes:
                if (place := self._class(row)) is None:
                    return
                row = {**row, self.label: place}
                target = {"target": self.words[place]} if self.words else {}
            for made in self.prepare(row, split) if self.prepare else (row,):
                # A data set's own fields of such names mean nothing to a card.
                yield {key: made[key] for key in made if self.prepare or key not in cards.SPECIAL} | target
        except KeyError as e:
            raise UserError(
                f"Data set '{self.dataset}': a row has no field {e}; it has {', '.join(map(str, row))}."
            ) from None

    def _class(self, row: Mapping[str, Any]) -> int | None:
        value, classes = row[self.label], self.classes or self.words
        if isinstance(value, str):
            value = self.named.get(value, value)
        if value in classes:
            return classes.index(value)
        if isinstance(value, (bool, int)) and -1 <= value < len(classes):
            return None if value == -1 else int(value)
        if value in ("-", "", None):
            return None
        raise UserError(
            f"Data set '{self.dataset}': the {self.label} {value!r} is none of {', '.join(classes)} and no number from "
            f"0 to {len(classes) - 1}."
        )


def register(registry: str, sets: Sequence[TextSet], places: Places) -> list[str]:
    """Registers each set as the task REGISTRY/NAME, replacing an earlier one, and returns the tasks' names."""
    made = [(text_set.card(registry), text_set.source(registry, places)) for text_set in sets]
    return [cards.register(card, source, replace=True).name for card, source in made]


def fields(*names: str) -> str:
    """T5's template of named fields: fields('question', 'context') is 'question: {question} context: {context}'."""
    return " ".join(f"{name}: {{{name}}}" for name in names)
