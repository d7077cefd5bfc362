"""Positions, masks and distance buckets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_t5

from zeroprompt_jax.models import masks
from zeroprompt_jax.models.conditioning import Stack

BUCKETS = [(32, 128), (32, 64), (16, 128), (8, 10), (4, 8)]


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_of_every_distance(bidirectional):
    distances = np.arange(-400, 401)
    for num_buckets, max_distance in BUCKETS:
        got = np.asarray(masks.relative_buckets(jnp.asarray(distances), bidirectional, num_buckets, max_distance))
        want = [reference_t5.bucket(int(d), bidirectional, num_buckets, max_distance) for d in distances]
        np.testing.assert_array_equal(got, want, f"{num_buckets} buckets to {max_distance}")
        # Every bucket is used, but for the one that would hold keys ahead at distance 0.
        assert set(got) == set(range(num_buckets)) - ({num_buckets // 2} if bidirectional else set())


@pytest.mark.parity
@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_equal_hugging_face(bidirectional):
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("transformers.models.t5.modeling_t5")
    distances = np.arange(-400, 401)
    for num_buckets, max_distance in BUCKETS:
        got = masks.relative_buckets(jnp.asarray(distances), bidirectional, num_buckets, max_distance)
        theirs = modeling.T5Attention._relative_position_bucket
        want = theirs(torch.tensor(distances), bidirectional, num_buckets, max_distance)
        np.testing.assert_array_equal(got, want.numpy())


def test_a_masked_prompt_position_is_neither_seen_nor_counted():
    stack = Stack(prompt=np.zeros((2, 4, 8)), prompt_mask=np.array([[1, 0, 1, 0], [1, 1, 1, 1]]))
    tokens = np.array([[5, 5, 0]] * 2 + [[5, 5, 5]] * 2)
    seq = jax.tree.map(np.asarray, masks.sequence(stack, tokens > 0))
    np.testing.assert_array_equal(seq.positions[0], [0, 0, 1, 1, 2, 3, 4])
    np.testing.assert_array_equal(seq.positions[2], np.arange(7))
    np.testing.assert_array_equal(seq.positions[[0, 2]], seq.positions[[1, 3]])
    np.testing.assert_array_equal(seq.valid.astype(int)[[0, 3]], [[1, 0, 1, 0, 1, 1, 0], [1] * 7])
    np.testing.assert_array_equal(masks.attention_mask(seq)[:, 0, 0], seq.valid)


@pytest.mark.parametrize("prompt", [None, np.zeros((1, 0, 8))], ids=["none", "empty"])
def test_without_prompt_positions_are_the_tokens(prompt):
    mask = None if prompt is None else np.zeros((1, 0), bool)
    seq = masks.sequence(Stack(prompt=prompt, prompt_mask=mask), np.ones((3, 5), bool))
    np.testing.assert_array_equal(seq.positions, np.arange(5)[None])
    assert seq.valid.shape == (3, 5) and seq.valid.all()


def test_positions_stay_one_row_while_the_prompt_is_shared():
    """So that the position bias, quadratic in length, is not built for every row."""
    shared = Stack(prompt=np.zeros((1, 2, 8)), prompt_mask=np.array([[True, False]]))
    assert masks.sequence(shared, np.ones((3, 5), bool)).positions.shape == (1, 7)


def test_a_chunk_of_the_causal_mask_is_its_rows():
    stack = Stack(prompt=np.zeros((1, 2, 8)), prompt_mask=np.array([[True, False], [True, True]]))
    segments = np.array([[1, 1, 2, 2, 2, 0], [1, 2, 2, 3, 3, 3]])
    for seq in (
        masks.sequence(stack, np.ones((2, 4), bool)),
        masks.sequence(Stack(), np.ones((2, 6), bool), segments),
    ):
        whole = np.asarray(masks.causal_mask(seq))
        assert whole.shape == (2, 1, 6, 6)
        for start, length in ((0, 2), (2, 1), (3, 3)):
            chunk = masks.causal_mask(seq, jnp.asarray(start), length)
            np.testing.assert_array_equal(chunk, whole[:, :, start : start + length])
    for b in range(2):
        for q in range(6):
            want = [k <= q and segments[b, k] == segments[b, q] for k in range(6)]
            np.testing.assert_array_equal(whole[b, 0, q], want)


def test_segments_see_only_themselves():
    segments = np.array([[1, 1, 2, 0]])
    seq = masks.sequence(Stack(), segments > 0, segments)
    want = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(masks.attention_mask(seq, seq)[0, 0].astype(int), want)
