"""The search tasks: unseen, worded unlike training, and answered by choices that the input alone does not decide."""

import collections
import re

import numpy as np
import pytest

from zeroprompt_jax.data import cards, wordings
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.evaluation.metrics import normalise
from zeroprompt_jax.tasks import procedural, procedural_search
from zeroprompt_jax.tasks.procedural_adaptation import spec_of

NAMES = tuple(cards.mixture(procedural_search.MIXTURE))


def words(text):
    return set(re.findall(r"[a-z]+", text.lower()))


def test_sixteen_tasks_that_the_backbone_never_saw():
    assert len(NAMES) == 16
    assert all(spec_of(name.removeprefix("search/")).pool != "train" for name in NAMES)
    procedural_search.register()  # twice is harmless


def test_wordings_are_unlike_trainings():
    trained = [
        w for s in procedural.SPECS.values() if s.pool == "train" for w in procedural.card_of(s, False).instructions
    ]
    known, said = set().union(*map(words, trained)), set(map(normalise, trained))
    for name in NAMES:
        card = cards.card(name)
        assert len(card.instructions) == 3 and not said & set(map(normalise, card.instructions))
        for wording in card.instructions:
            assert words(wording) - known, wording
            wordings.check(card, wording, load_vocabulary("packaged:t5_tiny"), 63)


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_right_and_the_input_does_not_tell_which(name):
    source, spec = cards.source(name), spec_of(name.removeprefix("search/"))
    examples = {split: [*source.examples(split)] for split in ("train", "test")}
    assert {e["input"] for e in examples["train"]}.isdisjoint(e["input"] for e in examples["test"])
    assert len(examples["test"]) == 100 and len(examples["train"]) >= 64
    for example in examples["test"]:
        rendered = cards.render(cards.card(name), example)
        assert rendered.target == spec.operation.solve(example["input"], spec.arguments)
        assert len(set(rendered.options)) == len(rendered.options) >= 2
    if not spec.operation.options(spec.arguments):
        # By its place an answer is right no more often than by chance, and others have its form.
        places = collections.Counter(e["options"].index(e["target"]) for e in examples["test"])
        chance = np.mean([1 / len(e["options"]) for e in examples["test"]])
        assert max(places.values()) < 100 * (chance + 0.2)
        alike = [sum(o.count(" ") == e["target"].count(" ") for o in e["options"]) > 1 for e in examples["test"]]
        assert np.mean(alike) > 0.9
    assert [*source.examples("test")] == examples["test"]


def test_the_thesaurus_can_be_read():
    groups = procedural_search.synonyms()
    assert len(groups) > 30 and all(len(set(group)) == len(group) >= 2 for group in groups)
