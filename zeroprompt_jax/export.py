"""Trained tasks as files, out of a run and back into a model that answers."""

import dataclasses
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax

from zeroprompt_jax.data import tokenise
from zeroprompt_jax.data.batches import Features
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.errors import UserError, unknown
from zeroprompt_jax.evaluation import report
from zeroprompt_jax.evaluation.predict import Predictor
from zeroprompt_jax.experiment import Experiment, build_model, restore, task_ids
from zeroprompt_jax.interop import huggingface, peft
from zeroprompt_jax.methods.base import Method
from zeroprompt_jax.models import t5
from zeroprompt_jax.paths import place_of
from zeroprompt_jax.training import task_file
from zeroprompt_jax.training.fingerprint import fingerprint
from zeroprompt_jax.training.task_file import TaskFile

FORMATS = ("task", "peft", "npy")


def export_run(
    experiment: Experiment,
    output: str | Path,
    tasks: Sequence[str] | None = None,
    format: str = "task",
    whole: bool = False,
    checkpoint_path: str | None = None,
    modules: Sequence[str] = (),
) -> list[Path]:
    """Writes trained tasks of a run as files of their own. Returns what was written.

    Args:
      output: of one task, the file (`task`: .safetensors, `npy`: .npy) or folder (`peft`); of several, the folder.
      tasks: which; None is all that the run trained on.
      format: `task`, a task file; `peft`, Hugging Face PEFT's layout; `npy`, a prompt [P, D] as the public
        prompt-tuning repository (google-research/prompt-tuning) writes it.
      whole: keep what tasks share beside the task's own factors, where the method has both, instead of their product.
      checkpoint_path: a step directory; by default the run's newest.

    Raises:
      UserError: an unknown task or format, or a method that keeps nothing per task.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    experiment.data.register(modules)
    one = tasks is not None and len(tasks) == 1
    ending = {"task": task_file.SUFFIX, "npy": ".npy", "peft": ""}[format]
    if one and ending and Path(output).suffix != ending:
        raise UserError(f"--output is '{output}'; a file of the format '{format}' ends in {ending}.")
    written = []
    for file in trained_tasks(experiment, tasks, whole, checkpoint_path):
        path = Path(output) if one else place_of(file.task, output, ending)
        if jax.process_index() == 0:
            _write(file, path, format, experiment.model)
        written.append(path)
    return written


def export_backbone(
    experiment: Experiment, output: str | Path, dtype: str = "bfloat16", checkpoint_path: str | None = None
) -> list[Path]:
    """Writes a run's backbone as a folder in Hugging Face layout: config, weights (dtype: bfloat16 or float32) and the
    SentencePiece vocabulary, if it has one. Returns the files in it."""
    huggingface.write_t5(output, backbone(experiment, checkpoint_path), experiment.model, dtype)
    copy_vocabulary(experiment.data.vocabulary, Path(output))
    return sorted(Path(output).iterdir())


def copy_vocabulary(spec: str, folder: Path) -> None:
    """Puts a vocabulary's file, if it has one, beside a model in Hugging Face layout."""
    vocabulary = load_vocabulary(spec).path
    if vocabulary is None:
        return
    target = folder / ("tokenizer.json" if vocabulary.suffix == ".json" else "spiece.model")
    if not (target.exists() and target.samefile(vocabulary)):
        shutil.copyfile(vocabulary, target)


def trained_tasks(
    experiment: Experiment, tasks: Sequence[str] | None = None, whole: bool = False, checkpoint_path: str | None = None
) -> Iterator[TaskFile]:
    """The trained tasks of a run (None: all) as task files not yet written. Tasks must be registered."""
    method, places = experiment.method, task_ids(experiment)
    names = list(experiment.data.training()) if tasks is None else list(tasks)
    # Where one prompt serves all tasks, it serves tasks that it was not trained on too.
    if wrong := [name for name in names if places is not None and name not in places]:
        raise unknown("trained task", wrong[0], places)
    vocabulary = load_vocabulary(experiment.data.vocabulary)
    own = [tokenise.find(name, vocabulary)[0] for name in names]
    model = restore(experiment, checkpoint_path)
    if trained := [path for path in model.params if path.startswith("backbone/")]:
        raise UserError(
            f"The method {type(method).__name__} trains the backbone itself ({trained[0]}, …): its tasks cannot be handed "
            f"on without it."
        )
    home = fingerprint(model.variables["backbone"])
    for name, card in zip(names, own):
        made = task_file.slice_of(method, model.variables["method"], places[name] if places else 0)
        yield TaskFile(
            dataclasses.asdict(card),
            *(made if whole else made[0].fold(made[1])),
            home,
            {"spec": vocabulary.spec, "fingerprint": vocabulary.fingerprint},
            dataclasses.asdict(experiment.data.features()),
        )


def predictor(
    experiment: Experiment,
    paths: Sequence[str | Path],
    checkpoint_path: str | None = None,
    capacity: int | None = None,
) -> Predictor:
    """A backbone and tasks' files as `predict(texts, tasks)` and `score(texts, options, tasks)`.

    Of the experiment only the model, its weights (a run's own where it trained the backbone, else what the run started
    from) and the vocabulary are used. capacity: as of `task_file.assemble`.

    Raises:
      UserError: files of another backbone, vocabulary or method, or of token lengths that differ.
    """
    files = [task_file.read(path) for path in paths]
    method, params, names = task_file.assemble(files, capacity)
    for file in files:
        if file.features != files[0].features:
            raise UserError(
                f"Task '{file.task}' has the token lengths {dict(file.features)}, and '{files[0].task}' "
                f"{dict(files[0].features)}; answer them in separate calls."
            )
    vocabulary = load_vocabulary(experiment.data.vocabulary)
    weights = backbone(experiment, checkpoint_path)
    home = fingerprint(weights)
    for file in files:
        task_file.check(file, home, vocabulary.fingerprint, checkpoint_path or experiment.train.model_dir)
    return Predictor(
        experiment.model,
        {"backbone": weights, "method": params},
        method,
        vocabulary,
        Features(**files[0].features),
        instructions={file.task: file.card["instructions"][0] for file in files},
        options={file.task: file.card["options"] for file in files},
        task_ids={name: place for place, name in enumerate(names)},
    )


def backbone(experiment: Experiment, checkpoint_path: str | None = None) -> dict[str, Any]:
    """The parameters of a run's backbone. Where the run does not train it, no checkpoint of the run is needed."""
    shapes = jax.eval_shape(lambda: {"backbone": t5.init(experiment.model, jax.random.key(0))})
    paths = flax.traverse_util.flatten_dict(shapes, sep="/")
    trains = any(re.fullmatch(regex, path) for regex in experiment.method.trainable for path in paths)
    if trains:
        return restore(experiment, checkpoint_path).variables["backbone"]
    return build_model(dataclasses.replace(experiment, method=Method()), trained=True).variables["backbone"]


def _write(file: TaskFile, path: Path, format: str, config: t5.T5Config) -> None:
    if format == "task":
        task_file.save(file, path)
    elif format == "npy":
        if set(file.params) != {"prompt"}:
            held = ", ".join(file.params)
            raise UserError(f"The format 'npy' holds a prompt; task '{file.task}' has {held}. Use --format=task.")
        report.save_array(path, file.params["prompt"][0])
    else:
        peft.save(path, *peft.to_peft(file.params, config, alpha=getattr(file.method, "alpha", None)))
