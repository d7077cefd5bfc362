import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zlib

import numpy as np
import pytest

from zeroprompt_jax.data import cache, cards, shards
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.errors import UserError

BYTES = load_vocabulary("bytes")


def build(directory, tasks, **options):
    return cache.build(directory, tasks, options.pop("vocabulary", BYTES), progress=False, **options)


def register_one(examples, name="one", **card):
    source = cards.Source(lambda split: examples, f"fixed {len(examples)}")
    cards.register(cards.TaskCard(name=name, type="t", instructions=("Do it.",), **card), source)
    return [name]


def contents(store, split="train"):
    return {
        t: [store.gather([store.task_id(t)], split, [i], "inputs")[0].tolist() for i in range(store.size(t, split))]
        for t in store.tasks
    }


@pytest.mark.parametrize("spec", ["bytes", "procedural"])
def test_a_store_gives_back_what_was_registered(tmp_path, register, spec):
    vocabulary = load_vocabulary(spec)
    names = register(7)
    store = build(tmp_path, names, vocabulary=vocabulary)
    assert store.tasks == tuple(names)
    for name in names:
        card = cards.card(name)
        assert store.card(name) == card
        assert [i.tolist() for i in store.instructions(name)] == [vocabulary.encode(t) for t in card.instructions]
        held_out = [i.tolist() for i in store.held_out_instructions(name)]
        assert held_out == [vocabulary.encode(t) for t in card.held_out_instructions]
        for split in ("train", "test"):
            rendered = [cards.render(card, e) for e in cards.source(name).examples(split)]
            assert store.size(name, split) == len(rendered)
            for column, field in (("inputs", "input"), ("targets", "target")):
                expected = [vocabulary.encode(getattr(r, field)) for r in rendered]
                assert store.lengths(name, split, column).tolist() == [len(ids) for ids in expected]
                ids, lengths = store.gather(
                    np.full(len(expected), store.task_id(name)), split, np.arange(len(expected)), column
                )
                assert ids.tolist() == sum(expected, []) and lengths.tolist() == [len(e) for e in expected]
        for i, r in enumerate(cards.render(card, e) for e in cards.source(name).examples("test")):
            extra = store.extra(name, "test", i)
            assert (extra["references"], extra["options"], extra["input"]) == (list(r.references), [], r.input)
        assert (
            store.extra(name, "train", 0)["input"]
            == cards.render(card, next(cards.source(name).examples("train"))).input
        )


def test_gathering_over_several_shards_keeps_order_and_cuts(tmp_path, register, monkeypatch):
    monkeypatch.setattr(cache, "_SHARD_TASKS", 3)
    names = register(10)
    store = build(tmp_path, names)
    assert len(list(tmp_path.glob("*.shard"))) == 4
    rng = np.random.default_rng(0)
    tasks, examples = rng.integers(0, 10, 50), rng.integers(0, 12, 50)
    limits = rng.integers(0, 30, 50)
    flat, lengths = store.gather(tasks, "train", examples, "inputs", limits)
    whole = contents(store)
    expected = [whole[names[t]][e][:limit] for t, e, limit in zip(tasks, examples, limits, strict=True)]
    assert lengths.tolist() == [len(e) for e in expected]
    assert flat.tolist() == sum(expected, [])
    with pytest.raises(IndexError, match="12 train examples, not number 12"):
        store.gather([0], "train", [12], "inputs")


def test_task_ids_follow_the_order_asked(tmp_path, register):
    names = register(5)
    build(tmp_path, names[:3])
    store = build(tmp_path, names[::-1])
    assert store.tasks == tuple(names[::-1])
    assert store.card(names[1]).name == names[1]
    assert cache.open_store(tmp_path).tasks == (*names[:3], names[4], names[3])  # as they came
    assert cache.open_store(tmp_path, [names[4], names[0]]).task_id(names[0]) == 1
    with pytest.raises(UserError, match="Did you mean 'pick_4'"):
        cache.open_store(tmp_path, ["pick_44"])
    with pytest.raises(UserError, match="There is no cache"):
        cache.open_store(tmp_path / "elsewhere")


