"""The loop: stopping and resuming is never stopping; divergence and failures are told."""

import itertools
import dataclasses
import json
import os
import signal
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_model

from zeroprompt_jax.data import cache, cards
from zeroprompt_jax.data.batches import Features, TrainStream
from zeroprompt_jax.data.pipeline import Data
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.errors import Stopped, UserError
from zeroprompt_jax.methods.full import Full
from zeroprompt_jax.training import loop, state as states
from zeroprompt_jax.training.checkpoint import Checkpointer
from zeroprompt_jax.training.goodput import Goodput
from zeroprompt_jax.training.loop import Diverged, Metrics, Prefetch, Train, fit
from zeroprompt_jax.training.optimizer import Optimizer, Schedule
from zeroprompt_jax.training.step import make_train_step

CONFIG = small_model.config(vocab_size=384, dropout_rate=0.1)
STEPS = 12
TX = Optimizer("adamw", Schedule(3e-2, "linear", 2)).build(STEPS)
TIMES = ("seconds", "examples_per_second")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    names = []
    for task in range(3):
        texts = [{"input": f"{task} {i * 7919 % 97}", "target": str(i % 10)} for i in range(20 + task)]
        source = cards.Source(lambda split, texts=texts: texts, f"loop {task}")
        names.append(cards.register(cards.TaskCard(f"loop_{task}", "loop", (f"Do {task}:", "Go:")), source).name)
    return cache.build(tmp_path_factory.mktemp("loop") / "cache", names, load_vocabulary("bytes"), progress=False)


@pytest.fixture(scope="module")
def train_step():
    rate = Schedule(3e-2, "linear", 2).build(STEPS)
    return small_model.jit(make_train_step(CONFIG, Full(), TX, rate, seed=7), donate_argnums=0)


@pytest.fixture(scope="module")
def attempt(store, train_step):
    """attempt(folder, make=…) runs what one process would: everything is opened anew. Returns the last state. before: called
    with the number of every update and of every evaluation, before it."""

    def run(folder, make=None, steps=STEPS, examples_per_row=1.0, before=lambda what, n: None, goodput=None, **settings):
        stream = TrainStream(store, dict.fromkeys(store.tasks, 1 / 3), Features(24, 4), 8, seed=3, window=2)
        train = Train(str(folder), steps, 8, log_every=2, **{"save_every": 5, "eval_every": 4, **settings})
        checkpointer = Checkpointer(str(folder), train.keep)
        state, record = states.create(jax.device_put(small_model.flat(CONFIG)), TX), {}
        if checkpointer.latest() is not None:
            placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
            state, record = checkpointer.restore(placed)
        metrics = Metrics(str(folder), int(state.step))

        def mean(state):
            before("evaluation", int(state.step))
            return {"probe/mean": float(jnp.mean(state.params["backbone/token_embedder/embedding"]))}

        def update(state, *rest):
            before("update", int(state.step) + 1)
            return train_step(state, *rest)

        try:
            return fit(
                train,
                state,
                {},
                update,
                (lambda n: stream.batch(n)) if make is None else (lambda n: make(n, stream.batch(n))),
                checkpointer,
                metrics,
                record=record,
                evaluate=mean,
                tasks_of=lambda n: [task for task, *_ in stream.drawn(n)],
                examples_per_row=examples_per_row,
                progress=False,
                goodput=goodput,
            )[0]
        finally:
            metrics.close()
            checkpointer.close()

    return run


