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
from zeroprompt_jax.tasks import procedural, procedural_spec, procedural_vocabulary
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


def test_shares_of_the_batch():
    rates = cards.mixture("procedural_train")
    assert sum(rates.values()) == pytest.approx(1) and min(rates.values()) > 0
    by_type = {kind: [rates[s.name] for s in TRAIN if s.type == kind] for kind in {s.type for s in TRAIN}}
    for kind, share in procedural.SHARES.items():
        assert sum(by_type[kind]) == pytest.approx(share) and len(set(by_type[kind])) == 1
    assert len({rate for kind, found in by_type.items() if kind not in procedural.SHARES for rate in found}) == 1


def test_registering_is_fast_and_harmless_twice():
    begin = time.process_time()
    procedural.register()
    assert time.process_time() - begin < 1.0


def combinations(specs):
    return {(s.type, s.operation.name, frozenset(s.arguments) if symmetric(s) else s.arguments) for s in specs}


def symmetric(spec):
    """Whether swapping the arguments gives the same task."""
    return spec.operation.name in {"total", "either", "which_of", "earlier", "together"}


def test_no_held_out_combination_is_trained():
    assert not combinations(HELD_OUT + UNSEEN) & combinations(TRAIN)
    assert len(combinations(SPECS.values())) == len(SPECS), "no task occurs twice"
    # Negative control: the check sees a task that is moved to training, also with its symmetric arguments swapped.
    leak = next(s for s in HELD_OUT if s.operation.name == "either")
    swapped = dataclasses.replace(leak, arguments=leak.arguments[::-1], pool="train")
    assert combinations(HELD_OUT) & combinations([*TRAIN, swapped])
    # Places are asked in an order: swapped they are another task.
    ordered = next(s for s in HELD_OUT if s.operation.name == "pick_of_two")
    assert not combinations([ordered]) & combinations([dataclasses.replace(ordered, arguments=ordered.arguments[::-1])])


def test_card_agrees_with_spec():
    for name, spec in SPECS.items():
        card = cards.card(name)
        assert (card.type, card.family, card.pool) == (spec.type, spec.family, spec.pool)
        for wording in card.instructions + card.held_out_instructions:
            assert set(spec.arguments) <= set(wording.translate(str.maketrans(",.?:", "    ")).split()), (name, wording)


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


