"""The whole path on toy tasks: train, report, resume, kill, evaluate, infer."""

import contextlib
import dataclasses
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import jax
import numpy as np
import pytest

from zeroprompt_jax import answering, config, experiment
from zeroprompt_jax.cli import main as cli
from zeroprompt_jax.methods.prompt import Prompt
from zeroprompt_jax.training import checkpoint, goodput, run_folder

# No task is learned here: there are as few and as short examples as the path allows.
TASKS = '''
"""Toy tasks: naming the parity or the last digit of a number."""

from zeroprompt_jax.data import cards

def add(name, type, pool, last, options, metrics=("exact_match",)):
    def examples(split):
        for i in range(20 if split == "train" else 6):
            number = 7 * i + (split == "test") + 100
            yield {"input": str(number), "target": last(number)}

    wordings = (f"{name}:", f"say {name}:")
    card = cards.TaskCard(name, type, wordings, pool=pool, options=options, metrics=metrics)
    cards.register(card, cards.Source(examples, "1"))

parity = lambda number: "even" if number % 2 == 0 else "odd"
add("toy_parity", "parity", "train", parity, ("even", "odd"))
add("toy_last", "digit", "train", lambda number: str(number % 10), ())
add("toy_first", "digit", "held_out_task", lambda number: str(number)[0], ())
add("toy_odd", "truth", "held_out_type", lambda number: str(number % 2 == 1), ("True", "False"))
add("toy_misspelt", "digit", "held_out_task", lambda number: str(number)[0], (), ("exact_macth",))
cards.register_mixture("toy_train", ["toy_parity", "toy_last"])
'''
CONFIG = """
MODEL_DIR = %gin.REQUIRED
TRAIN_STEPS = 20
Experiment.data = @Data()
Experiment.train = @Train()
Experiment.model = @T5Config()
Experiment.method = @methods.Full()
Experiment.optimizer = @Optimizer()
Experiment.evaluate = @Evaluate()
Experiment.mesh = @Mesh()
Mesh.data = 1
Data.mixture = "toy_train"
Data.modules = ["zeroprompt_toy_tasks"]
Data.feature_lengths = {"inputs": 24, "targets": 6}
Data.vocabulary = "bytes"
Data.evaluation = {"unseen_tasks": "toy_first", "unseen_types": "toy_odd"}
Train.model_dir = %MODEL_DIR
Train.steps = %TRAIN_STEPS
Train.batch_size = 4
Train.log_every = 3
Train.save_every = 5
Train.eval_every = 10
T5Config.vocab_size = 384
T5Config.emb_dim = 16
T5Config.num_heads = 2
T5Config.head_dim = 8
T5Config.mlp_dim = 32
T5Config.num_encoder_layers = 1
T5Config.num_decoder_layers = 1
T5Config.logits_via_embedding = True
T5Config.dropout_rate = 0.1
T5Config.dtype = "float32"
T5Config.scan_layers = False
Optimizer.name = "adamw"
Optimizer.schedule = @Schedule()
Schedule.peak = 0.01
Schedule.kind = "linear"
"""
FILES = ("config.gin", "metrics.jsonl", "table.txt", "results.json", "results.png", "predictions.jsonl")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A user's folder with a task module and a config, and the working directory of these tests."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "zeroprompt_toy_tasks.py").write_text(textwrap.dedent(TASKS))
    (folder / "toy.gin").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        yield folder


def arguments(model_dir, *more):
    return ["train", "--gin_file=toy.gin", f"--gin.MODEL_DIR={model_dir}", *more]


@pytest.fixture(scope="module")
def run(home):
    """A finished run, what its command printed, and its seconds."""
    began = time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        assert cli.main(arguments("whole")) == 0
    return home / "whole", out.getvalue(), err.getvalue(), time.monotonic() - began


COMMAND = (sys.executable, "-m", "zeroprompt_jax.cli.main")


