"""Datasets under prompt templates, as P3 has them: every template of a dataset is a task.

A template such as 'Does {premise} entail {hypothesis}?' names fields of a row. What a hypernetwork reads is the template
with its fields masked, 'Does [MASK] entail [MASK]?'; the encoder reads the filled template, as published, or the bare
fields. So all of these are one family, each with `Data.instruct_inputs = False`:

- HINT: `given="prompt"` or `given="fields"`, and a method that reads instructions;
- the prompt in the input, as T0: `given="prompt"`, and a method that reads none;
- no instruction: `given="fields"`, and a method that reads none.

A directory holds NAME/train.jsonl and NAME/validation.jsonl or NAME/test.jsonl, a row of fields a line. A JSON file says
how they are put:

    {"rte": {"type": "entailment", "pool": "held_out_type", "label": "label", "templates": {
        "does": {"input": "Does {premise} entail {hypothesis}? {options}", "answers": {"0": "yes", "1": "no"}}}}}

An answer may name fields too ({"0": "{choice1}", "1": "{choice2}"}). A template with free answers has "target", a template
as well, in place of "answers".

Sources: Sanh et al. 2022, "Multitask Prompted Training Enables Zero-Shot Task Generalization" (arXiv 2110.08207); Ivison et
al. 2023, "HINT" (arXiv 2212.10315).
"""

import functools
import json
import os
import pathlib
import string
from collections.abc import Iterator, Mapping
from typing import Any

from zeroprompt_jax.data import cards
from zeroprompt_jax.errors import UserError, unknown
from zeroprompt_jax.tasks import json_lines

NAME = "prompt_templates"
_ANSWER = "prompt_templates_answer"  # the field of the right answer, which no row has
MASK = "[MASK]"
GIVEN = ("prompt", "fields")
# Mixture of each pool.
MIXTURES = {"train": "train", "held_out_task": "unseen_tasks", "held_out_type": "unseen_types"}
_DATASET = ("type", "pool", "label", "templates")
_TEMPLATE = ("input", "target", "answers", "metrics")
_OPTIONS = "options"


def register_directory(
    path: str | os.PathLike,
    templates: str | os.PathLike,
    *,
    given: str = "prompt",
    mask: str = MASK,
    name: str = NAME,
) -> None:
    """Registers every template of every dataset as the task NAME/DATASET/TEMPLATE, and a mixture of each pool that has
    tasks: NAME_train, NAME_unseen_tasks and NAME_unseen_types.

    Registering again, with other arguments, replaces what was registered before. Files are read once, to know their
    content by; rows when they are cached.

    Args:
      path: the directory.
      templates: the JSON file.
      given: what the encoder is given, `prompt` (the filled template) or `fields` (their values, in the template's order).
      mask: what stands for a field where the template is read apart. Fixed answer options are written out. '<extra_id_0>'
        is one token of a vocabulary with sentinels, where a space precedes it.
      name: of tasks and mixtures.

    Raises:
      UserError: a file that is missing or malformed; when rows are read, also a field or an answer that is missing.
    """
    if given not in GIVEN:
        raise unknown("way to give an input", given, GIVEN)
    root, pools = pathlib.Path(path).expanduser(), {}
    for dataset, told in _read(pathlib.Path(templates).expanduser()).items():
        splits = json_lines.splits(root / dataset)
        digest = json_lines.digest(splits)
        for title, template in told["templates"].items():
            where = f"{dataset}/{title}"
            card = _card(where, f"{name}/{where}", {"type": dataset, **told}, template, given, mask)
            answers, label = template.get("answers"), told.get("label", "label")
            source = cards.Source(
                functools.partial(_examples, where, splits, answers, label, bool(card.options)),
                fingerprint=f"prompt templates 1 {digest} {json.dumps([answers, label])}",
                splits=tuple(splits),
            )
            cards.register(card, source, replace=True)
            pools.setdefault(card.pool, []).append(card.name)
    for pool, names in pools.items():
        cards.register_mixture(f"{name}_{MIXTURES[pool]}", names)


