"""The law that forecasts are made with: averaged over every floor that the loss may have, and over its deviation.

A handful of budgets cannot show whether the loss falls along a straight line or bends towards a floor, and a forecast
depends on it. So none of the forms is picked: for each share f of the loss (at the budgets' middle) that no compute
takes away, the law

    ln L = a + ln(f + (1 - f) exp(-s d / (1 - f))),    d = ln C - its mean

is fitted, s being its slope in the middle, and every f counts by how likely it makes the losses (Bayesian model
averaging: Hoeting et al. 1999). Nor can so few points tell their own deviation: with three budgets, Student's interval
is twelve deviations wide, and residuals may come out tiny by chance. The deviation's prior is in parts, too: each says
what share it is of what the loss falls from one budget to the next, about a seventh most likely, as in studies like the
paper's, with two degrees of freedom (scaled inverse chi-square; Gelman et al., Bayesian Data Analysis, section 2.6).
Every part counts by how likely it makes the residuals, so that three budgets hardly move it and six speak for
themselves. Where repeated seeds tell the noise of a run, no deviation is below it.

Intervals of 95 %, measured one budget beyond the largest on made-up laws, straight and with a floor, 400 of each: where
budgets scatter by a tenth of what the loss falls they hold 97 to 100 % from four budgets, 96 to 99 % from six or more;
by three tenths, 88 to 95 % from four, 91 to 95 % from six or more; by a fiftieth, 100 % from four, which is 20 to 28
deviations either way and cautious, 92 to 98 % from six (five to eight deviations) or more (from twelve, three). Where
budgets scatter by six tenths or more, beyond what the prior expects, intervals are too narrow: 75 to 84 % from three
budgets, 81 to 91 % from four to six (150 of each).
Of the last budgets of 480 simulated studies like the paper's, three to five budgets before them, they hold 98 %.

The best of a budget's runs is a little better than its expected loss, for chance chose it, too. That is so in every
budget alike: the law is one of best runs of searches, and forecasts are of such.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from search.law.grouping import Noise
from search.law.numbers import FloatArray, drawn_sd

if TYPE_CHECKING:
    from search.law.power import Points

STRAIGHT: Final = 0.2
"""Prior weight of no floor at all; the rest is spread evenly over floors up to `HIGHEST`."""
HIGHEST: Final = 0.95
_FLOORS: Final = 76
SHARES: Final = {0.01: 0.05, 0.02: 0.05, 0.04: 0.05, 0.08: 0.05, 0.15: 0.6, 0.4: 0.2}
"""The deviation's prior: shares of what the loss (ln L) falls from budget to budget, and how likely each is."""
DEGREES: Final = 2
"""Degrees of freedom of each."""
_SLOPES, _ZOOMS, _ZOOMED = 64, 6, 9
_LARGEST: Final = 500.0  # of exponents


@dataclass(frozen=True, slots=True, eq=False)
class Averaged:
    """Laws for every floor, how likely each is, and draws from them all.

    Attributes:
        reference: mean of ln FLOPs.
        floors: f, shape (F,).
        weights: how likely each is; they add up to one.
        levels, slopes: a and s of each, shape (F,).
        draws: (f, a, s, deviation), shape (B, 4).
    """

    reference: float
    floors: FloatArray
    weights: FloatArray
    levels: FloatArray
    slopes: FloatArray
    draws: FloatArray

    def loss(self, flops: float) -> float:
        """The geometric mean of the laws."""
        distance = np.array([math.log(flops) - self.reference])
        return math.exp(float(self.weights @ _model(self.floors, self.levels, self.slopes, distance)[:, 0]))

    def loss_draws(self, flops: FloatArray) -> FloatArray:
        """Losses at FLOPs (k,), shape (B, k)."""
        logs = _model(self.draws[:, 0], self.draws[:, 1], self.draws[:, 2], np.log(flops) - self.reference)
        found: FloatArray = np.exp(np.clip(logs, -_LARGEST, _LARGEST))
        return found

    def deviation_draws(self) -> FloatArray:
        """How far a budget's best run is off the law, one for each of `loss_draws`."""
        found: FloatArray = self.draws[:, 3]
        return found


