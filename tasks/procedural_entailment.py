"""A small world in which only inference training can tell what words mean, to study entailment on: all from a seed.

The world has six themes of twelve words each. Plain text is made of words of any theme side by side, so that a language model
of it learns how words stand in a sentence and nothing of themes. Pairs of inference tell them: a text mostly of one theme's
words entails the theme's name, and texts of that theme; it contradicts the opposite theme's, and is neutral to the others.

The tasks ask for the theme of a text, by its name, or whether two texts share one. Their training texts and their test texts
have no word of a theme in common. So few examples cannot be enough: who has not learnt themes before is right by chance in
the test, whatever it reaches in training, and who has can tell them at once.
"""

import dataclasses
import functools
import random
from collections.abc import Iterator, Sequence

import numpy as np

from zeroprompt_jax.data import cards
from zeroprompt_jax.data.encoder_vocabulary import EncoderVocabulary, words_vocabulary
from zeroprompt_jax.data.entailment import Reformulation
from zeroprompt_jax.data.entailment_suite import Suite
from zeroprompt_jax.errors import UserError

NAME = "procedural_entailment"
NLI = ("entailment", "neutral", "contradiction")
NAMES = ("warm", "cold", "calm", "loud", "rich", "poor")  # opposites side by side
WORDS = 12
_HYPOTHESES = ("it was {} .", "this is {} .", "they were {} .")
_FILLERS = 4  # a word of number j is preceded by the filler j modulo 4: that is what plain text tells
_LENGTH = 32  # of a row: two texts of up to 12 tokens, 5 extra tokens, 3 marks
_PAIR = {"first": "{premise}", "second": "{hypothesis}"}


@dataclasses.dataclass(frozen=True)
class Task:
    """A task: its classes, and how it is put. themes: of each class; none where two texts are compared."""

    classes: tuple[str, ...]
    task: Reformulation
    themes: tuple[int, ...] = ()


def _of(*themes: int) -> Task:
    names = tuple(NAMES[theme] for theme in themes)
    return Task(names, Reformulation(names), themes)


TASKS = {
    "warm_or_cold": _of(1, 0),
    "calm_or_poor": _of(5, 2),
    "loud_or_rich": _of(4, 3),
    "one_of_four": _of(0, 3, 5, 4),
    "same_theme": Task(("no", "yes"), Reformulation(("no", "yes"), **_PAIR)),
}


@functools.cache
def vocabulary() -> EncoderVocabulary:
    """Every word of the world, one token each."""
    words = [_word(theme, j) for theme in range(len(NAMES)) for j in range(WORDS)]
    fillers = [_filler(j) for j in range(_FILLERS)]
    return words_vocabulary([*words, *fillers, *NAMES, *" ".join(_HYPOTHESES).replace("{}", "").split()])


def _word(theme: int, j: int) -> str:
    return f"w{theme}x{j}"


def _filler(j: int) -> str:
    return f"f{j % _FILLERS}"


def _text(chance: random.Random, theme: int | None, numbers: Sequence[int]) -> str:
    """Three to five words of a theme, of numbers among these, and sometimes one of another theme; None is any theme."""
    themes = [theme] * chance.randint(3, 5) + [None] * (chance.random() < 0.5)
    chance.shuffle(themes)
    words = []
    for t in themes:
        j = chance.choice(numbers)
        words += [_filler(j), _word(chance.randrange(len(NAMES)) if t is None else t, j)]
    return " ".join(words)


def chunks(seed: int, count: int, length: int) -> np.ndarray:
    """Plain text to train a masked language model on: [count, length] int32 tokens."""
    chance, ids = random.Random(f"{NAME}/text/{seed}"), []
    while len(ids) < count * length:
        ids += vocabulary().encode(_text(chance, None, range(WORDS)) + " .")
    return np.array(ids[: count * length], np.int32).reshape(count, length)


def inference(seed: int, count: int) -> list[dict[str, str]]:
    """Pairs to train a classifier of inference on: `premise`, `hypothesis`, and one of `NLI` as `label`, all as often."""
    chance, made = random.Random(f"{NAME}/inference/{seed}"), []
    for i in range(count):
        theme, label = chance.randrange(len(NAMES)), NLI[i % 3]
        others = [t for t in range(len(NAMES)) if t not in (theme, theme ^ 1)]
        told = {"entailment": theme, "contradiction": theme ^ 1, "neutral": chance.choice(others)}[label]
        named = chance.random() < 2 / 3
        hypothesis = chance.choice(_HYPOTHESES).format(NAMES[told]) if named else _text(chance, told, range(WORDS))
        made.append({"premise": _text(chance, theme, range(WORDS)), "hypothesis": hypothesis, "label": label})
    return made


def examples(name: str, seed: int, per_class: int, split: str) -> Iterator[dict[str, str]]:
    """Examples of a task, of each class as many, in turn. Words of even numbers train and those of odd numbers test."""
    told, chance = TASKS[name], random.Random(f"{NAME}/{name}/{split}/{seed}")
    numbers = range(0 if split == "train" else 1, WORDS, 2)
    for i in range(per_class * len(told.classes)):
        klass = i % len(told.classes)
        answer = {"target": told.classes[klass]}
        if told.themes:
            yield {"sentence": _text(chance, told.themes[klass], numbers), **answer}
        else:
            theme = chance.randrange(len(NAMES))
            other = theme if klass else chance.choice([t for t in range(len(NAMES)) if t != theme])
            yield {"premise": _text(chance, theme, numbers), "hypothesis": _text(chance, other, numbers), **answer}


def register(seed: int = 0, per_class: int = 100) -> tuple[str, ...]:
    """Registers procedural_entailment/NAME for every task, and the mixture `procedural_entailment`.

    Args:
      seed: of the examples.
      per_class: examples of each class, in training and in the test.

    Returns:
      the tasks' names.
    """
    if per_class < 1:
        raise UserError(f"Procedural entailment: per_class {per_class} must be at least 1.")
    names = []
    for name, told in TASKS.items():
        card = cards.TaskCard(
            name=f"{NAME}/{name}",
            type="theme" if told.themes else "textual entailment",
            instructions=("Which theme does the text have?" if told.themes else "Do the texts share a theme?",),
            input_template=" ".join(f"{field}: {{{field}}}" for field in told.task.fields),
            options=told.classes,
        )
        source = cards.Source(functools.partial(examples, name, seed, per_class), f"{NAME} 1 {name} {seed} {per_class}")
        names.append(cards.register(card, source, replace=True).name)
    cards.register_mixture(NAME, names)
    return tuple(names)


def suite(seed: int = 0, per_class: int = 100, pairs: int = 6000, texts: int = 2000) -> Suite:
    """The world as the entailment study takes it.

    Args:
      seed, per_class: as of `register`.
      pairs: of inference, to train on. texts: chunks of plain text, of 14 tokens.
    """
    register(seed, per_class)
    put = {f"{NAME}/{name}": told.task for name, told in TASKS.items()}
    return Suite(vocabulary(), put, _LENGTH, inference(seed, pairs), chunks(seed, texts, 14))


register()
