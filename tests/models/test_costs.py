"""Costs are those of the paper's networks, and scale as the networks do."""

from dataclasses import replace

import pytest
import torch

from models.costs import Costs, Precision, costs, training_memory
from models.families import ModelSize, build_model

TINY = ModelSize("F0", 16, classes=10, width=1 / 16, group_size=8, stem="small")


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
    counted = costs(ModelSize(variant, 224, classes=1000))
    assert f"{counted.parameters / 1e6:.2f}" == million_parameters
    assert f"{counted.macs / 1e9:.2f}" == gmacs


def test_training_costs_three_forward_passes_of_two_flops_per_mac() -> None:
    assert Costs(parameters=1, macs=10).training_flops == 60


def test_macs_of_the_classifier_are_its_weights() -> None:
    ten, eleven = (costs(replace(TINY, classes=classes)) for classes in (10, 11))
    features = 2 * 1536 // 16
    assert eleven.macs - ten.macs == features
    assert eleven.parameters - ten.parameters == features + 1


def test_parameters_do_not_depend_on_the_image_size_and_macs_do() -> None:
    small, large = (costs(replace(TINY, image_size=size)) for size in (16, 32))
    assert small.parameters == large.parameters
    assert 3.5 < large.macs / small.macs <= 4


def test_costs_are_counted_once() -> None:
    assert costs(replace(TINY)) is costs(replace(TINY))


def test_what_cannot_be_built_has_no_cost() -> None:
    with pytest.raises(ValueError, match="is too small for stem"):
        costs(ModelSize("F0", 8, classes=10))


def test_memory_of_training_is_what_autograd_really_keeps() -> None:
    size = replace(TINY, variant="F1")
    model = build_model(size)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.zeros(5, 3, 16, 16))
    saved = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)
    weights = 3 * 4 * sum(parameter.numel() for parameter in model.parameters())
    assert training_memory(size).of(5) == pytest.approx(saved + weights, rel=0.01)


def test_memory_is_counted_once() -> None:
    assert training_memory(replace(TINY)) is training_memory(replace(TINY))


def test_memory_of_activations_halves_in_bfloat16_and_grows_with_the_image() -> None:
    def per_image(image_size: int, precision: Precision) -> int:
        return training_memory(replace(TINY, image_size=image_size), precision).per_image

    assert per_image(16, "bfloat16") == pytest.approx(per_image(16, "float32") / 2, rel=0.05)
    assert per_image(32, "float32") == pytest.approx(4 * per_image(16, "float32"), rel=0.1)
