"""Iso-compute curves: held-out loss against the size of the model, a curve per budget, its minimum marked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

from matplotlib.axes import Axes

from search.figures.marks import (
    DOT,
    HOLLOW,
    LOSS,
    Target,
    handle,
    legend_below,
    new_axes,
    say_empty,
    set_log_ticks,
    titled_figure,
    untuned_handle,
)
from search.figures.trials import (
    Point,
    between,
    cell_bests,
    percent_of,
    ranked,
    size,
    study_name,
    untuned_cells,
    variants_of,
)
from search.foretold import counted_only, so_far, unfinished_budgets
from search.formats import scientific
from search.law import Estimate, IsoCurve, Law, Refused
from search.plotting import budget_colours, log_ticks, set_loss_axis
from search.results import ordered_budgets
from search.state import StudyState

_STEPS: Final = 40  # of a parabola


@dataclass(frozen=True, slots=True)
class Minimum:
    """The size that makes most of a budget, by the parabola through its curve, and the loss there."""

    parameters: Estimate
    loss: float


@dataclass(frozen=True, slots=True)
class Curve:
    """One budget: the best trial of each variant by parameters; the parabola and its minimum, where there is one.

    `untuned` are those variants' bests whose learning rate the law calls not tuned; `best` has the others.
    """

    budget: str
    flops: float
    best: tuple[Point, ...]
    untuned: tuple[Point, ...]
    parabola: tuple[tuple[float, float], ...]
    minimum: Minimum | None


@dataclass(frozen=True, slots=True)
class IsoComputeCurves:
    """A `Curve` for each budget that counts (see `search.foretold.counted_only`), the smallest first.

    `refusal` says why no minimum is known; a budget that is still being `searched` is there before any is closed.
    """

    study: str
    curves: tuple[Curve, ...]
    refusal: str
    confidence: float
    searched: tuple[str, ...] = ()


def iso_compute_data(state: StudyState, law: Law | None) -> IsoComputeCurves:
    """Held-out loss against parameters, budget by budget, with the parabolas of the law; None: nothing has finished."""
    found = Refused("no trial has finished") if law is None else law.iso_compute
    fitted = {} if isinstance(found, Refused) else {curve.budget: curve for curve in found.curves}
    variants, left_out, curves, refusals = variants_of(state), untuned_cells(law), [], []
    for budget in ordered_budgets(counted_only(state)):
        points = sorted(cell_bests(variants, ranked(budget)), key=lambda point: point.parameters)
        if not points:
            continue
        untuned = [point for point in points if (budget.label, point.variant) in left_out]
        best = [point for point in points if point not in untuned]
        fit = fitted.get(budget.label)
        lowest = None if fit is None else fit.minimum
        if isinstance(lowest, Refused):
            refusals.append(lowest.reason)
        minimum = None if lowest is None or isinstance(lowest, Refused) else Minimum(lowest.parameters, lowest.loss)
        parabola = () if fit is None or minimum is None else _parabola(fit, best, minimum)
        curves.append(Curve(budget.label, budget.flops, tuple(best), tuple(untuned), parabola, minimum))
    reason = found.reason if isinstance(found, Refused) else next(iter(refusals), "")
    confidence = math.nan if law is None else law.confidence
    return IsoComputeCurves(study_name(state), tuple(curves), reason, confidence, unfinished_budgets(state))


def _parabola(curve: IsoCurve, best: list[Point], minimum: Minimum) -> tuple[tuple[float, float], ...]:
    """(parameters, loss) along the curve, from the smallest model tried to the largest, or to the minimum beyond."""
    sizes = [*(point.parameters for point in best), minimum.parameters.value]
    low, high = min(sizes), max(sizes)
    places = [low * (high / low) ** (step / _STEPS) for step in range(_STEPS + 1)]
    losses = [curve.loss(place) for place in places]
    return tuple((place, loss) for place, loss in zip(places, losses, strict=True) if loss is not None)


def read_iso_compute(data: IsoComputeCurves) -> str:
    """The figure in one sentence."""
    if not data.curves:
        return "No trial has finished yet."
    if data.curves[-1].budget in data.searched:
        return f"{data.curves[-1].budget} is not finished, so which size is best cannot be judged yet."
    known = [(curve, curve.minimum) for curve in data.curves if curve.minimum is not None]
    if known:
        parts = [
            f"{size(minimum.parameters.value)} parameters at {scientific(curve.flops)} FLOPs "
            f"({between(minimum.parameters.low, minimum.parameters.high, size)})"
            for curve, minimum in ([known[0], known[-1]] if len(known) > 1 else known)
        ]
        return f"By the parabolas the best size is {', and '.join(parts)}."
    untuned = any(curve.untuned for curve in data.curves)
    judged = [curve for curve in data.curves if len(curve.best) > 1 or (curve.best and not curve.untuned)]
    if not judged:
        return (
            "Which size is best cannot be judged: at no budget are the learning rates of two sizes tuned, and those of "
            "the others were not tuned enough to compare."
        )
    bests = [min(curve.best, key=lambda point: (point.unsound, point.loss)) for curve in judged]
    smallest = all(best.parameters == _smallest(curve) for best, curve in zip(bests, judged, strict=True))
    leading = sorted({best.variant for best in bests})
    if smallest and len(leading) == 1 and any(len(curve.best) > 1 for curve in judged):
        count = sum(len(curve.best) > 1 for curve in judged)
        where = f"each of the {count} budgets where two sizes or more are tuned" if untuned else "every budget"
        where = "the one budget where two sizes are tuned" if untuned and count == 1 else where
        larger = " Some larger models were not tuned enough to judge; they are left out." if untuned else ""
        return (
            f"{leading[0]}, the smallest model tried, leads at {where}: the best "
            f"size may lie below it, so its minimum is not bracketed.{larger}"
        )
    leads = ", ".join(f"{best.variant} at {curve.budget}" for best, curve in zip(bests, judged, strict=True))
    among = "tuned sizes" if untuned else "sizes tried"
    return f"Best of the {among}: {leads}." + (f" No minimum is marked: {data.refusal}." if data.refusal else "")


def _smallest(curve: Curve) -> int:
    return min(point.parameters for point in (*curve.best, *curve.untuned))


def draw_iso_compute(data: IsoComputeCurves, target: Target) -> None:
    """Draw held-out loss against parameters as a PNG: a curve per budget, the minimum of each with its interval."""
    figure = titled_figure(data.study, "loss by model size, per budget", 5.0)
    axes = new_axes(figure, "parameters", LOSS)
    if not data.curves:
        say_empty(axes)
        figure.savefig(target)
        return
    points = [point for curve in data.curves for point in (*curve.best, *curve.untuned)]
    losses = [point.loss for point in points] + [loss for curve in data.curves for _, loss in curve.parabola]
    margin = max((max(losses) / min(losses)) ** 0.08, 1.01)
    set_loss_axis(axes, min(losses) / margin, max(losses) * margin)
    _set_size_axis(axes, data)
    shades = budget_colours(len(data.curves))
    for curve, shade in zip(data.curves, shades, strict=True):
        _draw_curve(axes, curve, shade)
    minima = [(curve.minimum.parameters.value, curve.minimum.loss) for curve in data.curves if curve.minimum]
    if len(minima) > 1:
        axes.plot(*zip(*minima, strict=True), color="black", linewidth=1.4, linestyle=(0, (2, 2)), zorder=5)
    labels = [so_far(curve.budget, data.searched) for curve in data.curves]
    handles = [handle(label, shade, marker="o", linewidth=2) for label, shade in zip(labels, shades, strict=True)]
    if minima:
        look: dict[str, Any] = {"marker": "D", "markerfacecolor": "white", "markeredgewidth": 2, "markersize": 8}
        handles.append(handle(f"minimum, {percent_of(data.confidence)}", "black", linewidth=2, **look))
    if any(curve.untuned for curve in data.curves):
        handles.append(untuned_handle())
    legend_below(figure, handles)
    figure.savefig(target)


def _draw_curve(axes: Axes, curve: Curve, shade: str) -> None:
    hollow = [point.parameters for point in curve.untuned], [point.loss for point in curve.untuned]
    axes.plot(*hollow, color=shade, zorder=3.5, **HOLLOW)
    xs, ys = [point.parameters for point in curve.best], [point.loss for point in curve.best]
    axes.plot(xs, ys, **DOT, color=shade, markersize=7, markeredgecolor="white", markeredgewidth=0.8, zorder=4)
    if curve.minimum is None:
        axes.plot(xs, ys, color=shade, linewidth=1.4, alpha=0.7, zorder=3)
        return
    axes.plot(*zip(*curve.parabola, strict=True), color=shade, linewidth=2, zorder=3)
    at, low, high = curve.minimum.parameters.value, curve.minimum.parameters.low, curve.minimum.parameters.high
    low, high = max(low, 0.1 * at), min(high, 10 * at)  # an end that says nothing lies beyond the axis
    axes.plot([low, high], [curve.minimum.loss] * 2, color=shade, linewidth=2, alpha=0.6, zorder=5)
    axes.plot([at], [curve.minimum.loss], "D", color="white", markeredgecolor=shade, markersize=8, markeredgewidth=2,
              zorder=6)  # fmt: skip


def _set_size_axis(axes: Axes, data: IsoComputeCurves) -> None:
    """Parameters on a logarithmic axis below; above it the variants that have them, where names do not touch."""
    named = {point.parameters: point.variant for curve in data.curves for point in (*curve.best, *curve.untuned)}
    tried = [*named, *(curve.minimum.parameters.value for curve in data.curves if curve.minimum)]
    low, high = min(tried), max(tried)
    margin = (high / low) ** 0.09 if high > low * 1.01 else 2.0
    low, high = low / margin, high * margin
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    set_log_ticks(axes, log_ticks(low, high, 3), size)
    last = -math.inf
    for parameters, variant in sorted(named.items()):
        place = math.log(parameters / low) / math.log(high / low)
        if place - last > 0.07:
            axes.text(place, 1.01, variant, transform=axes.transAxes, ha="center", va="bottom", fontsize=10.5)
            last = place
