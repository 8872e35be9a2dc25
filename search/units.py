"""Amounts of training compute as people write them: "400 core-hours", "400 TPU-v4 core-hours", "2e15 FLOPs"."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

SECONDS_PER_HOUR: Final = 3600.0

KNOWN_FLOPS_PER_CORE_SECOND: Final[Mapping[str, float]] = MappingProxyType({"TPU-v4": 0.29 * 137.5e12})
"""Estimates of the training FLOPs one core does in a second, by device.

TPU-v4: 29 % of the peak of a core (half a chip of 275 TFLOP/s), which is what F0's 0.4k core-hours for a quarter of an
epoch imply in arXiv 2310.16764; that study's own figures are read off by eye.
"""

_LARGEST: Final = 1e60
_PREFIXES = MappingProxyType({"": 1.0, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "Z": 1e21})
_ALLOWED = 'an amount and a unit, such as "400 core-hours", "400 TPU-v4 core-hours", "2e15 FLOPs" or "2 PFLOPs"'
_AMOUNT = re.compile(
    r"\s*([0-9][0-9_]*\.?[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?)\s*(.*?)\s*", re.DOTALL
)
_FLOPS = re.compile(r"([mgtpez]?)flops?", re.IGNORECASE)
_CORE_HOURS = re.compile(r"(?:(\S+)\s+)?core[-\s]hours?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Quantity:
    """An amount of training compute.

    Attributes:
        label: as people write it, with one spelling of each unit: "2 PFLOPs", "400 core-hours".
        amount: in `unit`; FLOPs are written out (2 PFLOPs have the amount 2e15).
        unit: what `amount` counts.
        device: whose cores the core-hours are; None is the device the study runs on.
    """

    label: str
    amount: float
    unit: Literal["FLOPs", "core-hours"]
    device: str | None = None

    def flops(
        self, flops_per_core_second: float | None, by_device: Mapping[str, float] = KNOWN_FLOPS_PER_CORE_SECOND
    ) -> float | None:
        """Training FLOPs, or None for core-hours of a device whose FLOPs per core-second are not known.

        `by_device`: FLOPs per core-second of the devices that budgets may name.
        """
        if self.unit == "FLOPs":
            return self.amount
        rate = flops_per_core_second if self.device is None else by_device[self.device]
        return None if rate is None else self.amount * SECONDS_PER_HOUR * rate


def same_amount(one: float, other: float) -> bool:
    """Whether two amounts in one unit are the same budget: spellings and rates of a core round differently."""
    return math.isclose(one, other, rel_tol=1e-6)


def parse_quantity(text: object) -> Quantity:
    """Read an amount of compute.

    Raises:
        ValueError: in one line, what is allowed and how to mend it; the caller says what was given.
    """
    if isinstance(text, Quantity):
        return text
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        raise ValueError(f'allowed: {_ALLOWED}; add the unit: "{text:g} FLOPs" or "{text:g} core-hours"')
    found = _AMOUNT.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(f"allowed: {_ALLOWED}; write the amount as a plain number, then the unit")
    number, unit = found[1].replace("_", ""), found[2]
    amount = float(number)
    if not (0 < amount <= _LARGEST):
        raise ValueError(f"allowed: an amount above 0 and up to {_LARGEST:g}; give the training compute of one trial")
    if flops := _FLOPS.fullmatch(unit):
        prefix = flops[1].upper()
        return Quantity(f"{number} {prefix}FLOPs", amount * _PREFIXES[prefix], "FLOPs")
    if hours := _CORE_HOURS.fullmatch(unit):
        if hours[1] is None:
            return Quantity(f"{number} core-hours", amount, "core-hours")
        device = next((name for name in KNOWN_FLOPS_PER_CORE_SECOND if name.casefold() == hours[1].casefold()), None)
        if device is None:
            known = ", ".join(KNOWN_FLOPS_PER_CORE_SECOND)
            raise ValueError(
                f"allowed devices before core-hours: {known}; for any other, write plain core-hours "
                "and set compute.flops_per_core_second"
            )
        return Quantity(f"{number} {device} core-hours", amount, "core-hours", device)
    if not unit:
        raise ValueError(f'allowed: {_ALLOWED}; add the unit: "{number} FLOPs" or "{number} core-hours"')
    raise ValueError(f"allowed: {_ALLOWED}; write the unit as FLOPs (or MFLOPs to ZFLOPs) or core-hours")
