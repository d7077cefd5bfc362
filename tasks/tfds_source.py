"""Rows of public data sets: from a local directory of JSON lines, or else through TensorFlow Datasets.

A local directory holds NAME/train.jsonl, NAME/validation.jsonl and NAME/test.jsonl, a row of fields a line, with the
fields' names of TensorFlow Datasets or of the Hugging Face hub. It is given as an argument or in ZEROPROMPT_DATASETS.
What it has no folder of TensorFlow Datasets reads, and prepares first where it has not, below `data_dir` or its own
TFDS_DATA_DIR. `zeroprompt tasks --show=TASK` says which of the two, and the folder's name.

Registering imports neither TensorFlow nor reads a row: that happens when a task is cached.
"""

import csv
import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from zeroprompt_jax.data import cards
from zeroprompt_jax.data.mixture import hash64, name_keys
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.tasks import json_lines

ENVIRONMENT = "ZEROPROMPT_DATASETS"
# Of a download, 6 seconds in all. TensorFlow Datasets' own 10 take minutes to say that there is no network.
_RETRIES = 5
Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A public data set.

    Attributes:
      name: of its folder in a local directory.
      tfds: its name, config and version in TensorFlow Datasets; None where that has none.
      renamed: field of a local file to its name here, where the two differ.
      fields: those that are kept of TensorFlow Datasets' rows, where others are large; all by default.
      columns: fields of a local .csv file, which has no header; a set that is not published so has none.
      home: where its files can be had, for a set that TensorFlow Datasets lacks.
    """

    name: str
    tfds: str | None = None
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fields: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    home: str = ""

    def __str__(self):
        return self.tfds or self.name


@dataclasses.dataclass(frozen=True)
class Places:
    """Where data sets are looked for: a local directory of JSON lines, and TensorFlow Datasets' own `data_dir`."""

    directory: str | None = None
    data_dir: str | None = None

    @classmethod
    def find(cls, directory: str | os.PathLike | None, data_dir: str | os.PathLike | None) -> "Places":
        """The places given, the environment's directory being the default. UserError for a directory that is not there:
        the rows would be another place's."""
        directory, data_dir = (
            place and os.path.expanduser(str(place)) for place in (directory or os.environ.get(ENVIRONMENT), data_dir)
        )
        if directory and not os.path.isdir(directory):
            raise UserError(f"The directory of data sets {directory} is not there; it is an argument or {ENVIRONMENT}.")
        return cls(directory or None, data_dir)


