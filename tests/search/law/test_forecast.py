"""What to train with a budget that was not searched yet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from search.budgets import amounts_in_flops
from search.law import Law, Refused, fit_law, runs_of_state
from search.law.forecast import Speed, forecast_budget, next_budgets, speed_of_state
from search.ledger import Record, read_ledger
from search.plan import plan
from search.state import StudyState
from search.study import Study
from search.units import Quantity
from tests.search.law.made_up import STUDY, TRUE, TrueLaw, budgets_of, searched, study
from tests.search.ledgers import TRAIN_EXAMPLES

LAW_OF_LARGER_MODELS = TrueLaw(size_part=0.25, parameters=3e5, examples=3e3)
DATA = {"train_examples": TRAIN_EXAMPLES, "classes": 10}


@pytest.fixture(scope="module")
def made() -> Study:
    return study()


@pytest.fixture(scope="module")
def records(made: Study, tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    folder = str(tmp_path_factory.mktemp("run"))
    searched(made, folder, law=LAW_OF_LARGER_MODELS)
    return read_ledger(folder)


@pytest.fixture(scope="module")
def law(records: list[Record]) -> Law:
    return fit_law(runs_of_state(StudyState.of(records)), bootstraps=200)


def test_the_next_budget_is_forecast_with_what_to_train(made: Study, law: Law) -> None:
    budget = budgets_of(made)[4]
    found = forecast_budget(law, made, budget, **DATA)
    cell = budget.cell("F1" if found.variant is None else found.variant)
    assert (found.label, found.flops, found.trials) == (budget.label, budget.flops, budget.runs)
    assert (found.epochs, found.steps, found.parameters) == (cell.epochs, cell.steps, cell.parameters)
    assert not isinstance(found.loss, Refused)
    true = min(LAW_OF_LARGER_MODELS.loss(each.parameters, each.epochs * TRAIN_EXAMPLES) for each in budget.cells)
    assert found.loss.low < true < found.loss.high
    assert found.beyond == pytest.approx(2, rel=0.01)
    json.dumps(found.as_json(), allow_nan=False)


def test_the_variant_is_the_one_nearest_to_the_best_size(made: Study, law: Law) -> None:
    budget = budgets_of(made)[4]
    found = forecast_budget(law, made, budget, **DATA)
    assert found.optimal_parameters is not None
    distance = {
        cell.variant: max(cell.parameters, found.optimal_parameters.value)
        / min(cell.parameters, found.optimal_parameters.value)
        for cell in budget.cells
    }
    assert found.variant == min(distance, key=distance.__getitem__)
    assert found.size_penalty is not None
    assert 0 <= found.size_penalty < 0.05


def test_the_learning_rate_is_that_of_the_trend_and_one_of_the_grid(made: Study, law: Law) -> None:
    found = forecast_budget(law, made, budgets_of(made)[4], **DATA)
    assert found.learning_rate in made.learning_rates
    assert found.learning_rate_estimate is not None
    assert found.parameters is not None
    assert found.epochs is not None
    true = LAW_OF_LARGER_MODELS.best_rate(found.parameters, found.epochs * TRAIN_EXAMPLES)
    assert found.learning_rate_estimate.value == pytest.approx(true, rel=0.15)
    assert found.learning_rate == min(made.learning_rates, key=lambda rate: abs(rate / true - 1))


def test_the_cost_follows_from_the_speed_that_was_measured(made: Study, law: Law, records: list[Record]) -> None:
    speed = speed_of_state(made, StudyState.of(records), 1)
    assert speed.measured
    budget = budgets_of(made)[4]
    found = forecast_budget(law, made, budget, **DATA, speed=speed)
    cell = budget.cell(str(found.variant))
    assert found.core_hours == pytest.approx(cell.flops / (4.5e9 / 0.9) / 3600, rel=1e-3)
    assert found.seconds == pytest.approx(cell.flops / 4.5e9, rel=1e-3)
    assert found.search_seconds is not None
    assert found.search_seconds == pytest.approx(found.seconds * -(-budget.trials // 2), rel=0.05)
    assert not found.cost_estimated


def test_a_cost_by_another_speed_than_the_variants_own_is_an_estimate(made: Study, law: Law) -> None:
    rates = dict.fromkeys(("F0", "F1", "F3"), 5e9)
    for measured, estimated in ((frozenset({"F0", "F1", "F3"}), False), (frozenset[str](), True)):
        found = forecast_budget(law, made, budgets_of(made)[4], **DATA, speed=Speed(rates, measured=measured))
        assert found.cost_estimated is estimated


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_search_takes_as_long_as_its_plan_says_further_seeds_included(seeds: int, law: Law) -> None:
    made = study(f"{STUDY}search: {{seeds: {seeds}}}\n".replace("slices: 2", "slices: 2, flops_per_core_second: 5e9"))
    planned = plan(made, TRAIN_EXAMPLES, 360, 10)
    budget = planned.budgets[4]
    speed = speed_of_state(made, StudyState(), planned.cores_per_slice)
    found = forecast_budget(law, made, budget, **DATA, speed=speed)
    assert found.trials == budget.runs >= budget.trials + seeds - 1
    assert found.search_seconds == pytest.approx(planned.budget_seconds(budget))
    assert found.at_most


def test_only_sampler_trend_or_further_seeds_may_take_fewer_trials(law: Law) -> None:
    for search, fewer in (("sampler: grid", False), ("sampler: grid, seeds: 2", True), ("sampler: trend", True)):
        made = study(f"{STUDY}search: {{{search}}}\n")
        assert forecast_budget(law, made, budgets_of(made)[4], **DATA).at_most is fewer


def test_without_a_speed_the_cost_is_not_known(made: Study, law: Law) -> None:
    found = forecast_budget(law, made, budgets_of(made)[4], **DATA, speed=Speed())
    assert (found.core_hours, found.seconds, found.search_seconds) == (None, None, None)


def test_an_amount_that_buys_nothing_has_a_loss_and_says_so(made: Study, law: Law) -> None:
    found = forecast_budget(law, made, Quantity("1e18 FLOPs", 1e18, "FLOPs"), **DATA)
    assert found.variant is None
    assert not isinstance(found.loss, Refused)
    assert "buys no variant within the range of 0.25 to 64 epochs" in found.notes[0]


def test_a_best_size_that_was_not_searched_is_noted(tmp_path: Path, made: Study) -> None:
    searched(made, str(tmp_path), law=TRUE)
    law = fit_law(runs_of_state(StudyState.of(read_ledger(str(tmp_path)))), bootstraps=200)
    found = forecast_budget(law, made, budgets_of(made)[4], **DATA)
    assert found.variant == "F0"
    assert any("is smaller than any that was searched" in note for note in found.notes)


def test_a_law_of_too_few_budgets_still_says_what_to_train(tmp_path: Path, made: Study) -> None:
    searched(made, str(tmp_path), budgets=2)
    law = fit_law(runs_of_state(StudyState.of(read_ledger(str(tmp_path)))), bootstraps=200)
    found = forecast_budget(law, made, budgets_of(made)[2], **DATA)
    assert isinstance(found.loss, Refused)
    assert found.variant is not None
    assert found.learning_rate is not None
    json.dumps(found.as_json(), allow_nan=False)


def test_budgets_that_were_not_searched_come_next(made: Study, records: list[Record]) -> None:
    (found,) = next_budgets(made, StudyState.of(records), amounts_in_flops(made))
    assert (found.label, found.amount) == ("1.6e11 FLOPs", 1.6e11)


def test_a_budget_that_is_still_being_searched_comes_next(made: Study, records: list[Record]) -> None:
    open_again = StudyState.of(record for record in records if record.get("budget") != "8e10 FLOPs" or
                               record.event != "budget_closed")  # fmt: skip
    found = next_budgets(made, open_again, amounts_in_flops(made))
    assert [each.label for each in found] == ["8e10 FLOPs", "1.6e11 FLOPs"]


def test_after_the_last_budget_comes_one_by_the_studys_own_spacing(records: list[Record]) -> None:
    for unit, label in (("FLOPs", "1.6e11 FLOPs"), ("core-hours", "16 core-hours")):
        budgets = "[2e10 FLOPs, 4e10 FLOPs, 8e10 FLOPs]" if unit == "FLOPs" else "[4 core-hours, 8 core-hours]"
        text = STUDY.replace("[1e10 FLOPs, 2e10 FLOPs, 4e10 FLOPs, 8e10 FLOPs, 1.6e11 FLOPs]", budgets)
        made = study(text.replace("cores_per_slice: 1", "cores_per_slice: 1, flops_per_core_second: 2777777.77777778"))
        found = next_budgets(made, StudyState.of(records), amounts_in_flops(made))
        assert [each.label for each in found] == [label]
        assert found[-1].amount == pytest.approx(1.6e11)
