"""L(N, D), and the compute-optimal size that follows from it and from iso-compute parabolas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binom

from search.law import Allocation, IsoCompute, Law, LawError, Refused, Run, RunTable, Surface, fit_law
from search.law.grouping import budgets_of, cells_of
from search.law.optimum import closed_form
from search.law.surface import fit_surface
from tests.search.law.made_up import TRUE, table

BUDGETS = (1e10, 4e10, 1.6e11, 6.4e11)
SIZES = (3e4, 1e5, 3e5, 1e6, 3e6)
ONE_RATE = (0.6,)
EXACT = replace(TRUE, noise=0.0, bend=0.0)


def surface_of(runs: RunTable, *, seed: int = 0, bootstraps: int = 200) -> Surface | Refused:
    budgets, _ = budgets_of(runs.runs)
    rng = np.random.default_rng(seed)
    return fit_surface(cells_of(budgets), None, bootstraps=bootstraps, confidence=0.95, rng=rng)


def law_of(runs: RunTable) -> Law:
    return fit_law(runs, bootstraps=200)


def known(found: Surface | Refused) -> Surface:
    assert isinstance(found, Surface)
    return found


def test_without_noise_every_coefficient_is_recovered() -> None:
    surface = known(surface_of(table(BUDGETS, SIZES, rates=ONE_RATE, law=EXACT)))
    assert surface.irreducible.value == pytest.approx(EXACT.floor, rel=1e-3)
    assert surface.size_exponent.value == pytest.approx(EXACT.alpha, rel=1e-3)
    assert surface.examples_exponent.value == pytest.approx(EXACT.beta, rel=1e-3)
    assert surface.size_coefficient.value == pytest.approx(EXACT.size_part * EXACT.parameters**EXACT.alpha, rel=0.02)
    assert surface.examples_coefficient.value == pytest.approx(EXACT.examples_part * 1e4**EXACT.beta, rel=0.02)
    assert surface.loss(2e6, 5e6) == pytest.approx(EXACT.loss(2e6, 5e6), rel=1e-4)
    assert max(map(abs, surface.residuals)) < 1e-4


def test_the_flops_of_a_pair_come_from_the_runs() -> None:
    surface = known(surface_of(table(BUDGETS, SIZES, rates=ONE_RATE, flops_per_pair=42.0)))
    assert surface.flops_per_parameter_example == pytest.approx(42)
    assert surface.flops_per_parameter_example_high == pytest.approx(42)


def test_the_best_split_is_where_the_fitted_loss_is_lowest() -> None:
    law = law_of(table(BUDGETS, SIZES, rates=ONE_RATE, law=replace(EXACT, noise=0.01)))
    assert isinstance(law.allocation, Allocation)
    surface = known(law.surface)
    for flops in (1e10, 1e13):
        pairs = flops / surface.flops_per_parameter_example
        best = minimize_scalar(
            lambda n, p=pairs: surface.loss(np.exp(n), p / np.exp(n)), bounds=(5, 25), method="bounded"
        )
        row = law.allocation.at(flops)
        assert row.parameters.value == pytest.approx(np.exp(best.x), rel=1e-3)
        assert row.parameters.value * row.examples.value == pytest.approx(pairs)
        assert row.parameters.low <= row.parameters.value <= row.parameters.high
    assert law.allocation.size_exponent.value + law.allocation.examples_exponent.value == pytest.approx(1)


def test_intervals_hold_what_they_say() -> None:
    trials = 40
    hits = dict.fromkeys(("floor", "alpha", "beta", "a", "best size"), 0)
    law = replace(EXACT, noise=0.01)
    for seed in range(trials):
        surface = known(
            surface_of(table(BUDGETS, SIZES, rates=ONE_RATE, law=law, seed=seed), seed=seed, bootstraps=150)
        )
        allocation = closed_form(surface, [1e12], 0.95)
        assert isinstance(allocation, Allocation)
        for name, found, true in (
            ("floor", surface.irreducible, law.floor),
            ("alpha", surface.size_exponent, law.alpha),
            ("beta", surface.examples_exponent, law.beta),
            ("a", allocation.size_exponent, law.size_exponent),
            ("best size", allocation.rows[0].parameters, law.best_parameters(1e12 / 150)),
        ):
            hits[name] += found.low <= true <= found.high
    assert all(binom.cdf(count, trials, 0.95) > 0.001 for count in hits.values()), hits


@pytest.mark.parametrize("place", [0, 9, 19])
def test_one_run_of_three_times_the_loss_moves_no_exponent_by_more_than_its_interval(place: int) -> None:
    runs = list(table(BUDGETS, SIZES, rates=ONE_RATE, law=replace(EXACT, noise=0.01)).runs)
    before = known(surface_of(RunTable("good", tuple(runs))))
    runs[place] = replace(runs[place], loss=3 * runs[place].loss)
    after = known(surface_of(RunTable("stray", tuple(runs))))
    for old, new in (
        (before.size_exponent, after.size_exponent),
        (before.examples_exponent, after.examples_exponent),
    ):
        assert abs(new.value - old.value) < old.high - old.low


def test_iso_compute_parabolas_find_the_best_size_of_each_budget() -> None:
    law = law_of(table(BUDGETS, (5e3, 1.5e4, 5e4, 1.5e5, 5e5), rates=ONE_RATE, law=replace(EXACT, noise=0.002)))
    iso = law.iso_compute
    assert isinstance(iso, IsoCompute)
    for curve in iso.curves:
        true = EXACT.best_parameters(curve.flops / 150)
        if isinstance(curve.minimum, Refused):
            continue
        assert curve.minimum.parameters.value == pytest.approx(true, rel=0.35)
        at_minimum = curve.loss(curve.minimum.parameters.value)
        assert at_minimum == pytest.approx(curve.minimum.loss)
        assert curve.minimum.examples == pytest.approx(curve.flops / 150 / curve.minimum.parameters.value)
        assert at_minimum is not None
        assert at_minimum <= min(curve.losses) * 1.01
    assert not isinstance(iso.size_exponent, Refused)
    assert iso.size_exponent.low <= EXACT.size_exponent + 0.05
    assert iso.size_exponent.high >= EXACT.size_exponent - 0.05


def test_a_best_size_at_the_end_is_told_as_a_bound() -> None:
    law = law_of(table(BUDGETS, (1e7, 2e7, 4e7), rates=ONE_RATE))
    assert isinstance(law.iso_compute, IsoCompute)
    minima = [curve.minimum for curve in law.iso_compute.curves]
    assert all(isinstance(each, Refused) and "at most 1e+07 parameters" in each.reason for each in minima)
    assert isinstance(law.iso_compute.size_exponent, Refused)


def without(runs: RunTable, **changes: None) -> RunTable:
    return RunTable("fewer", tuple(replace(run, **changes) for run in runs.runs))


def test_what_the_runs_cannot_tell_is_refused_with_the_reason() -> None:
    whole = table(BUDGETS, SIZES, rates=ONE_RATE)
    assert refusal(without(whole, parameters=None)) == (
        "the runs have no parameters; L(N, D) needs parameters and examples of each run"
    )
    assert "no examples" in refusal(without(whole, examples=None))
    assert "needs at least 8" in refusal(table(BUDGETS[:2], SIZES[:3], rates=ONE_RATE))
    assert "2 different numbers of parameters" in refusal(table(BUDGETS, SIZES[:2], rates=ONE_RATE))
    assert "over a factor of 1.5" in refusal(table(BUDGETS, (1e5, 1.2e5, 1.5e5), rates=ONE_RATE))
    together = [Run(150 * n * 10 * n, 3 - k / 10, n, 10 * n) for k, n in enumerate(np.geomspace(1e5, 1e8, 9).tolist())]
    assert "change together" in refusal(RunTable("frontier", tuple(together)))
    assert refusal(table(BUDGETS[:1], SIZES[:1], rates=ONE_RATE)).startswith("1 cell (size and examples) given")


def test_a_budget_of_one_size_has_no_parabola() -> None:
    iso = fit_law(table(BUDGETS, SIZES[:1], rates=ONE_RATE), bootstraps=100).iso_compute
    assert isinstance(iso, IsoCompute)
    assert {curve.minimum for curve in iso.curves} == {Refused("1 size; a parabola needs at least 3")}


def refusal(runs: RunTable) -> str:
    found = surface_of(runs)
    assert isinstance(found, Refused)
    return found.reason


def test_a_law_without_any_run_or_with_settings_that_make_no_sense_is_refused() -> None:
    whole = table(BUDGETS, SIZES, rates=ONE_RATE)
    with pytest.raises(LawError, match="no finished run"):
        fit_law(RunTable("none", ()))
    for wrong in ({"bootstraps": 3}, {"confidence": 1.0}, {"leave_out": -1}, {"seed": -1}):
        with pytest.raises(LawError, match="given; allowed"):
            fit_law(whole, **wrong)  # type: ignore[arg-type]
