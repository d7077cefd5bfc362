"""Registered classification sets, and tasks of Natural Instructions, put as entailment."""

import collections
import json
import tarfile

import pytest

from zeroprompt_jax.data import cards, entailment, few_shot
from zeroprompt_jax.data.encoder_vocabulary import words_vocabulary
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.tasks import entailment_sets, glue, lm_bff, nli_sets, super_glue
from zeroprompt_jax.tasks.entailment_sets import PUT

ROWS = {
    "mnli": [{"premise": f"p {i}", "hypothesis": f"h {i}", "label": l} for i, l in enumerate(["neutral", "-", 0, 2])],
    "anli_r1": [{"premise": "p", "hypothesis": "h", "label": "c"}],
    "sst2": [{"sentence": "Text: so good . ", "label": "Good"}, {"sentence": "bad", "label": 0}],
    "rte": [{"premise": f"p {i}", "hypothesis": f"h {i}", "label": i % 2} for i in range(40)],
}
PIECES = ["p", "h", "so", "good", "bad", "it", "was", "great", "terrible", ".", "true", "unclear", "false"]
WORDS = words_vocabulary(PIECES)
SETS = ("glue/sst2", "glue/rte")


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


@pytest.fixture
def vocabulary(tmp_path):
    told = tmp_path / "vocab.txt"
    told.write_text("".join(f"{piece}\n" for piece in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PIECES)))
    return str(told)


def test_a_suite_of_a_directory(directory, vocabulary):
    inference = ("nli/mnli", "nli/anli_r1")
    made = entailment_sets.suite(vocabulary, SETS, inference, 32, directory=directory(ROWS))
    assert made.tasks == {name: PUT[name] for name in SETS} and made.length == 32
    assert [pair["label"] for pair in made.inference] == ["neutral", "entailment", "contradiction", "contradiction"]
    assert made.inference[-1] == {"premise": "p", "hypothesis": "h", "label": "contradiction"}
    assert len(entailment_sets.suite(vocabulary, SETS, inference, pairs=2).inference) == 3  # two of each at most
    examples, gold = entailment.classified("glue/sst2", "test")
    assert [e["sentence"] for e in examples] == ["so good .", "bad"] and gold == [1, 0]
    rows = entailment.rows(PUT["glue/sst2"], examples, gold, WORDS, 32)
    assert rows.labels.tolist() == [1, 0]
    assert WORDS.decode(rows.encoder_input_tokens[0]) == "so good . it was great ."
    # Who entails is of class 0 in RTE: what is scored is the class, not the row.
    examples, gold = entailment.classified("glue/rte", "train")
    rows = entailment.rows(PUT["glue/rte"], examples, gold, WORDS, 32)
    assert (rows.labels == 1).tolist() == [g == 0 for g in gold]
    assert entailment.predictions(rows, rows.labels).tolist() == gold


def test_every_set_is_put_in_the_order_of_its_classes():
    """What a description says is what the registry's own word says, or its opposite."""
    same = {
        "glue/sst2": "negative positive",
        "glue/cola": "unacceptable acceptable",
        "glue/mrpc": "not_equivalent equivalent",
        "glue/qqp": "not_duplicate duplicate",
        "glue/qnli": "entailment not_entailment",
        "glue/rte": "entailment not_entailment",
        "super_glue/cb": "entailment contradiction neutral",
        "lm_bff/mr": "terrible great",
        "lm_bff/cr": "terrible great",
        "lm_bff/mpqa": "terrible great",
        "lm_bff/subj": "subjective objective",
        "lm_bff/sst-5": "terrible bad okay good great",
        "lm_bff/trec": "Description Entity Expression Human Number Location",
    }
    for registry in (glue, super_glue, lm_bff, nli_sets):
        registry.register()
    assert {name: " ".join(cards.card(name).options) for name in PUT} == same
    for name, task in PUT.items():
        assert len(task.labels) == len(cards.card(name).options)
        assert set(task.fields) <= set(cards.card(name).input_template.replace("}", "{").split("{")), name
        positive = cards.card(name).options[task.positive]
        assert task.describes or positive in ("equivalent", "duplicate", "entailment"), name


