"""Types over facts: entailment in a world of two, reading about two people, and a table of three rows."""

import itertools

from zeroprompt_jax.tasks import procedural_words as words
from zeroprompt_jax.tasks.procedural_spec import Draw, Kind, Operation, asking, pairs, singles

FACTS = 2
PEOPLE = 2
ROWS = 3


def _world(text: str) -> dict[str, str]:
    """Which object is where: "ball in box, key in car" gives {"ball": "box", "key": "car"}."""
    return {o: p for o, _, p in (fact.split() for fact in text.split(", "))}


def _tell(draw: Draw, facts) -> str:
    return ", ".join(f"{o} in {p}" for o, p in draw.shuffled(list(facts)))


def _entailment() -> Kind:
    objects, places = words.OBJECTS, words.PLACES

    def rest(draw, facts, absent):
        """The given facts among others about other objects; `absent` objects are never mentioned."""
        used = {o for o, _ in facts}
        more = draw.some([o for o in objects if o not in used and o not in absent], FACTS - len(facts))
        return facts + [(o, draw.pick(places)) for o in more]

    def located_sample(draw, arguments):
        thing, place = arguments
        case = draw.pick(("same", "other", "absent"))
        if case == "same":
            return _tell(draw, rest(draw, [(thing, place)], ()))
        other = draw.pick([o for o in objects if o != thing])
        facts = [(other, place)]  # the place is mentioned in every case
        if case == "other":
            facts.append((thing, draw.pick([p for p in places if p != place])))
        return _tell(draw, rest(draw, facts, (thing,)))

    def located(negated):
        def solve(text, arguments):
            place = _world(text).get(arguments[0])
            return "maybe" if place is None else "yes" if (place == arguments[1]) != negated else "no"

        return solve

    def together_sample(draw, arguments):
        a, b = draw.shuffled(arguments)
        place = draw.pick(places)
        case = draw.pick(("same", "other", "absent"))
        if case == "absent":
            return _tell(draw, rest(draw, [(a, place)], (b,)))
        second = place if case == "same" else draw.pick([p for p in places if p != place])
        return _tell(draw, rest(draw, [(a, place), (b, second)], ()))

    def together_solve(text, arguments):
        found = [_world(text).get(o) for o in arguments]
        return "maybe" if None in found else "yes" if found[0] == found[1] else "no"

    answers = ("yes", "no", "maybe")
    return Kind(
        "entailment",
        "small world",
        (
            Operation(
                "located", pairs(objects, places), sample=located_sample, solve=located(False), train=24, held_out=3,
                options=lambda arguments: answers,
                wordings=(
                    "is the {0} in the {1}?", "the {0} is in the {1}: yes, no or maybe?",
                    "is it true, the {0} in the {1}?",
                    "does it follow that the {0} is in the {1}?", "yes, no or maybe: the {0} in the {1}.",
                ),
                unseen=("is it true that the {0} is in the {1}?", "does the {0} in the {1} follow?"),
            ),
            Operation(
                "not_located", pairs(objects, places), sample=located_sample, solve=located(True), train=16, held_out=2,
                options=lambda arguments: answers,
                wordings=(
                    "is the {0} not in the {1}?", "the {0} not in the {1}: yes, no or maybe?",
                    "is it true, the {0} not in the {1}?", "does it follow that the {0} is not in the {1}?",
                    "yes, no or maybe: the {0} not in the {1}.",
                ),
                unseen=("is it true that the {0} is not in the {1}?", "does the {0} not in the {1} follow?"),
            ),
            Operation(
                "together", pairs(objects), sample=together_sample, solve=together_solve, train=10, held_out=1,
                options=lambda arguments: answers,
                wordings=(
                    "are the {0} and the {1} in the same place?", "is the {0} with the {1}: yes, no or maybe?",
                    "is it true, the {0} and the {1} together?", "are the {0} and the {1} together?",
                    "yes, no or maybe: {0} and {1} in one place.",
                ),
                unseen=("is it true that the {0} and the {1} are together?", "is the {0} in the place of the {1}?"),
            ),
        ),
    )  # fmt: skip


