"""The study's pictures: held-out loss against compute, and the learning-rate valley of each budget.

Each is two functions: one takes the data out of a `StudyState`, the other draws it.
Import this module late: matplotlib is slow to load.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter, NullLocator
from matplotlib.transforms import offset_copy

from search.formats import number
from search.plotting import GREY, colours, log_ticks, new_figure, power_of_ten, set_loss_axis, style_axes
from search.results import meter_summary, ordered_budgets
from search.state import BudgetState, StudyState, TrialState

_DOT: Final[dict[str, Any]] = {"marker": "o", "linestyle": "none"}
_RING: Final[dict[str, Any]] = _DOT | {"markerfacecolor": "none", "markeredgewidth": 2}
_CLIP: Final = 2.0  # the loss axis ends at so many times the highest best loss of a cell


@dataclass(frozen=True, slots=True)
class Point:
    """An ended trial: planned training FLOPs, held-out loss (NaN if diverged), metered core-hours (NaN if unknown)."""

    variant: str
    flops: float
    learning_rate: float
    loss: float
    core_hours: float


@dataclass(frozen=True, slots=True)
class LossVsCompute:
    """Every finished trial, the `best` of each cell, the `frontier` (best of each budget), and the diverged trials.

    All are in order of compute; `variants` are in order of depth.
    """

    study: str
    variants: tuple[str, ...]
    finished: tuple[Point, ...]
    best: tuple[Point, ...]
    frontier: tuple[Point, ...]
    diverged: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Valley:
    """One budget's trials, in order of learning rate; `best` has the lowest held-out loss, None if nothing finished."""

    budget: str
    finished: tuple[Point, ...]
    diverged: tuple[Point, ...]
    best: Point | None


@dataclass(frozen=True, slots=True)
class LearningRateValleys:
    """A `Valley` for each budget, the smallest first; `variants` are in order of depth."""

    study: str
    variants: tuple[str, ...]
    valleys: tuple[Valley, ...]


def _variants(state: StudyState) -> tuple[str, ...]:
    """The study's variants by compute per image (so by depth within a family), the cheapest first."""
    cost: dict[str, float] = {}
    for budget in state.budgets.values():
        cost |= {cell["variant"]: cell["flops_per_image"] for cell in budget.cells}
    for trial in state.trials.values():
        cost.setdefault(trial.variant, math.inf)
    return tuple(sorted(cost, key=lambda variant: (cost[variant], variant)))


def _point(trial: TrialState) -> Point:
    core_hours = meter_summary(trial).get("core_hours")
    return Point(
        variant=trial.variant,
        flops=trial.flops,
        learning_rate=trial.learning_rate,
        loss=trial.heldout_loss,
        core_hours=math.nan if core_hours is None else core_hours,
    )


def _finished(budget: BudgetState) -> tuple[Point, ...]:
    """The budget's finished trials by learning rate; a loss that a log axis cannot show is left out."""
    points = [_point(trial) for trial in budget.trials if trial.outcome == "finished"]
    shown = [point for point in points if point.loss > 0 and math.isfinite(point.loss)]
    return tuple(sorted(shown, key=lambda point: point.learning_rate))


def _diverged(budget: BudgetState) -> tuple[Point, ...]:
    points = [_point(trial) for trial in budget.trials if trial.outcome == "diverged"]
    return tuple(sorted(points, key=lambda point: point.learning_rate))


def _lowest(points: Iterable[Point]) -> Point | None:
    return min(points, key=lambda point: point.loss, default=None)


def _of(variant: str, points: Iterable[Point]) -> list[Point]:
    return [point for point in points if point.variant == variant]


def _cell_bests(variants: Sequence[str], finished: Sequence[Point]) -> list[Point]:
    lowest = (_lowest(_of(variant, finished)) for variant in variants)
    return [point for point in lowest if point is not None]


def loss_vs_compute_data(state: StudyState) -> LossVsCompute:
    """Held-out loss against training FLOPs: every finished trial, the best of each cell, the best of each budget."""
    variants, budgets = _variants(state), ordered_budgets(state)
    finished = [_finished(budget) for budget in budgets]
    bests = (_lowest(points) for points in finished)
    return LossVsCompute(
        study=str(state.opened.get("study", "")),
        variants=variants,
        finished=tuple(point for points in finished for point in points),
        best=tuple(point for points in finished for point in _cell_bests(variants, points)),
        frontier=tuple(point for point in bests if point is not None),
        diverged=tuple(point for budget in budgets for point in _diverged(budget)),
    )


def learning_rate_valley_data(state: StudyState) -> LearningRateValleys:
    """Held-out loss against learning rate, budget by budget (those with trials)."""
    opened = [budget for budget in ordered_budgets(state) if budget.trials]
    valleys = (Valley(b.label, found := _finished(b), _diverged(b), _lowest(found)) for b in opened)
    return LearningRateValleys(str(state.opened.get("study", "")), _variants(state), tuple(valleys))


