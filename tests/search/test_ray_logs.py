"""What is kept of Ray's logs once a cluster is gone, and when. No cluster is started here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from search import ray_logs
from search.joining import FleetError
from search.ray_logs import keep_ray_logs
from search.slices import Fleet, FleetPlan

PLAN = FleetPlan(slices=1, workers=1, cores=1, device="cpu", recycle_after=None, max_errors=2)


class LoggingFleet(Fleet):
    """A fleet whose cluster is a log file of a raylet, and no more."""

    def _start(self) -> None:
        logs = self.scratch / "ray" / "session_latest" / "logs"
        logs.mkdir(parents=True)
        (logs / "raylet.out").write_text("out of memory")


class FailingFleet(LoggingFleet):
    def _start(self) -> None:
        super()._start()
        raise RuntimeError("Ray does not come up")


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_raylet_gcs_and_the_newest_workers_are_kept_each_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_logs, "MOST_FILES", 3)
    monkeypatch.setattr(ray_logs, "MOST_BYTES", 10)
    logs, to = tmp_path / "logs", tmp_path / "to"
    logs.mkdir()
    to.mkdir()
    (to / "of-an-earlier-session").touch()
    names = ("raylet.out", "gcs_server.out", "worker-old.err", "worker-new.err", "dashboard.log")
    for age, name in enumerate(names):
        (logs / name).write_text(f"the beginning {age}-and-its-end")
        os.utime(logs / name, (age, age))
    (logs / "raylet.err").touch()
    keep_ray_logs(logs, to)
    assert kept(to) == ["gcs_server.out", "raylet.out", "worker-new.err"]
    assert (to / "raylet.out").read_text() == "nd-its-end"


def test_a_fleet_keeps_them_if_it_ends_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(FleetError), LoggingFleet(PLAN, address=None, logs=tmp_path / "in-use"):
        raise FleetError("the slices are lost")
    assert (tmp_path / "in-use" / "ray" / "raylet.out").read_text() == "out of memory"
    with pytest.raises(RuntimeError), FailingFleet(PLAN, address=None, logs=tmp_path / "start"):
        pass
    assert kept(tmp_path / "start") == ["raylet.out"]
    fleet = LoggingFleet(PLAN, address=None, logs=tmp_path / "told")
    with fleet:
        lost = type("Lease", (), {"name": "slice-0", "error": RuntimeError("no luck"), "over": False})()
        lost.join = lost.is_alive = lambda **_: False
        fleet._leases.append(lost)
        with pytest.raises(FleetError, match=r"slice-0 could not be kept: no luck; see the logs in .*told$"):
            fleet.check()
    assert kept(tmp_path / "told") == ["raylet.out"]
    assert not fleet.scratch.exists()


def test_nothing_is_kept_of_an_orderly_end_an_interrupt_or_a_cluster_that_was_joined(tmp_path: Path) -> None:
    with LoggingFleet(PLAN, address=None, logs=tmp_path):
        pass
    with pytest.raises(KeyboardInterrupt), LoggingFleet(PLAN, address=None, logs=tmp_path):
        raise KeyboardInterrupt
    with pytest.raises(FleetError), LoggingFleet(PLAN, address="auto", logs=tmp_path):
        raise FleetError("the slices are lost")
    with pytest.raises(FleetError), LoggingFleet(PLAN, address=None):
        raise FleetError("the slices are lost")
    assert kept(tmp_path) == []


def test_logs_that_cannot_be_kept_hide_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FleetError, match="are lost"), LoggingFleet(PLAN, address=None, logs=tmp_path / "file"):
        raise FleetError("the slices are lost")
