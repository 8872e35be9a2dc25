"""A slice of two workers (data parallel over gloo), for real."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from search.slices import Fleet, FleetPlan
from tests.search.fleets import Driver
from tests.trainables.trials import tiny_trial
from trainables.config import TrialConfig
from trainables.loop import train
from trainables.runtime import select_runtime

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # Ray's own warnings are not ours


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    ray.shutdown()
    plan = FleetPlan(slices=1, workers=2, cores=1, device="cpu", recycle_after=None, max_errors=2)
    with Fleet(plan, address=None) as fleet:
        fleet.lease()
        yield Driver(fleet)


def trial(folder: Path, name: str, **changes: Any) -> TrialConfig:
    # dropout masks are drawn by each worker for its own images, so without them a pair equals a lone worker
    config = tiny_trial(folder / name, model__drop_rate=0.0, model__drop_path_rate=0.0, **changes)
    return dataclasses.replace(config, trial_id=name)


def test_two_workers_give_a_single_workers_losses(driver: Driver, tmp_path: Path) -> None:
    pair = driver.run(trial(tmp_path, "pair"))["result"]
    alone = train(trial(tmp_path, "alone"), select_runtime("cpu", cores=1), lambda event: None)
    assert pair["heldout_loss"] == pytest.approx(alone.heldout_loss, rel=1e-5)
    assert pair["train_loss"] == pytest.approx(alone.train_loss, rel=1e-5)
    assert pair["meter"]["core_hours"] * 3600 == pytest.approx(2 * pair["meter"]["seconds_productive"], rel=0.01)


def test_a_stop_ends_both_workers_at_the_same_step_and_the_next_trial_starts(driver: Driver, tmp_path: Path) -> None:
    driver.submit(trial(tmp_path, "stopped", steps=2000, log_points=2000))
    driver.first("stopped", "progressed", times=3)
    driver.stop("stopped")
    ended = driver.end("stopped")[-1]
    assert ended["outcome"] == "stopped"
    assert ended["result"]["step"] < 2000
    assert driver.run(trial(tmp_path, "next"))["outcome"] == "finished"


@pytest.mark.parametrize("rank", [0, 1])
def test_killing_either_of_two_workers_is_a_crash_and_costs_a_retry_from_the_checkpoint(
    driver: Driver, tmp_path: Path, rank: int
) -> None:
    changes: dict[str, Any] = {"steps": 60, "log_points": 60, "checkpoint__every_steps": 10}
    driver.submit(trial(tmp_path, f"killed-{rank}", **changes))
    driver.first(f"killed-{rank}", "checkpointed", times=2)
    os.kill(driver.pid(rank=rank), signal.SIGKILL)
    events = driver.end(f"killed-{rank}")
    # the other worker's error (a lost connection) may come first; it is not the trial's own
    assert [event["event"] for event in events if event["event"] in ("crashed", "errored")] == ["crashed"]
    assert [event["step"] for event in events if event["event"] == "started"][-1] >= 20
    alone = train(trial(tmp_path, "alone", **changes), select_runtime("cpu", cores=1), lambda event: None)
    assert events[-1]["result"]["heldout_loss"] == pytest.approx(alone.heldout_loss, rel=1e-3)
