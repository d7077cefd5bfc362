"""Runs in a process of its own with eight simulated devices, and prints what test_roberta checks as JSON."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import tiny_roberta
import tiny_t5

from zeroprompt_jax.methods.full import Full
from zeroprompt_jax.models import roberta
from zeroprompt_jax.training import partitioning, state as states
from zeroprompt_jax.training.partitioning import Mesh

CONFIG = tiny_roberta.config(emb_dim=16, num_heads=4)
FLAT = states.flatten({"backbone": tiny_roberta.params(CONFIG)})
TOKENS = tiny_roberta.tokens(CONFIG, rows=8)
GIVEN = tiny_roberta.everything(CONFIG, groups=8)


def loss(flat, tokens, given):
    found = roberta.Backbone(CONFIG, states.unflatten(flat)["backbone"])(tokens, given)
    return jnp.square(found.logits).mean() + jnp.square(found.class_logits).mean(), found.class_logits


def run(sizes):
    """(class logits, gradients of all parameters, the part of each matrix that lies on the first device)."""
    mesh = Mesh(*sizes).build() if sizes else Mesh().build(jax.devices()[:1])
    placed = partitioning.param_shardings(FLAT, Full(), mesh)
    with partitioning.activate(mesh):
        flat = {path: jax.device_put(leaf, placed[path]) for path, leaf in FLAT.items()}
        tokens = jax.device_put(TOKENS, partitioning.batch_sharding(mesh))
        gradients, logits = tiny_t5.jit(jax.grad(loss, has_aux=True))(flat, tokens, GIVEN)
    shares = {path: leaf.addressable_shards[0].data.size / leaf.size for path, leaf in flat.items() if leaf.ndim > 1}
    return jax.device_get((logits, gradients)), shares


(logits, gradients), _ = run(None)
report = {"devices": jax.device_count(), "meshes": {}}
for sizes in ((8, 1, 1), (2, 2, 2)):
    (found, moved), shares = run(sizes)
    worst = max(float(np.abs(moved[path] - leaf).max() / np.abs(leaf).max()) for path, leaf in gradients.items())
    kernels = {share for path, share in shares.items() if "/layers/" in path and path.endswith("kernel")}
    report["meshes"]["×".join(map(str, sizes))] = {
        "logits": float(np.abs(found - logits).max()),
        "gradient": worst,
        "kernels": sorted(kernels),
    }
print(json.dumps(report))
