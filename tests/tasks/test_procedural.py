"""The procedural suite: what it promises about counts, leaks, determinism, wordings, tokens and answers."""

import collections
import dataclasses
import hashlib
import itertools
import os
import subprocess
import sys
import time

import pytest
import sentencepiece

from zeroprompt_jax.data import cards
from zeroprompt_jax.tasks import procedural, procedural_parts, procedural_spec, procedural_vocabulary
from zeroprompt_jax.tasks.procedural_spec import Draw, Kind, Operation

SPECS = procedural.SPECS
TRAIN = [s for s in SPECS.values() if s.pool == "train"]
HELD_OUT = [s for s in SPECS.values() if s.pool == "held_out_task"]
UNSEEN = [s for s in SPECS.values() if s.pool == "held_out_type"]


@pytest.fixture(scope="module")
def rendered():
    """Every example of every task, rendered: {task: {split: [Rendered]}}."""
    return {
        name: {
            split: [cards.render(cards.card(name), e) for e in cards.source(name).examples(split)]
            for split in cards.source(name).splits
        }
        for name in SPECS
    }


@pytest.fixture(scope="module")
def behaviour(rendered):
    """(input texts, answers) of every task, over all its examples."""
    return {
        name: tuple(zip(*((r.input.removeprefix(": "), r.target) for rows in splits.values() for r in rows)))
        for name, splits in rendered.items()
    }


@pytest.fixture(scope="module")
def pieces():
    return sentencepiece.SentencePieceProcessor(model_file=str(procedural_vocabulary.PATH))


def test_counts_by_cards():
    registered = [cards.card(name) for name in SPECS]
    by_pool = {p: [c for c in registered if c.pool == p] for p in cards.POOLS}
    types = {p: {c.type for c in by_pool[p]} for p in by_pool}
    assert len(registered) >= 1_200 and len(by_pool["train"]) >= 1_000
    assert len(by_pool["held_out_task"]) >= 150 and len(by_pool["held_out_type"]) >= 40
    assert len(types["train"]) >= 12 and 2 <= len(types["held_out_type"]) <= 4
    assert types["held_out_task"] == types["train"], "every trained type is tested on unseen tasks"
    assert not types["held_out_type"] & types["train"]
    assert len({c.family for c in by_pool["train"]}) >= 50
    assert min(collections.Counter(c.type for c in by_pool["held_out_task"]).values()) >= 4
    assert len({c.name for c in registered}) == len(registered)


def test_operations_give_as_many_tasks_as_they_say():
    given = collections.Counter((s.type, s.operation.name, s.pool) for s in SPECS.values())
    for kind in procedural.KINDS:
        for op in kind.operations:
            held_out = "held_out_task" if kind.seen else "held_out_type"
            found = given[kind.name, op.name, "train"], given[kind.name, op.name, held_out]
            assert found == (op.train, op.held_out), (kind.name, op.name)


def test_mixtures_hold_their_pools():
    assert set(cards.mixture("procedural_train")) == {s.name for s in TRAIN}
    assert set(cards.mixture("procedural_unseen_tasks")) == {s.name for s in HELD_OUT}
    assert set(cards.mixture("procedural_unseen_types")) == {s.name for s in UNSEEN}
    seen = [SPECS[name] for name in cards.mixture("procedural_seen_tasks")]
    assert {s.pool for s in seen} == {"train"} and {s.type for s in seen} == {s.type for s in TRAIN}


def test_every_task_is_as_likely_as_every_other():
    assert set(cards.mixture("procedural_train").values()) == {1.0}


def test_registering_is_fast_and_harmless_twice():
    begin = time.process_time()
    procedural.register()
    assert time.process_time() - begin < 1.0


def combinations(specs):
    return {(s.type, s.operation.name, frozenset(s.arguments) if symmetric(s) else s.arguments) for s in specs}


def symmetric(spec):
    """Whether swapping the arguments gives the same task."""
    return spec.operation.name in {"either", "which_of", "earlier", "together", "of_two", "of_three"}


