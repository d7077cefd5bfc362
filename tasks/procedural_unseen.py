"""Types that are never trained on. Each asks for a skill that another type trains (finding a key, finding a neighbour),
over other items, in another format and in other words: what transfers is the skill, not the format."""

from zeroprompt_jax.tasks import procedural_words as words
from zeroprompt_jax.tasks.procedural_keyed import Format
from zeroprompt_jax.tasks.procedural_lists import neighbour
from zeroprompt_jax.tasks.procedural_spec import Kind, asking


def _records() -> Kind:
    values = words.CITIES + words.CATEGORIES["animal"] + words.DRINKS
    form = Format(words.FIELDS, values, pair="{} = {}", joiner="; ", n=3)
    return Kind(
        "records",
        "tables",
        (
            *form.mapped("field_value", {v: v for v in values}, asking(
                "the {0} in the record", "what the record has for {0}", "the {0}", unseen="the value of the {0}"),
                train=(0,), held_out=(12,)),
            form.inverse("field_name", values, 0, 12, asking(
                "the key of {0} in the record", "which key has {0}", "what {0} is in the record",
                unseen="the name of the key of {0}")),
        ),
        seen=False,
    )  # fmt: skip


def _queue() -> Kind:
    rows = (
        ("next_person", 1, asking("who is next after {0}", "the name of the one after {0}", "the one that follows {0}",
                                  unseen="the person that is after {0}")),
        ("previous_person", -1, asking("who is before {0}", "the name of the one before {0}",
                                       "the one that {0} follows",
                                       unseen="the person that is before {0}")),
    )  # fmt: skip
    names = words.NAMES
    operations = tuple(neighbour(n, k, names, 0, len(names), ask) for n, k, ask in rows)
    return Kind("queue", "people", operations, seen=False)


def _timetable() -> Kind:
    sports = words.CATEGORIES["sport"]
    form = Format(words.MONTHS, sports, joiner=", ", n=3)
    return Kind(
        "timetable",
        "calendar",
        (
            *form.mapped("sport_in_month", {v: v for v in sports}, asking(
                "the sport in {0}", "the game for {0}", "what there is in {0}", unseen="what is in {0}, the sport"),
                train=(0,), held_out=(12,)),
            form.inverse("month_of_sport", sports, 0, 12, asking(
                "the month of {0}", "the month that has {0}", "in which month {0} is", unseen="the month with {0}")),
        ),
        seen=False,
    )  # fmt: skip


def _letter_row() -> Kind:
    rows = (
        ("letter_after", 1, asking("the letter after {0}", "the next letter from {0}", "the letter that follows {0}",
                                   unseen="the letter next after {0}")),
        ("letter_before", -1, asking("the letter before {0}", "the previous letter from {0}",
                                     "the letter that {0} follows", unseen="the letter previous to {0}")),
    )  # fmt: skip
    operations = tuple(neighbour(n, k, words.LETTERS, 0, 12, ask) for n, k, ask in rows)
    return Kind("letter_row", "letters", operations, seen=False)


KINDS = (_records(), _queue(), _timetable(), _letter_row())
