"""Entailment in every way to train it, on a tiny RoBERTa: banks with random values, and batches that mix tasks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import tiny_roberta
import tiny_t5

from zeroprompt_jax.methods.adapter import Adapter
from zeroprompt_jax.methods.base import Setting, bind
from zeroprompt_jax.methods.bias import Bias
from zeroprompt_jax.methods.compacter import Compacter
from zeroprompt_jax.methods.entailment import Entailment
from zeroprompt_jax.methods.ia3 import IA3
from zeroprompt_jax.methods.lora import LoRA
from zeroprompt_jax.training import state as states

CONFIG = tiny_roberta.config()  # its labels begin with entailment
METHODS = {
    "efficient": Entailment(3),
    "copied": Entailment(3, "copied"),
    "prompt": Entailment(3, "shared"),
    "head": Entailment(3, train_slots=False),
    "fluency": Entailment(3, fluency=0.5),
    "full": Entailment(3, train_backbone=True),
    "lora": Entailment(0, beside=LoRA(2, targets=".*")),
    "adapter": Entailment(3, beside=Adapter(3)),
    "compacter": Entailment(3, beside=Compacter(4, division=2)),
    "bias": Entailment(0, beside=Bias()),
    "ia3": Entailment(0, "copied", beside=IA3()),
}
TASKS, ABSENT, S = 4, 2, 3
IDS = np.array([3, 0, 1, 0, 3, 1, 3, 0], np.int32)
USED = {0: 3, 1: 1, 3: 2}  # slots of each task that is present
WEIGHTS = tiny_roberta.params(CONFIG)


def per_task(name: str) -> Entailment:
    return dataclasses.replace(METHODS[name], per_task=True)


def setting(tasks: int = TASKS, config=CONFIG) -> Setting:
    return Setting(config, tuple(map(str, range(tasks))), tiny_roberta.params(config))


@functools.cache
def shapes(method: Entailment, tasks: int = TASKS):
    return jax.eval_shape(lambda: states.flatten({"method": method.init(jax.random.key(0), setting(tasks))}))


def bank(method: Entailment, seed: int = 0) -> dict[str, np.ndarray]:
    """A bank by path that looks trained: nothing is zero or one, no two tasks are alike."""
    rng = np.random.default_rng(seed)
    draw = lambda path, leaf: rng.normal("scale" in path, 0.3, leaf.shape).astype(np.float32)
    return {path: draw(path, leaf) for path, leaf in shapes(method).items()}


def batch(seed: int = 0, ids: np.ndarray = IDS) -> dict[str, np.ndarray]:
    """Rows of unequal lengths; one counts for nothing, one has no token to tell."""
    rng, T = np.random.default_rng(seed), 9
    tokens = tiny_roberta.tokens(CONFIG, len(ids), T, seed)
    positions = np.array([[slot + 1 if slot < USED.get(n, 0) else -1 for slot in range(S)] for n in ids], np.int32)
    told = (rng.random((len(ids), T)) < 0.4) & (tokens != CONFIG.pad_id)
    told[0], weights = False, np.ones(len(ids), np.float32)
    weights[1] = 0
    return {
        "encoder_input_tokens": tokens,
        "slot_positions": positions,
        "task_ids": ids,
        "labels": rng.integers(0, 2, len(ids)).astype(np.int32),
        "row_weights": weights,
        "mlm_targets": rng.integers(2, CONFIG.vocab_size, (len(ids), T)).astype(np.int32),
        "mlm_weights": told.astype(np.float32),
    }


@functools.cache
def _run(method: Entailment, config):
    def run(backbone, params, batch):
        logits, _ = method.forward(params, batch, bind(config, backbone))
        return logits, jnp.exp(logits - jax.nn.logsumexp(logits, -1, keepdims=True))[:, 1]

    return tiny_t5.jit(run)


def run(method: Entailment, params, batch, config=CONFIG, weights=None):
    """(logits [B, 2], probability of entailment [B]), compiled once per method; params by path."""
    weights = tiny_roberta.params(config) if weights is None else weights
    made = _run(method, config)(weights, states.unflatten(params)["method"], batch)
    return tuple(np.asarray(part) for part in made)


def slices(params, n: int):
    """Task n's slices, [1, …]."""
    return {path: leaf[n : n + 1] for path, leaf in params.items()}