@dataclasses.dataclass(frozen=True)
class Part:
    """Part of a split of a data set.

    Attributes:
      split: as TensorFlow Datasets names it.
      held: so many rows (of a fraction below 1, that share of them) drawn at random, at most half of all.
      rest: all rows but those that `held` of the same number would take.
    """

    split: str
    held: float | None = None
    rest: float | None = None

    @property
    def whole(self) -> bool:
        return self.held is None and self.rest is None

    def of(self, rows: Iterable[Row], name: str) -> Iterator[Row]:
        """These rows among all of the split, in their order. name: of the data set, whose draw is its own."""
        if self.whole:
            yield from rows
            return
        size = self.held if self.rest is None else self.rest
        rows = list(rows)
        count = min(int(size * len(rows)) if size < 1 else int(size), len(rows) // 2)
        order = np.argsort(hash64(0, name_keys([f"{name}/{self.split}"])[0], np.arange(len(rows))), kind="stable")
        for i in np.sort(order[:count] if self.rest is None else order[count:]):
            yield rows[i]


def file(dataset: Dataset, split: str, places: Places) -> pathlib.Path | None:
    """The local file of a split: of 'validation_matched' also validation.jsonl. None where there is none."""
    if places.directory is None:
        return None
    folder = pathlib.Path(places.directory) / dataset.name
    names = [
        f"{name}{end}" for name in (split, split.split("_")[0]) for end in (".jsonl", *[".csv"] * bool(dataset.columns))
    ]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def available(dataset: Dataset, parts: Mapping[str, Part], places: Places) -> dict[str, Part]:
    """The splits that there are: all of them, unless the set is a local one. Of that, those with a file: the validation
    split is tested on where there is no file to test on, and nothing is selected on the rows that are tested on. Where
    validation is cut from the training rows the test split stays: reading it names the file that is missing."""
    files = {split: file(dataset, part.split, places) for split, part in parts.items()}
    found = {split: part for split, part in parts.items() if files[split]}
    if not found:
        return dict(parts)
    if "test" not in found and "validation" in found:
        cut = "train" in parts and found["validation"].split == parts["train"].split
        found["test"] = parts["test"] if cut else Part(found.pop("validation").split)
    if "validation" in found and found["validation"].whole and files["validation"] == files["test"]:
        del found["validation"]
    return found


def fingerprint(dataset: Dataset, parts: Mapping[str, Part], places: Places) -> str:
    """Changes with the version of the data set, or with the sizes and times of its local files."""
    told = [str(dataset), *(f"{split} {part}" for split, part in sorted(parts.items()))]
    for split in sorted({part.split for part in parts.values()}):
        if local := file(dataset, split, places):
            stat = local.stat()
            told.append(f"{local.name} {stat.st_size} {stat.st_mtime_ns}")
    return "; ".join(told)


def _folder(dataset: Dataset, places: Places, otherwise: str) -> str:
    return f"{places.directory or otherwise}/{dataset.name}"


def origin(dataset: Dataset, places: Places) -> str:
    """Where the rows are read, in words."""
    folder = _folder(dataset, places, f"${ENVIRONMENT}")
    if places.directory and os.path.isdir(folder):
        return folder
    return f"{f'TensorFlow Datasets, {dataset.tfds}' if dataset.tfds else 'nowhere'}, as there is no {folder}"


def rows(dataset: Dataset, split: str, places: Places) -> Iterator[dict[str, Any]]:
    """The rows of a split, as plain Python values.

    Raises:
      UserError: neither place has it, the set's local folder lacks it, or a local file is malformed.
    """
    if local := file(dataset, split, places):
        if local.suffix == ".csv":
            yield from _table(local, dataset.columns)
        else:
            for _, row in json_lines.rows(local):
                yield {dataset.renamed.get(key, key): value for key, value in row.items()}
        return
    folder = _folder(dataset, places, "DIRECTORY")
    if places.directory and os.path.isdir(folder):
        raise UserError(f"The data set '{dataset.name}' has no {folder}/{split.split('_')[0]}.jsonl.")
    if dataset.tfds is None:
        raise UserError(
            f"The data set '{dataset.name}' is not in TensorFlow Datasets: put its rows into {folder}/train.jsonl and "
            f"{folder}/test.jsonl{dataset.home and f', from {dataset.home},'} and name the directory in {ENVIRONMENT}."
        )
    instead = f"give rows as {folder}/train.jsonl and validation.jsonl and name the directory in {ENVIRONMENT}"
    yield from load(dataset.tfds, split, places.data_dir, instead=instead, fields=dataset.fields)


def load(
    tfds_name: str,
    split: str,
    data_dir: str | None,
    *,
    instead: str,
    fields: tuple[str, ...] = (),
    download: bool = True,
) -> Iterator[dict[str, Any]]:
    """The rows of a split of a data set in TensorFlow Datasets, one after the other.

    Args:
      tfds_name: name, config and version, 'glue/rte:2.0.0'.
      split: also a slice, 'train[:1000]'.
      data_dir: where it is or will be prepared; None is TensorFlow Datasets' own place.
      instead: what else the user can do, for the error.
      fields: of a row; all by default.
      download: whether to download and prepare it where it is not.

    Raises:
      UserError: it is not there and cannot be made.
    """
    try:
        import tensorflow_datasets as tfds

        if download:
            from tensorflow_datasets.core.download import downloader

            downloader.MAX_RETRIES = _RETRIES
        gcs = not (download or data_dir)
        found = tfds.load(tfds_name, split=split, data_dir=data_dir, download=download, try_gcs=gcs)
    except Exception as e:  # missing package, missing data and every kind of network raise errors of their own
        why = next((line.strip().rstrip(".") for line in str(e).splitlines() if line.strip()), type(e).__name__)
        where = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        raise UserError(
            f"The data set '{tfds_name}', split '{split}', is not prepared in {where} and cannot be had by TensorFlow "
            f"Datasets ({why[:200]}): give another data_dir, or {instead}."
        ) from None
    for row in tfds.as_numpy(found):
        yield _plain({field: row[field] for field in fields or row})


def _plain(value: Any) -> Any:
    """Text for bytes, and lists and numbers for arrays, at every depth."""
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    if hasattr(value, "to_list"):  # a ragged array
        value = value.to_list()
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value.decode("utf-8") if isinstance(value, bytes) else value


def _table(path: pathlib.Path, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as lines:
        for number, cells in enumerate(csv.reader(lines), 1):
            if len(cells) != len(columns):
                raise UserError(f"Data set {path}, row {number}: {len(cells)} columns, not {', '.join(columns)}.")
            yield dict(zip(columns, cells))


def source(dataset: Dataset, parts: Mapping[str, Part], places: Places, make, told: str) -> cards.Source:
    """A source of the examples that `make(row, split)` yields for each row. told: changes whenever `make` does."""
    parts = available(dataset, parts, places)
    return cards.Source(
        _Examples(dataset, parts, places, make),
        fingerprint=f"dataset 1 {fingerprint(dataset, parts, places)} {told}",
        splits=tuple(split for split in cards.SPLITS if split in parts),
        origin=origin(dataset, places),
    )


@dataclasses.dataclass(frozen=True)
class _Examples:
    """`examples` of a source; plain data, so that worker processes can be given it."""

    dataset: Dataset
    parts: Mapping[str, Part]
    places: Places
    make: Any

    def __call__(self, split: str) -> Iterator[Row]:
        part = self.parts[split]
        for row in part.of(rows(self.dataset, part.split, self.places), self.dataset.name):
            yield from self.make(row, split)
