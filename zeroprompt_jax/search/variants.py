"""Relatives of a T5, made from its parameters: what maps between models must cope with, and how well is known.

All are functions on parameter trees, scanned or not, and return float32 numpy arrays.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import numpy as np

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.models.t5 import T5Config

Params = Mapping[str, Any]
_EMBEDDING, _LOGITS = "token_embedder/embedding", "decoder/logits_dense/kernel"
# A kernel that reads the residual stream, to the norm in front of it, beside it or, of a stack's output, at this path.
_NORMS = (
    (r"encoder_decoder_attention/(key|value)/kernel", "encoder/encoder_norm/scale"),
    (r"decoder/logits_dense/kernel", "decoder/decoder_norm/scale"),
    (r"encoder_decoder_attention/query/kernel", "pre_cross_attention_layer_norm/scale"),
    (r"self_attention/(query|key|value)/kernel", "pre_self_attention_layer_norm/scale"),
    (r"attention/(query|key|value)/kernel", "pre_attention_layer_norm/scale"),
    (r"mlp/wi(_\d+)?/kernel", "pre_mlp_layer_norm/scale"),
)


def rotate(
    params: Params, config: T5Config, seed: int = 0, width: int | None = None
) -> tuple[dict[str, Any], T5Config]:
    """The same function in other coordinates: the residual stream is multiplied by a random Q, [D, D] orthogonal, or
    [D, width] with orthonormal rows where a larger width is given. Returns its parameters and configuration.

    The norms' scales are multiplied into the kernels behind them, as a norm commutes with Q only where they are alike.
    They become one; in a wider stream sqrt(D / width), as the same vector has a smaller mean square there. The logits
    get a kernel of their own, since tied embeddings have no room for the decoder norm's scale. Logits are the same, up
    to rounding and the norms' epsilon, and a prompt p of the original is the prompt p Q here.

    Raises UserError for a smaller width.
    """
    D = config.emb_dim
    width = D if width is None else width
    if width < D:
        raise UserError(f"A copy of width {width} cannot do what a model of width {D} does; give {D} or more.")
    Q = np.linalg.qr(np.random.default_rng(seed).normal(size=(width, D)))[0].T
    flat = {path: np.asarray(leaf, np.float64) for path, leaf in _flat(params).items()}
    if config.logits_via_embedding:
        flat[_LOGITS] = flat[_EMBEDDING].T / np.sqrt(D)
    out = {}
    for path, leaf in flat.items():
        if path == _EMBEDDING or re.search(r"/(out|wo)/kernel$", path):
            leaf = leaf @ Q
        elif path.endswith("/scale"):
            leaf = np.full((*leaf.shape[:-1], width), np.sqrt(D / width))
        elif path.endswith("/kernel"):
            leaf = Q.T @ (flat[_norm_before(path)][..., None] * leaf)
        out[path] = leaf
    changed = dataclasses.replace(config, emb_dim=width, logits_via_embedding=False)
    return _tree(out), changed


def add_noise(params: Params, amount: float, seed: int = 0) -> dict[str, Any]:
    """Adds Gaussian noise to every parameter, of `amount` standard deviations of its own array."""
    rng = np.random.default_rng(seed)
    flat = {path: np.asarray(leaf, np.float32) for path, leaf in _flat(params).items()}
    return _tree(
        {path: leaf + amount * leaf.std() * rng.normal(size=leaf.shape) for path, leaf in sorted(flat.items())}
    )


def permute_vocabulary(params: Params, first: int = 3, seed: int = 0) -> dict[str, Any]:
    """Gives every token from the id `first` on another one's embedding, and its place among the logits, as if the
    tokenizer had been numbered anew; by default padding, EOS and unknown keep theirs."""
    flat = dict(_flat(params))
    order = np.arange(flat[_EMBEDDING].shape[0])
    order[first:] = first + np.random.default_rng(seed).permutation(len(order) - first)
    flat[_EMBEDDING] = np.asarray(flat[_EMBEDDING])[order]
    if _LOGITS in flat:
        flat[_LOGITS] = np.asarray(flat[_LOGITS])[:, order]
    return _tree(flat)


def _norm_before(path: str) -> str:
    for pattern, norm in _NORMS:
        if re.search(pattern + "$", path):
            return norm if norm.startswith(("encoder/", "decoder/")) else re.sub(pattern + "$", norm, path)
    raise KeyError(f"No norm is known to stand before {path}: add it to _NORMS.")


def _flat(params: Params) -> dict[str, Any]:
    return flax.traverse_util.flatten_dict(dict(params), sep="/")


def _tree(flat: Mapping[str, Any]) -> dict[str, Any]:
    return flax.traverse_util.unflatten_dict({k: np.asarray(v, np.float32) for k, v in flat.items()}, sep="/")
