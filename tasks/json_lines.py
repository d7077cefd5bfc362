"""Rows of data sets in a directory: NAME/train.jsonl and NAME/validation.jsonl or NAME/test.jsonl, a row of fields a line."""

import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from zeroprompt_jax.data import cards
from zeroprompt_jax.errors import UserError


def splits(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """File of each split; what there is to be tested on is `test`. Raises UserError where there is none."""
    found = {split: folder / f"{split}.jsonl" for split in cards.SPLITS if (folder / f"{split}.jsonl").is_file()}
    if "test" not in found and "validation" in found:
        found["test"] = found.pop("validation")
    if not found:
        raise UserError(f"The data set {folder} has neither train.jsonl, validation.jsonl nor test.jsonl.")
    return found


def digest(files: Mapping[str, pathlib.Path]) -> str:
    """Changes whenever the files do."""
    made = hashlib.blake2b(digest_size=12)
    for split, file in files.items():
        made.update(f"{split} {file.stat().st_size}\n".encode() + file.read_bytes())
    return made.hexdigest()


def rows(file: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place of the row, for errors; the row). Raises UserError for a line that is no object of fields."""
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            place = f"{file}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as e:
                raise UserError(f"{place}: not JSON ({e}).") from None
            if not isinstance(row, dict):
                raise UserError(f"{place}: not an object of fields.")
            yield place, row
