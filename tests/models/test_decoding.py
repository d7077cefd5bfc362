"""Decoding against slow, plain references over teacher-forced logits, and its independence of batch and layout."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_t5
from tiny_t5 import TOLERANCE

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.models import decoding, t5
from zeroprompt_jax.models.conditioning import Conditioning
from zeroprompt_jax.models.decoding import Beam, Greedy, Sample

S, ROWS = 6, 6
EOS = 7  # the token with which these random models end some answers early
CONFIG = tiny_t5.config(vocab_size=8, num_encoder_layers=1, num_decoder_layers=2)


def _varied(path, leaf):
    """Small logits keep several tokens likely, and strong cross-attention makes answers depend on the input."""
    name = jax.tree_util.keystr(path)
    if "logits_dense" in name:
        return leaf * 0.3
    return leaf * 6 if "encoder_decoder_attention" in name and "out" in name else leaf


PARAMS = jax.tree_util.tree_map_with_path(_varied, tiny_t5.params(CONFIG))


def encoder_rows(rows=ROWS, T=7, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.integers(2, CONFIG.vocab_size, (rows, T)).astype(np.int32)
    for row in range(rows):
        x[row, T - row % 4 :] = 0
    return x


ENCODER = encoder_rows()
EVERYTHING = tiny_t5.everything(CONFIG, groups=ROWS)


@functools.partial(tiny_t5.jit, static_argnames=("config", "strategy", "samples", "length", "eos_id"))
def _generate(params, encoder, conditioning, rng, config, strategy, samples, length, eos_id):
    return decoding.generate(t5.Backbone(config, params), encoder, conditioning, strategy, length, rng, eos_id, samples)


def generate(
    encoder, strategy, conditioning=Conditioning(), samples=1, rng=None, length=S, model=(CONFIG, PARAMS), eos_id=EOS
):
    config, params = model
    # Only sampling reads the keys: given to it alone, they are no reason to compile anything else again.
    rng = None if not isinstance(strategy, Sample) else jax.random.key(0) if rng is None else rng
    return jax.device_get(_generate(params, encoder, conditioning, rng, config, strategy, samples, length, eos_id))


@tiny_t5.jit
def _score(params, encoder, conditioning, options, mask):
    return decoding.score(t5.Backbone(CONFIG, params), encoder, conditioning, options, mask)


def score(encoder, options, mask=None, conditioning=Conditioning()):
    mask = (options > 0).any(-1) if mask is None else mask
    return jax.device_get(_score(PARAMS, encoder, conditioning, options, mask))


def log_probs(encoder, decoder_inputs, conditioning=Conditioning()) -> np.ndarray:
    """Teacher-forced, without any cache: [B, s, V] float64. n decoder rows per encoder row, padded to few shapes."""
    decoder_inputs = np.asarray(decoder_inputs, np.int32)
    (B, s), E = decoder_inputs.shape, len(encoder)
    n = B // E
    padded = np.zeros((E, 49 if E == 1 else 3, S), np.int32)
    padded[:, :n, :s] = decoder_inputs.reshape(E, n, s)
    logits = tiny_t5.logits(CONFIG, encoder, padded.reshape(-1, S), conditioning, weights=PARAMS).astype(np.float64)
    logits = logits.reshape(*padded.shape, -1)[:, :n, :s].reshape(B, s, -1)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def length_of(tokens) -> int:
    tokens = list(tokens)
    return tokens.index(EOS) + 1 if EOS in tokens else len(tokens)


def shifted(sequences, length=S) -> np.ndarray:
    """Decoder inputs for sequences of tokens."""
    inputs = np.zeros((len(sequences), length), np.int32)
    for row, sequence in zip(inputs, sequences):
        row[1 : len(sequence) + 1] = list(sequence)[: length - 1]
    return inputs


def sums(encoder, sequences, conditioning=Conditioning()) -> np.ndarray:
    """Log-probability of one sequence per encoder row, or of n per row."""
    logp = log_probs(encoder, shifted(sequences), conditioning)
    return np.array(
        [sum(logp[b, i, t] for i, t in enumerate(row[: length_of(row)])) for b, row in enumerate(sequences)]
    )


def plain_greedy(encoder, conditioning):
    tokens, ended = np.zeros((len(encoder), S), np.int32), np.zeros(len(encoder), bool)
    for i in range(S):
        best = log_probs(encoder, shifted(tokens), conditioning)[:, i].argmax(-1)
        tokens[:, i] = np.where(ended, 0, best)
        ended |= tokens[:, i] == EOS
    return tokens


@pytest.mark.parametrize("conditioning", [Conditioning(), EVERYTHING], ids=["plain", "everything"])
def test_greedy_is_the_argmax_of_teacher_forced_logits(conditioning):
    got = generate(ENCODER, Greedy(), conditioning)
    assert len({tuple(row) for row in got.tokens[:, 0]}) > 2
    assert len({length_of(row) for row in got.tokens[:, 0]}) > 1, "no answer ends early, so ending is not tested"
    np.testing.assert_array_equal(got.tokens[:, 0], plain_greedy(ENCODER, conditioning))
    np.testing.assert_allclose(got.scores[:, 0], sums(ENCODER, got.tokens[:, 0], conditioning), atol=TOLERANCE)


def test_conditioning_reaches_what_is_generated():
    plain, conditioned = (generate(ENCODER, Greedy(), c).tokens for c in (Conditioning(), EVERYTHING))
    assert (plain != conditioned).any()


def plain_beams(encoder_1T, strategy, conditioning):
    """Beam search of one row with Python lists, running the whole decoder again at every step."""
    K = strategy.size
    divisor = (
        (lambda n: ((5 + n) / 6) ** strategy.length_penalty)
        if strategy.penalty == "t5x"
        else lambda n: n**strategy.length_penalty
    )
    running, finished = [((), 0.0)], []
    for i in range(S):
        prefixes = [sequence for sequence, _ in running] + [()] * (K - len(running))
        logp = log_probs(encoder_1T, shifted(prefixes), conditioning)
        grown = [
            ((*sequence, v), total + logp[b, i, v])
            for b, (sequence, total) in enumerate(running)
            for v in range(CONFIG.vocab_size)
        ]
        grown = sorted(grown, key=lambda item: -item[1])[: 2 * K]
        ends = [sequence[-1] == EOS or i + 1 == S for sequence, _ in grown]
        finished += [(s, total / divisor(i + 1)) for (s, total), end in list(zip(grown, ends))[:K] if end]
        finished = sorted(finished, key=lambda item: -item[1])[:K]
        running = [item for item, end in zip(grown, ends) if not end][:K]
        if not running:
            break
        hope = [running[0][1] / divisor(n) for n in ((i + 1, S) if strategy.penalty == "t5x" else (i + 1,))]
        if len(finished) == K and max(hope) <= finished[-1][1]:
            break
    return finished


@pytest.mark.parametrize(
    "strategy, conditioning",
    [(Beam(3, 3.0), Conditioning()), (Beam(3, 1.0, "hf"), Conditioning()), (Beam(3), EVERYTHING)],
    ids=["t5x", "hf", "everything"],
)
def test_beams_equal_plain_beam_search_without_cache(strategy, conditioning):
    got = generate(ENCODER, strategy, conditioning, samples=strategy.size)
    for row in range(ROWS):
        own = tiny_t5.take(conditioning, [row])
        want = plain_beams(ENCODER[row : row + 1], strategy, own)
        np.testing.assert_allclose(got.scores[row], [total for _, total in want], atol=TOLERANCE)
        assert [tuple(t[: length_of(t)]) for t in got.tokens[row]] == [sequence for sequence, _ in want]
        assert all((t[length_of(t) :] == 0).all() for t in got.tokens[row])


@pytest.mark.parametrize("strategy", [Beam(3), Beam(3, 1.0, "hf")], ids=str)
def test_a_beams_score_is_its_teacher_forced_log_probability_over_the_penalty(strategy):
    got = generate(ENCODER, strategy, samples=3)
    want = sums(ENCODER, got.tokens.reshape(-1, S)).reshape(ROWS, 3)
    lengths = np.array([[length_of(t) for t in row] for row in got.tokens])
    assert len(np.unique(lengths)) > 2
    base = (5 + lengths) / 6 if strategy.penalty == "t5x" else lengths
    np.testing.assert_allclose(got.scores, want / base**strategy.length_penalty, atol=TOLERANCE)
    assert (np.diff(got.scores, axis=1) <= 0).all()
    assert all(len({tuple(t) for t in row}) == 3 for row in got.tokens)


def test_one_beam_is_greedy():
    greedy = generate(ENCODER, Greedy())
    one = generate(ENCODER, Beam(1, 1.0, "hf"))
    np.testing.assert_array_equal(one.tokens, greedy.tokens)
    lengths = [length_of(t) for t in greedy.tokens[:, 0]]
    np.testing.assert_allclose(one.scores[:, 0], greedy.scores[:, 0] / lengths, atol=TOLERANCE)


def test_wide_enough_beams_find_the_exhaustive_optimum():
    strategy, length, V, encoder = Beam(60, 1.5), 3, CONFIG.vocab_size, ENCODER[:1]
    others = [v for v in range(V) if v != EOS]
    prefixes = list(itertools.product(others, repeat=length - 1))
    logp = log_probs(encoder, shifted(prefixes, length))
    answers = {}
    for b, prefix in enumerate(prefixes):
        total = 0.0
        for i in range(length):
            for v in range(V) if i + 1 == length else (EOS,):
                answers[(*prefix[:i], v)] = (total + logp[b, i, v]) / ((5 + i + 1) / 6) ** strategy.length_penalty
            total += logp[b, i, prefix[i]] if i + 1 < length else 0
    assert len(answers) == 1 + (V - 1) + (V - 1) ** 2 * V
    want = sorted(answers.items(), key=lambda item: -item[1])[:20]
    got = generate(encoder, strategy, samples=20, length=length)
    np.testing.assert_allclose(got.scores[0], [total for _, total in want], atol=TOLERANCE)
    assert [tuple(t[: length_of(t)]) for t in got.tokens[0]] == [sequence for sequence, _ in want]


def test_more_beams_than_sequences_leave_the_rest_absent():
    got = generate(ENCODER, Beam(20), samples=20, length=1)
    V = CONFIG.vocab_size
    assert np.isfinite(got.scores[:, :V]).all() and np.isneginf(got.scores[:, V:]).all() and not got.tokens[:, V:].any()


# Sampling


def filtered(logp: np.ndarray, strategy: Sample) -> np.ndarray:
    """The distribution a strategy draws from, token by token."""
    p = np.exp(logp / strategy.temperature)
    order = np.argsort(-p, kind="stable")
    kept = order[: strategy.top_k or None]
    inside = p[kept] / p[kept].sum()
    enough = next(n for n in range(1, len(kept) + 1) if inside[:n].sum() >= strategy.top_p - 1e-9)
    out = np.zeros_like(p)
    out[kept[:enough]] = p[kept[:enough]]
    return out / out.sum()


def worst_deviation(draws: np.ndarray, p: np.ndarray) -> float:
    """The largest deviation of a frequency, in its standard deviations; infinite for an impossible draw."""
    frequency = np.bincount(draws, minlength=len(p)) / len(draws)
    if frequency[p == 0].any():
        return np.inf
    p, frequency = p[p > 0], frequency[p > 0]
    return np.max(np.abs(frequency - p) / np.sqrt(np.maximum(p * (1 - p), 1e-9) / len(draws)))


STRATEGIES = [Sample(), Sample(0.6), Sample(top_k=3), Sample(top_p=0.6), Sample(2.0, top_k=5, top_p=0.9)]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_draws_follow_the_distribution(strategy):
    p = np.array([0.02, 0.35, 0.09, 0.3, 0.12, 0.05, 0.07])
    logits = np.broadcast_to(np.log(p).astype(np.float32) + 3, (4000, 7))
    keys = jax.random.split(jax.random.key(0), 4000)
    draws = tiny_t5.jit(decoding._draw, static_argnums=0)(strategy, logits, keys)
    assert worst_deviation(np.asarray(draws), filtered(np.log(p), strategy)) < 4
    others = [filtered(np.log(p), s) for s in STRATEGIES if s != strategy]
    assert all(
        worst_deviation(np.asarray(draws), q) > 6 for q in others
    ), "the test could not tell the strategies apart"


def test_later_tokens_follow_the_distribution_given_earlier_ones():
    encoder, V = ENCODER[:1], CONFIG.vocab_size
    got = generate(encoder, Sample(), samples=4000, length=2)
    logp = log_probs(encoder, [[0, v] for v in range(V)])
    pairs = np.exp(logp[0, 0][:, None] + logp[:, 1])
    pairs[EOS] = 0
    pairs[EOS, 0] = np.exp(logp[0, 0, EOS])
    tokens = got.tokens[0]
    assert worst_deviation(tokens[:, 0] * V + tokens[:, 1], pairs.ravel()) < 4.5
    want = np.where(tokens[:, 0] == EOS, logp[0, 0, EOS], np.log(np.maximum(pairs[tokens[:, 0], tokens[:, 1]], 1e-30)))
    np.testing.assert_allclose(got.scores[0], want, atol=TOLERANCE)
    assert (np.diff(got.scores[0]) <= 0).all()


def test_sampling_the_best_token_only_is_greedy():
    got, greedy = generate(ENCODER, Sample(3.0, top_k=1)), generate(ENCODER, Greedy())
    np.testing.assert_array_equal(got.tokens, greedy.tokens)
    # Scores are the model's own, whatever was filtered.
    np.testing.assert_allclose(got.scores, greedy.scores, atol=TOLERANCE)


# A row's result is its own


# Of the beam search, the kind whose result would change if a row went on until its neighbours are done; ended by the
# token with which it would.
@pytest.mark.parametrize("strategy, eos_id", [(Sample(top_p=0.9), EOS), (Beam(3, 1.0, "hf"), 5)], ids=str)
def test_rows_are_independent_of_batch_order_neighbours_and_padding(strategy, eos_id):
    keys = jax.random.split(jax.random.key(5), ROWS)
    generate = functools.partial(globals()["generate"], samples=3, eos_id=eos_id)
    whole = generate(ENCODER, strategy, rng=keys)
    assert (whole.tokens[:, 0] != whole.tokens[:, 1]).any()
    if isinstance(strategy, Sample):
        assert (generate(ENCODER, strategy, rng=keys[::-1]).tokens != whole.tokens).any(), "the keys decide nothing"
    order = np.array([4, 2, 0, 5, 1, 3])
    permuted = generate(ENCODER[order], strategy, rng=keys[order])
    np.testing.assert_array_equal(permuted.tokens, whole.tokens[order])
    np.testing.assert_allclose(permuted.scores, whole.scores[order], atol=TOLERANCE)
    neighbours = encoder_rows(seed=9)
    neighbours[2] = ENCODER[2]
    other = generate(neighbours, strategy, rng=keys)
    np.testing.assert_array_equal(other.tokens[2], whole.tokens[2])
    assert (other.tokens != whole.tokens).any()
    for row in range(ROWS):
        padded = np.pad(ENCODER[row : row + 1], ((0, 0), (0, 4)))
        alone = generate(padded, strategy, rng=keys[row : row + 1])
        np.testing.assert_array_equal(alone.tokens, whole.tokens[row : row + 1])
        np.testing.assert_allclose(alone.scores, whole.scores[row : row + 1], atol=TOLERANCE)


@pytest.mark.parametrize("groups", [1, 2])
def test_shared_conditioning_generates_and_scores_what_tiling_would(groups):
    shared = tiny_t5.take(EVERYTHING, range(groups))
    tiled = tiny_t5.tile(shared, ROWS)
    got, want = (generate(ENCODER, Beam(3), c, samples=3) for c in (shared, tiled))
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_allclose(got.scores, want.scores, atol=TOLERANCE)
    if groups == 2:
        options = ragged_options()
        got_scores, want_scores = (score(ENCODER, options, None, c).sum for c in (shared, tiled))
        np.testing.assert_allclose(got_scores, want_scores, atol=TOLERANCE)
        swapped = generate(ENCODER, Beam(3), tiny_t5.take(shared, [1, 0]), samples=3)
        assert (swapped.tokens != got.tokens).any()


# Scoring


def ragged_options(seed=0, O=4, length=5):
    """Options of 1 to `length` tokens, from one to O of them per row."""
    rng = np.random.default_rng(seed)
    options = rng.integers(2, CONFIG.vocab_size, (ROWS, O, length)).astype(np.int32)
    for row in range(ROWS):
        for option in range(O):
            n = rng.integers(1, length + 1)
            options[row, option, n - 1], options[row, option, n:] = EOS, 0
        options[row, 1 + row % O :] = 0
    return options


@pytest.mark.parametrize("conditioning", [Conditioning(), EVERYTHING], ids=["plain", "everything"])
def test_scores_equal_a_loop_over_single_options(conditioning):
    options = ragged_options()
    got = score(ENCODER, options, None, conditioning)
    for row, option in itertools.product(range(ROWS), range(options.shape[1])):
        ids = options[row, option][options[row, option] > 0]
        if not len(ids):
            assert (
                np.isneginf(got.sum[row, option])
                and np.isneginf(got.mean[row, option])
                and got.length[row, option] == 0
            )
            continue
        logp = log_probs(ENCODER[row : row + 1], shifted([ids]), tiny_t5.take(conditioning, [row]))
        want = sum(logp[0, i, t] for i, t in enumerate(ids))
        assert abs(got.sum[row, option] - want) < TOLERANCE
        assert got.length[row, option] == len(ids)
        assert abs(got.mean[row, option] - want / len(ids)) < TOLERANCE


def test_padding_options_and_tokens_changes_no_score():
    options = ragged_options()
    want = score(ENCODER, options)
    wide = score(ENCODER, np.pad(options, ((0, 0), (0, 3), (0, 4))))
    np.testing.assert_allclose(wide.sum[:, :4], want.sum, atol=TOLERANCE)
    np.testing.assert_array_equal(wide.length[:, :4], want.length)
    assert np.isneginf(wide.sum[:, 4:]).all()
    # Whatever stands in an absent option, and however many its neighbours have.
    mask = (options > 0).any(-1)
    filled = np.where(mask[..., None], options, 3)
    filled[1:], mask[1:] = 5, True
    np.testing.assert_allclose(score(ENCODER, filled, mask).sum[0], want.sum[0], atol=TOLERANCE)


def test_bad_requests_are_named():
    backbone, x = t5.Backbone(CONFIG, PARAMS), jnp.asarray(ENCODER)
    for make, words in [
        (lambda: Sample(temperature=0.0), "temperature"),
        (lambda: Sample(top_k=-1), "top_k"),
        (lambda: Sample(top_p=0.0), "top_p"),
        (lambda: Beam(0), "size"),
        (lambda: Beam(2, penalty="t5"), "Did you mean 't5x'"),
        (lambda: decoding.generate(backbone, x, strategy=Sample()), "rng"),
        (lambda: decoding.generate(backbone, x, strategy="greedy"), "Greedy"),
        (lambda: decoding.generate(backbone, x, samples=2), "1 per row|between 1 and 1"),
        (lambda: decoding.generate(backbone, x, strategy=Beam(2), samples=3), "between 1 and 2"),
        (lambda: decoding.generate(backbone, x, max_length=0), "max_length"),
        (
            lambda: decoding.generate(backbone, x, strategy=Sample(), rng=jax.random.split(jax.random.key(0), 5)),
            "5 keys",
        ),
        # Per decoder row instead of per encoder row: it would be read by single beams.
        (lambda: decoding.generate(backbone, x, tiny_t5.everything(CONFIG, 2 * ROWS), Beam(2)), "12 groups"),
    ]:
        with pytest.raises(UserError, match=words):
            make()


# Parity with Hugging Face


@pytest.fixture(scope="module", params=["t5", "t5_1.1"])
def pair(request):
    """A random Hugging Face T5, ours with its parameters, and a token with which it ends answers at many lengths."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    huggingface = pytest.importorskip("zeroprompt_jax.interop.huggingface")
    torch.manual_seed(2)
    torch.set_num_threads(1)  # its waiting threads would take the processors from ours
    gated = request.param == "t5_1.1"
    theirs = transformers.T5Config(
        vocab_size=12,
        d_model=16,
        d_kv=4,
        d_ff=24,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=10,
        feed_forward_proj="gated-gelu" if gated else "relu",
        tie_word_embeddings=not gated,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    model = transformers.T5ForConditionalGeneration(theirs).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 3.0 if "EncDecAttention.o" in name else 2.0 if "shared" in name else 0.5
            parameter.copy_(
                1 + 0.1 * torch.randn_like(parameter) if "layer_norm" in name else scale * torch.randn_like(parameter)
            )
    config = t5.dataclasses.replace(
        huggingface.config_from_huggingface(theirs.to_dict()), dtype="float32", dropout_rate=0.0
    )
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return model, (config, huggingface.t5_from_huggingface(state, config)), 8 if gated else 1


@pytest.mark.parity
@pytest.mark.parametrize("beams, penalty", [(1, 1.0), (4, 1.0)])
def test_outputs_equal_hugging_face(pair, beams, penalty):
    import torch

    model, ours, eos_id = pair
    rng, length = np.random.default_rng(3), 8
    encoder = rng.integers(2, 12, (12, 9)).astype(np.int32)
    for row in range(12):
        encoder[row, 9 - row % 4 :] = 0
    settings = dict(max_new_tokens=length, do_sample=False, eos_token_id=eos_id, return_dict_in_generate=True)
    if beams > 1:
        settings |= dict(
            num_beams=beams,
            length_penalty=penalty,
            early_stopping=False,
            num_return_sequences=beams,
            output_scores=True,
        )
    ids = torch.tensor(encoder, dtype=torch.long)
    want = model.generate(input_ids=ids, attention_mask=(ids > 0).long(), **settings)
    strategy = Greedy() if beams == 1 else Beam(beams, penalty, "hf")
    got = generate(encoder, strategy, samples=beams, length=length, model=ours, eos_id=eos_id)
    tokens = want.sequences.numpy()[:, 1:]
    # Their beam search fills up with EOS, where pad has the id 0.
    tokens = np.where(np.cumsum(tokens == eos_id, axis=1) - (tokens == eos_id) > 0, 0, tokens)
    tokens = np.pad(tokens, ((0, 0), (0, length - tokens.shape[1]))).reshape(12, beams, length)
    np.testing.assert_array_equal(got.tokens, tokens)
    if beams > 1:
        np.testing.assert_allclose(got.scores, want.sequences_scores.numpy().reshape(12, beams), atol=1e-4)
    ended = {list(t).index(eos_id) if eos_id in t else length for t in got.tokens[:, 0]}
    assert len(ended) > 3, "answers hardly differ in length, so ending was not tested"
