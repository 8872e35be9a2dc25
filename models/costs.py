"""What a variant costs: parameters and multiply-accumulates, counted on the meta device (no memory, no arithmetic)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from models.families import build_model
from models.nfnet import Stem


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


def costs(
    family: str,
    variant: str,
    *,
    classes: int,
    image_size: int,
    width: float = 1.0,
    group_size: int = 128,
    stem: Stem = "paper",
) -> Costs:
    """Parameters and multiply-accumulates of a model; arguments as in `models.families.build_model`. Cached.

    Raises:
        ValueError: what cannot be built, in one line.
    """
    return _costs(family, variant, classes, image_size, width, group_size, stem)


@cache
def _costs(
    family: str, variant: str, classes: int, image_size: int, width: float, group_size: int, stem: Stem
) -> Costs:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model = build_model(
        family,
        variant,
        classes=classes,
        image_size=image_size,
        width=width,
        group_size=group_size,
        stem=stem,
        device="meta",
    )
    image = torch.empty(1, 3, image_size, image_size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    return Costs(parameters=sum(p.numel() for p in model.parameters()), macs=counter.get_total_flops() // 2)
