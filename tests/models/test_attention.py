"""The TPU kernel of attention computes what XLA does, and is taken only where it suits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_t5
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, PartitionSpec

from zeroprompt_jax.models import attention, attention_kernel as kernel, t5
from zeroprompt_jax.models.attention import Keys
from zeroprompt_jax.training import chips, hlo
from zeroprompt_jax.training.chips import Topology
from zeroprompt_jax.training.partitioning import Mesh, activate

TOLERANCE = {jnp.float32: 2e-6, jnp.bfloat16: 1e-2}


def draw(seed, *shape, dtype=jnp.float32, scale=0.4):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * scale, dtype)


def same(found, wanted, tolerance):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
        assert np.isfinite(y).all() and np.abs(x - y).max() <= tolerance * np.abs(y).max()


@pytest.fixture
def kernel_here(monkeypatch):
    """The kernel wherever there is an attention, interpreted; says how often it was traced."""
    taken = []

    def divided(sizes, *arrays):
        taken.append(sizes)
        return kernel.attend(sizes, *arrays, interpret=True)

    monkeypatch.setattr(kernel, "planned", kernel.plan)
    monkeypatch.setattr(kernel, "divided", divided)
    return taken


CASES = {
    "bias and absent keys": (2, 16, 24, 4, 64, True, "keys", jnp.float32, None),
    "a mask of each query": (2, 16, 24, 2, 64, False, "pairs", jnp.float32, None),
    "heads that fill no register": (2, 16, 24, 3, 64, True, None, jnp.float32, None),
    "wide heads, bfloat16": (2, 16, 24, 2, 128, True, "pairs", jnp.bfloat16, None),
    "tiles, the last of them in part": (2, 300, 40, 2, 64, True, "pairs", jnp.float32, 930_000),
    "tiles, bfloat16": (2, 300, 40, 2, 64, True, "keys", jnp.bfloat16, 930_000),
}


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_gives_the_values_and_gradients_that_xla_gives(case):
    B, T, S, H, K, biased, masked, dtype, vmem_bytes = CASES[case]
    sizes = kernel.plan(B, B, T, S, H, K, *([vmem_bytes] if vmem_bytes else []))
    assert sizes.tiles == (3 if vmem_bytes else 1)
    query, key, value, grad = (draw(i, B, n, H, K, dtype=dtype) for i, n in enumerate((T, S, S, T)))
    bias = draw(4, 1, H, T, S, scale=1.0) if biased else None
    mask = None
    if masked:
        mask = np.random.default_rng(5).random((B, 1, T if masked == "pairs" else 1, S)) < 0.7
        mask[0] = False  # no query of this row sees anything

    def ours(query, key, value, bias):
        bias, seen = None if bias is None else bias[0], None if mask is None else mask[:, 0]
        return kernel.attend(sizes, query, key, value, bias, seen, interpret=True)

    both = []
    for function in (ours, lambda q, k, v, bias: attention.attend(q, [Keys(k, v, mask, bias)])):
        out, backward = jax.vjp(function, query, key, value, bias)
        both.append((out, backward(grad)))
    same(*both, TOLERANCE[dtype])


def test_sources_are_joined_and_values_dropped(kernel_here, monkeypatch):
    B, T, H, K = 4, 8, 2, 64
    query, grad = draw(0, B, T, H, K), draw(1, B, T, H, K)
    shared, grouped, own = (tuple(draw(s + i, G, P, H, K) for i in range(2)) for s, G, P in ((2, 1, 3), (4, 2, 5), (6, B, 7)))
    seen = np.random.default_rng(8).random((B, 1, 1, 5)) < 0.6
    causal = np.tri(T, 7, dtype=bool)[None, None]
    bias = draw(9, 1, H, T, 7)
    kept = jnp.asarray(np.random.default_rng(10).random((B, H, 1, 15)) < 0.5, jnp.float32) * 2

    def run(query, shared, grouped, own, bias):
        keys = [Keys(*shared), Keys(*grouped, seen), Keys(*own, causal, bias)]
        return attention.attend(query, keys, lambda ones: ones * kept)

    def both():
        out, backward = jax.vjp(run, query, shared, grouped, own, bias)
        return out, backward(grad)

    found = both()
    assert [(s.queries, s.keys, s.groups) for s in kernel_here] == [(T, 15, B)]
    monkeypatch.setattr(kernel, "planned", lambda *sizes: None)
    same(found, both(), 2e-6)


def test_rows_of_a_group_read_its_keys_uncopied(kernel_here, monkeypatch):
    B, T, S, H, K = 6, 140, 40, 2, 64
    query, grad, bias = draw(0, B, T, H, K), draw(1, B, T, H, K), draw(2, 1, H, T, S)
    key, value = draw(3, 2, S, H, K), draw(4, 2, S, H, K)
    seen = np.random.default_rng(5).random((B, 1, 1, S)) < 0.6
    small = lambda *sizes: kernel.plan(*sizes, vmem_bytes=930_000)

    def both():
        out, backward = jax.vjp(lambda *x: attention.attend(x[0], [Keys(*x[1:3], seen, x[3])]), query, key, value, bias)
        return out, backward(grad)

    monkeypatch.setattr(kernel, "planned", small)
    found = both()
    assert [(s.rows, s.groups, s.tiles) for s in kernel_here] == [(6, 2, 2)]
    monkeypatch.setattr(kernel, "planned", lambda *sizes: None)
    same(found, both(), 2e-6)


def test_a_bias_of_each_row_and_a_mask_of_each_head_are_left_to_xla(kernel_here):
    x = draw(0, 2, 4, 2, 64)
    attention.attend(x, [Keys(x, x, None, draw(1, 2, 2, 4, 4))])
    attention.attend(x, [Keys(x, x, np.ones((2, 2, 4, 4), bool))])
    assert not kernel_here
    attention.attend(x, [Keys(x, x, None, draw(1, 1, 2, 4, 4))])
    assert kernel_here


def test_a_query_that_sees_one_key_learns_nothing_of_it():
    """Not even rounding errors, which some optimizers would make whole steps of."""
    x, grad, bias = draw(0, 2, 6, 2, 64), draw(1, 2, 6, 2, 64), draw(2, 2, 6, 6)
    seen = np.broadcast_to(np.eye(6, dtype=bool), (2, 6, 6))
    run = lambda q, k, bias: kernel.attend(kernel.plan(2, 2, 6, 6, 2, 64), q, k, x, bias, seen, interpret=True)
    gradients = jax.vjp(run, x, x, bias)[1](grad)
    assert all((np.asarray(g) == 0).all() for g in gradients)


def test_a_frozen_bias_gets_no_gradient():
    """Which would be written and summed over all rows, for nothing, when a prompt alone is trained."""
    x, bias = draw(0, 2, 4, 2, 64), draw(1, 2, 4, 4)
    run = lambda x, bias: kernel.attend(kernel.plan(2, 2, 4, 4, 2, 64), x, x, x, bias, interpret=True).sum()
    frozen, trained = (str(jax.make_jaxpr(jax.grad(run, of))(x, bias)) for of in (0, (0, 1)))
    outputs = lambda text: [line.split("=")[0].count("f32[2,4,4]") for line in text.split("\n") if "= pallas_call" in line]
    assert outputs(frozen) == [0, 0] and outputs(trained) == [0, 1]


def test_a_whole_model_is_the_same(kernel_here, monkeypatch):
    config = tiny_t5.config(remat_policy="full")
    params, (encoder, decoder) = tiny_t5.params(config), tiny_t5.tokens()
    given = tiny_t5.everything(config, groups=2)

    def run():
        loss = lambda params: jnp.square(t5.Backbone(config, params)(encoder, decoder, given).logits).mean()
        return tiny_t5.jit(jax.value_and_grad(loss))(params)

    found = run()
    assert len(kernel_here) >= 3
    monkeypatch.setattr(kernel, "planned", lambda *sizes: None)
    same(found, run(), 1e-4)


def planned(ways, rows, *sizes, groups=None, kind="TPU v5 lite", platform="tpu"):
    device = AbstractDevice(kind, 1, platform)
    mesh = AbstractMesh((ways, 1, 2), ("data", "fsdp", "model"), (AxisType.Auto,) * 3, abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh), nn.logical_axis_rules((("batch", ("data", "fsdp")), ("heads", "model"))):
        return kernel.planned(rows, groups or rows, *sizes)


def test_it_is_planned_for_a_device_of_a_mesh_of_tpus():
    sizes = planned(4, 128, 512, 612, 12, 64)
    assert (sizes.rows, sizes.num_heads, sizes.heads, sizes.tile, sizes.tiles) == (32, 6, 2, 512, 1)
    assert planned(4, 128, 512, 612, 12, 64, platform="gpu") is None
    assert kernel.planned(128, 128, 512, 612, 12, 64) is None  # there is no mesh
    assert planned(4, 126, 512, 612, 12, 64) is None and planned(4, 128, 512, 612, 11, 64) is None  # it does not divide
    assert planned(4, 128, 1, 512, 12, 64) is None  # a step of decoding
    assert planned(4, 128, 512, 512, 12, 64, kind="TPU v3") is None
    assert planned(4, 128, 512, 100_000, 12, 64) is None  # no tile fits
    # The fewest padded queries, then the largest tile; a chip with less memory has smaller ones.
    assert planned(4, 128, 1124, 1124, 12, 64).tile == 384
    assert planned(4, 128, 1024, 1024, 12, 64).tile == 1024 // 2
    assert planned(4, 128, 1024, 1024, 12, 64, kind="TPU v4").tile == 128
    # Groups of keys are divided with their rows; fewer than devices are repeated for each.
    assert [planned(4, 128, 512, 612, 12, 64, groups=n).groups for n in (128, 32, 4, 2, 1)] == [32, 8, 1, 1, 1]
    # Heads fill a register's lanes, or are all there are.
    shapes = {(12, 64): 2, (6, 64): 3, (16, 32): 4, (8, 128): 1, (4, 48): 2}
    assert {heads: planned(4, 128, 512, 512, *heads).heads for heads in shapes} == shapes


@pytest.mark.skipif(not chips.installed(), reason="needs libtpu: pip install -e '.[tpu]'")
def test_it_compiles_for_tpus_and_no_score_is_written():
    mesh = Mesh(data=2, model=4).build(Topology("v5e", (2, 4)).devices())
    B, T, H, K = 16, 612, 8, 64
    with activate(mesh):
        rows = NamedSharding(mesh, PartitionSpec("data"))
        array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=rows)
        bias = jax.ShapeDtypeStruct((1, H, T, T), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
        run = lambda x, bias: attention.attend(x, [Keys(x, x, None, bias)]).astype(jnp.float32).sum()
        text = jax.jit(jax.grad(run, (0, 1))).lower(array(B, T, H, K), bias).compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 2
    scores = B // 2 * H // 4 * T * T
    made = [i for computation in hlo.read(text).computations.values() for i in computation.instructions.values()]
    assert max(np.prod(array.dims) for i in made for array in hlo.arrays(i.type)) < scores


@pytest.mark.skipif(not chips.installed(), reason="needs libtpu: pip install -e '.[tpu]'")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_any_precision_asked_of_products_compiles_for_tpus(dtype):
    mesh = Mesh(data=8).build(Topology("v5e", (2, 4)).devices())
    x = jax.ShapeDtypeStruct((8, 128, 2, 64), dtype, sharding=NamedSharding(mesh, PartitionSpec("data")))
    for precision in ("high", "highest", "default"):
        with activate(mesh), jax.default_matmul_precision(precision):
            run = jax.jit(jax.grad(lambda x: attention.attend(x, [Keys(x, x)]).astype(jnp.float32).sum()))
            assert "tpu_custom_call" in run.lower(x).compile().as_text()


@pytest.mark.slow
def test_eight_devices_each_attend_for_their_rows_and_heads():
    """In a process of its own, as the number of devices is fixed when jax starts."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    script = Path(__file__).with_name("eight_devices_attention.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["devices"] == 8 and found["sizes"] == [[2, 2, 1], [2, 1, 1]]  # rows, groups and heads of a device
    assert max(found["worst"].values()) <= 2e-6
