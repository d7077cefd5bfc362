"""Data sets as TensorFlow Datasets has them: directories that its own builders prepared, the features they declare."""

import string

import pytest

from zeroprompt_jax.data import cards
from zeroprompt_jax.data.vocabulary import EOS_ID, load_vocabulary
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.tasks import c4, flan, glue, lm_bff, mpt_sets, mrqa, nli_sets, super_glue, tfds_source

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


def test_c4_as_its_builder_prepares_it(tmp_path):
    page = {"url": "http://…", "timestamp": "2019-04-25T12:57:54Z", "content-type": "text/html", "content-length": "1"}
    pages = {
        "train": [{**page, "text": f"Page {i}: né à Paris, in the {i}th year.\nAnd a second line."} for i in range(5)],
        "validation": [{**page, "text": f"Held-out page {i}."} for i in range(4)],
    }
    prepare(c4.ENGLISH, pages, tmp_path)
    assert (tmp_path / "c4/en/3.1.0/dataset_info.json").is_file()
    vocabulary = load_vocabulary("packaged:t5_tiny")
    c4.register("packaged:t5_tiny", objective="prefix_lm", inputs=8, documents=5, per_task=2, test_documents=3, data_dir=tmp_path)
    assert list(cards.mixture("c4_prefix_lm")) == [f"c4_prefix_lm/{i}" for i in range(3)]

    def rejoined(task, split):
        return [i for e in cards.source(task).examples(split) for side in ("input_ids", "target_ids") for i in e[side]]

    def run(texts):
        tokens = [i for text in texts for i in (*vocabulary.encode(text), EOS_ID)]
        return tokens[: len(tokens) // 8 * 8]

    # TensorFlow Datasets shuffles what it writes; what it then reads in order, the tasks divide among them.
    import tensorflow_datasets as tfds

    read = {
        split: [row["text"].decode() for row in tfds.as_numpy(tfds.load("c4/en:3.1.0", split=split, data_dir=tmp_path))]
        for split in pages
    }
    assert {split: sorted(texts) for split, texts in read.items()} == {
        split: sorted(row["text"] for row in rows) for split, rows in pages.items()
    }
    for i in range(3):
        assert rejoined(f"c4_prefix_lm/{i}", "train") == run(read["train"][2 * i : 2 * i + 2])
    assert rejoined("c4_prefix_lm/0", "test") == run(read["validation"][:3])
    c4.register("packaged:t5_tiny:100", inputs=16, documents=5, per_task=5, test_documents=1, data_dir=tmp_path)
    hidden = list(cards.source("c4_span_corruption/0").examples("train"))
    assert len(hidden) > 3 and all(len(e["input_ids"]) == 15 for e in hidden)
    c4.register("packaged:t5_tiny", objective="prefix_lm", documents=1, test_documents=1, data_dir=tmp_path / "elsewhere")
    with pytest.raises(UserError, match="'c4/en:3.1.0', split 'train\\[0:1\\]', is not prepared in .*elsewhere"):
        list(cards.source("c4_prefix_lm/0").examples("train"))


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
