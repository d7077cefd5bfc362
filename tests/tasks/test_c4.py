"""C4 under two objectives: registered without being read, none of its text lost, one sentence where it is not there."""

import sys
import time
import types
from pathlib import Path

import pytest

from zeroprompt_jax.data import cards
from zeroprompt_jax.data.vocabulary import EOS_ID, load_vocabulary
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.tasks import c4, span_corruption

VOCABULARY = "packaged:t5_tiny"
DOCUMENTS = Path(__file__).with_name("lighthouse.txt").read_text(encoding="utf-8").split("\n\n")


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    monkeypatch.setattr(cards, "_TASKS", {})
    monkeypatch.setattr(cards, "_MIXTURES", {})


@pytest.fixture
def tfds(monkeypatch):
    """tfds(load) stands for TensorFlow Datasets; without a load, whatever is asked of it is an error."""

    def put(load):
        made = types.ModuleType("tensorflow_datasets")
        made.load, made.as_numpy = load, lambda found: found
        monkeypatch.setitem(sys.modules, "tensorflow_datasets", made)

    put(lambda *args, **options: pytest.fail("C4 was read"))
    return put


def run():
    encode = load_vocabulary(VOCABULARY).encode
    return [i for text in DOCUMENTS for i in (*encode(text), EOS_ID)]


def documents(*args, **options):
    return [{"text": text.encode()} for text in DOCUMENTS]


def test_registered_without_being_read(tfds):
    began = time.process_time()
    for objective in c4.OBJECTIVES:
        c4.register(VOCABULARY, objective=objective, documents=100_000, per_task=1_000)
    assert time.process_time() - began < 2
    names = list(cards.mixture("c4_span_corruption"))
    assert len(names) == len(cards.mixture("c4_prefix_lm")) == 100
    assert cards.source(names[0]).splits == ("train", "test") and cards.source(names[1]).splits == ("train",)
    assert len({cards.source(name).fingerprint for name in cards.task_names()}) == 200
    assert c4.divided(5, 2, 3) == [
        {"train": "train[0:2]", "test": "validation[:3]"},
        {"train": "train[2:4]"},
        {"train": "train[4:5]"},
    ]


def test_a_prefix_and_what_follows_make_up_the_text(tfds):
    tfds(documents)
    c4.register(VOCABULARY, objective="prefix_lm", inputs=16, documents=20, per_task=10)
    made = list(cards.source("c4_prefix_lm/0").examples("train"))
    assert [i for e in made for side in ("input_ids", "target_ids") for i in e[side]] == run()[: 16 * len(made)]
    lengths = [len(e["input_ids"]) for e in made]
    assert len(made) == len(run()) // 16 and min(lengths) >= 1 and max(lengths) <= 15 and len(set(lengths)) > 3
    # The same documents under other numbers are cut elsewhere.
    assert lengths != [len(e["input_ids"]) for e in cards.source("c4_prefix_lm/1").examples("train")]
    again = list(cards.source("c4_prefix_lm/0").examples("train"))
    assert [e["target"] for e in again] == [e["target"] for e in made]


def test_span_corruption_is_that_of_any_text(tfds):
    tfds(documents)
    c4.register(f"{VOCABULARY}:100", inputs=24, documents=10, per_task=10)
    L, targets = span_corruption.lengths(24)
    vocabulary = load_vocabulary(f"{VOCABULARY}:100")
    made = list(cards.source("c4_span_corruption/0").examples("train"))
    assert len(made) == len(run()) // L
    for i, e in enumerate(made):
        given, wanted = e["input_ids"].tolist(), e["target_ids"].tolist()
        assert len(given) + 1 <= 24 and len(wanted) + 1 == targets
        sentinel = vocabulary.size - vocabulary.extra_ids
        spans, rejoined = {}, []
        for token in wanted:
            if token >= sentinel:
                spans[token] = last = []
            else:
                last.append(token)
        for token in given:
            rejoined += spans[token] if token >= sentinel else [token]
        assert rejoined == run()[i * L : (i + 1) * L]


def test_mistakes_are_one_sentence(tfds):
    def load(*args, **options):
        raise OSError("could not resolve host\nand much more")

    tfds(load)
    c4.register(VOCABULARY)
    with pytest.raises(
        UserError, match=r"'c4/en:3.1.0', .*\(could not resolve host\).*take local text with span_corruption"
    ):
        list(cards.source("c4_span_corruption/0").examples("train"))
    for options, message in (
        ({"objective": "prefix"}, "Unknown objective 'prefix'. Did you mean 'prefix_lm'"),
        ({"documents": 0}, "documents=0, per_task=2000 and test_documents=500 must be at least 1"),
        ({"inputs": 1}, "inputs of 1 tokens cannot be cut"),
        ({"inputs": 3}, "too short to hide anything in"),
    ):
        with pytest.raises(UserError, match=message):
            c4.register(VOCABULARY, **options)
