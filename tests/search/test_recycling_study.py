"""The recycling study: its models, what it measures on which pairs, that it continues, and what it counts."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from zeroprompt_jax.data import cards
from zeroprompt_jax.data.pieces import EnglishWords
from zeroprompt_jax.data.pipeline import Data
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.evaluation.evaluate import Evaluate
from zeroprompt_jax.experiment import Experiment
from zeroprompt_jax.interop import huggingface
from zeroprompt_jax.methods.initialisers import Uniform
from zeroprompt_jax.methods.prompt import Prompt
from zeroprompt_jax.models import t5
from zeroprompt_jax.search import records, recycling_report, recycling_study
from zeroprompt_jax.search.recycling import Linear
from zeroprompt_jax.search.recycling_report import cases, paired, random_cases, summary, wilson
from zeroprompt_jax.search.recycling_study import Record, RecyclingStudy
from zeroprompt_jax.search.relatives import Rotated, Same, Trained
from zeroprompt_jax.training.loop import Train
from zeroprompt_jax.training.optimizer import Optimizer, Schedule
from zeroprompt_jax.training.partitioning import Mesh

SIZES = {"emb_dim": 8, "num_heads": 2, "head_dim": 4, "mlp_dim": 8, "num_encoder_layers": 1, "num_decoder_layers": 1}
CONFIG = t5.T5Config(
    vocab_size=8192, **SIZES, logits_via_embedding=True, dropout_rate=0.0, dtype="float32", scan_layers=False
)
MODELS = {"same": Same(), "rotated": Rotated(), "other width": Trained("pretraining/width", 1, width=12)}


@pytest.fixture(autouse=True)
def tasks(monkeypatch):
    monkeypatch.setattr(cards, "_TASKS", {})
    monkeypatch.setattr(cards, "_MIXTURES", {})
    names = []
    for place in range(2):

        def examples(split, place=place):
            words = ["cow", "dog", "bear", "cat", "hen"]
            for i in range(8):
                pair = words[i % 5], words[(i + 1 + i // 5) % 5]
                yield {"input": " ".join(pair), "target": pair[place]}

        names.append(f"word_{place}")
        cards.register(cards.TaskCard(names[-1], "word", ("",)), cards.Source(examples, "fixed"))
    cards.register_mixture("words", names)


def study(root, **changes) -> RecyclingStudy:
    backbone = root / "backbone"
    if not backbone.exists():
        shapes = jax.eval_shape(lambda: t5.init(CONFIG, jax.random.key(0)))
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
        huggingface.write_t5(backbone, params, CONFIG, "float32")
    data = Data("words", feature_lengths={"inputs": 8, "targets": 4}, vocabulary="packaged:t5_tiny")
    base = Experiment(
        data,
        Train(str(root), 1, initial_checkpoint_path=str(backbone), initial_checkpoint_regex="backbone/.*"),
        CONFIG,
        Prompt(per_task=True, length=3),
        Optimizer("adamw", Schedule(0.01)),
        mesh=Mesh(data=1),
        evaluate=Evaluate(batch_size=16, control=False),
    )
    pretraining = Experiment(data, Train(str(root), 1, batch_size=4), CONFIG, optimizer=base.optimizer, mesh=base.mesh)
    made = RecyclingStudy(base, pretraining, MODELS, {"v2v-lin": Linear()}, {"uniform": Uniform()})
    made = dataclasses.replace(made, steps=(1, 2), words=EnglishWords(0, 40), draws=2, choices=3, examples=6)
    return dataclasses.replace(made, **changes)


def test_mistakes_show_before_anything_runs(tmp_path):
    asked = study(tmp_path)
    for changes, match in (
        ({"sources": ("sane",)}, "model in RecyclingStudy.sources 'sane'. Did you mean 'same'"),
        ({"runs": 0}, "runs is 0"),
        ({"draws": 1}, "draws is 1"),
        ({"steps": ()}, "steps is"),
        ({"base": dataclasses.replace(asked.base, method=Prompt())}, "needs the method Prompt with per_task"),
    ):
        with pytest.raises(UserError, match=match):
            dataclasses.replace(asked, **changes)
    with pytest.raises(UserError, match="'x' continues from the backbone, whose width"):
        Trained("x", 1, scratch=False, width=4)


def test_a_study_is_one_process_alone(tmp_path, monkeypatch):
    asked = study(tmp_path)
    with records.alone(tmp_path), pytest.raises(UserError, match="Another process is at work"):
        recycling_study.run(asked)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="A study needs one process; this run has 2"):
        recycling_study.run(asked)


def test_questions_are_fixed_and_answerable(tmp_path):
    asked = study(tmp_path)
    questions = recycling_study._questions(asked)
    assert len(questions) == 12 and questions == recycling_study._questions(asked)
    for q in questions:
        assert len(set(q.options)) == 3 and list(q.options) == sorted(q.options)
        assert [q.options[place] for place in q.answers] == [q.text.split()[int(q.task[-1])]]
    assert len({q.answers for q in questions}) == 3


def test_every_right_answer_of_listed_options_counts(tmp_path, monkeypatch):
    fields = {"input": "which?", "target": "cow", "references": ("hen", "cow"), "options": ("dog", "cow", "cat", "hen")}
    cards.register(cards.TaskCard("listed", "word", ("",)), cards.Source(lambda split: iter([fields] * 2), "fixed"))
    cards.register_mixture("listed", ["listed"])
    asked = study(tmp_path)
    asked = dataclasses.replace(
        asked, base=dataclasses.replace(asked.base, data=dataclasses.replace(asked.base.data, mixture="listed"))
    )
    questions = recycling_study._questions(asked)
    assert [q.answers for q in questions] == [(1, 3)] * 2

    class Chooses:
        def __init__(self, *args, **kwargs):
            pass

        def score(self, texts, options, tasks):
            return [[-4.0, -3.0, -2.0, -1.0], [-4.0, -2.0, -1.0, -3.0]]  # one of the right answers, and a wrong one

    monkeypatch.setattr(recycling_study, "Predictor", Chooses)
    model = recycling_study._Model("m", tmp_path, CONFIG, {}, None, tmp_path)
    assert recycling_study._score(asked, model, None, questions) == ({"listed": 0.5}, {"listed": 1.5})


@pytest.mark.slow
def test_a_study_from_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(jax.config.values, "jax_disable_most_optimizations", True)
    asked = study(tmp_path)
    table = recycling_study.run(asked, "a title")
    found = recycling_study.measured(tmp_path)
    keys = [r.key for r in found]
    # Of each target: zero-shot, two re-tuned, four random; recycled from each, and copied where widths agree.
    assert len(keys) == len(set(keys)) == 3 * 7 + 9 * 2 + 5 * 2
    of = {r.key: r for r in found}
    for step in (1, 2):
        case = ("uniform", 0, step)
        own = of["same", "re-tuned", "same", *case]
        # On itself, and on the rotated copy, a prompt scores what it scored; as it stands it does not fit the copy.
        for target in ("same", "rotated"):
            mapped = of[target, "v2v-lin", "same", *case]
            assert mapped.scores == own.scores
            assert mapped.losses == pytest.approx(own.losses, abs=1e-3)
        assert of["rotated", "raw copy", "same", *case].losses != pytest.approx(own.losses, abs=1e-2)
    assert ("other width", "raw copy", "same", "uniform", 0, 1) not in of
    assert "other width" in table and "v2v-lin" in table and (tmp_path / "results.png").stat().st_size > 10_000
    prompts = {
        step: recycling_study._prompts(recycling_study._model(asked, "same"), "uniform", 0, step) for step in (1, 2)
    }
    assert prompts[1].shape == (2, 3, 8) and np.abs(prompts[1] - prompts[2]).max() > 0

    # Stopped early, the study measures what is missing and nothing else: models and prompts are there.
    before = (tmp_path / "records.jsonl").read_text()
    lines = before.splitlines(True)
    kept = [line for line in lines if json.loads(line)["method"] != "raw copy"]
    (tmp_path / "records.jsonl").write_text("".join(kept))
    capsys.readouterr()
    assert recycling_study.run(asked, "a title") == table
    assert "Prompts of" not in (told := capsys.readouterr().err) and "Model '" not in told
    assert sorted((tmp_path / "records.jsonl").read_text().splitlines(True)) == sorted(lines)


def test_wilson():
    assert wilson(8, 9) == pytest.approx((0.565, 0.980), abs=2e-3)
    assert wilson(0, 10)[0] == 0 and wilson(10, 10)[1] == pytest.approx(1)
    assert np.diff(wilson(5, 10)) > np.diff(wilson(500, 1000))


def made(method, score, source="", target="b", run=0, task="x"):
    step = 5 if source else 0
    return Record(target, method, source, "i" if source else "", run, step, {task: score}, {task: 1.0})


def baselines(target="b"):
    random = [made("random normal", 0.1 * i, target=target, run=i) for i in range(5)]
    return [made("zero-shot", 0.15, target=target), *random, made("re-tuned", 0.8, target, target)]


def test_cases_are_counted_against_random_prompts_not_zero_shot():
    recycled = [
        made("v2v-lin", 0.3, "a"),
        made("v2v-nn", 0.7, "a"),
        made("raw copy", 0.1, "a"),
        made("v2v-lin", 0.9, "b"),
    ]
    found = cases([*baselines(), *recycled, made("v2v-lin", 0.9, "a", "c")], ["a", "b", "c"])
    assert [(c.method, c.level, c.score) for c in found] == [
        ("v2v-lin", "b", 0.3), ("v2v-nn", "b", 0.7), ("raw copy", "b", 0.1), ("v2v-lin", "a", 0.9)
    ]  # fmt: skip
    assert found[0].random == pytest.approx(0.2) and found[0].bar == pytest.approx(0.38) and found[0].retuned == 0.8
    linear = summary([c for c in found if c.method == "v2v-lin"])
    assert (linear["n"], linear["recycled"], linear["above_zero"]) == (2, 1, 2)
    assert linear["gain"] == pytest.approx(0.4) and linear["closed"] == pytest.approx(0.4 / 0.6)
    # Pairs of cases alone are compared.
    assert paired(found, "v2v-lin", "v2v-nn")[0::2] == (pytest.approx(-0.4), 1)


def test_cases_of_one_pair_of_models_are_one_observation():
    # Three pairs, which differ by -0.1, 0 and 0.4: their t interval has two degrees of freedom.
    ways = (("a", "b", -0.1), ("b", "a", -0.1), ("a", "c", 0.0), ("b", "c", 0.4))
    target = {"b": "a", "a": "b", "c": "c"}
    records = [r for name in target for r in baselines(name)]
    other = [made("v2v-nn", 0.5, source, to) for source, to, _ in ways]
    own = [made("v2v-lin", 0.5 + apart, source, to) for source, to, apart in ways]
    mean, half, n = paired(cases([*records, *other, *own], ["a", "b", "c"]), "v2v-lin", "v2v-nn")
    assert n == 3 and mean == pytest.approx(0.1)
    assert half == pytest.approx(4.3027 * np.std([-0.1, 0, 0.4], ddof=1) / 3**0.5, rel=1e-4)
    # The same again, as further tasks of the same models, tells nothing more of other models.
    again = [dataclasses.replace(r, scores={"x": r.scores["x"], "y": r.scores["x"]}) for r in [*records, *other, *own]]
    assert paired(cases(again, ["a", "b", "c"]), "v2v-lin", "v2v-nn") == pytest.approx((mean, half, 3))


def test_the_null_rate_is_that_of_random_prompts_among_themselves():
    rng = np.random.default_rng(0)
    tasks = [f"t{i}" for i in range(200)]
    record = lambda method, source="", run=0: Record(
        "b", method, source, "i" if source else "", run, 5 if source else 0, dict(zip(tasks, rng.random(200)))
    )
    drawn = [record(kind, run=i) for kind in ("random normal", "random words") for i in range(8)]
    records = [record("zero-shot"), *drawn, record("re-tuned", "b"), record("v2v-lin", "a"), record("v2v-nn", "a")]
    found = cases(records, ["a", "b"])
    null = random_cases(records, found)
    assert len(null) == 16 * 200 and {c.level for c in null} == {"b"}
    counts = summary(null)
    # Of 15 others the interpolated percentile lies between the first and the second, so the rate is near 1/16 to 2/16.
    assert 1 / 16 <= counts["recycled"] / counts["n"] < 2 / 16 and counts["gain"] == pytest.approx(0)
    # Prompts that are drawn like the random ones are counted as often.
    alike = summary(found)
    assert abs(alike["recycled"] / alike["n"] - counts["recycled"] / counts["n"]) < 0.05


def test_table_and_picture(tmp_path):
    found = [*baselines("a"), *baselines()]
    assert "No pair" in recycling_report.write(tmp_path, found, ["a", "b"], ["v2v-lin", "v2v-nn"], "t")
    for source, target in (("a", "a"), ("a", "b"), ("b", "a")):
        found += [made("v2v-lin", 0.75, source, target), made("v2v-nn", 0.5, source, target)]
    text = recycling_report.write(tmp_path, found, ["a", "b"], ["v2v-lin", "v2v-nn"], "t")
    assert "2/2" in text and "1/1" in text and "+55.0" in text and "5 random prompts" in text
    lines = [line.split() for line in text.splitlines()]
    # One pair of models has no interval; on each target five draws are counted, each against the others.
    assert ["v2v-lin", "+25.0", "1"] in lines
    assert [line[:3] for line in lines if line[1:2] == ["random"]] == [["a", "random", "1/5"], ["b", "random", "2/10"]]
    assert (tmp_path / "results.png").stat().st_size > 10_000 and (tmp_path / "table.txt").read_text() == text
