"""An experiment: data, model, method, training and evaluation put together. What the command line calls."""

import contextlib
import dataclasses
import functools
import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm

from zeroprompt_jax.data import cards, seqio_bridge
from zeroprompt_jax.data.pipeline import Data
from zeroprompt_jax.data.store import Store
from zeroprompt_jax.data.vocabulary import Vocabulary, load_vocabulary
from zeroprompt_jax.errors import PeerLost, UserError
from zeroprompt_jax.evaluation import report
from zeroprompt_jax.evaluation.evaluate import Evaluate, Evaluation, evaluate, tested
from zeroprompt_jax.methods import initialisers
from zeroprompt_jax.methods.bank import Bank
from zeroprompt_jax.methods.base import Method, Run, Setting
from zeroprompt_jax.methods.full import Full
from zeroprompt_jax.methods.soft_prompt import SoftPrompt
from zeroprompt_jax.models import t5
from zeroprompt_jax.models.t5 import T5Config
from zeroprompt_jax.training import benchmark, checkpoint, distributed, partitioning, run_folder, state as states, task_file
from zeroprompt_jax.training.fingerprint import fingerprint
from zeroprompt_jax.training.goodput import Goodput
from zeroprompt_jax.training.loop import Metrics, Train, fit
from zeroprompt_jax.training.optimizer import Optimizer
from zeroprompt_jax.training.partitioning import Mesh
from zeroprompt_jax.training.state import Flat, State
from zeroprompt_jax.training.step import Loss, make_train_step

