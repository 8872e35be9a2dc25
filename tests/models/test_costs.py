"""Costs are those of the paper's networks, and scale as the networks do."""

import pytest

from models.costs import Costs, costs


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
