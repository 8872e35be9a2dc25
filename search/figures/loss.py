"""Held-out loss against compute, with the law through the best of each budget (figure 2 of arXiv 2310.16764)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from search.figures.marks import (
    COMPUTE,
    DOT,
    HOLLOW,
    LOSS,
    RING,
    Target,
    at_top,
    edge_handles,
    handle,
    legend_below,
    loss_limits,
    new_axes,
    plot,
    say_empty,
    set_compute_axis,
    titled_figure,
    untuned_handle,
    variant_handles,
)
from search.figures.trials import (
    Point,
    cell_bests,
    diverged,
    finished,
    of_seeds,
    of_variant,
    percent_of,
    ranked,
    study_name,
    untuned_cells,
    variants_of,
)
from search.foretold import counted_only, unfinished_budgets
from search.formats import number, scientific
from search.law import Curve, Law, LossForecast, Refused
from search.plotting import GREY, colours, set_loss_axis
from search.results import ordered_budgets
from search.state import StudyState

_STEPS: Final = 60  # of the law's line
_LAW: Final = "#2b3340"
_FAINT: Final[dict[str, Any]] = {"alpha": 0.4, "markersize": 5.5, "markeredgewidth": 0}


@dataclass(frozen=True, slots=True)
class LossVsCompute:
    """Every finished trial, the `best` of each cell, the `frontier` (best of each budget), and the diverged trials.

    Budgets that are still being `searched` are in neither the cells nor the frontier, for their bests may change (but
    for the first before any is closed). All
    are in order of compute; `variants` are in order of depth. `untuned` are the bests of cells whose learning rate
    the law calls not tuned; `best` those of the others. `law` is the line that forecasts lie on, averaged over floors,
    with its intervals, up to the last of the `forecasts`; None where the law has not been fitted or the data cannot
    say. It is from budgets of up to `law_flops`. `confidence` is that of the intervals.
    """

    study: str
    variants: tuple[str, ...]
    finished: tuple[Point, ...]
    best: tuple[Point, ...]
    frontier: tuple[Point, ...]
    diverged: tuple[Point, ...]
    untuned: tuple[Point, ...] = ()
    law: Curve | None = None
    forecasts: tuple[LossForecast, ...] = ()
    law_flops: float = math.nan
    confidence: float = math.nan
    searched: tuple[str, ...] = ()


def loss_vs_compute_data(state: StudyState, law: Law | None = None, forecasts: Sequence[float] = ()) -> LossVsCompute:
    """Held-out loss against training FLOPs: every finished trial, the best of each cell, the best of each budget, and
    with a `law` its line, its interval, and what it forecasts for budgets of so many FLOPs.
    """
    variants, budgets = variants_of(state), ordered_budgets(state)
    counted = ordered_budgets(counted_only(state))
    points_of = [ranked(budget) for budget in counted]
    frontier = tuple(points[0] for points in points_of if points)
    line, ahead = _law_line(law, frontier, forecasts) if law is not None and frontier else (None, ())
    left_out = untuned_cells(law)
    bests = [
        (point, (budget.label, point.variant) in left_out)
        for budget, points in zip(counted, points_of, strict=True)
        for point in cell_bests(variants, points)
    ]
    return LossVsCompute(
        study=study_name(state),
        variants=variants,
        finished=tuple(point for budget in budgets for point in finished(budget)),
        best=tuple(point for point, untuned in bests if not untuned),
        frontier=frontier,
        diverged=tuple(point for budget in budgets for point in diverged(budget)),
        untuned=tuple(point for point, untuned in bests if untuned),
        law=line,
        forecasts=ahead,
        law_flops=math.nan if law is None or not law.budgets else law.budgets[-1].flops,
        confidence=math.nan if law is None else law.confidence,
        searched=unfinished_budgets(state),
    )


def _law_line(
    law: Law, frontier: Sequence[Point], forecasts: Sequence[float]
) -> tuple[Curve | None, tuple[LossForecast, ...]]:
    low, high = frontier[0].flops, max([frontier[-1].flops, *forecasts])
    curve = law.curve([low * (high / low) ** (step / _STEPS) for step in range(_STEPS + 1)])
    if isinstance(curve, Refused):
        return None, ()
    ahead = [law.forecast(flops) for flops in forecasts]
    return curve, tuple(forecast for forecast in ahead if not isinstance(forecast, Refused))


def read_loss_vs_compute(data: LossVsCompute) -> str:
    """The figure in one sentence, and another where a budget is not finished."""
    if not data.searched:
        return _read(data)
    return f"{_read(data)} {', '.join(data.searched)} {'is' if len(data.searched) == 1 else 'are'} not finished."


def _read(data: LossVsCompute) -> str:
    if not data.frontier:
        return "No trial has finished yet."
    first, last = data.frontier[0], data.frontier[-1]
    if len(data.frontier) == 1:
        return (
            f"One budget so far: its best held-out loss is {number(first.loss)}{of_seeds(first.seeds)}, "
            f"reached by {first.variant}."
        )
    times = number(last.flops / first.flops, 2, trim=True)
    change = (
        f"With {times} times the compute ({scientific(first.flops)} to {scientific(last.flops)} FLOPs) the best "
        f"held-out loss goes from {number(first.loss)} ({first.variant}{of_seeds(first.seeds)}) to "
        f"{number(last.loss)} ({last.variant}{of_seeds(last.seeds)})"
    )
    if not data.forecasts:
        return change + "."
    ahead = data.forecasts[-1]
    return (
        f"{change}; at {scientific(ahead.flops)} FLOPs the law expects {number(ahead.loss.value)} "
        f"({number(ahead.loss.low)} to {number(ahead.loss.high)})."
    )


def _core_hours_axis(axes: Axes, frontier: Sequence[Point]) -> None:
    metered = [point for point in frontier if math.isfinite(point.core_hours)]
    if not metered:
        return
    shown = metered[:: math.ceil(len(metered) / 5)]
    top = axes.secondary_xaxis("top")
    top.set_xlabel("core-hours of the best trial", color=GREY, fontsize=10.5, labelpad=6)
    top.xaxis.set_major_locator(FixedLocator([point.flops for point in shown]))
    top.xaxis.set_major_formatter(FixedFormatter([number(point.core_hours, 2) for point in shown]))
    top.xaxis.set_minor_locator(NullLocator())
    top.tick_params(colors=GREY, labelsize=9.5, length=3)
    top.spines["top"].set_visible(False)


def _draw_law(axes: Axes, data: LossVsCompute) -> None:
    """The law as a line, dashed where it forecasts, in the band that holds the best trial of a budget."""
    law = data.law
    if law is None:
        plot(axes, data.frontier, color="black", linewidth=4.5, solid_capstyle="round", zorder=3)
        return
    known = [index for index, flops in enumerate(law.flops) if flops <= data.law_flops * 1.001]
    ahead = range(known[-1], len(law.flops))
    axes.fill_between(law.flops, law.run_low, law.run_high, color=_LAW, alpha=0.13, linewidth=0, zorder=1)
    axes.plot([law.flops[k] for k in known], [law.loss[k] for k in known], color=_LAW, linewidth=3, zorder=3)
    dashes: dict[str, Any] = {"color": _LAW, "linewidth": 2.4, "linestyle": (0, (3, 1.6)), "zorder": 3}
    axes.plot([law.flops[k] for k in ahead], [law.loss[k] for k in ahead], **dashes)
    for forecast in data.forecasts:
        loss = forecast.loss
        axes.plot([forecast.flops] * 2, [loss.low, loss.high], color=_LAW, linewidth=1.8, zorder=5)
        axes.plot([forecast.flops], [loss.value], "D", color="white", markeredgecolor=_LAW, markersize=8,
                  markeredgewidth=2, zorder=6)  # fmt: skip


def draw_loss_vs_compute(data: LossVsCompute, target: Target) -> None:
    """Draw held-out loss against compute as a PNG: a line per variant, the best of each budget ringed, and the law."""
    figure = titled_figure(data.study, "held-out loss against compute", 5.5)
    axes = new_axes(figure, COMPUTE, LOSS)
    if not data.finished:
        say_empty(axes)
        figure.savefig(target)
        return
    low, high = loss_limits(data.finished, data.best or data.untuned, bool(data.diverged))
    if data.law is not None:  # the forecast lies below what was seen
        low = min(low, max(0.9 * min(data.law.run_low), 0.3 * min(data.law.loss)))
    set_loss_axis(axes, low, high)
    compute = [point.flops for point in (*data.finished, *data.diverged)]
    compute += [forecast.flops for forecast in data.forecasts]
    budgets = [point.flops for point in data.frontier] + [f.flops for f in data.forecasts]
    set_compute_axis(axes, min(compute), max(compute), budgets)
    _core_hours_axis(axes, data.frontier)
    _draw_law(axes, data)
    shades = colours(data.variants)
    for variant, shade in shades.items():
        inside = [point for point in of_variant(variant, data.finished) if point.loss < high]
        plot(axes, inside, **DOT, color=shade, **_FAINT, zorder=2.5)
        best = of_variant(variant, data.best)
        plot(axes, best, color=shade, linewidth=1.8, zorder=4)
        plot(axes, best, **DOT, color=shade, markersize=7.5, markeredgecolor="white", markeredgewidth=0.8, zorder=6)
        untuned = [point for point in of_variant(variant, data.untuned) if point.loss < high]
        plot(axes, untuned, color=shade, zorder=5.5, **HOLLOW)
    above = [point for point in data.finished if point.loss >= high]
    at_top(axes, shades, "^", {variant: [point.flops for point in of_variant(variant, above)] for variant in shades})
    lost = {variant: [point.flops for point in of_variant(variant, data.diverged)] for variant in shades}
    at_top(axes, shades, "x", lost)
    for point in data.frontier:
        if point in data.untuned:
            continue
        plot(axes, [point], **DOT, color=shades[point.variant], markersize=7.5, zorder=7)
    plot(axes, data.frontier, color="black", markersize=13, zorder=7, **RING)
    handles = [*variant_handles(shades), handle("best of a budget", "black", markersize=12, **RING)]
    handles.append(handle("other trials", GREY, **DOT, **_FAINT))
    shown: list[Any] = [*handles, *edge_handles(bool(data.diverged), bool(above))]
    if data.untuned:
        shown.append(untuned_handle())
    if data.law is not None:
        shown.append(handle("law, mean over floors", _LAW, linewidth=3))
        shown.append(Patch(color=_LAW, alpha=0.13, label=f"{percent_of(data.confidence)} of best trials", linewidth=0))
    if data.forecasts:
        look: dict[str, Any] = {"marker": "D", "markersize": 7, "markerfacecolor": "white", "markeredgewidth": 2}
        shown.append(handle("forecast", _LAW, linewidth=2, linestyle=(0, (3, 1.6)), **look))
    legend_below(figure, shown)
    figure.savefig(target)
