"""Trained prompts carried from one backbone to another: task files, a run's tasks, or arrays. See `search.recycling`."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import numpy as np

from zeroprompt_jax import export, pretrained
from zeroprompt_jax.data import pieces
from zeroprompt_jax.data.pieces import EnglishWords
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.experiment import Experiment
from zeroprompt_jax.interop import huggingface
from zeroprompt_jax.methods.base import Method
from zeroprompt_jax.methods.initialisers import read_array
from zeroprompt_jax.search import recycling
from zeroprompt_jax.search.recycling import Linear, Map, Recycler
from zeroprompt_jax.training import task_file
from zeroprompt_jax.training.fingerprint import Fingerprint, fingerprint
from zeroprompt_jax.training.task_file import TaskFile

_LEAST_TEST = 100  # rows; of fewer the share that a map explains says little


@dataclasses.dataclass(frozen=True)
class Home:
    """What recycling knows of a backbone.

    Attributes:
      name: as the user gave it.
      embedding: [V, D].
      pieces: of its vocabulary by id.
      fingerprint: None of a table of embeddings alone.
      vocabulary: {'spec': …, 'fingerprint': …}; None where its texts are read by no vocabulary of this package.
    """

    name: str
    embedding: np.ndarray
    pieces: tuple[str, ...]
    fingerprint: Fingerprint | None = None
    vocabulary: dict[str, str] | None = None


def home(backbone: str | Path | Experiment, vocabulary: str | None = None) -> Home:
    """Reads a backbone.

    Args:
      backbone: `packaged:NAME`, a directory in Hugging Face layout, a run's experiment, or a .npy file of token embeddings
        [V, D].
      vocabulary: as `pieces.read` takes it; by default the backbone's own, which a .npy file does not have.

    Raises:
      UserError: it cannot be read, or its vocabulary is not known.
    """
    if isinstance(backbone, Experiment):
        name, params = backbone.train.model_dir, export.backbone(backbone)
        spec = vocabulary or backbone.data.vocabulary
    elif Path(backbone).suffix == ".npy":
        if vocabulary is None:
            raise UserError(f"'{backbone}' holds embeddings without their vocabulary; give --vocabulary.")
        table = read_array(backbone, "The table of embeddings")
        if table.ndim != 2:
            raise UserError(f"'{backbone}' holds shape {list(table.shape)}; token embeddings are rows × width.")
        return Home(str(backbone), table, pieces.read(vocabulary))
    else:
        name, folder = str(backbone), pretrained.directory(str(backbone)) or Path(backbone).expanduser()
        if not huggingface.is_directory(folder):
            raise UserError(
                f"'{backbone}' is no backbone: neither packaged:NAME, a directory in Hugging Face layout, a run nor a "
                f".npy file of embeddings."
            )
        params, spec = huggingface.read_t5(folder, scan_layers=True), vocabulary or str(backbone)
        if vocabulary is None and not str(backbone).startswith(pretrained.PREFIX):
            spec = _own_vocabulary(folder)
    return Home(
        name, np.asarray(params["token_embedder"]["embedding"]), pieces.read(spec), fingerprint(params), _read_by(spec)
    )


def _own_vocabulary(folder: Path) -> str:
    """The spec of a Hugging Face directory's vocabulary, with T5's sentinels where it is a SentencePiece model."""
    model = folder / "spiece.model"
    return f"{model}:100" if model.is_file() else str(folder)


def _read_by(spec: str) -> dict[str, str] | None:
    if Path(spec).suffix == ".json" or Path(spec).is_dir():
        return None
    vocabulary = load_vocabulary(spec)
    return {"spec": vocabulary.spec, "fingerprint": vocabulary.fingerprint}


class Fitted(NamedTuple):
    """A map between two backbones, the ids of the rows that it was fitted to, and the share of the variance of other
    words' embeddings that it explains; None where there are too few others."""

    map: Map
    ids: list[int]
    explained: float | None


def fit(source: Home, target: Home, recycler: Recycler = Linear(), words: EnglishWords = EnglishWords()) -> Fitted:
    """Fits a map to the embeddings of English words. UserError for different vocabularies and too few words or rows."""
    pieces.check_same(source.pieces, target.pieces, (source.name, target.name))
    ids, others = words.choose(source.pieces), words.rest(source.pieces)
    for side in (source, target):
        if len(side.embedding) <= max(ids + others):
            raise UserError(
                f"{side.name} has embeddings of {len(side.embedding):,} tokens, and its vocabulary {len(side.pieces):,}."
            )
    found = recycling.fit(source.embedding[ids], target.embedding[ids], recycler)
    if len(others) < _LEAST_TEST:
        return Fitted(found, ids, None)
    return Fitted(found, ids, recycling.explained(found, source.embedding[others], target.embedding[others]))