@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that defines a run. Frozen configuration; building and running are functions of it."""

    data: Data
    train: Train
    model: T5Config = T5Config()
    method: Method = Full()
    optimizer: Optimizer = Optimizer()
    loss: Loss = Loss()
    mesh: Mesh = Mesh()
    evaluate: Evaluate = Evaluate()

    def __post_init__(self):
        if not isinstance(self.model, T5Config):
            raise UserError(f"Experiment.model is a {type(self.model).__name__}; experiments train a T5 (T5Config).")


@dataclasses.dataclass
class Model:
    """A model on its mesh: what trains and what is frozen, by path, and their shardings."""

    mesh: jax.sharding.Mesh
    params: Flat
    frozen: Flat
    shardings: Mapping[str, Any]

    @property
    def variables(self) -> dict[str, Any]:
        return states.unflatten(self.params, self.frozen)


def build_model(experiment: Experiment, trained: bool = False) -> Model:
    """Random parameters, born sharded, then whatever `initial_checkpoint_path` brings; the method's own parameters are
    made last, as they may start from the backbone's. trained: what trains will come from the run's own checkpoint, so
    only what is frozen is read."""
    mesh, method, settings = experiment.mesh.build(), experiment.method, experiment.train
    check_pretrained(experiment)
    make_backbone, make_method = _making(experiment)
    planned = abstract_model(experiment, mesh)  # a mistake is an error before anything is made
    shapes, trains, shardings = planned.params | planned.frozen, planned.params, planned.shardings
    of = lambda kind: {path: sharding for path, sharding in shardings.items() if path.startswith(kind)}
    regex = settings.initial_checkpoint_regex
    if settings.initial_checkpoint_path and not any(re.fullmatch(regex, path) for path in shapes):
        raise UserError(f"Train.initial_checkpoint_regex '{regex}' matches none of this model's {len(shapes)} parameters.")

    # What a checkpoint brings is not made first: a large model would not fit twice.
    path = settings.initial_checkpoint_path
    loaded = {p for p in shapes if path and re.fullmatch(regex, p) and not (trained and p in trains)}

    def load(kind: str) -> Flat:
        wanted = {p: leaf for p, leaf in shapes.items() if p in loaded and p.startswith(kind)}
        return checkpoint.load_params(path, wanted) if wanted else {}

    def rest(flat: Flat) -> Flat:
        return {p: leaf for p, leaf in flat.items() if p not in loaded}

    with partitioning.activate(mesh):
        flat = partitioning.init_sharded(lambda: rest(make_backbone()), rest(of("backbone/"))) | load("backbone/")
        if not trained:
            _check_task_files(experiment, states.unflatten(flat)["backbone"])
        own = jax.jit(make_method, out_shardings=of("method/"))(states.unflatten(flat)["backbone"])
        flat |= own | load("method/")
    params, frozen = states.split(flat, method.trainable)
    return Model(mesh, params, frozen, shardings)


def _making(experiment: Experiment):
    """(function that makes the backbone's parameters by path, function of the backbone that makes the method's)."""
    method, setting = experiment.method, _setting(experiment)
    keys = jax.random.split(jax.random.key(experiment.train.seed))

    def make_method(backbone):
        return states.flatten({"method": method.init(keys[1], dataclasses.replace(setting, backbone=backbone))})

    return lambda: states.flatten({"backbone": t5.init(experiment.model, keys[0])}), make_method


def abstract_model(experiment: Experiment, mesh: jax.sharding.Mesh) -> Model:
    """The model as shapes on a mesh, whose devices need not be there.

    Raises:
      UserError: a regex of what trains matches nothing, or a parameter's axis does not divide over the mesh.
    """
    make_backbone, make_method = _making(experiment)
    shapes = jax.eval_shape(make_backbone)
    shapes |= jax.eval_shape(make_method, states.unflatten(shapes)["backbone"])
    states.split(shapes, experiment.method.trainable)
    shardings = partitioning.param_shardings(shapes, experiment.method, mesh)
    params, frozen = states.split(partitioning.abstract(shapes, shardings), experiment.method.trainable)
    return Model(mesh, params, frozen, shardings)


def _setting(experiment: Experiment) -> Setting:
    """What the method's initialisers may read, the backbone's parameters excepted."""
    if not isinstance(experiment.method, (Bank, SoftPrompt)):
        return Setting(experiment.model)
    tasks = tuple(experiment.data.training())
    asked = ()
    if isinstance(experiment.method, SoftPrompt):  # also of tasks that it was not trained on
        asked = dict.fromkeys((*tasks, *itertools.chain(*experiment.data.groups().values()), *cards.task_names()))
    return Setting(
        experiment.model,
        tasks,
        encode=load_vocabulary(experiment.data.vocabulary).encode,
        labels={task: cards.card(task).options for task in tasks if cards.is_task(task)},
        facts={task: seqio_bridge.facts(task) for task in asked},
        run=trained,
    )


def _check_task_files(experiment: Experiment, backbone: Mapping[str, Any]) -> None:
    """Raises UserError where a prompt is to start from a task that was trained on another backbone."""
    initialiser = getattr(experiment.method, "initialiser", None)
    while initialiser is not None:
        if isinstance(initialiser, initialisers.Trained) and task_file.is_task_file(initialiser.path):
            vocabulary = load_vocabulary(experiment.data.vocabulary).fingerprint
            task_file.check(task_file.read(initialiser.path), fingerprint(backbone), vocabulary)
        initialiser = getattr(initialiser, "fallback", None)


def trained(path: str) -> Run:
    """What the method of another run trained."""
    with jax.ensure_compile_time_eval():  # parameters are made under jit, where nothing could be read
        flat, tasks = checkpoint.load_run(path)
    return Run({k.removeprefix("method/"): v for k, v in flat.items() if k.startswith("method/")}, tasks)


def task_ids(experiment: Experiment) -> Mapping[str, Any] | None:
    """Task to its place, or places, in the method's banks; None where the method keeps nothing per task."""
    return experiment.method.places(_setting(experiment)) if experiment.method.per_task else None


def step_flops(experiment: Experiment) -> float:
    """FLOPs of a training step by formula, the optimizer's left out, padding counted. Needs the tasks registered."""
    return benchmark.analytic(*_step(experiment))


