import json

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.interop import leaves, tensor_files

RNG = np.random.default_rng(0)
TENSORS = {
    "a.weight": RNG.normal(size=(7, 5)).astype(np.float32),
    "b.weight": RNG.normal(size=11).astype(np.float16),
    "c": np.arange(3),
    "empty": np.zeros((0, 4), np.float32),
    "scalar": np.array(2.5, np.float32),
}


def leaves_of(tensors):
    return {name: leaves.of(x) for name, x in tensors.items()}


def assert_read(got, want):
    assert got.keys() == want.keys()
    for name, x in want.items():
        np.testing.assert_array_equal(got[name].read(), x, strict=True)


def test_safetensors_own_library_reads_what_is_written_and_writes_what_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(leaves, "BLOCK", 48)
    tensor_files.write_safetensors(tmp_path / "ours.safetensors", leaves_of(TENSORS))
    assert list(tmp_path.iterdir()) == [tmp_path / "ours.safetensors"]
    theirs = safetensors.numpy.load_file(tmp_path / "ours.safetensors")
    assert theirs.keys() == TENSORS.keys()
    for name, x in TENSORS.items():
        np.testing.assert_array_equal(theirs[name], x, strict=True)
    with safetensors.safe_open(tmp_path / "ours.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
    safetensors.numpy.save_file(TENSORS, tmp_path / "theirs.safetensors")
    assert_read(tensor_files.read_safetensors(tmp_path / "theirs.safetensors"), TENSORS)


def test_bfloat16_keeps_its_bits(tmp_path):
    x = {"x": RNG.normal(size=(4, 3)).astype(ml_dtypes.bfloat16)}
    tensor_files.write_safetensors(tmp_path / "x.safetensors", leaves_of(x))
    assert_read(tensor_files.read_safetensors(tmp_path / "x.safetensors"), x)
    with pytest.raises(UserError, match="Tensor x is complex64"):
        tensor_files.write_safetensors(tmp_path / "y.safetensors", leaves_of({"x": np.zeros(2, np.complex64)}))
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_shards_are_those_that_the_index_names(tmp_path):
    parts = [dict(list(TENSORS.items())[:2]), dict(list(TENSORS.items())[2:])]
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name, part in zip(files, parts):
        safetensors.numpy.save_file(part, tmp_path / name)
    weight_map = {tensor: name for name, part in zip(files, parts) for tensor in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    safetensors.numpy.save_file({"other": np.zeros(2)}, tmp_path / "adapter.safetensors")
    assert_read(tensor_files.read_directory(tmp_path), TENSORS)
    (tmp_path / files[1]).unlink()
    with pytest.raises(UserError, match=f"lacks {files[1]}, which model.safetensors.index.json names"):
        tensor_files.read_directory(tmp_path)


def test_damaged_files_are_named(tmp_path):
    file = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(TENSORS, file)
    whole = file.read_bytes()
    for raw in (whole[:-1], whole[:20], b"", b"\xff" * 40, whole.replace(b"F32", b"F99")):
        file.write_bytes(raw)
        with pytest.raises(UserError, match=r"model\.safetensors cannot be read as safetensors"):
            tensor_files.read_directory(tmp_path)
    file.unlink()
    with pytest.raises(UserError, match="holds no .safetensors file and no pytorch_model.bin"):
        tensor_files.read_directory(tmp_path)


@pytest.mark.parity
@pytest.mark.parametrize("mapped", [True, False], ids=["zip", "before 1.6"])
def test_torch_files(tmp_path, mapped):
    import torch

    state = {"a": torch.randn(6, 4), "b": torch.randn(5).to(torch.bfloat16), "turned": torch.randn(3, 2).T}
    state["tied"] = state["a"]
    for i, names in enumerate((["a", "tied", "turned"], ["b"])):
        part = {name: state[name] for name in names}
        torch.save(part, tmp_path / f"pytorch_model-{i}.bin", _use_new_zipfile_serialization=mapped)
    got = tensor_files.read_directory(tmp_path)
    want = {
        n: x.numpy() if n != "b" else x.view(torch.int16).numpy().view(ml_dtypes.bfloat16) for n, x in state.items()
    }
    assert_read(got, want)
    assert got["a"].equals(got["tied"])
    (tmp_path / "pytorch_model-0.bin").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(UserError, match=r"pytorch_model-0\.bin cannot be read as a PyTorch state dict"):
        tensor_files.read_directory(tmp_path)


def test_torch_files_without_torch_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"pytorch_model\.bin needs PyTorch .*or save the model as safetensors"):
        tensor_files.read_directory(tmp_path)