def test_no_held_out_combination_is_trained():
    assert not combinations(HELD_OUT + UNSEEN) & combinations(TRAIN)
    assert len(combinations(SPECS.values())) == len(SPECS), "no task occurs twice"
    # Negative control: the check sees a task that is moved to training, also with its symmetric arguments swapped.
    leak = next(s for s in HELD_OUT if s.operation.name == "either")
    swapped = dataclasses.replace(leak, arguments=leak.arguments[::-1], pool="train")
    assert combinations(HELD_OUT) & combinations([*TRAIN, swapped])
    # Names are asked in an order: swapped they are another task.
    ordered = next(s for s in HELD_OUT if s.operation.name == "value_of_two")
    assert not combinations([ordered]) & combinations([dataclasses.replace(ordered, arguments=ordered.arguments[::-1])])


def together(spec):
    return set(map(frozenset, itertools.combinations(spec.arguments, 2)))


def test_what_is_asked_together_in_a_held_out_task_never_is_in_training():
    """Not in the other order and not beside a third part either; and every pair and triple holds such a pair."""
    for kind in procedural_parts.KINDS:
        trained = set().union(*(together(s) for s in TRAIN if s.type == kind.name))
        held_out = [s for s in HELD_OUT if s.type == kind.name]
        assert trained and len(held_out) >= 10
        assert all(together(s) - trained for s in held_out)
        pairs = [s for s in held_out if s.operation.name == "pair"]
        assert not trained & set().union(*map(together, pairs))


def test_card_agrees_with_spec():
    for name, spec in SPECS.items():
        card = cards.card(name)
        assert (card.type, card.family, card.pool) == (spec.type, spec.family, spec.pool)
        for wording in card.instructions + card.held_out_instructions:
            for argument in spec.arguments:
                ways = spec.operation.phrases.get(argument, ()) + spec.operation.unseen_phrases.get(argument, ())
                assert any(f" {way} " in f" {wording} ".translate(NO_MARKS) for way in ways or (argument,)), wording


NO_MARKS = str.maketrans(",.?:", "    ")


def answer_of(spec, text):
    """A task's answer, None where it says nothing: also on texts of another type, which its type may not parse."""
    try:
        return spec.operation.solve(text, spec.arguments)
    except ValueError:
        return None


def computes_the_same(texts, answers, other):
    return all(answer_of(other, text) == answer for text, answer in zip(texts, answers, strict=True))


def test_no_held_out_task_computes_a_trained_function(behaviour):
    """Whatever its name and type: no trained task gives a held-out task's answers on the held-out task's inputs."""
    same = {
        (spec.name, other.name)
        for spec in HELD_OUT + UNSEEN
        for other in TRAIN
        if computes_the_same(*behaviour[spec.name], other)
    }
    assert same == set()


def test_the_leak_test_sees_a_trained_function(behaviour):
    """Negative control: every held-out task moved to training is found, also under another name."""
    for spec in HELD_OUT + UNSEEN:
        renamed = dataclasses.replace(spec.operation, name="renamed")
        assert computes_the_same(*behaviour[spec.name], dataclasses.replace(spec, operation=renamed, pool="train"))


def test_the_order_of_asking_is_part_of_the_function(behaviour):
    """Of all orders and subsets of what a task asks, and all operations of its type, only its own give its answers."""
    checked = collections.Counter()
    for spec in SPECS.values():
        if spec.operation.name not in ("pair", "triple", "value_of_two"):
            continue
        texts, answers = behaviour[spec.name]
        candidates = [
            dataclasses.replace(spec, operation=op, arguments=arguments)
            for (kind, _), op in OPERATIONS.items()
            if kind == spec.type
            for n in (1, 2, 3)
            for arguments in itertools.permutations(spec.arguments, n)
            if arguments in op.arguments
        ]
        assert [(s.operation.name, s.arguments) for s in candidates if computes_the_same(texts, answers, s)] == [
            (spec.operation.name, spec.arguments)
        ]
        assert len({len(answer.split()) for answer in answers}) == 1 and len(answers[0].split()) == len(spec.arguments)
        checked[len(spec.arguments)] += 1
    assert checked[2] >= 150 and checked[3] >= 300


def test_trained_tasks_are_distinct_functions(behaviour):
    by_type = collections.defaultdict(list)
    for spec in TRAIN:
        by_type[spec.type].append(spec)
    for specs in by_type.values():
        for spec in specs:
            assert [s.name for s in specs if computes_the_same(*behaviour[spec.name], s)] == [spec.name]


