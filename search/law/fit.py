"""The law of a set of runs: everything that follows from them, in one object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from search.law.forms import Forms, LossForecast, Straightness, fit_forms
from search.law.grouping import BudgetRuns, Cell, Noise, budgets_of, cells_of, noise_of
from search.law.learning_rates import RateOptimum, RateTrend, rate_optimum, rate_trend
from search.law.numbers import Estimate, LawError, Refused
from search.law.optimum import Allocation, IsoCompute, Scatter, closed_form, iso_compute
from search.law.power import Curve, PowerLaw
from search.law.runs import Run, RunTable
from search.law.surface import Surface, fit_surface

FEWEST_BOOTSTRAPS: Final = 100
_INTERVALS_KNOWN_WITH: Final = 2
_ONLY_THE_FIT: Final = 2  # resamples of what no interval is told of


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
    form: str

    @property
    def worst_error(self) -> float:
        """The largest error, without its sign."""
        return max(abs(row.error) for row in self.rows)


@dataclass(frozen=True, slots=True, eq=False)
class Law:
    """What runs say about compute, size, examples and learning rates; each part may be refused with its reason.

    Attributes:
        source: where the runs are from.
        runs, left_out: the runs, and how many more had no loss.
        budgets, grouped: the runs by budget, rising in FLOPs, and how they were told apart.
        cells: a model and so many examples each, at its best learning rate.
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
        """The form of the law that values are of."""
        return self.forms if isinstance(self.forms, Refused) else self.forms.chosen

    def forecast(self, flops: float) -> LossForecast | Refused:
        """The loss at so many FLOPs, see `search.law.forms.LossForecast`."""
        return self.forms if isinstance(self.forms, Refused) else self.forms.forecast(flops)

    def curve(self, flops: Sequence[float]) -> Curve | Refused:
        """The chosen form along FLOPs, with intervals that own up to not knowing the form."""
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
    budgets, grouped = budgets_of(table.runs)
    cells = cells_of(budgets)
    noise = noise_of(cells)
    rngs = [np.random.default_rng((seed, part)) for part in range(6)]
    surface = fit_surface(cells, noise, bootstraps=bootstraps, confidence=confidence, rng=rngs[1])
    of_trials = _noise_of_trials(noise, surface)
    plain, saturating, straight = fit_forms(
        budgets, of_trials, bootstraps=bootstraps, confidence=confidence, rng=rngs[0]
    )
    scatter = _scatter(noise, surface, plain)
    exponent = None if isinstance(plain, Refused) else plain.exponent.value
    iso = iso_compute(budgets, cells, exponent, scatter, bootstraps=bootstraps, confidence=confidence, rng=rngs[2])
    optima = [rate_optimum(cell, scatter, bootstraps=bootstraps, confidence=confidence, rng=rngs[3]) for cell in cells]
    rates = tuple(optimum for optimum in optima if optimum is not None)
    return Law(
        source=table.source,
        runs=table.runs,
        left_out=table.left_out,
        budgets=budgets,
        grouped=grouped,
        cells=cells,
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
        rate_trend=rate_trend(rates, bootstraps=bootstraps, confidence=confidence, rng=rngs[4]),
        held_out=_held_out(budgets, leave_out, bootstraps, confidence, rngs[5]) if leave_out else None,
        bootstraps=bootstraps,
        seed=seed,
        confidence=confidence,
        forms=_forms(plain, saturating, straight, budgets, confidence),
    )


def _forms(
    plain: PowerLaw | Refused,
    saturating: PowerLaw | Refused,
    straight: Straightness | Refused,
    budgets: Sequence[BudgetRuns],
    confidence: float,
) -> Forms | Refused:
    if isinstance(plain, Refused):
        return plain
    return Forms(
        plain,
        None if isinstance(saturating, Refused) else saturating,
        None if isinstance(straight, Refused) else straight,
        max(budget.flops for budget in budgets),
        confidence,
    )


def _noise_of_trials(noise: Noise | None, surface: Surface | Refused) -> Noise | None:
    """How noisy single losses are: by repeated seeds, or else by what L(N, D) leaves of all cells. Of a handful of
    budgets, the residuals of the power law alone may come out tiny by chance, and its intervals with them.
    """
    if noise is None and isinstance(surface, Surface) and (degrees := len(surface.residuals) - 5) > 1:
        return Noise(surface.residual_log_sd, degrees)
    return noise


def _scatter(noise: Noise | None, surface: Surface | Refused, plain: PowerLaw | Refused) -> Scatter | None:
    """How far single losses are off: by repeated seeds, or else by what the fits leave, which is rather more."""
    if noise is not None and noise.degrees >= _INTERVALS_KNOWN_WITH:
        return Scatter(noise.log_sd, noise.degrees, "repeated seeds")
    if isinstance(surface, Surface):
        return Scatter(surface.residual_log_sd, len(surface.residuals) - 5, "what L(N, D) leaves")
    if isinstance(plain, PowerLaw) and plain.degrees >= _INTERVALS_KNOWN_WITH:
        return Scatter(plain.residual_log_sd, plain.degrees, "what the power law leaves")
    return None


def _held_out(
    budgets: Sequence[BudgetRuns], count: int, bootstraps: int, confidence: float, rng: np.random.Generator
) -> HeldOut | Refused:
    """Predict the `count` largest budgets from the others, of which nothing later is known."""
    kept, left = budgets[: max(0, len(budgets) - count)], budgets[max(0, len(budgets) - count) :]
    cells = cells_of(kept)
    noise = noise_of(cells)
    surface = fit_surface(cells, noise, bootstraps=_ONLY_THE_FIT, confidence=confidence, rng=rng)
    noise = _noise_of_trials(noise, surface)
    fitted = fit_forms(kept, noise, bootstraps=bootstraps, confidence=confidence, rng=rng)
    forms = _forms(*fitted, kept, confidence) if kept else Refused("no budget is left")
    if isinstance(forms, Refused):
        return Refused(f"without the {count} largest of {len(budgets)} budgets: {forms.reason}")
    rows = []
    for budget in left:
        predicted = forms.forecast(budget.flops).loss
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
    return HeldOut(tuple(rows), forms.chosen.form)
