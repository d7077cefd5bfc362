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
    assert min(collections.Counter(c.type for c in by_pool["held_out_task"]).values()) >= 5
    assert len({c.name for c in registered}) == len(registered)


def test_mixtures_hold_their_pools():
    assert set(cards.mixture("procedural_train")) == {s.name for s in TRAIN}
    assert set(cards.mixture("procedural_unseen_tasks")) == {s.name for s in HELD_OUT}
    assert set(cards.mixture("procedural_unseen_types")) == {s.name for s in UNSEEN}
    seen = [SPECS[name] for name in cards.mixture("procedural_seen_tasks")]
    assert {s.pool for s in seen} == {"train"} and {s.type for s in seen} == {s.type for s in TRAIN}


def test_registering_is_fast_and_harmless_twice():
    begin = time.process_time()
    procedural.register()
    assert time.process_time() - begin < 1.0


def combinations(specs):
    return {(s.type, s.operation.name, frozenset(s.arguments) if symmetric(s) else s.arguments) for s in specs}


def symmetric(spec):
    """Whether swapping the arguments gives the same task."""
    symmetric_names = {"values_of_both", "total", "either", "which_of", "earlier", "together"}
    return spec.operation.name in symmetric_names


def test_no_held_out_combination_is_trained():
    assert not combinations(HELD_OUT + UNSEEN) & combinations(TRAIN)
    assert len(combinations(SPECS.values())) == len(SPECS), "no task occurs twice"
    # Negative control: the check sees a task that is moved to training, also with its symmetric arguments swapped.
    leak = next(s for s in HELD_OUT if s.operation.name == "total")
    swapped = dataclasses.replace(leak, arguments=leak.arguments[::-1], pool="train")
    assert combinations(HELD_OUT) & combinations([*TRAIN, swapped])


def test_card_agrees_with_spec():
    for name, spec in SPECS.items():
        card = cards.card(name)
        assert (card.type, card.family, card.pool) == (spec.type, spec.family, spec.pool)
        for wording in card.instructions + card.held_out_instructions:
            assert set(spec.arguments) <= set(wording.translate(str.maketrans(",.?:", "    ")).split()), (name, wording)


def computes_the_same(spec, texts, answers, other):
    return all(other.operation.solve(text, other.arguments) == answer for text, answer in zip(texts, answers))


def test_no_held_out_task_computes_a_trained_function(behaviour):
    """Whatever their names: no trained task gives the held-out task's answers on the held-out task's inputs."""
    trained = collections.defaultdict(list)
    for spec in TRAIN:
        trained[spec.type].append(spec)
    for spec in HELD_OUT:
        texts, answers = behaviour[spec.name]
        same = [t.name for t in trained[spec.type] if computes_the_same(spec, texts, answers, t)]
        assert not same, f"{spec.name} is {same}"
        assert computes_the_same(spec, texts, answers, dataclasses.replace(spec, pool="train")), "negative control"


