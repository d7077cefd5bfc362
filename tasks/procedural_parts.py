"""Types whose tasks combine parts: "the past of the verb and the plural of the noun", answered in the order of asking.

A part is one question about one kind of item; its answer does not depend on the parts beside it, so a task is a set of
known parts in an order. What is asked together in a held-out task is never asked together in training, in any order and
among whatever else: `combining` first reserves pairs of parts for evaluation, and every trained task avoids them all."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

from zeroprompt_jax.tasks import procedural_words as words
from zeroprompt_jax.tasks.procedural_spec import FRAMES, UNSEEN_FRAMES, Draw, Kind, Operation

# How the phrases of one, two and three parts are put together.
JOINED = ("{0}", "{0} and {1}", "{0}, {1} and {2}")
NAMES = ("one", "pair", "triple")


@dataclasses.dataclass(frozen=True)
class Part:
    """One question about the items of one class.

    Attributes:
      name: one word, the argument in a task's name.
      reads: the class of items that it reads.
      table: its answer by item; an item without one is never put where the part is asked.
      phrases: what it is called in training, the shortest first.
      unseen: what it is called in evaluation only.
      choose: the item it is about among those of its class; the input holds one item of each class without it, and
        `CROWD` of each with it.
    """

    name: str
    reads: str
    table: Mapping[str, str]
    phrases: tuple[str, ...]
    unseen: str
    choose: Callable[[Sequence[str]], str] | None = None


CROWD = 2


def combining(
    name: str,
    domain: str,
    classes: Mapping[str, Sequence[str]],
    parts: Sequence[Part],
    train: Sequence[int],
    held_out: Sequence[int],
    shown: int,
    fillers: Sequence[str] = (),
    allowed: Callable[[tuple[str, ...]], bool] = lambda names: True,
    seen: bool = True,
) -> Kind:
    """The type of all tasks of one to three of these parts.

    Args:
      classes: the items of each class, no item in two of them.
      train, held_out: numbers of tasks of one, two and three parts.
      shown: how many classes an input shows; those that are asked are always among them.
      fillers: words of no class, two of which stand in every input.
      allowed: which combinations of part names are tasks.
    """
    by_name = {part.name: part for part in parts}
    crowd = CROWD if any(part.choose for part in parts) else 1
    reserved = _reserved(name, by_name, held_out, allowed) if seen else frozenset()

    def sample(draw: Draw, arguments):
        asked = [by_name[a] for a in arguments]
        read = list(dict.fromkeys(part.reads for part in asked))
        others = draw.some([c for c in classes if c not in read], shown - len(read))
        items = []
        for c in read + others:
            tables = [part.table for part in asked if part.reads == c]
            items += draw.some([x for x in classes[c] if all(x in table for table in tables)], crowd)
        return " ".join(draw.shuffled(items + draw.some(fillers, 2 if fillers else 0)))

    def solve(text, arguments):
        answers = []
        for part in map(by_name.get, arguments):
            found = [x for x in text.split() if x in classes[part.reads]]
            if len(found) != crowd:
                return None
            answers.append(part.table.get(part.choose(found) if part.choose else found[0]))
        return None if None in answers else " ".join(answers)

    def operation(n):
        # Three long phrases would not fit: triples use the shortest.
        used = slice(0, None if n < 3 else 1)
        return Operation(
            NAMES[n - 1],
            tuple(a for a in itertools.permutations(by_name, n) if allowed(a)),
            tuple(frame.format(JOINED[n - 1]) for frame in FRAMES),
            tuple(frame.format(JOINED[n - 1]) for frame in UNSEEN_FRAMES),
            sample,
            solve,
            train[n - 1],
            held_out[n - 1],
            phrases={part.name: part.phrases[used] for part in parts},
            unseen_phrases={part.name: (part.unseen,) if n < 3 else part.phrases[used] for part in parts},
            reserved=lambda arguments: any(frozenset(p) in reserved for p in itertools.combinations(arguments, 2)),
        )

    return Kind(name, domain, tuple(operation(n) for n in (1, 2, 3) if train[n - 1] + held_out[n - 1]), seen)


def _reserved(name: str, parts: Mapping[str, Part], held_out: Sequence[int], allowed) -> frozenset[frozenset[str]]:
    """Pairs of parts that training never asks together: half as many as held-out pairs, each in both orders."""
    pairs = [frozenset(p) for p in itertools.combinations(parts, 2) if allowed(p)]
    return frozenset(Draw("reserved", name).some(pairs, -(-held_out[1] // 2)))


def same(items: Sequence[str]) -> dict[str, str]:
    return {x: x for x in items}


def following(items: Sequence[str], step: int = 1) -> dict[str, str]:
    """Each item's next, the first being that of the last."""
    return {x: items[(i + step) % len(items)] for i, x in enumerate(items)}


