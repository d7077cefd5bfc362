"""Counted operations against what XLA counts in an unrolled model."""

import jax
import numpy as np
import pytest

from zeroprompt_jax.models import decoding, flops, t5
from zeroprompt_jax.models.conditioning import Conditioning, Stack
from zeroprompt_jax.models.objectives import cross_entropy

B, T, S, P, O = 2, 24, 16, 8, 3


def counted(function, *args) -> float:
    """What XLA counts before it optimises; nothing is compiled."""
    analysis = jax.jit(function).lower(*args).cost_analysis()
    return (analysis[0] if isinstance(analysis, list) else analysis)["flops"]


@pytest.mark.parametrize("activations, tied", [(("relu",), True), (("gelu", "linear"), False)])
def test_flops_agree_with_xla(activations, tied):
    config = t5.T5Config(
        vocab_size=512,
        emb_dim=256,
        num_heads=4,
        head_dim=48,
        mlp_dim=512,
        num_encoder_layers=2,
        num_decoder_layers=1,
        mlp_activations=activations,
        logits_via_embedding=tied,
        dropout_rate=0.0,
        dtype="float32",
        scan_layers=False,
    )
    params = jax.eval_shape(lambda: t5.init(config, jax.random.key(0)))
    encoder, decoder = np.ones((B, T), np.int32), np.ones((B, S), np.int32)
    prompt = jax.ShapeDtypeStruct((P, config.emb_dim), np.float32)

    def forward(params, prompt=None):
        given = Conditioning() if prompt is None else Conditioning(encoder=Stack(prompt=prompt[None]))
        return t5.Backbone(config, params)(encoder, decoder, given).logits

    def loss(params, prompt=None):
        return cross_entropy(forward(params, prompt), decoder, np.ones((B, S), np.float32)).loss

    assert counted(forward, params) == pytest.approx(flops.forward(config, B, T, S), rel=0.15)
    assert counted(forward, params, prompt) == pytest.approx(flops.forward(config, B, T, S, P), rel=0.15)
    assert counted(jax.grad(loss), params) == pytest.approx(flops.train(config, B, T, S), rel=0.15)
    frozen = counted(jax.grad(loss, argnums=1), params, prompt)
    assert frozen == pytest.approx(flops.train(config, B, T, S, P, frozen=True), rel=0.15)
    assert flops.forward(config, 3 * B, T, S) == 3 * flops.forward(config, B, T, S)

    def rank(params):
        options = np.ones((B, O, S), np.int32)
        return decoding.score(t5.Backbone(config, params), encoder, Conditioning(), options).sum

    assert counted(rank, params) == pytest.approx(flops.score(config, B, T, S, O), rel=0.15)
    assert flops.score(config, B, T, S, 1) == flops.forward(config, B, T, S)
    assert flops.score(config, B, T, S, O) < 0.9 * O * flops.forward(config, B, T, S)  # so the encoder's share shows
