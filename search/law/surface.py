"""Loss as a function of size and examples, L(N, D) = E + A N^-alpha + B D^-beta, on every cell of the study.

This is the third approach of Hoffmann et al. 2022 (arXiv 2203.15556, eq. 2), fitted as Besiroglu et al. 2024 (arXiv
2404.10102) would have it: to the optimum rather than to where an optimiser gave up, with intervals that are not too
narrow. For given exponents the model is linear in E, A and B, which are solved for exactly and not below zero
(variable projection, Golub & Pereyra 1973), so that only two numbers are searched; the best of a grid of them is then
polished on Huber-weighted residuals of ln L. Size and examples are centred at their geometric means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from search.law.grouping import Cell, Noise
from search.law.least_squares import minimise, nonnegative, robust_weights
from search.law.numbers import Estimate, FloatArray, Refused, estimate
from search.law.power import deviation_draws

CELLS_NEEDED: Final = 8
SIZES_NEEDED: Final = 3
SPREAD_NEEDED: Final = 2.0
_TOGETHER: Final = 0.98
SHALLOWEST, STEEPEST = 1e-3, 3.0
"""No exponent of size or examples is sought below the one or beyond the other."""
_GRID, _COARSE_GRID = 24, 8
_SEARCHED_BELOW: Final = 200  # cells: each resample then gets a search of its own over all exponents
_ELEMENTS: Final = 300_000  # of the largest array of a batch


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """The fitted L(N, D), in nats; N in trainable numbers, D in examples seen.

    Attributes:
        irreducible: E.
        size_coefficient, size_exponent: A and alpha of A N^-alpha.
        examples_coefficient, examples_exponent: B and beta of B D^-beta.
        reference_parameters, reference_examples: the geometric means.
        flops_per_parameter_example: k of C = k N D, the median of the cells: 6 for a dense transformer and its tokens,
            far more for convolutions and images, which use a weight many times.
        flops_per_parameter_example_low, flops_per_parameter_example_high: the least and the most of the cells.
        examples_per_epoch: D of one epoch; None where the runs do not say, or differ in it.
        cells: what it is fitted to.
        residuals: ln L minus the fit, one for each cell.
        residual_log_sd: their standard deviation.
        draws: resampled (E, A and B at the references, alpha, beta), shape (resamples, 5).
    """

    irreducible: Estimate
    size_coefficient: Estimate
    examples_coefficient: Estimate
    size_exponent: Estimate
    examples_exponent: Estimate
    reference_parameters: float
    reference_examples: float
    flops_per_parameter_example: float
    flops_per_parameter_example_low: float
    flops_per_parameter_example_high: float
    examples_per_epoch: float | None
    cells: tuple[Cell, ...]
    residuals: tuple[float, ...]
    residual_log_sd: float
    place: FloatArray = field(repr=False)
    draws: FloatArray = field(repr=False)

    def loss(self, parameters: float, examples: float) -> float:
        """The fitted loss of a model of so many parameters after so many examples."""
        floor, size, examples_part, alpha, beta = (float(value) for value in self.place)
        of_size = size * math.exp(-alpha * math.log(parameters / self.reference_parameters))
        return floor + of_size + examples_part * math.exp(-beta * math.log(examples / self.reference_examples))


def fit_surface(
    cells: Sequence[Cell], noise: Noise | None, *, bootstraps: int, confidence: float, rng: np.random.Generator
) -> Surface | Refused:
    """Fit L(N, D), or say why the cells do not allow it. Intervals are made as for `search.law.power`."""
    known = tuple(cell for cell in cells if cell.parameters is not None and cell.examples is not None)
    if (why := _why_not(cells, known)) is not None:
        return why
    parameters = np.array([float(cell.parameters or 0) for cell in known])
    examples = np.array([float(cell.examples or 0) for cell in known])
    flops = np.array([cell.flops for cell in known])
    size, length = (np.log(values) - np.log(values).mean() for values in (parameters, examples))
    target = np.log([cell.loss for cell in known])
    found: list[FloatArray] = []

    def fitted(weights: FloatArray) -> FloatArray:
        start = found[-1] if found else None
        place, _ = solve_surface(size, length, target[None], weights, start)
        found[:] = [place[0]]
        values: FloatArray = target - _residuals(size, length, target[None], place)[0][0]
        return values

    weights = robust_weights(fitted, target, 5)
    found.clear()
    model = fitted(weights)
    place, residuals = found[0], target - model
    seeds = np.array([float(cell.seeds) for cell in known])
    deviation, _, deviations = deviation_draws(residuals, weights, 5, seeds, noise, bootstraps, rng)
    draws = _draws(size, length, model, weights, place, deviations, rng)
    size_scale, length_scale = (float(np.log(values).mean()) for values in (parameters, examples))
    per_pair = flops / (parameters * examples)

    def told(column: int, scale: float = 0.0, exponent: int = 0) -> Estimate:
        factors = (np.exp(np.minimum(scale * values[..., exponent], 600.0)) for values in (place, draws))
        return estimate(place[column] * next(factors), draws[:, column] * next(factors), confidence)

    return Surface(
        irreducible=told(0),
        size_coefficient=told(1, size_scale, 3),
        examples_coefficient=told(2, length_scale, 4),
        size_exponent=told(3),
        examples_exponent=told(4),
        reference_parameters=math.exp(size_scale),
        reference_examples=math.exp(length_scale),
        flops_per_parameter_example=float(np.median(per_pair)),
        flops_per_parameter_example_low=float(per_pair.min()),
        flops_per_parameter_example_high=float(per_pair.max()),
        examples_per_epoch=examples_per_epoch(known),
        cells=known,
        residuals=tuple(map(float, residuals)),
        residual_log_sd=deviation,
        place=place,
        draws=draws,
    )


def _why_not(cells: Sequence[Cell], known: Sequence[Cell]) -> Refused | None:
    if not cells:
        return Refused("no cell is left to compare")
    for name in ("parameters", "examples"):
        if all(getattr(cell, name) is None for cell in cells):
            return Refused(f"the runs have no {name}; L(N, D) needs parameters and examples of each run")
    if len(known) < CELLS_NEEDED:
        return Refused(
            f"{len(known)} cell{'s' * (len(known) != 1)} (size and examples) given; L(N, D) has five coefficients and "
            f"needs at least {CELLS_NEEDED}; search more sizes or budgets"
        )
    logs = [np.log([float(getattr(cell, name)) for cell in known]) for name in ("parameters", "examples")]
    for name, values in zip(("parameters", "examples"), logs, strict=True):
        distinct, span = len(np.unique(values.round(2))), math.exp(float(np.ptp(values)))
        if distinct < SIZES_NEEDED or span < SPREAD_NEEDED:
            return Refused(
                f"{distinct} different numbers of {name} over a factor of {span:.3g}; L(N, D) needs at least "
                f"{SIZES_NEEDED} over a factor of {SPREAD_NEEDED:g}"
            )
    if abs(float(np.corrcoef(logs[0], logs[1])[0, 1])) > _TOGETHER:
        return Refused("size and examples change together in these runs, so their effects cannot be told apart")
    return None


def examples_per_epoch(cells: Sequence[Cell]) -> float | None:
    """Examples of one epoch, where cells tell it and agree."""
    each = np.array([cell.examples / cell.epochs for cell in cells if cell.examples and cell.epochs])
    return float(np.median(each)) if len(each) and np.ptp(each) <= 0.01 * each.min() else None


def solve_surface(
    size: FloatArray, length: FloatArray, target: FloatArray, weights: FloatArray, start: FloatArray | None
) -> tuple[FloatArray, FloatArray]:
    """Fit ln L for a batch.

    Args:
        size, length: ln N and ln D, centred, shape (m,).
        target: ln L, shape (B, m).
        weights: shape (m,).
        start: where to begin, shape (5,); None searches all exponents first.

    Returns:
        (E, A, B, alpha, beta), shape (B, 5), and the weighted sums of squared residuals (B,).
    """
    first = _searched(size, length, target, weights, _GRID) if start is None else np.tile(start, (len(target), 1))
    return polished(size, length, target, weights, first)


def polished(
    size: FloatArray, length: FloatArray, target: FloatArray, weights: FloatArray, start: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """The minimum next to where each of a batch starts, shape (B, 5); returns as `solve_surface`."""
    low = np.array([0.0, 0.0, 0.0, SHALLOWEST, SHALLOWEST])
    high = np.array([np.inf, np.inf, np.inf, STEEPEST, STEEPEST])
    return minimise(lambda place, rows: _residuals(size, length, target[rows], place), start, low, high, weights)


def _residuals(
    size: FloatArray, length: FloatArray, target: FloatArray, place: FloatArray
) -> tuple[FloatArray, FloatArray]:
    slopes = np.empty((len(place), 5, len(size)))
    of_size, of_length = slopes[:, 1], slopes[:, 2]
    np.exp(-place[:, 3:4] * size, out=of_size)
    np.exp(-place[:, 4:5] * length, out=of_length)
    model = np.maximum(place[:, :1] + place[:, 1:2] * of_size + place[:, 2:3] * of_length, 1e-12)
    slopes[:, 0] = 1.0
    np.multiply(-place[:, 1:2] * size, of_size, out=slopes[:, 3])
    np.multiply(-place[:, 2:3] * length, of_length, out=slopes[:, 4])
    slopes /= model[:, None, :]
    return target - np.log(model), slopes


def _searched(size: FloatArray, length: FloatArray, target: FloatArray, weights: FloatArray, points: int) -> FloatArray:
    """The best of a grid of exponents, with E, A and B solved for exactly at each; relative residuals."""
    exponents = np.geomspace(0.02, STEEPEST, points)
    powers = [np.exp(-np.outer(values, exponents)) for values in (size, length)]
    loss = np.exp(target)
    relative = weights / np.square(loss)  # (B, m)
    scaled = relative * loss
    batch, grid = len(loss), (len(loss), points, points)

    def sums(by: FloatArray, columns: FloatArray, axis: int) -> FloatArray:
        found = by @ columns
        return np.broadcast_to(found[:, :, None] if axis == 0 else found[:, None, :], grid)

    gram = np.empty((*grid, 3, 3))
    moment = np.empty((*grid, 3))
    gram[..., 0, 0] = relative.sum(axis=1)[:, None, None]
    moment[..., 0] = scaled.sum(axis=1)[:, None, None]
    for axis, power in enumerate(powers):
        gram[..., 0, axis + 1] = gram[..., axis + 1, 0] = sums(relative, power, axis)
        gram[..., axis + 1, axis + 1] = sums(relative, np.square(power), axis)
        moment[..., axis + 1] = sums(scaled, power, axis)
    mixed = np.stack([(powers[0] * by[:, None]).T @ powers[1] for by in relative])
    gram[..., 1, 2] = gram[..., 2, 1] = mixed
    linear, gain = nonnegative(gram, moment)
    best = gain.reshape(batch, -1).argmax(axis=1)
    rows, (alpha, beta) = np.arange(batch), np.divmod(best, points)
    return np.column_stack([linear[rows, alpha, beta], exponents[alpha], exponents[beta]])


def _draws(
    size: FloatArray,
    length: FloatArray,
    model: FloatArray,
    weights: FloatArray,
    place: FloatArray,
    deviations: FloatArray,
    rng: np.random.Generator,
) -> FloatArray:
    searched = len(model) <= _SEARCHED_BELOW
    batch = max(1, _ELEMENTS // (5 * len(model) + searched * 9 * _COARSE_GRID**2))
    parts = []
    for first in range(0, len(deviations), batch):
        some = deviations[first : first + batch]
        jitter = some[:, None] * rng.standard_normal((len(some), len(model))) / np.sqrt(weights)
        starts = [np.tile(place, (len(some), 1))]
        if searched:
            starts.append(_searched(size, length, model + jitter, weights, _COARSE_GRID))
        parts.append(_best_of(size, length, model + jitter, weights, starts))
    return np.concatenate(parts)


def _best_of(
    size: FloatArray, length: FloatArray, target: FloatArray, weights: FloatArray, starts: Sequence[FloatArray]
) -> FloatArray:
    """The better of the fits from several places to start at."""
    found = [polished(size, length, target, weights, start) for start in starts]
    best = np.argmin([cost for _, cost in found], axis=0)
    places: FloatArray = np.stack([place for place, _ in found])[best, np.arange(len(target))]
    return places