def test_only_what_changed_is_computed_again(tmp_path, register):
    read = []

    def counted(name, text, fingerprint):
        def examples(split):
            read.append(name)
            yield {"input": "x", "target": text}

        cards.register(
            cards.TaskCard(name=name, type="t", instructions=("Do.",)),
            cards.Source(examples, fingerprint),
            replace=True,
        )

    counted("a", "one", "1")
    counted("b", "two", "1")
    build(tmp_path, ["a", "b"])
    assert read == ["a", "a", "b", "b"]  # once per split
    read.clear()
    build(tmp_path, ["b", "a"])
    assert not read
    counted("b", "three", "2")
    store = build(tmp_path, ["a", "b"])
    assert read == ["b", "b"]
    assert store.extra("b", "test", 0)["references"] == ["three"]
    assert store.extra("a", "test", 0)["references"] == ["one"]
    read.clear()
    build(tmp_path, ["a", "b"], max_examples={"train": 7})
    assert read == ["a", "a", "b", "b"]
    # Shards that nothing refers to are gone.
    assert len(list(tmp_path.glob("*.shard"))) == 1


def test_caps_take_the_first_examples(tmp_path, register):
    [name] = register(1)
    whole = contents(build(tmp_path / "whole", [name]))
    store = build(tmp_path / "capped", [name], max_examples={"train": 4}, splits=("train",))
    assert contents(store)[name] == whole[name][:4]
    assert store.size(name, "test") == 0


