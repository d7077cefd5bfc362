"""A compiled program's text: what runs, how often, and how many products that is."""

import re

import jax
import jax.numpy as jnp
import pytest

from zeroprompt_jax.training import hlo

LOOPS = """\
HloModule jit_step, is_scheduled=true, num_partitions=8, entry_computation_layout={(f32[4]{0})->f32[4]{0}}

FileNames
1 "/somewhere/zeroprompt_jax/training/step.py"
2 "/somewhere/site-packages/optax/_src/update.py"

FunctionNames
1 "step"
2 "update"

FileLocations
1 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=1 end_column=2}
2 {file_name_id=2 function_name_id=2 line=9 end_line=9 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

%fused_less (less.0: s32[], less.1: s32[]) -> pred[] {
  %less.0 = s32[]{:T(128)} parameter(0)
  %less.1 = s32[]{:T(128)} parameter(1)
  ROOT %less = pred[]{:T(512)} compare(%less.0, %less.1), direction=LT
}

%inner_body (inner.0: (s32[], f32[4])) -> (s32[], f32[4]) {
  %inner.0 = (s32[]{:T(128)}, f32[4]{0:T(128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%inner.0), index=0
  %x.1 = f32[4]{0:T(128)} get-tuple-element(%inner.0), index=1
  %one.1 = s32[]{:T(128)} constant(1)
  %i.2 = s32[]{:T(128)} add(%i.1, %one.1)
  %deep = f32[4]{0:T(128)} fusion(%x.1), kind=kLoop, calls=%fused_less, backend_config={"estimated_cycles":"10"}
  ROOT %next.1 = (s32[]{:T(128)}, f32[4]{0:T(128)}) tuple(%i.2, %deep)
}

%inner_condition (inner.1: (s32[], f32[4])) -> pred[] {
  %inner.1 = (s32[]{:T(128)}, f32[4]{0:T(128)}) parameter(0)
  %limit.1 = s32[]{:T(128)} constant(INNER)
  %at.1 = s32[]{:T(128)} get-tuple-element(%inner.1), index=0
  ROOT %go.1 = pred[]{:T(512)} fusion(%at.1, %limit.1), kind=kLoop, calls=%fused_less
}

%outer_body (outer.0: (s32[], f32[4])) -> (s32[], f32[4]) {
  %outer.0 = (s32[]{:T(128)}, f32[4]{0:T(128)}) parameter(0)
  %i.3 = s32[]{:T(128)} get-tuple-element(%outer.0), index=0
  %x.2 = f32[4]{0:T(128)} get-tuple-element(%outer.0), index=1
  %zero.2 = s32[]{:T(128)} constant(0)
  %start.2 = s32[]{:T(128)} copy(%zero.2)
  %state.2 = (s32[]{:T(128)}, f32[4]{0:T(128)}) tuple(%start.2, %x.2)
  %loop.2 = (s32[]{:T(128)}, f32[4]{0:T(128)}) while(%state.2), condition=%inner_condition, body=%inner_body
  %x.3 = f32[4]{0:T(128)} get-tuple-element(%loop.2), index=1
  %shallow = f32[4]{0:T(128)} fusion(%x.3), kind=kLoop, calls=%fused_less, backend_config={"estimated_cycles":"100"}
  %step.2 = s32[]{:T(128)} constant(STEP)
  %i.4 = s32[]{:T(128)} add(%step.2, %i.3)
  ROOT %next.2 = (s32[]{:T(128)}, f32[4]{0:T(128)}) tuple(%i.4, %shallow)
}

%outer_condition (outer.1: (s32[], f32[4])) -> pred[] {
  %outer.1 = (s32[]{:T(128)}, f32[4]{0:T(128)}) parameter(0)
  %limit.2 = s32[]{:T(128)} constant(OUTER)
  %at.2 = s32[]{:T(128)} get-tuple-element(%outer.1), index=0
  %more.2 = s32[]{:T(128)} constant(1)
  %later.2 = s32[]{:T(128)} add(%at.2, %more.2)
  %going.2 = pred[]{:T(512)} constant(true)
  %within.2 = pred[]{:T(512)} compare(%later.2, %limit.2), direction=LT
  ROOT %go.2 = pred[]{:T(512)} and(%within.2, %going.2)
}

ENTRY %main (param.0: f32[4]) -> f32[4] {
  %param.0 = f32[4]{0:T(128)} parameter(0)
  %zero.3 = s32[]{:T(128)} constant(STARTED)
  %state.3 = (s32[]{:T(128)}, f32[4]{0:T(128)}) tuple(%zero.3, %param.0)
  %loop.3 = (s32[], /*index=1*/f32[4]{0:T(128)S(1)}) while(%state.3), condition=%outer_condition, body=%outer_body
  %x.4 = f32[4]{0:T(128)} get-tuple-element(%loop.3), index=1
  ROOT %last = f32[4]{0} fusion(%x.4), calls=%fused_less, metadata={op_name="jit(step)/last" stack_frame_id=2}, LAST
}
"""
LOOPS = LOOPS.replace("LAST", 'backend_config={"estimated_cycles":"1000"}')


