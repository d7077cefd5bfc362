"""Prompt search on the tasks of a mixture with one backbone: a genetic search for each, recorded task by task, reported
as one table and picture."""

import dataclasses
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zeroprompt_jax import experiment as experiments
from zeroprompt_jax.data import cards, few_shot, seqio_bridge, wordings
from zeroprompt_jax.data.batches import Features
from zeroprompt_jax.data.cards import Source, TaskCard
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.errors import UserError, unknown
from zeroprompt_jax.evaluation.predict import Predictor
from zeroprompt_jax.experiment import Experiment
from zeroprompt_jax.models import flops
from zeroprompt_jax.paths import place_of
from zeroprompt_jax.search import genetic, prompt_report, records
from zeroprompt_jax.search.fitness import accuracy
from zeroprompt_jax.search.genetic import Genetic, Problem
from zeroprompt_jax.search.writer import Writer

STARTS = ("held_out", "train", "all")


@dataclasses.dataclass(frozen=True)
class PromptSearch:
    """Which tasks' wordings are searched, and how.

    Attributes:
      base: the experiment whose model answers and writes: `initial_checkpoint_path`, model, method, data, MODEL_DIR.
        The tasks are those of its mixture; each must have answer options.
      genetic: the search.
      start: the first population: a card's `held_out` wordings (where it has any, else its training wordings), `train`,
        or `all`.
      dev_examples: of a task's training examples, drawn by the seed; fewer where it has fewer.
      stratified: as many of each answer as its share of the training examples, rounded up, so that a few more may be
        drawn; for tasks with fixed options, as GPS's released code draws them.
      test_examples: the first ones; None is all.
    """

    base: Experiment
    genetic: Genetic
    start: str = "held_out"
    dev_examples: int = 32
    stratified: bool = False
    test_examples: int | None = None

    def __post_init__(self):
        if self.start not in STARTS:
            raise unknown("start of PromptSearch", self.start, STARTS)
        if self.dev_examples < 1:
            raise UserError(f"PromptSearch.dev_examples is {self.dev_examples}; it must be at least 1.")
        if self.stratified and not self.genetic.fitness.labels:
            name = type(self.genetic.fitness).__name__
            raise UserError(f"PromptSearch.stratified draws by right answers, which the fitness {name} does not read.")


@dataclasses.dataclass(frozen=True)
class Examples:
    """Examples of one task to choose answers for: their fields, listed options, and the right one's number."""

    fields: Sequence[Mapping[str, Any]]
    options: Sequence[tuple[str, ...]]
    gold_E: np.ndarray

    @classmethod
    def of(
        cls, card: TaskCard, examples: Sequence[Mapping[str, Any]], option_seed: int | None = None
    ) -> "Examples":
        """option_seed: as of `cards.render`. Raises UserError for an example without options, or no example at all."""
        rendered = [cards.render(card, example, option_seed) for example in examples]
        if not rendered:
            raise UserError(f"Task '{card.name}' has no examples to search with.")
        if any(not r.options for r in rendered):
            raise UserError(f"Task '{card.name}' has no answer options; a prompt search compares these.")
        gold = np.array([r.options.index(r.target) for r in rendered])
        return cls(examples, [r.options for r in rendered], gold)


def scores(predictor: Predictor, card: TaskCard, examples: Examples, names: Sequence[str]) -> np.ndarray:
    """Log-likelihoods (nats) of all options of all examples under each wording, [W, E, O], -inf for absent options.

    The whole population is one list of prompts: the encoder reads each (wording, example) once for all its options."""
    limit = predictor.features.inputs - 1
    prompts = [
        wordings.fill(card, name, fields, options, predictor.vocabulary, limit)
        for name in names
        for fields, options in zip(examples.fields, examples.options)
    ]
    most = max(map(len, examples.options))
    longest = max(len(predictor.vocabulary.encode(text)) + 1 for own in examples.options for text in own)
    found = predictor.score(prompts, [*examples.options] * len(names), shape=(most, longest))
    rows = [row + [-math.inf] * (most - len(row)) for row in found]
    return np.array(rows).reshape(len(names), len(examples.options), most)


def lengths(inputs: int) -> tuple[int, ...]:
    """Input lengths that prompts are padded to: multiples of 8, of 16 from 64 on, of 32 from 128 on and so forth, so
    that little is computed on padding and few shapes are compiled."""
    out, length = [], 8
    while length < inputs:
        out.append(length)
        length += max(8, 1 << (length.bit_length() - 3))
    return (*out, inputs)


def run(study: PromptSearch, title: str = "") -> str:
    """Searches what is not yet recorded in MODEL_DIR/records.jsonl, and reports. Returns the table."""
    base, root = study.base, Path(study.base.train.model_dir)
    base.data.register()
    names = list(seqio_bridge.find_mixture(base.data.mixture))
    with records.alone(root):
        records.claim(root, study, root)
        done = {r["task"] for r in records.read(root)}
        predictor, writer = (None, None) if done >= set(names) else _model(study)
        for place, name in enumerate(names):
            if name in done:
                continue
            print(f"{place + 1} of {len(names)}: {name}.", file=sys.stderr)
            path = place_of(name, root / "tasks", ".json")
            record = search_task(study, name, predictor, writer, path)
            records.append(root, [record])
            prompt_report.write(root, records.read(root), title)
        table = prompt_report.write(root, records.read(root), title)
    print(table, end="")
    return table


