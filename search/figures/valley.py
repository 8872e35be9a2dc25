"""The learning-rate valley of each budget: held-out loss against learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from search.figures.marks import (
    DOT,
    LOSS,
    RATE,
    RING,
    Target,
    at_top,
    edge_handles,
    handle,
    legend_below,
    loss_limits,
    plot,
    say_empty,
    set_rate_axis,
    titled_figure,
    variant_handles,
)
from search.figures.trials import (
    Point,
    all_diverged,
    cell_bests,
    diverged,
    finished,
    of_seeds,
    of_variant,
    ranked,
    study_name,
    variants_of,
)
from search.foretold import so_far, unfinished_budgets
from search.formats import number
from search.plotting import GREY, colours, set_loss_axis, style_axes
from search.results import ordered_budgets
from search.state import StudyState


@dataclass(frozen=True, slots=True)
class Valley:
    """One budget's trials, in order of learning rate, and its points (seeds averaged), the best first."""

    budget: str
    finished: tuple[Point, ...]
    diverged: tuple[Point, ...]
    points: tuple[Point, ...]

    @property
    def best(self) -> Point | None:
        """The best point, None if nothing finished."""
        return self.points[0] if self.points else None


@dataclass(frozen=True, slots=True)
class LearningRateValleys:
    """A `Valley` for each budget, the smallest first; `variants` are in order of depth. `lost` says that every trial
    diverged, "" where that is not so; `searched` are the budgets whose bests may still change.
    """

    study: str
    variants: tuple[str, ...]
    valleys: tuple[Valley, ...]
    lost: str = ""
    searched: tuple[str, ...] = ()


def learning_rate_valley_data(state: StudyState) -> LearningRateValleys:
    """Held-out loss against learning rate, budget by budget (those with trials)."""
    opened = [budget for budget in ordered_budgets(state) if budget.trials]
    valleys = (Valley(b.label, finished(b), diverged(b), ranked(b)) for b in opened)
    lost, searched = all_diverged(state), unfinished_budgets(state)
    return LearningRateValleys(study_name(state), variants_of(state), tuple(valleys), lost, searched)


def read_learning_rate_valley(data: LearningRateValleys) -> str:
    """The figure in one sentence."""
    counted = [valley for valley in data.valleys if valley.budget not in data.searched] or data.valleys[:1]
    bests = [(valley.budget, valley.best) for valley in counted if valley.best is not None]
    if not bests:
        return data.lost or "No trial has finished yet, so no learning rate is known to be better than another."
    (small, first), (large, last) = bests[0], bests[-1]
    rate = number(last.learning_rate, trim=True)
    if len(bests) == 1:
        small = so_far(small, data.searched)
        return f"At {small} the best trial is {first.variant} with learning rate {rate}{of_seeds(last.seeds)}."
    before = number(first.learning_rate, trim=True)
    moved = f"stays at {rate}" if before == rate else f"goes from {before} to {rate}"
    return f"From {small} to {large} the learning rate of the best trial {moved}."


def _draw_valley(axes: Axes, valley: Valley, shades: dict[str, str], high: float) -> None:
    for variant, shade in shades.items():
        points = of_variant(variant, valley.finished)
        means = sorted(of_variant(variant, valley.points), key=lambda point: point.learning_rate)
        plot(axes, means, rates=True, color=shade, linewidth=1.8, zorder=3)
        inside = [point for point in points if point.loss < high]
        white: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.6}
        plot(axes, inside, rates=True, **DOT, color=shade, markersize=6, **white, zorder=4)
    above = [point for point in valley.finished if point.loss >= high]
    at_top(axes, shades, "^", {variant: [p.learning_rate for p in of_variant(variant, above)] for variant in shades})
    places = {variant: [p.learning_rate for p in of_variant(variant, valley.diverged)] for variant in shades}
    at_top(axes, shades, "x", places)
    if valley.best is not None:
        plot(axes, [valley.best], rates=True, **DOT, color=shades[valley.best.variant], markersize=6, zorder=5)
        plot(axes, [valley.best], rates=True, color="black", markersize=13, zorder=6, **RING)


def draw_learning_rate_valley(data: LearningRateValleys, target: Target) -> None:
    """Draw held-out loss against learning rate as a PNG: a panel per budget on one loss axis, a line per variant."""
    columns = min(2 if len(data.valleys) <= 6 else 3, max(1, len(data.valleys)))
    rows = max(1, math.ceil(len(data.valleys) / columns))
    figure = titled_figure(data.study, "loss against learning rate", (2.3 if rows > 1 else 3.2) * rows + 1.5)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    figure.supylabel(LOSS, fontsize=11.5)
    ended = [point for valley in data.valleys for point in valley.finished]
    lost = [point for valley in data.valleys for point in valley.diverged]
    high = math.inf
    if ended:
        best = [point for valley in data.valleys for point in cell_bests(data.variants, valley.points)]
        low, high = loss_limits(ended, best, bool(lost))
        set_loss_axis(grid[0], low, high)
    if ended or lost:
        set_rate_axis(grid[0], [point.learning_rate for point in (*ended, *lost)], most=5 if columns < 3 else 3)
    shades = colours(data.variants)
    for axes, valley in zip(grid, data.valleys, strict=False):
        style_axes(axes)
        axes.tick_params(labelbottom=True)
        axes.set_title(so_far(valley.budget, data.searched), fontsize=11)
        _draw_valley(axes, valley, shades, high)
        if not valley.finished:
            axes.text(0.5, 0.5, "no finished trial yet", transform=axes.transAxes, ha="center", va="center",
                      color=GREY, fontsize=11)  # fmt: skip
    shown = max(1, len(data.valleys))
    for axes in grid[shown:]:
        axes.set_visible(False)
    for axes in grid[max(0, shown - columns) : shown]:  # the lowest of each column
        axes.set_xlabel(RATE if columns == 1 else "learning rate", fontsize=11.5)
    if not data.valleys:
        style_axes(grid[0])
        say_empty(grid[0])
    elif not ended:
        grid[0].set_yticks([])  # there is no loss to read
    handles = variant_handles(shades)
    handles.append(handle("best of the budget", "black", markersize=12, **RING))
    legend_below(figure, [*handles, *edge_handles(bool(lost), any(point.loss >= high for point in ended))])
    figure.savefig(target)
