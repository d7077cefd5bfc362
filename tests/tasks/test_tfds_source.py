"""Rows of public data sets: from local files, from TensorFlow Datasets (its own mock data), and the sentence where
neither has them. Registering reads nothing, needs no network and no TensorFlow."""

import csv
import json
import pickle
import subprocess
import sys

import pytest

from zeroprompt_jax.data import cards
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.tasks import glue, lm_bff, mpt_sets, mrqa, super_glue, tfds_source
from zeroprompt_jax.tasks.tfds_source import Dataset, Part, Places

MODULES = ("glue", "super_glue", "mrqa", "nli_sets", "mpt_sets", "lm_bff", "flan", "p3", "c4")
RTE = [{"sentence1": f"it rains {i}", "sentence2": f"{i} drops", "label": i % 2} for i in range(40)]


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    monkeypatch.setattr(cards, "_TASKS", {})
    monkeypatch.setattr(cards, "_MIXTURES", {})
    monkeypatch.delenv(tfds_source.ENVIRONMENT, raising=False)


@pytest.fixture
def put(tmp_path):
    """put(name, split, rows) writes NAME/SPLIT.jsonl."""

    def write(name, split, rows):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    return write


def rendered(task, split="test"):
    return [cards.render(cards.card(task), e) for e in cards.source(task).examples(split)]


