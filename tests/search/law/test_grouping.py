"""Which runs make a budget, which of them stands for it, and what seeds differ by."""

from __future__ import annotations

import math

import numpy as np
import pytest

from search.law import Run, runs_of_state
from search.law.grouping import budgets_of, cells_of, noise_of, settings_of, told_apart
from search.state import StudyState
from tests.search.seeded_ledger import two_seeds


def test_runs_of_nearly_the_same_flops_are_one_budget() -> None:
    flops = [1e18, 1.04e18, 0.97e18, 4e18, 4.1e18]
    budgets, by = budgets_of([Run(each, 3 + k / 10) for k, each in enumerate(flops)])
    assert [len(budget.runs) for budget in budgets] == [3, 2]
    assert [budget.loss for budget in budgets] == pytest.approx([3.0, 3.3])
    assert by == "flops"
    assert "10%" in told_apart(budgets, by)


def test_a_chain_of_close_runs_does_not_become_one_wide_budget() -> None:
    budgets, _ = budgets_of([Run(1e18 * 1.08**k, 3.0, variant="a") for k in range(12)])
    assert all(max(r.flops for r in b.runs) <= 1.25 * min(r.flops for r in b.runs) for b in budgets)
    assert len(budgets) > 3


def test_named_budgets_are_taken_by_name_however_far_their_flops_lie_apart() -> None:
    runs = [Run(1e18, 3.0, budget="a"), Run(1.4e18, 2.9, budget="a"), Run(1.5e18, 2.8, budget="b")]
    budgets, _ = budgets_of(runs)
    assert [(budget.label, budget.flops, len(budget.runs)) for budget in budgets] == [
        ("a", 1.4e18, 2),
        ("b", 1.5e18, 1),
    ]


def test_a_few_runs_of_different_flops_are_a_budget_each() -> None:
    budgets, _ = budgets_of([Run(10.0**k, 3 - k / 10, parameters=1e6) for k in range(8)])
    assert len(budgets) == 8


def test_a_frontier_without_anything_else_is_taken_as_it_is() -> None:
    budgets, _ = budgets_of([Run(2.0**k, 3 - k / 20) for k in range(20)])
    assert len(budgets) == 20


def test_of_a_cloud_of_runs_those_farthest_below_the_trend_stand_for_bins() -> None:
    rng = np.random.default_rng(0)
    flops = np.geomspace(1e18, 1e22, 400)
    excess = rng.exponential(0.2, size=400)
    runs = [Run(c, 3 * (c / 1e20) ** -0.1 * math.exp(e), parameters=1e6) for c, e in zip(flops, excess, strict=True)]
    budgets, by = budgets_of(runs)
    assert by == "bins"
    assert f"{len(budgets)} bins" in told_apart(budgets, by)
    assert 10 <= len(budgets) <= 20
    assert sum(len(budget.runs) for budget in budgets) == 400
    slope = np.polyfit(np.log([b.flops for b in budgets]), np.log([b.loss for b in budgets]), 1)[0]
    assert slope == pytest.approx(-0.1, abs=0.01)


def test_a_single_run_is_one_bin() -> None:
    (budget,), by = budgets_of([Run(1e18, 3.0, parameters=1e6)], by="bins")
    assert (budget.loss, by) == (3.0, "bins")


def test_seeds_of_a_setting_are_averaged_and_the_best_setting_stands_for_the_budget() -> None:
    runs = [
        Run(1e18, loss, learning_rate=rate, seed=seed)
        for rate, losses in ((0.1, (2.0, 4.0)), (0.2, (2.7, 2.8)))
        for seed, loss in enumerate(losses)
    ]
    (budget,), _ = budgets_of(runs)
    assert budget.loss == pytest.approx(2.75)
    assert (budget.best.loss, budget.seeds) == (2.7, 2)


def test_the_best_of_a_budget_is_that_of_the_tables() -> None:
    """0.25 and 0.40 are less than 0.32 by their geometric mean, and more by the mean that tables tell."""
    records = two_seeds()
    for record in records:
        if record.event == "trial_ended":
            loss = {"000": 0.25, "003": 0.40, "001": 0.32, "002": 0.5}[record["trial"][-3:]]
            record.fields["result"]["heldout_loss"] = loss
    state = StudyState.of(records)
    budgets, _ = budgets_of(runs_of_state(state).runs)
    for found, known in zip(budgets, state.budgets.values(), strict=True):
        assert known.best is not None
        assert (found.best.variant, found.loss) == (known.best.variant, known.best_loss) == ("F1", 0.32)


def test_runs_without_a_learning_rate_are_no_repeats_unless_their_seeds_say_so() -> None:
    assert len(settings_of([Run(1e18, 3.0), Run(1e18, 2.9)])) == 2
    assert len(settings_of([Run(1e18, 3.0, seed=0), Run(1e18, 2.9, seed=1)])) == 1