def metrics(folder):
    """metrics.jsonl without the times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k.split("/")[0] not in ("seconds", "examples_per_second")} for line in lines]


def results(folder):
    found = json.loads((folder / "results.json").read_text())
    return {k: v for k, v in found.items() if k not in ("minutes", "spent")}


def settings(model_dir, *bindings):
    config.load(["toy.gin"], [f"MODEL_DIR = '{model_dir}'", *bindings])
    return config.make("Experiment")


def saved(folder):
    """The newest checkpoint's parameters on the host, by path."""
    shapes = checkpoint.saved_shapes(checkpoint.find(str(folder)))
    wanted = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in shapes.items()}
    return {k: np.asarray(v) for k, v in checkpoint.load_params(str(folder), wanted).items()}


def mistake(capsys, *argv) -> str:
    """What a command that fails prints: one sentence."""
    capsys.readouterr()
    assert cli.main([str(a) for a in argv]) == 2
    printed = capsys.readouterr()
    last = printed.err.strip().split("\n")[-1]
    assert last.startswith("zeroprompt: error: ") and "Traceback" not in printed.err
    return last.removeprefix("zeroprompt: error: ")


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() for k in a)


def test_a_run_leaves_everything(run):
    folder, out, err, seconds = run
    assert all((folder / name).stat().st_size for name in FILES)
    assert (folder / "results.png").read_bytes()[:4] == b"\x89PNG"
    assert list((folder / "tensorboard").iterdir())
    assert (folder / "table.txt").read_text() in out and "Picture: " in out
    found = json.loads((folder / "results.json").read_text())
    for group in ("unseen_tasks", "unseen_types"):
        assert {"score", "baseline", "tasks", "shuffled"} <= found[group].keys() and found[group]["tasks"] == 1
        assert found[group]["labels"] == 0
    assert found["seeds"] == [0] and found["train_tasks"] == 2 and found["minutes"] >= 0 and found["steps"] == 20
    assert len((folder / "predictions.jsonl").read_text().splitlines()) == 12
    written = metrics(folder)
    assert [line["step"] for line in written if "loss" in line] == [*range(3, 20, 3), 20]
    assert [line["step"] for line in written if "unseen_tasks/score" in line] == [0, 10, 20]
    assert written[-1]["final"] and "final" not in written[-2]
    assert [line["loss"] for line in written if "loss" in line][-1] < written[1]["loss"]
    assert "Train: 2 tasks of 2 families, 2 types." in err and "parameters train, 0 are frozen" in err
    assert [int(step) for step in re.findall(r"Saved step (\d+)\.", err)] == [5, 10, 15, 20]
    spent = found["spent"]
    assert set(spent) == set(goodput.KINDS) and min(spent.values()) >= 0 and spent["compile"] > 0 and "All time: " in out
    assert 0.75 * seconds < sum(spent.values()) < seconds  # the rest is reading the config and writing the report


def test_packed_runs_count_examples_and_not_rows(home, capsys, monkeypatch):
    given = {}

    def fit(*_, **options):
        given.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "fit", fit)
    wide = '--gin.Data.feature_lengths={"inputs": 64, "targets": 16}'
    assert cli.main(arguments("packed", '--gin.Data.batching="packed"', wide)) == 130
    said = capsys.readouterr().err
    each = given["examples_per_row"]
    assert each > 1.2 and f"Batches are packed: {each:.2f} examples a row" in said
    draws = round(20 * 4 * each)
    assert f"Every task has the share 50.0%, {draws / 2:,.0f} of {draws:,} draws." in said


def test_the_resolved_config_repeats_the_run(run):
    config.load([str(run[0] / "config.gin")])
    assert config.make("Experiment") == settings("whole")


def test_the_same_command_reports_without_training(run, capsys, monkeypatch):
    folder = run[0]
    before = {name: (folder / name).read_bytes() for name in FILES}
    monkeypatch.setattr(experiment, "build_model", None)  # nothing is built
    assert cli.main(arguments("whole")) == 0
    printed = capsys.readouterr().out
    assert (folder / "table.txt").read_text() in printed and "finished before; nothing was trained" in printed
    assert {name: (folder / name).read_bytes() for name in FILES} == before


