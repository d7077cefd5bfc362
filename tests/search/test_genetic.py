"""The genetic search itself, with fake scores and operators: what it keeps, rejects, reads and repeats."""

import dataclasses
import json
import random
import types

import numpy as np
import pytest

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.evaluation.metrics import normalise
from zeroprompt_jax.search import genetic, records
from zeroprompt_jax.search.fitness import LabelledDev, MeanLogit, PseudoLabel, ensemble
from zeroprompt_jax.search.genetic import Genetic, Problem

E, O = 12, 3
GOLD = np.random.default_rng(0).integers(0, O, E)
FIRST = ("say the word", "name a thing", "tell it now")
WORDS = "give find write the a big small word thing now then".split()


@dataclasses.dataclass(frozen=True)
class Words:
    """Swaps, adds and drops words."""

    children: int = 6

    def propose(self, parents, seeds, writer):
        out = []
        for parent, seed in zip(parents, seeds):
            draw, own = random.Random(seed), []
            for _ in range(self.children):
                words = parent.split()
                words.insert(draw.randint(0, len(words)), draw.choice(WORDS))
                words.pop(draw.randrange(len(words)))
                own.append(" ".join(words))
            out.append(own)
        return out


@dataclasses.dataclass(frozen=True)
class Says:
    """Proposes the same texts for every parent; {parent} is the parent."""

    texts: tuple[str, ...]

    def propose(self, parents, seeds, writer):
        return [[text.replace("{parent}", parent) for text in self.texts] for parent in parents]


class Scorer:
    """Scores that depend on the wording alone; counts what it is asked."""

    def __init__(self, stop_after=None):
        self.asked, self.stop_after = [], stop_after

    def __call__(self, names):
        out = []
        for name in names:
            if self.stop_after is not None and len(self.asked) >= self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(name)
            rng = np.random.default_rng(sum(map(ord, name)) * 7919 + len(name))
            skill = len(set(name.split()) & {"give", "word", "big"})
            out.append(rng.normal(size=(E, O)) - 3 + skill * np.eye(O)[GOLD])
        return np.array(out)


def problem(scorer=None, first=FIRST, **changes):
    return Problem(first, scorer or Scorer(), **{"gold_E": GOLD, **changes})


@pytest.fixture(autouse=True)
def no_time_passes(monkeypatch):
    """States say how long they took; without it they are the same to the byte."""
    monkeypatch.setattr(genetic, "time", types.SimpleNamespace(monotonic=lambda: 0.0))


def settings(**changes):
    return Genetic(**{"operators": (Words(),), "generations": 5, "at_once": 4, **changes})


@pytest.mark.parametrize("fitness", [LabelledDev(), PseudoLabel(), MeanLogit()], ids=lambda f: type(f).__name__)
@pytest.mark.parametrize("parents", genetic.PARENTS)
def test_archive_best_and_top_mean_never_fall(tmp_path, fitness, parents):
    made = settings(fitness=fitness, parents=parents)
    state = genetic.search(made, problem(), None, tmp_path / "s.json")
    steps = genetic.progress(state, 3)
    for key in ("best", "top"):
        values = [s[key] for s in steps]
        assert values == sorted(values)
        assert values[-1] > values[0] or isinstance(fitness, PseudoLabel)
    if parents == "generation" and isinstance(fitness, LabelledDev):
        own = [s["own"] for s in steps if s["own"] is not None]
        assert own != sorted(own)  # a generation's own best does fall, so the above says something
    assert genetic.best(state)["fitness"] == steps[-1]["best"]


def test_each_wording_is_scored_once_and_none_is_a_duplicate(tmp_path):
    scorer = Scorer()
    state = genetic.search(settings(generations=8), problem(scorer), None, tmp_path / "s.json")
    keys = [normalise(name) for name in scorer.asked]
    assert len(set(keys)) == len(keys) == len(state.archive) > 30
    assert sum(s["scored"] for s in genetic.progress(state, 3)) == len(keys)


def test_duplicates_are_told_by_normalised_text(tmp_path):
    says = Says(("SAY  the Word", "brand new one", "Brand new  ONE", "{parent}", "one"))
    scorer = Scorer()
    genetic.search(settings(operators=(says,), generations=2), problem(scorer), None, tmp_path / "s.json")
    assert scorer.asked == [*FIRST, "brand new one"]  # and a single word is no wording


