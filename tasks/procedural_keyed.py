"""Types that map values: of places in a row ("walk sing jump eat"), or of keys ("anna piano, bob flute, tom harp").

The places or keys and the operation are named by the instruction alone, so that the input does not tell what is asked:
"the past tense of the second and first word". Naming two or three in their order makes many tasks of few parts.
Rows share their places and tables their keys, the names: what every type trains is learned, what few tasks train is
memorised."""

import itertools
from collections.abc import Callable, Mapping, Sequence

from zeroprompt_jax.tasks import procedural_words as words
from zeroprompt_jax.tasks.procedural_spec import Draw, Kind, Operation, asking, pairs, singles


class Format:
    """A table: how a type writes its pairs of key and value, how many, and which it draws.

    `asked` is how an instruction names keys."""

    asked = "{}"

    def __init__(self, keys: Sequence[str], values: Sequence[str], pair: str = "{} {}", joiner: str = " ", n: int = 4):
        self.keys, self.values, self.pair, self.joiner, self.n = tuple(keys), tuple(map(str, values)), pair, joiner, n

    def parse(self, text: str) -> dict[str, str]:
        """The pairs of an input, whatever punctuation it is written with."""
        tokens = text.translate(str.maketrans(",;=:", "    ")).split()
        return dict(zip(tokens[::2], tokens[1::2]))

    def sample(self, draw: Draw, fixed: Mapping[str, str], absent: Sequence[str] = ()) -> str:
        """An input that holds the `fixed` pairs among others; the values of `absent` stay out."""
        n = self.n - len(fixed)
        keys = draw.some([k for k in self.keys if k not in fixed], n)
        values = self._others(draw, n, fixed, absent)
        rows = draw.shuffled([*fixed.items(), *zip(keys, values)])
        return self.joiner.join(self.pair.format(*row) for row in rows)

    def _others(self, draw: Draw, n: int, fixed: Mapping[str, str], absent: Sequence[str]) -> list[str]:
        used = {*fixed.values(), *absent}
        return draw.some([v for v in self.values if v not in used], n)

    def _asking(self, wording: Mapping[str, tuple[str, ...]], keys: int) -> dict[str, tuple[str, ...]]:
        """Wordings that name one key, `{0}`, made to name one to three as this format names keys."""
        named = self.asked.format(("{0}", "{0} and {1}", "{0}, {1} and {2}")[keys - 1])
        return {kind: tuple(w.replace("{0}", named) for w in texts) for kind, texts in wording.items()}

    def mapped(
        self,
        name: str,
        table: Mapping[str, str],
        wording: dict[str, tuple[str, ...]],
        train: tuple[int, ...] = (3, 9, 18),
        held_out: tuple[int, ...] = (1, 2, 3),
    ) -> tuple[Operation, ...]:
        """The operations "table[value of key]" of one key, of two, of three, answered in the order of naming.

        `train` and `held_out` are the numbers of tasks of each."""
        domain = tuple(table)

        def sample(draw, arguments):
            return self.sample(draw, dict(zip(arguments, draw.some(domain, len(arguments)))))

        def solve(text, arguments):
            answers = [table.get(self.parse(text).get(key)) for key in arguments]
            return None if None in answers else " ".join(answers)

        return tuple(
            Operation(
                name + ("", "_of_two", "_of_three")[n - 1],
                tuple(itertools.permutations(self.keys, n)),
                sample=sample,
                solve=solve,
                train=train[n - 1],
                held_out=held_out[n - 1],
                **self._asking(wording, n),
            )
            for n in range(1, len(train) + 1)
        )

    def inverse(self, name: str, values: Sequence[str], train: int, held_out: int, wording: dict) -> Operation:
        """The operation "key of this value"."""

        def sample(draw, arguments):
            return self.sample(draw, {draw.pick(self.keys): arguments[0]})

        def solve(text, arguments):
            return next((k for k, v in self.parse(text).items() if v == arguments[0]), None)

        return Operation(name, singles(values), sample=sample, solve=solve, train=train, held_out=held_out, **wording)

    def arithmetic(
        self,
        name: str,
        amounts: Sequence[int],
        values: Callable[[int], Sequence[int]],
        result: Callable[[int, int], int],
        train: int,
        held_out: int,
        wording: dict,
        names: Sequence[str] | None = None,
    ) -> Operation:
        """The operation "result(value of key, amount)" on numbers, written as digits or as `names[number]`."""
        show = (lambda n: names[n]) if names else str
        number = {show(n): n for n in range(21)}

        def sample(draw, arguments):
            return self.sample(draw, {arguments[0]: show(draw.pick(values(number[arguments[1]])))})

        def solve(text, arguments):
            value = number.get(self.parse(text).get(arguments[0]))
            if value is None or value not in values(number[arguments[1]]):
                return None
            return show(result(value, number[arguments[1]]))

        arguments = pairs(self.keys, [show(n) for n in amounts])
        wording = self._asking(wording, 1)
        return Operation(name, arguments, sample=sample, solve=solve, train=train, held_out=held_out, **wording)


