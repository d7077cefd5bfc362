"""Runs in a process of its own with eight simulated devices, and prints what test_attention checks as JSON."""

import json

import jax
import numpy as np

from zeroprompt_jax.models import attention, attention_kernel as kernel
from zeroprompt_jax.models.attention import Keys
from zeroprompt_jax.training import partitioning
from zeroprompt_jax.training.partitioning import Mesh

B, T, S, H, K = 8, 6, 10, 2, 64
SHAPES = {"query": (B, T, H, K), "key": (B, S, H, K), "value": (B, S, H, K), "bias": (1, H, T, S), "grad": (B, T, H, K)}
ARRAYS = [np.random.default_rng(i).normal(size=shape).astype(np.float32) * 0.4 for i, shape in enumerate(SHAPES.values())]
MASK = np.random.default_rng(5).random((B, 1, 1, S)) < 0.7
taken = []


@jax.jit
def attended(query, key, value, bias, grad):
    run = lambda query, key, value, bias: attention.attend(query, [Keys(key, value, MASK, bias)])
    out, backward = jax.vjp(run, query, key, value, bias)
    return out, backward(grad)


wanted = jax.device_get(attended(*ARRAYS))
jax.clear_caches()

# The kernel of a device, as of a TPU of this mesh, but interpreted.
attend = kernel.attend
kernel.attend = lambda sizes, *arrays: taken.append(sizes) or attend(sizes, *arrays, interpret=True)
mesh = Mesh(data=4, model=2).build()
kernel.planned = lambda rows, groups, queries, keys, heads, dim: kernel.plan(rows // 4, groups // 4, queries, keys, heads // 2, dim)
with partitioning.activate(mesh):
    found = jax.device_get(attended(*ARRAYS))
worst = max(float(np.abs(x - y).max() / np.abs(y).max()) for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)))
print(json.dumps({"devices": jax.device_count(), "rows": taken[0].rows, "heads": taken[0].num_heads, "worst": worst}))
