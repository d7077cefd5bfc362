"""Evaluation of a tiny random model: against loops over single examples, and metrics recomputed from its file."""

import collections
import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from zeroprompt_jax.data.batches import EvalSet, Features
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.evaluation import evaluate as module
from zeroprompt_jax.evaluation import metrics
from zeroprompt_jax.evaluation.evaluate import Evaluate, evaluate
from zeroprompt_jax.methods.full import Full
from zeroprompt_jax.models import decoding, t5
from zeroprompt_jax.training.partitioning import Mesh

pytestmark = pytest.mark.usefixtures("compile_fast")
FEATURES = Features(inputs=64, targets=6)
GROUPS = {"seen": ["words", "yes_no"], "unseen": ["long", "own", "words"]}
SETTINGS = Evaluate(batch_size=16)


@pytest.fixture(scope="module")
def run(store, config, variables, vocabulary, tmp_path_factory):
    """run(settings, …) -> (Evaluation, the lines of its predictions file)."""
    folder = tmp_path_factory.mktemp("predictions")

    def run(settings=SETTINGS, groups=GROUPS, **options):
        path = folder / "nested" / "predictions.jsonl"
        options = {"features": FEATURES, "variables": variables, "config": config, **options}
        found = evaluate(
            method=Full(),
            store=store,
            groups=groups,
            split="test",
            vocabulary=vocabulary,
            settings=settings,
            predictions=path,
            **options,
        )
        return found, [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    return run


@pytest.fixture(scope="module")
def base(run):
    return run()


def of(evaluation, task, group=None):
    return next(r for r in evaluation.tasks if r["task"] == task and group in (None, r["group"]))


def same(one, other, rtol=1e-5):
    """Evaluations that agree, floats within a tolerance."""
    losses = ("loss", "shuffled_loss")
    for a, b in zip(one.tasks, other.tasks, strict=True):
        assert {k: v for k, v in a.items() if k not in losses} == {k: v for k, v in b.items() if k not in losses}
        # None, without a control, becomes nan.
        np.testing.assert_allclose(*(np.array([made[k] for k in losses], float) for made in (a, b)), rtol=rtol)
    np.testing.assert_allclose(list(one.losses.values()), list(other.losses.values()), rtol=rtol)


def test_answers_are_those_of_single_examples(base, store, config, variables, vocabulary):
    data = EvalSet(store, ["words", "yes_no", "long", "own"], "test", FEATURES)
    rows = next(data.batches(len(data)))
    backbone = t5.Backbone(config, variables["backbone"])

    @jax.jit
    def greedy(encoder):
        return decoding.generate(backbone, encoder, max_length=FEATURES.targets)

    @jax.jit
    def log_probs(encoder, decoder):
        return jax.nn.log_softmax(backbone(encoder, decoder).logits)

    _, lines = base
    assert len(lines) == len(data) == 36
    for i, (example, line) in enumerate(zip(data.examples, lines)):
        assert (line["task"], line["example"], line["wording"]) == (example.task, example.example, example.wording)
        assert line["references"] == list(example.references) and line["input"] == example.input
        encoder = rows["encoder_input_tokens"][i : i + 1]
        if example.options:
            likelihoods = []
            for option in example.options:
                ids = [*vocabulary.encode(option), 1]
                decoder = np.zeros((1, 32), np.int32)
                decoder[0, 1 : len(ids)] = ids[:-1]
                logp = log_probs(encoder, decoder)[0]
                likelihoods.append(sum(float(logp[p, t]) for p, t in enumerate(ids)))
            assert line["prediction"] == example.options[int(np.argmax(likelihoods))]
            assert abs(line["score"] - max(likelihoods)) < 1e-4
        else:
            tokens, scores = greedy(encoder)
            assert line["prediction"] == vocabulary.decode(tokens[0, 0].tolist())
            assert abs(line["score"] - float(scores[0, 0])) < 1e-4
    generated = [line["prediction"] for line in lines if not line["options"]]
    ranked = [line["options"].index(line["prediction"]) for line in lines if line["options"]]
    assert len(set(generated)) > 3 and len(set(ranked)) > 1, "answers hardly differ, so this test shows little"


def test_losses_are_the_mean_over_target_tokens(base, store, config, variables):
    evaluation, _ = base
    data = EvalSet(store, ["words", "yes_no", "long", "own"], "test", FEATURES)
    rows = next(data.batches(len(data)))
    weights, targets = rows["decoder_loss_weights"], rows["decoder_target_tokens"]
    logits = jax.jit(lambda *tokens: t5.Backbone(config, variables["backbone"])(*tokens).logits)(
        rows["encoder_input_tokens"], rows["decoder_input_tokens"]
    )
    nll = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), targets[..., None], axis=-1)[..., 0] * weights
    for group, tasks in GROUPS.items():
        here = np.array([example.task in tasks for example in data.examples])
        assert abs(evaluation.losses[group] - nll[here].sum() / weights[here].sum()) < 1e-4
    for result in evaluation.tasks:
        here = np.array([example.task == result["task"] for example in data.examples])
        assert abs(result["loss"] - nll[here].sum() / weights[here].sum()) < 1e-4