PLACES = words.ORDINALS


class Row(Format):
    """A row of values alone, whose keys are its places: "first" to "fourth"."""

    def __init__(self, values: Sequence[str], noun: str):
        super().__init__(PLACES, values, n=len(PLACES))
        self.asked = f"the {{}} {noun}"

    def parse(self, text: str) -> dict[str, str]:
        return dict(zip(self.keys, text.split()))

    def sample(self, draw: Draw, fixed: Mapping[str, str], absent: Sequence[str] = ()) -> str:
        others = iter(self._others(draw, self.n - len(fixed), fixed, absent))
        return " ".join(fixed[key] if key in fixed else next(others) for key in self.keys)


def _next(items: Sequence[str]) -> dict[str, str]:
    """Each item's next, the first being that of the last."""
    return dict(zip(items, (*items[1:], items[0])))


def _selection() -> Kind:
    form = Row(words.CATEGORIES["country"] + words.CATEGORIES["sport"], "word")
    wording = asking("{0}", "{0} of the list", "{0} in this order", unseen="{0} of the row")
    same = {v: v for v in form.values}
    return Kind("list_selection", "lists", form.mapped("pick", same, wording, train=(3, 10, 20), held_out=(1, 2, 4)))


def _lookup() -> Kind:
    values = words.CATEGORIES["instrument"]
    form = Format(words.NAMES, values, joiner=", ", n=3)
    value_of = asking(
        "the word with {0}", "the value of {0}", "what goes with {0}", unseen="the word that goes with {0}"
    )
    key_of = asking("the key of {0}", "the word that has {0}", "the owner of {0}", unseen="the key that has {0}")
    same = {v: v for v in values}
    return Kind(
        "lookup",
        "tables",
        (
            *form.mapped("value", same, value_of, train=(6, 24, 30), held_out=(2, 2, 2)),
            form.inverse("key", values, 10, 0, key_of),
        ),
    )


def _grammar() -> Kind:
    verbs = [v[0] for v in words.VERBS]
    adjectives = [a[0] for a in words.ADJECTIVES]
    form = Row([*verbs, *adjectives, *words.PLURALS], "word")

    def column(rows, i):
        return {row[0]: row[i] for row in rows}

    def ask(what, in_what):
        return asking(
            f"the {what} for {{0}}",
            f"{{0}} {in_what}",
            f"the {what} of {{0}}",
            unseen=f"{in_what} {{0}}",
        )

    tables = (
        ("past", column(words.VERBS, 1), ask("past tense", "in the past tense")),
        ("plural", words.PLURALS, ask("plural", "in the plural")),
        ("opposite", column(words.ADJECTIVES, 1), ask("opposite", "as its opposite")),
        ("comparative", column(words.ADJECTIVES, 2), ask("comparative", "as a comparative")),
    )
    operations = (form.mapped(name, table, wording) for name, table, wording in tables)
    return Kind("grammar", "language", sum(operations, ()))


