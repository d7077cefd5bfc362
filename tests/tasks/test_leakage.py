"""What a training mixture has seen of a test mixture: known overlaps are found, and nothing else is called a leak."""

import pytest

from zeroprompt_jax.data import cards
from zeroprompt_jax.tasks import flan, glue, leakage, mpt_sets, nli_sets, p3, super_glue


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    monkeypatch.setattr(cards, "_TASKS", {})
    monkeypatch.setattr(cards, "_MIXTURES", {})
    for module in (glue, super_glue, nli_sets, mpt_sets, flan, p3):
        module.register()


def leaked(train, test):
    """Test task to why: of several reasons, that it is the same data set."""
    found = {}
    for leak in leakage.find(cards.mixture(train), cards.mixture(test)):
        for task in leak.tested:
            found[task] = min(found.get(task, leak.why), leak.why, key=lambda why: why != "the same data set")
    return found


def test_t0_has_seen_five_tasks_of_glue():
    found = leaked("p3_t0_train", "glue")
    assert set(found) == {"glue/mrpc", "glue/qqp", "glue/stsb", "glue/sst2", "glue/qnli"}
    assert found["glue/qqp"] == "the same data set" and "Rotten Tomatoes" in found["glue/sst2"]
    assert set(leaked("p3_t0_train", "super_glue")) == {"super_glue/record"}  # CNN's articles


def test_later_models_have_seen_what_t0_is_tested_on():
    families = lambda found: {cards.card(task).family for task in found}
    same = {task for task, why in leaked("p3_t0pp_train", "p3_t0_eval").items() if why == "the same data set"}
    assert families(same) == {"copa", "hellaswag", "wic", "wsc"}
    assert "the same data set" not in leaked("p3_t0_train", "p3_t0_eval").values()
    assert "the same data set" not in leaked("p3_t0pp_train", "p3_t0pp_eval").values()


def test_mpt_sources_are_among_its_targets():
    same = {task for task, why in leaked("mpt_sources", "mpt_targets").items() if why == "the same data set"}
    assert same == {"mpt/mnli", "mpt/qqp", "mpt/qnli", "mpt/sst2"}
    assert "SQuAD" in leaked("mpt/squad", "mpt_glue")["mpt/qnli"] and "mpt/rte" not in leaked("mpt/squad", "mpt_glue")


def test_one_data_set_in_two_benchmarks():
    assert leaked("glue", "super_glue") == {"super_glue/rte": "the same data set"}
    assert set(leaked("nli", "glue")) == {"glue/mnli"}
    assert set(leaked("flan_without_textual_entailment", "nli_anli").values()) == {
        "ANLI's first rounds take HotpotQA's passages"
    }


@pytest.mark.parametrize(
    "family, task",
    [
        ("multinli, https://cims.nyu.edu/~sbowman/multinli/paper.pdf", "glue/mnli"),
        ("glue sts-b https://openreview.net/pdf?id=rj4km2r5t7", "glue/stsb"),
        ('copa ("https://aclanthology.org/s12-1052.pdf")', "super_glue/copa"),
        ("e-snli dataset", "nli/snli"),
        ("arithmetic+record 1.0", "super_glue/record"),
        ("newsqa", "super_glue/record"),
    ],
)
def test_free_texts_name_data_sets(family, task):
    card = cards.TaskCard(name="task1", type="t", instructions=("x",), family=family)
    cards.register(card, cards.Source(lambda split: (), "1"))
    assert [leak.tested for leak in leakage.find(["task1"], [task, "super_glue/wic"])] == [(task,)]


def test_unlike_names_are_no_leak():
    for family in ("strange dreams of the human race", "arithmetic", "snlight", "a world record"):
        card = cards.TaskCard(name="task1", type="t", instructions=("x",), family=family)
        cards.register(card, cards.Source(lambda split: (), family), replace=True)
        assert not leakage.find(
            ["task1"], [*cards.mixture("glue"), *cards.mixture("super_glue"), *cards.mixture("nli")]
        )
