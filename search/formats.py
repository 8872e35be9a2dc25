"""Numbers as people read them: three significant digits, units spelt out. A missing value (None, NaN) is "-"."""

from __future__ import annotations

import math

MISSING = "-"


def number(value: float | None, digits: int = 3, *, trim: bool = False) -> str:
    """`value` to so many significant digits: 0.0021, 2.34, 12,300. `trim` drops trailing zeros: 0.4, not 0.400."""
    if value is None or math.isnan(value):
        return MISSING
    if value == 0 or math.isinf(value):
        return f"{value:g}"
    rounded = float(f"{value:.{digits - 1}e}")
    exponent = math.floor(math.log10(abs(rounded)) + 1e-9)
    if not -5 <= exponent < 9:
        return scientific(value, digits)
    decimals = max(0, digits - 1 - exponent)
    text = f"{rounded:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if trim and decimals else text


def scientific(value: float | None, digits: int = 2) -> str:
    """FLOPs and the like: 2.0e13."""
    if value is None or math.isnan(value):
        return MISSING
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def percent(share: float | None) -> str:
    """A share of one: 0.912 is "91.2 %"."""
    return MISSING if share is None or math.isnan(share) else f"{100 * share:.1f} %"


def percent_off(share: float) -> str:
    """How far something is off, in two digits: 0.2071 is "+21 %", -0.0388 is "-3.9 %"."""
    return f"{'+' if share > 0 else ''}{number(100 * share, 2, trim=True)} %"


def duration(seconds: float | None) -> str:
    """A time span: "3.2 s", "42 s", "4 min 05 s", "3 h 12 min", "2 d 3 h"."""
    if seconds is None or math.isnan(seconds):
        return MISSING
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"