def test_scores_and_baselines_are_the_metrics_of_what_was_written(base, store):
    evaluation, lines = base
    by_task = collections.defaultdict(list)
    for line in lines:
        by_task[line["task"]].append(line)
    assert [(r["group"], r["task"]) for r in evaluation.tasks] == [(g, t) for g, tasks in GROUPS.items() for t in tasks]
    for result in evaluation.tasks:
        card, mine = store.card(result["task"]), by_task[result["task"]]
        references = [line["references"] for line in mine]
        first = metrics.METRICS[card.metrics[0]]
        assert (result["type"], result["family"], result["metric"]) == (card.type, card.family, card.metrics[0])
        assert list(result["metrics"]) == list(card.metrics) and result["score"] == result["metrics"][card.metrics[0]]
        assert result["score"] == first([line["prediction"] for line in mine], references)
        assert result["shuffled"] == first([line["shuffled_prediction"] for line in mine], references)
        assert result["examples"] == len(mine) == 9 and result["ranked"] == bool(mine[0]["options"])
        majority = first([metrics.majority_baseline(references)] * 9, references)
        copy = first([line["input"] for line in mine], references)
        assert result["baseline"] == max(majority, copy) and result["baseline_kind"] == (
            "copy" if copy > majority else "majority"
        )
        assert set(result["per_wording"]) == ({0, 1, 2} if result["task"] == "words" else {0, 1})
        sizes = collections.Counter(line["wording"] for line in mine)
        mean = sum(score * sizes[w] for w, score in result["per_wording"].items()) / 9
        assert abs(mean - result["score"]) < 1e-12
    assert {r["baseline_kind"] for r in evaluation.tasks} == {"majority", "copy"}


def test_a_model_that_knows_the_answers_scores_one(run, monkeypatch, store, vocabulary):
    """The path from tokens to score, with an oracle in the place of the model."""

    def oracle(variables, batch, **_):
        rows = len(batch["task_ids"])
        return {
            "nll": np.zeros(rows),
            "tokens": np.ones(rows),
            "answers": batch["decoder_target_tokens"],
            "scores": np.zeros(rows),
        }

    def ranking_oracle(variables, batch, **_):
        targets, options, lengths = batch["decoder_target_tokens"], batch["options"], batch["option_mask"] * 1.0
        hit = [[o[o > 0].tolist() == target[target > 0].tolist() for o in row] for row, target in zip(options, targets)]
        return {"nll": lengths[:, 0], "tokens": lengths[:, 0], "sums": np.where(hit, -1.0, -2.0), "lengths": lengths}

    monkeypatch.setattr(module, "generate_step", oracle)
    monkeypatch.setattr(module, "rank_step", ranking_oracle)
    found, _ = run(groups={"all": ["words", "own"]}, features=Features(64, 12))
    assert [r["score"] for r in found.tasks] == [1.0, 1.0]
    assert all(r["baseline"] < 1 for r in found.tasks)


@pytest.mark.parametrize(
    "settings",
    [SETTINGS, dataclasses.replace(SETTINGS, strategy=decoding.Sample(), rank_options=False, control=False)],
    ids=["greedy and ranking", "sampling"],
)
def test_how_examples_are_batched_changes_nothing(run, settings, monkeypatch):
    want, lines = run(settings)
    got, got_lines = run(dataclasses.replace(settings, batch_size=5))
    same(want, got)
    assert [line["prediction"] for line in got_lines] == [line["prediction"] for line in lines]
    # Nor which tasks are evaluated together, nor sorting them by length.
    if settings.rank_options:
        monkeypatch.setattr(module, "_LONG", 64)
    alone, alone_lines = run(dataclasses.replace(settings, control=False), groups={"one": ["words"]})
    assert [line["prediction"] for line in alone_lines] == [
        line["prediction"] for line in lines if line["task"] == "words"
    ]
    assert alone.tasks[0]["score"] == of(want, "words")["score"]


