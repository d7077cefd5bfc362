"""Procedural tasks to search wordings for: held-out tasks, worded as no training task is, answered by choice.

The tasks are the targets of `procedural_adaptation`, 16 tasks of 16 types that the packaged backbone was not trained
on. Their wordings here are written by hand as the suite never asks, each with a word that no training wording has. An
input brings its answers: the task's own options where it has some, else the right one and what other tasks of its type,
those of the same operation first, answer to the same input. So the input does not tell which is right, only the wording
does. Importing this module registers the tasks as `search/…` and the mixture `procedural_search`.

`synonyms` is a small thesaurus of everyday words, for `operators.Synonyms`. It is the suite's author's: it holds the
templates' words among others, so that a search with it can find them.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from zeroprompt_jax.data import cards
from zeroprompt_jax.tasks import procedural, procedural_adaptation
from zeroprompt_jax.tasks.procedural_spec import SEED, Draw, Spec

MIXTURE = "procedural_search"
OPTIONS = 4
WORDINGS = {
    "list_selection/pair/job-food": (
        "name the profession, then the thing to eat.",
        "pick out the occupation followed by the dish.",
        "output the trade and afterwards the meal.",
    ),
    "grammar/pair/opposite-adjective": (
        "state the antonym, then the quality word.",
        "the reverse of the describing word followed by that word.",
        "output the contrary and afterwards the original.",
    ),
    "translation/pair/spanish_animal-french_animal": (
        "name the creature as spaniards do, then as frenchmen do.",
        "the beast's spanish name followed by its french name.",
        "translate the creature into spanish, afterwards into french.",
    ),
    "dates/pair/previous_month-month": (
        "name the preceding month, then the present one.",
        "which month was last, followed by which month is now.",
        "output the earlier month and afterwards the current one.",
    ),
    "unit_conversion/pair/weeks_to_days-yards_to_feet": (
        "convert from weeks to days, then from yards to feet.",
        "how long is it in days, followed by how far in feet.",
        "output days per weeks and afterwards feet per yards.",
    ),
    "arithmetic/pair/minus_3-plus_5": (
        "subtract 3, then instead add 5.",
        "take 3 away, followed by putting 5 on top.",
        "output it reduced by 3 and afterwards increased by 5.",
    ),
    "number_format/pair/spelled_to_roman-digits_to_spelled": (
        "convert letters to roman, then numerals to letters.",
        "the word as a latin numeral followed by the figure in words.",
        "output words in roman style and afterwards figures in words.",
    ),
    "letter_format/pair/next_small-small_to_capital": (
        "advance the lowercase character, then make it uppercase.",
        "the follower of the little character followed by its big form.",
        "output the subsequent lowercase character and afterwards its uppercase.",
    ),
    "sorting/pair/smallest_number-largest_number": (
        "name the minimum, then the maximum.",
        "the least figure followed by the greatest figure.",
        "output the bottom value and afterwards the top value.",
    ),
    "counting/either/a-g": (
        "count every a and every g.",
        "the amount of a plus the amount of g.",
        "output the total occurrences of a together with g.",
    ),
    "membership/earlier/soup-cake": (
        "does soup precede cake, or cake precede soup?",
        "name the earlier one: soup, cake.",
        "output what stands nearer to the start, soup or cake.",
    ),
    "topic_classification/of_three/animal-plant-job": (
        "classify as animal, plant, job.",
        "what is this about: animal, plant, job?",
        "output the theme among animal, plant, job.",
    ),
    "entailment/located/book-garden": (
        "judge whether the garden contains the book.",
        "could one see the book inside the garden?",
        "output whether the book lies within the garden.",
    ),
    "lookup/value/lucy": (
        "name the possession of lucy.",
        "lucy's thing, please.",
        "output the entry belonging to lucy.",
    ),
    "glossary/pair/opposite-french_animal": (
        "state the antonym, then the creature as frenchmen call it.",
        "the reverse of the describing word followed by the beast's french name.",
        "output the contrary and afterwards the creature translated into french.",
    ),
    "planner/pair/previous_month-plus_4": (
        "name the preceding month, then add 4.",
        "which month was last, followed by putting 4 on top.",
        "output the earlier month and afterwards it increased by 4.",
    ),
}
_SYNONYMS = """
give, find, write, tell me, say, what is, name, output, state, pick out, list
and, then, followed by, and afterwards, plus
the, a, that
job, profession, occupation, trade, work
food, thing to eat, dish, meal
animal, creature, beast
adjective, quality word, describing word
verb, action, action word
noun, naming word
opposite, antonym, reverse, contrary
in spanish, into spanish, as spaniards do, spanish
in french, into french, as frenchmen do, french
previous, preceding, earlier, last, before
next, following, subsequent, after
month, time of year
month, present one, current one, original
number, figure, value, it
more than, increased by, plus, add, putting, greater than
less than, reduced by, minus, subtract, take, fewer than
spelled, in words, words, word, letters
roman, latin numeral, roman style, numerals
digits, figure, figures, numerals
small, lowercase, little
capital, uppercase, big
letter, character, sign
smallest, lowest, minimum, least, bottom
largest, highest, maximum, greatest, top
how many, count, amount of, total
or, and, together with, plus
is there, are there, occur, are in the list
first, earlier, nearer to the start
which, what, whichever
topic, theme, subject, class
in, inside, within
is, lies, stands
does it follow that, judge whether, is it true
value, possession, thing, entry, word
of, belonging to, for, with
as, to, into, in
"""


def synonyms() -> tuple[tuple[str, ...], ...]:
    """Groups of words that may stand for each other."""
    return tuple(tuple(word.strip() for word in line.split(",")) for line in _SYNONYMS.strip().splitlines())


def listed(spec: Spec, example: dict[str, str]) -> tuple[str, ...]:
    """The answers to choose from for an input, in an order that does not tell."""
    if own := spec.operation.options(spec.arguments):
        return own
    draw = Draw(SEED, "listed", spec.name, example["input"])
    siblings = draw.shuffled([s for s in procedural.SPECS.values() if s.type == spec.type and s.name != spec.name])
    answers = dict.fromkeys([example["target"]])
    for sibling in sorted(siblings, key=lambda s: s.operation.name != spec.operation.name):
        if answer := sibling.operation.solve(example["input"], sibling.arguments):
            answers[answer] = None
        if len(answers) == OPTIONS:
            break
    return tuple(draw.shuffled(list(answers)))


def _examples(name: str, split: str) -> Iterator[dict[str, Any]]:
    spec = procedural_adaptation.spec_of(name)
    for example in procedural_adaptation.source_of(name, "targets").examples(split):
        yield {**example, "options": listed(spec, example)}


def register() -> None:
    """Registers all tasks and the mixture; harmless when done twice."""
    for name, wordings in WORDINGS.items():
        spec = procedural_adaptation.spec_of(name)
        card = procedural.card_of(spec, unseen_wordings=False)
        source = procedural_adaptation.source_of(name, "targets")
        source = dataclasses.replace(
            source, examples=functools.partial(_examples, name), fingerprint=f"search {OPTIONS}: {source.fingerprint}"
        )
        cards.register(dataclasses.replace(card, name=f"search/{name}", instructions=wordings), source)
    cards.register_mixture(MIXTURE, [f"search/{name}" for name in WORDINGS])


register()
