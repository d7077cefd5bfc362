"""The six data sets that the MRQA 2019 shared task trains on: the answer is a span of the context.

The shared task's own test labels are of other data sets, so the in-domain development splits are the test splits here.
A question may have several answers: the first is trained on, any counts. T5's own form of SQuAD also puts spaces around
punctuation; here the texts stay as they are.

Source: Fisch et al. 2019, "MRQA 2019 Shared Task" (arXiv 1910.09753). Data: mrqa 1.0.0 of TensorFlow Datasets, or a
local directory (`tfds_source`).
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from zeroprompt_jax.data import cards
from zeroprompt_jax.tasks import text_sets
from zeroprompt_jax.tasks.text_sets import TextSet, fields
from zeroprompt_jax.tasks.tfds_source import Dataset, Places

NAME = "mrqa"
# Name to the domain of its contexts.
DOMAINS = {
    "squad": "wikipedia",
    "news_qa": "news",
    "trivia_qa": "web pages",
    "search_qa": "web snippets",
    "hotpot_qa": "wikipedia",
    "natural_questions": "wikipedia",
}


def answered(row: Mapping[str, Any], split: str) -> Iterator[Mapping[str, Any]]:
    """A row with its answers; nothing where there is none. SQuAD's own layout has them under `text`."""
    del split
    found = row["answers"]["text"] if isinstance(row["answers"], Mapping) else row["answers"]
    answers = list(dict.fromkeys(a.strip() for a in found if a.strip()))
    if answers:
        context = " ".join(row["context"].split())
        yield {"question": row["question"], "context": context, "target": answers[0], "references": answers}


SETS = tuple(
    TextSet(
        name=name,
        dataset=Dataset(name, f"mrqa/{name}:1.0.0", fields=("question", "context", "answers")),
        type="question answering",
        text=fields("question", "context"),
        metrics=("span_f1", "span_exact_match"),
        domain=domain,
        prepare=answered,
    )
    for name, domain in DOMAINS.items()
)


def register(directory: str | os.PathLike | None = None, data_dir: str | os.PathLike | None = None) -> None:
    """Registers the tasks mrqa/NAME and the mixture `mrqa`; arguments as of `glue.register`."""
    cards.register_mixture(NAME, text_sets.register(NAME, SETS, Places.find(directory, data_dir)))


register()
