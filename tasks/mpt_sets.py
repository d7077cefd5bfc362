"""The 23 data sets of multitask prompt tuning: six to train the shared prompt on, 21 to adapt it to, four in both.

Inputs and splits are those of ATTEMPT, whose experiments MPT repeats: fields in the benchmarks' own order, and the
answer is the number of the class, one token. Test labels are hidden, so

- of a small set half of the validation split is for selection and half for the test;
- of a large set 1,000 training rows are for selection, and the validation split is the test;
- MNLI is selected on the mismatched validation split and tested on the matched one; PAWS has all three splits.

Which rows are drawn is our own: the published draw depends on a generator's state. Winogrande's two options are both
named here (the published code names the second twice). Nothing selects a checkpoint by itself: `zeroprompt eval
--split=validation` scores on the validation splits. No spaces are put around punctuation, as there in question
answering.

Leakage: MNLI, QNLI, QQP and SST-2 are sources and targets at once; QNLI was made from SQuAD; CB, RTE and SciTail are
entailment as MNLI is. `leakage` lists this for any two mixtures.

Sources: Wang et al. 2023, "Multitask Prompt Tuning" (arXiv 2303.02861), section 4.1; Asai et al. 2022, "ATTEMPT" (arXiv
2205.11961) and its published code.
"""

import dataclasses
import os

from zeroprompt_jax.data import cards
from zeroprompt_jax.tasks import glue, mrqa, super_glue, text_sets
from zeroprompt_jax.tasks.text_sets import OFFICIAL, TextSet, fields
from zeroprompt_jax.tasks.tfds_source import Dataset, Part, Places

NAME = "mpt"
SMALL = {"train": Part("train"), "validation": Part("validation", held=0.5), "test": Part("validation", rest=0.5)}
LARGE = {"train": Part("train", rest=1000), "validation": Part("train", held=1000), "test": Part("validation")}
MNLI = {"train": Part("train"), "validation": Part("validation_mismatched"), "test": Part("validation_matched")}


def _numbered(text_set: TextSet, text: str, splits=SMALL, **changes) -> TextSet:
    """A set whose answers are the classes' numbers."""
    words = tuple(map(str, range(len(text_set.words))))
    classes = text_set.classes or text_set.words
    return dataclasses.replace(text_set, text=text, words=words, classes=classes, splits=splits, **changes)


_GLUE = {s.name: s for s in glue.SETS}
_SUPER_GLUE = {s.name: s for s in super_glue.SETS}
_MRQA = {s.name: s for s in mrqa.SETS}
_PAIR = fields("sentence1", "sentence2")
_NLI = fields("premise", "hypothesis")

GLUE = (
    _numbered(_GLUE["mnli"], _NLI, MNLI),
    _numbered(_GLUE["qqp"], fields("question1", "question2"), LARGE, metrics=("accuracy", "f1")),
    _numbered(_GLUE["qnli"], fields("question", "sentence"), LARGE),
    _numbered(_GLUE["sst2"], fields("sentence"), LARGE),
    dataclasses.replace(_GLUE["stsb"], splits=SMALL),
    _numbered(_GLUE["mrpc"], _PAIR, metrics=("accuracy", "f1")),
    _numbered(_GLUE["rte"], _PAIR),
    _numbered(_GLUE["cola"], fields("sentence")),
)
SUPER_GLUE = (
    _numbered(_SUPER_GLUE["multirc"], fields("question", "answer", "paragraph")),
    _numbered(_SUPER_GLUE["boolq"], fields("question", "passage")),
    _numbered(_SUPER_GLUE["wic"], fields("sentence1", "sentence2", "word")),
    _numbered(_SUPER_GLUE["wsc"], fields("text")),
    _numbered(_SUPER_GLUE["cb"], _NLI, metrics=("accuracy", "macro_f1")),
)
MRQA = tuple(
    dataclasses.replace(_MRQA[name], splits=LARGE)
    for name in ("natural_questions", "hotpot_qa", "search_qa", "news_qa")
)
OTHERS = (
    TextSet(
        name="winogrande",
        dataset=Dataset("winogrande", "winogrande:1.2.0", renamed={"answer": "label"}),
        type="coreference resolution",
        text="sentence: {sentence} option0: {option1} option1: {option2}",
        words=("0", "1"),
        classes=("1", "2"),
        splits={
            "train": Part("train_xl", rest=1000),
            "validation": Part("train_xl", held=1000),
            "test": Part("validation"),
        },
    ),
    TextSet(
        name="yelp_polarity",
        dataset=Dataset("yelp_polarity", "yelp_polarity_reviews:0.2.0"),
        type="sentiment analysis",
        text="sentence: {text}",
        words=("0", "1"),
        classes=("1", "2"),
        splits={**LARGE, "test": Part("test")},
        family="yelp",
        domain="business reviews",
    ),
    TextSet(
        name="scitail",
        dataset=Dataset(
            "scitail",
            "sci_tail:1.0.0",
            renamed={"sentence1": "premise", "sentence2": "hypothesis", "gold_label": "label"},
        ),
        type="textual entailment",
        text=_NLI,
        words=("0", "1"),
        classes=("entails", "neutral"),
        named={"entailment": "entails"},  # in the files with `gold_label`
        splits=SMALL,
        domain="science",
    ),
    TextSet(
        name="paws",
        dataset=Dataset("paws", "paws_wiki/labeled_final_tokenized:1.1.0"),
        type="paraphrase",
        text=_PAIR,
        words=("0", "1"),
        splits=OFFICIAL,
        domain="wikipedia",
    ),
)
SQUAD = dataclasses.replace(_MRQA["squad"], dataset=Dataset("squad", "squad/v1.1:3.0.0"), splits=LARGE)
RECORD = dataclasses.replace(_SUPER_GLUE["record"], splits=LARGE)
SETS = (*GLUE, *SUPER_GLUE, *MRQA, *OTHERS, SQUAD, RECORD)
SOURCES = ("mnli", "qnli", "qqp", "sst2", "squad", "record")


def register(directory: str | os.PathLike | None = None, data_dir: str | os.PathLike | None = None) -> None:
    """Registers the tasks mpt/NAME and the mixtures `mpt_sources`, `mpt_glue`, `mpt_super_glue`, `mpt_mrqa`,
    `mpt_others` and `mpt_targets`; arguments as of `glue.register`."""
    text_sets.register(NAME, SETS, Places.find(directory, data_dir))
    groups = {"glue": GLUE, "super_glue": SUPER_GLUE, "mrqa": MRQA, "others": OTHERS}
    for group, sets in groups.items():
        cards.register_mixture(f"{NAME}_{group}", [f"{NAME}/{s.name}" for s in sets])
    cards.register_mixture(f"{NAME}_targets", [f"{NAME}/{s.name}" for sets in groups.values() for s in sets])
    cards.register_mixture(f"{NAME}_sources", [f"{NAME}/{name}" for name in SOURCES])


register()
