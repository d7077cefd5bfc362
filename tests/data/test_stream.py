"""What every kind of batching keeps, and what buckets and groups add."""

import collections

import numpy as np
import pytest
import scipy.stats

from zeroprompt_jax.data import cache, mixture
from zeroprompt_jax.data.batches import Features, TrainStream
from zeroprompt_jax.data.pipeline import Data
from zeroprompt_jax.data.stream import BATCHING
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.experiment import Experiment, check_batching, check_instructions
from zeroprompt_jax.methods.full import Full
from zeroprompt_jax.methods.hint import Hint
from zeroprompt_jax.training.loop import Train

PLAIN = Features(inputs=160, targets=24)
APART = Features(inputs=160, targets=24, instructions=64)


@pytest.fixture
def store(tmp_path, register):
    return cache.build(tmp_path, register(6), load_vocabulary("bytes"), progress=False)


def stream(store, batching, *, seed=0, batch_size=8, window=4, rates=None, features=None, **options):
    rates = mixture.rates({t: store.size(t) for t in store.tasks}, "explicit", explicit=rates) if rates else None
    tasks = store.tasks[:4] if batching == "every_task" else store.tasks  # as many as divide 8 rows
    rates = rates or mixture.rates({t: store.size(t) for t in tasks})
    options |= {"groups": 4} if batching == "grouped" and "groups" not in options else {}
    features = features or (APART if batching in ("grouped", "buckets") else PLAIN)
    return TrainStream(store, rates, features, batch_size, seed, window=window, batching=batching, **options)


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize("batching", BATCHING)
def test_any_batch_alone_is_what_it_is_in_order(store, batching):
    forward = stream(store, batching)
    for n in range(14):
        batch = forward.batch(n)
        if n in (3, 4, 13):
            same(batch, stream(store, batching).batch(n))
    with pytest.raises(AssertionError):
        same(stream(store, batching, seed=1).batch(0), stream(store, batching).batch(0))


@pytest.mark.parametrize("batching", BATCHING)
def test_hosts_rows_make_up_the_batch(store, batching):
    for n in (0, 6):
        whole = stream(store, batching).batch(n)
        for hosts in (1, 2, 4):
            share = 8 // hosts
            parts = [stream(store, batching).batch(n, slice(h * share, h * share + share)) for h in range(hosts)]
            same({key: np.concatenate([p[key] for p in parts]) for key in whole}, whole)
        with pytest.raises(AssertionError):
            same(stream(store, batching).batch(n, slice(0, 4)), stream(store, batching).batch(n, slice(4, 8)))


@pytest.mark.parametrize("batching", BATCHING)
def test_the_first_epoch_shows_every_example_once(store, batching):
    train = stream(store, batching)
    drawn = [row for n in range(24) for row in train.drawn(n)]
    first = collections.Counter((task, example) for task, example, _, epoch in drawn if epoch == 0)
    assert len(first) == 12 * len(train.tasks) and set(first.values()) == {1}
    assert any(epoch > 0 for *_, epoch in drawn)
    assert {w for _, _, w, _ in drawn} == {0, 1, 2}


@pytest.mark.parametrize("batching", [batching for batching in BATCHING if batching != "every_task"])
def test_shares_are_the_rates(store, batching):
    rates = {task: float(1 + i) for i, task in enumerate(store.tasks)}
    train = stream(store, batching, rates=rates)
    counts = collections.Counter(task for n in range(400) for task, *_ in train.drawn(n))
    shares = np.array([counts[t] for t in store.tasks]) / counts.total()
    # Systematic sampling: 100 windows round at random, to the next row (or group of two rows). Few tasks are drawn
    # independently: 1,600 draws have a standard deviation of about 0.01.
    assert np.abs(shares - np.arange(1, 7) / 21).max() < (0.04 if batching == "few_tasks" else 0.01)
    assert np.abs(shares - 1 / 6).max() > 0.05


