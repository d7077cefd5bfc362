"""How fast a population of wordings is scored, beside the bare forward passes that it needs."""

import functools
import random
import time
from typing import Any

import jax
import numpy as np

from zeroprompt_jax.data import cards
from zeroprompt_jax.data.batches import Features
from zeroprompt_jax.data.vocabulary import Vocabulary
from zeroprompt_jax.evaluation.predict import Predictor
from zeroprompt_jax.methods.full import Full
from zeroprompt_jax.models import decoding, flops, t5
from zeroprompt_jax.models.conditioning import Conditioning
from zeroprompt_jax.models.t5 import Backbone, T5Config
from zeroprompt_jax.search.prompt_search import Examples, lengths, scores

_WORDS = ("stone", "river", "light", "garden", "paper", "music", "wind", "tree", "house", "water", "fire", "glass")
CARD = cards.TaskCard("bench", "bench", ("",))


def examples(count: int, options: int, tokens: int, seed: int = 0) -> Examples:
    """Random words, about `tokens` of them an example, and `options` answers of one to three words."""
    draw = random.Random(seed)
    text = lambda n: " ".join(draw.choice(_WORDS) for _ in range(n))
    made = []
    for _ in range(count):
        listed = tuple(f"{word} {text(draw.randint(0, 2))}".strip() for word in draw.sample(_WORDS, options))
        given = text(draw.randint(tokens * 3 // 4, tokens * 5 // 4))
        made.append({"input": given, "target": listed[0], "options": listed})
    return Examples.of(CARD, made)


def population(count: int, seed: int = 0) -> list[str]:
    """Random wordings of 6 to 14 words."""
    draw = random.Random(seed)
    return [" ".join(draw.choice(_WORDS) for _ in range(draw.randint(6, 14))) for _ in range(count)]


@functools.partial(jax.jit, static_argnames="config")
def _bare(params, tokens, options_EOS, *, config):
    return decoding.score(Backbone(config, params), tokens, Conditioning(), options_EOS).sum


def measure(
    config: T5Config,
    vocabulary: Vocabulary,
    wordings: int = 64,
    count: int = 32,
    options: int = 4,
    tokens: int = 32,
    batch: int = 64,
    rounds: int = 3,
) -> dict[str, Any]:
    """Scores `wordings` × `count` examples × `options`, and does as many bare forward passes in turn.

    A bare pass is the model alone: token arrays made beforehand, rows of the prompts' mean length and answers of the
    longest's, both without padding, the encoder run once per (wording, example) and the decoder once per option.

    Returns medians: `search_s`, from texts to an array of scores; `bare_s`; `ratio`; `padding`, computed over needed
    encoder tokens; `search_compile_s`; and the analytic `tflop` of a bare round.
    """
    params = jax.jit(lambda: t5.init(config, jax.random.key(0)))()
    task, names = examples(count, options, tokens), population(wordings)
    used = np.array([len(vocabulary.encode(f"{w} {e['input']}")) + 1 for w in names for e in task.fields])
    inputs = int(used.max())
    predictor = Predictor(
        config,
        {"backbone": params, "method": {}},
        Full(),
        vocabulary,
        Features(inputs, 8),
        batch_size=batch,
        lengths=lengths(inputs),
    )
    padded = np.array([predictor._padded(n) for n in used])
    answers = max(len(vocabulary.encode(text)) + 1 for own in task.options for text in own)
    rng = np.random.default_rng(0)
    tokens_BT = rng.integers(3, vocabulary.size, (batch, round(used.mean())), dtype=np.int32)
    options_BOS = rng.integers(3, vocabulary.size, (batch, options, answers), dtype=np.int32)
    batches = -(-len(used) // batch)

    def bare() -> None:
        for _ in range(batches):
            jax.device_get(_bare(params, tokens_BT, options_BOS, config=config))

    def timed(action) -> float:
        began = time.perf_counter()
        action()
        return time.perf_counter() - began

    search = lambda: scores(predictor, CARD, task, names)
    compiled = timed(search)
    jax.block_until_ready(_bare(params, tokens_BT, options_BOS, config=config))
    # In turn, so that a busy machine slows both.
    turns = np.array([(timed(search), timed(bare)) for _ in range(rounds)])
    search_s, bare_s = np.median(turns, axis=0)
    return {
        "wordings": wordings,
        "examples": count,
        "options": options,
        "mean_tokens": float(used.mean()),
        "search_s": float(search_s),
        "bare_s": float(bare_s),
        "ratio": float(np.median(turns[:, 0] / turns[:, 1])),
        "padding": float(padded.sum() / used.sum()),
        "search_compile_s": compiled - float(search_s),
        "tflop": flops.score(config, len(used), round(used.mean()), answers, options) / 1e12,
    }
