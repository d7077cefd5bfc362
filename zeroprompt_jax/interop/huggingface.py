"""Hugging Face T5, T5 1.1, mT5 and ByT5: names, layouts and configurations. Plain trees in, plain trees out. BERT and
RoBERTa are in `huggingface_roberta`, which shares what is said here of any backbone.

Nothing here needs torch: a state dict is a mapping from names to numpy arrays, as `safetensors.numpy.load_file` reads
it or `{name: tensor.numpy() for name, tensor in model.state_dict().items()}` makes it.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from zeroprompt_jax.errors import UserError, unknown
from zeroprompt_jax.interop import leaves, tensor_files
from zeroprompt_jax.interop.leaves import Leaf
from zeroprompt_jax.methods.base import Config
from zeroprompt_jax.models import t5
from zeroprompt_jax.models.t5 import T5Config

_SUBLAYERS = {
    "encoder": {
        "attention": "layer.0.SelfAttention",
        "pre_attention_layer_norm": "layer.0.layer_norm",
        "mlp": "layer.1.DenseReluDense",
        "pre_mlp_layer_norm": "layer.1.layer_norm",
    },
    "decoder": {
        "self_attention": "layer.0.SelfAttention",
        "pre_self_attention_layer_norm": "layer.0.layer_norm",
        "encoder_decoder_attention": "layer.1.EncDecAttention",
        "pre_cross_attention_layer_norm": "layer.1.layer_norm",
        "mlp": "layer.2.DenseReluDense",
        "pre_mlp_layer_norm": "layer.2.layer_norm",
    },
}
_PROJECTIONS = {
    "query": "q",
    "key": "k",
    "value": "v",
    "out": "o",
    "wi": "wi",
    "wi_0": "wi_0",
    "wi_1": "wi_1",
    "wo": "wo",
}
_OUTSIDE = {
    "token_embedder/embedding": "shared.weight",
    "encoder/relpos_bias/rel_embedding": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    "decoder/relpos_bias/rel_embedding": "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    "encoder/encoder_norm/scale": "encoder.final_layer_norm.weight",
    "decoder/decoder_norm/scale": "decoder.final_layer_norm.weight",
    "decoder/logits_dense/kernel": "lm_head.weight",
}
# Old checkpoints carry a cross-attention bias that no T5 ever reads; transformers drops it too.
_IGNORED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
# `feed_forward_proj` -> our activations. Plain 'gelu' is the exact one there, 'gated-gelu' the approximation.
_ACTIVATIONS = {
    "relu": ("relu",),
    "gelu": ("gelu_exact",),
    "gelu_new": ("gelu",),
    "gated-relu": ("relu", "linear"),
    "gated-gelu": ("gelu", "linear"),
    "gated-gelu_new": ("gelu", "linear"),
    "gated-silu": ("swish", "linear"),
}


class Name(NamedTuple):
    """A parameter's names: our unscanned path and Hugging Face's, with our shape and whether the matrix is turned."""

    ours: str
    theirs: str
    shape: tuple[int, ...]
    turned: bool


def config_from_huggingface(config: Mapping[str, Any]) -> T5Config:
    """T5Config of a Hugging Face `config.json` (model_type t5 or mt5; ByT5 calls itself t5).

    Raises UserError for other models, unknown activations, missing sizes and an epsilon that T5 does not use.
    """
    kind = config.get("model_type", "t5")
    if kind not in ("t5", "mt5"):
        raise unknown("Hugging Face model_type", kind, ("t5", "mt5"))
    require(
        config, "vocab_size", "d_model", "num_heads", "d_kv", "d_ff", "num_layers", "relative_attention_num_buckets"
    )
    activations = config.get("feed_forward_proj") or "relu"
    if activations not in _ACTIVATIONS:
        raise unknown("feed_forward_proj", activations, _ACTIVATIONS)
    epsilon = config.get("layer_norm_epsilon", 1e-6)
    if epsilon != 1e-6:
        raise UserError(f"The Hugging Face configuration has layer_norm_epsilon {epsilon}; T5's is 1e-06.")
    # T5 1.0 scales the decoder's output, and only then are the layers tied in our sense; transformers 5 writes it apart
    # from tie_word_embeddings. mT5 never scales.
    tied = config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True) is not False)
    return T5Config(
        vocab_size=config["vocab_size"],
        emb_dim=config["d_model"],
        num_heads=config["num_heads"],
        head_dim=config["d_kv"],
        mlp_dim=config["d_ff"],
        num_encoder_layers=config["num_layers"],
        num_decoder_layers=config.get("num_decoder_layers") or config["num_layers"],
        mlp_activations=_ACTIVATIONS[activations],
        logits_via_embedding=kind == "t5" and bool(tied),
        dropout_rate=config.get("dropout_rate", 0.1),
        relpos_num_buckets=config["relative_attention_num_buckets"],
        relpos_max_distance=config.get("relative_attention_max_distance", 128),
    )


def require(config: Mapping[str, Any], *names: str) -> None:
    """Raises UserError for a `config.json` that lacks some of these."""
    if missing := [name for name in names if config.get(name) is None]:
        raise UserError(f"The Hugging Face configuration lacks {', '.join(missing)}.")


def config_to_huggingface(config: T5Config) -> dict[str, Any]:
    """The `config.json` of a T5; `config_from_huggingface` reads it back. Raises UserError for activations that
    transformers' T5 does not have."""
    names = [name for name, activations in _ACTIVATIONS.items() if activations == config.mlp_activations]
    if not names:
        raise UserError(f"Hugging Face's T5 has no feed-forward with the activations {', '.join(config.mlp_activations)}.")
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "vocab_size": config.vocab_size,
        "d_model": config.emb_dim,
        "num_heads": config.num_heads,
        "d_kv": config.head_dim,
        "d_ff": config.mlp_dim,
        "num_layers": config.num_encoder_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "feed_forward_proj": names[0],
        "tie_word_embeddings": config.logits_via_embedding,
        "dropout_rate": config.dropout_rate,
        "relative_attention_num_buckets": config.relpos_num_buckets,
        "relative_attention_max_distance": config.relpos_max_distance,
        "layer_norm_epsilon": 1e-6,
        "is_encoder_decoder": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }


def t5_from_huggingface(state_dict: Mapping[str, np.ndarray], config: T5Config) -> dict[str, Any]:
    """Parameters of our T5, float32, stacked when `config.scan_layers`, from a Hugging Face state dict.

    Copies of the embedding (`encoder.embed_tokens`, `decoder.embed_tokens` and, when tied, `lm_head`) must equal it.
    Raises UserError naming every missing, unused and wrongly shaped tensor.
    """
    return to_params(leaves_from_huggingface(unread(state_dict), config), config)


def t5_to_huggingface(params: Mapping[str, Any], config: T5Config) -> dict[str, np.ndarray]:
    """The Hugging Face state dict (all names, with the copies of the embedding, which share memory) of our parameters,
    scanned or not. Raises UserError naming every missing, unused and wrongly shaped parameter."""
    out = {name: leaf.read() for name, leaf in leaves_to_huggingface(to_leaves(params), config).items()}
    return {**out, **{alias: out["shared.weight"] for alias in _aliases(config)}}


def leaves_from_huggingface(tensors: Mapping[str, Leaf], config: T5Config) -> dict[str, Leaf]:
    """As `t5_from_huggingface`, of tensors not read yet: parameters by our unscanned paths, in their own dtype."""
    kept = {name: tensor for name, tensor in one_copy(tensors, _aliases(config)).items() if name != _IGNORED}
    return from_tensors(kept, _names(config), config)


def leaves_to_huggingface(params: Mapping[str, Leaf], config: T5Config) -> dict[str, Leaf]:
    """The inverse of `leaves_from_huggingface`, without the copies of the embedding."""
    return to_tensors(params, _names(config), config)


def _aliases(config: T5Config) -> tuple[str, ...]:
    """Names under which a checkpoint may hold the embedding."""
    names = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    return (*names, "lm_head.weight") if config.logits_via_embedding else names


def _names(config: T5Config) -> tuple[Name, ...]:
    # Scanned: one traced layer per stack, however deep the model is.
    return _traced_names(dataclasses.replace(config, scan_layers=True))


@functools.lru_cache(maxsize=8)
def _traced_names(config: T5Config) -> tuple[Name, ...]:
    return tuple(_each_name(jax.eval_shape(lambda: t5.init(config, jax.random.key(0)))))


def _each_name(tree: Mapping[str, Any]) -> Iterator[Name]:
    for path, leaf in flax.traverse_util.flatten_dict(tree, sep="/").items():
        if path in _OUTSIDE:
            yield Name(path, _OUTSIDE[path], leaf.shape, path != "token_embedder/embedding" and len(leaf.shape) == 2)
            continue
        side, _, sublayer, *rest = path.split("/")
        end = "." + _PROJECTIONS[rest[0]] if rest[-1] == "kernel" else ""
        for i in range(leaf.shape[0]):
            ours = "/".join((side, f"layers_{i}", sublayer, *rest))
            theirs = f"{side}.block.{i}.{_SUBLAYERS[side][sublayer]}{end}.weight"
            yield Name(ours, theirs, leaf.shape[1:], bool(end))


def unread(state_dict: Mapping[str, Any]) -> dict[str, Leaf]:
    """Leaves of a state dict that is in memory already."""
    return {name: leaves.of(np.asarray(tensor)) for name, tensor in state_dict.items()}


def one_copy(tensors: Mapping[str, Leaf], names: Sequence[str]) -> dict[str, Leaf]:
    """The tensors with one copy, under the first name, of one that may lie under any of `names`. UserError where two
    differ."""
    held = [name for name in names if name in tensors]
    for name in held[1:]:
        if not tensors[name].equals(tensors[held[0]]):
            raise UserError(
                f"Hugging Face tensor {name} differs from {held[0]}, which this configuration shares with it."
            )
    rest = {name: tensor for name, tensor in tensors.items() if name not in held}
    return {**rest, **{names[0]: tensors[name] for name in held[:1]}}