@pytest.mark.parametrize("policy", ["explicit", "uniform", "proportional", "temperature"])
@pytest.mark.parametrize("batching", [b for b in BATCHING if not b.endswith("_task") and not b.endswith("_tasks")])
def test_ten_thousand_draws_have_the_configured_shares(tmp_path, register, batching, policy):
    names = [*register(4, train=10), *register(4, train=40, prefix="long")]
    store = cache.build(tmp_path, names, load_vocabulary("bytes"), progress=False)
    sizes = {t: store.size(t, "train") for t in names}
    own = {t: 1.0 + i for i, t in enumerate(names)} if policy == "explicit" else None
    rates = mixture.rates(sizes, policy, explicit=own, **({"temperature": 2.0} if policy == "temperature" else {}))
    train = stream(store, batching, rates=rates, batch_size=40, groups=4)
    counts, n = collections.Counter(), 0
    while counts.total() < 10_000:
        counts.update(task for task, *_ in train.drawn(n))
        n += 1

    def p_value(shares):
        return scipy.stats.chisquare([counts[t] for t in names], counts.total() * np.array([shares[t] for t in names])).pvalue

    assert p_value(rates) > 0.01
    assert p_value(mixture.rates(sizes, "explicit", explicit={t: 8.0 - i for i, t in enumerate(names)})) < 0.01


def test_buckets_hold_rows_of_similar_length(store):
    train = stream(store, "buckets", batch_size=4, window=16, buckets=(64, 72, 80))
    widths, padded = [], stream(store, "padded", batch_size=4, window=16)
    for n in range(64):
        batch = train.batch(n)
        T = batch["encoder_input_tokens"].shape[1]
        longest = (batch["encoder_input_tokens"] > 0).sum(axis=1).max()
        assert T in (64, 72, 80, 160) and longest == min(longest, T)
        assert T == min(t for t in (64, 72, 80, 160) if t >= longest)
        assert batch["instruction_tokens"].shape == (4, 64)
        assert (batch["encoder_input_tokens"] == 1).sum() == 4  # no example was cut short of its EOS
        widths.append(T)
    assert len(set(widths)) > 2 and widths[:16] != sorted(widths[:16])
    assert train.fill()["encoder"] > 0.85 > 0.6 > padded.fill()["encoder"]
    # The examples are those of the padded stream, in another order.
    for window in range(4):
        numbers = range(16 * window, 16 * window + 16)
        held = [collections.Counter(row for n in numbers for row in s.drawn(n)) for s in (train, padded)]
        assert held[0] == held[1]
    assert list(stream(store, "buckets")._planner.lengths) == [40, 80, 120, 160]


def test_groups_share_a_task_and_a_wording(store):
    train = stream(store, "grouped", batch_size=12, groups=6)
    plain = stream(store, "padded", batch_size=12, features=APART)
    for n in range(20):
        batch, drawn = train.batch(n), train.drawn(n)
        assert batch["instruction_tokens"].shape == (6, 64) and batch["encoder_input_tokens"].shape == (12, 160)
        pairs = [{(task, wording) for task, _, wording, _ in drawn[g : g + 2]} for g in range(0, 12, 2)]
        assert all(len(p) == 1 for p in pairs) and len(set().union(*pairs)) == 6
        for g, ((task, wording),) in enumerate(pairs):
            instruction = [*store.instructions(task)[wording].tolist(), 1]
            assert batch["instruction_tokens"][g].tolist() == instruction + [0] * (64 - len(instruction))
            for row in (2 * g, 2 * g + 1):
                assert batch["encoder_input_tokens"][row, : len(instruction) - 1].tolist() == instruction[:-1]
                assert store.tasks[batch["task_ids"][row]] == task
    loose = [len({(t, w) for t, _, w, _ in plain.drawn(n)}) for n in range(20)]
    assert max(loose) > 6  # ungrouped, a batch has more instructions than groups


def test_a_task_of_large_share_comes_with_other_wordings(store):
    rates = {**dict.fromkeys(store.tasks, 1.0), store.tasks[0]: 5.0}
    train = stream(store, "grouped", rates=rates, batch_size=8, groups=4)
    often = 0
    for n in range(40):
        pairs = [(t, w) for t, _, w, _ in train.drawn(n)[::2]]
        assert len(set(pairs)) == 4
        often += sum(t == store.tasks[0] for t, _ in pairs) == 2
    assert often == 40
    with pytest.raises(UserError, match="'pick_0' has the share 0.5 and 3 training wordings, too few for batches of 8"):
        stream(store, "grouped", rates=rates, batch_size=8, groups=8)


