"""`zeroprompt tasks`: counts, proportions and rendered examples, checked against a small registry."""

import subprocess
import sys

import pytest
from zeroprompt_jax.cli.main import main
from zeroprompt_jax.data import cards

SIZES = {"letters/first": 10, "letters/last": 10, "sums/plus": 80}


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(cards, "_TASKS", {})
    monkeypatch.setattr(cards, "_MIXTURES", {})
    for name, size in SIZES.items():
        card = cards.TaskCard(
            name=name,
            type=name.split("/")[0],
            instructions=(f"Do {name}.", f"Now {name}:"),
            pool="held_out_task" if name == "letters/last" else "train",
            options=("yes", "no") if name == "letters/last" else (),
        )
        cards.register(card, cards.Source(examples(name, size), name, origin=f"there/{name}"))
    cards.register_mixture("all_equal", list(SIZES))
    cards.register_mixture("by_hand", {"letters/first": 1, "sums/plus": 3})


def examples(name, size):
    target = "yes" if name == "letters/last" else None
    return lambda split: ({"input": f"{split} input {i}", "target": target or str(i)} for i in range(size))


def output(capsys, *argv):
    # A module that registers nothing, so that only the registry of the tests is seen.
    assert main(["tasks", "--module=zeroprompt_jax.errors", *argv]) == 0
    return capsys.readouterr().out


def line_of(text, name):
    (line,) = [line for line in text.splitlines() if line.startswith(name + " ")]
    return line.split()


def test_listing_counts_types_pools_and_families(registry, capsys):
    text = output(capsys)
    assert text.startswith("3 tasks of 2 types in 3 families; 2 mixtures\n")
    assert line_of(text, "letters") == ["letters", "1", "1", "2", "2", "exact_match"]
    assert line_of(text, "sums") == ["sums", "1", "-", "1", "2", "exact_match"]
    assert line_of(text, "all") == ["all", "2", "1", "3"]
    assert line_of(text, "by_hand") == ["by_hand", "2", "2", "2"]


def test_proportions_follow_the_registered_rates_or_the_policy(registry, capsys):
    text = output(capsys, "--mixture=by_hand")
    assert line_of(text, "sums") == ["sums", "1", "75.00%", "7,500"]
    assert line_of(text, "letters/first") == ["letters/first", "25.0000%", "2,500.0"]
    text = output(capsys, "--mixture=all_equal")
    assert line_of(text, "letters")[2] == "66.67%" and "Every task has the same share: 33.3333%" in text
    text = output(capsys, "--mixture=all_equal", "--policy=proportional")
    assert line_of(text, "sums")[2] == "80.00%"
    text = output(capsys, "--mixture=all_equal", "--policy=proportional", "--cap=20")
    assert line_of(text, "sums")[2] == "50.00%"
    text = output(capsys, "--mixture=by_hand", "--policy=temperature", "--temperature=3")
    assert line_of(text, "sums")[2] == "66.67%"  # 80 and 10 examples: 2 to 1 after the cube root
    assert line_of(output(capsys, "--mixture=sums/plus"), "sums")[2] == "100.00%"


def test_show_renders_what_the_model_reads(registry, capsys):
    text = output(capsys, "--show=letters/last", "--examples=2")
    assert "rows     there/letters/last\n" in text and "options  yes; no" in text and "held-out tasks" in text
    assert "input   Do letters/last. train input 0\n  target  yes" in text
    assert "input   Now letters/last: train input 1\n" in text and "input 2" not in text


def test_type_lists_its_tasks(registry, capsys):
    text = output(capsys, "--type=letters")
    assert "letters/first" in text and "letters/last" in text and "sums/plus" not in text


def test_all_lists_every_task(registry, capsys):
    text = output(capsys, "--all")
    assert len(text.splitlines()) == 2 + len(SIZES)
    assert line_of(text, "letters/last") == ["letters/last", "letters", "held-out", "tasks", "exact_match"]


def test_against_names_what_has_been_seen(registry, capsys):
    card = cards.TaskCard(name="other", type="sums", instructions=("Add.",), family="sums/plus")
    cards.register(card, cards.Source(examples("other", 3), "other"))
    text = output(capsys, "--mixture=all_equal", "--against=other")
    assert text.startswith("all_equal has seen the data sets of 1 of the 1 tasks of other\n")
    assert line_of(text, "other")[1:] == ["sums/plus", "the", "same", "data", "set"]
    assert "0 of the 1 tasks" in output(capsys, "--mixture=letters/first", "--against=other")


@pytest.mark.parametrize(
    "option, sentence",
    [
        ("--show=sums/pluss", "Unknown task 'sums/pluss'. Did you mean 'sums/plus'?"),
        ("--mixture=all_equl", "Unknown task or mixture 'all_equl'. Did you mean 'all_equal'?"),
        ("--type=leters", "Unknown task type 'leters'. Did you mean 'letters'?"),
        ("--module=no.such.module", "There is no task module 'no.such.module': Python looks in"),
        ("--module=zeroprompt_jax.tasks.procedurl", "Did you mean 'zeroprompt_jax.tasks.procedural'?"),
        ("--examples=-1", "--examples=-1: give zero or more."),
        ("--against=sums/plus", "--against=sums/plus needs the training mixture too: give --mixture=NAME."),
    ],
)
def test_mistakes(registry, capsys, option, sentence):
    assert main(["tasks", "--module=zeroprompt_jax.errors", option]) == 2
    assert sentence in capsys.readouterr().err


def test_the_packages_own_tasks_are_listed_without_tensorflow():
    code = (
        "import sys; from zeroprompt_jax.cli.main import main; code = main(['tasks']); "
        "sys.exit(code or 10 * bool({'tensorflow', 'seqio', 'jax'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "procedural_train" in done.stdout and "procedural_unseen_types" in done.stdout
    for mixture, tasks in (("glue", 8), ("super_glue", 8), ("mrqa", 6), ("mpt_targets", 21), ("p3", 590)):
        assert line_of(done.stdout, mixture)[1] == str(tasks)
