"""Packed batches: every example in one row, rows nearly full, the model none the wiser."""

import collections
import functools
import time

import jax
import numpy as np
import pytest

from zeroprompt_jax.data import cache, cards, mixture, planners
from zeroprompt_jax.data.batches import Features, TrainStream
from zeroprompt_jax.data.packing import best_fit, spread
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.models import t5

FEATURES = Features(inputs=160, targets=24)


@pytest.fixture
def store(tmp_path, register):
    return cache.build(tmp_path, register(6), load_vocabulary("bytes"), progress=False)


def stream(store, features=FEATURES, seed=0, batch_size=8, window=4):
    rates = mixture.rates({t: store.size(t) for t in store.tasks})
    return TrainStream(store, rates, features, batch_size, seed, window=window, batching="packed")


def segments(batch):
    """(encoder tokens, decoder inputs, targets, task id) of every segment, row by row."""
    for row, encoder in enumerate(batch["encoder_segment_ids"]):
        for k in range(1, encoder.max() + 1):
            here, there = encoder == k, batch["decoder_segment_ids"][row] == k
            yield (
                batch["encoder_input_tokens"][row][here],
                batch["decoder_input_tokens"][row][there],
                batch["decoder_target_tokens"][row][there],
                batch["task_ids"][row, k - 1],
            )


def sizes(seed, count, inputs, targets):
    rng = np.random.default_rng(seed)
    return rng.integers(1, inputs + 1, count), rng.integers(1, targets + 1, count)


@pytest.mark.parametrize("seed", range(5))
def test_rows_hold_what_fits_and_each_is_needed(seed):
    a, b = sizes(seed, 400, 64, 16)
    rows = best_fit(a, b, 64, 16)
    assert set(rows) == set(range(rows.max() + 1))
    encoder, decoder = np.bincount(rows, a), np.bincount(rows, b)
    assert encoder.max() <= 64 and decoder.max() <= 16
    # Two rows that would fit into one are what best fit, like first fit, never leaves behind.
    both = (encoder[:, None] + encoder <= 64) & (decoder[:, None] + decoder <= 16)
    assert not both[~np.eye(len(both), dtype=bool)].any()


def test_the_choice_is_the_tightest_row():
    by_hand = [(60, 1, 0), (50, 1, 1), (40, 1, 2), (14, 1, 1), (4, 1, 0), (2, 1, 2)]
    a, b, rows = np.array(by_hand).T
    np.testing.assert_array_equal(best_fit(a, b, 64, 16), rows)
    assert best_fit(np.array([30, 30]), np.array([9, 8]), 64, 16).tolist() == [0, 1]  # for the decoder's sake


def test_best_fit_is_as_good_as_it_is_known_to_be():
    a, b = np.random.default_rng(0).integers(8, 60, 5000), np.ones(5000, int)
    assert a.sum() / (128 * (best_fit(a, b, 128, 64).max() + 1)) > 0.99
    one_after_the_other, room = 1, 128
    for n in a.tolist():
        one_after_the_other, room = (one_after_the_other, room - n) if n <= room else (one_after_the_other + 1, 128 - n)
    assert a.sum() / (128 * one_after_the_other) < 0.9


def test_spread_leaves_no_row_empty():
    rows = np.array([0, 0, 0, 1, 1, 2])
    out = spread(rows, 6)
    assert sorted(out) == list(range(6))
    assert sorted(set(spread(rows, 4))) == [0, 1, 2, 3] and (spread(rows, 4) != rows).sum() == 1
    np.testing.assert_array_equal(spread(rows, 3), rows)


def test_segments_are_the_examples_drawn(store):
    train, vocabulary = stream(store), load_vocabulary("bytes")
    several = 0
    for n in range(4):
        batch = train.batch(n)
        found = list(segments(batch))
        for (encoder, shifted, target, task_id), (task, example, wording, _) in zip(found, train.drawn(n), strict=True):
            card = cards.card(task)
            rendered = cards.render(card, list(cards.source(task).examples("train"))[example])
            expected = vocabulary.encode(f"{card.instructions[wording]} {rendered.input}")
            assert encoder.tolist() == [*expected[:159], 1]
            assert target.tolist() == [*vocabulary.encode(rendered.target), 1]
            assert shifted.tolist() == [0, *target[:-1]]
            assert store.tasks[task_id] == task
        assert (batch["task_ids"] >= 0).sum() == len(found)
        assert batch["task_ids"].shape == (8, 12)
        for side, tokens in (("encoder", "encoder_input_tokens"), ("decoder", "decoder_target_tokens")):
            ids = batch[f"{side}_segment_ids"]
            assert ids.dtype == np.int32 and ((ids > 0) == (batch[tokens] > 0)).all()
            assert (ids.max(axis=1) == (batch["task_ids"] >= 0).sum(axis=1)).all()
        np.testing.assert_array_equal(batch["decoder_loss_weights"], (batch["decoder_segment_ids"] > 0) * np.float32(1))
        several += (batch["encoder_segment_ids"].max(axis=1) > 1).sum()
    assert several > 16