def test_parts_of_held_out_tasks_are_trained():
    shown = collections.defaultdict(set)
    for spec in TRAIN:
        shown[spec.type].add(("operation", spec.operation.name))
        shown[spec.type].update(("argument", a) for a in spec.arguments)
    for spec in HELD_OUT:
        need = {("operation", spec.operation.name)} | {("argument", a) for a in spec.arguments}
        assert need <= shown[spec.type], spec.name


def test_wordings():
    owner = {}
    trained = {w for s in TRAIN for w in cards.card(s.name).instructions}
    trained_templates = {w for s in TRAIN for w in s.operation.wordings}
    unseen_only = 0
    for name in SPECS:
        card = cards.card(name)
        assert len(set(card.instructions)) >= 4
        for wording in card.instructions + card.held_out_instructions:
            first = owner.setdefault((card.type, wording), name)
            assert first == name, f"'{wording}' is {name} and {first}"
        assert not trained & set(card.held_out_instructions)
        unseen_only += bool(card.held_out_instructions) and card.pool == "held_out_task"
    for spec in HELD_OUT:
        assert not trained_templates & set(spec.operation.unseen), "also with other arguments it is never trained"
    assert 0.4 <= unseen_only / len(HELD_OUT) <= 0.6
    assert not any(cards.card(s.name).held_out_instructions for s in TRAIN)


def test_examples_are_enough_and_splits_are_disjoint(rendered):
    for name, splits in rendered.items():
        inputs = {split: {r.input for r in rows} for split, rows in splits.items()}
        for split, rows in splits.items():
            assert len(inputs[split]) == len(rows), f"{name} repeats an input in {split}"
        assert not inputs["train"] & inputs["test"], name
        assert len(inputs["train"]) >= 60 and len(inputs["test"]) >= (20 if SPECS[name].pool == "train" else 50)


def digest(names):
    rows = [
        (name, cards.card(name).instructions, list(cards.source(name).examples(split)))
        for name in names
        for split in ("train", "test")
    ]
    return hashlib.sha256(repr((list(SPECS), rows)).encode()).hexdigest()


