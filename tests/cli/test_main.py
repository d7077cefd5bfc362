"""The command line: help without heavy imports, exit codes, one sentence for a mistake."""

import json
import os
import subprocess
import sys

import pytest
from zeroprompt_jax import config
from zeroprompt_jax.cli import bench
from zeroprompt_jax.cli import main as cli
from zeroprompt_jax.errors import Stopped, UserError

HEAVY = ("jax", "numpy", "flax", "tensorflow", "seqio", "matplotlib", "gin", "grain", "torch")


def imported_by(code):
    """The heavy modules that running `code` imports, in an interpreter of its own."""
    probe = f"import json, sys\n{code}\nsys.stderr.write(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stderr)


def test_help_and_package_import_nothing_heavy():
    assert imported_by("import zeroprompt_jax") == []
    assert imported_by("from zeroprompt_jax.cli.main import main; assert main(['--help']) == 0") == []
    assert "numpy" in imported_by("import numpy")  # the probe sees what is there


def test_import_of_all_rooms_needs_neither_tensorflow_nor_seqio():
    code = """
import importlib, pkgutil, zeroprompt_jax
plugs = "zeroprompt_jax.data.seqio_converter", "zeroprompt_jax.interop.t5x_model"  # into SeqIO and T5X
for found in pkgutil.walk_packages(zeroprompt_jax.__path__, "zeroprompt_jax."):
    if found.name not in plugs:
        importlib.import_module(found.name)
"""
    assert not {"tensorflow", "seqio", "torch"} & set(imported_by(code))


def test_exit_codes_of_the_real_command():
    def run(*argv):
        return subprocess.run([sys.executable, "-m", "zeroprompt_jax.cli.main", *argv], capture_output=True, text=True)

    shown = run("--help")
    assert shown.returncode == 0 and all(verb in shown.stdout for verb in cli.VERBS)
    wrong = run("tasks", "--show=nothing/of/this/name")
    assert wrong.returncode == 2 and wrong.stdout == ""
    assert wrong.stderr.startswith("zeroprompt: error: Unknown task 'nothing/of/this/name'.")
    assert wrong.stderr.count("\n") == 1 and "Traceback" not in wrong.stderr


def test_options_that_are_written_to_are_local_paths(monkeypatch, capsys):
    monkeypatch.setenv("HOME", "/home/of/somebody")
    assert cli.parse(["eval", "--model_dir=~/a", "--output=~/b"]).model_dir == "/home/of/somebody/a"
    assert cli.parse(["eval", "--model_dir=~/a", "--output=~/b"]).output == "/home/of/somebody/b"
    assert cli.main(["cache", "--mixture=x", "--cache_dir=gs://b/c"]) == 2
    assert capsys.readouterr().err.startswith("zeroprompt: error: --cache_dir is 'gs://b/c'; it must be a local path. Mount")


def test_a_mistake_behind_gin_is_one_sentence(capsys):
    """Also where what gin has configured is called later, and gin adds lines of its own to what that raises."""
    argv = ["--gin_file=experiments/hint_natural_instructions.gin", "--gin.NATURAL_INSTRUCTIONS_DIR=nowhere"]
    assert cli.main(["cache", *argv]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and told.endswith("'nowhere' should be a checkout of the public repository.\n")


@pytest.mark.parametrize(
    "argv, sentence",
    [
        (["trian"], "Unknown verb 'trian'. Did you mean 'train'?"),
        (["--hlep"], "Unknown option '--hlep'. Did you mean '--help'?"),
        (["tasks", "--shwo=x"], "zeroprompt tasks has no option '--shwo'. Did you mean '--show'?"),
        (["tasks", "extra"], "zeroprompt tasks has no argument 'extra'."),
        (["tasks", "--examples=many"], "Argument --examples: invalid int value: 'many'. See zeroprompt tasks --help."),
        (["tasks", "--exam=1"], "zeroprompt tasks has no option '--exam'. Did you mean '--examples'?"),
    ],
)
def test_mistakes_are_one_sentence_with_the_nearest_name(argv, sentence, capsys):
    assert cli.main(argv) == 2
    assert capsys.readouterr() == ("", f"zeroprompt: error: {sentence}\n")


def test_no_verb_shows_the_overview_and_fails(capsys):
    assert cli.main([]) == 2
    assert "zeroprompt train --gin_file=" in capsys.readouterr().out


@pytest.fixture
def verb(monkeypatch):
    """A verb of the tests that takes a configuration and does what `verb.does` says."""
    import types

    module = types.ModuleType("zeroprompt_jax.cli.probe", "A verb of the tests.")
    module.add_arguments = config.add_arguments
    module.run = lambda args: module.does(args)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.VERBS, "probe", "a verb of the tests")
    return module


