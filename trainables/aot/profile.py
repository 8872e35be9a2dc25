"""What an optimised program moves and computes: each instruction's bytes, FLOPs and cycles, times the loops around it.

Bytes of an instruction are its output and its operands as they lie in memory, filled up to whole tiles; slices, and
updates in place, count what they touch (as XLA's own cost analysis has it). Only those in HBM go by its bandwidth: TPU
v4 keeps what fits in 128 MiB of its chip's CMEM. FLOPs are those of convolutions and matrix products; what falls on
padding does not count. Cycles are the compiler's own estimate, and leave out transfers that run beside the arithmetic.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from trainables.aot.hlo import Computation, Instruction, Program, Tensor
from trainables.aot.loops import trips

_NOTHING_MOVES: Final = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "opt-barrier", "partition-id",
    "replica-id", "add-dependency", "copy-done", "async-done", "async-update", "slice-done", "all-reduce-done",
    "all-gather-done", "collective-permute-done",
}  # fmt: skip
_SHAPES_ONLY: Final = {
    "parameter", "constant", "copy", "transpose", "bitcast", "reshape", "fusion", "tuple", "get-tuple-element", "slice",
    "concatenate", "pad",
}  # fmt: skip
_SLICES: Final = ("dynamic-slice", "slice", "gather")


@dataclass(frozen=True, slots=True)
class Move:
    """A tensor that an instruction reads or writes, and how many bytes of it."""

    tensor: Tensor
    bytes: int
    written: bool

    def __str__(self) -> str:
        space = "" if self.tensor.space == "HBM" else f" in {self.tensor.space}"
        part = f" ({self.bytes / self.tensor.bytes:.0%})" if self.bytes < 0.99 * self.tensor.bytes else ""
        filled = self.tensor.bytes / self.tensor.content if self.tensor.content else 1.0
        return f"{'-> ' if self.written else ''}{self.tensor}{space}{part}{f' filled x{filled:.1f}' * (filled > 1.5)}"


@dataclass(frozen=True, slots=True)
class Work:
    """One instruction of the program: how often it runs, and what it costs each time."""

    instruction: Instruction
    kind: str
    times: int
    moves: tuple[Move, ...]
    flops: int

    def bytes_in(self, space: str) -> int:
        """Bytes that it moves to and from a memory, all times together."""
        return self.times * sum(move.bytes for move in self.moves if move.tensor.space == space)

    @property
    def cycles(self) -> int:
        """The compiler's estimate of its cycles, all times together."""
        return self.times * self.instruction.cycles


@dataclass(frozen=True, slots=True)
class Sums:
    """What a program takes of one core: bytes to and from HBM, FLOPs of its products, estimated cycles."""

    hbm_bytes: int
    flops: int
    cycles: int


def profile(program: Program) -> list[Work]:
    """The instructions that cost something, in the program's order."""
    return [
        Work(
            each,
            _kind(program, each),
            times,
            tuple(_moves(program, computation, each)),
            _flops(program, computation, each),
        )
        for computation, each, times in walk(program, program.entry, 1)
        if each.opcode not in _NOTHING_MOVES | {"while", "call", "conditional"}
        and not re.search(r'custom_call_target="(AllocateBuffer|ConcatBitcast)"', each.attributes)
    ]


def sums(work: list[Work]) -> Sums:
    """Everything together."""
    return Sums(
        hbm_bytes=sum(each.bytes_in("HBM") for each in work),
        flops=sum(each.times * each.flops for each in work),
        cycles=sum(each.cycles for each in work),
    )


def loop_times(program: Program) -> dict[str, int]:
    """How often each loop's body runs in all, by the body's name, and its condition, by the condition's."""
    found: dict[str, int] = defaultdict(int)
    for computation, each, times in walk(program, program.entry, 1):
        if each.opcode == "while":
            turns = trips(program, computation, each) or 1
            found[each.attribute("body") or ""] += times * turns
            found[each.attribute("condition") or ""] += times * (turns + 1)
    return dict(found)


def unknown_loops(program: Program) -> int:
    """How many loops there are of which the text does not tell how often they run; they count once."""
    loops = ((within, each) for within, each, _ in walk(program, program.entry, 1) if each.opcode == "while")
    return sum(trips(program, within, each) is None for within, each in loops)


