"""Plain or saturating: a test of whether the straight line is enough, and forecasts that own up to not knowing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import stats

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
_ROUNDING: Final = 1e-9  # of ln L


@dataclass(frozen=True, slots=True)
class Straightness:
    """Whether the straight line of log loss in log compute is enough.

    Attributes:
        p_value: how often points around a straight line look as bent as these, or more.
        statistic: F: by how much the floor E lowers the sum of squared residuals, over what is left for each degree.
        chosen: the form that is used for values: saturating where the p-value is below 5 %.
        saturating_weight: the saturating form's share in forecast intervals.
        text: the same in a sentence.
    """

    p_value: float
    statistic: float
    chosen: Form
    saturating_weight: float
    text: str


@dataclass(frozen=True, slots=True)
class LossForecast:
    """The loss that the law gives for a budget.

    Attributes:
        flops: the budget.
        loss: of the best run of a search like those that the law is from; the interval is that of this one run.
        law: the interval of the law alone.
        form: the form that the value is of.
        beyond: the budget over the largest that the law is from (below one: within).
    """

    flops: float
    loss: Estimate
    law: Estimate
    form: Form
    beyond: float


def fit_forms(
    budgets: Sequence[BudgetRuns], noise: Noise | None, *, bootstraps: int, confidence: float, rng: np.random.Generator
) -> tuple[PowerLaw | Refused, PowerLaw | Refused, Straightness | Refused]:
    """Both forms on the best run of each budget, and the test between them."""
    points = Points(
        np.array([budget.flops for budget in budgets]),
        np.array([budget.loss for budget in budgets]),
        np.array([float(budget.seeds) for budget in budgets]),
    )
    if (why := _why_not("plain", points)) is not None:
        return why, why, why
    plain = fit_plain(points, noise, bootstraps=bootstraps, confidence=confidence, rng=rng)
    if (why := _why_not("saturating", points)) is not None:
        return plain, why, why
    saturating = fit_saturating(points, noise, bootstraps=bootstraps, confidence=confidence, rng=rng)
    return plain, saturating, straightness(points, saturating, bootstraps, rng)


def _why_not(form: Form, points: Points) -> Refused | None:
    count, name = len(points.flops), "a power law" if form == "plain" else "a law with a floor"
    if count < BUDGETS_NEEDED[form]:
        had = "1 budget" if count == 1 else f"{count} budgets"
        return Refused(f"{had} given; {name} needs at least {BUDGETS_NEEDED[form]}; search more budgets")
    span = float(points.flops.max() / points.flops.min())
    if span < RANGE_NEEDED[form] * (1 - 1e-6):
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
    the straight line tell which it follows. The saturating form's share in forecasts comes from the p-value by the
    bound of Sellke, Bayarri & Berger (2001) on the evidence against the line, -e p ln p, with even odds before.
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
    odds_of_line = -math.e * p_value * math.log(p_value) if p_value < 1 / math.e else 1.0
    text = (
        f"a straight line is not enough (p = {p_value:.2g}): the loss bends towards a floor"
        if chosen == "saturating"
        else f"nothing speaks against a straight line (p = {p_value:.2g})"
    )
    return Straightness(p_value, float(statistic), chosen, 1 / (1 + odds_of_line), text)


def _ratio(line: FloatArray, bent: FloatArray, degrees: int) -> FloatArray:
    """F, where residuals below `_ROUNDING` are none: points that lie on a line exactly speak for no bend."""
    found: FloatArray = (line - bent) / np.maximum(bent / degrees, _ROUNDING**2)
    return found


@dataclass(frozen=True, slots=True)
class Forms:
    """Both forms of the law together, as forecasts see them."""

    plain: PowerLaw
    saturating: PowerLaw | None
    straightness: Straightness | None
    largest_flops: float
    confidence: float

    @property
    def chosen(self) -> PowerLaw:
        """The form that values are of."""
        if self.saturating is not None and self.straightness is not None and self.straightness.chosen == "saturating":
            return self.saturating
        return self.plain

    def forecast(self, flops: float) -> LossForecast:
        """The loss at a budget, see `LossForecast`.

        The interval is averaged over both forms, for a test with few budgets cannot exclude a floor: that of the plain
        law alone would miss the loss far beyond the budgets wherever there is one. With three budgets only the plain
        law can be fitted, and its interval takes the straight line for granted.
        """
        draws, deviations = self._draws(np.array([flops]))
        run = np.log(draws[:, 0]) + deviations * _normal(len(draws))
        value = self.chosen.loss(flops)
        return LossForecast(
            flops,
            estimate(value, np.exp(run), self.confidence),
            estimate(value, draws[:, 0], self.confidence),
            self.chosen.form,
            flops / self.largest_flops,
        )

    def curve(self, flops: Sequence[float]) -> Curve:
        """The chosen form along FLOPs, with intervals as `forecast` has them."""
        grid = np.asarray(flops, dtype=np.float64)
        draws, deviations = self._draws(grid)
        return curve_of(grid, [self.chosen.loss(each) for each in grid], draws, deviations, self.confidence)

    def _draws(self, flops: FloatArray) -> tuple[FloatArray, FloatArray]:
        if self.saturating is None or self.straightness is None:
            return self.plain.loss_draws(flops), self.plain.deviation_draws()
        total = len(self.plain.draws)
        bent = round(total * self.straightness.saturating_weight)
        parts = [(self.saturating, bent), (self.plain, total - bent)]
        return (
            np.concatenate([law.loss_draws(flops, count) for law, count in parts if count]),
            np.concatenate([law.deviation_draws(count) for law, count in parts if count]),
        )


def _normal(count: int) -> FloatArray:
    """Normal deviates that go with no order of draws: the same each time, so that a forecast is a function."""
    return stats.norm.ppf((np.random.default_rng(count).permutation(count) + 0.5) / count)  # type: ignore[no-any-return]
