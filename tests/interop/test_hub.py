"""Models of the Hugging Face hub by name, wherever a directory in its layout is taken; its client is a stand-in here, but
in one test, which reads the client's own cache."""

import filecmp
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_roberta

from zeroprompt_jax import convert, experiment, pretrained, recycle
from zeroprompt_jax.data import pieces
from zeroprompt_jax.data.encoder_vocabulary import load_encoder_vocabulary
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.interop import huggingface_roberta
from zeroprompt_jax.search import relatives
from zeroprompt_jax.training import checkpoint

PACKAGED, NAME = "packaged:t5_tiny", "google/t5-tiny"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Name to folder of the models that the client gives, and the names and patterns that it was asked for."""
    models, asked = {}, []

    def snapshot_download(name, *, allow_patterns):
        asked.append((name, allow_patterns))
        if name not in models:
            raise ConnectionError("Max retries exceeded\nand much more")
        return str(models[name])

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    monkeypatch.chdir(tmp_path)
    pretrained._download.cache_clear()
    yield types.SimpleNamespace(models=models, asked=asked)
    pretrained._download.cache_clear()
    load_encoder_vocabulary.cache_clear()


def test_a_t5_is_taken_by_name_wherever_its_directory_is(hub, tmp_path):
    folder = hub.models[NAME] = pretrained.directory(PACKAGED)
    assert checkpoint.pretrained_config(NAME) == checkpoint.pretrained_config(PACKAGED)
    path = "backbone/token_embedder/embedding"
    table = convert.source(PACKAGED).leaves[path.removeprefix("backbone/")].cast(np.float32).read()
    loaded = checkpoint.load_params(NAME, {path: jax.ShapeDtypeStruct(table.shape, jnp.float32)})
    np.testing.assert_array_equal(loaded[path], table)
    assert convert.source(NAME).folder == folder
    for spec in (NAME, f"{NAME}:100"):
        assert load_vocabulary(spec).fingerprint == load_vocabulary(PACKAGED).fingerprint
        assert load_vocabulary(spec).spec == spec
    assert pieces.read(NAME) == pieces.read(PACKAGED)
    np.testing.assert_array_equal(recycle.home(NAME).embedding, table)
    copy = relatives.Same().place(NAME, None, tmp_path / "copy")
    assert not filecmp.dircmp(folder, copy).diff_files and (copy / "config.json").is_file()
    # All of these asked once, and never for what is not read.
    assert [name for name, _ in hub.asked] == [NAME] and "model*.safetensors" in hub.asked[0][1]


def test_a_run_that_starts_from_a_name_is_told_where_its_configuration_differs(hub):
    hub.models[NAME] = pretrained.directory(PACKAGED)
    train = experiment.Train(model_dir="unused", steps=1, initial_checkpoint_path=NAME)
    made = experiment.Experiment(data=experiment.Data(mixture="any"), train=train)
    with pytest.raises(UserError, match=f"but the model in '{NAME}' has"):
        experiment.check_pretrained(made)


def test_an_encoder_and_its_vocabulary_are_taken_by_name(hub, tmp_path):
    config = tiny_roberta.config(**tiny_roberta.BERT)
    folder = hub.models["me/bert"] = tmp_path / "snapshot"
    huggingface_roberta.write_roberta(folder, tiny_roberta.params(config), config)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nrain\n")
    named, given = (checkpoint.load_encoder(path, config) for path in ("me/bert", str(folder)))
    assert named.keys() == given.keys() and all(np.array_equal(named[path], given[path]) for path in given)
    assert load_encoder_vocabulary("me/bert").encode("rain") == [5]


def test_where_there_are_no_safetensors_pytorchs_files_are_fetched(hub, tmp_path):
    (tmp_path / "snapshot").mkdir()
    hub.models["me/old"] = tmp_path / "snapshot"
    assert pretrained.directory("me/old") == tmp_path / "snapshot"
    assert "pytorch_model*.bin" in hub.asked[1][1] and len(hub.asked) == 2


def test_a_hub_that_cannot_be_reached_is_one_sentence(hub, monkeypatch):
    said = (
        "There is no folder 'google/none', and the Hugging Face hub did not give that model (ConnectionError); download "
        "it where there is a network (hf download google/none --local-dir FOLDER) and give FOLDER here."
    )
    config = tiny_roberta.config()
    for read in (
        load_vocabulary,
        load_encoder_vocabulary,
        pieces.read,
        convert.source,
        recycle.home,
        checkpoint.pretrained_leaves,
        lambda name: checkpoint.load_encoder(name, config),
    ):
        with pytest.raises(UserError) as caught:
            read("google/none")
        assert str(caught.value) == said
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"needs huggingface_hub \(pip install huggingface_hub\); or download it where"):
        pretrained.directory("google/none")


def test_paths_are_not_asked_for(hub, tmp_path):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    for path in ("runs/mine", "runs/mistyped", "vocab/spiece.model", "a/table.npy", "gs://a/b", "/a/b", "a", "a/b/c"):
        assert pretrained.directory(path) is None, path
    with pytest.raises(UserError, match="No checkpoint at 'runs/mistyped'"):
        checkpoint.find("runs/mistyped")
    assert hub.asked == []


@pytest.mark.parity
def test_the_clients_own_cache_is_read_without_network(tmp_path, monkeypatch):
    from huggingface_hub import constants

    snapshot = tmp_path / "hub" / "models--google--t5-cached" / "snapshots" / "0123abc"
    shutil.copytree(pretrained.directory(PACKAGED), snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0123abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    pretrained._download.cache_clear()
    assert pretrained.directory("google/t5-cached") == snapshot
    assert load_vocabulary("google/t5-cached:100").fingerprint == load_vocabulary(PACKAGED).fingerprint
    with pytest.raises(UserError, match="hub did not give that model"):
        pretrained.directory("google/other")
    pretrained._download.cache_clear()