def test_same_examples_in_another_process():
    names = list(SPECS)[::17]
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_procedural as t; "
        "print(t.digest(list(t.SPECS)[::17]), t.procedural.source_of(t.TRAIN[0]).fingerprint)"
    )
    for seed in ("1", "2"):
        out = subprocess.run(
            [sys.executable, "-c", script, os.path.dirname(__file__)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert out.stdout.split() == [digest(names), procedural.source_of(TRAIN[0]).fingerprint]


def test_order_of_reading_does_not_matter():
    name = TRAIN[5].name
    first = list(cards.source(name).examples("test"))
    list(cards.source(TRAIN[6].name).examples("train"))
    assert list(cards.source(name).examples("test")) == first


def test_seed_and_version_change_fingerprint_and_examples(monkeypatch):
    spec = TRAIN[0]
    before = procedural.source_of(spec).fingerprint
    monkeypatch.setattr(procedural, "SEED", procedural.SEED + 1)
    changed = procedural.source_of(spec)
    monkeypatch.undo()
    monkeypatch.setattr(procedural, "CODE_VERSION", procedural.CODE_VERSION + 1)
    assert len({before, changed.fingerprint, procedural.source_of(spec).fingerprint}) == 3

    def take(seed):
        return list(itertools.islice(procedural_spec.examples(spec, seed), 5))

    assert take(1) == take(1) != take(2)


def test_texts_fit_and_nothing_is_unknown(rendered, pieces):
    for name, splits in rendered.items():
        card = cards.card(name)
        wordings = [pieces.encode(w) for w in card.instructions + card.held_out_instructions]
        longest = max(map(len, wordings))
        rows = [r for split in splits.values() for r in split]
        for row in rows[::5]:
            source, target = pieces.encode(row.input), pieces.encode(row.target)
            assert longest + len(source) + 1 <= 24 and len(target) + 1 <= 5, (name, row)
            assert not {2} & {*source, *target}
            assert pieces.decode(target) == row.target
            # Words are single pieces: no piece without the space mark, except punctuation.
            bare = [p for p in map(pieces.id_to_piece, source + target) if p[0] != "\u2581"]
            assert set(bare) <= set(procedural_vocabulary.PUNCTUATION), (name, row, bare)
        assert not any(2 in w for w in wordings)


def test_vocabulary_file_is_what_the_code_builds(pieces):
    pytest.importorskip("google.protobuf")
    assert procedural_vocabulary.PATH.read_bytes() == procedural_vocabulary.serialized()
    assert procedural_vocabulary.PATH.stat().st_size < 300_000 and pieces.vocab_size() < 2_000
    assert (pieces.pad_id(), pieces.eos_id(), pieces.unk_id(), pieces.bos_id()) == (0, 1, 2, -1)
    strange = "Ünseen — ☃ 漢字 cat42"
    assert 2 not in pieces.encode(strange) and pieces.decode(pieces.encode(strange)) == strange


def baseline(rows):
    """The better of always giving the most frequent answer and copying the input."""
    answers = [r.target for r in rows]
    copied = sum(r.target in (r.input, r.input.removeprefix(": ")) for r in rows)
    return max(collections.Counter(answers).most_common(1)[0][1], copied) / len(rows)


@pytest.mark.parametrize("pool", ["held_out_task", "held_out_type"])
def test_baselines_are_low(rendered, pool):
    scores = [baseline(rendered[s.name]["test"]) for s in SPECS.values() if s.pool == pool]
    assert sum(scores) / len(scores) < 0.25
    assert max(scores) < 0.75


def test_input_alone_does_not_tell_the_answer():
    """For an input of a held-out task, the trained tasks of its type that have an answer mostly have another one."""
    trained = collections.defaultdict(list)
    for spec in TRAIN:
        trained[spec.type].append(spec)
    for kind, specs in trained.items():
        held_out = [s for s in HELD_OUT if s.type == kind]
        agree = total = 0
        for spec in held_out:
            for example in itertools.islice(cards.source(spec.name).examples("test"), 4):
                answers = {t.operation.solve(example["input"], t.arguments) for t in specs} - {None}
                agree += answers <= {example["target"]}
                total += 1
        assert agree / total < 0.25, kind


# Input and answer per operation, worked out by hand.
TABLE = "anna piano, bob flute, tom harp"
THINGS = "nurse cat red axe"
WORDS = "sing child hot drum rose"
TRANSLATION = "dog red soup walk run"
DATES = "december oak sunday drum"
SORTING = "3 k march 17 b july"
NUMBERS = "rose VII 9 twelve drum"
LETTERS = "oak k Q drum"
MIXED = "sing dog child moon"
PLAN = "january friday 7"
ANIMALS = "dog cat pig wolf lion"
FOOD = "cake egg rice soup pear"
FACTS = "ball in box, key in car"
MORE_FACTS = "ball in box, cup in box"
PASSAGE = "anna from rome likes tea, bob from oslo likes milk"
QUEUE = "anna bob tom eve max"
GOLDEN = [
    ("list_selection", "one", "animal", THINGS, "cat"),
    ("list_selection", "one", "plant", THINGS, None),
    ("list_selection", "pair", "tool animal", THINGS, "axe cat"),
    ("list_selection", "pair", "animal tool", THINGS, "cat axe"),
    ("list_selection", "triple", "colour tool job", THINGS, "red axe nurse"),
    ("grammar", "one", "past", WORDS, "sang"),
    ("grammar", "one", "gerund", WORDS, "singing"),
    ("grammar", "pair", "plural verb", WORDS, "children sing"),
    ("grammar", "pair", "opposite comparative", WORDS, "cold hotter"),
    ("grammar", "triple", "noun adjective past", WORDS, "child hot sang"),
    ("translation", "one", "french_colour", TRANSLATION, "rouge"),
    ("translation", "one", "french_nature", TRANSLATION, None),
    ("translation", "pair", "spanish_animal french_animal", TRANSLATION, "perro chien"),
    ("translation", "triple", "french_food spanish_colour french_animal", TRANSLATION, "soupe rojo chien"),
    ("dates", "one", "next_month", DATES, "january"),
    ("dates", "one", "previous_day", DATES, "saturday"),
    ("dates", "pair", "next_day season", DATES, "monday winter"),
    ("dates", "triple", "day month previous_month", DATES, "sunday december november"),
    ("unit_conversion", "one", "weeks_to_days", "oak 5 drum", "35"),
    ("unit_conversion", "pair", "yards_to_feet pairs_to_pieces", "oak 5 drum", "15 10"),
    ("unit_conversion", "triple", "decades_to_years dozens_to_units gallons_to_quarts", "oak 5 drum", "50 60 20"),
    ("arithmetic", "one", "plus_3", "oak 5 drum", "8"),
    ("arithmetic", "pair", "minus_2 plus_1", "oak 5 drum", "3 6"),
    ("arithmetic", "triple", "plus_5 minus_4 minus_1", "oak 5 drum", "10 1 4"),
    ("arithmetic", "one", "minus_4", "oak 2 drum", None),
    ("word_arithmetic", "one", "plus_three", "oak five drum", "eight"),
    ("word_arithmetic", "pair", "minus_two plus_one", "oak five drum", "three six"),
    ("word_arithmetic", "triple", "plus_four minus_four minus_one", "oak five drum", "nine one four"),
    ("number_format", "one", "roman_to_digits", NUMBERS, "7"),
    ("number_format", "pair", "digits_to_roman spelled_to_digits", NUMBERS, "IX 12"),
    ("number_format", "triple", "spelled_to_roman digits_to_spelled roman_to_spelled", NUMBERS, "XII nine seven"),
    ("letter_format", "one", "small_to_capital", LETTERS, "K"),
    ("letter_format", "pair", "next_capital small", LETTERS, "R k"),
    ("letter_format", "triple", "capital_to_small next_small capital", LETTERS, "q l Q"),
    ("sorting", "one", "smallest_number", SORTING, "3"),
    ("sorting", "pair", "last_letter earliest_month", SORTING, "k march"),
    ("sorting", "triple", "latest_month largest_number first_letter", SORTING, "july 17 b"),
    ("neighbours", "after", "cat", ANIMALS, "pig"),
    ("neighbours", "before", "cat", ANIMALS, "dog"),
    ("neighbours", "before", "dog", ANIMALS, None),
    ("counting", "letter", "k", "k a k b", "2"),
    ("counting", "either", "a k", "k a b b", "2"),
    ("membership", "which_of", "cake plum", FOOD, "cake"),
    ("membership", "which_of", "cake egg", FOOD, "both"),
    ("membership", "which_of", "plum onion", FOOD, "neither"),
    ("membership", "earlier", "rice egg", FOOD, "egg"),
    ("topic_classification", "of_two", "animal food", THINGS, "animal"),
    ("topic_classification", "of_two", "animal job", THINGS, None),
    ("topic_classification", "of_three", "sport plant tool", THINGS, "tool"),
    ("string_edit", "delete", "b", "a b c", "a c"),
    ("string_edit", "double", "b", "a b c", "a b b c"),
    ("string_edit", "capitalise", "c", "a b c", "a b C"),
    ("string_edit", "move_first", "c", "a b c", "c a b"),
    ("string_edit", "move_last", "b", "a b c", "a c b"),
    ("list_edit", "remove_word", "red", "gold red pink", "gold pink"),
    ("list_edit", "words_after", "gold", "gold red pink", "red pink"),
    ("list_edit", "words_after", "pink", "gold red pink", "none"),
    ("list_edit", "words_before", "pink", "gold red pink", "gold red"),
    ("list_edit", "words_before", "gold", "gold red pink", "none"),
    ("list_edit", "word_first", "pink", "gold red pink", "pink gold red"),
    ("list_edit", "word_last", "gold", "gold red pink", "red pink gold"),
    ("list_edit", "word_last", "grey", "gold red pink", None),
    ("entailment", "located", "ball box", FACTS, "yes"),
    ("entailment", "located", "key box", FACTS, "no"),
    ("entailment", "located", "ring box", FACTS, "maybe"),
    ("entailment", "not_located", "ball box", FACTS, "no"),
    ("entailment", "not_located", "key box", FACTS, "yes"),
    ("entailment", "not_located", "ring box", FACTS, "maybe"),
    ("entailment", "together", "ball cup", MORE_FACTS, "yes"),
    ("entailment", "together", "ball key", FACTS, "no"),
    ("entailment", "together", "ball ring", FACTS, "maybe"),
    ("reading", "home_of_person", "bob", PASSAGE, "oslo"),
    ("reading", "drink_of_person", "anna", PASSAGE, "tea"),
    ("reading", "person_of_city", "oslo", PASSAGE, "bob"),
    ("reading", "person_of_drink", "tea", PASSAGE, "anna"),
    ("reading", "drink_of_city", "oslo", PASSAGE, "milk"),
    ("reading", "city_of_drink", "tea", PASSAGE, "rome"),
    ("lookup", "value", "bob", TABLE, "flute"),
    ("lookup", "value", "eve", TABLE, None),
    ("lookup", "value_of_two", "tom anna", TABLE, "harp piano"),
    ("lookup", "value_of_two", "anna eve", TABLE, None),
    ("lookup", "key", "harp", TABLE, "tom"),
    ("lookup", "key", "drum", TABLE, None),
    ("travel", "one", "country", "cat peru saw golf", "peru"),
    ("travel", "pair", "sport country", "cat peru saw golf", "golf peru"),
    ("travel", "triple", "instrument sport country", "drum peru saw golf", "drum golf peru"),
    ("glossary", "pair", "past french_nature", MIXED, "sang lune"),
    ("glossary", "pair", "spanish_animal plural", MIXED, "perro children"),
    ("planner", "pair", "season plus_3", PLAN, "winter 10"),
    ("planner", "pair", "minus_4 next_day", PLAN, "3 saturday"),
    ("queue", "next_person", "bob", QUEUE, "tom"),
    ("queue", "previous_person", "bob", QUEUE, "anna"),
]
OPERATIONS = {(kind.name, op.name): op for kind in procedural.KINDS for op in kind.operations}


@pytest.mark.parametrize("kind, name, arguments, text, answer", GOLDEN)
def test_golden_answers(kind, name, arguments, text, answer):
    assert OPERATIONS[kind, name].solve(text, tuple(arguments.split())) == answer


def test_every_operation_has_a_golden_answer():
    assert set(OPERATIONS) == {row[:2] for row in GOLDEN if row[-1] is not None}


def test_word_lists_are_clean():
    """A word in two columns of one type would give a task two answers."""
    from zeroprompt_jax.tasks import procedural_words as words

    assert len(words.CATEGORY_OF) == sum(map(len, words.CATEGORIES.values())), "a word has two categories"
    for items in (words.NAMES, words.CITIES, words.DRINKS, words.OBJECTS, words.PLACES):
        assert len(set(items)) == len(items)
    for table in (words.VERBS, words.ADJECTIVES):
        assert len({row[0] for row in table}) == len(table)
    assert not set(words.NAMES) & set(words.CATEGORY_OF)
    assert not {*words.NAMES} & {*words.CITIES, *words.DRINKS} and not {*words.CITIES} & {*words.DRINKS}
    # A row shows several classes of a type; a word in two of them would have two readings.
    for classes in (procedural_parts.WORD_CLASSES, procedural_parts.TRANSLATED):
        assert len(set().union(*classes.values())) == sum(map(len, classes.values()))
    glossary = {*itertools.chain(*procedural_parts.WORD_CLASSES.values())}
    assert not glossary & {*itertools.chain(*procedural_parts.TRANSLATED.values())}
    assert not glossary & {*procedural_parts.FILLERS}
    for rows in words.TRANSLATIONS.values():
        assert {len(row) for row in rows} == {1 + len(words.LANGUAGES)}
        for i in range(1, 1 + len(words.LANGUAGES)):
            assert len({row[i] for row in rows}) == len(rows), "two words have one translation"
    factors = [factor for *_, factor in words.CONVERSIONS]
    assert len(set(factors)) == len(factors), "two conversions are one function"


def test_a_task_without_enough_inputs_says_so():
    two = lambda draw, arguments: draw.pick(("p", "q"))  # noqa: E731
    op = Operation("only", (("x",),), ("a {0}",), ("b {0}",), two, lambda text, arguments: text, train=1, held_out=0)
    (spec,) = procedural_spec.specs(Kind("tiny", "none", (op,)))
    with pytest.raises(RuntimeError, match="procedural/tiny/only/x.*2 distinct"):
        list(itertools.islice(procedural_spec.examples(spec), 3))


def test_draw_depends_on_its_key_alone():
    assert Draw("a", 1).shuffled(range(20)) == Draw("a", 1).shuffled(range(20)) != Draw("a", 2).shuffled(range(20))
    assert Draw("ab", "c").below(1 << 30) != Draw("a", "bc").below(1 << 30)
    assert sorted(Draw(3).shuffled(range(9))) == list(range(9))
