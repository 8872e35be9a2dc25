"""Amounts of compute are read as people write them."""

from __future__ import annotations

import pytest

from search.units import KNOWN_FLOPS_PER_CORE_SECOND, Quantity, parse_quantity, same_amount


@pytest.mark.parametrize(
    ("text", "label", "amount"),
    [
        ("2e15 FLOPs", "2e15 FLOPs", 2e15),
        ("2e+15flops", "2e+15 FLOPs", 2e15),
        (" 1.5E3  flop ", "1.5E3 FLOPs", 1500),
        ("2 PFLOPs", "2 PFLOPs", 2e15),
        ("20 tflops", "20 TFLOPs", 2e13),
        (".5 GFLOPs", ".5 GFLOPs", 5e8),
        ("1_000 MFLOPs", "1000 MFLOPs", 1e9),
        ("3 EFLOPs", "3 EFLOPs", 3e18),
        ("1 ZFLOPs", "1 ZFLOPs", 1e21),
    ],
)
def test_flops(text: str, label: str, amount: float) -> None:
    quantity = parse_quantity(text)
    assert quantity == Quantity(label, pytest.approx(amount), "FLOPs")
    assert quantity.flops(None) == pytest.approx(amount)
    assert parse_quantity(quantity.label) == quantity


@pytest.mark.parametrize("text", ["400 core-hours", "400 core hours", "400 Core-Hour", "400core-hours"])
def test_core_hours_need_the_rate_of_a_core(text: str) -> None:
    quantity = parse_quantity(text)
    assert quantity == Quantity("400 core-hours", 400, "core-hours")
    assert quantity.flops(None) is None
    assert quantity.flops(1e9) == 400 * 3600 * 1e9


def test_core_hours_of_a_known_device_have_its_rate() -> None:
    quantity = parse_quantity("400 tpu-v4 core-hours")
    assert quantity == Quantity("400 TPU-v4 core-hours", 400, "core-hours", "TPU-v4")
    assert quantity.flops(1e9) == 400 * 3600 * KNOWN_FLOPS_PER_CORE_SECOND["TPU-v4"]


@pytest.mark.parametrize("other", ["1e+10 FLOPs", "1.0e10 FLOPs", "10 GFLOPs", "0.01 TFLOPs", "1.0000001e10 FLOPs"])
def test_one_amount_has_many_spellings(other: str) -> None:
    assert same_amount(parse_quantity("1e10 FLOPs").amount, parse_quantity(other).amount)
    assert not same_amount(parse_quantity("1.00001e10 FLOPs").amount, parse_quantity(other).amount)


def test_the_rate_of_a_tpu_v4_core_is_what_the_papers_smallest_run_implies() -> None:
    """0.4k core-hours for F0, 9.49 GMACs an image, over a quarter of 4e9 images."""
    implied = 0.25 * 4e9 * 3 * 2 * 9.49e9 / (400 * 3600)
    assert KNOWN_FLOPS_PER_CORE_SECOND["TPU-v4"] == pytest.approx(implied, rel=0.02)


@pytest.mark.parametrize(
    "text", ["", "FLOPs", "1,000 FLOPs", "-1 FLOPs", "1 FLOP/s", "1e FLOPs", "nan FLOPs", "1", True, None]
)
def test_anything_else_is_refused_in_one_line(text: object) -> None:
    with pytest.raises(ValueError, match=r"^allowed: [^\n]*$"):
        parse_quantity(text)