def test_trained_tasks_are_distinct_functions(behaviour):
    by_type = collections.defaultdict(list)
    for spec in TRAIN:
        by_type[spec.type].append(spec)
    for specs in by_type.values():
        for spec in specs:
            texts, answers = behaviour[spec.name]
            assert [s.name for s in specs if computes_the_same(spec, texts, answers, s)] == [spec.name]


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
            assert longest + len(source) + 1 <= 28 and len(target) + 1 <= 6, (name, row)
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
GOLDEN = [
    ("lookup", "value_of", "cat", "dog red cat blue egg pink saw oak", "blue"),
    ("lookup", "key_of", "pink", "dog red cat blue egg pink saw oak", "egg"),
    ("lookup", "values_of_both", "cat saw", "dog red cat blue egg pink saw oak", "blue oak"),
    ("grammar", "past", "bob", "anna walk, bob sing, tom child, eve hot", "sang"),
    ("grammar", "progressive", "anna", "anna run, bob sing, tom child, eve hot", "running"),
    ("grammar", "third_person", "anna", "anna fly, bob sing, tom child, eve hot", "flies"),
    ("grammar", "plural", "tom", "anna walk, bob sing, tom child, eve hot", "children"),
    ("grammar", "opposite", "eve", "anna walk, bob sing, tom child, eve hot", "cold"),
    ("grammar", "comparative", "eve", "anna walk, bob sing, tom child, eve hot", "hotter"),
    ("grammar", "superlative", "eve", "anna walk, bob sing, tom child, eve big", "biggest"),
    ("dates", "next_month", "trip", "trip december; party june; test friday; game monday", "january"),
    ("dates", "previous_month", "party", "trip december; party june; test friday; game monday", "may"),
    ("dates", "season", "trip", "trip december; party june; test friday; game monday", "winter"),
    ("dates", "month_number", "party", "trip december; party june; test friday; game monday", "6"),
    ("dates", "next_day", "test", "trip december; party june; test sunday; game monday", "monday"),
    ("dates", "previous_day", "game", "trip december; party june; test sunday; game monday", "sunday"),
    ("unit_conversion", "weeks_to_days", "bob", "anna = 3, bob = 5, tom = 2, eve = 1", "35"),
    ("unit_conversion", "years_to_months", "anna", "anna = 3, bob = 5, tom = 2, eve = 1", "36"),
    ("unit_conversion", "stones_to_pounds", "tom", "anna = 3, bob = 5, tom = 2, eve = 1", "28"),
    ("number_format", "digits", "c", "a three c twelve k two z nine", "12"),
    ("number_format", "ordinal", "k", "a three c twelve k two z nine", "second"),
    ("number_format", "roman", "z", "a three c twelve k two z nine", "IX"),
    ("number_format", "next", "c", "a three c twelve k two z nine", "thirteen"),
    ("number_format", "previous", "a", "a three c twelve k two z nine", "two"),
    ("letter_format", "capital", "bob", "anna: c, bob: k, tom: y, eve: a", "K"),
    ("letter_format", "radio", "anna", "anna: c, bob: k, tom: y, eve: a", "charlie"),
    ("letter_format", "number", "bob", "anna: c, bob: k, tom: y, eve: a", "11"),
    ("letter_format", "next", "tom", "anna: c, bob: k, tom: y, eve: a", "z"),
    ("letter_format", "previous", "anna", "anna: c, bob: k, tom: y, eve: a", "b"),
    ("translation", "spanish", "b", "a sun; b moon; c sea; d fish", "luna"),
    ("translation", "french", "a", "a sun; b moon; c sea; d fish", "soleil"),
    ("translation", "german", "d", "a sun; b moon; c sea; d fish", "fisch"),
    ("translation", "italian", "c", "a sun; b moon; c sea; d fish", "mare"),
    ("arithmetic", "plus", "egg 7", "egg 5, rice 9, plum 2, soup 1", "12"),
    ("arithmetic", "minus", "rice 4", "egg 5, rice 9, plum 2, soup 1", "5"),
    ("arithmetic", "total", "egg soup", "egg 5, rice 9, plum 2, soup 1", "6"),
    ("word_arithmetic", "plus", "red six", "red five, blue two, pink nine, grey one", "eleven"),
    ("word_arithmetic", "minus", "pink nine", "red five, blue two, pink nine, grey one", "zero"),
    ("topic_classification", "category_of", "bob", "anna cat, bob piano, tom golf, eve egg", "instrument"),
    ("topic_classification", "owner_of", "sport", "anna cat, bob piano, tom golf, eve egg", "tom"),
    ("topic_classification", "has", "eve food", "anna cat, bob piano, tom golf, eve egg", "yes"),
    ("topic_classification", "has", "eve animal", "anna cat, bob piano, tom golf, eve egg", "no"),
    ("neighbours", "after", "cat", "dog cat sofa oak flute", "sofa"),
    ("neighbours", "before", "cat", "dog cat sofa oak flute", "dog"),
    ("neighbours", "second_after", "cat", "dog cat sofa oak flute", "oak"),
    ("neighbours", "second_before", "flute", "dog cat sofa oak flute", "sofa"),
    ("category_selection", "first", "animal", "red dog sofa cat flute", "dog"),
    ("category_selection", "last", "animal", "red dog sofa cat flute", "cat"),
    ("category_selection", "after_first", "animal", "red dog sofa cat flute", "sofa"),
    ("category_selection", "before_first", "animal", "red dog sofa cat flute", "red"),
    ("category_selection", "after_last", "animal", "red dog sofa cat flute", "flute"),
    ("category_selection", "before_last", "animal", "red dog oak cat flute", "oak"),
    ("sorting", "smallest_above", "7", "9 3 7 15 12", "9"),
    ("sorting", "largest_below", "7", "9 3 7 5 12", "5"),
    ("sorting", "count_above", "8", "9 3 7 15 12", "3"),
    ("counting", "letter", "k", "k a k b c k", "3"),
    ("counting", "either", "a k", "k a k b c k", "4"),
    ("membership", "which_of", "cake saw", "cake hat bus axe rice", "cake"),
    ("membership", "which_of", "cake bus", "cake hat bus axe rice", "both"),
    ("membership", "which_of", "egg shoe", "cake hat bus axe rice", "neither"),
    ("membership", "earlier", "rice hat", "cake hat bus axe rice", "hat"),
    ("string_edit", "replace_letter", "b x", "a b c d", "a x c d"),
    ("string_edit", "delete_letter", "b", "a b c d", "a c d"),
    ("string_edit", "double_letter", "b", "a b c d", "a b b c d"),
    ("string_edit", "insert_after", "d x", "a b c d", "a b c d x"),
    ("list_edit", "remove_word", "red", "golf red peru judo", "golf peru judo"),
    ("list_edit", "replace_word", "red italy", "golf red peru judo", "golf italy peru judo"),
    ("list_edit", "words_after", "red", "golf red peru judo", "peru judo"),
    ("list_edit", "words_after", "judo", "golf red peru judo", "none"),
    ("entailment", "located", "ball box", "ball in box, key in car, cup in box", "yes"),
    ("entailment", "located", "key box", "ball in box, key in car, cup in box", "no"),
    ("entailment", "located", "ring box", "ball in box, key in car, cup in box", "maybe"),
    ("entailment", "not_located", "ball box", "ball in box, key in car, cup in box", "no"),
    ("entailment", "not_located", "key box", "ball in box, key in car, cup in box", "yes"),
    ("entailment", "together", "ball cup", "ball in box, key in car, cup in box", "yes"),
    ("entailment", "together", "ball ring", "ball in box, key in car, cup in box", "maybe"),
    ("reading", "home_of_person", "bob", "anna from rome likes tea, bob from oslo likes milk", "oslo"),
    ("reading", "drink_of_person", "anna", "anna from rome likes tea, bob from oslo likes milk", "tea"),
    ("reading", "person_of_city", "oslo", "anna from rome likes tea, bob from oslo likes milk", "bob"),
    ("reading", "person_of_drink", "tea", "anna from rome likes tea, bob from oslo likes milk", "anna"),
    ("reading", "drink_of_city", "oslo", "anna from rome likes tea, bob from oslo likes milk", "milk"),
    ("reading", "city_of_drink", "tea", "anna from rome likes tea, bob from oslo likes milk", "rome"),
    ("records", "field_value", "pet", "city = rome; pet = dog; drink = tea; band = lima", "dog"),
    ("records", "field_name", "tea", "city = rome; pet = dog; drink = tea; band = lima", "drink"),
    ("queue", "next_person", "bob", "anna bob tom eve max", "tom"),
    ("queue", "previous_person", "bob", "anna bob tom eve max", "anna"),
    ("timetable", "sport_in_month", "may", "may golf, june judo, july tennis, march rugby", "golf"),
    ("timetable", "month_of_sport", "rugby", "may golf, june judo, july tennis, march rugby", "march"),
    ("letter_row", "letter_after", "k", "a k c f z", "c"),
    ("letter_row", "letter_before", "z", "a k c f z", "f"),
]
OPERATIONS = {(kind.name, op.name): op for kind in procedural.KINDS for op in kind.operations}


