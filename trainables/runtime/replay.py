"""Functions of tensors on an XLA device that are traced once, and then run as the program that they became.

torch_xla traces at every call: it walks through the Python code and builds the graph anew, only to find the program it
has compiled. That takes the host 0.3 s for a training step of F0, and more for deeper models: several times what a TPU
host's chips take for the step itself. Here the graph is traced at the first call; later calls hand the device the
program's hash and its arguments, in milliseconds. It is torch_xla's own way for torch.compile (torch_xla/_dynamo/
dynamo_bridge.py), which has no part in differentiation and optimiser here: a whole step is one program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from trainables.runtime import P, R

_Shapes = tuple[TreeSpec, tuple[tuple[torch.Size, torch.dtype], ...]]


@dataclass(frozen=True, slots=True)
class _Program:
    """A compiled program.

    Attributes:
        hash: torch_xla's name for it.
        arguments: for each of its parameters the place of a tensor in [*arguments of the call, *state, seed], or a
            tensor that stays the same.
        changed: places in the state that its last outputs replace.
        outputs: how its first outputs make what the function returned.
    """

    hash: bytes
    arguments: tuple[int | Tensor, ...]
    changed: tuple[int, ...]
    outputs: TreeSpec


class Replayed(Generic[P, R]):
    """`function` of tensors (or of dicts, lists and tuples of them), traced once for each set of shapes.

    `state`: tensors that change from call to call, by the function or by others; no other tensor may it change. What
    it changes is written over in place. Whatever else it depends on, besides its arguments, must stay what it is while
    this is used, and its outputs must be computed, not passed on.
    """

    def __init__(self, function: Callable[P, R], state: Sequence[Tensor]) -> None:
        import torch_xla
        from torch_xla._dynamo.dynamo_bridge import alias_with_buffer_donor_config

        self._function, self._state = function, list(state)
        self._library: Final[Any] = torch_xla._XLAC
        self._device = str(torch_xla.device())
        self._with_donors = alias_with_buffer_donor_config
        self._programs: dict[_Shapes, _Program] = {}
        self._replaced: list[Tensor] = []

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        tensors, spec = tree_flatten((args, kwargs))
        shapes = (spec, tuple((tensor.shape, tensor.dtype) for tensor in tensors))
        if (program := self._programs.get(shapes)) is None:
            program, values, before = self._trace(tensors, *args, **kwargs)
            self._programs[shapes] = program
            replaced = [before[place] for place in program.changed]
        else:
            given = [*tensors, *self._state, self._seed()]
            values = [given[each] if isinstance(each, int) else each for each in program.arguments]
            replaced = [self._state[place].data for place in program.changed]
        if values:
            # Waits until the program before has been started, as the next call does, but lets other threads run.
            self._library._xla_sync_multi(values[:1], [], False, False)
        results = self._library._run_cached_graph(program.hash, values)
        outputs = results[: len(results) - len(program.changed)]
        self._replaced = replaced
        for place, result in zip(program.changed, results[len(outputs) :], strict=True):
            self._state[place].data = result
        made: R = tree_unflatten(outputs, program.outputs)
        return made

    def take_replaced(self) -> list[Tensor]:
        """What the last call wrote over; to let go of it before the device is done may wait for the device."""
        replaced, self._replaced = self._replaced, []
        return replaced

    def _seed(self) -> Tensor:
        """The seed that was set last, as what random numbers of this device come from now."""
        seed: Tensor = self._library._get_base_seed_as_tensor(self._device)
        return seed

    def _trace(
        self, tensors: Sequence[Tensor], *args: P.args, **kwargs: P.kwargs
    ) -> tuple[_Program, list[Tensor], list[Tensor]]:
        """The program for these shapes, compiled; this call's arguments of it; and what the state was before.

        The state itself holds what the program is to compute, and must be given that; but for an error, after which it
        is as it was before.
        """
        self._library._xla_wait_device_ops([])  # what is not there yet has no handle to know it by
        given = [*tensors, *self._state, self._seed()]
        place_of = {handle: place for place, handle in enumerate(self._library._get_tensors_handle(given))}
        assert len(place_of) == len(given), "a tensor was given twice"
        before = [self._library._get_tensors_xla_device_data_node([tensor])[1][0] for tensor in self._state]
        try:
            made, outputs = tree_flatten(self._function(*args, **kwargs))
            after = [tensor.data for tensor in self._state]
            computed = self._library._check_tensor_need_materialization([*made, *after])
            assert all(computed[: len(made)]), "an output was not computed"
            changed = tuple(place for place, new in enumerate(computed[len(made) :]) if new)
            roots = [*made, *(after[place] for place in changed)]
            _, values = self._library._get_tensors_xla_device_data_node(roots)
            handles = self._library._get_tensors_handle(values)
            arguments = tuple(place_of.get(handle, value) for handle, value in zip(handles, values, strict=True))
            used = {argument for argument in arguments if isinstance(argument, int)}
            assert used >= set(range(len(tensors))), "an argument is idle"
            for place in changed:
                self._library._set_buffer_donation(before[place], True)
            with self._with_donors():
                name = self._library._get_graph_hash(roots)
                self._library._xla_warm_up_cache(roots, [])
        except BaseException:
            # No part of the graph stays, and no one may write over the state but this.
            for tensor, value in zip(self._state, before, strict=True):
                self._library._set_buffer_donation(value, False)
                tensor.data = value
            self._library._clear_pending_irs(self._device)
            raise
        return _Program(name, arguments, changed, outputs), values, before