def test_a_store_is_read_without_the_tasks_modules(tmp_path, register):
    names = register(2)
    build(tmp_path, names)
    code = (
        f"from zeroprompt_jax.data import cache; s = cache.open_store({str(tmp_path)!r}); print(s.card('pick_1').type)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "type_1"


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove"])
def test_damage_is_named_and_repaired_by_caching_again(tmp_path, register, monkeypatch, harm):
    monkeypatch.setattr(cache, "_SHARD_TASKS", 2)
    names = register(4)
    before = contents(build(tmp_path, names))
    index = json.loads((tmp_path / "index.json").read_text())
    path = tmp_path / index["tasks"]["pick_2"]
    data = bytearray(path.read_bytes())
    data[-200] ^= 1
    if harm == "remove":
        path.unlink()
    else:
        path.write_bytes(data[:-5] if harm == "truncate" else data)
    with pytest.raises(UserError, match=rf"{path.name}.*pick_2, pick_3"):
        cache.open_store(tmp_path)
    cache.open_store(tmp_path, ["pick_0", "pick_1"])  # the others can still be read
    assert contents(build(tmp_path, names)) == before
    assert contents(cache.open_store(tmp_path)) == before


def test_a_damaged_index_is_named(tmp_path, register):
    build(tmp_path, register(1))
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(UserError, match=r"index\.json"):
        cache.open_store(tmp_path)


KILLED = """
import sys
from zeroprompt_jax.data import cache, cards, vocabulary
cache._SHARD_TASKS = 1
def source(i):
    def examples(split):
        if i == 3 and split == "test":
            print("reached", flush=True)
            sys.stdin.read()  # killed here
        yield {"input": f"{i}", "target": split}
    return examples
for i in range(5):
    cards.register(cards.TaskCard(name=f"t{i}", type="t", instructions=("Do.",)), cards.Source(source(i), "1"))
cache.build(sys.argv[1], [f"t{i}" for i in range(5)], vocabulary.load_vocabulary("bytes"), progress=False)
"""


def test_a_killed_builder_loses_only_what_it_had_not_finished(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "reached\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    (tmp_path / "abc.shard.tmp-1").write_bytes(b"half")
    assert cache.open_store(tmp_path).tasks == ("t0", "t1", "t2")
    read = []

    def source(i):
        def examples(split):
            read.append(i)
            yield {"input": f"{i}", "target": split}

        return examples

    for i in range(5):
        cards.register(cards.TaskCard(name=f"t{i}", type="t", instructions=("Do.",)), cards.Source(source(i), "1"))
    store = build(tmp_path, [f"t{i}" for i in range(5)])
    assert sorted(set(read)) == [3, 4]
    assert [BYTES.decode(contents(store)[f"t{i}"][0]) for i in range(5)] == list("01234")
    assert not list(tmp_path.glob("*.tmp-*"))


def test_a_second_builder_waits_for_the_first(tmp_path, register, capfd):
    names = register(2)
    with open(tmp_path / ".lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = threading.Thread(target=build, args=(tmp_path, names))
        done.start()
        time.sleep(0.3)
        assert done.is_alive() and not (tmp_path / "index.json").exists()
    done.join(20)
    assert "waiting" in capfd.readouterr().err
    assert cache.open_store(tmp_path).tasks == tuple(names)


def test_a_build_opens_its_own_examples_whatever_comes_next(tmp_path, register, monkeypatch):
    """A second builder with another recipe waits at the lock, and gets it the moment that the first gives it up."""
    [name] = register(1)
    whole = contents(build(tmp_path / "alone", [name]))[name]
    lock = cache._lock

    @contextlib.contextmanager
    def followed(directory):
        with lock(directory):
            yield
        monkeypatch.setattr(cache, "_lock", lock)
        build(directory, [name], max_examples={"train": 2})

    monkeypatch.setattr(cache, "_lock", followed)
    store = build(tmp_path / "shared", [name])
    assert contents(store)[name] == whole and len(whole) == 12
    assert contents(cache.open_store(tmp_path / "shared"))[name] == whole[:2]  # the second did replace it


def test_examples_of_another_recipe_are_refused(tmp_path, register):
    """Where the index says that they are ours, and the shard that they are not."""
    [name] = register(1)
    build(tmp_path, [name])
    index = json.loads((tmp_path / "index.json").read_text())
    build(tmp_path, [name], max_examples={"train": 2})
    other = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**other, "prints": index["prints"]}))
    with pytest.raises(UserError, match="holds 'pick_0' as another run wants it"):
        build(tmp_path, [name])


def test_a_complete_cache_is_read_without_writing(tmp_path, register):
    """Of another user: nothing can be made in it, not even its lock, which someone may hold."""
    names = register(3)
    whole = contents(build(tmp_path, names))
    (tmp_path / ".lock").unlink()
    (tmp_path / ".lock").mkdir()  # fails to open for writing, for root too
    before = sorted(tmp_path.iterdir())
    assert contents(build(tmp_path, names[:2])) == {name: whole[name] for name in names[:2]}
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(UserError, match="does not hold all of this run's tasks .* cannot be written") as e:
        build(tmp_path, names, max_examples={"train": 2})
    assert str(e.value).count(". ") == 0 and str(tmp_path) in str(e.value)


def test_only_shards_of_the_asked_tasks_are_read(tmp_path, register, monkeypatch):
    monkeypatch.setattr(cache, "_SHARD_TASKS", 1)
    names = register(3)
    build(tmp_path, names[:2])
    index = json.loads((tmp_path / "index.json").read_text())
    read = []
    for module in (cache, shards):
        monkeypatch.setattr(module, "checksum", lambda path: read.append(path.name) or zlib.crc32(path.read_bytes()))
    build(tmp_path, names[:1])
    assert read == [index["tasks"][names[0]]]
    read.clear()
    build(tmp_path, names[1:])
    assert read == [index["tasks"][names[1]]]


def test_a_reader_survives_a_rebuild(tmp_path, register):
    names = register(3)
    store = build(tmp_path, names)
    before = contents(store)
    register_one([{"input": "new", "target": "new"}], "new")
    build(tmp_path, [*names, "new"], max_examples={"train": 2})
    assert contents(store) == before


