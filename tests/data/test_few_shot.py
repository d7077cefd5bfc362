"""Few-shot tasks by name."""

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
