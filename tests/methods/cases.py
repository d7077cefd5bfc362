"""Every method that adds parameters, small; banks of them with random values; batches that mix tasks."""

import dataclasses
import functools

import jax
import numpy as np
import small_model
import tiny_t5

from zeroprompt_jax.methods.adapter import Adapter
from zeroprompt_jax.methods.base import Setting
from zeroprompt_jax.methods.bias import Bias
from zeroprompt_jax.methods.compacter import Compacter
from zeroprompt_jax.methods.ia3 import IA3
from zeroprompt_jax.methods.initialisers import Uniform
from zeroprompt_jax.methods.lora import LoRA
from zeroprompt_jax.methods.mpt import MPT
from zeroprompt_jax.methods.prefix import Prefix
from zeroprompt_jax.methods.prompt import Prompt
from zeroprompt_jax.models import t5
from zeroprompt_jax.training import state as states

CONFIG = tiny_t5.config()  # every size differs
METHODS = {
    "prompt": Prompt(3),
    "decoder_prompt": Prompt(3, ("encoder", "decoder")),
    "replacing": Prompt(2, ("encoder", "decoder"), "replace"),
    "adding": Prompt(2, ("encoder", "decoder"), "add"),
    "prefix": Prefix(2),
    "prefix_mlp": Prefix(2, bottleneck=3, sublayers=("encoder/.*", "decoder/cross_attention")),
    "series": Adapter(3, sublayers=("encoder/.*", "decoder/cross_attention")),
    "parallel": Adapter(3, "parallel", scaling=4.0, sublayers=".*mlp"),
    "compacter": Compacter(4, division=2, sublayers=("encoder/.*", "decoder/cross_attention")),
    "lora": LoRA(2, alpha=4.0),
    "ia3": IA3(),
    "bias": Bias(),
    "mpt": MPT(3, 2, Uniform(), copies=True, per_task=False),
}
TASKS = 10
ABSENT = (3, 7)  # of the ten: they have slices, and no row
PRESENT = tuple(n for n in range(TASKS) if n not in ABSENT)
ROWS = 2  # of every task in a batch


def setting(tasks: int = 1) -> Setting:
    return Setting(CONFIG, tuple(f"task{n}" for n in range(tasks)))


def per_task(name: str):
    return dataclasses.replace(METHODS[name], per_task=True)


@functools.cache
def backbone() -> dict[str, np.ndarray]:
    return states.flatten({"backbone": tiny_t5.params(CONFIG)})


@functools.cache
def shapes(name: str, tasks: int = TASKS) -> dict:
    """The shapes of a bank's leaves by path."""
    made = jax.eval_shape(lambda: per_task(name).init(jax.random.key(0), setting(tasks)))
    return states.flatten({"method": made})


def bank(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    """A bank that looks trained: nothing is zero or one, no two tasks are alike."""
    rng = np.random.default_rng(seed)
    draw = lambda path, shape: rng.normal("scale" in path, 0.3, shape).astype(np.float32)
    return {path: draw(path, leaf.shape) for path, leaf in shapes(name).items()}


def initial(name: str) -> dict[str, np.ndarray]:
    """A bank as the method makes it."""
    made = tiny_t5.jit(lambda key: per_task(name).init(key, setting(TASKS)))(jax.random.key(0))
    return jax.device_get(states.flatten({"method": made}))


def slices(tree, n):
    """Tasks n of every leaf [N, …], on the host; an int keeps the axis, [1, …]."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[[n] if isinstance(n, int) else list(n)], tree)


def batch(seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of the tasks that are present, shuffled; every task has another number of target tokens."""
    ids = np.random.default_rng(seed).permutation(np.repeat(np.array(PRESENT, np.int32), ROWS))
    made = small_model.batch(len(ids), T=7, S=6, seed=seed, vocab=CONFIG.vocab_size)
    lengths = 1 + (ids + np.arange(len(ids)) % 2) % 6
    weights = (np.arange(6) < lengths[:, None]).astype(np.float32)
    return {**made, "decoder_loss_weights": weights, "task_ids": ids}


def apart(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The batch of each present task alone, stacked: [8, 2, …]."""
    order = np.argsort(batch["task_ids"], kind="stable").reshape(len(PRESENT), ROWS)
    return {name: column[order] for name, column in batch.items()}


@functools.cache
def _logits(method):
    def run(backbone, params, batch):
        bound = t5.Backbone(CONFIG, backbone)
        made = method.condition(params, batch, bound)
        return bound(batch["encoder_input_tokens"], batch["decoder_input_tokens"], made).logits

    return tiny_t5.jit(run)


def logits(method, params, batch) -> np.ndarray:
    """Teacher-forced logits [B, S, V] with the method's parameters by path, under jit."""
    return np.asarray(_logits(method)(tiny_t5.params(CONFIG), states.unflatten(params)["method"], batch))
