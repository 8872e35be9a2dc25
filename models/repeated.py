"""Blocks that differ only in their weights, as one block that is applied many times.

A deep network is mostly the same block again and again. A compiler that sees it once, in a loop over stacked weights,
takes the time of a shallow network; and the optimiser updates a whole stack by one operation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

Slices = Mapping[str, Tensor]
Body = Callable[[Tensor, Slices], Tensor]
Loop = Callable[[Body, Tensor, dict[str, Tensor]], Tensor]

_FEWEST_TURNS: Final = 2


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

    `body` is `at_once` of them in a row, whose parameters are stacks [n, ...], one entry for each of the n turns in
    which `loop` applies it. `first` is the place of the first block in the stage. timm's NormFreeBlock is meant; see
    `repeat_blocks`.

    Attributes:
        draw: 0 or 1 for every probability that a block is kept.
    """

    betas: Tensor
    keep: Tensor

    def __init__(self, blocks: Sequence[nn.Module], loop: Loop = unrolled, *, at_once: int = 1, first: int = 0) -> None:
        super().__init__()
        self.loop, self.first, self.at_once, self.turns = loop, first, at_once, len(blocks) // at_once
        self.draw: Callable[[Tensor], Tensor] = torch.bernoulli
        self.body = nn.Sequential(*(self._stacked(blocks[place::at_once]) for place in range(at_once)))
        rates = [_number(getattr(block.drop_path, "drop_prob", None) or 0.0) for block in blocks]
        self.drops = max(rates) > 0
        betas, keep = torch.tensor([_number(block.beta) for block in blocks]), 1.0 - torch.tensor(rates)
        self.register_buffer("betas", betas.view(-1, at_once), persistent=False)
        self.register_buffer("keep", keep.view(-1, at_once, 1, 1, 1, 1), persistent=False)

    @staticmethod
    def _stacked(blocks: Sequence[nn.Module]) -> nn.Module:
        """The first of the blocks, with the parameters of all; `beta` and the mask of its drop path are to be given."""
        block: Any = copy.deepcopy(blocks[0])
        own = [dict(other.named_parameters()) for other in blocks]
        for owner, name, full_name in _places(block):
            stack = torch.stack([parameters[full_name].detach() for parameters in own])
            owner.register_parameter(name, nn.Parameter(stack))
        del block.beta
        block.register_buffer("beta", torch.ones(()), persistent=False)
        block.drop_path = Mask()
        return cast(nn.Module, block)

    def forward(self, x: Tensor) -> Tensor:
        stacks: dict[str, Tensor] = dict(self.body.named_parameters())
        masks = self._masks(x)
        for place in range(self.at_once):
            stacks |= {f"{place}.beta": self.betas[:, place], f"{place}.drop_path.mask": masks[:, place]}
        return self.loop(self._apply_body, x, stacks)

    def _apply_body(self, x: Tensor, slices: Slices) -> Tensor:
        result: Tensor = torch.func.functional_call(self.body, dict(slices), (x,))
        return result

    def _masks(self, x: Tensor) -> Tensor:
        """[turns, at once, b, 1, 1, 1]: 1 / keep where a block is kept, 0 where not (timm's `scale_by_keep`)."""
        if not (self.training and self.drops):
            return torch.ones_like(self.keep)
        keep = self.keep.expand(-1, -1, len(x), -1, -1, -1)
        return self.draw(keep) / keep


def repeat_blocks(
    model: nn.Module, make_loop: Callable[[], Loop] = lambda: unrolled, *, fewest: int = 2, at_once: int = 1
) -> nn.Module:
    """Replace, in place, blocks that are alike by a `Repeated`, in each of `model.stages` that has `fewest` or more.

    The first block of a stage, which changes the number of channels, stays, and so do those that the turns of `at_once`
    blocks leave over. The model computes what it did; random draws aside.
    """
    stages: Any = model.stages
    for stage in stages:
        blocks = list(stage.children())
        turns = (len(blocks) - 1) // at_once
        if len(blocks) - 1 < fewest or turns < _FEWEST_TURNS:
            continue
        first = len(blocks) - turns * at_once
        for name in [name for name, _ in stage.named_children()][first:]:
            del stage._modules[name]
        stage.add_module("repeated", Repeated(blocks[first:], make_loop(), at_once=at_once, first=first))
    return model


def stacks_of(model: nn.Module) -> dict[str, list[str]]:
    """Every parameter of `model` that is a stack, and what its entries are called in the model of single blocks."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, Repeated):
            stage = path.rpartition(".")[0]
            for name, _ in module.body.named_parameters():
                place, _, own = name.partition(".")
                numbers = (module.first + turn * module.at_once + int(place) for turn in range(module.turns))
                found[f"{path}.body.{name}"] = [f"{stage}.{number}.{own}" for number in numbers]
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
