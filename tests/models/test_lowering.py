"""A lowered memory conditions as the memory does: logits, greedy and beam search."""

import dataclasses

import numpy as np
import pytest
import tiny_t5
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.models import decoding, t5
from zeroprompt_jax.models.conditioning import Conditioning, Prefix
from zeroprompt_jax.models.lowering import join, lower

CONFIG = tiny_t5.config()
ENCODER, DECODER = tiny_t5.tokens()
EVERYTHING = tiny_t5.everything(CONFIG, groups=2)
ALONE = Conditioning(memory=EVERYTHING.memory, memory_mask=EVERYTHING.memory_mask)


def lowered(config, conditioning):
    return lower(t5.Backbone(config, tiny_t5.params(config)), conditioning)


def difference(config, a, b) -> float:
    return float(
        np.abs(tiny_t5.logits(config, ENCODER, DECODER, a) - tiny_t5.logits(config, ENCODER, DECODER, b)).max()
    )


def with_memory(conditioning, groups):
    """The same with a memory of other groups."""
    other = tiny_t5.everything(CONFIG, groups, seed=5)
    return dataclasses.replace(conditioning, memory=other.memory, memory_mask=other.memory_mask)


@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unscanned"])
@pytest.mark.parametrize(
    "conditioning",
    [
        EVERYTHING,
        ALONE,
        dataclasses.replace(EVERYTHING, memory_mask=None),
        with_memory(EVERYTHING, 4),
        with_memory(EVERYTHING, 1),
    ],
    ids=["everything", "alone", "unmasked", "finer memory", "shared memory"],
)
def test_logits_are_equal(conditioning, scan):
    config = tiny_t5.config(scan_layers=scan)
    found = lowered(config, conditioning)
    assert found.memory is None and found.memory_mask is None and found.encoder == conditioning.encoder
    assert difference(config, found, conditioning) <= tiny_t5.TOLERANCE


def test_the_projections_conditioning_and_the_mask_matter():
    """Negative controls: each part that lowering must apply moves the logits when it is left out."""
    assert difference(CONFIG, dataclasses.replace(EVERYTHING, memory=None, memory_mask=None), EVERYTHING) > 1e-2
    own = EVERYTHING.decoder.cross_attention
    for field in ("lora", "scale", "bias"):
        bare = dataclasses.replace(own, **{field: None})
        made = lowered(
            CONFIG, dataclasses.replace(EVERYTHING, decoder=EVERYTHING.decoder.replace(cross_attention=bare))
        )
        prefix = made.decoder.cross_attention.prefix
        wrong = lowered(CONFIG, EVERYTHING)
        wrong = wrong.replace(decoder=wrong.decoder.replace(cross_attention=own.replace(prefix=prefix)))
        assert difference(CONFIG, wrong, EVERYTHING) > 1e-2, field
    assert difference(CONFIG, lowered(CONFIG, dataclasses.replace(EVERYTHING, memory_mask=None)), EVERYTHING) > 1e-2


@pytest.mark.parametrize("strategy", [decoding.Greedy(), decoding.Beam(3)], ids=["greedy", "beam"])
def test_decoding_is_equal(strategy):
    @tiny_t5.jit
    def decode(params, conditioning):
        return decoding.generate(t5.Backbone(CONFIG, params), ENCODER, conditioning, strategy, 5)

    params = tiny_t5.params(CONFIG)
    want, got = decode(params, EVERYTHING), decode(params, lowered(CONFIG, EVERYTHING))
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_allclose(got.scores, want.scores, atol=tiny_t5.TOLERANCE)
    without = decode(params, dataclasses.replace(EVERYTHING, memory=None, memory_mask=None))
    assert np.abs(without.scores - want.scores).max() > 1e-3


def test_without_memory_nothing_changes_and_a_wrong_one_is_named():
    plain = dataclasses.replace(EVERYTHING, memory=None, memory_mask=None)
    assert lowered(CONFIG, plain) is plain
    with pytest.raises(UserError, match=r"memory has shape \(2, 3, 5\); this backbone needs \[G, M, 16\]"):
        lowered(CONFIG, Conditioning(memory=np.zeros((2, 3, 5), np.float32)))


def test_prefixes_of_unequal_groups_join():
    draw = lambda *shape: np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)
    first, second = Prefix(draw(1, 2, 3, 2, 4), draw(1, 2, 3, 2, 4)), Prefix(draw(1, 4, 1, 2, 4), draw(1, 4, 1, 2, 4))
    found = join(first, second.replace(mask=np.zeros((1, 1, 1), bool)))
    assert found.key.shape == found.value.shape == (1, 4, 4, 2, 4)
    np.testing.assert_array_equal(found.key[:, 1, :3], first.key[:, 0])
    np.testing.assert_array_equal(found.key[:, 2, 3:], second.key[:, 2])
    np.testing.assert_array_equal(found.mask, [[[True, True, True, False]] * 4])
