"""`Data`: which tasks a run trains on, and users' existing seqio mixtures, through the public commands."""

import collections
import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from zeroprompt_jax.cli.main import main
from zeroprompt_jax.data import cache, cards, workers
from zeroprompt_jax.data.batches import EvalSet
from zeroprompt_jax.data.pipeline import Data
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.errors import UserError

SEQIO_TASKS = """
import functools
import seqio

def texts(split, shuffle_files=False, seed=None, name="", rows=0):
    import tensorflow as tf

    made = {"inputs": [f"{name} {split} {i}" for i in range(rows)], "targets": [f"{i}" for i in range(rows)]}
    return tf.data.Dataset.from_tensor_slices(made)

feature = seqio.Feature(seqio.ByteVocabulary(), add_eos=True)
for name, rows in (("user_a", 4), ("user_b", 6), ("user_c", 8), ("user_never", 3)):
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(functools.partial(texts, name=name, rows=rows), splits=("train", "validation")),
        preprocessors=[seqio.preprocessors.tokenize, lambda rows: rows, seqio.preprocessors.append_eos],
        output_features={"inputs": feature, "targets": feature},
        metric_fns=[],
    )
seqio.MixtureRegistry.add("user_inner", [("user_a", 1), ("user_b", 3)])
seqio.MixtureRegistry.add("user_outer", [("user_inner", 2), ("user_c", lambda task: 5), ("user_never", 0)])
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """A module that registers with seqio alone; imported here under registries of its own."""
    import seqio

    for registry in (seqio.TaskRegistry, seqio.MixtureRegistry):
        monkeypatch.setattr(registry, "_REGISTRY", {})
    (tmp_path / "user_seqio_tasks.py").write_text(textwrap.dedent(SEQIO_TASKS))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "user_seqio_tasks"
    sys.modules.pop("user_seqio_tasks", None)


def test_a_seqio_mixture_trains_by_its_name_with_its_rates(user_module, tmp_path):
    data = Data("user_outer", [user_module], {"inputs": 32, "targets": 8}, evaluation={"mine": "user_inner"})
    data.register()
    assert data.training() == pytest.approx({"user_a": 0.5, "user_b": 1.5, "user_c": 5.0})
    assert data.groups() == {"mine": ("user_a", "user_b")}
    store, vocabulary = data.open(str(tmp_path))
    assert data.shares(store) == pytest.approx({"user_a": 1 / 14, "user_b": 3 / 14, "user_c": 10 / 14})
    stream, rows = data.stream(store, 56), collections.Counter()
    for n in range(256):  # a window
        batch = stream.batch(n)
        rows.update(store.tasks[i] for i in batch["task_ids"])
        name, split, number = vocabulary.decode(batch["encoder_input_tokens"][n % 56]).split()
        target = vocabulary.decode(batch["decoder_target_tokens"][n % 56])
        assert (name, split, number) == (store.tasks[batch["task_ids"][n % 56]], "train", target)
    assert rows == {"user_a": 1024, "user_b": 3072, "user_c": 10240}
    assert store.size("user_c", "validation") == 8  # so that `zeroprompt eval --split=validation` finds them
    assert Data("user_c", [user_module]).training() == {"user_c": 1.0}
    with pytest.raises(UserError, match="Unknown task or mixture 'user_outr'. Did you mean 'user_outer'"):
        Data("user_outr").training()


@pytest.mark.slow
def test_workers_read_seqio_tasks_through_their_module(user_module, tmp_path, monkeypatch):
    data = Data("user_outer", [user_module], vocabulary="bytes")
    data.register()
    tasks, vocabulary = list(data.training()), load_vocabulary("bytes")
    alone = cache.build(tmp_path / "alone", tasks, vocabulary, progress=False)
    monkeypatch.setattr(workers, "tokenise", None)  # in this process
    build = lambda **more: cache.build(tmp_path / "two", tasks, vocabulary, progress=False, workers=2, **more)
    with pytest.raises(TypeError):
        build()  # a lambda cannot be sent, and workers that import nothing know none of these tasks
    two = build(modules=[user_module])
    for task in tasks:
        numbers = np.arange(alone.size(task))
        for column in ("inputs", "targets"):
            ours, theirs = (s.gather(0 * numbers + s.task_id(task), "train", numbers, column) for s in (alone, two))
            np.testing.assert_array_equal(ours[0], theirs[0])


def test_the_cache_command_takes_a_seqio_mixture(user_module, tmp_path, capsys):
    command = ["cache", "--mixture=user_inner", f"--module={user_module}", f"--cache_dir={tmp_path / 'store'}"]
    assert main(command) == 0
    assert capsys.readouterr().out.startswith("2 tasks, 10 train and 0 test examples in ")
    store = cache.open_store(tmp_path / "store")
    assert {t: store.size(t) for t in store.tasks} == {"user_a": 4, "user_b": 6}
    assert main([*command[:1], "--mixture=user_innr", *command[2:]]) == 2
    assert "Did you mean 'user_inner'" in capsys.readouterr().err


def test_the_tasks_command_tells_a_seqio_mixtures_shares(user_module, capsys):
    command = ["tasks", f"--module={user_module}", "--mixture=user_outer"]
    for policy, share in (([], "71.4286%"), (["--policy=proportional"], "44.4444%")):  # 8 of 4 + 6 + 8 examples
        assert main([*command, *policy]) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert ["seqio", "3", "100.00%"] in [line[:3] for line in lines]
        assert ["user_c", share] in [line[:2] for line in lines]


def test_names_of_cards_come_first_and_need_no_seqio(register, tmp_path):
    names = register(3)
    cards.register_mixture("ours", {names[0]: 1, names[1]: 3})
    assert Data("ours").training() == {names[0]: 1.0, names[1]: 3.0}
    code = "from zeroprompt_jax.data.pipeline import Data; import sys\ntry: Data('nothing').training()\n"
    code += "except ValueError as e: print(e, 'seqio' in sys.modules)"
    said = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert said == "Unknown task or mixture 'nothing'. No task or mixture is registered. False\n"


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        ({"max_train_examples": 0}, "Data.max_train_examples is 0; it must be at least 1."),
        ({"max_test_examples": -5}, "Data.max_test_examples is -5; it must be at least 1."),
        ({"bucket_lengths": [16, 0]}, "Data.bucket_lengths is [16, 0]; it must be at least 1."),
        ({"temperature": 0.0}, "Data.temperature is 0.0; it must be above 0."),
    ],
)
def test_numbers_out_of_range(wrong, sentence):
    with pytest.raises(UserError) as e:
        Data("any", **wrong)
    assert str(e.value) == sentence
    Data("any", max_train_examples=1, max_test_examples=None)


def test_a_subset_trains_on_its_tasks_alone_and_is_tested_on_all(register, tmp_path):
    names = register(30)
    cards.register_mixture("ours", names)
    whole = Data("ours", evaluation={"all": "ours"}, vocabulary="bytes", train_tasks=6, subset_seed=1)
    store, _ = whole.open(str(tmp_path))
    chosen = list(whole.training())
    assert list(whole.shares(store)) == list(whole.stream(store, 8).tasks) == chosen == list(store.tasks[:6])
    assert collections.Counter(store.card(t).type for t in chosen) == {f"type_{i}": 2 for i in range(3)}
    assert set(store.tasks) == set(names)
    larger = Data("ours", train_tasks=12, subset_seed=1).training()
    assert set(chosen) < set(larger)
    lines = whole.describe_shares(store, 6 * 12)
    assert lines[0].count("33.3%") == 3 and "Every task has the share 16.7%, 12 of 72 draws." in lines
    with pytest.raises(UserError, match="train_tasks 31 must be from 1 to 30"):
        Data("ours", train_tasks=31).training()


def test_a_mixture_is_evaluated_task_by_task_and_whole(register, tmp_path):
    """Where SeqIO mixes evaluation data, the smallest task ends the epoch."""
    names = [*register(1, test=1000), *register(1, test=10, prefix="small")]
    cards.register_mixture("ours", names)
    data = Data("ours", evaluation={"all": "ours"}, vocabulary="bytes")
    store, _ = data.open(str(tmp_path), progress=False)
    assert data.groups() == {"all": tuple(names)}
    evaluation = EvalSet(store, data.groups()["all"], "test", data.features())
    seen = [store.tasks[t] for batch in evaluation.batches(64) for t in batch["task_ids"][batch["row_mask"]]]
    assert collections.Counter(seen) == {names[0]: 1000, names[1]: 10}
    assert len({(e.task, e.example) for e in evaluation.examples}) == 1010
    with pytest.raises(UserError, match="ours"):
        EvalSet(store, ["ours"], "test", data.features())


def labelled(name, targets, options=()):
    """A task with these targets in order; gives the list of what was read."""
    read = []

    def examples(split):
        for i, target in enumerate(targets):
            read.append(i)
            yield {"input": f"{split} {i}", "target": target}

    card = cards.TaskCard(name=name, type="t", instructions=("Do.",), options=options)
    cards.register(card, cards.Source(examples, json.dumps(targets)))
    return read


def answers(store, name, split="train"):
    return [store.extra(name, split, i)["references"][0] for i in range(store.size(name, split))]


def test_caps_per_label_and_per_task(tmp_path):
    read = labelled("closed", ["no"] * 6 + ["yes", "no", "yes", "yes"] + ["no"] * 50, ("yes", "no"))
    labelled("free", ["a", "b", "a", "c", "a", "d"])
    cards.register_mixture("ours", ["closed", "free"])

    def cached(**options):
        return Data("ours", vocabulary="bytes", **options).open(str(tmp_path), progress=False)[0]

    store = cached(max_examples_per_label=2)
    assert answers(store, "closed") == ["no", "no", "yes", "yes"]
    assert answers(store, "free") == ["a", "b", "a", "c", "d"]
    assert read[:9] == list(range(9)) and read[9] == 0  # no further than both labels were full; then the test split
    assert store.size("closed", "test") == 60 and store.size("free", "test") == 6  # a test is never thinned out
    store = cached(max_examples_per_label=2, max_train_examples=3)
    assert answers(store, "closed") == ["no", "no", "yes"] and answers(store, "free") == ["a", "b", "a"]
    read.clear()
    assert answers(cached(max_train_examples=3), "closed") == ["no"] * 3  # caps are part of the fingerprint
    assert read
    with pytest.raises(UserError, match="Data.max_examples_per_label is 0; it must be at least 1"):
        cached(max_examples_per_label=0)
