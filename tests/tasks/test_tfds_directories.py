"""Data sets as TensorFlow Datasets has them: directories that its own builders prepared, the features they declare."""

import string

import pytest

from zeroprompt_jax.data import cards
from zeroprompt_jax.tasks import flan, glue, lm_bff, mpt_sets, mrqa, nli_sets, super_glue, tfds_source

PAIR = {"premise": "It rains.", "hypothesis": "It is wet."}
WSC = {"text": "Mark told Pete lies about himself .", "span1_index": 0, "span1_text": "Mark"}
WSC |= {"span2_index": 5, "span2_text": "himself"}
RECORD = {"passage": "One came.\n@highlight\nTwo went.", "query": "@placeholder went.", "entities": ["One", "Two"]}
# Rows by split, classes by the names that TensorFlow Datasets gives them; and what is read of the first split.
PREPARED = {
    "glue/sst2": (
        "glue/sst2:2.0.0",
        {
            "train": [{"sentence": "good fun", "label": "positive"}, {"sentence": "dull", "label": "negative"}],
            "validation": [{"sentence": "né à Paris ", "label": "positive"}],
        },
        {("sentence: good fun", "positive"), ("sentence: dull", "negative")},
    ),
    "glue/stsb": (
        "glue/stsb:2.0.0",
        {"train": [{"sentence1": "a", "sentence2": "b", "label": 4.4}], "validation": []},
        {("sentence1: a sentence2: b", "4.4")},
    ),
    "glue/mnli": (
        "glue/mnli:2.0.0",
        {"train": [{**PAIR, "label": "neutral"}, {**PAIR, "label": -1}], "validation_matched": []},
        {("hypothesis: It is wet. premise: It rains.", "neutral")},
    ),
    "super_glue/cb": (
        "super_glue/cb:1.0.2",
        {"train": [{**PAIR, "label": "contradiction"}]},
        {("hypothesis: It is wet. premise: It rains.", "contradiction")},
    ),
    "super_glue/wsc": (
        "super_glue/wsc.fixed:1.0.2",
        {"train": [{**WSC, "label": "True"}]},
        {("text: * Mark * told Pete lies about # himself # .", "True")},
    ),
    "super_glue/record": (
        "super_glue/record:1.0.2",
        {"train": [{**RECORD, "answers": ["Two", "One"], "idx": {"passage": 0, "query": 0}}]},
        {
            ("query: @placeholder went. entities: One, Two passage: One came. Two went.", name)
            for name in ("One", "Two")
        },
    ),
    "nli/snli": (
        "snli:1.1.0",
        {"train": [{**PAIR, "label": "entailment"}, {**PAIR, "label": -1}], "test": []},
        {("hypothesis: It is wet. premise: It rains.", "entailment")},
    ),
    "nli/anli_r3": (
        "anli/r3:0.1.0",
        {"train": [{"uid": "1", "context": "It rains.", "hypothesis": "Dry.", "label": "c"}]},
        {("hypothesis: Dry. premise: It rains.", "contradiction")},
    ),
}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    import socket

    def refuse(*args, **options):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(cards, "_TASKS", {})
    monkeypatch.setattr(cards, "_MIXTURES", {})
    monkeypatch.delenv(tfds_source.ENVIRONMENT, raising=False)


def prepare(name, splits, data_dir):
    """Has the data set's own builder write these rows, in place of what it would download."""
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir)
    numbered = {"idx": 0} if "idx" in builder.info.features else {}
    rows = {
        split: [(i, {**numbered, **row}) for i, row in enumerate(given)] for split, given in splits.items() if given
    }
    builder._split_generators = lambda dl_manager: rows
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_config=config)


def test_directories_that_its_builders_prepared(tmp_path):
    for name, splits, _ in PREPARED.values():
        prepare(name, splits, tmp_path)
    assert (tmp_path / "glue" / "sst2" / "2.0.0" / "dataset_info.json").is_file()
    for module in (glue, super_glue, nli_sets):
        module.register(data_dir=tmp_path)
    for task, (_, _, want) in PREPARED.items():
        made = [cards.render(cards.card(task), e) for e in cards.source(task).examples("train")]
        assert {(r.input, r.target) for r in made} == want and len(made) == len(want), task
    (tested,) = (cards.render(cards.card("glue/sst2"), e) for e in cards.source("glue/sst2").examples("test"))
    assert (tested.input, tested.target) == ("sentence: né à Paris", "positive")


def test_fields_and_classes_are_those_that_it_declares():
    """Of every set of every registry: a builder of that version, the fields, and the classes in that order."""
    import tensorflow_datasets as tfds

    own = {"paws": ["different_meaning", "paraphrase"]}  # local files give numbers
    sets = [s for m in (glue, super_glue, mrqa, nli_sets, mpt_sets, lm_bff, flan) for s in m.SETS if s.dataset.tfds]
    features = {name: tfds.builder(name).info.features for name in {s.dataset.tfds for s in sets}}
    assert len(features) > 25
    for s in sets:
        found = features[s.dataset.tfds]
        assert set(s.dataset.fields) <= set(found), s
        if not s.prepare:
            named = {field for _, field, _, _ in string.Formatter().parse(s.text) if field}
            assert named - set(cards.SPECIAL) <= set(found), s
        if s.words:
            assert list(found[s.label].names) == own.get(s.dataset.name, list(s.classes or s.words)), s
