"""An experiment's steps compiled for TPUs that are not there: whether they fit, and what they will take."""

import dataclasses
import functools
import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zeroprompt_jax import experiment as experiments
from zeroprompt_jax.errors import UserError, unknown
from zeroprompt_jax.evaluation import evaluate, modules, ranking, report
from zeroprompt_jax.experiment import Experiment, Model
from zeroprompt_jax.training import hlo, partitioning, prediction, state as states
from zeroprompt_jax.training.chips import Topology
from zeroprompt_jax.training.prediction import Prediction

Shapes = Mapping[str, Any]
# Answer options of a scored example, of as many tokens as a target has: what evaluation pads most lists to.
_OPTIONS = 4


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the compiler makes of one step.

    Attributes:
      step: `train`, `score` (the log-likelihoods of four answer options), `decode` or, of what reads instructions,
        `modules` (made once per task).
      mesh: sizes of its axes.
      rows: of its batch, on all chips together.
      fits: whether it fits into a chip's memory.
      memory: bytes on a chip: `parameters`, `optimizer` and `batch` by their shapes; as the compiler lays them out,
        padded, `arguments`, `temporaries` (activations and gradients among them), `outputs`, `code` and their sum `peak`.
        Where it does not fit, the shapes', and the `peak` or the `temporaries` that the compiler asked for.
      prediction: of a chip; None where it does not fit.
      compile_s: seconds that compiling took.
    """

    step: str
    mesh: Mapping[str, int]
    rows: int
    fits: bool
    memory: Mapping[str, int]
    prediction: Prediction | None
    compile_s: float


def plan(experiment: Experiment, topology: Topology, steps: Sequence[str] = ()) -> list[Plan]:
    """Compiles steps of the experiment for a slice. Nothing is made, loaded or run: shapes are enough.

    Args:
      experiment: its mesh must have as many devices as the slice; checkpoints are not read.
      topology: the slice.
      steps: of `STEPS`; by default those that the method has.

    Raises:
      UserError: an unknown step, one that the method does not have, and what training would refuse: rows, groups or
        parameters that do not divide over the mesh, a method without the instructions that it reads.
    """
    has = [name for name in STEPS if name != "modules" or experiment.method.reads_instructions]
    for name in steps:
        if name not in STEPS:
            raise unknown("step", name, STEPS)
        if name not in has:
            raise UserError(
                f"The method {type(experiment.method).__name__} reads no instruction, so it makes no modules."
            )
    experiments.check_batching(experiment)
    experiments.check_instructions(experiment)
    experiment.optimizer.schedule.build(experiment.train.steps)
    mesh = experiment.mesh.build(topology.devices())
    experiments.check_rows(experiment, mesh)
    experiment.data.register()  # a bank is as large as there are tasks
    model = experiments.abstract_model(experiment, mesh)
    return [_plan(name, experiment, topology, model) for name in steps or has]


def _plan(step: str, experiment: Experiment, topology: Topology, model: Model) -> Plan:
    with partitioning.activate(model.mesh):
        lowered, rows, given = STEPS[step](experiment, model)
        sizes = {name: partitioning.device_bytes(tree) for name, tree in given.items()}
        began = time.monotonic()
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as e:
            # Temporaries alone where these are too many, else everything.
            asked = re.search(
                r"HLO temporaries \(([\d.]+)([KMGT]?)\)|Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", str(e)
            )
            if asked is None:
                raise
            part, (number, unit) = ("temporaries", asked.groups()[:2]) if asked[1] else ("peak", asked.groups()[2:])
            sizes[part] = round(float(number) * 2 ** (10 * " KMGT".index(unit or " ")))
            return Plan(step, dict(model.mesh.shape), rows, False, sizes, None, time.monotonic() - began)
    spent = time.monotonic() - began
    sizes |= prediction.memory(compiled)
    found = prediction.predict(hlo.read(compiled.as_text()), topology.chip)
    return Plan(step, dict(model.mesh.shape), rows, sizes["peak"] <= topology.chip.hbm_bytes, sizes, found, spent)


# The steps: each returns what was lowered, the number of rows, and what it is given, by name.


def _rows(experiment: Experiment, rows: int, mesh: jax.sharding.Mesh, packed: bool = False) -> dict[str, Any]:
    """A padded or packed batch, as `TrainStream.batch` and `EvalSet.batches` make them."""
    features = experiment.data.features()
    T, S = features.inputs, features.targets
    places = experiments.task_ids(experiment)
    place = np.shape(next(iter(places.values()))) if places else ()
    wanted = {
        "encoder_input_tokens": ((rows, T), jnp.int32),
        "decoder_input_tokens": ((rows, S), jnp.int32),
        "decoder_target_tokens": ((rows, S), jnp.int32),
        "decoder_loss_weights": ((rows, S), jnp.float32),
        "task_ids": ((rows, max(S // 2, 1)) if packed else (rows, *place), jnp.int32),
    }
    if packed:
        wanted |= {"encoder_segment_ids": ((rows, T), jnp.int32), "decoder_segment_ids": ((rows, S), jnp.int32)}
    return _spread(wanted, mesh)


def _spread(wanted: Mapping[str, tuple], mesh: jax.sharding.Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    sharding = partitioning.batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for name, (shape, dtype) in wanted.items()}


def _train(experiment: Experiment, model: Model):
    data, rows = experiment.data, experiment.train.batch_size
    batch = _rows(experiment, rows, model.mesh, data.batching == "packed")
    if instructions := data.features().instructions:
        told = data.instruction_groups if data.batching == "grouped" else rows
        batch |= _spread({"instruction_tokens": ((told, instructions), jnp.int32)}, model.mesh)
    tx, step = experiments.train_step(experiment)
    state = jax.eval_shape(lambda params: states.create(params, tx), model.params)
    state = partitioning.abstract(state, partitioning.state_shardings(state, model.shardings, model.mesh))
    given = {"parameters": (state.params, model.frozen), "optimizer": state.opt_state, "batch": batch}
    return step.lower(state, model.frozen, batch), rows, given


def _evaluated(experiment: Experiment, model: Model, rows: int) -> dict[str, Any]:
    """A batch of evaluation; a hypernetwork's modules lie in a bank, for the tasks that so many rows are of."""
    batch = _rows(experiment, rows, model.mesh) | _spread({"row_seeds": ((rows,), jnp.uint32)}, model.mesh)
    if experiment.method.reads_instructions:
        per_task = experiment.evaluate.max_examples_per_task or rows
        capacity = ranking.bucket(-(-rows // per_task) + 1)
        bank = jax.eval_shape(functools.partial(modules.empty, capacity=capacity), _modules_of_one(experiment, model))
        batch["modules"] = partitioning.abstract(bank, modules.shardings(bank, model.mesh))
        batch |= _spread({"module_places": ((rows,), jnp.int32)}, model.mesh)
    return batch


def _decode(experiment: Experiment, model: Model):
    rows = experiment.evaluate.batch_size
    batch = _evaluated(experiment, model, rows)
    options = {"max_length": experiment.data.features().targets, "eos_id": 1, "strategy": experiment.evaluate.strategy}
    return _lowered(evaluate.generate_step, experiment, model, batch, **options), rows, _given(model, batch)


def _score(experiment: Experiment, model: Model):
    ways = partitioning.row_ways(model.mesh)
    rows = -(-max(1, experiment.evaluate.batch_size // _OPTIONS) // ways) * ways  # as evaluation rounds
    S = experiment.data.features().targets
    wanted = {"options": ((rows, _OPTIONS, S), jnp.int32), "option_mask": ((rows, _OPTIONS), jnp.bool_)}
    batch = _evaluated(experiment, model, rows) | _spread(wanted, model.mesh)
    return _lowered(evaluate.rank_step, experiment, model, batch), rows, _given(model, batch)


def _modules(experiment: Experiment, model: Model):
    ways = partitioning.row_ways(model.mesh)
    rows = -(-modules.AT_ONCE // ways) * ways
    length = experiment.data.features().instructions
    tokens = _spread({"tokens": ((rows, length), jnp.int32)}, model.mesh)["tokens"]
    lowered = modules.generate_step.lower(model.variables, tokens, **_making_modules(experiment, model))
    return lowered, rows, _given(model, {"tokens": tokens})


def _lowered(step, experiment: Experiment, model: Model, batch: Shapes, **options: Any):
    static = {"config": experiment.model, "method": experiment.method, "mesh": model.mesh}
    return step.lower(model.variables, batch, **static, **options)


def _given(model: Model, batch: Shapes) -> dict[str, Any]:
    return {"parameters": model.variables, "batch": batch}


def _making_modules(experiment: Experiment, model: Model) -> dict[str, Any]:
    config, method, length = experiment.model, experiment.method, experiment.data.features().instructions
    memory = modules.memory_length(model.variables, config, method, length)
    return {"config": config, "method": method, "memory": memory, "dtype": config.dtype}


def _modules_of_one(experiment: Experiment, model: Model):
    tokens = jax.ShapeDtypeStruct((1, experiment.data.features().instructions), jnp.int32)
    make = functools.partial(modules.generate_step, **_making_modules(experiment, model))
    return jax.eval_shape(make, model.variables, tokens)


STEPS = {"train": _train, "score": _score, "decode": _decode, "modules": _modules}


# The report.


def record(plans: Sequence[Plan], experiment: Experiment, topology: Topology, title: str = "") -> dict[str, Any]:
    """The plans as JSON."""
    return {
        "title": title,
        "topology": str(topology),
        "chip": dataclasses.asdict(topology.chip),
        "method": type(experiment.method).__name__,
        "lengths": dict(experiment.data.feature_lengths),
        "steps": [_record(one) for one in plans],
    }


def _record(one: Plan) -> dict[str, Any]:
    head = {"step": one.step, "mesh": dict(one.mesh), "rows": one.rows, "fits": one.fits, "bytes": dict(one.memory)}
    head["compile_s"] = one.compile_s
    found = one.prediction
    if found is None:
        return head
    return head | {
        "seconds": found.seconds,
        "cycles": found.cycles,
        "flops": found.flops,
        "utilisation": found.utilisation,
        "seconds_by_kind": found.parts,
        "collectives": found.collectives(),
        "opaque": found.opaque(),
        "unbounded_loops": list(found.unbounded),
        "costliest": found.costliest(),
    }


def table(plans: Sequence[Plan], topology: Topology) -> str:
    """The printed report."""
    chip, chips = topology.chip, math.prod(topology.shape) * topology.slices
    giga = lambda size: f"{size / 2**30:,.3g}" if size is not None else ""
    head = ["GiB per chip", "fits", *_MEMORY]
    lines = [[p.step, "yes" if p.fits else "no", *(giga(p.memory.get(name)) for name in _MEMORY)] for p in plans]
    axes = dict.fromkeys(", ".join(f"{axis} {n}" for axis, n in p.mesh.items() if n > 1) for p in plans)
    mesh = "".join(f"; {shown}" for shown in axes if shown)
    out = [f"{topology}: {chips:,} chips of {giga(chip.hbm_bytes)} GiB{mesh}.", "", *report.align([head, *lines]), ""]
    head = ["per chip", "rows in all", "TFLOP", "M cycles", "ms", "rows/s in all", "utilisation", "exchanged MB"]
    lines = []
    for p in plans:
        if (found := p.prediction) is not None:
            exchanged = sum(row["bytes"] for row in found.collectives()) / 1e6
            figures = [found.flops / 1e12, found.cycles / 1e6, 1e3 * found.seconds, p.rows / found.seconds]
            used = f"{found.utilisation:.1%}"
            lines.append([p.step, f"{p.rows:,}", *(f"{x:,.4g}" for x in figures), used, f"{exchanged:,.4g}"])
    if lines:
        out += [*report.align([head, *lines]), ""]
    for p in plans:
        out += _details(p)
    return "\n".join(out)


_MEMORY = ("parameters", "optimizer", "batch", "arguments", "temporaries", "outputs", "code", "peak")


def _details(one: Plan) -> list[str]:
    found = one.prediction
    if found is None:
        what = "temporaries" if "temporaries" in one.memory else "peak"
        return [f"{one.step} does not fit: the compiler asks for {one.memory[what] / 2**30:,.3g} GiB ({what}).", ""]
    ms = lambda seconds: f"{1e3 * seconds:,.4g}"
    out = [f"{one.step}: " + ", ".join(f"{kind} {ms(s)} ms" for kind, s in found.parts.items()) + "."]
    rows = [[c["name"], f"{c['runs']:,}", f"{c['bytes'] / 1e6:,.4g}", ms(c["seconds"])] for c in found.collectives()]
    if rows:
        out += ["", *report.align([["collective", "runs", "MB given", "ms"], *rows])]
    rows = [[c["name"], f"{c['runs']:,}", f"{c['bytes'] / 1e6:,.4g}", ms(c["seconds"])] for c in found.opaque()]
    if rows:
        out += ["", *report.align([["opaque kernel, by roofline", "runs", "MB", "ms"], *rows])]
    rows = [
        [c["source"], c["line"], f"{c['runs']:,}", ms(c["seconds"]), f"{c['share']:.1%}"] for c in found.costliest()
    ]
    out += ["", *report.align([["costliest", "line", "runs", "ms", "share"], *rows])]
    for source in found.unbounded:
        out.append(f"The loop {source} tells no number of turns; it is counted as one.")
    return [*out, ""]