def masked(template: str, mask: str = MASK, options: tuple[str, ...] = ()) -> str:
    """A template with every field replaced by `mask`, except `{options}` where there are some."""
    fixed = {_OPTIONS: "; ".join(options)} if options else {}
    return "".join(
        text + ("" if field is None else fixed.get(field, mask))
        for text, field, _, _ in string.Formatter().parse(template)
    )


def _card(where: str, name: str, dataset: Mapping, template: Mapping, given: str, mask: str) -> cards.TaskCard:
    answers = tuple((template.get("answers") or {}).values())
    options = answers if not any(map(_fields, answers)) else ()
    prompt = template["input"]
    fields = dict.fromkeys(field for field in _fields(prompt) if not (options and field == _OPTIONS))
    if not fields:
        raise UserError(f"Prompt templates: '{where}' names no field of a row, so every example would read the same.")
    return cards.TaskCard(
        name=name,
        type=dataset["type"],
        family=name.rpartition("/")[0],
        pool=dataset.get("pool", "train"),
        instructions=(masked(prompt, mask, options),),
        input_template=prompt if given == "prompt" else " ".join(f"{{{field}}}" for field in fields),
        target_template=f"{{{_ANSWER}}}" if answers else template["target"],
        options=options,
        metrics=tuple(template.get("metrics", ("exact_match",))),
    )


def _fields(template: str) -> list[str]:
    return [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]


def _read(path: pathlib.Path) -> dict[str, Any]:
    def bad(why: str):
        raise UserError(f"Prompt templates: {path} {why}.")

    try:
        datasets = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        bad(f"cannot be read ({e.strerror})")
    except ValueError as e:
        bad(f"is not JSON ({e})")
    if not isinstance(datasets, dict):
        bad("is not an object of datasets")
    for dataset, told in datasets.items():
        if not isinstance(told, dict) or not isinstance(told.get("templates"), dict):
            bad(f"has no object of 'templates' for '{dataset}'")
        for entry, known in ((told, _DATASET), *((t, _TEMPLATE) for t in told["templates"].values())):
            if not isinstance(entry, dict):
                bad(f"has a template of '{dataset}' that is not an object")
            for key in entry:
                if key not in known:
                    raise unknown(f"entry of '{dataset}' in {path}:", key, known)
        for title, template in told["templates"].items():
            answers = template.get("answers", {})
            if not isinstance(answers, dict) or bool(answers) == isinstance(template.get("target"), str):
                bad(f"must give '{dataset}/{title}' either 'answers', an object, or 'target', a template")
            texts = [template.get("input"), *answers.values()]
            if not all(isinstance(text, str) for text in texts):
                bad(f"has an 'input' or answer of '{dataset}/{title}' that is not text")
            for text in texts:
                try:
                    _fields(text)
                except ValueError as e:
                    bad(f"has a template of '{dataset}/{title}' that is not a format string ({e})")
    return datasets


def _examples(
    where: str,
    splits: Mapping[str, pathlib.Path],
    answers: Mapping[str, str] | None,
    label: str,
    fixed: bool,
    split: str,
) -> Iterator[dict[str, Any]]:
    for place, row in json_lines.rows(splits[split]):
        # A row's own fields of these names are text here, not what a source says about an example.
        plain = {field: value for field, value in row.items() if field not in cards.SPECIAL}
        if answers:
            plain |= _answered(f"{place}, template '{where}'", row, answers, label, fixed)
        yield plain


def _answered(place: str, row: Mapping, answers: Mapping[str, str], label: str, fixed: bool) -> dict[str, Any]:
    if label not in row:
        raise UserError(f"Prompt templates: {place}: the row has no field '{label}'; it has {', '.join(row)}.")
    right = str(row[label])
    if right not in answers:
        raise UserError(
            f"Prompt templates: {place}: the label '{right}' has no answer; there are {', '.join(answers)}."
        )
    try:
        texts = {key: answer.format(**row) for key, answer in answers.items()}
    except KeyError as e:
        raise UserError(f"Prompt templates: {place}: an answer names the field {e}, which the row lacks.") from None
    except (IndexError, AttributeError, TypeError, ValueError) as e:
        raise UserError(f"Prompt templates: {place}: an answer cannot be filled from the row ({e}).") from None
    return {_ANSWER: texts[right], **({} if fixed else {"options": list(texts.values())})}
