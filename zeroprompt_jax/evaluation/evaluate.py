"""Zero-shot evaluation: the answers of a model on many tasks, scored per task beside baselines and a control."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zeroprompt_jax.data.batches import WORDINGS, EvalSet, Example, Features
from zeroprompt_jax.errors import UserError, check_range, unknown
from zeroprompt_jax.evaluation import metrics, modules, ranking, report
from zeroprompt_jax.methods.base import Method
from zeroprompt_jax.models import decoding
from zeroprompt_jax.models.t5 import Backbone, T5Config
from zeroprompt_jax.training import partitioning

Variables = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """How tasks are evaluated.

    Attributes:
      batch_size: rows at a time (of the decoder: with answer options, correspondingly fewer inputs).
      max_examples_per_task: a fixed sample of a task that has more; None is all.
      strategy: how answers are generated.
      rank_options: a task whose examples list answer options is answered by the most likely option (rank
        classification, as in T0 and ZeroPrompt); False generates its answers too.
      length_normalised: rank by log-likelihood per token and not by its sum.
      control: also run with each task given another task's instruction, a negative control; not where there is none.
      wordings: `held_out` (wordings that training never used, where a task has any), `train`, `shuffled` (another
        task's instruction, as the control has it) or `none`.
      seed: of the sample, the control and sampled answers.
    """

    batch_size: int = 256
    max_examples_per_task: int | None = 50
    strategy: decoding.Strategy = decoding.Greedy()
    rank_options: bool = True
    length_normalised: bool = False
    control: bool = True
    wordings: str = "held_out"
    seed: int = 0

    def __post_init__(self):
        check_range(self, "batch_size max_examples_per_task")
        if self.wordings not in WORDINGS:
            raise unknown("kind of wordings", self.wordings, WORDINGS)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
      tasks: per group and task a dict: `task`, `type`, `family`, `group`, `metric` (the card's first), `score` by it,
        `metrics` (all of the card's), `baseline` with its `baseline_kind` (majority, the best one answer to all, or copy),
        `examples`, `loss`, `shuffled` and `shuffled_loss` (the control's score and loss, or None), `ranked` (whether it was
        answered by ranking options), `per_wording` (wording's number to score) and `labels` (labelled examples of the task
        that training was given; None where that is not known). Scores are in [0, 1], correlations in [-1, 1].
      losses: group to the mean cross-entropy per target token (nats, EOS included) under teacher forcing.
    """

    tasks: list[dict[str, Any]]
    losses: dict[str, float]

    def rows(self) -> list[report.Row]:
        """One row per group and type, means over its tasks; a card's further metrics as further columns."""
        members = collections.defaultdict(list)
        for result in self.tasks:
            members[result["group"], result["type"]].append(result)
        return [_row(group, type, results) for (group, type), results in members.items()]

    def summary(self) -> dict[str, float]:
        """Means over each group's tasks as scalars: `group/score`, `/baseline`, `/shuffled` and `/loss`."""
        rows, out = self.rows(), {}
        for group, loss in self.losses.items():
            whole = report.mean(rows, group)
            out |= {f"{group}/score": whole.score, f"{group}/baseline": whole.baseline, f"{group}/loss": loss}
            if whole.shuffled is not None:
                out[f"{group}/shuffled"] = whole.shuffled
        return out

    @property
    def metric(self) -> str:
        """What the score is: the metric, or `score` where tasks have different ones."""
        names = {result["metric"] for result in self.tasks}
        return names.pop() if len(names) == 1 else "score"


def _row(group: str, type: str, results: Sequence[Mapping[str, Any]]) -> report.Row:
    def mean(values):
        values = [v for v in values if v is not None]
        return float(np.mean(values)) if values else None

    more = dict.fromkeys(name for r in results for name in list(r["metrics"])[1:])
    return report.Row(
        group=group,
        type=type,
        score=mean(r["score"] for r in results),
        baseline=mean(r["baseline"] for r in results),
        tasks=len(results),
        families=len({r["family"] for r in results}),
        shuffled=mean(r["shuffled"] for r in results),
        examples=sum(r["examples"] for r in results),
        labels=mean(r["labels"] for r in results),
        more={name: mean(r["metrics"].get(name) for r in results) for name in more},
    )


def tested(
    store, groups: Mapping[str, Sequence[str]], split: str, features: Features, settings: Evaluate, task_ids=None
) -> EvalSet:
    """The examples that `evaluate` would answer.

    Raises:
      UserError: a task has no place in the banks, is not cached or has no examples, or a metric is unknown or does not
        fit its task.
    """
    tasks = list(dict.fromkeys(itertools.chain(*groups.values())))
    if task_ids is not None:
        for task in tasks:
            if task not in task_ids:
                raise unknown("trained task", task, task_ids)
    cards = {task: store.card(task) for task in tasks}
    for card in cards.values():
        metrics.check(card.metrics)
    found = _set(store, tasks, split, features, settings, settings.wordings)
    for example in found.examples:
        if "auc" in cards[example.task].metrics and not example.options:
            raise UserError(f"Task '{example.task}' has the metric auc, but its examples list no answer options.")
    for task in (task for task in tasks if "f1" in cards[task].metrics):
        orders = {tuple(example.options) for example in found.examples if example.task == task}
        if len(orders) > 1 or any(len(order) != 2 for order in orders):
            shuffled = {len(order) for order in orders} == {2} and len(set(map(frozenset, orders))) == 1
            raise UserError(
                f"Task '{task}' has the metric f1, of the second of two answer options, but its examples do not all list "
                f"the same two in one order; {'leave Data.option_seed unset' if shuffled else 'give it macro_f1'}."
            )
    return found


def _set(store, tasks: Sequence[str], split: str, features: Features, settings: Evaluate, wordings: str) -> EvalSet:
    cut = {"max_examples": settings.max_examples_per_task, "seed": settings.seed}
    return EvalSet(store, tasks, split, features, wordings=wordings, **cut)


def evaluate(
    variables: Variables,
    config: T5Config,
    method: Method,
    store,
    groups: Mapping[str, Sequence[str]],
    split: str,
    features: Features,
    vocabulary,
    settings: Evaluate = Evaluate(),
    mesh: jax.sharding.Mesh | None = None,
    progress: Callable[[int, int], None] | None = None,
    predictions: str | os.PathLike | None = None,
    task_ids: Mapping[str, Any] | None = None,
    trained: Collection[str] | None = None,
) -> Evaluation:
    """Evaluates a model on groups of cached tasks. Functions are compiled once per shape and kept between calls.

    Args:
      variables: {'backbone': …, 'method': …}.
      config: of the backbone.
      method: what conditions it.
      store: the cached tasks.
      groups: group to its tasks; a task in several groups is run once.
      split: which examples.
      features: token lengths; answers have at most `features.targets` tokens.
      vocabulary: of the store.
      settings: how.
      mesh: rows are spread over it; `variables` must lie on it.
      progress: called with (examples done, examples in all) after every batch, the control's examples included.
      predictions: a JSONL file to write, one line per example.
      task_ids: task to its place, or places, in the method's banks, for a method that keeps something per task.
      trained: the tasks that the model was trained on, whose labels are counted.

    Raises:
      UserError: as `tested`, or the batch does not divide the mesh.
    """
    sets = [tested(store, groups, split, features, settings, task_ids)]
    tasks, examples = list(dict.fromkeys(itertools.chain(*groups.values()))), sets[0].examples
    cards = {task: store.card(task) for task in tasks}
    instructed = features.instruct_inputs or features.instructions
    worded = [task for task in tasks if not store.brings_own(task)]
    if settings.control and instructed and len(worded) != 1 and settings.wordings != "shuffled":
        sets.append(_set(store, tasks, split, features, settings, "shuffled"))
    total, done = sum(map(len, sets)), 0
    runs = []
    for data in sets:
        tell = None if progress is None else lambda n, before=done: progress(before + n, total)
        runs.append(_run(variables, config, method, data, examples, vocabulary, settings, mesh, tell, task_ids))
        done += len(data)
    main, control = runs[0], runs[1] if len(runs) > 1 else None

    rows_of = collections.defaultdict(list)
    for row, example in enumerate(examples):
        rows_of[example.task].append(row)
    scored = {}
    for task, rows in rows_of.items():
        card, mine = cards[task], [examples[i] for i in rows]
        answers = [main.texts[i] for i in rows]
        values = _score(card.metrics, answers, mine, [main.options[i] for i in rows])
        first = card.metrics[:1]
        by_wording = collections.defaultdict(list)
        for place, example in enumerate(mine):
            by_wording[example.wording].append(place)
        key = (store.fingerprint(task), split, settings.max_examples_per_task, settings.seed, first[0])
        if key not in _BASELINES:
            _BASELINES[key] = baseline(first[0], mine)
        scored[task] = {
            "task": task,
            "type": card.type,
            "family": card.family,
            "metric": first[0],
            "score": values[first[0]],
            "metrics": values,
            "baseline": _BASELINES[key][0],
            "baseline_kind": _BASELINES[key][1],
            "shuffled": None
            if control is None
            else _score(first, [control.texts[i] for i in rows], mine, [control.options[i] for i in rows])[first[0]],
            "examples": len(rows),
            "loss": _mean_loss(main, rows),
            "shuffled_loss": None if control is None else _mean_loss(control, rows),
            "ranked": bool(main.ranked[rows[0]]),
            "per_wording": {
                w: _score(
                    first,
                    [answers[p] for p in places],
                    [mine[p] for p in places],
                    [main.options[rows[p]] for p in places],
                )[first[0]]
                for w, places in sorted(by_wording.items())
            },
            "labels": None if trained is None else store.size(task, "train") if task in trained else 0,
        }
    if predictions is not None and partitioning.is_first():
        _write(Path(predictions), examples, main, control)
    losses = {g: _mean_loss(main, [i for t in dict.fromkeys(names) for i in rows_of[t]]) for g, names in groups.items()}
    return Evaluation([{**scored[t], "group": g} for g, names in groups.items() for t in dict.fromkeys(names)], losses)


# Baselines do not depend on the model, and an evaluation is repeated throughout a training.
_BASELINES: dict[tuple, tuple[float, str]] = {}


def baseline(metric: str, examples: Sequence[Example]) -> tuple[float, str]:
    """The better of the best one answer to all and the copied input under a metric, and which it was. The one answer is
    the majority's, or where all examples list the same options any of them: under F1 the majority may score nothing."""
    options = {frozenset(e.options) for e in examples}
    answers = {metrics.majority_baseline([e.references for e in examples])}.union(*options if len(options) == 1 else ())
    majority = max(_score([metric], [answer] * len(examples), examples)[metric] for answer in answers)
    copy = _score([metric], metrics.copy_baseline([e.input for e in examples]), examples)[metric]
    return (copy, "copy") if copy > majority else (majority, "majority")


def _score(
    names: Sequence[str],
    answers: Sequence[str],
    examples: Sequence[Example],
    scores: Sequence[Sequence[float] | None] = (None,),
) -> dict[str, float]:
    """scores: of each example's options, None where the answer was generated."""
    options, references = [e.options for e in examples], [e.references for e in examples]
    ranked = None if any(values is None for values in scores) else scores
    return dict(metrics.compute(names, answers, references, options if all(options) else None, ranked))


@dataclasses.dataclass
class _Run:
    """Per example: the answer, its score, those of all options or None, whether it was ranked, and cross-entropy and
    tokens of the target."""

    texts: list[str]
    scores: np.ndarray
    options: list[list[float] | None]
    ranked: np.ndarray
    nll: np.ndarray
    tokens: np.ndarray


def _mean_loss(run: _Run, rows: Sequence[int]) -> float:
    return float(run.nll[rows].sum() / max(run.tokens[rows].sum(), 1.0))


# Examples are batched into few shapes, as each is compiled once: counts of options go up by this factor, and inputs are
# sorted into at most three lengths where they are long.
_OPTIONS = 4
_LONG = 256


@dataclasses.dataclass(frozen=True)
class _Job:
    """One batch: the examples' numbers (the last repeated to fill it), how many of them count, T, and O for ranking."""

    index: np.ndarray
    kept: int
    length: int
    options: int | None


def _jobs(encoder_tokens: np.ndarray, options: np.ndarray, batch_size: int, mesh) -> list[_Job]:
    """Batches over all examples; `options` [N] is 0 where the answer is generated."""
    ways = 1
    if mesh is not None:
        partitioning.check_batch(mesh, batch_size, "Evaluate.batch_size")
        ways = partitioning.row_ways(mesh)
    T = encoder_tokens.shape[1]
    used = T - np.argmax(encoder_tokens[:, ::-1] > 0, axis=1)
    lengths = np.full(len(used), T)
    for shorter in (T // 2, T // 4) if T >= _LONG else ():
        lengths[used <= shorter] = shorter
    counts = np.where(options > 0, [ranking.bucket(n, _OPTIONS, _OPTIONS) for n in options], 0)
    jobs = []
    for length, width in sorted(set(zip(lengths.tolist(), counts.tolist())), reverse=True):
        index = np.flatnonzero((lengths == length) & (counts == width))
        most = max(1, batch_size // width) if width else batch_size
        size = ways * -(-min(most, ranking.bucket(len(index))) // ways)
        for start in range(0, len(index), size):
            part = index[start : start + size]
            jobs.append(_Job(np.pad(part, (0, size - len(part)), mode="edge"), len(part), length, width or None))
    return jobs


def _run(
    variables, config, method, data: EvalSet, examples, vocabulary, settings: Evaluate, mesh, progress, task_ids
) -> _Run:
    count = len(data)
    rows = next(data.batches(count))
    rows.pop("row_mask")
    if task_ids is not None:
        rows["task_ids"] = np.array([task_ids[e.task] for e in examples], np.int32)
    names = [f"{settings.seed}/{e.task}/{e.example}" for e in examples]
    rows["row_seeds"] = np.array([zlib.crc32(name.encode()) for name in names], np.uint32)
    options = np.array([len(e.options) if settings.rank_options else 0 for e in examples])
    run = _Run([""] * count, np.zeros(count), [None] * count, options > 0, np.zeros(count), np.zeros(count))
    encode = functools.cache(vocabulary.encode)
    texts = {text for i in np.flatnonzero(options) for text in examples[i].options}
    option_length = ranking.bucket(max((len(encode(text)) + 1 for text in texts), default=1), least=4)
    static = {"config": config, "method": method, "mesh": mesh}
    jobs = _jobs(rows["encoder_input_tokens"], options, settings.batch_size, mesh)

    kept = None
    if method.reads_instructions and data.features.instructions:
        told = rows["instruction_tokens"]
        most = ranking.bucket(max(len(np.unique(told[job.index], axis=0)) for job in jobs))
        # Where examples bring their own instruction, no later batch asks for it again.
        spare = 0 if data.brings_own else len(np.unique(told, axis=0))
        size = data.features.instructions
        kept = modules.ModuleStore(variables, config, method, size, most, mesh=mesh, host_capacity=spare)

    def start(job: _Job):
        batch = {name: column[job.index] for name, column in rows.items()}
        if kept is not None:
            batch = kept.attach(batch)
        batch["encoder_input_tokens"] = batch["encoder_input_tokens"][:, : job.length]
        if job.options is None:
            wanted = {"strategy": settings.strategy, "max_length": data.features.targets, "eos_id": vocabulary.eos_id}
            return generate_step(variables, _place(batch, mesh), **wanted, **static)
        ids = [[encode(text) for text in examples[i].options] for i in job.index]
        batch["options"], batch["option_mask"] = ranking.pack(ids, vocabulary.eos_id, job.options, option_length)
        return rank_step(variables, _place(batch, mesh), **static)

    def finish(job: _Job, out) -> int:
        index = job.index[: job.kept]
        out = {name: value[: job.kept] for name, value in jax.device_get(out).items()}
        run.nll[index], run.tokens[index] = out["nll"], out["tokens"]
        if job.options is None:
            run.scores[index] = out["scores"]
            for i, ids in zip(index, out["answers"].tolist()):
                run.texts[i] = vocabulary.decode(ids)
        else:
            best = ranking.choose(out["sums"], out["lengths"], settings.length_normalised)
            run.scores[index] = np.take_along_axis(out["sums"], best[:, None], axis=1)[:, 0]
            for i, option, sums in zip(index, best, out["sums"]):
                run.texts[i] = examples[i].options[option]
                run.options[i] = sums[: len(examples[i].options)].tolist()
        return job.kept

    done, waiting = 0, None
    with contextlib.nullcontext() if mesh is None else partitioning.activate(mesh):
        for job in [*jobs, None]:
            began = None if job is None else (job, start(job))
            # One batch late: the device works on the next one while the host reads and decodes this one.
            if waiting is not None:
                done += finish(*waiting)
                if progress is not None:
                    progress(done)
            waiting = began
    return run


def _place(batch: Mapping[str, np.ndarray], mesh) -> Mapping[str, Any]:
    """Rows spread over the mesh. Every host holds all rows of an evaluation and gives its devices theirs."""
    if mesh is None:
        return batch
    sharding = partitioning.batch_sharding(mesh)
    # The module store's bank lies on the mesh already, and the place of the one task of all rows is every device's.
    whole = {k: v for k, v in batch.items() if k == "modules" or (k == "module_places" and len(v) == 1)}
    batch = {k: v for k, v in batch.items() if k not in whole}
    return whole | {k: jax.make_array_from_callback(v.shape, sharding, v.__getitem__) for k, v in batch.items()}


def _collect(out: dict[str, jax.Array], mesh) -> dict[str, jax.Array]:
    """Small results, whole on every host."""
    return out if mesh is None else jax.lax.with_sharding_constraint(out, partitioning.replicated(mesh))


def _begin(variables, batch, config, method):
    """What generating and ranking share: the conditioned encoder, and the target's loss under teacher forcing."""
    backbone = Backbone(config, variables["backbone"])
    conditioning = modules.condition(variables, batch, method, backbone)
    source = decoding.encoded(backbone, batch["encoder_input_tokens"], conditioning)
    logits = backbone.decode(batch["decoder_input_tokens"], source, conditioning)
    weights = batch["decoder_loss_weights"]
    nll = -jnp.sum(decoding.token_log_probs(logits, batch["decoder_target_tokens"]) * weights, axis=-1)
    return backbone, conditioning, source, {"nll": nll, "tokens": weights.sum(-1)}


@functools.partial(jax.jit, static_argnames=("config", "method", "mesh", "strategy", "max_length", "eos_id"))
def generate_step(variables, batch, *, config, method, mesh, strategy, max_length, eos_id):
    backbone, conditioning, source, out = _begin(variables, batch, config, method)
    # A key of each example's own, so that sampled answers do not depend on how examples are batched.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), batch["row_seeds"])
    decoded = decoding.generate(backbone, source, conditioning, strategy, max_length, keys, eos_id)
    return _collect({**out, "answers": decoded.tokens[:, 0], "scores": decoded.scores[:, 0]}, mesh)


@functools.partial(jax.jit, static_argnames=("config", "method", "mesh"))
def rank_step(variables, batch, *, config, method, mesh):
    backbone, conditioning, source, out = _begin(variables, batch, config, method)
    scores = decoding.score(backbone, source, conditioning, batch["options"], batch["option_mask"])
    return _collect({**out, "sums": scores.sum, "lengths": scores.length}, mesh)


def _write(path: Path, examples: Sequence[Example], main: _Run, control: _Run | None) -> None:
    """One JSON line per example, the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("w", encoding="utf-8") as file:
            for i, example in enumerate(examples):
                line = {**example._asdict(), "prediction": main.texts[i], "score": float(main.scores[i])}
                if control is not None:
                    line["shuffled_prediction"] = control.texts[i]
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
