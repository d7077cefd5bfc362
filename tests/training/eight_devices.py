"""Runs in a process of its own with eight simulated devices, and prints what test_partitioning checks as JSON."""

import json
import sys
import tempfile

import jax
import numpy as np
import small_model

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.methods.full import Full
from zeroprompt_jax.methods.generated import Adapter, LoRA, Prefix
from zeroprompt_jax.methods.hint import Hint
from zeroprompt_jax.methods.prompt import Prompt
from zeroprompt_jax.training import partitioning, state as states
from zeroprompt_jax.training.checkpoint import Checkpointer
from zeroprompt_jax.training.fingerprint import fingerprint
from zeroprompt_jax.training.optimizer import Optimizer, Schedule
from zeroprompt_jax.training.partitioning import Mesh
from zeroprompt_jax.models.t5 import Backbone
from zeroprompt_jax.training.step import Loss, forward, make_train_step

CONFIG = small_model.config(scan_layers=True)
FLAT = small_model.flat(CONFIG)
BATCH = small_model.batch(rows=16)
OPTIMIZERS = {"sgd": Optimizer("sgd", Schedule(0.1)), "adamw": Optimizer("adamw", Schedule(1e-2))}
OPTIMIZERS["adafactor"] = Optimizer("adafactor", Schedule(1e-2))


def abstract(mesh, optimizer: str):
    """Shapes and shardings of the state."""
    tx = OPTIMIZERS[optimizer].build(5)
    shapes = jax.eval_shape(lambda: states.create(FLAT, tx))
    placed = partitioning.state_shardings(shapes, partitioning.param_shardings(FLAT, Full(), mesh), mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, placed)


def train(sizes, optimizer: str, accumulate: int = 1):
    """(losses, state) of five steps."""
    mesh = Mesh(*sizes).build() if sizes else Mesh().build(jax.devices()[:1])
    tx, placed = OPTIMIZERS[optimizer].build(5), jax.tree.map(lambda x: x.sharding, abstract(mesh, optimizer))
    state = small_model.jit(lambda params: states.create(params, tx), out_shardings=placed)(FLAT)
    step = small_model.jit(make_train_step(CONFIG, Full(), tx, lambda step: 0.0, accumulate=accumulate), donate_argnums=0)
    batch, losses = partitioning.put_batch(BATCH, partitioning.batch_sharding(mesh)), []
    assert len({str(s.index) for s in batch["task_ids"].addressable_shards}) == partitioning.row_ways(mesh)
    with partitioning.activate(mesh):
        for _ in range(5):
            state, metrics = step(state, {}, batch)
            losses.append(float(metrics["loss"]))
    return losses, state


def hint(sizes):
    """(loss and gradient of HINT on four instructions of four rows each, specs of what it generates)."""
    mesh = Mesh(*sizes).build() if sizes else Mesh().build(jax.devices()[:1])
    method = Hint((Prefix(2), Adapter(4), LoRA(2)))
    flat = small_model.flat(CONFIG, method)
    placed = partitioning.param_shardings(flat, method, mesh)
    batch = {**BATCH, "instruction_tokens": small_model.batch(4, 6, seed=1)["encoder_input_tokens"]}

    def made(variables, tokens):
        return method.generate(variables["method"], tokens, Backbone(CONFIG, variables["backbone"]))

    def loss(params, batch):
        return forward(states.unflatten(params), batch, method, CONFIG, Loss(), None)[0].loss

    with partitioning.activate(mesh):
        params = {path: jax.device_put(leaf, placed[path]) for path, leaf in flat.items()}
        batch = partitioning.put_batch(batch, partitioning.batch_sharding(mesh))
        found = small_model.jit(made)(states.unflatten(params), batch["instruction_tokens"])
        leaves = jax.tree_util.tree_leaves_with_path(found)
        specs = {jax.tree_util.keystr(p, simple=True, separator="."): str(leaf.sharding.spec) for p, leaf in leaves}
        value, gradient = small_model.jit(jax.value_and_grad(loss))(params, batch)
    return float(value), jax.device_get(gradient), specs


def shares(tree) -> dict[str, float]:
    """Which part of every leaf lies on the first device."""
    first = lambda leaf: leaf.addressable_shards[0].data.size / leaf.size
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): first(leaf) for path, leaf in leaves if leaf.ndim > 1}


def mistake(action) -> str:
    try:
        action()
    except UserError as e:
        return str(e)
    return "no error"


