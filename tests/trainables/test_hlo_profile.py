"""What a program costs, read from a small program's text; and how often its loops run."""

from __future__ import annotations

import pytest

from trainables.aot.hlo import Program, Tensor
from trainables.aot.loops import trips
from trainables.aot.profile import loop_times, profile, sums, unknown_loops, walk, with_loops

TEXT = """HloModule step, is_scheduled=true

%fused_computation (param_0: bf16[8,16,16,32], param_1: bf16[3,3,32,64]) -> f32[8,16,16,64] {
  %param_0 = bf16[8,16,16,32]{3,0,2,1:T(8,128)(2,1)} parameter(0)
  %param_1 = bf16[3,3,32,64]{3,2,1,0:T(8,128)(2,1)S(3)} parameter(1)
  %convolution.1 = bf16[8,16,16,64]{3,0,2,1} convolution(%param_0, %param_1), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f
  ROOT %convert.1 = f32[8,16,16,64]{3,0,2,1:T(8,128)} convert(%convolution.1)
}

%fused_computation.1 (param_0.1: f32[5,8,128], param_1.1: f32[8,128], param_2.1: s32[]) -> f32[5,8,128] {
  %param_0.1 = f32[5,8,128]{2,1,0:T(8,128)} parameter(0)
  %param_1.1 = f32[8,128]{1,0:T(8,128)} parameter(1)
  %bitcast.1 = f32[1,8,128]{2,1,0:T(8,128)} bitcast(%param_1.1)
  %param_2.1 = s32[]{:T(128)} parameter(2)
  %constant.1 = s32[]{:T(128)} constant(0)
  ROOT %dynamic-update-slice.1 = f32[5,8,128]{2,1,0:T(8,128)} dynamic-update-slice(%param_0.1, %bitcast.1, %param_2.1, %constant.1, %constant.1)
}

%body (state: (s32[], f32[8,128], f32[5,8,128], /*index=3*/s32[])) -> (s32[], f32[8,128], f32[5,8,128], s32[]) {
  %state = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}, f32[5,8,128]{2,1,0:T(8,128)}, /*index=3*/s32[]{:T(128)}) parameter(0)
  %turn = s32[]{:T(128)} get-tuple-element(%state), index=0
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%turn, %one)
  %carry = f32[8,128]{1,0:T(8,128)} get-tuple-element(%state), index=1
  %stack = f32[5,8,128]{2,1,0:T(8,128)} get-tuple-element(%state), index=2
  %most = s32[]{:T(128)} get-tuple-element(%state), index=3
  %fusion.2 = f32[5,8,128]{2,1,0:T(8,128)} fusion(%stack, %carry, %turn), kind=kLoop, calls=%fused_computation.1, metadata={op_name="loop/store"}, backend_config={"window_config":{"estimated_cycles":"100"}}
  ROOT %tuple.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}, f32[5,8,128]{2,1,0:T(8,128)}, /*index=3*/s32[]{:T(128)}) tuple(%next, %carry, %fusion.2, %most)
}

%condition (state.1: (s32[], f32[8,128], f32[5,8,128], /*index=3*/s32[])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}, f32[5,8,128]{2,1,0:T(8,128)}, /*index=3*/s32[]{:T(128)}) parameter(0)
  %turn.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  %most.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=3
  ROOT %compare.1 = pred[]{:T(512)} compare(%turn.1, %most.1), direction=LT
}

ENTRY %main (image: bf16[8,16,16,32], kernel: bf16[3,3,32,64], carry.1: f32[8,128], stack.1: f32[5,8,128]) -> f32[8,16,16,64] {
  %image = bf16[8,16,16,32]{3,0,2,1:T(8,128)(2,1)} parameter(0)
  %kernel = bf16[3,3,32,64]{3,2,1,0:T(8,128)(2,1)S(3)} parameter(1)
  %carry.1 = f32[8,128]{1,0:T(8,128)} parameter(2)
  %stack.1 = f32[5,8,128]{2,1,0:T(8,128)} parameter(3)
  %zero = s32[]{:T(128)} constant(0)
  %five = s32[]{:T(128)} constant(5)
  %copy.1 = s32[]{:T(128)} copy(%zero)
  %tuple.2 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}, f32[5,8,128]{2,1,0:T(8,128)}, /*index=3*/s32[]{:T(128)}) tuple(%copy.1, %carry.1, %stack.1, %five)
  %while.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}, f32[5,8,128]{2,1,0:T(8,128)}, /*index=3*/s32[]{:T(128)}) while(%tuple.2), condition=%condition, body=%body
  %copy-start.1 = (f32[8,128]{1,0:T(8,128)S(3)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%carry.1)
  %copy-done.1 = f32[8,128]{1,0:T(8,128)S(3)} copy-done(%copy-start.1)
  ROOT %fusion.1 = f32[8,16,16,64]{3,0,2,1:T(8,128)} fusion(%image, %kernel), kind=kOutput, calls=%fused_computation, metadata={op_name="conv"}, backend_config={"window_config":{"estimated_cycles":"7000"}}
}
"""  # noqa: E501 - as the compiler writes it