def recycle_task(file: TaskFile, fitted: Fitted, target: Home) -> TaskFile:
    """A task for the target. What its method shares among tasks is multiplied in first, as a factor of each feature
    means something else in other coordinates. UserError for a method whose parameters are not all embeddings."""
    method, params = _folded(file)
    made = {name: np.asarray(recycling.apply(fitted.map, leaf)) for name, leaf in params.items()}
    vocabulary = target.vocabulary or file.vocabulary  # the pieces are the same
    card, features = file.card, file.features
    return TaskFile(card, method, made, target.fingerprint, vocabulary, features)


def recycle(
    source: str | Path | Experiment,
    output: str | Path,
    target: Home,
    origin: Home | None = None,
    recycler: Recycler = Linear(),
    words: EnglishWords = EnglishWords(),
    tasks: Sequence[str] | None = None,
) -> tuple[list[Path], Fitted]:
    """Recycles prompts for another backbone and writes them.

    Args:
      source: a task file, a .npy file of a prompt [P, D], or the experiment of a run.
      output: a file of the same kind; of a run's several tasks a folder.
      target: the other backbone.
      origin: the backbone that the prompts were trained on; a run knows its own.
      recycler, words: how the map is fitted.
      tasks: of a run; None is all.

    Returns:
      The paths written, and the map.

    Raises:
      UserError: as `home`, `fit` and `recycle_task`; a task of another backbone than `origin`; prompts of the wrong width or
        with values that are not finite.
    """
    if isinstance(source, Experiment):
        origin, files = origin or home(source), list(export.trained_tasks(source, tasks))
    elif origin is None:
        raise UserError(f"'{source}' does not hold the backbone that it was trained on; name it with --from.")
    elif Path(source).suffix == ".npy":
        return _recycle_array(source, output, origin, target, recycler, words)
    else:
        files = [task_file.read(source)]
    if target.fingerprint is None:
        raise UserError(
            f"A task file names its whole backbone, and {target.name} holds embeddings alone; recycle a .npy."
        )
    for file in files:
        _folded(file)
        if origin.fingerprint is None or (why := file.backbone.unlike(origin.fingerprint)):
            why = "it holds embeddings alone" if origin.fingerprint is None else why
            raise UserError(f"Task '{file.task}' was trained on another backbone than {origin.name}: {why}.")
    one = len(files) == 1 and Path(output).suffix == task_file.SUFFIX
    if not one and (Path(output).suffix or not isinstance(source, Experiment)):
        raise UserError(f"The output '{output}' is neither a folder nor a file that ends in {task_file.SUFFIX}.")
    fitted = fit(origin, target, recycler, words)
    paths = []
    for file in files:
        path = Path(output) if one else export.place_of(file.task, output, task_file.SUFFIX)
        task_file.save(recycle_task(file, fitted, target), path)
        paths.append(path)
    return paths, fitted


def _folded(file: TaskFile) -> tuple[Method, Mapping[str, Any]]:
    method, params = file.method.fold(file.params)
    paths = flax.traverse_util.flatten_dict(dict(params), sep="/")
    if foreign := [path for path in paths if not method.embedded(path)]:
        raise UserError(
            f"The method {type(method).__name__} of task '{file.task}' cannot be recycled: its {foreign[0]} is no "
            f"embedding, and only prompts at a stack's input are."
        )
    return method, params


def _recycle_array(source, output, origin: Home, target: Home, recycler: Recycler, words: EnglishWords):
    if Path(output).suffix != ".npy":
        raise UserError(f"'{source}' holds a prompt and no task; the output '{output}' must end in .npy too.")
    prompt = read_array(source, "The prompt")
    width = origin.embedding.shape[1]
    if prompt.ndim != 2 or prompt.shape[1] != width:
        raise UserError(f"'{source}' holds shape {list(prompt.shape)}; a prompt of {origin.name} is length × {width}.")
    fitted = fit(origin, target, recycler, words)
    made = np.asarray(recycling.apply(fitted.map, prompt))
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    np.save(output, made)
    return [Path(output)], fitted
