"""The recycling study: prompts of every model, recycled for every other, beside what no recycling reaches. Resumable.

Models are a backbone's relatives. On each, prompts are trained for all tasks of a mixture, side by side as slices of one
bank, from several initialisations, in several runs, and kept after several numbers of steps. All answers are ranked: each
test example brings its answer and others of its task, and the likeliest is chosen (rank classification).
"""

import contextlib
import dataclasses
import functools
import io
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zeroprompt_jax import experiment as experiments, recycle
from zeroprompt_jax.data import cards
from zeroprompt_jax.data.pieces import EnglishWords
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.errors import UserError, unknown
from zeroprompt_jax.evaluation.predict import Predictor
from zeroprompt_jax.experiment import Experiment
from zeroprompt_jax.interop import huggingface
from zeroprompt_jax.methods.base import Method
from zeroprompt_jax.methods.initialisers import Initialiser
from zeroprompt_jax.methods.prompt import Prompt
from zeroprompt_jax.models.t5 import T5Config
from zeroprompt_jax.search import records, recycling, recycling_report
from zeroprompt_jax.search.recycling import Recycler
from zeroprompt_jax.search.recycling_report import COPY, RETUNED, ZERO_SHOT
from zeroprompt_jax.search.relatives import Relative
from zeroprompt_jax.training import checkpoint

NORMAL, VOCABULARY = "random normal", "random words"


@dataclasses.dataclass(frozen=True)
class RecyclingStudy:
    """What is compared.

    Attributes:
      base: how prompts are trained: backbone, data, method (a `Prompt` with `per_task`), optimizer, MODEL_DIR.
      pretraining: how models are trained.
      models: name to relative of the backbone, from the nearest to the farthest. A pair of models is as far apart as its
        farther one, and a model and itself as near as the first.
      recyclers: name to kind of map.
      initialisers: name to what prompts start from.
      runs: seeds of prompt training.
      steps: after how many the prompts are recycled.
      sources: models whose prompts are recycled; None is all.
      words: the rows that maps are fitted to.
      rows: of each task in a batch of prompt training.
      draws: random prompts of each kind: Gaussian with the norms of the re-tuned ones, those of the initialisers in turn,
        and embeddings of drawn words.
      choices: answers that an example is ranked among, where its task has no options of its own.
      examples: of a task's test split.
    """

    base: Experiment
    pretraining: Experiment
    models: Mapping[str, Relative]
    recyclers: Mapping[str, Recycler]
    initialisers: Mapping[str, Initialiser]
    runs: int = 1
    steps: Sequence[int] = (100, 300)
    sources: Sequence[str] | None = None
    words: EnglishWords = EnglishWords()
    rows: int = 2
    draws: int = 8
    choices: int = 4
    examples: int = 25

    def __post_init__(self):
        if not (isinstance(self.base.method, Prompt) and self.base.method.per_task and self.base.method.layers is None):
            raise UserError("RecyclingStudy.base needs the method Prompt with per_task and without layers.")
        if set(self.base.method.stacks) != {"encoder"}:
            raise UserError("RecyclingStudy.base needs a prompt of the encoder alone.")
        if wrong := [name for name in self.sources or () if name not in self.models]:
            raise unknown("model in RecyclingStudy.sources", wrong[0], self.models)
        for name, least in (("runs", 1), ("draws", 2), ("choices", 2), ("examples", 1), ("rows", 1)):
            if getattr(self, name) < least:
                raise UserError(f"RecyclingStudy.{name} is {getattr(self, name)}; it must be at least {least}.")
        if not self.steps or min(self.steps) < 1:
            raise UserError(f"RecyclingStudy.steps is {self.steps}; give numbers of steps above 0.")

    @property
    def root(self) -> Path:
        return Path(self.base.train.model_dir)


@dataclasses.dataclass(frozen=True)
class Record:
    """What one bank of prompts scored on the target. method: a recycler's name, or a baseline. What a method does not
    depend on is empty; of random prompts `run` counts the draws. scores: task to accuracy. losses: task
    to the (likeliest) right answer's mean negative log-likelihood, nats."""

    target: str
    method: str
    source: str = ""
    initialiser: str = ""
    run: int = 0
    step: int = 0
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    losses: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> tuple:
        return self.target, self.method, self.source, self.initialiser, self.run, self.step


def measured(root: Path) -> list[Record]:
    """What has been measured."""
    return [Record(**record) for record in records.read(root)]


