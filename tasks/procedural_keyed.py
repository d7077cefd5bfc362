"""Types over pairs of a key and a value ("anna walk, bob sing, tom jump"): an operation maps the value of one key.

The key and the operation are named by the instruction alone, so that the input does not tell what is asked. Each type
has its own kind of keys and its own punctuation."""

from collections.abc import Callable, Mapping, Sequence

from zeroprompt_jax.tasks import procedural_words as words
from zeroprompt_jax.tasks.procedural_spec import Draw, Kind, Operation, asking, pairs, singles


def parse(text: str) -> dict[str, str]:
    """The pairs of an input, whatever punctuation it is written with."""
    tokens = text.translate(str.maketrans(",;=:", "    ")).split()
    return dict(zip(tokens[::2], tokens[1::2]))


class Format:
    """How a type writes its pairs, how many, and which keys and values it draws."""

    def __init__(self, keys: Sequence[str], values: Sequence[str], pair: str = "{} {}", joiner: str = " ", n: int = 4):
        self.keys, self.values, self.pair, self.joiner, self.n = tuple(keys), tuple(map(str, values)), pair, joiner, n

    def sample(self, draw: Draw, fixed: Mapping[str, str], absent: Sequence[str] = ()) -> str:
        """An input that holds the `fixed` pairs among others; the values of `absent` stay out."""
        n = self.n - len(fixed)
        keys = draw.some([k for k in self.keys if k not in fixed], n)
        used = {*fixed.values(), *absent}
        values = draw.some([v for v in self.values if v not in used], n)
        rows = draw.shuffled([*fixed.items(), *zip(keys, values)])
        return self.joiner.join(self.pair.format(*row) for row in rows)

    def mapped(self, name: str, table: Mapping[str, str], train: int, held_out: int, wording: dict) -> Operation:
        """The operation "table[value of key]"."""
        domain = tuple(table)

        def sample(draw, arguments):
            return self.sample(draw, {arguments[0]: draw.pick(domain)})

        def solve(text, arguments):
            return table.get(parse(text).get(arguments[0]))

        arguments = singles(self.keys)
        return Operation(name, arguments, sample=sample, solve=solve, train=train, held_out=held_out, **wording)

    def inverse(self, name: str, values: Sequence[str], train: int, held_out: int, wording: dict) -> Operation:
        """The operation "key of this value"."""

        def sample(draw, arguments):
            return self.sample(draw, {draw.pick(self.keys): arguments[0]})

        def solve(text, arguments):
            return next((k for k, v in parse(text).items() if v == arguments[0]), None)

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
            value = number.get(parse(text).get(arguments[0]))
            if value is None or value not in values(number[arguments[1]]):
                return None
            return show(result(value, number[arguments[1]]))

        arguments = pairs(self.keys, [show(n) for n in amounts])
        return Operation(name, arguments, sample=sample, solve=solve, train=train, held_out=held_out, **wording)


def _shift(items: Sequence[str], by: int, cycle: bool = True) -> dict[str, str]:
    n = len(items)
    return {x: items[(i + by) % n] for i, x in enumerate(items) if cycle or 0 <= i + by < n}


def _lookup() -> Kind:
    keys = words.of_categories("animal", "food", "tool", "vehicle")
    values = words.of_categories("colour", "instrument", "plant")
    form = Format(keys, values)

    def both_sample(draw, arguments):
        return form.sample(draw, dict(zip(arguments, draw.some(values, 2))))

    def both_solve(text, arguments):
        found = [parse(text).get(k) for k in arguments]
        return None if None in found else " ".join(found)

    return Kind(
        "lookup",
        "tables",
        (
            form.mapped(
                "value_of",
                {v: v for v in values},
                32,
                6,
                asking(
                    "the word with {0}", "the value of {0}", "what goes with {0}", unseen="the word that goes with {0}"
                ),
            ),
            form.inverse(
                "key_of",
                values,
                26,
                5,
                asking(
                    "the key of {0}", "the word that has {0}", "the owner of {0}", unseen="the key that has {0}"
                ),
            ),
            Operation(
                "values_of_both",
                pairs(keys),
                sample=both_sample,
                solve=both_solve,
                train=24,
                held_out=3,
                **asking(
                    "the two words with {0} and {1}",
                    "the values of {0} and of {1}",
                    "what goes with {0} and what with {1}",
                    unseen="both words with {0} and {1}",
                ),
            ),
        ),
    )


