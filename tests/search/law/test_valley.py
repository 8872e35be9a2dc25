"""Which cells may be compared: those whose learning rate is tuned, by its neighbours or by the valley of all cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from search.law import Cell, RateTrend, Refused, Run, RunTable, Surface, fit_law
from search.law.grouping import budgets_of, cells_of
from search.law.valley import bracketed, fit_valley, grid_step, tuned_cells
from tests.search.law.made_up import TRUE, table

BUDGETS, SIZES = (1e10, 4e10, 1.6e11, 6.4e11), (3e4, 1e5, 3e5, 1e6)
QUIET = replace(TRUE, noise=0.001)
STEP = math.log(2)


def cell_of(losses: dict[float, float], diverged: Sequence[float] = ()) -> Cell:
    runs = [Run(1e18, loss, learning_rate=rate, variant="F0") for rate, loss in losses.items()]
    lost = [Run(1e18, math.inf, learning_rate=rate, variant="F0") for rate in diverged]
    (cell,) = cells_of(budgets_of(runs)[0], lost)
    return cell


def two_rates(seed: int = 0) -> RunTable:
    """Of each cell two neighbouring rates, so that no best rate lies between two others."""
    whole = table(BUDGETS, SIZES, law=QUIET, seed=seed)
    rates = {rate: place for place, rate in enumerate(sorted({run.learning_rate for run in whole.runs}))}  # type: ignore[type-var]
    chosen = []
    for run in whole.runs:
        best = QUIET.best_rate(run.parameters or 0, run.examples or 0)
        near = sorted(rates, key=lambda rate: abs(math.log((rate or 1) / best)))[:2]
        if run.learning_rate in near:
            chosen.append(run)
    return RunTable("two rates", tuple(chosen))


def test_a_best_rate_between_two_others_is_tuned() -> None:
    assert bracketed(cell_of({0.2: 2.1, 0.4: 2.0, 0.8: 2.1}), STEP)
    assert not bracketed(cell_of({0.2: 2.1, 0.4: 2.0}), STEP)
    assert not bracketed(cell_of({0.4: 2.0, 0.8: 2.1}), STEP)


def test_a_rate_that_diverged_bounds_from_above_and_only_from_there() -> None:
    assert bracketed(cell_of({0.2: 2.1, 0.4: 2.0}, [0.8]), STEP)
    assert not bracketed(cell_of({0.4: 2.0, 0.8: 2.1}, [0.2]), STEP)


def test_neighbours_three_steps_away_say_little() -> None:
    assert not bracketed(cell_of({0.1: 2.1, 0.8: 2.0, 1.6: 2.1}), STEP)


def test_the_step_is_that_of_the_grid_or_a_factor_of_two() -> None:
    assert math.exp(grid_step([cell_of({0.1: 2, 0.3: 2, 0.9: 2})])) == pytest.approx(3)
    assert math.exp(grid_step([cell_of({0.1: 2, 0.101: 2, 0.102: 2})])) == pytest.approx(2)
    assert math.exp(grid_step([cell_of({0.1: 2})])) == pytest.approx(2)


def test_the_valley_of_all_cells_tells_each_best_rate_from_two_neighbouring_rates() -> None:
    runs = two_rates().runs
    cells = cells_of(budgets_of(runs)[0])
    valley = fit_valley(cells)
    assert valley is not None
    assert valley.curvature * STEP**2 == pytest.approx(QUIET.bend, rel=0.2)
    for cell, centre in zip(cells, valley.centres, strict=True):
        assert centre == pytest.approx(math.log(QUIET.best_rate(cell.parameters or 0, cell.examples or 0)), abs=0.3)


def test_the_trend_of_the_best_rate_is_told_even_if_no_cell_has_one_between_two_others() -> None:
    trend = fit_law(two_rates(), bootstraps=200).rate_trend
    assert isinstance(trend, RateTrend)
    for exponent, true in ((trend.size_exponent, 0.2), (trend.duration_exponent, 0.15)):
        assert exponent is not None
        assert exponent.low <= true <= exponent.high
        assert exponent.high - exponent.low < 0.5


def test_a_cell_at_a_rate_far_off_the_trend_is_left_out_and_said_so() -> None:
    runs = list(two_rates().runs)
    spoilt = [run for run in runs if (run.flops, run.parameters) != (BUDGETS[1], SIZES[1])]
    size, examples = SIZES[1], BUDGETS[1] / 150 / SIZES[1]
    spoilt.append(Run(BUDGETS[1], 3 * QUIET.loss(size, examples), size, examples, 0.01, "far off", seed=0))
    law = fit_law(RunTable("spoilt", tuple(spoilt)), bootstraps=200)
    assert [cell.variant for cell in law.tuning.left_out] == ["far off"]
    assert law.tuning.text.startswith("1 of 16 cells is left out, as their learning rate is not tuned")
    assert isinstance(law.surface, Surface)
    assert law.surface.residual_log_sd < 0.01
    assert "far off" not in {cell.variant for cell in law.surface.cells}


def test_a_near_miss_is_brought_down_by_what_the_valley_says_that_it_costs() -> None:
    runs = [run for run in two_rates().runs if (run.flops, run.parameters) != (BUDGETS[1], SIZES[1])]
    size, examples = SIZES[1], BUDGETS[1] / 150 / SIZES[1]
    best = QUIET.best_rate(size, examples)
    true = QUIET.loss(size, examples)
    runs.append(Run(BUDGETS[1], true * math.exp(QUIET.bend * 0.8**2), size, examples, best * 2**0.8, "near", seed=0))
    (near,) = [cell for cell in tuned_cells(cells_of(budgets_of(runs)[0])).cells if cell.variant == "near"]
    assert 0 < math.log(near.loss / true) < 0.7 * QUIET.bend * 0.8**2


def test_all_cells_count_where_no_learning_rate_is_told_or_none_has_tried_two() -> None:
    for runs in (
        table(BUDGETS, SIZES, rates=(0.6,)).runs,
        [replace(run, learning_rate=None) for run in table(BUDGETS, SIZES, rates=(0.6,)).runs],
    ):
        tuning = tuned_cells(cells_of(budgets_of(runs)[0]))
        assert (len(tuning.cells), tuning.left_out, tuning.corrected, tuning.text) == (16, (), 0, "")


def test_rates_rounded_elsewhere_are_no_steps_of_the_grid_and_no_neighbours() -> None:
    cells = [cell_of({rate * off: 2 for rate in (0.1, 0.3, 0.9)}) for off in (1, 1 + 3e-5, 1 - 4e-5)]
    assert math.exp(grid_step(cells)) == pytest.approx(3, rel=1e-3)
    assert not bracketed(cell_of({0.2: 2.1, 0.4: 2.0}, [0.40001]), STEP)


def test_where_no_cell_is_tuned_that_is_the_reason() -> None:
    runs = [
        replace(run, learning_rate=0.1 * 2**k) for k, run in enumerate(table(BUDGETS, SIZES[:2], rates=(0.6, 1.2)).runs)
    ]
    law = fit_law(RunTable("x", tuple(runs)), bootstraps=100)
    assert law.tuning.cells == ()
    for part in (law.surface, law.iso_compute):
        assert isinstance(part, Refused)
        assert part.reason.startswith("no cell is left to compare; ")
        assert "8 of 8 cells are left out, as their learning rate is not tuned" in part.reason


def test_two_cells_with_two_rates_are_no_valley_and_nothing_to_compare() -> None:
    cells = [cell_of({0.2: 2.1, 0.4: 2.0}), cell_of({0.2: 2.1, 0.4: 2.0})]
    assert fit_valley(cells) is None
    tuning = tuned_cells(cells)
    assert tuning.cells == ()
    assert "no trend says where it should be" in tuning.text


def test_a_part_that_is_refused_says_what_was_left_out_before() -> None:
    runs = [
        replace(run, learning_rate=0.1 * 2**k) for k, run in enumerate(table(BUDGETS, SIZES[:1], rates=(0.6, 1.2)).runs)
    ]
    found = fit_law(RunTable("few", tuple(runs)), bootstraps=100).surface
    assert isinstance(found, Refused)
    assert "left out, as their learning rate is not tuned" in found.reason


def test_a_valley_upside_down_is_none() -> None:
    rng = np.random.default_rng(0)
    cells = [
        cell_of({rate: 2 - (math.log2(rate) ** 2) / 99 + rng.normal() / 1e4 for rate in (0.5, 1, 2)}) for _ in range(5)
    ]
    assert fit_valley(cells) is None


def test_where_hardly_a_cell_has_tried_two_rates_all_are_compared() -> None:
    """A cloud of runs, each with a rate of its own: nobody meant to tune it, and nothing says where it should be."""
    rng = np.random.default_rng(0)
    runs = [
        Run(flops=6e3 * size * images, loss=float(1 + size**-0.3 + images**-0.3), parameters=size, examples=images,
            learning_rate=float(rate))
        for size, images, rate in zip(
            10 ** rng.uniform(5, 7, 60), 10 ** rng.uniform(5, 7, 60), 2 ** rng.uniform(-4, 0, 60), strict=True
        )
    ]  # fmt: skip
    runs += [replace(run, learning_rate=2.0, loss=run.loss + 0.1) for run in runs[:3]]
    cells = cells_of(budgets_of(runs)[0], [])
    tuning = tuned_cells(cells)
    assert tuning.left_out == ()
    assert len(tuning.cells) == len(cells)
