import sys

import pytest

from zeroprompt_jax.data import cards
from zeroprompt_jax.data.cards import Source, TaskCard
from zeroprompt_jax.errors import UserError

SOURCE = Source(lambda split: [], "1")


def card(**fields):
    return TaskCard(**{"name": "a", "type": "t", "instructions": ("Do it.",), **fields})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "has space", "letters"),
        ("name", "", "letters"),
        ("type", "", "empty"),
        ("pool", "held_out", "train, held_out_task, held_out_type"),
        ("instructions", (), "at least one wording"),
        ("instructions", ("a", "a"), "repeats"),
        ("instructions", ("a", 3), "not text"),
        ("metrics", (), "at least one"),
        ("held_out_instructions", ("Do it.",), "repeats the training wording"),
        ("held_out_instructions", (" ",), "empty string"),
        ("options", ("yes",), "single option 'yes'"),
        ("options", ("yes", ""), "empty string"),
        ("options", ("yes", "yes"), "repeats"),
        ("input_template", "fixed text", "names no field"),
        ("input_template", "{}", "unnamed field"),
        ("target_template", "{target", "not a format string"),
    ],
)
def test_bad_cards_fail_at_registration_with_card_and_field_named(field, value, message):
    with pytest.raises(UserError) as error:
        cards.register(card(**{field: value}), SOURCE)
    assert field in str(error.value) and message in str(error.value)
    assert cards.task_names() == ()


@pytest.mark.parametrize("field", ["instructions", "options", "metrics", "held_out_instructions"])
def test_a_bare_string_is_not_a_tuple(field):
    with pytest.raises(UserError, match=f"'a': {field} must be a tuple"):
        card(**{field: "abc"})


def test_good_cards_register_once():
    cards.register(card(), SOURCE)
    cards.register(card(), Source(lambda split: [], "1"))
    assert cards.task_names() == ("a",)
    assert cards.card("a").family == "a"
    for other in ((card(type="u"), SOURCE), (card(), Source(lambda split: [], "2"))):
        with pytest.raises(UserError, match="already registered"):
            cards.register(*other)
    cards.register(card(type="u"), Source(lambda split: [], "2"), replace=True)
    assert (cards.card("a").type, cards.source("a").fingerprint) == ("u", "2")
    with pytest.raises(UserError, match="split 'dev'"):
        cards.register(card(name="b"), Source(lambda split: [], "1", ("dev",)))


def test_mixtures():
    for name in "abc":
        cards.register(card(name=name), SOURCE)
    cards.register_mixture("even", ["a", "b"])
    cards.register_mixture("uneven", {"a": 1, "c": 3})
    assert cards.mixture("even") == {"a": 1.0, "b": 1.0}
    assert cards.mixture("uneven") == {"a": 1.0, "c": 3.0}
    assert cards.mixture("b") == {"b": 1.0}
    cards.mixture("even")["a"] = 9.0
    assert cards.mixture("even")["a"] == 1.0
    for wrong, message in (({"a": 0.0}, "rate of 'a' is 0"), (["z"], "Unknown task 'z'"), ([], "no tasks")):
        with pytest.raises(UserError, match=message):
            cards.register_mixture("wrong", wrong)
    with pytest.raises(UserError, match="Did you mean 'uneven'"):
        cards.mixture("unevn")


def test_rendering():
    c = card(input_template="{text} ({options})", target_template="{label}!", options=("no!", "yes!"))
    rendered = cards.render(c, {"text": "is {it} so", "label": "yes"})
    assert rendered == cards.Rendered("is {it} so (no!; yes!)", "yes!", ("yes!",), ("no!", "yes!"))
    own = cards.render(c, {"text": "x", "label": "b", "options": ["a!", "b!"], "references": ["b!", "B!"]})
    assert (own.options, own.references) == (("a!", "b!"), ("b!", "B!"))
    for example, message in (
        ({"text": "x", "label": "maybe"}, "'maybe!' is not among its options"),
        ({"text": "x"}, "field 'label', but its examples have text"),
        ({"text": "x", "label": "a", "options": ["a!"]}, "lists 1 answer options"),
    ):
        with pytest.raises(UserError, match=message):
            cards.render(c, example)


@pytest.mark.parametrize("name", ["glue", "glue/sst2", "glue_train"])
def test_a_name_of_a_packaged_module_that_is_not_imported_is_told_its_module(name, monkeypatch):
    monkeypatch.delitem(sys.modules, "zeroprompt_jax.tasks.glue", raising=False)
    monkeypatch.setattr(cards, "_MIXTURES", {})
    monkeypatch.setattr(cards, "_TASKS", {})
    hint = r"zeroprompt_jax.tasks.glue registers such: name it in Data.modules, or by --module=zeroprompt_jax.tasks.glue."
    if name == "glue_train":
        hint = "No task or mixture is registered."
    for wrong in (name, f"{name}@16.0"):
        with pytest.raises(UserError, match=f"Unknown task or mixture '{name}'. {hint}"):
            cards.mixture(wrong)
