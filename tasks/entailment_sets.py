"""Classification sets read from a directory, each with the way in which it is put as entailment, and MNLI to train on before.

The directory, an argument or ZEROPROMPT_DATASETS, holds NAME/train.jsonl and NAME/validation.jsonl. What is tested on is the
validation split, whether or not there is a test.jsonl: GLUE and SuperGLUE keep that one's labels to themselves. A row's label
may be a class's number, as there, or its name. `yes_no` finds more such tasks among registered ones, those of Natural
Instructions for instance.

Sources: Wang et al. 2019, GLUE (arXiv 1804.07461) and SuperGLUE (arXiv 1905.00537); the description of SST-2 is that of Kim
et al. 2023 (arXiv 2301.13345), section 4.
"""

import dataclasses
import functools
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from zeroprompt_jax.data import cards
from zeroprompt_jax.data.encoder_vocabulary import load_encoder_vocabulary
from zeroprompt_jax.data.entailment import Reformulation
from zeroprompt_jax.data.entailment_suite import Suite
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.tasks import json_lines, natural_instructions
from zeroprompt_jax.tasks.tfds_source import ENVIRONMENT

NAME = "entailment"
_NO_LABEL = ("-", "-1")  # annotators did not agree
_PAIR = {"first": "{premise}", "second": "{hypothesis}"}
_THREE = {"first": "{premise}", "second": "{hypothesis} , that is {label} ."}


@dataclasses.dataclass(frozen=True)
class Set:
    """A set's classes in the order of their numbers, and how it is put.

    Attributes:
      classes: names of the classes, the answers of the text-to-text task.
      task: the same as entailment.
      instruction, type: of the text-to-text task.
      named: other names that files have for classes.
      opening: what every text begins with in some files, which is left out.
    """

    classes: tuple[str, ...]
    task: Reformulation
    instruction: str
    type: str = "textual entailment"
    named: Mapping[str, str] = dataclasses.field(default_factory=dict)
    opening: str = ""

    def row(self, place: str, row: Mapping[str, Any]) -> dict[str, str] | None:
        """A row's fields and its class's name as `label`; None where it has no class."""
        if missing := [field for field in (*self.task.fields, "label") if field not in row]:
            raise UserError(f"{place}: the row has no field '{missing[0]}'; it has {', '.join(row)}.")
        told = str(row["label"])
        if told in _NO_LABEL:
            return None
        numbers = {str(i): name for i, name in enumerate(self.classes)}
        label = {**numbers, **self.named, **{name: name for name in self.classes}}.get(told)
        if label is None:
            raise UserError(f"{place}: the label '{told}' is none of {', '.join(self.classes)}.")
        return {**{f: str(row[f]).strip().removeprefix(self.opening).strip() for f in self.task.fields}, "label": label}


_NLI = ("entailment", "neutral", "contradiction")
_NLI_ASKED = "Does the premise entail the hypothesis, contradict it, or neither?"
SETS = {
    "mnli": Set(_NLI, Reformulation(("true", "unclear", "false"), **_THREE), _NLI_ASKED),
    "sst2": Set(
        ("negative", "positive"),
        Reformulation(("terrible", "great")),
        "Is this review negative or positive?",
        type="sentiment",
        named={"Bad": "negative", "Good": "positive"},
        opening="Text:",
    ),
    "rte": Set(
        ("entailment", "not_entailment"),
        Reformulation(("entailment", "not_entailment"), positive=0, **_PAIR),
        "Does the premise entail the hypothesis?",
    ),
    "cb": Set(
        ("entailment", "contradiction", "neutral"),
        Reformulation(("true", "false", "unclear"), **_THREE),
        _NLI_ASKED,
    ),
}


def register(directory: str | os.PathLike | None = None) -> tuple[str, ...]:
    """Registers entailment/NAME for every set that the directory has, and the mixture `entailment`. Registering again
    replaces what was registered before.

    Returns:
      the tasks' names.

    Raises:
      UserError: no directory, or none of the sets in it.
    """
    directory = directory or os.environ.get(ENVIRONMENT)
    if not directory:
        raise UserError(f"Entailment sets: name their directory, as an argument or in {ENVIRONMENT}.")
    root, names = pathlib.Path(directory).expanduser(), []
    for name, told in SETS.items():
        if not (root / name).is_dir():
            continue
        files = json_lines.splits(root / name)
        files |= {"test": files.pop("validation")} if "validation" in files else {}
        card = cards.TaskCard(
            name=f"{NAME}/{name}",
            type=told.type,
            instructions=(told.instruction,),
            family=name,
            input_template=" ".join(f"{field}: {{{field}}}" for field in told.task.fields),
            target_template="{label}",
            options=told.classes,
            metrics=("exact_match", "macro_f1"),
        )
        how = json.dumps([told.classes, dict(told.named), told.opening])
        source = cards.Source(
            functools.partial(_examples, told, files),
            f"entailment sets 1 {json_lines.digest(files)} {how}",
            tuple(files),
        )
        names.append(cards.register(card, source, replace=True).name)
    if not names:
        raise UserError(f"Entailment sets: the directory {root} has none of {', '.join(SETS)}.")
    cards.register_mixture(NAME, names)
    return tuple(names)


def _examples(told: Set, files: Mapping[str, pathlib.Path], split: str) -> Iterator[dict[str, str]]:
    if split not in files:
        here = ", ".join(str(file) for file in files.values())
        raise UserError(f"Entailment sets: there is no {split} split beside {here}.")
    for place, row in json_lines.rows(files[split]):
        example = told.row(place, row)
        if example is not None:
            yield example


def yes_no(names: Iterable[str]) -> dict[str, Reformulation]:
    """Of registered tasks those whose answer options are yes and no, put as entailment: the input entails or not that
    'the answer is yes .'."""
    found = {}
    for name in names:
        words = tuple(option.strip(" .").lower() for option in cards.card(name).options)
        if sorted(words) == ["no", "yes"]:
            found[name] = Reformulation(
                words, first="{input}", second="the answer is {label} .", positive=words.index("yes")
            )
    return found


def suite(
    vocabulary: str,
    directory: str | os.PathLike | None = None,
    length: int = 128,
    pairs: int | None = None,
    natural_instructions_dir: str | os.PathLike | None = None,
) -> Suite:
    """The directory's sets as the entailment study takes them; MNLI is what is trained on before.

    Args:
      vocabulary: of the encoder, as of `load_encoder_vocabulary`.
      directory: as of `register`.
      length: tokens of a row.
      pairs: so many of MNLI's at most.
      natural_instructions_dir: of the public repository; its training tasks that are answered by yes or no are added, with
        at most 400 instances to draw from and 50 to test on.
    """
    names = [name.removeprefix(f"{NAME}/") for name in register(directory)]
    found = cards.source(f"{NAME}/mnli").examples("train") if "mnli" in names else ()
    put = {f"{NAME}/{name}": SETS[name].task for name in names if name != "mnli"}
    inference = tuple(itertools.islice(found, pairs))
    if natural_instructions_dir is not None:
        natural_instructions.register_directory(
            natural_instructions_dir, max_instances=400, held_back=50, list_options=True
        )
        put |= yes_no(cards.mixture(natural_instructions.TRAIN_MIXTURE))
    return Suite(load_encoder_vocabulary(vocabulary), put, length, inference)