def loops(text=LOOPS, inner=3, outer=5, started=0, step=1):
    values = {"INNER": inner, "OUTER": outer, "STARTED": started, "STEP": step}
    for name, value in values.items():
        text = text.replace(name, str(value))
    return hlo.read(text)


def cycles(program):
    return sum(run.times * (run.instruction.cycles or 0) for run in program.runs())


def test_loops_count_by_their_turns():
    # The outer one compares its counter plus one, so that it turns once less than its limit.
    assert cycles(loops()) == 1000 + 4 * (100 + 3 * 10)
    assert cycles(loops(outer=6, started=2)) == 1000 + 3 * (100 + 3 * 10)
    assert cycles(loops(inner=0, outer=0)) == 1000
    # Counting 0, 2 while one more is less than 5; one turn less where it begins at 1.
    assert cycles(loops(step=2)) == cycles(loops(outer=4, step=2)) == 1000 + 2 * (100 + 3 * 10)
    assert cycles(loops(outer=4, started=1, step=2)) == 1000 + 1 * (100 + 3 * 10)
    times = {run.instruction.name: run.times for run in loops().runs()}
    assert times["go.2"] == 5 and times["go.1"] == 4 * 4  # the condition is asked once more than it holds


def test_a_fusion_is_one_instruction_with_a_source():
    program = loops()
    assert "less" not in {run.instruction.name for run in program.runs()}
    assert program.computations["main"].instructions["last"].source == "jit(step)/last" and program.devices == 8


@pytest.mark.parametrize(
    "parents, line",
    [
        # XLA may count a parent from 1 for none, or from 0.
        ((1, 2), "training/step.py:7"),
        ((0, 1), "training/step.py:7"),
        ((1, 1), "optax/_src/update.py:9"),
        ((0, 0), "optax/_src/update.py:9"),
    ],
)
def test_an_instruction_is_told_by_its_innermost_line_in_this_package(parents, line):
    text = LOOPS.replace("location_id=1 parent_frame_id=1", f"location_id=1 parent_frame_id={parents[0]}")
    text = text.replace("location_id=2 parent_frame_id=2", f"location_id=2 parent_frame_id={parents[1]}")
    program = loops(text)
    assert program.lines[program.computations["main"].instructions["last"].frame] == line


def test_turns_that_the_compiler_tells_count_first():
    text = LOOPS.replace("body=%outer_body", 'body=%outer_body, backend_config={"known_trip_count":{"n":"2"}}')
    program = loops(text)
    assert cycles(program) == 1000 + 2 * (100 + 3 * 10)


def test_a_loop_without_a_counter_turns_once_and_says_so():
    text = LOOPS.replace(
        "ROOT %go.2 = pred[]{:T(512)} and(%within.2, %going.2)", "ROOT %go.2 = pred[] custom-call(%at.2)"
    )
    program = loops(text)
    turns = [
        program.turns(run.computation, run.instruction) for run in program.runs() if run.instruction.opcode == "while"
    ]
    assert turns == [None, 3]
    assert cycles(program) == 1000 + 1 * (100 + 3 * 10)