@pytest.mark.parametrize("change", ["Schedule.peak=0.02", "Train.seed=1", "T5Config.emb_dim=8"])
def test_another_experiment_is_refused(run, capsys, change):
    before = (run[0] / "config.gin").read_bytes()
    sentence = mistake(capsys, *arguments("whole", f"--gin.{change}"))
    name, value = change.split("=")
    assert f"holds a run with {name} = " in sentence and value in sentence
    assert (run[0] / "config.gin").read_bytes() == before


@pytest.mark.parametrize("missing", ["results.json", "table.txt"])
def test_killed_before_the_report_it_evaluates_again(run, home, capsys, missing):
    shutil.rmtree(home / "unreported", ignore_errors=True)
    shutil.copytree(run[0], home / "unreported")
    (home / "unreported" / missing).unlink()
    assert cli.main(arguments("unreported")) == 0
    assert metrics(home / "unreported") == metrics(run[0]) and results(home / "unreported") == results(run[0])
    assert (home / "unreported" / "table.txt").read_text() == (run[0] / "table.txt").read_text()
    assert "Resuming unreported at step 20 of 20" in capsys.readouterr().err


@pytest.mark.slow
def test_a_longer_run_continues(run, home, capsys):
    shutil.copytree(run[0], home / "longer")
    assert cli.main(arguments("longer", "--gin.TRAIN_STEPS=22")) == 0
    assert results(home / "longer")["steps"] == 22 and checkpoint.find("longer").name == "22"
    assert "Resuming longer at step 20 of 22" in capsys.readouterr().err


def test_a_run_that_has_gone_further_is_not_called_shorter(run, home, capsys):
    shutil.copytree(run[0], home / "further")
    (home / "further" / "results.json").unlink()
    assert "trained to step 20 already" in mistake(capsys, *arguments("further", "--gin.TRAIN_STEPS=19"))


def killed(home, name, when):
    """Starts the run, kills it -9 when `when(seconds, checkpoints folder)` says so. Whether it was still running."""
    began = time.monotonic()
    with (home / "killed.log").open("w") as log:
        process = subprocess.Popen([*COMMAND, *arguments(name)], cwd=home, stdout=log, stderr=log)
    while process.poll() is None:
        if when(time.monotonic() - began, home / name / "checkpoints"):
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.002)
    process.wait()
    assert process.returncode in (0, -signal.SIGKILL), (home / "killed.log").read_text()
    return process.returncode != 0


def saving(step):
    """While the checkpoint of `step` or a later one is being written."""

    def when(seconds, folder):
        names = os.listdir(folder) if folder.exists() else []
        return any("tmp" in name and int(name.split(".")[0]) >= step for name in names)

    return when


def finish_and_compare(home, name, whole):
    assert cli.main(arguments(name)) == 0
    assert same(saved(name), saved(whole))
    assert metrics(home / name) == metrics(whole) and results(home / name) == results(whole)


def test_killed_during_a_save_it_resumes_as_if_never_killed(run, home):
    assert killed(home, "killed", saving(10))
    assert not (home / "killed" / "results.json").exists()
    finish_and_compare(home, "killed", run[0])
    other = {k: v + 1e-7 for k, v in saved("killed").items()}
    assert not same(other, saved(run[0]))


def test_a_folder_in_use_is_refused(home, capsys):
    with run_folder.alone(home / "held"):
        assert "Another process is at work in MODEL_DIR held;" in mistake(capsys, *arguments("held"))
    assert {path.name for path in (home / "held").iterdir()} == {".lock", "cache"}


@pytest.mark.slow
def test_typed_again_while_it_runs_it_is_refused_and_changes_nothing(run, home, capsys):
    with (home / "twice.log").open("w") as log:
        process = subprocess.Popen([*COMMAND, *arguments("twice")], cwd=home, stdout=log, stderr=log)
    try:
        while not saving(5)(0, home / "twice" / "checkpoints"):
            assert process.poll() is None, (home / "twice.log").read_text()
            time.sleep(0.002)
        process.send_signal(signal.SIGSTOP)  # in the middle of a save
        assert "Another process is at work in MODEL_DIR twice" in mistake(capsys, *arguments("twice"))
        process.send_signal(signal.SIGCONT)
        assert process.wait(300) == 0, (home / "twice.log").read_text()
    finally:
        process.kill()
    finish_and_compare(home, "twice", run[0])


