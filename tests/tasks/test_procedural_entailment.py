"""The small world: what its texts tell, and that nothing but inference tells what its words mean."""

import collections

import numpy as np
import pytest

from zeroprompt_jax.data import cards, entailment
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.tasks import procedural_entailment as world

SINGLE = [name for name, task in world.TASKS.items() if task.themes]
V = world.vocabulary()


@pytest.fixture(autouse=True)
def registered():
    world.register()


def words(text):
    return [w for w in text.split() if w.startswith("w")]


def theme(text):
    """The theme of most words."""
    return collections.Counter(int(w[1]) for w in words(text)).most_common(1)[0][0]


@pytest.mark.parametrize("name", world.TASKS)
def test_who_knows_the_themes_is_right_and_classes_are_as_frequent(name):
    for split in ("train", "test"):
        examples, gold = entailment.classified(f"{world.NAME}/{name}", split)
        assert set(collections.Counter(gold).values()) == {100}
        task = world.TASKS[name]
        if task.themes:
            told = [task.themes.index(theme(e["sentence"])) for e in examples]
        else:
            told = [int(theme(e["premise"]) == theme(e["hypothesis"])) for e in examples]
        assert told == gold


@pytest.mark.parametrize("name", world.TASKS)
def test_training_and_test_share_no_word(name):
    train, test = (
        {
            w
            for e in cards.source(f"{world.NAME}/{name}").examples(split)
            for f, t in e.items()
            if f != "target"
            for w in words(t)
        }
        for split in ("train", "test")
    )
    assert len(train) > 20 and len(test) > 20 and not train & test


@pytest.mark.parametrize("name", SINGLE)
def test_words_seen_in_training_do_not_tell_the_test(name):
    """The control: naive Bayes over the training words is right on all it has seen, and by chance in the test."""
    counts = collections.defaultdict(collections.Counter)
    (train, gold), (test, wanted) = (entailment.classified(f"{world.NAME}/{name}", s) for s in ("train", "test"))
    for example, klass in zip(train, gold, strict=True):
        counts[klass].update(example["sentence"].split())
    total = {c: sum(counts[c].values()) + 1 for c in counts}

    def right(examples, classes):
        told = [
            max(counts, key=lambda c: sum(np.log((counts[c][w] + 0.1) / total[c]) for w in e["sentence"].split()))
            for e in examples
        ]
        return np.mean(np.array(told) == classes)

    chance = 1 / len(counts)
    assert right(train, gold) > 0.97 and abs(right(test, wanted) - chance) < 0.12


def test_plain_text_tells_no_themes():
    """Themes of neighbours are independent: the mutual information is what so many draws have by chance."""
    pieces = V.pieces()
    text = [pieces[i] for i in world.chunks(0, 400, 32).ravel()]
    found = [int(w[1]) for w in text if w.startswith("w")]
    table = np.zeros((6, 6))
    np.add.at(table, (found[:-1], found[1:]), 1)
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    assert ((table - expected) ** 2 / expected).sum() < 53  # chi-squared of 25 degrees of freedom: 1 in 1,000
    before = [text[i - 1] == f"f{int(w.split('x')[1]) % 4}" for i, w in enumerate(text) if w.startswith("w") and i]
    assert np.mean(before) == 1  # but there is something to learn


def test_pairs_of_inference():
    pairs = world.inference(0, 600)
    assert set(collections.Counter(p["label"] for p in pairs).values()) == {200}
    for pair in pairs:
        told = [world.NAMES.index(w) for w in pair["hypothesis"].split() if w in world.NAMES]
        there, here = theme(pair["premise"]), told[0] if told else theme(pair["hypothesis"])
        label = "entailment" if there == here else "contradiction" if there == here ^ 1 else "neutral"
        assert pair["label"] == label
    made = entailment.nli_rows(pairs, V, 32, ("CONTRADICTION", "NEUTRAL", "ENTAILMENT"))
    assert collections.Counter(made.labels.tolist()) == {0: 200, 1: 200, 2: 200}
    assert V.unk_id not in made.encoder_input_tokens


def test_all_is_from_the_seed():
    def told(seed):
        world.register(seed)
        return (
            world.chunks(seed, 3, 16).tolist(),
            world.inference(seed, 5),
            [list(cards.source(name).examples("train")) for name in cards.mixture(world.NAME)],
        )

    assert told(0) == told(0)
    assert all(a != b for a, b in zip(told(0), told(1), strict=True))
    with pytest.raises(UserError, match="per_class 0"):
        world.register(per_class=0)