def test_as_released_a_wording_may_return_but_is_not_scored_again(tmp_path):
    says = Says(("the first of them", "the second of them"))
    scorer = Scorer()
    made = settings(operators=(says,), generations=4, unique=False, keep=1)
    state = genetic.search(made, problem(scorer), None, tmp_path / "s.json")
    assert sorted(scorer.asked) == sorted([*FIRST, *says.texts])
    assert len(state.kept) == 5 and {names[0] for names in state.kept[1:]} == set(says.texts)


@pytest.mark.parametrize("stop", range(0, 60, 3))
def test_stopped_anywhere_it_goes_on_to_the_same_result(tmp_path, stop):
    made = settings(generations=3, rescore=True)
    whole = genetic.search(made, problem(), None, tmp_path / "whole.json")
    try:
        genetic.search(made, problem(Scorer(stop)), None, tmp_path / "s.json")
        stopped = False
    except KeyboardInterrupt:
        stopped = True
    scorer = Scorer()
    state = genetic.search(made, problem(scorer), None, tmp_path / "s.json")
    assert state == whole and stopped == (stop < len(whole.archive) + len(whole.rescored))
    assert (tmp_path / "s.json").read_text() == (tmp_path / "whole.json").read_text()
    # What was written before the stop is not scored again: at most one part of a generation is lost.
    lost = stop + len(scorer.asked) - len(whole.archive) - len(whole.rescored)
    assert not stopped or lost < max(made.at_once, len(whole.rescored))


def test_more_generations_continue_a_search(tmp_path):
    long = genetic.search(settings(generations=4), problem(), None, tmp_path / "long.json")
    genetic.search(settings(generations=2), problem(), None, tmp_path / "s.json")
    assert genetic.search(settings(generations=4), problem(), None, tmp_path / "s.json") == long
    with pytest.raises(UserError, match="of 4 generations, more than 1"):
        genetic.search(settings(generations=1), problem(), None, tmp_path / "s.json")
    with pytest.raises(UserError, match="other settings"):
        genetic.search(settings(generations=4, seed=1), problem(), None, tmp_path / "s.json")
    other = genetic.search(settings(generations=4, seed=1), problem(), None, tmp_path / "other.json")
    assert [r["wording"] for r in other.archive] != [r["wording"] for r in long.archive]


def test_placeholders_and_options_never_change(tmp_path):
    first = ("Of {input} say yes or no", "is {input} right, yes or no?")
    hostile = Says(
        (
            "", "no such thing", "X1 X1 X2 X3 again", "X3 and X1", "{input} X1 X2 X3 is", "X1 { X2 X3", "yes X1 X2",
            "x1 X2 X3 it", "{other} X1 X2 X3", "X1 X2 X3 or no", "X1, then X3 or X2 it is", "{parent} please",
        )
    )  # fmt: skip
    asked = Scorer()
    made = settings(operators=(hostile, Words()), generations=4)
    genetic.search(made, problem(asked, first, options=("yes", "no")), None, tmp_path / "s.json")
    assert len(asked.asked) > 10 and "{input}, then no or yes it is" in asked.asked
    for name in asked.asked:
        words = name.replace(",", "").replace("?", "").split()
        assert [words.count(w) for w in ("{input}", "yes", "no")] == [1, 1, 1] and name.count("{") == 1


def test_a_good_manual_wording_is_never_lost(tmp_path):
    def score(names):
        good = np.eye(O)[GOLD] * 5
        return np.array([good if name == FIRST[1] else -good for name in names])

    for made in (settings(), settings(parents="archive"), settings(rescore=True), settings(unique=False)):
        state = genetic.search(made, problem(score), None, tmp_path / f"{hash(made)}.json")
        found = genetic.best(state)
        assert found["wording"] == FIRST[1] and found["fitness"] == 1.0 and found["generation"] == 0