def _reading() -> Kind:
    columns = {"name": words.NAMES, "city": words.CITIES, "drink": words.DRINKS}
    order = tuple(columns)

    def operation(name, asked, given, train, held_out, wording):
        def sample(draw, arguments):
            drawn = {
                c: draw.some([v for v in columns[c] if v != arguments[0]], PEOPLE - 1 if c == given else PEOPLE)
                for c in order
            }
            drawn[given].insert(draw.below(PEOPLE), arguments[0])
            rows = zip(*(drawn[c] for c in order))
            return ", ".join(f"{person} from {city} likes {drink}" for person, city, drink in rows)

        def solve(text, arguments):
            for fact in text.split(", "):
                person, _, city, _, drink = fact.split()
                row = {"name": person, "city": city, "drink": drink}
                if row[given] == arguments[0]:
                    return row[asked]
            return None

        return Operation(
            name, singles(columns[given]), sample=sample, solve=solve, train=train, held_out=held_out, **wording
        )

    return Kind(
        "reading",
        "passages",
        (
            operation("home_of_person", "city", "name", 6, 1, asking(
                "the city of {0}", "where {0} is from", "the city {0} is from", unseen="from where {0} is")),
            operation("drink_of_person", "drink", "name", 6, 1, asking(
                "the drink of {0}", "what {0} likes", "the drink that {0} likes", unseen="which drink {0} likes")),
            operation("person_of_city", "name", "city", 12, 1, asking(
                "who is from {0}", "the name from {0}", "the one that is from {0}",
                unseen="the name that is from {0}")),
            operation("person_of_drink", "name", "drink", 12, 1, asking(
                "who likes {0}", "the one who likes {0}", "the name that likes {0}",
                unseen="the name of who likes {0}")),
            operation("drink_of_city", "drink", "city", 12, 1, asking(
                "the drink liked in {0}", "what the one from {0} likes", "the drink from {0}",
                unseen="which drink is liked in {0}")),
            operation("city_of_drink", "city", "drink", 12, 1, asking(
                "the city of who likes {0}", "the city that likes {0}", "where who likes {0} is from",
                unseen="in which city {0} is liked")),
        ),
    )  # fmt: skip


def _lookup() -> Kind:
    """A table of names and instruments; what is asked for is named by the other of its row."""
    names, values = words.NAMES, words.CATEGORIES["instrument"]

    def table(text):
        return dict(row.split() for row in text.split(", "))

    def write(draw, rows):
        more = zip(
            draw.some([k for k in names if k not in rows], ROWS - len(rows)),
            draw.some([v for v in values if v not in rows.values()], ROWS - len(rows)),
        )
        return ", ".join(f"{k} {v}" for k, v in draw.shuffled([*rows.items(), *more]))

    def value_sample(draw, arguments):
        return write(draw, dict(zip(arguments, draw.some(values, len(arguments)))))

    def value_solve(text, arguments):
        found = [table(text).get(name) for name in arguments]
        return None if None in found else " ".join(found)

    def key_sample(draw, arguments):
        return write(draw, {draw.pick(names): arguments[0]})

    def key_solve(text, arguments):
        return next((k for k, v in table(text).items() if v == arguments[0]), None)

    value_of = "the word with {}", "the value of {}", "what goes with {}", "the word that goes with {}"

    def asking_for(named):
        *trained, unseen = (phrase.format(named) for phrase in value_of)
        return asking(*trained, unseen=unseen)

    return Kind(
        "lookup",
        "tables",
        (
            Operation("value", singles(names), sample=value_sample, solve=value_solve, train=6, held_out=2,
                      **asking_for("{0}")),
            Operation("value_of_two", tuple(itertools.permutations(names, 2)), sample=value_sample, solve=value_solve,
                      train=18, held_out=2, **asking_for("{0} and {1}")),
            Operation("key", singles(values), sample=key_sample, solve=key_solve, train=10, held_out=0,
                      **asking("the key of {0}", "the word that has {0}", "the owner of {0}",
                               unseen="the key that has {0}")),
        ),
    )  # fmt: skip


KINDS = (_entailment(), _reading(), _lookup())