def average(
    points: Points, weights: FloatArray, noise: Noise | None, *, bootstraps: int, rng: np.random.Generator
) -> Averaged:
    """Fit the laws to at least three points; `weights` are Huber's, (n,)."""
    reference = float(np.log(points.flops).mean())
    distance, target = np.log(points.flops) - reference, np.log(points.loss)
    slope = _straight(distance, target, weights)
    floors, prior = np.zeros(1), np.ones(1)
    if slope > 0:  # a loss that rises has no floor to fall to
        floors = np.concatenate([[0.0], (np.arange(_FLOORS) + 0.5) / _FLOORS * HIGHEST])
        prior = np.concatenate([[STRAIGHT], np.full(_FLOORS, (1 - STRAIGHT) / _FLOORS)])
    slopes = _slopes(floors, slope, distance, target, weights)
    levels, squares = _level(floors, slopes[:, None], distance, target, weights)
    levels, squares = levels[:, 0], squares[:, 0]
    information = _information(floors, slopes, distance, weights)
    step = abs(slope) * float(np.ptp(distance)) / (len(target) - 1)
    known = DEGREES * np.square(np.array(list(SHARES)) * step) + 1e-24  # (S,)
    degrees = len(target) - 2 + DEGREES
    total = squares[:, None] + known
    likely = (np.log(prior) - 0.5 * np.log(np.linalg.det(information)))[:, None] - degrees / 2 * np.log(total)
    likely += np.log(list(SHARES.values())) + DEGREES / 2 * np.log(known)
    posterior = np.exp(likely - likely.max())
    posterior /= posterior.sum()
    places = np.searchsorted(np.cumsum(posterior), (np.arange(bootstraps) + 0.5) / bootstraps)
    places = np.minimum(places, posterior.size - 1)
    chosen = places // len(known)
    deviations = np.sqrt(total.ravel()[places] / degrees) * drawn_sd(rng, 1.0, degrees, bootstraps, largest=math.inf)
    deviations = np.minimum(deviations, 2.0)
    if noise is not None:
        least = math.sqrt(float(np.mean(1 / points.seeds)))
        deviations = np.maximum(deviations, least * drawn_sd(rng, noise.log_sd, noise.degrees, bootstraps))
    spread = np.linalg.cholesky(np.linalg.inv(information))[chosen]
    off = deviations[:, None] * (spread @ rng.standard_normal((bootstraps, 2, 1)))[..., 0]
    drawn = slopes[chosen] + off[:, 1]
    drawn = np.where(chosen > 0, np.maximum(drawn, 0.0), drawn)
    draws = np.column_stack([floors[chosen], levels[chosen] + off[:, 0], drawn, deviations])
    return Averaged(reference, floors, posterior.sum(axis=1), levels, slopes, draws)


def _model(floors: FloatArray, levels: FloatArray, slopes: FloatArray, distance: FloatArray) -> FloatArray:
    """ln L, shape (laws, points)."""
    fall = np.clip(-np.multiply.outer(slopes / (1 - floors), distance), -_LARGEST, _LARGEST)
    found: FloatArray = levels[:, None] + np.logaddexp(
        np.log(floors + 1e-300)[:, None], np.log1p(-floors)[:, None] + fall
    )
    return found


def _straight(distance: FloatArray, target: FloatArray, weights: FloatArray) -> float:
    centred = distance - weights @ distance / weights.sum()
    return -float((weights * centred) @ target / ((weights * centred) @ centred))


def _level(
    floors: FloatArray, slopes: FloatArray, distance: FloatArray, target: FloatArray, weights: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """The best levels for slopes (F, S), and the weighted sums of squares that are left, both (F, S)."""
    shape = slopes.shape
    model = _model(np.repeat(floors, shape[1]), np.zeros(slopes.size), slopes.ravel(), distance)
    off = target - model
    levels = off @ weights / weights.sum()
    squares = np.square(off - levels[:, None]) @ weights
    return levels.reshape(shape), squares.reshape(shape)


def _slopes(
    floors: FloatArray, slope: float, distance: FloatArray, target: FloatArray, weights: FloatArray
) -> FloatArray:
    """The best slope for each floor: by a search, for steep laws with a high floor are far from linear."""
    if slope <= 0:
        return np.full(len(floors), slope)
    tried = np.tile(slope * np.geomspace(0.01, 4.0, _SLOPES), (len(floors), 1))
    rows = np.arange(len(floors))
    for _ in range(_ZOOMS):
        best = _level(floors, tried, distance, target, weights)[1].argmin(axis=1)
        last = tried.shape[1] - 1
        ends = tried[rows, np.maximum(best - 1, 0)], tried[rows, np.minimum(best + 1, last)]
        tried = np.linspace(*ends, _ZOOMED, axis=1)
    found: FloatArray = tried[rows, _level(floors, tried, distance, target, weights)[1].argmin(axis=1)]
    found[0] = slope
    return found


def _information(floors: FloatArray, slopes: FloatArray, distance: FloatArray, weights: FloatArray) -> FloatArray:
    """X^T W X of (level, slope) at each law, shape (F, 2, 2)."""
    log_power = np.clip(-np.multiply.outer(slopes / (1 - floors), distance), -_LARGEST, _LARGEST)
    share = np.exp(log_power - _model(floors, np.zeros(len(floors)), slopes, distance))
    by_slope = -distance * share
    ones = np.ones_like(by_slope)
    design = np.stack([ones, by_slope], axis=1)  # (F, 2, n)
    found: FloatArray = (design * weights) @ design.transpose(0, 2, 1)
    found[:, 1, 1] *= 1 + 1e-9
    found[:, 1, 1] += 1e-12
    return found
