"""Loss surfaces: drawn the same every time, like the paper's study, or against one assumption each."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.families import ModelSize
from search.budgets import _allowed_epochs
from search.sections import Epochs
from search.surfaces import (
    CLASSES,
    EPOCH_GRID,
    EPOCHS,
    HOSTILE,
    IMAGES,
    PAPER,
    PAPER_SIZES,
    Surface,
    paper_like,
    snapped,
)

FAMILIES = {**PAPER, **HOSTILE}
ON_GRID = ("paper-like, snapped",)
SEEDS = range(60)


def finite(surface: Surface) -> list[tuple[int, int, tuple[float, ...]]]:
    """(budget, cell, losses over the grid) of every cell."""
    return [(b, c, losses) for b, here in enumerate(surface.losses) for c, losses in enumerate(here)]


def best_rates(surface: Surface) -> list[tuple[int, str, float]]:
    """(budget, variant, binary logarithm of the grid's best rate) of every cell."""
    return [
        (b, cell.variant, math.log2(surface.best_rate(b, cell.variant)))
        for b, here in enumerate(surface.cells)
        for cell in here
    ]


def share_of_diverging(surface: Surface) -> float:
    return statistics.fmean(math.isinf(loss) for _, _, losses in finite(surface) for loss in losses)


def mean(measure: Callable[[Surface], float], family: str) -> float:
    return statistics.fmean(measure(FAMILIES[family](seed)) for seed in SEEDS)


# ---------------------------------------------------------------- every family


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_surface_is_a_study_that_could_be_run(family: str, seed: int) -> None:
    surface = FAMILIES[family](seed)
    assert surface.family == family
    assert 4 <= len(surface.budgets) <= 6
    assert all(2 <= high / low <= 4.001 for low, high in zip(surface.budgets, surface.budgets[1:], strict=False))
    assert 5 <= len(surface.learning_rates) <= 8
    assert all(
        high / low == pytest.approx(2)
        for low, high in zip(surface.learning_rates, surface.learning_rates[1:], strict=False)
    )
    for budget, here in zip(surface.budgets, surface.cells, strict=True):
        assert len(here) >= 2
        for cell in here:
            exact = budget / (cell.flops_per_image * IMAGES)
            assert cell.epochs == pytest.approx(exact) or family in ON_GRID
            assert EPOCHS[0] <= cell.epochs <= EPOCHS[1]
    assert [len(here) for here in surface.losses] == [len(here) for here in surface.cells]
    assert all(len(losses) == len(surface.learning_rates) for _, _, losses in finite(surface))
    assert all(0 < loss <= math.log(CLASSES) or math.isinf(loss) for _, _, losses in finite(surface) for loss in losses)
    assert all(math.isfinite(surface.optimum(budget)[2]) for budget in range(len(surface.budgets)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_draws_the_same_surface_again_and_another_one_another(family: str) -> None:
    assert FAMILIES[family](3) == FAMILIES[family](3)
    assert FAMILIES[family](3).losses != FAMILIES[family](4).losses


def test_the_optimum_is_the_lowest_loss_of_the_grid() -> None:
    surface = paper_like(1)
    for budget in range(len(surface.budgets)):
        variant, rate, loss = surface.optimum(budget)
        assert loss == min(
            surface.true_loss(budget, p.variant, p.learning_rate) for p in surface.space(budget).points()
        )
        assert loss == surface.true_loss(budget, variant, rate)
        assert rate == surface.best_rate(budget, variant)


def test_a_run_gives_the_same_for_the_same_seed_and_scatters_over_seeds_by_the_noise() -> None:
    surface = paper_like(2)
    variant, rate, loss = surface.optimum(0)
    runs = [surface.observed(0, variant, rate, seed) for seed in range(400)]
    assert runs == [surface.observed(0, variant, rate, seed) for seed in range(400)]
    off = [run / loss - 1 for _, run in runs]
    assert {outcome for outcome, _ in runs} == {"finished"}
    assert statistics.stdev(off) == pytest.approx(surface.noise, rel=0.15)
    assert abs(statistics.fmean(off)) < 0.2 * surface.noise


def test_a_run_diverges_where_the_true_loss_is_infinite_and_only_there() -> None:
    surface = HOSTILE["divergent low"](0)
    outcomes = set()
    for point in surface.space(1).points():
        diverges = math.isinf(surface.true_loss(1, point.variant, point.learning_rate))
        outcome, loss = surface.observed(1, point.variant, point.learning_rate, 5)
        assert (outcome == "diverged") == diverges == math.isinf(loss)
        outcomes.add(outcome)
    assert outcomes == {"finished", "diverged"}


# ---------------------------------------------------------------- like the paper's


def test_the_sizes_are_those_that_the_models_have() -> None:
    """On the meta device: F0 alone, for the dearest takes seconds to lay out."""
    from models.costs import costs

    size = costs(ModelSize("F0", image_size=224, classes=1000))
    name, parameters, macs = PAPER_SIZES[0]
    assert (name, parameters) == ("F0", round(size.parameters, -4))
    assert macs == pytest.approx(size.macs, rel=1e-3)


def test_loss_falls_with_compute_about_as_the_paper_s_does() -> None:
    slopes = []
    for seed in SEEDS:
        surface = paper_like(seed)
        first, last = surface.optimum(0)[2], surface.optimum(len(surface.budgets) - 1)[2]
        slopes.append(math.log(first / last) / math.log(surface.budgets[-1] / surface.budgets[0]))
    assert all(0.01 < slope < 0.12 for slope in slopes)
    assert 0.03 < statistics.median(slopes) < 0.07  # the paper's: log(3.0 / 2.4) / log(100) = 0.048


def test_the_best_size_grows_with_compute() -> None:
    def size(surface: Surface, budget: int) -> int:
        best = surface.optimum(budget)[0]
        return next(cell.parameters for cell in surface.cells[budget] if cell.variant == best)

    surfaces = [paper_like(seed) for seed in SEEDS]
    grown = [size(surface, len(surface.budgets) - 1) / size(surface, 0) for surface in surfaces]
    assert all(ratio >= 1 for ratio in grown)
    assert statistics.median(grown) >= 1.9  # a step of the family or more


def test_the_best_rate_falls_as_size_and_epochs_grow_by_one_to_three_factors_of_two_over_all() -> None:
    falls = []
    for seed in SEEDS:
        surface = paper_like(seed)
        rates = best_rates(surface)
        falls.append(rates[0][2] - rates[-1][2])  # the smallest model of the first budget, the largest of the last
    assert min(falls) >= -1
    assert max(falls) <= 4
    assert 0.5 <= statistics.fmean(falls) <= 2.5


def test_a_step_off_the_best_rate_costs_a_few_per_cent() -> None:
    costs = []
    for seed in SEEDS:
        for _, _, losses in finite(paper_like(seed)):
            best = losses.index(min(losses))
            near = [losses[k] for k in (best - 1, best + 1) if 0 <= k < len(losses) and math.isfinite(losses[k])]
            costs += [loss / losses[best] - 1 for loss in near]
    assert 0.01 < statistics.median(costs) < 0.06


def test_variants_differ_by_a_few_per_cent_at_equal_compute() -> None:
    spreads = []
    for seed in SEEDS:
        for here in paper_like(seed).losses:
            best = [min(losses) for losses in here]
            spreads.append(max(best) / min(best) - 1)
    assert 0.01 < statistics.median(spreads) < 0.08


# ---------------------------------------------------------------- with the paper's epochs


def test_snapped_epochs_are_those_that_a_study_with_the_paper_s_grid_gives_its_cells() -> None:
    study = Epochs(grid=EPOCH_GRID)
    seen = set()
    for seed in SEEDS:
        surface = snapped(seed)
        variants = {cell.variant for here in surface.cells for cell in here}
        for budget, here in zip(surface.budgets, surface.cells, strict=True):
            every = {name: _allowed_epochs(study, budget / (6 * macs * IMAGES)) for name, _, macs in PAPER_SIZES}
            bought = {name: epochs for name, epochs in every.items() if epochs is not None and name in variants}
            assert {cell.variant: cell.epochs for cell in here} == bought
            seen |= set(bought.values())
    assert seen == set(EPOCH_GRID)


def test_a_snapped_trial_takes_the_flops_of_its_epochs_which_differ_up_to_twofold_within_a_budget() -> None:
    spreads = []
    for seed in SEEDS:
        surface = snapped(seed)
        for budget, here in enumerate(surface.cells):
            flops = [surface.flops(budget, cell.variant) for cell in here]
            assert flops == [cell.epochs * cell.flops_per_image * IMAGES for cell in here]
            assert all(1 / math.sqrt(2.001) < one / surface.budgets[budget] < math.sqrt(2.001) for one in flops)
            assert surface.mean_flops(budget) == pytest.approx(statistics.fmean(flops))
            spreads.append(max(flops) / min(flops))
    assert 1.8 < max(spreads) < 2.001


def test_no_snapped_cell_is_trained_alike_in_two_budgets() -> None:
    for seed in SEEDS:
        cells = [(cell.variant, cell.epochs) for here in snapped(seed).cells for cell in here]
        assert len(set(cells)) == len(cells)


def test_elsewhere_a_trial_takes_its_budget() -> None:
    surface = paper_like(0)
    assert {surface.flops(1, cell.variant) for cell in surface.cells[1]} == {surface.budgets[1]}
    assert surface.mean_flops(1) == surface.budgets[1]


# ---------------------------------------------------------------- what the others break


def test_rising_rates_rise_with_size_at_equal_compute() -> None:
    def slope(surface: Surface) -> float:
        last = [rate for budget, _, rate in best_rates(surface) if budget == len(surface.budgets) - 1]
        return last[-1] - last[0]

    assert mean(slope, "rising") > 0.5
    assert mean(slope, "paper-like") <= 0


def test_two_valleys_have_two() -> None:
    def second(surface: Surface) -> float:
        """Share of cells with a local minimum apart from the best one."""
        found = []
        for _, _, losses in finite(surface):
            inner = [k for k in range(1, len(losses) - 1) if losses[k] < losses[k - 1] and losses[k] <= losses[k + 1]]
            ends = [k for k, other in ((0, 1), (len(losses) - 1, len(losses) - 2)) if losses[k] < losses[other]]
            found.append(len(inner) + len(ends) > 1)
        return statistics.fmean(found)

    assert mean(second, "two valleys") > 0.5
    assert mean(second, "paper-like") == 0


def test_on_flat_surfaces_a_step_costs_less_than_the_noise_of_runs() -> None:
    for seed in SEEDS:
        surface = HOSTILE["flat"](seed)
        for _, _, losses in finite(surface):
            best = losses.index(min(losses))
            near = [losses[k] for k in (best - 1, best + 1) if 0 <= k < len(losses) and math.isfinite(losses[k])]
            assert all(loss / losses[best] - 1 < 0.012 for loss in near)


def test_noisy_runs_scatter_by_per_cents() -> None:
    assert all(0.02 <= HOSTILE["noisy"](seed).noise <= 0.04 for seed in SEEDS)
    assert all(0.002 <= paper_like(seed).noise <= 0.006 for seed in SEEDS)


def test_off_prior_rates_are_off_the_rule_and_half_of_the_grids_are_not_laid_about_it() -> None:
    def off(surface: Surface) -> float:
        rule = math.log2(0.1 * surface.batch_size / 256)
        return statistics.fmean(abs(rate - rule) for _, _, rate in best_rates(surface))

    assert mean(off, "off prior") > mean(off, "paper-like") + 1
    surfaces = [HOSTILE["off prior"](seed) for seed in SEEDS]
    on_rule = [s.learning_rates[0] <= 0.1 * s.batch_size / 256 <= s.learning_rates[-1] for s in surfaces]
    assert 0.3 < statistics.fmean(on_rule) < 1


def test_half_of_the_grid_diverges_on_divergent_low_surfaces() -> None:
    assert 0.4 < mean(share_of_diverging, "divergent low") < 0.6
    assert mean(share_of_diverging, "paper-like") < 0.2


def test_jumpy_rates_follow_no_trend() -> None:
    """Neighbouring budgets of a variant have best rates that differ as much as those of any two cells."""

    def jump(surface: Surface) -> float:
        rates = {(budget, variant): rate for budget, variant, rate in best_rates(surface)}
        jumps = [
            abs(rate - rates[budget + 1, variant])
            for (budget, variant), rate in rates.items()
            if (budget + 1, variant) in rates
        ]
        return statistics.fmean(jumps)

    assert mean(jump, "jumpy") > 0.8
    assert mean(jump, "paper-like") < 0.5
