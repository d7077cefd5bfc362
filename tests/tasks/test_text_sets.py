"""The registries of public data sets: counts, T5's text-to-text forms written out, rules that keep splits apart."""

import itertools
import json
import tarfile

import pytest

from zeroprompt_jax.data import cards, few_shot
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.evaluation.metrics import METRICS
from zeroprompt_jax.tasks import flan, glue, lm_bff, mpt_sets, mrqa, nli_sets, super_glue, tfds_source

REGISTRIES = {"glue": glue, "super_glue": super_glue, "mrqa": mrqa, "nli": nli_sets, "mpt": mpt_sets, "flan": flan}


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    monkeypatch.setattr(cards, "_TASKS", {})
    monkeypatch.setattr(cards, "_MIXTURES", {})
    monkeypatch.delenv(tfds_source.ENVIRONMENT, raising=False)
    for module in (*REGISTRIES.values(), lm_bff):
        module.register()


def read(module, task, row, split="train"):
    """What is made of a row: the instruction with the input, the targets, and the references."""
    text_set = next(s for s in module.SETS if s.name == task.partition("/")[2])
    card = cards.card(task)
    made = [cards.render(card, e) for e in text_set.examples(row, split)]
    return (
        [f"{card.instructions[0]} {r.input}".strip() for r in made],
        [r.target for r in made],
        [r.references for r in made],
    )


def test_counts():
    counts = {name: len(cards.mixture(name)) for name in cards.mixture_names()}
    wanted = {"glue": 8, "super_glue": 8, "mrqa": 6, "nli": 6, "lm_bff": 15, "lm_bff_16": 75}
    wanted |= {"mpt_sources": 6, "mpt_targets": 21, "mpt_glue": 8, "mpt_super_glue": 5, "mpt_mrqa": 4, "mpt_others": 4}
    assert {name: counts[name] for name in wanted} == wanted
    assert len(mpt_sets.SETS) == len({s.name for s in mpt_sets.SETS}) == 23


@pytest.mark.parametrize("registry_name", [*REGISTRIES, "lm_bff"])
def test_every_card_can_be_scored(registry_name):
    module = REGISTRIES.get(registry_name, lm_bff)
    for text_set in module.SETS:
        card = cards.card(f"{registry_name}/{text_set.name}")
        assert set(card.metrics) <= METRICS.keys() and card.family and "test" in text_set.splits
        assert "f1" not in card.metrics or len(card.options) == 2
        assert not text_set.words or len(text_set.words) == len(text_set.classes or text_set.words)


def test_glue_is_as_t5_writes_it():
    row = {"premise": "It rains.", "hypothesis": "It is wet.", "label": 0, "idx": 3}
    assert read(glue, "glue/mnli", row)[:2] == (["mnli hypothesis: It is wet. premise: It rains."], ["entailment"])
    row = {"sentence1": "a", "sentence2": "b", "label": 1}
    assert read(glue, "glue/mrpc", row)[:2] == (["mrpc sentence1: a sentence2: b"], ["equivalent"])
    scores = [(0.0, "0.0"), (1.25, "1.2"), (2.95, "3.0"), (4.333, "4.4"), (5.0, "5.0")]
    for label, target in scores:
        assert read(glue, "glue/stsb", row | {"label": label})[1] == [target]
    assert read(glue, "glue/stsb", row | {"label": -1.0}) == ([], [], [])


def test_wsc_marks_both_spans():
    row = {
        "text": "Mark told Pete many lies about himself , which Pete included in his book .",
        **{"span1_index": 0, "span1_text": "Mark", "span2_index": 12, "span2_text": "his", "label": 0},
    }
    marked = "wsc text: * Mark * told Pete many lies about himself , which Pete included in # his # book ."
    assert read(super_glue, "super_glue/wsc", row)[:2] == ([marked], ["False"])
    swapped = {"span1_index": 12, "span1_text": "his book", "span2_index": 0, "span2_text": "Mark", "label": 1}
    inputs, targets, _ = read(super_glue, "super_glue/wsc", row | swapped)
    assert inputs[0].startswith("wsc text: # Mark # told") and inputs[0].endswith("in * his book * .")
    assert targets == ["True"]
    glued = row | {
        "text": "Pete's book, Mark said.",
        "span1_index": 1,
        "span1_text": "book",
        "span2_text": "Mark",
        "span2_index": 2,
    }
    assert read(super_glue, "super_glue/wsc", glued)[0] == ["wsc text: Pete's * book *, # Mark # said."]
    for place in (3, 40):
        unmarked = read(super_glue, "super_glue/wsc", row | {"span2_index": place})[0][0]
        assert unmarked.startswith("wsc text: * Mark * told") and "#" not in unmarked


