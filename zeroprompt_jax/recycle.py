"""Trained prompts carried from one backbone to another: task files, a run's tasks, or arrays. See `search.recycling`."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

import zeroprompt_jax
from zeroprompt_jax import export, pretrained
from zeroprompt_jax.data import pieces
from zeroprompt_jax.data.pieces import EnglishWords
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.evaluation import report
from zeroprompt_jax.experiment import Experiment
from zeroprompt_jax.interop import huggingface, huggingface_roberta
from zeroprompt_jax.methods.base import Method
from zeroprompt_jax.methods.initialisers import read_array
from zeroprompt_jax.paths import place_of
from zeroprompt_jax.search import recycling
from zeroprompt_jax.search.recycling import Linear, Map, Recycler
from zeroprompt_jax.training import task_file
from zeroprompt_jax.training.fingerprint import Fingerprint, fingerprint
from zeroprompt_jax.training.task_file import TaskFile

_HEADER = "zeroprompt_jax_map"
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
      backbone: a directory in Hugging Face layout, a model's name (`pretrained`), a run's experiment, or a .npy file of
        token embeddings [V, D].
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
                f"'{backbone}' is no backbone: neither packaged:NAME, a directory in Hugging Face layout, OWNER/NAME on "
                f"its hub, a run nor a .npy file of embeddings."
            )
        params, spec = _read(folder), vocabulary or str(backbone)
        if vocabulary is None and not str(backbone).startswith(pretrained.PREFIX):
            spec = _own_vocabulary(folder)
    return Home(
        name, np.asarray(params["token_embedder"]["embedding"]), pieces.read(spec), fingerprint(params), _read_by(spec)
    )


def _read(folder: Path) -> Mapping[str, Any]:
    """The parameters of a T5, BERT or RoBERTa in Hugging Face layout."""
    if huggingface.read_json(folder).get("model_type") in huggingface_roberta.KINDS:
        return huggingface_roberta.read_roberta(folder, huggingface_roberta.read_config(folder))
    return huggingface.read_t5(folder, scan_layers=True)


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


def save_map(fitted: Fitted, path: str | Path, source: Home, target: Home) -> None:
    """Writes a map as a safetensors file, which says what it was fitted to, under a temporary name first."""
    path = Path(path)
    arrays = {f"arrays/{name}": leaf for name, leaf in fitted.map.arrays.items()}
    arrays |= {name: getattr(fitted.map, name) for name in ("source_mean", "target_mean", "norm_ratio")}
    recycler = fitted.map.recycler
    record = {
        "recycler": {"kind": type(recycler).__name__, **dataclasses.asdict(recycler)},
        "rows": fitted.ids,
        "explained": fitted.explained,
        "source": _facts(source, fitted.ids),
        "target": _facts(target, fitted.ids),
        "version": zeroprompt_jax.__version__,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        made = {name: np.ascontiguousarray(leaf, np.float32) for name, leaf in arrays.items()}
        safetensors.numpy.save_file(made, partial, {_HEADER: json.dumps(record, sort_keys=True)})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_map(path: str | Path, source: Home, target: Home) -> Fitted:
    """Reads a map. UserError for a file that is none, and for a map between other backbones than these."""
    try:
        with safetensors.safe_open(path, "np") as f:
            record = json.loads((f.metadata() or {})[_HEADER])
            tensors = {name: jnp.asarray(f.get_tensor(name)) for name in f.keys()}
    except (OSError, KeyError, ValueError, safetensors.SafetensorError):
        raise UserError(f"'{path}' holds no map of zeroprompt recycle.") from None
    for name, side in (("source", source), ("target", target)):
        if record[name]["rows"] != _facts(side, record["rows"])["rows"]:
            raise UserError(
                f"The map '{path}' has the {name} {record[name]['name']}, whose embeddings {side.name} has not."
            )
    options = dict(record["recycler"])
    recycler = recycling.KINDS[options.pop("kind")](**options)
    own = {name.removeprefix("arrays/"): leaf for name, leaf in tensors.items() if name.startswith("arrays/")}
    means = (tensors[name] for name in ("source_mean", "target_mean", "norm_ratio"))
    return Fitted(Map(recycler, own, *means), record["rows"], record["explained"])


def _facts(side: Home, ids: Sequence[int]) -> dict[str, Any]:
    """What a map says of a backbone; `rows` is a digest (SHA-256) of the embeddings that it is fitted to."""
    if len(side.embedding) <= max(ids):
        return {"rows": None}
    rows = np.ascontiguousarray(side.embedding[ids], np.float32)
    text = "\n".join(side.pieces).encode()
    return {
        "name": side.name,
        "shape": list(side.embedding.shape),
        "rows": hashlib.sha256(rows.tobytes()).hexdigest(),
        "vocabulary": hashlib.sha256(text).hexdigest(),
        "weights": side.fingerprint.weights if side.fingerprint else None,
    }


def _fitted(source: Home, target: Home, recycler: Recycler, words: EnglishWords, kept: str | Path | None) -> Fitted:
    """The map that is kept, or a new one, which is kept then."""
    if kept is None or not Path(kept).exists():
        found = fit(source, target, recycler, words)
        if kept is not None:
            save_map(found, kept, source, target)
        return found
    found = read_map(kept, source, target)
    pieces.check_same(source.pieces, target.pieces, (source.name, target.name))
    if found.map.recycler != recycler or found.ids != words.choose(source.pieces):
        raise UserError(
            f"The map '{kept}' was fitted as {found.map.recycler} to {len(found.ids):,} words, not as asked."
        )
    return found


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
    kept: str | Path | None = None,
) -> tuple[list[Path], Fitted]:
    """Recycles prompts for another backbone and writes them.

    Args:
      source: a task file, a .npy file of a prompt [P, D], or the experiment of a run.
      output: a file of the same kind; of a run's several tasks a folder.
      target: the other backbone.
      origin: the backbone that the prompts were trained on; a run knows its own.
      recycler, words: how the map is fitted.
      tasks: of a run; None is all.
      kept: a file that keeps the map: used where it is there, written where it is not.

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
        return _recycle_array(source, output, origin, target, recycler, words, kept)
    else:
        files = [task_file.read(source)]
    if target.fingerprint is None:
        raise UserError(
            f"A task file says which backbone it is for, and {target.name} holds embeddings alone; give the whole backbone."
        )
    for file in files:
        _folded(file)
        if origin.fingerprint is None or (why := file.backbone.unlike(origin.fingerprint)):
            why = "it holds embeddings alone" if origin.fingerprint is None else why
            raise UserError(f"Task '{file.task}' was trained on another backbone than {origin.name}: {why}.")
    one = len(files) == 1 and Path(output).suffix == task_file.SUFFIX
    if not one and (Path(output).suffix or not isinstance(source, Experiment)):
        raise UserError(f"The output '{output}' is neither a folder nor a file that ends in {task_file.SUFFIX}.")
    fitted = _fitted(origin, target, recycler, words, kept)
    paths = []
    for file in files:
        path = Path(output) if one else place_of(file.task, output, task_file.SUFFIX)
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


def _recycle_array(source, output, origin: Home, target: Home, recycler: Recycler, words: EnglishWords, kept):
    if Path(output).suffix != ".npy":
        raise UserError(f"'{source}' holds a prompt and no task; the output '{output}' must end in .npy too.")
    prompt = read_array(source, "The prompt")
    width = origin.embedding.shape[1]
    if prompt.ndim != 2 or prompt.shape[1] != width:
        raise UserError(f"'{source}' holds shape {list(prompt.shape)}; a prompt of {origin.name} is length × {width}.")
    fitted = _fitted(origin, target, recycler, words, kept)
    report.save_array(output, np.asarray(recycling.apply(fitted.map, prompt)))
    return [Path(output)], fitted
