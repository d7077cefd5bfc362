"""Natural Instructions: real tasks with written definitions, read from the public repository's own directory.

The directory holds `tasks/*.json` and `splits/default/{train_tasks,test_tasks,excluded_tasks}.txt`. Its train tasks
become the pool `train`; its test tasks `held_out_type` where none of their categories occurs among the train tasks'
categories, else `held_out_task`. Excluded tasks share sources with test tasks and are never registered.

Source: Wang et al. 2022, "Super-NaturalInstructions" (arXiv 2204.07705); github.com/allenai/natural-instructions.
"""

import collections
import functools
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from zeroprompt_jax.data import cards
from zeroprompt_jax.data.mixture import hash64, name_keys
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.errors import UserError

ENVIRONMENT = "ZEROPROMPT_NATURAL_INSTRUCTIONS"
TRAIN_MIXTURE = "natural_instructions_train"
TEST_MIXTURE = "natural_instructions_test"
SEEN_MIXTURE = "natural_instructions_seen_tasks"
_LABELS = 12
_SEEN_TASKS = 40
# Categories are written by hand. Only a wrong spelling is mended: without this, a misspelt category would pass for a
# type of task that training never saw.
_SPELLING = {
    "answer geneartion": "answer generation",
    "arthmetic": "arithmetic",
    "classfication": "classification",
    "coutnerfactual generation": "counterfactual generation",
    "multiple-choice question": "multiple choice question",
    "paraphrase": "paraphrasing",
    "structered query generation": "structured query generation",
    "structered text generation": "structured text generation",
}


def register_directory(
    path: str | os.PathLike,
    *,
    max_instances: int = 100,
    max_test_instances: int = 100,
    held_back: int = 10,
    positive_examples: int = 0,
    examples_first: bool = False,
    instruction_limit: int | None = None,
    vocabulary: str | None = None,
    list_options: bool = False,
    skip_malformed: bool = False,
    seed: int = 0,
) -> None:
    """Registers the tasks below `path` and the mixtures `natural_instructions_train`, `natural_instructions_test` and
    `natural_instructions_seen_tasks` (a spread of train tasks, to be scored on the instances held back from training).

    Registering again, with other arguments, replaces what was registered before. Definitions are kept in memory,
    instances are read again when they are cached.

    Args:
      path: directory of the public repository.
      max_instances: training instances per train task.
      max_test_instances: instances per test task.
      held_back: instances of each train task that form its `test` split, at most a tenth; their inputs are never
        trained on.
      positive_examples: how many of the task's positive examples are in the instruction. They follow the definition, and
        the last words ask for the input: the instruction of Tk-Instruct.
      examples_first: put each before what there is instead, so that an instruction to be read apart from the input runs
        'Positive example 2 - … Positive example 1 - … Definition: …' (as HINT's hypernetwork is given it).
      instruction_limit: leave out a positive example with which the instruction would have more tokens, EOS included.
      vocabulary: in whose tokens that is, as `load_vocabulary` takes it.
      list_options: give tasks with at most 12 different outputs these as answer options, for ranked scoring. The
        published protocol generates freely instead.
      skip_malformed: leave out task files that are missing or cannot be read, and say which, instead of stopping.
      seed: of the choice of instances.

    Raises:
      UserError: no such layout, a task file that is missing, cut short or malformed; a limit without a vocabulary.
    """
    fits = _fits(instruction_limit, vocabulary)
    root = pathlib.Path(path).expanduser()
    named = {pool: _split_file(root, f"{pool}_tasks") for pool in ("train", "test")}
    excluded = set(_split_file(root, "excluded_tasks", required=False))
    for pool, names in named.items():
        if wrong := sorted(excluded & set(names)):
            raise UserError(
                f"Natural Instructions: {root}/splits/default lists '{wrong[0]}' both as {pool} and as excluded."
            )
    if both := sorted(set(named["train"]) & set(named["test"])):
        raise UserError(f"Natural Instructions: {root}/splits/default lists '{both[0]}' both as train and as test.")
    tasks: dict[str, dict[str, Any]] = {}
    for name in [*named["train"], *named["test"]]:
        try:
            tasks[name] = _summary(root / "tasks" / f"{name}.json")
        except UserError as e:
            if not skip_malformed:
                raise
            print(f"Skipped: {e}", file=sys.stderr)
    trained = {c for name in named["train"] if name in tasks for c in tasks[name]["categories"]}
    trained_names = set(named["train"])
    for name, task in tasks.items():
        train = name in trained_names
        pool = "train" if train else "held_out_task" if trained & set(task["categories"]) else "held_out_type"
        closed = task["labels"] is not None
        card = cards.TaskCard(
            name=name,
            type=task["categories"][0],
            domain=task["domain"],
            family=task["family"],
            pool=pool,
            instructions=(_instruction(task, positive_examples, examples_first, fits),),
            options=task["labels"] if closed and list_options else (),
            metrics=("rougeL", "exact_match", "macro_f1") if closed else ("rougeL", "exact_match"),
        )
        limits = {"train": max_instances, "test": held_back} if train else {"test": max_test_instances}
        source = cards.Source(
            functools.partial(_examples, root / "tasks" / f"{name}.json", name, limits, seed),
            fingerprint=f"{task['digest']} {json.dumps([limits, seed])}",
            splits=tuple(limits),
        )
        cards.register(card, source, replace=True)
    for mixture, names in ((TRAIN_MIXTURE, named["train"]), (TEST_MIXTURE, named["test"])):
        cards.register_mixture(mixture, [n for n in names if n in tasks])
    large = [n for n in named["train"] if n in tasks and _held_back(tasks[n]["distinct"], held_back)]
    if large:
        spread = np.unique(np.linspace(0, len(large) - 1, min(_SEEN_TASKS, len(large))).round().astype(int))
        cards.register_mixture(SEEN_MIXTURE, [large[i] for i in spread])


