"""Counted operations against what XLA counts in an unrolled model."""

import jax
import numpy as np
import pytest

from zeroprompt_jax.models import decoding, flops, t5
from zeroprompt_jax.models.conditioning import Adapter, Conditioning, LowRank, Prefix, Stack, Sublayer, projections
from zeroprompt_jax.models.lowering import lower
from zeroprompt_jax.models.objectives import cross_entropy

B, T, S, P, O = 2, 24, 16, 8, 3


def counted(function, *args) -> float:
    """What XLA counts before it optimises; nothing is compiled."""
    analysis = jax.jit(function).lower(*args).cost_analysis()
    return (analysis[0] if isinstance(analysis, list) else analysis)["flops"]


@pytest.mark.parametrize(
    "sizes",
    [
        {"mlp_activations": ("relu",), "logits_via_embedding": True},
        {"mlp_activations": ("gelu", "linear"), "logits_via_embedding": False},
        {"emb_dim": 128, "num_encoder_layers": 1, "num_decoder_layers": 3, "dropout_rate": 0.1},
        {"vocab_size": 4096, "head_dim": 96, "mlp_dim": 256, "dtype": "bfloat16"},
    ],
)
def test_flops_agree_with_xla(sizes):
    base = dict(vocab_size=512, emb_dim=256, num_heads=4, head_dim=48, mlp_dim=512, num_encoder_layers=2)
    base |= dict(num_decoder_layers=1, dropout_rate=0.0, dtype="float32", scan_layers=False)
    config = t5.T5Config(**{**base, **sizes})
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


def test_flops_of_each_part_of_a_conditioning_agree_with_xla():
    """Each part's own operations: those of the conditioned pass less those of the plain one."""
    sizes = dict(vocab_size=64, emb_dim=64, num_heads=2, head_dim=48, mlp_dim=128, num_encoder_layers=2)
    config = t5.T5Config(**sizes, num_decoder_layers=1, dropout_rate=0.0, dtype="float32", scan_layers=False)
    params = jax.eval_shape(lambda: t5.init(config, jax.random.key(0)))
    encoder, decoder = np.ones((B, T), np.int32), np.ones((B, S), np.int32)
    of = lambda *shape: jax.ShapeDtypeStruct(shape, np.float32)
    D, H, K, R, M = config.emb_dim, config.num_heads, config.head_dim, 40, 48

    def stacks(make):
        """What `make` gives each sublayer: of its number of layers, its projections and whether it attends."""
        made = {}
        for side, L in (("encoder", 2), ("decoder", 1)):
            given = {name: make(L, sub, name != "mlp") for name, sub in projections(config, side).items()}
            made[side] = Stack(**{name: sub or Sublayer() for name, sub in given.items()})
        return Conditioning(**made)

    lora = lambda L, names: {n: LowRank(of(L, 1, i, R), of(L, 1, R, o)) for n, (i, o) in names.items()}
    prefix = lambda L: Prefix(of(L, 1, M, H, K), of(L, 1, M, H, K))
    cases = {
        "prefixes": stacks(lambda L, names, attends: Sublayer(prefix(L)) if attends else None),
        "adapters": stacks(lambda L, names, attends: Sublayer(adapter=Adapter(of(L, 1, D, R), of(L, 1, R, D)))),
        "lora": stacks(lambda L, names, attends: Sublayer(lora=lora(L, names))),
        "memory": Conditioning(memory=of(1, M, D)),
    }

    def run(params, conditioning):
        return t5.Backbone(config, params)(encoder, decoder, conditioning).logits

    plain = counted(run, params, Conditioning())
    for part, conditioning in cases.items():
        found = flops.conditioned(config, conditioning, T, S)
        assert found["encoder"] + found["decoder"] == flops.forward(config, 1, T, S)
        keys = found.pop("memory_keys", 0)  # of a memory that all rows share, projected once
        assert set(found) == {"encoder", "decoder", part}
        assert counted(run, params, conditioning) - plain == pytest.approx(B * found[part] + keys, rel=0.15), part
        if keys:
            lowering = lambda p, c: lower(t5.Backbone(config, p), c).decoder.cross_attention.prefix
            assert counted(lowering, params, conditioning) == pytest.approx(keys, rel=0.15)
