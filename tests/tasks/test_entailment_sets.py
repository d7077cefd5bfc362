"""Classification sets of a directory and of Natural Instructions, put as entailment."""

import collections
import json
import tarfile

import pytest

from zeroprompt_jax.data import cards, entailment, few_shot
from zeroprompt_jax.data.encoder_vocabulary import words_vocabulary
from zeroprompt_jax.data.reformulation import as_text
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.tasks import entailment_sets
from zeroprompt_jax.tasks.entailment_sets import SETS

ROWS = {
    "mnli": [{"premise": f"p {i}", "hypothesis": f"h {i}", "label": l} for i, l in enumerate(["neutral", "-", "0", 2])],
    "sst2": [{"sentence": "Text: so good . ", "label": "Good"}, {"sentence": "bad", "label": 0}],
    "rte": [{"premise": f"p {i}", "hypothesis": f"h {i}", "label": i % 2} for i in range(40)],
}
WORDS = words_vocabulary(
    ["p", "h", "so", "good", "bad", "it", "was", "great", "terrible", ".", "true", "unclear", "false"]
)


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    monkeypatch.setattr(cards, "_TASKS", {})
    monkeypatch.setattr(cards, "_MIXTURES", {})


@pytest.fixture
def directory(tmp_path):
    def write(sets):
        for name, rows in sets.items():
            (tmp_path / name).mkdir(exist_ok=True)
            for split in ("train", "validation"):
                (tmp_path / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path

    return write


def test_sets_of_a_directory(directory):
    assert entailment_sets.register(directory(ROWS)) == ("entailment/mnli", "entailment/sst2", "entailment/rte")
    assert list(cards.mixture("entailment")) == ["entailment/mnli", "entailment/sst2", "entailment/rte"]
    examples, gold = entailment.classified("entailment/mnli", "train")
    assert [e["label"] for e in examples] == ["neutral", "entailment", "contradiction"] and gold == [1, 0, 2]
    examples, gold = entailment.classified("entailment/sst2", "test")
    assert examples == [{"sentence": "so good .", "label": "positive"}, {"sentence": "bad", "label": "negative"}]
    made = entailment.rows(SETS["sst2"].task, examples, gold, WORDS, 32)
    assert made.labels.tolist() == [1, 0]
    assert WORDS.decode(made.encoder_input_tokens[0]) == "so good . it was great ."
    # Who entails is of class 0 in RTE: what is scored is the class, not the row.
    examples, gold = entailment.classified("entailment/rte", "train")
    made = entailment.rows(SETS["rte"].task, examples, gold, WORDS, 32)
    assert (made.labels == 1).tolist() == [g == 0 for g in gold]
    assert entailment.predictions(made, made.labels).tolist() == gold


def test_the_test_split_has_no_part_in_a_few_shot_split(directory):
    """Poisoned test labels change neither which examples are drawn nor a row that is trained or selected on."""

    def drawn():
        entailment_sets.register(root)
        examples, gold = entailment.classified("entailment/rte", "train")
        split = few_shot.per_class(examples, gold, 5, 13)
        chosen = [[examples[i] for i in part] for part in (split.train, split.dev)]
        rows = [
            entailment.rows(SETS["rte"].task, part, [gold[i] for i in numbers], WORDS, 32)
            for part, numbers in zip(chosen, split[:2], strict=True)
        ]
        return split, [r.encoder_input_tokens.tobytes() + r.labels.tobytes() for r in rows]

    root = directory(ROWS)
    before, test = drawn(), entailment.classified("entailment/rte", "test")[1]
    poisoned = [{**row, "label": 1 - row["label"]} for row in ROWS["rte"]]
    (root / "rte" / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in poisoned))
    assert drawn() == before and entailment.classified("entailment/rte", "test")[1] == [1 - c for c in test]


def test_hidden_test_labels_are_not_tested_on(directory):
    root = directory({"rte": ROWS["rte"]})
    (root / "rte" / "test.jsonl").write_text(json.dumps({"premise": "p", "hypothesis": "h", "label": -1}) + "\n")
    entailment_sets.register(root)
    assert len(entailment.classified("entailment/rte", "test")[1]) == 40
    for split in ("validation", "test"):
        (root / "rte" / f"{split}.jsonl").unlink()
    entailment_sets.register(root)
    with pytest.raises(UserError, match=r"there is no test split beside .*train.jsonl"):
        entailment.classified("entailment/rte", "test")