@pytest.mark.parametrize("kind, name, arguments, text, answer", GOLDEN)
def test_golden_answers(kind, name, arguments, text, answer):
    assert OPERATIONS[kind, name].solve(text, tuple(arguments.split())) == answer


def test_every_operation_has_a_golden_answer():
    unit = {op for op in OPERATIONS if op[0] == "unit_conversion"}  # one table in ten columns: three are checked
    assert set(OPERATIONS) - unit <= {row[:2] for row in GOLDEN}


def test_word_lists_are_clean():
    """A word in two columns of one type would give a task two answers."""
    from zeroprompt_jax.tasks import procedural_words as words

    assert len(words.CATEGORY_OF) == sum(map(len, words.CATEGORIES.values())), "a word has two categories"
    for items in (words.NAMES, words.CITIES, words.DRINKS, words.EVENTS, words.OBJECTS, words.PLACES, words.FIELDS):
        assert len(set(items)) == len(items)
    for table in (words.VERBS, words.ADJECTIVES):
        assert len({row[0] for row in table}) == len(table)
    assert len({row[0] for row in words.TRANSLATIONS}) == len(words.TRANSLATIONS)
    assert not set(words.NAMES) & set(words.CATEGORY_OF)
    assert not {*words.NAMES} & {*words.CITIES, *words.DRINKS} and not {*words.CITIES} & {*words.DRINKS}
    assert len(words.RADIO) == 26 and [w[0] for w in words.RADIO] == list(words.LETTERS)


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
