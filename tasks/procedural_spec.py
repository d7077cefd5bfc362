"""What a procedural task is made of: a type's operations, their arguments, wordings, and deterministic draws."""

import dataclasses
import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence

SEED = 2022
# Raise when any generator, solver or wording below changes what a task's examples are.
CODE_VERSION = 6
# Around a noun phrase ("the past tense of the second word") and around a question ("who is from rome").
FRAMES = ("{}?", "what is {}?", "give {}.", "find {}.", "tell me {}.", "write {}.")
# For parts asked together; never trained on, made of words that are.
UNSEEN_FRAMES = ("find me {}.", "give me {}.", "write what is {}.")
QUESTION_FRAMES = ("{}?", "say {}.", "find {}.", "tell me {}.", "write {}.")
QUESTION_WORDS = ("who", "what", "which", "where", "how", "in which", "from where", "whichever")


class Exhausted(RuntimeError):
    """A task has no further inputs."""


class Draw:
    """Random choices that depend on the key alone: the same in every process, on every Python version.

    Built on `random.Random.random`, whose sequence Python guarantees, and on nothing above it."""

    def __init__(self, *key):
        digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
        self._random = random.Random(int.from_bytes(digest[:16], "big")).random

    def below(self, n: int) -> int:
        return int(self._random() * n)

    def pick(self, items: Sequence):
        return items[int(self._random() * len(items))]

    def some(self, items: Sequence, n: int) -> list:
        """`n` distinct items in random order."""
        items = list(items)
        for i in range(n):
            j = i + int(self._random() * (len(items) - i))
            items[i], items[j] = items[j], items[i]
        return items[:n]

    def shuffled(self, items: Sequence) -> list:
        return self.some(items, len(items))


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a type; with one tuple of arguments it is a task.

    Attributes:
      name: unique within the type.
      arguments: every argument tuple the operation may take.
      wordings: training wordings, `str.format` templates over the arguments `{0}`, `{1}`, `{2}`.
      unseen: wordings kept for evaluation.
      sample: draws an input text on which the operation with these arguments has an answer.
      solve: the answer for any input text of the type, or None where the operation says nothing about it.
      train, held_out: how many tasks of each pool it gives at most.
      options: answer options for these arguments; empty for a free answer.
      phrases, unseen_phrases: how an argument may be written in `wordings` and in `unseen`; itself where not listed.
      reserved: whether arguments are kept from training, so that held-out tasks are these alone; None: any may be
        held out that training has not drawn.
    """

    name: str
    arguments: tuple[tuple[str, ...], ...]
    wordings: tuple[str, ...]
    unseen: tuple[str, ...]
    sample: Callable[[Draw, tuple[str, ...]], str]
    solve: Callable[[str, tuple[str, ...]], str | None]
    train: int
    held_out: int
    options: Callable[[tuple[str, ...]], tuple[str, ...]] = lambda arguments: ()
    phrases: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    unseen_phrases: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    reserved: Callable[[tuple[str, ...]], bool] | None = None

    def divided(self, order: Sequence[tuple[str, ...]]) -> tuple[list, list]:
        """All arguments in this order, divided into those of training tasks and those that may be held out."""
        kept = self.reserved or (lambda arguments: False)
        train = [a for a in order if not kept(a)][: self.train]
        return train, [a for a in order if (kept(a) if self.reserved else a not in train)]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A task type: operations over one input format. `seen` says whether any of its tasks are trained on."""

    name: str
    domain: str
    operations: tuple[Operation, ...]
    seen: bool = True


@dataclasses.dataclass(frozen=True)
class Spec:
    """A task as data: which operation of which type, on which arguments, in which pool."""

    type: str
    operation: Operation = dataclasses.field(repr=False)
    arguments: tuple[str, ...] = ()
    pool: str = "train"

    @property
    def name(self) -> str:
        return "/".join(("procedural", self.type, self.operation.name, "-".join(self.arguments)))

    @property
    def family(self) -> str:
        return f"{self.type}/{self.operation.name}"


def singles(values: Sequence) -> tuple[tuple[str, ...], ...]:
    return tuple((str(v),) for v in values)


def pairs(first: Sequence, second: Sequence | None = None) -> tuple[tuple[str, str], ...]:
    """Every pair of a value of `first` with one of `second`; unordered pairs of distinct values without `second`."""
    if second is None:
        return tuple(itertools.combinations(map(str, first), 2))
    return tuple((str(a), str(b)) for a in first for b in second if a != b)


def asking(*phrases: str, unseen: str) -> dict[str, tuple[str, ...]]:
    """Wordings from phrases: each in every frame ("what is …?", "give …."); `unseen` is never trained on."""

    def framed(phrase):
        frames = QUESTION_FRAMES if phrase.startswith(tuple(w + " " for w in QUESTION_WORDS)) else FRAMES
        return tuple(frame.format(phrase) for frame in frames)

    return {"wordings": sum(map(framed, phrases), ()), "unseen": framed(unseen)}


def specs(kind: Kind, seed: int = SEED) -> list[Spec]:
    """Divides a type's (operation, arguments) between the pools. A held-out task's every argument value occurs in the
    same type's training tasks, in another combination; where that cannot be, the task is left out."""
    drawn = [Draw(seed, "split", kind.name, op.name).shuffled(op.arguments) for op in kind.operations]
    if not kind.seen:
        return [
            Spec(kind.name, op, args, "held_out_type")
            for op, order in zip(kind.operations, drawn)
            for args in order[: op.held_out]
        ]
    divided = [(op, *op.divided(order)) for op, order in zip(kind.operations, drawn)]
    train = [Spec(kind.name, op, a) for op, trained, _ in divided for a in trained]
    shown = {value for spec in train for value in spec.arguments}
    held_out = [
        Spec(kind.name, op, args, "held_out_task")
        for op, _, others in divided
        for args in [a for a in others if shown.issuperset(a)][: op.held_out]
    ]
    return train + held_out


def wordings(spec: Spec, seed: int = SEED) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The task's training wordings (5, or all where the operation has fewer) and its unseen wordings (2)."""
    draw = Draw(seed, "wording", spec.name)
    op = spec.operation

    def some(templates, phrases, n):
        ways = [phrases.get(a, (a,)) for a in spec.arguments]
        every = [w.format(*chosen) for w in templates for chosen in itertools.product(*ways)]
        return tuple(draw.some(every, min(n, len(every))))

    return some(op.wordings, op.phrases, 5), some(op.unseen, op.unseen_phrases, 2)


def examples(spec: Spec, seed: int = SEED) -> Iterator[dict[str, str]]:
    """Endless examples of a task, no input twice. Raises Exhausted when its inputs are used up."""
    draw, seen, repeats = Draw(seed, CODE_VERSION, spec.name), set(), 0
    while True:
        text = spec.operation.sample(draw, spec.arguments)
        if text in seen:
            repeats += 1
            if repeats > 10_000:
                raise Exhausted(f"Task '{spec.name}' has only {len(seen)} distinct inputs.")
            continue
        seen.add(text)
        yield {"input": text, "target": spec.operation.solve(text, spec.arguments)}