def test_the_test_split_has_no_part_in_a_few_shot_split(directory):
    """Poisoned test labels change neither which examples are drawn nor a row that is trained or selected on."""

    def drawn():
        glue.register(root)
        examples, gold = entailment.classified("glue/rte", "train")
        split = few_shot.per_class(examples, gold, 5, 13)
        chosen = [[examples[i] for i in part] for part in (split.train, split.dev)]
        rows = [
            entailment.rows(PUT["glue/rte"], part, [gold[i] for i in numbers], WORDS, 32)
            for part, numbers in zip(chosen, split[:2], strict=True)
        ]
        return split, [r.encoder_input_tokens.tobytes() + r.labels.tobytes() for r in rows]

    root = directory(ROWS)
    before, test = drawn(), entailment.classified("glue/rte", "test")[1]
    poisoned = [{**row, "label": 1 - row["label"]} for row in ROWS["rte"]]
    (root / "rte" / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in poisoned))
    assert drawn() == before and entailment.classified("glue/rte", "test")[1] == [1 - c for c in test]


def test_as_text_to_text(directory):
    entailment_sets.register(directory(ROWS))
    assert list(cards.mixture("entailment")) == [f"{name}/entailment" for name in PUT]
    for name in SETS:
        examples, gold = entailment.classified(name, "train")
        texts, answers = entailment.classified(f"{name}/entailment", "train")
        assert answers == entailment.rows(PUT[name], examples, gold, WORDS, 32).labels.tolist()
    assert texts[0] == {"premise": "p 0", "hypothesis": "h 0", "target": "yes"}
    shown = cards.render(cards.card("glue/rte/entailment"), texts[0])
    assert (shown.input, shown.options) == ("premise: p 0 hypothesis: h 0", ("no", "yes"))
    sst2, _ = entailment.classified("glue/sst2/entailment", "train")
    assert sst2[0] == {"premise": "so good .", "hypothesis": "it was great .", "target": "yes"}


def test_names_that_there_are_not(directory, vocabulary):
    root = directory(ROWS)
    with pytest.raises(UserError, match="Unknown task put as entailment 'glue/sst'. Did you mean 'glue/sst2'"):
        entailment_sets.suite(vocabulary, ("glue/sst",), directory=root)
    with pytest.raises(UserError, match="Unknown task of inference 'glue/mnli'. Did you mean 'nli/mnli'"):
        entailment_sets.suite(vocabulary, SETS, ("glue/mnli",), directory=root)
    with pytest.raises(UserError, match="no .*snli/train.jsonl|snli.* is not prepared"):
        (root / "snli").mkdir()
        entailment_sets.suite(vocabulary, SETS, ("nli/snli",), directory=root)


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
    root = unpacked("classification")
    for registry in (glue, super_glue, nli_sets):
        registry.register(root)
    told = {name: entailment.classified(name, "train")[1] for name in (*SETS, "super_glue/cb", "nli/mnli")}
    sizes = {name: sorted(collections.Counter(gold).items()) for name, gold in told.items()}
    assert sizes["super_glue/cb"] == [(0, 115), (1, 119), (2, 16)]
    assert sizes["glue/sst2"] == [(0, 908), (1, 1092)]
    examples, gold = entailment.classified("super_glue/cb", "train")
    assert len({few_shot.per_class(examples, gold, 16, seed).digest for seed in few_shot.SEEDS}) == 5
    # Annotators agreed on most pairs that MNLI is tested on.
    assert len(entailment.classified("nli/mnli", "test")[1]) == 7600 - 131


@pytest.mark.slow
def test_real_yes_or_no_tasks(unpacked, vocabulary):
    """Those that have examples to train on and examples to test on, each with enough of both answers for 16 of each."""
    classification, instructions = unpacked("classification"), unpacked("natural-instructions")
    made = entailment_sets.suite(
        vocabulary, pairs=50, directory=classification, natural_instructions_dir=instructions
    )
    assert len(made.inference) == 50 and {"glue/sst2", "glue/rte", "super_glue/cb"} < set(made.tasks)
    found = [name for name in made.tasks if name.startswith("task")]
    assert len(found) == 38 and "task116_com2sense_commonsense_reasoning" not in found
    for name in found:
        assert min(collections.Counter(entailment.classified(name, "train")[1]).values()) > 16, name
        assert entailment.classified(name, "test")[1], name
