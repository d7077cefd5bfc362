"""The packaged backbone: its files, what loads it, and the same logits as transformers from the same files."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zeroprompt_jax import config, experiment, pretrained
from zeroprompt_jax.cli.main import main
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.interop import huggingface
from zeroprompt_jax.models import t5
from zeroprompt_jax.training import checkpoint

SPEC = "packaged:t5_tiny"


@pytest.fixture(scope="module")
def settings():
    config.load(["experiments/backbone.gin"], ["Train.initial_checkpoint_path = 'packaged:t5_tiny'"])
    return dataclasses.replace(config.make("T5Config"), dtype="float32")


def experiment_with(model, path=SPEC, **train):
    made = experiment.Experiment(
        data=experiment.Data(mixture="procedural_train", vocabulary=SPEC),
        train=experiment.Train(model_dir="unused", steps=1, initial_checkpoint_path=path, **train),
        model=model,
    )
    return experiment.build_model(made)


def test_small_enough_and_complete():
    folder = pretrained.directory(SPEC)
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert set(files) == {"README.md", "config.json", "model.safetensors", "spiece.model"}
    assert sum(files.values()) <= 10e6
    assert pretrained.names() == ("t5_tiny",) and pretrained.directory("runs/of/mine") is None


def test_an_unknown_name_is_told_with_the_nearest():
    for load in (load_vocabulary, pretrained.directory, lambda spec: checkpoint.load_params(spec, {"backbone/x": None})):
        with pytest.raises(UserError, match="packaged model 't5_tyni'.*'t5_tiny'"):
            load("packaged:t5_tyni")


def test_config_file_and_gin_file_agree(settings):
    theirs = huggingface.read_config(pretrained.directory(SPEC))
    for field in dataclasses.fields(theirs):
        if field.name not in ("dtype", "scan_layers", "relpos_init_std"):
            assert getattr(settings, field.name) == getattr(theirs, field.name), field.name


@pytest.mark.parametrize("scan", [False, True])
def test_a_run_starts_from_it(settings, scan):
    model = dataclasses.replace(settings, scan_layers=scan)
    loaded = experiment_with(model).variables["backbone"]
    want = huggingface.read_t5(pretrained.directory(SPEC), scan)
    jax.tree.map(np.testing.assert_array_equal, loaded, want)
    # Only what the regex names is loaded.
    part = experiment_with(model, initial_checkpoint_regex="backbone/token_embedder/.*").variables["backbone"]
    same = jax.tree.map(lambda a, b: bool((a == b).all()), part, loaded)
    assert same["token_embedder"]["embedding"] and not same["encoder"]["relpos_bias"]["rel_embedding"]


def test_another_model_is_refused(settings):
    with pytest.raises(UserError, match="mlp_activations is .*gelu.* but the model in 'packaged:t5_tiny' has"):
        experiment_with(dataclasses.replace(settings, mlp_activations=("gelu",)))
    with pytest.raises(UserError, match="t5_tiny does not fit this model: differently shaped"):
        experiment_with(dataclasses.replace(settings, mlp_dim=100))


def test_written_and_read_again(settings, tmp_path):
    params = huggingface.read_t5(pretrained.directory(SPEC), False)
    huggingface.write_t5(tmp_path, params, settings)
    again = huggingface.read_t5(tmp_path, False)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    (tmp_path / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        huggingface.read_t5(tmp_path, False)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no .safetensors file"):
        checkpoint.load_params(str(tmp_path), {"backbone/x": None})
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as a Hugging Face configuration"):
        checkpoint.pretrained_config(str(tmp_path))


@pytest.mark.parity
def test_logits_equal_transformers(settings):
    import torch
    import transformers

    folder = pretrained.directory(SPEC)
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    v = load_vocabulary(SPEC)
    texts = ["what is the past tense of the verb? : dog run child blue", "It was the <extra_id_0> of times,"]
    rows = [v.encode(text) + [v.eos_id] for text in texts]
    tokens = np.array([row + [0] * (20 - len(row)) for row in rows], np.int32)
    targets = np.array([[0, 5, 6, 7], [0, 8191, 9, 10]], np.int32)
    ours = t5.T5(settings).apply({"params": huggingface.read_t5(folder, False)}, jnp.asarray(tokens), jnp.asarray(targets))
    with torch.no_grad():
        want = theirs(
            input_ids=torch.tensor(tokens).long(),
            attention_mask=torch.tensor(tokens > 0).long(),
            decoder_input_ids=torch.tensor(targets).long(),
        ).logits.numpy()
    np.testing.assert_allclose(np.asarray(ours.logits), want, atol=2e-4)


def test_export_writes_what_runs_can_start_from(settings, tmp_path, capsys):
    run = tmp_path / "run"
    bindings = [
        f"--gin.MODEL_DIR='{run}'", "--gin.TRAIN_STEPS=1", "--gin.Schedule.kind='constant'", "--gin.Data.evaluation={}",
        "--gin.MIXTURE_OR_TASK_NAME='procedural_seen_tasks'", "--gin.Data.train_tasks=20",
        "--gin.Data.modules=['zeroprompt_jax.tasks.procedural']",
    ]  # fmt: skip
    assert main(["train", "--gin_file=experiments/backbone.gin", *bindings]) == 0
    assert main(["export", f"--model_dir={run}", "--format=hf", f"--output={tmp_path / 'out'}", "--dtype=float32"]) == 0
    assert re.search("config.json.*model.safetensors.*spiece.model", capsys.readouterr().out)
    trained = checkpoint.load_params(str(run), experiment_with(settings).params)
    written = experiment_with(settings, path=str(tmp_path / "out")).params
    assert all(np.array_equal(trained[k], written[k]) for k in trained)
    for layout, source in (("t5x", run), ("zeroprompt", tmp_path / "t5x")):
        assert main(["convert", str(source), str(tmp_path / layout), f"--format={layout}", "--no_logits"]) == 0
        written = experiment_with(settings, path=str(tmp_path / layout)).params
        assert all(np.array_equal(trained[k], written[k]) for k in trained)