@pytest.mark.slow
def test_killed_five_times_it_resumes_as_if_never_killed(run, home):
    draw = random.Random(0)
    moments = [lambda s, folder: s > 1.0]  # while it imports
    for step in (5, 10, 15):
        moments.append(saving(step))
    pause = 3 + 4 * draw.random()
    moments.append(lambda s, folder: s > pause)
    for number, when in enumerate(moments):
        print(f"kill {number}: {killed(home, 'often', when)}")
    finish_and_compare(home, "often", run[0])


def test_eval_scores_a_run(run, home, capsys):
    assert cli.main(["eval", "--model_dir=whole"]) == 0
    printed = capsys.readouterr().out
    found, wanted = (json.loads((folder / "results.json").read_text()) for folder in (run[0] / "eval", run[0]))
    assert (run[0] / "eval" / "table.txt").read_text() in printed
    assert found["unseen_tasks"] == wanted["unseen_tasks"] and found["unseen_types"] == wanted["unseen_types"]
    assert cli.main(["eval", "--model_dir=whole", "--mixture=toy_train", "--split=train", "--output=scores"]) == 0
    trained = json.loads((home / "scores" / "results.json").read_text())["toy_train"]
    assert trained["examples"] == 40 and trained["labels"] == 20


def test_a_run_can_be_moved(run, home, monkeypatch, capsys):
    (home / "elsewhere").mkdir()
    shutil.copytree(run[0], home / "elsewhere" / "moved")
    monkeypatch.chdir(home / "elsewhere")
    assert cli.main(["eval", "--model_dir=moved", "--mixture=toy_first"]) == 0
    assert (home / "elsewhere" / "moved" / "eval" / "results.json").exists()


@pytest.mark.parametrize(
    "argv, sentence",
    [
        (["eval", "--model_dir=whol"], "'whol' is no run: it has no config.gin. Did you mean 'whole'?"),
        (["infer", "--model_dir=whol", "--task=toy_odd", "--output=x"], "'whol' is no run"),
        (["infer", "--model_dir=whole", "--output=x"], "zeroprompt infer needs --input FILE or --task NAME"),
        (["infer", "--model_dir=whole", "--task=toy_od", "--output=x"], "Did you mean 'toy_odd'?"),
        (["infer", "--model_dir=whole", "--task=toy_odd", "--split=tets", "--output=x"], "Did you mean 'test'?"),
        (["eval", "--model_dir=whole", "--mixture=toy_fist"], "Did you mean 'toy_first'?"),
        (["eval", "--model_dir=whole", "--split=tets"], "split 'tets'"),
        (["eval", "--model_dir=whole", "--checkpoint=whole/checkpoints/4"], "No checkpoint at 'whole/checkpoints/4'"),
        (["train", "--gin_file=experiments/adaptation.gin"], "a study (AdaptationStudy), which is run by zeroprompt adapt."),
        (arguments("unused", "--gin.methods.LoRA.rank=4"), "nothing in this configuration uses methods.LoRA. It has methods.Full."),
        (["eval", "--model_dir=whole", "--module=toy_tasks_2"], "There is no task module 'toy_tasks_2'"),
    ],
)
def test_mistakes_are_one_sentence(run, capsys, argv, sentence):
    assert sentence in mistake(capsys, *argv)


