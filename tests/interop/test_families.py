"""T5, T5 1.1, LM-adapted, Flan-T5, mT5 and ByT5: published configurations, and files of transformers."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from zeroprompt_jax import config as configs, convert
from zeroprompt_jax.interop import huggingface

COMMON = {
    "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-6,
    "relative_attention_num_buckets": 32,
    "d_kv": 64,
    "decoder_start_token_id": 0,
    "is_encoder_decoder": True,
}
GATED = {**COMMON, "model_type": "t5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
SMALL = {"d_model": 512, "d_ff": 1024, "num_heads": 6, "num_layers": 8, "num_decoder_layers": 8}
# The config.json of the published small models, as to what the architecture depends on, and our gin file of it.
FAMILIES = {
    "t5": (
        # Of before these keys were written: no feed_forward_proj, num_decoder_layers or tie_word_embeddings.
        {
            **COMMON,
            "model_type": "t5",
            "d_model": 512,
            "d_ff": 2048,
            "num_heads": 8,
            "num_layers": 6,
            "vocab_size": 32128,
        },
        "models/t5_1_0_small.gin",
    ),
    "t5 1.1": ({**GATED, **SMALL, "vocab_size": 32128}, "models/t5_1_1_small.gin"),
    "lm-adapted": ({**GATED, **SMALL, "vocab_size": 32128, "gradient_checkpointing": False}, "models/t5_1_1_small.gin"),
    "flan-t5": ({**GATED, **SMALL, "vocab_size": 32128, "n_positions": 512}, "models/t5_1_1_small.gin"),
    "mt5": ({**GATED, **SMALL, "model_type": "mt5", "vocab_size": 250112}, "models/mt5_small.gin"),
    "byt5": (
        {
            **GATED,
            "d_model": 1472,
            "d_ff": 3584,
            "num_heads": 6,
            "num_layers": 12,
            "num_decoder_layers": 4,
            "vocab_size": 384,
        },
        "models/byt5_small.gin",
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_published_configuration_is_our_gin_file(family):
    published, file = FAMILIES[family]
    configs.load([file], [])
    ours = configs.make("T5Config")
    # What does not change what the model computes is ours to choose.
    free = {name: getattr(ours, name) for name in ("dtype", "scan_layers", "remat_policy", "dropout_rate")}
    assert dataclasses.replace(huggingface.config_from_huggingface(published), **free) == ours


@pytest.fixture
def folder(request, tmp_path):
    """A small model of the family with random weights, that transformers saved in several files."""
    import torch
    import transformers

    published, _ = FAMILIES[request.param]
    depth = {"num_layers": 2, "num_decoder_layers": 1 if request.param == "byt5" else 2}
    sizes = {"vocab_size": 64, "d_model": 16, "d_kv": 6, "d_ff": 20, "num_heads": 3, **depth}
    given = {k: v for k, v in {**published, **sizes}.items() if k != "model_type"}
    kind = (
        transformers.MT5ForConditionalGeneration if request.param == "mt5" else transformers.T5ForConditionalGeneration
    )
    model = kind(kind.config_class(**given))
    if request.param != "t5":  # transformers 5 ties when it makes a model, and not when it reads two different tables
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            noise = torch.from_numpy(rng.normal(size=parameter.shape).astype(np.float32))
            small = parameter.ndim > 1 and "shared" not in path and "relative" not in path
            scale = parameter.shape[-1] ** -0.5 if small else 1.0
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else scale * noise)
    model.save_pretrained(tmp_path / "hf", max_shard_size="8KB")
    # As the family's own config.json says it.
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**published, **sizes}))
    return tmp_path / "hf"


@pytest.mark.parity
@pytest.mark.usefixtures("compile_fast")
@pytest.mark.parametrize("folder", FAMILIES, indirect=True)
def test_files_of_every_family_keep_their_logits(folder):
    assert len(list(folder.glob("*.safetensors"))) > 1
    there = convert.convert(str(folder), folder.parent / "t5x", "t5x")
    assert there.by == ("transformers", "zeroprompt_jax") and there.difference <= 1e-4
    back = convert.convert(str(folder.parent / "t5x"), folder.parent / "back", "hf", logits=False)
    assert back.parameters == there.parameters
    want, got = (transformers_logits(path) for path in (folder, folder.parent / "back"))
    assert np.abs(want).max() > 1
    np.testing.assert_array_equal(got, want)


def transformers_logits(folder: Path) -> np.ndarray:
    config = huggingface.read_config(folder)
    return convert._transformers_logits(folder, *convert._tokens(config))