def walk(program: Program, computation: Computation, times: int) -> Iterator[tuple[Computation, Instruction, int]]:
    """Every instruction that the program runs by itself (not within a fusion), and how often.

    A loop of which the text does not tell its trips counts once.
    """
    for each in computation.instructions.values():
        yield computation, each, times
        if each.opcode == "while":
            turns = trips(program, computation, each) or 1
            yield from walk(program, program.computations[each.attribute("body") or ""], times * turns)
        elif each.opcode == "call":
            yield from walk(program, program.computations[each.attribute("to_apply") or ""], times)
        elif each.opcode == "conditional":
            for name in re.findall(r"(?:branch_computations=\{|_computation=|, )%([\w.\-]+)", each.attributes):
                yield from walk(program, program.computations[name], times)


def _moves(program: Program, computation: Computation, each: Instruction) -> Iterator[Move]:
    sources = [computation[name] for name in each.operands]
    if each.opcode.endswith("-start"):
        arrived = _arriving(program, computation, each)
        size = sum(tensor.bytes for tensor in arrived)
        yield from (Move(tensor, min(size, tensor.bytes), False) for source in sources for tensor in source.outputs)
        yield from (Move(tensor, tensor.bytes, True) for tensor in arrived)
        return
    for tensor, size in _written(program, computation, each):
        yield Move(tensor, size, True)
    for place, source in enumerate(sources):
        if each.opcode == "dynamic-update-slice" and place == 0:
            continue
        part = None
        if each.opcode == "fusion":
            inside_fusion = program.called(each)
            part = _part_read(program, inside_fusion, inside_fusion.parameters[place].name)
        elif each.opcode in _SLICES and place == 0:
            part = sum(tensor.bytes for tensor in each.outputs)
        for tensor in source.outputs:
            yield Move(tensor, tensor.bytes if part is None else min(part, tensor.bytes), False)


def _arriving(program: Program, computation: Computation, each: Instruction) -> Sequence[Tensor]:
    """What a transfer brings; its output also holds its operands again, and what waits for it."""
    if each.attribute("calls"):
        return program.called(each).root.outputs
    if each.opcode == "copy-start":
        return each.outputs[:1]
    if each.opcode == "all-reduce-start":
        return each.outputs
    given = sum(len(computation[name].outputs) for name in each.operands)
    return each.outputs[given : 2 * given]


def _part_read(program: Program, computation: Computation, name: str) -> int | None:
    """Bytes that a fused computation reads of a value, if it only takes slices of it or updates it in place."""
    total = 0
    for user, place in computation.users.get(name, []):
        part: int | None
        if user.opcode in _SLICES and place == 0:
            part = sum(tensor.bytes for tensor in user.outputs)
        elif user.opcode == "dynamic-update-slice" and place == 0:
            part = 0
        elif user.opcode in ("bitcast", "reshape"):
            part = _part_read(program, computation, user.name)
        elif user.opcode == "fusion":
            inside = program.called(user)
            part = _part_read(program, inside, inside.parameters[place].name)
        else:
            part = None
        if part is None:
            return None
        total += part
    return total


def _written(program: Program, computation: Computation, each: Instruction) -> list[tuple[Tensor, int]]:
    """What an instruction writes: all of its outputs, or of one that it updates in place the update."""
    whole = [(tensor, tensor.bytes) for tensor in each.outputs]
    if each.opcode == "dynamic-update-slice":
        update = computation[each.operands[1]].outputs
        return [(each.outputs[0], sum(tensor.bytes for tensor in update))]
    found: list[tuple[Tensor, int]] = []
    if each.opcode == "fusion":
        inside = program.called(each)
        found = _written(program, inside, inside.root)
    elif each.opcode == "tuple":
        found = [part for name in each.operands for part in _written(program, computation, computation[name])]
    elif each.opcode == "bitcast" and computation[each.operands[0]].opcode in ("dynamic-update-slice", "fusion"):
        found = _written(program, computation, computation[each.operands[0]])
    if len(found) != len(whole):
        return whole
    return [(tensor, size) for (tensor, _), (_, size) in zip(whole, found, strict=True)]