def test_gin_flags_reach_the_verb_in_t5x_style(verb):
    seen = {}
    verb.does = lambda args: seen.update(vars(args)) or 0
    argv = "probe --gin_file=a.gin --gin.X=1 --gin_file b.gin --gin.MODEL_DIR=/models/x".split()
    assert cli.main([*argv, "--gin_bindings", "Y = 2", "--gin.T5Config.dtype='float32'"]) == 0
    assert seen["gin_file"] == ["a.gin", "b.gin"]
    assert seen["gin_bindings"] == ["Y = 2", "X = 1", "MODEL_DIR = '/models/x'", "T5Config.dtype = 'float32'"]


def test_how_a_verb_ends_is_the_exit_code(verb, capsys):
    from jax.errors import JaxRuntimeError

    def raises(error):
        def run(args):
            raise error

        return run

    verb.does = lambda args: 5
    assert cli.main(["probe"]) == 5
    verb.does = raises(UserError("It is wrong."))
    assert cli.main(["probe"]) == 2 and capsys.readouterr().err == "zeroprompt: error: It is wrong.\n"
    verb.does = raises(Stopped("It goes on."))
    assert cli.main(["probe"]) == 75 and capsys.readouterr().err == "zeroprompt: It goes on.\n"
    verb.does = raises(KeyboardInterrupt())
    assert cli.main(["probe"]) == 130
    verb.does = raises(JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17 bytes.\nmore"))
    assert cli.main(["probe"]) == 2
    told = capsys.readouterr().err.removeprefix("zeroprompt: interrupted\n")
    assert told.startswith("zeroprompt: error: A device's memory is not enough (RESOURCE_EXHAUSTED: Out of memory")
    assert "more" not in told
    verb.does = raises(ZeroDivisionError())  # a defect of ours keeps its traceback
    with pytest.raises(ZeroDivisionError):
        cli.main(["probe"])


def test_config_mistakes_of_a_verb_are_sentences_too(verb, capsys):
    verb.does = lambda args: config.load(args.gin_file, args.gin_bindings) or 0
    assert cli.main(["probe", "--gin_file=nowhere.gin"]) == 2
    assert cli.main(["probe", "--gin.T5Confg.num_heads=4"]) == 2
    assert cli.main(["probe", "--gin.TRAIN_STEPS"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("zeroprompt: error: ") for line in lines)
    assert lines[1].endswith("Did you mean 'T5Config'?")


def test_every_verb_has_its_module():
    parts = {"bench": bench.PARTS}
    for name in cli.VERBS:
        for part in parts.get(name, [None]):
            parser = cli.parser_for(name, part)
            assert parser.description and callable(parser.get_default("run"))


def test_a_verb_of_several_parts(capsys):
    """Each has options of its own, with their defaults."""
    with pytest.raises(SystemExit) as left:
        cli.main(["bench", "--help"])
    shown = capsys.readouterr().out
    assert not left.value.code and all(f"  {part}" in shown for part in bench.PARTS)
    assert {cli.parse(["bench", part]).part for part in bench.PARTS} == set(bench.PARTS)
    assert cli.parse(["bench", "serving"]).batch == 1 and cli.parse(["bench", "data", "--batch=3"]).batch == 3
    assert cli.parse(["bench", "train", "--gin.T5Config.num_heads=4"]).gin_bindings == ["T5Config.num_heads = 4"]
    for wrong in (["trian"], ["train", "--bach=3"], ["train", "--versus_peft"], ["data", "--seqio_tasks=3"]):
        assert cli.main(["bench", *wrong]) == 2
    told = capsys.readouterr().err.splitlines()
    assert "Did you mean 'train'?" in told[0] and "bench train has no option '--bach'. Did you mean '--batch'?" in told[1]
    assert "no option '--versus_peft'" in told[2] and "needs --versus_seqio" in told[3]


def test_a_platform_that_is_not_there_is_one_sentence():
    """With the JAX of this machine, in a process of its own."""
    code = "import sys; from zeroprompt_jax.cli.main import main; sys.exit(main(sys.argv[1:]))"
    given = [sys.executable, "-c", code, "train", "--gin_file=experiments/quickstart.gin", "--gin.MODEL_DIR=unused"]
    done = subprocess.run(given, env={**os.environ, "JAX_PLATFORMS": "cuda"}, capture_output=True, text=True)
    if done.returncode == 0:
        pytest.skip("this machine has a GPU")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("zeroprompt: error: JAX_PLATFORMS is 'cuda', which JAX cannot use here")

