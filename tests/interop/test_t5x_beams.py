"""Where our beam search and T5X's differ once answers end: in two rules, and in nothing else."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_t5

from zeroprompt_jax.interop import t5x_module
from zeroprompt_jax.models import decoding
from zeroprompt_jax.models.t5 import Backbone

t5x = pytest.importorskip("t5x", reason="T5X is not installed; it is not on PyPI but at github.com/google-research/t5x")

from t5x import models

CONFIG = tiny_t5.config(scan_layers=False, vocab_size=8)
ROWS, S, K = 24, 6, 3
RARE, FREQUENT = 7, 5  # tokens that may end an answer; by the second most rows end before S


def encoder():
    return np.random.default_rng(3).integers(2, 8, (ROWS, 9)).astype(np.int32)


@functools.cache
def _step():
    """Log-probabilities of the token behind each of K prefixes of one row, [K, S] and their length -> [K, V]."""

    def run(params, row_T, prefixes_KS, length):
        tokens = jnp.pad(prefixes_KS, ((0, 0), (1, 0)))[:, :-1]
        logits = Backbone(CONFIG, params)(jnp.tile(row_T, (K, 1)), tokens).logits
        return jax.nn.log_softmax(logits[:, length])

    return tiny_t5.jit(run)


def search(row_T, eos_id, alpha, late, cut):
    """Beam search in plain Python, without early stopping: K answers, best first, as (score, tokens).

    late: of the best 2K continuations all that end may finish, not only the best K. cut: those that reach S without an
    end finish too; otherwise they are answers, by their plain sums, only where no other was found.
    """
    penalty = lambda length: ((5 + length) / 6) ** alpha
    live, found = [(0.0, ())], []
    for i in range(S):
        prefixes = np.zeros((K, S), np.int32)
        for beam, (_, tokens) in enumerate(live):
            prefixes[beam, :i] = tokens
        logp_KV = np.asarray(_step()(tiny_t5.params(CONFIG), row_T, prefixes, i), np.float64)
        grown = [(total + logp, (*tokens, t)) for b, (total, tokens) in enumerate(live) for t, logp in enumerate(logp_KV[b])]
        grown = sorted(grown, reverse=True)[: 2 * K]
        ended = [tokens[-1] == eos_id or (cut and i + 1 == S) for _, tokens in grown]
        may = [end and (late or rank < K) for rank, end in enumerate(ended)]
        found += [(total / penalty(i + 1), tokens) for (total, tokens), ends in zip(grown, may) if ends]
        found = sorted(found, reverse=True)[:K]
        live = [beam for beam in grown if beam[1][-1] != eos_id][:K]
    return found or live


def padded(answers):
    """(scores [K], tokens [K, S]), with nothing where fewer were found."""
    scores, tokens = np.full(K, -math.inf), np.zeros((K, S), np.int32)
    for k, (score, found) in enumerate(answers):
        scores[k], tokens[k, : len(found)] = score, found
    return scores, tokens


class _Vocabulary:
    eos_id = 1


@functools.cache
def both(eos_id, alpha):
    """((scores, tokens) of T5X, ours)."""
    theirs = models.EncoderDecoderModel(t5x_module.Transformer(CONFIG), _Vocabulary(), _Vocabulary(), None)
    batch = {"encoder_input_tokens": encoder(), "decoder_input_tokens": np.zeros((ROWS, S), np.int32)}

    def run(params):
        options = dict(decoder_params={"alpha": alpha, "eos_id": eos_id}, num_decodes=K, return_all_decodes=True)
        tokens, aux = theirs.predict_batch_with_aux(params, batch, **options)
        ours = decoding.generate(
            Backbone(CONFIG, params), encoder(), strategy=decoding.Beam(K, alpha), max_length=S, eos_id=eos_id, samples=K
        )
        return (aux["scores"][:, ::-1], tokens[:, ::-1]), (ours.scores, ours.tokens)

    return jax.device_get(tiny_t5.jit(run)(tiny_t5.params(CONFIG)))


@functools.cache
def searched(eos_id, alpha, late, cut):
    found = [padded(search(row, eos_id, alpha, late, cut)) for row in encoder()]
    return np.stack([scores for scores, _ in found]), np.stack([tokens for _, tokens in found])


def assert_same(got, want):
    real = np.isfinite(want[0])
    np.testing.assert_allclose(np.where(real, got[0], 0), np.where(real, want[0], 0), atol=1e-4)
    np.testing.assert_array_equal(np.where(real[..., None], got[1], 0), want[1])
    assert (got[0][~real] < -1e5).all()


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_t5x_and_we_differ_in_two_rules_alone(alpha):
    """T5X lets all of the best 2K continuations finish, where we, as Hugging Face does, let the best K; and an answer that
    reaches the longest length without an end counts to T5X only where no other was found, to us as any other."""
    theirs, ours = both(RARE, alpha)
    assert_same(theirs, searched(RARE, alpha, late=True, cut=False))
    assert_same(ours, searched(RARE, alpha, late=False, cut=True))
    # Either rule alone does not tell them apart.
    for late, cut in ((True, True), (False, False)):
        wrong = searched(RARE, alpha, late, cut)[1]
        assert (theirs[1] != wrong).any((1, 2)).sum() > 5 and (ours[1] != wrong).any((1, 2)).sum() > 5


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_where_neither_rule_decides_answers_that_end_are_the_same(alpha):
    theirs, ours = both(FREQUENT, alpha)
    same = (searched(FREQUENT, alpha, True, False)[1] == searched(FREQUENT, alpha, False, True)[1]).all((1, 2))
    ended = (ours[1] == FREQUENT).any(-1).all(-1)
    assert (same & ended).sum() >= 6
    assert_same([x[same & ended] for x in theirs], [x[same & ended] for x in ours])
