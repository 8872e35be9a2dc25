"""What a search says of a budget before it spends it, and how that is scored."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import search.law
from search.budgets import open_budgets
from search.foretold import Score, closed_only, foreteller, score_of
from search.law import LossForecast, fit_law, runs_of_state
from search.law.forecast import Speed
from search.law_command import counted_runs, study_forecasts
from search.ledger import read_ledger
from search.progress import ProgressView
from search.results import render_results
from search.speed import speed_of_study
from search.state import BudgetState, StudyState
from search.study import read_study
from tests.search.law import made_up
from tests.search.ledgers import synthetic_records
from tests.search.test_director import STUDY, World, cut, told
from tests.search.test_repeats import trial

FIVE = STUDY.replace("[4e9 FLOPs, 8e9 FLOPs]", "[2e9 FLOPs, 4e9 FLOPs, 8e9 FLOPs, 1.6e10 FLOPs, 3.2e10 FLOPs]")


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of five budgets, each with a forecast; losses do not depend on the budget."""
    folder = tmp_path_factory.mktemp("foretold")
    study = read_study(FIVE)
    with World(study, open_budgets(study, 1437, 10)[0], folder, slices=1) as world:
        world.director.foretell = foreteller(study, train_examples=1437, classes=10, speed=Speed)
        world.run()
    return folder


def test_a_forecast_is_in_the_ledger_before_the_budgets_first_trial(searched: Path) -> None:
    records = read_ledger(str(searched))
    labels = list(StudyState.of(records).budgets)
    assert told(searched, "forecast_made") == labels[1:]  # nothing is known before the first
    for label in labels[1:]:
        events = [record.event for record in records if record.get("budget") == label]
        assert events.index("forecast_made") < events.index("trial_suggested")


def test_a_forecast_names_variant_rate_and_loss_or_says_why_it_cannot(searched: Path) -> None:
    said = [record["forecast"] for record in read_ledger(str(searched)) if record.event == "forecast_made"]
    assert all(json.loads(json.dumps(each)) == each for each in said)
    assert "at least 3" in said[0]["loss"]["refused"]
    assert {each["variant"] for each in said} <= {"F0", "F1"}
    assert {each["learning_rate"] for each in said} <= {0.1, 0.2, 0.4, 0.8, 1.6}
    for each in said[2:]:
        loss = each["loss"]
        assert "refused" in loss or loss["low"] <= loss["value"] <= loss["high"]


def test_a_forecast_is_the_one_that_the_law_gives_of_the_same_budgets(searched: Path) -> None:
    """Resample for resample: what is told afterwards of the same prediction must not contradict it."""
    state = StudyState.of(read_ledger(str(searched)))
    last = list(state.budgets.values())[-1]
    said = last.forecast
    assert said is not None
    law = fit_law(runs_of_state(closed_only(state, below=last.flops)))
    expected = law.forecast(last.flops)
    assert isinstance(expected, LossForecast)
    assert said["loss"] == {name: getattr(expected.loss, name) for name in ("value", "low", "high")}


@pytest.mark.parametrize("device", ["cpu", "tpu"])
def test_a_forecast_costs_what_the_law_says_it_does(tmp_path: Path, device: str) -> None:
    """On another device than the trials so far, by what is known of that, and not by what they were measured at."""
    compute = {"cpu": "device: cpu, slices: 2, cores_per_slice: 1", "tpu": "device: tpu, accelerator: tpu-v4-8"}
    made = made_up.study(made_up.STUDY.replace(compute["cpu"], compute[device]))
    assert made.compute.device == device
    made_up.searched(made_up.study(), str(tmp_path))
    records = read_ledger(str(tmp_path))
    state, counts = StudyState.of(records), {"train_examples": 1437, "classes": 10}
    foretell = foreteller(made, **counts, speed=lambda: speed_of_study(made, records))
    said = foretell(state, open_budgets(made, *counts.values())[0][4])
    assert said is not None
    (law, *_) = study_forecasts(made, records, fit_law(counted_runs(state)))
    assert said["core_hours"] == law.core_hours
    assert said["cost_estimated"] is law.cost_estimated is (device == "tpu")


def test_a_budget_that_is_opened_again_is_not_foretold_again(tmp_path: Path) -> None:
    for trials in (4, 6):
        study = read_study(STUDY.replace("trials: 8", f"trials: {trials}"))
        with World(study, open_budgets(study, 1437, 10)[0], tmp_path, slices=1) as world:
            world.director.foretell = foreteller(study, train_examples=1437, classes=10, speed=Speed)
            world.run()
    assert len(told(tmp_path, "budget_opened")) == 4
    assert len(told(tmp_path, "forecast_made")) == 1


def test_a_forecast_that_fails_is_logged_and_the_search_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(search.law, "fit_law", broken)
    study = read_study(STUDY)
    with caplog.at_level(logging.ERROR), World(study, open_budgets(study, 1437, 10)[0], tmp_path, slices=1) as world:
        world.director.foretell = foreteller(study, train_examples=1437, classes=10, speed=Speed)
        world.run()
        assert world.director.done
    assert "no forecast of budget 8e9 FLOPs" in caplog.text
    (made,) = [record for record in read_ledger(str(tmp_path)) if record.event == "forecast_made"]
    assert made["forecast"]["loss"] == {"refused": "the forecast failed: ZeroDivisionError; see logs/search.log"}