def test_every_registry_registers_in_time_without_network_and_tensorflow():
    code = f"""
import socket, sys, time
def refuse(*args, **options): raise AssertionError("the network was used")
socket.socket.connect = socket.getaddrinfo = refuse
import importlib, numpy
from zeroprompt_jax.data import cards
for name in {MODULES!r}:
    began = time.process_time()
    importlib.import_module("zeroprompt_jax.tasks." + name)
    assert time.process_time() - began < 2, name
assert not {{"tensorflow", "tensorflow_datasets", "seqio", "jax"}} & set(sys.modules)
print(len(cards.task_names()), time.process_time())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tasks, seconds = done.stdout.split()
    assert int(tasks) > 700 and float(seconds) < 4  # all of them, and the interpreter


def test_local_rows_come_first_and_their_files_are_the_fingerprint(put, tmp_path, monkeypatch):
    put("rte", "train", RTE)
    put("rte", "validation", RTE[:5])
    glue.register(tmp_path)
    source = cards.source("glue/rte")
    assert source.origin == str(tmp_path / "rte") and "glue/cola:2.0.0, as there" in cards.source("glue/cola").origin
    assert source.splits == ("train", "test") and len(rendered("glue/rte", "train")) == 40
    first = rendered("glue/rte")[0]
    assert (first.input, first.target) == ("sentence1: it rains 0 sentence2: 0 drops", "entailment")
    assert cards.card("glue/rte").instructions == ("rte",)
    put("rte", "train", RTE[:39])
    glue.register(tmp_path)
    assert cards.source("glue/rte").fingerprint != source.fingerprint
    # Of what the directory lacks, and without a directory, TensorFlow Datasets' version is the fingerprint.
    assert "glue/cola:2.0.0" in (there := cards.source("glue/cola").fingerprint) and ".jsonl" not in there
    monkeypatch.setenv(tfds_source.ENVIRONMENT, str(tmp_path))
    before = cards.source("glue/rte").fingerprint
    glue.register()
    assert cards.source("glue/rte").fingerprint == before


def test_labels_may_be_names_and_rows_without_one_are_left_out(put, tmp_path):
    put("mnli", "train", [{"premise": "p", "hypothesis": "h", "label": label} for label in ("neutral", 2, "-", -1, 0)])
    glue.register(tmp_path)
    assert [r.target for r in rendered("glue/mnli", "train")] == ["neutral", "contradiction", "entailment"]
    put("mnli", "train", [{"premise": "p", "hypothesis": "h", "label": "maybe"}])
    with pytest.raises(
        UserError, match="the label 'maybe' is none of entailment, neutral, contradiction and no number"
    ):
        rendered("glue/mnli", "train")
    put("mnli", "train", [{"premise": "p", "hypothesis": "h"}])
    with pytest.raises(UserError, match="'glue/mnli:2.0.0': a row has no field 'label'; it has premise, hypothesis"):
        rendered("glue/mnli", "train")


def test_parts_divide_a_split():
    rows = [{"n": i} for i in range(300)]
    for size, expected in ((0.5, 150), (100, 100), (1000, 150)):
        held = [r["n"] for r in Part("train", held=size).of(rows, "rte")]
        rest = [r["n"] for r in Part("train", rest=size).of(rows, "rte")]
        assert len(held) == expected and sorted(held + rest) == list(range(300))
        assert held == sorted(held) and held != list(range(expected))
        assert held == [r["n"] for r in Part("train", held=size).of(iter(rows), "rte")]
    other = [r["n"] for r in Part("train", held=100).of(rows, "cb")]
    assert other != [r["n"] for r in Part("train", held=100).of(rows, "rte")]
    assert list(Part("train").of(rows, "rte")) == rows


def test_splits_of_a_directory(put, tmp_path):
    """What is tested on is there; what is selected on is never what is tested on."""
    put("mnli", "train", [{"premise": "p", "hypothesis": "h", "label": 0}] * 9)
    put("mnli", "validation", [{"premise": "p", "hypothesis": f"h{i}", "label": 0} for i in range(9)])
    put("paws", "validation", [{"sentence1": "a", "sentence2": f"b{i}", "label": 1} for i in range(9)])
    put("cb", "validation", [{"premise": "a", "hypothesis": f"b{i}", "label": 1} for i in range(9)])
    mpt_sets.register(tmp_path)
    assert cards.source("mpt/mnli").splits == ("train", "test")
    assert cards.source("mpt/paws").splits == ("test",)
    assert cards.source("mpt/cb").splits == ("validation", "test")
    inputs = [{r.input for r in rendered("mpt/cb", split)} for split in ("validation", "test")]
    assert list(map(len, inputs)) == [4, 5] and not inputs[0] & inputs[1]
    put("mnli", "validation_mismatched", [{"premise": "p", "hypothesis": "other", "label": 0}])
    mpt_sets.register(tmp_path)
    assert cards.source("mpt/mnli").splits == ("train", "validation", "test")
    assert [r.input for r in rendered("mpt/mnli", "validation")] == ["premise: p hypothesis: other"]
    # Rows to select on that are cut from the training rows are not what is tested on.
    put("qnli", "train", [{"question": "a", "sentence": f"b{i}", "label": 1} for i in range(9)])
    mpt_sets.register(tmp_path)
    assert (len(rendered("mpt/qnli", "train")), len(rendered("mpt/qnli", "validation"))) == (5, 4)
    with pytest.raises(UserError, match="'qnli' has no .*/qnli/validation.jsonl"):
        rendered("mpt/qnli")


def test_tables_without_header(tmp_path):
    (tmp_path / "mr").mkdir()
    for split, rows in (("train", [("1", 'fine, "quiet" film'), ("0", "dull")]), ("test", [("0", "no")])):
        with (tmp_path / "mr" / f"{split}.csv").open("w", newline="") as f:
            csv.writer(f).writerows(rows)
    lm_bff.register(tmp_path, shots=())
    first, second = rendered("lm_bff/mr", "train")
    assert first.input == 'fine, "quiet" film It was <extra_id_0> .'
    assert [first.target, second.target] == ["great", "terrible"]
    (tmp_path / "mr" / "test.csv").write_text("0,a,b\n")
    with pytest.raises(UserError, match=r"test.csv, row 1: 3 columns, not label, sentence"):
        rendered("lm_bff/mr")


def test_a_directory_that_is_not_there_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv(tfds_source.ENVIRONMENT, str(tmp_path / "gone"))
    with pytest.raises(UserError, match="/gone is not there; it is an argument or ZEROPROMPT_DATASETS"):
        glue.register()


@pytest.mark.parametrize("line, message", [("{", "line 1: not JSON"), ("[]", "line 1: not an object of fields")])
def test_malformed_files_are_named(put, tmp_path, line, message):
    put("rte", "train", [])
    (tmp_path / "rte" / "train.jsonl").write_text(line)
    glue.register(tmp_path)
    with pytest.raises(UserError, match=message):
        rendered("glue/rte", "train")


def test_what_nobody_has_is_one_sentence(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def load(*args, **options):
        raise OSError("\n\nMax retries exceeded: name resolution.\nand much more")

    monkeypatch.setattr(tfds, "load", load)
    glue.register(tmp_path, data_dir="/nowhere")
    with pytest.raises(UserError) as caught:
        rendered("glue/rte")
    assert str(caught.value) == (
        "The data set 'glue/rte:2.0.0', split 'validation', is not prepared in /nowhere and cannot be had by "
        "TensorFlow Datasets (Max retries exceeded: name resolution): give another data_dir, or give rows as "
        f"{tmp_path}/rte/train.jsonl and validation.jsonl and name the directory in ZEROPROMPT_DATASETS."
    )
    with pytest.raises(
        UserError, match=r"'mine' is not in TensorFlow Datasets: .*DIRECTORY/mine/train.jsonl .*, from there,"
    ):
        list(tfds_source.rows(Dataset("mine", home="there"), "train", Places()))


def test_mock_data_of_tensorflow_datasets(tmp_path):
    """Rows as TensorFlow Datasets really types them: text in bytes, classes as numbers, answers as arrays."""
    import tensorflow_datasets as tfds

    for module in (glue, super_glue, mrqa):
        module.register(data_dir=tmp_path)
    with tfds.testing.mock_data(num_examples=6):
        names = ("glue/rte", "glue/stsb", "super_glue/multirc", "super_glue/record")
        found = {name: rendered(name, "train") for name in names}
        spans = rendered("mrqa/squad")
    assert len(found["glue/rte"]) == 6 and {r.target for r in found["glue/rte"]} <= {"entailment", "not_entailment"}
    assert all(r.input.startswith("sentence1: ") and " sentence2: " in r.input for r in found["glue/rte"])
    assert all(0 <= float(r.target) <= 5 for r in found["glue/stsb"])
    assert {r.target for r in found["super_glue/multirc"]} <= {"True", "False"}
    assert all(r.input.startswith("query: ") and r.references == (r.target,) for r in found["super_glue/record"])
    assert len(spans) == 6 and all(r.target == r.references[0] and "b'" not in r.input for r in spans)
    assert max(len(r.references) for r in spans) > 1


def test_sources_travel_to_worker_processes():
    glue.register()
    super_glue.register()
    lm_bff.register()
    for name in ("glue/stsb", "super_glue/record", "lm_bff/rte/16-13"):
        source = pickle.loads(pickle.dumps(cards.source(name)))
        assert source.fingerprint == cards.source(name).fingerprint
