import json
import subprocess
import sys
import tarfile

import pytest

from zeroprompt_jax.data import cache, cards
from zeroprompt_jax.data.batches import EvalSet, Features
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.evaluation.metrics import METRICS
from zeroprompt_jax.tasks import natural_instructions as ni


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    monkeypatch.setattr(cards, "_TASKS", {})
    monkeypatch.setattr(cards, "_MIXTURES", {})
    ni._read.cache_clear()


def task_file(categories, outputs, instances=60, **more):
    made = [{"input": f" passage {i}", "output": list(outputs(i)), "id": str(i)} for i in range(instances)]
    made.append(dict(made[0], id="again"))  # real files repeat inputs
    positive = [{"input": "good in", "output": "good out", "explanation": ""}, {"input": "second", "output": "two"}]
    return {
        "Source": ["Squad"],
        "Categories": categories,
        "Definition": ["Answer the question. "],
        "Positive Examples": positive,
        "Negative Examples": [],
        "Instances": made,
        **more,
    }


@pytest.fixture
def directory(tmp_path):
    """Two train tasks, three test tasks and an excluded one, in the public repository's layout."""
    files = {
        "task001_yesno": task_file(["Classification -> Grammar", "Logic"], lambda i: ["yes" if i % 2 else "no"]),
        "task002_free": task_file(
            ["Answer Geneartion."], lambda i: [f"answer {i}", f"Answer {i}", f"answer {i}"], Domains=["News"]
        ),
        "task003_seen_type": task_file(["Classfication"], lambda i: [f"{i}"], Source=["MNLI", "anli"]),
        "task004_new_type": task_file(["Title Generation"], lambda i: [f"{i}"]),
        "task005_second_category_seen": task_file(["Poetry", "logic"], lambda i: [f"{i}"]),
        "task006_excluded": task_file(["Classification"], lambda i: [f"{i}"]),
    }
    splits = tmp_path / "splits" / "default"
    splits.mkdir(parents=True)
    (tmp_path / "tasks").mkdir()
    names = list(files)
    for split, chosen in (("train", names[:2]), ("test", names[2:5]), ("excluded", names[5:])):
        (splits / f"{split}_tasks.txt").write_text("".join(f"{n}\n" for n in chosen))
    for name, content in files.items():
        (tmp_path / "tasks" / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def examples(name, split):
    return list(cards.source(name).examples(split))


def test_pools_types_and_mixtures(directory):
    ni.register(directory)
    found = {n: (cards.card(n).pool, cards.card(n).type) for n in cards.task_names()}
    assert found == {
        "task001_yesno": ("train", "classification"),
        "task002_free": ("train", "answer generation"),
        "task003_seen_type": ("held_out_task", "classification"),  # misspelt, not unseen
        "task004_new_type": ("held_out_type", "title generation"),
        "task005_second_category_seen": ("held_out_task", "poetry"),
    }
    assert list(cards.mixture(ni.TRAIN_MIXTURE)) == ["task001_yesno", "task002_free"]
    assert len(cards.mixture(ni.TEST_MIXTURE)) == 3
    assert list(cards.mixture(ni.SEEN_MIXTURE)) == ["task001_yesno", "task002_free"]
    card = cards.card("task002_free")
    assert (card.domain, card.family, card.instructions) == ("news", "squad", ("Answer the question.",))
    assert cards.card("task003_seen_type").family == "anli+mnli"
    assert {m for n in found for m in cards.card(n).metrics} <= set(METRICS)
    assert "macro_f1" in cards.card("task001_yesno").metrics and "macro_f1" not in card.metrics


def test_splits_never_share_an_input_and_held_out_tasks_cannot_be_trained_on(directory):
    ni.register(directory, max_instances=40, max_test_instances=30)
    for name in cards.mixture(ni.TRAIN_MIXTURE):
        train, test = (examples(name, split) for split in ("train", "test"))
        assert (len(train), len(test)) == (40, 6)  # a tenth of 60, at most ten
        assert len({e["input"] for e in train} | {e["input"] for e in test}) == 46
    for name in cards.mixture(ni.TEST_MIXTURE):
        assert cards.source(name).splits == ("test",)
        assert len(examples(name, "test")) == 30
    assert examples("task002_free", "test")[0]["references"][0].startswith("answer")
    assert [len(e["references"]) for e in examples("task002_free", "test")] == [2] * 6


def test_the_choice_of_instances_depends_on_the_seed_alone(directory):
    def chosen(**options):
        ni.register(directory, max_instances=10, **options)
        return [e["input"] for e in examples("task001_yesno", "train")], cards.source("task001_yesno").fingerprint

    assert chosen() == chosen() == chosen(seed=0)
    assert chosen(seed=1)[0] != chosen()[0]
    assert chosen(seed=1)[1] != chosen()[1]
    path = directory / "tasks" / "task001_yesno.json"
    before = chosen()[1]
    path.write_text(path.read_text().replace("passage 5", "passage five"))
    ni._read.cache_clear()
    assert chosen()[1] != before


def test_positive_examples_and_options_on_request(directory):
    ni.register(directory, positive_examples=1, list_options=True)
    text = cards.card("task001_yesno").instructions[0]
    assert text.startswith("Answer the question. Positive example 1 - Input: good in Output: good out")
    assert "second" not in text
    assert cards.card("task001_yesno").options == ("no", "yes")
    assert cards.card("task002_free").options == ()
    ni.register(directory)
    assert cards.card("task001_yesno").options == ()


HINT_TEXT = (
    "Positive example 2 - Input: second Output: two Positive example 1 - Input: good in Output: good out "
    "Definition: Answer the question."
)
TK_TEXT = (
    "Answer the question. Positive example 1 - Input: good in Output: good out Positive example 2 - Input: second "
    "Output: two Now complete the following example - Input:"
)


def test_instructions_read_apart_and_in_the_input(directory):
    """The texts of HINT's hypernetwork (with examples and without) and of Tk-Instruct, word by word."""
    for options, text in (
        ({}, "Answer the question."),
        ({"examples_first": True}, "Definition: Answer the question."),
        ({"positive_examples": 2, "examples_first": True}, HINT_TEXT),
        ({"positive_examples": 5}, TK_TEXT),  # there are no more
    ):
        ni.register(directory, **options)
        assert cards.card("task001_yesno").instructions == (text,)


def test_an_example_that_makes_the_instruction_too_long_is_left_out(directory):
    path = directory / "tasks" / "task001_yesno.json"
    task = json.loads(path.read_text())
    task["Positive Examples"][0]["input"] = "long " * 100
    path.write_text(json.dumps(task))
    ni._read.cache_clear()

    def instruction(limit, **options):
        options |= {"positive_examples": 2, "examples_first": True, "vocabulary": "bytes"}
        ni.register(directory, instruction_limit=limit, **options)
        return cards.card("task001_yesno").instructions[0]

    left = "Positive example 1 - Input: second Output: two Definition: Answer the question."
    assert instruction(len(left) + 1) == instruction(500) == left  # EOS included; the long one is skipped, not the rest
    assert instruction(len(left)) == instruction(1) == "Definition: Answer the question."
    assert "Positive example 2 - Input: second" in instruction(1024)
    with pytest.raises(UserError, match="instruction_limit=9 counts tokens; name their vocabulary"):
        ni.register(directory, instruction_limit=9)


@pytest.mark.parametrize("setting", ["hint", "tk_instruct", "no_instruction"])
def test_who_reads_the_instruction(directory, tmp_path, setting):
    """The hypernetwork alone, the encoder alone, or nobody: one task, three features."""
    ni.register(directory, positive_examples=2, examples_first=setting == "hint")
    vocabulary = load_vocabulary("bytes")
    store = cache.build(tmp_path / "store", ["task001_yesno"], vocabulary, progress=False)
    features = {
        "hint": Features(200, 8, 160, instruct_inputs=False),
        "tk_instruct": Features(200, 8),
        "no_instruction": Features(200, 8, instruct_inputs=False),
    }[setting]
    [batch] = EvalSet(store, ["task001_yesno"], "test", features).batches(6)
    text = lambda row: vocabulary.decode([i for i in row.tolist() if i not in (0, vocabulary.eos_id)])
    instance = examples("task001_yesno", "test")[0]["input"]
    read = text(batch["encoder_input_tokens"][0])
    assert read == (f"{TK_TEXT} {instance}" if setting == "tk_instruct" else instance)
    assert ("instruction_tokens" in batch) == (setting == "hint")
    if setting == "hint":
        assert {text(row) for row in batch["instruction_tokens"]} == {HINT_TEXT}


def test_it_caches(directory, tmp_path):
    ni.register(directory)
    store = cache.build(tmp_path / "store", cards.task_names(), load_vocabulary("bytes"), progress=False)
    assert store.size("task001_yesno", "train") == 54 and store.size("task004_new_type", "train") == 0
    assert store.extra("task002_free", "test", 0)["input"].startswith("passage")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"Definition": ["x"], "Instances": [{"input": "a"', "cut short or malformed"),
        ("[]", "not a JSON object"),
        ('{"Instances": [{"input": "a", "output": ["b"]}]}', "Definition is missing"),
        ('{"Definition": ["x"], "Instances": []}', "Instances is missing or empty"),
        ('{"Definition": ["x"], "Instances": [{"output": ["b"]}]}', "instance 0 has no input"),
        ('{"Definition": ["x"], "Instances": [{"input": "a", "output": []}]}', "instance 0 has no output"),
        ('{"Definition": ["x"], "Instances": [{"input": "a", "output": ["b"]}], "Source": 3}', "Source is neither"),
        (
            '{"Definition": ["x"], "Instances": [{"input": "a", "output": ["b"]}], "Positive Examples": ["c"]}',
            "not a list of examples",
        ),
        ('{"Definition": ["\\ud800"], "Instances": "\xff"}'.encode("latin-1"), "cut short or malformed"),
        (None, "cannot be read"),
    ],
)
def test_malformed_files_are_named_and_skipped_only_on_request(directory, capsys, content, message):
    path = directory / "tasks" / "task002_free.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as error:
        ni.register(directory)
    assert "task002_free.json" in str(error.value)
    assert cards.task_names() == ()
    ni.register(directory, skip_malformed=True)
    assert "task002_free.json" in capsys.readouterr().err
    assert list(cards.mixture(ni.TRAIN_MIXTURE)) == ["task001_yesno"]


def test_a_task_file_cut_anywhere_is_named(directory):
    path = directory / "tasks" / "task002_free.json"
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        ni._read.cache_clear()
        with pytest.raises(UserError, match=r"task002_free\.json is cut short or malformed"):
            ni.register(directory)
    path.write_bytes(whole)
    ni._read.cache_clear()
    ni.register(directory)


def test_old_files_with_plain_strings(directory):
    path = directory / "tasks" / "task001_yesno.json"
    old = json.loads(path.read_text())
    old["Definition"], old["Categories"] = old["Definition"][0], "Classification"
    for instance in old["Instances"]:
        instance["output"] = instance["output"][0]
    path.write_text(json.dumps(old))
    ni.register(directory)
    assert cards.card("task001_yesno").instructions == ("Answer the question.",)
    assert examples("task001_yesno", "test")[0]["target"] in ("yes", "no")


def test_wrong_directories_are_named(tmp_path, directory, monkeypatch):
    with pytest.raises(UserError, match=r"train_tasks\.txt cannot be read"):
        ni.register(tmp_path / "nowhere")
    monkeypatch.delenv(ni.ENVIRONMENT, raising=False)
    with pytest.raises(UserError, match=ni.ENVIRONMENT):
        ni.register()
    monkeypatch.setenv(ni.ENVIRONMENT, str(directory))
    ni.register()
    assert len(cards.task_names()) == 5
    test = directory / "splits" / "default" / "test_tasks.txt"
    for wrong in ("task001_yesno", "task006_excluded"):
        test.write_text(wrong)
        with pytest.raises(UserError, match=wrong):
            ni.register(directory)


def test_importing_the_module_registers_where_the_environment_says(directory, monkeypatch):
    monkeypatch.setenv(ni.ENVIRONMENT, str(directory))
    code = (
        "import zeroprompt_jax.tasks.natural_instructions; from zeroprompt_jax.data import cards, mixture; import sys; "
    )
    code += "print(len(cards.task_names()), 'tensorflow' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["5", "False"]


def test_the_real_tasks(shared_data, tmp_path):
    archive = shared_data / "natural-instructions.tar.xz"
    if not archive.is_file():
        pytest.skip(f"no {archive.name} in {shared_data}")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    [root] = [p.parent for p in tmp_path.rglob("tasks") if p.is_dir()]
    ni.register(root)
    pools = {p: [n for n in cards.task_names() if cards.card(n).pool == p] for p in cards.POOLS}
    assert {p: len(n) for p, n in pools.items()} == {"train": 511, "held_out_task": 44, "held_out_type": 7}
    excluded = set((root / "splits/default/excluded_tasks.txt").read_text().split())
    assert len(excluded) == 131 and not excluded & set(cards.task_names())
    trained = {cards.card(n).type for n in pools["train"]}
    assert not trained & {cards.card(n).type for n in pools["held_out_type"]}
    chosen = [*pools["train"][::60], *pools["held_out_type"]]
    vocabulary = load_vocabulary(f"{shared_data}/t5_vocab.model:100")
    store = cache.build(tmp_path / "store", chosen, vocabulary, unknown_targets="keep", progress=False)
    for name in chosen:
        expected = cards.card(name).instructions[0]
        assert vocabulary.decode(store.instructions(name)[0]).split()[:3] == expected.split()[:3]
    assert sum(store.size(n, "train") for n in chosen) > 700
