"""What a training mixture has seen of the data sets that another mixture is tested on.

Tasks of one data set share a family, whatever registry they are in and however they are worded; that alone is a leak
for a claim that a task was unseen, also where the test rows themselves were held back. Some data sets were made from
others. A family that is a free text, as Natural Instructions' sources are, is of a data set where its words name it; a
name that is an English word must come first.
"""

import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

from zeroprompt_jax.data import cards
from zeroprompt_jax.tasks import p3_names

# Families of which one was made from the other, or from the same texts, and how.
MADE_FROM = (
    ("sst2", "rotten_tomatoes", "SST labels the reviews of Rotten Tomatoes"),
    ("qnli", "squad", "QNLI pairs SQuAD's questions and sentences"),
    ("adversarial_qa", "squad", "AdversarialQA asks about SQuAD's passages"),
    ("qnli", "adversarial_qa", "AdversarialQA asks about SQuAD's passages, which QNLI's sentences are of"),
    ("news_qa", "record", "both have CNN's articles as passages"),
    ("record", "cnn_dailymail", "ReCoRD's passages are CNN's and the Daily Mail's articles"),
    ("news_qa", "cnn_dailymail", "NewsQA's passages are CNN's articles"),
    ("stsb", "mrpc", "part of STS-B are MRPC's pairs"),
    ("anli", "hotpot_qa", "ANLI's first rounds take HotpotQA's passages"),
    ("scitail", "sciq", "part of SciTail's hypotheses are SciQ's questions and answers"),
    ("boolq", "natural_questions", "both take their questions from the same searches"),
)
_ALSO = {
    "mnli": ("multinli",),
    "snli": ("esnli",),
    "natural_questions": ("naturalquestion",),
    "qqp": ("quoraquestionpairs",),
}
# Names that are English words too: they count as the first word of a family alone.
_WORDS = ("cola", "dream", "quail", "quartz", "race", "record", "ropes", "squad")
_LONGEST = 3  # words that together are a data set's name


class Leak(NamedTuple):
    """The tasks of a data set that are tested on, the training tasks of the one that tells of it, and why it does."""

    tested: tuple[str, ...]
    trained: tuple[str, ...]
    why: str


def find(train: Iterable[str], test: Iterable[str]) -> list[Leak]:
    """The leaks from the tasks of one mixture into those of another."""
    trained, tested = _by_family(train), _by_family(test)
    leaks = []
    for mine, mine_tasks in tested.items():
        names = _named(mine)
        for other, tasks in trained.items():
            theirs = _named(other)
            if why := "the same data set" if other == mine or names & theirs else _made(names, theirs):
                leaks.append(Leak(tuple(mine_tasks), tuple(tasks), why))
    return leaks


def _by_family(tasks: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for task in tasks:
        found.setdefault(cards.card(task).family, []).append(task)
    return found


def _made(one: set[str], other: set[str]) -> str:
    """Why data sets of these names are not independent, or an empty text."""
    for a, b, why in MADE_FROM:
        a, b = _plain(a), _plain(b)
        if (a in one and b in other) or (b in one and a in other):
            return why
    return ""


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _known() -> dict[str, str]:
    """Each written form of the name of a public data set to its plain name."""
    families = {s.family for s in p3_names.SETS} | {name for pair in MADE_FROM for name in pair[:2]}
    families |= {"cola", "mnli", "snli", "fever_nli", "trivia_qa", "search_qa", "trec", "cr", "mpqa", "subj"}
    known = {_plain(family): _plain(family) for family in families}
    return known | {form: _plain(name) for name, forms in _ALSO.items() for form in forms}


_KNOWN = _known()


@functools.lru_cache(maxsize=4096)
def _named(family: str) -> set[str]:
    """The public data sets that a family's text names."""
    found = set()
    for text in family.lower().split("+"):  # as families of several sources are written
        words = re.findall(r"[a-z0-9]+", text)
        grams = [(i, "".join(words[i : i + n])) for n in range(1, _LONGEST + 1) for i in range(len(words) - n + 1)]
        found |= {_KNOWN[gram] for i, gram in grams if gram in _KNOWN and not (i and gram in _WORDS)}
    return found
