"""A T5 small enough to train in tests: configuration, parameters, batches and states."""

import jax
import numpy as np

from zeroprompt_jax.methods.base import Setting
from zeroprompt_jax.methods.full import Full
from zeroprompt_jax.models import t5
from zeroprompt_jax.training import state as states

# Compiling is nearly all of the time these tests take, so XLA is told not to optimise.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def jit(function, **kwargs):
    return jax.jit(function, compiler_options=FAST, **kwargs)


def config(**changes) -> t5.T5Config:
    """Every axis that a mesh may shard divides by 8."""
    sizes = dict(vocab_size=64, emb_dim=16, num_heads=8, head_dim=2, mlp_dim=32, num_encoder_layers=1, num_decoder_layers=1)
    return t5.T5Config(**{**sizes, "dtype": "float32", "dropout_rate": 0.0, "scan_layers": False, **changes})


def flat(config: t5.T5Config, method=Full(), seed: int = 0) -> dict[str, np.ndarray]:
    """Random variables of backbone and method by path, on the host. Drawn here, as compiling t5.init takes seconds."""
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda: {"backbone": t5.init(config, key), "method": method.init(key, Setting(config))})
    rng = np.random.default_rng(seed)
    draw = lambda path, shape: rng.normal(1 if "scale" in path else 0, 0.2, shape).astype(np.float32)
    return {path: draw(path, leaf.shape) for path, leaf in states.flatten(shapes).items()}


def batch(rows: int = 8, T: int = 7, S: int = 5, seed: int = 0, vocab: int = 64) -> dict[str, np.ndarray]:
    """Rows of unequal lengths: row b has 1 + b % S target tokens, so micro-batches hold unequal numbers of tokens."""
    rng = np.random.default_rng(seed)
    encoder = rng.integers(2, vocab, (rows, T)).astype(np.int32)
    targets = rng.integers(2, vocab, (rows, S)).astype(np.int32)
    weights = (np.arange(S) <= np.arange(rows)[:, None] % S).astype(np.float32)
    targets = np.where(weights > 0, targets, 0).astype(np.int32)
    for row in range(rows):
        encoder[row, T - row % 4 :] = 0
    return {
        "encoder_input_tokens": encoder,
        "decoder_target_tokens": targets,
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_loss_weights": weights,
        "task_ids": np.zeros(rows, np.int32),
    }


def worst(found, wanted) -> float:
    """The largest difference of any leaf, relative to that leaf's largest value."""
    assert found.keys() == wanted.keys()
    difference = lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max() / max(np.abs(np.asarray(b)).max(), 1e-30)
    return float(max(difference(found[k], wanted[k]) for k in wanted))


def same_bits(a, b) -> bool:
    """Whether two trees agree in structure, types and every bit."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    pairs = zip(jax.tree.leaves(jax.device_get(a)), jax.tree.leaves(jax.device_get(b)))
    return all(np.asarray(x).dtype == np.asarray(y).dtype and np.array_equal(x, y) for x, y in pairs)
