"""Runs in a process of its own with eight simulated devices, and prints what test_modules checks as JSON."""

import json

import jax
import numpy as np
import small_model
from zeroprompt_jax.evaluation import modules
from zeroprompt_jax.evaluation.evaluate import _place
from zeroprompt_jax.methods.generated import Adapter, LoRA, Prefix
from zeroprompt_jax.methods.hint import Hint
from zeroprompt_jax.models.t5 import Backbone
from zeroprompt_jax.training import partitioning, state as states
from zeroprompt_jax.training.partitioning import Mesh

CONFIG = small_model.config(scan_layers=True)
METHOD = Hint((Prefix(2), Adapter(4), LoRA(2)))
FLAT = small_model.flat(CONFIG, METHOD)
ROWS = {name: column for name, column in small_model.batch(rows=8).items() if name.endswith("coder_input_tokens")}
TOLD = small_model.batch(3, 6, seed=1)["encoder_input_tokens"]


@small_model.jit
def logits(variables, batch):
    backbone = Backbone(CONFIG, variables["backbone"])
    conditioning = modules.condition(variables, batch, METHOD, backbone)
    return backbone(batch["encoder_input_tokens"], batch["decoder_input_tokens"], conditioning).logits


def served(sizes, told):
    """Logits of eight rows with these instructions, modules from a store, and whether its bank is whole everywhere."""
    mesh = Mesh(*sizes).build()
    placed = partitioning.param_shardings(FLAT, METHOD, mesh)
    variables = states.unflatten({path: jax.device_put(leaf, placed[path]) for path, leaf in FLAT.items()})
    store = modules.ModuleStore(variables, CONFIG, METHOD, 6, capacity=4, mesh=mesh)
    with partitioning.activate(mesh):
        batch = _place(store.attach({**ROWS, "instruction_tokens": told}), mesh)
        found = np.asarray(logits(variables, batch))
    return found, all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(store.bank))


report = {"devices": jax.device_count()}
for name, told in {"mixed": TOLD[[0, 1, 2, 0, 1, 2, 2, 2]], "one task": TOLD[[1] * 8]}.items():
    # Without a store, and on the first device alone.
    want = np.asarray(logits(states.unflatten(FLAT), {**ROWS, "instruction_tokens": told}))
    report[name] = {}
    for sizes in ((8, 1, 1), (2, 2, 2)):
        found, whole = served(sizes, told)
        report[name][str(sizes)] = {"difference": float(np.abs(found - want).max()), "whole": whole}
print(json.dumps(report))
