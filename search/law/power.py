"""Loss as a power of compute: plain, L = A C^-alpha, and with a floor, L = E + A C^-alpha.

Residuals are those of ln L, with Huber's weights. Compute is centred at its geometric mean, so that the coefficients
hardly depend on each other; A at one FLOP, far outside of any data, is derived from that.

Intervals. A study has few budgets, often four to six, and the bootstrap over so few points covers far less than it
says. So the bootstrap here is parametric: each resample draws how noisy the points are (see `numbers.drawn_sd`), then
points around the fit, and fits them again. For the plain law this gives Student's intervals, but for Huber's weights:
of 95 % they hold 93 to 94 % from four to six budgets. For the law with a floor they hold 94 to 97 %, but where there is
none 90 to 92 % for the exponent: E, which is never below zero, errs to one side. Drawing runs anew within a budget
would be wrong, too: the best of a resample is never better than the best there is (Bickel & Freedman 1981). Where the
noise of single trials is known, by repeated seeds or by all trials together, no resample has less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from scipy import stats

from search.law.grouping import Noise
from search.law.least_squares import minimise, nonnegative, robust_weights
from search.law.numbers import Estimate, FloatArray, IntArray, drawn_sd, estimate, quantiles

Form = Literal["plain", "saturating"]
_LARGEST: Final = 150.0  # of logarithms, so that no square overflows
STEEPEST: Final = 3.0
"""No exponent of compute is sought beyond this: loss that falls faster than C^-3 is no scaling law."""
_EXPONENTS: Final = 32


@dataclass(frozen=True, slots=True)
class Curve:
    """A law along FLOPs, each a tuple of the same length.

    `low`, `high` are the interval of the law itself; `run_low`, `run_high` that of the best run of a new budget.
    """

    flops: tuple[float, ...]
    loss: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    run_low: tuple[float, ...]
    run_high: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Points:
    """What a power law is fitted to: FLOPs (n,), losses (n,), and of how many seeds each loss is the mean (n,)."""

    flops: FloatArray
    loss: FloatArray
    seeds: FloatArray

    @property
    def reference(self) -> float:
        """The geometric mean of the FLOPs."""
        return float(np.exp(np.mean(np.log(self.flops))))


@dataclass(frozen=True, slots=True, eq=False)
class PowerLaw:
    """A fitted law, L = E + A C^-alpha.

    Attributes:
        form: "plain" (E is zero) or "saturating".
        exponent: alpha.
        coefficient: A, the loss above E at one FLOP.
        reference_flops: the geometric mean of the budgets.
        at_reference: the loss above E there.
        irreducible: E; None for the plain law.
        residual_log_sd: standard deviation of ln L around the fit.
        degrees: how many degrees of freedom that is known with.
        residuals: ln L minus the fit, one for each budget.
        weights: Huber's, one for each budget; below one where a budget lies far off the others.
        draws: resampled (E, A at the reference, alpha, residual deviation), shape (B, 4).
    """

    form: Form
    exponent: Estimate
    coefficient: Estimate
    reference_flops: float
    at_reference: Estimate
    irreducible: Estimate | None
    residual_log_sd: float
    degrees: int
    residuals: tuple[float, ...]
    weights: tuple[float, ...]
    draws: FloatArray = field(repr=False)

    def loss(self, flops: float) -> float:
        """The fitted loss (nats) at so many FLOPs."""
        floor = self.irreducible.value if self.irreducible else 0.0
        return float(floor + self.at_reference.value * (flops / self.reference_flops) ** -self.exponent.value)

    def loss_draws(self, flops: FloatArray, count: int | None = None) -> FloatArray:
        """The resampled losses at FLOPs (k,): shape (`count` or all, k), an even choice of the resamples."""
        draws = self._chosen(count)
        distance = np.log(flops / self.reference_flops)
        found: FloatArray = draws[:, :1] + draws[:, 1:2] * np.exp(-draws[:, 2:3] * distance)
        return found

    def deviation_draws(self, count: int | None = None) -> FloatArray:
        """The resampled residual deviations that go with `loss_draws`."""
        found: FloatArray = self._chosen(count)[:, 3]
        return found

    def curve(self, flops: Sequence[float], confidence: float) -> Curve:
        """This law alone along FLOPs, with its intervals."""
        grid = np.asarray(flops, dtype=np.float64)
        return curve_of(grid, [self.loss(each) for each in grid], self.loss_draws(grid), self.draws[:, 3], confidence)

    def _chosen(self, count: int | None) -> FloatArray:
        if count is None or count >= len(self.draws):
            return self.draws
        some: FloatArray = self.draws[np.linspace(0, len(self.draws) - 1, count).astype(int)]
        return some


def curve_of(
    flops: FloatArray, loss: Sequence[float], draws: FloatArray, deviations: FloatArray, confidence: float
) -> Curve:
    """A curve from resampled losses (B, k) and the deviations (B,) of a run around each."""
    low, high = quantiles(draws, confidence)
    runs = np.log(draws)[None] + deviations[None, :, None] * _NORMAL[:, None, None]
    run_low, run_high = np.exp(quantiles(runs.reshape(-1, draws.shape[1]), confidence))
    value = np.asarray(loss)
    ends = (np.minimum(low, value), np.maximum(high, value), np.minimum(run_low, value), np.maximum(run_high, value))
    return Curve(tuple(map(float, flops)), tuple(map(float, value)), *(tuple(map(float, end)) for end in ends))


_NORMAL: Final = stats.norm.ppf((np.arange(40) + 0.5) / 40)


def fit_plain(
    points: Points, noise: Noise | None, *, bootstraps: int, confidence: float, rng: np.random.Generator
) -> PowerLaw:
    """The plain law through at least three points."""
    distance, target = np.log(points.flops / points.reference), np.log(points.loss)
    design = np.stack([np.ones_like(distance), -distance], axis=1)

    def solve(weights: FloatArray) -> FloatArray:
        root = np.sqrt(weights)
        found: FloatArray = np.linalg.lstsq(design * root[:, None], target * root, rcond=None)[0]
        return found

    weights = robust_weights(lambda given: design @ solve(given), target, 2)
    place = solve(weights)
    residuals = target - design @ place
    deviation, degrees, deviations = deviation_draws(residuals, weights, 2, points.seeds, noise, bootstraps, rng)
    spread = np.linalg.cholesky(np.linalg.inv(design.T @ (design * weights[:, None])))
    logs = place + deviations[:, None] * (rng.standard_normal((bootstraps, 2)) @ spread.T)
    draws = np.column_stack([np.zeros(bootstraps), np.exp(logs[:, 0]), logs[:, 1], deviations])
    fitted = np.array([0.0, math.exp(place[0]), place[1]])
    return _law("plain", points, fitted, residuals, weights, (deviation, degrees), draws, confidence)


def fit_saturating(
    points: Points, noise: Noise | None, *, bootstraps: int, confidence: float, rng: np.random.Generator
) -> PowerLaw:
    """The law with a floor through at least four points."""
    distance, target = np.log(points.flops / points.reference), np.log(points.loss)

    def fitted(weights: FloatArray) -> FloatArray:
        place, _ = solve_saturating(distance, target[None], weights)
        values: FloatArray = _log_model(distance, place)[0]
        return values

    weights = robust_weights(fitted, target, 3)
    place, _ = solve_saturating(distance, target[None], weights)
    model = _log_model(distance, place)[0]
    deviation, degrees, deviations = deviation_draws(target - model, weights, 3, points.seeds, noise, bootstraps, rng)
    jitter = deviations[:, None] * rng.standard_normal((bootstraps, len(target))) / np.sqrt(weights)
    drawn, _ = solve_saturating(distance, model + jitter, weights)
    draws = np.column_stack([drawn, deviations])
    return _law("saturating", points, place[0], target - model, weights, (deviation, degrees), draws, confidence)


def solve_saturating(distance: FloatArray, target: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Fit L = E + A exp(-alpha distance) to ln L for a batch: E and A by exact least squares at each of a row of
    exponents, the best of which is polished on the residuals of ln L.

    Args:
        distance: ln C minus its mean, shape (n,).
        target: ln L, shape (B, n).
        weights: shape (n,).

    Returns:
        (E, A, alpha), shape (B, 3), with E >= 0; and the weighted sums of squared residuals, shape (B,).
    """
    span = float(np.ptp(distance))
    target = np.clip(target, -_LARGEST, _LARGEST)
    steepest = min(STEEPEST, _LARGEST / span)
    exponents = np.geomspace(1e-3 / span, steepest, _EXPONENTS)
    powers = np.exp(-np.outer(distance, exponents))  # (n, G)
    loss = np.exp(target)
    relative = weights / np.square(loss)  # so that residuals are relative, nearly those of ln L
    sums = [
        np.broadcast_to(relative.sum(axis=1)[:, None], (len(loss), _EXPONENTS)),
        relative @ powers,
        relative @ np.square(powers),
        np.broadcast_to((relative * loss).sum(axis=1)[:, None], (len(loss), _EXPONENTS)),
        (relative * loss) @ powers,
    ]
    gram = np.stack([np.stack([sums[0], sums[1]], -1), np.stack([sums[1], sums[2]], -1)], -1)
    linear, gain = nonnegative(gram, np.stack([sums[3], sums[4]], -1))
    best = np.argmax(gain, axis=1)
    rows = np.arange(len(loss))
    start = np.column_stack([linear[rows, best], exponents[best]])
    start[:, 1] = np.maximum(start[:, 1], 1e-6 * loss.mean(axis=1))

    def residuals_of(place: FloatArray, rows: IntArray) -> tuple[FloatArray, FloatArray]:
        power = np.exp(-place[:, 2:3] * distance)
        model = place[:, :1] + place[:, 1:2] * power
        slopes = np.stack([np.ones_like(power), power, -place[:, 1:2] * distance * power], axis=1)
        return target[rows] - np.log(model), slopes / model[:, None, :]

    low, high = np.array([0.0, 1e-12, 0.0]), np.array([np.inf, np.inf, steepest])
    place, cost = minimise(residuals_of, start, low, high, weights)
    line, line_cost = solve_plain(distance, target, weights)
    straight = line_cost <= cost * (1 + 1e-9)
    return np.where(straight[:, None], line, place), np.where(straight, line_cost, cost)


