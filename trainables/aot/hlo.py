"""Optimised programs of XLA, read from their text: computations, instructions, tensors as they lie in memory, loops.

Only as much of the language as is needed to say what a program costs. The text is that of `HloModule.to_string()`;
its language is described on openxla.org ("HLO semantics", "Shapes and layout").
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Self

_BYTES: Final = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4,
    "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16, "token": 0,
}  # fmt: skip
_SPACES: Final = {None: "HBM", "1": "VMEM", "2": "SMEM", "3": "CMEM"}  # S(n) of a layout on TPU v4
_TENSOR: Final = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_COMPUTATION: Final = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*->.*\{\s*$")
_INSTRUCTION: Final = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_NAME: Final = re.compile(r"%([\w.\-]+)")


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's element type, its dimensions, and how it lies in memory (layout, tiles, memory space)."""

    dtype: str
    dimensions: tuple[int, ...]
    layout: str

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dimensions))}]"

    @property
    def space(self) -> str:
        """The memory it lies in: HBM, the chip's CMEM, a core's VMEM or SMEM."""
        found = re.search(r"S\((\d+)\)", self.layout)
        number = found[1] if found else None
        return _SPACES.get(number, f"S({number})")

    @property
    def content(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.dimensions) * _BYTES.get(self.dtype, 1)

    @property
    def bytes(self) -> int:
        """Bytes that it takes: its innermost dimensions are filled up to whole tiles."""
        tiles = re.search(r"T\(([\d,]+)\)", self.layout)
        if tiles is None or not self.dimensions:
            return self.content
        tile = [int(size) for size in tiles[1].split(",")]
        order = [int(axis) for axis in self.layout.partition(":")[0].split(",") if axis]  # innermost first
        sizes = [self.dimensions[axis] for axis in order] + [1] * (len(tile) - len(order))
        for place, size in enumerate(reversed(tile)):
            sizes[place] = -(-sizes[place] // size) * size
        return math.prod(sizes) * _BYTES.get(self.dtype, 1)


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: `name = outputs opcode(operands), attributes`; `argument` is the text between its brackets."""

    name: str
    opcode: str
    outputs: tuple[Tensor, ...]
    operands: tuple[str, ...]
    argument: str
    attributes: str

    def attribute(self, key: str) -> str | None:
        """An attribute that is a name or a number, such as `calls` or `index`."""
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None

    @property
    def op_name(self) -> str:
        """What it was in the program that the compiler was given; empty if it is not known."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def cycles(self) -> int:
        """The compiler's own estimate of the core's cycles; 0 for what it does not estimate, such as transfers."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(found[1]) if found else 0


@dataclass(frozen=True)
class Computation:
    """A named list of instructions; one of them, its root, gives its value."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)
    root_name: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> Instruction:
        return self.instructions[name]

    @property
    def root(self) -> Instruction:
        """The instruction whose value is the computation's."""
        return self.instructions[self.root_name[0]]

    @cached_property
    def parameters(self) -> dict[int, Instruction]:
        """The parameters by their number."""
        return {int(each.argument): each for each in self.instructions.values() if each.opcode == "parameter"}

    @cached_property
    def users(self) -> dict[str, list[tuple[Instruction, int]]]:
        """The instructions that use a value, and as which of their operands."""
        found: dict[str, list[tuple[Instruction, int]]] = {}
        for each in self.instructions.values():
            for place, operand in enumerate(each.operands):
                found.setdefault(operand, []).append((each, place))
        return found

    def source(self, name: str) -> Instruction:
        """The instruction that made a value, seen through copies and bitcasts."""
        found = self.instructions[name]
        while found.opcode in ("bitcast", "copy", "reshape"):
            found = self.instructions[found.operands[0]]
        return found


@dataclass(frozen=True, slots=True)
class Program:
    """A module's computations by name, and which of them is its entry."""

    computations: dict[str, Computation]
    entry: Computation

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text of a module. Raises `ValueError` if it has no entry."""
        computations: dict[str, Computation] = {}
        entry: Computation | None = None
        current: Computation | None = None
        for line in text.splitlines():
            if current is None:
                if head := _COMPUTATION.match(line):
                    current = computations[head[2]] = Computation(head[2])
                    entry = current if head[1] else entry
            elif line.startswith("}"):
                current = None
            elif found := _instruction(line):
                current.instructions[found[0].name] = found[0]
                if found[1]:
                    current.root_name.append(found[0].name)
        if entry is None:
            raise ValueError("this text is not an HLO module: it has no ENTRY")
        return cls(computations, entry)

    def called(self, instruction: Instruction) -> Computation:
        """The computation that a fusion (or an asynchronous call) runs."""
        name = instruction.attribute("calls")
        assert name is not None, f"{instruction.name} calls nothing"
        return self.computations[name]


def _instruction(line: str) -> tuple[Instruction, bool] | None:
    """The instruction of a line, and whether it is its computation's root."""
    head = _INSTRUCTION.match(line)
    if head is None:
        return None
    start = head.end()
    after_type = _closing(line, start) if line[start] == "(" else line.index(" ", start)
    bracket = line.index("(", after_type)
    after_operands = _closing(line, bracket)
    opcode, argument = line[after_type:bracket].strip(), line[bracket + 1 : after_operands - 1]
    names = () if opcode in ("parameter", "constant") else tuple(_NAME.findall(argument))
    outputs = _tensors(line[start:after_type])
    return Instruction(head[2], opcode, outputs, names, argument, line[after_operands:]), bool(head[1])


def _tensors(text: str) -> tuple[Tensor, ...]:
    without_comments = re.sub(r"/\*.*?\*/", "", text)
    return tuple(
        Tensor(dtype, tuple(int(size.strip("<=")) for size in sizes.split(",") if size), layout)
        for dtype, sizes, layout in _TENSOR.findall(without_comments)
    )


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` has closed."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place + 1
    raise ValueError(f"a bracket does not close: {text[:100]}")
