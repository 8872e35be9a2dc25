"""How fleets end, for real: sent home, lost for good, or never come up. Each test starts its own."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil
import pytest
import ray

from search import slices
from search.joining import FleetError
from search.slices import Fleet, FleetPlan
from tests.search.fleets import Driver, until
from tests.search.test_warm_slices import trial

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # Ray's own warnings are not ours


def living() -> set[int]:
    """This process's descendants that have not ended."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE:
                found.add(child.pid)
    return found


def listening() -> set[int]:
    """The ports that this process and its descendants listen on."""
    ports: set[int] = set()
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            ports |= {each.laddr.port for each in process.net_connections() if each.status == psutil.CONN_LISTEN}
    return ports


def error_of(fleet: Fleet) -> FleetError | None:
    try:
        fleet.check()
    except FleetError as error:
        return error
    return None


def test_a_slice_is_recycled_after_so_many_trials_and_nothing_is_left_at_the_end(tmp_path: Path) -> None:
    before, ports = living(), listening()
    plan = FleetPlan(slices=1, workers=1, cores=1, device="cpu", recycle_after=2, max_errors=2)
    with Fleet(plan, address=None) as fleet:
        fleet.lease()
        mine = Driver(fleet)
        pids = []
        for number in range(4):
            assert mine.run(trial(tmp_path, f"recycled-{number}"))["outcome"] == "finished"
            pids.append(mine.pid() if number % 2 == 0 else pids[-1])
        scratch = fleet.scratch
        assert listening() - ports  # those of the cluster
    assert pids[0] == pids[1] != pids[2] == pids[3]
    until(lambda: not living() - before, "children to end")
    until(lambda: not listening() - ports, "ports to close")
    assert not scratch.exists()


def test_a_lease_whose_cluster_is_gone_ends_and_starts_no_other() -> None:
    plan = FleetPlan(slices=1, workers=1, cores=1, device="cpu", recycle_after=None, max_errors=2)
    with Fleet(plan, address=None) as fleet:
        ray.shutdown()
        fleet.lease()
        until(lambda: not any(lease.is_alive() for lease in fleet._leases), "the lease to end")
        assert not ray.is_initialized()


def test_a_broker_that_died_is_said_its_workers_go_home_and_what_they_and_ray_logged_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "CHECK_EVERY_S", 0.1)
    monkeypatch.chdir(tmp_path)
    config = trial(tmp_path, "long", steps=5000, log_points=5000)
    damaged = Path(config.checkpoint.folder) / "step-00000002.00000000.pt"
    damaged.parent.mkdir()
    damaged.write_bytes(b"no checkpoint")
    logs = tmp_path / "logs"
    plan = FleetPlan(slices=1, workers=1, cores=1, device="cpu", recycle_after=None, max_errors=2)
    with Fleet(plan, address=None, logs=logs) as fleet:
        fleet.lease()
        driver = Driver(fleet)
        driver.submit(config)
        driver.first("long", "progressed")
        ray.kill(fleet.broker)
        error = until(lambda: error_of(fleet), "the check to notice")
        assert "the broker of the slices died" in str(error)
        assert str(error).endswith("; see the logs in logs")
        until(lambda: not any(lease.is_alive() for lease in fleet._leases), "the slice's run to end")
    assert not fleet.scratch.exists()
    warning, *others = (logs / "workers.log").read_text().splitlines()
    assert " WARNING slice-0 (process " in warning
    assert f"checkpoint {damaged} is damaged" in warning
    assert not [line for line in others if "State Transition" in line or "actor_name" in line]
    kept = {path.name for path in (logs / "ray").iterdir()}
    assert {"raylet.out", "gcs_server.out"} <= kept
    assert any(name.startswith("worker-") for name in kept)


def test_a_slice_that_cannot_be_had_is_said_and_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "CHECK_EVERY_S", 0.1)
    monkeypatch.setattr(slices, "SLOW_START_S", 1.0)
    monkeypatch.setattr(slices, "GOING_HOME_S", 3.0)
    # room for one of the two slices
    ray.init(address="local", num_cpus=1, namespace=slices.NAMESPACE, include_dashboard=False, log_to_driver=False)
    said: list[str] = []
    plan = FleetPlan(slices=2, workers=1, cores=1, device="cpu", recycle_after=None, max_errors=2)
    with monkeypatch.context() as patch:
        patch.setattr(ray, "init", lambda *arguments, **settings: None)
        with Fleet(plan, address="auto") as fleet:
            fleet.say = said.append
            fleet.lease()
            driver = Driver(fleet)
            assert driver.run(trial(tmp_path, "one"))["outcome"] == "finished"
            until(lambda: error_of(fleet) or said, "the missing slice to be said")
    assert said
    assert said[0].startswith("waiting for slice-")
    assert "each needs 1 CPU" in said[0]
