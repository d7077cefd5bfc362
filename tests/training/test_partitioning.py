"""Eight simulated devices give what one gives; what does not divide is named; meshes by name and over slices."""

import dataclasses
import functools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from zeroprompt_jax import config, experiment as experiments
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.methods.full import Full
from zeroprompt_jax.models import t5
from zeroprompt_jax.training import chips, partitioning, state as states
from zeroprompt_jax.training.chips import Topology
from zeroprompt_jax.training.partitioning import Mesh

ROOT = Path(__file__).resolve().parents[2]


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
        data, fsdp, model, *replica = run["mesh"]
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
        ("parameter", "mlp/wi_0/kernel: its axis 'mlp' of size 20 does not divide over the mesh axis 'model' of 8 devices; 4 would."),
        ("parameter fits", "no error"),
        ("devices", "Mesh data × fsdp × model = 3 × 1 × 2 needs 6 devices; there are 8."),
        ("too many", "needs 16 devices; there are 8."),
        ("replicas", "Mesh replica × data × fsdp × model = 3 × 4 × 1 × 2 needs 24 devices; there are 8."),
        ("batch of replicas", "does not divide over replica × data × fsdp = 2 × 2 × 2 devices; 16 would."),
        ("zero", "Mesh.model is 0; it must be at least 1."),
    ],
)
def test_what_does_not_fit_is_named(report, case, sentence):
    assert report["mistakes"][case].endswith(sentence)


def test_generated_modules_lie_on_their_rows_devices_and_are_sharded_as_the_backbone(report):
    assert report["hint"]["loss"] <= 1e-5 and report["hint"]["gradient"] <= 1e-5
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


def test_a_mesh_is_read_by_its_axes_names():
    assert Mesh.parse("data:16,model:4") == Mesh(data=16, model=4)
    assert Mesh.parse("replica:2, fsdp:8") == Mesh(replica=2, fsdp=8)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("dat:8", "Unknown mesh axis 'dat'. Did you mean 'data'?"),
        ("data=8", "Unknown mesh axis 'data=8'. Did you mean 'data'?"),
        ("data:eight", "is not a list of axes and sizes"),
        ("data:4,data:2", "is not a list of axes and sizes"),
        ("model:0", "Mesh.model is 0; it must be at least 1."),
    ],
)
def test_a_mesh_that_cannot_be_read_is_named(text, sentence):
    with pytest.raises(UserError) as e:
        Mesh.parse(text)
    assert sentence in str(e.value)


@pytest.mark.skipif(not chips.installed(), reason="needs libtpu: pip install -e '.[tpu]'")
def test_replicas_lie_whole_on_a_slice():
    devices = Topology.parse("v5e:2x2", slices=2).devices()
    mesh = Mesh(replica=4, model=2).build(devices)
    assert mesh.shape == {"replica": 4, "data": 1, "fsdp": 1, "model": 2}
    assert [{d.slice_index for d in replica.flat} for replica in mesh.devices] == [{0}, {0}, {1}, {1}]
    with pytest.raises(UserError, match="Mesh.replica is 1, but the devices are 2 slices; give a multiple of 2"):
        Mesh(replica=1).build(devices)
    assert Mesh(model=2).build(devices).shape == {"replica": 2, "data": 2, "fsdp": 1, "model": 2}


@pytest.mark.skipif(not chips.installed(), reason="needs libtpu: pip install -e '.[tpu]'")
def test_axes_share_a_dimension_of_the_torus_where_they_must():
    devices = Topology.parse("v5p:4x4x4").devices()
    mesh = Mesh(fsdp=2, model=2).build(devices)
    assert mesh.shape == {"replica": 1, "data": 16, "fsdp": 2, "model": 2}
    far = lambda a, b: sum(min(abs(x - y), 4 - abs(x - y)) for x, y in zip(a.coords, b.coords))
    assert {far(*pair) for pair in mesh.devices.reshape(-1, 2)} == {1}  # neighbours, as what crosses `model` is most


@functools.cache
def backbone_shapes(model):
    return states.flatten({"backbone": jax.eval_shape(lambda: t5.init(model, jax.random.key(0)))})


@pytest.mark.parametrize("preset", sorted(path.stem for path in (ROOT / "gin" / "slices").glob("*.gin")))
def test_every_parameter_divides_over_its_preset(preset):
    """For the slice that its own first lines name, whose chips need not be there."""
    lines = (ROOT / "gin" / "slices" / f"{preset}.gin").read_text().splitlines()
    command = " ".join(line.strip("# \\") for line in lines[:2])
    topology = Topology.parse(command.partition("--topology=")[2].split()[0])
    count = math.prod(topology.shape)
    size = preset.rpartition("_")[2]
    sizes = [size] if size in ("xl", "xxl") else ["small", "base", "large"]
    for size in sizes:
        config.load([f"models/t5_1_1_{size}.gin", f"slices/{preset}.gin"])
        wanted, model = config.make("Mesh"), config.make("T5Config")
        data = count // (wanted.fsdp * wanted.model)
        mesh = jax.sharding.AbstractMesh((1, data, wanted.fsdp, wanted.model), partitioning.MESH_AXES)
        assert mesh.size == count
        shapes = backbone_shapes(dataclasses.replace(model, remat_policy="none"))
        placed = partitioning.param_shardings(shapes, Full(), mesh)
        shared = partitioning.device_bytes(partitioning.abstract(shapes, placed))
        # Parameters and gradients, float32, leave room for what is remembered.
        assert 2 * shared < 0.6 * topology.chip.hbm_bytes, size
    config.load(["runs/plan.gin", f"models/t5_1_1_{size}.gin", f"slices/{preset}.gin"])
    experiments.check_rows(config.make("Experiment"), mesh)