def test_long_inputs_are_sorted_by_length_and_every_example_is_in_one_batch():
    rng = np.random.default_rng(0)
    used = rng.integers(1, 257, 100)
    tokens = (np.arange(256) < used[:, None]).astype(np.int32)
    options = rng.choice([0, 0, 2, 3, 7], 100)
    jobs = module._jobs(tokens, options, 32, None)
    assert sorted(i for job in jobs for i in job.index[: job.kept]) == list(range(100))
    for job in jobs:
        assert used[job.index].max() <= job.length and all(options[job.index] <= (job.options or 0))
        assert (options[job.index] > 0).all() == (job.options is not None)
        assert len(job.index) * (job.options or 1) <= 32
    assert {job.length for job in jobs} == {64, 128, 256}
    assert len({(job.length, job.options, len(job.index)) for job in jobs}) <= 3 * 3


def test_batches_divide_over_the_mesh():
    mesh = types.SimpleNamespace(shape={"replica": 1, "data": 4, "fsdp": 2, "model": 2})
    tokens, options = np.ones((21, 8), np.int32), np.array([0] * 10 + [3] * 6 + [30] * 5)
    jobs = module._jobs(tokens, options, 32, mesh)
    assert {job.options for job in jobs} == {None, 4, 64} and all(len(job.index) % 8 == 0 for job in jobs)
    assert sorted(i for job in jobs for i in job.index[: job.kept]) == list(range(21))
    with pytest.raises(UserError, match="Evaluate.batch_size 20 does not divide .* 4 × 2"):
        module._jobs(tokens, options, 20, mesh)


def test_settings_do_what_they_say(run, base):
    ranked, _ = base
    free, lines = run(dataclasses.replace(SETTINGS, rank_options=False, control=False))
    assert not of(free, "yes_no")["ranked"] and of(ranked, "yes_no")["ranked"]
    assert any(line["prediction"] not in line["options"] for line in lines if line["task"] == "yes_no")
    assert all(r["shuffled"] is None for r in free.tasks) and "shuffled_prediction" not in lines[0]
    few, lines = run(dataclasses.replace(SETTINGS, max_examples_per_task=8, control=False))
    assert [r["examples"] for r in few.tasks] == [8] * 5 and len(lines) == 32
    trained, lines = run(dataclasses.replace(SETTINGS, wordings="train", control=False))
    assert set(of(trained, "words")["per_wording"]) == {0, 1}
    one, _ = run(groups={"one": ["words"]})
    assert one.tasks[0]["shuffled"] is None, "a single task has no other task's instruction"


def test_length_normalisation_compares_means(run, base, vocabulary):
    _, by_sum = base
    _, by_mean = run(dataclasses.replace(SETTINGS, length_normalised=True, control=False))
    differ = [
        (a["prediction"], b["prediction"])
        for a, b in zip(by_sum, by_mean)
        if a["options"] and a["prediction"] != b["prediction"]
    ]
    assert differ and all(len(b) > len(a) for a, b in differ)


def test_the_control_reads_another_tasks_instruction(base):
    _, lines = base
    changed = sum(line["prediction"] != line["shuffled_prediction"] for line in lines if not line["options"])
    assert changed > 3


def test_rows_and_summary_are_means_over_tasks(base):
    evaluation, _ = base
    rows = {(row.group, row.type): row for row in evaluation.rows()}
    assert set(rows) == {("seen", "copy"), ("seen", "choice"), ("unseen", "copy"), ("unseen", "choice")}
    row, members = rows["unseen", "copy"], [of(evaluation, t, "unseen") for t in ("long", "words")]
    assert (row.tasks, row.families, row.examples) == (2, 1, 18)
    for name in ("score", "baseline", "shuffled"):
        assert getattr(row, name) == np.mean([m[name] for m in members])
    # A further metric is averaged over the tasks that have it, also where it is some of those tasks' first.
    both = np.mean([m["metrics"]["exact_match"] for m in members])
    assert row.more == {"exact_match": both, "rouge1": members[1]["metrics"]["rouge1"]}
    summary = evaluation.summary()
    assert set(summary) == {f"{g}/{k}" for g in GROUPS for k in ("score", "baseline", "shuffled", "loss")}
    for group, tasks in GROUPS.items():
        assert abs(summary[f"{group}/score"] - np.mean([of(evaluation, t, group)["score"] for t in tasks])) < 1e-12
        assert summary[f"{group}/loss"] == evaluation.losses[group]
    assert evaluation.metric == "score"
    assert dataclasses.replace(evaluation, tasks=[of(evaluation, "own")]).metric == "accuracy"


