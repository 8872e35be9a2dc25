"""The law of a set of runs: everything that follows from them, in one object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import numpy as np

from search.law.forms import Forms, LossForecast, Straightness, fit_forms
from search.law.grouping import BudgetRuns, By, Cell, Noise, budgets_of, cells_of, noise_of, told_apart
from search.law.learning_rates import RateOptimum, RateTrend, rate_optimum, rate_trend
from search.law.numbers import Estimate, LawError, Refused
from search.law.optimum import Allocation, IsoCompute, Scatter, closed_form, iso_compute
from search.law.power import Curve, PowerLaw
from search.law.runs import Run, RunTable
from search.law.surface import Surface, fit_surface
from search.law.valley import Tuning, tuned_cells

FEWEST_BOOTSTRAPS: Final = 100
_INTERVALS_KNOWN_WITH: Final = 2


@dataclass(frozen=True, slots=True)
class HeldOutRow:
    """A budget that was left out of the fit: its loss, what was predicted, by how much that is off, as a share of the
    loss (above zero: predicted too high), and whether the loss lies in the interval.
    """

    label: str
    flops: float
    loss: float
    predicted: Estimate
    error: float
    inside: bool


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The largest budgets predicted from the others, smallest first."""

    rows: tuple[HeldOutRow, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Law:
    """What runs say about compute, size, examples and learning rates; each part may be refused with its reason.

    Attributes:
        source: where the runs are from.
        runs, left_out: the runs, and how many more had no loss.
        budgets, grouped: the runs by budget, rising in FLOPs, and how they were told apart.
        cells: a model and so many examples each, at its best learning rate.
        tuning: the cells that the surface and the iso-compute curves compare, and those that they leave out.
        noise: between seeds; None where none is repeated.
        plain, saturating, straightness: loss in compute, and the test between the forms.
        surface, allocation: L(N, D), and the compute-optimal size and examples that follow.
        iso_compute: the same from a parabola for each budget.
        learning_rates, rate_trend: the best learning rate of each cell, and how it moves.
        held_out: the largest budgets, predicted from the others; None where none was to be.
        bootstraps, seed, confidence: how intervals were made; the same again give the same numbers.
    """

    source: str
    runs: tuple[Run, ...]
    left_out: int
    budgets: tuple[BudgetRuns, ...]
    grouped: str
    cells: tuple[Cell, ...]
    tuning: Tuning
    noise: Noise | None
    plain: PowerLaw | Refused
    saturating: PowerLaw | Refused
    straightness: Straightness | Refused
    surface: Surface | Refused
    allocation: Allocation | Refused
    iso_compute: IsoCompute | Refused
    learning_rates: tuple[RateOptimum, ...]
    rate_trend: RateTrend | Refused
    held_out: HeldOut | Refused | None
    bootstraps: int
    seed: int
    confidence: float
    forms: Forms | Refused = field(repr=False)

    @property
    def chosen(self) -> PowerLaw | Refused:
        """The form that the law is told in; forecasts are averaged over forms."""
        return self.forms if isinstance(self.forms, Refused) else self.forms.chosen

    def forecast(self, flops: float) -> LossForecast | Refused:
        """The loss at so many FLOPs, see `search.law.forms.LossForecast`."""
        return self.forms if isinstance(self.forms, Refused) else self.forms.forecast(flops)

    def curve(self, flops: Sequence[float]) -> Curve | Refused:
        """The law along FLOPs as forecasts have it, averaged over forms."""
        return self.forms if isinstance(self.forms, Refused) else self.forms.curve(flops)


def fit_law(
    table: RunTable, *, bootstraps: int = 1000, seed: int = 0, confidence: float = 0.95, leave_out: int = 0
) -> Law:
    """Fit everything that the runs allow.

    Args:
        table: the runs.
        bootstraps: resamples for the intervals.
        seed: of the resamples; the same seed gives the same numbers.
        confidence: of every interval.
        leave_out: how many of the largest budgets to predict from the others, for `Law.held_out`; the rest of the law
            has them all.

    Raises:
        LawError: settings that make no sense.
    """
    if not table.runs:
        raise LawError(f"{table.source}: no finished run; a law needs those of at least three compute budgets")
    if bootstraps < FEWEST_BOOTSTRAPS:
        raise LawError(f"bootstraps: {bootstraps} given; allowed: {FEWEST_BOOTSTRAPS} or more; the default is 1000")
    if not 0.5 <= confidence < 1:
        raise LawError(f"confidence: {confidence:g} given; allowed: from 0.5 to below 1, such as 0.95")
    if leave_out < 0:
        raise LawError(f"leave-out: {leave_out} given; allowed: 0 or more; 1 predicts the largest budget")
    if seed < 0:
        raise LawError(f"seed: {seed} given; allowed: 0 or more")
    budgets, by = budgets_of(table.runs, table.diverged)
    cells = cells_of(budgets, table.diverged)
    tuning = tuned_cells(cells)
    noise = noise_of(cells)
    rngs = [np.random.default_rng((seed, part)) for part in range(6)]
    surface = _told(fit_surface(tuning.cells, noise, bootstraps=bootstraps, confidence=confidence, rng=rngs[1]), tuning)
    plain, saturating, straight, forms = fit_forms(
        budgets, noise, bootstraps=bootstraps, confidence=confidence, rng=rngs[0]
    )
    scatter = _scatter(noise, surface, plain)
    exponent = None if isinstance(plain, Refused) else plain.exponent.value
    iso = _told(
        iso_compute(
            budgets, tuning.cells, exponent, scatter, bootstraps=bootstraps, confidence=confidence, rng=rngs[2]
        ),
        tuning,
    )
    optima = [rate_optimum(cell, scatter, bootstraps=bootstraps, confidence=confidence, rng=rngs[3]) for cell in cells]
    rates = tuple(optimum for optimum in optima if optimum is not None)
    return Law(
        source=table.source,
        runs=table.runs,
        left_out=table.left_out,
        budgets=budgets,
        grouped=told_apart(budgets, by),
        cells=cells,
        tuning=tuning,
        noise=noise,
        plain=plain,
        saturating=saturating,
        straightness=straight,
        surface=surface,
        allocation=surface
        if isinstance(surface, Refused)
        else closed_form(surface, [budget.flops for budget in budgets], confidence),
        iso_compute=iso,
        learning_rates=rates,
        rate_trend=rate_trend(rates, cells, bootstraps=bootstraps, confidence=confidence, rng=rngs[4]),
        held_out=_held_out(budgets, by, table.diverged, leave_out, bootstraps, confidence, rngs[5])
        if leave_out
        else None,
        bootstraps=bootstraps,
        seed=seed,
        confidence=confidence,
        forms=forms,
    )


_Part = TypeVar("_Part")


def _told(found: _Part | Refused, tuning: Tuning) -> _Part | Refused:
    """A part; if it was refused, with what was left out before."""
    return Refused(f"{found.reason}; {tuning.text}") if isinstance(found, Refused) and tuning.left_out else found


def _scatter(noise: Noise | None, surface: Surface | Refused, plain: PowerLaw | Refused) -> Scatter | None:
    """How far single losses are off: by repeated seeds, or else by what the fits leave, which is rather more."""
    if noise is not None and noise.degrees >= _INTERVALS_KNOWN_WITH:
        return Scatter(noise.log_sd, noise.degrees)
    if isinstance(surface, Surface):
        return Scatter(surface.residual_log_sd, len(surface.residuals) - 5)
    if isinstance(plain, PowerLaw) and plain.degrees >= _INTERVALS_KNOWN_WITH:
        return Scatter(plain.residual_log_sd, plain.degrees)
    return None


def _held_out(
    budgets: Sequence[BudgetRuns],
    by: By,
    diverged: Sequence[Run],
    count: int,
    bootstraps: int,
    confidence: float,
    rng: np.random.Generator,
) -> HeldOut | Refused:
    """Predict the `count` largest budgets from the others, of which nothing later is known: their runs are put into
    budgets again, told apart `by` the same, for the bins of a cloud, and what stands for each, depend on all runs.
    """
    place = max(0, len(budgets) - count)
    runs, left = [run for budget in budgets[:place] for run in budget.runs], budgets[place:]
    forms: Forms | Refused = Refused("no budget is left")
    if runs:
        kept, _ = budgets_of(runs, diverged, by=by)
        noise = noise_of(cells_of(kept, diverged))
        *_, forms = fit_forms(kept, noise, bootstraps=bootstraps, confidence=confidence, rng=rng)
    if isinstance(forms, Refused):
        largest = "the largest" if count == 1 else f"the {count} largest"
        return Refused(f"without {largest} of {len(budgets)} budgets: {forms.reason}")
    rows = []
    for budget in left:
        forecast = forms.forecast(budget.flops)
        assert isinstance(forecast, LossForecast), "it is larger than those that are left"
        predicted = forecast.loss
        rows.append(
            HeldOutRow(
                budget.label,
                budget.flops,
                budget.loss,
                predicted,
                predicted.value / budget.loss - 1,
                predicted.low <= budget.loss <= predicted.high,
            )
        )
    return HeldOut(tuple(rows))
