"""What the study's figures are drawn from: points, markers for what an axis has no place for, legends below."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Final

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter
from matplotlib.transforms import offset_copy

from search.figures.trials import Point
from search.formats import number
from search.plotting import GREY, exactly, log_ticks, new_figure, power_of_ten, style_axes

Target = str | Path | IO[bytes]

WIDTH: Final = 5.6  # inches: a figure is read on a phone as well as on a page, so its text is large for its width
COMPUTE: Final = "training compute (FLOPs)"
LOSS: Final = "held-out loss (nats per image)"
RATE: Final = "learning rate (peak of the schedule)"
DOT: Final[dict[str, Any]] = {"marker": "o", "linestyle": "none"}
RING: Final[dict[str, Any]] = DOT | {"markerfacecolor": "none", "markeredgewidth": 2}
EDGE: Final[dict[str, Any]] = {"linestyle": "", "color": GREY, "markersize": 6, "markeredgewidth": 1.6}
HOLLOW: Final[dict[str, Any]] = DOT | {"markerfacecolor": "white", "markersize": 7, "markeredgewidth": 1.6}
_CLIP: Final = 2.0  # the loss axis ends at so many times the highest best loss of a cell
_LEGEND: Final = 54  # characters of a legend's row that do
_WIDEST: Final = 56  # characters of 11 points that fit between axes
_TITLE: Final = 46  # characters of a title that fit the width


def titled_figure(study: str, title: str, height: float) -> Figure:
    """A figure `WIDTH` inches wide that says at its top which study it shows, and what of it."""
    figure = new_figure(WIDTH, height)
    room = _TITLE - len(title)
    name = study if len(study) <= room else study[: max(0, room - 1)] + "…"
    figure.suptitle(f"{name}: {title}".removeprefix(": "), fontsize=13, x=0.015, ha="left")
    return figure


def legend_below(figure: Figure, handles: Sequence[Artist], columns: int = 3) -> None:
    """A legend under the axes, read row by row; in fewer columns where its labels are long."""
    labels = [len(str(each.get_label())) for each in handles]
    while columns > 2 and sum(max(labels[place::columns], default=0) for place in range(columns)) > _LEGEND:
        columns -= 1
    rows = math.ceil(len(handles) / columns)
    by_row = [handles[row * columns + column] for column in range(columns) for row in range(rows)
              if row * columns + column < len(handles)]  # fmt: skip
    figure.legend(handles=by_row, loc="outside lower center", ncols=columns, frameon=False, fontsize=10.5,
                  handlelength=1.8, columnspacing=1.4)  # fmt: skip


def plot(axes: Axes, points: Sequence[Point], *, rates: bool = False, **keywords: Any) -> None:
    """Plot points at (compute or learning rate, held-out loss)."""
    xs = [point.learning_rate if rates else point.flops for point in points]
    axes.plot(xs, [point.loss for point in points], **keywords)


def at_top(axes: Axes, shades: Mapping[str, str], marker: str, places: Mapping[str, Sequence[float]]) -> None:
    """Markers at the top edge, for what the loss axis has no place for, a row for each of `shades` that has some."""
    rows = [name for name in shades if places[name]]
    figure = axes.get_figure(root=True)
    for row, name in enumerate(rows):
        below = offset_copy(axes.get_xaxis_transform(), figure, y=-4 - row * min(8, 24 / len(rows)), units="points")
        axes.plot(places[name], [1.0] * len(places[name]), marker, color=shades[name], markersize=6,
                  markeredgewidth=1.6, zorder=5, transform=below)  # fmt: skip


def say_empty(axes: Axes, text: str = "no finished trial yet") -> None:
    """Axes without data say why, and have no numbers."""
    text = textwrap.fill(text, _WIDEST)
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=11)
    axes.tick_params(which="both", length=0, labelsize=0, labelcolor="none")
    axes.grid(False)


def new_axes(figure: Figure, x: str, y: str) -> Axes:
    """The one pair of axes of a figure, in the house style."""
    axes = figure.add_subplot()
    style_axes(axes)
    axes.set_xlabel(x, fontsize=11.5)
    axes.set_ylabel(y, fontsize=11.5)
    return axes


def handle(label: str, colour: str, **keywords: Any) -> Line2D:
    """A legend's entry."""
    return Line2D([], [], **({"color": colour, "label": label} | keywords))