# (data, fsdp, model[, replica], optimizer, micro-batches)
PLANS = {"main": [(2, 1, 2, 2, "sgd", 1), (2, 2, 2, "sgd", 1), (2, 2, 2, "adamw", 1)]}
PLANS["more"] = [(8, 1, 1, "sgd", 1), (1, 1, 8, "sgd", 1), (4, 1, 2, "sgd", 2)]
PLANS["more"] += [(4, 1, 2, "sgd", 1), (4, 1, 2, "adafactor", 1), (2, 2, 2, "adafactor", 1)]
plan = PLANS[sys.argv[1]]
alone = {name: train(None, name) for name in dict.fromkeys(row[-2] for row in plan)}
report = {"devices": jax.device_count(), "runs": []}
report["moved"] = min(small_model.worst(state.params, FLAT) for _, state in alone.values())
kept = {}
for *sizes, optimizer, accumulate in plan:
    losses, state = train(sizes, optimizer, accumulate)
    wanted_losses, wanted = alone[optimizer]
    report["runs"].append(
        {
            "mesh": sizes,
            "optimizer": optimizer,
            "accumulate": accumulate,
            "loss": float(np.max(np.abs(np.subtract(losses, wanted_losses)) / np.abs(wanted_losses))),
            "params": small_model.worst(jax.device_get(state.params), jax.device_get(wanted.params)),
            "shares": shares(state.params),
            "optimizer_shares": shares(state.opt_state),
        }
    )
    kept[*sizes, optimizer] = state

optimizer = plan[-1][-2]
saved = kept[2, 2, 2, optimizer]
report["restored"] = {}
with tempfile.TemporaryDirectory() as folder:
    checkpointer = Checkpointer(folder)
    checkpointer.save(saved, {"seconds": 1.5})
    checkpointer.close()
    for name, mesh in {
        "4x1x2": Mesh(4, 1, 2).build(),
        "1x1x8": Mesh(1, 1, 8).build(),
        "one": Mesh().build(jax.devices()[:1]),
    }.items():
        wanted = abstract(mesh, optimizer)
        found, record = Checkpointer(folder).restore(wanted)
        report["restored"][name] = {
            "same": small_model.same_bits(found, saved) and record == {"seconds": 1.5},
            "placed": all(jax.tree.leaves(jax.tree.map(lambda a, b: a.sharding == b.sharding, found, wanted))),
            "untrained": small_model.same_bits(found.params, FLAT),
        }

odd = small_model.flat(small_model.config(mlp_dim=20))
report["mistakes"] = {
    "batch": mistake(lambda: partitioning.check_batch(Mesh(4, 2, 1).build(), 20)),
    "batch fits": mistake(lambda: partitioning.check_batch(Mesh(4, 2, 1).build(), 24)),
    "parameter": mistake(lambda: partitioning.param_shardings(odd, Full(), Mesh(1, 1, 8).build())),
    "parameter fits": mistake(lambda: partitioning.param_shardings(odd, Full(), Mesh(2, 1, 4).build())),
    "devices": mistake(Mesh(3, 1, 2).build),
    "too many": mistake(Mesh(model=16).build),
    "replicas": mistake(Mesh(4, 1, 2, replica=3).build),
    "batch of replicas": mistake(lambda: partitioning.check_batch(Mesh(2, 2, 1, replica=2).build(), 12)),
    "zero": mistake(lambda: Mesh(model=0).build()),
}
prompt = {"method/prompt": np.zeros((1, 5, 16), np.float32)}
shardings = partitioning.param_shardings(prompt, Prompt(length=5), Mesh(1, 4, 2).build())
report["prompt whole"] = shardings["method/prompt"].is_fully_replicated
placed = partitioning.param_shardings(FLAT, Full(), Mesh(1, 4, 2).build())
sharded = {path: jax.device_put(leaf, placed[path]) for path, leaf in FLAT.items()}
report["fingerprint"] = fingerprint(states.unflatten(sharded)["backbone"]) == fingerprint(states.unflatten(FLAT)["backbone"])
if "main" in sys.argv:
    (loss, wanted, _), (same, found, specs) = hint(None), hint((2, 2, 2))
    report["hint"] = {"loss": abs(same - loss) / abs(loss), "gradient": small_model.worst(found, wanted), "specs": specs}
json.dump(report, sys.stdout)