def test_a_slice_through_a_group_is_named(store):
    with pytest.raises(UserError, match="Rows 1 to 4 cut through a group"):
        stream(store, "grouped").batch(0, slice(1, 5))
    with pytest.raises(UserError, match="cut through a group"):
        stream(store, "grouped").batch(0, slice(0, 8, 2))


def test_mistakes_are_named(store):
    with pytest.raises(UserError, match="Did you mean 'packed'"):
        stream(store, "pack")
    with pytest.raises(UserError, match="Batch size 8 does not divide into 3 instruction groups .Data.instruction_groups.; 1 would"):
        stream(store, "grouped", groups=3)
    with pytest.raises(UserError, match="give the feature length 'instructions'"):
        stream(store, "grouped", features=PLAIN)
    with pytest.raises(UserError, match="Bucket length 200"):
        stream(store, "buckets", buckets=(200,))


def test_packing_with_a_method_of_per_task_parameters_is_refused(tmp_path):
    class PerTask(Full):
        per_task = True

    def made(method, **data):
        return Experiment(Data("m", **data), Train(str(tmp_path), 1), method=method)

    for batching in ("padded", "buckets", "grouped"):
        check_batching(made(PerTask(), batching=batching))
    check_batching(made(Full(), batching="packed"))
    with pytest.raises(UserError, match="Packed .* the method PerTask has parameters of its own for each task"):
        check_batching(made(PerTask(), batching="packed"))
    with pytest.raises(UserError, match="Packed .* Full is given instructions apart"):
        lengths = {"inputs": 8, "targets": 8, "instructions": 8}
        check_batching(made(Full(), batching="packed", feature_lengths=lengths))


def test_a_method_that_reads_instructions_needs_them_apart(tmp_path):
    lengths = {"inputs": 8, "targets": 8}
    for without in (lengths, {**lengths, "instructions": 0}):
        with pytest.raises(UserError, match="Hint reads the instruction apart .* set the feature length 'instructions'"):
            check_instructions(Experiment(Data("m", feature_lengths=without), Train(str(tmp_path), 1), method=Hint()))
    given = Data("m", feature_lengths={**lengths, "instructions": 8})
    check_instructions(Experiment(given, Train(str(tmp_path), 1), method=Hint()))
    check_instructions(Experiment(Data("m", feature_lengths=lengths), Train(str(tmp_path), 1)))


def test_batches_of_a_few_tasks(store):
    train = stream(store, "few_tasks", batch_size=60, window=4)
    runs = collections.Counter()
    for n in range(300):
        tasks = [task for task, *_ in train.drawn(n)]
        # 60 rows divide evenly among 2 to 6 draws; the same task may be drawn twice.
        rows = {60 // k for k in range(2, 7) if all(count % (60 // k) == 0 for count in collections.Counter(tasks).values())}
        assert rows
        runs[len(set(tasks))] += 1
    # Of 2 to 6 draws with repetition, as often as each other, 3.0 tasks differ on average.
    assert set(runs) == {1, 2, 3, 4, 5, 6} or set(runs) == {1, 2, 3, 4, 5}
    expected = np.mean([6 * (1 - (5 / 6) ** k) for k in range(2, 7)])
    assert abs(sum(n * count for n, count in runs.items()) / 300 - expected) < 0.25
    seen = collections.defaultdict(list)
    again = stream(store, "few_tasks", batch_size=12, window=4)
    for n in range(12):  # each task goes through its examples before it repeats one, over several windows
        for task, example, _, epoch in again.drawn(n):
            seen[task, epoch].append(example)
    assert all(len(set(examples)) == len(examples) for examples in seen.values())


def test_batches_of_every_task(store):
    equal = {t: 1.0 for t in store.tasks}
    train = stream(store, "every_task", batch_size=12, rates=equal)
    for n in range(8):
        assert train.batch(n)["task_ids"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    with pytest.raises(UserError, match="8 rows does not hold equally many of 6 tasks; give a multiple of 6"):
        stream(store, "every_task", rates=equal)
    with pytest.raises(UserError, match="uniform"):
        stream(store, "every_task", batch_size=12, rates={t: 1.0 + i for i, t in enumerate(store.tasks)})


def test_batches_of_a_few_tasks_need_rows_for_all(store):
    with pytest.raises(UserError, match="6 tasks and 4 rows"):
        stream(store, "few_tasks", batch_size=4)
