"""Decoding and scoring with a bound backbone: greedy, sampling, beam search, and log-likelihoods of answer options.

All of it is traceable: call it inside `jax.jit`, with the strategy and `max_length` static. Decoder rows are n per
encoder row (beams, samples, options), in order, so that encoder output and conditioning serve them uncopied.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zeroprompt_jax.errors import UserError, unknown
from zeroprompt_jax.models.backbone import Encoded
from zeroprompt_jax.models.conditioning import Conditioning, check
from zeroprompt_jax.models.t5 import Backbone, Cache

Array = jax.Array
# Finite, so that sums and differences of it stay numbers. Nothing real scores as low.
_NEVER = -1.0e9
PENALTIES = ("t5x", "hf")


@dataclasses.dataclass(frozen=True)
class Greedy:
    """The most probable token at every step; of equal ones the lowest id."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """Draws every token from the model's distribution.

    Attributes:
      temperature: divides the logits; above 0.
      top_k: draw among the k most probable tokens only; 0 is all.
      top_p: draw among the most probable tokens whose probabilities, after temperature and top_k, reach this sum
        (Holtzman et al. 2020); 1 is all. At least one token is always left.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if not self.temperature > 0:
            raise UserError(f"Sample temperature is {self.temperature}; it must be above 0 (the limit 0 is Greedy).")
        if self.top_k < 0:
            raise UserError(f"Sample top_k is {self.top_k}; it must be at least 1, or 0 for all tokens.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"Sample top_p is {self.top_p}; it must be above 0 and at most 1.")


@dataclasses.dataclass(frozen=True)
class Beam:
    """Beam search. A sequence of `len` tokens (EOS counted) and log-probability `sum` scores `sum / penalty(len)`.

    Attributes:
      size: number of beams; 1 is greedy decoding.
      length_penalty: the exponent alpha. 0 compares plain sums, larger values favour longer answers.
      penalty: `t5x` divides by ((5 + len) / 6) ** alpha (Wu et al. 2016, as T5 and T5X do), and a row ends when
        none of its open beams could still beat its finished ones, whatever its length becomes. `hf` divides by
        len ** alpha and ends a row as Hugging Face `generate(early_stopping=False)` does, which judges open beams by
        their present length: same outputs as there.
    With either, of the best 2 * size continuations the best `size` may end, and an answer that is cut at the longest length
    counts as any other, as Hugging Face has it. T5X lets all of them end, and answers with what was cut only where nothing
    ended; the searches are the same but for that.
    """

    size: int = 4
    length_penalty: float = 0.6
    penalty: str = "t5x"

    def __post_init__(self):
        if self.size < 1:
            raise UserError(f"Beam size is {self.size}; it must be at least 1.")
        if self.penalty not in PENALTIES:
            raise unknown("beam penalty", self.penalty, PENALTIES)

    def divisor(self, length: Array | int) -> Array:
        """What a sum over `length` tokens is divided by."""
        length = jnp.asarray(length, jnp.float32)
        return ((5.0 + length) / 6.0 if self.penalty == "t5x" else length) ** self.length_penalty


Strategy = Greedy | Sample | Beam


class Decoded(NamedTuple):
    """tokens: [E, n, S] int32, 0 after EOS. scores: [E, n] float32, best first: the sum of the log-probabilities
    under the model itself (EOS included, temperature and filters not applied), for beams divided by their penalty; -inf
    where a beam search found fewer than n sequences."""

    tokens: Array
    scores: Array


class Scores(NamedTuple):
    """Log-likelihoods of answer options. sum: [E, O] float32, -inf for absent options. length: [E, O] float32, tokens
    summed over, 0 for absent options."""

    sum: Array
    length: Array

    @property
    def mean(self) -> Array:
        """Per token: [E, O] float32, -inf for absent options."""
        return self.sum / jnp.maximum(self.length, 1.0)


def encoded(backbone: Backbone, encoder: Array | Encoded, conditioning: Conditioning) -> Encoded:
    """The encoder's output of tokens [E, T], or what was encoded before; conditioning checked against its E rows."""
    given = isinstance(encoder, Encoded)
    # Groups finer than encoder rows would be read by single beams or options.
    check(conditioning, backbone.config, "decoder", (encoder.hidden if given else encoder).shape[0])
    return encoder if given else backbone.encode(encoder, conditioning)


def generate(
    backbone: Backbone,
    encoder: Array | Encoded,
    conditioning: Conditioning = Conditioning(),
    strategy: Strategy = Greedy(),
    max_length: int = 32,
    rng: Array | None = None,
    eos_id: int = 1,
    samples: int = 1,
) -> Decoded:
    """Generates up to `max_length` tokens for every row, each row independently of the others.

    Args:
      backbone: a bound T5 (without dropout).
      encoder: tokens [E, T] with 0 as padding, or their `Encoded`.
      conditioning: of these E rows.
      strategy: Greedy, Sample or Beam.
      max_length: S, most tokens of an answer, EOS included.
      rng: for Sample, one key, or [E] keys, one per row; with one key a row's draws depend on its number in the batch.
      eos_id: ends an answer.
      samples: n, answers per row: 1 for Greedy, any for Sample, at most the number of beams for Beam.

    Raises:
      UserError: more answers than the strategy has, Sample without rng, or conditioning that does not fit.
    """
    if max_length < 1:
        raise UserError(f"max_length is {max_length}; an answer has at least one token.")
    if not isinstance(strategy, Strategy):
        raise UserError(f"Decoding strategy is {strategy!r}; it must be Greedy(), Sample(...) or Beam(...).")
    most = math.inf if isinstance(strategy, Sample) else getattr(strategy, "size", 1)
    if not 1 <= samples <= most:
        raise UserError(f"{strategy} gives between 1 and {most} answers per row, not {samples}.")
    if isinstance(strategy, Sample) and rng is None:
        raise UserError("Sample needs rng, a jax.random key.")
    source = encoded(backbone, encoder, conditioning)
    if isinstance(strategy, Beam) and strategy.size > 1:
        tokens, scores = _beams(backbone, source, conditioning, strategy, max_length, eos_id)
        return Decoded(tokens[:, :samples], scores[:, :samples])
    keys = None
    if isinstance(strategy, Sample):
        keys = _row_keys(rng, source.hidden.shape[0], samples)
    tokens, scores = _one_by_one(backbone, source, conditioning, strategy, max_length, eos_id, samples, keys)
    if isinstance(strategy, Beam):
        scores = scores / strategy.divisor(_lengths(tokens, eos_id))
    order = jnp.argsort(-scores, axis=1)
    return Decoded(jnp.take_along_axis(tokens, order[..., None], axis=1), jnp.take_along_axis(scores, order, axis=1))


def _lengths(tokens: Array, eos_id: int) -> Array:
    """Number of tokens up to and with the first EOS: [..., S] -> [...]."""
    ended = jnp.cumsum(tokens == eos_id, axis=-1) - (tokens == eos_id)
    return jnp.sum(ended == 0, axis=-1)


def _row_keys(rng: Array, rows: int, samples: int) -> Array:
    """A key for each answer: [E * n]."""
    if not jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
        rng = jax.random.wrap_key_data(rng)
    if rng.ndim == 0:
        rng = jax.vmap(jax.random.fold_in, (None, 0))(rng, jnp.arange(rows))
    if rng.shape != (rows,):
        raise UserError(f"rng holds {rng.shape[0]} keys for {rows} rows; give one key, or one per row.")
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    return fold(rng, jnp.arange(samples)).reshape(rows * samples)


def _draw(strategy: Sample, logits_BV: Array, keys_B: Array) -> Array:
    """One token per row."""
    logits_BV = logits_BV / strategy.temperature
    V = logits_BV.shape[-1]
    if strategy.top_k in (0, V) and strategy.top_p == 1:
        return jax.vmap(jax.random.categorical)(keys_B, logits_BV)
    best_Bk, ids_Bk = jax.lax.top_k(logits_BV, min(strategy.top_k or V, V))
    p_Bk = jax.nn.softmax(best_Bk, axis=-1)
    # A token stays while those before it have not reached top_p; the first has none before it, so it always stays.
    before_Bk = jnp.cumsum(p_Bk, axis=-1) - p_Bk
    keep_Bk = (before_Bk < strategy.top_p).at[:, 0].set(True)
    choice_B = jax.vmap(jax.random.categorical)(keys_B, jnp.where(keep_Bk, best_Bk, -jnp.inf))
    return jnp.take_along_axis(ids_Bk, choice_B[:, None], axis=1)[:, 0]


def _one_by_one(backbone, source: Encoded, conditioning, strategy, S: int, eos_id: int, n: int, keys_B):
    """Greedy decoding and sampling -> tokens [E, n, S], scores [E, n]."""
    B = source.hidden.shape[0] * n

    def pick(i, logits_BV, done_B):
        logits_BV = logits_BV.astype(jnp.float32)
        if keys_B is None:
            token_B = jnp.argmax(logits_BV, axis=-1)
        else:
            token_B = _draw(strategy, logits_BV, jax.vmap(jax.random.fold_in, (0, None))(keys_B, i))
        gain_B = token_log_probs(logits_BV, token_B)
        token_B = jnp.where(done_B, 0, token_B).astype(jnp.int32)
        return token_B, jnp.where(done_B, 0.0, gain_B), done_B | (token_B == eos_id)

    logits, cache = backbone.start(jnp.zeros((B, 1), jnp.int32), source, conditioning, S)
    cross = cache.cross
    token_B, scores_B, done_B = pick(0, logits[:, -1], jnp.zeros(B, bool))
    tokens_BS = jnp.zeros((B, S), jnp.int32).at[:, 0].set(token_B)

    def body(state):
        i, token_B, done_B, tokens_BS, scores_B, (key, value, index) = state
        logits, cache = backbone.step(token_B[:, None], source, conditioning, Cache(key, value, index, cross))
        token_B, gain_B, done_B = pick(i, logits[:, -1], done_B)
        tokens_BS = jax.lax.dynamic_update_slice_in_dim(tokens_BS, token_B[:, None], i, axis=1)
        return i + 1, token_B, done_B, tokens_BS, scores_B + gain_B, (cache.key, cache.value, cache.index)

    state = (jnp.int32(1), token_B, done_B, tokens_BS, scores_B, (cache.key, cache.value, cache.index))
    state = jax.lax.while_loop(lambda state: (state[0] < S) & ~state[2].all(), body, state)
    return state[3].reshape(-1, n, S), state[4].reshape(-1, n)


def _choose(x: Array, index_EK: Array) -> Array:
    """[E, N, ...], [E, K] -> [E, K, ...]."""
    return jax.vmap(lambda row, index: row[index])(x, index_EK)


def _beams(backbone, source: Encoded, conditioning, strategy: Beam, S: int, eos_id: int):
    """Beam search -> tokens [E, K, S], penalised scores [E, K], best first.

    Of the best 2K continuations the best K may finish (by EOS, or by reaching S) and the best K that did not go on, so
    that K open beams are always left (Hugging Face's vectorised search).
    """
    E, K = source.hidden.shape[0], strategy.size
    rows = E * K

    def advance(i, logits_BV, state):
        running_EKS, sums_EK, found_EKS, scores_EK, open_E = state
        logp = jax.nn.log_softmax(logits_BV.astype(jnp.float32), axis=-1)
        V = logp.shape[-1]
        total = (logp.reshape(E, K, V) + sums_EK[..., None]).reshape(E, K * V)
        best_EC, flat_EC = jax.lax.top_k(total, min(2 * K, K * V))
        parent_EC, token_EC = flat_EC // V, (flat_EC % V).astype(jnp.int32)
        C = best_EC.shape[1]
        grown_ECS = _choose(running_EKS, parent_EC)
        grown_ECS = jax.lax.dynamic_update_slice_in_dim(grown_ECS, token_EC[..., None], i, axis=2)
        ends_EC = (token_EC == eos_id) | (i + 1 == S)

        # A row that is closed finds no more, so that its result does not wait on its neighbours.
        may_EC = ends_EC & (jnp.arange(C) < K) & open_E[:, None] & (best_EC > _NEVER / 2)
        final_EC = jnp.where(may_EC, best_EC / strategy.divisor(i + 1), _NEVER)
        scores_EK, kept_EK = jax.lax.top_k(jnp.concatenate([scores_EK, final_EC], axis=1), K)
        found_EKS = _choose(jnp.concatenate([found_EKS, grown_ECS], axis=1), kept_EK)

        sums_EK, next_EK = jax.lax.top_k(jnp.where(ends_EC, best_EC + _NEVER, best_EC), K)
        running_EKS = _choose(grown_ECS, next_EK)
        hope_E = sums_EK[:, 0] / strategy.divisor(i + 1)
        if strategy.penalty == "t5x":
            hope_E = jnp.maximum(hope_E, sums_EK[:, 0] / strategy.divisor(S))
        open_E = open_E & (hope_E > scores_EK[:, -1])
        state = (running_EKS, sums_EK, found_EKS, scores_EK, open_E)
        return state, _choose(parent_EC, next_EK), _choose(token_EC, next_EK)

    # All beams begin alike, so only the first may branch at the first step.
    empty = jnp.zeros((E, K, S), jnp.int32)
    sums_EK = jnp.full((E, K), _NEVER).at[:, 0].set(0.0)
    state = (empty, sums_EK, empty, jnp.full((E, K), _NEVER), jnp.ones(E, bool))
    logits, cache = backbone.start(jnp.zeros((rows, 1), jnp.int32), source, conditioning, S)
    cross = cache.cross
    state, _, token_EK = advance(0, logits[:, -1], state)  # the parents are alike, so is their cache

    def body(carry):
        i, token_EK, state, (key, value, index) = carry
        tokens = token_EK.reshape(rows, 1)
        logits, cache = backbone.step(tokens, source, conditioning, Cache(key, value, index, cross))
        state, parent_EK, token_EK = advance(i, logits[:, -1], state)

        def reorder(x_LBNHK):
            x = x_LBNHK.reshape(-1, E, K, *x_LBNHK.shape[2:])
            return jax.vmap(_choose, (0, None))(x, parent_EK).reshape(x_LBNHK.shape)

        return i + 1, token_EK, state, (reorder(cache.key), reorder(cache.value), cache.index)

    carry = (jnp.int32(1), token_EK, state, (cache.key, cache.value, cache.index))
    carry = jax.lax.while_loop(lambda carry: (carry[0] < S) & carry[2][-1].any(), body, carry)
    _, _, found_EKS, scores_EK, _ = carry[2]
    real_EK = scores_EK > _NEVER / 2
    return jnp.where(real_EK[..., None], found_EKS, 0), jnp.where(real_EK, scores_EK, -jnp.inf)


def token_log_probs(logits: Array, tokens: Array) -> Array:
    """Log-probability of each token, from a float32 log-softmax: [..., V], [...] -> [...]."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, tokens[..., None].astype(jnp.int32), axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def score(
    backbone: Backbone,
    encoder: Array | Encoded,
    conditioning: Conditioning,
    options_EOS: Array,
    option_mask_EO: Array | None = None,
) -> Scores:
    """Log-likelihood of each of up to O answer options per row, the encoder run once per row.

    Args:
      backbone: a bound T5 (without dropout).
      encoder: tokens [E, T] with 0 as padding, or their `Encoded`.
      conditioning: of these E rows.
      options_EOS: [E, O, S] token ids, 0 as padding; EOS is scored where an option carries it.
      option_mask_EO: [E, O], true where there is an option; by default, where it has a token.
    """
    E, O, S = options_EOS.shape
    source = encoded(backbone, encoder, conditioning)
    targets_BS = options_EOS.reshape(E * O, S)
    inputs_BS = jnp.pad(targets_BS, ((0, 0), (1, 0)))[:, :-1]
    logits_BSV = backbone.decode(inputs_BS, source, conditioning)
    here_BS = targets_BS > 0
    sums_EO = jnp.where(here_BS, token_log_probs(logits_BSV, targets_BS), 0.0).sum(-1).reshape(E, O)
    length_EO = here_BS.sum(-1).astype(jnp.float32).reshape(E, O)
    mask_EO = length_EO > 0 if option_mask_EO is None else option_mask_EO.astype(bool)
    return Scores(jnp.where(mask_EO, sums_EO, -jnp.inf), jnp.where(mask_EO, length_EO, 0.0))
