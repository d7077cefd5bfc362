"""Between task cards and SeqIO's registries, both ways. seqio and tensorflow are imported inside the functions."""

import functools
import hashlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from zeroprompt_jax.data import cards
from zeroprompt_jax.data.cards import Source, TaskCard
from zeroprompt_jax.data.vocabulary import EOS_ID, Vocabulary
from zeroprompt_jax.errors import UserError, unknown

TYPE = "seqio"  # of tasks that come without a card
FEATURES = ("task", "instructions")  # what examples can tell SeqIO beside inputs and targets
Compute = Callable[..., Mapping[str, float]]


def to_seqio(task_name: str, vocabulary: Vocabulary, features: Sequence[str] = (), metrics: Compute | None = None):
    """Registers a card as a SeqIO task and returns it. The same call again returns the same task.

    Example i is read with training wording i modulo their number; `inputs` and `targets` are tokenised and end in EOS,
    as are `inputs_pretokenized` and `targets_pretokenized` their texts. SeqIO's names have no `/` or `-`; these become
    `_`.

    features: of `FEATURES`, for methods that read them: `task`, [1], the card's name; `instructions`, the instruction,
      tokenised, with which `inputs` then do not begin.
    metrics: `evaluation.metrics.compute`, by which SeqIO's evaluator measures generated text with the card's metrics;
      without it there is nothing for which it would generate.

    Raises:
      UserError: unknown task or feature, or seqio already has another task of that name.
    """
    import seqio
    import tensorflow as tf

    for feature in features:
        if feature not in FEATURES:
            raise unknown("feature of a SeqIO task", feature, FEATURES)
    card, source = cards.card(task_name), cards.source(task_name)
    name, told = _seqio_name(task_name), (card, source.fingerprint, vocabulary.fingerprint, frozenset(features), metrics)
    if name in seqio.TaskRegistry.names():
        known = seqio.TaskRegistry.get(name)
        if getattr(known.source, "zeroprompt", None) != told:
            raise UserError(f"Task '{task_name}': seqio already has another task named '{name}'.")
        return known
    apart = "instructions" in features

    def texts(split: str) -> Iterator[dict[str, Any]]:
        for i, example in enumerate(source.examples(split)):
            rendered = cards.render(card, example)
            instruction = [p for p in (card.instructions[i % len(card.instructions)], rendered.instruction) if p]
            inputs = " ".join(p for p in (*instruction * (not apart), rendered.input) if p)
            made = {"inputs": inputs, "targets": rendered.target, "task": [card.name], "instructions": " ".join(instruction)}
            yield {key: x for key, x in made.items() if key in kinds} | {
                "references": rendered.references,
                "options": rendered.options,
            }

    def dataset(split: str, shuffle_files: bool = False, seed: int | None = None):
        del shuffle_files, seed  # one generator, nothing to shuffle
        signature = {key: tf.TensorSpec((1,) if key == "task" else (), tf.string) for key in kinds}
        signature |= {key: tf.TensorSpec((None,), tf.string) for key in ("references", "options")}
        return tf.data.Dataset.from_generator(functools.partial(texts, split), output_signature=signature)

    tokens = seqio.Feature(vocabulary=vocabulary.to_seqio(), add_eos=True)
    named = seqio.Feature(vocabulary=seqio.PassThroughVocabulary(1), add_eos=False, dtype=tf.string)
    kinds = {key: named if key == "task" else tokens for key in ("inputs", "targets", *features)}

    def append_eos(dataset, sequence_length=None):
        # As in our batches: an input that is cut keeps its EOS, a target that is cut has none.
        trimmed = {key: kind for key, kind in kinds.items() if key != "targets"}
        dataset = seqio.preprocessors.append_eos_after_trim(dataset, trimmed, sequence_length)
        return seqio.preprocessors.append_eos(dataset, {"targets": tokens})

    def answers(text: str, example, is_target: bool = False):
        decoded = lambda key: [answer.decode() for answer in example[key]]
        return (decoded("references"), decoded("options")) if is_target else text

    def measured(targets, predictions):
        references, options = zip(*targets)
        return metrics(card.metrics, predictions, references, options if all(options) else None)

    made = seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(dataset, splits=source.splits),
        preprocessors=[seqio.preprocessors.tokenize, append_eos],
        output_features=kinds,
        postprocess_fn=answers,
        metric_fns=[measured] if metrics else [],
    )
    made.source.zeroprompt = told
    return made