def of_category(category: str) -> Part:
    phrases = (f"the {category}", f"the word for the {category}", f"the {category} in the list")
    return Part(category, category, same(words.CATEGORIES[category]), phrases, f"the {category} of the list")


def grammar_parts() -> tuple[Part, ...]:
    def column(rows, i):
        return {row[0]: row[i] for row in rows}

    def part(name, reads, table, *phrases, unseen):
        return Part(name, reads, table, phrases, unseen)

    verbs, adjectives = words.VERBS, words.ADJECTIVES
    return (
        part("verb", "verb", column(verbs, 0), "the verb", "the verb itself", unseen="the verb of the list"),
        part("past", "verb", column(verbs, 1), "the past verb", "the past tense of the verb", "the verb in the past",
             unseen="the verb in the past tense"),
        part("gerund", "verb", column(verbs, 2), "the gerund verb", "the gerund of the verb", "the verb as a gerund",
             unseen="the verb in the gerund"),
        part("noun", "noun", same(words.PLURALS), "the noun", "the noun itself", unseen="the noun of the list"),
        part("plural", "noun", words.PLURALS, "the plural noun", "the plural of the noun", "the noun in the plural",
             unseen="the noun as a plural"),
        part("adjective", "adjective", column(adjectives, 0), "the adjective", "the adjective itself",
             unseen="the adjective of the list"),
        part("opposite", "adjective", column(adjectives, 1), "the opposite adjective", "the opposite of the adjective",
             "the adjective as its opposite", unseen="the adjective in the opposite"),
        part("comparative", "adjective", column(adjectives, 2), "the comparative adjective",
             "the comparative of the adjective", "the adjective as a comparative",
             unseen="the adjective in the comparative"),
    )  # fmt: skip


def translation_parts() -> tuple[Part, ...]:
    return tuple(
        Part(
            f"{language}_{kind}",
            kind,
            {row[0]: row[i] for row in rows},
            (f"the {language} {kind}", f"the {kind} in {language}", f"{language} for the {kind}"),
            f"in {language} the {kind}",
        )
        for kind, rows in words.TRANSLATIONS.items()
        for i, language in enumerate(words.LANGUAGES, 1)
    )


def date_parts() -> tuple[Part, ...]:
    def parts(kind, items):
        return (
            Part(kind, kind, same(items), (f"the {kind}", f"the {kind} itself"), f"the {kind} of the list"),
            Part(f"next_{kind}", kind, following(items), (f"the next {kind}", f"one {kind} later", f"the {kind} after"),
                 f"the {kind} one later"),
            Part(f"previous_{kind}", kind, following(items, -1),
                 (f"the previous {kind}", f"one {kind} before", f"the {kind} before"), f"the {kind} one before"),
        )  # fmt: skip

    season = Part("season", "month", words.SEASONS, ("the season", "the season of the month", "the month as a season"),
                  "in which season the month is")  # fmt: skip
    return (*parts("month", words.MONTHS), *parts("day", words.DAYS), season)


