"""Types over a short list of words, numbers or letters ("cat dog pig lion fox"): finding, counting, editing."""

import itertools
from collections.abc import Sequence

from zeroprompt_jax.tasks import procedural_words as words
from zeroprompt_jax.tasks.procedural_spec import Draw, Kind, Operation, asking, pairs, singles

LENGTH = 5
EDITED_LENGTH = 3


def neighbour(name: str, offset: int, items: Sequence[str], train: int, held_out: int, wording: dict) -> Operation:
    """The operation "the item `offset` places from this one" in a list of distinct items."""

    def sample(draw: Draw, arguments):
        rest = draw.some([x for x in items if x != arguments[0]], LENGTH - 1)
        at = draw.below(LENGTH - abs(offset)) + max(0, -offset)
        return " ".join(rest[:at] + [arguments[0]] + rest[at:])

    def solve(text, arguments):
        row = text.split()
        at = row.index(arguments[0]) + offset if arguments[0] in row else -1
        return row[at] if 0 <= at < len(row) else None

    return Operation(name, singles(items), sample=sample, solve=solve, train=train, held_out=held_out, **wording)


def _neighbours() -> Kind:
    items = words.CATEGORIES["animal"]
    rows = (
        ("after", 1, asking("the word after {0}", "the word that follows {0}", "the next word after {0}",
                            unseen="the word next after {0}")),
        ("before", -1, asking("the word before {0}", "the word that {0} follows", "the previous word before {0}",
                              unseen="the word previous to {0}")),
    )  # fmt: skip
    return Kind("neighbours", "lists", tuple(neighbour(n, k, items, 10, 2, ask) for n, k, ask in rows))


def _counting() -> Kind:
    letters = words.LETTERS[:13]

    def operation(name, arguments, train, held_out, wording):
        def sample(draw, arguments):
            # The count is drawn first, so that every answer is equally likely.
            n = draw.below(3)
            hits = [draw.pick(arguments) for _ in range(n)]
            pool = draw.some([x for x in letters if x not in arguments], 2)
            return " ".join(draw.shuffled(hits + [draw.pick(pool) for _ in range(EDITED_LENGTH + 1 - n)]))

        def solve(text, arguments):
            return str(sum(x in arguments for x in text.split()))

        return Operation(name, arguments, sample=sample, solve=solve, train=train, held_out=held_out,
                         options=lambda arguments: tuple("012"), **wording)  # fmt: skip

    return Kind(
        "counting",
        "letters",
        (
            operation("letter", singles(letters), 11, 2, asking(
                "the count of {0}", "how many times {0} is there", "how many letters are {0}",
                unseen="how many {0} there are")),
            operation("either", pairs(letters), 38, 4, asking(
                "the count of {0} or {1}", "how many times {0} or {1} is there", "how many letters are {0} or {1}",
                unseen="how many {0} or {1} there are")),
        ),
    )  # fmt: skip


def _membership() -> Kind:
    items = words.CATEGORIES["food"]

    def row(draw, present, absent):
        rest = draw.some([w for w in items if w not in present and w not in absent], LENGTH - len(present))
        return " ".join(draw.shuffled([*present, *rest]))

    def which_sample(draw, arguments):
        a, b = arguments
        present = draw.pick(((), (a,), (b,), (a, b)))
        return row(draw, present, arguments)

    def which_solve(text, arguments):
        found = [w for w in arguments if w in text.split()]
        return found[0] if len(found) == 1 else "both" if found else "neither"

    def earlier_solve(text, arguments):
        order = [w for w in text.split() if w in arguments]
        return order[0] if len(order) == 2 else None

    return Kind(
        "membership",
        "lists",
        (
            Operation(
                "which_of", pairs(items), sample=which_sample, solve=which_solve, train=36, held_out=4,
                options=lambda arguments: (*arguments, "both", "neither"),
                **asking(
                    "which of {0} and {1} is in the list", "which is there, {0} or {1}, both or neither",
                    "which of {0} and {1} is there, both or neither",
                    unseen="which is in the list, {0}, {1}, both or neither",
                ),
            ),
            Operation(
                "earlier", pairs(items), sample=lambda draw, arguments: row(draw, arguments, ()), solve=earlier_solve,
                train=20, held_out=2, options=lambda arguments: arguments,
                **asking(
                    "which comes first, {0} or {1}", "the first of {0} and {1}", "whichever comes first of {0} and {1}",
                    unseen="which of {0} and {1} is first",
                ),
            ),
        ),
    )  # fmt: skip


