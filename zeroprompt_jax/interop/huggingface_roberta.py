"""Hugging Face BERT and RoBERTa: names, layouts and configurations. Plain trees in, plain trees out.

What a checkpoint holds besides the encoder is told by its tensors' names: published files often hold heads that their
`architectures` do not name, or lack one that a model of that name would draw anew.
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from zeroprompt_jax.errors import UserError, unknown
from zeroprompt_jax.interop import huggingface, tensor_files
from zeroprompt_jax.interop.huggingface import Name
from zeroprompt_jax.interop.leaves import Leaf
from zeroprompt_jax.models import roberta
from zeroprompt_jax.models.roberta import RobertaConfig

_MODULES = {
    "token_embedder": "embeddings.word_embeddings",
    "position_embedder": "embeddings.position_embeddings",
    "token_type_embedder": "embeddings.token_type_embeddings",
    "encoder/embeddings_norm": "embeddings.LayerNorm",
}
_IN_LAYER = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/out": "attention.output.dense",
    "post_attention_layer_norm": "attention.output.LayerNorm",
    "mlp/wi": "intermediate.dense",
    "mlp/wo": "output.dense",
    "post_mlp_layer_norm": "output.LayerNorm",
}
KINDS = ("bert", "roberta")
_MLM_HEADS = {
    "bert": {
        "mlm_head/dense": "cls.predictions.transform.dense",
        "mlm_head/layer_norm": "cls.predictions.transform.LayerNorm",
        "mlm_head": "cls.predictions",
    },
    "roberta": {"mlm_head/dense": "lm_head.dense", "mlm_head/layer_norm": "lm_head.layer_norm", "mlm_head": "lm_head"},
}
_LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
# `hidden_act` -> our activation.
_ACTIVATIONS = {"gelu": "gelu_exact", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu"}
# Heads, and a buffer that old versions saved: left out of what is read where the configuration has no place for them.
_HEADS = r"(cls|lm_head|classifier|pooler)\."
_DROPPED = r"embeddings\.(position_ids|token_type_ids)"


def config_from_huggingface(config: Mapping[str, Any], names: Iterable[str]) -> RobertaConfig:
    """RobertaConfig of a Hugging Face `config.json` (model_type bert or roberta) and its tensors' names, which tell the
    heads. The labels are those of `id2label`, in the order of the classifier's outputs.

    Raises UserError for other models, unknown activations, missing sizes, and positions or attention of another kind.
    """
    kind = config.get("model_type")
    if kind not in KINDS:
        raise unknown("Hugging Face model_type", str(kind), KINDS)
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    huggingface.require(config, *sizes, "max_position_embeddings", "type_vocab_size", "pad_token_id")
    activation = config.get("hidden_act", "gelu")
    if activation not in _ACTIVATIONS:
        raise unknown("hidden_act", activation, _ACTIVATIONS)
    for name, plain in {"position_embedding_type": "absolute", "is_decoder": False}.items():
        if config.get(name, plain) != plain:
            raise UserError(
                f"The Hugging Face configuration has {name} {config[name]!r}; only {plain!r} is known here."
            )
    held = {_bare(name, kind) for name in names}
    classifies = any(name.startswith("classifier.") for name in held)
    return RobertaConfig(
        vocab_size=config["vocab_size"],
        emb_dim=config["hidden_size"],
        num_heads=config["num_attention_heads"],
        mlp_dim=config["intermediate_size"],
        num_encoder_layers=config["num_hidden_layers"],
        num_positions=config["max_position_embeddings"],
        position_offset=config["pad_token_id"] + 1 if kind == "roberta" else 0,
        num_token_types=config["type_vocab_size"],
        pad_id=config["pad_token_id"],
        mlp_activations=(_ACTIVATIONS[activation],),
        norm_epsilon=config.get("layer_norm_eps", 1e-12),
        mlm_head=any(name.startswith(("cls.predictions.", "lm_head.")) for name in held),
        pooled_head=classifies or any(name.startswith("pooler.") for name in held),
        labels=_labels(config) if classifies else (),
        dropout_rate=config.get("hidden_dropout_prob", 0.1),
        init_std=config.get("initializer_range", 0.02),
    )


def config_to_huggingface(config: RobertaConfig) -> dict[str, Any]:
    """The `config.json` of a BERT or RoBERTa; `config_from_huggingface` reads it back. Raises UserError for an activation
    or positions that neither has."""
    activations = [name for name, ours in _ACTIVATIONS.items() if (ours,) == config.mlp_activations]
    if not activations:
        raise UserError(
            f"Hugging Face's BERT has no feed-forward with the activations {', '.join(config.mlp_activations)}."
        )
    kind = _kind(config)
    title = {"bert": "Bert", "roberta": "Roberta"}[kind]
    suffix = "ForSequenceClassification" if config.labels else "ForMaskedLM" if config.mlm_head else "Model"
    # Without a classifier the field would say two labels, as transformers writes it.
    labels = {str(i): label for i, label in enumerate(config.labels)}
    named = {"id2label": labels, "label2id": {label: int(i) for i, label in labels.items()}} if labels else {}
    return {
        "architectures": [title + suffix],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.emb_dim,
        "num_hidden_layers": config.num_encoder_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.num_positions,
        "type_vocab_size": config.num_token_types,
        "pad_token_id": config.pad_id,
        "hidden_act": activations[0],
        "layer_norm_eps": config.norm_epsilon,
        "hidden_dropout_prob": config.dropout_rate,
        "attention_probs_dropout_prob": config.dropout_rate,
        "initializer_range": config.init_std,
        "tie_word_embeddings": True,
        **named,
    }


def roberta_from_huggingface(state_dict: Mapping[str, np.ndarray], config: RobertaConfig) -> dict[str, Any]:
    """Parameters of our RoBERTa, float32, stacked when `config.scan_layers`, from a Hugging Face state dict.

    Heads that the configuration does not have are left out, BERT's next-sentence classifier always. The masked-language
    model's copies of the token embedding and of its bias must equal them. Raises UserError naming every missing, unused
    and wrongly shaped tensor.
    """
    return huggingface.to_params(_leaves_from_huggingface(huggingface.unread(state_dict), config), config)


def _leaves_from_huggingface(tensors: Mapping[str, Leaf], config: RobertaConfig) -> dict[str, Leaf]:
    kind = _kind(config)
    tensors = {_bare(name, kind): tensor for name, tensor in tensors.items()}
    if config.mlm_head:
        for names in _aliases(kind):
            tensors = huggingface.one_copy(tensors, names)
    names = list(_names(config))
    wanted = {name.theirs for name in names}
    dropped = [n for n in tensors if re.fullmatch(_DROPPED, n) or (re.match(_HEADS, n) and n not in wanted)]
    kept = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    return huggingface.from_tensors(kept, names, config)


def roberta_to_huggingface(params: Mapping[str, Any], config: RobertaConfig) -> dict[str, np.ndarray]:
    """The Hugging Face state dict (all names, with copies, which share memory) of our parameters, scanned or not. Raises
    UserError naming every missing, unused and wrongly shaped parameter."""
    out = {name: leaf.read() for name, leaf in _to_leaves(params, config).items()}
    if config.mlm_head:
        out |= {alias: out[names[0]] for names in _aliases(_kind(config)) for alias in names[1:]}
    return {_full(name, config): tensor for name, tensor in out.items()}


def _to_leaves(params: Mapping[str, Any], config: RobertaConfig) -> dict[str, Leaf]:
    return huggingface.to_tensors(huggingface.to_leaves(params), _names(config), config)


def _full(name: str, config: RobertaConfig) -> str:
    """A tensor's whole name: the encoder is the whole model, or the part of one that has its kind's name."""
    part = f"{_kind(config)}." if config.mlm_head or config.labels else ""
    return part + name if _of_encoder(name) else name


def _kind(config: RobertaConfig) -> str:
    if config.position_offset == 0:
        return "bert"
    if config.position_offset == config.pad_id + 1:
        return "roberta"
    raise UserError(
        f"RobertaConfig.position_offset is {config.position_offset}; Hugging Face's BERT has 0 and its RoBERTa "
        f"pad_id + 1 = {config.pad_id + 1}."
    )


def _bare(name: str, kind: str) -> str:
    """A tensor's name without the encoder's own, and as it is spelt today: TensorFlow called norms' leaves otherwise."""
    name = name.removeprefix(f"{kind}.")
    return re.sub(r"LayerNorm\.(gamma|beta)$", lambda m: f"LayerNorm.{'weight' if m[1] == 'gamma' else 'bias'}", name)


