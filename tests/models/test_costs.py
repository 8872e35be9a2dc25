"""Costs are those of the paper's networks, and scale as the networks do."""

import pytest
import torch

from models.costs import Costs, costs, training_memory
from models.families import build_model


@pytest.mark.parametrize(
    ("variant", "million_parameters", "gmacs"),
    [
        ("F0", "71.49", "9.49"),
        ("F1", "132.63", "17.44"),
        ("F3", "254.92", "33.34"),
        ("F3+", "423.35", "51.50"),
        ("F7", "499.50", "65.14"),
        ("F7+", "829.48", "100.52"),
    ],
)
def test_costs_match_the_paper(variant: str, million_parameters: str, gmacs: str) -> None:
    counted = costs("nfnet", variant, classes=1000, image_size=224)
    assert f"{counted.parameters / 1e6:.2f}" == million_parameters
    assert f"{counted.macs / 1e9:.2f}" == gmacs


def test_training_costs_three_forward_passes_of_two_flops_per_mac() -> None:
    assert Costs(parameters=1, macs=10).training_flops == 60


def test_macs_of_the_classifier_are_its_weights() -> None:
    ten, eleven = (
        costs("nfnet", "F0", classes=classes, image_size=16, width=1 / 16, group_size=8, stem="small")
        for classes in (10, 11)
    )
    features = 2 * 1536 // 16
    assert eleven.macs - ten.macs == features
    assert eleven.parameters - ten.parameters == features + 1


def test_parameters_do_not_depend_on_the_image_size_and_macs_do() -> None:
    small, large = (
        costs("nfnet", "F0", classes=10, image_size=size, width=1 / 16, group_size=8, stem="small") for size in (16, 32)
    )
    assert small.parameters == large.parameters
    assert 3.5 < large.macs / small.macs <= 4


def test_costs_are_counted_once() -> None:
    arguments = {"classes": 10, "image_size": 8, "width": 1 / 16, "group_size": 8, "stem": "small"}
    assert costs("nfnet", "F0", **arguments) is costs("nfnet", "F0", **arguments)


def test_what_cannot_be_built_has_no_cost() -> None:
    with pytest.raises(ValueError, match="is too small for stem"):
        costs("nfnet", "F0", classes=10, image_size=8)


TINY = {"classes": 10, "image_size": 16, "width": 1 / 16, "group_size": 8, "stem": "small"}


def test_memory_of_training_is_what_autograd_really_keeps() -> None:
    model = build_model("nfnet", "F1", **TINY)  # type: ignore[arg-type]
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.zeros(5, 3, 16, 16))
    saved = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)
    weights = 3 * 4 * sum(parameter.numel() for parameter in model.parameters())
    assert training_memory("nfnet", "F1", **TINY).of(5) == pytest.approx(saved + weights, rel=0.01)  # type: ignore[arg-type]


def test_memory_of_activations_halves_in_bfloat16_and_grows_with_the_image() -> None:
    def per_image(image_size: int, precision: str) -> int:
        size = {**TINY, "image_size": image_size}
        return training_memory("nfnet", "F0", **size, precision=precision).per_image  # type: ignore[arg-type]

    assert per_image(16, "bfloat16") == pytest.approx(per_image(16, "float32") / 2, rel=0.05)
    assert per_image(32, "float32") == pytest.approx(4 * per_image(16, "float32"), rel=0.1)
