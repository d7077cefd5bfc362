"""Benchmarks: what is measured is the step that trains, and PEFT's beside it trains as many values."""

import jax
import numpy as np
import pytest

from zeroprompt_jax.methods.adapter import Adapter
from zeroprompt_jax.methods.base import Setting
from zeroprompt_jax.methods.full import Full
from zeroprompt_jax.methods.prefix import Prefix
from zeroprompt_jax.methods.prompt import Prompt
from zeroprompt_jax.models import flops, t5
from zeroprompt_jax.training import benchmark

CONFIG = t5.T5Config(
    vocab_size=64, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=2, num_decoder_layers=2
)
SHAPE = (2, 6, 4)


@pytest.fixture(scope="module", autouse=True)
def compile_fast():
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.slow
def test_memory_is_planned_for_full_and_prompt_only_training():
    found = list(benchmark.memory(CONFIG, 3, *SHAPE, policies=("none",)))
    named = {(record["optimizer"], record["training"]): record for record in found}
    assert len(named) == len(found) == 4
    size = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda: t5.init(CONFIG, jax.random.key(0)))))
    adam = named["adamw", "full"]["arguments_gib"] * 2**30
    assert 12 * size < adam < 12.5 * size + 1000  # parameters and two moments, float32
    alone = named["adamw", "prompt"]["arguments_gib"] * 2**30
    assert 4 * size < alone < 4.5 * size + 2000
    for record in found:
        assert record["peak_gib"] >= record["arguments_gib"] + record["temporary_gib"] > 0
        assert record["of_full"] == record["peak_gib"] / named[record["optimizer"], "full"]["peak_gib"]


@pytest.mark.parametrize(
    "method",
    [Full(), Prompt(length=8, per_task=True), Adapter(rank=24), Prefix(length=16)],
    ids=lambda method: type(method).__name__,
)
def test_the_formula_agrees_with_what_xla_counts(method):
    """Of a model that scans its layers too: both count all of them."""
    sizes = dict(vocab_size=256, emb_dim=128, num_heads=4, head_dim=32, mlp_dim=256, dropout_rate=0.0, dtype="float32")
    config = t5.T5Config(**sizes, num_encoder_layers=3, num_decoder_layers=2, scan_layers=True)
    shape, setting = (4, 24, 12), Setting(config, tasks=("a", "b"))
    data = benchmark.rows(config, *shape)
    found = benchmark.analytic(config, method, data, setting)
    assert found == pytest.approx(benchmark.counted(config, method, data, setting), rel=0.15)
    if isinstance(method, Full):
        assert found == flops.train(config, *shape)
    if isinstance(method, Prompt):
        assert found == flops.train(config, *shape, prompt=8, frozen=True)


def test_methods_are_timed():
    (record,) = benchmark.methods(CONFIG, {"prompt": Prompt(length=3)}, *SHAPE, steps=1)
    assert record["method"] == "prompt" and record["trained"] == 3 * 16 and record["step_s"] > 0 and "ratio" not in record


@pytest.mark.parity
def test_peft_is_timed_beside_ours():
    named = {"full": Full(), "prompt": Prompt(length=3)}
    full, prompt = benchmark.methods(CONFIG, named, *SHAPE, steps=1, versus_peft=True)
    assert full["trained"] == full["peft_trained"] and prompt["trained"] == prompt["peft_trained"] == 48
    assert prompt["ratio"] == prompt["step_s"] / prompt["peft_step_s"] and np.isfinite(prompt["ratio"])