def _dates() -> Kind:
    form = Row([*words.MONTHS, *words.DAYS], "date")
    rows = (
        (
            "next_month",
            _next(words.MONTHS),
            asking(
                "the month after {0}", "the next month from {0}", "{0} one month later",
                unseen="the month next after {0}",
            ),
        ),
        (
            "season",
            words.SEASONS,
            asking(
                "the season of {0}", "{0} as a season", "in which season {0} is",
                unseen="for {0} the season",
            ),
        ),
        (
            "next_day",
            _next(words.DAYS),
            asking(
                "the day after {0}", "the next day from {0}", "{0} one day later",
                unseen="the day next after {0}",
            ),
        ),
    )  # fmt: skip
    operations = (form.mapped(name, table, wording) for name, table, wording in rows)
    return Kind("dates", "calendar", sum(operations, ()))


def _units() -> Kind:
    form = Row(range(1, 9), "number")

    def operations(source, target, factor):
        table = {str(n): str(n * factor) for n in range(1, 9)}
        wording = asking(
            f"{{0}} of {source} in {target}",
            f"how many {target} {{0}} of {source} is",
            f"the {target} in {{0}} of {source}",
            unseen=f"{{0}} of {source} as {target}",
        )
        return form.mapped(f"{source}_to_{target}", table, wording)

    return Kind("unit_conversion", "measures", sum((operations(*row) for row in words.CONVERSIONS), ()))


def _numbers() -> Kind:
    values = words.NUMBERS[1:19]
    form = Row(values, "number")

    digits = {v: str(i) for i, v in enumerate(values, 1)}
    above = dict(zip(values, words.NUMBERS[2:]))
    return Kind(
        "number_format",
        "numbers",
        (
            *form.mapped("digits", digits, asking(
                "the digits of {0}", "{0} as digits", "{0} written as digits", unseen="digits for {0}")),
            *form.mapped("next", above, asking(
                "the number word above {0}", "the word above {0}", "one above {0}",
                unseen="the number word one above {0}")),
        ),
    )  # fmt: skip


def _letters() -> Kind:
    letters = words.LETTERS
    form = Row(letters, "letter")
    return Kind(
        "letter_format",
        "letters",
        (
            *form.mapped("capital", {x: x.upper() for x in letters}, asking(
                "the capital letter for {0}", "{0} written as capital letter", "{0} as capital letter",
                unseen="capital letter of {0}")),
            *form.mapped("next", dict(itertools.pairwise(letters)), asking(
                "what comes after {0} in the alphabet", "what stands after {0}", "one letter after {0}",
                unseen="one after {0} in the alphabet")),
        ),
    )  # fmt: skip


def _translation() -> Kind:
    form = Row([row[0] for row in words.TRANSLATIONS], "word")

    def operations(i, language):
        wording = asking(
            f"the {language} word for {{0}}",
            f"{{0}} in {language}",
            f"{{0}} put into {language}",
            unseen=f"for {{0}} the word in {language}",
        )
        return form.mapped(language, {row[0]: row[i + 1] for row in words.TRANSLATIONS}, wording)

    return Kind("translation", "language", sum((operations(i, name) for i, name in enumerate(words.LANGUAGES)), ()))


def _arithmetic() -> Kind:
    form = Row(range(1, 11), "number")

    def total_sample(draw, arguments):
        return form.sample(draw, dict(zip(arguments, draw.some(form.values, 2))))

    def total_solve(text, arguments):
        found = [form.parse(text).get(k) for k in arguments]
        return None if None in found else str(sum(map(int, found)))

    return Kind(
        "arithmetic",
        "numbers",
        (
            form.arithmetic(
                "plus", range(1, 9), lambda n: range(1, 11), lambda v, n: v + n, 20, 3,
                asking("{0} plus {1}", "the sum of {0} and {1}", "{0} and {1} more", unseen="{1} more and {0}"),
            ),
            form.arithmetic(
                "minus", range(1, 9), lambda n: range(n, 11), lambda v, n: v - n, 20, 3,
                asking("{0} minus {1}", "{0} less {1}", "{1} taken from {0}", unseen="{0} with {1} taken from it"),
            ),
            Operation(
                "total", pairs(PLACES), sample=total_sample, solve=total_solve, train=6, held_out=0,
                **asking(
                    "the total of the {0} and {1} number", "the {0} and {1} number in total",
                    "the {0} and {1} number put together", unseen="the {0} and {1} number together in total",
                ),
            ),
        ),
    )  # fmt: skip


