"""How fast this machine trains, and in how much memory: full training, prompts, other methods, and PEFT beside them."""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.methods.base import Method, Setting
from zeroprompt_jax.methods.full import Full
from zeroprompt_jax.methods.prompt import Prompt
from zeroprompt_jax.models import flops, t5
from zeroprompt_jax.training import partitioning, prediction, state as states
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


def rows(config: t5.T5Config, batch: int, inputs: int, targets: int) -> dict[str, np.ndarray]:
    """A batch of random tokens without padding."""
    rng = np.random.default_rng(0)
    token = lambda n: rng.integers(1, config.vocab_size, (batch, n), dtype=np.int32)
    return {
        "encoder_input_tokens": token(inputs),
        "decoder_input_tokens": token(targets),
        "decoder_target_tokens": token(targets),
        "decoder_loss_weights": np.ones((batch, targets), np.float32),
        "task_ids": np.zeros(batch, np.int32),
    }


class Step:
    """A compiled training step; every call runs it once and returns its seconds.

    Attributes: compile_s; trained, the number of values that train; memory, XLA's account of it.
    """

    def __init__(self, config: t5.T5Config, method: Method, optimizer: Optimizer, data: dict[str, np.ndarray]):
        self._data, self._mesh = data, partitioning.Mesh().build()
        with partitioning.activate(self._mesh):
            make, run = _training(config, method, optimizer, Setting(config))
            params, self._frozen = states.split(jax.jit(make)(), method.trainable)
            tx = optimizer.build(1, method.banked)
            self._state = jax.jit(lambda p: states.create(p, tx))(params)
            began = time.perf_counter()
            self._run = run.lower(self._state, self._frozen, data).compile()
        self.compile_s = time.perf_counter() - began
        self.trained, self.memory = states.count(params), self._run.memory_analysis()

    def __call__(self) -> float:
        with partitioning.activate(self._mesh):
            began = time.perf_counter()
            self._state, metrics = self._run(self._state, self._frozen, self._data)
            jax.block_until_ready((self._state, metrics))
            return time.perf_counter() - began


def _training(config: t5.T5Config, method: Method, optimizer: Optimizer, setting: Setting):
    """(function that makes all variables by path, jitted training step)."""

    def make():
        keys = jax.random.split(jax.random.key(0))
        backbone = t5.init(config, keys[0])
        own = method.init(keys[1], dataclasses.replace(setting, config=config, backbone=backbone))
        return states.flatten({"backbone": backbone, "method": own})

    step = make_train_step(config, method, optimizer.build(1, method.banked), optimizer.schedule.build(1))
    return make, jax.jit(step, donate_argnums=0)


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
    step = Step(config, method, optimizer, rows(config, batch, inputs, targets))
    step()
    step_s = float(np.median([step() for _ in range(steps)]))
    return {
        "step_s": step_s,
        "tokens_per_s": batch * (inputs + targets) / step_s,
        "compile_s": step.compile_s,
        "trained": step.trained,
        "temporary_gib": getattr(step.memory, "temp_size_in_bytes", 0) / 2**30,
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


def methods(
    config: t5.T5Config,
    named: Mapping[str, Method],
    batch: int,
    inputs: int,
    targets: int,
    steps: int,
    versus_peft: bool = False,
) -> Iterator[dict[str, Any]]:
    """One record for each method, by AdamW in float32; with `versus_peft` the same step with PEFT on torch beside it, its
    repetitions between ours, so that a busy machine slows both. ratio: ours over PEFT's."""
    config = dataclasses.replace(config, dtype="float32")
    data = rows(config, batch, inputs, targets)
    for name, method in named.items():
        made = {"step_s": Step(config, method, Optimizer("adamw"), data)}
        if versus_peft:
            from zeroprompt_jax.training.benchmark_peft import PeftStep

            made["peft_step_s"] = PeftStep(config, name, method, data)
        turns = [{key: step() for key, step in made.items()} for _ in range(steps + 1)][1:]
        record = {key: float(np.median([turn[key] for turn in turns])) for key in made}
        if versus_peft:
            record |= {"ratio": record["step_s"] / record["peft_step_s"], "peft_trained": made["peft_step_s"].trained}
        yield {"method": name, **record, "trained": made["step_s"].trained, "compile_s": made["step_s"].compile_s}


def memory(
    config: t5.T5Config, prompt: int, batch: int, inputs: int, targets: int, policies: Sequence[str] = ("none", "full")
) -> Iterator[dict[str, Any]]:
    """What XLA plans for a training step, full and prompt-only, without running it or allocating anything.

    arguments_gib: parameters, optimizer state and batch; temporary_gib: what the step needs beside them; peak_gib: both,
    what of the output replaces no argument, and the code; of_full: prompt-only's peak over full training's, same optimizer and
    policy. tflop: of the traced step with its layers unrolled (of a loop XLA counts one turn), without what
    rematerialisation repeats.
    """
    data = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), rows(config, batch, inputs, targets))
    named = {"full": Full(), "prompt": Prompt(length=prompt)}
    flop = {name: counted(config, method, data) for name, method in named.items()}
    for optimizer in (Optimizer("adamw"), Optimizer("adafactor")):
        for policy in policies:
            peaks: dict[str, float] = {}
            for name, method in named.items():
                planned = _lower(dataclasses.replace(config, remat_policy=policy), method, optimizer, data)
                found = {part: size / 2**30 for part, size in prediction.memory(planned.compile()).items()}
                peaks[name] = found["peak"]
                yield {
                    "training": name,
                    "optimizer": optimizer.name,
                    "remat_policy": policy,
                    "arguments_gib": found["arguments"],
                    "temporary_gib": found["temporaries"],
                    "peak_gib": peaks[name],
                    "of_full": peaks[name] / peaks["full"],
                    "tflop": flop[name] / 1e12,
                }


