"""Examples that bring their own instruction, beside tasks that have wordings."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from zeroprompt_jax import answering
from zeroprompt_jax.data import cache, cards
from zeroprompt_jax.data.batches import EvalSet, Features, TrainStream
from zeroprompt_jax.data.shards import Shard
from zeroprompt_jax.data.store import OWN, read_index
from zeroprompt_jax.data.vocabulary import EOS_ID, UNK_ID, load_vocabulary
from zeroprompt_jax.errors import UserError

V = load_vocabulary("bytes")
APART = Features(inputs=40, targets=8, instructions=40, instruct_inputs=False)


def example(i, split):
    return {"input": f"{split} {i}", "target": f"t{i}", "instruction": f"do {split} {i}" + "!" * (i % 3)}


def own_task(name="own", wordings=("",)):
    source = cards.Source(lambda split: (example(i, split) for i in range(9 if split == "train" else 4)), "own 1")
    cards.register(cards.TaskCard(name, "own", wordings), source)
    return name


@pytest.fixture
def store(tmp_path, register):
    return cache.build(tmp_path / "store", [*register(2), own_task()], V, progress=False)


def texts(tokens_BU):
    return [V.decode([t for t in row if t not in (0, EOS_ID)]) for row in tokens_BU.tolist()]


def test_rows_read_their_own_instruction_or_their_tasks_wording(store):
    rates = {"own": 2.0, "pick_0": 1.0, "pick_1": 1.0}
    train = TrainStream(store, rates, APART, 8, seed=0)
    again = TrainStream(store, rates, APART, 8, seed=0)
    seen = set()
    for n in (0, 3, 11):
        batch = train.batch(n)
        np.testing.assert_array_equal(batch["instruction_tokens"], again.batch(n)["instruction_tokens"])
        for text, (task, i, wording, _) in zip(texts(batch["instruction_tokens"]), train.drawn(n), strict=True):
            wanted = example(i, "train")["instruction"] if task == "own" else cards.card(task).instructions[wording]
            assert text == wanted
            seen.add(task)
    assert seen == set(rates)


@pytest.mark.parametrize("batching", ["padded", "buckets", "packed"])
def test_they_also_begin_the_input(store, batching):
    features = Features(inputs=80, targets=60)
    train = TrainStream(store, {"own": 1.0, "pick_0": 1.0}, features, 4, seed=0, window=4, batching=batching)
    batch = train.batch(1)
    found = " ".join(texts(batch["encoder_input_tokens"]))
    for task, i, wording, _ in train.drawn(1):
        if task == "own":
            made = example(i, "train")
            assert f"{made['instruction']} {made['input']}" in found
        else:
            assert cards.card(task).instructions[wording] in found
    # Every row's length was foreseen: a wrong one would overlap or leave a hole.
    used = (batch["encoder_input_tokens"] > 0).sum(1)
    assert (batch["encoder_input_tokens"][np.arange(4), used - 1] == EOS_ID).all()


def test_evaluation_reads_them_and_the_control_reads_another_examples(store):
    tasks = ["pick_0", "own", "pick_1"]
    read, every = {}, {}
    for wordings in ("held_out", "train", "shuffled", "none"):
        data = EvalSet(store, tasks, "test", APART, wordings=wordings)
        for task in tasks:
            every[wordings, task] = []
        for row, text in zip(data.examples, texts(next(data.batches(len(data)))["instruction_tokens"]), strict=True):
            every[wordings, row.task].append(text)
        read[wordings] = every[wordings, "own"]
    assert read["held_out"] == read["train"] == [example(i, "test")["instruction"] for i in range(4)]
    assert read["shuffled"] == [example((i + 1) % 4, "test")["instruction"] for i in range(4)]
    assert read["none"] == [""] * 4
    # Wordings come from tasks that have some, and never from the task itself, whatever the draw.
    for seed in range(5):
        data = EvalSet(store, tasks, "test", APART, wordings="shuffled", seed=seed)
        assert data.donors == {"pick_0": "pick_1", "own": "own", "pick_1": "pick_0"}
    for task, donor in (("pick_0", "pick_1"), ("pick_1", "pick_0")):
        told = cards.card(donor).held_out_instructions or cards.card(donor).instructions
        assert every["shuffled", task] and set(every["shuffled", task]) <= set(told)
        assert set(every["train", task]) <= set(cards.card(task).instructions)
    # A task without wordings needs no other task for its control.
    [alone] = EvalSet(store, ["own"], "test", APART, wordings="shuffled").batches(4)
    assert texts(alone["instruction_tokens"]) == read["shuffled"]
    for few in (["pick_0"], ["pick_0", "own"]):
        with pytest.raises(UserError, match="need at least two tasks that have wordings"):
            EvalSet(store, few, "test", APART, wordings="shuffled")


def test_limits_and_mistakes(store, tmp_path):
    short = Features(inputs=40, targets=8, instructions=12, instruct_inputs=False)
    with pytest.raises(UserError, match="instructions=12 is too short for task 'own': its longest instruction has 12 tok"):
        TrainStream(store, {"own": 1.0}, short, 4, seed=0)
    cut = TrainStream(store, {"own": 1.0}, Features(40, 8, 8, 6, instruct_inputs=False), 4, seed=0)
    assert set(texts(cut.batch(0)["instruction_tokens"])) == {"do tra"}
    with pytest.raises(UserError, match="every example of task 'own' brings its own"):
        TrainStream(store, {"own": 1.0}, APART, 4, seed=0, batching="grouped", groups=2)
    with pytest.raises(UserError, match="'worded'.* its one wording must be empty"):
        cache.build(tmp_path / "other", [own_task("worded", ("Say it.",))], V, progress=False)


@pytest.mark.parametrize("row", [{"task": "own"}, {}])
def test_a_file_cannot_name_their_tasks(store, tmp_path, row):
    (tmp_path / "a.jsonl").write_text(json.dumps({"input": "x", **row}))
    made = SimpleNamespace(data=SimpleNamespace(register=lambda modules: None, vocabulary="bytes"))
    with pytest.raises(UserError, match="'own' bring their own instructions, which only evaluation reads"):
        answering.infer_run(made, str(tmp_path / "out.jsonl"), str(tmp_path / "a.jsonl"), task="own")


def columns(folder):
    [(file, described)] = read_index(folder)["shards"].items()
    return set(Shard(folder / file, described)._arrays)


def test_stores_without_such_examples_are_what_they_were(tmp_path, register):
    names = register(2)
    cache.build(tmp_path / "plain", names, V, progress=False)
    assert not any(OWN in name for name in columns(tmp_path / "plain"))
    store = cache.build(tmp_path / "plain", [*names, own_task()], V, progress=False)  # a second shard, with the column
    mixed = cache.build(tmp_path / "mixed", [*names, own_task()], V, progress=False)  # one shard for all
    assert OWN in columns(tmp_path / "mixed")
    for split in ("train", "test"):
        for task in store.tasks:
            assert store.brings_own(task) == mixed.brings_own(task) == (task == "own")
            rows = np.arange(store.size(task, split))
            ids = np.full(len(rows), store.task_id(task))
            for column in ("inputs", "targets", OWN):
                for a, b in zip(store.gather(ids, split, rows, column), mixed.gather(ids, split, rows, column)):
                    np.testing.assert_array_equal(a, b)
    both = np.arange(3)
    np.testing.assert_array_equal(
        store.gather(both, "train", both, OWN)[0], mixed.gather(both, "train", both, OWN)[0]
    )


def test_dropped_examples_take_their_instructions_along(tmp_path):
    def made(split):
        for i in range(6):
            yield {**example(i, split), "instruction_ids": [10 + i], "target_ids": [9 if i % 2 else UNK_ID]}

    cards.register(cards.TaskCard("own", "own", ("",)), cards.Source(made, "own drop"))
    store = cache.build(tmp_path, ["own"], V, unknown_targets="drop", splits=("train",), progress=False)
    assert store.gather(np.zeros(3, int), "train", np.arange(3), OWN)[0].tolist() == [11, 13, 15]
    assert store.size("own") == 3
