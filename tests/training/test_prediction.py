"""Predictions from a handwritten program: nothing is free but what costs nothing, and exchanges are told apart."""

import pytest

from zeroprompt_jax.training import hlo, prediction
from zeroprompt_jax.training.chips import Chip

CHIP = Chip(flops=1e6, hbm_bytes=1000, hbm_bandwidth=1e3, clock=1e3, lanes=10, link=500.0, dimensions=2)
PROGRAM = """\
HloModule jit_step, num_partitions=8

%fused (f.0: f32[100]) -> f32[100] {
  %f.0 = f32[100]{0} parameter(0)
  ROOT %f.1 = f32[100]{0} negate(%f.0)
}

ENTRY %main (p: f32[100]) -> f32[100] {
  %p = f32[100]{0} parameter(0)
  BODY
  ROOT %done = f32[100]{0} bitcast(%p)
}
"""
FUSION = "fusion(%p), kind=kLoop, calls=%fused"


def predict(*lines):
    return prediction.predict(hlo.read(PROGRAM.replace("BODY", "\n  ".join(lines))), CHIP)


def test_what_the_compiler_estimates_is_cycles_over_the_clock():
    found = predict(f'%a = f32[100]{{0}} {FUSION}, backend_config={{"estimated_cycles":"250"}}')
    assert found.cycles == 250 and found.seconds == 0.25 and found.parts == {"estimated": 0.25}
    assert predict().seconds == 0 and predict().utilisation == 0


def test_what_it_does_not_estimate_takes_as_long_as_its_bytes_in_main_memory():
    found = predict(f"%a = f32[100]{{0}} {FUSION}")
    assert found.cycles == 0 and found.seconds == pytest.approx(800 / 1e3) and list(found.parts) == ["roofline"]
    # A result elsewhere than in main memory does not cross its bus; a sentinel is no estimate.
    near = predict(f'%a = f32[100]{{0:T(128)S(1)}} {FUSION}, backend_config={{"estimated_cycles":"{2**63 - 1}"}}')
    assert near.seconds == pytest.approx(400 / 1e3)


def test_opaque_kernels_are_listed_and_never_free():
    call = '%a = f32[100]{0} custom-call(%p), custom_call_target="tpu_custom_call"'
    (found,) = predict(call).opaque()
    assert found == {"name": "tpu_custom_call", "runs": 1, "seconds": 0.8, "bytes": 800, "flops": 0}
    told = predict(call + ', backend_config={"cost_estimate":{"flops":"3000000","bytes_accessed":"10"}}')
    assert told.opaque()[0]["seconds"] == 3.0 and told.seconds == 3.0 and told.flops == 3e6
    told = predict(call + ', backend_config={"cost_estimate":{"flops":"3","transcendentals":"5000","bytes_accessed":"10"}}')
    assert told.seconds == 6 * 5000 / (10 * 1e3)  # six cycles of all lanes each
    (named,) = predict(call + ', metadata={op_name="jit(f)/layers_0/attend/pallas_call"}').opaque()
    assert named["name"] == "attend"
    assert predict('%a = f32[100]{0} custom-call(%p), custom_call_target="AllocateBuffer"').opaque() == []


@pytest.mark.parametrize(
    "groups, ways",
    [
        ("[4,2]<=[8]", 2),
        ("mesh['a'=4,'b'=2] {'a'}", 4),
        ("mesh['a'=4,'b'=2] {'a','b'}", 8),
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("{}", 8),
    ],
)
def test_collectives_cross_a_ring_of_their_group(groups, ways):
    found = predict(f"%a = f32[100]{{0}} all-reduce(%p), replica_groups={groups}, to_apply=%fused")
    (row,) = found.collectives()
    assert row["name"] == "all-reduce" and row["bytes"] == 400
    assert row["seconds"] == pytest.approx(2 * 400 * (ways - 1) / ways / 1000) == pytest.approx(found.seconds)


