"""Public data sets under instructions in plain English, several for each, as FLAN trains on them.

A task is a data set, and its wordings are what FLAN calls templates: eight for training and two that training never
uses. The wording stands before the input and names no field, so that a method may read it apart, once for many inputs.
Answers are plain words and the input lists them. As in FLAN, some tasks are turned around: from the answer to the text.

FLAN's rule of what is unseen: a whole type of task is held out. `flan_TYPE` are the tasks of a type and
`flan_without_TYPE` is what may be trained on to call them unseen: nothing of that type, nothing of a data set of that
type, turned around or not, and with entailment nothing of paraphrase, as the one can be told from the other.

FLAN mixes sets by their sizes up to 3,000 and takes 30,000 examples of each at most: Data.rates = "proportional",
Data.cap = 3000, Data.max_train_examples = 30000.

Source: Wei et al. 2022, "Finetuned Language Models Are Zero-Shot Learners" (arXiv 2109.01652). The wordings are our
own.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

from zeroprompt_jax.data import cards
from zeroprompt_jax.tasks import glue, mpt_sets, mrqa, nli_sets, super_glue, text_sets
from zeroprompt_jax.tasks.text_sets import OFFICIAL, TESTED, VALIDATED, TextSet
from zeroprompt_jax.tasks.tfds_source import Part, Places

NAME = "flan"
INVERTED = "text generation"
# Types of which one tells the other: both are held out where one is.
_RELATED = ({"textual entailment", "paraphrase", "similarity"},)
_OPTIONS = " Options: {options}"
_HELD_OUT = 2  # wordings of each set, the last ones

_ENTAILMENT = (
    "Read the premise. Does it follow that the hypothesis is true?",
    "Suppose that the premise is true. Is the hypothesis true as well?",
    "Decide whether the hypothesis can be concluded from the premise.",
    "Does the first text give enough reason to believe the second?",
    "Judge the hypothesis by the premise alone.",
    "Someone who knows only the premise hears the hypothesis. Should they agree?",
    "Say how the hypothesis stands to the premise.",
    "Would the premise prove the hypothesis?",
    "Is the second statement a consequence of the first?",
    "Taking the premise as a fact, what can be said of the hypothesis?",
)
_QUESTION_ENTAILMENT = (
    "Does the sentence hold the answer to the question?",
    "Could you answer the question after reading only this sentence?",
    "Decide whether the sentence answers the question.",
    "Say if the answer to the question is in the sentence.",
    "Is the question answered by the sentence?",
    "Judge whether the sentence tells what the question asks.",
    "A reader has the question and this one sentence. Is that enough?",
    "Check whether the sentence contains what is asked for.",
    "Would the sentence be a good place to look for the answer?",
    "Does reading the sentence settle the question?",
)
_SENTIMENT = (
    "Is this review good or bad about what it reviews?",
    "What does the writer of the review feel?",
    "Decide whether the opinion is favourable.",
    "Read the review and name its sentiment.",
    "Did the reviewer like it?",
    "Tell whether the text praises or complains.",
    "Is the tone of the review positive or negative?",
    "Classify the review by the opinion it expresses.",
    "Would the author recommend it to a friend?",
    "How would you describe the mood of this review?",
)
_PARAPHRASE = (
    "Do the two texts mean the same?",
    "Decide whether one text is another way of saying the other.",
    "Compare the two texts. Is their meaning equal?",
    "Are these two texts paraphrases of each other?",
    "Say whether both texts tell the same thing.",
    "Could one of the texts replace the other without a change of meaning?",
    "Judge whether the difference between the texts is only in the wording.",
    "Do both texts say one and the same thing?",
    "Is the second text a restatement of the first?",
    "Would a reader learn the same from either text?",
)
_SIMILARITY = (
    "How alike in meaning are the two sentences, from 0 for unrelated to 5 for the same?",
    "Rate from 0 to 5 how close the meanings of the sentences are.",
    "Give the pair of sentences a score of likeness between 0 and 5.",
    "On a scale that ends at 5, how similar is what the sentences say?",
    "Score the sentences: 5 means that they say the same, 0 that they share nothing.",
    "How much of their meaning do the sentences share? Answer with a number up to 5.",
    "Measure the similarity of the two sentences from 0 to 5.",
    "Write a number from 0 to 5 for how near the sentences are in meaning.",
    "From 0 to 5, how equivalent are these sentences?",
    "Put a number between 0 and 5 on the agreement in meaning.",
)
_ACCEPTABILITY = (
    "Is this sentence good English?",
    "Decide whether the sentence is grammatical.",
    "Would a native speaker accept this sentence?",
    "Check the grammar of the sentence. Is it right?",
    "Does the sentence obey the rules of English?",
    "Tell whether something is wrong with the form of the sentence.",
    "Judge the sentence as a teacher of grammar would.",
    "Is the sentence well formed?",
    "Could this sentence stand in a carefully edited book?",
    "Say whether the sentence is acceptable.",
)
_BOOLEAN_QUESTION = (
    "Read the passage and answer the question.",
    "What does the passage say to the question?",
    "Answer the question by the passage.",
    "Is the answer to the question yes, according to the passage?",
    "Use the passage to decide the question.",
    "A friend asks the question after reading the passage. Reply in one word.",
    "Settle the question with what the passage tells.",
    "After reading the text, answer.",
    "Judging by the passage alone, what is the answer?",
    "Take the passage as true and answer what is asked.",
)
_ANSWER_CHECK = (
    "Is the given answer to the question right, by the paragraph?",
    "Read the paragraph and check the answer.",
    "Decide whether the answer is correct.",
    "Does the paragraph support this answer to the question?",
    "Grade the answer: is it true to the paragraph?",
    "Someone answered the question so. Are they right?",
    "Compare the answer with the paragraph. Does it hold?",
    "Tell whether the answer should be accepted.",
    "Would the paragraph's author agree with the answer?",
    "Verify the answer with the help of the text.",
)
_SPAN = (
    "Answer the question with words of the context.",
    "Find the answer to the question in the context.",
    "Read the context and copy what answers the question.",
    "Which part of the context is the answer?",
    "Quote the answer from the text.",
    "Take the shortest piece of the context that answers the question.",
    "What does the context say to the question? Use its own words.",
    "Look up the answer in the context.",
    "Extract the words that answer what is asked.",
    "Reply to the question with a phrase of the text.",
)
_PLACEHOLDER = (
    "Which of the entities belongs where the query has @placeholder?",
    "Fill @placeholder by what the passage tells.",
    "Name what @placeholder stands for.",
    "Read the passage and complete the query.",
    "One entity of the passage is hidden in the query. Which?",
    "Put the right name in the place of @placeholder.",
    "The query lacks a name. Give it.",
    "Choose the entity that makes the query true.",
    "Who or what is @placeholder?",
    "Restore the name that was taken out of the query.",
)
_CHOICE = (
    "Which of the two is more likely?",
    "Choose the alternative that fits what happened.",
    "Read the premise and pick its cause or its effect, as is asked.",
    "One of the choices goes with the premise. Which?",
    "Use common sense to choose.",
    "Select the more plausible alternative.",
    "What belongs to the premise?",
    "Decide between the two choices.",
    "Which alternative would most people expect?",
    "Find the choice that is connected with the premise.",
)
_WORD_SENSE = (
    "Does the word mean the same in both sentences?",
    "Is the word used in one and the same sense?",
    "Compare the two uses of the word. Are they alike?",
    "Decide whether the meaning of the word changes between the sentences.",
    "Would a dictionary list both uses of the word under one entry?",
    "Say whether the word has a single meaning here.",
    "Look at the word in each sentence. Same sense?",
    "Tell whether both sentences use the word alike.",
    "Is it the same meaning of the word twice?",
    "Judge the word's two meanings: are they equal?",
)
_PRONOUN = (
    "Does the pronoun between # stand for what is between *?",
    "Two places are marked in the text. Does the second mark's pronoun mean the first mark's noun?",
    "Decide whether the marked pronoun refers to the marked noun.",
    "Is # the same as * in this text?",
    "Who is meant by the word between #: is it what is between *?",
    "Tell whether the marked words name one and the same.",
    "Could the words between * replace the pronoun between #?",
    "Resolve the pronoun between #. Is it what * marks?",
    "Do both marked places speak of the same person or thing?",
    "Check whether the pronoun points to the noun that is marked.",
)
_BLANK = (
    "What belongs in the place of _?",
    "Fill the blank in the sentence.",
    "Which option makes sense of the sentence?",
    "Choose what _ stands for.",
    "Complete the sentence with the right option.",
    "Who or what is meant by _?",
    "Replace _ so that the sentence is reasonable.",
    "Pick the name that fits the gap.",
    "Of the options, which one is _?",
    "Read the sentence and decide who or what is left out.",
)
_WRITE_REVIEW = (
    "Write a review of this sentiment.",
    "Make up a review that has the given opinion.",
    "Invent a review with this tone.",
    "What might a review of this kind say?",
    "Compose a review that a reader would call so.",
    "Give an example of such a review.",
    "Put yourself in the place of a reviewer who feels so, and write.",
    "Produce a review that expresses this.",
    "Draft a short review with the sentiment that is named.",
    "Show what a review of this sentiment looks like.",
)
_WRITE_PARAPHRASE = (
    "Say the same in other words.",
    "Write another text with the same meaning.",
    "Rephrase the text.",
    "Put the text differently without a change of meaning.",
    "Find a new wording for this.",
    "Express the same thing another way.",
    "Rewrite the text so that it still says the same.",
    "Give a paraphrase.",
    "How else could one say this?",
    "Restate the text.",
)

_YES_NO = ("yes", "no")
_NO_YES = ("no", "yes")
_THREE = ("yes", "it is not possible to tell", "no")
# Of a set in two benchmarks, the later one's: GLUE's MNLI and SuperGLUE's RTE.
_SETS = {s.name: s for s in (*nli_sets.SETS, *glue.SETS, *super_glue.SETS, *mrqa.SETS, *mpt_sets.OTHERS)}
_FEELINGS = ("negative", "positive")


def _worded(text_set: TextSet, wordings: tuple[str, ...], text: str, words: tuple[str, ...] = (), **changes) -> TextSet:
    return dataclasses.replace(
        text_set,
        instructions=wordings[:-_HELD_OUT],
        held_out_instructions=wordings[-_HELD_OUT:],
        text=text + (_OPTIONS if words else ""),
        words=words,
        classes=text_set.classes or text_set.words,
        **changes,
    )


def choices(row: Mapping[str, Any], split: str) -> Iterator[Mapping[str, Any]]:
    """COPA's or Winogrande's two choices, spelled out, as the options."""
    del split
    options = [row[name] for name in (("choice1", "choice2") if "choice1" in row else ("option1", "option2"))]
    if options[0] != options[1]:
        yield {**row, "options": options, "target": options[row["label"]]}


def review(row: Mapping[str, Any], split: str) -> Iterator[Mapping[str, Any]]:
    """A review by its sentiment."""
    del split
    yield {"sentiment": _FEELINGS[row["label"]], "target": row["sentence" if "sentence" in row else "text"]}


def paraphrase(row: Mapping[str, Any], split: str) -> Iterator[Mapping[str, Any]]:
    """The second text by the first, where they are paraphrases."""
    del split
    one, other = ("sentence1", "sentence2") if "sentence1" in row else ("question1", "question2")
    if row["label"] == 1:
        yield {"text": row[one], "target": row[other]}


def _inverted(text_set: TextSet, wordings: tuple[str, ...], text: str, prepare, splits) -> TextSet:
    return dataclasses.replace(
        _worded(text_set, wordings, text),
        name=f"{text_set.name}_inverted",
        family=text_set.family or text_set.name,
        type=INVERTED,
        metrics=("rougeL",),
        prepare=prepare,
        splits=splits,
    )


def _sets() -> Iterator[TextSet]:
    nli = "Premise: {premise} Hypothesis: {hypothesis}"
    yield _worded(_SETS["mnli"], _ENTAILMENT, nli, _THREE)
    yield _worded(_SETS["snli"], _ENTAILMENT, nli, _THREE)
    for n in (1, 2, 3):
        yield _worded(_SETS[f"anli_r{n}"], _ENTAILMENT, "Premise: {context} Hypothesis: {hypothesis}", _THREE)
    yield _worded(_SETS["cb"], _ENTAILMENT, nli, ("yes", "no", "it is not possible to tell"))
    yield _worded(_SETS["rte"], _ENTAILMENT, nli, _YES_NO)
    yield _worded(_SETS["scitail"], _ENTAILMENT, nli, _YES_NO, splits=OFFICIAL)
    yield _worded(_SETS["qnli"], _QUESTION_ENTAILMENT, "Question: {question} Sentence: {sentence}", _YES_NO)
    yield _worded(_SETS["sst2"], _SENTIMENT, "Review: {sentence}", _FEELINGS)
    yelp = {"train": Part("train"), "test": Part("test")}
    yield _worded(_SETS["yelp_polarity"], _SENTIMENT, "Review: {text}", _FEELINGS, splits=yelp)
    pair = "Text 1: {sentence1} Text 2: {sentence2}"
    yield _worded(_SETS["mrpc"], _PARAPHRASE, pair, _NO_YES)
    yield _worded(_SETS["qqp"], _PARAPHRASE, "Text 1: {question1} Text 2: {question2}", _NO_YES)
    yield _worded(_SETS["paws"], _PARAPHRASE, pair, _NO_YES)
    yield _worded(_SETS["stsb"], _SIMILARITY, "Sentence 1: {sentence1} Sentence 2: {sentence2}")
    yield _worded(_SETS["cola"], _ACCEPTABILITY, "Sentence: {sentence}", _NO_YES)
    yield _worded(_SETS["boolq"], _BOOLEAN_QUESTION, "Passage: {passage} Question: {question}", _NO_YES)
    checked = "Paragraph: {paragraph} Question: {question} Answer: {answer}"
    yield _worded(_SETS["multirc"], _ANSWER_CHECK, checked, _NO_YES)
    for name in mrqa.DOMAINS:
        yield _worded(_SETS[name], _SPAN, "Context: {context} Question: {question}")
    yield _worded(_SETS["record"], _PLACEHOLDER, "Passage: {passage} Entities: {entities} Query: {query}")
    premise = "Premise: {premise} What is its {question}?" + _OPTIONS
    yield dataclasses.replace(_worded(_SETS["copa"], _CHOICE, premise), prepare=choices)
    yield _worded(_SETS["wic"], _WORD_SENSE, "Sentence 1: {sentence1} Sentence 2: {sentence2} Word: {word}", _NO_YES)
    yield _worded(_SETS["wsc"], _PRONOUN, "Text: {text}", _NO_YES)
    blank = dataclasses.replace(_SETS["winogrande"], splits={"train": Part("train_xl"), "test": Part("validation")})
    yield dataclasses.replace(_worded(blank, _BLANK, "Sentence: {sentence}" + _OPTIONS), prepare=choices)
    for name, splits in (("sst2", VALIDATED), ("yelp_polarity", TESTED)):
        yield _inverted(_SETS[name], _WRITE_REVIEW, "Sentiment: {sentiment}", review, splits)
    for name, splits in (("mrpc", VALIDATED), ("qqp", VALIDATED), ("paws", OFFICIAL)):
        yield _inverted(_SETS[name], _WRITE_PARAPHRASE, "Text: {text}", paraphrase, splits)


SETS = tuple(_sets())


def register(directory: str | os.PathLike | None = None, data_dir: str | os.PathLike | None = None) -> None:
    """Registers the tasks flan/NAME and the mixtures `flan`, and of each type `flan_TYPE` and `flan_without_TYPE`;
    arguments as of `glue.register`."""
    names = text_sets.register(NAME, SETS, Places.find(directory, data_dir))
    cards.register_mixture(NAME, names)
    found = [cards.card(name) for name in names]
    for kind in dict.fromkeys(card.type for card in found):
        kinds = {kind}.union(*(related for related in _RELATED if kind in related))
        families = {card.family for card in found if card.type in kinds}
        rest = [card.name for card in found if card.type not in kinds and card.family not in families]
        ending = kind.replace(" ", "_")
        cards.register_mixture(f"{NAME}_{ending}", [card.name for card in found if card.type == kind])
        cards.register_mixture(f"{NAME}_without_{ending}", rest)


register()
