"""Power laws of compute: known ones are recovered, intervals hold what they say, and what cannot be told is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from search.law import Estimate, PowerLaw, Refused, Run
from search.law.forms import Forms, fit_forms
from search.law.grouping import Noise, budgets_of
from search.law.numbers import FloatArray
from search.law.power import Points, fit_plain, fit_saturating, solve_saturating

REFERENCE = 1e19


def losses(flops: FloatArray, floor: float, part: float, exponent: float) -> FloatArray:
    return np.asarray(floor + part * (flops / REFERENCE) ** -exponent)


def points(flops: FloatArray, loss: FloatArray) -> Points:
    return Points(flops, loss, np.ones(len(flops)))


def forms_of(flops: FloatArray, loss: FloatArray, *, seed: int = 0, bootstraps: int = 200) -> Forms:
    budgets, _ = budgets_of([Run(c, v) for c, v in zip(flops.tolist(), loss.tolist(), strict=True)])
    rng = np.random.default_rng(seed)
    *_, forms = fit_forms(budgets, None, bootstraps=bootstraps, confidence=0.95, rng=rng)
    assert isinstance(forms, Forms)
    return forms


def plain_of(flops: FloatArray, loss: FloatArray) -> PowerLaw:
    rng = np.random.default_rng(0)
    return fit_plain(points(flops, loss), None, bootstraps=200, confidence=0.95, rng=rng)


def inside(found: Estimate | None, true: float) -> bool:
    assert found is not None
    return found.low <= true <= found.high


def at_least_nominal(hits: int, trials: int, confidence: float = 0.95) -> bool:
    """Whether so few hits would come of intervals that hold what they say in more than 1 of 1,000 tests like this."""
    return float(binom.cdf(hits, trials, confidence)) > 0.001


def nominal(hits: int, trials: int, confidence: float = 0.95) -> bool:
    return at_least_nominal(hits, trials, confidence) and float(binom.sf(hits - 1, trials, confidence)) > 0.001


def test_a_plain_law_without_noise_is_recovered_exactly() -> None:
    flops = np.geomspace(1e18, 1e20, 4)
    law = forms_of(flops, losses(flops, 0, 2.5, 0.15)).chosen
    assert law.form == "plain"
    assert law.exponent.value == pytest.approx(0.15, rel=1e-9)
    assert law.coefficient.value == pytest.approx(2.5 * REFERENCE**0.15, rel=1e-9)
    assert law.loss(1e22) == pytest.approx(losses(np.array([1e22]), 0, 2.5, 0.15)[0], rel=1e-9)
    assert law.exponent.high - law.exponent.low < 1e-9


@pytest.mark.parametrize(("floor", "exponent"), [(1.7, 0.34), (0.3, 0.1), (2.0, 0.9)])
def test_a_law_with_a_floor_is_recovered_without_noise(floor: float, exponent: float) -> None:
    flops = np.geomspace(1e17, 1e21, 6)
    found, cost = solve_saturating(
        np.log(flops / REFERENCE), np.log(losses(flops, floor, 1.3, exponent))[None], np.ones(6)
    )
    assert found[0] == pytest.approx([floor, 1.3, exponent], rel=1e-4)
    assert cost[0] < 1e-12


def test_the_floor_is_never_below_zero() -> None:
    flops = np.geomspace(1e17, 1e21, 8)
    bent_down = losses(flops, 0, 2.0, 0.1) * np.exp(-0.01 * np.log(flops / REFERENCE) ** 2)
    found, _ = solve_saturating(np.log(flops / REFERENCE), np.log(bent_down)[None], np.ones(8))
    assert found[0, 0] == 0


def test_intervals_of_the_plain_law_from_four_budgets_hold_what_they_say() -> None:
    rng = np.random.default_rng(0)
    flops, trials = np.geomspace(1e18, 3e19, 4), 500
    hits = {"exponent": 0, "3x": 0, "10x": 0}
    for _ in range(trials):
        noisy = losses(flops, 0, 2.5, 0.15) * np.exp(0.02 * rng.standard_normal(4))
        law = fit_plain(points(flops, noisy), None, bootstraps=200, confidence=0.9, rng=rng)
        hits["exponent"] += inside(law.exponent, 0.15)
        for name, beyond in (("3x", 9e19), ("10x", 3e20)):
            curve = law.curve([beyond], 0.9)
            hits[name] += curve.low[0] <= losses(np.array([beyond]), 0, 2.5, 0.15)[0] <= curve.high[0]
    assert all(nominal(count, trials, 0.9) for count in hits.values()), hits


def test_drawing_budgets_anew_would_hold_far_less() -> None:
    """Why intervals are not made by the bootstrap over budgets: from five it misses far more often than it says."""
    rng = np.random.default_rng(0)
    x, trials, hits = np.linspace(-1, 1, 5), 300, 0
    for _ in range(trials):
        y = -0.15 * x + 0.02 * rng.standard_normal(5)
        places = rng.integers(0, 5, size=(300, 5))
        centred = x[places] - x[places].mean(axis=1, keepdims=True)
        spread = np.square(centred).sum(axis=1)
        slopes = (centred * y[places]).sum(axis=1)[spread > 0] / spread[spread > 0]
        low, high = np.quantile(slopes, [0.025, 0.975])
        hits += low <= -0.15 <= high
    assert hits / trials < 0.9


def test_intervals_of_the_law_with_a_floor_hold_what_they_say() -> None:
    rng = np.random.default_rng(1)
    flops, trials = np.geomspace(1e18, 3e20, 6), 120
    hits = {"floor": 0, "exponent": 0}
    for _ in range(trials):
        noisy = losses(flops, 1.2, 1.3, 0.3) * np.exp(0.01 * rng.standard_normal(6))
        law = fit_saturating(points(flops, noisy), None, bootstraps=200, confidence=0.95, rng=rng)
        hits["floor"] += inside(law.irreducible, 1.2)
        hits["exponent"] += inside(law.exponent, 0.3)
    assert all(nominal(count, trials) for count in hits.values()), hits


@pytest.mark.parametrize(("floor", "exponent"), [(0.0, 0.15), (1.2, 0.3)], ids=["straight", "bent"])
@pytest.mark.parametrize("count", [4, 5])
def test_forecasts_far_beyond_the_budgets_hold_whichever_form_is_true(
    count: int, floor: float, exponent: float
) -> None:
    """The loss of a new run at 3 and 10 times the largest budget lies in the interval as often as that says, or more:
    it owns up to a bend that few budgets cannot show.
    """
    rng = np.random.default_rng(2)
    flops, trials, hits = np.geomspace(1e18, 3e19, count), 40, {3: 0, 10: 0}
    for number in range(trials):
        noisy = losses(flops, floor, 1.5, exponent) * np.exp(0.01 * rng.standard_normal(count))
        forms = forms_of(flops, noisy, seed=number, bootstraps=150)
        for beyond in hits:
            forecast = forms.forecast(beyond * 3e19)
            true = losses(np.array([forecast.flops]), floor, 1.5, exponent)[0] * math.exp(0.01 * rng.standard_normal())
            hits[beyond] += inside(forecast.loss, true)
    assert all(at_least_nominal(hit, trials) for hit in hits.values()), hits


def test_the_test_of_straightness_is_wrong_as_seldom_as_it_says_and_sees_a_bend() -> None:
    rng = np.random.default_rng(3)
    flops, trials, bent, straight = np.geomspace(1e18, 1e21, 6), 40, 0, 0
    for number in range(trials):
        noise = np.exp(0.01 * rng.standard_normal(6))
        straight += forms_of(flops, losses(flops, 0, 2.0, 0.15) * noise, seed=number).chosen.form == "saturating"
    for number in range(20):
        noise = np.exp(0.005 * rng.standard_normal(6))
        bent += forms_of(flops, losses(flops, 1.5, 1.0, 0.4) * noise, seed=number).chosen.form == "saturating"
    assert float(binom.sf(straight - 1, trials, 0.05)) > 0.001
    assert bent == 20


@pytest.mark.parametrize("place", [0, 4, 9])
def test_one_run_of_three_times_the_loss_moves_the_exponent_by_less_than_its_interval(place: int) -> None:
    rng = np.random.default_rng(4)
    flops = np.geomspace(1e18, 1e21, 10)
    good = losses(flops, 0, 2.5, 0.15) * np.exp(0.01 * rng.standard_normal(10))
    stray = good.copy()
    stray[place] *= 3
    before, after = plain_of(flops, good), plain_of(flops, stray)
    assert abs(after.exponent.value - before.exponent.value) < before.exponent.high - before.exponent.low
    assert inside(after.exponent, 0.15)
    assert after.weights[place] < 0.2


def test_known_noise_keeps_intervals_from_being_narrow_by_chance() -> None:
    flops = np.geomspace(1e18, 1e20, 3)
    by_chance = points(flops, losses(flops, 0, 2.5, 0.15) * np.exp(1e-5 * np.array([1.0, -2.0, 1.0])))
    widths = [
        law.exponent.high - law.exponent.low
        for noise in (None, Noise(0.02, 20))
        for law in [fit_plain(by_chance, noise, bootstraps=500, confidence=0.95, rng=np.random.default_rng(0))]
    ]
    assert widths[0] < 0.001
    assert widths[1] == pytest.approx(2 * 2.1 * 0.02 / math.sqrt(2 * math.log(10) ** 2), rel=0.2)


def refused(flops: list[float], loss: list[float]) -> tuple[str, str]:
    budgets, _ = budgets_of([Run(c, v) for c, v in zip(flops, loss, strict=True)])
    plain, saturating, *_ = fit_forms(budgets, None, bootstraps=100, confidence=0.95, rng=np.random.default_rng(0))
    return (
        plain.reason if isinstance(plain, Refused) else "",
        saturating.reason if isinstance(saturating, Refused) else "",
    )


def test_what_the_budgets_cannot_tell_is_refused_with_the_reason() -> None:
    assert refused([1e18, 8e18], [3, 2])[0].startswith("2 budgets given; a power law needs at least 3")
    assert refused([1e18], [3])[0].startswith("1 budget given")
    assert "span a factor of 3" in refused([1e18, 2e18, 3e18], [3, 2.5, 2])[0]
    assert refused([1e18, 4e18, 1.6e19], [3, 2.5, 2]) == (
        "",
        "3 budgets given; a law with a floor needs at least 4; search more budgets",
    )
    assert "needs at least 8" in refused([1e18, 2e18, 4e18, 5e18], [3, 2.5, 2, 1.9])[1]
    assert "the same loss" in refused([1e18, 4e18, 1.6e19], [3, 3, 3])[0]


def test_intervals_widen_beyond_the_budgets_and_hold_the_curve() -> None:
    rng = np.random.default_rng(5)
    flops = np.geomspace(1e18, 1e20, 5)
    forms = forms_of(flops, losses(flops, 0, 2.5, 0.15) * np.exp(0.01 * rng.standard_normal(5)))
    curve = forms.curve([1e19, 1e21, 1e23])
    widths = [math.log(high / low) for low, high in zip(curve.low, curve.high, strict=True)]
    assert widths == sorted(widths)
    for k in range(3):
        assert curve.run_low[k] <= curve.low[k] <= curve.loss[k] <= curve.high[k] <= curve.run_high[k]
    forecast = forms.forecast(1e21)
    assert forecast.loss.value == curve.loss[1]
    assert forecast.beyond == pytest.approx(10)


def test_a_forecast_says_where_it_is_further_away_than_the_budgets_reach_and_where_there_is_none() -> None:
    rng = np.random.default_rng(5)
    flops = np.geomspace(1e18, 1e20, 5)
    forms = forms_of(flops, losses(flops, 0, 2.5, 0.15) * np.exp(0.01 * rng.standard_normal(5)))

    def note(at: float) -> str:
        forecast = forms.forecast(at)
        return forecast.reason if isinstance(forecast, Refused) else forecast.note

    assert [note(at) for at in (2e17, 3e19, 9e21)] == ["", "", ""]
    assert "reach over a factor of 100 in FLOPs, and this one lies 200 times further" in note(2e22)
    assert "less than a tenth of the smallest budget, 1e+18; a power law says nothing there" in note(9e16)


def test_budgets_that_miss_the_range_by_a_part_of_a_step_are_enough() -> None:
    assert refused([1e18, 2e18, 4e18, 7.7e18], [3, 2.5, 2, 1.9]) == ("", "")
