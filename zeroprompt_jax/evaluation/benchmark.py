"""How long one more example of a known task takes when its instruction's modules are kept, beside concatenation."""

import functools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.evaluation import modules, report
from zeroprompt_jax.evaluation.modules import ModuleStore
from zeroprompt_jax.methods.base import Method, Setting
from zeroprompt_jax.models import decoding, t5

LENGTHS = (16, 64, 256, 1024)


def serving(
    config: t5.T5Config,
    method: Method,
    batch: int = 1,
    inputs: int = 128,
    targets: int = 32,
    steps: int = 5,
    lengths: Sequence[int] = LENGTHS,
) -> Iterator[dict[str, Any]]:
    """One record per instruction length: seconds (medians, the two in turn) of a greedy answer to `batch` inputs of one
    task, every answer `targets` tokens long, and of generating the task's modules, which is done once.

    known_s: with the modules from the store. concatenation_s: plain T5 with the instruction in the input. times:
    concatenation_s over known_s. generate_s: once per task.
    """
    if not method.reads_instructions:
        raise UserError(f"The method {type(method).__name__} reads no instruction; add --gin_file=methods/hint.gin.")
    keys = jax.random.split(jax.random.key(0))
    backbone = jax.jit(lambda: t5.init(config, keys[0]))()
    own = jax.jit(lambda b: method.init(keys[1], Setting(config, backbone=b)))(backbone)
    variables = {"backbone": backbone, "method": own}
    rng = np.random.default_rng(0)
    draw = lambda rows, length: rng.integers(2, config.vocab_size, (rows, length), dtype=np.int32)
    for length in lengths:
        store = ModuleStore(variables, config, method, length, capacity=2)
        store.places(draw(1, length))  # compiles
        other = draw(1, length)
        generate_s = _timed(lambda: jax.block_until_ready(store.attach({"instruction_tokens": other})))
        instruction, text = draw(1, length), draw(batch, inputs)
        told = np.repeat(instruction, batch, axis=0)
        known = store.attach({"encoder_input_tokens": text, "instruction_tokens": told})
        joined = {"encoder_input_tokens": np.concatenate([told, text], axis=1)}
        calls = {"known_s": (known, method), "concatenation_s": (joined, Method())}

        def answer(rows, method):
            static = {"config": config, "method": method, "targets": targets}
            return _timed(lambda: jax.block_until_ready(_answer(variables, rows, **static)))

        turns = [{name: answer(*call) for name, call in calls.items()} for _ in range(steps + 1)][1:]
        record = {name: float(np.median([turn[name] for turn in turns])) for name in calls}
        record["times"] = record["concatenation_s"] / record["known_s"]
        yield {"instruction": length, **record, "generate_s": generate_s, "task_mib": store.task_bytes / 2**20}


@functools.partial(jax.jit, static_argnames=("config", "method", "targets"))
def _answer(variables, batch, *, config, method, targets):
    backbone = t5.Backbone(config, variables["backbone"])
    conditioning = modules.condition(variables, batch, method, backbone)
    # No token has the number -1, so that every answer is as long as it may be.
    return decoding.generate(backbone, batch["encoder_input_tokens"], conditioning, max_length=targets, eos_id=-1)


def _timed(action) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def picture(path: str | os.PathLike, records: Sequence[Mapping[str, Any]], title: str) -> None:
    """Saves a PNG: milliseconds of one more batch against the instruction's length, both ways."""
    figure, axis = report.chart(title)
    lengths = [record["instruction"] for record in records]
    lines = {"known_s": ("#2f6db3", "instruction known: modules kept"), "concatenation_s": ("#c2553f", "concatenation")}
    for name, (color, label) in lines.items():
        axis.plot(lengths, [1e3 * record[name] for record in records], "o-", color=color, linewidth=2, label=label)
    axis.set_xscale("log", base=2)
    axis.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axis.set_ylim(bottom=0)
    axis.set_xlabel("tokens of the instruction")
    axis.set_ylabel("milliseconds per batch")
    axis.legend(frameon=False, fontsize=8.5)
    report.save(figure, path)