def arithmetic_parts(kind: str, show: Callable[[int], str], plus: Sequence[int], minus: Sequence[int]):
    """Sums and differences with the one number of the input, up to ten, written as `show` writes it."""

    def table(result):
        return {show(n): show(result(n)) for n in range(1, 11) if result(n) >= 0}

    for n in plus:
        phrases = (f"the {kind} plus {show(n)}", f"{show(n)} more than the {kind}", f"the sum of the {kind} and {show(n)}")
        yield Part(f"plus_{show(n)}", kind, table(lambda x, n=n: x + n), phrases, f"the {kind} and {show(n)} more")
    for n in minus:
        phrases = (f"the {kind} minus {show(n)}", f"{show(n)} less than the {kind}", f"the {kind} less {show(n)}")
        yield Part(f"minus_{show(n)}", kind, table(lambda x, n=n: x - n), phrases, f"the {kind} and {show(n)} less")


def digit_parts() -> tuple[Part, ...]:
    return tuple(arithmetic_parts("number", digits, range(1, 6), range(1, 5)))


def digits(n: int) -> str:
    return str(n)


def spelled(n: int) -> str:
    return words.NUMBERS[n]


def _selection() -> Kind:
    kinds = [c for c in words.CATEGORIES if c not in UNTRAINED]
    parts = [of_category(c) for c in kinds]
    return combining("list_selection", "lists", {c: words.CATEGORIES[c] for c in kinds}, parts, (9, 40, 40), (0, 8, 6), 4)


def _grammar() -> Kind:
    return combining("grammar", "language", WORD_CLASSES, grammar_parts(), (8, 36, 30), (0, 8, 4), 3, FILLERS)


def _translation() -> Kind:
    return combining("translation", "language", TRANSLATED, translation_parts(), (8, 36, 36), (0, 8, 4), 3, VERBS)


def _dates() -> Kind:
    classes = {"month": words.MONTHS, "day": words.DAYS}
    return combining("dates", "calendar", classes, date_parts(), (7, 28, 30), (0, 8, 4), 2, FILLERS)


def _units() -> Kind:
    numbers = range(1, 10)
    parts = [
        Part(
            f"{source}_to_{target}",
            "number",
            {str(n): str(n * factor) for n in numbers},
            (f"{source} in {target}", f"the {source} as {target}", f"the number of {source} in {target}"),
            f"{target} from the {source}",
        )
        for source, target, factor in words.CONVERSIONS
    ]
    classes = {"number": tuple(map(str, numbers))}
    return combining("unit_conversion", "measures", classes, parts, (7, 32, 30), (0, 8, 4), 1, FILLERS)


def _arithmetic() -> Kind:
    classes = {"number": tuple(map(digits, range(1, 11)))}
    return combining("arithmetic", "numbers", classes, digit_parts(), (9, 36, 30), (0, 8, 4), 1, FILLERS)


def _word_arithmetic() -> Kind:
    parts = tuple(arithmetic_parts("number", spelled, range(1, 5), range(1, 5)))
    classes = {"number": tuple(map(spelled, range(1, 11)))}
    return combining("word_arithmetic", "numbers", classes, parts, (8, 32, 30), (0, 8, 4), 1, FILLERS)


def _numbers() -> Kind:
    forms = {"digits": digits, "spelled": spelled, "roman": lambda n: words.ROMAN[n]}
    numbers = sorted(words.ROMAN)
    parts = [
        Part(
            f"{source}_to_{target}",
            source,
            {read(n): write(n) for n in numbers},
            (f"{source} to {target}", f"the {source} number as {target}", f"the {source} number written as {target}"),
            f"{target} for the {source} number",
        )
        for source, read in forms.items()
        for target, write in forms.items()
        if source != target
    ]
    classes = {form: tuple(map(read, numbers)) for form, read in forms.items()}
    return combining("number_format", "numbers", classes, parts, (6, 22, 34), (0, 6, 4), 3, FILLERS)


