"""A second objective: what variants cost, the Pareto front, and samplers that look for all of it."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from search.figures import draw_pareto_fronts, pareto_fronts_data, read_pareto_fronts
from search.figures.album import album
from search.samplers import SamplerName, propose
from search.second_objective import costs_of, pareto_front, render_fronts
from search.space import Point
from search.state import BudgetState, StudyState
from search.state import TrialState as Trial
from search.surfaces import Surface, paper_like
from search.trend_choice import choose


def trial(variant: str, loss: float | None, hours: float = 0.0, budget: str = "b", flops: float = 1e10) -> Trial:
    meter: dict[str, Any] = {"core_hours": hours} if hours else {}
    return Trial(
        trial_id=f"{variant}-{loss}", budget=budget, variant=variant, epochs=1.0, steps=10, learning_rate=0.4, seed=0,
        flops=flops, parameters=1, params={}, suggested_at=0.0, outcome="diverged" if loss is None else "finished",
        result={} if loss is None else {"heldout_loss": loss}, meter=meter,
    )  # fmt: skip


def budget_of(*trials: Trial, objective: Any = "parameters") -> tuple[StudyState, BudgetState]:
    cells = [
        {"variant": name, "epochs": 4 / 2**k, "steps": 10, "flops_per_image": 3e9 * 2**k, "parameters": 10**6 * 2**k}
        for k, name in enumerate(("F0", "F1", "F3"))
    ]
    budget = BudgetState("b", 1e10, 6, cells, frozenset({"F0", "F1", "F3"}), list(trials), second_objective=objective)
    state = StudyState(budgets={"b": budget}, trials={each.trial_id: each for each in trials})
    return state, budget


def test_parameters_and_inference_are_known_before_any_trial() -> None:
    state, budget = budget_of()
    assert costs_of("parameters", state, budget) == {"F0": 1e6, "F1": 2e6, "F3": 4e6}
    assert costs_of("inference_flops", state, budget) == {"F0": 1e9, "F1": 2e9, "F3": 4e9}


def test_core_hours_are_those_metered_here_then_those_of_smaller_budgets_then_those_of_other_variants() -> None:
    state, budget = budget_of(trial("F0", 1.0, 2.0), trial("F0", 1.1, 4.0))
    small = trial("F1", 2.0, 0.5, budget="a", flops=1e9)
    state.trials[small.trial_id] = small
    costs = costs_of("core_hours", state, budget)
    assert costs["F0"] == pytest.approx(3.0)
    assert costs["F1"] == pytest.approx(5.0)
    assert costs["F3"] == pytest.approx(1e10 * (2e-10 + 4e-10 + 5e-10) / 3)
    assert set(costs_of("core_hours", *budget_of()).values()) == {1.0}


def test_the_front_holds_what_nothing_beats_cheapest_first() -> None:
    elsewhere = replace(trial("F0", 1.2), learning_rate=0.8)
    lost = replace(trial("F3", None), learning_rate=0.8)
    trials = [elsewhere, trial("F0", 1.1), trial("F1", 1.15), trial("F3", 1.0), lost]
    front = pareto_front(trials, {"F0": 1.0, "F1": 2.0, "F3": 4.0})
    assert [(each.variant, each.heldout_loss) for each in front] == [("F0", 1.1), ("F3", 1.0)]


def test_seeds_count_by_their_mean_and_not_by_the_luckiest() -> None:
    lucky = [trial("F0", 0.9), trial("F0", 1.3), replace(trial("F0", 1.0), learning_rate=0.8), trial("F3", 0.95)]
    front = pareto_front(lucky, {"F0": 1.0, "F3": 4.0})
    assert [(each.variant, each.learning_rate, each.heldout_loss) for each in front] == [
        ("F0", 0.8, 1.0),
        ("F3", 0.4, 0.95),
    ]
    (mean,) = pareto_front(lucky[:2], {"F0": 1.0})
    assert mean.seeds == 2
    assert mean.heldout_loss == pytest.approx(1.1)


def test_a_point_that_diverged_with_some_seed_is_on_the_front_only_where_all_did() -> None:
    costs, lost = {"F0": 1.0, "F3": 4.0}, [trial("F0", 0.9), trial("F0", None)]
    assert [each.variant for each in pareto_front([*lost, trial("F3", 1.0)], costs)] == ["F3"]
    assert [each.variant for each in pareto_front(lost, costs)] == ["F0"]


@pytest.mark.parametrize("objective", ["parameters", "inference_flops", "core_hours"])
def test_a_variant_that_was_taken_out_is_on_the_front_as_it_is_the_best(objective: Any) -> None:
    state, budget = budget_of(trial("F0", 1.2, 1.0), trial("F3", 1.0, 4.0), objective=objective)
    budget.variants, budget.closed = frozenset({"F0", "F1"}), True
    assert budget.best is not None
    said = read_pareto_fronts(pareto_fronts_data(state))
    assert said.startswith(f"At b, {budget.best.variant} has the lowest loss, 1.00; F0 takes 0.25 times as many ")


def test_a_variant_that_was_taken_out_before_memory_counted_has_no_cost() -> None:
    state, budget = budget_of(trial("F0", 1.2), trial("F3", 1.0), objective="memory")
    budget.cells[:2] = [cell | {"memory": 1000.0} for cell in budget.cells[:2]]
    assert costs_of("memory", state, budget) == {"F0": 1000.0, "F1": 1000.0}
    assert [each.variant for each in pareto_front(budget.trials, costs_of("memory", state, budget))] == ["F0"]


def test_costs_that_differ_by_less_than_they_are_measured_to_are_equal() -> None:
    trials = [trial("F0", 1.1), trial("F1", 1.0)]
    assert [each.variant for each in pareto_front(trials, {"F0": 1.0, "F1": 1.015})] == ["F1"]
    assert [each.variant for each in pareto_front(trials, {"F0": 1.0, "F1": 1.03})] == ["F0", "F1"]


def test_a_figure_of_costs_that_hardly_differ_says_so() -> None:
    state, budget = budget_of(trial("F0", 1.2, 1.0), trial("F3", 1.0, 1.01), objective="core_hours")
    budget.closed = True
    said = read_pareto_fronts(pareto_fronts_data(state))
    assert said == "At b all variants take as many core-hours of training, within 2 %; F3 has the lowest loss."


def test_a_front_is_read_of_the_largest_budget_that_is_closed() -> None:
    state, small = budget_of(trial("F0", 1.2), trial("F3", 1.0))
    larger = [trial("F0", 0.8, budget="c", flops=4e10)]
    state.budgets["c"] = BudgetState("c", 4e10, 6, small.cells, small.variants, larger, second_objective="parameters")
    state.trials |= {each.trial_id: each for each in larger}
    said = {}
    for small.closed in (True, False):
        said[small.closed] = read_pareto_fronts(pareto_fronts_data(state))
    assert said[True].startswith("At b, F3 has the lowest loss, 1.00; ")
    assert said[False].startswith("At c (so far), F0 ")


def test_a_loss_that_no_axis_can_show_is_left_out_and_its_budget_is_not() -> None:
    for lost in (0.0, math.inf):
        state, _ = budget_of(trial("F0", 1.2), trial("F1", lost), trial("F3", 1.0))
        (front,) = pareto_fronts_data(state).fronts
        assert [each.variant for each in front.front] == ["F0", "F3"]
        assert len(front.trials) == 2


def test_fronts_are_printed_of_budgets_that_were_searched_for_them() -> None:
    trials = (trial("F0", 1.1), trial("F3", 1.0))
    for objective, there in (("parameters", True), (None, False)):
        output = io.StringIO()
        render_fronts(budget_of(*trials, objective=objective)[0], Console(file=output, width=100))
        assert ("Pareto front of held-out loss and parameters" in output.getvalue()) == there
        assert ("1,000,000" in output.getvalue()) == there


def searched(
    sampler: SamplerName, surface: Surface, budget: int, trials: int, costs: dict[str, float] | None
) -> list[Trial]:
    found: list[Trial] = []
    for number in range(trials):
        point = propose(
            sampler, surface.space(budget), found, seed=1, worst_loss=surface.worst_loss, costs=costs,
            batch_size=surface.batch_size,
        )  # fmt: skip
        if point is None:
            break
        outcome, loss = surface.observed(budget, point.variant, point.learning_rate, 1)
        ended = trial(point.variant, loss if outcome == "finished" else None)
        found.append(replace(ended, trial_id=str(number), learning_rate=point.learning_rate))
    return found


@pytest.mark.parametrize("sampler", ["trend", "tpe", "gp", "random"])
def test_samplers_take_a_second_objective(sampler: SamplerName) -> None:
    surface = paper_like(3)
    costs = {cell.variant: float(cell.parameters) for cell in surface.cells[1]}
    found = searched(sampler, surface, 1, 8, costs)
    assert len({(each.variant, each.learning_rate) for each in found}) == len(found) > 2


def test_trend_looks_at_cheap_variants_too_where_the_front_is_asked_for() -> None:
    """The cheapest variant is worse, so one objective leaves its valley alone; the front has a place for it."""

    def excess_of_the_cheapest(costs: bool) -> float:
        total = 0.0
        for seed in range(8):
            surface = paper_like(seed)
            cells = surface.cells[-1]
            of_cells = {cell.variant: float(cell.parameters) for cell in cells} if costs else None
            found = searched("trend", surface, len(surface.budgets) - 1, 40, of_cells)
            cheapest = min(cells, key=lambda cell: cell.parameters).variant
            least = min(surface.true_loss(len(surface.budgets) - 1, cheapest, rate) for rate in surface.learning_rates)
            mine = [
                surface.true_loss(len(surface.budgets) - 1, cheapest, each.learning_rate)
                for each in found
                if each.variant == cheapest and each.outcome == "finished"
            ]
            total += min([*mine, 1.2 * least]) / least - 1
        return total / 8

    assert excess_of_the_cheapest(True) < 0.02
    assert excess_of_the_cheapest(True) < 0.5 * excess_of_the_cheapest(False)


def test_a_front_is_decided_only_when_each_part_of_it_is() -> None:
    surface = paper_like(5)
    space = surface.space(2)
    found = searched("trend", surface, 2, 40, None)
    alone = choose(space, found, batch_size=surface.batch_size)
    front = choose(space, found, batch_size=surface.batch_size, costs=[cell.parameters for cell in space.cells])
    assert alone.decides(0.15)
    assert max(front.better, front.off) >= max(alone.better, alone.off)
    assert front.point is None or isinstance(front.point, Point)
    assert not math.isnan(front.better)


def test_the_front_has_a_figure_where_it_was_asked_for(tmp_path: Path) -> None:
    state, budget = budget_of(trial("F0", 1.2, 1.0), trial("F3", 1.0, 4.0), trial("F1", 1.3, 2.0))
    data = pareto_fronts_data(state)
    assert data.objective == "parameters"
    assert [(each.variant, each.cost, each.heldout_loss) for each in data.fronts[0].front] == [
        ("F0", 1e6, 1.2),
        ("F3", 4e6, 1.0),
    ]
    assert len(data.fronts[0].trials) == 3
    said = "F3 has the lowest loss, 1.00; F0 takes 0.25 times as many parameters at a loss of 1.20."
    assert read_pareto_fronts(data).endswith(said)
    draw_pareto_fronts(data, tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    assert "pareto_front" in {picture.name for picture in album(state, None)}
    budget.second_objective = None
    assert pareto_fronts_data(state).fronts == ()
    assert "pareto_front" not in {picture.name for picture in album(state, None)}


def test_a_front_of_one_and_none_at_all_are_drawn_too(tmp_path: Path) -> None:
    state, _ = budget_of(trial("F0", 1.0))
    assert "F0 has both the lowest loss and the fewest parameters" in read_pareto_fronts(pareto_fronts_data(state))
    draw_pareto_fronts(pareto_fronts_data(state), tmp_path / "one.png")
    state, _ = budget_of(trial("F0", None))
    assert "No budget with a second objective has a finished trial yet." in read_pareto_fronts(
        pareto_fronts_data(state)
    )
    draw_pareto_fronts(pareto_fronts_data(state), tmp_path / "none.png")
