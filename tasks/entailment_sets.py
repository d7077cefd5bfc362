"""How classification sets of the registries glue, super_glue and lm_bff are put as entailment.

Two uses: `suite`, for an encoder and `zeroprompt entail`; and the tasks NAME/entailment with the mixture `entailment`, the
same rows as text to text, for a T5. `yes_no` finds more such tasks among registered ones, those of Natural Instructions for
instance.

Sources: Kim et al. 2023 (arXiv 2301.13345), section 4 and published code, for the descriptions of SST-2, MR, CR, MPQA, Subj
and CoLA; Wang et al. 2021 (arXiv 2104.14690) for a description of each of several classes. The other descriptions are ours.
"""

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

from zeroprompt_jax.data import cards
from zeroprompt_jax.data.encoder_vocabulary import load_encoder_vocabulary
from zeroprompt_jax.data.entailment_suite import Suite
from zeroprompt_jax.data.reformulation import Reformulation, as_text
from zeroprompt_jax.errors import unknown
from zeroprompt_jax.tasks import glue, lm_bff, natural_instructions, nli_sets, super_glue

NAME = "entailment"
_GOOD = ("terrible", "great")


def _pair(*labels: str, first: str, second: str, positive: int) -> Reformulation:
    return Reformulation(labels, first=f"{{{first}}}", second=f"{{{second}}}", positive=positive)


# The labels stand in the order of the cards' options.
PUT = {
    "glue/sst2": Reformulation(_GOOD),
    "glue/cola": Reformulation(("incorrect", "correct")),
    "glue/mrpc": _pair("different", "same", first="sentence1", second="sentence2", positive=1),
    "glue/qqp": _pair("different", "same", first="question1", second="question2", positive=1),
    "glue/qnli": _pair("answer", "none", first="question", second="sentence", positive=0),
    "glue/rte": _pair("true", "unclear", first="sentence1", second="sentence2", positive=0),
    "super_glue/cb": Reformulation(
        ("true", "false", "unclear"), first="{premise}", second="{hypothesis} , that is {label} ."
    ),
    "lm_bff/mr": Reformulation(_GOOD),
    "lm_bff/cr": Reformulation(_GOOD),
    "lm_bff/mpqa": Reformulation(("negative", "positive")),
    "lm_bff/subj": Reformulation(("subjective", "objective"), second="this is {label} ."),
    "lm_bff/sst-5": Reformulation(("terrible", "bad", "okay", "good", "great")),
    "lm_bff/trec": Reformulation(
        ("description", "entity", "abbreviation", "human", "number", "location"),
        first="{text}",
        second="it asks for a {label} .",
    ),
}


def register(directory: str | os.PathLike | None = None, data_dir: str | os.PathLike | None = None) -> None:
    """Registers NAME/entailment for every task of PUT, and the mixture `entailment`, over the tasks as they are registered
    now; with a place, arguments as of `glue.register`, the tasks of its registries are registered from there before."""
    if directory is not None or data_dir is not None:
        for registry in (glue, super_glue, nli_sets, lm_bff):
            registry.register(directory, data_dir)
    put = [as_text(cards.card(name), cards.source(name), task) for name, task in PUT.items()]
    cards.register_mixture(NAME, [cards.register(card, source, replace=True).name for card, source in put])


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
    tasks: Sequence[str] = ("glue/sst2", "glue/rte", "super_glue/cb"),
    inference: Sequence[str] = ("nli/mnli",),
    length: int = 128,
    pairs: int | None = None,
    directory: str | os.PathLike | None = None,
    data_dir: str | os.PathLike | None = None,
    natural_instructions_dir: str | os.PathLike | None = None,
) -> Suite:
    """Tasks as the entailment study takes them.

    Args:
      vocabulary: of the encoder, as of `load_encoder_vocabulary`.
      tasks: names in PUT.
      inference: names of `nli_sets`, whose training pairs the encoder is trained on before, in this order.
      length: tokens of a row.
      pairs: so many of each of them at most.
      directory, data_dir: where the rows are, as of `glue.register`.
      natural_instructions_dir: of the public repository; its training tasks that are answered by yes or no are added, with
        at most 400 instances to draw from and 50 to test on.

    Raises:
      UserError: a name that is not in PUT or none of `nli_sets`; and as reading does.
    """
    register(directory, data_dir)
    for name in tasks:
        if name not in PUT:
            raise unknown("task put as entailment", name, PUT)
    put = {name: PUT[name] for name in tasks}
    if natural_instructions_dir is not None:
        natural_instructions.register_directory(
            natural_instructions_dir, max_instances=400, held_back=50, list_options=True
        )
        put |= yes_no(cards.mixture(natural_instructions.TRAIN_MIXTURE))
    told = [pair for name in inference for pair in itertools.islice(_pairs(name), pairs)]
    return Suite(load_encoder_vocabulary(vocabulary), put, length, told)


def _pairs(name: str) -> Iterator[Mapping[str, str]]:
    """A task's training pairs: `premise`, `hypothesis` and `label`, one of nli_sets' words."""
    if name not in (known := cards.mixture(nli_sets.NAME)):
        raise unknown("task of inference", name, known)
    for row in cards.source(name).examples("train"):
        premise = row["premise"] if "premise" in row else row["context"]  # ANLI's name of it
        yield {"premise": premise, "hypothesis": row["hypothesis"], "label": row["target"]}


register()
