"""Blocks that differ only in their weights, as one block that is applied many times.

A deep network is mostly the same block again and again. A compiler that sees it once, in a loop over stacked weights,
takes the time of a shallow network; and the optimiser updates a whole stack by one operation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Slices = Mapping[str, Tensor]
Body = Callable[[Tensor, Slices], Tensor]
Loop = Callable[[Body, Tensor, dict[str, Tensor]], Tensor]


def unrolled(body: Body, x: Tensor, stacks: dict[str, Tensor]) -> Tensor:
    """Apply `body` to `x` once for every entry of the stacks' first axis, in order."""
    for number in range(len(next(iter(stacks.values())))):
        x = body(x, {name: stack[number] for name, stack in stacks.items()})
    return x


class Mask(nn.Module):
    """Multiplies by `mask` [b, 1, 1, 1]: stochastic depth whose draws come from outside."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(1, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask.to(x.dtype)


class Repeated(nn.Module):
    """Residual blocks of one stage, alike in all but their parameters, their `beta` and their drop path rate.

    `block` is one of them, whose parameters are stacks [n, ...] of all n blocks'; `loop` applies it n times. `first` is
    the place of the first of them in the stage. timm's NormFreeBlock is meant; see `repeat_blocks`.

    Attributes:
        draw: 0 or 1 for every probability that a block is kept.
    """

    betas: Tensor
    keep: Tensor

    def __init__(self, blocks: Sequence[nn.Module], loop: Loop = unrolled, *, first: int = 0) -> None:
        super().__init__()
        self.loop, self.first, self.count = loop, first, len(blocks)
        self.draw: Callable[[Tensor], Tensor] = torch.bernoulli
        block: Any = copy.deepcopy(blocks[0])
        own = [dict(other.named_parameters()) for other in blocks]
        for owner, name, full_name in _places(block):
            stack = torch.stack([parameters[full_name].detach() for parameters in own])
            owner.register_parameter(name, nn.Parameter(stack))
        del block.beta
        block.register_buffer("beta", torch.ones(()), persistent=False)
        block.drop_path = Mask()
        self.block: nn.Module = block
        rates = [_number(getattr(other.drop_path, "drop_prob", None) or 0.0) for other in blocks]
        self.drops = max(rates) > 0
        self.register_buffer("betas", torch.tensor([_number(other.beta) for other in blocks]), persistent=False)
        self.register_buffer("keep", 1.0 - torch.tensor(rates).view(-1, 1, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        stacks = {**dict(self.block.named_parameters()), "beta": self.betas, "drop_path.mask": self._masks(x)}
        return self.loop(self._apply_block, x, stacks)

    def _apply_block(self, x: Tensor, slices: Slices) -> Tensor:
        result: Tensor = torch.func.functional_call(self.block, dict(slices), (x,))
        return result

    def _masks(self, x: Tensor) -> Tensor:
        """[n, b, 1, 1, 1]: 1 / keep where a block is kept, 0 where it is dropped (timm's `scale_by_keep`)."""
        if not (self.training and self.drops):
            return torch.ones_like(self.keep)
        keep = self.keep.expand(-1, len(x), -1, -1, -1)
        return self.draw(keep) / keep


def repeat_blocks(
    model: nn.Module, make_loop: Callable[[], Loop] = lambda: unrolled, *, fewest: int | None = 2
) -> nn.Module:
    """Replace, in place, blocks that are alike by a `Repeated`, in each of `model.stages` that has `fewest` or more.

    The first block of a stage, which changes the number of channels, stays. The model computes what it did; random
    draws aside. None: nothing is replaced.
    """
    stages: Any = model.stages
    for stage in stages:
        blocks = list(stage.children())
        if fewest is None or len(blocks) - 1 < fewest:
            continue
        for name in [name for name, _ in stage.named_children()][1:]:
            del stage._modules[name]
        stage.add_module("repeated", Repeated(blocks[1:], make_loop(), first=1))
    return model


def stacks_of(model: nn.Module) -> dict[str, list[str]]:
    """Every parameter of `model` that is a stack, and what its entries are called in the model of single blocks."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, Repeated):
            stage = path.rpartition(".")[0]
            for name, _ in module.block.named_parameters():
                singles = [f"{stage}.{module.first + number}.{name}" for number in range(module.count)]
                found[f"{path}.block.{name}"] = singles
    return found


def of_single_blocks(model: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`values` by parameter names of `model`, as by the names of the model whose blocks are single."""
    stacks = stacks_of(model)
    every: dict[str, Tensor] = {}
    for name, value in values.items():
        every |= dict(zip(stacks[name], value.unbind(), strict=True)) if name in stacks else {name: value}
    return every


def of_repeated_blocks(model: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `of_single_blocks`. Raises KeyError that names a missing entry."""
    every = dict(values)
    for name, singles in stacks_of(model).items():
        every[name] = torch.stack([every.pop(single) for single in singles])
    return every


def _number(value: Any) -> float:
    return float(value)


def _places(block: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """(owner, name there, full name) of every parameter."""
    for prefix, owner in list(block.named_modules()):
        for name, _ in list(owner.named_parameters(recurse=False)):
            yield owner, name, f"{prefix}.{name}".lstrip(".")