def test_exchanges_beside_other_work_count_only_where_they_take_longer():
    started = "%s = (f32[100]{0}, f32[800]{0}) all-gather-start(%p), replica_groups=[1,8]<=[8]"
    done = "%d = f32[800]{0} all-gather-done(%s)"
    work = f'%w = f32[100]{{0}} {FUSION}, backend_config={{"estimated_cycles":"CYCLES"}}'
    exchange = 400 * 7 / 1000
    assert predict(started, done, work.replace("CYCLES", "100")).seconds == pytest.approx(exchange)
    longer = predict(started, done, work.replace("CYCLES", "9000"))
    assert longer.seconds == 9.0 and longer.collectives()[0]["seconds"] == pytest.approx(exchange)
    waiting = predict("%g = f32[800]{0} all-gather(%p), replica_groups=[1,8]<=[8]", work.replace("CYCLES", "9000"))
    assert waiting.seconds == pytest.approx(9 + exchange)


@pytest.mark.parametrize(
    "fusion, kind, part, times",
    [
        ("%a", "all-reduce", "collective", 2),
        ("%async-fusion.1", "all-reduce", "collective beside", 2),
        ("%all-reduce-scatter.3", "reduce-scatter", "collective", 1),
    ],
)
def test_a_collective_inside_a_fusion_is_found(fusion, kind, part, times):
    text = PROGRAM.replace("negate(%f.0)", "all-reduce(%f.0), replica_groups=[1,8]<=[8]")
    found = prediction.predict(hlo.read(text.replace("BODY", f"{fusion} = f32[100]{{0}} {FUSION}")), CHIP)
    (row,) = found.collectives()
    assert row["name"] == kind and row["bytes"] == 400 and set(found.parts) == {part, "roofline"}
    assert row["seconds"] == pytest.approx(times * 400 * 7 / 8 / 1000)


def test_copies_beside_other_work_move_what_they_write():
    cut = "%s = (f32[100]{0}, f32[25]{0:S(1)}, u32[]{:S(2)}) slice-start(%p)"
    whole = "%c = (f32[100]{0:S(1)}, f32[100]{0}, u32[]{:S(2)}) copy-start(%p)"
    done = "%d = f32[25]{0:S(1)} slice-done(%s)"
    assert predict(cut, done).parts == {"copy": pytest.approx(0.1)} and predict(whole).seconds == pytest.approx(0.4)


def test_what_passes_between_slices_is_listed_and_not_timed():
    found = predict("%a = (f32[100]{0}, u32[], token[]) send(%p, %p), channel_id=1")
    assert found.collectives()[0]["name"] == "send" and found.seconds == 0


def test_the_costliest_are_told_by_source_layers_together():
    def fused(name, source, cycles):
        tail = f'metadata={{op_name="jit(f)/{source}"}}, backend_config={{"estimated_cycles":"{cycles}"}}'
        return f"%{name} = f32[100]{{0}} {FUSION}, {tail}"

    lines = [fused(f"l{i}", f"encoder/layers_{i}/mlp/wi_0/dot", 40) for i in range(12)]
    found = predict(*lines, fused("o", "decoder/norm", 400), fused("n", "decoder/layers_norm", 1))
    first, second, third = found.costliest()
    assert (first["source"], first["runs"], first["cycles"]) == ("encoder/layers_*/mlp/wi_0/dot", 12, 480)
    assert second["source"] == "decoder/norm" and third["source"] == "decoder/layers_norm"
    assert first["share"] == pytest.approx(480 / 881) and len(found.costliest(1)) == 1


def test_utilisation_is_the_chips_peak_by_the_products():
    product = "%d = f32[10,10]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
    cycles = ', backend_config={"estimated_cycles":"4"}'
    found = predict("%x = f32[10,10]{1,0} bitcast(%p)", product + cycles)
    assert found.flops == 2000 and found.utilisation == pytest.approx(2000 / 1e6 / 0.004)


def test_an_update_in_place_touches_what_it_updates():
    update = "%u = f32[100]{0} dynamic-update-slice(%p, %x, %i)"
    found = predict("%x = f32[5]{0} bitcast(%p)", "%i = s32[] constant(3)", update)
    assert found.seconds == pytest.approx(2 * 20 / 1e3)