def register(directory: str | os.PathLike | None = None, **options) -> None:
    """`register_directory` for the directory given, or else for the one the environment names.

    Raises:
      UserError: neither is given.
    """
    directory = directory or os.environ.get(ENVIRONMENT)
    if not directory:
        raise UserError(
            f"Natural Instructions: name the public repository's directory, as an argument or in {ENVIRONMENT}."
        )
    register_directory(directory, **options)


def _split_file(root: pathlib.Path, name: str, required: bool = True) -> list[str]:
    path = root / "splits" / "default" / f"{name}.txt"
    try:
        return list(dict.fromkeys(path.read_text(encoding="utf-8").split()))
    except OSError as e:
        if not required:
            return []
        raise UserError(
            f"Natural Instructions: {path} cannot be read ({e.strerror}); '{root}' should be a checkout of the "
            f"public repository."
        ) from None


@functools.lru_cache(maxsize=2)  # caching asks for the splits of one task one after the other
def _read(path: pathlib.Path) -> tuple[dict[str, Any], str]:
    """A task file's content and a digest of it."""
    try:
        data = path.read_bytes()
    except OSError as e:
        raise UserError(f"Natural Instructions: task file {path} cannot be read ({e.strerror}).") from None
    try:
        task = json.loads(data)
    except ValueError as e:
        raise UserError(f"Natural Instructions: task file {path} is cut short or malformed ({e}).") from None
    wrong = _why_malformed(task)
    if wrong:
        raise UserError(f"Natural Instructions: task file {path} is malformed: {wrong}.")
    return task, hashlib.blake2b(data, digest_size=12).hexdigest()


def _why_malformed(task: Any) -> str | None:
    if not isinstance(task, dict):
        return "it is not a JSON object"
    for key in ("Definition", "Instances"):
        if not task.get(key):
            return f"{key} is missing or empty"
    if not _first(task["Definition"]).strip():
        return "Definition is missing or empty"
    if not isinstance(task["Instances"], list):
        return "Instances is not a list"
    for key in ("Categories", "Source", "Domains"):
        if not isinstance(task.get(key) or [], (str, list)):
            return f"{key} is neither text nor a list"
    positive = task.get("Positive Examples") or []
    if not isinstance(positive, list) or not all(isinstance(e, dict) for e in positive):
        return "Positive Examples is not a list of examples"
    for i, instance in enumerate(task["Instances"]):
        if not isinstance(instance, dict) or not isinstance(instance.get("input"), str):
            return f"instance {i} has no input text"
        outputs = instance.get("output")
        outputs = [outputs] if isinstance(outputs, str) else outputs
        if not isinstance(outputs, list) or not outputs or not all(isinstance(o, str) for o in outputs):
            return f"instance {i} has no output text"
    return None