def solve_plain(distance: FloatArray, target: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The plain law in the shape of `solve_saturating`: (0, A, alpha) and the weighted sums of squares."""
    design = np.stack([np.ones_like(distance), -distance], axis=1)
    projector = np.linalg.solve(design.T @ (design * weights[:, None]), (design * weights[:, None]).T)  # (2, n)
    found = target @ projector.T
    cost = np.square(target - found @ design.T) @ weights
    return np.column_stack([np.zeros(len(found)), np.exp(found[:, 0]), found[:, 1]]), cost


def deviation_draws(
    residuals: FloatArray,
    weights: FloatArray,
    coefficients: int,
    seeds: FloatArray,
    noise: Noise | None,
    bootstraps: int,
    rng: np.random.Generator,
) -> tuple[float, int, FloatArray]:
    """The standard deviation of points around their fit, its degrees of freedom, and draws of what it may truly be.

    No draw is below one of the noise, where that is known: residuals of a handful of points may come out tiny by
    chance. They are not pooled: what a fit leaves besides noise (a grid of sizes and learning rates, say) would be
    taken for noise, and a test of a few residuals seldom tells.
    """
    degrees = len(residuals) - coefficients
    deviation = math.sqrt(float(np.square(residuals * weights).sum()) / degrees)
    draws = drawn_sd(rng, deviation, degrees, bootstraps)
    if noise is None:
        return deviation, degrees, draws
    least = math.sqrt(float(np.mean(1 / seeds)))
    draws = np.maximum(draws, least * drawn_sd(rng, noise.log_sd, noise.degrees, bootstraps))
    return max(deviation, least * noise.log_sd), degrees, draws


def _log_model(distance: FloatArray, place: FloatArray) -> FloatArray:
    model: FloatArray = np.log(place[:, :1] + place[:, 1:2] * np.exp(-place[:, 2:3] * distance))
    return model


def _law(
    form: Form,
    points: Points,
    place: FloatArray,
    residuals: FloatArray,
    weights: FloatArray,
    deviation: tuple[float, int],
    draws: FloatArray,
    confidence: float,
) -> PowerLaw:
    reference = points.reference
    at_one = draws[:, 1] * np.exp(np.minimum(draws[:, 2] * math.log(reference), 600.0))
    return PowerLaw(
        form=form,
        exponent=estimate(place[2], draws[:, 2], confidence),
        coefficient=estimate(place[1] * math.exp(min(place[2] * math.log(reference), 600.0)), at_one, confidence),
        reference_flops=reference,
        at_reference=estimate(place[1], draws[:, 1], confidence),
        irreducible=estimate(place[0], draws[:, 0], confidence) if form == "saturating" else None,
        residual_log_sd=deviation[0],
        degrees=deviation[1],
        residuals=tuple(map(float, residuals)),
        weights=tuple(map(float, weights)),
        draws=draws,
    )
