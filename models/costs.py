"""What a variant costs: parameters, multiply-accumulates and memory, counted on tensors that hold no numbers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

from models.families import ModelSize, build_model

if TYPE_CHECKING:
    from torch import Tensor, nn

Precision = Literal["float32", "bfloat16"]
_HELD = 3 * 4  # bytes of a parameter: itself, its gradient and its momentum, in float32


@dataclass(frozen=True, slots=True)
class Costs:
    """The cost of one variant at one image size.

    Attributes:
        parameters: trainable numbers.
        macs: multiply-accumulates of one image's forward pass, convolutions and linear layers only.
    """

    parameters: int
    macs: int

    @property
    def training_flops(self) -> int:
        """FLOPs of one image's training step: forward and twice as much backward, two FLOPs per multiply-accumulate."""
        return 3 * 2 * self.macs


def costs(size: ModelSize) -> Costs:
    """Parameters and multiply-accumulates of a model. Cached.

    Raises:
        ValueError: what cannot be built, in one line.
    """
    return _costs(size)


@cache
def _costs(size: ModelSize) -> Costs:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model = build_model(size, device="meta")
    image = torch.empty(1, 3, size.image_size, size.image_size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    return Costs(parameters=sum(p.numel() for p in model.parameters()), macs=counter.get_total_flops() // 2)


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """What a training step must hold, in bytes on each worker: a lower bound of what PyTorch takes for it.

    Attributes:
        fixed: weights, gradients and momenta, and what the forward pass makes of the weights for the backward pass.
        per_image: what the forward pass keeps of one image for the backward pass.
    """

    fixed: int
    per_image: int

    def of(self, images: int) -> int:
        """Bytes for a batch of so many images."""
        return self.fixed + images * self.per_image


@cache
def training_memory(size: ModelSize, precision: Precision = "float32") -> TrainingMemory:
    """The least memory that training a model takes. Cached.

    Counted from the tensors that autograd saves, under autocast for "bfloat16". On the CPU the peak was measured 1.2 to
    1.4 times as high (workspaces, gradients of activations).

    Raises:
        ValueError: what cannot be built, in one line.
    """
    model = build_model(size, device="meta")
    one, two = (_saved_bytes(model, images, size.image_size, precision) for images in (1, 2))
    parameters = sum(p.numel() for p in model.parameters())
    return TrainingMemory(fixed=_HELD * parameters + 2 * one - two, per_image=two - one)


def _saved_bytes(model: nn.Module, images: int, image_size: int, precision: Precision) -> int:
    """Bytes that a forward pass over a batch keeps for the backward pass, besides the weights themselves."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    saved: dict[int, Tensor] = {}  # by storage; the tensors keep the storages, and so their addresses, alive

    def save(tensor: Tensor) -> Tensor:
        saved.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with FakeTensorMode():  # unlike meta tensors, these have a device, which autocast goes by
        weights = {name: torch.empty(p.shape, requires_grad=True) for name, p in model.named_parameters()}
        batch = torch.empty(images, 3, image_size, image_size)
        with (
            torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"),
        ):
            torch.func.functional_call(model, weights, (batch,))
        own = {weight.untyped_storage()._cdata for weight in weights.values()}
        return sum(tensor.untyped_storage().nbytes() for storage, tensor in saved.items() if storage not in own)
