"""Prompt search with a model: scores of a population, the study, its records, presets and benchmark."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zeroprompt_jax import config
from zeroprompt_jax.data import cards
from zeroprompt_jax.data.batches import Features
from zeroprompt_jax.data.pipeline import Data
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.evaluation.evaluate import Evaluate
from zeroprompt_jax.evaluation.predict import Predictor
from zeroprompt_jax.experiment import Experiment
from zeroprompt_jax.methods.full import Full
from zeroprompt_jax.models import t5
from zeroprompt_jax.search import prompt_benchmark, prompt_report, prompt_search, records
from zeroprompt_jax.search.fitness import PseudoLabel
from zeroprompt_jax.search.genetic import Genetic
from zeroprompt_jax.search.operators import Cloze, Crossover, Synonyms
from zeroprompt_jax.search.prompt_search import Examples, PromptSearch
from zeroprompt_jax.training.loop import Train
from zeroprompt_jax.training.partitioning import Mesh

pytestmark = pytest.mark.usefixtures("compile_fast")
V = load_vocabulary("bytes")
SMALL = dict(emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1, num_decoder_layers=1)
CONFIG = t5.T5Config(
    vocab_size=V.size, logits_via_embedding=True, dropout_rate=0.0, dtype="float32", scan_layers=False, **SMALL
)
CARD = cards.TaskCard(
    "letters",
    "t",
    ("Which?", "Say it.", "Tell which."),
    input_template="{input} ({options})",
    held_out_instructions=("So?",),
)
TABLE = (("which", "what"), ("say", "tell", "name"), ("it", "that", "this one"))


def examples(split):
    for i in range(40 if split == "train" else 6):
        options = ("a", "b", "cd")[: 2 + i % 2]
        yield {"input": "xyz" * (1 + i % 4), "target": options[i % 2], "options": options}


@pytest.fixture
def tasks(monkeypatch):
    monkeypatch.setattr(cards, "_TASKS", {})
    monkeypatch.setattr(cards, "_MIXTURES", {})
    for name in ("letters", "more/letters"):
        cards.register(dataclasses.replace(CARD, name=name), cards.Source(examples, name))
    cards.register_mixture("both", ["letters", "more/letters"])


@pytest.fixture(scope="module")
def predictor(compile_fast):
    params = jax.jit(lambda: t5.init(CONFIG, jax.random.key(0)))()
    # Random weights of T5's initialisation tell inputs apart by little, so the embeddings are larger.
    params["token_embedder"]["embedding"] *= 3
    variables = {"backbone": params, "method": {}}
    return Predictor(CONFIG, variables, Full(), V, Features(48, 4), batch_size=16, lengths=prompt_search.lengths(48))


def study(root, **changes):
    base = Experiment(
        Data("both", feature_lengths={"inputs": 40, "targets": 4}),
        Train(str(root), 1),
        CONFIG,
        mesh=Mesh(data=1),
        evaluate=Evaluate(batch_size=16),
    )
    search = Genetic((Synonyms(TABLE, 2), Crossover(1)), generations=2)
    return PromptSearch(**{"base": base, "genetic": search, "start": "train", "dev_examples": 4, **changes})


def test_a_populations_scores_are_those_of_each_prompt_alone(predictor):
    made = Examples.of(CARD, [*examples("test")])
    names = ["Which?", "Of {input}: {options}?", "", "which of these many?"]
    found = prompt_search.scores(predictor, CARD, made, names)
    assert found.shape == (4, 6, 3) and (found[:, ::2, 2] == -np.inf).all()
    for w, name in enumerate(names):
        np.testing.assert_allclose(found[w], prompt_search.scores(predictor, CARD, made, [name])[0], atol=1e-5)
    assert np.ptp(found[:, 0, 0]) > 1e-3  # wordings do matter to this model

    # An independent one: the model itself, every option by itself, nothing padded.
    @jax.jit
    def alone(encoder, target):
        inputs = jnp.pad(target, ((0, 0), (1, 0)))[:, :-1]
        logits = t5.T5(CONFIG).apply({"params": predictor.variables["backbone"]}, encoder, inputs).logits
        return jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], axis=-1).sum()

    for w, text in ((0, "Which? xyzxyz (a; b; cd)"), (1, "Of xyzxyz: a; b; cd?")):
        for o, option in enumerate(made.options[1]):
            want = alone(np.array([[*V.encode(text), 1]]), np.array([[*V.encode(option), 1]]))
            np.testing.assert_allclose(found[w, 1, o], want, atol=1e-5)


def test_lengths_waste_little():
    for inputs in (24, 64, 100, 512):
        made = prompt_search.lengths(inputs)
        assert made[-1] == inputs and list(made) == sorted(set(made)) and len(made) <= 24
    edges = np.array([0, *prompt_search.lengths(512)])
    assert max(b / (a + 1) for a, b in itertools.pairwise(edges[4:])) < 1.25


def test_tasks_that_cannot_be_searched_are_refused(tasks):
    with pytest.raises(UserError, match="'letters' has no answer options"):
        Examples.of(CARD, [{"input": "x", "target": "a"}])
    with pytest.raises(UserError, match="has no examples"):
        Examples.of(CARD, [])
    with pytest.raises(UserError, match="start of PromptSearch 'held-out'. Did you mean 'held_out'"):
        study("x", start="held-out")
    with pytest.raises(UserError, match="stratified draws by right answers, which the fitness PseudoLabel"):
        study("x", stratified=True, genetic=dataclasses.replace(study("x").genetic, fitness=PseudoLabel()))


@pytest.mark.parametrize("counts, size", [((1, 1, 1), 33), ((1, 1), 32), ((51, 49), 33), ((26, 26, 24, 24), 34)])
def test_stratified_sets_have_gps_sizes(tmp_path, counts, size):
    labels = [str(i) for i, n in enumerate(counts) for _ in range(n * 100 // sum(counts) + 1)]
    card = cards.TaskCard("t", "t", ("Which?",), options=tuple("0123"[: len(counts)]))
    source = cards.Source(lambda split: ({"input": str(i), "target": t} for i, t in enumerate(labels)), "1")
    made = study(tmp_path, stratified=True, dev_examples=32)
    drawn = prompt_search._dev(made, card, source)
    assert len(drawn) == size and len({e["input"] for e in drawn}) == size
    got = np.array([sum(e["target"] == o for e in drawn) for o in card.options])
    assert (got >= 32 * np.array([labels.count(o) for o in card.options]) / len(labels)).all()
    assert prompt_search._dev(made, card, source) == drawn


def test_a_study_from_end_to_end(tmp_path, tasks, capsys):
    made = study(tmp_path)
    with records.alone(tmp_path), pytest.raises(UserError, match="Another process is at work"):
        prompt_search.run(made)
    table = prompt_search.run(made, "zeroprompt search")
    found = records.read(tmp_path)
    assert [r["task"] for r in found] == ["letters", "more/letters"]
    for r in found:
        assert r["found"]["dev"] >= r["manual"]["dev"] >= r["first"]["dev"] and r["first"]["wording"] == "Which?"
        assert r["labels"] == r["examples"] == 4 and r["tflop"] > 0 and r["chance"]["test"] == pytest.approx(5 / 12)
        assert len(r["progress"]) == 3 and sum(g["scored"] for g in r["progress"]) == r["wordings"] > 5
    assert "labels used per task: 4" in table and "mean of 2" in table and (tmp_path / "table.txt").read_text() == table
    assert (tmp_path / "results.png").stat().st_size > 10_000

    # Stopped after the first task, and within the second, it comes to the same.
    before = (tmp_path / "records.jsonl").read_text().splitlines(True)
    (tmp_path / "records.jsonl").write_text(before[0])
    path = tmp_path / "tasks" / "more" / "letters.json"
    state = json.loads(path.read_text())
    again = dict(state, generation=0, kept=[], archive=state["archive"][:3], population=state["archive"][:3])
    again["population"] = [{k: r[k] for k in ("wording", "parent", "operator")} for r in again["population"]]
    path.write_text(json.dumps({**again, "seconds": 600.0}))
    capsys.readouterr()
    prompt_search.run(made)
    timeless = lambda r: {k: v for k, v in r.items() if k not in ("minutes", "seconds")}
    assert capsys.readouterr().err == "2 of 2: more/letters.\n"
    assert timeless(json.loads(path.read_text())) == timeless(state)
    # The time of the process that was stopped counts.
    assert 0 < state["seconds"] < 600 and 10 < records.read(tmp_path)[1]["minutes"] < 20
    assert [*map(timeless, records.read(tmp_path))] == [*map(timeless, found)]
    with pytest.raises(UserError, match="holds results of another configuration"):
        prompt_search.run(dataclasses.replace(made, dev_examples=5))


def test_a_pseudo_label_search_reads_no_right_answer(tmp_path, tasks, predictor):
    search = dataclasses.replace(study(tmp_path).genetic, fitness=PseudoLabel())
    made = study(tmp_path, genetic=search)
    record = prompt_search.search_task(made, "letters", predictor, None, tmp_path / "a.json")
    assert record["labels"] == 0
    poison = lambda split: ({**e, "target": e["options"][e["options"].index(e["target"]) - 1]} for e in examples(split))
    cards.register(dataclasses.replace(CARD, name="letters"), cards.Source(poison, "letters"), replace=True)
    other = prompt_search.search_task(made, "letters", predictor, None, tmp_path / "b.json")
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert {**one, "seconds": 0} == {**two, "seconds": 0}
    assert other["found"]["wording"] == record["found"]["wording"] and other["found"]["dev"] != record["found"]["dev"]


def test_presets_and_the_experiment_can_be_loaded():
    config.load(["experiments/genetic_search.gin"])
    own = config.make("PromptSearch")
    assert own.base.data.mixture == "procedural_search" and own.genetic.parents == "archive"
    assert len(own.genetic.operators[0].table) > 30
    config.load(["experiments/genetic_search.gin", "search/gps_paper.gin"])
    paper = config.make("PromptSearch").genetic
    assert paper.rescore and paper.unique and [type(o).__name__ for o in paper.operators] == ["Continuation"]
    config.load(["experiments/genetic_search.gin", "search/gps_released.gin"])
    released = config.make("PromptSearch")
    search = released.genetic
    assert released.stratified and released.dev_examples == 32 and not search.unique and not search.rescore
    assert search.generations == 8 and search.keep is None and search.parents == "generation"
    (operator,) = search.operators
    assert (operator.children, operator.max_length, operator.strategy.top_p) == (30, 50, 0.9)
    for preset in (paper, search):
        assert not any(isinstance(o, Crossover) for o in preset.operators)
    config.load(["experiments/genetic_search.gin"], ["Genetic.fitness = @fitness.PseudoLabel()"])
    assert isinstance(config.make("PromptSearch").genetic.fitness, PseudoLabel)
    assert records.describe(own.genetic) != records.describe(paper) and "0x" not in records.describe(own.genetic)
    assert isinstance(own.genetic.operators[1], Cloze)


def test_report_names_what_was_lost(tmp_path):
    entry = lambda dev, test: {"wording": f"w{dev}", "dev": dev, "test": test}
    record = {
        "task": "t", "type": "t", "first": entry(0.25, 0.3), "manual": entry(0.5, 0.4), "found": entry(0.75, 0.6),
        "chance": {"dev": 0.25, "test": 0.25}, "fitness": "LabelledDev", "labels": 32, "wordings": 10, "examples": 32,
        "tflop": 1.5, "minutes": 2.0,
        "progress": [{"best": 0.5, "top": 0.4, "own": 0.5, "scored": 3}, {"best": 0.75, "top": 0.7, "own": None, "scored": 0}],
    }  # fmt: skip
    text = prompt_report.write(tmp_path, [record], "zeroprompt search")
    assert "against first: +50.0 dev, +30.0 test; against the best manual: +25.0 dev, +20.0 test;" in text
    assert "best manual wording on dev: 0 of 1" in text
    assert "Scoring: 320 prompts, 1.5 TFLOP. Searching, new wordings included: 2.0 minutes." in text
    assert "25.0 / 30.0" in text
    assert "manual wording on dev: 1 of 1" in prompt_report.table([{**record, "manual": entry(0.8, 0.9)}])


def test_the_benchmark_measures_what_a_search_does(compile_fast):
    record = prompt_benchmark.measure(CONFIG, V, wordings=2, count=2, options=2, tokens=2, batch=4, rounds=1)
    assert record["search_s"] > 0 and record["bare_s"] > 0 and record["padding"] >= 1 and record["tflop"] > 0
    assert record["ratio"] == pytest.approx(record["search_s"] / record["bare_s"])