def _letters() -> Kind:
    small = words.LETTERS[1:-1]
    large = tuple(map(str.upper, small))

    def parts(kind, items, other, other_items):
        alphabet = words.LETTERS if kind == "small" else tuple(map(str.upper, words.LETTERS))
        return (
            Part(f"{kind}_to_{other}", kind, dict(zip(items, other_items)),
                 (f"{kind} to {other}", f"the {kind} letter as {other} letter", f"the {other} letter of the {kind} letter"),
                 f"{other} letter for the {kind} letter"),
            Part(f"next_{kind}", kind, dict(itertools.pairwise(alphabet)),
                 (f"the next {kind}", f"the letter after the {kind} letter", f"the next letter from the {kind} letter"),
                 f"the next after the {kind} letter"),
            Part(f"{kind}", kind, same(items), (f"the {kind} letter", f"the {kind} letter itself"),
                 f"the {kind} letter of the list"),
        )  # fmt: skip

    both = (*parts("small", small, "capital", large), *parts("capital", large, "small", small))
    classes = {"small": small, "capital": large}
    return combining("letter_format", "letters", classes, both, (6, 22, 34), (0, 6, 4), 2, FILLERS)


def _sorting() -> Kind:
    classes = {
        "number": tuple(map(str, range(1, 21))),
        "letter": words.LETTERS,
        "month": words.MONTHS,
    }
    rows = (
        ("smallest", "number", min, ("the smallest number", "the lowest number"), "the number that is lowest"),
        ("largest", "number", max, ("the largest number", "the highest number"), "the number that is highest"),
        ("first", "letter", min, ("the first letter", "the letter that is first"), "the letter nearest to a"),
        ("last", "letter", max, ("the last letter", "the letter that is last"), "the letter nearest to z"),
        ("earliest", "month", min, ("the earliest month", "the month that is earliest"), "the month that is first"),
        ("latest", "month", max, ("the latest month", "the month that is latest"), "the month that is last"),
    )
    parts = [
        Part(
            f"{name}_{kind}",
            kind,
            same(classes[kind]),
            phrases,
            unseen,
            lambda found, kind=kind, choose=choose: choose(found, key=classes[kind].index),
        )
        for name, kind, choose, phrases, unseen in rows
    ]
    return combining("sorting", "numbers", classes, parts, (6, 22, 34), (0, 6, 4), 3)


def _travel() -> Kind:
    """Categories that no selection was trained on: a name of a category finds a word of it, as in the trained ones."""
    parts = [of_category(c) for c in UNTRAINED]
    return combining("travel", "lists", words.CATEGORIES, parts, (0, 0, 0), (3, 6, 6), 4, seen=False)


def _mixed(name: str, domain: str, classes, left: Sequence[Part], right: Sequence[Part], shown: int) -> Kind:
    """One part of each of two types, in rows that neither has."""
    sides = {part.name: side for side, parts in enumerate((left, right)) for part in parts}

    def allowed(names):
        return len({sides[n] for n in names}) == 2

    return combining(name, domain, classes, (*left, *right), (0, 0, 0), (0, 24, 0), shown, (), allowed, seen=False)


def _glossary() -> Kind:
    return _mixed("glossary", "language", {**WORD_CLASSES, **TRANSLATED}, grammar_parts(), translation_parts(), 4)


def _planner() -> Kind:
    classes = {"month": words.MONTHS, "day": words.DAYS, "number": tuple(map(digits, range(1, 11)))}
    return _mixed("planner", "calendar", classes, date_parts(), digit_parts(), 3)


# Categories that list_selection leaves to `travel`; other types use their words and their names.
UNTRAINED = ("country", "sport", "instrument")
FILLERS = words.THINGS
VERBS = tuple(row[0] for row in words.VERBS)
WORD_CLASSES = {
    "verb": VERBS,
    "noun": tuple(words.PLURALS),
    "adjective": tuple(row[0] for row in words.ADJECTIVES),
}
TRANSLATED = {kind: tuple(row[0] for row in rows) for kind, rows in words.TRANSLATIONS.items()}
KINDS = (
    _selection(),
    _grammar(),
    _translation(),
    _dates(),
    _units(),
    _arithmetic(),
    _word_arithmetic(),
    _numbers(),
    _letters(),
    _sorting(),
)
UNSEEN_KINDS = (_travel(), _glossary(), _planner())