def _loss_limits(finished: Iterable[Point], best: Iterable[Point], edge: bool) -> tuple[float, float]:
    """From below the lowest loss to above the highest, or to above `_CLIP` times the highest best loss of a cell.

    `edge` leaves room for markers at the top edge, as do losses beyond it.
    """
    losses = [point.loss for point in finished]
    top, low = min(max(losses), _CLIP * max(point.loss for point in best)), min(losses)
    edge = edge or top < max(losses)
    margin = max((top / low) ** 0.08, 1.01)
    return low / margin, top * margin ** (3 if edge else 1.6)


def _plot(axes: Axes, points: Sequence[Point], *, rates: bool = False, **keywords: Any) -> None:
    """Plot points at (compute or learning rate, held-out loss)."""
    xs = [point.learning_rate if rates else point.flops for point in points]
    axes.plot(xs, [point.loss for point in points], **keywords)


def _edges(axes: Axes, shades: dict[str, str], marker: str, places: Mapping[str, Sequence[float]]) -> None:
    """Markers at the top edge, for what the loss axis has no place for, a row for each variant that has some."""
    rows = [variant for variant in shades if places[variant]]
    figure = axes.get_figure(root=True)
    for row, variant in enumerate(rows):
        below = offset_copy(axes.get_xaxis_transform(), figure, y=-4 - row * min(8, 24 / len(rows)), units="points")
        axes.plot(places[variant], [1.0] * len(places[variant]), marker, color=shades[variant], markersize=6,
                  markeredgewidth=1.6, zorder=5, transform=below)  # fmt: skip


def _empty(axes: Axes) -> None:
    axes.text(0.5, 0.5, "no finished trial yet", transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.tick_params(which="both", length=0, labelsize=0, labelcolor="none")
    axes.grid(False)


def _legend(shades: dict[str, str], diverged: bool, clipped: bool, ring: str) -> list[Line2D]:
    handles = [
        Line2D([], [], color=shade, marker="o", linewidth=2, markersize=7, label=v) for v, shade in shades.items()
    ]
    edge: dict[str, Any] = {"linestyle": "", "color": GREY, "markersize": 6, "markeredgewidth": 1.6}
    handles.append(Line2D([], [], color="black", markersize=12, label=ring, **_RING))
    if diverged:
        handles.append(Line2D([], [], marker="x", label="diverged", **edge))
    if clipped:
        handles.append(Line2D([], [], marker="^", label="above the axis", **edge))
    return handles


def _compute_axis(axes: Axes, data: LossVsCompute) -> None:
    values = [point.flops for point in (*data.finished, *data.diverged)]
    low, high = min(values), max(values)
    margin = (high / low) ** 0.09 if high > low * 1.01 else 1.5
    axes.set_xscale("log")
    axes.set_xlim(low / margin, high * margin)
    budgets = [point.flops for point in data.frontier]
    ticks = budgets if 1 <= len(budgets) <= 5 else log_ticks(low / margin, high * margin)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([power_of_ten(tick) for tick in ticks]))
    axes.xaxis.set_minor_formatter(NullFormatter())
    metered = [point for point in data.frontier if math.isfinite(point.core_hours)]
    if metered:
        shown = metered[:: math.ceil(len(metered) / 6)]
        top = axes.secondary_xaxis("top")
        top.set_xlabel("core-hours of the best trial", color=GREY, fontsize=10, labelpad=6)
        top.xaxis.set_major_locator(FixedLocator([point.flops for point in shown]))
        top.xaxis.set_major_formatter(FixedFormatter([number(point.core_hours, 2) for point in shown]))
        top.xaxis.set_minor_locator(NullLocator())
        top.tick_params(colors=GREY, labelsize=9, length=3)
        top.spines["top"].set_visible(False)