def _grammar() -> Kind:
    verbs = [v[0] for v in words.VERBS]
    adjectives = [a[0] for a in words.ADJECTIVES]
    form = Format(words.NAMES, [*verbs, *adjectives, *words.PLURALS], joiner=", ", n=3)

    def column(rows, i):
        return {row[0]: row[i] for row in rows}

    def ask(what, in_what):
        return asking(
            f"the {what} for {{0}}",
            f"the word of {{0}} {in_what}",
            f"the {what} of the word of {{0}}",
            unseen=f"for {{0}} the word {in_what}",
        )

    tables = (
        ("past", column(words.VERBS, 1), ask("past tense", "in the past tense")),
        ("progressive", column(words.VERBS, 2), ask("progressive form", "in the progressive")),
        ("third_person", column(words.VERBS, 3), ask("third person", "in the third person")),
        ("plural", words.PLURALS, ask("plural", "in the plural")),
        ("opposite", column(words.ADJECTIVES, 1), ask("opposite", "as its opposite")),
        ("comparative", column(words.ADJECTIVES, 2), ask("comparative", "as a comparative")),
        ("superlative", column(words.ADJECTIVES, 3), ask("superlative", "as a superlative")),
    )
    return Kind("grammar", "language", tuple(form.mapped(name, table, 12, 2, ask) for name, table, ask in tables))


def _dates() -> Kind:
    form = Format(words.EVENTS, [*words.MONTHS, *words.DAYS], joiner="; ", n=3)
    month_number = {m: str(i + 1) for i, m in enumerate(words.MONTHS)}
    rows = (
        (
            "next_month",
            _shift(words.MONTHS, 1),
            asking(
                "the month after the {0}", "the next month from the {0}", "the {0} one month later",
                unseen="the month next after the {0}",
            ),
        ),
        (
            "previous_month",
            _shift(words.MONTHS, -1),
            asking(
                "the month before the {0}", "the previous month from the {0}", "the {0} one month earlier",
                unseen="the month previous to the {0}",
            ),
        ),
        (
            "season",
            words.SEASONS,
            asking(
                "the season of the {0}", "the {0} as a season", "in which season the {0} is",
                unseen="for the {0} the season",
            ),
        ),
        (
            "month_number",
            month_number,
            asking(
                "the month number of the {0}", "the {0} as a month number", "in which month number the {0} is",
                unseen="for the {0} the month number",
            ),
        ),
        (
            "next_day",
            _shift(words.DAYS, 1),
            asking(
                "the day after the {0}", "the next day from the {0}", "the {0} one day later",
                unseen="the day next after the {0}",
            ),
        ),
        (
            "previous_day",
            _shift(words.DAYS, -1),
            asking(
                "the day before the {0}", "the previous day from the {0}", "the {0} one day earlier",
                unseen="the day previous to the {0}",
            ),
        ),
    )  # fmt: skip
    return Kind("dates", "calendar", tuple(form.mapped(name, table, 13, 2, ask) for name, table, ask in rows))


def _units() -> Kind:
    form = Format(words.NAMES, range(1, 9), pair="{} = {}", joiner=", ", n=3)

    def operation(source, target, factor):
        table = {str(n): str(n * factor) for n in range(1, 9)}
        return form.mapped(
            f"{source}_to_{target}",
            table,
            8,
            1,
            asking(
                f"the {source} of {{0}} in {target}",
                f"how many {target} the {source} of {{0}} are",
                f"the {target} in the {source} of {{0}}",
                unseen=f"the {source} of {{0}} as {target}",
            ),
        )

    return Kind("unit_conversion", "measures", tuple(operation(*row) for row in words.CONVERSIONS))


def _numbers() -> Kind:
    values = words.NUMBERS[1:19]
    form = Format(words.LETTERS, values)

    def table(names, by=0):
        return {v: names[i + by] for i, v in enumerate(values, 1)}

    def ask(what):
        return asking(
            f"the {what} of {{0}}", f"{{0}} as {what}", f"{{0}} written as {what}", unseen=f"{what} for {{0}}"
        )

    def by(word):
        return asking(
            f"the number word {word} {{0}}", f"the word {word} the number of {{0}}", f"one {word} the number of {{0}}",
            unseen=f"the number word one {word} {{0}}",
        )  # fmt: skip

    digits = tuple(map(str, range(21)))
    return Kind(
        "number_format",
        "numbers",
        (
            form.mapped("digits", table(digits), 14, 3, ask("digits")),
            form.mapped("ordinal", table(words.ORDINALS), 14, 3, ask("ordinal")),
            form.mapped("roman", table(words.ROMANS), 14, 3, ask("roman numeral")),
            form.mapped("next", table(words.NUMBERS, 1), 14, 3, by("above")),
            form.mapped("previous", table(words.NUMBERS, -1), 14, 3, by("below")),
        ),
    )


