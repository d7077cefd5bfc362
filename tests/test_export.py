"""Trained tasks leave a run as files and answer from them as in the run."""

import json
import textwrap

import jax
import numpy as np
import pytest

from zeroprompt_jax import config, experiment, export
from zeroprompt_jax.cli import main as cli
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.evaluation import predict
from zeroprompt_jax.interop import peft
from zeroprompt_jax.training import task_file

TASKS = '''
from zeroprompt_jax.data import cards

def add(name, last, options=()):
    def examples(split):
        for i in range(12):
            yield {"input": str(7 * i + 100), "target": last(7 * i + 100)}

    cards.register(cards.TaskCard(name, "toy", (f"{name}:",), options=options), cards.Source(examples, "1"))

add("toy/parity", lambda n: "even" if n % 2 == 0 else "odd", ("even", "odd"))
add("toy/last", lambda n: str(n % 10))
add("toy/first", lambda n: str(n)[0])
cards.register_mixture("toy_export", ["toy/parity", "toy/last", "toy/first"])
'''
CONFIG = """
MODEL_DIR = %gin.REQUIRED
SEED = 0
Experiment.data = @Data()
Experiment.train = @Train()
Experiment.model = @T5Config()
Experiment.method = @methods.Prompt()
Experiment.optimizer = @Optimizer()
Experiment.mesh = @Mesh()
Mesh.data = 1
methods.Prompt.length = 3
methods.Prompt.per_task = True
Data.mixture = "toy_export"
Data.modules = ["zeroprompt_export_tasks"]
Data.feature_lengths = {"inputs": 24, "targets": 4}
Train.model_dir = %MODEL_DIR
Train.steps = 6
Train.batch_size = 4
Train.seed = %SEED
T5Config.vocab_size = 384
T5Config.emb_dim = 16
T5Config.num_heads = 2
T5Config.head_dim = 8
T5Config.mlp_dim = 32
T5Config.num_encoder_layers = 1
T5Config.num_decoder_layers = 1
T5Config.dropout_rate = 0.0
T5Config.dtype = "float32"
Optimizer.name = "adamw"
Optimizer.schedule = @Schedule()
Schedule.peak = 0.3
"""
NAMES = ("toy/parity", "toy/last", "toy/first")
ROWS = [{"input": str(n), "task": NAMES[n % 3]} for n in range(300, 307)]
ROWS += [{"input": str(n), "task": "toy/parity", "options": ["even", "odd"]} for n in range(2)]


def command(*argv):
    assert cli.main([str(a) for a in argv]) == 0


def answers(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A finished run of per-task prompts in `run`, its tasks exported to `files`, and rows of mixed tasks."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "zeroprompt_export_tasks.py").write_text(textwrap.dedent(TASKS))
    (folder / "toy.gin").write_text(CONFIG)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)  # compiling is nearly all of the time
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        command("train", "--gin_file=toy.gin", "--gin.MODEL_DIR=run")
        command("export", "--model_dir=run", "--all", "--output=files")
        yield folder
    jax.config.update("jax_disable_most_optimizations", before)


def settings(*bindings):
    config.load(["toy.gin"], ["MODEL_DIR = 'run'", *bindings])
    return config.make("Experiment")


