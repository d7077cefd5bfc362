"""Backbones from layout to layout and back, through the library and the command line."""

import dataclasses
import json
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from zeroprompt_jax import convert, pretrained
from zeroprompt_jax.cli.main import main
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.interop import huggingface, leaves, t5x
from zeroprompt_jax.models.t5 import T5Config

pytestmark = pytest.mark.usefixtures("compile_fast")
CONFIG = T5Config(
    vocab_size=40, emb_dim=8, num_heads=2, head_dim=3, mlp_dim=12, num_encoder_layers=2, num_decoder_layers=1
)


def model(dtype="float32", config=CONFIG):
    """Random parameters by unscanned paths."""
    rng = np.random.default_rng(0)
    return {
        path: leaves.of(rng.normal(size=shape).astype(np.float32)).cast(jnp.dtype(dtype))
        for path, _, shape, _ in huggingface._names(config)
    }


@pytest.fixture
def home(tmp_path):
    huggingface.write_leaves(tmp_path / "hf", model(), CONFIG)
    return tmp_path


def same(source, want):
    return source.leaves.keys() == want.keys() and all(source.leaves[path].equals(leaf) for path, leaf in want.items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_around_all_layouts_every_bit_and_dtype_stays(tmp_path, dtype):
    want, at = model(dtype), str(tmp_path / "hf")
    huggingface.write_leaves(at, want, CONFIG)
    for n, layout in enumerate(["t5x", "zeroprompt", "hf", "zeroprompt", "t5x_scanned", "hf"]):
        made = convert.convert(at, tmp_path / str(n), layout, logits=False)
        at = str(tmp_path / str(n))
        assert same(convert.source(at), want) and made.difference is None
        assert (made.arrays, made.parameters) == (len(want), sum(leaf.read().size for leaf in want.values()))
    assert (tmp_path / "0" / "checkpoint_0" / t5x.INDEX).is_file()
    whole, last = ((p / "model.safetensors").read_bytes() for p in (tmp_path / "hf", tmp_path / "5"))
    assert whole == last and huggingface.read_config(at) == huggingface.read_config(tmp_path / "hf")
    assert json.loads((tmp_path / "5" / "config.json").read_text())["dtype"] == dtype


def test_command_says_what_was_compared(home, capsys, monkeypatch):
    monkeypatch.setattr(convert, "_has_transformers", lambda: False)
    folder = home / "t5x" / "checkpoint_5"
    assert main(["convert", str(home / "hf"), str(folder), "--format=t5x"]) == 0
    said = capsys.readouterr().out
    count = sum(leaf.read().size for leaf in model().values())
    assert re.search(
        rf"checkpoint_5 \(t5x\): {count:,} parameters in {len(model())} arrays, bit-equal; logits differ by at most 0 ",
        said,
    )
    assert t5x.read(folder)["state/step"].read() == 5
    assert main(["convert", str(folder), str(home / "own"), "--format=zeroprompt", "--no_logits"]) == 0
    assert capsys.readouterr().out.endswith("bit-equal\n")


def test_logits_tell_a_model_that_computes_otherwise(home):
    # The same shapes and bits: only what computes them differs. And the control, on which nothing does.
    source = convert.source(str(home / "hf"))
    other = dataclasses.replace(CONFIG, mlp_activations=("relu", "linear"))
    (a, _), (b, _), (c, _) = (
        convert._logits(dataclasses.replace(source, folder=None), config) for config in (CONFIG, CONFIG, other)
    )
    assert a.shape == (3, 8, CONFIG.vocab_size) and np.array_equal(a, b) and np.abs(a - c).max() > 0.01


@pytest.mark.parametrize("activations", [("gelu", "linear"), ("relu", "linear")])
def test_what_the_source_does_not_tell_is_said(home, capsys, activations):
    config = dataclasses.replace(CONFIG, mlp_activations=activations)
    huggingface.write_leaves(home / "gated", model(config=config), config)
    source = home / "gated"
    for layout, said in (("zeroprompt", False), ("t5x", False), ("hf", True)):
        assert main(["convert", str(source), str(home / f"to_{layout}"), f"--format={layout}", "--no_logits"]) == 0
        told = "config.json says mlp_activations ('gelu', 'linear') and relpos_max_distance 128, as the published"
        assert (told in capsys.readouterr().out) == said
        source = home / f"to_{layout}"
    assert huggingface.read_config(source).mlp_activations == ("gelu", "linear")
    # A source with a configuration assumes nothing.
    assert main(["convert", str(home / "gated"), str(home / "again"), "--format=hf", "--no_logits"]) == 0
    assert "config.json says" not in capsys.readouterr().out
    assert huggingface.read_config(home / "again").mlp_activations == activations


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the size of files")
@pytest.mark.parametrize("layout", convert.FORMATS)
def test_a_disk_that_takes_no_more_is_one_sentence(home, layout):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        with pytest.raises(UserError, match=r"Writing '.*out' failed \(.*File too large.*\); nothing is left there"):
            convert.convert(str(home / "hf"), home / "out", layout, logits=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in home.iterdir()] == ["hf"]


@pytest.mark.parametrize("fault", ["bits", "logits", "disk", "interrupt"])
def test_nothing_is_left_of_what_failed(home, monkeypatch, fault):
    def broken(*args, **kwargs):
        raise {"disk": OSError(28, "No space left on device"), "interrupt": KeyboardInterrupt}[fault]

    write = t5x.write_t5
    if fault == "bits":
        changed = lambda params: {**params, "encoder/encoder_norm/scale": leaves.of(np.zeros(8, np.float32))}
        monkeypatch.setattr(t5x, "write_t5", lambda path, params, *given, **named: write(path, changed(params), *given, **named))
    elif fault == "logits":
        numbers = iter([0.0, 1.0])
        monkeypatch.setattr(convert, "_logits", lambda *_: (np.full(3, next(numbers)), "a test"))
    else:
        monkeypatch.setattr(t5x, "write", broken)
    kind = KeyboardInterrupt if fault == "interrupt" else UserError
    match = {
        "bits": "encoder/encoder_norm/scale of .* was not written as it was read",
        "logits": "logits of what was written differ from those of '.*hf' by 1 ",
        "disk": "Writing .*out' failed .*No space left on device.*; nothing is left there",
        "interrupt": None,
    }
    with pytest.raises(kind, match=match[fault]):
        convert.convert(str(home / "hf"), home / "out", "t5x", logits=fault == "logits")
    assert [p.name for p in home.iterdir()] == ["hf"]


def test_what_cannot_be_converted_is_one_sentence(home, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(home)
    (home / "taken").mkdir()
    (home / "taken" / "file").write_text("")
    (home / "empty").mkdir()
    for source, destination, said in (
        ("hf", "taken", "'taken' exists already"),
        ("hff", "out", "No checkpoint at 'hff'. Did you mean 'hf'?"),
        ("empty", "out", "No checkpoint at 'empty'."),
        ("google/t5-v1_1-small", "out", "There is no folder 'google/t5-v1_1-small'"),
        ("packaged:t5_tny", "out", "Unknown packaged model 't5_tny'. Did you mean 't5_tiny'?"),
    ):
        assert main(["convert", source, destination, "--format=t5x", "--no_logits"]) == 2
        told = capsys.readouterr().err
        assert told.startswith(f"zeroprompt: error: {said}") and told.count("\n") == 1, told
    assert sorted(p.name for p in home.iterdir()) == ["empty", "hf", "taken"]
    with pytest.raises(UserError, match="Unknown format 't5y'.*'t5x'"):
        convert.convert("hf", "out", "t5y")


def test_a_run_is_what_it_trained_over_what_it_started_from(home, monkeypatch):
    import types

    from zeroprompt_jax.training import checkpoint

    trained = {"encoder/encoder_norm/scale": leaves.of(np.full(8, 3, np.float32))}
    checkpoint.write_backbone(home / "run" / "checkpoints" / "4", trained)
    run = types.SimpleNamespace(
        train=types.SimpleNamespace(model_dir=str(home / "run"), initial_checkpoint_path=str(home / "hf")),
        model=CONFIG,
        data=types.SimpleNamespace(vocabulary="packaged:t5_tiny"),
    )
    source = convert._run(run)
    assert same(source, {**model(), **trained})
    with convert._whole(home / "out") as folder:
        convert._write(source, folder, "hf", None)
    assert sorted(p.name for p in (home / "out").iterdir()) == ["config.json", "model.safetensors", "spiece.model"]
    own = pretrained.directory("packaged:t5_tiny") / "spiece.model"
    assert (home / "out" / "spiece.model").read_bytes() == own.read_bytes()
    run.train.initial_checkpoint_path = None
    checkpoint.write_backbone(home / "bare" / "checkpoints" / "4", {})
    run.train.model_dir = str(home / "bare")
    with pytest.raises(UserError, match="neither trained its backbone nor started from one"):
        convert._run(run)
    with pytest.raises(UserError, match="bare' holds no backbone"):
        convert.source(str(home / "bare"))


MEMORY = """
import sys
from pathlib import Path
from zeroprompt_jax import convert
def memory(name):
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[name].split()[0]) * 1024
warm, large, out, layout = sys.argv[1:]
convert.convert(warm, out + "_warm", layout, logits=False)
Path("/proc/self/clear_refs").write_text("5")  # the peak is that of what follows
before = memory("VmRSS")
convert.convert(large, out, layout, logits=False)
print(memory("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("kind", ["one tensor", "stacks"])
def test_extra_memory_stays_below_the_largest_tensor_and_a_third(home, kind):
    """Of one large tensor, and its like that is turned, and of many in layers that are written as one."""
    changes = {
        "one tensor": {"vocab_size": 16064, "emb_dim": 2048, "logits_via_embedding": False},
        "stacks": {"emb_dim": 1024, "mlp_dim": 2816, "num_encoder_layers": 12},
    }
    config = dataclasses.replace(CONFIG, **changes[kind])
    large = {
        path: leaves.of((np.arange(np.prod(shape), dtype=np.float32) % 251).reshape(shape))
        for path, _, shape, _ in huggingface._names(config)
    }
    largest = max(leaf.size for leaf in (leaves.stack(large) if kind == "stacks" else large).values())
    huggingface.write_leaves(home / "large", large, config)
    source = home / "large"
    for layout in ("zeroprompt" if kind == "stacks" else "t5x", "hf"):
        argv = [str(home / "hf"), str(source), str(home / f"to_{layout}"), layout]
        extra = int(subprocess.check_output([sys.executable, "-c", MEMORY, *argv], text=True).splitlines()[-1])
        print(f"{source.name} -> {layout}: {extra / 2**20:.0f} MiB, {extra / largest:.2f} of the largest tensor")
        assert extra < 1.3 * largest
        source = home / f"to_{layout}"