def _edits(kind: str, domain: str, items: Sequence[str], train: int, rows: tuple) -> Kind:
    """Edits at one item of a list of distinct items; `rows` are (name, edit(list, place of the item), wording)."""

    def sample(draw, arguments):
        rest = draw.some([x for x in items if x not in arguments], EDITED_LENGTH - 1)
        return " ".join(draw.shuffled([*arguments, *rest]))

    def operation(name, edit, wording):
        def solve(text, arguments):
            row = text.split()
            return " ".join(edit(row, row.index(arguments[0]))) if arguments[0] in row else None

        return Operation(name, singles(items), sample=sample, solve=solve, train=train, held_out=1, **wording)

    return Kind(kind, domain, tuple(operation(*row) for row in rows))


def _string_edit() -> Kind:
    rows = (
        ("delete", lambda row, i: row[:i] + row[i + 1 :], asking(
            "the letters without {0}", "the string with {0} deleted", "the letters with no {0}",
            unseen="the string without {0}")),
        ("double", lambda row, i: row[: i + 1] + row[i:], asking(
            "the letters with {0} doubled", "the string with {0} written two times", "the letters with two {0}",
            unseen="the string with {0} doubled")),
        ("capitalise", lambda row, i: row[:i] + [row[i].upper()] + row[i + 1 :], asking(
            "the letters with {0} as a capital", "the string with capital {0}", "the letters with a large {0}",
            unseen="the string with {0} as a capital")),
        ("move_first", lambda row, i: [row[i]] + row[:i] + row[i + 1 :], asking(
            "the letters with {0} moved to the start", "the string with {0} put first", "the letters with {0} in front",
            unseen="the string with {0} moved to the start")),
        ("move_last", lambda row, i: row[:i] + row[i + 1 :] + [row[i]], asking(
            "the letters with {0} moved to the end", "the string with {0} put last", "the letters with {0} at the end",
            unseen="the string with {0} moved to the end")),
    )  # fmt: skip
    return _edits("string_edit", "letters", words.LETTERS[:13], 8, rows)


def _list_edit() -> Kind:
    rows = (
        ("remove_word", lambda row, i: row[:i] + row[i + 1 :], asking(
            "the list without {0}", "the list with {0} removed", "the words with no {0}",
            unseen="the words without {0}")),
        ("words_after", lambda row, i: row[i + 1 :] or ["none"], asking(
            "all words after {0}", "the end of the list after {0}", "all that follows {0} in the list",
            unseen="all words that follow {0}")),
        ("words_before", lambda row, i: row[:i] or ["none"], asking(
            "all words before {0}", "the start of the list before {0}", "all that {0} follows in the list",
            unseen="all words that {0} follows")),
        ("word_first", lambda row, i: [row[i]] + row[:i] + row[i + 1 :], asking(
            "the list with {0} moved to the start", "the list with {0} put first", "the words with {0} in front",
            unseen="the words with {0} moved to the start")),
        ("word_last", lambda row, i: row[:i] + row[i + 1 :] + [row[i]], asking(
            "the list with {0} moved to the end", "the list with {0} put last", "the words with {0} at the end",
            unseen="the words with {0} moved to the end")),
    )  # fmt: skip
    return _edits("list_edit", "lists", words.CATEGORIES["colour"], 8, rows)


def _topics() -> Kind:
    kinds = tuple(words.CATEGORIES)

    def sample(draw, arguments):
        others = [w for w in words.THINGS if words.CATEGORY_OF[w] not in arguments]
        thing = draw.pick(words.CATEGORIES[draw.pick(arguments)])
        return " ".join(draw.shuffled([thing, *draw.some(others, 3)]))

    def solve(text, arguments):
        found = {words.CATEGORY_OF.get(w) for w in text.split()} & set(arguments)
        return found.pop() if len(found) == 1 else None

    def operation(name, arguments, train, held_out, listed):
        return Operation(
            name, arguments, sample=sample, solve=solve, train=train, held_out=held_out,
            options=lambda arguments: arguments,
            **asking(f"which is there, {listed}", f"which of {listed} is in the list", f"the topic, {listed}",
                     unseen=f"which of {listed} is there"),
        )  # fmt: skip

    return Kind(
        "topic_classification",
        "general",
        (
            operation("of_two", pairs(kinds), 40, 4, "{0} or {1}"),
            operation("of_three", tuple(itertools.combinations(kinds, 3)), 30, 4, "{0}, {1} or {2}"),
        ),
    )


def _queue() -> Kind:
    """Never trained on: the neighbours of people."""
    rows = (
        ("next_person", 1, asking("who is next after {0}", "the name of the one after {0}", "the one that follows {0}",
                                  unseen="the person that is after {0}")),
        ("previous_person", -1, asking("who is before {0}", "the name of the one before {0}",
                                       "the one that {0} follows",
                                       unseen="the person that is before {0}")),
    )  # fmt: skip
    names = words.NAMES
    return Kind("queue", "people", tuple(neighbour(n, k, names, 0, len(names), ask) for n, k, ask in rows), seen=False)


KINDS = (
    _neighbours(),
    _counting(),
    _membership(),
    _topics(),
    _string_edit(),
    _list_edit(),
)
UNSEEN_KINDS = (_queue(),)
