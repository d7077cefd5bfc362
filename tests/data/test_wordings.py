"""Wordings: one prompt of wording, input and options; what is cut; what no rewriting may change."""

import random

import pytest

from zeroprompt_jax.data import cards, wordings
from zeroprompt_jax.data.cards import TaskCard
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.errors import UserError

V = load_vocabulary("bytes")
OPTIONS = ("yes", "no")
CARD = TaskCard("t", "t", ("Is it?",), input_template="text: {input} ({options})", options=OPTIONS)
EXAMPLE = {"input": "a long story of a fox", "target": "yes"}


def fill(wording, card=CARD, limit=100, **fields):
    return wordings.fill(card, wording, {**EXAMPLE, **fields}, OPTIONS, V, limit)


def test_an_instruction_stands_before_the_rendered_input():
    assert fill("Is it?") == "Is it? text: a long story of a fox (yes; no)"
    assert fill("") == cards.render(CARD, EXAMPLE).input


def test_tokens_are_those_that_training_reads():
    v, card = load_vocabulary("packaged:t5_tiny"), cards.TaskCard("t", "t", ("",), input_template=": {input}")
    text = wordings.fill(card, "find the colour.", {"input": "dog red hat", "target": ""}, (), v, 50)
    assert v.encode(text) == v.join(v.encode("find the colour."), v.encode(": dog red hat"))


def test_a_wording_with_placeholders_is_the_whole_prompt():
    assert fill("Read {input} and say {options}.") == "Read a long story of a fox and say yes; no."
    assert fill("Is { it } {}? {input}") == "Is { it } {}? a long story of a fox"  # other braces are text
    assert wordings.placeholders("{input} {} {1} {options}") == ["input", "options"]
    # What an example says is never read as a template.
    assert fill("Say {input}", input="{options}") == "Say {options}"
    with pytest.raises(UserError, match="names the field 'story', but its examples have input, target"):
        fill("Read {story} {input}")


@pytest.mark.parametrize("wording", ["Is it?", "Read {input} and say {options}."])
def test_only_the_input_is_cut(wording):
    whole = fill(wording)
    for limit in range(len(whole) - len(EXAMPLE["input"]), len(whole) + 1):
        text = fill(wording, limit=limit)
        kept = limit - (len(whole) - len(EXAMPLE["input"]))
        assert text == whole.replace(EXAMPLE["input"], EXAMPLE["input"][:kept]) and len(V.encode(text)) <= limit
    with pytest.raises(UserError, match="its options alone are 1 tokens above"):
        fill(wording, limit=len(whole) - len(EXAMPLE["input"]) - 1)


def test_no_half_letter_is_left():
    v, card, story = load_vocabulary("packaged:t5_tiny"), TaskCard("t", "t", ("",)), "a \u6f22\u5b57"  # of byte tokens
    for limit in range(1, len(v.encode(story)) + 1):
        text = wordings.fill(card, "", {"input": story, "target": ""}, (), v, limit)
        assert story.startswith(text) and len(v.encode(text)) <= limit


def test_of_several_inputs_the_longest_is_cut_first():
    card = TaskCard("t", "t", ("",), input_template="{one} | {two}", options=OPTIONS)
    example = {"one": "x" * 10, "two": "y" * 4, "target": "no"}
    assert wordings.fill(card, "", example, OPTIONS, V, 13) == "x" * 6 + " | yyyy"


def test_wordings_that_cannot_serve_are_refused():
    wordings.check(CARD, "Is it?", V, 100)
    wordings.check(CARD, "{input}: is it?", V, 100)
    with pytest.raises(UserError, match="has placeholders but lacks {input}"):
        wordings.check(CARD, "Say {options}.", V, 100)
    with pytest.raises(UserError, match="has 42 tokens, which leaves 0 of 40"):
        wordings.check(CARD, "z" * 32, V, 40)
    wordings.check(CARD, "Is it?", V, 30, OPTIONS)
    card = TaskCard("t", "t", ("",), input_template="{input} ({options})")
    with pytest.raises(UserError, match="and its options alone have 24 tokens, above 23"):
        wordings.check(card, "Is it?", V, 23, ("yes, it is", "no"))


def test_hidden_parts_come_back_and_only_whole():
    wording = "In {input}, X1 is {options}? Say yes, yesterday no no."
    text, marks = wordings.hide(wording, OPTIONS)
    assert text == "In X2, X1 is X3? Say X4, yesterday X5 X6."
    assert wordings.show(text, marks, OPTIONS) == wording
    assert wordings.show("X6 X5 X4 X3 X2, indeed", marks, OPTIONS) == "no no yes {options} {input}, indeed"
    for spoilt in (
        "X2 X3 X4 X5",
        text + " X2",
        text + " {input}",
        text + " }",
        text + " yes",
        text.replace("X4", "x4"),
    ):
        assert wordings.show(spoilt, marks, OPTIONS) is None
    assert wordings.is_mark("X4,") and not wordings.is_mark("yes")


def test_no_random_rewriting_changes_what_is_hidden():
    draw, wording = random.Random(0), "Of {input} say {options}, a yes or a no"
    text, marks = wordings.hide(wording, OPTIONS)
    shown = 0
    for _ in range(500):
        words = text.split()
        for _ in range(draw.randint(1, 3)):
            match draw.randint(0, 3):
                case 0:
                    words.pop(draw.randrange(len(words)))
                case 1:
                    words.insert(draw.randrange(len(words)), draw.choice([*marks, "{input}", "no", "new", "{"]))
                case 2:
                    draw.shuffle(words)
                case 3:
                    words[draw.randrange(len(words))] = "other"
        child = wordings.show(" ".join(words), marks, OPTIONS)
        if child is not None:
            shown += 1
            assert sorted(wordings.placeholders(child)) == ["input", "options"]
            assert sorted(wordings.hide(child, OPTIONS)[1].values()) == sorted(marks.values())
    assert 0 < shown < 500
