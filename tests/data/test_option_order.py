"""The order in which answer options are listed: drawn by seed and example, with the answer following."""

import collections
import itertools

import numpy as np
import pytest

from zeroprompt_jax.data import cache, cards
from zeroprompt_jax.data.batches import EvalSet, Features, TrainStream
from zeroprompt_jax.data.pipeline import Data
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.search.prompt_search import Examples

V = load_vocabulary("bytes")
OPTIONS = ("red", "green", "blue")
CARD = cards.TaskCard("hue", "t", ("Which?",), input_template="{input} ({options})", options=OPTIONS)
FEATURES = Features(60, 10)


def examples(split):
    for i in range(40):
        yield {"input": f"{split} {i}", "target": OPTIONS[i % 3]}


@pytest.fixture
def hue():
    cards.register(CARD, cards.Source(examples, "1"))
    return "hue"


def listed(text):
    return tuple(text[text.index("(") + 1 : -1].split("; "))


def test_every_order_comes_and_the_answer_follows():
    orders, places = collections.Counter(), np.zeros((3, 3))
    for i in range(1200):
        made = cards.render(CARD, {"input": f"number {i}", "target": OPTIONS[i % 3]}, option_seed=0)
        assert listed(made.input) == made.options and sorted(made.options) == sorted(OPTIONS)
        assert made.target == OPTIONS[i % 3] == made.options[made.options.index(made.target)]
        orders[made.options] += 1
        places[i % 3, made.options.index(made.target)] += 1
    assert set(orders) == set(itertools.permutations(OPTIONS))
    assert sum((n - 200) ** 2 / 200 for n in orders.values()) < 20.5  # chi-square, 5 degrees of freedom, p > 0.001
    assert ((places - 400 / 3) ** 2 / (400 / 3)).sum() < 22.5  # 6 degrees: where the answer stands does not tell it


def test_it_is_a_function_of_seed_task_and_input():
    draw = lambda card=CARD, seed=0, target="red", **more: (
        cards.render(card, {"input": "a", "target": target, **more}, seed).options
    )
    assert draw() == draw() == draw(target="blue")  # the answer has no part in it
    assert draw(options=("blue", "red", "green")) == draw()  # nor has the order of the source
    other = [
        {draw(seed=seed) for seed in range(30)},
        {
            draw(cards.TaskCard(f"hue{n}", "t", ("?",), input_template="{input} ({options})", options=OPTIONS))
            for n in range(30)
        },
        {cards.render(CARD, {"input": str(n), "target": "red"}, 0).options for n in range(30)},
    ]
    assert all(len(orders) > 3 for orders in other)
    assert cards.render(CARD, {"input": "a", "target": "red"}).options == OPTIONS  # without a seed, the card's


def test_options_that_an_example_brings_are_shuffled_too():
    made = [cards.render(CARD, {"input": str(n), "target": "b", "options": ["a", "b", "c", "d"]}, 3) for n in range(20)]
    assert all(listed(m.input) == m.options and set(m.options) == set("abcd") for m in made)
    assert len({m.options for m in made}) > 5


def test_training_and_evaluation_read_one_order(tmp_path, hue):
    store = cache.build(tmp_path / "a", [hue], V, progress=False, option_seed=5)
    data = EvalSet(store, [hue], "test", FEATURES)
    wanted = [cards.render(CARD, example, 5) for example in examples("test")]
    for row, example, r in zip(next(data.batches(40))["encoder_input_tokens"], data.examples, wanted):
        assert V.decode(row.tolist()) == f"Which? {r.input}" and example.options == r.options
    train = TrainStream(store, {hue: 1.0}, FEATURES, 8, seed=0)
    wanted = [cards.render(CARD, example, 5) for example in examples("train")]
    batch = train.batch(2)
    for row, target, (_, i, *_) in zip(batch["encoder_input_tokens"], batch["decoder_target_tokens"], train.drawn(2)):
        assert V.decode(row.tolist()) == f"Which? {wanted[i].input}" and V.decode(target.tolist()) == OPTIONS[i % 3]


def test_the_cache_knows_the_seed(tmp_path, hue):
    prints = {}
    for seed in (None, 1, 2, 1, None):
        data = Data(hue, vocabulary="bytes", option_seed=seed, cache_dir=str(tmp_path))
        store = data.open("", progress=False)[0]
        assert prints.setdefault(seed, store.fingerprint(hue)) == store.fingerprint(hue)
        rendered = [cards.render(CARD, example, seed).input for example in examples("train")]
        flat, lengths = store.gather(np.zeros(40, int), "train", np.arange(40), "inputs")
        assert [V.decode(ids.tolist()) for ids in np.split(flat, np.cumsum(lengths)[:-1])] == rendered
    assert len(set(prints.values())) == 3


def test_a_search_lists_them_so_too():
    made = [*examples("test")]
    plain, shuffled = Examples.of(CARD, made), Examples.of(CARD, made, 4)
    assert len(set(shuffled.options)) > 3 and set(plain.options) == {OPTIONS}
    for found in (plain, shuffled):
        assert [own[gold] for own, gold in zip(found.options, found.gold_E)] == [e["target"] for e in made]