def run(study: RecyclingStudy, title: str = "") -> str:
    """Makes the models, trains the prompts and measures what is not yet recorded in MODEL_DIR/records.jsonl; reports
    after every target. Returns the table."""
    study.base.data.register()
    study.pretraining.data.register()
    questions = _questions(study)
    with records.alone(study.root):
        table = _complete(study, questions, title)
    print(table, end="")
    return table


def _complete(study: RecyclingStudy, questions: Sequence["_Question"], title: str) -> str:
    records.claim(study.root, study, study.root)
    models = {name: _model(study, name) for name in study.models}
    for name in models:
        for initialiser in study.initialisers:
            for seed in range(study.runs):
                _train(study, models[name], initialiser, seed)
    done, table = {r.key for r in measured(study.root)}, ""
    for name, model in models.items():
        todo = [(found, bank) for found, bank in _jobs(study, models, name) if found.key not in done]
        for place, (found, bank) in enumerate(todo):
            if place % 20 == 0:
                print(f"Target {name}: {place} of {len(todo)}.", file=sys.stderr)
            scores, losses = _score(study, model, bank(), questions)
            found = dataclasses.replace(found, scores=scores, losses=losses)
            records.append(study.root, [dataclasses.asdict(found)])
        table = recycling_report.write(study.root, measured(study.root), list(models), list(study.recyclers), title)
    return table


class _Model(NamedTuple):
    """A model of the study. prompts: folder of its prompts' runs."""

    name: str
    folder: Path
    config: T5Config
    params: Mapping[str, Any]
    home: recycle.Home
    prompts: Path


def _model(study: RecyclingStudy, name: str) -> _Model:
    folder = study.root / "models" / name.replace(" ", "_")
    folder.parent.mkdir(exist_ok=True)
    if not folder.is_dir():
        print(f"Model '{name}'.", file=sys.stderr)
    study.models[name].place(study.base.train.initial_checkpoint_path, study.pretraining, folder)
    ours = study.base.model
    like = {"dtype": ours.dtype, "scan_layers": ours.scan_layers, "dropout_rate": ours.dropout_rate}
    config = dataclasses.replace(huggingface.read_config(folder), **like)
    home = recycle.home(folder, study.base.data.vocabulary)
    return _Model(
        name,
        folder,
        config,
        huggingface.read_t5(folder, config.scan_layers),
        home,
        study.root / "prompts" / folder.name,
    )


def _train(study: RecyclingStudy, model: _Model, initialiser: str, seed: int) -> None:
    """Trains prompts for all tasks on a model, unless they are there."""
    folder, last = model.prompts / f"{initialiser}-{seed}", max(study.steps)
    if (folder / "checkpoints" / str(last)).is_dir():
        return
    print(f"Prompts of '{model.name}' from {initialiser}, run {seed}.", file=sys.stderr)
    base = study.base
    train = dataclasses.replace(
        base.train,
        model_dir=str(folder),
        steps=last,
        batch_size=study.rows * len(base.data.training()),
        seed=seed,
        save_every=tuple(study.steps),
        keep=len(study.steps),
        initial_checkpoint_path=str(model.folder),
    )
    cache = base.data.cache_dir or str(study.root / "cache")
    data = dataclasses.replace(
        base.data, evaluation={}, rates="uniform", batching="every_task", cache_dir=cache, seed=seed
    )
    method = dataclasses.replace(base.method, initialiser=study.initialisers[initialiser])
    with contextlib.redirect_stdout(io.StringIO()):
        experiments.train(dataclasses.replace(base, model=model.config, method=method, data=data, train=train))


def _prompts(model: _Model, initialiser: str, seed: int, step: int) -> np.ndarray:
    """Trained prompts, [N, P, D], in the order of the mixture's tasks."""
    return _read_prompts(str(model.prompts / f"{initialiser}-{seed}" / "checkpoints" / str(step)))


@functools.lru_cache(maxsize=256)
def _read_prompts(step_dir: str) -> np.ndarray:
    return checkpoint.load_run(step_dir)[0]["method/prompt"]


