"""Tiny RoBERTas and BERTs for tests: configurations, random parameters, rows of tokens, conditioning of every kind."""

import dataclasses
import functools

import jax
import numpy as np
import tiny_t5

from zeroprompt_jax.models import roberta
from zeroprompt_jax.models.backbone import unstack_layers
from zeroprompt_jax.models.conditioning import Conditioning

BERT = dict(position_offset=0, num_token_types=2, pad_id=0, norm_epsilon=1e-12)


def config(**changes) -> roberta.RobertaConfig:
    """A RoBERTa whose every size differs, with all heads."""
    sizes = dict(vocab_size=32, emb_dim=12, num_heads=3, mlp_dim=20, num_encoder_layers=2, num_positions=18)
    heads = dict(mlm_head=True, pooled_head=True, labels=("entailment", "neutral", "contradiction"))
    return roberta.RobertaConfig(**{**sizes, **heads, "dtype": "float32", "dropout_rate": 0.0, **changes})


@functools.cache
def params(config: roberta.RobertaConfig):
    """Random parameters: no norm scale is one, no bias zero, no two layers alike. The same for scanned and unscanned."""
    if not config.scan_layers:
        return unstack_layers(params(dataclasses.replace(config, scan_layers=True)))
    shapes = jax.eval_shape(lambda: roberta.init(config, jax.random.key(0)))
    return jax.tree_util.tree_map_with_path(tiny_t5.draw, shapes)


def tokens(config: roberta.RobertaConfig, rows=4, T=9, seed=0) -> np.ndarray:
    """Rows of different lengths, right-padded; the first is full."""
    rng = np.random.default_rng(seed)
    made = rng.integers(2, config.vocab_size, (rows, T)).astype(np.int32)
    for row in range(rows):
        made[row, T - (2 * row) % 5 :] = config.pad_id
    return made


@functools.cache
def _run(config):
    def run(params, tokens, conditioning, token_types):
        return roberta.Backbone(config, params)(tokens, conditioning, token_types, hidden=True)

    return tiny_t5.jit(run)


def outputs(config, tokens, conditioning=Conditioning(), token_types=None, weights=None) -> roberta.Output:
    """All outputs, hidden states included, compiled once per configuration and structure of the arguments. weights:
    `params(config)` unless given."""
    weights = params(config) if weights is None else weights
    return jax.tree.map(np.asarray, _run(config)(weights, tokens, conditioning, token_types))


def everything(config: roberta.RobertaConfig, groups: int, seed: int = 0, positions: bool = True) -> Conditioning:
    """Conditioning of every kind at every place of an encoder, random, per group, partly masked."""
    return Conditioning(tiny_t5.everything(config, groups, seed, positions).encoder)
