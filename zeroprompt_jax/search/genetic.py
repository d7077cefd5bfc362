"""Genetic prompt search over the wordings of one task: score, keep the best, breed, until the last generation.

Source: Xu et al. 2022, "GPS: Genetic Prompt Search for Efficient Few-shot Learning" (arXiv 2210.17041). Every wording
that was ever scored is in the archive, and the best of the archive is what a search finds: a good first wording is not
lost, and the archive's best and top-K mean never fall, whatever a generation does.

The state is one JSON file, replaced as a whole. A search that was stopped at any point goes on to the same result,
since what operators draw depends on (seed, generation, parent, operator) alone.
"""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zeroprompt_jax.data import wordings
from zeroprompt_jax.errors import UserError, unknown
from zeroprompt_jax.evaluation import report
from zeroprompt_jax.evaluation.metrics import normalise
from zeroprompt_jax.search.fitness import Fitness, LabelledDev
from zeroprompt_jax.search.operators import Operator
from zeroprompt_jax.search.records import describe
from zeroprompt_jax.search.writer import Writer

PARENTS = ("generation", "archive")
_LEAST_WORDS = 2


@dataclasses.dataclass(frozen=True)
class Genetic:
    """How wordings are bred and selected.

    Attributes:
      operators: what makes new wordings of old ones.
      fitness: what is selected by.
      generations: bred after the first population.
      keep: K, wordings of a generation that have children; None is the size of the first population.
      parents: `generation`: the K best of the last generation's own, as GPS; `archive`: the K best of all so far. Where
        a generation has no children its parents try again.
      unique: reject a wording that any earlier generation had. False, as in GPS's released code, rejects only copies of
        the parents and among siblings; a wording that returns is not scored again.
      rescore: score every generation's kept wordings once more at the end, as GPS's paper describes; the best by these
        scores is found.
      at_once: wordings scored between two writings of the state.
      seed: of everything drawn.
    """

    operators: Sequence[Operator]
    fitness: Fitness = LabelledDev()
    generations: int = 6
    keep: int | None = None
    parents: str = "generation"
    unique: bool = True
    rescore: bool = False
    at_once: int = 64
    seed: int = 0

    def __post_init__(self):
        if self.parents not in PARENTS:
            raise unknown("kind of parents", self.parents, PARENTS)
        for name, least in (("generations", 0), ("at_once", 1)):
            if getattr(self, name) < least:
                raise UserError(f"Genetic.{name} is {getattr(self, name)}; it must be at least {least}.")
        if self.keep is not None and self.keep < 1:
            raise UserError(f"Genetic.keep is {self.keep}; it must be at least 1, or None for as many as come first.")
        if self.generations and not self.operators:
            raise UserError("Genetic.operators is empty; breeding needs at least one.")


@dataclasses.dataclass
class State:
    """Where a search stands.

    Attributes:
      identity: what must be the same for the search to be continued.
      targets: each example's option to agree with; None before the first population is scored.
      generation: number of the present one; 0 is the first population.
      population: its wordings in order: `wording`, `parent`, `operator`.
      kept: per finished generation its K best wordings, best first.
      archive: every scored wording in order: `wording`, `parent`, `operator`, `generation`, `fitness`.
      rescored: fitness of kept wordings by their second scores.
      seconds: spent until the last writing, by all processes that continued the search.
    """

    identity: str
    targets: list[int] | None = None
    generation: int = 0
    population: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    kept: list[list[str]] = dataclasses.field(default_factory=list)
    archive: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    rescored: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Problem:
    """One task as the search sees it.

    Attributes:
      first: the first population's wordings.
      score: log-likelihoods [W, E, O] of the options of all examples under W wordings, -inf for absent options.
      gold_E: each example's right option; only a fitness that reads labels looks at it.
      options: answer options that every example has; a wording that names them keeps them.
      check: raises UserError for a wording that cannot be scored.
      name: of the task.
      fingerprint: changes whenever the scores would.
    """

    first: Sequence[str]
    score: Callable[[Sequence[str]], np.ndarray]
    gold_E: np.ndarray
    options: Sequence[str] = ()
    check: Callable[[str], None] = lambda wording: None
    name: str = "task"
    fingerprint: str = ""


def search(settings: Genetic, problem: Problem, writer: Writer | None, path: str | os.PathLike) -> State:
    """Runs or continues a search, its state in the file `path`, and returns the final state.

    Raises:
      UserError: no first wordings, two that are the same, one that does not fit; a file of another search.
    """
    path, began = Path(path), time.monotonic()
    state = _begin(settings, problem, path)
    earlier, keep = state.seconds, settings.keep or len(problem.first)

    def save() -> None:
        state.seconds = earlier + time.monotonic() - began
        report.save_text(path, json.dumps(dataclasses.asdict(state), ensure_ascii=False, indent=1))

    while True:
        _score(settings, problem, state, save)
        if len(state.kept) == state.generation:
            state.kept.append(_select(settings, state, keep))
            save()
        if state.generation >= settings.generations:
            break
        children = breed(settings, problem, state, writer)
        state.generation += 1
        # Parents return where no child survives, so that they may try again with another draw.
        state.population = children or [{"wording": w, "parent": w, "operator": None} for w in state.kept[-1]]
        save()
    if settings.rescore and not state.rescored:
        kept = list(dict.fromkeys(wording for names in state.kept for wording in names))
        scores_WEO, target_E = problem.score(kept), np.array(state.targets)
        state.rescored = {w: settings.fitness.value(s_EO, target_E) for w, s_EO in zip(kept, scores_WEO)}
        save()
    return state


