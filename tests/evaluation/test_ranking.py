"""The choice among answer options, and their packing."""

import numpy as np
import pytest

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.evaluation.ranking import bucket, choose, pack

NONE = -np.inf


def test_the_most_likely_option_is_chosen():
    sums = np.array([[-3.0, -1.0, -2.0], [-0.1, -5.0, NONE], [NONE, -9.0, NONE]])
    np.testing.assert_array_equal(choose(sums), [1, 0, 1])


def test_length_normalisation_changes_the_choice_only_where_lengths_differ():
    sums = np.array([[-3.0, -2.0], [-3.0, -2.0]])
    lengths = np.array([[3.0, 1.0], [2.0, 2.0]])
    np.testing.assert_array_equal(choose(sums, lengths), [1, 1])
    np.testing.assert_array_equal(choose(sums, lengths, length_normalised=True), [0, 1])
    with pytest.raises(ValueError):
        choose(sums, length_normalised=True)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_of_equal_options_the_first_listed_is_chosen(order):
    sums = np.array([-1.0, -1.0, -2.0])[order]
    assert choose(sums[None])[0] == next(i for i, v in enumerate(sums) if v == -1.0)
    padded = np.concatenate([sums, [NONE, NONE]])
    assert choose(padded[None])[0] == choose(sums[None])[0]


def test_an_impossible_option_is_chosen_before_an_absent_one():
    sums, lengths = np.array([[NONE, NONE, NONE]]), np.array([[0.0, 2.0, 2.0]])
    assert choose(sums, lengths)[0] == 1


def test_rows_do_not_affect_each_other():
    rng = np.random.default_rng(0)
    sums = -rng.random((20, 5))
    order = rng.permutation(20)
    np.testing.assert_array_equal(choose(sums)[order], choose(sums[order]))
    np.testing.assert_array_equal(choose(sums), sums.argmax(1))


def test_bad_scores_are_named():
    with pytest.raises(UserError, match="example 1 is empty"):
        choose(np.array([[-1.0, NONE], [NONE, NONE]]))
    with pytest.raises(ValueError, match="example 1 is NaN"):
        choose(np.array([[-1.0, -2.0], [-1.0, np.nan]]))


def test_packing_keeps_every_option_and_ends_it():
    options = [[[5, 6, 7], [8]], [[9]], [[], [3, 3], [4]]]
    tokens, mask = pack(options, eos_id=1)
    assert tokens.dtype == np.int32 and tokens.shape == (3, 4, 4)
    for row, ids in enumerate(options):
        assert mask[row].tolist() == [True] * len(ids) + [False] * (4 - len(ids))
        assert [[t for t in option.tolist() if t] for option in tokens[row, : len(ids)]] == [[*o, 1] for o in ids]
    assert not tokens[~mask].any()
    wide, wide_mask = pack(options, count=6, length=9)
    np.testing.assert_array_equal(wide[:, :4, :4], tokens)
    assert wide.shape == (3, 6, 9) and not wide[..., 4:].any() and not wide_mask[:, 4:].any()


def test_an_empty_option_list_is_named():
    with pytest.raises(UserError, match="example 1 is empty"):
        pack([[[5]], []])


def test_buckets_hold_what_they_are_for_in_few_sizes():
    sizes = {bucket(n, 4, 4) for n in range(1, 200)}
    assert sizes == {4, 16, 64, 256} and all(bucket(n, 4, 4) >= n for n in range(1, 200))
    assert [bucket(n) for n in (1, 2, 3, 4, 5)] == [1, 2, 4, 4, 8]
