"""Incremental decoding sees what teacher forcing sees, with every kind of conditioning."""

import functools

import jax
import numpy as np
import pytest
import tiny_t5
from tiny_t5 import TOLERANCE

from zeroprompt_jax.models import t5
from zeroprompt_jax.models.conditioning import Conditioning, Prefix, Stack, Sublayer

CONFIG = tiny_t5.config()
EVERYTHING = tiny_t5.everything(CONFIG, groups=4)
ENCODER, DECODER = tiny_t5.tokens(rows=4)


@functools.partial(tiny_t5.jit, static_argnums=(0, 4))
def incremental(config, encoder, decoder, conditioning, chunks):
    """Logits [B, S, V], decoded in chunks of the given lengths into a cache that is longer than they need."""
    backbone = t5.Backbone(config, tiny_t5.params(config))
    encoded = backbone.encode(encoder, conditioning)
    # Afterwards only masks of what cross-attention reads are needed; NaN proves that nothing else is read.
    logits, cache = backbone.start(decoder[:, : chunks[0]], encoded, conditioning, sum(chunks) + 2)
    encoded = encoded.replace(hidden=encoded.hidden * np.nan)
    if conditioning.memory is not None:
        conditioning = conditioning.replace(memory=conditioning.memory * np.nan)
    out, start = [logits], chunks[0]
    for length in chunks[1:]:
        logits, cache = backbone.step(decoder[:, start : start + length], encoded, conditioning, cache)
        out.append(logits)
        start += length
    return jax.numpy.concatenate(out, axis=1), cache.index


def compare(conditioning, chunks=(2, 1, 3), config=CONFIG, encoder=ENCODER, decoder=DECODER):
    got, index = incremental(config, encoder, decoder, conditioning, chunks)
    assert index == conditioning.decoder.prompt_length + 6
    np.testing.assert_allclose(got, tiny_t5.logits(config, encoder, decoder, conditioning), atol=TOLERANCE)


@pytest.mark.parametrize("kind", tiny_t5.kinds(EVERYTHING))
def test_each_kind_alone(kind):
    """Alone by value: the others are masked, zero or one (which test_conditioning proves to be nothing)."""
    compare(tiny_t5.only(EVERYTHING, kind))


def test_every_kind_at_once():
    compare(EVERYTHING)


def test_no_conditioning_and_another_chunking():
    compare(Conditioning(), chunks=(2, 4))


def test_unscanned_with_shared_conditioning_and_beams():
    """8 decoder rows on 4 encoder rows; a layer prompt that brings its own positions."""
    sizes = dict(num_encoder_layers=1, num_decoder_layers=2)
    config = tiny_t5.config(scan_layers=False, logits_via_embedding=True, mlp_activations=("relu",), **sizes)
    shared = tiny_t5.everything(config, groups=2, seed=1)
    shared = shared.replace(decoder=shared.decoder.replace(prompt=None, prompt_mask=None))
    compare(shared, chunks=(3, 3), config=config, decoder=tiny_t5.tokens(rows=8)[1])


def test_only_self_attention_prefixes_and_decoder_prompts():
    """Structures of their own: no masks given, other fields absent."""
    rng = np.random.default_rng(0)
    key, value = rng.normal(size=(2, 3, 1, 2, CONFIG.num_heads, CONFIG.head_dim)).astype(np.float32)
    stack = Stack(prompt=rng.normal(size=(2, 3, CONFIG.emb_dim)), self_attention=Sublayer(prefix=Prefix(key, value)))
    compare(Conditioning(decoder=stack), chunks=(5, 1))


def test_a_token_changes_its_own_and_later_positions():
    """Negative control, at a position where no slot replaces the token."""
    other = DECODER.copy()
    other[:, 4] = DECODER[:, 4] % 29 + 2
    got, changed = (incremental(CONFIG, ENCODER, rows, EVERYTHING, (2, 1, 3))[0] for rows in (DECODER, other))
    difference = np.abs(got - changed).max((0, 2))
    assert (difference[:4] == 0).all() and (difference[4:] > 1e-3).all()