def variant_handles(shades: Mapping[str, str], **keywords: Any) -> list[Line2D]:
    """A legend's entries of the variants."""
    usual: dict[str, Any] = {"marker": "o", "linewidth": 2, "markersize": 7}
    return [handle(variant, shade, **(usual | keywords)) for variant, shade in shades.items()]


def untuned_handle() -> Line2D:
    """A legend's entry for the cells drawn `HOLLOW`."""
    return handle("learning rate not tuned", GREY, **HOLLOW)


def edge_handles(diverged: bool, clipped: bool) -> list[Line2D]:
    """A legend's entries for the markers at the top edge, those that there are."""
    marks = [("x", "diverged")] * diverged + [("^", "above the axis")] * clipped
    return [Line2D([], [], marker=marker, label=label, **EDGE) for marker, label in marks]


def loss_limits(finished: Iterable[Point], best: Iterable[Point], edge: bool) -> tuple[float, float]:
    """From below the lowest loss to above the highest, or to above `_CLIP` times the highest best loss of a cell.

    `edge` leaves room for markers at the top edge, as do losses beyond it.
    """
    losses = [point.loss for point in finished]
    top, low = min(max(losses), _CLIP * max(point.loss for point in best)), min(losses)
    edge = edge or top < max(losses)
    margin = max((top / low) ** 0.08, 1.01)
    return low / margin, top * margin ** (3 if edge else 1.6)


def set_compute_axis(axes: Axes, low: float, high: float, budgets: Sequence[float]) -> None:
    """A logarithmic axis of FLOPs from `low` to `high`, labelled at the budgets where they are few."""
    margin = (high / low) ** 0.07 if high > low * 1.01 else 1.5
    low, high = low / margin, high * margin
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    apart = min((math.log(b / a) for a, b in pairwise(budgets)), default=math.inf)
    fits = 1 <= len(budgets) <= 5 and apart > 0.16 * math.log(high / low)  # else their labels would touch
    set_log_ticks(axes, list(budgets) if fits else log_ticks(low, high, 3), power_of_ten)


def set_log_ticks(axes: Axes, ticks: Sequence[float], label: Callable[[float], str] | None = None) -> None:
    """Label the x axis at these values only; without a `label` by the numbers themselves."""
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_major_formatter(FixedFormatter([label(tick) for tick in ticks] if label else exactly(ticks)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def thinned(places: Sequence[float], low: float, high: float, most: int) -> tuple[list[float], list[float]]:
    """(every place, those to label) of an axis in powers of two: the values themselves where they are few."""
    found = sorted(set(places))
    if len(found) > 12:  # not a grid: powers of two
        found = [2.0**k for k in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)] or [low, high]
    return found, found[:: math.ceil(len(found) / most)]


def set_rate_axis(axes: Axes, rates: Sequence[float], most: int, *, vertical: bool = False) -> None:
    """A logarithmic axis of learning rates, labelled at those that were tried."""
    low, high = min(rates), max(rates)
    margin = (high / low) ** 0.06 if high > low else 2.0
    places, ticks = thinned(rates, low, high, most)
    axis = axes.yaxis if vertical else axes.xaxis
    if vertical:
        axes.set_yscale("log", base=2)
        axes.set_ylim(low / margin, high * margin)
    else:
        axes.set_xscale("log", base=2)
        axes.set_xlim(low / margin, high * margin)
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter([number(tick, 3, trim=True) for tick in ticks]))
    axis.set_minor_locator(FixedLocator(places))
    axis.set_minor_formatter(NullFormatter())
