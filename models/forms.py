"""One model in two forms: as it is built, and as a compiling device trains it.

The second has the first's weights, in stacks and matrices (`models.repeated`, `models.pointwise`), and computes the
same. Checkpoints are of the first, whatever trained them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from models.pointwise import as_kernels, as_matrices, with_matrices
from models.repeated import Loop, of_repeated_blocks, of_single_blocks, repeat_blocks


def compact(model: nn.Module, make_loop: Callable[[], Loop], *, fewest: int | None = 2) -> nn.Module:
    """`model`, changed in place to its second form; for the other arguments see `models.repeated.repeat_blocks`."""
    return repeat_blocks(with_matrices(model), make_loop, fewest=fewest)


def as_built(model: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`values` by parameter names of `model`, of either form, as by the names and in the shapes of the first."""
    return of_single_blocks(model, as_kernels(model, values))


def as_trained(model: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `as_built`. Raises KeyError that names a missing entry."""
    return as_matrices(model, of_repeated_blocks(model, values))
