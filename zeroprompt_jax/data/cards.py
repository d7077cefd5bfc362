"""Task cards: what a prompted task says about itself, and the registry of tasks and mixtures. Plain Python."""

import dataclasses
import functools
import hashlib
import itertools
import re
import string
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from zeroprompt_jax.data import few_shot
from zeroprompt_jax.data.task_modules import PACKAGED, packaged
from zeroprompt_jax.errors import UserError, unknown

POOLS = ("train", "held_out_task", "held_out_type")
SPLITS = ("train", "validation", "test")
# Fields of an example that are no text for a template: see `Source`; ids are what a SeqIO task has tokenised itself.
SPECIAL = ("references", "options", "instruction", "input_ids", "target_ids", "instruction_ids")


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a task's examples come from.

    Attributes:
      examples: `examples(split)` yields dicts with the fields the card's templates name. Three keys are special:
        `references`, a list of acceptable answers (default: the rendered target alone); `options`, a list of
        answer options for this example (default: the card's); and `instruction`, an instruction of this example's own,
        for a task whose only wording is empty.
      fingerprint: a string that changes whenever the examples would.
      splits: the splits that `examples` knows.
      origin: where the examples are read, for people; empty where that is not outside.
    """

    examples: Callable[[str], Iterable[Mapping[str, Any]]]
    fingerprint: str
    splits: tuple[str, ...] = ("train", "test")
    origin: str = ""


@dataclasses.dataclass(frozen=True)
class TaskCard:
    """What a prompted task says about itself.

    Attributes:
      name: unique; letters, digits and `_ - . / :`.
      type: the kind of skill, the unit of "unseen types" (`string_edit`, `entailment`).
      instructions: wordings used in training, at least one. The model reads wording + input.
      domain: what the text is about.
      family: tasks of one operation or one source dataset share a family; default is the task's own name.
      pool: `train`, `held_out_task` (its type is trained on, it is not) or `held_out_type`.
      input_template, target_template: `str.format` templates over an example's fields; `{options}` is the listed
        options.
      options: fixed answer options; empty means free text unless the example brings its own.
      metrics: names from `zeroprompt_jax.evaluation.metrics`.
      held_out_instructions: wordings that training never uses; evaluation prefers them.
    """

    name: str
    type: str
    instructions: tuple[str, ...]
    domain: str = "general"
    family: str = ""
    pool: str = "train"
    input_template: str = "{input}"
    target_template: str = "{target}"
    options: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("exact_match",)
    held_out_instructions: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.family:
            object.__setattr__(self, "family", self.name)
        for field in ("instructions", "options", "metrics", "held_out_instructions"):
            value = getattr(self, field)
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise UserError(f"Task card '{self.name}': {field} must be a tuple of strings, not {value!r}.")
            object.__setattr__(self, field, tuple(value))


def _fields(template: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]


def check(card: TaskCard) -> None:
    """Raises UserError naming the card and the field when the card cannot be used."""

    def bad(field: str, why: str):
        raise UserError(f"Task card '{card.name}': {field} {why}.")

    if not re.fullmatch(r"[\w.:/-]+", card.name or ""):
        bad("name", f"{card.name!r} must be non-empty letters, digits and _ - . / :")
    if not card.type:
        bad("type", "is empty")
    if card.pool not in POOLS:
        bad("pool", f"'{card.pool}' is not one of {', '.join(POOLS)}")
    if not card.instructions:
        bad("instructions", "is empty; give at least one wording")
    if not card.metrics:
        bad("metrics", "is empty; give at least one, for example exact_match")
    for field in ("instructions", "held_out_instructions", "options", "metrics"):
        values = getattr(card, field)
        for value in values:
            if not isinstance(value, str):
                bad(field, f"holds {value!r}, which is not text")
            if field != "instructions" and not value.strip():
                bad(field, "holds an empty string")
        if len(set(values)) != len(values):
            bad(field, "repeats a value")
    if overlap := set(card.instructions) & set(card.held_out_instructions):
        bad("held_out_instructions", f"repeats the training wording {sorted(overlap)[0]!r}")
    if len(card.options) == 1:
        bad("options", f"has the single option '{card.options[0]}'; give at least two, or none for free text")
    for field in ("input_template", "target_template"):
        try:
            names = _fields(getattr(card, field))
        except ValueError as e:
            bad(field, f"{getattr(card, field)!r} is not a format string ({e})")
        if not names:
            bad(field, f"{getattr(card, field)!r} names no field, so every example would read the same")
        if "" in names:
            bad(field, f"{getattr(card, field)!r} has an unnamed field; write {{input}}, not {{}}")


OPTIONS = "options"  # the field of the listed options
LEAST_INPUT = 8  # tokens that an instruction must leave for the input, if the input has them


@functools.lru_cache(maxsize=1024)
def parts(template: str) -> tuple[tuple[str, str], ...]:
    """A template in parts: ('', text) as it stands, and (field, its format) to be filled."""
    out = []
    for text, field, spec, conversion in string.Formatter().parse(template):
        if text:
            out.append(("", text))
        if field is not None:
            how = (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            out.append((field, f"{{{field}{how}}}"))
    return tuple(out)


def is_input(field: str) -> bool:
    """Whether a part of a template is input, which may be cut, and neither its own text nor the listed options."""
    return field not in ("", OPTIONS)


def cut_at_end(card: TaskCard) -> bool:
    """Whether a rendered input is cut at its end: it ends in its only field, and lists no options."""
    fields = [field for field, _ in parts(card.input_template)]
    return is_input(fields[-1]) and len([field for field in fields if field]) == 1


@dataclasses.dataclass(frozen=True)
class Rendered:
    """One example as text: what follows the instruction, the answer, all acceptable answers, the answer options, and the
    instruction of its own. cuts: (start, end) of the fields in `input`, in characters; only these may be cut."""

    input: str
    target: str
    references: tuple[str, ...]
    options: tuple[str, ...]
    instruction: str = ""
    cuts: tuple[tuple[int, int], ...] = dataclasses.field(default=(), compare=False)


def render(card: TaskCard, example: Mapping[str, Any], option_seed: int | None = None) -> Rendered:
    """Fills the card's templates from one example. The instruction is not part of the result: it is kept apart so that
    one cached example serves every wording, and a hypernetwork can read it alone.

    option_seed: lists the options in an order drawn by this seed, the task and the input: neither the order in which the
    source has them nor the answer has a part in it. None keeps the source's order."""
    options = tuple(str(o) for o in example.get(OPTIONS, card.options))
    if OPTIONS in example and len(options) < 2:
        raise UserError(f"Task '{card.name}': an example lists {len(options)} answer options; it needs at least two.")
    pieces, fields = parts(card.input_template), dict(example)
    try:
        texts = [text if field == OPTIONS or not field else text.format(**fields) for field, text in pieces]
        if option_seed is not None:
            told = "\n".join(text for (field, _), text in zip(pieces, texts) if is_input(field))
            options = _shuffled(options, f"{option_seed}/{card.name}/{told}")
        fields[OPTIONS] = "; ".join(options)
        texts = [text.format(**fields) if field == OPTIONS else text for (field, _), text in zip(pieces, texts)]
        target = card.target_template.format(**fields)
    except KeyError as e:
        have = ", ".join(sorted(map(str, example)))
        raise UserError(f"Task '{card.name}': a template names the field {e}, but its examples have {have}.") from None
    references = tuple(str(r) for r in example.get("references", ())) or (target,)
    if options and target not in options:
        raise UserError(f"Task '{card.name}': the target '{target}' is not among its options {', '.join(options)}.")
    ends = list(itertools.accumulate(map(len, texts)))
    cuts = tuple((end - len(text), end) for (field, _), text, end in zip(pieces, texts, ends) if is_input(field))
    return Rendered("".join(texts), target, references, options, str(example.get("instruction", "")), cuts)


def _shuffled(options: Sequence[str], key: str) -> tuple[str, ...]:
    return tuple(sorted(options, key=lambda o: hashlib.blake2b(f"{key}/{o}".encode(), digest_size=8).digest()))


_TASKS: dict[str, tuple[TaskCard, Source]] = {}
_MIXTURES: dict[str, dict[str, float]] = {}


def register(card: TaskCard, source: Source, *, replace: bool = False) -> TaskCard:
    """Adds a task. Registering the same card twice is harmless; another card under a taken name is an error, unless
    `replace` says that it takes the name over."""
    check(card)
    known = _TASKS.get(card.name)
    if known and not replace and (known[0] != card or known[1].fingerprint != source.fingerprint):
        raise UserError(f"Task card '{card.name}': the name is already registered with another card or source.")
    if bad := [s for s in source.splits if s not in SPLITS]:
        raise UserError(f"Task card '{card.name}': split '{bad[0]}' is not one of {', '.join(SPLITS)}.")
    _TASKS[card.name] = (card, source)
    return card


def register_mixture(name: str, tasks: Sequence[str] | Mapping[str, float]) -> None:
    """Names a set of tasks; a mapping gives explicit relative rates, a sequence equal ones."""
    rates = {t: float(r) for t, r in tasks.items()} if isinstance(tasks, Mapping) else {t: 1.0 for t in tasks}
    if not rates:
        raise UserError(f"Mixture '{name}': it has no tasks.")
    for task, rate in rates.items():
        if task not in _TASKS:
            raise UserError(f"Mixture '{name}': {unknown('task', task, _TASKS)}")
        if not rate > 0:
            raise UserError(f"Mixture '{name}': the rate of '{task}' is {rate:g}; it must be above zero.")
    _MIXTURES[name] = rates


def card(name: str) -> TaskCard:
    """The card registered under `name`."""
    return _lookup(name)[0]


def source(name: str) -> Source:
    """The source registered under `name`."""
    return _lookup(name)[1]


def _lookup(name: str) -> tuple[TaskCard, Source]:
    if name in _TASKS:
        return _TASKS[name]
    if (few := few_shot.parse(name)) and few.base in _TASKS and few.single:
        return few_shot.draw(*_TASKS[few.base], few.shots[0], few.seeds[0])
    raise unregistered("task", few.base if few else name, _TASKS)


def mixture(name: str) -> dict[str, float]:
    """Relative rates of the tasks of a mixture; a task's own name is the mixture of that task alone. `NAME@K.S` is a
    mixture of few-shot tasks, see `few_shot`."""
    if name in _MIXTURES:
        return dict(_MIXTURES[name])
    if name in _TASKS:
        return {name: 1.0}
    if few := few_shot.parse(name):
        base = mixture(few.base)
        return dict(zip(few.names(base), itertools.cycle(base.values())))
    raise unregistered("task or mixture", name, [*_MIXTURES, *_TASKS])


def unregistered(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not registered, which tells a packaged module of its beginning, such as `glue`."""
    module = f"{PACKAGED}.{name.partition('/')[0]}"
    if module in sys.modules or module not in packaged():
        return unknown(kind, name, known)
    return UserError(f"Unknown {kind} '{name}'. {module} registers such: name it in Data.modules, or by --module={module}.")


def is_task(name: str) -> bool:
    """Whether there is a task of this name."""
    few = few_shot.parse(name)
    return name in _TASKS or bool(few and few.base in _TASKS and few.single)


def is_mixture(name: str) -> bool:
    """Whether there is a mixture, or a task, of this name."""
    few = few_shot.parse(name)
    return name in _MIXTURES or name in _TASKS or bool(few and is_mixture(few.base))


def task_names() -> tuple[str, ...]:
    return tuple(_TASKS)


def mixture_names() -> tuple[str, ...]:
    return tuple(_MIXTURES)