def counted_flops(experiment: Experiment) -> float:
    """The same as XLA counts it in the model with its layers unrolled."""
    return benchmark.counted(*_step(experiment))


def _step(experiment: Experiment) -> tuple[T5Config, Method, dict[str, Any], Setting]:
    """What a step is counted from: a batch of the shapes that training reads."""
    if experiment.method.reads_instructions:
        name = type(experiment.method).__name__
        raise UserError(f"What a step of {name} costs depends on its instructions; zeroprompt flops counts that.")
    lengths, size = experiment.data.feature_lengths, experiment.train.batch_size
    rows = benchmark.rows(experiment.model, size, lengths["inputs"], lengths["targets"])
    if places := task_ids(experiment):
        rows["task_ids"] = np.zeros((size, *np.shape(next(iter(places.values())))), np.int32)
    return experiment.model, experiment.method, rows, _setting(experiment)


def restore(experiment: Experiment, path: str | None = None) -> Model:
    """The trained model of a run: its newest checkpoint, or that at `path`, over its frozen parameters."""
    model = build_model(experiment, trained=True)
    where = path or experiment.train.model_dir
    model.params = checkpoint.load_params(where, model.params)
    made = states.flatten({"method": experiment.method.extend(model.variables["method"], _setting(experiment))})
    model.params |= {path: leaf for path, leaf in made.items() if path in model.params}
    return model


def check_vocabulary(experiment: Experiment, vocabulary: Vocabulary) -> None:
    if vocabulary.size > experiment.model.vocab_size:
        raise UserError(
            f"T5Config.vocab_size is {experiment.model.vocab_size}, but the vocabulary '{vocabulary.spec}' has "
            f"{vocabulary.size} pieces."
        )


def check_pretrained(experiment: Experiment) -> None:
    """Raises UserError where `initial_checkpoint_path` holds a model that computes otherwise than T5Config says, or whose
    embeddings are of another vocabulary: shapes alone would not tell."""
    path = experiment.train.initial_checkpoint_path
    theirs = checkpoint.pretrained_config(path) if path else None
    for name in ("num_heads", "mlp_activations", "logits_via_embedding", "relpos_num_buckets", "relpos_max_distance"):
        if theirs and getattr(experiment.model, name) != getattr(theirs, name):
            ours, given = getattr(experiment.model, name), getattr(theirs, name)
            raise UserError(f"T5Config.{name} is {ours!r}, but the model in '{path}' has {given!r}.")
    if theirs is None or not re.fullmatch(experiment.train.initial_checkpoint_regex, "backbone/token_embedder/embedding"):
        return
    try:
        beside = load_vocabulary(path)
    except UserError:  # there is none beside the model
        return
    own = load_vocabulary(experiment.data.vocabulary)
    if own.pieces()[: own.size - own.extra_ids] != beside.pieces()[: beside.size - beside.extra_ids]:
        raise UserError(f"Data.vocabulary is '{own.spec}', but the model in '{path}' has another: set it to '{path}'.")


def check_batching(experiment: Experiment) -> None:
    """Raises UserError where the method cannot be trained on packed batches: a row holds several tasks' examples."""
    method = type(experiment.method).__name__
    if experiment.data.batching != "packed":
        return
    if experiment.method.per_task or "instructions" in experiment.data.feature_lengths:
        why = "has parameters of its own for each task" if experiment.method.per_task else "is given instructions apart"
        raise UserError(
            f"Packed batches put several tasks into a row, but the method {method} {why}; set Data.batching to "
            f"'buckets' or 'grouped'."
        )


def check_instructions(experiment: Experiment) -> None:
    """Raises UserError where the method reads instructions and the data do not give them apart."""
    if experiment.method.reads_instructions and not experiment.data.feature_lengths.get("instructions"):
        raise UserError(
            f"The method {type(experiment.method).__name__} reads the instruction apart from the input; set the feature "
            f"length 'instructions' (TASK_FEATURE_LENGTHS), which is {dict(experiment.data.feature_lengths)} now."
        )