def test_progress_counts_every_example_once(run):
    seen = []
    run(progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (72, 72) and [d for d, _ in seen] == sorted({d for d, _ in seen})


def test_a_second_evaluation_compiles_nothing(run, base):
    before = module.generate_step._cache_size(), module.rank_step._cache_size()
    same(run()[0], base[0], rtol=0)
    assert (module.generate_step._cache_size(), module.rank_step._cache_size()) == before


def test_a_mesh_changes_nothing(run):
    groups = {"g": ["words", "yes_no"]}
    same(run(groups=groups, mesh=Mesh().build(jax.devices()[:1]))[0], run(groups=groups)[0])


def test_auc_reads_the_scores_of_all_options(run, store, monkeypatch):
    card = dataclasses.replace(store.card("yes_no"), metrics=("auc", "accuracy"))
    monkeypatch.setattr(store, "card", lambda name: card)
    given = []

    def auc(predictions, references, options=None, scores=None):
        given.append((predictions, options, scores))
        return metrics.auc(predictions, references, options, scores)

    monkeypatch.setitem(metrics.METRICS, "auc", auc)
    monkeypatch.setattr(module, "_BASELINES", {})
    found, lines = run(groups={"g": ["yes_no"]}, settings=dataclasses.replace(SETTINGS, control=False), trained=())
    (result,) = found.tasks
    predictions, options, scores = given[0]
    assert predictions == [line["prediction"] for line in lines] and len(predictions) == 9
    for line, own in zip(lines, scores):
        assert len(own) == 3 and max(own) == pytest.approx(line["score"])
        assert line["prediction"] == card.options[int(np.argmax(own))]
    references = [line["references"] for line in lines]
    assert result["score"] == metrics.auc(predictions, references, options, scores) != 0.5
    assert result["metrics"]["auc"] == result["score"] and result["baseline"] == 0.5  # of one answer for all
    # Generated answers have no scores, and count as certain.
    run(groups={"g": ["yes_no"]}, settings=dataclasses.replace(SETTINGS, control=False, rank_options=False))
    assert given[-1][2] is None
    monkeypatch.setattr(store, "card", lambda name: dataclasses.replace(card, options=()))
    with pytest.raises(UserError, match="Task 'words' has the metric auc, but its examples list no answer options"):
        run(groups={"g": ["words"]})


def test_f1_needs_two_options_in_one_order(run, store, monkeypatch):
    card = dataclasses.replace(store.card("yes_no"), metrics=("f1",))  # of three options
    monkeypatch.setattr(store, "card", lambda name: card)
    with pytest.raises(UserError, match="Task 'yes_no' has the metric f1, of the second .* give it macro_f1"):
        run(groups={"g": ["yes_no"]})


def test_the_baseline_is_the_best_of_all_constant_answers():
    examples = [types.SimpleNamespace(references=(a,), options=("no", "yes"), input="") for a in ("no",) * 3 + ("yes",)]
    assert module.baseline("f1", examples) == (pytest.approx(2 / (2 + 3)), "majority")
    assert module.baseline("accuracy", examples) == (0.75, "majority")


def test_labels_that_training_was_given_are_counted(run, base):
    assert {r["labels"] for r in base[0].tasks} == {None} and {row.labels for row in base[0].rows()} == {None}
    found, _ = run(settings=dataclasses.replace(SETTINGS, control=False), trained=("words", "elsewhere"))
    assert {r["task"]: r["labels"] for r in found.tasks} == {"words": 9, "yes_no": 0, "long": 0, "own": 0}
    assert {(row.group, row.type): row.labels for row in found.rows()}["unseen", "copy"] == 4.5


def test_bad_settings_are_named(run, store, monkeypatch):
    for make, words in [
        (lambda: Evaluate(batch_size=0), "batch_size"),
        (lambda: Evaluate(max_examples_per_task=0), "max_examples_per_task"),
        (lambda: Evaluate(wordings="heldout"), "Did you mean 'held_out'"),
    ]:
        with pytest.raises(UserError, match=words):
            make()
    with pytest.raises(UserError, match="Did you mean 'words'"):
        run(groups={"g": ["word"]})
    card = dataclasses.replace(store.card("words"), metrics=("exact_mach",))
    monkeypatch.setattr(store, "card", lambda name: card)
    with pytest.raises(UserError, match="Did you mean 'exact_match'"):
        run(groups={"g": ["words"]})


def test_settings_out_of_range():
    for name in ("batch_size", "max_examples_per_task"):
        with pytest.raises(UserError, match=f"Evaluate.{name} is 0; it must be at least 1."):
            Evaluate(**{name: 0})
    assert Evaluate(batch_size=1, max_examples_per_task=None)
