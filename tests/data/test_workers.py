"""Caching in several processes gives what one process gives, whatever becomes of the workers."""

import json
import os
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from zeroprompt_jax.data import cache, cards, workers
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.errors import UserError

BYTES = load_vocabulary("bytes")
MODULE = """
import functools, os, time
from zeroprompt_jax.data import cards

PARENT = {parent}
LOG = {log!r}

def examples(name, split):
    with open(LOG, "a") as f:
        f.write(f"{{name}} {{os.getpid()}}\\n")
    if name.startswith("slow") and os.getpid() != PARENT:
        time.sleep(1)
    if name.startswith("fatal") and os.getpid() != PARENT:
        os._exit(1)
    for i in range(5):
        yield {{"input": f"{{name}} {{split}} {{i}}", "target": "" if name.startswith("empty") else str(i)}}

def closure(name):
    return lambda split: examples(name, split)

print("task modules may print")

def register(names):
    for name in names:
        made = closure(name) if "local" in name else functools.partial(examples, name)
        cards.register(cards.TaskCard(name=name, type="t", instructions=(f"Do {{name}}.",)), cards.Source(made, "1"))

register([*(f"{{kind}}_{{i}}" for i in range(20) for kind in ("sent", "local")), "fatal", "fatal_local", "empty"])
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A task module of its own, imported here; gives its name and the log of who read which task."""
    log, name = tmp_path / "log", "tasks_for_workers"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(MODULE).format(parent=os.getpid(), log=str(log)))
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__(name)
    yield name, log
    del sys.modules[name]


def build(directory, tasks, workers, **options):
    return cache.build(directory, tasks, BYTES, progress=False, workers=workers, **options)


def shards(directory):
    """Checksums of a store's shards, and its tasks in order."""
    index = json.loads((directory / "index.json").read_text())
    return [s["crc32"] for s in index["shards"].values()], list(index["tasks"])


def readers(log):
    """Task to the processes that read it, since the last call."""
    found = {}
    for line in log.read_text().splitlines():
        name, process = line.split()
        found.setdefault(name, set()).add(int(process))
    log.unlink()
    return found


@pytest.fixture
def forty(module):
    return [f"{kind}_{i}" for kind in ("local", "sent") for i in range(20)]


def test_the_store_does_not_depend_on_the_number_of_workers(module, forty, tmp_path):
    name, log = module
    build(tmp_path / "one", forty, 1)
    assert set.union(*readers(log).values()) == {os.getpid()}
    for count in (2, 3):
        build(tmp_path / str(count), forty, count, modules=[name])
        by = readers(log)
        assert os.getpid() not in set.union(*by.values())  # all of it happened elsewhere
        assert 1 < len(set.union(*by.values())) <= count
        assert shards(tmp_path / str(count)) == shards(tmp_path / "one")
    # The comparison can fail: another order is another shard.
    build(tmp_path / "other", forty[::-1], 2, modules=[name])
    assert shards(tmp_path / "other")[0] != shards(tmp_path / "one")[0]


def test_tasks_that_only_this_process_knows_are_done_here(module, forty, tmp_path):
    name, log = module
    build(tmp_path / "one", forty, 1)
    readers(log)
    build(tmp_path / "two", forty, 2)  # without the module
    by = readers(log)
    for task, processes in by.items():
        assert (processes == {os.getpid()}) == task.startswith("local"), task
    assert shards(tmp_path / "two") == shards(tmp_path / "one")


def test_what_a_worker_knows_under_the_same_name_is_not_taken(module, forty, tmp_path):
    name, log = module
    changed = cards.Source(lambda split: [{"input": "ours", "target": "ours"}], "2")
    cards.register(cards.card("local_0"), changed, replace=True)
    store = build(tmp_path / "store", forty, 2, modules=[name])
    assert store.extra("local_0", "test", 0)["input"] == "ours"
    assert store.extra("local_1", "test", 0)["input"] == "local_1 test 0"


def test_a_worker_that_dies_is_done_without(module, forty, tmp_path):
    name, log = module
    tasks = ["fatal", *forty, "fatal_local"]
    build(tmp_path / "one", tasks, 1)
    readers(log)
    build(tmp_path / "two", tasks, 2, modules=[name])
    by = readers(log)
    assert os.getpid() in by["fatal"] and len(by["fatal"]) == 2
    assert shards(tmp_path / "two") == shards(tmp_path / "one")


def test_mistakes_are_told_as_by_one_process_and_what_came_before_is_kept(module, forty, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_SHARD_TASKS", 1)
    name, _ = module
    tasks = [*forty[:3], "empty", *forty[3:]]
    for count in (1, 2):
        with pytest.raises(UserError, match="Task 'empty': the target '' of the input 'empty train 0' is empty"):
            build(tmp_path / str(count), tasks, count, modules=[name])
        assert cache.open_store(tmp_path / str(count)).tasks == tuple(forty[:3])
    assert len(build(tmp_path / "2", forty, 2, modules=[name]).tasks) == 40  # the lock was given back
    with pytest.raises(UserError, match="-1 worker"):
        build(tmp_path / "3", forty, -1)


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
import tasks_for_workers as module
from zeroprompt_jax.data import cache, vocabulary
names = [f"slow_{i}" for i in range(4)]
module.register(names)
cache.build(sys.argv[2], names, vocabulary.load_vocabulary("bytes"), progress=False, workers=2)
"""


def test_workers_end_with_a_killed_parent(module, tmp_path):
    name, log = module
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path), str(tmp_path / "store")])
    deadline = time.monotonic() + 30
    while not log.exists() or len(log.read_text().splitlines()) < 2:
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.05)
    found = set.union(*readers(log).values())
    assert len(found) == 2 and child.pid not in found
    child.kill()
    child.wait()

    def alive(process):
        try:
            return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    while any(map(alive, found)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    names = [f"slow_{i}" for i in range(4)]
    sys.modules[name].register(names)
    assert build(tmp_path / "store", names, 0).tasks == tuple(names)  # the lock went with the parent


def test_small_caches_start_no_process(register, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a process was started")

    monkeypatch.setattr(workers.subprocess, "Popen", refuse)
    monkeypatch.setattr(cache, "processors", lambda: 8)
    names = register(70, train=1, test=1)
    cache.build(tmp_path / "small", names, BYTES, progress=False)
    monkeypatch.setattr(cache, "_TASKS_PER_WORKER", 32)
    with pytest.raises(AssertionError, match="a process was started"):
        cache.build(tmp_path / "large", names, BYTES, progress=False)