def _word_arithmetic() -> Kind:
    names = words.NUMBERS
    form = Row(names[1:11], "number")

    return Kind(
        "word_arithmetic",
        "numbers",
        (
            form.arithmetic(
                "plus", range(2, 8), lambda n: range(1, 11), lambda v, n: v + n, 20, 3,
                asking("{0} plus {1}", "the sum of {0} and {1}", "{0} and {1} more", unseen="{1} more and {0}"),
                names,
            ),
            form.arithmetic(
                "minus", range(2, 8), lambda n: range(n, 11), lambda v, n: v - n, 20, 3,
                asking("{0} minus {1}", "{0} less {1}", "{1} taken from {0}", unseen="{0} with {1} taken from it"),
                names,
            ),
        ),
    )  # fmt: skip


def _classification() -> Kind:
    form = Format(words.NAMES, words.THINGS, joiner=", ", n=3)
    kinds = tuple(words.CATEGORIES)

    def others(category):
        return words.CATEGORIES[category]

    def category_solve(text, arguments):
        return words.CATEGORY_OF.get(form.parse(text).get(arguments[0]))

    def category_sample(draw, arguments):
        # The category is drawn first, so that every answer is equally likely.
        return form.sample(draw, {arguments[0]: draw.pick(others(draw.pick(kinds)))})

    def owner_sample(draw, arguments):
        category = others(arguments[0])
        return form.sample(draw, {draw.pick(form.keys): draw.pick(category)}, absent=category)

    def owner_solve(text, arguments):
        owners = [k for k, v in form.parse(text).items() if words.CATEGORY_OF.get(v) == arguments[0]]
        return owners[0] if len(owners) == 1 else None

    def has_sample(draw, arguments):
        name, category = arguments
        if draw.below(2):
            return form.sample(draw, {name: draw.pick(others(category))})
        # Somebody else has one, so that finding one anywhere in the input is not the answer.
        owner = draw.pick([k for k in form.keys if k != name])
        mine = draw.pick([w for w in words.THINGS if words.CATEGORY_OF[w] != category])
        return form.sample(draw, {name: mine, owner: draw.pick(others(category))})

    def has_solve(text, arguments):
        thing = form.parse(text).get(arguments[0])
        return None if thing is None else "yes" if words.CATEGORY_OF.get(thing) == arguments[1] else "no"

    return Kind(
        "topic_classification",
        "general",
        (
            Operation(
                "category_of", singles(words.NAMES), sample=category_sample, solve=category_solve, train=6, held_out=2,
                options=lambda arguments: kinds,
                **asking(
                    "the category of {0}", "the kind of thing that {0} has", "the topic of the word of {0}",
                    unseen="the category of the word of {0}",
                ),
            ),
            Operation(
                "owner_of", singles(kinds), sample=owner_sample, solve=owner_solve, train=9, held_out=2,
                **asking(
                    "who has the {0}", "the name with the {0}", "the owner of the {0}",
                    unseen="the name that has the {0}",
                ),
            ),
            Operation(
                "has", pairs(words.NAMES, kinds), sample=has_sample, solve=has_solve, train=40, held_out=2,
                options=lambda arguments: ("yes", "no"),
                wordings=(
                    "does {0} have the {1}?", "is the word of {0} of the category {1}?", "{0} has the {1}, yes or no?",
                    "is the thing of {0} of the kind {1}?", "has {0} the {1}?", "yes or no: {0} has the {1}.",
                ),
                unseen=("yes or no: is the word of {0} the {1}?", "does {0} have the kind {1}?"),
            ),
        ),
    )  # fmt: skip


KINDS = (
    _selection(),
    _lookup(),
    _grammar(),
    _dates(),
    _units(),
    _numbers(),
    _letters(),
    _translation(),
    _arithmetic(),
    _word_arithmetic(),
    _classification(),
)
