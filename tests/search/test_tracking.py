"""MLflow shows what the ledger says: once each, whatever happened in between."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
import sqlalchemy
from rich.console import Console

from search import tracking_server
from search.commands import sync_study
from search.ledger import Record
from search.state import StudyState
from search.tracked_page import ALL_TRIALS, VIEW_PREFIX, view_id
from search.tracked_runs import TrackedStudy
from search.tracking import Artifact, MlflowView, _Mirror, sync
from search.tracking_errors import is_outage, is_refusal
from search.tracking_uri import TrackingError, check_uri, default_uri
from tests.search.ledgers import synthetic_records
from tests.search.mlflow_server import free_port, server
from tests.search.seeded_ledger import two_seeds


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """A study of three budgets, two trials each, one of them failed and one diverged."""
    records = synthetic_records(trials=2, fail=1)
    ends = [record for record in records if record.event == "trial_ended"]
    ends[-1].fields["outcome"] = "diverged"
    closed = [record for record in records if record.event == "budget_closed"]
    closed[-1].fields["best"] = ends[-2]["trial"]
    ends[-1].fields["result"] |= {"heldout_loss": math.nan, "train_loss": math.inf, "reason": "loss is not finite"}
    return records


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An MLflow database with its tables and nothing in them: making one takes seconds."""
    storage = tmp_path_factory.mktemp("empty")
    uri, root = default_uri(storage)
    view = MlflowView(uri, artifact_root=root, study="none", run="run-1", say=print)
    assert view.close(300) == 0
    assert not (storage / "mlflow.db").exists()  # nothing fed, nothing made
    from mlflow.tracking import MlflowClient

    MlflowClient(uri).search_experiments()
    return (storage / "mlflow.db").read_bytes()


@pytest.fixture
def storage(tmp_path: Path, empty_database: bytes) -> Path:
    (tmp_path / "mlflow.db").write_bytes(empty_database)
    return tmp_path


def view_of(uri: str, root: str | None, said: list[str] | None = None, study: str = "digits") -> MlflowView:
    say = print if said is None else said.append
    return MlflowView(uri, artifact_root=root, study=study, run="run-1", say=say, linger_s=0.01, retry_s=(0.05, 0.1))


def show(records: Sequence[Record], storage: Path) -> None:
    said: list[str] = []
    view = view_of(*default_uri(storage), said)
    for record in records:
        view.feed(record)
    assert view.close(300) == 0
    assert said == []


def contents(uri: str, experiment: str = "digits") -> dict[str, dict[str, Any]]:
    """Everything the server holds of a study, by the runs' keys; a run that is there twice fails."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs: dict[str, dict[str, Any]] = {}
    for run in client.search_runs([found.experiment_id], max_results=1000):
        key = run.data.tags["convscale.key"]
        assert key not in runs
        history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
        runs[key] = {
            "id": run.info.run_id,
            "name": run.info.run_name,
            "status": run.info.status,
            "time": (run.info.start_time, run.info.end_time),
            "params": run.data.params,
            "tags": {name: value for name, value in run.data.tags.items() if name != "mlflow.parentRunId"},
            "parent": run.data.tags.get("mlflow.parentRunId"),
            "points": {
                name: sorted((point.step, point.value, point.timestamp) for point in points)
                for name, points in history.items()
            },
            "files": sorted(file.path for file in client.list_artifacts(run.info.run_id)),
        }
    return runs


def essence(runs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Contents without what every server makes up for itself."""
    return {key: {name: run[name] for name in run if name not in ("id", "parent")} for key, run in runs.items()}