def test_files_answer_as_the_run_does(home):
    files = [f"--task_file=files/{name}.safetensors" for name in NAMES]
    command("infer", "--model_dir=run", "--input=rows.jsonl", "--output=own.jsonl")
    command("infer", "--model_dir=run", *files, "--input=rows.jsonl", "--output=from_files.jsonl")
    own = answers(home / "own.jsonl")
    assert answers(home / "from_files.jsonl") == own and len(own) == len(ROWS)

    # Another order, fewer tasks, no run but what it started from: each row is what it was.
    kept = [row for row in ROWS if row["task"] != "toy/first"]
    (home / "kept.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    command("infer", "--gin_file=toy.gin", "--gin.MODEL_DIR=elsewhere", *files[1::-1], "--input=kept.jsonl", "--output=k.jsonl")
    found = answers(home / "k.jsonl")
    for row, want in zip(found, [row for row in own if row["task"] != "toy/first"], strict=True):
        assert row["prediction"] == want["prediction"]
        np.testing.assert_allclose(row["score"], want["score"], atol=1e-5)
    # The tasks' prompts differ, so one that read another's would be seen.
    swapped = export.predictor(settings(), [f"files/{name}.safetensors" for name in NAMES])
    bank = swapped.variables["method"]["prompt"]
    assert min(np.abs(bank[i] - bank[j]).max() for i in range(3) for j in range(i)) > 0.1


def test_a_task_is_added_to_what_serves_without_compiling(home):
    texts = ["301", "302"]
    few = export.predictor(settings(), ["files/toy/parity.safetensors"], capacity=3)
    want = few.predict(texts, "toy/parity")
    compiled = predict._generate._cache_size()
    more = export.predictor(settings(), [f"files/{name}.safetensors" for name in NAMES], capacity=3)
    assert more.predict(texts, "toy/parity") == want
    more.predict(texts, ["toy/last", "toy/first"])
    assert predict._generate._cache_size() == compiled
    with pytest.raises(UserError, match="Unknown task 'toy/last'"):
        few.predict(texts, "toy/last")


def test_another_backbone_is_refused(home):
    with pytest.raises(UserError, match="'toy/parity' was trained on another backbone than run: of the same shape, but"):
        export.predictor(settings("SEED = 1"), ["files/toy/parity.safetensors"])
    with pytest.raises(UserError, match="another backbone than run: of another shape"):
        export.predictor(settings("T5Config.mlp_dim = 24"), ["files/toy/parity.safetensors"])


def test_a_task_starts_from_anothers_file_on_the_same_backbone_alone(home):
    start = [
        "methods.Prompt.initialiser = @initialisers.Trained()",
        "initialisers.Trained.path = 'files/toy/last.safetensors'",
    ]
    bank = experiment.build_model(settings(*start)).params["method/prompt"]
    prompt = task_file.read("files/toy/last.safetensors").params["prompt"]
    np.testing.assert_array_equal(bank, np.repeat(prompt, 3, axis=0))
    with pytest.raises(UserError, match="'toy/last' was trained on another backbone than this one: of the same shape"):
        experiment.build_model(settings(*start, "SEED = 1"))


def test_formats_hold_the_same_prompt(home):
    command("export", "--model_dir=run", "--task=toy/last", "--output=last.safetensors")
    command("export", "--model_dir=run", "--task=toy/last", "--format=npy", "--output=last.npy")
    command("export", "--gin_file=toy.gin", "--gin.MODEL_DIR=run", "--task=toy/last", "--format=peft", "--output=last")
    file = task_file.read("last.safetensors")
    assert (home / "last.safetensors").read_bytes() == (home / "files/toy/last.safetensors").read_bytes()
    assert file.task == "toy/last" and file.card["instructions"] == ["toy/last:"] and file.features["targets"] == 4
    prompt = np.asarray(experiment.restore(settings()).params["method/prompt"][1])
    np.testing.assert_array_equal(file.params["prompt"][0], prompt)
    np.testing.assert_array_equal(np.load("last.npy"), prompt)
    np.testing.assert_array_equal(peft.from_peft(*peft.load("last"), settings().model).params["prompt"][0], prompt)


def test_what_cannot_be_exported_is_told(home, capsys):
    for argv, sentence in (
        (["--output=x"], "needs --task NAME or --all"),
        (["--task=toy/lats", "--output=x.safetensors"], "Unknown trained task 'toy/lats'. Did you mean 'toy/last'?"),
        (["--task=toy/last", "--output=x.npy"], "--output is 'x.npy'; a file of the format 'task' ends in .safetensors."),
    ):
        assert cli.main(["export", "--model_dir=run", *argv]) == 2
        assert sentence in capsys.readouterr().err
    assert cli.main(["export", "--all", "--output=x"]) == 2
    assert "Which run? Give its --model_dir" in capsys.readouterr().err