@pytest.mark.parametrize(
    ("layout", "size"),
    [
        ("{1,0:T(8,128)}", 16 * 128 * 4),  # [10, 100] to [16, 128]
        ("{0,1:T(8,128)}", 104 * 128 * 4),  # the other way round: [100, 10] to [104, 128]
        ("{1,0}", 10 * 100 * 4),
    ],
)
def test_a_tensor_fills_whole_tiles(layout: str, size: int) -> None:
    tensor = Tensor("f32", (10, 100), layout.strip("{}"))
    assert (tensor.bytes, tensor.content) == (size, 4000)


@pytest.mark.parametrize(
    ("layout", "space"), [("1,0:T(8,128)", "HBM"), ("1,0:T(8,128)S(3)", "CMEM"), ("1,0:S(1)", "VMEM")]
)
def test_a_tensor_lies_in_one_memory(layout: str, space: str) -> None:
    assert Tensor("bf16", (8, 128), layout).space == space


def test_bytes_are_what_instructions_touch_in_each_memory() -> None:
    work = {each.instruction.name: each for each in profile(Program.parse(TEXT))}
    conv = work["fusion.1"]
    image = 8 * 16 * 16 * 128 * 2  # 32 channels are filled up to 128
    result = 8 * 16 * 16 * 128 * 4  # and 64
    assert conv.bytes_in("HBM") == image + result
    assert conv.bytes_in("CMEM") == 3 * 3 * 32 * 128 * 2
    store = work["fusion.2"]  # a turn reads 8 x 128 and writes them into their place; the counter is a scalar
    assert (store.times, store.bytes_in("HBM") // 5) == (5, 2 * 8 * 128 * 4 + 4)
    copied = work["copy-start.1"]
    assert (copied.bytes_in("HBM"), copied.bytes_in("CMEM")) == (8 * 128 * 4, 8 * 128 * 4)
    assert "copy-done.1" not in work


def test_flops_of_a_convolution_leave_out_what_falls_on_padding() -> None:
    work = {each.instruction.name: each for each in profile(Program.parse(TEXT))}
    within = 16 * 3 - 2  # pairs of output and kernel positions along an axis that meet an input
    assert work["fusion.1"].flops == 2 * 8 * within**2 * 32 * 64
    assert work["fusion.1"].kind == "convolution fusion"


def test_loops_count_as_often_as_they_run() -> None:
    program = Program.parse(TEXT)
    assert loop_times(program) == {"body": 5, "condition": 6}
    assert sums(profile(program)).cycles == 7000 + 5 * 100
    costs = {"": 1000.0, "body": 30.0, "condition": 1.0}  # XLA's 1000 have the body and the condition once
    assert with_loops(program, costs) == 1000 + 4 * 30 + 5 * 1


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("%compare.1 = pred[] compare(%turn.1, %most.1), direction=LE", 6),
        ("%compare.1 = pred[] compare(%most.1, %turn.1), direction=GT", 5),
        ("%compare.1 = pred[] compare(%turn.1, %most.1), direction=NE", 5),
        ("%custom.1 = pred[] custom-call(%turn.1, %most.1)", None),
    ],
)
def test_a_loop_is_read_whichever_way_it_is_written(condition: str, expected: int | None) -> None:
    text = TEXT.replace("%compare.1 = pred[]{:T(512)} compare(%turn.1, %most.1), direction=LT", condition)
    program = Program.parse(text)
    loop = next(each for _, each, _ in walk(program, program.entry, 1) if each.opcode == "while")
    assert trips(program, program.entry, loop) == expected
    assert unknown_loops(program) == (expected is None)


def test_a_counter_of_two_words_is_read() -> None:
    """So the compiler writes a 64-bit counter: it goes on while high < 0 or (high == 0 and low < 5)."""
    words = """  %least = s32[] constant(0)
  %above = pred[] compare(%most.1, %least), direction=LT
  %equal = pred[] compare(%most.1, %least), direction=EQ
  %bound = s32[] constant(7)
  %below = pred[] compare(%turn.1, %bound), direction=LT
  %both = pred[] and(%equal, %below)
  ROOT %or.1 = pred[] or(%above, %both)"""
    text = TEXT.replace("  ROOT %compare.1 = pred[]{:T(512)} compare(%turn.1, %most.1), direction=LT", words)
    text = text.replace("%five = s32[]{:T(128)} constant(5)", "%five = s32[]{:T(128)} constant(0)")
    assert loop_times(Program.parse(text)) == {"body": 7, "condition": 8}


def test_what_is_no_program_is_refused() -> None:
    with pytest.raises(ValueError, match="no ENTRY"):
        Program.parse("HloModule nothing\n")
