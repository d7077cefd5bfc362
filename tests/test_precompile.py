"""Plans of steps: what they are given, what they take, and that one compiled for TPUs computes what is counted."""

import dataclasses
import json

import jax
import pytest

from zeroprompt_jax import config, precompile
from zeroprompt_jax.cli.main import main
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.models import flops
from zeroprompt_jax.training import chips
from zeroprompt_jax.training.chips import Topology
from zeroprompt_jax.training.partitioning import Mesh

TINY = {
    "T5Config.vocab_size": 256,
    "T5Config.emb_dim": 128,
    "T5Config.num_heads": 2,
    "T5Config.mlp_dim": 256,
    "T5Config.num_encoder_layers": 2,
    "T5Config.num_decoder_layers": 2,
    "T5Config.dropout_rate": 0.0,
    "TASK_FEATURE_LENGTHS": {"inputs": 32, "targets": 16, "instructions": 8},
    "BATCH_SIZE": 16,
    "EVAL_BATCH_SIZE": 32,
}
V5E = Topology("v5e", (2, 4))


def experiment(*files, mesh=Mesh(data=8), **bindings):
    values = {**TINY, **{name.replace("__", "."): value for name, value in bindings.items()}}
    config.load(["runs/plan.gin", *files], [f"{name} = {value!r}" for name, value in values.items()])
    made = config.make("Experiment", mesh=mesh)
    return dataclasses.replace(made, optimizer=dataclasses.replace(made.optimizer, name="sgd"))


@pytest.fixture
def one_cpu(monkeypatch):
    """A topology of the one CPU that is there, which compiles as TPUs do, only without cycles."""
    monkeypatch.setattr(Topology, "devices", lambda self: jax.devices()[:1])
    return Mesh(data=1)


def test_steps_that_are_not_there_are_named():
    with pytest.raises(UserError, match="Unknown step 'trian'. Did you mean 'train'?"):
        precompile.plan(experiment(), V5E, ["trian"])
    with pytest.raises(UserError, match="The method Full reads no instruction, so it makes no modules."):
        precompile.plan(experiment(), V5E, ["modules"])
    with pytest.raises(UserError, match="reads the instruction apart"):
        lengths = {"inputs": 32, "targets": 16}
        precompile.plan(experiment("methods/hint.gin", TASK_FEATURE_LENGTHS=lengths), V5E)


def test_the_command_names_a_wrong_topology_and_mesh(capsys, tmp_path):
    command = ["precompile", "--gin_file=runs/plan.gin", f"--output={tmp_path / 'out.json'}"]
    assert main([*command, "--topology=v5x:2x4"]) == 2
    assert main([*command, "--topology=v5e:2x4", "--mesh=rows:8"]) == 2
    told = capsys.readouterr().err
    assert "Unknown TPU 'v5x'" in told and "Unknown mesh axis 'rows'" in told
    assert not (tmp_path / "out.json").exists()


@pytest.mark.usefixtures("compile_fast")
def test_what_a_hypernetwork_serves_with_is_planned(one_cpu):
    made = experiment("methods/hint.gin", mesh=one_cpu, PREFIX_LENGTH=2, ADAPTER_RANK=4)
    plans = precompile.plan(made, V5E, ["modules", "decode"])
    assert [(p.step, p.rows, p.fits) for p in plans] == [("modules", 8, True), ("decode", 32, True)]
    model = precompile.experiments.abstract_model(made, made.mesh.build())
    values = sum(leaf.size for leaf in [*model.params.values(), *model.frozen.values()])
    for p in plans:
        assert p.memory["parameters"] == 4 * values
        assert p.memory["peak"] >= p.memory["arguments"] + p.memory["temporaries"] > 0
        assert p.prediction.seconds > 0 and p.prediction.flops > 0 and not p.prediction.unbounded
    # All rows are decoded to the full length, by the encoder's and the decoder's products; modules add to both.
    decode = plans[1].prediction.flops
    assert decode > 32 * flops.encode(made.model, 32)
    record = json.loads(json.dumps(precompile.record(plans, made, V5E)))
    assert [step["step"] for step in record["steps"]] == ["modules", "decode"]
    text = precompile.table(plans, V5E)
    assert "v5e:2x4: 8 chips of 15.8 GiB." in text and "costliest" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["full", "prompt", "mpt", "prefix", "adapter", "lora", "ia3", "bias", "hint", "hypter"]
)
def test_every_step_of_every_method_lowers(method, one_cpu):
    made = experiment(f"methods/{method}.gin", mesh=one_cpu)
    model = precompile.experiments.abstract_model(made, made.mesh.build())
    for step, lower in precompile.STEPS.items():
        if step != "modules" or made.method.reads_instructions:
            lowered, rows, given = lower(made, model)
            assert rows in (8, 16, 32) and {"parameters", "batch"} <= set(given)


@pytest.mark.parametrize(
    "message, part, size",
    [
        ("the total memory required for HLO temporaries (32.50G) exceeds available HBM (15.75G).", "temporaries", 32.5),
        ("Ran out of memory in memory space hbm. Used 17.25G of 15.75G hbm.", "peak", 17.25),
    ],
)
def test_what_does_not_fit_is_told(message, part, size, one_cpu, monkeypatch):
    class Lowered:
        def compile(self):
            raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {message}")

    monkeypatch.setitem(
        precompile.STEPS, "train", lambda experiment, model: (Lowered(), 16, {"parameters": model.params})
    )
    made = experiment(mesh=one_cpu)
    (found,) = precompile.plan(made, V5E, ["train"])
    assert not found.fits and found.prediction is None and found.memory[part] == size * 2**30
    assert f"train does not fit: the compiler asks for {size:,.3g} GiB ({part})." in precompile.table([found], V5E)
    assert precompile.record([found], made, V5E)["steps"][0]["fits"] is False


def test_another_failure_of_the_compiler_is_not_hidden(one_cpu, monkeypatch):
    class Lowered:
        def compile(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setitem(precompile.STEPS, "train", lambda experiment, model: (Lowered(), 16, {}))
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        precompile.plan(experiment(mesh=one_cpu), V5E, ["train"])


@pytest.mark.skipif(not chips.installed(), reason="needs libtpu: pip install -e '.[tpu]'")
def test_a_training_step_compiles_for_tpus_and_computes_what_is_counted():
    made = experiment()
    with pytest.raises(UserError, match="batch_size 12 does not divide over data × fsdp = 8 × 1 devices"):
        precompile.plan(dataclasses.replace(made, train=dataclasses.replace(made.train, batch_size=12)), V5E)
    (found,) = precompile.plan(made, V5E, ["train"])
    model = precompile.experiments.abstract_model(made, made.mesh.build(V5E.devices()))
    values = sum(leaf.size for leaf in model.params.values())
    assert found.fits and found.rows == 16 and found.memory["parameters"] == 4 * values
    predicted = found.prediction
    # Both scans, forward and backward, count by their turns: every product is there, and none twice. The position biases'
    # products with one-hot columns, one in each direction, only copy.
    copies = 2 * 2 * made.model.num_heads * made.model.relpos_num_buckets * (32**2 + 16**2)
    assert predicted.flops == flops.train(made.model, 16 // 8, 32, 16) + copies and not predicted.unbounded
    assert predicted.cycles > 0 and predicted.seconds > predicted.cycles / V5E.chip.clock
    (gradients,) = [row for row in predicted.collectives() if row["name"] == "all-reduce"]
    assert 2 * values <= gradients["bytes"] <= 4.1 * values  # in bfloat16 or float32
    assert len(predicted.costliest()) == 10 and any("coder/" in row["source"] for row in predicted.costliest())