def test_a_forecast_is_made_from_closed_budgets_alone(tmp_path: Path) -> None:
    """With two slices the second budget begins while the first one's last trial runs: its best may still change."""
    study = read_study(FIVE)
    with World(study, open_budgets(study, 1437, 10)[0], tmp_path, slices=2) as world:
        world.director.foretell = foreteller(study, train_examples=1437, classes=10, speed=Speed)
        world.run()
    state = StudyState.of(read_ledger(str(tmp_path)))
    assert told(tmp_path, "forecast_made") == list(state.budgets)[2:]
    assert "1 budget given" in next(iter(list(state.budgets.values())[2:])).forecast["loss"]["refused"]  # type: ignore[index]


def test_killed_before_a_forecast_is_written_a_search_makes_it_when_it_goes_on(searched: Path, tmp_path: Path) -> None:
    study, records = read_study(FIVE), read_ledger(str(searched))
    for opened in [record.seq for record in records if record.event == "budget_opened"]:
        folder = tmp_path / str(opened)
        cut(searched, folder, opened + 1)
        with World(study, open_budgets(study, 1437, 10)[0], folder, slices=1) as world:
            world.director.foretell = foreteller(study, train_examples=1437, classes=10, speed=Speed)
            world.run()
        assert told(folder, "forecast_made") == told(searched, "forecast_made")


def test_a_budget_that_is_added_between_others_is_foretold_from_the_smaller_ones(tmp_path: Path) -> None:
    """The larger ones would make it an interpolation, and its score too good."""
    for text in (FIVE.replace("4e9 FLOPs, ", ""), FIVE):
        study = read_study(text)
        with World(study, open_budgets(study, 1437, 10)[0], tmp_path, slices=1) as world:
            world.director.foretell = foreteller(study, train_examples=1437, classes=10, speed=Speed)
            world.run()
    forecast = world.director.state.budgets["4e9 FLOPs"].forecast
    assert forecast is not None
    assert "1 budget given" in forecast["loss"]["refused"]


def budget_with(forecast: dict[str, Any] | None, *, closed: bool = True) -> BudgetState:
    budget = BudgetState("1e10 FLOPs", 1e10, 2, [], frozenset({"F0"}), [trial("F0", 0.1, 1.0)], forecast)
    budget.closed = closed
    return budget


SAID: dict[str, Any] = {
    "loss": {"value": 1.1, "low": 0.95, "high": 1.3}, "variant": "F0", "learning_rate": 0.2, "epochs": 2.0,
}  # fmt: skip


def test_a_score_says_how_far_off_and_whether_inside() -> None:
    score = score_of(budget_with(SAID))
    assert isinstance(score, Score)
    assert score.error == pytest.approx(0.1)
    assert score.inside
    assert (score.best_variant, score.best_learning_rate) == ("F0", 0.1)
    outside = score_of(budget_with(SAID | {"loss": {"value": 1.1, "low": 1.05, "high": 1.3}}))
    assert outside is not None
    assert not outside.inside


def test_there_is_no_score_before_the_end_without_a_loss_or_without_a_forecast() -> None:
    assert score_of(budget_with(SAID, closed=False)) is None
    assert score_of(budget_with(None)) is None
    assert score_of(budget_with(SAID | {"loss": {"refused": "2 budgets"}})) is None


def test_results_show_what_was_foretold_and_what_came_of_it() -> None:
    records = synthetic_records(trials=3)
    state = StudyState.of(records)
    last = list(state.budgets.values())[-1]
    last.forecast = SAID
    output = io.StringIO()
    render_results(state, Console(file=output, width=140))
    text = output.getvalue()
    assert "Forecasts made before each budget" in text
    assert "0.950 to 1.30" in text
    assert "Forecasts made" not in rendered(synthetic_records(trials=3))


def rendered(records: Any) -> str:
    output = io.StringIO()
    render_results(StudyState.of(records), Console(file=output, width=140))
    return output.getvalue()


@pytest.mark.parametrize(
    ("loss", "line"),
    [
        (SAID["loss"], "budget 2e11 FLOPs: forecast 1.10 (0.950 to 1.30), F0 at 0.2"),
        ({"refused": "2 budgets given"}, "budget 2e11 FLOPs: no forecast (2 budgets given)"),
    ],
)
def test_a_search_shows_its_forecast(loss: dict[str, Any], line: str) -> None:
    output = io.StringIO()
    records = synthetic_records(trials=3, until=3)
    view = ProgressView(Console(file=output, width=140), records, live=False)
    made = records[-1].__class__(3, 1.8e9, "forecast_made", {"budget": "2e11 FLOPs", "forecast": SAID | {"loss": loss}})
    view.feed(made)
    assert line in output.getvalue()
