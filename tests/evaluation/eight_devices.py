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
OTHERS = small_model.batch(2, 6, seed=2)["encoder_input_tokens"][[0, 1] * 4]


@small_model.jit
def logits(variables, batch):
    backbone = Backbone(CONFIG, variables["backbone"])
    conditioning = modules.condition(variables, batch, METHOD, backbone)
    return backbone(batch["encoder_input_tokens"], batch["decoder_input_tokens"], conditioning).logits


def specs(tree):
    """Over which mesh axes every axis of every leaf is divided."""
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
    whole = lambda leaf: (*leaf.sharding.spec, *[None] * (leaf.ndim - len(leaf.sharding.spec)))
    return {name(path): whole(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def store_on(sizes):
    """(mesh, variables, a store of three tasks)."""
    mesh = Mesh(*sizes).build()
    placed = partitioning.param_shardings(FLAT, METHOD, mesh)
    variables = states.unflatten({path: jax.device_put(leaf, placed[path]) for path, leaf in FLAT.items()})
    return mesh, variables, modules.ModuleStore(variables, CONFIG, METHOD, 6, capacity=3, mesh=mesh)


def served(sizes, told):
    """Of eight rows with these instructions: their logits with modules from a store, how its bank lies and how the
    modules taken from it do, and how many tasks were generated."""
    mesh, variables, store = store_on(sizes)
    with partitioning.activate(mesh):
        # Other tasks in between, for which some leave the bank and then come back.
        for tokens in (told, OTHERS, told):
            batch = _place(store.attach({**ROWS, "instruction_tokens": tokens}), mesh)
        found = np.asarray(logits(variables, batch))
        taken = small_model.jit(modules.condition, static_argnames=("method", "backbone"))({}, batch, METHOD, None)
    return found, specs(store.bank), specs(taken), store.generated


report = {"devices": jax.device_count(), "eight models": specs(store_on((1, 1, 8))[-1].bank)}
for name, told in {"mixed": TOLD[[0, 1, 2, 0, 1, 2, 2, 2]], "one task": TOLD[[1] * 8]}.items():
    # Without a store, and on the first device alone.
    want = np.asarray(logits(states.unflatten(FLAT), {**ROWS, "instruction_tokens": told}))
    report[name] = {}
    for sizes in ((8, 1, 1), (2, 2, 2)):
        found, bank, taken, generated = served(sizes, told)
        difference = float(np.abs(found - want).max())
        report[name][str(sizes)] = {"difference": difference, "bank": bank, "taken": taken, "generated": generated}
print(json.dumps(report))