def test_infer_answers_files_and_tasks_alike(run, home, capsys, monkeypatch):
    rows = [{"input": str(7 * i + 101), "task": task} for task in ("toy_first", "toy_odd") for i in range(6)]
    rows[6:9] = [{**row, "options": ["True", "False"]} for row in rows[6:9]]  # the others are given the task's
    (home / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (home / "a.tsv").write_text("input\ttask\toptions\n" + "".join(
        "\t".join([row["input"], row["task"], "|".join(row.get("options", []))]) + "\n" for row in rows
    ))
    read = lambda name: [json.loads(line) for line in (home / name).read_text().splitlines()]
    for name in ("jsonl", "tsv"):
        assert cli.main(["infer", "--model_dir=whole", f"--input=a.{name}", f"--output=from_{name}.jsonl"]) == 0
        assert f"12 rows answered; from_{name}.jsonl" in capsys.readouterr().out
    found = read("from_jsonl.jsonl")
    assert found == read("from_tsv.jsonl") and [f["input"] for f in found] == [row["input"] for row in rows]
    for task, part in (("toy_first", found[:6]), ("toy_odd", found[6:])):
        assert cli.main(["infer", "--model_dir=whole", f"--task={task}", f"--output={task}.jsonl"]) == 0
        answers = read(f"{task}.jsonl")
        assert [a["prediction"] for a in answers] == [p["prediction"] for p in part]
        assert [a["score"] for a in answers] == pytest.approx([p["score"] for p in part], abs=1e-5)
        assert answers[0]["references"] == ["1" if task == "toy_first" else "True"]
    # The answers are those of the model that training evaluated, wordings aside: each option list has its scores.
    assert all(f["score"] == max(f["scores"]) for f in found[6:])

    whole = (home / "from_jsonl.jsonl").read_bytes()
    (home / "from_jsonl.jsonl").write_bytes(whole[: whole.index(b"toy_odd")])  # half a line is left of the seventh
    assert cli.main(["infer", "--model_dir=whole", "--input=a.jsonl", "--output=from_jsonl.jsonl"]) == 0
    again = read("from_jsonl.jsonl")
    assert [a["prediction"] for a in again] == [f["prediction"] for f in found]
    assert [a["score"] for a in again] == pytest.approx([f["score"] for f in found], abs=1e-5)
    monkeypatch.setattr(answering, "predictor", None)  # what follows is told before the model is loaded
    for output, why in (("toy_odd.jsonl", "it answers another input"), (".", "cannot be written (Is a directory)")):
        assert why in mistake(capsys, "infer", "--model_dir=whole", "--task=toy_first", f"--output={output}")


def test_the_initial_checkpoint_is_used(run, home):
    trained = saved(run[0])
    random_ = experiment.build_model(settings("new"))
    assert not same({k: np.asarray(v) for k, v in random_.params.items()}, trained)
    given = ["Train.initial_checkpoint_path = 'whole'"]
    found = experiment.build_model(settings("new", *given))
    assert same({k: np.asarray(v) for k, v in found.params.items()}, trained)
    part = experiment.build_model(settings("new", *given, "Train.initial_checkpoint_regex = 'backbone/encoder/.*'"))
    for name, value in part.params.items():
        source = trained if name.startswith("backbone/encoder/") else random_.params
        assert np.array_equal(value, source[name]), name
    whole = dataclasses.replace(settings("new", *given, "Train.initial_checkpoint_regex = 'backbone/.*'"), method=Prompt(length=3))
    prompted = experiment.build_model(whole)
    assert list(prompted.params) == ["method/prompt"] and same({k: np.asarray(v) for k, v in prompted.frozen.items()}, trained)


def test_a_trained_run_does_not_need_the_initial_checkpoint_any_more(run, home):
    """What a run's own checkpoint brings is not read from elsewhere; what is frozen still is."""
    gone = settings("whole", "Train.initial_checkpoint_path = 'gone'")
    assert same({k: np.asarray(v) for k, v in experiment.restore(gone).params.items()}, saved(run[0]))
    with pytest.raises(ValueError, match="No checkpoint at 'gone'"):
        experiment.restore(dataclasses.replace(gone, method=Prompt(length=3)))


def test_mistakes_in_a_new_run(run, home, capsys):
    sentence = mistake(capsys, *arguments("bad_path", "--gin.Train.initial_checkpoint_path=whol"))
    assert sentence == "No checkpoint at 'whol'. Did you mean 'whole'?"
    sentence = mistake(capsys, *arguments("bad_size", "--gin.T5Config.vocab_size=300"))
    assert sentence == "T5Config.vocab_size is 300, but the vocabulary 'bytes' has 384 pieces."
    assert "Did you mean 'toy_train'?" in mistake(capsys, *arguments("bad_name", "--gin.Data.mixture=toy_trian"))
    sentence = mistake(capsys, *arguments("bad_metric", "--gin.Data.evaluation={'one': 'toy_misspelt'}"))
    assert sentence == "Unknown metric 'exact_macth'. Did you mean 'exact_match'?"
    tiny = ["--gin_file=models/t5_tiny.gin", "--gin.Train.initial_checkpoint_path=packaged:t5_tiny"]
    sentence = mistake(capsys, *arguments("bad_pair", *tiny))
    assert sentence.startswith("Data.vocabulary is 'bytes', but the model in 'packaged:t5_tiny' has another: set it to 'p")
    few = ["--gin.Data.mixture=toy_parity@8.0", "--gin.Data.evaluation={'one': 'toy_parity'}", "--gin.Experiment.method=@methods.Prompt()"]
    sentence = mistake(capsys, *arguments("bad_place", *few, "--gin.methods.Prompt.per_task=True"))
    assert sentence == "Unknown trained task 'toy_parity'. Did you mean 'toy_parity@8.0'?"
    assert not (home / "bad_metric" / "metrics.jsonl").exists()  # it is said before training
    # A mistake is no run: the corrected command will not be refused.
    assert not (home / "bad_size" / "config.gin").exists() and not (home / "bad_path" / "config.gin").exists()


def test_a_warm_cache_needs_neither_tensorflow_nor_seqio(run, home):
    verbs = {
        "train": arguments("warm", "--gin.Data.cache_dir='whole/cache'", "--gin.TRAIN_STEPS=2"),
        "eval": ["eval", "--model_dir=whole", "--output=warm_eval"],
        "infer": ["infer", "--model_dir=whole", "--task=toy_odd", "--output=warm.jsonl"],
    }
    code = f"""
import sys
from zeroprompt_jax.cli.main import main
for name, argv in {verbs}.items():
    assert main(argv) == 0
    print("imported by", name, sorted({{"tensorflow", "seqio"}} & sys.modules.keys()), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [f"imported by {name} []" in done.stderr for name in verbs] == [True] * 3, done.stderr
    assert "caching tasks" not in done.stderr


@pytest.mark.slow
def test_prompt_tuning_saves_a_prompt_and_leaves_the_backbone(run, home, capsys):
    (home / "prompt.gin").write_text(
        "include 'toy.gin'\nExperiment.method = @methods.Prompt()\nmethods.Prompt.length = 3\nData.evaluation = {}\n"
        "Train.initial_checkpoint_path = 'whole'\nTrain.initial_checkpoint_regex = 'backbone/.*'\n"
    )
    assert cli.main(["train", "--gin_file=prompt.gin", "--gin.MODEL_DIR=prompted", "--gin.TRAIN_STEPS=2"]) == 0
    printed = capsys.readouterr()
    assert "no evaluation is configured" in printed.out and "random" not in printed.err
    nothing = ["--gin.Train.initial_checkpoint_path=None", "--gin.TRAIN_STEPS=1"]
    assert cli.main(["train", "--gin_file=prompt.gin", "--gin.MODEL_DIR=from_nothing", *nothing]) == 0
    assert "The frozen backbone is random: Train.initial_checkpoint_path is not set." in capsys.readouterr().err
    config.load([str(home / "prompted" / "config.gin")])
    prompted = config.make("Experiment")
    model = experiment.restore(prompted)
    assert same({k: np.asarray(v) for k, v in model.frozen.items()}, saved(run[0]))
    assert list(checkpoint.saved_shapes(checkpoint.find("prompted"))) == ["method/prompt"]
    start = experiment.build_model(prompted).params["method/prompt"]
    assert not np.array_equal(start, model.params["method/prompt"])


@pytest.mark.slow
def test_tasks_that_only_seqio_knows_are_trained_answered_and_exported(home, capsys):
    pytest.importorskip("seqio")
    (home / "seqio_toys.py").write_text(textwrap.dedent("""
        import seqio
        import tensorflow as tf
        from zeroprompt_jax.data.vocabulary import load_vocabulary

        def examples(split, shuffle_files=False, seed=None):
            numbers = [str(i) for i in range(100, 120)]
            return tf.data.Dataset.from_tensor_slices({"inputs": numbers, "targets": [n[-1] for n in numbers]})

        features = {name: seqio.Feature(load_vocabulary("bytes").to_seqio()) for name in ("inputs", "targets")}
        steps = [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos]
        source = seqio.FunctionDataSource(examples, splits=["train", "test"])
        for name in ("seqio_last", "seqio_other"):
            seqio.TaskRegistry.add(name, source, preprocessors=steps, output_features=features)
        seqio.MixtureRegistry.add("seqio_both", ["seqio_last", "seqio_other"], default_rate=1.0)
    """))
    given = ["--gin.Experiment.method=@methods.Prompt()", "--gin.methods.Prompt.length=2", "--gin.methods.Prompt.per_task=True"]
    given += ["--gin.Data.mixture=seqio_both", "--gin.Data.modules=['seqio_toys']", "--gin.TRAIN_STEPS=2"]
    given += ["--gin.Data.evaluation={'last': 'seqio_last'}", "--gin.Train.initial_checkpoint_path=None"]
    assert cli.main(arguments("from_seqio", *given)) == 0
    assert cli.main(["infer", "--model_dir=from_seqio", "--task=seqio_last", "--output=from_seqio.jsonl"]) == 0
    answered = [json.loads(line) for line in (home / "from_seqio.jsonl").read_text().splitlines()]
    assert len(answered) == 20 and answered[7]["input"] == "107" and answered[7]["references"] == ["7"]
    evaluated = (home / "from_seqio" / "predictions.jsonl").read_text().splitlines()
    assert {row["input"]: row["prediction"] for row in answered}.items() >= {
        row["input"]: row["prediction"] for row in map(json.loads, evaluated)}.items()
    assert cli.main(["export", "--model_dir=from_seqio", "--task=seqio_other", "--output=other.safetensors"]) == 0
    assert "Did you mean 'seqio_last'?" in mistake(
        capsys, "infer", "--model_dir=from_seqio", "--task=seqio_lst", "--output=no.jsonl")


@pytest.mark.slow
def test_soft_prompts_train_with_the_backbone_and_serve_tasks_that_were_not_trained(run, home, capsys):
    argv = ["--gin_file=toy.gin", "--gin_file=methods/soft_prompt_composed.gin", "--gin.methods.SoftPrompt.dropout=0.5"]
    argv += ["--gin.Evaluate.control=False", "--gin.Train.eval_every=100"]
    assert cli.main(["train", *argv, "--gin.TRAIN_STEPS=4", "--gin.MODEL_DIR=soft"]) == 0
    before = saved(home / "soft")
    assert {path for path in before if path.startswith("method/")} == {"method/parts"}
    # Three unknown slices, two types, one domain, two label sets; all of the backbone trains beside them.
    assert before["method/parts"].shape == (8, 20, 16) and before.keys() - {"method/parts"} == saved(run[0]).keys()
    wanted = results(home / "soft")
    assert wanted["unseen_tasks"]["examples"] == wanted["unseen_types"]["examples"] == 6

    scores = {}
    for unseen in ("unknown", "mean"):  # another start of unseen tasks needs no training, and changes none of it
        more = [f"--gin.methods.SoftPrompt.unseen={unseen}", f"--output={unseen}"]
        assert cli.main(["eval", "--model_dir=soft", *more]) == 0
        scores[unseen] = json.loads((home / unseen / "results.json").read_text())
    assert scores["unknown"]["losses"] == pytest.approx(wanted["losses"], abs=1e-5)
    assert scores["mean"]["losses"]["unseen_types"] != pytest.approx(wanted["losses"]["unseen_types"], abs=1e-4)
    assert same(saved(home / "soft"), before)

    config.load([str(home / "soft" / "config.gin")], ["methods.SoftPrompt.unseen = 'mean'"])
    made = config.make("Experiment")
    answers = answering.predictor(dataclasses.replace(made, train=dataclasses.replace(made.train, model_dir="soft")))
    rows = [answers.score(["101"], [["True", "False"]], task)[0] for task in ("toy_odd", "toy_first", "toy_parity", None)]
    assert all(np.isfinite(row).all() for row in rows) and len({tuple(row) for row in rows}) == 4
    capsys.readouterr()