@pytest.fixture(scope="module")
def whole(
    records: list[Record], empty_database: bytes, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """What a search that nothing disturbed leaves behind."""
    storage = tmp_path_factory.mktemp("whole")
    (storage / "mlflow.db").write_bytes(empty_database)
    show(records, storage)
    return contents(default_uri(storage)[0])


def test_a_run_per_trial_under_a_run_per_budget(records: list[Record], whole: dict[str, dict[str, Any]]) -> None:
    state = StudyState.of(records)
    assert set(whole) == {"study", *(f"budget {label}" for label in state.budgets), *state.trials}
    assert whole["study"]["name"] == "study run-1"
    assert whole["study"]["files"] == ["digits.yaml"]
    for label, budget in state.budgets.items():
        run = whole[f"budget {label}"]
        assert (run["name"], run["status"], run["parent"]) == (label, "FINISHED", None)
        assert run["params"]["budget_flops"] == f"{budget.flops:.6g}"
        if budget.best is not None:
            assert run["points"]["best_heldout_loss"][-1][1] == budget.best.heldout_loss
            assert run["tags"]["best_trial"] == budget.best.trial_id
        assert all(whole[trial.trial_id]["parent"] == run["id"] for trial in budget.trials)


def test_a_trials_run_says_all_about_it(records: list[Record], whole: dict[str, dict[str, Any]]) -> None:
    for trial in StudyState.of(records).trials.values():
        run = whole[trial.trial_id]
        assert run["name"] == f"{trial.variant} lr {trial.learning_rate:g}"
        assert run["params"].keys() == {
            "variant", "epochs", "steps", "learning_rate", "batch_size", "seed", "flops", "budget_flops", "parameters",
            "log10_learning_rate", "log10_flops",
        }  # fmt: skip
        budget = StudyState.of(records).budgets[trial.budget]
        assert run["params"]["flops"] == f"{trial.flops:.6g}" != f"{budget.flops:.6g}"
        assert run["params"]["budget_flops"] == f"{budget.flops:.6g}"
        assert run["params"]["steps"] == str(trial.steps)
        assert float(run["params"]["log10_learning_rate"]) == pytest.approx(math.log10(trial.learning_rate), rel=1e-5)
        assert float(run["params"]["log10_flops"]) == pytest.approx(math.log10(trial.flops), rel=1e-5)
        expected = {
            "study": "digits",
            "run": "run-1",
            "kind": "trial",
            "budget": trial.budget,
            "trial": trial.trial_id,
            "variant": trial.variant,
            "outcome": trial.outcome,
            "code_version": "0.1.0",
            "device": "cpu",
            "convscale.budget_flops": repr(budget.flops),
        }
        assert expected.items() <= run["tags"].items()
        end = next(r for r in records if r.event == "trial_ended" and r["trial"] == trial.trial_id)
        assert run["time"] == (round(1000 * trial.suggested_at), round(1000 * end.time))
        step = trial.result["step"]
        for name in ("core_hours", "core_hours_total", "flops", "goodput", "seconds_productive", "seconds_repeated"):
            assert run["points"][name] == [(step, trial.meter[name], run["time"][1])]
        assert run["points"]["mean_images_per_second"][0][1] == trial.meter["images_per_second"]
        for name in ("train_loss", "learning_rate", "images_per_second"):
            assert len(run["points"][name]) == 1


def test_mfu_is_a_metric_where_it_is_known(records: list[Record]) -> None:
    def mfu(known: float | None) -> list[float]:
        study = TrackedStudy("digits", "run-1")
        for record in records[:8]:
            if record.event == "trial_ended":
                result = record["result"] | {"meter": record["result"]["meter"] | {"mfu": known}}
                record = dataclasses.replace(record, fields=record.fields | {"result": result})
            study.apply(record)
        points = study.runs[records[7]["trial"]].changes(-1).points
        return [point.value for point in points if point.name == "mfu"]

    assert records[7].event == "trial_ended"
    assert mfu(0.41) == [0.41]
    assert mfu(None) == []


def test_a_failed_trial_that_is_tried_again_is_no_longer_failed() -> None:
    few = synthetic_records(trials=1, fail=0)[:9]
    assert [record.event for record in few[-2:]] == ["trial_ended", "budget_closed"]
    end, study = few[-2], TrackedStudy("digits", "run-1")
    for record in few:
        study.apply(record)
    trial, budget = study.runs[end["trial"]], study.runs["budget 2e11 FLOPs"]
    assert (trial.status, budget.status) == ("FAILED", "FINISHED")
    study.apply(Record(9, end.time + 10, "trial_reopened", {"trial": end["trial"]}))
    assert (trial.status, trial.ended_ms, budget.status, budget.ended_ms) == ("SCHEDULED", None, "RUNNING", None)
    result = end["result"] | {"heldout_loss": 0.5, "error": None}
    study.apply(Record(10, end.time + 11, "trial_ended", end.fields | {"outcome": "finished", "result": result}))
    tags = trial.changes(-1).tags
    assert trial.status == "FINISHED"
    assert (tags["outcome"], tags["error"], tags["reason"]) == ("finished", "", "")


def with_forecasts(loss: dict[str, Any]) -> list[Record]:
    """A ledger in which the second budget was foretold before its first trial."""
    records = synthetic_records(trials=3)
    second = [record for record in records if record.event == "budget_opened"][1]
    said = {"variant": "F1", "epochs": 12.5, "learning_rate": 0.2, "loss": loss}
    made = Record(0, second.time, "forecast_made", {"budget": second["budget"], "forecast": said})
    place = records.index(second) + 1
    return [dataclasses.replace(each, seq=k) for k, each in enumerate([*records[:place], made, *records[place:]])]


@pytest.mark.parametrize(("low", "inside"), [(0.1, True), (0.99, False)])
def test_a_forecast_is_there_before_its_budget_starts_and_scored_after(low: float, inside: bool) -> None:
    records = with_forecasts({"value": 1.0, "low": low, "high": 2.0})
    label = next(record["budget"] for record in records if record.event == "forecast_made")
    tracked = TrackedStudy("digits", "run-1")
    started = next(k for k, record in enumerate(records) if record.event == "forecast_made") + 1
    for record in records[:started]:
        tracked.apply(record)
    budget = tracked.runs[f"budget {label}"]
    before = {point.name: point.value for point in budget.changes(-1).points}
    assert before == {"forecast_loss": 1.0, "forecast_low": low, "forecast_high": 2.0}
    params = budget.changes(-1).params
    assert [params[f"forecast_{name}"] for name in ("variant", "epochs", "learning_rate")] == ["F1", "12.5", "0.2"]

    for record in records[started:]:
        tracked.apply(record)
    best = StudyState.of(records).budgets[label].best
    assert best is not None
    after = {point.name: point.value for point in budget.changes(-1).points}
    assert after["forecast_error"] == pytest.approx(1.0 / best.heldout_loss - 1)
    assert budget.changes(-1).tags["forecast"] == f"{'inside' if inside else 'outside'} its interval"
    study = [(point.name, point.step) for point in tracked.runs["study"].changes(-1).points]
    assert {("forecast_loss", 1), ("best_heldout_loss", 1)} <= set(study)


@pytest.mark.parametrize("diverging", [False, True])
def test_the_best_loss_of_a_budget_and_its_forecasts_error_are_those_of_the_best_point(diverging: bool) -> None:
    records = two_seeds({"value": 0.36, "low": 0.25, "high": 0.5}, diverging=diverging)
    tracked = TrackedStudy("digits", "run-1")
    for record in records:
        tracked.apply(record)
    state = StudyState.of(records).budgets["2e11 FLOPs"]
    run = tracked.runs["budget 2e11 FLOPs"].changes(-1)
    # 000 is the best until its second seed diverges or is worse than 001, which ended in between
    best = [(point.step, point.value) for point in run.points if point.name == "best_heldout_loss"]
    assert best == [(1, 0.2), (4, 0.3)]
    assert best[-1][1] == state.best_loss
    (error,) = [point.value for point in run.points if point.name == "forecast_error"]
    assert error == pytest.approx(0.36 / state.best_loss - 1)
    assert run.tags["forecast"] == "inside its interval"
    points = tracked.runs["study"].changes(-1).points
    assert [point.value for point in points if point.name == "best_heldout_loss"] == [0.3] * 3


def test_where_there_is_no_forecast_of_the_loss_the_budget_says_why() -> None:
    tracked = TrackedStudy("digits", "run-1")
    for record in with_forecasts({"refused": "2 budgets given"}):
        tracked.apply(record)
    (budget,) = [run for run in tracked.runs.values() if "forecast" in run.changes(-1).tags]
    assert budget.changes(-1).tags["forecast"] == "none: 2 budgets given"
    assert "forecast_loss" not in {point.name for point in budget.changes(-1).points}


def test_what_a_later_session_trains_is_tagged_with_its_code_and_device() -> None:
    """The first of two budgets has ended; of the second, one trial has ended and one has begun."""
    few = synthetic_records(trials=2)
    few = few[: max(record.seq for record in few if record.get("trial") == "6e11-FLOPs-001")]
    assert (few[-1].event, few[-1]["trial"]) == ("trial_checkpointed", "6e11-FLOPs-001")
    study = TrackedStudy("digits", "run-1")

    def add(event: str, **fields: Any) -> None:
        study.apply(Record(study.next_seq, few[-1].time + 1, event, fields))

    def tagged(key: str) -> tuple[str, str]:
        tags = study.runs[key].changes(-1).tags
        return tags["code_version"], tags["device"]

    for record in few:
        study.apply(record)
    before, later = ("0.1.0", "cpu"), ("0.2.0", "cuda")
    mark = study.next_seq - 1
    add("session_started", host="other", pid=2, slices=2, cores_per_slice=1, device="cuda", code_version="0.2.0")
    assert {tagged(key) for key in ("study", "budget 6e11 FLOPs")} == {later}
    assert {tagged(key) for key in ("budget 2e11 FLOPs", "2e11-FLOPs-000", "6e11-FLOPs-001")} == {before}
    assert study.runs["study"].changes(mark).tags["code_version"] == "0.2.0"  # a server is told
    add("trial_started", trial="6e11-FLOPs-001", slice=0, attempt=2, step=5, wait_s=0.0)
    assert tagged("6e11-FLOPs-001") == later
    add("trial_suggested", **next(r for r in few if r.event == "trial_suggested").fields | {"trial": "2e11-FLOPs-009"})
    assert tagged("2e11-FLOPs-009") == later
    add("trial_reopened", trial="2e11-FLOPs-000")
    assert tagged("budget 2e11 FLOPs") == later
    opened = next(record for record in few if record.event == "budget_opened")
    add("budget_opened", **opened.fields | {"cells": opened["cells"][:2]})
    assert study.runs["budget 2e11 FLOPs"].changes(-1).tags["variants"] == "F0, F1"
    add("session_started", host="old", pid=3, slices=2, cores_per_slice=1, device="cpu")  # as early versions wrote it
    assert tagged("study") == ("0.2.0", "cpu")


def test_outcomes_are_statuses_and_what_is_not_finite_is_no_metric(
    records: list[Record], whole: dict[str, dict[str, Any]]
) -> None:
    trials = StudyState.of(records).trials.values()
    assert {trial.outcome for trial in trials} == {"finished", "failed", "diverged"}
    for trial in trials:
        run, status = whole[trial.trial_id], {"finished": "FINISHED", "failed": "FAILED", "diverged": "KILLED"}
        assert run["status"] == status[trial.outcome or ""]
        assert ("heldout_loss" in run["points"]) == (trial.outcome == "finished")
        if trial.outcome == "diverged":
            assert run["tags"]["reason"] == "loss is not finite"
        if trial.outcome == "failed":
            assert run["tags"]["error"].startswith("RuntimeError")


def test_a_search_that_was_cut_off_goes_on_in_the_same_runs(
    records: list[Record], whole: dict[str, dict[str, Any]], storage: Path
) -> None:
    uri, _ = default_uri(storage)
    cut = 1 + max(record.seq for record in records if record.event == "trial_progressed")
    show(records[:cut], storage)
    before = contents(uri)
    assert before[records[cut - 1]["trial"]]["status"] == "RUNNING"
    assert before["study"]["status"] == "RUNNING"
    show(records, storage)
    after = contents(uri)
    assert {key: run["id"] for key, run in before.items()}.items() <= {
        key: run["id"] for key, run in after.items()
    }.items()
    assert essence(after) == essence(whole)


def test_feeding_and_syncing_again_change_nothing(
    records: list[Record], whole: dict[str, dict[str, Any]], storage: Path
) -> None:
    uri, root = default_uri(storage)
    first = sync(records, uri, artifact_root=root)
    assert (first.runs, first.created, first.updated) == (len(whole), len(whole), len(whole))
    for _ in range(2):
        again = sync(records, uri, artifact_root=root)
        assert (again.created, again.updated, again.points, again.refused) == (0, 0, 0, {})
    show(records, storage)
    assert essence(contents(uri)) == essence(whole)


def test_the_study_file_is_kept_without_the_passwords_that_old_ledgers_have_in_it(
    records: list[Record], storage: Path
) -> None:
    from mlflow.tracking import MlflowClient

    text = "tracking: {uri: 'http://alice:hunter2@mlflow.example:5000'}"
    old = replace(records[0], fields=records[0].fields | {"study_file": text})
    uri, root = default_uri(storage)
    sync([old, *records[1:]], uri, artifact_root=root)
    (run,) = [run for run in contents(uri).values() if run["tags"]["kind"] == "study"]
    kept = MlflowClient(uri).download_artifacts(run["id"], next(n for n in run["files"] if n.endswith(".yaml")))
    assert Path(kept).read_text() == "tracking: {uri: 'http://mlflow.example:5000'}"


def test_values_that_are_there_already_are_not_doubled_when_the_mark_is_lost(
    records: list[Record], whole: dict[str, dict[str, Any]], storage: Path
) -> None:
    """As after a crash between the values and the mark of how far they go."""
    from mlflow.tracking import MlflowClient

    uri, root = default_uri(storage)
    sync(records, uri, artifact_root=root)
    client = MlflowClient(uri)
    for run in contents(uri).values():
        client.delete_tag(run["id"], "convscale.seq")
    assert sync(records, uri, artifact_root=root).updated == len(whole)
    assert essence(contents(uri)) == essence(whole)


def test_a_server_that_an_earlier_version_filled_is_brought_up_to_date(
    records: list[Record], whole: dict[str, dict[str, Any]], storage: Path
) -> None:
    """Layout 1 had tags `convscale.variant` and the like, and lacked the parameters for charts."""
    from mlflow.tracking import MlflowClient

    uri, root = default_uri(storage)
    sync(records, uri, artifact_root=root)
    before, client = contents(uri), MlflowClient(uri)
    plain = ("kind", "study", "run", "code_version", "device", "budget", "trial", "variant", "outcome", "best_trial")
    for run in before.values():
        for name in set(plain) & set(run["tags"]):
            client.set_tag(run["id"], f"convscale.{name}", run["tags"][name])
            client.delete_tag(run["id"], name)
        client.set_tag(run["id"], "mine", "stays")
        client.delete_tag(run["id"], "convscale.layout")
    with sqlite3.connect(storage / "mlflow.db") as database:
        database.execute("DELETE FROM params WHERE key LIKE 'log10%'")
    for report in (sync(records, uri, artifact_root=root), sync(records, uri, artifact_root=root)):
        assert (report.created, report.refused) == (0, {})
    assert report.updated == 0
    after = contents(uri)
    assert [run["id"] for run in after.values()] == [run["id"] for run in before.values()]
    assert all(run["tags"].pop("mine") == "stays" for run in after.values())
    assert essence(after) == essence(whole)


def test_the_studys_run_holds_what_all_its_trials_were_trained_with(records: list[Record]) -> None:
    study = TrackedStudy("digits", "run-1")
    identity = {"training.weight_decay": 2e-5, "training.ema_decay": None, "model.width": 0.0625}
    study.apply(dataclasses.replace(records[0], fields=records[0].fields | {"identity": identity}))
    params = study.runs["study"].changes(-1).params
    assert {"training.weight_decay": "2e-05", "training.ema_decay": "None", "model.width": "0.0625"}.items() <= (
        params.items()
    )


def tags_of_experiment(uri: str) -> dict[str, str]:
    from mlflow.tracking import MlflowClient

    experiment = MlflowClient(uri).get_experiment_by_name("digits")
    assert experiment is not None
    return dict(experiment.tags)


def test_the_experiment_is_given_its_page_and_views_of_the_budgets_as_they_open(
    records: list[Record], storage: Path
) -> None:
    from mlflow.tracking import MlflowClient

    uri, root = default_uri(storage)
    first, last = (next(r["budget"] for r in part if r.event == "budget_opened") for part in (records, records[::-1]))
    sync(records[:5], uri, artifact_root=root)
    tags = tags_of_experiment(uri)
    assert f"{VIEW_PREFIX}{ALL_TRIALS}" in tags
    assert f"{VIEW_PREFIX}{view_id(first)}" in tags
    assert f"{VIEW_PREFIX}{view_id(last)}" not in tags
    experiment = MlflowClient(uri).get_experiment_by_name("digits")
    assert experiment is not None
    MlflowClient(uri).set_experiment_tag(experiment.experiment_id, "mlflow.note.content", "my own words")
    sync(records, uri, artifact_root=root)
    later = tags_of_experiment(uri)
    assert f"{VIEW_PREFIX}{view_id(last)}" in later
    assert later["mlflow.note.content"] == "my own words"
    sync(records, uri, artifact_root=root)
    assert tags_of_experiment(uri) == later


def test_the_filters_that_the_description_tells_find_trials(records: list[Record], storage: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri, root = default_uri(storage)
    sync(records, uri, artifact_root=root)
    told = re.findall(r"^- `([^`]+)`", tags_of_experiment(uri)["mlflow.note.content"], flags=re.MULTILINE)
    assert len(told) == 3
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    for chosen in told:
        chosen = chosen.replace("2e15 FLOPs", records[2]["budget"])
        found = client.search_runs([experiment.experiment_id], chosen)
        assert found, chosen
        assert {run.data.tags["kind"] for run in found} == {"trial"}


def test_a_server_that_refuses_the_page_is_given_the_runs(
    records: list[Record], storage: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one that takes no tag of that length."""
    monkeypatch.setattr(tracking_server, "page_changes", lambda there, budgets: {"mlflow.note.content": "x" * 30_000})
    uri, root = default_uri(storage)
    assert sync(records[:5], uri, artifact_root=root).refused == {}
    assert "MLflow refused the page" in caplog.text
    assert records[3]["trial"] in contents(uri)


def test_a_run_that_is_deleted_meanwhile_comes_back_whole(
    records: list[Record], whole: dict[str, dict[str, Any]], storage: Path
) -> None:
    from mlflow.tracking import MlflowClient

    uri, root = default_uri(storage)
    mirror = _Mirror(uri, root, "digits", "run-1")
    mirror.take(records[:6])
    mirror.flush()
    for run in contents(uri).values():
        MlflowClient(uri).delete_run(run["id"])
    mirror.take(records)
    mirror.flush()
    assert mirror.report.refused == {}
    runs = {key: run | {"files": whole[key]["files"]} for key, run in contents(uri).items()}
    assert essence(runs) == essence(whole)
    assert [key for key, run in runs.items() if run["parent"] is None] == [
        key for key, run in runs.items() if whole[key]["parent"] is None
    ]


def test_what_is_refused_is_said_once_and_holds_up_nothing_else(
    records: list[Record], whole: dict[str, dict[str, Any]], storage: Path
) -> None:
    from mlflow.tracking import MlflowClient

    uri, root = default_uri(storage)
    trial = records[3]["trial"]
    sync(records[:5], uri, artifact_root=root)
    client, run = MlflowClient(uri), contents(uri)[trial]["id"]
    client.delete_tag(run, "convscale.seq")
    said: list[str] = []
    view = view_of(uri, root, said)
    for record in records:
        changed = record.fields | {"batch_size": 1} if record.get("trial") == trial else record.fields
        view.feed(dataclasses.replace(record, fields=changed))
    assert view.close(300) == 1
    assert len(said) == 1
    assert f"refused {trial}" in said[0]
    others, expected = (essence({k: v for k, v in runs.items() if k != trial}) for runs in (contents(uri), whole))
    assert others == expected


def test_two_studies_of_one_name_do_not_mix(records: list[Record], storage: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri, root = default_uri(storage)
    other = [dataclasses.replace(record, time=record.time + 1) for record in records[:6]]
    for ledger in (records[:6], other, records[:6]):
        sync(ledger, uri, artifact_root=root)
    experiment = MlflowClient(uri).get_experiment_by_name("digits")
    assert experiment is not None
    runs = MlflowClient(uri).search_runs([experiment.experiment_id])
    assert len(runs) == 6
    assert len({run.data.tags["convscale.ledger"] for run in runs}) == 2


def test_trials_at_once_repeated_steps_and_an_interruption(records: list[Record], storage: Path) -> None:
    head = records[:3]
    events: list[tuple[str, dict[str, Any]]] = []
    suggested = [record for record in records if record.event == "trial_suggested"][:2]
    a, b = (record["trial"] for record in suggested)
    events += [("trial_suggested", record.fields) for record in suggested]
    events += [("trial_started", {"trial": t, "slice": 0, "attempt": 1, "step": 0, "wait_s": 0.0}) for t in (a, b)]
    for trial, steps in ((a, (1, 2)), (b, (1,)), (a, (3, 4)), (b, (2, math.nan))):
        points = [[k if k == k else 3, 1.0 if k == k else math.nan, 0.1, 5.0] for k in steps]
        events.append(("trial_progressed", {"trial": trial, "step": points[-1][0], "points": points, "meter": {}}))
    events.append(("trial_started", {"trial": a, "slice": 1, "attempt": 2, "step": 2, "wait_s": 0.0}))
    repeated = [[3, 1.0, 0.1, 6.0], [4, 1.0, 0.1, 6.0], [5, 1.0, 0.1, 6.0]]
    events.append(("trial_progressed", {"trial": a, "step": 5, "points": repeated, "meter": {}}))
    events.append(("session_ended", {"reason": "interrupted"}))
    for event, fields in events:
        head.append(Record(len(head), head[-1].time + 1, event, fields))
    show(head, storage)
    runs = contents(default_uri(storage)[0])
    assert [step for step, *_ in runs[a]["points"]["train_loss"]] == [1, 2, 3, 4, 5]
    assert [step for step, *_ in runs[b]["points"]["train_loss"]] == [1, 2]
    assert [step for step, *_ in runs[b]["points"]["images_per_second"]] == [1, 2, 3]
    assert runs[a]["tags"]["attempts"] == "2"
    assert {run["status"] for run in runs.values()} == {"SCHEDULED"}


def test_thousands_of_points_are_delivered(records: list[Record], storage: Path) -> None:
    head = records[:5]
    points = [[k, 1.0, 0.1, 5.0] for k in range(1500)]
    fields = {"trial": head[3]["trial"], "step": 1500, "points": points, "meter": {}}
    show([*head, Record(5, head[-1].time + 1, "trial_progressed", fields)], storage)
    run = contents(default_uri(storage)[0])[head[3]["trial"]]
    assert {len(values) for values in run["points"].values()} == {1500}


def test_figures_go_to_the_study_or_to_a_budget_and_nothing_to_the_working_directory(
    records: list[Record], storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    working = storage / "here"
    working.mkdir()
    monkeypatch.chdir(working)
    figure = storage / "frontier.png"
    figure.write_bytes(b"one")
    uri, root = default_uri(storage)
    label = records[2]["budget"]
    view = view_of(uri, None)
    for record in records[:5]:
        view.feed(record)
    view.artifact(figure)
    view.artifact(figure, budget=label)
    figure.write_bytes(b"two")
    view.artifact(figure)
    assert view.close(300) == 0
    runs = contents(uri)
    assert runs["study"]["files"] == ["digits.yaml", "frontier.png"]
    assert runs[f"budget {label}"]["files"] == ["frontier.png"]
    assert {path.read_bytes() for path in Path(root).rglob("frontier.png")} == {b"one", b"two"}
    assert list(working.iterdir()) == []
    sync(records[:5], uri, artifact_root=None, artifacts=[Artifact.read(figure, label)])
    assert {path.read_bytes() for path in Path(root).rglob("frontier.png")} == {b"two"}


@pytest.mark.parametrize(
    "uri",
    ["", "mlruns", "file:///tmp/mlruns", "/tmp/mlflow.db", "http://", "http://host:port", "http://my host:1", "htp://host",
     "sqlite://", "sqlite:///", "sqlite://relative.db", "sqlite:///:memory:", "sqlite:////tmp",
     "postgresql://host/db"],
)  # fmt: skip
def test_a_malformed_address_is_refused_at_once_in_one_line(uri: str) -> None:
    with pytest.raises(TrackingError, match=r"^tracking address .*; give http\(s\)://HOST:PORT") as caught:
        view_of(uri, None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    ["http://127.0.0.1:5000", "https://user:secret@mlflow.example.org/path", "sqlite:////data/mlflow.db",
     "databricks", "databricks://profile"],
)  # fmt: skip
def test_a_good_address_is_accepted(uri: str) -> None:
    check_uri(uri)


def test_a_gap_in_the_ledger_is_refused(records: list[Record], tmp_path: Path) -> None:
    view = view_of(*default_uri(tmp_path))
    with pytest.raises(ValueError, match="event 3 was fed after event -1; feed the ledger from its first event"):
        view.feed(records[3])
    assert view.close(300) == 0


def test_an_address_that_does_not_answer_is_said_once_without_its_password(records: list[Record]) -> None:
    said: list[str] = []
    uri = f"http://user:secret@127.0.0.1:{free_port()}"
    view = view_of(uri, None, said)
    for record in records:
        view.feed(record)
    assert view.close(300) == len(records)
    assert len(said) == 1
    assert "cannot be reached (Connection refused); the search goes on" in said[0]
    assert "secret" not in said[0]
    with pytest.raises(TrackingError, match=r"cannot be reached .*; start it, or correct the address"):
        sync(records, uri, artifact_root=None)


@pytest.mark.parametrize(
    ("error", "outage"),
    [
        (ConnectionRefusedError(), True),
        (PermissionError(), True),
        (sqlite3.OperationalError("database is locked"), True),
        (sqlalchemy.exc.OperationalError("select", {}, Exception()), True),
        (requests.exceptions.ReadTimeout(), True),
        (KeyError("classes"), False),
        (TypeError("unsupported operand"), False),
        (ImportError("no module"), False),
    ],
    ids=repr,
)
def test_an_outage_is_an_error_of_the_network_the_database_or_the_disk(error: Exception, outage: bool) -> None:
    assert is_outage(error) is outage


def test_what_mlflow_raises_is_an_outage_or_a_refusal() -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_STATE

    assert is_outage(MlflowException("API request failed"))
    assert not is_refusal(MlflowException("API request failed"))
    assert is_refusal(MlflowException("deleted", error_code=INVALID_STATE))


def held_view(storage: Path, said: list[str]) -> MlflowView:
    uri, root = default_uri(storage)
    return MlflowView(
        uri,
        artifact_root=root,
        study="digits",
        run="run-1",
        say=said.append,
        linger_s=0.0,
        retry_s=(0.001, 0.001),
        hold=True,
    )


def test_a_mistake_in_the_program_is_said_as_one_and_nothing_counts_as_delivered(
    records: list[Record], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[str] = []
    view = held_view(tmp_path, said)
    impossible = Record(3, records[2].time, "budget_closed", {"budget": "no such budget", "best": None})
    for record in (*records[:3], impossible):
        view.feed(record)
    assert view.close(300) == 4
    where = f"MLflow at sqlite:///{tmp_path}/mlflow.db"
    assert said == [
        f"{where} is not up to date (an error of convscale's own, KeyError: 'budget no such budget'; see the log); "
        "the ledger has everything, and the search goes on"
    ]
    (logged,) = caplog.records
    assert logged.exc_info is not None
    assert logged.exc_info[0] is KeyError
    with pytest.raises(KeyError, match="no such budget"):
        sync([*records[:3], impossible], where.removeprefix("MLflow at "), artifact_root=None)


def test_a_mistake_is_said_once_also_behind_an_outage_and_what_waited_gets_through(
    records: list[Record], storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Exception] = [
        TimeoutError("timed out"),
        TypeError("a"),
        TypeError("b"),
        TimeoutError(),
        TypeError("c"),
    ]
    flush, said, through = _Mirror.flush, [], threading.Event()

    def flush_in_the_end(mirror: _Mirror) -> None:
        if errors:
            raise errors.pop(0)
        flush(mirror)
        through.set()

    monkeypatch.setattr(_Mirror, "flush", flush_in_the_end)
    view = held_view(storage, said)
    for record in records[:3]:
        view.feed(record)
    view.release()
    assert through.wait(60)
    assert view.close(300) == 0
    assert ["cannot be reached (timed out)" in line for line in said] == [True, False, False]
    assert "TypeError: a" in said[1]
    assert "delivered 3 events" in said[2]


class Lines(list[str]):
    """Lines that can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()

    def say(self, line: str) -> None:
        with self._changed:
            self.append(line)
            self._changed.notify_all()

    def wait_for(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self) >= count, timeout=400), list(self)


@pytest.mark.slow
def test_two_processes_at_once_make_one_database_one_set_of_runs_and_no_noise(
    records: list[Record], whole: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "records").write_text("\n".join(record.to_json() for record in records))
    program = """
import logging, sys
from pathlib import Path
from search.ledger import Record
from search.tracking import sync
from search.tracking_uri import default_uri
logging.basicConfig(level=logging.WARNING)
folder = Path(sys.argv[1])
uri, root = default_uri(folder / "new")
sync([Record.from_json(line) for line in (folder / "records").read_text().splitlines()], uri, artifact_root=root)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(2)]
    outputs = [process.communicate(timeout=400)[0] for process in processes]
    assert (outputs, [process.returncode for process in processes]) == ([b"", b""], [0, 0])
    assert essence(contents(default_uri(tmp_path / "new")[0])) == essence(whole)


@pytest.mark.slow
def test_a_server_that_comes_late_and_restarts_gets_everything(
    records: list[Record], whole: dict[str, dict[str, Any]], storage: Path
) -> None:
    port, said = free_port(), Lines()
    uri = f"http://127.0.0.1:{port}"
    view = MlflowView(
        uri, artifact_root=None, study="digits", run="run-1", say=said.say, linger_s=0.01, retry_s=(0.1, 0.2)
    )
    third = len(records) // 3
    for record in records[:third]:
        view.feed(record)
    said.wait_for(1)
    with server(storage, port):
        said.wait_for(2)
    for record in records[third : 2 * third]:
        view.feed(record)
    said.wait_for(3)
    with server(storage, port):
        said.wait_for(4)
        for record in records[2 * third :]:
            view.feed(record)
        assert view.close(300) == 0
        assert sync(records, uri, artifact_root=None).updated == 0
        assert essence(contents(uri)) == essence(whole)
    assert ["cannot be reached" in line for line in said] == [True, False, True, False]
    assert f"delivered {third} events" in said[1]


# ---------------------------------------------------------------- the command sync


@pytest.fixture
def study(records: list[Record], storage: Path) -> Path:
    """A study file whose newest run, beside an empty database of MLflow, is that of the records."""
    folder = storage / "digits" / "run-1"
    folder.mkdir(parents=True)
    (folder / "ledger.jsonl").write_text("".join(f"{record.to_json()}\n" for record in records))
    values = {"name": "digits", "data": {"source": "digits", "image_size": 32}, "budgets": ["2e11 FLOPs"]}
    path = storage / "digits.yaml"
    path.write_text(json.dumps(values | {"storage": str(storage)}))
    return path


def synced(study: Path, uri: str | None = None) -> list[str]:
    """What the command prints."""
    out = io.StringIO()
    sync_study(study, uri, Console(file=out, width=200))
    return out.getvalue().splitlines()


def test_a_server_that_does_not_answer_is_said_before_anything_is_drawn(study: Path) -> None:
    with pytest.raises(TrackingError, match=r"^MLflow at http://127.0.0.1:\d+ cannot be reached"):
        synced(study, f"http://127.0.0.1:{free_port()}")
    assert [path.name for path in (study.parent / "digits" / "run-1").iterdir()] == ["ledger.jsonl"]


def test_a_malformed_address_is_said_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="tracking address 'there' is neither a server nor"):
        synced(tmp_path / "no-study.yaml", "there")


def test_a_folder_that_cannot_be_written_to_keeps_nothing_from_mlflow(
    study: Path, whole: dict[str, dict[str, Any]]
) -> None:
    run = study.parent / "digits" / "run-1"
    (run / "figures").touch()
    (run / "optuna.db").mkdir()
    drawn, optuna, told = synced(study)
    assert drawn.startswith("figures, table and report could not be written ([Errno ")
    assert str(run / "figures") in drawn
    assert optuna.startswith("Optuna's storage could not be written (")
    assert "unable to open database file" in optuna
    assert f"{len(whole)} runs of digits run-1, {len(whole)} made" in told
    assert essence(contents(default_uri(study.parent)[0])) == essence(whole)


@pytest.mark.slow
def test_figures_table_and_report_are_kept_with_the_studys_run(study: Path, whole: dict[str, dict[str, Any]]) -> None:
    (told,) = synced(study)
    assert f"{len(whole)} runs of digits run-1, {len(whole)} made" in told
    files = contents(default_uri(study.parent)[0])["study"]["files"]
    assert {"digits.yaml", "loss_vs_compute.png", "results.csv", "report.html"} <= set(files)
    (again,) = synced(study)
    assert again.endswith("0 made, 0 brought up to date, 0 metric points sent")
