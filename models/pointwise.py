"""A model whose 1x1 convolutions keep their kernels as matrices.

A compiler for an accelerator whose memory is tiled lays a kernel [out, in, 1, 1] out one row to a tile, an eighth of
which it then fills, and to copy it before each use; [out, in] needs neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class PointwiseConv2d(nn.Module):
    """A 1x1 convolution of stride 1 whose `weight` is [out, in]."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach().flatten(1))
        self.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight[:, :, None, None], self.bias)


class PointwiseScaledStdConv2d(PointwiseConv2d):
    """timm's ScaledStdConv2dSame of 1x1 and stride 1, whose `weight` is [out, in]."""

    def __init__(self, conv: Any) -> None:
        super().__init__(conv)
        self.gain: nn.Parameter = conv.gain
        self.scale, self.eps = float(conv.scale), float(conv.eps)

    def forward(self, x: Tensor) -> Tensor:
        gains = (self.gain * self.scale).view(-1)
        kernel = F.batch_norm(self.weight[None], None, None, weight=gains, training=True, eps=self.eps)
        return F.conv2d(x, kernel.view(*self.weight.shape, 1, 1), self.bias)


def with_matrices(model: nn.Module) -> nn.Module:
    """Replace, in place, the 1x1 convolutions of an NFNet; it computes what it did."""
    from timm.layers import ScaledStdConv2dSame

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and child.kernel_size == child.stride == (1, 1) and child.groups == 1:
                if type(child) is nn.Conv2d:
                    setattr(parent, name, PointwiseConv2d(child))
                elif type(child) is ScaledStdConv2dSame:
                    setattr(parent, name, PointwiseScaledStdConv2d(child))
    return model


def matrices_of(model: nn.Module) -> set[str]:
    """The parameters of `model` that are kernels kept as matrices."""
    return {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, PointwiseConv2d)}


def as_kernels(model: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`values` by parameter names of `model`, matrices [..., out, in] as kernels [..., out, in, 1, 1]."""
    matrices = matrices_of(model)
    return {name: value[..., None, None] if name in matrices else value for name, value in values.items()}


def as_matrices(model: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `as_kernels`."""
    matrices = matrices_of(model)
    return {name: value[..., 0, 0] if name in matrices else value for name, value in values.items()}
