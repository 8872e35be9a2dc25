"""A robust straight line through a few points, in any number of directions, with Student's intervals from draws."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from search.law.least_squares import robust_weights
from search.law.numbers import Estimate, FloatArray, Refused, drawn_sd, estimate


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """y = level + slopes (x - centre).

    Attributes:
        centre: where `level` holds, shape (p,).
        place: level and slopes, shape (1 + p,).
        draws: the same, resampled, shape (B, 1 + p).
        residuals: of the points.
        deviation: their standard deviation.
    """

    centre: FloatArray
    place: FloatArray
    draws: FloatArray = field(repr=False)
    residuals: tuple[float, ...]
    deviation: float

    def slope(self, column: int, confidence: float, *, sign: int = 1) -> Estimate:
        """A slope, or with `sign` -1 its negative."""
        return estimate(sign * self.place[1 + column], sign * self.draws[:, 1 + column], confidence)

    def exp_at(self, x: FloatArray, confidence: float) -> Estimate:
        """exp(y) at a place, shape (p,)."""
        step = x - self.centre
        value, draws = self.place[0] + self.place[1:] @ step, self.draws[:, 0] + self.draws[:, 1:] @ step
        return estimate(float(np.exp(value)), np.exp(np.clip(draws, -600, 600)), confidence)


def fit_line(x: FloatArray, y: FloatArray, *, bootstraps: int, rng: np.random.Generator) -> Line | Refused:
    """Fit points x (n, p), y (n,) with Huber's weights; refused where they are too few or span too few directions."""
    count, columns = len(y), x.shape[1] + 1
    if count <= columns:
        return Refused(f"{count} points; a trend in {columns - 1} directions needs at least {columns + 1}")
    centre = x.mean(axis=0)
    design = np.column_stack([np.ones(count), x - centre])
    scaled = design / np.maximum(np.sqrt(np.square(design).sum(axis=0)), 1e-300)
    if np.linalg.svd(scaled, compute_uv=False)[-1] < 0.05:
        return Refused("what the trend depends on changes together in these runs, or hardly at all")

    def solve(weights: FloatArray) -> FloatArray:
        root = np.sqrt(weights)
        found: FloatArray = np.linalg.lstsq(design * root[:, None], y * root, rcond=None)[0]
        return found

    weights = robust_weights(lambda given: design @ solve(given), y, columns)
    place = solve(weights)
    residuals = y - design @ place
    degrees = count - columns
    deviation = float(np.sqrt(np.square(residuals * weights).sum() / degrees))
    spread = np.linalg.cholesky(np.linalg.inv(design.T @ (design * weights[:, None])))
    noise = drawn_sd(rng, deviation, degrees, bootstraps)[:, None] * rng.standard_normal((bootstraps, columns))
    return Line(centre, place, place + noise @ spread.T, tuple(map(float, residuals)), deviation)