def search_task(study: PromptSearch, name: str, predictor: Predictor, writer: Writer, path: Path) -> records.Record:
    """Searches one task's wordings. Returns `first`, `manual` (the best of the first population) and `found`, each with
    `wording`, `dev` and `test` accuracy; `progress` per generation; and what it cost: `labels` read, `wordings` scored,
    `examples`, `tflop` of the scoring (analytic, padding not counted) and `minutes`, of the whole search by all processes
    that continued it."""
    settings, card, source = study.genetic, cards.card(name), cards.source(name)
    seed = study.base.data.option_seed
    dev = Examples.of(card, _dev(study, card, source), seed)
    test = Examples.of(card, [*source.examples("test")][: study.test_examples], seed)
    limit = predictor.features.inputs - 1
    listed = max((*dev.options, *test.options), key=lambda own: len(predictor.vocabulary.encode("; ".join(own))))
    first = {
        "held_out": card.held_out_instructions or card.instructions,
        "train": card.instructions,
        "all": (*card.instructions, *card.held_out_instructions),
    }[study.start]
    base = study.base
    reads = (base.train.initial_checkpoint_path, base.train.seed, base.model, base.method, base.data.vocabulary, limit)
    problem = Problem(
        first,
        lambda names: scores(predictor, card, dev, names),
        dev.gold_E,
        card.options,
        lambda wording: wordings.check(card, wording, predictor.vocabulary, limit, listed),
        name,
        f"{source.fingerprint} {study.dev_examples} {study.stratified} {records.describe(reads)}",
    )
    state = genetic.search(settings, problem, writer, path)
    manual = genetic.ranked([r for r in state.archive if r["generation"] == 0])[0]
    chosen = {"first": first[0], "manual": manual["wording"], "found": genetic.best(state)["wording"]}
    unlike = list(dict.fromkeys(chosen.values()))
    accuracies = {}
    for split, examples in (("dev", dev), ("test", test)):
        found = scores(predictor, card, examples, unlike)
        accuracies[split] = {w: accuracy(s_EO, examples.gold_E) for w, s_EO in zip(unlike, found)}
    return {
        "task": name,
        "type": card.type,
        **{kind: {"wording": w, **{split: a[w] for split, a in accuracies.items()}} for kind, w in chosen.items()},
        "chance": {
            split: float(np.mean([1 / len(o) for o in e.options])) for split, e in (("dev", dev), ("test", test))
        },
        "progress": genetic.progress(state, settings.keep or len(first)),
        "fitness": type(settings.fitness).__name__,
        "labels": len(dev.gold_E) if settings.fitness.labels else 0,
        "wordings": len(state.archive) + len(state.rescored),
        "examples": len(dev.gold_E),
        "tflop": _tflop(predictor, card, dev, [*(r["wording"] for r in state.archive), *state.rescored]),
        "minutes": state.seconds / 60,
    }


def _model(study: PromptSearch) -> tuple[Predictor, Writer]:
    base = study.base
    model, features = experiments.build_model(base), base.data.features()
    vocabulary = load_vocabulary(base.data.vocabulary)
    experiments.check_vocabulary(base, vocabulary)
    # Prompts hold their instruction; a method that reads it apart would be given none.
    plain = Features(features.inputs, features.targets)
    predictor = Predictor(
        base.model,
        model.variables,
        base.method,
        vocabulary,
        plain,
        batch_size=base.evaluate.batch_size,
        lengths=lengths(features.inputs),
    )
    return predictor, Writer(base.model, model.variables["backbone"], vocabulary)


def _dev(study: PromptSearch, card: TaskCard, source: Source) -> list[Mapping[str, Any]]:
    """The development set, drawn from the training examples."""
    examples, seed = [*source.examples("train")], study.genetic.seed
    if not (study.stratified and card.options):
        size = min(study.dev_examples, len(examples))
        return [*few_shot.Drawn(source, card.name, size, seed)("train")]
    answers = [cards.render(card, example).target for example in examples]
    wanted = {a: math.ceil(study.dev_examples * n / len(answers)) for a, n in Counter(answers).items()}
    out = []
    for example in few_shot.Drawn(source, card.name, len(examples), seed)("train"):
        answer = cards.render(card, example).target
        if wanted[answer]:
            wanted[answer] -= 1
            out.append(example)
    return out


def _tflop(predictor: Predictor, card: TaskCard, examples: Examples, names: Sequence[str]) -> float:
    """10¹² operations of scoring the wordings, by their mean lengths."""
    v, limit = predictor.vocabulary, predictor.features.inputs - 1
    answers = [len(v.encode(text)) + 1 for own in examples.options for text in own]
    prompts = [
        len(v.encode(wordings.fill(card, name, fields, options, v, limit))) + 1
        for name in names
        for fields, options in zip(examples.fields, examples.options)
    ]
    shape = (len(prompts), round(float(np.mean(prompts))), round(float(np.mean(answers))))
    return flops.score(predictor.config, *shape, len(answers) / len(examples.options)) / 1e12