def test_the_order_of_places_and_keys_is_part_of_the_function(behaviour):
    """Of all orders and subsets of a task's places, and all operations of its type, only its own give its answers."""
    checked = collections.Counter()
    for spec in SPECS.values():
        if not spec.operation.name.endswith(("_of_two", "_of_three")):
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
            assert longest + len(source) + 1 <= 26 and len(target) + 1 <= 6, (name, row)
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
GRAMMAR = "sing child hot goose"
VERB_ROW = "go carry eat sit"
ADJECTIVE_ROW = "rich old big dark"
NOUN_ROW = "leaf tooth baby man"
MONTH_ROW = "december june march november"
DAY_ROW = "sunday monday friday saturday"
UNIT_ROW = "5 8 1 3"
NUMBER_ROW = "twelve three eighteen nine"
LETTER_ROW = "k y a m"
TRANSLATION_ROW = "sun door moon tree"
ARITHMETIC_ROW = "5 10 2 1"
WORD_ROW = "five ten two one"
THINGS = "anna cat, bob piano, tom golf"
ANIMALS = "dog cat pig wolf lion"
CATEGORY_ROW = "red dog sofa cat flute"
FACTS = "ball in box, key in car, cup in box"
PASSAGE = "anna from rome likes tea, bob from oslo likes milk"
RECORD = "city = rome; pet = dog; drink = tea"
QUEUE = "anna bob tom eve max"
TIMETABLE = "may golf, june judo, march rugby"
GOLDEN = [
    ("list_selection", "pick", "third", "peru judo kenya golf", "kenya"),
    ("list_selection", "pick_of_two", "fourth first", "peru judo kenya golf", "golf peru"),
    ("list_selection", "pick_of_two", "first fourth", "peru judo kenya golf", "peru golf"),
    ("list_selection", "pick_of_three", "second fourth first", "peru judo kenya golf", "judo golf peru"),
    ("lookup", "value", "bob", TABLE, "flute"),
    ("lookup", "value", "eve", TABLE, None),
    ("lookup", "value_of_two", "tom anna", TABLE, "harp piano"),
    ("lookup", "value_of_two", "anna tom", TABLE, "piano harp"),
    ("lookup", "value_of_two", "anna eve", TABLE, None),
    ("lookup", "value_of_three", "bob tom anna", TABLE, "flute harp piano"),
    ("lookup", "key", "harp", TABLE, "tom"),
    ("lookup", "key", "drum", TABLE, None),
    ("grammar", "past", "first", GRAMMAR, "sang"),
    ("grammar", "past", "second", GRAMMAR, None),
    ("grammar", "past_of_two", "second first", VERB_ROW, "carried went"),
    ("grammar", "past_of_two", "first second", VERB_ROW, "went carried"),
    ("grammar", "past_of_three", "fourth second third", VERB_ROW, "sat carried ate"),
    ("grammar", "plural", "second", GRAMMAR, "children"),
    ("grammar", "plural_of_two", "fourth second", GRAMMAR, "geese children"),
    ("grammar", "plural_of_three", "third first second", NOUN_ROW, "babies leaves teeth"),
    ("grammar", "opposite", "third", GRAMMAR, "cold"),
    ("grammar", "opposite_of_two", "second first", ADJECTIVE_ROW, "young poor"),
    ("grammar", "opposite_of_three", "third fourth first", ADJECTIVE_ROW, "small bright poor"),
    ("grammar", "comparative", "third", GRAMMAR, "hotter"),
    ("grammar", "comparative_of_two", "third first", ADJECTIVE_ROW, "bigger richer"),
    ("grammar", "comparative_of_three", "second fourth third", ADJECTIVE_ROW, "older darker bigger"),
    ("dates", "next_month", "first", MONTH_ROW, "january"),
    ("dates", "next_month_of_two", "third second", MONTH_ROW, "april july"),
    ("dates", "next_month_of_three", "fourth first second", MONTH_ROW, "december january july"),
    ("dates", "season", "first", MONTH_ROW, "winter"),
    ("dates", "season_of_two", "third first", MONTH_ROW, "spring winter"),
    ("dates", "season_of_three", "second fourth third", MONTH_ROW, "summer autumn spring"),
    ("dates", "next_day", "first", DAY_ROW, "monday"),
    ("dates", "next_day_of_two", "fourth first", DAY_ROW, "sunday monday"),
    ("dates", "next_day_of_three", "third second fourth", DAY_ROW, "saturday tuesday sunday"),
    ("unit_conversion", "weeks_to_days", "first", UNIT_ROW, "35"),
    ("unit_conversion", "weeks_to_days_of_two", "second first", UNIT_ROW, "56 35"),
    ("unit_conversion", "weeks_to_days_of_three", "third fourth first", UNIT_ROW, "7 21 35"),
    ("unit_conversion", "yards_to_feet", "second", UNIT_ROW, "24"),
    ("unit_conversion", "yards_to_feet_of_two", "first third", UNIT_ROW, "15 3"),
    ("unit_conversion", "yards_to_feet_of_three", "fourth first second", UNIT_ROW, "9 15 24"),
    ("unit_conversion", "decades_to_years", "fourth", UNIT_ROW, "30"),
    ("unit_conversion", "decades_to_years_of_two", "second fourth", UNIT_ROW, "80 30"),
    ("unit_conversion", "decades_to_years_of_three", "first third second", UNIT_ROW, "50 10 80"),
    ("unit_conversion", "pairs_to_pieces", "second", UNIT_ROW, "16"),
    ("unit_conversion", "pairs_to_pieces_of_two", "third fourth", UNIT_ROW, "2 6"),
    ("unit_conversion", "pairs_to_pieces_of_three", "fourth second first", UNIT_ROW, "6 16 10"),
    ("number_format", "digits", "first", NUMBER_ROW, "12"),
    ("number_format", "digits_of_two", "third second", NUMBER_ROW, "18 3"),
    ("number_format", "digits_of_three", "second fourth first", NUMBER_ROW, "3 9 12"),
    ("number_format", "next", "first", NUMBER_ROW, "thirteen"),
    ("number_format", "next_of_two", "third second", NUMBER_ROW, "nineteen four"),
    ("number_format", "next_of_three", "second fourth first", NUMBER_ROW, "four ten thirteen"),
    ("letter_format", "capital", "first", LETTER_ROW, "K"),
    ("letter_format", "capital_of_two", "third second", LETTER_ROW, "A Y"),
    ("letter_format", "capital_of_three", "fourth first third", LETTER_ROW, "M K A"),
    ("letter_format", "next", "second", LETTER_ROW, "z"),
    ("letter_format", "next", "first", "z y a m", None),
    ("letter_format", "next_of_two", "third first", LETTER_ROW, "b l"),
    ("letter_format", "next_of_three", "first fourth second", LETTER_ROW, "l n z"),
    ("translation", "spanish", "third", TRANSLATION_ROW, "luna"),
    ("translation", "spanish_of_two", "second first", TRANSLATION_ROW, "puerta sol"),
    ("translation", "spanish_of_three", "fourth third second", TRANSLATION_ROW, "arbol luna puerta"),
    ("translation", "french", "first", TRANSLATION_ROW, "soleil"),
    ("translation", "french_of_two", "fourth second", TRANSLATION_ROW, "arbre porte"),
    ("translation", "french_of_three", "third first fourth", TRANSLATION_ROW, "lune soleil arbre"),
    ("arithmetic", "plus", "first 7", ARITHMETIC_ROW, "12"),
    ("arithmetic", "minus", "second 4", ARITHMETIC_ROW, "6"),
    ("arithmetic", "minus", "third 4", ARITHMETIC_ROW, None),
    ("arithmetic", "total", "first fourth", ARITHMETIC_ROW, "6"),
    ("word_arithmetic", "plus", "first six", WORD_ROW, "eleven"),
    ("word_arithmetic", "minus", "third two", WORD_ROW, "zero"),
    ("topic_classification", "category_of", "bob", THINGS, "instrument"),
    ("topic_classification", "owner_of", "sport", THINGS, "tom"),
    ("topic_classification", "has", "anna animal", THINGS, "yes"),
    ("topic_classification", "has", "bob animal", THINGS, "no"),
    ("neighbours", "after", "cat", ANIMALS, "pig"),
    ("neighbours", "before", "cat", ANIMALS, "dog"),
    ("neighbours", "before", "dog", ANIMALS, None),
    ("neighbours", "second_after", "cat", ANIMALS, "wolf"),
    ("neighbours", "second_before", "lion", ANIMALS, "pig"),
    ("category_selection", "first", "animal", CATEGORY_ROW, "dog"),
    ("category_selection", "last", "animal", CATEGORY_ROW, "cat"),
    ("category_selection", "after_first", "animal", CATEGORY_ROW, "sofa"),
    ("category_selection", "before_first", "animal", CATEGORY_ROW, "red"),
    ("category_selection", "after_last", "animal", CATEGORY_ROW, "flute"),
    ("category_selection", "before_last", "animal", CATEGORY_ROW, "sofa"),
    ("sorting", "smallest_above", "7", "9 3 7 15 12", "9"),
    ("sorting", "largest_below", "7", "9 3 7 5 12", "5"),
    ("sorting", "count_above", "8", "9 3 7 15 12", "3"),
    ("counting", "letter", "k", "k a k b k", "3"),
    ("counting", "either", "a k", "k a b b c", "2"),
    ("membership", "which_of", "cake plum", "cake egg rice soup pear", "cake"),
    ("membership", "which_of", "cake egg", "cake egg rice soup pear", "both"),
    ("membership", "which_of", "plum onion", "cake egg rice soup pear", "neither"),
    ("membership", "earlier", "rice egg", "cake egg rice soup pear", "egg"),
    ("string_edit", "delete", "b", "a b c d", "a c d"),
    ("string_edit", "double", "b", "a b c d", "a b b c d"),
    ("string_edit", "capitalise", "c", "a b c d", "a b C d"),
    ("string_edit", "cut_before", "b", "a b c d", "b c d"),
    ("string_edit", "cut_after", "b", "a b c d", "a b"),
    ("string_edit", "move_first", "c", "a b c d", "c a b d"),
    ("string_edit", "move_last", "b", "a b c d", "a c d b"),
    ("list_edit", "remove_word", "red", "gold red pink blue", "gold pink blue"),
    ("list_edit", "words_after", "red", "gold red pink blue", "pink blue"),
    ("list_edit", "words_after", "blue", "gold red pink blue", "none"),
    ("list_edit", "words_before", "pink", "gold red pink blue", "gold red"),
    ("list_edit", "words_before", "gold", "gold red pink blue", "none"),
    ("list_edit", "word_first", "pink", "gold red pink blue", "pink gold red blue"),
    ("list_edit", "word_last", "gold", "gold red pink blue", "red pink blue gold"),
    ("list_edit", "word_last", "grey", "gold red pink blue", None),
    ("entailment", "located", "ball box", FACTS, "yes"),
    ("entailment", "located", "key box", FACTS, "no"),
    ("entailment", "located", "ring box", FACTS, "maybe"),
    ("entailment", "not_located", "ball box", FACTS, "no"),
    ("entailment", "not_located", "key box", FACTS, "yes"),
    ("entailment", "not_located", "ring box", FACTS, "maybe"),
    ("entailment", "together", "ball cup", FACTS, "yes"),
    ("entailment", "together", "ball key", FACTS, "no"),
    ("entailment", "together", "ball ring", FACTS, "maybe"),
    ("reading", "home_of_person", "bob", PASSAGE, "oslo"),
    ("reading", "drink_of_person", "anna", PASSAGE, "tea"),
    ("reading", "person_of_city", "oslo", PASSAGE, "bob"),
    ("reading", "person_of_drink", "tea", PASSAGE, "anna"),
    ("reading", "drink_of_city", "oslo", PASSAGE, "milk"),
    ("reading", "city_of_drink", "tea", PASSAGE, "rome"),
    ("records", "field_value", "pet", RECORD, "dog"),
    ("records", "field_name", "tea", RECORD, "drink"),
    ("queue", "next_person", "bob", QUEUE, "tom"),
    ("queue", "previous_person", "bob", QUEUE, "anna"),
    ("timetable", "sport_in_month", "may", TIMETABLE, "golf"),
    ("timetable", "month_of_sport", "rugby", TIMETABLE, "march"),
    ("letter_row", "letter_after", "k", "a k c f z", "c"),
    ("letter_row", "letter_before", "z", "a k c f z", "f"),
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
    for items in (words.NAMES, words.CITIES, words.DRINKS, words.OBJECTS, words.PLACES, words.FIELDS, words.ORDINALS):
        assert len(set(items)) == len(items)
    for table in (words.VERBS, words.ADJECTIVES):
        assert len({row[0] for row in table}) == len(table)
    assert len({row[0] for row in words.TRANSLATIONS}) == len(words.TRANSLATIONS)
    assert not set(words.NAMES) & set(words.CATEGORY_OF)
    assert not {*words.NAMES} & {*words.CITIES, *words.DRINKS} and not {*words.CITIES} & {*words.DRINKS}
    # A row holds the values of all tables of its type; a word in two tables of one would have two readings.
    grammar = dict(words.VERBS), words.PLURALS, [row[0] for row in words.ADJECTIVES]
    for tables in (grammar, (words.MONTHS, words.DAYS)):
        assert len(set().union(*tables)) == sum(map(len, tables))
    assert {len(row) for row in words.TRANSLATIONS} == {1 + len(words.LANGUAGES)}
    for i in range(1, 1 + len(words.LANGUAGES)):
        assert len({row[i] for row in words.TRANSLATIONS}) == len(words.TRANSLATIONS), "two words have one translation"
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
