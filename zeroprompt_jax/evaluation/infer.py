"""Inference over files: JSONL or TSV in, JSONL out, in order, resumable after any interruption."""

import csv
import errno
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tqdm

from zeroprompt_jax.errors import UserError, nearest
from zeroprompt_jax.evaluation.evaluate import Evaluate
from zeroprompt_jax.evaluation.predict import Predictor

FIELDS = ("input", "task", "options")
ANSWERS = ("prediction", "score", "scores")


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a .jsonl or .tsv file: `input`, and optionally `task` and `options`; other fields are passed through.

    JSONL holds an object per line, with `options` a list. TSV has a header line; its options are separated by '|'.

    Raises:
      UserError: no such file, another format, a line that cannot be read, a row without input; the line is named.
    """
    rows = numbered_rows(path, "input")
    for number, row in rows:
        if not isinstance(row.get("input"), str):
            raise UserError(f"{path}, line {number}: the row has no text under 'input'.{_misnamed(row)}")
        if not isinstance(row.get("task", ""), str):
            raise UserError(f"{path}, line {number}: 'task' is not text, but {row['task']!r}.")
        options = row.get("options", [""])
        if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
            raise UserError(f"{path}, line {number}: 'options' is not a list of texts, but {options!r}.")
        if not options:
            raise UserError(f"{path}, line {number}: 'options' is empty; give at least one, or leave the field out.")
    return [row for _, row in rows]


def numbered_rows(path: str | Path, column: str) -> list[tuple[int, dict[str, Any]]]:
    """(line number, row) of a .jsonl or .tsv file. column: what a TSV's header line must name.

    Raises UserError: no such file, another format, a line that cannot be read."""
    path = Path(path)
    if path.suffix not in (".jsonl", ".tsv"):
        raise UserError(f"The input file '{path}' ends in '{path.suffix}'; give .jsonl or .tsv.")
    try:
        with path.open(encoding="utf-8", newline="") as f:
            return list(_jsonl(path, f, column) if path.suffix == ".jsonl" else _tsv(path, f, column))
    except OSError as e:
        raise UserError(f"The input file '{path}' cannot be read ({e.strerror}).") from e
    except (UnicodeDecodeError, csv.Error) as e:
        raise UserError(f"The input file '{path}' cannot be read ({e}).") from e


def _misnamed(row: dict[str, Any]) -> str:
    """A hint at the field that was meant to be 'input'."""
    return next((f" It has '{name}'.{hint}" for name in row if name not in FIELDS and (hint := nearest(name, FIELDS))), "")


def _jsonl(path: Path, lines, column: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as e:
            raise UserError(f"{path}, line {number}: not JSON ({e.msg}).") from e
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: {type(row).__name__} where an object with '{column}' belongs.")
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as e:  # JSON may say \ud83d, the first half of a pair, alone
            half = f"U+{ord(e.object[e.start]):04X}"
            raise UserError(f"{path}, line {number}: it holds half a character ({half}), which is no text.") from e
        yield number, row


def _tsv(path: Path, lines, column: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    if column not in (reader.fieldnames or ()):
        raise UserError(f"{path}: its header line {reader.fieldnames} has no column '{column}'.")
    for row in reader:
        row = {k: v for k, v in row.items() if k is not None and v not in (None, "")}
        if "options" in row:
            row["options"] = row["options"].split("|")
        yield reader.line_num, row


def infer(
    predictor: Predictor,
    rows: Sequence[dict[str, Any]],
    output: str | Path,
    *,
    task: str | None = None,
    settings: Evaluate = Evaluate(),
    chunk: int = 1024,
    progress: bool = True,
) -> int:
    """Answers every row and writes it, with its fields, `prediction` and `score`, and `scores` per option where one of
    listed options was chosen. Returns the number of rows answered now; those that `output` already holds are not answered
    again.

    Args:
      task: of rows that name none.
      settings: how, as evaluation does it: a row that lists no options is given its task's, unless `rank_options` is False.
      chunk: rows answered and written at a time.

    Raises:
      UserError: `output` holds anything but answers to the first of these rows.
    """

    def answer(part: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = [{}] * len(part)
        tasks = [row.get("task", task) for row in part]
        own = {name: predictor.options_of(name) for name in set(tasks) if name is not None and settings.rank_options}
        choices = [row.get("options") or own.get(name, ()) for row, name in zip(part, tasks)]
        free = [i for i, names in enumerate(choices) if not names]
        listed = [i for i, names in enumerate(choices) if names]
        if free:
            texts, named = [part[i]["input"] for i in free], [tasks[i] for i in free]
            found = predictor.predict(texts, named, settings.strategy, seed=settings.seed)
            for i, p in zip(free, found):
                answers[i] = {"prediction": p.text, "score": p.score}
        if listed:
            texts, named, options = zip(*((part[i]["input"], tasks[i], choices[i]) for i in listed))
            found = predictor.score(texts, options, named, settings.length_normalised)
            for i, names, scores in zip(listed, options, found):
                best = max(range(len(names)), key=lambda o: scores[o])
                answers[i] = {"prediction": names[best], "score": scores[best], "scores": scores}
        return answers

    return write_answers(answer, rows, output, chunk, progress)


def write_answers(
    answer: Callable[[Sequence[dict[str, Any]]], Sequence[dict[str, Any]]],
    rows: Sequence[dict[str, Any]],
    output: str | Path,
    chunk: int = 1024,
    progress: bool = True,
) -> int:
    """As `infer`, of whatever answers: rows to what each is answered, under some of the names in ANSWERS."""
    output = Path(output)
    done = answered(output, rows)
    bar = tqdm.tqdm(total=len(rows), initial=done, desc="infer", unit="row", disable=not progress)
    with output.open("a", encoding="utf-8") as f, bar:
        for start in range(done, len(rows), chunk):
            part = rows[start : start + chunk]
            answers = answer(part)
            f.writelines(json.dumps({**row, **own}, ensure_ascii=False) + "\n" for row, own in zip(part, answers))
            f.flush()
            bar.update(len(part))
    return len(rows) - done


def answered(output: str | Path, rows: Sequence[dict[str, Any]]) -> int:
    """How many rows `output` already answers; half a last line, from a run that was killed, is cut off. To be asked before
    a model is loaded, too. Raises UserError where it holds anything else, and where it cannot be written."""
    output = Path(output)
    try:
        if not output.exists():
            output.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(output.parent, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return 0
        with output.open("r+b") as f:
            text = f.read()
            whole = text[: text.rfind(b"\n") + 1]
            lines = whole.split(b"\n")[:-1]
            for number, line in enumerate(lines):
                if number >= len(rows) or not _answers(line, rows[number]):
                    raise UserError(f"{output}, line {number + 1}: it answers another input file; choose another output.")
            if len(whole) < len(text):
                f.truncate(len(whole))
            return len(lines)
    except OSError as e:
        why = "its folder is a file" if isinstance(e, FileExistsError) else e.strerror
        raise UserError(f"The output '{output}' cannot be written ({why}).") from e


def _answers(line: bytes, row: dict[str, Any]) -> bool:
    """Whether a line of the output is this row, answered."""
    try:
        found = json.loads(line)
    except ValueError:
        return False
    asked = json.loads(json.dumps({k: v for k, v in row.items() if k not in ANSWERS}))  # tuples become lists
    return isinstance(found, dict) and {k: v for k, v in found.items() if k not in ANSWERS} == asked