def from_tensors(tensors: Mapping[str, Leaf], names: Iterable[Name], config: Config) -> dict[str, Leaf]:
    """Parameters by our unscanned paths. UserError where tensors and names do not fit."""
    names = list(names)
    shapes = {name.theirs: name.shape[::-1] if name.turned else name.shape for name in names}
    _compare("Hugging Face state dict", config, {name: tensor.shape for name, tensor in tensors.items()}, shapes)
    return {name.ours: _turned(tensors[name.theirs], name) for name in names}


def to_tensors(params: Mapping[str, Leaf], names: Iterable[Name], config: Config) -> dict[str, Leaf]:
    """The inverse of `from_tensors`. UserError where parameters and names do not fit."""
    names = list(names)
    shapes = {name.ours: name.shape for name in names}
    _compare("parameter tree", config, {path: leaf.shape for path, leaf in params.items()}, shapes)
    return {name.theirs: _turned(params[name.ours], name) for name in names}


def _turned(leaf: Leaf, name: Name) -> Leaf:
    return leaf.turned() if name.turned else leaf


def to_params(flat: Mapping[str, Leaf], config: Config) -> dict[str, Any]:
    """Our parameters, float32, stacked when `config.scan_layers`, of leaves by our unscanned paths."""
    flat = leaves.stack(flat) if config.scan_layers else flat
    arrays = {path: leaf.cast(np.float32).read() for path, leaf in flat.items()}
    return flax.traverse_util.unflatten_dict(arrays, sep="/")


def to_leaves(params: Mapping[str, Any]) -> dict[str, Leaf]:
    """Leaves by our unscanned paths of our parameters, scanned or not."""
    flat = flax.traverse_util.flatten_dict(dict(params), sep="/")
    return leaves.unstack({path: leaves.of(array) for path, array in flat.items()})


def _compare(
    what: str, config: Config, given: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    faults = []
    if missing := [name for name in wanted if name not in given]:
        faults.append(f"missing {', '.join(missing)}")
    if unused := [name for name in given if name not in wanted]:
        faults.append(f"unused {', '.join(unused)}")
    if shaped := [name for name in wanted if name in given and tuple(given[name]) != tuple(wanted[name])]:
        shown = ", ".join(f"{name} {tuple(given[name])} instead of {tuple(wanted[name])}" for name in shaped)
        faults.append(f"wrongly shaped {shown}")
    if faults:
        raise UserError(f"The {what} does not fit this {type(config).__name__}: {'; '.join(faults)}.")


def is_directory(path: str | os.PathLike) -> bool:
    """Whether `path` is a directory in Hugging Face layout."""
    return (Path(path) / "config.json").is_file()


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """The `config.json` of a directory in Hugging Face layout. Raises UserError for a damaged one."""
    file = Path(path) / "config.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UserError(f"{file} cannot be read as a Hugging Face configuration ({e}).") from None


def read_config(path: str | os.PathLike) -> T5Config:
    """T5Config of a directory in Hugging Face layout. Raises UserError for a damaged `config.json`."""
    return config_from_huggingface(read_json(path))


def read_t5(path: str | os.PathLike, scan_layers: bool) -> dict[str, Any]:
    """Parameters of our T5, float32, from a directory in Hugging Face layout with safetensors or PyTorch files.

    Raises UserError where there are none, or they do not fit the directory's `config.json`."""
    config = dataclasses.replace(read_config(path), scan_layers=scan_layers)
    return to_params(leaves_from_huggingface(tensor_files.read_directory(path), config), config)


def read_leaves(path: str | os.PathLike) -> dict[str, Leaf]:
    """As `read_t5`, by our unscanned paths, in the files' dtype and none of them read yet."""
    return leaves_from_huggingface(tensor_files.read_directory(path), read_config(path))


def write_t5(path: str | os.PathLike, params: Mapping[str, Any], config: T5Config, dtype: str = "bfloat16") -> None:
    """Writes `config.json` and `model.safetensors`, as transformers' `T5ForConditionalGeneration` reads them.

    Args:
      path: a directory, made when missing.
      params: of the backbone, scanned or not.
      config: theirs.
      dtype: of the tensors in the file.
    """
    write_leaves(path, {name: leaf.cast(jnp.dtype(dtype)) for name, leaf in to_leaves(params).items()}, config)


def write_leaves(path: str | os.PathLike, params: Mapping[str, Leaf], config: T5Config) -> None:
    """As `write_t5`, of parameters by our unscanned paths, block by block and in their own dtype."""
    write(path, leaves_to_huggingface(params, config), config_to_huggingface(config))


def write(path: str | os.PathLike, tensors: Mapping[str, Leaf], config: Mapping[str, Any]) -> None:
    """Writes `model.safetensors`, all tensors of one dtype, and `config.json` to a directory, made when missing."""
    Path(path).mkdir(parents=True, exist_ok=True)
    tensor_files.write_safetensors(Path(path) / "model.safetensors", tensors)
    dtype = next(iter(tensors.values())).dtype.name
    text = json.dumps({**config, "dtype": dtype}, indent=2, sort_keys=True)
    (Path(path) / "config.json").write_text(text + "\n", encoding="utf-8")
