"""The fifteen sets of LM-BFF, whole and with K examples of each class, under its manual templates and label words.

A template has a blank, which is T5's first sentinel here, and the answer is the label's word. STS-B is answered with
its score, as in GLUE. Unlike the published templates, these neither cut the last character of a pair's first text where
a question mark follows nor begin its second text in lower case. The five sets that TensorFlow Datasets lacks (SST-5,
MR, CR, MPQA, Subj) are read from the .csv files of the archive that LM-BFF publishes, `original/NAME/{train,test}.csv`,
or from JSON lines.

A few-shot task lm_bff/NAME/K-SEED trains on K examples of each class and is tested on all of the test split: the
original validation split, where the test labels are hidden. Its validation split is the next K of each class; nothing
selects on it but `zeroprompt eval --split=validation`. STS-B is drawn by halves of its scale.

Leakage: the sets are GLUE's, SNLI's and movie reviews that T0 and others train on; SST-2 and SST-5 are the reviews of
MR (Rotten Tomatoes) with other labels, so none of the three is unseen to a model that was trained on another.

Source: Gao et al. 2021, "Making Pre-trained Language Models Better Few-shot Learners" (arXiv 2012.15723), table 1 and
its published code.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

from zeroprompt_jax.data import cards, few_shot
from zeroprompt_jax.tasks import glue, nli_sets, text_sets
from zeroprompt_jax.tasks.text_sets import TESTED, TextSet
from zeroprompt_jax.tasks.tfds_source import Dataset, Places

NAME = "lm_bff"
BLANK = "<extra_id_0>"
_GOOD = ("terrible", "great")
_IT_WAS = f"{{sentence}} It was {BLANK} ."
_THIS_IS = f"{{sentence}} This is {BLANK} ."
_HALF = 2.5  # of STS-B's scale
_GLUE = {s.name: s for s in glue.SETS}
_NLI = {s.name: s for s in nli_sets.SETS}


def _glue(name: str, of: TextSet, text: str, words: tuple[str, ...]) -> TextSet:
    """A set of GLUE or SNLI under another template; its words stand in the order of its classes."""
    family = of.family or of.name
    return dataclasses.replace(
        of, name=name, text=text, words=words, classes=of.words, family=family, instructions=("",)
    )


def _reviews(name: str, type: str, text: str, words: tuple[str, ...], family: str, domain: str) -> TextSet:
    home = "the archive of github.com/princeton-nlp/LM-BFF"
    return TextSet(
        name=name,
        dataset=Dataset(name, columns=("label", "sentence"), home=home),
        type=type,
        text=text,
        words=words,
        classes=tuple(map(str, range(len(words)))),
        splits=TESTED,
        instructions=("",),
        family=family,
        domain=domain,
    )


_FOLLOWS = f"{{}} ? {BLANK} , {{}}"
_SAME = f"{{}} {BLANK} , {{}}"
SETS = (
    _glue("sst-2", _GLUE["sst2"], _IT_WAS, _GOOD),
    _reviews(
        "sst-5", "sentiment analysis", _IT_WAS, ("terrible", "bad", "okay", "good", "great"), "sst2", "movie reviews"
    ),
    _reviews("mr", "sentiment analysis", _IT_WAS, _GOOD, "rotten_tomatoes", "movie reviews"),
    _reviews("cr", "sentiment analysis", _IT_WAS, _GOOD, "cr", "product reviews"),
    _reviews("mpqa", "sentiment analysis", _IT_WAS, _GOOD, "mpqa", "news"),
    _reviews("subj", "subjectivity", _THIS_IS, ("subjective", "objective"), "subj", "movie reviews"),
    TextSet(
        name="trec",
        dataset=Dataset("trec", "trec:1.0.0"),  # LM-BFF's own files number the classes in another order
        type="topic classification",
        text=f"{BLANK} : {{text}}",
        words=("Description", "Entity", "Expression", "Human", "Number", "Location"),
        classes=("DESC", "ENTY", "ABBR", "HUM", "NUM", "LOC"),
        label="label-coarse",
        splits=TESTED,
        instructions=("",),
    ),
    _glue("cola", _GLUE["cola"], _THIS_IS, ("incorrect", "correct")),
    _glue("mnli", _GLUE["mnli"], _FOLLOWS.format("{premise}", "{hypothesis}"), ("Yes", "Maybe", "No")),
    dataclasses.replace(
        _glue("snli", _NLI["snli"], _FOLLOWS.format("{premise}", "{hypothesis}"), ("Yes", "Maybe", "No")), splits=TESTED
    ),
    _glue("qnli", _GLUE["qnli"], _FOLLOWS.format("{question}", "{sentence}"), ("Yes", "No")),
    _glue("rte", _GLUE["rte"], _FOLLOWS.format("{sentence1}", "{sentence2}"), ("Yes", "No")),
    _glue("mrpc", _GLUE["mrpc"], _SAME.format("{sentence1}", "{sentence2}"), ("No", "Yes")),
    _glue("qqp", _GLUE["qqp"], _SAME.format("{question1}", "{question2}"), ("No", "Yes")),
    dataclasses.replace(
        _GLUE["stsb"], name="sts-b", text="{sentence1} , {sentence2}", family="stsb", instructions=("",)
    ),
)


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """`examples` of a source with so many training examples of each class, and as many to select on."""

    source: cards.Source
    shots: int
    seed: int
    scored: bool

    def __call__(self, split: str) -> Iterator[Mapping[str, Any]]:
        if split == "test":
            yield from self.source.examples("test")
            return
        examples = list(self.source.examples("train"))
        targets = [example["target"] for example in examples]
        classes = [float(target) >= _HALF for target in targets] if self.scored else targets
        drawn = few_shot.per_class(examples, classes, self.shots, self.seed)
        yield from (examples[i] for i in (drawn.train if split == "train" else drawn.dev))


def register(
    directory: str | os.PathLike | None = None,
    data_dir: str | os.PathLike | None = None,
    shots: tuple[int, ...] = (16,),
    seeds: tuple[int, ...] = few_shot.SEEDS,
) -> None:
    """Registers the tasks lm_bff/NAME, the few-shot tasks lm_bff/NAME/K-SEED, and the mixtures `lm_bff` and `lm_bff_K`.

    Args:
      directory, data_dir: as of `glue.register`.
      shots: numbers K of examples of each class.
      seeds: of the draws; the default are the published five.
    """
    names = text_sets.register(NAME, SETS, Places.find(directory, data_dir))
    cards.register_mixture(NAME, names)
    for k in shots:
        drawn = []
        for text_set, name in zip(SETS, names):
            card, source = cards.card(name), cards.source(name)
            for seed in seeds:
                few = dataclasses.replace(
                    source,
                    examples=_Drawn(source, k, seed, scored=not text_set.words),
                    fingerprint=f"{source.fingerprint} {k}-{seed}",
                    splits=tuple(s for s in cards.SPLITS if ("test" if s == "test" else "train") in source.splits),
                )
                drawn.append(
                    cards.register(dataclasses.replace(card, name=f"{name}/{k}-{seed}"), few, replace=True).name
                )
        cards.register_mixture(f"{NAME}_{k}", drawn)


register()
