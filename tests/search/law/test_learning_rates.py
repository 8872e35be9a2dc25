"""The best learning rate between those of the grid, and its trend."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from search.law import RateOptimum, RateTrend, Refused, Run, RunTable, fit_law
from search.law.grouping import budgets_of, cells_of
from search.law.learning_rates import rate_optimum, rate_trend
from search.law.optimum import Scatter
from tests.search.law.made_up import TRUE, table

BUDGETS = (1e10, 4e10, 1.6e11, 6.4e11)
SIZES = (3e4, 1e5, 3e5, 1e6)
RATES = (0.1, 0.2, 0.4, 0.8, 1.6)


def optimum_of(losses: dict[float, float], scatter: Scatter | None = None) -> RateOptimum:
    budgets, _ = budgets_of([Run(1e18, loss, learning_rate=rate, variant="F0") for rate, loss in losses.items()])
    (cell,) = cells_of(budgets)
    found = rate_optimum(cell, scatter, bootstraps=500, confidence=0.95, rng=np.random.default_rng(0))
    assert found is not None
    return found


def valley(best: float, rates: tuple[float, ...] = RATES) -> dict[float, float]:
    return {rate: 2 * math.exp(0.05 * math.log2(rate / best) ** 2) for rate in rates}


@pytest.mark.parametrize("best", [0.31, 0.4, 0.55, 0.7])
def test_a_parabola_finds_the_optimum_between_the_rates(best: float) -> None:
    found = optimum_of(valley(best))
    assert found.optimum is not None
    assert found.optimum.value == pytest.approx(best, rel=1e-6)
    assert found.optimum.low <= best <= found.optimum.high
    assert found.bound == ""


def test_rates_need_not_be_evenly_spaced() -> None:
    found = optimum_of(valley(0.33, (0.1, 0.25, 0.4, 1.0)))
    assert found.optimum is not None
    assert found.optimum.value == pytest.approx(0.33, rel=1e-6)


def test_at_an_edge_there_is_only_a_bound() -> None:
    low, high, alone = optimum_of(valley(0.05)), optimum_of(valley(3.0)), optimum_of({0.4: 2.0})
    assert (low.best, low.bound, low.optimum) == (0.1, "at most", None)
    assert (high.best, high.bound, high.optimum) == (1.6, "at least", None)
    assert (alone.best, alone.bound, alone.optimum) == (0.4, "unknown", None)


def test_a_neighbour_that_nearly_diverged_does_not_push_the_optimum_off_its_step() -> None:
    found = optimum_of({0.2: 2.02, 0.4: 2.0, 0.8: 9.0})
    assert found.optimum is not None
    assert 0.2 < found.optimum.value < 0.4


def test_without_any_known_noise_the_interval_is_that_between_the_neighbours() -> None:
    found = optimum_of(valley(0.4))
    assert found.optimum is not None
    assert (found.optimum.low, found.optimum.high) == (0.2, 0.8)


def test_runs_without_a_learning_rate_have_no_optimum() -> None:
    budgets, _ = budgets_of([Run(1e18, 2.0)])
    (cell,) = cells_of(budgets)
    assert rate_optimum(cell, None, bootstraps=100, confidence=0.95, rng=np.random.default_rng(0)) is None


def test_intervals_of_the_optimum_hold_what_they_say() -> None:
    rng, hits, trials = np.random.default_rng(0), 0, 300
    for _ in range(trials):
        best = 0.4 * 2 ** rng.uniform(-0.5, 0.5)
        noisy = {rate: loss * math.exp(0.008 * rng.standard_normal()) for rate, loss in valley(best).items()}
        found = optimum_of(noisy, Scatter(0.008, 30)).optimum
        hits += found is not None and found.low <= best <= found.high
    assert binom.cdf(hits, trials, 0.95) > 0.001, hits


def test_the_trend_is_recovered_and_its_intervals_hold_what_they_say() -> None:
    trials, hits = 16, {"size": 0, "duration": 0}
    for seed in range(trials):
        law = fit_law(table(BUDGETS, SIZES, rates=RATES, seed=seed), bootstraps=200, seed=seed)
        trend = law.rate_trend
        assert isinstance(trend, RateTrend)
        assert (trend.size, trend.duration) == ("flops_per_example", "examples")
        for name, found, true in (
            ("size", trend.size_exponent, TRUE.rate_by_size),
            ("duration", trend.duration_exponent, TRUE.rate_by_duration),
        ):
            assert found is not None
            hits[name] += found.low <= true <= found.high
    assert all(binom.cdf(count, trials, 0.95) > 0.001 for count in hits.values()), hits


def test_the_trend_tells_the_rate_of_another_cell() -> None:
    quiet = replace(TRUE, noise=0.0005)
    trend = fit_law(table(BUDGETS, SIZES, rates=RATES, law=quiet), bootstraps=200).rate_trend
    assert isinstance(trend, RateTrend)
    found = trend.at(150 * 3e6, 1e6)
    assert found.value == pytest.approx(quiet.best_rate(3e6, 1e6), rel=0.02)
    assert found.low < found.value < found.high


def test_a_trend_of_too_few_cells_is_refused() -> None:
    optima = [optimum_of(valley(0.05)), optimum_of(valley(0.4))]
    found = rate_trend(optima, bootstraps=100, confidence=0.95, rng=np.random.default_rng(0))
    assert isinstance(found, Refused)
    assert found.reason.startswith("1 of 2 cells have their best learning rate between two others")
    nothing = fit_law(RunTable("x", tuple(Run(10.0**k, 3 - k / 10) for k in range(4))), bootstraps=100).rate_trend
    assert nothing == Refused("the runs have no learning rates")