def test_every_drawn_example_is_in_one_row_of_its_window(store):
    train = stream(store)
    plan = train._planner._plan
    for window in (0, 1, 5):
        found = collections.Counter(row for n in range(4 * window, 4 * window + 4) for row in train.drawn(n))
        draws = plan.window(window)
        columns = (draws.task, draws.example, draws.wording, draws.epoch)
        wanted = collections.Counter(
            (store.tasks[t], e, w, p) for t, e, w, p in zip(*(c.tolist() for c in columns), strict=True)
        )
        assert found == wanted and found.total() == plan.rows > 32
    rows = [stream(store, seed=s).batch(n)["encoder_segment_ids"].max(axis=1) for s in range(5) for n in range(4)]
    assert np.concatenate(rows).min() == 1  # and no row is empty


def test_a_window_that_does_not_fit_cuts_inputs_and_loses_none(store, monkeypatch):
    monkeypatch.setattr(planners.Packed, "_draws", lambda self, drawing: 70)  # 61 fit
    train = stream(store)
    planned = train._planner.window(0)
    assert planned.limit is not None and planned.limit < 160
    assert sum(len(train.drawn(n)) for n in range(4)) == 70
    for n in range(4):
        drawn = zip(segments(train.batch(n)), train.drawn(n), strict=True)
        for (encoder, _, target, _), (task, _, wording, _) in drawn:
            instruction = store.instructions(task)[wording]
            assert encoder[: len(instruction)].tolist() == instruction.tolist() and encoder[-1] == target[-1] == 1
    monkeypatch.setattr(planners.Packed, "_draws", lambda self, drawing: 700)
    with pytest.raises(UserError, match="Window 0 of the packed stream does not fit its 32 rows of 160 x 24"):
        stream(store).batch(0)


def test_a_window_that_does_not_fit_is_rare(store):
    planner = stream(store, window=32)._planner
    assert all(planner.window(w).limit is None for w in range(300))


def test_packed_losses_are_the_examples_own(store):
    shape = dict(vocab_size=384, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32)
    config = t5.T5Config(**shape, num_encoder_layers=2, num_decoder_layers=2, dtype="float32", dropout_rate=0.0)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32),
        jax.eval_shape(lambda: t5.init(config, jax.random.key(0))),
    )
    packed = stream(store).batch(0)

    # Compiling is nearly all of the time this takes.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def losses(params, encoder, decoder, targets, *ids):
        logits = t5.Backbone(config, params)(encoder, decoder, t5.Conditioning(), *ids).logits
        return -jax.numpy.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]

    names = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
    ids = (packed["encoder_segment_ids"], packed["decoder_segment_ids"])
    together = np.asarray(losses(params, *(packed[k] for k in names), *ids))
    parts = list(segments(packed))
    alone = [np.zeros((len(parts), n), np.int32) for n in (160, 24, 24)]
    for i, part in enumerate(parts):
        for array, tokens in zip(alone, part[:3], strict=True):
            array[i, : len(tokens)] = tokens
    apart = np.asarray(losses(params, *alone))
    here = ids[1] > 0
    np.testing.assert_allclose(together[here], apart[alone[2] > 0], atol=1e-5)
    one = [np.minimum(i, 1) for i in ids]  # without the boundaries it is another loss
    blurred = np.asarray(losses(params, *(packed[k] for k in names), *one))
    assert np.abs(blurred - together)[here].max() > 1e-3


def test_packing_refuses_instructions_apart(store):
    with pytest.raises(UserError, match="Packed batches .* 'instructions'"):
        stream(store, Features(160, 24, instructions=64))


def test_rows_are_full_and_served_fast(tmp_path, register):
    # These examples have 60 to 80 tokens; the bar of 95 % is for text of mixed lengths.
    store = cache.build(tmp_path, register(50, train=40, test=1), load_vocabulary("bytes"), progress=False)
    train = stream(store, Features(512, 96), batch_size=32, window=32)
    fill = train.fill()
    batches = [train.batch(n) for n in range(32)]
    for side, tokens in (("encoder", "encoder_input_tokens"), ("decoder", "decoder_target_tokens")):
        assert fill[side] == pytest.approx(np.mean([b[tokens] > 0 for b in batches]))
    assert fill["encoder"] > 0.9
    assert fill["examples_per_row"] == pytest.approx(np.mean([(b["task_ids"] >= 0).sum() for b in batches]) / 32)
    best = 0.0
    for repeat in range(3):
        began, count = time.process_time(), 0
        for n in range(32 * repeat, 32 * repeat + 32):
            count += int((train.batch(n)["task_ids"] >= 0).sum())
        best = max(best, count / (time.process_time() - began))
    assert best > 10_000  # planning included