def test_poisoned_labels_do_not_change_a_pseudo_label_search(tmp_path):
    poisoned = (GOLD + 1) % O
    found = {}
    for name, fitness in (("pseudo", PseudoLabel()), ("labelled", LabelledDev())):
        for gold in (GOLD, poisoned, np.full(E, -1)):
            path = tmp_path / f"{name}{gold[0]}.json"
            genetic.search(settings(fitness=fitness), problem(gold_E=gold), None, path)
            found.setdefault(name, []).append(path.read_text())
    assert len(set(found["pseudo"])) == 1 and len(set(found["labelled"])) == 3
    assert not PseudoLabel.labels and LabelledDev.labels and MeanLogit.labels


def test_pseudo_labels_are_the_mean_of_normalised_probabilities():
    p = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.3, 0.7], [0.4, 0.6]], [[0.4, 0.6], [0.45, 0.55]]])
    scale = np.array([0.0, -50.0, -700.0])[:, None, None]  # a wording under which everything is unlikely counts as much
    scores = np.log(p) + scale
    np.testing.assert_allclose(np.exp(ensemble(scores)), p.mean(0), rtol=1e-12)
    # The majority of wordings says option 1 of the first example; the mean probability says option 0.
    assert PseudoLabel().targets(scores, None).tolist() == [0, 1]
    ragged = np.concatenate([scores, np.full((3, 2, 1), -np.inf)], axis=2)
    np.testing.assert_array_equal(PseudoLabel().targets(ragged, None), [0, 1])
    assert np.exp(ensemble(ragged))[:, 2].tolist() == [0, 0]


def test_fitness_values():
    scores, target = np.log([[0.7, 0.3], [0.4, 0.6], [0.5, 0.5]]), np.array([0, 0, 1])
    assert LabelledDev().value(scores, target) == PseudoLabel().value(scores, target) == pytest.approx(1 / 3)
    assert MeanLogit().value(scores, target) == pytest.approx(np.log([0.7, 0.4, 0.5]).mean())


def test_draws_depend_on_seed_generation_parent_and_operator_alone(tmp_path):
    seen = {}

    class Spy(Words):
        def propose(self, parents, seeds, writer):
            seen.update(dict(zip(parents, seeds)) if not seen else {})
            return super().propose(parents, seeds, writer)

    for first in (FIRST, FIRST[::-1], FIRST[:1]):
        seen.clear()
        path = tmp_path / f"{len(first)}{first[0]}.json"
        genetic.search(settings(operators=(Spy(),), generations=1), problem(first=first), None, path)
        alone = seen[FIRST[0]]
        assert alone == genetic._seed(0, 0, FIRST[0], records.describe(Spy()))
    keys = ((0, 0, "a", "o"), (1, 0, "a", "o"), (0, 1, "a", "o"), (0, 0, "b", "o"), (0, 0, "a", "p"))
    assert len({genetic._seed(*key) for key in keys}) == len(keys)


def test_where_no_child_survives_parents_try_again(tmp_path):
    state = genetic.search(settings(operators=(Says(("one",)),), generations=2), problem(), None, tmp_path / "s.json")
    assert len(state.archive) == 3 and state.generation == 2
    assert sorted(state.kept[0]) == sorted(state.kept[2]) == sorted(FIRST)


def test_unusable_searches_are_refused(tmp_path):
    path = tmp_path / "s.json"
    with pytest.raises(UserError, match="starts from the wording 'SAY the word' twice"):
        genetic.search(settings(), problem(first=("say the word", "SAY the word")), None, path)
    with pytest.raises(UserError, match="Task 'task' has no wording"):
        genetic.search(settings(), problem(first=()), None, path)
    with pytest.raises(UserError, match="kind of parents 'archiv'. Did you mean 'archive'"):
        settings(parents="archiv")
    with pytest.raises(UserError, match="operators is empty"):
        settings(operators=())

    def check(wording):
        if "big" in wording or "name" in wording:
            raise UserError("It does not fit.")

    with pytest.raises(UserError, match="It does not fit"):
        genetic.search(settings(), problem(check=check), None, path)
    state = genetic.search(settings(), problem(first=FIRST[::2], check=check), None, path)
    assert len(state.archive) > 10 and not any("big" in r["wording"] for r in state.archive)
    assert json.loads(path.read_text())["generation"] == 5
