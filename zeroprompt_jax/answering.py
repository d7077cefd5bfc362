"""Answering texts, rows of files and examples of tasks by a run's model."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from zeroprompt_jax.data import cards, tokenise, wordings
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.errors import UserError, unknown
from zeroprompt_jax.evaluation import infer
from zeroprompt_jax.evaluation.predict import Predictor
from zeroprompt_jax.experiment import Experiment, restore, task_ids


def predictor(
    experiment: Experiment,
    checkpoint_path: str | None = None,
    modules: Sequence[str] = (),
    **keeping: Any,
) -> Predictor:
    """A run's model as `predict(texts, tasks)` and `score(texts, options, tasks)`, in one process. keeping: Predictor's
    module_store, module_capacity and module_dtype, for a method that reads instructions."""
    if jax.process_count() > 1:
        raise UserError(f"Answering texts needs one process; this run has {jax.process_count()}.")
    experiment.data.register(modules)
    vocabulary = load_vocabulary(experiment.data.vocabulary)
    return Predictor(
        experiment.model,
        restore(experiment, checkpoint_path).variables,
        experiment.method,
        vocabulary,
        experiment.data.features(),
        instructions=lambda name: tokenise.find(name, vocabulary)[0].instructions[0],
        options=lambda name: tokenise.find(name, vocabulary)[0].options,
        task_ids=task_ids(experiment),
        **keeping,
    )


def infer_run(
    experiment: Experiment,
    output: str,
    input: str | None = None,
    task: str | None = None,
    split: str = "test",
    modules: Sequence[str] = (),
    checkpoint_path: str | None = None,
    made: Predictor | None = None,
    **keeping: Any,
) -> int:
    """Answers the rows of a file, or the examples of a task, into a JSONL file. Returns how many were answered now.
    made: answers instead of the run's own model. keeping: as of `predictor`."""
    experiment.data.register(modules)
    vocabulary = load_vocabulary(experiment.data.vocabulary)
    if input is not None:
        rows = infer.read_rows(input)
    else:
        card, source = tokenise.find(task, vocabulary)
        if split not in source.splits:
            raise unknown(f"split of task '{task}'", split, source.splits)
        examples = list(source.examples(split))
        rendered = [cards.render(card, example, experiment.data.option_seed) for example in examples]
        rows = [{"task": task, "input": r.input, "references": r.references} for r in rendered]
        if experiment.evaluate.rank_options:
            rows = [{**row, "options": r.options} if r.options else row for row, r in zip(rows, rendered)]
    for name in dict.fromkeys(row.get("task", task) for row in rows):
        if name is not None and made is None:
            _check_instructions(*tokenise.find(name, vocabulary))  # a mistake is told before the model is loaded
    if input is not None or cards.cut_at_end(card):  # else the rows are known only once the model is
        infer.answered(output, rows)
    made = made or predictor(experiment, checkpoint_path, **keeping)
    if input is None and not cards.cut_at_end(card):
        fitted = (_fitted(made, card, example, r.options) for example, r in zip(examples, rendered))
        rows = [{**row, "input": text} for row, text in zip(rows, fitted)]
    count = infer.infer(made, rows, output, task=task, settings=experiment.evaluate)
    if count and made.method.reads_instructions and made.features.instructions:
        print(f"Modules: {made.modules}.", file=sys.stderr)
    return count


def _fitted(made: Predictor, card: cards.TaskCard, example: Mapping[str, Any], options: Sequence[str]) -> str:
    """A rendered input that fits behind the task's instruction, cut as in training: a predictor only sees a text."""
    v, f = made.vocabulary, made.features
    before = v.encode(card.instructions[0])[: f.instruction_limit] if f.instruct_inputs else []
    return wordings.fill(card, "", example, options, v, f.inputs - len(v.join(before, [0])))


def _check_instructions(card: cards.TaskCard, source: cards.Source) -> None:
    """Raises UserError for a task whose examples bring their own instructions."""
    first = next(iter(source.examples(source.splits[0])), None) if card.instructions == ("",) else None
    if first is not None and cards.render(card, first).instruction:
        raise UserError(f"The examples of task '{card.name}' bring their own instructions, which only evaluation reads.")
