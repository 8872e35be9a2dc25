"""The families of models a study can search, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from models.names import known_name
from models.nfnet import VARIANTS as NFNET_VARIANTS
from models.nfnet import Stem, build_nfnet, check_nfnet

if TYPE_CHECKING:
    import torch
    from torch import nn


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
    """A family: its variants, smallest first, and how one of them is checked and built."""

    variants: tuple[str, ...]
    check: Checker
    build: Builder


FAMILIES: Mapping[str, Family] = MappingProxyType({"nfnet": Family(tuple(NFNET_VARIANTS), check_nfnet, build_nfnet)})
"""Every family by name."""


def variants(family: str) -> tuple[str, ...]:
    """The names of a family's variants, in order of cost.

    Raises:
        ValueError: unknown family.
    """
    return _family(family).variants


def check_model(
    family: str, variant: str, *, classes: int, image_size: int, width: float, group_size: int, stem: str
) -> None:
    """Refuse a model that cannot be built; fast, because torch is not imported. Arguments as in `build_model`.

    Raises:
        ValueError: in one line, what was given and what is allowed.
    """
    _family(family).check(
        variant, classes=classes, image_size=image_size, width=width, group_size=group_size, stem=stem
    )


def build_model(
    family: str,
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
) -> nn.Module:
    """A model with fresh weights, drawn from torch's default generator.

    For the arguments see `models.nfnet.build_nfnet`.
    Takes images [batch, 3, image_size, image_size], gives logits [batch, classes].

    Raises:
        ValueError: unknown family or variant, or a size that cannot be built.
    """
    return _family(family).build(
        variant,
        classes=classes,
        image_size=image_size,
        width=width,
        group_size=group_size,
        stem=stem,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
        device=device,
    )


def _family(name: str) -> Family:
    return FAMILIES[known_name("family", name, FAMILIES)]