def _of_encoder(name: str) -> bool:
    return name.startswith(("embeddings.", "encoder.", "pooler."))


def _labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes. A configuration that names none has two, as transformers says."""
    named = {int(i): str(label) for i, label in (config.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}).items()}
    if sorted(named) != list(range(len(named))):
        raise UserError(
            f"The Hugging Face configuration's id2label numbers its classes {sorted(named)}, not from 0 on."
        )
    return tuple(named[i] for i in range(len(named)))


def _aliases(kind: str) -> tuple[tuple[str, str], ...]:
    """Pairs of names under which a checkpoint with the masked-language-model head may hold one tensor."""
    head = {"bert": "cls.predictions", "roberta": "lm_head"}[kind]
    return (
        ("embeddings.word_embeddings.weight", f"{head}.decoder.weight"),
        (f"{head}.bias", f"{head}.decoder.bias"),
    )


def _names(config: RobertaConfig) -> Iterator[Name]:
    """Names of every parameter, the encoder's without a prefix."""
    kind = _kind(config)
    pooled = "classifier.dense" if kind == "roberta" and config.labels else "pooler.dense"
    classifier = "classifier.out_proj" if kind == "roberta" else "classifier"
    modules = {**_MODULES, **_MLM_HEADS[kind], "pooled_head/dense": pooled, "pooled_head/classifier": classifier}
    # Scanned: one traced layer, however deep the model is.
    scanned = dataclasses.replace(config, scan_layers=True)
    tree = jax.eval_shape(lambda: roberta.init(scanned, jax.random.key(0)))
    for path, leaf in flax.traverse_util.flatten_dict(tree, sep="/").items():
        module, _, end = path.rpartition("/")
        turned, end = end == "kernel", _LEAVES[end]
        if not path.startswith("encoder/layers/"):
            yield Name(path, f"{modules[module]}.{end}", leaf.shape, turned)
            continue
        module = module.removeprefix("encoder/layers/")
        for i in range(leaf.shape[0]):
            ours = path.replace("/layers/", f"/layers_{i}/")
            yield Name(ours, f"encoder.layer.{i}.{_IN_LAYER[module]}.{end}", leaf.shape[1:], turned)


