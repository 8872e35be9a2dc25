"""What the law does not explain: how far the losses lie from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from search.figures.marks import (
    COMPUTE,
    DOT,
    Target,
    handle,
    legend_below,
    say_empty,
    set_compute_axis,
    titled_figure,
    variant_handles,
)
from search.figures.trials import study_name, variants_of
from search.formats import number
from search.law import Law, Refused
from search.plotting import GREY, colours, style_axes
from search.state import StudyState


@dataclass(frozen=True, slots=True)
class Residual:
    """How far a loss lies above (+) or below (-) a fit, in percent of the fit."""

    variant: str
    flops: float
    percent: float


@dataclass(frozen=True, slots=True)
class LawResiduals:
    """Of the law of the best loss of each budget (`frontier`), and of the law of size and examples (`cells`).

    `spread` and `cells_spread` are the residual standard deviations of ln L in percent, as the law tells them, NaN
    where there is no fit; `refusal` and `cells_refusal` say why then.
    """

    study: str
    variants: tuple[str, ...]
    form: str
    frontier: tuple[Residual, ...]
    spread: float
    refusal: str
    cells: tuple[Residual, ...]
    cells_spread: float
    cells_refusal: str


def _percent(log_ratio: float) -> float:
    return 100 * math.expm1(log_ratio)


def law_residuals_data(state: StudyState, law: Law | None) -> LawResiduals:
    """The residuals of the chosen law of loss in compute, and of L(N, D) on every cell.

    `law` is None where nothing has finished, so that there is none.
    """
    none = Refused("no trial has finished")
    chosen, surface = (none, none) if law is None else (law.chosen, law.surface)
    frontier: tuple[Residual, ...] = ()
    cells: tuple[Residual, ...] = ()
    if not isinstance(chosen, Refused):
        pairs = zip(law.budgets if law is not None else (), chosen.residuals, strict=True)
        frontier = tuple(Residual(budget.best.variant or "", budget.flops, _percent(off)) for budget, off in pairs)
    if not isinstance(surface, Refused):
        both = zip(surface.cells, surface.residuals, strict=True)
        cells = tuple(Residual(cell.variant or "", cell.flops, _percent(off)) for cell, off in both)
    return LawResiduals(
        study=study_name(state),
        variants=variants_of(state),
        form="" if isinstance(chosen, Refused) else chosen.form,
        frontier=frontier,
        spread=math.nan if isinstance(chosen, Refused) else 100 * chosen.residual_log_sd,
        refusal=chosen.reason if isinstance(chosen, Refused) else "",
        cells=cells,
        cells_spread=math.nan if isinstance(surface, Refused) else 100 * surface.residual_log_sd,
        cells_refusal=surface.reason if isinstance(surface, Refused) else "",
    )


def read_law_residuals(data: LawResiduals) -> str:
    """The figure in one sentence."""
    if not data.frontier and not data.cells:
        return f"There is no law to compare with: {data.refusal}"
    parts = []
    if data.frontier:
        worst = max(data.frontier, key=lambda one: abs(one.percent))
        parts.append(
            f"the best losses of the {len(data.frontier)} budgets lie within {number(abs(worst.percent), 2)} % of the "
            "law"
        )
    if data.cells:
        inside = sum(abs(one.percent) <= data.cells_spread for one in data.cells)
        parts.append(
            f"{inside} of the {len(data.cells)} cells compared lie within {number(data.cells_spread, 2)} % (one "
            "standard deviation) of the law of size and examples"
        )
    text = "; ".join(parts)
    return text[0].upper() + text[1:] + "."


def draw_law_residuals(data: LawResiduals, target: Target) -> None:
    """Draw the residuals as a PNG: of the best of each budget above, of the cells below, against compute."""
    figure = titled_figure(data.study, "what the law leaves over", 6.0)
    above, below = figure.subplots(2, 1, sharex=True)
    figure.supylabel("loss above or below the law (%)", fontsize=11.5)
    below.set_xlabel(COMPUTE, fontsize=11.5)
    form = f" ({data.form})" if data.form else ""
    compared = f", the {len(data.cells)} cells compared" if data.cells else ""
    panels = (
        (above, f"law of compute{form}, best of each budget", data.frontier, data.spread, data.refusal),
        (below, f"law of size and examples{compared}", data.cells, data.cells_spread, data.cells_refusal),
    )
    shades = colours(data.variants)
    compute = [one.flops for one in (*data.frontier, *data.cells)]
    for axes, title, residuals, spread, refusal in panels:
        style_axes(axes)
        axes.set_title(title, fontsize=11.5, loc="left")
        if residuals:
            _draw(axes, residuals, spread, shades)
        else:
            say_empty(axes, refusal or "no fit")
    if compute:
        set_compute_axis(below, min(compute), max(compute), sorted({one.flops for one in data.frontier}))
    _explain(figure, data, shades)
    figure.savefig(target)


def _explain(figure: Figure, data: LawResiduals, shades: Mapping[str, str]) -> None:
    """The legend, of what is drawn."""
    drawn = {one.variant for one in (*data.frontier, *data.cells)}
    if not drawn:
        return
    handles = variant_handles({variant: shade for variant, shade in shades.items() if variant in drawn}, linestyle="")
    across = min(4, len(handles))  # variants in a row, and a column of its own for the wide label
    rows = [handles[start : start + across] for start in range(0, len(handles), across)]
    blank = handle(" ", "none", linestyle="")
    padded = [row + [blank] * (across - len(row)) for row in rows]
    ends = [blank] * (len(rows) - 1) + [handle("one standard deviation", GREY, linewidth=8, alpha=0.25)]
    ordered = [each for row, end in zip(padded, ends, strict=True) for each in (*row, end)]
    legend_below(figure, ordered, columns=across + 1)


def _draw(axes: Axes, residuals: Sequence[Residual], spread: float, shades: dict[str, str]) -> None:
    axes.axhline(0, color="black", linewidth=1.2, zorder=2)
    if math.isfinite(spread):
        axes.axhspan(-spread, spread, color=GREY, alpha=0.16, linewidth=0, zorder=1)
    most = max([abs(one.percent) for one in residuals] + ([spread] if math.isfinite(spread) else []))
    axes.set_ylim(-1.2 * most or -1, 1.2 * most or 1)
    for variant, shade in shades.items():
        xs = [one.flops for one in residuals if one.variant == variant]
        ys = [one.percent for one in residuals if one.variant == variant]
        axes.vlines(xs, 0, ys, color=shade, linewidth=1.4, zorder=3)
        axes.plot(xs, ys, **DOT, color=shade, markersize=7, markeredgecolor="white", markeredgewidth=0.8, zorder=4)
