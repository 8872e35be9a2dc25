"""The best learning rate against epochs, a line per variant (figure 3 of arXiv 2310.16764)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Literal

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from search.figures.marks import (
    DOT,
    RATE,
    Target,
    handle,
    legend_below,
    new_axes,
    say_empty,
    set_log_ticks,
    set_rate_axis,
    titled_figure,
    variant_handles,
)
from search.figures.trials import percent_of, study_name, variants_of
from search.formats import number
from search.law import Estimate, Law, RateOptimum, RateTrend, Refused
from search.plotting import GREY, colours
from search.state import StudyState

Bound = Literal["", "at most", "at least", "unknown"]
_SIDES: Final = {"at most": -1, "at least": 1}
_STEPS: Final = 30  # of a trend's line
_ONE_RATE: Final[dict[str, Any]] = {
    "marker": "s",
    "linestyle": "none",
    "markersize": 5,
    "alpha": 0.4,
    "markeredgewidth": 0,
}


@dataclass(frozen=True, slots=True)
class Optimum:
    """The best learning rate of one cell: the best that was tried, and where the optimum lies by the losses beside it.

    `optimum` is None where the best one tried is at an edge of those tried, and `bound` says on which side of it the
    optimum then lies; "unknown" where only one was tried. `diverged` is the lowest rate above `best` that diverged: the
    optimum lies below it.
    """

    variant: str
    epochs: float
    best: float
    optimum: Estimate | None
    bound: Bound
    diverged: float | None = None


@dataclass(frozen=True, slots=True)
class TrendLine:
    """The fitted trend for one variant: learning rates at rising epochs."""

    variant: str
    epochs: tuple[float, ...]
    learning_rates: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class RatesVsEpochs:
    """The optimum of every cell, by epochs; every learning rate `tried`; `variants` are in order of depth."""

    study: str
    variants: tuple[str, ...]
    optima: tuple[Optimum, ...]
    tried: tuple[float, ...]
    trend: tuple[TrendLine, ...]
    confidence: float


def rates_vs_epochs_data(state: StudyState, law: Law | None) -> RatesVsEpochs:
    """The best learning rate of every cell with a finished trial, against its epochs, and the trend of them.

    `law` is None where nothing has finished, so that there is none.
    """
    variants = variants_of(state)
    if law is None:
        return RatesVsEpochs(study_name(state), variants, (), (), (), math.nan)
    cells = [cell for cell in law.learning_rates if cell.variant is not None and cell.epochs is not None]
    optima = [
        Optimum(str(c.variant), float(c.epochs or 0), c.best, c.optimum, c.bound, _diverged_above(state, c))
        for c in cells
    ]
    lost = {one.diverged for one in optima if one.diverged is not None}
    trend = () if isinstance(law.rate_trend, Refused) else _trend(law.rate_trend, cells, variants)
    return RatesVsEpochs(
        study=study_name(state),
        variants=variants,
        optima=tuple(sorted(optima, key=lambda one: (one.epochs, variants.index(one.variant)))),
        tried=tuple(sorted(lost.union(rate for cell in cells for rate, _ in cell.tried))),
        trend=trend,
        confidence=law.confidence,
    )


def _diverged_above(state: StudyState, cell: RateOptimum) -> float | None:
    trials = state.budgets[cell.budget].trials
    rates = [one.learning_rate for one in trials if one.variant == cell.variant and one.outcome == "diverged"]
    return min((rate for rate in rates if rate > cell.best), default=None)


def _trend(trend: RateTrend, cells: Sequence[RateOptimum], variants: Sequence[str]) -> tuple[TrendLine, ...]:
    lines = []
    for variant in variants:
        mine = sorted((cell for cell in cells if cell.variant == variant), key=lambda cell: cell.epochs or 0.0)
        if len(mine) < 2:
            continue
        first, last = mine[0], mine[-1]
        low, high = float(first.epochs or 0), float(last.epochs or 0)
        epochs = tuple(low * (high / low) ** (step / _STEPS) for step in range(_STEPS + 1))
        rates = tuple(_at(trend, first, one / low) for one in epochs)
        lines.append(TrendLine(variant, epochs, rates))
    return tuple(lines)


def _at(trend: RateTrend, cell: RateOptimum, longer: float) -> float:
    """The trend's learning rate for a cell's variant, trained so many times as long as that cell."""
    duration = cell.epochs if trend.duration == "epochs" else cell.examples
    size = cell.parameters if trend.size == "parameters" else cell.flops / (cell.examples or math.nan)
    return trend.at(size or math.nan, longer * (duration or math.nan)).value


def read_rates_vs_epochs(data: RatesVsEpochs) -> str:
    """The figure in one sentence."""
    if not data.optima:
        return "No trial has finished yet, so no learning rate is known to be better than another."
    known = [one for one in data.optima if one.bound != "unknown"]
    single = len(data.optima) - len(known)
    cells = "one cell" if single == 1 else f"{single} cells"
    left_out = f" In {cells} only one rate was tried, which says nothing of the optimum." if single else ""
    parts = []
    for variant in data.variants:
        mine = [one for one in known if one.variant == variant]
        if len(mine) < 2:
            continue
        before, after = (_value(one) for one in (mine[0], mine[-1]))
        epochs = f"{number(mine[0].epochs, 2, trim=True)} to {number(mine[-1].epochs, 2, trim=True)} epochs"
        moved = f"stays at {after}" if before == after else f"goes from {before} to {after}"
        parts.append(f"{variant}'s {moved} ({epochs})")
    edges = sum(_is_open(one) for one in known)
    several = f"{edges} of {len(known)} cells have" if edges > 1 else f"One of {len(known)} cells has"
    edge = f" {several} the best rate at an edge of those tried, which bounds the optimum only." if edges else ""
    if not known:
        return f"No cell has tried two learning rates yet.{left_out}"
    if not parts:
        return f"No variant has a best learning rate at two numbers of epochs yet.{edge}{left_out}"
    return f"The best learning rate: {', '.join(parts)}.{edge}{left_out}"


def _rate(one: Optimum) -> float:
    return one.best if one.optimum is None else one.optimum.value


def _value(one: Optimum) -> str:
    rate = number(_rate(one), 2, trim=True)
    if one.bound == "at least" and one.diverged is not None:
        return f"between {rate} and {number(one.diverged, 2, trim=True)} (diverged)"
    return f"{one.bound} {rate}" if one.bound in _SIDES else rate


def _is_open(one: Optimum) -> bool:
    """Whether the optimum may lie anywhere beyond the best rate: nothing beyond it was tried."""
    return one.bound == "at most" or (one.bound == "at least" and one.diverged is None)


def _draw_optimum(axes: Axes, one: Optimum, x: float, shade: str) -> None:
    if one.bound == "unknown":
        axes.plot([x], [one.best], color=GREY, zorder=2.5, **_ONE_RATE)
        return
    dot: dict[str, Any] = DOT | {"markersize": 8, "markeredgewidth": 0.8, "zorder": 5}
    if one.optimum is not None:
        axes.plot([x, x], [one.optimum.low, one.optimum.high], color=shade, linewidth=2.4, alpha=0.5, zorder=3)
    if one.bound == "at least" and one.diverged is not None:
        axes.plot([x, x], [one.best, one.diverged], color=shade, linewidth=1.8, linestyle=(0, (1, 1)), zorder=3)
        axes.plot([x], [one.diverged], "x", color=shade, markersize=8, markeredgewidth=2, zorder=5)
    elif one.bound in _SIDES:
        arrow = {"arrowstyle": "<|-", "color": shade, "linewidth": 1.8, "shrinkA": 0, "shrinkB": 5}
        end = (0, 26 * _SIDES[one.bound])
        axes.annotate("", xy=(x, one.best), xytext=end, textcoords="offset points", arrowprops=arrow)
    if one.bound:
        dot |= {"markerfacecolor": "white", "markeredgecolor": shade, "markeredgewidth": 2}
    else:
        dot |= {"markerfacecolor": shade, "markeredgecolor": "white"}
    axes.plot([x], [_rate(one)], **dot)


def _set_epochs_axis(axes: Axes, epochs: Sequence[float]) -> None:
    low, high = min(epochs), max(epochs)
    margin = (high / low) ** 0.06 if high > low * 1.01 else 1.5
    axes.set_xscale("log", base=2)
    axes.set_xlim(low / margin, high * margin)
    few = 4 if high < 3 * low else 8
    powers = [2.0**k for k in range(math.floor(math.log2(low / margin)), math.ceil(math.log2(high * margin)) + 1)]
    inside = [power for power in powers if low / margin <= power <= high * margin]
    ticks = inside[:: math.ceil(len(inside) / few)] if len(inside) > 1 else [low, high]
    set_log_ticks(axes, ticks, lambda tick: number(tick, 4, trim=True))
    axes.xaxis.set_minor_locator(NullLocator())


def draw_rates_vs_epochs(data: RatesVsEpochs, target: Target) -> None:
    """Draw the best learning rate against epochs as a PNG: a line per variant, intervals, arrows where at an edge."""
    figure = titled_figure(data.study, "best learning rate by epochs", 4.8)
    axes = new_axes(figure, "epochs", RATE)
    if not data.optima:
        say_empty(axes)
        figure.savefig(target)
        return
    step = min((b / a for a, b in pairwise(data.tried)), default=2.0)
    ends = (data.tried[0] / step**0.75, data.tried[-1] * step**0.75)  # an interval may reach far beyond
    set_rate_axis(axes, ends, most=8, vertical=True)
    ticks = data.tried[:: math.ceil(len(data.tried) / 8)]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(FixedFormatter([number(rate, 3, trim=True) for rate in ticks]))
    axes.yaxis.set_minor_locator(NullLocator())
    _set_epochs_axis(axes, [one.epochs for one in data.optima])
    shades = colours(data.variants)
    for line in data.trend:
        axes.plot(line.epochs, line.learning_rates, color=shades[line.variant], linewidth=1.4, linestyle=(0, (4, 2)),
                  alpha=0.8, zorder=2)  # fmt: skip
    for variant, shade in shades.items():
        mine = [one for one in data.optima if one.variant == variant]
        known = [one for one in mine if one.bound != "unknown"]
        axes.plot([one.epochs for one in known], [_rate(one) for one in known], color=shade, linewidth=2, zorder=4)
        for one in mine:
            _draw_optimum(axes, one, one.epochs, shade)
    legend_below(figure, [*variant_handles(shades), *_notes(data)])
    figure.savefig(target)


def _notes(data: RatesVsEpochs) -> list[Line2D]:
    """The legend's entries for what is in the figure beside the variants."""
    notes = []
    if any(one.optimum is not None for one in data.optima):
        notes.append(handle(f"{percent_of(data.confidence)} interval", GREY, linewidth=2.4, alpha=0.5))
    if any(one.bound in _SIDES for one in data.optima):
        hollow: dict[str, Any] = {"markerfacecolor": "white", "markeredgewidth": 2, "markersize": 7}
        notes.append(handle("best rate at an edge", GREY, **(DOT | hollow)))
    if any(one.bound == "unknown" for one in data.optima):
        notes.append(handle("one rate tried", GREY, **_ONE_RATE))
    if any(one.bound == "at least" and one.diverged is not None for one in data.optima):
        notes.append(handle("diverged", GREY, marker="x", linestyle=(0, (1, 1)), markersize=7, markeredgewidth=2))
    if data.trend:
        notes.append(handle("fitted trend", GREY, linewidth=1.4, linestyle=(0, (4, 2))))
    return notes
