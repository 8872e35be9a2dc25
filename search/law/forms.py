"""Plain or saturating: a test of whether the straight line is enough; and forecasts, which need not pick one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import stats

from search.law.averaged import Averaged, average
from search.law.grouping import BudgetRuns, Noise
from search.law.numbers import Estimate, FloatArray, Refused, estimate
from search.law.power import (
    Curve,
    Form,
    Points,
    PowerLaw,
    curve_of,
    fit_plain,
    fit_saturating,
    solve_plain,
    solve_saturating,
)

BUDGETS_NEEDED: Final = {"plain": 3, "saturating": 4}
RANGE_NEEDED: Final = {"plain": 4.0, "saturating": 8.0}
"""Largest over smallest FLOPs: over less, a slope is mostly noise; over a little more, a bend is."""
SIGNIFICANT: Final = 0.05
_WHOLE_STEPS: Final = 0.95  # budgets miss their label by a part of a step
_BELOW: Final = 0.1  # of the smallest budget: under it, losses come near that of a guess, which no power law knows
_ROUNDING: Final = 1e-9  # of ln L


@dataclass(frozen=True, slots=True)
class Straightness:
    """Whether the straight line of log loss in log compute is enough.

    Attributes:
        p_value: how often points around a straight line look as bent as these, or more.
        statistic: F: by how much the floor E lowers the sum of squared residuals, over what is left for each degree.
        chosen: the form that the law is told in: saturating where the p-value is below 5 %.
        text: the same in a sentence.
    """

    p_value: float
    statistic: float
    chosen: Form
    text: str


@dataclass(frozen=True, slots=True)
class LossForecast:
    """The loss that the law gives for a budget, averaged over forms: see `search.law.averaged`.

    Attributes:
        flops: the budget.
        loss: of the best run of a search like those that the law is from; the interval is that of this one run.
        law: the interval of the law alone.
        beyond: the budget over the largest that the law is from (below one: within).
        note: what is to be said of a budget so far away; "" of one that is near.
    """

    flops: float
    loss: Estimate
    law: Estimate
    beyond: float
    note: str = ""


def fit_forms(
    budgets: Sequence[BudgetRuns], noise: Noise | None, *, bootstraps: int, confidence: float, rng: np.random.Generator
) -> tuple[PowerLaw | Refused, PowerLaw | Refused, Straightness | Refused, Forms | Refused]:
    """Both forms on the best run of each budget, the test between them, and what forecasts are made with."""
    points = Points(
        np.array([budget.flops for budget in budgets]),
        np.array([budget.loss for budget in budgets]),
        np.array([float(budget.seeds) for budget in budgets]),
    )
    if (why := _why_not("plain", points)) is not None:
        return why, why, why, why
    plain = fit_plain(points, noise, bootstraps=bootstraps, confidence=confidence, rng=rng)
    saturating: PowerLaw | Refused
    straight: Straightness | Refused
    if (why := _why_not("saturating", points)) is not None:
        saturating = straight = why
    else:
        saturating = fit_saturating(points, noise, bootstraps=bootstraps, confidence=confidence, rng=rng)
        straight = straightness(points, saturating, bootstraps, rng)
    weights = np.asarray(plain.weights if isinstance(saturating, Refused) else saturating.weights)
    averaged = average(points, weights, noise, bootstraps=bootstraps, rng=rng)
    bent = isinstance(straight, Straightness) and straight.chosen == "saturating" and isinstance(saturating, PowerLaw)
    chosen = saturating if bent and isinstance(saturating, PowerLaw) else plain
    return (
        plain,
        saturating,
        straight,
        Forms(chosen, averaged, float(points.flops.min()), float(points.flops.max()), confidence),
    )


def _why_not(form: Form, points: Points) -> Refused | None:
    count, name = len(points.flops), "a power law" if form == "plain" else "a law with a floor"
    if count < BUDGETS_NEEDED[form]:
        had = "1 budget" if count == 1 else f"{count} budgets"
        return Refused(f"{had} given; {name} needs at least {BUDGETS_NEEDED[form]}; search more budgets")
    span = float(points.flops.max() / points.flops.min())
    if span < RANGE_NEEDED[form] * _WHOLE_STEPS:
        return Refused(
            f"the budgets span a factor of {span:.3g} in FLOPs; {name} needs at least {RANGE_NEEDED[form]:g}; "
            "search a smaller or a larger budget"
        )
    if float(np.ptp(points.loss)) == 0:
        return Refused("every budget has the same loss; there is no law to fit")
    return None


def straightness(points: Points, saturating: PowerLaw, bootstraps: int, rng: np.random.Generator) -> Straightness:
    """The likelihood-ratio test of the straight line against the law with a floor, by parametric bootstrap.

    E = 0 lies on the edge of what E may be, so the ratio does not follow its usual distribution; points drawn around
    the straight line tell which it follows.
    """
    distance, target = np.log(points.flops / points.reference), np.log(points.loss)
    weights, degrees = np.asarray(saturating.weights), len(target) - 3
    line, cost_line = solve_plain(distance, target[None], weights)
    _, cost = solve_saturating(distance, target[None], weights)
    statistic = _ratio(cost_line, cost, degrees)[0]
    deviation = math.sqrt(float(cost_line[0]) / (degrees + 1))
    drawn = np.log(line[0, 1]) - line[0, 2] * distance
    drawn = drawn + deviation * rng.standard_normal((bootstraps, len(target))) / np.sqrt(weights)
    straight = _ratio(solve_plain(distance, drawn, weights)[1], solve_saturating(distance, drawn, weights)[1], degrees)
    p_value = (1 + int((straight >= statistic).sum())) / (1 + bootstraps)
    chosen: Form = "saturating" if p_value < SIGNIFICANT else "plain"
    text = (
        f"a straight line is not enough (p = {p_value:.2g}): the loss bends towards a floor"
        if chosen == "saturating"
        else f"nothing speaks against a straight line (p = {p_value:.2g})"
    )
    return Straightness(p_value, float(statistic), chosen, text)


def _ratio(line: FloatArray, bent: FloatArray, degrees: int) -> FloatArray:
    """F, where residuals below `_ROUNDING` are none: points that lie on a line exactly speak for no bend."""
    found: FloatArray = (line - bent) / np.maximum(bent / degrees, _ROUNDING**2)
    return found


@dataclass(frozen=True, slots=True)
class Forms:
    """The form that the law is told in, and the average over all of them that forecasts are made with."""

    chosen: PowerLaw
    averaged: Averaged
    smallest_flops: float
    largest_flops: float
    confidence: float

    def forecast(self, flops: float) -> LossForecast | Refused:
        """The loss at a budget, see `LossForecast`; refused far below the smallest one."""
        if flops < _BELOW * self.smallest_flops:
            return Refused(
                f"{flops:.3g} FLOPs are less than a tenth of the smallest budget, {self.smallest_flops:.3g}; a power "
                "law says nothing there"
            )
        draws, deviations = self.averaged.loss_draws(np.array([flops])), self.averaged.deviation_draws()
        run = np.log(draws[:, 0]) + deviations * _normal(len(draws))
        value = self.averaged.loss(flops)
        return LossForecast(
            flops,
            estimate(value, np.exp(run), self.confidence),
            estimate(value, draws[:, 0], self.confidence),
            flops / self.largest_flops,
            self._far(flops),
        )

    def _far(self, flops: float) -> str:
        reach, beyond = self.largest_flops / self.smallest_flops, flops / self.largest_flops
        if beyond <= reach:
            return ""
        return (
            f"the budgets reach over a factor of {reach:.3g} in FLOPs, and this one lies {beyond:.3g} times further: "
            "the interval holds only if the law goes on as it is"
        )

    def curve(self, flops: Sequence[float]) -> Curve:
        """The law along FLOPs, value and intervals as `forecast` has them."""
        grid = np.asarray(flops, dtype=np.float64)
        values = [self.averaged.loss(each) for each in grid.tolist()]
        return curve_of(grid, values, self.averaged.loss_draws(grid), self.averaged.deviation_draws(), self.confidence)


def _normal(count: int) -> FloatArray:
    """Normal deviates that go with no order of draws: the same each time, so that a forecast is a function."""
    return stats.norm.ppf((np.random.default_rng(count).permutation(count) + 0.5) / count)  # type: ignore[no-any-return]