def _lower(
    config: t5.T5Config, method: Method, optimizer: Optimizer, data, setting: Setting | None = None, devices=None
) -> Any:
    with partitioning.activate(partitioning.Mesh().build(devices)):
        make, run = _training(config, method, optimizer, setting or Setting(config))
        params, frozen = states.split(jax.eval_shape(make), method.trainable)
        tx = optimizer.build(1, method.banked)
        return run.lower(jax.eval_shape(lambda p: states.create(p, tx), params), frozen, data)


def analytic(config: t5.T5Config, method: Method, data, setting: Setting | None = None) -> float:
    """FLOPs of a training step on this batch by the formulas of `models.flops`, the method's conditioning included;
    padding counts. Nothing is computed: shapes are enough. setting: what the method's parameters are made from."""
    make, _ = _training(config, method, Optimizer("sgd"), setting or Setting(config))

    def condition():
        variables = states.unflatten(make())
        return method.condition(variables["method"], data, t5.Backbone(config, variables["backbone"]))

    trained, _ = states.split(jax.eval_shape(make), method.trainable)
    frozen = not any(path.startswith("backbone/") for path in trained)
    shape = (*data["encoder_input_tokens"].shape, data["decoder_target_tokens"].shape[1])
    return flops.train_conditioned(config, jax.eval_shape(condition), *shape, frozen)


def counted(config: t5.T5Config, method: Method, data, setting: Setting | None = None) -> float:
    """FLOPs of a training step as XLA counts them in the model with its layers unrolled, as of a loop it counts one
    turn, and without rematerialisation. By SGD, whose own share is small; nothing is compiled. Raises UserError where
    JAX has no CPU backend, as XLA counts before compilation for that alone."""
    config = dataclasses.replace(config, scan_layers=False, remat_policy="none")
    try:
        cpu = jax.local_devices(backend="cpu")[:1]
    except RuntimeError:
        raise UserError("Counting FLOPs needs JAX's CPU backend too; add cpu to JAX_PLATFORMS, or unset it.") from None
    with jax.default_device(cpu[0]):
        return _lower(config, method, Optimizer("sgd"), data, setting, cpu).cost_analysis()["flops"]
