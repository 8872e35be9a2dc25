"""The arithmetic below the fits, against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import least_squares, nnls

from search.law.least_squares import minimise, nonnegative, robust_weights
from search.law.numbers import FloatArray, IntArray, drawn_sd


@given(st.integers(0, 10_000))
def test_non_negative_least_squares_is_exact(seed: int) -> None:
    rng = np.random.default_rng(seed)
    columns = int(rng.integers(1, 4))
    design = rng.uniform(0.1, 2, size=(8, columns))
    target = design @ rng.normal(size=columns) + 0.1 * rng.normal(size=8)
    found, gain = nonnegative((design.T @ design)[None], (design.T @ target)[None])
    expected, norm = nnls(design, target)
    assert found[0] == pytest.approx(expected, abs=1e-6)
    assert float(target @ target) - gain[0] == pytest.approx(norm**2, abs=1e-8)


def test_a_batch_of_curves_is_fitted_like_each_alone() -> None:
    rng = np.random.default_rng(1)
    x = np.linspace(0, 3, 12)
    data = rng.uniform(1, 2, (20, 1)) * np.exp(-rng.uniform(0.3, 1, (20, 1)) * x) + 0.01 * rng.normal(size=(20, 12))

    def residuals_of(place: FloatArray, rows: IntArray) -> tuple[FloatArray, FloatArray]:
        power = np.exp(-place[:, 1:] * x)
        return data[rows] - place[:, :1] * power, np.stack([power, -place[:, :1] * x * power], axis=1)

    bounds = np.array([0.0, 0.0]), np.array([np.inf, 3.0])
    found, cost = minimise(residuals_of, np.ones((20, 2)), *bounds, np.ones(12))
    for row in range(20):
        alone = least_squares(lambda p, row=row: data[row] - p[0] * np.exp(-p[1] * x), [1, 1], xtol=1e-14)
        assert found[row] == pytest.approx(alone.x, rel=1e-4)
        assert cost[row] == pytest.approx(2 * alone.cost, rel=1e-6)


def test_a_minimum_on_a_bound_is_found() -> None:
    def residuals_of(place: FloatArray, _: IntArray) -> tuple[FloatArray, FloatArray]:
        offset = np.array([-1.0, 2.0]) - place
        return offset, np.broadcast_to(np.eye(2), (len(place), 2, 2)).copy()

    found, cost = minimise(residuals_of, np.full((1, 2), 0.5), np.zeros(2), np.ones(2), np.ones(2))
    assert found[0] == pytest.approx([0, 1])
    assert cost[0] == pytest.approx(2)


def test_weights_of_good_points_are_one_and_that_of_a_stray_point_is_small() -> None:
    rng = np.random.default_rng(0)
    x = np.arange(8.0)

    def line(values: FloatArray, weights: FloatArray) -> FloatArray:
        return np.asarray(np.polyval(np.polyfit(x, values, 1, w=np.sqrt(weights)), x))

    lowered = 0
    for _ in range(100):
        good = 0.2 * x + 0.01 * rng.normal(size=8)
        lowered += int((robust_weights(lambda w, v=good: line(v, w), good, 2) < 0.99).any())
        stray = good + np.log(3) * (x == 5)
        weights = robust_weights(lambda w, v=stray: line(v, w), stray, 2)
        assert weights[5] < 0.2
        assert line(stray, weights)[7] == pytest.approx(1.4, abs=0.1)
    assert lowered < 6


def test_what_a_deviation_may_be_gives_students_intervals() -> None:
    rng = np.random.default_rng(0)
    draws = drawn_sd(rng, 0.01, 3, 200_000) * rng.standard_normal(200_000)
    assert np.quantile(draws, 0.975) == pytest.approx(0.01 * 3.182, rel=0.02)
