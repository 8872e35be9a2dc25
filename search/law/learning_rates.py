"""The best learning rate of each cell, between the rates of the grid, and how it moves with size and epochs.

Near its lowest place the loss is a parabola in the log of the learning rate: the one through the best rate and its
neighbours gives the optimum between them. Arxiv 2310.16764 (section 2) finds that the optimum falls slowly as models
and epoch budgets grow; the trend here is lr* = r (size / size_0)^-b (duration / duration_0)^-c.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from search.law.grouping import Cell
from search.law.line import Line, fit_line
from search.law.numbers import Estimate, FloatArray, Refused, drawn_sd, estimate
from search.law.optimum import Scatter
from search.law.valley import Duration, Size, Valley, fit_valley

_VARIES: Final = 1.5
_HIGHEST: Final = 0.5  # ln of loss over the cell's best, beyond which a run nearly diverged and bends no parabola


@dataclass(frozen=True, slots=True)
class RateOptimum:
    """The best learning rate of a cell.

    Attributes:
        budget, variant, flops, parameters, examples, epochs: the cell.
        tried: (learning rate, loss) rising in the rate; seeds averaged.
        best: the rate of the lowest loss.
        optimum: between the rates; None where the best is at an edge of those tried.
        bound: at an edge, whether the optimum lies "at most" or "at least" there; else empty.
    """

    budget: str
    variant: str | None
    flops: float
    parameters: float | None
    examples: float | None
    epochs: float | None
    tried: tuple[tuple[float, float], ...]
    best: float
    optimum: Estimate | None
    bound: Literal["", "at most", "at least", "unknown"]


@dataclass(frozen=True, slots=True, eq=False)
class RateTrend:
    """lr* = at_reference (size / reference_size)^-size_exponent (duration / reference_duration)^-duration_exponent.

    An exponent is None where its quantity does not vary among the cells, and `size` or `duration` with it. `cells` is
    how many cells the trend is from. `residual_log_sd` is of the best rates around it; NaN where the
    trend is that of the valley of all cells.
    """

    size: Size | None
    size_exponent: Estimate | None
    duration: Duration | None
    duration_exponent: Estimate | None
    at_reference: Estimate
    reference_size: float
    reference_duration: float
    cells: int
    residual_log_sd: float
    line: Line = field(repr=False)
    confidence: float = field(repr=False)

    def at(self, size: float, duration: float) -> Estimate:
        """The trend for a size (FLOPs per example, or parameters) and a duration (epochs, or examples)."""
        values = [math.log(value) for name, value in ((self.size, size), (self.duration, duration)) if name is not None]
        return self.line.exp_at(np.array(values), self.confidence)


def rate_optimum(
    cell: Cell, scatter: Scatter | None, *, bootstraps: int, confidence: float, rng: np.random.Generator
) -> RateOptimum | None:
    """The best learning rate of a cell; None where its runs have none.

    The interval is that of the parabola through losses that are jittered by `scatter`; without it, the neighbouring
    rates.
    """
    tried = sorted(
        (float(setting.run.learning_rate), setting.loss, setting.seeds)
        for setting in cell.tried
        if setting.run.learning_rate is not None
    )
    if not tried:
        return None
    rates, losses = np.log([rate for rate, _, _ in tried]), np.log([loss for _, loss, _ in tried])
    lowest = int(np.argmin(losses))
    bound: Literal["", "at most", "at least", "unknown"] = ""
    optimum = None
    if len(tried) < 2:
        bound = "unknown"
    elif lowest == 0:
        bound = "at most"
    elif lowest == len(tried) - 1:
        bound = "at least"
    else:
        value = float(np.exp(_vertices(rates, losses[None])[0]))
        if scatter is None:
            optimum = Estimate(value, tried[lowest - 1][0], tried[lowest + 1][0])
        else:
            deviations = drawn_sd(rng, scatter.log_sd, scatter.degrees, bootstraps)[:, None]
            jitter = rng.standard_normal((bootstraps, len(tried))) / np.sqrt([seeds for _, _, seeds in tried])
            optimum = estimate(value, np.exp(_vertices(rates, losses + deviations * jitter)), confidence)
    return RateOptimum(
        cell.budget, cell.variant, cell.flops, cell.parameters, cell.examples, cell.epochs,
        tuple((rate, loss) for rate, loss, _ in tried), tried[lowest][0], optimum, bound,
    )  # fmt: skip


def _vertices(rates: FloatArray, losses: FloatArray) -> FloatArray:
    """Where parabolas through the lowest of `losses` (B, n) and its neighbours are lowest, in ln of the rate (B,); at
    an edge the edge.
    """
    rows, count = np.arange(len(losses)), len(rates)
    lowest = losses.argmin(axis=1)
    inner = np.clip(lowest, 1, count - 2)
    middle = losses[rows, inner]
    left = np.minimum(losses[rows, inner - 1] - middle, _HIGHEST)
    right = np.minimum(losses[rows, inner + 1] - middle, _HIGHEST)
    below, above = rates[inner] - rates[inner - 1], rates[inner + 1] - rates[inner]
    bend = left * above + right * below
    shift = (left * above**2 - right * below**2) / np.where(bend > 0, 2 * bend, 1.0)
    found: FloatArray = rates[inner] + np.where(bend > 0, np.clip(shift, -below, above), 0.0)
    return np.where(lowest == inner, found, rates[lowest])


def rate_trend(
    optima: Sequence[RateOptimum],
    cells: Sequence[Cell] = (),
    *,
    bootstraps: int,
    confidence: float,
    rng: np.random.Generator,
) -> RateTrend | Refused:
    """The trend of the best learning rates: of cells that have one between two others; where these are not most of the
    cells, by the valley of all of them (`search.law.valley`).
    """
    inside = [(each, each.optimum) for each in optima if each.optimum is not None]
    if not optima:
        return Refused("the runs have no learning rates")
    if len(inside) <= len(optima) / 2 and (valley := fit_valley(cells, bootstraps, rng)) is not None:
        return _of_valley(valley, confidence)
    if len(inside) < 3:
        return Refused(
            f"{len(inside)} of {len(optima)} cells have their best learning rate between two others; the trend needs "
            "at least 3; widen the grid, or try more rates in each cell"
        )
    size = _first_known(
        [
            ("flops_per_example", [each.flops / each.examples if each.examples else None for each, _ in inside]),
            ("parameters", [each.parameters for each, _ in inside]),
        ]
    )
    duration = _first_known(
        [("epochs", [each.epochs for each, _ in inside]), ("examples", [each.examples for each, _ in inside])]
    )
    columns = [values for known in (size, duration) if known for values in [known[1]]]
    line = fit_line(
        np.log(np.array(columns)).T if columns else np.empty((len(inside), 0)),
        np.log([optimum.value for _, optimum in inside]),
        bootstraps=bootstraps,
        rng=rng,
    )
    if isinstance(line, Refused):
        return line
    references = np.exp(line.centre)
    return RateTrend(
        size=size[0] if size else None,  # type: ignore[arg-type]
        size_exponent=line.slope(0, confidence, sign=-1) if size else None,
        duration=duration[0] if duration else None,  # type: ignore[arg-type]
        duration_exponent=line.slope(len(columns) - 1, confidence, sign=-1) if duration else None,
        at_reference=line.exp_at(line.centre, confidence),
        reference_size=float(references[0]) if size else math.nan,
        reference_duration=float(references[-1]) if duration else math.nan,
        cells=len(inside),
        residual_log_sd=line.deviation,
        line=line,
        confidence=confidence,
    )


def _of_valley(valley: Valley, confidence: float) -> RateTrend:
    line = valley.line
    references = np.exp(line.centre)
    return RateTrend(
        size=valley.size,
        size_exponent=line.slope(0, confidence, sign=-1) if valley.size else None,
        duration=valley.duration,
        duration_exponent=line.slope(len(references) - 1, confidence, sign=-1) if valley.duration else None,
        at_reference=line.exp_at(line.centre, confidence),
        reference_size=float(references[0]) if valley.size else math.nan,
        reference_duration=float(references[-1]) if valley.duration else math.nan,
        cells=valley.cells,
        residual_log_sd=math.nan,
        line=line,
        confidence=confidence,
    )


def _first_known(named: Sequence[tuple[str, Sequence[float | None]]]) -> tuple[str, list[float]] | None:
    """The first quantity that every cell has and that varies among them."""
    for name, values in named:
        known = [value for value in values if value is not None]
        if len(known) == len(values) and max(known) >= _VARIES * min(known):
            return name, known
    return None