def draw_loss_vs_compute(data: LossVsCompute, path: str | Path) -> None:
    """Draw held-out loss against compute as a PNG: a line per variant, the frontier of the best in black."""
    figure = new_figure(7.6, 4.8)
    axes = figure.add_subplot()
    style_axes(axes)
    axes.set_xlabel("training compute (FLOPs)", fontsize=11)
    axes.set_ylabel("held-out loss (nats per image)", fontsize=11)
    axes.set_title(f"{data.study}: held-out loss against compute".removeprefix(": "), fontsize=12.5, loc="left", pad=12)
    if not data.finished:
        _empty(axes)
        figure.savefig(path)
        return
    low, high = _loss_limits(data.finished, data.best, bool(data.diverged))
    set_loss_axis(axes, low, high)
    _compute_axis(axes, data)
    shades = colours(data.variants)
    faint: dict[str, Any] = {"alpha": 0.4, "markersize": 5.5, "markeredgewidth": 0}
    _plot(axes, data.frontier, color="black", linewidth=5.5, solid_capstyle="round", zorder=3)
    for variant, shade in shades.items():
        inside = [point for point in _of(variant, data.finished) if point.loss < high]
        _plot(axes, inside, **_DOT, color=shade, **faint, zorder=2.5)
        best = _of(variant, data.best)
        _plot(axes, best, color=shade, linewidth=2, zorder=4)
        _plot(axes, best, **_DOT, color=shade, markersize=7.5, markeredgecolor="white", markeredgewidth=0.8, zorder=6)
    above = [point for point in data.finished if point.loss >= high]
    _edges(axes, shades, "^", {variant: [point.flops for point in _of(variant, above)] for variant in shades})
    _edges(axes, shades, "x", {variant: [point.flops for point in _of(variant, data.diverged)] for variant in shades})
    for point in data.frontier:
        _plot(axes, [point], **_DOT, color=shades[point.variant], markersize=7.5, zorder=7)
    _plot(axes, data.frontier, color="black", markersize=13, zorder=7, **_RING)
    handles = _legend(shades, bool(data.diverged), bool(above), "frontier: best\nof each budget")
    handles[len(shades)].set_linestyle("-")
    handles[len(shades)].set_linewidth(4)
    other = Line2D([], [], color=GREY, label="other trials", **_DOT, **faint)
    handles.insert(len(shades) + 1, other)
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=10)
    figure.savefig(path)


def _rate_axis(axes: Axes, rates: Sequence[float], most: int) -> None:
    axes.set_xscale("log", base=2)
    low, high = min(rates), max(rates)
    margin = (high / low) ** 0.06 if high > low else 2.0
    axes.set_xlim(low / margin, high * margin)
    places = sorted(set(rates))
    if len(places) > 12:  # not a grid: powers of two
        places = [2.0**k for k in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)] or [low, high]
    ticks = places[:: math.ceil(len(places) / most)]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([number(tick, 3, trim=True) for tick in ticks]))
    axes.xaxis.set_minor_locator(FixedLocator(places))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_valley(axes: Axes, valley: Valley, shades: dict[str, str], high: float) -> None:
    for variant, shade in shades.items():
        points = _of(variant, valley.finished)
        rates = sorted({point.learning_rate for point in points})
        lowest = [min(point.loss for point in points if point.learning_rate == rate) for rate in rates]
        axes.plot(rates, lowest, color=shade, linewidth=1.8, zorder=3)
        inside = [point for point in points if point.loss < high]
        white: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.6}
        _plot(axes, inside, rates=True, **_DOT, color=shade, markersize=6, **white, zorder=4)
    above = [point for point in valley.finished if point.loss >= high]
    _edges(axes, shades, "^", {variant: [p.learning_rate for p in _of(variant, above)] for variant in shades})
    _edges(axes, shades, "x", {variant: [p.learning_rate for p in _of(variant, valley.diverged)] for variant in shades})
    if valley.best is not None:
        _plot(axes, [valley.best], rates=True, **_DOT, color=shades[valley.best.variant], markersize=6, zorder=5)
        _plot(axes, [valley.best], rates=True, color="black", markersize=13, zorder=6, **_RING)


def draw_learning_rate_valley(data: LearningRateValleys, path: str | Path) -> None:
    """Draw held-out loss against learning rate as a PNG: a panel per budget on one loss axis, a line per variant."""
    columns = min(4, max(1, len(data.valleys)))
    rows = max(1, math.ceil(len(data.valleys) / columns))
    figure = new_figure(2.7 * columns + 2.2, 2.9 * rows + 0.9)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    title = f"{data.study}: held-out loss against learning rate".removeprefix(": ")
    figure.suptitle(title, fontsize=12.5, x=0.01, ha="left")
    figure.supxlabel("learning rate (peak of the schedule)", fontsize=11)
    figure.supylabel("held-out loss (nats per image)", fontsize=11)
    finished = [point for valley in data.valleys for point in valley.finished]
    diverged = [point for valley in data.valleys for point in valley.diverged]
    high = math.inf
    if finished:
        best = [point for valley in data.valleys for point in _cell_bests(data.variants, valley.finished)]
        low, high = _loss_limits(finished, best, bool(diverged))
        set_loss_axis(grid[0], low, high)
    if finished or diverged:
        _rate_axis(grid[0], [point.learning_rate for point in (*finished, *diverged)], most=5)
    shades = colours(data.variants)
    for axes, valley in zip(grid, data.valleys, strict=False):
        style_axes(axes)
        axes.tick_params(labelsize=9, labelbottom=True)
        axes.set_title(valley.budget, fontsize=11)
        _draw_valley(axes, valley, shades, high)
    for axes in grid[max(1, len(data.valleys)) :]:
        axes.set_visible(False)
    if not finished:
        _empty(grid[0])
    handles = _legend(shades, bool(diverged), any(point.loss >= high for point in finished), "best of the\nbudget")
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=10)
    figure.savefig(path)
