"""Optuna's storage shows what the ledger says, no more and no less."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from search.ledger import Record
from search.optuna_view import OptunaView, _Mirror, rebuild
from search.state import StudyState
from tests.search.ledgers import synthetic_records

STATES = {"finished": TrialState.COMPLETE, "diverged": TrialState.PRUNED, "failed": TrialState.FAIL}


def show(records: Sequence[Record], path: Path) -> None:
    view = OptunaView(path, linger_s=0.01)
    for record in records:
        view.feed(record)
    assert view.close(300) == 0


def shown(path: Path) -> dict[str, list[FrozenTrial]]:
    """The trials of each Optuna study in the storage."""
    storage = f"sqlite:///{path}"
    names = optuna.get_all_study_names(storage)
    return {name: optuna.load_study(study_name=name, storage=storage).trials for name in names}


def essence(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    return {
        name: [
            (
                trial.number,
                trial.state,
                trial.values,
                trial.params,
                trial.user_attrs,
                trial.datetime_start,
                trial.datetime_complete,
            )
            for trial in trials
        ]
        for name, trials in shown(path).items()
    }


def time_of(records: Sequence[Record], event: str, trial: str) -> float:
    return next(record.time for record in records if record.event == event and record["trial"] == trial)


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """A study of three budgets, three trials each, one of them failed and one diverged."""
    records = synthetic_records(trials=3, fail=1)
    last = [record for record in records if record.event == "trial_ended"][-1]
    last.fields["outcome"] = "diverged"
    last.fields["result"] |= {"heldout_loss": math.nan, "heldout_accuracy": None, "reason": "loss is not finite"}
    return records


@pytest.fixture(scope="module")
def whole(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("optuna") / "optuna.db"
    show(records, path)
    return path


def test_every_budget_is_a_study_and_every_trial_ends_as_the_ledger_says(records: list[Record], whole: Path) -> None:
    state = StudyState.of(records)
    assert {trial.outcome for trial in state.trials.values()} == {"finished", "diverged", "failed"}
    studies = shown(whole)
    assert list(studies) == [f"digits/run-1/{label}" for label in state.budgets]
    for label, budget in state.budgets.items():
        for trial, frozen in zip(budget.trials, studies[f"digits/run-1/{label}"], strict=True):
            assert frozen.user_attrs["convscale_trial"] == trial.trial_id
            assert frozen.state == STATES[trial.outcome or ""]
            assert frozen.params == trial.params
            assert frozen.values == ([trial.heldout_loss] if trial.outcome == "finished" else None)
            for key in ("variant", "epochs", "learning_rate", "flops", "outcome"):
                assert frozen.user_attrs[key] == getattr(trial, key)
            assert frozen.user_attrs["core_hours"] == trial.meter["core_hours"]
            assert frozen.datetime_start is not None
            assert frozen.datetime_complete is not None
            assert frozen.datetime_start.timestamp() == time_of(records, "trial_started", trial.trial_id)
            assert frozen.datetime_complete.timestamp() == time_of(records, "trial_ended", trial.trial_id)


@pytest.mark.parametrize("event", ["trial_suggested", "trial_started", "trial_progressed"])
def test_times_are_the_ledgers_and_not_those_of_writing(event: str, records: list[Record], tmp_path: Path) -> None:
    """As a search writes them, one event at a time; a trial that has not started yet shows when it was suggested."""
    path, trial = tmp_path / "optuna.db", records[3]["trial"]
    mirror = _Mirror(f"sqlite:///{path}", (1e-4, 1e2))
    ended = next(record.seq for record in records if record.event == "trial_ended")
    for record in records[: ended + 1]:
        mirror.deliver([record])
        if record.event == event:
            ((shown_now,),) = shown(path).values()
            began = "trial_suggested" if event == "trial_suggested" else "trial_started"
            assert shown_now.datetime_start is not None
            assert shown_now.datetime_start.timestamp() == time_of(records, began, trial)
            assert shown_now.datetime_complete is None
    ((shown_now,),) = shown(path).values()
    assert shown_now.duration is not None
    took = time_of(records, "trial_ended", trial) - time_of(records, "trial_started", trial)
    assert math.isclose(shown_now.duration.total_seconds(), took, abs_tol=1e-5)


def test_a_trial_that_is_started_again_keeps_its_first_start(records: list[Record], tmp_path: Path) -> None:
    path = tmp_path / "optuna.db"
    again = Record(5, records[4].time + 100, "trial_started", records[4].fields | {"attempt": 2})
    show([*records[:5], again], path)
    ((trial,),) = shown(path).values()
    assert trial.datetime_start is not None
    assert trial.datetime_start.timestamp() == records[4].time


@pytest.mark.parametrize("at_once", [True, False])
def test_a_failed_trial_that_is_tried_again_ends_as_it_ends_then(at_once: bool, tmp_path: Path) -> None:
    path = tmp_path / "optuna.db"
    few = synthetic_records(trials=1, fail=0)[:8]
    (end,) = (record for record in few if record.event == "trial_ended")
    result = end["result"] | {"heldout_loss": 0.5, "error": None}
    more = [("trial_reopened", {"trial": end["trial"]})]
    more += [("trial_ended", {"trial": end["trial"], "outcome": "finished", "result": result})]
    again = [Record(8 + place, end.time + 10 + place, *event) for place, event in enumerate(more)]
    show(few, path)
    ((trial,),) = shown(path).values()
    assert trial.state == TrialState.FAIL
    if not at_once:
        show([*few, again[0]], path)
        ((trial,),) = shown(path).values()
        assert (trial.state, trial.datetime_complete) == (TrialState.RUNNING, None)
        assert trial.user_attrs["reason"] is None
    show([*few, *again], path)
    ((trial,),) = shown(path).values()
    assert (trial.state, trial.values) == (TrialState.COMPLETE, [0.5])
    assert trial.datetime_complete is not None
    assert trial.datetime_complete.timestamp() == again[1].time
    assert (trial.user_attrs["outcome"], trial.user_attrs["reason"]) == ("finished", None)


def test_a_trial_in_flight_is_running_and_a_new_view_ends_it(
    records: list[Record], whole: Path, tmp_path: Path
) -> None:
    path = tmp_path / "optuna.db"
    last_start = max(record.seq for record in records if record.event == "trial_started")
    show(records[: last_start + 1], path)
    *ended, running = [trial for trials in shown(path).values() for trial in trials]
    assert running.state == TrialState.RUNNING
    assert all(trial.state.is_finished() for trial in ended)
    show(records, path)
    assert essence(path) == essence(whole)


@pytest.mark.parametrize("at_once", [True, False])
def test_a_budget_that_gains_and_loses_variants_keeps_every_trial(at_once: bool, tmp_path: Path) -> None:
    path = tmp_path / "optuna.db"
    whole = synthetic_records(trials=3, budgets=[2e11])
    opened = next(record for record in whole if record.event == "budget_opened")
    f0, f1, f3 = opened["cells"]
    before = next(record.seq for record in whole if record.get("variant") == "F3")
    events = [(record.event, record.fields) for record in whole]
    events[opened.seq] = ("budget_opened", opened.fields | {"cells": [f0, f1]})
    events.insert(before, ("budget_opened", opened.fields | {"cells": [f0, f3]}))
    records = [Record(place, 2e9 + place, *event) for place, event in enumerate(events)]
    view = OptunaView(path, linger_s=0.01)
    for record in records[:before]:
        view.feed(record)
    if not at_once:
        assert view.close(300) == 0
        view = OptunaView(path, linger_s=0.01)
    for record in records if not at_once else records[before:]:
        view.feed(record)
    assert view.close(300) == 0
    (trials,) = shown(path).values()
    assert [(trial.params["variant"], trial.state) for trial in trials] == [
        (variant, TrialState.COMPLETE) for variant in ("F0", "F1", "F3")
    ]


def test_feeding_again_and_rebuilding_change_nothing(records: list[Record], tmp_path: Path) -> None:
    path = tmp_path / "optuna.db"
    few = records[: 1 + next(record.seq for record in records if record.event == "budget_closed")]
    show(few, path)
    once = essence(path)
    show(few, path)
    assert essence(path) == once
    rebuild(few, path)
    assert essence(path) == once


def test_rebuilding_mends_what_was_changed_and_leaves_other_studies_alone(
    records: list[Record], tmp_path: Path
) -> None:
    path = tmp_path / "optuna.db"
    few = records[: 1 + next(record.seq for record in records if record.event == "budget_closed")]
    show(few, path)
    right = essence(path)
    (name,) = right
    study = optuna.load_study(study_name=name, storage=f"sqlite:///{path}")
    study.ask()
    optuna.create_study(study_name="other", storage=f"sqlite:///{path}")
    rebuild(few, path)
    assert essence(path) == right | {"other": []}


def test_a_finished_trial_without_a_finite_loss_is_a_failure(tmp_path: Path) -> None:
    few = synthetic_records(trials=1)[:8]
    end = next(record for record in few if record.event == "trial_ended")
    end.fields["result"]["heldout_loss"] = math.nan
    show(few, tmp_path / "optuna.db")
    ((trial,),) = shown(tmp_path / "optuna.db").values()
    assert trial.state == TrialState.FAIL


def test_a_gap_in_the_ledger_is_refused(records: list[Record], tmp_path: Path) -> None:
    view = OptunaView(tmp_path / "optuna.db")
    with pytest.raises(ValueError, match="event 3 was fed after event -1; feed the ledger from its first event"):
        view.feed(records[3])
    assert view.close(300) == 0


def test_a_storage_that_cannot_be_written_is_said_once(records: list[Record], tmp_path: Path) -> None:
    said: list[str] = []
    view = OptunaView(tmp_path / "nowhere" / "optuna.db", say=said.append, linger_s=0.01)
    for record in records[:5]:
        view.feed(record)
    assert view.close(300) == 5
    assert len(said) == 1
    assert "the search goes on" in said[0]


def test_the_dashboard_lists_the_studies(whole: Path) -> None:
    from optuna_dashboard import wsgi

    storage = optuna.storages.RDBStorage(f"sqlite:///{whole}")
    answer: list[str] = []
    environ = {
        "REQUEST_METHOD": "GET", "PATH_INFO": "/api/studies", "SERVER_NAME": "localhost", "SERVER_PORT": "80",
        "wsgi.input": io.BytesIO(), "wsgi.errors": io.StringIO(), "wsgi.url_scheme": "http",
    }  # fmt: skip
    body = b"".join(wsgi(storage)(environ, lambda status, headers, *_: answer.append(status)))
    assert answer == ["200 OK"]
    assert len(json.loads(body)["study_summaries"]) == 3
