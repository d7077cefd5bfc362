"""Runs in a process of its own with eight simulated devices, and prints what test_attention checks as JSON."""

import json
import math

import jax
import numpy as np

from zeroprompt_jax.models import attention, attention_kernel as kernel
from zeroprompt_jax.models.attention import Keys
from zeroprompt_jax.training import partitioning
from zeroprompt_jax.training.partitioning import Mesh

B, T, S, H, K = 8, 6, 10, 2, 64
MASK = np.random.default_rng(5).random((B, 1, 1, S)) < 0.7


def attended(query, key, value, bias, grad):
    run = lambda query, key, value, bias: attention.attend(query, [Keys(key, value, MASK, bias)])
    out, backward = jax.vjp(run, query, key, value, bias)
    return out, backward(grad)


def planned(rows, groups, queries, keys, heads, dim):
    """As of a TPU of this mesh: rows in four parts, heads in two."""
    return kernel.plan(rows // 4, math.lcm(groups, 4) // 4, queries, keys, heads // 2, dim) if mesh else None


taken = []
attend = kernel.attend
kernel.attend = lambda sizes, *arrays: taken.append(sizes) or attend(sizes, *arrays, interpret=True)
kernel.planned = planned
worst = {}
for groups in (B, 2):  # 2 are fewer than the devices that rows lie on
    shapes = [(B, T, H, K), (groups, S, H, K), (groups, S, H, K), (1, H, T, S), (B, T, H, K)]
    arrays = [np.random.default_rng(i).normal(size=shape).astype(np.float32) * 0.4 for i, shape in enumerate(shapes)]
    mesh = None
    wanted = jax.device_get(jax.jit(attended)(*arrays))
    jax.clear_caches()
    mesh = Mesh(data=4, model=2).build()
    with partitioning.activate(mesh):
        found = jax.device_get(jax.jit(attended)(*arrays))
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted))
    worst[groups] = max(float(np.abs(x - y).max() / np.abs(y).max()) for x, y in pairs)
sizes = [[s.rows, s.groups, s.num_heads] for s in taken]
print(json.dumps({"devices": jax.device_count(), "sizes": sizes, "worst": worst}))
