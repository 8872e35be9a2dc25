"""The arithmetic below every fit: exact non-negative least squares, a batched Levenberg-Marquardt, robust weights.

Variable projection (Golub & Pereyra 1973): where a model is linear in some coefficients once its exponents are fixed,
those are solved for exactly and the search is over the exponents alone. `nonnegative` is that exact solution, for any
number of problems at once; `minimise` then polishes all coefficients together on the residuals of the logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from typing import Final

import numpy as np
from scipy import stats

from search.law.numbers import FloatArray, IntArray

_STEPS: Final = 60
_SETTLED: Final = 1e-9
_START_STEPS: Final = 10
_WEIGHT_STEPS: Final = 20
_FEW: Final = 30
_ODD: Final = 0.01
_BEYOND: Final = 2.576

ResidualsOf = Callable[[FloatArray, IntArray], tuple[FloatArray, FloatArray]]
"""Coefficients (b, p) of problems, by their places (b,) in the batch -> residuals, data minus model (b, n), and the
model's derivatives (b, p, n).
"""


def nonnegative(gram: FloatArray, moment: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Least squares with no coefficient below zero, solved exactly for every problem of a batch.

    Args:
        gram: X^T W X, shape (..., p, p), p at most 3 or so.
        moment: X^T W y, shape (..., p).

    Returns:
        The coefficients (..., p), and by how much they lower the weighted sum of squares (...). The optimum is the
        best of the unconstrained solutions over the subsets of columns that come out positive.
    """
    size = moment.shape[-1]
    best = np.zeros_like(moment)
    gain = np.zeros(moment.shape[:-1])
    for count in range(1, size + 1):
        for columns in combinations(range(size), count):
            chosen = list(columns)
            part = gram[..., chosen, :][..., chosen]
            scale = np.sqrt(np.einsum("...ii->...i", part))
            scaled = part / (scale[..., :, None] * scale[..., None, :]) + 1e-13 * np.eye(count)
            found = np.linalg.solve(scaled, (moment[..., chosen] / scale)[..., None])[..., 0] / scale
            gained = np.einsum("...i,...i->...", found, moment[..., chosen])
            better = (found >= 0).all(axis=-1) & (gained > gain)
            spread = np.zeros_like(moment)
            spread[..., chosen] = found
            best = np.where(better[..., None], spread, best)
            gain = np.where(better, gained, gain)
    return best, gain


def minimise(
    residuals_of: ResidualsOf, start: FloatArray, low: FloatArray, high: FloatArray, weights: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Levenberg-Marquardt with bounds, for a batch of problems at once; those that have settled are left alone.

    Args:
        residuals_of: the model on the data.
        start: where to begin, shape (B, p).
        low, high: bounds of the coefficients, shape (p,).
        weights: of the squared residuals, shape (n,).

    Returns:
        The coefficients (B, p) and the weighted sums of squares (B,).
    """
    place = np.clip(start, low, high)
    rows = np.arange(len(place))
    residuals, slopes = residuals_of(place, rows)
    cost = np.square(residuals) @ weights
    damping = np.full(len(place), 1e-4)
    diagonal = np.arange(place.shape[1])
    for _ in range(_STEPS):
        here, cost_here = place[rows], cost[rows]
        weighted = slopes * weights
        gradient = np.einsum("bpn,bn->bp", weighted, residuals)
        curvature = weighted @ slopes.transpose(0, 2, 1)
        held = ((here <= low) & (gradient < 0)) | ((here >= high) & (gradient > 0))
        gradient = np.where(held, 0.0, gradient)
        curvature = np.where(held[:, :, None] | held[:, None, :], 0.0, curvature)
        size = curvature[:, diagonal, diagonal]
        curvature[:, diagonal, diagonal] = np.where(held, 1.0, size * (1 + damping[rows, None]) + 1e-30)
        tried = np.clip(here + np.linalg.solve(curvature, gradient[..., None])[..., 0], low, high)
        residuals_tried, slopes_tried = residuals_of(tried, rows)
        cost_tried = np.square(residuals_tried) @ weights
        better = cost_tried <= cost_here
        settled = np.where(better, cost_here - cost_tried <= _SETTLED * cost_here + 1e-28, damping[rows] > 1e6)
        place[rows[better]], cost[rows[better]] = tried[better], cost_tried[better]
        damping[rows] = np.where(better, np.maximum(damping[rows] / 10, 1e-10), damping[rows] * 10)
        going = ~settled
        if not going.any():
            break
        residuals = np.where(better[:, None], residuals_tried, residuals)[going]
        slopes = np.where(better[:, None, None], slopes_tried, slopes)[going]
        rows = rows[going]
    return place, cost


def robust_weights(fitted: Callable[[FloatArray], FloatArray], values: FloatArray, coefficients: int) -> FloatArray:
    """Huber's weights of the residuals, shape (n,): one, and less for points far off what the others say.

    Args:
        fitted: the model's values when fitted with weights (n,), some of which may be zero.
        values: the data, shape (n,).
        coefficients: how many the model has.

    Of up to 30 points, those are far off whose leaving out lowers the sum of squares by more than one good set of
    points in a hundred would have it (F-test, Bonferroni): so intervals of undisturbed data stay exact. Of more, those
    beyond 2.6 robust deviations (99 % of good points are not) from the fit of least absolute residuals.
    """
    count = len(values)
    if count - coefficients < 2:  # which of the points is the odd one cannot be told
        return np.ones(count)
    if count <= _FEW:
        return _weights_of_few(fitted, values, coefficients)
    found: FloatArray = np.ones(count)
    residuals = np.abs(values - fitted(found))
    for _ in range(_START_STEPS):
        weights = 1 / np.maximum(residuals, 1e-2 * np.median(residuals) + 1e-15)
        residuals = np.abs(values - fitted(weights / weights.max()))
    for _ in range(_WEIGHT_STEPS):
        scale = 1.4826 * float(np.median(np.sort(residuals)[coefficients:])) + 1e-12
        weights, found = found, np.minimum(1.0, _BEYOND * scale / np.maximum(residuals, 1e-300))
        residuals = np.abs(values - fitted(found))
        if np.allclose(found, weights, rtol=1e-3):
            break
    return found


def _weights_of_few(fitted: Callable[[FloatArray], FloatArray], values: FloatArray, coefficients: int) -> FloatArray:
    count = len(values)
    kept = np.ones(count)

    def squares(weights: FloatArray) -> tuple[float, FloatArray]:
        residuals = values - fitted(weights)
        return float(np.square(residuals) @ weights), residuals

    cost, residuals = squares(kept)
    while (degrees := int(kept.sum()) - coefficients - 1) >= 1 and int(kept.sum()) > count / 2:
        places = np.flatnonzero(kept)
        without = [squares(kept * (np.arange(count) != place)) for place in places]
        least = int(np.argmin([each for each, _ in without]))
        ratio = (cost - without[least][0]) / max(without[least][0] / degrees, 1e-24)
        if stats.f.sf(ratio, 1, degrees) * len(places) > _ODD:
            break
        kept[places[least]] = 0
        cost, residuals = without[least]
    scale = math.sqrt(cost / (int(kept.sum()) - coefficients)) + 1e-12
    found: FloatArray = np.where(
        kept > 0, 1.0, np.minimum(1.0, _BEYOND * scale / np.maximum(np.abs(residuals), 1e-300))
    )
    return found