def _jobs(study: RecyclingStudy, models: Mapping[str, _Model], target: str) -> Iterator[tuple[Record, Callable]]:
    """Everything that is measured on a target: an empty record, and what makes its prompts (None: there are none)."""
    model = models[target]
    trained = [(i, r, s) for i in study.initialisers for r in range(study.runs) for s in study.steps]
    yield Record(target, ZERO_SHOT), lambda: None
    for case in trained:
        yield Record(target, RETUNED, target, *case), functools.partial(_prompts, model, *case)
    for draw in range(study.draws):
        yield Record(target, NORMAL, run=draw), functools.partial(_normal, study, model, draw)
        yield Record(target, VOCABULARY, run=draw), functools.partial(_words, study, model, draw)

    @functools.cache
    def fitted(source: str, recycler: str):
        return recycle.fit(models[source].home, model.home, study.recyclers[recycler], study.words)

    def recycled(source: str, recycler: str, case: tuple) -> np.ndarray:
        return np.asarray(recycling.apply(fitted(source, recycler).map, _prompts(models[source], *case)))

    for source in study.sources or models:
        if models[source].config.emb_dim == model.config.emb_dim:
            for case in trained:
                yield Record(target, COPY, source, *case), functools.partial(_prompts, models[source], *case)
        for recycler in study.recyclers:
            for case in trained:
                yield Record(target, recycler, source, *case), functools.partial(recycled, source, recycler, case)


def _shape(study: RecyclingStudy, model: _Model) -> tuple[int, int, int]:
    return len(study.base.data.training()), study.base.method.length, model.config.emb_dim


def _normal(study: RecyclingStudy, model: _Model, draw: int) -> np.ndarray:
    """Random directions with the norms of the prompts trained on this model, from the initialisers in turn."""
    initialiser = list(study.initialisers)[draw % len(study.initialisers)]
    own = _prompts(model, initialiser, 0, max(study.steps))
    x = np.random.default_rng(draw).normal(size=own.shape).astype(np.float32)
    return x * np.linalg.norm(own, axis=-1, keepdims=True) / np.linalg.norm(x, axis=-1, keepdims=True)


def _words(study: RecyclingStudy, model: _Model, draw: int) -> np.ndarray:
    """Embeddings of words drawn from those that maps are fitted to."""
    ids = study.words.choose(model.home.pieces)
    return model.home.embedding[np.random.default_rng(draw).choice(ids, _shape(study, model)[:2])]


class _Question(NamedTuple):
    """A test example. answers: the places of the right ones among the options; of listed options several may be right."""

    task: str
    text: str
    options: tuple[str, ...]
    answers: tuple[int, ...]


def _questions(study: RecyclingStudy) -> list[_Question]:
    out = []
    for task in study.base.data.training():
        card = cards.card(task)
        seed, examples = study.base.data.option_seed, cards.source(task).examples("test")
        rendered = [cards.render(card, example, seed) for example in examples]
        answers = sorted({r.target for r in rendered})
        for place, r in enumerate(rendered[: study.examples]):
            others = [a for a in answers if a not in r.references]
            drawn = random.Random(f"{task}/{place}").sample(others, min(study.choices - 1, len(others)))
            # Sorted, so that the place among the options says nothing.
            options = r.options or tuple(sorted([*drawn, r.target]))
            if len(options) < 2:
                raise UserError(f"Task '{task}' has too few different answers to rank: {', '.join(answers)}.")
            right = tuple(place for place, o in enumerate(options) if o == r.target or o in r.references)
            out.append(_Question(task, r.input, options, right))
    return out


def _score(study: RecyclingStudy, model: _Model, prompts: np.ndarray | None, questions: Sequence[_Question]):
    """(task to accuracy, task to loss) of a bank of prompts; None is the model without a prompt."""
    tasks = list(study.base.data.training())
    predictor = Predictor(
        model.config,
        {"backbone": model.params, "method": {} if prompts is None else {"prompt": prompts}},
        # One method for all, whatever the prompts began as: it is what the answers are compiled for.
        Method() if prompts is None else Prompt(length=prompts.shape[1], per_task=True),
        load_vocabulary(study.base.data.vocabulary),
        study.base.data.features(),
        instructions=lambda task: cards.card(task).instructions[0],
        task_ids=None if prompts is None else {task: place for place, task in enumerate(tasks)},
        batch_size=study.base.evaluate.batch_size,
    )
    found = predictor.score([q.text for q in questions], [q.options for q in questions], [q.task for q in questions])
    right = {task: [] for task in tasks}
    losses = {task: [] for task in tasks}
    for q, scores in zip(questions, found):
        right[q.task].append(int(np.argmax(scores)) in q.answers)
        losses[q.task].append(-max(scores[place] for place in q.answers))
    mean = lambda values: {task: float(np.mean(of_task)) for task, of_task in values.items()}
    return mean(right), mean(losses)