def _flops(program: Program, computation: Computation, each: Instruction) -> int:
    """FLOPs of the convolutions and matrix products in an instruction."""
    if each.opcode == "fusion":
        inside = program.called(each)
        return sum(_flops(program, inside, fused) for fused in inside.instructions.values())
    if each.opcode == "dot":
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", each.attributes)
        left = computation[each.operands[0]].outputs[0].dimensions
        summed = [left[int(axis)] for axis in axes[1].split(",") if axis] if axes else []
        return 2 * math.prod(each.outputs[0].dimensions) * math.prod(summed)
    return _convolution_flops(computation, each) if each.opcode == "convolution" else 0


def _convolution_flops(computation: Computation, each: Instruction) -> int:
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", each.attributes)
    assert labels is not None, f"{each.name} has no dim_labels"
    of_input, of_kernel, of_output = labels[1], labels[2], labels[3]
    image, kernel = (computation[name].outputs[0].dimensions for name in each.operands[:2])
    found = re.search(r"window=\{([^}]*)\}", each.attributes)
    window = dict(part.split("=") for part in found[1].split()) if found else {}

    def along(key: str, axis: int, default: str) -> str:
        return window[key].split("x")[axis] if key in window else default

    pairs = 1  # of an output and a kernel position that meet an input, neither padding nor a gap between inputs
    for axis in range(sum(label.isdigit() for label in of_kernel)):
        low = int(along("pad", axis, "0_0").split("_")[0])
        stride, gap, spread, size = (
            int(along(key, axis, "1")) for key in ("stride", "lhs_dilate", "rhs_dilate", "size")
        )
        last = (image[of_input.index(str(axis))] - 1) * gap
        starts = (place * stride - low for place in range(each.outputs[0].dimensions[of_output.index(str(axis))]))
        pairs *= sum(
            0 <= (at := start + offset * spread) <= last and at % gap == 0 for start in starts for offset in range(size)
        )
    others = (size for label, size in zip(of_output, each.outputs[0].dimensions, strict=True) if not label.isdigit())
    return 2 * math.prod(others) * pairs * kernel[of_kernel.index("i")]


def _opcodes(program: Program, computation: Computation) -> set[str]:
    found: set[str] = set()
    for each in computation.instructions.values():
        found |= {each.opcode} | (_opcodes(program, program.called(each)) if each.opcode == "fusion" else set())
    return found


def _kind(program: Program, each: Instruction) -> str:
    """An opcode, or what a fusion is mostly for."""
    if each.opcode == "custom-call":
        target = re.search(r'custom_call_target="([^"]*)"', each.attributes)
        return f"custom-call {target[1]}" if target else each.opcode
    if each.opcode != "fusion":
        return each.opcode
    inside = _opcodes(program, program.called(each))
    if inside & {"convolution", "dot"}:
        return "convolution fusion"
    for opcode in ("reduce-window", "select-and-scatter", "scatter", "all-reduce", "sort", "reduce"):
        if opcode in inside:
            return f"{opcode} fusion"
    for name, allowed in (("copy", _SHAPES_ONLY), ("convert", _SHAPES_ONLY | {"convert", "broadcast"})):
        if inside <= allowed:
            return f"{name} fusion"
    slices = [name for name in ("dynamic-update-slice", "dynamic-slice") if name in inside]
    return f"{slices[0]} fusion" if slices else "elementwise fusion"


def with_loops(program: Program, costs: Mapping[str, float]) -> float:
    """A cost of the whole program, from XLA's counts of it ("") and of its loops' bodies and conditions.

    In XLA's count of a computation each loop within is counted once; here each runs as often as it does.
    """
    total = costs[""]
    for name, times in loop_times(program).items():
        inside = program.computations[name].instructions.values()
        loops = [part for each in inside if each.opcode == "while" for part in _parts(each)]
        total += (times - 1) * (costs[name] - sum(costs[loop] for loop in loops))
    return total


def _parts(loop: Instruction) -> tuple[str, str]:
    return loop.attribute("body") or "", loop.attribute("condition") or ""
