"""Few-shot tasks by name."""

import numpy as np
import pytest

from zeroprompt_jax.data import cache, cards, few_shot
from zeroprompt_jax.data.pipeline import Data
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.errors import UserError


def examples(name, split="train"):
    return [tuple(sorted((k, str(v)) for k, v in e.items())) for e in cards.source(name).examples(split)]


def test_names():
    assert few_shot.parse("pick_0") is None and few_shot.parse("pick@16") is None
    assert few_shot.parse("a/b@16.0") == ("a/b", (16,), range(0, 1))
    assert few_shot.parse("m@4.1-3").names(["x", "y"]) == ["x@4.1", "y@4.1", "x@4.2", "y@4.2", "x@4.3", "y@4.3"]
    assert few_shot.parse("m@4,16.1-2").names(["x", "y"]) == [
        *["x@4.1", "y@4.1", "x@16.1", "y@16.1"],
        *["x@4.2", "y@4.2", "x@16.2", "y@16.2"],
    ]
    for name in ("m@0.0", "m@4.3-1", "m@4,4.0"):
        with pytest.raises(UserError, match="few-shot name"):
            few_shot.parse(name)


def test_drawn_examples(register):
    register(2, train=12)
    whole = examples("pick_0")
    four, five = examples("pick_0@4.0"), examples("pick_0@5.0")
    assert len(set(four)) == 4 and set(four) < set(five) < set(whole)
    assert four == examples("pick_0@4.0") and set(four) != set(examples("pick_0@4.1"))
    assert set(examples("pick_0@12.3")) == set(whole)
    assert examples("pick_0@4.0", "test") == examples("pick_0", "test")
    with pytest.raises(UserError, match="'pick_0' has 12 training examples, so 13"):
        examples("pick_0@13.0")
    assert cards.card("pick_0@4.0").name == "pick_0@4.0" and cards.is_task("pick_0@4.0")
    assert cards.card("pick_0@4.0").instructions == cards.card("pick_0").instructions
    for name in ("pick_9@4.0", "pick_0@4.0-2", "pick_0@3,4.0"):
        assert not cards.is_task(name)
        with pytest.raises(UserError):
            cards.card(name)


def test_a_mixture_of_few_shot_tasks_is_cached_and_served(tmp_path, register):
    cards.register_mixture("both", register(2, train=12))
    data = Data("both@3.0-1", evaluation={"targets": "both@3.0-1"}, feature_lengths={"inputs": 160, "targets": 24}, batching="every_task")
    assert list(data.training()) == ["pick_0@3.0", "pick_1@3.0", "pick_0@3.1", "pick_1@3.1"]
    store, _ = data.open(str(tmp_path), progress=False)
    assert list(store.tasks) == list(data.training())
    assert [store.size(t, "train") for t in store.tasks] == [3] * 4 and store.size("pick_0@3.1", "test") == 5
    stream = data.stream(store, 4)
    assert stream.batch(0)["task_ids"].tolist() == [0, 1, 2, 3]
    # Drawn again with more shots, only the new tasks are cached.
    more = cache.build(tmp_path / "cache", ["pick_0@3.0", "pick_0@6.0"], load_vocabulary("bytes"), progress=False)
    assert more.size("pick_0@6.0", "train") == 6


def test_per_class_is_the_published_rule():
    """First K of each class, then the next K, in the order of numpy's old generator's shuffle of the file's lines."""
    classes = [i * 7 % 3 for i in range(150)]
    told = [{"text": f"line {i}", "label": c} for i, c in enumerate(classes)]
    for seed in few_shot.SEEDS:
        lines = list(range(150))
        np.random.seed(seed)
        np.random.shuffle(lines)
        by_class = {}
        for i in lines:
            by_class.setdefault(classes[i], []).append(i)
        found = few_shot.per_class(told, classes, 16, seed)
        assert found.train == tuple(i for mine in by_class.values() for i in mine[:16])
        assert found.dev == tuple(i for mine in by_class.values() for i in mine[16:32])
        assert len(found.train) == len(found.dev) == 48 and not set(found.train) & set(found.dev)
        assert found == few_shot.per_class(told, classes, 16, seed)
    digests = {few_shot.per_class(told, classes, 16, seed).digest for seed in few_shot.SEEDS}
    changed = [{**row, "text": row["text"] + "!"} for row in told]
    assert len(digests | {few_shot.per_class(changed, classes, 16, 13).digest}) == 6


def test_a_small_class_leaves_less_to_select_on():
    classes = ["a"] * 40 + ["b"] * 20
    found = few_shot.per_class([{"i": i} for i in range(60)], classes, 16, 13)
    assert [sum(classes[i] == c for i in found.dev) for c in "ab"] == [16, 4]
    with pytest.raises(UserError, match="Class 'b' has 20 training examples, so 21"):
        few_shot.per_class([{}] * 60, classes, 21, 13)