def test_the_noise_is_what_seeds_differ_by_near_the_best() -> None:
    rng = np.random.default_rng(0)
    runs = [
        Run(1e18, 3 * level * math.exp(spread * rng.standard_normal()), learning_rate=rate, variant="F0", seed=seed)
        for rate, level, spread in ((0.1, 1.02, 0.02), (0.2, 1.0, 0.02), (0.4, 1.6, 0.5))
        for seed in range(40)
    ]
    budgets, _ = budgets_of(runs)
    noise = noise_of(cells_of(budgets))
    assert noise is not None
    assert noise.degrees == 2 * 39
    assert noise.log_sd == pytest.approx(0.02, rel=0.25)


def test_without_repeats_there_is_no_noise() -> None:
    budgets, _ = budgets_of([Run(1e18, 3.0, learning_rate=0.1), Run(1e18, 2.9, learning_rate=0.2)])
    assert noise_of(cells_of(budgets)) is None


def test_a_budget_spelt_twice_is_one() -> None:
    names = ("1e18 FLOPs", "1E18 flops", "4e18 FLOPs", "large", " Large ")
    budgets, _ = budgets_of([Run(1e18 if "18" in name else 1e20, 3.0, budget=name) for name in names])
    assert [len(budget.runs) for budget in budgets] == [2, 1, 2]


def test_a_run_that_diverged_belongs_to_the_cells_of_its_budget() -> None:
    runs = [Run(1e18, 3.0, learning_rate=0.4, variant="F0", budget=name) for name in ("a", "b")]
    cells = cells_of(budgets_of(runs)[0], [Run(1e18, math.inf, learning_rate=0.8, variant="F0", budget="b")])
    assert {cell.budget: cell.diverged for cell in cells} == {"a": (), "b": (0.8,)}


@pytest.mark.parametrize("level", [1.0, 1.005, 0.9995])
def test_runs_alike_are_repeats_wherever_rounding_would_cut_between_them(level: float) -> None:
    runs = [
        Run(c, loss, 1e6, c / 6e6, 0.4, "F0", seed=seed)
        for seed, (off, loss) in enumerate(((0.9998, 3.8), (1.0, 4.0), (1.0002, 4.2)))
        for c in [level * 1e18 * off]
    ]
    (budget,), _ = budgets_of(runs)
    assert budget.seeds == 3
    assert budget.loss == pytest.approx(4.0)
    assert len(cells_of([budget])) == 1


def test_flops_that_differ_by_a_thousandth_leave_cells_and_their_rates_whole() -> None:
    rng = np.random.default_rng(0)
    runs = [
        Run(c, 3.0, size, c / 6 / size, rate, f"{size:g}", seed=seed)
        for flops in (1e18, 3e18, 1e19)
        for size in (1e6, 2e6, 4e6)
        for rate in (0.1, 0.2, 0.4)
        for seed in range(3)
        for c in [flops * (1 + 0.001 * rng.standard_normal())]
    ]
    cells = cells_of(budgets_of(runs)[0])
    assert len(cells) == 9
    assert {tuple(setting.seeds for setting in cell.tried) for cell in cells} == {(3, 3, 3)}


def test_a_learning_rate_in_single_precision_is_the_same() -> None:
    (setting,) = settings_of([Run(1e18, 3.0, learning_rate=rate) for rate in (0.1, float(np.float32(0.1)))])
    assert setting.seeds == 2
    assert len(settings_of([Run(1e18, 3.0, learning_rate=rate) for rate in (0.1, 0.101)])) == 2


def test_values_that_follow_each_other_closely_over_a_long_way_are_each_themselves() -> None:
    runs = [Run(1e18, 3.0, epochs=float(count), learning_rate=0.4) for count in range(200, 300)]
    assert len(settings_of(runs)) == 100
    assert [setting.seeds for setting in settings_of([*runs, runs[7]])].count(2) == 1


def test_runs_are_told_apart_alike_in_any_order() -> None:
    rng = np.random.default_rng(1)
    runs = [Run(1e18 * (1 + 0.003 * rng.standard_normal()), 3.0, 1e6, 1e9, 0.1 * (1 + k % 3)) for k in range(30)]
    there, back = settings_of(runs), settings_of(runs[::-1])
    assert sorted(setting.log_losses for setting in there) == sorted(setting.log_losses for setting in back)


@pytest.mark.parametrize("budget", [None, "1e18 FLOPs"])
def test_a_setting_that_diverged_with_a_seed_stands_for_nothing_while_another_did_not(budget: str | None) -> None:
    runs = [
        Run(1e18, loss, learning_rate=rate, variant="F0", seed=seed, budget=budget)
        for rate, losses in ((0.1, (3.0, 3.1)), (0.2, (2.9, 2.9)), (0.4, (2.5,)))
        for seed, loss in enumerate(losses)
    ]
    lost = [Run(1e18, math.inf, learning_rate=0.4, variant="F0", seed=1, budget=budget)]
    (found,), _ = budgets_of(runs, lost)
    assert (found.loss, found.best.learning_rate) == (pytest.approx(2.9), 0.2)
    (cell,) = cells_of([found], lost)
    assert (cell.loss, cell.learning_rate, cell.diverged) == (pytest.approx(2.9), 0.2, (0.4,))
    assert [setting.run.learning_rate for setting in cell.tried] == [0.1, 0.2]
    (alone,), _ = budgets_of(runs[-1:], lost)
    assert alone.loss == 2.5