def divided(experiment: Experiment) -> dict[str, int]:
    """What must divide over the devices that hold rows, by name. An instruction of grouped batches must lie on one device
    with its rows, so that a process makes whole groups."""
    settings, data = experiment.train, experiment.data
    sizes = {"batch_size": settings.batch_size // settings.accumulate}
    if data.batching == "grouped":
        sizes["Instruction groups per micro-batch:"] = data.instruction_groups // settings.accumulate
    return {**sizes, "Evaluate.batch_size": experiment.evaluate.batch_size}


def check_rows(experiment: Experiment, mesh: jax.sharding.Mesh) -> None:
    """Raises UserError where the rows of a batch do not divide over the mesh."""
    for what, size in divided(experiment).items():
        partitioning.check_batch(mesh, size, what)


def train_step(experiment: Experiment):
    """(optimizer, jitted step (state, frozen, batch) -> (state, metrics), the state donated)."""
    e, s = experiment, experiment.train
    return _train_step(e.model, e.method, e.optimizer, e.loss, s.steps, s.accumulate, s.seed)


@functools.lru_cache(maxsize=1)
def _train_step(model: T5Config, method: Method, optimizer: Optimizer, loss: Loss, steps: int, accumulate: int, seed: int):
    """(optimizer, compiled step). Kept for the next run: a study trains one model on task after task, and tracing would
    take longer than a short run."""
    tx = optimizer.build(steps, method.banked)
    step = make_train_step(model, method, tx, optimizer.schedule.build(steps), loss, accumulate, seed)
    return tx, jax.jit(step, donate_argnums=0)


def train(experiment: Experiment, config_text: str = "", title: str = "") -> Evaluation | None:
    """Trains, evaluates and reports in `model_dir`; started again it resumes, or reports when it was finished.

    Restore order: the run's own newest checkpoint, then `initial_checkpoint_path`, then scratch. Returns None when the
    run had been finished before.

    Raises:
      Stopped: SIGTERM stopped it after a step, which is saved, or (PeerLost) another of its processes is gone; the same
        call goes on.
      UserError: what cannot be meant, training that diverged, a checkpoint that cannot be written, another process that
        trains into `model_dir`.
    """
    with Goodput() as goodput, contextlib.ExitStack() as held:
        return _train(experiment, config_text, title, goodput, held)


def _train(
    experiment: Experiment, config_text: str, title: str, goodput: Goodput, held: contextlib.ExitStack
) -> Evaluation | None:
    settings, first = experiment.train, partitioning.is_first()
    root = Path(settings.model_dir)
    check_batching(experiment)
    check_instructions(experiment)
    run_folder.refuse_another(root, config_text)
    if run_folder.finished(root, settings.steps):
        if first:
            print((root / "table.txt").read_text(encoding="utf-8"), end="")
            print(f"\nThis run was finished before; nothing was trained. For another one set another MODEL_DIR than {root}.")
        return None

    experiment.optimizer.schedule.build(settings.steps)  # mistakes show before anything is cached or compiled
    check_rows(experiment, experiment.mesh.build())
    experiment.data.register()
    store, vocabulary = experiment.data.open(settings.model_dir, progress=first)
    check_vocabulary(experiment, vocabulary)
    stream = experiment.data.stream(store, settings.batch_size)
    groups = experiment.data.groups()
    fill = stream.fill()
    _say_tasks(experiment, store, groups, round(settings.steps * settings.batch_size * fill["examples_per_row"]))
    if stream.batching != "padded":
        _say(
            f"Batches are {stream.batching}: {fill['examples_per_row']:.2f} examples a row; {fill['encoder']:.1%} of "
            f"the encoder's tokens and {fill['decoder']:.1%} of the decoder's are not padding."
        )

    places = task_ids(experiment)
    if groups:  # mistakes show before training
        tested(store, groups, "test", experiment.data.features(), experiment.evaluate, places)
    trained_tasks = list(experiment.data.training())  # the first in the store, in this order
    held.enter_context(run_folder.alone(root))  # from here on, until all is reported, the folder is this run's
    checkpointer = checkpoint.Checkpointer(settings.model_dir, settings.keep, () if places is None else trained_tasks)
    model = build_model(experiment, trained=checkpointer.latest() is not None)
    mesh = model.mesh
    tx, step = train_step(experiment)
    create = lambda params: states.create(params, tx)
    abstract = jax.eval_shape(create, model.params)
    shardings = partitioning.state_shardings(abstract, model.shardings, mesh)
    record: dict[str, Any] = {}
    if checkpointer.latest() is None:
        state = jax.jit(create, out_shardings=shardings)(model.params)
    else:
        state, record = checkpointer.restore(partitioning.abstract(abstract, shardings))
        goodput.carry(record.get("spent", {}))
        if state.step > settings.steps:
            raise UserError(
                f"The run in {root} has trained to step {int(state.step):,} already, more than its TRAIN_STEPS "
                f"{settings.steps:,}; give more, or another MODEL_DIR."
            )
        _say(f"Resuming {root} at step {int(state.step):,} of {settings.steps:,}.")
        if run_folder.finished(root, int(state.step)):
            _say("It was finished: training goes on, and its results will be replaced.")
    if first:
        run_folder.claim(root, config_text)  # only now: a config with a mistake in it claims nothing
    trained, frozen = states.count(model.params), states.count(model.frozen)
    _say(f"{trained:,} parameters train, {frozen:,} are frozen; {_devices(mesh)}.")
    if not settings.initial_checkpoint_path and any(path.startswith("backbone/") for path in model.frozen):
        _say("The frozen backbone is random: Train.initial_checkpoint_path is not set.")

    def scores(state: State, settings: Evaluate, progress: bool, predictions: Path | None = None) -> Evaluation:
        variables = states.unflatten(state.params, model.frozen)
        variables["method"] = experiment.method.extend(variables["method"], _setting(experiment))
        with _bar("evaluate", progress) as tell:
            return evaluate(
                variables,
                experiment.model,
                experiment.method,
                store,
                groups,
                "test",
                experiment.data.features(),
                vocabulary,
                settings,
                mesh,
                tell,
                predictions,
                places,
                experiment.data.training(),
            )

    def make_batch(n: int) -> Any:
        batch = stream.batch(n, mine)
        if places is not None:
            batch["task_ids"] = places_of[batch["task_ids"]]
        return partitioning.put_batch(batch, sharding)

    places_of = None if places is None else np.array([places[task] for task in trained_tasks], np.int32)
    during = dataclasses.replace(experiment.evaluate, control=False)
    sharding = partitioning.batch_sharding(mesh)
    mine = partitioning.local_rows(sharding, settings.batch_size)
    metrics, lost = Metrics(settings.model_dir, int(state.step)), False
    try:
        with partitioning.activate(mesh):
            state, seconds = fit(
                settings,
                state,
                model.frozen,
                step,
                make_batch,
                checkpointer,
                metrics,
                record=record,
                evaluate=(lambda state: scores(state, during, False).summary()) if groups else None,
                tasks_of=lambda n: [task for task, *_ in stream.drawn(n)],
                examples_per_row=fill["examples_per_row"],
                progress=first,
                goodput=goodput,
            )
        if not groups:
            if first:
                print(f"Trained {settings.steps:,} steps in {seconds / 60:.1f} minutes; no evaluation is configured.")
                print(f"All time: {goodput}.")
            return None
        with goodput.spend("eval"):
            evaluation = scores(state, experiment.evaluate, first, root / "predictions.jsonl")
        metrics.write(settings.steps, {**evaluation.summary(), "final": True})
    except Exception as e:
        if lost := distributed.is_loss(e):
            saved = checkpointer.kept()
            kept = "no step is saved" if saved is None else f"step {saved:,} is saved"
            raise PeerLost(f"{distributed.loss(e)}; {kept}, and the same command, on all, goes on.") from e
        raise
    finally:
        metrics.close()
        if not lost:  # closing waits for the other processes
            checkpointer.close()
    if not first:
        return evaluation
    table = report.write(
        root,
        evaluation.rows(),
        title=title or f"{root.name}, {settings.steps:,} steps",
        metric=evaluation.metric,
        seeds=[settings.seed],
        minutes=round(seconds / 60, 2),
        train_tasks=len(stream.tasks),
        steps=settings.steps,
        losses=evaluation.losses,
        spent={kind: round(value, 2) for kind, value in goodput.seconds().items()},
    )
    print(table, end="")
    print(f"\n{seconds / 60:.1f} minutes of training. All time: {goodput}. Picture: {root / 'results.png'}")
    return evaluation


def evaluate_run(
    experiment: Experiment,
    mixtures: Sequence[str] = (),
    modules: Sequence[str] = (),
    split: str = "test",
    output: str | None = None,
    checkpoint_path: str | None = None,
) -> Evaluation:
    """Scores a run's model on mixtures or tasks (default: the groups it is configured with) and reports in `output`."""
    data = experiment.data
    data.register(modules)
    if mixtures:
        data = dataclasses.replace(data, evaluation={name: name for name in mixtures})
    if not data.evaluation:
        raise UserError("This run is configured with nothing to evaluate; give --mixture NAME.")
    model_dir = experiment.train.model_dir
    model = restore(experiment, checkpoint_path)
    store, vocabulary = data.open(model_dir, train=False)
    check_vocabulary(experiment, vocabulary)
    folder = Path(output or Path(model_dir) / "eval")
    with _bar("evaluate", partitioning.is_first()) as tell:
        evaluation = evaluate(
            model.variables,
            experiment.model,
            experiment.method,
            store,
            data.groups(),
            split,
            data.features(),
            vocabulary,
            experiment.evaluate,
            model.mesh,
            tell,
            folder / "predictions.jsonl",
            task_ids(dataclasses.replace(experiment, data=data)),
            experiment.data.training(),
        )
    if not partitioning.is_first():
        return evaluation
    where = checkpoint_path or model_dir
    table = report.write(
        folder,
        evaluation.rows(),
        title=f"zeroprompt eval: {where}, {split}",
        metric=evaluation.metric,
        checkpoint=str(where),
        losses=evaluation.losses,
    )
    print(table, end="")
    return evaluation


def _say(line: str) -> None:
    if partitioning.is_first():
        print(line, file=sys.stderr)


def _say_tasks(experiment: Experiment, store: Store, groups: Mapping[str, Sequence[str]], draws: int) -> None:
    """What is trained on and what is tested: numbers of tasks, families and types, and how often each is drawn in a run
    that draws so many examples."""
    def counted(tasks):
        mine = [store.card(task) for task in tasks]
        count = {"task": len(mine), "family": len({c.family for c in mine}), "type": len({c.type for c in mine})}
        plural = {"task": "tasks", "family": "families", "type": "types"}
        tasks, families, types = (f"{n:,} {name if n == 1 else plural[name]}" for name, n in count.items())
        return f"{tasks} of {families}, {types}"

    _say(f"Train: {counted(experiment.data.training())}.")
    for group, tasks in groups.items():
        _say(f"Test, {group.replace('_', ' ')}: {counted(tasks)}.")
    for line in experiment.data.describe_shares(store, draws):
        _say(line)


def _devices(mesh: jax.sharding.Mesh) -> str:
    sizes = " × ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1) or "one device"
    return f"{jax.default_backend()}, {sizes}"


@contextlib.contextmanager
def _bar(name: str, shown: bool):
    """A progress bar as a callback (done, total), or None."""
    if not shown:
        yield None
        return
    every = {} if sys.stderr.isatty() else {"mininterval": 30, "ascii": True}
    with tqdm.tqdm(desc=name, unit="example", **every) as bar:

        def tell(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield tell
