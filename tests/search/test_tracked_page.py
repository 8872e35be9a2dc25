"""MLflow's page of a study: its description and views are there at once, and what a person made of them stays."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import pytest

from search.tracked_page import ALL_TRIALS, VIEW_PREFIX, WRITTEN, page_changes, page_tags, view_id, view_path
from search.tracked_runs import TrackedStudy
from tests.search.ledgers import synthetic_records

BUDGETS = {"2e11 FLOPs": 2e11, "400 core-hours": 5.7e19}


def view(tags: dict[str, str], name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A view as the page reads it: its envelope, and what it shows."""
    envelope = json.loads(tags[VIEW_PREFIX + name])
    scheme, _, packed = envelope["state"].partition(";")
    assert scheme == "deflate"
    return envelope, json.loads(zlib.decompress(base64.b64decode(packed)))


def test_there_is_a_view_of_all_trials_and_one_of_each_budget_the_largest_first() -> None:
    tags = page_tags(BUDGETS)
    names = [json.loads(value) for name, value in tags.items() if name.startswith(VIEW_PREFIX)]
    ordered = sorted(names, key=lambda envelope: -envelope["createdAt"])
    assert [envelope["name"].removesuffix(", best first") for envelope in ordered] == [
        "All trials",
        "400 core-hours",
        "2e11 FLOPs",
    ]


def test_a_view_shows_trials_alone_best_first_and_so_not_nested() -> None:
    tags = page_tags(BUDGETS)
    for name, chosen in (
        (ALL_TRIALS, "tags.kind = 'trial'"),
        (view_id("400 core-hours"), "tags.kind = 'trial' and tags.budget = '400 core-hours'"),
    ):
        _, state = view(tags, name)
        assert state["searchFilter"] == chosen
        assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`heldout_loss`", True)
        assert state["runsHiddenMode"] == "SHOW_ALL"


def test_all_that_a_view_shows_is_there() -> None:
    """Columns and axes are parameters, metrics and tags that trials have."""
    study = TrackedStudy("digits", "run-1")
    for record in synthetic_records(trials=1):
        study.apply(record)
    trial = study.runs["2e11-FLOPs-000"].changes(-1)
    metrics = {point.name for point in trial.points}
    there = {f"params.`{name}`" for name in trial.params} | {f"tags.`{name}`" for name in trial.tags}
    there |= {f"metrics.`{name}`" for name in metrics}
    tags = page_tags(study.budgets)
    for name in (ALL_TRIALS, view_id("2e11 FLOPs")):
        _, state = view(tags, name)
        assert set(state["selectedColumns"]) <= there
        sections = {section["uuid"] for section in state["compareRunSections"]}
        for chart in state["compareRunCharts"]:
            assert chart["metricSectionId"] in sections
            axes = [chart[axis] for axis in ("xaxis", "yaxis") if axis in chart]
            params = {axis["key"] for axis in axes if axis["type"] == "PARAM"} | {*chart.get("selectedParams", ())}
            shown = {axis["key"] for axis in axes if axis["type"] == "METRIC"}
            shown |= {*chart.get("selectedMetrics", ()), *chart.get("selectedMetricKeys", ())}
            assert params <= set(trial.params)
            assert shown <= metrics


def test_the_charts_begin_with_parallel_coordinates_that_end_at_the_loss() -> None:
    _, state = view(page_tags(BUDGETS), ALL_TRIALS)
    first = state["compareRunCharts"][0]
    assert first["type"] == "PARALLEL"
    assert first["selectedParams"] == ["log10_flops", "variant", "epochs", "log10_learning_rate"]
    assert first["selectedMetrics"][-1] == "heldout_loss"


def test_the_description_has_a_line_for_each_paragraph_because_the_page_breaks_lines_as_they_are() -> None:
    lines = page_tags(BUDGETS)["mlflow.note.content"].splitlines()
    assert lines[0].endswith("given so much compute.")
    assert all(line == "" or line[0].isupper() or line.startswith("- `") for line in lines)
    assert sum(line.startswith("- `tags.kind = 'trial' and ") for line in lines) == 3


def test_tags_fit_what_older_servers_take_also_where_names_are_long() -> None:
    many = {f"{1.23456789e15 * 2**k!r} TPU-v4 core-hours": 1e20 * 2**k for k in range(40)}
    tags = page_changes({}, many)
    assert max(map(len, tags.values())) < 5000
    assert max(map(len, tags)) < 250


def applied(there: dict[str, str], budgets: dict[str, float] = BUDGETS) -> dict[str, str]:
    return there | page_changes(there, budgets)


def test_a_page_that_is_as_it_should_be_is_left_alone() -> None:
    assert page_changes(applied({}), BUDGETS) == {}


def test_a_budget_that_is_new_gets_its_view_and_the_others_keep_theirs() -> None:
    there = applied({}, {"2e11 FLOPs": 2e11})
    assert page_changes(there, BUDGETS).keys() == {VIEW_PREFIX + view_id("400 core-hours"), WRITTEN}
    assert page_changes(applied(there), {"2e11 FLOPs": 2e11}) == {}


def test_what_an_earlier_version_wrote_is_brought_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr("search.tracked_page._note", lambda: "old words")
        there = applied({})
    assert there["mlflow.note.content"] == "old words"
    assert page_changes(there, BUDGETS).keys() == {"mlflow.note.content", WRITTEN}


@pytest.mark.parametrize("name", ["mlflow.note.content", VIEW_PREFIX + ALL_TRIALS, "mlflow.experimentKind"])
def test_what_a_person_changed_or_deleted_or_had_before_stays_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = applied({}) | {name: "mine"}
    deleted = {other: value for other, value in applied({}).items() if other != name}
    had = applied({name: "mine"})
    monkeypatch.setattr("search.tracked_page._note", lambda: "new words")
    for there in (changed, deleted, had):
        assert name not in page_changes(there, BUDGETS)


def test_a_page_whose_writing_was_cut_off_is_completed() -> None:
    """The digests are written last; what is there without one is known by being what it should be."""
    whole = applied({})
    cut = dict(list(whole.items())[:3])
    assert WRITTEN not in cut
    assert applied(cut) == whole


def test_a_view_is_found_behind_a_servers_address() -> None:
    assert view_path("7", "convscale-trials") == (
        "/#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey=convscale-trials"
    )
    assert view_path("7", None) == "/#/experiments/7/runs?workflowType=machine_learning"
