"""Published sizes on real slices: training steps compile for their TPUs, fit into their memory, and take few cycles."""

import pytest

from zeroprompt_jax import config, precompile
from zeroprompt_jax.training import chips
from zeroprompt_jax.training.chips import Topology
from zeroprompt_jax.training.partitioning import Mesh

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not chips.installed(), reason="needs libtpu: pip install -e '.[tpu]'"),
]
SLICES = {"v5e_256": "v5e:16x16", "v5p_128": "v5p:4x4x4", "v4_64": "v4:2x4x4"}
METHODS = "full prompt soft_prompt mpt prefix adapter compacter lora ia3 bias hint hypter".split()
# T5X's own minimal T5 1.1 small, unrolled, 128 rows of 512/128 tokens by Adafactor on v5e:2x4, by the same compiler.
T5X_CYCLES = 55.4e6


def step(topology, *files, mesh=None, **bindings):
    """The plan of a training step of `runs/plan.gin` with more gin files; methods that read instructions get some."""
    instructed = any(name in file for file in files for name in ("hint", "hypter"))
    lengths = {"inputs": 512, "targets": 128} | ({"instructions": 128} if instructed else {})
    values = {"TASK_FEATURE_LENGTHS": lengths} | {name.replace("__", "."): value for name, value in bindings.items()}
    config.load(["runs/plan.gin", *files], [f"{name} = {value!r}" for name, value in values.items()])
    experiment = config.make("Experiment", **({} if mesh is None else {"mesh": mesh}))
    (found,) = precompile.plan(experiment, Topology.parse(topology), ["train"])
    return found


def check(found, method):
    assert found.fits, found.memory
    assert found.prediction.cycles > 0 and not found.prediction.unbounded
    assert {"attend", "attend_backward"} <= {row["name"] for row in found.prediction.opaque()}
    if method not in ("full", "hint", "hypter"):  # the backbone is frozen, and a prompt of each task is small beside it
        assert found.memory["optimizer"] < 0.5 * found.memory["parameters"]


@pytest.mark.parametrize("method", METHODS)
def test_small_fits_eight_chips(method):
    check(step("v5e:2x4", f"methods/{method}.gin", "slices/v5e_8.gin"), method)


@pytest.mark.parametrize("slice", SLICES)
@pytest.mark.parametrize("method", ["full", "mpt", "hint"])
@pytest.mark.parametrize("size", ["base", "large", "xl", "xxl"])
def test_every_size_fits_its_slice(size, method, slice):
    file = f"{slice}_{size}" if size in ("xl", "xxl") else slice
    found = step(SLICES[slice], f"models/t5_1_1_{size}.gin", f"methods/{method}.gin", f"slices/{file}.gin")
    check(found, method)


def test_a_step_takes_fewer_cycles_than_t5x_and_a_prompt_fewer_still():
    plain = {"T5Config__dropout_rate": 0.0, "T5Config__scan_layers": False, "BATCH_SIZE": 128}
    full = step("v5e:2x4", mesh=Mesh(data=8), **plain)
    prompt = step("v5e:2x4", "methods/prompt.gin", mesh=Mesh(data=8), **plain)
    cycles = [p.prediction.cycles + p.prediction.parts["opaque"] * chips.CHIPS["v5e"].clock for p in (full, prompt)]
    assert cycles[0] <= 0.68 * T5X_CYCLES and cycles[1] <= 0.8 * cycles[0]
    assert prompt.memory["peak"] < full.memory["peak"]
