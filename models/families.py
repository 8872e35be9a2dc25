"""The families of models a study can search, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, TypedDict

from models.names import known_name
from models.nfnet import VARIANTS as NFNET_VARIANTS
from models.nfnet import Stem, build_nfnet, check_nfnet

if TYPE_CHECKING:
    import torch
    from torch import nn


class Dimensions(TypedDict):
    """What a `ModelSize` says besides the names of family and variant."""

    classes: int
    image_size: int
    width: float
    group_size: int
    stem: Stem


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What the shapes of a network follow from, and so its costs; see `models.nfnet.build_nfnet`."""

    variant: str
    image_size: int
    classes: int
    family: str = "nfnet"
    width: float = 1.0
    group_size: int = 128
    stem: Stem = "paper"

    def dimensions(self) -> Dimensions:
        """As the builders of families take them."""
        return {
            "classes": self.classes,
            "image_size": self.image_size,
            "width": self.width,
            "group_size": self.group_size,
            "stem": self.stem,
        }


class Builder(Protocol):
    """Builds one variant of a family: images [batch, 3, height, width] to logits [batch, classes].

    Raises ValueError, in one line, on what it cannot build.
    """

    def __call__(
        self,
        variant: str,
        *,
        classes: int,
        image_size: int,
        width: float = 1.0,
        group_size: int = 128,
        stem: Stem = "paper",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
    ) -> nn.Module: ...


class Checker(Protocol):
    """Raises the ValueError that building would raise, without building."""

    def __call__(
        self, variant: str, *, classes: int, image_size: int, width: float, group_size: int, stem: str
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Family:
    """A family: its variants, smallest first, and how one of them is checked and built.

    `depths`: the residual blocks of each stage, by variant.
    """

    depths: Mapping[str, tuple[int, ...]]
    check: Checker
    build: Builder

    @property
    def variants(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self.depths)


_NFNET_DEPTHS = MappingProxyType({name: variant.depths for name, variant in NFNET_VARIANTS.items()})
FAMILIES: Mapping[str, Family] = MappingProxyType({"nfnet": Family(_NFNET_DEPTHS, check_nfnet, build_nfnet)})
"""Every family by name."""


def variants(family: str) -> tuple[str, ...]:
    """The names of a family's variants, in order of cost.

    Raises:
        ValueError: unknown family.
    """
    return _family(family).variants


def check_model(size: ModelSize) -> None:
    """Refuse a model that cannot be built; fast, because torch is not imported.

    Raises:
        ValueError: in one line, what was given and what is allowed.
    """
    _family(size.family).check(size.variant, **size.dimensions())


def build_model(
    size: ModelSize,
    *,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    device: torch.device | str | None = None,
) -> nn.Module:
    """A model with fresh weights, drawn from torch's default generator.

    Takes images [batch, 3, image_size, image_size], gives logits [batch, classes]. For the arguments see
    `models.nfnet.build_nfnet`.

    Raises:
        ValueError: unknown family or variant, or a size that cannot be built.
    """
    return _family(size.family).build(
        size.variant, **size.dimensions(), drop_rate=drop_rate, drop_path_rate=drop_path_rate, device=device
    )


def _family(name: str) -> Family:
    return FAMILIES[known_name("family", name, FAMILIES)]


def turns_of_loops(size: ModelSize, fewest: int | None) -> list[int]:
    """How many blocks each loop stands for that `models.repeated.repeat_blocks` makes of a model's stages."""
    depths = FAMILIES[size.family].depths[size.variant]
    return [depth - 1 for depth in depths if fewest is not None and depth - 1 >= fewest]
