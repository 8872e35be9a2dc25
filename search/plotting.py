"""How the project's figures look: colours, round labels on logarithmic axes, and a figure with no global state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from search.formats import number

DPI: Final = 190
GREY: Final = "#5b6470"
RAMP: Final = ("#f0b83f", "#e5704b", "#b8387a", "#6a2c91", "#1f2a6b")  # light to dark: depth reads in grey print too
BUDGET_RAMP: Final = ("#9ccf8f", "#4aae9b", "#2286a3", "#28589a", "#2b2760")


def colours(variants: Sequence[str]) -> dict[str, str]:
    """A colour per variant, light to dark in the order given; safe for colour-blind readers."""
    return dict(zip(variants, _along(RAMP, len(variants)), strict=True))


def budget_colours(count: int) -> list[str]:
    """A colour per budget, light to dark; of another ramp than the variants'."""
    return _along(BUDGET_RAMP, count)


def _along(ramp: Sequence[str], count: int) -> list[str]:
    """So many colours of a ramp, its own where they are enough, mixed where they are not."""
    last = len(ramp) - 1
    if count <= len(ramp):
        return [ramp[round(index * last / max(1, count - 1))] for index in range(count)]
    mixed = []
    for index in range(count):
        place = index * last / (count - 1)
        low = min(int(place), last - 1)
        pairs = ((int(ramp[low][at : at + 2], 16), int(ramp[low + 1][at : at + 2], 16)) for at in (1, 3, 5))
        mixed.append("#" + "".join(f"{round(a + (b - a) * (place - low)):02x}" for a, b in pairs))
    return mixed


def log_ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round values from `low` to `high` to label a log axis with: about `wanted` to 2 x `wanted` of them."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)):
        ticks = [m * 10.0**decade for decade in decades for m in mantissas if low <= m * 10.0**decade <= high]
        if len(ticks) >= wanted:
            every = math.ceil(len(ticks) / (2 * wanted))
            return ticks[::every]
    linear = MaxNLocator(nbins=2 * wanted, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(tick) for tick in linear if low <= tick <= high]


def exactly(ticks: Sequence[float]) -> list[str]:
    """Labels of ticks, with as many digits as it takes to tell them as they are: 0.4975, 0.5, 0.5025."""
    enough = (
        digits
        for digits in range(2, 12)
        if all(math.isclose(float(f"{tick:.{digits - 1}e}"), tick, rel_tol=1e-10) for tick in ticks)
    )
    digits = next(enough, 3)
    return [number(tick, digits, trim=True) for tick in ticks]


def power_of_ten(value: float) -> str:
    """6e11 as mathematical text: 6 x 10^11."""
    mantissa, exponent = f"{value:.1e}".split("e")
    power = f"10^{{{int(exponent)}}}"
    return f"${power}$" if float(mantissa) == 1 else f"${float(mantissa):g}\\times{power}$"


def new_figure(width: float, height: float) -> Figure:
    """A white figure of so many inches, drawn by Agg without pyplot."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def style_axes(axes: Axes) -> None:
    """A light grid, and spines at the left and bottom only."""
    axes.grid(True, color="#e6e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors="#333a44", labelsize=10, length=3)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#9aa1ab")


def set_loss_axis(axes: Axes, low: float, high: float) -> None:
    """A logarithmic loss axis from `low` to `high` that is labelled even within one decade."""
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    ticks = log_ticks(low, high)
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(FixedFormatter(exactly(ticks)))
    axes.yaxis.set_minor_locator(NullLocator())