def test_of_alternatives_the_one_with_most_cycles_runs():
    text = """\
HloModule jit_f

%small (a.0: f32[4]) -> f32[4] {
  ROOT %a.0 = f32[4]{0} parameter(0), backend_config={"estimated_cycles":"1"}
}

%large (b.0: f32[4]) -> f32[4] {
  ROOT %b.0 = f32[4]{0} parameter(0), backend_config={"estimated_cycles":"7"}
}

ENTRY %main (p.0: s32[], p.1: f32[4]) -> f32[4] {
  %p.0 = s32[] parameter(0)
  %p.1 = f32[4]{0} parameter(1)
  ROOT %c = f32[4]{0} conditional(%p.0, %p.1, %p.1), branch_computations={%small, %large}
}
"""
    assert cycles(hlo.read(text)) == 7


def test_types_are_arrays_with_their_bytes_and_memory():
    tuple_ = "(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/f32[]{:T(128)}, pred[5]{0}, s4[3]{0:S(0)}, f8e4m3fn[7]{0})"
    found = hlo.arrays(tuple_)
    assert [(a.dims, a.nbytes, a.hbm) for a in found] == [
        ((2, 3), 12, False),
        ((), 4, True),
        ((5,), 5, True),
        ((3,), 2, True),
        ((7,), 7, True),
    ]


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.read("HloModule nothing\n")


def total_flops(program):
    return sum(run.times * hlo.flops(program, run.computation, run.instruction) for run in program.runs())


def test_products_of_a_compiled_function_are_counted_with_its_scans():
    """On the CPU that is there: dots, and a loop."""

    def f(x, w):
        x, _ = jax.lax.scan(lambda x, w: (x @ w, None), x, w)
        return jnp.einsum("ab,cb->ac", x, x)

    compiled = jax.jit(f).lower(jnp.ones((3, 5)), jnp.ones((7, 5, 5))).compile()
    assert total_flops(hlo.read(compiled.as_text())) == 7 * 2 * 3 * 5 * 5 + 2 * 3 * 3 * 5


CONVOLUTION = """\
HloModule jit_f

ENTRY %main (a: LEFT, b: RIGHT) -> OUT {
  %a = LEFT parameter(0)
  %b = RIGHT parameter(1)
  ROOT %c = OUT convolution(%a, %b), window={WINDOW}, dim_labels=LABELS
}
"""


@pytest.mark.parametrize(
    "left, right, out, window, labels, products",
    [
        # A product of matrices, [6, 4] by [4, 5].
        ("f32[6,4]{1,0}", "f32[4,5]{1,0}", "f32[6,5]{1,0}", "", "bf_io->bf", 6 * 4 * 5),
        # The window slides over what is contracted: one place.
        ("f32[3,6,4]{2,1,0}", "f32[3,4,5]{2,1,0}", "f32[1,6,5]{2,1,0}", "size=3", "0bf_0io->0bf", 3 * 6 * 4 * 5),
        # Two batches as XLA writes them: each output place meets one window place, the others fall into the dilation.
        (
            "f32[2,6,4]{2,1,0}",
            "f32[2,4,5]{2,1,0}",
            "f32[2,6,5]{2,1,0}",
            "size=2 stride=1 pad=0_0 lhs_dilate=2",
            "0bf_0io->0bf",
            2 * 6 * 4 * 5,
        ),
        # Padding takes no products: of 5 places and a window of 3 the two outermost are not there.
        ("f32[1,5,1]{2,1,0}", "f32[3,1,1]{2,1,0}", "f32[1,5,1]{2,1,0}", "size=3 pad=1_1", "b0f_0io->b0f", 5 * 3 - 2),
    ],
)
def test_products_written_as_convolutions_count_what_is_multiplied(left, right, out, window, labels, products):
    text = CONVOLUTION.replace("LEFT", left).replace("RIGHT", right).replace("OUT", out)
    text = text.replace("WINDOW", window).replace("LABELS", labels)
    assert total_flops(hlo.read(re.sub(r", window=\{\}", "", text))) == 2 * products