@pytest.fixture(scope="module")
def uninterrupted(attempt, tmp_path_factory):
    """(folder, last state) of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, attempt(folder)


def lines(folder):
    """What metrics.jsonl holds, without the times."""
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k.split("/")[0] not in TIMES} for line in read]


def stop_at(number):
    def make(n, batch):
        if n == number:
            raise KeyboardInterrupt
        return batch

    return make


def test_stopped_and_resumed_is_never_stopped(attempt, tmp_path, uninterrupted):
    folder, whole = uninterrupted
    for name, stops in (("once", (7,)), ("often", (2, 5, 11))):
        for number in stops:
            with pytest.raises(KeyboardInterrupt):
                attempt(tmp_path / name, stop_at(number))
        assert lines(tmp_path / name)[-1]["step"] <= stops[-1]
        parts = attempt(tmp_path / name)
        assert small_model.same_bits(parts, whole) and int(whole.step) == STEPS
        assert lines(tmp_path / name) == lines(folder)
    steps = [line["step"] for line in lines(folder) if "loss" in line]
    assert steps == [2, 4, 6, 8, 10, 12]
    assert [line["step"] for line in lines(folder) if "probe/mean" in line] == [0, 4, 8]
    # Another stream is another run: the comparison above can fail.
    other = attempt(tmp_path / "other", lambda n, batch: {k: v[::-1] for k, v in batch.items()} if n == 3 else batch)
    assert not small_model.same_bits(other.params, whole.params)


@pytest.mark.parametrize("asked", [("update", 8), ("evaluation", 4), ("update", STEPS)])
def test_sigterm_saves_the_step_at_hand_and_stops(attempt, tmp_path, uninterrupted, asked):
    def before(what, n):
        if (what, n) == asked:
            os.kill(os.getpid(), signal.SIGTERM)

    listening = signal.getsignal(signal.SIGTERM)
    step = asked[1] + (asked[0] == "evaluation")
    with pytest.raises(Stopped, match=f"^SIGTERM stopped this run; step {step} of {STEPS} is saved, and the same"):
        attempt(tmp_path / "stopped", before=before)
    assert signal.getsignal(signal.SIGTERM) is listening
    checkpointer = Checkpointer(str(tmp_path / "stopped"))
    assert checkpointer.latest() == step
    checkpointer.close()
    # Step 8 is one to evaluate after: there was no time for it, so the resumed run does it.
    folder, whole = uninterrupted
    assert small_model.same_bits(attempt(tmp_path / "stopped"), whole)
    assert lines(tmp_path / "stopped") == lines(folder)


def test_seconds_by_kind_are_where_the_time_went_and_sum_to_it(attempt, tmp_path):
    updates = [0]

    def make(n, batch):
        while updates[0] < n:  # nothing is made in advance
            time.sleep(0.01)
        time.sleep(0.15)
        return batch

    def before(what, n):
        if what == "evaluation":
            time.sleep(0.2)
        else:
            updates[0] = n

    began = time.monotonic()
    with Goodput() as goodput:
        attempt(tmp_path, make, steps=6, eval_every=4, before=before, goodput=goodput)
        spent, wall = goodput.seconds(), time.monotonic() - began
    assert sum(spent.values()) == pytest.approx(wall, rel=0.02)
    assert spent["data"] > 0.25 and spent["eval"] > 0.35 and spent["save"] > 0
    assert all(seconds >= 0 for seconds in spent.values())
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert {f"seconds/{kind}" for kind in spent} <= last.keys() and last["seconds/data"] <= spent["data"]


@pytest.mark.parametrize("resumed", [False, True])
def test_profile_of_some_steps(attempt, tmp_path, resumed):
    if resumed:
        with pytest.raises(KeyboardInterrupt):
            attempt(tmp_path, stop_at(3), steps=4, save_every=2)
    attempt(tmp_path, steps=4, save_every=2, profile_steps=(2, 3))
    (trace,) = (tmp_path / "profile").glob("plugins/profile/*/*.xplane.pb")
    events = [e for plane in jax.profiler.ProfileData.from_file(str(trace)).planes for l in plane.lines for e in l.events]
    found = [dict(event.stats)["step_num"] for event in events if event.name == "train"]
    assert found == ([3] if resumed else [2, 3])


def test_examples_per_second_counts_the_examples_of_packed_rows(attempt, tmp_path, monkeypatch):
    rates = {}
    for each in (1.0, 3.5):
        # A clock that a run reads equally often moves equally far.
        monkeypatch.setattr(loop, "time", types.SimpleNamespace(monotonic=itertools.count(1.0).__next__))
        attempt(tmp_path / str(each), steps=4, eval_every=None, examples_per_row=each)
        written = [json.loads(line) for line in (tmp_path / str(each) / "metrics.jsonl").read_text().splitlines()]
        rates[each] = [line["examples_per_second"] for line in written]
    assert len(rates[1.0]) == 2 and rates[3.5] == pytest.approx([3.5 * rate for rate in rates[1.0]])


def test_a_finished_run_is_left_as_it_is(attempt, tmp_path):
    whole = attempt(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert small_model.same_bits(attempt(tmp_path, stop_at(0)), whole)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("number, saved", [(7, 5), (9, 5), (2, None), (4, None)])
def test_divergence_names_step_and_tasks_and_saves_nothing(attempt, tmp_path, number, saved):
    poison = lambda n, batch: {**batch, "decoder_loss_weights": batch["decoder_loss_weights"] * np.float32("nan")}
    with pytest.raises(Diverged) as caught:
        attempt(tmp_path, lambda n, batch: poison(n, batch) if n >= number else batch)
    sentence = str(caught.value)
    assert f"Training diverged at step {number + 1}: loss nan" in sentence
    assert "loop_0, loop_1, loop_2" in sentence
    checkpointer = Checkpointer(str(tmp_path))
    assert checkpointer.latest() == saved
    assert f"The last checkpoint is of step {saved}." in sentence if saved else "No checkpoint was saved." in sentence
    checkpointer.close()
    assert all(np.isfinite(v) for line in lines(tmp_path) for v in line.values())
    assert all(line["step"] <= number for line in lines(tmp_path))


def test_an_exception_of_the_batch_maker_surfaces(attempt, tmp_path):
    def make(n, batch):
        if n == 3:
            raise RuntimeError("no more data")
        return batch

    with pytest.raises(RuntimeError, match="no more data"):
        attempt(tmp_path, make)


def test_prefetch_makes_each_batch_once_and_stops():
    made = []

    def make(n):
        made.append(n)
        return n

    feed = Prefetch(make, 5, 100, ahead=2)
    assert [feed.next() for _ in range(4)] == [5, 6, 7, 8]
    feed.close()
    assert made == list(range(5, 5 + len(made))) and len(made) <= 4 + 2 + 1
    assert not feed._thread.is_alive()


@pytest.mark.parametrize("left", ['{"step": 3, "lo', '{"step": 3, "loss": 1.0}', "{}\n", '{"step": 9, "loss": 1.0}\n'])
def test_lines_that_a_resumed_run_will_write_again_are_dropped(tmp_path, left):
    whole = '{"step": 0, "a": 1}\n{"step": 2, "loss": 2.0}\n'
    (tmp_path / "metrics.jsonl").write_text(whole + left)
    Metrics(str(tmp_path), 2).close()
    assert (tmp_path / "metrics.jsonl").read_text() == whole


def test_opening_keeps_the_past_of_its_step_only(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "a": 1}\n{"step": 2, "a": 1}\n{"step": 2, "a": 1, "final": true}\n')
    Metrics(str(tmp_path), 2).close()
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        {"step": 0, "a": 1},
        {"step": 2, "a": 1},
    ]
    Metrics(str(tmp_path), 0).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_metrics_go_to_tensorboard_too(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    metrics = Metrics(str(tmp_path), 0)
    metrics.write(7, {"loss": 0.5, "parts": [1, 2]})
    metrics.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, found = file.read_bytes(), []
    while data:  # length, its checksum, the event, its checksum
        size = int.from_bytes(data[:8], "little")
        event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    assert found == [(7, "loss", 0.5)]
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 7, "loss": 0.5, "parts": [1, 2]}


@pytest.mark.parametrize(
    "every, steps", [(None, [10]), (4, [4, 8, 10]), (5, [5, 10]), ((3, 4), [3, 4, 10]), ((), [10])]
)
def test_when_checkpoints_are_written(every, steps):
    train = Train("x", 10, save_every=every)
    assert [step for step in range(1, 11) if train.saves(step)] == steps


def test_a_run_lies_at_a_local_path(monkeypatch):
    """Checkpoints, metrics, caches and reports alike: each would have its own idea of `~` and of a bucket."""
    monkeypatch.setenv("HOME", "/home/of/somebody")
    train = Train("~/runs/x", 10)
    assert train.model_dir == "/home/of/somebody/runs/x" == dataclasses.replace(train, steps=5).model_dir
    assert Data("any", cache_dir="~/cache").cache_dir == "/home/of/somebody/cache" and Data("any").cache_dir is None
    assert Train("runs/~x", 10).model_dir == "runs/~x"
    with pytest.raises(UserError, match="Train.model_dir is 'gs://b/x'; it must be a local path. .* /mnt/zeroprompt/x\\."):
        Train("gs://b/x", 10)
    with pytest.raises(UserError, match="Data.cache_dir is 's3://b/cache/'; it must be a local path. .*/cache\\."):
        Data("any", cache_dir="s3://b/cache/")
    started = Train("x", 10, initial_checkpoint_path="gs://b/checkpoint_1")  # which are read where they are
    assert started.initial_checkpoint_path == "gs://b/checkpoint_1"


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"steps": 0}, "Train.steps is 0; it must be at least 1."),
        ({"batch_size": 0}, "Train.batch_size is 0; it must be at least 1."),
        ({"accumulate": -1}, "Train.accumulate is -1; it must be at least 1."),
        ({"eval_every": 0}, "Train.eval_every is 0; it must be at least 1."),
        ({"save_every": 0}, "Train.save_every is 0; it must be at least 1."),
        ({"save_every": (4, 0)}, r"Train.save_every is \(4, 0\); it must be at least 1."),
        ({"profile_steps": (3, 2)}, r"Train.profile_steps is \(3, 2\); it must be the first and the last step of the profile"),
        ({"profile_steps": (3, 11)}, "from 1 to 10."),
        ({"accumulate": 3}, "Train.batch_size 64 does not divide into 3 micro-batches .Train.accumulate.; 63 would."),
    ],
)
def test_settings_that_cannot_be_meant(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        Train(**{"model_dir": "x", "steps": 10, **changes})
