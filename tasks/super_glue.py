"""SuperGLUE's eight tasks as T5 puts them, but for WSC. Test labels are hidden, so the validation splits are the test
splits here.

Three are not a row an example, or need their text prepared:

- WSC marks the noun with * and the pronoun with #, and is answered True or False. (T5's published models are trained
  and tested on another form, which marks the pronoun alone and asks for the noun: not the one here.)
- ReCoRD has a training example for each right answer; in the test split a query is one example, and any of its answers
  counts;
- MultiRC asks True or False of each answer of each question. F1 is over all answers (F1a).

RTE is GLUE's RTE: the two share a family.

Sources: Wang et al. 2019, "SuperGLUE" (arXiv 1905.00537); Raffel et al. 2020 (arXiv 1910.10683), appendix D. Data:
super_glue 1.0.2 of TensorFlow Datasets, or a local directory (`tfds_source`).
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from zeroprompt_jax.data import cards
from zeroprompt_jax.tasks import text_sets
from zeroprompt_jax.tasks.text_sets import TextSet, fields
from zeroprompt_jax.tasks.tfds_source import Dataset, Places

NAME = "super_glue"
BOOLEAN = ("False", "True")
Rows = Iterator[Mapping[str, Any]]


def _dataset(name: str, folder: str = "", **renamed: str) -> Dataset:
    return Dataset(folder or name, f"super_glue/{name}:1.0.2", renamed)


def marked(row: Mapping[str, Any], split: str) -> Rows:
    """WSC's text with '* noun *' and '# pronoun #'. A span is given by the number of its first word. As with T5, one
    that is not there, or is the first word of the other, stays without marks: two of the published examples."""
    del split
    text = row["text"]
    starts = [word.start() for word in re.finditer(r"\S+", text)]
    spans = [(row[f"span{n}_index"], row[f"span{n}_text"], mark) for n, mark in ((1, "*"), (2, "#"))]
    for number, span, mark in sorted(spans, reverse=True):  # from the end, so that the first span stays where it is
        if number < len(starts) and text.startswith(span, at := starts[number]):
            text = f"{text[:at]}{mark} {span} {mark}{text[at + len(span) :]}"
    yield {**row, "text": text}


def queries(row: Mapping[str, Any], split: str) -> Rows:
    """ReCoRD: a training example for each answer, or a query with all its answers; nothing where they are hidden."""
    # A summary's highlights are sentences of their own, some without a full stop.
    passage = re.sub(r"(?<=[.?!\"'])\n@highlight\n", " ", row["passage"])
    passage = re.sub(r"\n@highlight\n", ". ", passage)
    answers = list(dict.fromkeys(row["answers"]))
    made = {**row, "passage": passage, "entities": ", ".join(row["entities"])}
    for answer in answers if split == "train" else answers[:1]:
        yield {**made, "target": answer, "references": [answer] if split == "train" else answers}


def plain_text(row: Mapping[str, Any], split: str) -> Rows:
    """MultiRC without its HTML marks."""
    del split
    texts = {key: re.sub(r"</?b>", "", row[key].replace("<br>", " ")) for key in ("question", "answer", "paragraph")}
    yield {**row, **texts}


SETS = (
    TextSet(
        name="boolq",
        dataset=_dataset("boolq"),
        type="question answering",
        text=fields("passage", "question"),
        words=BOOLEAN,
        domain="wikipedia",
    ),
    TextSet(
        name="cb",
        dataset=_dataset("cb"),
        type="textual entailment",
        text=fields("hypothesis", "premise"),
        words=("entailment", "contradiction", "neutral"),
        metrics=("macro_f1", "accuracy"),
    ),
    TextSet(
        name="copa",
        dataset=_dataset("copa"),
        type="sentence completion",
        text=fields("choice1", "choice2", "premise", "question"),
        words=("choice1", "choice2"),
    ),
    TextSet(
        name="multirc",
        dataset=_dataset("multirc"),
        type="question answering",
        text=fields("question", "answer", "paragraph"),
        words=BOOLEAN,
        metrics=("f1", "accuracy"),
        prepare=plain_text,
    ),
    TextSet(
        name="record",
        dataset=_dataset("record"),
        type="question answering",
        text=fields("query", "entities", "passage"),
        metrics=("span_f1", "span_exact_match"),
        domain="news",
        prepare=queries,
    ),
    TextSet(
        name="rte",
        dataset=_dataset("rte", sentence1="premise", sentence2="hypothesis"),  # GLUE's names of the same fields
        type="textual entailment",
        text=fields("hypothesis", "premise"),
        words=("entailment", "not_entailment"),
    ),
    TextSet(
        name="wic",
        dataset=_dataset("wic"),
        type="word sense disambiguation",
        text=fields("sentence1", "sentence2", "word"),
        words=BOOLEAN,
    ),
    TextSet(
        name="wsc",
        dataset=_dataset("wsc.fixed", "wsc"),
        type="coreference resolution",
        text=fields("text"),
        words=BOOLEAN,
        prepare=marked,
    ),
)


def register(directory: str | os.PathLike | None = None, data_dir: str | os.PathLike | None = None) -> None:
    """Registers the tasks super_glue/NAME and the mixture `super_glue`; arguments as of `glue.register`."""
    cards.register_mixture(NAME, text_sets.register(NAME, SETS, Places.find(directory, data_dir)))


register()