def test_as_text_to_text(directory):
    entailment_sets.register(directory(ROWS))
    for name in ("mnli", "sst2", "rte"):
        card, source = (f(f"entailment/{name}") for f in (cards.card, cards.source))
        put = cards.register(*as_text(card, source, SETS[name].task))
        examples, gold = entailment.classified("entailment/" + name, "train")
        texts, answers = entailment.classified(put.name, "train")
        made = entailment.rows(SETS[name].task, examples, gold, WORDS, 32)
        assert answers == made.labels.tolist()
    assert texts[0] == {"premise": "p 0", "hypothesis": "h 0", "target": "yes"}
    shown = cards.render(put, texts[0])
    assert (shown.input, shown.options) == ("premise: p 0 hypothesis: h 0", ("no", "yes"))
    sst2, _ = entailment.classified("entailment/sst2/entailment", "train")
    assert sst2[0] == {"premise": "so good .", "hypothesis": "it was great .", "target": "yes"}


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"premise": "a", "label": 0}], r"train.jsonl, line 1: the row has no field 'hypothesis'"),
        ([{"premise": "a", "hypothesis": "b", "label": 2}], "line 1: the label '2' is none of entailment, not_ent"),
        (["{"], "line 1: not an object"),
    ],
)
def test_rows_that_cannot_be_read_are_named(directory, rows, told):
    entailment_sets.register(directory({"rte": rows}))
    with pytest.raises(UserError, match=told):
        entailment.classified("entailment/rte", "train")


def test_directories_without_sets(tmp_path, monkeypatch):
    monkeypatch.delenv(entailment_sets.ENVIRONMENT, raising=False)
    with pytest.raises(UserError, match="has none of mnli, sst2"):
        entailment_sets.register(tmp_path)
    with pytest.raises(UserError, match="as an argument or in ZEROPROMPT_DATASETS"):
        entailment_sets.register()


def test_yes_or_no_tasks_are_found_by_their_answers():
    def task(name, options):
        card = cards.TaskCard(name, "x", ("Say.",), options=options)
        told = [{"input": f"is it {i}", "target": options[i % 2]} for i in range(4)]
        cards.register(card, cards.Source(lambda split: told, name))

    for name, options in {
        "a": ("No", "Yes"),
        "b": ("yes.", "no."),
        "c": ("yes", "maybe"),
        "d": ("no", "yes", "x"),
    }.items():
        task(name, options)
    found = entailment_sets.yes_no(cards.task_names())
    assert {n: (t.labels, t.positive) for n, t in found.items()} == {"a": (("no", "yes"), 1), "b": (("yes", "no"), 0)}
    v = words_vocabulary("is it the answer yes no . 0 1 2 3".split())
    for name, reformulation in found.items():
        made = entailment.rows(reformulation, *entailment.classified(name, "train"), v, 24)
        assert made.labels.tolist() == [int(reformulation.labels[i % 2] == "yes") for i in range(4)]
        assert v.decode(made.encoder_input_tokens[1]) == "is it 1 the answer is yes ."


@pytest.fixture
def unpacked(shared_data, tmp_path):
    def unpack(archive):
        with tarfile.open(shared_data / f"{archive}.tar.xz") as packed:
            packed.extractall(tmp_path, filter="data")
        return tmp_path / archive

    return unpack


def test_real_sets(unpacked):
    assert len(entailment_sets.register(unpacked("classification"))) == 4
    told = {name: entailment.classified(f"entailment/{name}", "train") for name in SETS}
    sizes = {name: sorted(collections.Counter(gold).items()) for name, (_, gold) in told.items()}
    assert sizes["cb"] == [(0, 115), (1, 119), (2, 16)] and sizes["sst2"] == [(0, 908), (1, 1092)]
    assert len({few_shot.per_class(*told["cb"], 16, seed).digest for seed in few_shot.SEEDS}) == 5
    # Annotators agreed on most pairs that MNLI is tested on.
    assert len(entailment.classified("entailment/mnli", "test")[1]) == 7600 - 131


@pytest.mark.slow
def test_real_yes_or_no_tasks(unpacked, tmp_path):
    """Those that have examples to train on and examples to test on, each with enough of both answers for 16 of each."""
    told = tmp_path / "vocab.txt"
    told.write_text("".join(f"{piece}\n" for piece in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", ".")))
    classification, instructions = unpacked("classification"), unpacked("natural-instructions")
    made = entailment_sets.suite(str(told), classification, pairs=50, natural_instructions_dir=instructions)
    assert len(made.inference) == 50 and {f"entailment/{name}" for name in ("sst2", "rte", "cb")} < set(made.tasks)
    found = [name for name in made.tasks if name.startswith("task")]
    assert len(found) == 38 and "task116_com2sense_commonsense_reasoning" not in found
    for name in found:
        assert min(collections.Counter(entailment.classified(name, "train")[1]).values()) > 16, name
        assert entailment.classified(name, "test")[1], name
