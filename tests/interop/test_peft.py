"""PEFT's layout: round trips, the same prompts and logits as peft from the same tensors, and what is refused."""

import copy
import dataclasses
import functools
import re

import flax.traverse_util
import jax
import numpy as np
import pytest
from safetensors.flax import save_file

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.interop import huggingface, peft
from zeroprompt_jax.methods.ia3 import IA3
from zeroprompt_jax.methods.lora import LoRA
from zeroprompt_jax.methods.mpt import MPT
from zeroprompt_jax.methods.prompt import Prompt
from zeroprompt_jax.models import t5
from zeroprompt_jax.models.conditioning import Conditioning

SIZES = dict(
    vocab_size=48,
    d_model=16,
    d_kv=6,
    num_heads=3,
    d_ff=20,
    num_layers=2,
    num_decoder_layers=3,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=10,
    dropout_rate=0.1,
    feed_forward_proj="gated-gelu",
    tie_word_embeddings=False,
)
CONFIG = dataclasses.replace(huggingface.config_from_huggingface({**SIZES, "model_type": "t5"}), dtype="float32")
ATTENTION = {"query": (16, 18), "key": (16, 18), "value": (16, 18), "out": (18, 16)}
MLP = {"wi_0": (16, 20), "wi_1": (16, 20), "wo": (20, 16), "hidden": (20, 20)}


