"""GLUE's eight tasks as T5 puts them: name, then named fields in alphabetical order; the answer is the label's word.

GLUE hides its test labels, so its validation splits are the test splits here; MNLI's is the matched one. WNLI is left
out, as in the T5 papers: it is WSC in another form, and its splits are adversarial.

Sources: Wang et al. 2019, "GLUE" (arXiv 1804.07461); Raffel et al. 2020 (arXiv 1910.10683), appendix D. Data: glue
2.0.0 of TensorFlow Datasets, or a local directory (`tfds_source`).
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from zeroprompt_jax.data import cards
from zeroprompt_jax.tasks import text_sets
from zeroprompt_jax.tasks.text_sets import TextSet, fields
from zeroprompt_jax.tasks.tfds_source import Dataset, Part, Places

NAME = "glue"
NLI = ("entailment", "neutral", "contradiction")
MATCHED = {"train": Part("train"), "test": Part("validation_matched")}


def _dataset(name: str, **renamed: str) -> Dataset:
    return Dataset(name, f"glue/{name}:2.0.0", renamed)


def rounded(row: Mapping[str, Any], split: str) -> Iterator[Mapping[str, Any]]:
    """STS-B's score, of 0 to 5, as the nearest of 0.0, 0.2, …, 5.0; nothing where it is hidden."""
    del split
    if float(row["label"]) >= 0:
        yield {**row, "target": f"{round(float(row['label']) * 5) / 5:.1f}"}


def review(row: Mapping[str, Any], split: str) -> Iterator[Mapping[str, Any]]:
    """SST-2's text without the "Text:" that it begins with in files of repositories that turn sets into instructions."""
    del split
    yield {**row, "sentence": row["sentence"].removeprefix("Text:").strip()}


SETS = (
    TextSet(
        name="cola",
        dataset=_dataset("cola"),
        type="acceptability",
        text=fields("sentence"),
        words=("unacceptable", "acceptable"),
        metrics=("matthews", "accuracy"),
    ),
    TextSet(
        name="sst2",
        dataset=_dataset("sst2"),
        type="sentiment analysis",
        text=fields("sentence"),
        words=("negative", "positive"),
        named={"Bad": "negative", "Good": "positive"},  # in the files that texts begin with "Text:" in
        domain="movie reviews",
        prepare=review,
    ),
    TextSet(
        name="mrpc",
        dataset=_dataset("mrpc"),
        type="paraphrase",
        text=fields("sentence1", "sentence2"),
        words=("not_equivalent", "equivalent"),
        metrics=("f1", "accuracy"),
        domain="news",
    ),
    TextSet(
        name="qqp",
        dataset=_dataset("qqp"),
        type="paraphrase",
        text=fields("question1", "question2"),
        words=("not_duplicate", "duplicate"),
        metrics=("f1", "accuracy"),
    ),
    TextSet(
        name="stsb",
        dataset=_dataset("stsb"),
        type="similarity",
        text=fields("sentence1", "sentence2"),
        metrics=("pearson", "spearman"),
        prepare=rounded,
    ),
    TextSet(
        name="mnli",
        dataset=_dataset("mnli"),
        type="textual entailment",
        text=fields("hypothesis", "premise"),
        words=NLI,
        splits=MATCHED,
    ),
    TextSet(
        name="qnli",
        dataset=_dataset("qnli"),
        type="textual entailment",
        text=fields("question", "sentence"),
        words=("entailment", "not_entailment"),
    ),
    TextSet(
        name="rte",
        dataset=_dataset("rte", premise="sentence1", hypothesis="sentence2"),  # SuperGLUE's names of the same fields
        type="textual entailment",
        text=fields("sentence1", "sentence2"),
        words=("entailment", "not_entailment"),
    ),
)


def register(directory: str | os.PathLike | None = None, data_dir: str | os.PathLike | None = None) -> None:
    """Registers the tasks glue/NAME and the mixture `glue`. Nothing is read before the tasks are cached.

    Args:
      directory: of NAME/train.jsonl and NAME/validation.jsonl; the default is the environment's, see `tfds_source`.
      data_dir: where TensorFlow Datasets finds or prepares what the directory lacks.
    """
    cards.register_mixture(NAME, text_sets.register(NAME, SETS, Places.find(directory, data_dir)))


register()
