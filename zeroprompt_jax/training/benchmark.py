"""How fast this machine trains: step time, tokens/s and model FLOP utilisation of full and prompt-only training."""

import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zeroprompt_jax.methods.base import Method, Setting
from zeroprompt_jax.methods.full import Full
from zeroprompt_jax.methods.prompt import Prompt
from zeroprompt_jax.models import flops, t5
from zeroprompt_jax.training import partitioning, state as states
from zeroprompt_jax.training.optimizer import Optimizer
from zeroprompt_jax.training.step import make_train_step


def peak_flops(size: int = 2048, repeats: int = 5) -> float:
    """FLOP/s of a large float32 matrix product on one device, best of `repeats`: what utilisation is a share of."""
    x = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    best = min(_timed(lambda: product(x, x).block_until_ready()) for _ in range(repeats))
    return 2.0 * size**3 / best


def _timed(action) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def measure(
    config: t5.T5Config,
    method: Method,
    optimizer: Optimizer = Optimizer(),
    batch: int = 8,
    inputs: int = 128,
    targets: int = 32,
    steps: int = 5,
) -> dict[str, float]:
    """Median seconds of a training step, tokens/s (encoder and decoder, padding none) and compile seconds."""
    rng = np.random.default_rng(0)
    token = lambda n: rng.integers(1, config.vocab_size, (batch, n), dtype=np.int32)
    data = {
        "encoder_input_tokens": token(inputs),
        "decoder_input_tokens": token(targets),
        "decoder_target_tokens": token(targets),
        "decoder_loss_weights": np.ones((batch, targets), np.float32),
    }
    mesh = partitioning.Mesh().build()

    def init():
        keys = jax.random.split(jax.random.key(0))
        return states.flatten({"backbone": t5.init(config, keys[0]), "method": method.init(keys[1], Setting(config))})

    with partitioning.activate(mesh):
        params, frozen = states.split(jax.jit(init)(), method.trainable)
        tx = optimizer.build(steps)
        state = jax.jit(lambda p: states.create(p, tx))(params)
        rate = optimizer.schedule.build(steps)
        run = jax.jit(make_train_step(config, method, tx, rate), donate_argnums=0)
        began = time.perf_counter()
        compiled = run.lower(state, frozen, data).compile()
        compile_s = time.perf_counter() - began
        times = []
        for _ in range(steps + 1):
            began = time.perf_counter()
            state, metrics = compiled(state, frozen, data)
            jax.block_until_ready((state, metrics))
            times.append(time.perf_counter() - began)
    step_s = float(np.median(times[1:]))
    memory = compiled.memory_analysis()
    return {
        "step_s": step_s,
        "tokens_per_s": batch * (inputs + targets) / step_s,
        "compile_s": compile_s,
        "trained": states.count(params),
        "temporary_gib": getattr(memory, "temp_size_in_bytes", 0) / 2**30,
    }


def compare(
    config: t5.T5Config, batch: int, inputs: int, targets: int, prompt: int, steps: int
) -> Iterator[dict[str, Any]]:
    """One record each for full training and for a soft prompt of `prompt` vectors."""
    peak = peak_flops() * jax.device_count()
    for name, method in (("full", Full()), ("prompt", Prompt(length=prompt))):
        found = measure(config, method, batch=batch, inputs=inputs, targets=targets, steps=steps)
        length = prompt if name == "prompt" else 0
        needed = flops.train(config, batch, inputs, targets, length, frozen=name == "prompt")
        found |= {"model_tflop": needed / 1e12, "utilisation": needed / found["step_s"] / peak, "peak_gflops": peak / 1e9}
        yield {"training": name, **found}
