"""BERT and RoBERTa written once more, in numpy and float64, from the papers: one row without padding, plain loops."""

import math

import numpy as np


def outputs(params, tokens, types, num_heads, offset, epsilon):
    """(hidden states [L + 1, T, D], masked-language-model logits [T, V], pooled [D], class logits [C]) of one row, from an
    unscanned tree. offset: the first token's row in the table of positions."""
    p = _as_float64(params)
    words = p["token_embedder"]["embedding"]
    x = words[tokens] + p["token_type_embedder"]["embedding"][types]
    x = x + p["position_embedder"]["embedding"][offset + np.arange(len(tokens))]
    x = _norm(x, p["encoder"]["embeddings_norm"], epsilon)
    states = [x]
    for i in range(sum(name.startswith("layers_") for name in p["encoder"])):
        layer = p["encoder"][f"layers_{i}"]
        x = _norm(x + _attention(x, layer["attention"], num_heads), layer["post_attention_layer_norm"], epsilon)
        y = _dense(_gelu(_dense(x, layer["mlp"]["wi"])), layer["mlp"]["wo"])
        x = _norm(x + y, layer["post_mlp_layer_norm"], epsilon)
        states.append(x)
    head = p["mlm_head"]
    logits = _norm(_gelu(_dense(x, head["dense"])), head["layer_norm"], epsilon) @ words.T + head["bias"]
    pooled = np.tanh(_dense(x[0], p["pooled_head"]["dense"]))
    return np.stack(states), logits, pooled, _dense(pooled, p["pooled_head"]["classifier"])


def _as_float64(tree):
    return {k: _as_float64(v) if isinstance(v, dict) else np.asarray(v, np.float64) for k, v in tree.items()}


def _dense(x, p):
    return x @ p["kernel"] + p["bias"]


def _norm(x, p, epsilon):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon) * p["scale"] + p["bias"]


def _gelu(x):
    """The exact one: x times the normal distribution's cumulative function."""
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def _attention(x, p, num_heads):
    heads = []
    for query, key, value in zip(*(np.split(_dense(x, p[name]), num_heads, -1) for name in ("query", "key", "value"))):
        scores = np.exp(query @ key.T / math.sqrt(query.shape[-1]))
        heads.append(scores / scores.sum(-1, keepdims=True) @ value)
    return _dense(np.concatenate(heads, -1), p["out"])
