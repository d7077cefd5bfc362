"""Hugging Face checkpoints: names, round trips, and the same logits as transformers from the same weights."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.interop import huggingface
from zeroprompt_jax.models import t5
from zeroprompt_jax.models.backbone import stack_layers, unstack_layers

SIZES = dict(
    vocab_size=48,
    d_model=16,
    d_kv=6,
    num_heads=3,
    d_ff=20,
    num_layers=2,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=10,
    dropout_rate=0.1,
    layer_norm_epsilon=1e-6,
)
CONFIGS = {
    "t5 1.0": dict(SIZES, model_type="t5", feed_forward_proj="relu"),
    "t5 1.1": dict(SIZES, model_type="t5", feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "mt5": dict(SIZES, model_type="mt5", feed_forward_proj="gated-gelu", tie_word_embeddings=False, vocab_size=70),
    "byt5": dict(
        SIZES,
        model_type="t5",
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        num_layers=3,
        num_decoder_layers=1,
    ),
}


def config_of(name, scan=True):
    config = huggingface.config_from_huggingface(CONFIGS[name])
    return dataclasses.replace(config, dtype="float32", scan_layers=scan)


@functools.cache
def params_of(config):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: t5.init(config, jax.random.key(0)))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def assert_equal_trees(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_config_of_every_family():
    want = dict(
        vocab_size=48,
        emb_dim=16,
        head_dim=6,
        num_heads=3,
        mlp_dim=20,
        num_encoder_layers=2,
        num_decoder_layers=2,
        relpos_num_buckets=8,
        relpos_max_distance=10,
        dropout_rate=0.1,
    )
    gated = ("gelu", "linear")
    assert huggingface.config_from_huggingface(CONFIGS["t5 1.0"]) == t5.T5Config(
        **want, mlp_activations=("relu",), logits_via_embedding=True
    )
    assert huggingface.config_from_huggingface(CONFIGS["t5 1.1"]) == t5.T5Config(**want, mlp_activations=gated)
    assert huggingface.config_from_huggingface(CONFIGS["mt5"]) == t5.T5Config(
        **{**want, "vocab_size": 70}, mlp_activations=gated
    )
    deep = t5.T5Config(**{**want, "num_encoder_layers": 3, "num_decoder_layers": 1}, mlp_activations=gated)
    assert huggingface.config_from_huggingface(CONFIGS["byt5"]) == deep
    # transformers 5 writes tie_word_embeddings true for every T5, and says apart whether logits are scaled.
    for scaled in (True, False):
        written = dict(CONFIGS["t5 1.1"], tie_word_embeddings=True, scale_decoder_outputs=scaled)
        assert huggingface.config_from_huggingface(written).logits_via_embedding is scaled
    assert not huggingface.config_from_huggingface(dict(CONFIGS["mt5"], tie_word_embeddings=True)).logits_via_embedding


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (dict(model_type="umt5"), "model_type 'umt5'.*'mt5'"),
        (dict(feed_forward_proj="gated-glu"), "feed_forward_proj 'gated-glu'.*'gated-gelu'"),
        (dict(feed_forward_proj="gelu_fast"), "feed_forward_proj 'gelu_fast'"),
        (dict(d_kv=None, d_ff=None), "lacks d_kv, d_ff"),
        (dict(layer_norm_epsilon=1e-5), "layer_norm_epsilon 1e-05"),
    ],
)
def test_config_names_what_it_cannot_be(change, match):
    with pytest.raises(UserError, match=match):
        huggingface.config_from_huggingface({**CONFIGS["t5 1.0"], **change})


@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unscanned"])
@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip_is_bit_equal(name, scan):
    config = config_of(name, scan)
    params = params_of(config)
    state = huggingface.t5_to_huggingface(params, config)
    assert_equal_trees(huggingface.t5_from_huggingface(state, config), params)
    other = dataclasses.replace(config, scan_layers=not scan)
    unstacked = params if not scan else unstack_layers(params)
    crossed = huggingface.t5_from_huggingface(state, other)
    assert_equal_trees(crossed, stack_layers(unstacked) if not scan else unstacked)
    assert_equal_trees(huggingface.t5_to_huggingface(crossed, config), state)


def test_tensors_are_turned_and_named():
    config = config_of("t5 1.1", scan=False)
    params, state = params_of(config), huggingface.t5_to_huggingface(params_of(config), config)
    decoder = params["decoder"]
    for name, want in {
        "shared.weight": params["token_embedder"]["embedding"],
        "lm_head.weight": decoder["logits_dense"]["kernel"].T,
        "decoder.block.1.layer.1.EncDecAttention.q.weight": decoder["layers_1"]["encoder_decoder_attention"]["query"][
            "kernel"
        ].T,
        "decoder.block.0.layer.2.DenseReluDense.wi_1.weight": decoder["layers_0"]["mlp"]["wi_1"]["kernel"].T,
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": decoder["relpos_bias"][
            "rel_embedding"
        ].T,
        "encoder.block.1.layer.1.layer_norm.weight": params["encoder"]["layers_1"]["pre_mlp_layer_norm"]["scale"],
    }.items():
        np.testing.assert_array_equal(state[name], want)


def test_every_tensor_that_does_not_fit_is_named():
    config = config_of("t5 1.0")
    state = huggingface.t5_to_huggingface(params_of(config), config)
    lost = ["encoder.final_layer_norm.weight", "decoder.block.1.layer.1.EncDecAttention.k.weight"]
    broken = {name: tensor for name, tensor in state.items() if name not in lost}
    broken |= {"classifier.weight": np.zeros(3), "encoder.block.7.layer.0.layer_norm.weight": np.zeros(16)}
    broken["encoder.block.0.layer.1.DenseReluDense.wo.weight"] = np.zeros((20, 16), np.float32)
    with pytest.raises(UserError) as error:
        huggingface.t5_from_huggingface(broken, config)
    said = str(error.value)
    missing, unused, shaped = (said.index(word) for word in ("missing", "unused", "wrongly shaped"))
    assert all(missing < said.index(name) < unused for name in lost)
    assert all(
        unused < said.index(name) < shaped for name in ("classifier.weight", "encoder.block.7.layer.0.layer_norm")
    )
    assert "encoder.block.0.layer.1.DenseReluDense.wo.weight (20, 16) instead of (16, 20)" in said
    assert "block.0.layer.0.SelfAttention.q" not in said

    params = params_of(config)
    params = {
        **params,
        "decoder": {k: v for k, v in params["decoder"].items() if k != "decoder_norm"},
        "extra": np.zeros(2),
    }
    with pytest.raises(UserError, match="missing decoder/decoder_norm/scale; unused extra"):
        huggingface.t5_to_huggingface(params, config)
    untied = config_of("t5 1.1")
    with pytest.raises(
        UserError, match=r"missing .*decoder\.block\.1\.layer\.2\.DenseReluDense\.wi_1\.weight.*; unused .*wi\.weight"
    ):
        huggingface.t5_from_huggingface(state, untied)


def test_copies_of_the_embedding_and_a_dead_tensor():
    config = config_of("t5 1.0")
    params = params_of(config)
    state = huggingface.t5_to_huggingface(params, config)
    # Published T5 1.0 checkpoints hold it, no model reads it; safetensors files keep one copy of what is shared.
    state["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = np.ones((8, 3), np.float32)
    assert_equal_trees(huggingface.t5_from_huggingface(state, config), params)
    copies = ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"]
    for kept in copies:
        one = {name: tensor for name, tensor in state.items() if name not in copies or name == kept}
        assert_equal_trees(huggingface.t5_from_huggingface(one, config), params)
    with pytest.raises(UserError, match=r"missing shared\.weight"):
        huggingface.t5_from_huggingface({k: v for k, v in one.items() if k != kept}, config)
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    with pytest.raises(UserError, match=r"lm_head\.weight differs from shared\.weight"):
        huggingface.t5_from_huggingface(state, config)


@pytest.mark.parity
@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unscanned"])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name, scan):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    kind = transformers.MT5ForConditionalGeneration if name == "mt5" else transformers.T5ForConditionalGeneration
    given = {k: v for k, v in CONFIGS[name].items() if k != "model_type"}
    model = kind(kind.config_class(**given, decoder_start_token_id=0)).eval()
    config = config_of(name, scan)
    # transformers 5 ties at construction; published 1.1, mT5 and ByT5 weights have an output layer of their own.
    untied = not config.logits_via_embedding
    if untied:
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            scale = (
                1.0 if parameter.ndim == 1 or "shared" in path or "relative" in path else parameter.shape[-1] ** -0.5
            )
            noise = torch.from_numpy(rng.normal(size=parameter.shape).astype(np.float32))
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else scale * noise)
    state = {path: tensor.numpy() for path, tensor in model.state_dict().items()}
    assert np.array_equal(state["lm_head.weight"], state["shared.weight"]) is not untied

    encoder = rng.integers(2, 48, (3, 14))
    encoder[1, 9:] = encoder[2, 4:] = 0
    decoder = rng.integers(2, 48, (3, 11))
    decoder[:, 0] = 0
    with torch.no_grad():
        want = model(
            input_ids=torch.from_numpy(encoder),
            attention_mask=torch.from_numpy((encoder > 0).astype(np.int64)),
            decoder_input_ids=torch.from_numpy(decoder),
        ).logits.numpy()
    params = huggingface.t5_from_huggingface(state, config)
    got = jax.jit(lambda params: t5.Backbone(config, params)(encoder, decoder).logits)(params)
    assert np.abs(want).max() > 1
    np.testing.assert_allclose(got, want, atol=1e-4)

    assert huggingface.config_from_huggingface(model.config.to_dict()) == huggingface.config_from_huggingface(
        CONFIGS[name]
    )
    back = huggingface.t5_to_huggingface(params, config)
    assert back.keys() == state.keys()
    for path, tensor in state.items():
        np.testing.assert_array_equal(back[path], tensor, path)
    model.load_state_dict({path: torch.from_numpy(tensor) for path, tensor in back.items()})