def mixture_to_seqio(name: str, vocabulary: Vocabulary, features: Sequence[str] = (), metrics: Compute | None = None):
    """Registers a mixture of cards, and its tasks as `to_seqio` does, as a SeqIO mixture, and returns it, for trainers that
    read SeqIO's. The same call again returns the same mixture. Raises UserError as `to_seqio`, and for an unknown mixture."""
    import seqio

    rates = [(to_seqio(task, vocabulary, features, metrics).name, rate) for task, rate in cards.mixture(name).items()]
    if (made := _seqio_name(name)) not in seqio.MixtureRegistry.names():
        return seqio.MixtureRegistry.add(made, rates)
    known = seqio.MixtureRegistry.get(made)
    if {task.name: known.get_rate(task) for task in known.tasks} != dict(rates):
        raise UserError(f"Mixture '{name}': seqio already has another mixture named '{made}'.")
    return known


def card_names(mixture: str) -> tuple[str, ...]:
    """The cards of a SeqIO mixture's tasks, or of one task, that `to_seqio` made, in SeqIO's order, by name.

    Raises UserError: no such mixture or task, or one that `to_seqio` did not make, whose examples tell no card."""
    import seqio

    known = [*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()]
    if mixture not in known:
        raise unknown("SeqIO task or mixture", mixture, known)
    tasks = seqio.get_subtasks(seqio.get_mixture_or_task(mixture))
    for task in tasks:
        if not hasattr(task.source, "zeroprompt"):
            raise UserError(f"SeqIO task '{task.name}' is no task card's; register it by seqio_bridge.to_seqio.")
    return tuple(task.source.zeroprompt[0].name for task in tasks)


def encoder(mixture: str) -> Callable[[str], list[int]]:
    """Text to token ids, without EOS, by the vocabulary of a registered SeqIO mixture's, or task's, inputs."""
    import seqio

    return seqio.get_mixture_or_task(mixture).output_features["inputs"].vocabulary.encode


def _seqio_name(name: str) -> str:
    return re.sub(r"[^\w.:]", "_", name)


def card_from_seqio(name: str, vocabulary: Vocabulary) -> tuple[TaskCard, Source]:
    """A card and a source that give an existing SeqIO task's examples.

    The card has one empty instruction, because a SeqIO task's inputs already say what is asked. Where the task's
    vocabulary is ours its own token ids are taken (sentinels of span corruption included), else its
    `inputs_pretokenized` and `targets_pretokenized` are tokenised anew. The fingerprint covers the code of the task's
    source and preprocessors and the sizes and times of its local files, not what that code reads from elsewhere.

    Raises:
      UserError: no such task, or its tokens are another vocabulary's and it does not keep its text.
    """
    import seqio

    if name not in seqio.TaskRegistry.names():
        raise unknown("task", name, [*cards.task_names(), *seqio.TaskRegistry.names()])
    task = seqio.TaskRegistry.get(name)
    ours = vocabulary.to_seqio()
    same = {
        key: task.output_features[key].vocabulary == ours
        for key in ("inputs", "targets")
        if key in task.output_features
    }
    if "targets" not in same:
        raise UserError(
            f"SeqIO task '{name}' has no feature 'targets'; its features are {', '.join(task.output_features)}."
        )
    card = TaskCard(name=name, type=TYPE, instructions=("",))
    splits = tuple(s for s in cards.SPLITS if s in task.splits)
    source = Source(functools.partial(_examples, task, same, vocabulary.spec), _fingerprint(task, same), splits)
    return card, source


