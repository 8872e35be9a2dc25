"""How often a loop of an optimised program runs, read from its text.

XLA keeps no count there, only a condition: a scalar expression of the loop's state. A loop that counts is recognised by
evaluating that expression as its counter goes on by one. (A 64-bit counter is two words by then, and its comparison a
small expression of both.)
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Final

from trainables.aot.hlo import Computation, Instruction, Program

MOST_TRIPS: Final = 10_000
_COMPARE: Final[Mapping[str, Callable[[int, int], bool]]] = {
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
    "EQ": operator.eq,
    "NE": operator.ne,
}
_BINARY: Final[Mapping[str, Callable[[int, int], int]]] = {
    "and": operator.and_,
    "or": operator.or_,
    "add": operator.add,
    "subtract": operator.sub,
}
_SAME: Final = ("bitcast", "bitcast-convert", "convert", "copy", "reshape")


def trips(program: Program, computation: Computation, loop: Instruction) -> int | None:
    """How often a `while` of `computation` runs its body; None if its text does not say."""
    if known := re.search(r'known_trip_count"?[:=]\{"?n"?[:=]"?(\d+)', loop.attributes):
        return int(known[1])
    condition = program.computations[loop.attribute("condition") or ""]
    body = program.computations[loop.attribute("body") or ""]
    state = {
        int(each.attribute("index") or 0)
        for each in condition.instructions.values()
        if each.opcode == "get-tuple-element"
    }
    starts = {index: _start(program, computation, loop, index) for index in state}
    counters = [index for index in sorted(state) if starts[index] is not None and not _is_kept(body, index)]
    known_state = {index: start for index, start in starts.items() if start is not None}
    for step in (1, -1):
        counts = [_count(program, condition, known_state, counter, step) for counter in counters]
        if found := [count for count in counts if count]:
            return max(found)  # of a counter of two words the upper one stops at once
    return None


def _count(program: Program, condition: Computation, starts: Mapping[int, int], counter: int, step: int) -> int | None:
    """How often the condition holds while one part of the state goes on by `step` and the others stay."""
    for turn in range(MOST_TRIPS + 1):
        holds = _value(program, condition, condition.root, {**starts, counter: starts[counter] + turn * step}, {})
        if holds is None:
            return None
        if not holds:
            return turn
    return None


def _value(
    program: Program,
    computation: Computation,
    each: Instruction,
    state: Mapping[int, int],
    parameters: Mapping[int, int | None],
) -> int | None:
    """The value of a scalar expression of the loop's state; None where it is more than that."""

    def of(place: int) -> int | None:
        return _value(program, computation, computation[each.operands[place]], state, parameters)

    if each.opcode == "constant":
        return _number(each.argument)
    if each.opcode == "get-tuple-element":
        return state.get(int(each.attribute("index") or 0))
    if each.opcode == "parameter":
        return parameters.get(int(each.argument))
    if each.opcode in _SAME:
        return of(0)
    if each.opcode == "fusion":
        inside = program.called(each)
        given = {place: of(place) for place in range(len(each.operands))}
        return _value(program, inside, inside.root, state, given)
    combine = _BINARY.get(each.opcode) or _COMPARE.get(each.attribute("direction") or "")
    if combine is None or len(each.operands) != 2:
        return None
    first, second = of(0), of(1)
    return None if first is None or second is None else int(combine(first, second))


def _start(program: Program, computation: Computation, loop: Instruction, index: int) -> int | None:
    """The constant with which a part of a loop's state begins."""
    state = computation.source(loop.operands[0])
    if state.opcode != "tuple":
        return None
    return _value(program, computation, computation[state.operands[index]], {}, {})


def _is_kept(body: Computation, index: int) -> bool:
    """Whether the loop's body passes a part of the state on as it is."""
    if body.root.opcode != "tuple":
        return False
    source = body.source(body.root.operands[index])
    return source.opcode == "get-tuple-element" and source.attribute("index") == str(index)


def _number(text: str) -> int | None:
    if text in ("true", "false"):
        return int(text == "true")
    return int(text) if text.lstrip("-").isdigit() else None
