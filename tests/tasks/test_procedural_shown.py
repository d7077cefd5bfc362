"""The suite with worked examples shown: the plain suite's rows, and in each wording examples that no split has."""

import dataclasses
import pickle

import pytest

from zeroprompt_jax.data import cards
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.tasks import procedural, procedural_shown
from zeroprompt_jax.tasks.procedural_shown import shown, shown_name

PLAIN = list(procedural.SPECS)
SOME = PLAIN[::60]


@pytest.fixture(scope="module", autouse=True)
def registered():
    procedural_shown.register()


def rows(name):
    return {split: list(cards.source(name).examples(split)) for split in cards.source(name).splits}


def wordings(name):
    card = cards.card(name)
    return [*card.instructions, *card.held_out_instructions]


def leaks(name, examples):
    """Which of these (input, answer) a split of the task has as an input."""
    used = {e["input"] for split in rows(name).values() for e in split}
    return [given for given, _ in examples if given in used]


def test_mixtures_are_the_plain_suites():
    for mixture in ("train", "seen_tasks", "unseen_tasks", "unseen_types"):
        plain = cards.mixture(f"procedural_{mixture}")
        assert cards.mixture(f"procedural_shown_{mixture}") == {shown_name(n): rate for n, rate in plain.items()}
    assert len({shown_name(name) for name in PLAIN}) == len(PLAIN)


def test_nothing_but_wordings_and_name_differs():
    for name in PLAIN:
        plain, card = cards.card(name), cards.card(shown_name(name))
        kept = {f: getattr(plain, f) for f in ("name", "instructions", "held_out_instructions")}
        assert dataclasses.replace(card, **kept) == plain
        assert cards.source(shown_name(name)).fingerprint == cards.source(name).fingerprint
    for name in SOME:
        assert rows(shown_name(name)) == rows(name)


def test_every_wording_is_a_plain_one_followed_by_the_example():
    for name in PLAIN:
        ((given, answer),) = shown(name, 1)
        assert wordings(shown_name(name)) == [f"{w} for example: {given} gives {answer}." for w in wordings(name)]


def test_what_is_shown_is_right_and_in_no_split():
    for name in PLAIN:
        spec = procedural.SPECS[name]
        assert all(answer == spec.operation.solve(given, spec.arguments) for given, answer in shown(name, 1))
    for name in SOME:
        assert not leaks(name, shown(name, 2))
    # Negative control: the check sees an example that a split has.
    first = rows(SOME[0])["test"][0]
    assert leaks(SOME[0], [(first["input"], first["target"])])


def test_more_examples_begin_with_the_same_one():
    name = shown_name(SOME[3])
    one = wordings(name)
    procedural_shown.register(examples=2)
    two = wordings(name)
    procedural_shown.register()
    assert one == wordings(name)
    given, answer = shown(SOME[3], 2)[1]
    assert two == [f"{wording.removesuffix('.')}; {given} gives {answer}." for wording in one]


def test_the_packaged_vocabulary_writes_all_of_it_and_within_32_tokens():
    vocabulary = load_vocabulary("packaged:t5_tiny")
    unknown = {
        vocabulary.unk_id,
        *(i for i, piece in enumerate(vocabulary.pieces()) if piece.startswith("<0x")),
    }
    for name in PLAIN:
        for wording in wordings(shown_name(name)):
            ids = vocabulary.encode(wording)
            assert not unknown.intersection(ids) and len(ids) < 32 and vocabulary.decode(ids) == wording


def test_a_source_can_be_sent_to_a_worker():
    name = SOME[0]
    source = pickle.loads(pickle.dumps(cards.source(shown_name(name))))
    assert list(source.examples("test")) == rows(name)["test"]


def test_wrong_numbers_are_refused():
    with pytest.raises(UserError, match="examples=0 to show must be at least 1"):
        procedural_shown.register(examples=0)
    with pytest.raises(
        UserError,
        match="5000000 examples to show are too many. Task 'procedural/counting/letter/b' has only",
    ):
        shown("procedural/counting/letter/b", 5_000_000)
