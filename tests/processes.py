"""One of the processes of a run, which share four simulated devices: `rows|train|resume PORT INDEX COUNT FOLDER`. Leaves in
FOLDER what it did, as JSON. test_processes also imports it, for what one process does."""

import dataclasses
import json
import os
import random
import shutil
import sys
from pathlib import Path

import jax
import numpy as np

from zeroprompt_jax import answering, experiment
from zeroprompt_jax.data import cards
from zeroprompt_jax.data.pipeline import Data
from zeroprompt_jax.data.stream import TrainStream
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.evaluation.evaluate import Evaluate
from zeroprompt_jax.models.t5 import T5Config
from zeroprompt_jax.training import partitioning
from zeroprompt_jax.training.loop import Train
from zeroprompt_jax.training.optimizer import Optimizer, Schedule
from zeroprompt_jax.training.partitioning import Mesh

STEPS, ROWS = 4, 16
MODEL = dict(vocab_size=384, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1, num_decoder_layers=1)


@dataclasses.dataclass(frozen=True)
class Interleaved(Mesh):
    """A mesh whose neighbours belong to different processes, as on a pod whose hosts have square patches of it: each
    process holds rows from two places, and a part of every parameter."""

    def build(self, devices: list | None = None) -> jax.sharding.Mesh:
        return super().build(sorted(jax.devices(), key=lambda device: device.id % 2**16 % 2))


def register() -> None:
    for name in ("first", "last", "long"):

        def examples(split, name=name):
            draw = random.Random(f"{name} {split}")
            for _ in range(20 if split == "train" else 5):
                word = "".join(draw.choices("abcdef", k=draw.randrange(2, 9)))
                yield {"input": word, "target": {"first": word[0], "last": word[-1], "long": str(len(word) > 5)}[name]}

        options = ("True", "False") if name == "long" else ()
        cards.register(cards.TaskCard(name, name, (f"{name}:", f"say {name}:"), options=options), cards.Source(examples, "1"))
    cards.register_mixture("all", ["first", "last", "long"])


def made(root: Path, name: str, steps: int = STEPS, mesh: Mesh = Interleaved(fsdp=2), **data) -> experiment.Experiment:
    data = {"feature_lengths": {"inputs": 24, "targets": 8}, "evaluation": {"seen": "all"}, **data}
    return experiment.Experiment(
        Data("all", cache_dir=str(root / "cache"), **data),
        Train(str(root / name), steps, ROWS, log_every=1, save_every=2, eval_every=2),
        T5Config(**MODEL, dtype="float32", dropout_rate=0.1, scan_layers=False),
        optimizer=Optimizer("sgd", Schedule(0.1)),
        mesh=mesh,
        evaluate=Evaluate(batch_size=8),
    )


def at_step_two(folder: Path, name: str) -> None:
    """A copy of a run as it was when it had been killed after step 2."""
    shutil.copytree(folder, folder.with_name(name))
    shutil.rmtree(folder.with_name(name) / "checkpoints" / str(STEPS))
    (folder.with_name(name) / "results.json").unlink()


def streams(root: Path) -> dict[str, bool]:
    """Whether the rows that this process makes are, on its devices, those of the whole batch; by kind of batching."""
    found = {}
    for batching in ("padded", "packed", "buckets", "grouped"):
        lengths = {"inputs": 64, "targets": 8} | ({"instructions": 24} if batching in ("buckets", "grouped") else {})
        data = made(root, "x", feature_lengths=lengths, batching=batching, instruction_groups=4).data
        stream = data.stream(data.open(str(root), progress=False)[0], ROWS)
        sharding = partitioning.batch_sharding(made(root, "x").mesh.build())
        rows, right = partitioning.local_rows(sharding, ROWS), []
        for n in (0, 3):
            whole, placed = stream.batch(n), partitioning.put_batch(stream.batch(n, rows), sharding)
            right += [placed[k].shape == whole[k].shape for k in whole]
            right += [np.array_equal(s.data, whole[k][s.index]) for k in whole for s in placed[k].addressable_shards]
        found[batching] = all(right)
    return found


def rows(root: Path) -> dict:
    """What can be told without a model: who holds which rows, what the streams make, and what is refused."""
    report = {"streams": streams(root)}
    for name, mesh in (("interleaved", Interleaved(fsdp=2)), ("plain", Mesh())):
        sharding = partitioning.batch_sharding(mesh.build())
        report[name] = partitioning.local_rows(sharding, ROWS).tolist()
    lengths = {"inputs": 24, "targets": 8, "instructions": 24}
    grouped = made(root, "bad", feature_lengths=lengths, batching="grouped", instruction_groups=2)
    for name, action in (("groups", experiment.train), ("predictor", answering.predictor)):
        try:
            action(grouped)
        except UserError as e:
            report[name] = str(e)
    return report


def train(root: Path) -> dict:
    """Trains `two`, goes on with `one_then_two`, and asks for `two` again."""
    written, rows, make = [], [], TrainStream.batch

    def opened(event, arguments):
        if event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            written.append(arguments[0])

    def counting(self, n, *given):
        batch = make(self, n, *given)
        rows.append(len(batch["task_ids"]))
        return batch

    sys.addaudithook(opened)
    TrainStream.batch = counting
    evaluation = experiment.train(made(root, "two"), "a = 1\n")
    mine = [os.path.relpath(path, root) for path in written if path.startswith(str(root / "two"))]
    report = {"rows": rows[:], "written": mine, "summary": evaluation.summary()}
    experiment.train(made(root, "one_then_two"), "a = 1\n")
    return report | {"again": experiment.train(made(root, "two"), "a = 1\n")}


def resume(root: Path) -> dict:
    """Goes on with `one_then_four`."""
    evaluation = experiment.train(made(root, "one_then_four"), "a = 1\n")
    return {"summary": evaluation.summary(), "processes": jax.process_count()}


def main(what: str, port: str, index: str, count: str, folder: str) -> None:
    """One of `count` processes that share four devices."""
    jax.config.update("jax_num_cpu_devices", 4 // int(count))
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_disable_most_optimizations", True)
    jax.distributed.initialize(f"localhost:{port}", int(count), int(index))
    register()
    report = {"rows": rows, "train": train, "resume": resume}[what](Path(folder))
    Path(folder, f"{what}_{index}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