def test_record_has_an_example_an_answer_and_any_counts_in_the_test():
    row = {
        "passage": "A bird came.\n@highlight\nIt sang\n@highlight\nAll heard it",
        **{"query": "The @placeholder sang.", "entities": ["bird", "cat"], "answers": ["bird", "cat", "bird"]},
    }
    text = "record query: The @placeholder sang. entities: bird, cat passage: A bird came. It sang. All heard it"
    assert read(super_glue, "super_glue/record", row) == ([text] * 2, ["bird", "cat"], [("bird",), ("cat",)])
    assert read(super_glue, "super_glue/record", row, "test") == ([text], ["bird"], [("bird", "cat")])
    assert read(super_glue, "super_glue/record", row | {"answers": []}, "test") == ([], [], [])
    with pytest.raises(UserError, match="'super_glue/record:1.0.2': a row has no field 'passage'; it has query"):
        read(super_glue, "super_glue/record", {"query": "The @placeholder sang."})


def test_multirc_is_asked_answer_by_answer():
    row = {"question": "<b>Who</b>?", "answer": "Ann", "paragraph": "Sent 1: Ann<br>came.", "label": True}
    inputs, targets, _ = read(super_glue, "super_glue/multirc", row)
    assert (inputs, targets) == (["multirc question: Who? answer: Ann paragraph: Sent 1: Ann came."], ["True"])
    assert read(mpt_sets, "mpt/multirc", row)[1] == ["1"]


def test_spans_have_all_answers():
    row = {"question": "Who?", "context": "Ann \n Bell came.", "answers": ["Ann Bell", "Ann ", "Ann"]}
    assert read(mrqa, "mrqa/squad", row) == (
        ["squad question: Who? context: Ann Bell came."],
        ["Ann Bell"],
        [("Ann Bell", "Ann")],
    )
    row["answers"] = {"text": ["Ann"], "answer_start": [0]}  # SQuAD's own layout
    assert read(mpt_sets, "mpt/squad", row)[1] == ["Ann"]
    assert read(mrqa, "mrqa/squad", row | {"answers": []}) == ([], [], [])


def test_mpt_answers_with_the_number_of_the_class():
    row = {"sentence1": "a", "sentence2": "b", "label": 1}
    assert read(mpt_sets, "mpt/rte", row)[:2] == (["rte sentence1: a sentence2: b"], ["1"])
    row = {"sentence": "_ won.", "option1": "Ann", "option2": "Bo", "label": "2"}
    assert read(mpt_sets, "mpt/winogrande", row)[:2] == (
        ["winogrande sentence: _ won. option0: Ann option1: Bo"],
        ["1"],
    )
    row = {"premise": "p", "hypothesis": "h", "label": "neutral"}
    assert read(mpt_sets, "mpt/scitail", row | {"label": "entailment"})[1] == ["0"]
    assert read(mpt_sets, "mpt/scitail", row)[1] == ["1"] and read(mpt_sets, "mpt/mnli", row)[1] == ["1"]


def test_no_split_is_tested_on_that_training_or_selection_reads():
    for name in cards.task_names():
        parts = getattr(cards.source(name).examples, "parts", None)
        for one, other in itertools.combinations(parts.values() if parts else (), 2):
            if one.split == other.split:  # then one is what the other leaves
                assert {one.held, other.held} == {one.rest, other.rest} and one.held != one.rest, name


def test_flan_has_several_wordings_of_which_some_are_held_back():
    for text_set in flan.SETS:
        card = cards.card(f"flan/{text_set.name}")
        assert len(card.instructions) == 8 and len(card.held_out_instructions) == 2
        assert not any("{" in wording for wording in card.instructions)
        assert not card.options or "{options}" in card.input_template
    row = {"premise": "It rains.", "choice1": "It is wet.", "choice2": "It is dry.", "question": "effect", "label": 0}
    inputs, targets, _ = read(flan, "flan/copa", row)
    assert inputs[0].endswith("Premise: It rains. What is its effect? Options: It is wet.; It is dry.")
    assert targets == ["It is wet."]
    assert read(flan, "flan/copa", row | {"label": -1}) == ([], [], [])
    row = {"premise": "p", "hypothesis": "h", "label": 1}
    assert read(flan, "flan/mnli", row)[1] == ["it is not possible to tell"] and read(flan, "flan/cb", row)[1] == ["no"]


