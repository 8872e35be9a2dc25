"""A loop of the device's own program over stacked blocks, with a backward pass that recomputes what is cheap.

torch_xla has a `scan` of its own (torch_xla.experimental.scan). This one differs in three ways: with more than one
device that one needs JAX; it traces and lowers the body anew at every step of training, which takes the host longer
than a small device takes for the step; and what it keeps for the backward pass is all that autograd would, where this
one keeps the outputs of convolutions and means and recomputes activations from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from models.repeated import Body

_KEPT: Final = frozenset({torch.ops.aten.convolution.default, torch.ops.aten.mean.dim})


class _Record(TorchDispatchMode):
    """Collects the outputs of the operations that are kept."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.outputs: list[Tensor] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        if function in _KEPT:
            self.outputs.append(output)
        return output


class _Replay(TorchDispatchMode):
    """Gives, instead of computing them, the outputs that were kept; autograd above it notices nothing."""

    def __init__(self, outputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._outputs = iter([torch._from_functional_tensor(output) for output in outputs])  # modes see the inside

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _KEPT:
            return next(self._outputs)
        return function(*args, **(kwargs or {}))


@dataclass(frozen=True, slots=True)
class _Loop:
    """A while loop over stacks as XLA code. `constants`: numbers that tracing the body made data of."""

    code: Any
    constants: tuple[Tensor, ...]
    results: tuple[tuple[torch.Size, torch.dtype], ...]

    def __call__(self, carry: Tensor, stacks: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The last carry, and the stacks of what each turn gave."""
        import torch_xla

        first = torch.zeros((), dtype=torch.int32, device=carry.device)
        empty = [torch.zeros(shape, dtype=dtype, device=carry.device) for shape, dtype in self.results]
        operands = [first, carry, *stacks, *empty, *self.constants]
        outputs = torch_xla._XLAC._xla_user_computation("convscale::loop", operands, self.code)
        begin = 2 + len(stacks)
        return outputs[1], list(outputs[begin : begin + len(empty)])


def _make_loop(
    name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], turns: int, *, reverse: bool = False
) -> _Loop:
    """The loop whose body computes `outputs` (the next carry, and this turn's results) from `inputs` (placeholders of
    the carry, and of one entry of each stack).
    """
    import torch_xla
    from torch_xla.core.xla_builder import (
        Op,
        Type,
        computation_from_module_proto,
        create_builder,
        create_placeholder_tensor,
        mkparam,
        tensor_shape,
    )

    context = torch_xla._XLAC.lowering.LoweringContext(name)
    context.build(list(outputs))
    argument_of: dict[int, int] = {}  # the body's parameter: the place of its argument in [*inputs, *constants]
    for place, tensor in enumerate(inputs):
        if (number := context.tensor_parameter_id(tensor)) != -1:
            argument_of[number] = place
    constants: list[Tensor] = []
    for number, tensor in sorted(context.device_parameter_id_tensor_mapping().items()):
        if number not in argument_of:
            argument_of[number] = len(inputs) + len(constants)
            constants.append(tensor.to(torch_xla.device()))
    body_code = computation_from_module_proto(name, context.hlo())

    carry, *slices = inputs
    filled = [(torch.Size((turns, *output.shape)), output.dtype) for output in outputs[1:]]
    shapes = [((), torch.int32), (carry.shape, carry.dtype)]
    shapes += [((turns, *tensor.shape), tensor.dtype) for tensor in slices]
    shapes += [*filled, *((tensor.shape, tensor.dtype) for tensor in constants)]
    builder = create_builder(name)
    parameters = tuple(
        mkparam(builder, number, tensor_shape(create_placeholder_tensor(shape, dtype)))
        for number, (shape, dtype) in enumerate(shapes)
    )
    first_result, first_constant = 2 + len(slices), 2 + len(slices) + len(filled)

    def condition(turn: Any, *_rest: Any) -> Any:
        return turn < Op.scalar(turn.builder(), turns, dtype=Type.S32)

    def body(*values: Any) -> Any:
        turn, stacks, results = values[0], values[2:first_result], values[first_result:first_constant]
        at = Op.scalar(turn.builder(), turns - 1, dtype=Type.S32) - turn if reverse else turn
        arguments = [values[1], *(_entry(stack, at) for stack in stacks), *values[first_constant:]]
        outcome = Op.call(body_code, [arguments[argument_of[number]] for number in range(len(argument_of))])
        new = [_with_entry(stack, at, outcome.get_tuple_element(1 + i)) for i, stack in enumerate(results)]
        one = Op.scalar(turn.builder(), 1, dtype=Type.S32)
        return (turn + one, outcome.get_tuple_element(0), *stacks, *new, *values[first_constant:])

    code = Op.mkwhile(parameters, condition, body).build(name)
    return _Loop(code, tuple(constants), tuple(filled))


def _entry(stack: Any, at: Any) -> Any:
    sizes = list(stack.shape().sizes)
    start = [at, *(at.zeros_like() for _ in sizes[1:])]
    return stack.dynamic_slice(start, [1, *sizes[1:]]).reshape(sizes[1:])


def _with_entry(stack: Any, at: Any, entry: Any) -> Any:
    start = [at, *(at.zeros_like() for _ in stack.shape().sizes[1:])]
    return stack.dynamic_update_slice(entry.broadcast([1]), start)


class _Program:
    """The loops forward and backward of one body at one set of shapes."""

    def __init__(self, body: Body, x: Tensor, stacks: dict[str, Tensor]) -> None:
        turns = len(next(iter(stacks.values())))
        self.names = [name for name, stack in stacks.items() if stack.requires_grad]
        training = torch.is_grad_enabled() and (x.requires_grad or bool(self.names))
        x_in, slices = _placeholders(x, stacks)
        record = _Record()
        with torch.no_grad(), record:
            y = body(x_in, slices)
        kept = [x_in, *record.outputs] if training else []
        self.forward = _make_loop("blocks", [x_in, *slices.values()], [y, *kept], turns)
        self.backward: _Loop | None = None
        if training:
            self.backward = self._make_backward(body, x, stacks, record.outputs, turns)

    def _make_backward(
        self, body: Body, x: Tensor, stacks: dict[str, Tensor], kept: Sequence[Tensor], turns: int
    ) -> _Loop:
        from torch_xla.core.xla_builder import create_placeholder_tensor

        x_in, slices = _placeholders(x, stacks)
        outputs = [create_placeholder_tensor(output.shape, output.dtype) for output in kept]
        gradient = create_placeholder_tensor(x.shape, x.dtype)
        wanted = [x_in, *(slices[name] for name in self.names)]
        for tensor in wanted:
            tensor.requires_grad_()
        with torch.enable_grad():  # type: ignore[no-untyped-call]
            with _Replay(outputs):
                y = body(x_in, slices)
            gradients = torch.autograd.grad(y, wanted, gradient)
        inputs = [gradient, *slices.values(), x_in, *outputs]
        return _make_loop("blocks_backward", inputs, gradients, turns, reverse=True)


def _placeholders(x: Tensor, stacks: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Tensors without values, for the carry and for an entry of each stack."""
    from torch_xla.core.xla_builder import create_placeholder_tensor

    slices = {name: create_placeholder_tensor(stack.shape[1:], stack.dtype) for name, stack in stacks.items()}
    return create_placeholder_tensor(x.shape, x.dtype), slices


class _Loops(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, program: _Program, x: Tensor, *stacks: Tensor) -> Tensor:
        y, kept = program.forward(x, stacks)
        ctx.program = program
        ctx.save_for_backward(*stacks, *kept)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        program: _Program = ctx.program
        assert program.backward is not None
        gradient_of_x, gradients = program.backward(gradient, ctx.saved_tensors)
        of_stacks = iter(gradients)
        needed = ctx.needs_input_grad[2:]
        return None, gradient_of_x, *(next(of_stacks) if needs else None for needs in needed)


class Scan:
    """A `models.repeated.Loop`: what `unrolled` gives, by a while loop. Traces a body once for each set of shapes."""

    def __init__(self) -> None:
        self._programs: dict[Any, _Program] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Scan:
        return Scan()

    def __call__(self, body: Body, x: Tensor, stacks: dict[str, Tensor]) -> Tensor:
        key = (
            (x.shape, x.dtype, x.requires_grad, torch.is_grad_enabled()),
            tuple((name, stack.shape, stack.dtype, stack.requires_grad) for name, stack in stacks.items()),
            torch.is_autocast_enabled("xla") and torch.get_autocast_dtype("xla"),
        )
        if key not in self._programs:
            self._programs[key] = _Program(body, x, stacks)
        result: Tensor = _Loops.apply(self._programs[key], x, *stacks.values())  # type: ignore[no-untyped-call]
        return result