def _letters() -> Kind:
    form = Format(words.NAMES, words.LETTERS, pair="{}: {}", joiner=", ", n=3)
    values = words.LETTERS
    number = {x: str(i + 1) for i, x in enumerate(values)}
    upper = {x: x.upper() for x in values}

    def ask(what):
        return asking(
            f"the {what} for {{0}}", f"the letter of {{0}} as {what}", f"{{0}} as {what}", unseen=f"{what} of {{0}}"
        )

    def by(word):
        return asking(
            f"the letter {word} the letter of {{0}}", f"the letter {word} that of {{0}}", f"one letter {word} {{0}}",
            unseen=f"one {word} the letter of {{0}}",
        )  # fmt: skip

    return Kind(
        "letter_format",
        "letters",
        (
            form.mapped("capital", upper, 15, 2, ask("capital letter")),
            form.mapped("radio", dict(zip(values, words.RADIO)), 15, 2, ask("radio word")),
            form.mapped("number", number, 15, 2, ask("alphabet number")),
            form.mapped("next", _shift(values, 1, cycle=False), 15, 2, by("after")),
            form.mapped("previous", _shift(values, -1, cycle=False), 15, 2, by("before")),
        ),
    )


def _translation() -> Kind:
    form = Format(words.LETTERS[:20], [row[0] for row in words.TRANSLATIONS], joiner="; ")

    def operation(i, language):
        return form.mapped(
            language,
            {row[0]: row[i + 1] for row in words.TRANSLATIONS},
            14,
            3,
            asking(
                f"the {language} word for {{0}}",
                f"{{0}} in {language}",
                f"the word of {{0}} in {language}",
                unseen=f"for {{0}} the word in {language}",
            ),
        )

    return Kind("translation", "language", tuple(operation(i, name) for i, name in enumerate(words.LANGUAGES)))


def _arithmetic() -> Kind:
    foods = words.CATEGORIES["food"]
    form = Format(foods, range(1, 11), joiner=", ")

    def total_sample(draw, arguments):
        return form.sample(draw, dict(zip(arguments, draw.some(form.values, 2))))

    def total_solve(text, arguments):
        found = [parse(text).get(k) for k in arguments]
        return None if None in found else str(sum(map(int, found)))

    return Kind(
        "arithmetic",
        "numbers",
        (
            form.arithmetic(
                "plus", range(1, 9), lambda n: range(1, 11), lambda v, n: v + n, 34, 7,
                asking("{0} plus {1}", "the sum of {0} and {1}", "{0} and {1} more", unseen="{1} more and {0}"),
            ),
            form.arithmetic(
                "minus", range(1, 9), lambda n: range(n, 11), lambda v, n: v - n, 34, 7,
                asking("{0} minus {1}", "{0} less {1}", "{1} taken from {0}", unseen="{0} with {1} taken from it"),
            ),
            Operation(
                "total", pairs(foods), sample=total_sample, solve=total_solve, train=24, held_out=4,
                **asking(
                    "the total of {0} and {1}", "{0} and {1} in total", "{0} and {1} put together",
                    unseen="{0} and {1} together in total",
                ),
            ),
        ),
    )  # fmt: skip


def _word_arithmetic() -> Kind:
    names = words.NUMBERS
    colours = words.CATEGORIES["colour"]
    form = Format(colours, names[1:11])

    return Kind(
        "word_arithmetic",
        "numbers",
        (
            form.arithmetic(
                "plus", range(1, 7), lambda n: range(1, 11), lambda v, n: v + n, 28, 5,
                asking("{0} plus {1}", "the sum of {0} and {1}", "{0} and {1} more", unseen="{1} more and {0}"),
                names,
            ),
            form.arithmetic(
                "minus", range(1, 7), lambda n: range(n, 11), lambda v, n: v - n, 28, 5,
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
        return words.CATEGORY_OF.get(parse(text).get(arguments[0]))

    def category_sample(draw, arguments):
        # The category is drawn first, so that every answer is equally likely.
        return form.sample(draw, {arguments[0]: draw.pick(others(draw.pick(kinds)))})

    def owner_sample(draw, arguments):
        category = others(arguments[0])
        return form.sample(draw, {draw.pick(form.keys): draw.pick(category)}, absent=category)

    def owner_solve(text, arguments):
        owners = [k for k, v in parse(text).items() if words.CATEGORY_OF.get(v) == arguments[0]]
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
        thing = parse(text).get(arguments[0])
        return None if thing is None else "yes" if words.CATEGORY_OF.get(thing) == arguments[1] else "no"

    return Kind(
        "topic_classification",
        "general",
        (
            Operation(
                "category_of", singles(words.NAMES), sample=category_sample, solve=category_solve, train=17, held_out=4,
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
                "has", pairs(words.NAMES, kinds), sample=has_sample, solve=has_solve, train=40, held_out=4,
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