def _first(value: Any) -> str:
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, str) else ""


def _summary(path: pathlib.Path) -> dict[str, Any]:
    """All that registration needs of a task file, without its instances."""
    task, digest = _read(path)
    outputs = collections.Counter(o.strip() for i in task["Instances"] for o in _outputs(i))
    # Twelve answers to twenty questions are no label set: labels come back.
    closed = 2 <= len(outputs) <= _LABELS and sum(outputs.values()) >= 5 * len(outputs)
    sources = sorted({s.strip().lower() for s in _texts(task.get("Source")) if s.strip()})
    domains = _texts(task.get("Domains"))
    return {
        "digest": digest,
        "definition": _first(task["Definition"]).strip(),
        "positive": [(_first(e.get("input")), _first(e.get("output"))) for e in task.get("Positive Examples") or ()],
        "categories": _categories(task),
        "domain": domains[0].strip().lower() if domains else "general",
        "family": "+".join(sources) or path.stem,
        "labels": tuple(sorted(outputs)) if closed and all(outputs) else None,
        "distinct": len({i["input"] for i in task["Instances"]}),
    }


def _categories(task: dict[str, Any]) -> list[str]:
    """Top-level categories in lower case, spelling mended: 'Question Answering -> Extractive' is 'question
    answering'."""
    names = [c.split("->")[0].strip(" .").lower() for c in _texts(task.get("Categories"))]
    return list(dict.fromkeys(_SPELLING.get(n, n) for n in names if n)) or ["uncategorised"]


def _texts(value: str | list | None) -> list[str]:
    """A field that is a list in new files and a single text in old ones."""
    return [value] if isinstance(value, str) else [str(v) for v in value or ()]


def _outputs(instance: dict[str, Any]) -> list[str]:
    outputs = instance["output"]
    return [outputs] if isinstance(outputs, str) else outputs


def _fits(limit: int | None, vocabulary: str | None) -> Callable[[str], bool]:
    """Whether an instruction has at most so many tokens."""
    if limit is None:
        return lambda text: True
    if vocabulary is None:
        raise UserError(f"Natural Instructions: instruction_limit={limit} counts tokens; name their vocabulary.")
    encode = load_vocabulary(vocabulary).encode
    return lambda text: len(encode(text)) + 1 <= limit


def _instruction(task: dict[str, Any], positive_examples: int, examples_first: bool, fits: Callable[[str], bool]) -> str:
    def written(shown: list[tuple[str, str]]) -> str:
        examples = [
            f"Positive example {i} - Input: {source.strip()} Output: {target.strip()}"
            for i, (source, target) in enumerate(shown, 1)
        ]
        if examples_first:
            return " ".join([*reversed(examples), f"Definition: {task['definition']}"])
        ask = ["Now complete the following example - Input:"] if examples else []
        return " ".join([task["definition"], *examples, *ask])

    shown: list[tuple[str, str]] = []
    for example in task["positive"][:positive_examples]:
        if fits(written([*shown, example])):
            shown.append(example)
    return written(shown)


def _held_back(distinct: int, held_back: int) -> int:
    return min(held_back, distinct // 10)


def _examples(path: pathlib.Path, name: str, limits: dict[str, int], seed: int, split: str) -> Iterator[dict[str, Any]]:
    """Instances of one split. Inputs that occur several times are one instance, so that no input is on both sides."""
    task, _ = _read(path)
    distinct: dict[str, dict[str, Any]] = {}
    for instance in task["Instances"]:
        if any(o.strip() for o in _outputs(instance)):
            distinct.setdefault(instance["input"], instance)
    instances = list(distinct.values())
    order = np.argsort(hash64(seed, name_keys([name])[0], np.arange(len(instances))), kind="stable")
    if "train" in limits:
        test = _held_back(len(instances), limits["test"])
        chosen = order[:test] if split == "test" else order[test : test + limits["train"]]
    else:
        chosen = order[: limits["test"]]
    for i in np.sort(chosen):
        references = list(dict.fromkeys(o.strip() for o in _outputs(instances[i]) if o.strip()))
        yield {"input": instances[i]["input"].strip(), "target": references[0], "references": references}


if os.environ.get(ENVIRONMENT):
    register()