def find_mixture(name: str) -> dict[str, float]:
    """Relative rates of the tasks of a mixture, or of one task, registered with `cards` or else with seqio.

    A name can be in seqio's registries only where somebody has imported seqio, so this never imports it in vain.

    Raises:
      UserError: no such mixture or task.
    """
    if cards.is_mixture(name) or "seqio" not in sys.modules:
        return cards.mixture(name)
    import seqio

    if name in seqio.MixtureRegistry.names():
        return mixture_from_seqio(name)
    if name in seqio.TaskRegistry.names():
        return {name: 1.0}
    theirs = [*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()]
    raise cards.unregistered("task or mixture", name, [*cards.mixture_names(), *cards.task_names(), *theirs])


def type_of(name: str) -> str:
    """The type of a task; of one that only seqio knows, the type that its card gets."""
    return cards.card(name).type if cards.is_task(name) else TYPE


def facts(name: str) -> dict[str, str]:
    """What a task shares with others: `type`, `domain`, `family` and `labels`, its options as one text, sorted. Of a task
    that only seqio knows, what its card gets."""
    card = cards.card(name) if cards.is_task(name) else TaskCard(name, TYPE, ("",))
    return {
        "type": card.type,
        "domain": card.domain,
        "family": card.family,
        "labels": "\n".join(sorted(card.options)),
    }


def mixture_from_seqio(name: str) -> dict[str, float]:
    """Task names and rates of a SeqIO mixture, sub-mixtures and rate functions resolved as SeqIO does.

    A task whose rate is zero, which SeqIO never draws, is left out."""
    import seqio

    if name not in seqio.MixtureRegistry.names():
        raise unknown("mixture", name, [*cards.mixture_names(), *seqio.MixtureRegistry.names()])
    mixture = seqio.MixtureRegistry.get(name)
    rates = {task.name: float(mixture.get_rate(task)) for task in mixture.tasks}
    return {task: rate for task, rate in rates.items() if rate}


def _examples(task, same: dict[str, bool], spec: str, split: str) -> Iterator[dict[str, Any]]:
    dataset = task.get_dataset(sequence_length=None, split=split, shuffle=False, trim_output_features=False)
    for example in dataset.as_numpy_iterator():
        made = {"input": "", "input_ids": np.zeros(0, np.int32)}
        for key, text, ids in (("inputs", "input", "input_ids"), ("targets", "target", "target_ids")):
            if key not in same:
                continue
            kept = example.get(f"{key}_pretokenized")
            tokens = np.asarray(example[key], np.int32)
            tokens = tokens[:-1] if len(tokens) and tokens[-1] == EOS_ID else tokens
            if kept is None and not same[key]:
                raise UserError(
                    f"SeqIO task '{task.name}': its {key} are tokens of another vocabulary than '{spec}', without "
                    f"their text."
                )
            if kept is None:
                made[text] = task.output_features[key].vocabulary.decode(tokens.tolist())
            else:
                made[text] = kept.decode("utf-8")
            made[ids] = tokens if same[key] else None
        yield made


def _fingerprint(task, same: dict[str, bool]) -> str:
    told = [task.name, repr(same), type(task.source).__name__, *map(_code, task.preprocessors)]
    for attribute, value in sorted(vars(task.source).items()):
        if callable(value):
            told.append(f"{attribute} {_code(value)}")
        elif isinstance(value, (str, int, float, tuple, list, dict)):
            told.append(f"{attribute} {value!r}")
            told += [f"{path} {s.st_size} {s.st_mtime_ns}" for path in _files(value) for s in [os.stat(path)]]
    if (tfds := getattr(task.source, "tfds_dataset", None)) is not None:
        told.append(f"{tfds.name} {tfds.data_dir}")
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:32]


def _code(function) -> str:
    """What identifies a function: its source, and the arguments a partial binds."""
    if isinstance(function, functools.partial):
        return f"{_code(function.func)} {function.args!r} {sorted(function.keywords.items())!r}"
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        return (
            f"{code.co_code.hex()} {code.co_consts!r}"
            if code
            else f"{type(function).__module__}.{type(function).__qualname__}"
        )


def _files(value) -> list[str]:
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
    return [v for v in values if isinstance(v, str) and os.path.isfile(v)]