def test_flan_turned_around():
    row = {"sentence": "Dull.", "label": 0}
    assert read(flan, "flan/sst2_inverted", row)[1] == ["Dull."]
    assert read(flan, "flan/sst2_inverted", row)[0][0].endswith("Sentiment: negative")
    row = {"sentence1": "a", "sentence2": "b", "label": 1}
    assert read(flan, "flan/paws_inverted", row)[1] == ["b"]
    assert read(flan, "flan/paws_inverted", row | {"label": 0})[1] == []
    assert read(flan, "flan/paws_inverted", row | {"label": "1"})[1] == ["b"]
    # What a label is called is the set's own matter, and an unknown one is not left out.
    row = {"text": "Dull.", "sentence": "Dull.", "label": "1"}
    assert read(flan, "flan/yelp_polarity_inverted", row)[0][0].endswith("Sentiment: negative")
    with pytest.raises(UserError, match="the label '1' is none of negative, positive"):
        read(flan, "flan/sst2_inverted", row)


def test_flan_holds_out_types_and_their_data_sets():
    for mixture in (name for name in cards.mixture_names() if name.startswith("flan_without_")):
        held = [cards.card(t) for t in cards.mixture(mixture.replace("_without_", "_"))]
        rest = [cards.card(t) for t in cards.mixture(mixture)]
        assert not {c.type for c in held} & {c.type for c in rest}
        assert not {c.family for c in held} & {c.family for c in rest}
    trained = {cards.card(t).type for t in cards.mixture("flan_without_textual_entailment")}
    assert "paraphrase" not in trained and "question answering" in trained


def test_lm_bff_draws_examples_of_each_class(tmp_path):
    (tmp_path / "snli").mkdir()
    for split, count in (("train", 120), ("test", 9)):
        rows = [{"premise": f"{split} {i}", "hypothesis": "h", "label": i % 3} for i in range(count)]
        (tmp_path / "snli" / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "stsb").mkdir()
    rows = [{"sentence1": f"s{i}", "sentence2": "t", "label": i / 10} for i in range(51)]
    (tmp_path / "stsb" / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    lm_bff.register(tmp_path, shots=(4,))
    drawn = {}
    for seed in few_shot.SEEDS:
        source = cards.source(f"lm_bff/snli/4-{seed}")
        parts = {split: list(source.examples(split)) for split in source.splits}
        for split in ("train", "validation"):
            assert sorted(e["target"] for e in parts[split]) == ["Maybe"] * 4 + ["No"] * 4 + ["Yes"] * 4
        texts = [{e["premise"] for e in parts[split]} for split in ("train", "validation", "test")]
        assert list(map(len, texts)) == [12, 12, 9] and not set.intersection(*texts[:2])
        drawn[seed] = frozenset(texts[0])
    assert len(set(drawn.values())) == len(few_shot.SEEDS)
    high = [float(e["target"]) >= 2.5 for e in cards.source("lm_bff/sts-b/4-13").examples("train")]
    assert len(high) == 8 and sum(high) == 4 and cards.source("lm_bff/sts-b/4-13").splits == ("train", "validation")
    with pytest.raises(UserError, match="no field 'label-coarse'; it has text, label"):  # of another order of classes
        read(lm_bff, "lm_bff/trec", {"text": "Who?", "label": 3})


def test_one_data_set_is_one_family():
    families = {name.rpartition("/")[2]: set() for name in cards.task_names()}
    for name in cards.task_names():
        families[name.rpartition("/")[2]].add(cards.card(name).family)
    for name in ("rte", "mnli", "qqp", "cola", "squad", "snli"):
        assert families[name] == {name}
    assert {cards.card(name).family for name in ("lm_bff/sst-2", "glue/sst2", "flan/sst2_inverted")} == {"sst2"}


def test_real_sets(shared_data, tmp_path):
    """Six sets in the layout of the Hugging Face hub, as they are downloaded."""
    archive = shared_data / "classification.tar.xz"
    if not archive.exists():
        pytest.skip(f"no {archive.name} in {shared_data}")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    for module in (*REGISTRIES.values(), lm_bff):
        module.register(tmp_path / "classification")
    sizes = {
        "mpt/rte": (2490, 138, 139),
        "mpt/cb": (250, 28, 28),
        "super_glue/copa": (400, 100),
        "mpt/wsc": (554, 52, 52),
    }
    sizes |= {
        "glue/mnli": (3000, 7469),
        "glue/sst2": (2000, 872),
        "super_glue/wsc": (554, 104),
        "flan/copa": (400, 100),
        "lm_bff/rte/16-13": (32, 32, 277),
    }
    for name, wanted in sizes.items():
        card, source = cards.card(name), cards.source(name)
        made = [[cards.render(card, e) for e in source.examples(split)] for split in source.splits]
        assert tuple(map(len, made)) == wanted, name
        assert all(r.target in r.options for part in made for r in part)
    marked = [e["text"] for e in cards.source("super_glue/wsc").examples("test")]
    assert sum("#" not in text for text in marked) == 2 and all(text.count("* ") >= 1 for text in marked)
    texts = [e["sentence"] for e in cards.source("glue/sst2").examples("train")]
    assert not any(text.startswith("Text:") for text in texts)
