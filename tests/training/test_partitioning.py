"""Eight simulated devices give what one gives; what does not divide is named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def measure(plan):
    """Everything is measured in one process, as the number of devices is fixed when jax starts."""
    script = Path(__file__).with_name("eight_devices.py")
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, str(script), plan], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["devices"] == 8
    return found


@pytest.fixture(scope="module")
def report():
    return measure("main")


@pytest.mark.slow
def test_more_meshes_micro_batches_and_adafactor():
    found = measure("more")
    test_any_mesh_trains_as_one_device(found, "sgd", 1e-5)
    test_any_mesh_trains_as_one_device(found, "adafactor", 1e-4)
    for mesh in found["restored"]:
        test_a_checkpoint_restores_on_another_mesh(found, mesh)


@pytest.mark.parametrize("optimizer, tolerance", [("sgd", 1e-5), ("adamw", 1e-4)])
def test_any_mesh_trains_as_one_device(report, optimizer, tolerance):
    runs = [run for run in report["runs"] if run["optimizer"] == optimizer]
    assert runs and report["moved"] > 1e-3  # five steps are far more than the tolerance
    for run in runs:
        assert run["loss"] <= 1e-5, run
        assert run["params"] <= tolerance, run


def test_parameters_are_really_sharded(report):
    for run in report["runs"]:
        data, fsdp, model = run["mesh"]
        shares = {name: share for name, share in run["shares"].items() if "kernel" in name}
        assert len(shares) >= 10
        # Every kernel has one axis that the model shards and one that fsdp shards.
        assert set(shares.values()) == {1 / (fsdp * model)}, run["mesh"]


def test_optimizer_state_lies_where_its_parameters_lie(report):
    run = next(run for run in report["runs"] if run["optimizer"] == "adamw")
    for name, share in run["optimizer_shares"].items():
        assert share == next(s for path, s in run["shares"].items() if name.endswith(path)), name
    assert len(run["optimizer_shares"]) == 2 * len(run["shares"])


@pytest.mark.parametrize("mesh", ["4x1x2", "1x1x8", "one"])
def test_a_checkpoint_restores_on_another_mesh(report, mesh):
    assert report["restored"][mesh] == {"same": True, "placed": True, "untrained": False}


def test_prompts_stay_whole(report):
    assert report["prompt whole"]


@pytest.mark.parametrize(
    "case, sentence",
    [
        ("batch", "batch_size 20 does not divide over data × fsdp = 4 × 2 devices; 16 would."),
        ("batch fits", "no error"),
        ("parameter", "mlp/wi_0/kernel: its axis 'mlp' of size 20 does not divide over the mesh axis 'model' of 8 devices."),
        ("parameter fits", "no error"),
        ("devices", "Mesh data × fsdp × model = 3 × 1 × 2 needs 6 devices; there are 8."),
        ("too many", "needs 16 devices; there are 8."),
        ("zero", "Mesh.model is 0; it must be at least 1."),
    ],
)
def test_what_does_not_fit_is_named(report, case, sentence):
    assert report["mistakes"][case].endswith(sentence)


def test_generated_modules_lie_on_their_rows_devices_and_are_sharded_as_the_backbone(report):
    assert report["hint"]["loss"] <= 1e-5 and report["hint"]["params"] <= 1e-5
    rows, specs = "('data', 'fsdp')", report["hint"]["specs"]
    for name, wanted in {
        "encoder.self_attention.prefix.key": f"(None, {rows}, None, 'model')",
        "decoder.cross_attention.prefix.value": f"(None, {rows}, None, 'model')",
        "decoder.mlp.adapter.down": f"(None, {rows}, None, 'model')",
        "decoder.mlp.adapter.up": f"(None, {rows}, 'model')",
        "decoder.self_attention.lora.query.a": f"(None, {rows}, None, 'model')",
        "decoder.self_attention.lora.query.b": f"(None, {rows}, 'model')",
    }.items():
        assert specs[name].replace(", None)", ")").replace("PartitionSpec", "").lstrip("P") == wanted, name


def test_a_sharded_backbone_has_the_fingerprint_of_a_whole_one(report):
    assert report["fingerprint"]
