"""Checkpoints: what is saved comes back, what does not fit is listed, a full disk loses nothing."""

import contextlib
import errno
import resource
import subprocess

import jax
import numpy as np
import pytest
import small_model

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.training import checkpoint, state as states
from zeroprompt_jax.training.checkpoint import Checkpointer
from zeroprompt_jax.training.optimizer import Optimizer, Schedule

SCANNED = small_model.config(scan_layers=True, num_encoder_layers=2)
OPTIMIZERS = {
    "adamw": Optimizer("adamw", clip_norm=1.0),
    "adafactor": Optimizer("adafactor", Schedule(kind="rsqrt"), momentum=0.9),
    "sgd": Optimizer("sgd"),
}


def state_of(params, optimizer: str = "sgd", step: int = 3, seed: int = 0):
    """A state whose every value is random, so that nothing comes back right by chance."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        whole = np.issubdtype(leaf.dtype, np.integer)
        value = rng.integers(1, 100, leaf.shape) if whole else rng.normal(size=leaf.shape)
        return jax.device_put(value.astype(leaf.dtype))

    tx = OPTIMIZERS[optimizer].build(10)
    state = jax.tree.map(draw, jax.eval_shape(lambda: states.create(params, tx)))
    return state.replace(step=jax.device_put(np.int32(step)))


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


PARAMS = {"backbone/a/kernel": np.ones((2, 3), np.float32), "backbone/b/scale": np.ones(4, np.float32)}
PARAMS["method/prompt"] = np.ones((5, 3), np.float32)


@pytest.fixture
def run(tmp_path):
    """A run whose newest checkpoint is of step 3."""
    state = state_of(PARAMS)
    checkpointer = Checkpointer(tmp_path / "run_one")
    checkpointer.save(state, {})
    checkpointer.close()
    return tmp_path / "run_one", state


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_round_trip_is_exact(tmp_path, optimizer):
    state = state_of(small_model.flat(SCANNED), optimizer)
    record = {"window": {"sums": {"loss": 0.1 + 0.2}, "steps": 3}, "seconds": 1 / 3}
    checkpointer = Checkpointer(tmp_path)
    assert checkpointer.latest() is None
    checkpointer.save(state, record)
    checkpointer.close()
    again = Checkpointer(tmp_path)
    assert again.latest() == 3
    found, found_record = again.restore(abstract(state))
    again.close()
    assert small_model.same_bits(found, state) and found_record == record
    assert not small_model.same_bits(found, state_of(small_model.flat(SCANNED), optimizer, seed=1))


def test_only_the_newest_are_kept(tmp_path):
    checkpointer = Checkpointer(tmp_path, keep=2)
    for step in (1, 2, 3, 4, 4):
        checkpointer.save(state_of(PARAMS, step=step, seed=step), {"step": step})
    checkpointer.wait()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()) == ["3", "4"]
    state = state_of(PARAMS, step=3, seed=3)
    assert small_model.same_bits(checkpointer.restore(abstract(state), 3)[0], state)
    with pytest.raises(UserError, match="no checkpoint of step 2 .*; there is 3, 4"):
        checkpointer.restore(abstract(state), 2)
    checkpointer.close()


def test_what_a_killed_save_left_is_no_checkpoint(run):
    folder, state = run
    broken = folder / "checkpoints" / "9.orbax-checkpoint-tmp"
    (broken / "state").mkdir(parents=True)
    assert checkpoint.find(str(folder)).name == "3"
    checkpointer = Checkpointer(folder)
    assert checkpointer.latest() == 3
    assert small_model.same_bits(checkpointer.restore(abstract(state))[0], state)
    checkpointer.close()
    assert not broken.exists()


def test_a_mismatch_lists_every_leaf(run):
    folder, _ = run
    other = {"backbone/a/kernel": np.ones((2, 4)), "backbone/b/scale": np.ones(5), "backbone/c": np.ones(1), "d": np.ones(1)}
    checkpointer = Checkpointer(folder)
    with pytest.raises(UserError) as caught:
        checkpointer.restore(abstract(state_of(other)))
    checkpointer.close()
    sentence = str(caught.value)
    assert "missing backbone/c, d;" in sentence and "extra method/prompt;" in sentence
    assert "backbone/a/kernel is [2, 3], wanted [2, 4]; backbone/b/scale is [4], wanted [5]." in sentence
    assert str(folder / "checkpoints" / "3") in sentence


def test_another_optimizer_is_told(run):
    folder, _ = run
    checkpointer = Checkpointer(folder)
    with pytest.raises(UserError, match="does not fit this model: .*missing .*backbone/a/kernel"):
        checkpointer.restore(abstract(state_of(PARAMS, "adamw")))
    checkpointer.close()


def test_parameters_by_regex(run, monkeypatch):
    folder, state = run
    everything = checkpoint.load_params(str(folder), state.params)
    assert small_model.same_bits(everything, state.params)
    for path in (folder / "checkpoints", folder / "checkpoints" / "3"):
        part = checkpoint.load_params(str(path), state.params, "backbone/.*")
        assert small_model.same_bits(part, {k: v for k, v in state.params.items() if k.startswith("backbone")})
    monkeypatch.chdir(folder.parent)
    bigger = {**PARAMS, "backbone/new": np.ones(2), "method/prompt": np.ones((9, 3), np.float32)}
    assert list(checkpoint.load_params("run_one", bigger, "backbone/[ab]/.*")) == ["backbone/a/kernel", "backbone/b/scale"]
    with pytest.raises(UserError) as caught:
        checkpoint.load_params("run_one", bigger)
    assert str(caught.value).endswith("missing backbone/new; differently shaped: method/prompt is [5, 3], wanted [9, 3].")
    with pytest.raises(UserError, match="The regex 'encoder' matches none of this model's 3 parameters"):
        checkpoint.load_params("run_one", PARAMS, "encoder")


def test_a_path_that_holds_no_checkpoint(run):
    folder, _ = run
    (folder / "notes.txt").write_text("no checkpoint")
    (folder.parent / "run_on_disk").mkdir()  # nearer by name, but no run
    for wrong in (folder.parent / "run_on", folder / "notes.txt", folder / "notes.txt" / "deeper", folder / "none" / "3"):
        with pytest.raises(UserError, match=f"No checkpoint at '{wrong}'"):
            checkpoint.find(str(wrong))
    with pytest.raises(UserError, match="Did you mean 'run_one'?"):
        checkpoint.find(str(folder.parent / "run_on"))


@contextlib.contextmanager
def small_disk(folder):
    """`folder` becomes a disk of 2 MB."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def small_files(folder):
    """No file may grow beyond 256 kB, as under a quota."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", ["disk", "quota"])
def test_a_full_disk_loses_nothing(tmp_path, kind):
    folder = tmp_path / "small"
    big = {"backbone/big": np.zeros(2**20, np.float32)}  # 4 MB of noise, which does not compress
    with small_disk(folder) if kind == "disk" else small_files(folder) as limit:
        checkpointer = Checkpointer(folder)
        good = state_of(PARAMS, step=5)
        checkpointer.save(good, {"seconds": 1.0})
        checkpointer.wait()
        assert [checkpointer.saved(), checkpointer.saved()] == [5, None]  # told once
        if limit:
            limit()
        with pytest.raises(UserError, match="Saving step 10 to .* failed .*the checkpoint of step 5 is intact"):
            checkpointer.save(state_of(big, step=10), {})
            checkpointer.wait()
        assert checkpointer.saved() is None
        with contextlib.suppress(UserError):
            checkpointer.close()
        again = Checkpointer(folder)
        assert again.latest() == 5
        found, record = again.restore(abstract(good))
        again.close()
        assert small_model.same_bits(found, good) and record == {"seconds": 1.0}


def test_a_failed_save_is_told_wherever_it_fails(tmp_path, monkeypatch):
    checkpointer = Checkpointer(tmp_path)

    def fail(*args, **kwargs):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as e:
            raise ValueError("deep inside") from e

    with monkeypatch.context() as patch:
        patch.setattr(checkpointer._manager, "save", fail)
        with pytest.raises(UserError, match="Saving step 3 to .*No space left.*no earlier checkpoint exists"):
            checkpointer.save(state_of(PARAMS), {})
        patch.setattr(checkpointer._manager, "save", lambda *args, **kwargs: {}["a mistake of ours"])
        with pytest.raises(KeyError):
            checkpointer.save(state_of(PARAMS), {})
    checkpointer.close()
