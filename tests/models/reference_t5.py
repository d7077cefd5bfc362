"""T5 (Raffel et al. 2020) and T5 1.1 written out plainly in float64 numpy, row by row: what the backbone must equal.

Shares nothing with the package but the parameter tree, scanned or not: no layers, no masks, no conditioning. Padding is
cut away instead of masked, causality is a growing prefix instead of a mask, and buckets are counted one by one.
"""

import math

import numpy as np


def logits(params, encoder_row, decoder_row, *, num_heads, activations, tied, num_buckets=32, max_distance=128):
    """Logits [S, V] of one example. Trailing zeros of encoder_row are padding."""
    encoder_row = [token for token in encoder_row if token > 0]
    table = np.asarray(params["token_embedder"]["embedding"], np.float64)
    shape = (num_heads, activations, num_buckets, max_distance)
    encoded = _encoder(params["encoder"], table[encoder_row], *shape)
    decoded = _decoder(params["decoder"], table[list(decoder_row)], encoded, *shape)
    if tied:
        return decoded @ table.T / math.sqrt(table.shape[1])
    return decoded @ np.asarray(params["decoder"]["logits_dense"]["kernel"], np.float64)


def _encoder(params, x, num_heads, activations, num_buckets, max_distance):
    bias = _bias(params["relpos_bias"]["rel_embedding"], len(x), True, num_buckets, max_distance)
    for layer in _layers(params):
        y = _norm(x, layer["pre_attention_layer_norm"])
        x = x + _attention(layer["attention"], y, y, num_heads, bias)
        x = x + _feed_forward(layer["mlp"], _norm(x, layer["pre_mlp_layer_norm"]), activations)
    return _norm(x, params["encoder_norm"])


def _decoder(params, x, encoded, num_heads, activations, num_buckets, max_distance):
    bias = _bias(params["relpos_bias"]["rel_embedding"], len(x), False, num_buckets, max_distance)
    for layer in _layers(params):
        y = _norm(x, layer["pre_self_attention_layer_norm"])
        seen = [
            _attention(layer["self_attention"], y[[t]], y[: t + 1], num_heads, bias[:, [t], : t + 1])
            for t in range(len(y))
        ]
        x = x + np.concatenate(seen)
        y = _norm(x, layer["pre_cross_attention_layer_norm"])
        x = x + _attention(layer["encoder_decoder_attention"], y, encoded, num_heads)
        x = x + _feed_forward(layer["mlp"], _norm(x, layer["pre_mlp_layer_norm"]), activations)
    return _norm(x, params["decoder_norm"])


def _layers(params):
    if "layers" not in params:
        names = sorted((name for name in params if name.startswith("layers_")), key=lambda name: int(name[7:]))
        return [params[name] for name in names]

    def take(tree, i):
        return {k: take(v, i) for k, v in tree.items()} if hasattr(tree, "items") else tree[i]

    return [take(params["layers"], i) for i in range(len(params["layers"]["mlp"]["wo"]["kernel"]))]


def _norm(x, params):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * np.asarray(params["scale"], np.float64)


def _dense(x, params):
    return x @ np.asarray(params["kernel"], np.float64)


def _attention(params, x, others, num_heads, bias=None):
    query, key, value = _dense(x, params["query"]), _dense(others, params["key"]), _dense(others, params["value"])
    width = query.shape[1] // num_heads
    heads = []
    for h in range(num_heads):
        part = slice(h * width, (h + 1) * width)
        scores = query[:, part] @ key[:, part].T
        scores = np.exp(scores if bias is None else scores + bias[h])
        heads.append(scores / scores.sum(1, keepdims=True) @ value[:, part])
    return _dense(np.concatenate(heads, axis=1), params["out"])


def _feed_forward(params, x, activations):
    names = ["wi"] if len(activations) == 1 else ["wi_0", "wi_1"]
    hidden = 1.0
    for name, activation in zip(names, activations):
        hidden = hidden * ACTIVATIONS[activation](_dense(x, params[name]))
    return _dense(hidden, params["wo"])


ACTIVATIONS = {
    "relu": lambda x: np.where(x > 0, x, 0.0),
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "linear": lambda x: x,
}


def bucket(distance, bidirectional, num_buckets, max_distance):
    """The bucket of key position - query position: exact near by, then logarithmic up to max_distance."""
    offset, behind = 0, -distance
    if bidirectional:
        num_buckets //= 2
        if behind < 0:
            offset, behind = num_buckets, -behind
    behind = max(behind, 0)
    exact = num_buckets // 2
    if behind < exact:
        return offset + behind
    steps = math.log(behind / exact) / math.log(max_distance / exact) * (num_buckets - exact)
    # A distance on the boundary belongs to the farther bucket; 1e-9 undoes the rounding of the logarithms.
    return offset + min(exact + int(steps + 1e-9), num_buckets - 1)


def _bias(table_HN, length, bidirectional, num_buckets, max_distance):
    table_HN = np.asarray(table_HN, np.float64)
    at = [[bucket(k - q, bidirectional, num_buckets, max_distance) for k in range(length)] for q in range(length)]
    return table_HN[:, np.array(at)]