def best(state: State) -> dict[str, Any]:
    """The archive's best wording; of equals the one found first. After rescoring, the best of those rescored."""
    if state.rescored:
        return max(
            (r for r in state.archive if r["wording"] in state.rescored), key=lambda r: state.rescored[r["wording"]]
        )
    return ranked(state.archive)[0]


def ranked(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Best first; of equals the one found first."""
    return sorted(records, key=lambda r: -r["fitness"])


def progress(state: State, keep: int) -> list[dict[str, Any]]:
    """Per generation: `best` and `top` (mean of the K best, but of no more than came first) of the archive so far,
    `own`, the best of those that it brought (None where it brought none), and `scored`, how many those are."""
    out, so_far = [], []
    keep = min(keep, sum(r["generation"] == 0 for r in state.archive))
    for generation in range(state.generation + 1):
        new = [r for r in state.archive if r["generation"] == generation]
        so_far += new
        order = [r["fitness"] for r in ranked(so_far)]
        own = max((r["fitness"] for r in new), default=None)
        out.append({"best": order[0], "top": float(np.mean(order[:keep])), "own": own, "scored": len(new)})
    return out


def breed(settings: Genetic, problem: Problem, state: State, writer: Writer | None) -> list[dict[str, Any]]:
    """The children of the last kept wordings: new, whole, and such as can be scored."""
    parents = state.kept[-1]
    taken = set(map(normalise, [r["wording"] for r in state.archive] if settings.unique else parents))
    hidden = [wordings.hide(parent, problem.options) for parent in parents]
    children = []
    for operator in settings.operators:
        name = type(operator).__name__
        seeds = [_seed(settings.seed, state.generation, parent, describe(operator)) for parent in parents]
        proposed = operator.propose([text for text, _ in hidden], seeds, writer)
        if len(proposed) != len(parents):
            raise UserError(f"The operator {name} gave children for {len(proposed)} of {len(parents)} parents.")
        for parent, (_, marks), texts in zip(parents, hidden, proposed):
            for text in texts:
                child = wordings.show(" ".join(text.split()), marks, problem.options)
                if child is None or len(child.split()) < _LEAST_WORDS or normalise(child) in taken:
                    continue
                try:
                    problem.check(child)
                except UserError:
                    continue
                taken.add(normalise(child))
                children.append({"wording": child, "parent": parent, "operator": name})
    return children


def _seed(*key: Any) -> int:
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


def _by_key(state: State) -> dict[str, dict[str, Any]]:
    return {normalise(r["wording"]): r for r in state.archive}


def _score(settings: Genetic, problem: Problem, state: State, save: Callable[[], None]) -> None:
    """Scores what of the population the archive lacks."""
    known = _by_key(state)
    new = [r for r in state.population if normalise(r["wording"]) not in known]
    # The first population's targets may depend on all of it, so it is scored in one go.
    at_once = max(len(new), 1) if state.targets is None else settings.at_once
    for start in range(0, len(new), at_once):
        part = new[start : start + at_once]
        scores_WEO = problem.score([r["wording"] for r in part])
        if state.targets is None:
            state.targets = [int(t) for t in settings.fitness.targets(scores_WEO, problem.gold_E)]
        target_E = np.array(state.targets)
        for record, scores_EO in zip(part, scores_WEO):
            fitness = settings.fitness.value(scores_EO, target_E)
            state.archive.append({**record, "generation": state.generation, "fitness": fitness})
        save()


def _select(settings: Genetic, state: State, keep: int) -> list[str]:
    pool = state.archive
    if settings.parents == "generation":
        known = _by_key(state)
        pool = [known[normalise(r["wording"])] for r in state.population]
    return [r["wording"] for r in ranked(pool)[:keep]]


def _begin(settings: Genetic, problem: Problem, path: Path) -> State:
    keys = [normalise(wording) for wording in problem.first]
    if not keys:
        raise UserError(f"Task '{problem.name}' has no wording to start the search from.")
    for i, key in enumerate(keys):
        if key in keys[:i]:
            raise UserError(f"Task '{problem.name}' starts from the wording '{problem.first[i]}' twice.")
    for wording in problem.first:
        problem.check(wording)
    free = dataclasses.replace(settings, generations=0)
    identity = f"{problem.name} {problem.fingerprint} {describe(free)} {list(problem.first)} {list(problem.options)}"
    if not path.exists():
        first = [{"wording": w, "parent": None, "operator": None} for w in problem.first]
        return State(identity, population=first)
    state = State(**json.loads(path.read_text(encoding="utf-8")))
    if state.identity != identity:
        raise UserError(
            f"{path} holds a search with other settings, first wordings or another task; give another MODEL_DIR, or "
            f"delete it."
        )
    if state.generation > settings.generations:
        raise UserError(f"{path} holds a search of {state.generation} generations, more than {settings.generations}.")
    if len(state.kept) <= settings.generations:
        state.rescored = {}  # of a shorter search that is now continued
    return state
