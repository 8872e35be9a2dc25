"""The views together: where MLflow's runs go, what is written into a run's folder, and who is fed what."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import fsspec
import pytest
from rich.console import Console

from search.progress import ProgressView
from search.state import StudyState
from search.study import Study, read_study
from search.tracking_uri import TrackingError, check_uri, shown, without_passwords
from search.views import Views, check_tracking, tracking_address, write_results
from tests.search.ledgers import synthetic_records

FIGURES = (
    "loss_vs_compute", "optimal_learning_rate", "iso_compute", "learning_rate_valley", "law_residuals",
    "search_progress",
)  # fmt: skip
FILES = (*(f"figures/{name}.png" for name in FIGURES), "results.csv", "report.html")


def study_with(*lines: str) -> Study:
    head = ("name: tiny", "data: {source: digits, image_size: 32}", "budgets: [4e9 FLOPs]")
    return read_study("\n".join([*head, *lines]))


# ---------------------------------------------------------------- where MLflow's runs go


def test_by_default_mlflow_is_a_database_in_the_storage(tmp_path: Path) -> None:
    address = tracking_address(study_with(f"storage: {tmp_path}"))
    assert address == (f"sqlite:///{tmp_path}/mlflow.db", f"{tmp_path}/mlartifacts")
    check_uri(address[0])


def test_with_a_relative_storage_the_addresses_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking_address(study_with("storage: out")) == (
        f"sqlite:///{tmp_path}/out/mlflow.db",
        f"{tmp_path}/out/mlartifacts",
    )


def test_a_database_cannot_lie_in_remote_storage_but_artefacts_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = (f"sqlite:///{tmp_path}/runs/mlflow.db", "memory://bucket/studies/mlartifacts")
    assert tracking_address(study_with("storage: memory://bucket/studies")) == expected
    assert tracking_address(study_with("storage: memory://bucket/studies/")) == expected


@pytest.mark.parametrize("storage", ["memory://bucket/studies", "/tmp/studies"])
def test_a_server_knows_its_own_place_for_artefacts(storage: str) -> None:
    study = study_with(f"storage: {storage}", "tracking: {uri: 'https://mlflow.example:5000'}")
    assert tracking_address(study) == ("https://mlflow.example:5000", None)


def test_a_database_that_is_named_keeps_artefacts_in_the_storage(tmp_path: Path) -> None:
    study = study_with(f"storage: {tmp_path}", "tracking: {uri: 'sqlite:////srv/all.db'}")
    assert tracking_address(study) == ("sqlite:////srv/all.db", f"{tmp_path}/mlartifacts")


def test_an_address_of_a_local_file_system_is_a_local_folder(tmp_path: Path) -> None:
    assert study_with(f"storage: file://{tmp_path}/").storage_url == str(tmp_path)


def test_an_address_that_cannot_be_used_is_named_by_file_and_field() -> None:
    check_tracking(study_with("tracking: {uri: 'https://host:5000'}"))
    with pytest.raises(TrackingError, match=r"^study: tracking.uri: tracking address 'foo://x' is neither"):
        check_tracking(study_with("tracking: {uri: 'foo://x'}"))


@pytest.mark.parametrize(
    ("uri", "seen"),
    [
        ("https://me:secret@host:5000/x", "https://host:5000/x"),
        ("https://me:se@cret@host/x@y", "https://host/x@y"),
        ("https://host/x@y", "https://host/x@y"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("sqlite:///a@b/mlflow.db", "sqlite:///a@b/mlflow.db"),
    ],
)
def test_an_address_is_shown_without_its_password(uri: str, seen: str) -> None:
    assert shown(uri) == seen


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a: http://u:p@h1, b: http://u2:p2@h2", "a: http://h1, b: http://h2"),
        ("http://me:p@ss@h:5000/x", "http://h:5000/x"),
        ("'http://me:pa'ss@h'", "'http://h'"),
        ("http://me:pa,ss@h", "http://h"),
        ("http://token@h", "http://h"),
        ("http://to,ken@h", "http://h"),
        ("http://me@corp.com:secret@h:5000", "http://h:5000"),
        ("{uri: http://h:5000, who: me@x}", "{uri: http://h:5000, who: me@x}"),
        ("http://h:5000?to=a@b", "http://h:5000?to=a@b"),
        ("http://h:5000#ask@me", "http://h:5000#ask@me"),
        ('["http://h:5000","me@x"]', '["http://h:5000","me@x"]'),
    ],
)
def test_a_text_loses_the_passwords_of_addresses_and_nothing_else(text: str, seen: str) -> None:
    assert without_passwords(text) == seen


def test_a_refusal_shows_no_password() -> None:
    with pytest.raises(TrackingError) as caught:
        check_uri("ftp://me:secret@host/x")
    assert "'ftp://host/x'" in str(caught.value)
    assert "secret" not in str(caught.value)


# ---------------------------------------------------------------- figures and table


def check_local(folder: Path, rows: int) -> None:
    for name in FILES[:-2]:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    with (folder / "results.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == rows
    assert (folder / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_results_are_written_into_the_runs_folder(tmp_path: Path) -> None:
    state = StudyState.of(synthetic_records(trials=4))
    files = write_results(state, str(tmp_path), tmp_path)
    assert files == [tmp_path / name for name in FILES]
    check_local(tmp_path, rows=12)
    assert write_results(state, str(tmp_path), tmp_path) == files  # and again, over them


def test_a_remote_folder_gets_copies(tmp_path: Path) -> None:
    folder = f"memory://{tmp_path.name}/tiny/run-1"
    write_results(StudyState.of(synthetic_records(trials=2)), folder, tmp_path)
    check_local(tmp_path, rows=6)
    for name in FILES:
        with fsspec.open(f"{folder}/{name}", "rb") as copy:
            assert copy.read() == (tmp_path / name).read_bytes()


def test_a_study_that_has_only_begun_can_be_shown(tmp_path: Path) -> None:
    write_results(StudyState.of(synthetic_records(until=2)), str(tmp_path), tmp_path)
    check_local(tmp_path, rows=0)


# ---------------------------------------------------------------- fed together


class Recorder:
    """Stands in for a view: notes what it is fed."""

    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def feed(self, record: Any) -> None:
        self.log.append(f"{self.name} {record.event}")

    def release(self) -> None:
        self.log.append(f"{self.name} released")

    def artifact(self, path: Path) -> None:
        self.log.append(f"{self.name} {path}")

    def close(self, timeout_s: float) -> None:
        self.log.append(f"{self.name} closed")

    @property
    def pending(self) -> int:
        return 3


def views(log: list[str], *, mlflow: bool = True) -> Views:
    parts: list[Any] = [Recorder(log, name) for name in ("progress", "optuna", "mlflow")]
    return Views(parts[0], parts[1], parts[2] if mlflow else None)


def test_what_earlier_sessions_wrote_goes_to_the_stores_only() -> None:
    log: list[str] = []
    records = synthetic_records(until=2)
    views(log).catch_up(records)
    assert log == [
        "optuna study_opened", "mlflow study_opened", "optuna session_started", "mlflow session_started",
    ]  # fmt: skip


def test_mlflow_is_held_until_the_first_trial_has_started() -> None:
    log: list[str] = []
    fed = views(log)
    for record in synthetic_records(until=5):
        fed.feed(record)
    assert log.index("mlflow released") > log.index("mlflow trial_started")
    assert [line for line in log if line.startswith("progress")] == [
        f"progress {record.event}" for record in synthetic_records(until=5)
    ]


def test_closing_says_how_much_did_not_reach_mlflow() -> None:
    log: list[str] = []
    closing = views(log)
    closing.close(timeout_s=1)
    assert log == ["optuna closed", "mlflow closed"]
    assert closing.undelivered == 3
    assert views(log, mlflow=False).undelivered == 0


def test_figures_go_to_mlflow_where_it_is_on(tmp_path: Path) -> None:
    log: list[str] = []
    views(log).add_figures([tmp_path / "a.png"])
    views(log, mlflow=False).add_figures([tmp_path / "b.png"])
    assert log == [f"mlflow {tmp_path / 'a.png'}"]


def test_views_open_on_nothing_and_close_without_a_trace(tmp_path: Path) -> None:
    progress = ProgressView(Console(quiet=True), [], budgets=[])
    on = Views.open(study_with(f"storage: {tmp_path}"), "run-1", tmp_path, progress)
    assert on.mlflow is not None
    on.close(timeout_s=300)
    assert on.undelivered == 0
    off = Views.open(study_with("tracking: {enabled: false}"), "run-1", tmp_path, progress)
    assert off.mlflow is None
    off.close(timeout_s=300)
    assert off.undelivered == 0
    with pytest.raises(TrackingError, match="neither a server nor an SQLite file"):
        Views.open(study_with("tracking: {uri: 'ftp://x'}"), "run-1", tmp_path, progress)
    assert not (tmp_path / "mlflow.db").exists()
