"""Procedural tasks to adapt a backbone to: without an instruction, so that what is trained must carry the task.

Three pools share skills but no task and no example: the backbone is trained on `procedural_train` (see `backbone`), and of
the suite's held-out tasks and types some are adaptation sources, to learn shared or transferable prompts from, and others
targets, on which methods are compared. A target asks no set of things together that a source asks; what occurs as the
input of a source never occurs as that of a target. Importing this module registers the tasks as `adapt/…` and two
mixtures:

- `procedural_adaptation_sources`: 24 tasks of 21 types;
- `procedural_adaptation_targets`: 16 tasks of 16 types, four of them with a few fixed answers.

The targets are tasks that a prompt can carry: with all their examples, prompts of 16 vectors on the frozen packaged backbone
answer 97% of their test examples (entailment 69%); two candidates that stayed below half were left out. The sources were
not chosen by any result.

An input is written as in the suite, but where the instruction stood there is nothing. All tasks of a type have one input
format, so an input alone does not tell what is asked.
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterator

from zeroprompt_jax.data import cards
from zeroprompt_jax.tasks import procedural
from zeroprompt_jax.tasks.procedural_spec import CODE_VERSION, SEED, Spec, examples

# Test examples come first, so that a larger training split leaves them as they are.
COUNTS = {"test": 100, "validation": 64, "train": 512}
SOURCES = (
    "list_selection/pair/animal-garment",
    "list_selection/triple/tool-job-vehicle",
    "grammar/pair/comparative-noun",
    "grammar/pair/gerund-adjective",
    "translation/pair/french_nature-spanish_food",
    "dates/pair/next_month-season",
    "dates/pair/day-month",
    "unit_conversion/pair/decades_to_years-nickels_to_cents",
    "arithmetic/pair/plus_2-plus_1",
    "word_arithmetic/pair/plus_three-plus_two",
    "number_format/pair/digits_to_roman-roman_to_spelled",
    "letter_format/pair/capital-next_capital",
    "sorting/pair/smallest_number-first_letter",
    "neighbours/after/bear",
    "counting/either/h-k",
    "membership/which_of/bread-pear",
    "topic_classification/of_two/food-furniture",
    "entailment/located/bottle-drawer",
    "reading/person_of_city/athens",
    "lookup/value/eve",
    "travel/pair/instrument-country",
    "glossary/pair/plural-spanish_colour",
    "planner/pair/next_day-plus_5",
    "queue/next_person/kate",
)
TARGETS = (
    "list_selection/pair/job-food",
    "grammar/pair/opposite-adjective",
    "translation/pair/spanish_animal-french_animal",
    "dates/pair/previous_month-month",
    "unit_conversion/pair/weeks_to_days-yards_to_feet",
    "arithmetic/pair/minus_3-plus_5",
    "number_format/pair/spelled_to_roman-digits_to_spelled",
    "letter_format/pair/next_small-small_to_capital",
    "sorting/pair/smallest_number-largest_number",
    "counting/either/a-g",
    "membership/earlier/soup-cake",
    "topic_classification/of_three/animal-plant-job",
    "entailment/located/book-garden",
    "lookup/value/lucy",
    "glossary/pair/opposite-french_animal",
    "planner/pair/previous_month-plus_4",
)
SIDES = ("sources", "targets")


def spec_of(name: str) -> Spec:
    """The suite's task behind `adapt/…` or the part after it."""
    return procedural.SPECS[f"procedural/{name.removeprefix('adapt/')}"]


def card_of(name: str) -> cards.TaskCard:
    """The card of an adaptation task; `name` as in SOURCES and TARGETS."""
    card = procedural.card_of(spec_of(name), unseen_wordings=False)
    return dataclasses.replace(card, name=f"adapt/{name}", instructions=("",))


def source_of(name: str, side: str) -> cards.Source:
    """Its examples: those of the suite whose inputs fall on this side."""
    sizes = "+".join(map(str, COUNTS.values()))
    fingerprint = f"adaptation:{CODE_VERSION}:{SEED}:{sizes}:{side}:{name}"
    return cards.Source(functools.partial(_examples, spec_of(name), side), fingerprint, tuple(COUNTS))


def side_of(text: str) -> str:
    """On which side an input is: half of all inputs, whatever the task, are for sources and half for targets."""
    return SIDES[hashlib.sha256(text.encode()).digest()[0] % 2]


def _examples(spec: Spec, side: str, split: str) -> Iterator[dict[str, str]]:
    ends = dict(zip(COUNTS, itertools.accumulate(COUNTS.values())))
    mine = (example for example in examples(spec) if side_of(example["input"]) == side)
    return itertools.islice(mine, ends[split] - COUNTS[split], ends[split])


def register() -> None:
    """Registers all tasks and both mixtures; harmless when done twice."""
    for side, names in zip(SIDES, (SOURCES, TARGETS)):
        for name in names:
            cards.register(card_of(name), source_of(name, side))
        cards.register_mixture(f"procedural_adaptation_{side}", [f"adapt/{name}" for name in names])


register()
