"""Warm slices, for real: one Ray cluster, one slice, trial after trial in the same process, and what kills them."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from search.slices import Fleet, FleetPlan
from tests.search.fleets import Driver
from tests.trainables.trials import tiny_trial
from trainables.checkpoint import Checkpoints
from trainables.config import TrialConfig

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # Ray's own warnings are not ours

IN_A_FRESH_PROCESS = """
import json, sys, torch
torch.set_num_threads(1)
from trainables.config import TrialConfig
from trainables.loop import train
from trainables.runtime import select_runtime
train(TrialConfig.from_dict(json.load(sys.stdin)), select_runtime("cpu", cores=1), lambda event: None)
"""


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    plan = FleetPlan(slices=1, workers=1, cores=1, device="cpu", recycle_after=None, max_errors=2)
    with Fleet(plan, address=None) as fleet:
        fleet.lease()
        yield Driver(fleet)


def trial(folder: Path, name: str, **changes: Any) -> TrialConfig:
    return dataclasses.replace(tiny_trial(folder / name, **changes), trial_id=name)


def train_in_a_fresh_process(config: TrialConfig) -> None:
    import json

    subprocess.run(
        [sys.executable, "-c", IN_A_FRESH_PROCESS], input=json.dumps(config.to_dict()), text=True, check=True
    )


def saved(config: TrialConfig) -> dict[str, Any]:
    """The trial's last checkpoint."""
    found = Checkpoints(config.checkpoint.folder, config.checkpoint.keep).load_latest()
    assert found is not None
    return found[1]


def assert_same(one: Any, other: Any) -> None:
    """Bit for bit: tensors, numbers and all."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


def assert_same_training(one: TrialConfig, other: TrialConfig) -> None:
    """Both trials' final weights, momenta, random states and results are the same, bit for bit (times are not)."""
    a, b = saved(one), saved(other)
    for state in (a, b):
        state.pop("meter")
        state.pop("config", None)
        state["result"].pop("meter")
        state.pop("time", None)
        state.pop("saved_at", None)
    assert_same(a, b)


def test_a_trial_in_a_worker_that_has_served_others_equals_one_in_a_fresh_process(
    driver: Driver, tmp_path: Path
) -> None:
    driver.run(trial(tmp_path, "other-1", model__variant="F1", seed=11, batch_size=8))
    driver.run(trial(tmp_path, "other-2", optimiser__learning_rate=50.0, optimiser__agc_clip=None))  # may diverge
    warm, fresh = trial(tmp_path, "warm"), trial(tmp_path, "fresh")
    pid = driver.pid()
    assert driver.run(warm)["outcome"] == "finished"
    assert driver.pid() == pid
    train_in_a_fresh_process(fresh)
    assert_same_training(warm, fresh)


def test_a_worker_killed_in_the_middle_of_a_trial_costs_a_retry_from_its_checkpoint_and_no_bit_of_the_result(
    driver: Driver, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"steps": 60, "log_points": 60, "checkpoint__every_steps": 10}
    killed, undisturbed, waiting = (
        trial(tmp_path, "killed", **changes),
        trial(tmp_path, "undisturbed", **changes),
        trial(tmp_path, "waiting"),
    )
    pid = driver.pid()
    driver.submit(killed)
    driver.submit(waiting)
    driver.first("killed", "checkpointed", times=2)
    os.kill(pid, signal.SIGKILL)
    events = driver.end("killed")
    assert [event["event"] for event in events].count("crashed") == 1
    restart = [event for event in events if event["event"] == "started"][-1]
    assert restart["attempt"] == 2
    assert restart["step"] >= 20
    assert driver.pid() != pid
    ended = events[-1]
    assert ended["outcome"] == "finished"
    meter = ended["result"]["meter"]
    assert meter["seconds_restart"] > 0
    train_in_a_fresh_process(undisturbed)
    assert_same_training(killed, undisturbed)
    others = driver.end("waiting")
    assert others[-1]["outcome"] == "finished"
    assert not any(event["event"] == "crashed" for event in others)


def test_a_trial_whose_storage_fails_is_tried_again_and_goes_on_once_it_is_mended(
    driver: Driver, tmp_path: Path
) -> None:
    config = trial(tmp_path, "mended", checkpoint__every_steps=2)
    folder = Path(config.checkpoint.folder)
    folder.write_text("a file where the folder should be")
    driver.submit(config)
    error = driver.first("mended", "errored")
    assert "Traceback" in error["reason"]
    folder.unlink()
    assert driver.end("mended")[-1]["outcome"] == "finished"


def test_a_trial_that_runs_out_of_memory_fails_with_its_error_and_the_others_go_on(
    driver: Driver, tmp_path: Path
) -> None:
    too_large = trial(tmp_path, "too-large", model__width=65536.0)  # tens of terabytes of weights: refused at once
    events = driver.end(driver.submit(too_large))
    last = events[-1]
    assert last["outcome"] == "failed"
    assert last["result"]["reason"] == "its training raised an error, 2 times"
    assert "allocate memory" in last["result"]["error"]
    assert driver.run(trial(tmp_path, "after"))["outcome"] == "finished"


def test_a_config_that_cannot_be_trained_fails_at_once_and_the_worker_stays(driver: Driver, tmp_path: Path) -> None:
    pid = driver.pid()
    refused = driver.run(trial(tmp_path, "refused", model__classes=7))
    assert refused["outcome"] == "failed"
    assert "classes" in refused["result"]["reason"]
    assert driver.pid() == pid


def test_the_stop_flag_reaches_the_loop_within_a_step(driver: Driver, tmp_path: Path) -> None:
    # steps of about a second, so that messages travel within one
    config = trial(tmp_path, "stopped", steps=1000, log_points=1000, model__variant="F3", batch_size=768)
    driver.submit(config)
    last = driver.first("stopped", "progressed", times=2)["step"]
    driver.stop("stopped")
    ended = driver.end("stopped")[-1]
    assert ended["outcome"] == "stopped"
    assert ended["result"]["step"] <= last + 1  # the step under way when the flag came
    assert saved(config)["step"] == ended["result"]["step"]


def test_memory_does_not_grow_over_fifty_trials(driver: Driver, tmp_path: Path) -> None:
    sizes = []
    for number in range(60):
        driver.run(trial(tmp_path, f"many-{number}", steps=3))
        sizes.append(psutil.Process(driver.pid()).memory_info().rss / 2**20)
    grown = sizes[-1] - sizes[9]
    assert grown < 25, f"{grown:.0f} MiB more after 50 trials: {[round(size) for size in sizes[::10]]}"