def tree(kind, *places):
    """Random parameters of a method; the places are regexes of projections, as encoder/mlp/wo."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    if kind == "prompt":
        return {"prompt": draw(1, 5, 16)}
    if kind == "mpt":
        return {"shared": draw(5, 16), "u": draw(4, 5, 2), "v": draw(4, 2, 16)}
    flat = {}
    for side, sublayer in (("encoder", "self_attention"), ("encoder", "mlp"), *((("decoder", s)) for s in
                           ("self_attention", "cross_attention", "mlp"))):
        L = 2 if side == "encoder" else 3
        for name, (wide, out) in (MLP if sublayer == "mlp" else ATTENTION).items():
            place = f"{side}/{sublayer}/{name}"
            if any(re.fullmatch(regex, place) for regex in places):
                if kind == "scale":
                    flat[f"scale/{place}"] = 1 + 0.3 * draw(1, L, out)
                else:
                    flat[f"lora/{place}/a"], flat[f"lora/{place}/b"] = draw(1, L, wide, 3), 0.1 * draw(1, L, 3, out)
    return flax.traverse_util.unflatten_dict(flat, sep="/")


TREES = {
    "prompt": tree("prompt"),
    "mpt": tree("mpt"),
    "lora q v": tree("lora", ".*/(query|value)"),
    "lora encoder q, all wo": tree("lora", "encoder/.*/query", ".*/wo"),
    "ia3": tree("scale", ".*/(key|value|hidden)"),
    "ia3 of encoder keys and hidden, decoder wo": tree("scale", "encoder/.*/(key|hidden)", "decoder/mlp/wo"),
}


@pytest.mark.parametrize("name", TREES)
def test_round_trip_through_a_folder_is_bit_equal(name, tmp_path):
    alpha = 7.0 if name.startswith("lora") else None
    written = peft.to_peft(TREES[name], CONFIG, alpha)
    peft.save(tmp_path, *written)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    found = peft.from_peft(*peft.load(tmp_path), CONFIG)
    jax.tree.map(np.testing.assert_array_equal, found.params, TREES[name])
    if alpha:
        assert found.settings["rank"] == 3 and found.settings["alpha"] == alpha
    again = peft.to_peft(found.params, CONFIG, found.settings.get("alpha"))
    assert again[0] == written[0] and again[1].keys() == written[1].keys()
    for key, x in written[1].items():
        np.testing.assert_array_equal(again[1][key], x)


def test_names_and_turns():
    adapter, tensors = peft.to_peft(TREES["lora q v"], CONFIG, 7.0)
    assert adapter["target_modules"] == ["q", "v"] and adapter["r"] == 3 and adapter["lora_alpha"] == 7.0
    cross = TREES["lora q v"]["lora"]["decoder"]["cross_attention"]["value"]
    name = "base_model.model.decoder.block.2.layer.1.EncDecAttention.v.lora_"
    np.testing.assert_array_equal(tensors[name + "A.weight"], cross["a"][0, 2].T)
    np.testing.assert_array_equal(tensors[name + "B.weight"], cross["b"][0, 2].T)
    adapter, _ = peft.to_peft(TREES["lora encoder q, all wo"], CONFIG, 7.0)
    own = [f"encoder.block.{i}.layer.0.SelfAttention.q" for i in range(2)]
    assert adapter["target_modules"] == [*own, "wo"]
    adapter, tensors = peft.to_peft(TREES["ia3"], CONFIG)
    assert adapter["target_modules"] == ["k", "v", "wo"] and adapter["feedforward_modules"] == ["wo"]
    assert tensors["base_model.model.encoder.block.1.layer.1.DenseReluDense.wo.ia3_l"].shape == (1, 20)
    assert tensors["base_model.model.encoder.block.1.layer.0.SelfAttention.k.ia3_l"].shape == (18, 1)


def test_what_peft_has_no_layout_for():
    for params, match in (
        ({"prompt": np.zeros((2, 5, 16))}, "holds one task, and prompt has 2"),
        ({"prompt": np.zeros((1, 5, 16)), "decoder_prompt": np.zeros((1, 5, 16))}, "no layout for decoder_prompt"),
        (tree("scale", "encoder/mlp/(wo|hidden)"), "either the input of encoder.block.0.* or its output"),
        (TREES["lora q v"], "alpha is needed"),
    ):
        with pytest.raises(UserError, match=match):
            peft.to_peft(params, CONFIG)


@pytest.mark.parametrize(
    "name, change, match",
    [
        ("prompt", dict(peft_type="PREFIX_TUNING"), "Unknown peft_type 'PREFIX_TUNING'"),
        ("prompt", dict(peft_type=None), "Unknown peft_type 'None'"),
        ("prompt", dict(num_transformer_submodules=2), "submodules is 2: half of its rows .* generates without them"),
        ("mpt", dict(num_transformer_submodules=None), "num_transformer_submodules is None"),
        ("mpt", dict(num_ranks=3), r"prefix_task_cols.*\(4, 5, 2\).*need.*\(4, 5, 3\)"),
        ("prompt", dict(task_type="CAUSAL_LM"), "task_type is CAUSAL_LM"),
        ("lora q v", dict(use_dora=True), "use_dora = True, which nothing here computes"),
        ("lora q v", dict(bias="all"), "trains biases"),
    ],
)
def test_adapters_that_are_refused(name, change, match):
    adapter, tensors = peft.to_peft(TREES[name], CONFIG, 7.0)
    with pytest.raises(UserError, match=match):
        peft.from_peft({**adapter, **change}, tensors, CONFIG)


def test_tensors_that_are_refused():
    adapter, tensors = peft.to_peft(TREES["lora q v"], CONFIG, 7.0)
    short = {k: x for k, x in tensors.items() if "decoder.block.1.layer.1.EncDecAttention.v.lora_A" not in k}
    with pytest.raises(UserError, match=r"lora_A of decoder/cross_attention/value in the layers \[0, 2\]; all 3"):
        peft.from_peft(adapter, short, CONFIG)
    half = {k: x for k, x in tensors.items() if not ("encoder" in k and ".q.lora_B" in k)}
    with pytest.raises(UserError, match="has lora_A of encoder/self_attention/query alone"):
        peft.from_peft(adapter, half, CONFIG)
    with pytest.raises(UserError, match="classifier.weight belongs to no projection"):
        peft.from_peft(adapter, {**tensors, "base_model.model.classifier.weight": np.zeros(2)}, CONFIG)
    assert peft.from_peft({**adapter, "use_rslora": True}, tensors, CONFIG).settings["alpha"] == 7 * 3**0.5


def test_folders_that_are_refused(tmp_path):
    with pytest.raises(UserError, match="no adapter_config.json"):
        peft.load(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="no adapter_model.safetensors"):
        peft.load(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="cannot be read"):
        peft.load(tmp_path)
    adapter, tensors = peft.to_peft(TREES["prompt"], CONFIG)
    peft.save(tmp_path, adapter, tensors)
    save_file({k: jax.numpy.asarray(x, "bfloat16") for k, x in tensors.items()}, tmp_path / "adapter_model.safetensors")
    found = peft.from_peft(*peft.load(tmp_path), CONFIG).params["prompt"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, TREES["prompt"]["prompt"], rtol=1e-2)


# Against peft itself.


METHODS = {"PROMPT_TUNING": Prompt, "MULTITASK_PROMPT_TUNING": MPT, "LORA": LoRA, "IA3": IA3}


def conditioning(found, task_ids):
    """What our methods make of imported parameters."""
    return METHODS[found.peft_type](**found.settings).condition(found.params, {"task_ids": task_ids}, None)


@pytest.mark.parity
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_multitask_embedding_equals_peft(rank):
    import torch
    from peft import MultitaskPromptTuningConfig
    from peft.tuners import MultitaskPromptEmbedding

    config = MultitaskPromptTuningConfig(
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=7, token_dim=12, num_transformer_submodules=1, num_tasks=5, num_ranks=rank
    )
    theirs = MultitaskPromptEmbedding(config, None)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_()
    ids = np.array([3, 0, 3, 4, 0, 1])
    indices = torch.arange(7).expand(6, 7)
    want = theirs(indices, torch.from_numpy(ids)).detach().numpy()
    shared, u, v = (
        x.detach().numpy() for x in (theirs.embedding.weight, theirs.prefix_task_cols, theirs.prefix_task_rows)
    )
    found = MPT(length=7, rank=rank).condition({"shared": shared, "u": u, "v": v}, {"task_ids": ids}, None)
    got = found.encoder.prompt
    assert np.abs(want).max() > 1
    np.testing.assert_allclose(got, want, atol=1e-6, rtol=1e-6)


@functools.cache
def reference():
    """A random T5 1.1 of transformers, its rows and labels, and our parameters of it."""
    import torch
    import transformers

    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**SIZES, decoder_start_token_id=0)).eval()
    model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))  # transformers 5 ties it
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for path, p in model.named_parameters():
            scale = 1.0 if p.ndim == 1 or "shared" in path or "relative" in path else p.shape[-1] ** -0.5
            noise = torch.from_numpy(rng.normal(size=p.shape).astype(np.float32))
            p.copy_(1 + 0.3 * noise if p.ndim == 1 else scale * noise)
    state = {path: tensor.numpy().copy() for path, tensor in model.state_dict().items()}
    inputs, labels = rng.integers(2, 48, (4, 9)), rng.integers(2, 48, (4, 6))
    inputs[1, 6:] = inputs[3, 3:] = 0
    return model, inputs, labels, huggingface.t5_from_huggingface(state, CONFIG)


@functools.cache
def ours():
    return jax.jit(lambda params, *args: t5.Backbone(CONFIG, params)(*args).logits)


TASK_IDS = np.array([3, 0, 3, 1])
SEQ2SEQ = dict(task_type="SEQ_2_SEQ_LM")
ADAPTERS = {
    "prompt tuning": ("PromptTuningConfig", dict(num_virtual_tokens=5, num_transformer_submodules=1)),
    "mpt": (
        "MultitaskPromptTuningConfig",
        dict(num_virtual_tokens=5, num_transformer_submodules=1, num_tasks=4, num_ranks=2),
    ),
    "lora": ("LoraConfig", dict(r=3, lora_alpha=5, target_modules=["q", "v"])),
    "lora of all": ("LoraConfig", dict(r=2, lora_alpha=3, target_modules=["k", "o", "wi_0", "wi_1", "wo"])),
    "lora of the encoder": ("LoraConfig", dict(r=2, lora_alpha=3, target_modules=r"encoder.*\.(q|wo)")),
    "ia3": ("IA3Config", {}),
}


@pytest.mark.parity
@pytest.mark.parametrize("name", ADAPTERS)
def test_peft_checkpoints_mean_here_what_they_mean_there(name, tmp_path):
    import peft as theirs
    import torch

    base, inputs, labels, params = reference()
    kind, options = ADAPTERS[name]
    model = theirs.get_peft_model(copy.deepcopy(base), getattr(theirs, kind)(**SEQ2SEQ, **options)).eval()
    # Large updates of every projection amplify float32 rounding.
    generator, size = torch.Generator().manual_seed(0), 0.2 if kind == "LoraConfig" else 0.5
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))

    def logits(model):
        # With one submodule PEFT shifts the labels itself, and ignores decoder_input_ids.
        rows = dict(input_ids=inputs, attention_mask=inputs > 0, labels=labels)
        rows |= dict(task_ids=TASK_IDS) if name == "mpt" else {}
        with torch.no_grad():
            return model(**{k: torch.from_numpy(np.asarray(x, np.int64)) for k, x in rows.items()}).logits.numpy()

    want = logits(model)
    model.save_pretrained(tmp_path / "theirs")
    adapter, tensors = peft.load(tmp_path / "theirs")
    found = peft.from_peft(adapter, tensors, CONFIG)
    shifted = np.pad(labels, ((0, 0), (1, 0)))[:, :-1]
    run = lambda conditioning: np.asarray(ours()(params, inputs.astype(np.int32), shifted.astype(np.int32), conditioning))
    got = run(conditioning(found, TASK_IDS))
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert np.abs(want - run(Conditioning())).max() > 0.1

    written, back = peft.to_peft(found.params, CONFIG, found.settings.get("alpha"))
    assert back.keys() == tensors.keys()
    for key, x in tensors.items():
        np.testing.assert_array_equal(back[key], x, key)
    peft.save(tmp_path / "ours", written, back)
    reloaded = theirs.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "ours").eval()
    np.testing.assert_array_equal(logits(reloaded), want)