def read_config(path: str | os.PathLike) -> RobertaConfig:
    """RobertaConfig of a directory in Hugging Face layout. Raises UserError where it has no readable files."""
    return config_from_huggingface(huggingface.read_json(path), tensor_files.read_directory(path))


def read_roberta(path: str | os.PathLike, config: RobertaConfig) -> dict[str, Any]:
    """Parameters of our RoBERTa, float32, from a directory in Hugging Face layout with safetensors or PyTorch files.

    config: what `read_config` gives, perhaps scanned or not, or without a head. Raises UserError where there are no such
    files, or they do not fit.
    """
    return huggingface.to_params(_leaves_from_huggingface(tensor_files.read_directory(path), config), config)


def write_roberta(
    path: str | os.PathLike, params: Mapping[str, Any], config: RobertaConfig, dtype: str = "float32"
) -> None:
    """Writes `config.json` and `model.safetensors`, as transformers' models of that architecture read them.

    Args:
      path: a directory, made when missing.
      params: of the backbone, scanned or not.
      config: theirs.
      dtype: of the tensors in the file.
    """
    own = {_full(name, config): leaf.cast(jnp.dtype(dtype)) for name, leaf in _to_leaves(params, config).items()}
    huggingface.write(path, own, config_to_huggingface(config))
