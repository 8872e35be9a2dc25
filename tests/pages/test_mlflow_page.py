"""MLflow's own page of a study, in a real browser: its runs, views, charts and comparison work at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from search.ledger import Record
from search.state import StudyState
from search.tracked_page import ALL_TRIALS, view_id, view_path
from search.tracking import sync
from search.tracking_server import read_experiment
from search.tracking_uri import default_uri
from tests.pages.browser import Tab
from tests.search.ledgers import synthetic_records
from tests.search.mlflow_server import free_port, server, wait_until_it_answers

pytestmark = pytest.mark.slow
WIDTH, HEIGHT = 1800, 1000
# What MLflow's page logs as errors of any study: it asks for a user where there are none, and its parallel coordinates
# are drawn once before they have a width.
NOT_OURS = ("/ajax-api/2.0/mlflow/users/current", 'Expected number, "translate(NaN)"')


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """A study of three budgets, of 6 trials each, of which one failed."""
    return synthetic_records(trials=6, fail=7)


@pytest.fixture(scope="module")
def pages(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The address of a server that holds the study, and its experiment there."""
    storage, port = tmp_path_factory.mktemp("served"), free_port()
    sync(records, default_uri(storage)[0], artifact_root=default_uri(storage)[1])
    experiment = read_experiment(default_uri(storage)[0], "digits")
    assert experiment is not None
    with server(storage, port):
        wait_until_it_answers(port)
        yield f"http://127.0.0.1:{port}", experiment.experiment_id


def cells(browser: Tab) -> list[dict[str, str]]:
    """The rows of the table that are shown, by the names of their columns."""
    rows: list[dict[str, Any]] = browser.evaluate(
        """[...document.querySelectorAll('.ag-center-cols-container .ag-row')]
            .sort((a, b) => a.getAttribute('row-index') - b.getAttribute('row-index'))
            .map(row => Object.fromEntries(
                [...row.querySelectorAll('.ag-cell')].map(cell => [cell.getAttribute('col-id'), cell.innerText])))"""
    )
    return [{name.split("`")[1]: str(value) for name, value in row.items() if "`" in name} for row in rows]


def shows(browser: Tab, *texts: str) -> None:
    for text in texts:
        browser.until(f"document.body.innerText.includes({text!r})")


def no_errors(browser: Tab) -> None:
    assert [error for error in browser.errors if not any(known in error for known in NOT_OURS)] == []


def test_the_runs_page_describes_the_study_nests_its_trials_and_offers_views(
    browser: Tab, pages: tuple[str, str]
) -> None:
    address, experiment = pages
    browser.open(address + view_path(experiment, None), WIDTH, HEIGHT)
    shows(
        browser, "22 matching runs", "A study of convscale", "study run-1", "2e11 FLOPs", "6e11 FLOPs", "1.8e12 FLOPs"
    )
    assert "F1 lr 0.2" not in browser.text()
    browser.click_on(".ag-row[row-index='0'] [col-id*='Run Name'] button")
    shows(browser, "F1 lr 0.2")
    browser.click_on("[data-testid='saved-views-trigger']")
    shows(browser, "All trials, best first")
    menu = browser.evaluate("document.querySelector('[role=menu]').innerText")
    assert [line for line in menu.splitlines() if "best first" in line] == [
        f"{name}, best first" for name in ("All trials", "1.8e12 FLOPs", "6e11 FLOPs", "2e11 FLOPs")
    ]
    browser.click_on(f"[data-testid='saved-views-item-{view_id('6e11 FLOPs')}']")
    shows(browser, "6 matching runs")
    no_errors(browser)


def test_a_view_lists_the_trials_of_a_budget_best_first(
    browser: Tab, pages: tuple[str, str], records: list[Record]
) -> None:
    address, experiment = pages
    browser.open(address + view_path(experiment, view_id("6e11 FLOPs")), WIDTH, HEIGHT)
    shows(browser, "6 matching runs")
    browser.until("document.querySelectorAll('.ag-center-cols-container .ag-row').length == 6")
    trials = StudyState.of(records).budgets["6e11 FLOPs"].trials
    ranked = sorted((t for t in trials if t.outcome == "finished"), key=lambda trial: trial.heldout_loss)
    rows = cells(browser)
    assert [(row["variant"], row["learning_rate"], row["heldout_loss"]) for row in rows[: len(ranked)]] == [
        (trial.variant, f"{trial.learning_rate:g}", repr(trial.heldout_loss)) for trial in ranked
    ]
    no_errors(browser)


def test_the_chart_view_shows_parallel_coordinates_and_held_out_loss_at_once(
    browser: Tab, pages: tuple[str, str], records: list[Record], tmp_path: Path
) -> None:
    address, experiment = pages
    browser.open(f"{address}{view_path(experiment, ALL_TRIALS)}&compareRunsMode=CHART", WIDTH, HEIGHT)
    placed = "axis => axis.getAttribute('transform').match(/translate\\(\\d/)"
    browser.until(f"[...document.querySelectorAll('.parcoords .dimension')].filter({placed}).length == 6")
    labels = browser.evaluate("[...document.querySelectorAll('.parcoords svg .label')].map(label => label.textContent)")
    assert labels == ["log10_flops", "variant", "epochs", "log10_...g_rate", "core_hours", "heldout_loss"]
    finished = sum(trial.outcome == "finished" for trial in StudyState.of(records).trials.values())
    points = "document.querySelectorAll('.js-plotly-plot .scatterlayer .points path').length"
    browser.until(f"{points} >= {finished}")
    shows(browser, "Trials in parallel coordinates", "Held-out loss", "Training")
    browser.picture(tmp_path / "charts.png")
    no_errors(browser)


def test_trials_that_are_ticked_are_compared_side_by_side(browser: Tab, pages: tuple[str, str]) -> None:
    address, experiment = pages
    browser.open(address + view_path(experiment, view_id("1.8e12 FLOPs")), WIDTH, HEIGHT)
    shows(browser, "6 matching runs")
    for place in range(3):
        tick = f".ag-pinned-left-cols-container .ag-row[row-index='{place}'] input[type=checkbox]"
        browser.click_on(tick)
        browser.until(f"document.querySelector({tick!r}).checked")
    browser.click_on("[data-testid='runs-compare-button']")
    shows(browser, "Comparing 3 Runs from 1 Experiment", "Parallel Coordinates Plot", "learning_rate", "heldout_loss")
    browser.until("document.querySelectorAll('.js-plotly-plot .parcoords .axis-title').length >= 4")
    no_errors(browser)