def test_a_full_disk_is_named_and_nothing_is_lost(tmp_path, register, monkeypatch):
    names = register(2)
    before = contents(build(tmp_path, names[:1]))

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards.os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        build(tmp_path, names)
    assert not list(tmp_path.glob("*.tmp-*"))
    assert contents(cache.open_store(tmp_path)) == before


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"input": "x", "target": ""}, "target '' of the input 'x' is empty"),
        ({"input": "x"}, "names the field 'target'"),
        ({"input": "x", "target": "maybe", "options": ["yes", "no"]}, "'maybe' is not among its options"),
    ],
)
def test_bad_examples_are_named(tmp_path, example, message):
    with pytest.raises(UserError, match=message) as error:
        build(tmp_path, register_one([{"input": "fine", "target": "yes"}, example]))
    assert "'one'" in str(error.value)


@pytest.mark.parametrize("vocabulary", ["bytes", "procedural"])
def test_half_a_character_is_named(tmp_path, vocabulary):
    names = register_one([{"input": "fine", "target": "yes"}, {"input": "half \ud83d", "target": "yes"}])
    with pytest.raises(UserError, match=r"Task 'one': an example holds half a character \(U\+D83D\)"):
        build(tmp_path, names, vocabulary=load_vocabulary(vocabulary))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_tasks_missing_file_is_named(tmp_path, register, workers):
    def examples(split):
        with open(tmp_path / "films.jsonl") as f:
            yield from map(json.loads, f)

    cards.register(cards.TaskCard(name="films", type="t", instructions=("Do.",)), cards.Source(examples, "1"))
    other = register(1)
    with pytest.raises(UserError, match=rf"Task 'films': .* \({tmp_path}/films.jsonl: No such file or directory\)\.$"):
        build(tmp_path / "cache", [*other, "films"], workers=workers)
    (tmp_path / "films.jsonl").write_text('{"input": "a", "target": "b"}\n')
    assert build(tmp_path / "cache", [*other, "films"]).size("films") == 1


def test_other_mistakes_are_named(tmp_path, register):
    names = register(1)
    with pytest.raises(UserError, match="has no examples"):
        build(tmp_path, register_one([]))
    with pytest.raises(UserError, match="Did you mean 'pick_0'"):
        build(tmp_path, ["pick_00"])
    with pytest.raises(UserError, match="Did you mean 'test'"):
        build(tmp_path, names, splits=("tests",))
    with pytest.raises(UserError, match="no tasks"):
        build(tmp_path, [])
    build(tmp_path, names)
    with pytest.raises(UserError, match="made with the vocabulary 'bytes', not 'procedural'"):
        build(tmp_path, names, vocabulary=load_vocabulary("procedural"))


def test_targets_outside_the_vocabulary(tmp_path, shared_data):
    vocabulary = load_vocabulary(f"{shared_data}/t5_vocab.model")
    names = register_one([{"input": "x", "target": t} for t in ("fine", "{brace}", "good")])
    with pytest.raises(UserError, match=r"'one': 1 train targets.*\{brace\}"):
        build(tmp_path / "a", names, vocabulary=vocabulary)
    dropped = build(tmp_path / "b", names, vocabulary=vocabulary, unknown_targets="drop")
    assert (dropped.size("one", "train"), dropped.size("one", "test")) == (2, 3)  # nothing is left out of a test
    assert dropped.notes["one"]["dropped"] == 1
    targets, _ = dropped.gather([0, 0], "train", [0, 1], "targets")
    assert vocabulary.decode(targets) == "fine good"
    kept = build(tmp_path / "c", names, vocabulary=vocabulary, unknown_targets="keep")
    assert kept.size("one", "train") == 3
    with pytest.raises(UserError, match="unknown_targets"):
        build(tmp_path / "d", names, unknown_targets="ignore")
