"""Slices of TPU hosts, scheduled by Ray for real: leased whole, and free again after whatever ends a search."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.placement_group import placement_group, remove_placement_group

from search import slices
from search.joining import ROOT
from search.lease import scaling_of
from search.ledger import Record, read_ledger
from search.reach import check_reach
from search.slices import Fleet, FleetPlan
from search.study import StudyError, read_study
from tests.search.fake_tpus import PAIR, FakeTpus, all_free, held, wait_until_free
from tests.search.fleets import Driver, until
from tests.search.test_search_end_to_end import Command, wait_for
from tests.trainables.trials import tiny_trial
from trainables.config import TrialConfig
from trainables.loop import train
from trainables.runtime import select_runtime
from trainables.xla_backend import XlaBackend, XlaConfig

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # Ray's own warnings are not ours


@pytest.fixture(scope="module")
def cluster() -> Iterator[FakeTpus]:
    ray.shutdown()
    made = FakeTpus()
    yield made
    made.close()


@pytest.fixture
def tpus(cluster: FakeTpus) -> FakeTpus:
    """Two slices of two hosts, "a" and "b"."""
    for name in ("a", "b"):
        cluster.make_whole(name)
    return cluster


@contextlib.contextmanager
def leased(tpus: FakeTpus, count: int, at_first: int | None = None) -> Iterator[Driver]:
    """So many slices, leased as a search leases them; their workers train on the CPU."""
    plan = FleetPlan(
        slices=count, workers=PAIR.hosts, cores=1, device="cpu", recycle_after=None, max_errors=2, topology=PAIR
    )
    with Fleet(plan, address=tpus.address) as fleet:
        fleet.at_first = at_first
        fleet.lease()
        yield Driver(fleet)


@pytest.fixture
def watcher(tpus: FakeTpus) -> Iterator[None]:
    """This process, joined to the cluster without holding anything of it."""
    ray.init(address=tpus.address, namespace="watcher", log_to_driver=False)
    yield
    ray.shutdown()


def trial(folder: Path, name: str, **changes: Any) -> TrialConfig:
    # dropout masks are drawn by each worker for its own images, so without them a pair equals a lone worker
    config = tiny_trial(folder / name, model__drop_rate=0.0, model__drop_path_rate=0.0, **changes)
    return dataclasses.replace(config, trial_id=name)


def labels_of(node_id: str) -> dict[str, str]:
    return next(dict(node["Labels"]) for node in ray.nodes() if node["NodeID"] == node_id)


def place(driver: Driver, slice_name: str, rank: int) -> tuple[str, str]:
    """The TPU slice and the number in it of the host that a worker is on."""
    labels = labels_of(driver.facts(slice_name, rank)["node"])
    return labels["ray.io/tpu-slice-name"], labels["ray.io/tpu-worker-id"]


def test_slices_are_leased_whole_and_a_third_trial_waits(tpus: FakeTpus, tmp_path: Path) -> None:
    with leased(tpus, 2, at_first=1) as driver:
        until(
            lambda: driver.fleet.check() or driver.fleet.capacity == 2,
            "the second to be asked for once the first serves",
        )
        places = {(name, rank): place(driver, name, rank) for name in ("slice-0", "slice-1") for rank in (0, 1)}
        # no host is shared, no slice is split, and ranks are in the hosts' order
        assert {places["slice-0", 0][0], places["slice-1", 0][0]} == {"a", "b"}
        for name in ("slice-0", "slice-1"):
            assert [places[name, rank] for rank in (0, 1)] == [(places[name, 0][0], "0"), (places[name, 0][0], "1")]
        for name in ("one", "two", "three"):
            driver.submit(trial(tmp_path, name, steps=3000, log_points=3000))
        first = {driver.first(name, "started")["slice"] for name in ("one", "two")}
        assert first == {"slice-0", "slice-1"}
        assert ray.get(driver.broker.status.remote())["queued"] == 1
        driver.stop("one")
        assert driver.end("one")[-1]["outcome"] == "stopped"
        assert driver.first("three", "started")["slice"] in first
        driver.stop("two")
        driver.stop("three")
        driver.end("two")
        driver.end("three")


def test_what_ends_a_trial_leaves_its_slice_to_the_next_and_the_end_leaves_nothing(
    tpus: FakeTpus, tmp_path: Path
) -> None:
    with leased(tpus, 1) as driver:
        pair = driver.run(trial(tmp_path, "pair"))["result"]
        alone = train(trial(tmp_path, "alone"), select_runtime("cpu", cores=1), lambda event: None)
        assert pair["heldout_loss"] == pytest.approx(alone.heldout_loss, rel=1e-5)

        assert driver.run(trial(tmp_path, "diverged", optimiser__learning_rate=1e30))["outcome"] == "diverged"

        changes: dict[str, Any] = {"steps": 60, "log_points": 60, "checkpoint__every_steps": 10}
        driver.submit(trial(tmp_path, "killed", **changes))
        driver.first("killed", "checkpointed", times=2)
        os.kill(driver.pid(rank=1), signal.SIGKILL)
        events = driver.end("killed")
        assert [event["event"] for event in events if event["event"] in ("crashed", "errored")] == ["crashed"]
        assert events[-1]["outcome"] == "finished"
        alone = train(trial(tmp_path, "again", **changes), select_runtime("cpu", cores=1), lambda event: None)
        assert events[-1]["result"]["heldout_loss"] == pytest.approx(alone.heldout_loss, rel=1e-3)
        assert not all_free()
    ray.init(address=tpus.address, namespace="watcher", log_to_driver=False)
    wait_until_free()
    ray.shutdown()


def test_a_lease_that_still_waits_does_not_hold_up_the_end(
    tpus: FakeTpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(slices, "GOING_HOME_S", 300.0)
    with leased(tpus, 3) as driver:
        assert driver.run(trial(tmp_path, "one"))["outcome"] == "finished"
        until(lambda: len(ray.get(driver.broker.status.remote())["ready"]) == 2, "the slices that are there")
    assert "did not come home in time" not in caplog.text
    ray.init(address=tpus.address, namespace="watcher", log_to_driver=False)
    wait_until_free()
    ray.shutdown()


def test_a_slice_that_is_taken_away_gives_its_trial_to_a_spare_and_comes_back(tpus: FakeTpus, tmp_path: Path) -> None:
    with leased(tpus, 1) as driver:
        changes: dict[str, Any] = {"steps": 3000, "log_points": 3000, "checkpoint__every_steps": 10}
        driver.submit(trial(tmp_path, "moved", **changes))
        driver.first("moved", "checkpointed", times=2)
        lost = place(driver, "slice-0", 0)[0]
        spare = "b" if lost == "a" else "a"
        tpus.preempt(lost)
        again = driver.first("moved", "started", times=2)
        assert again["step"] >= 20
        assert place(driver, "slice-0", 0)[0] == spare
        seen = driver.events("moved")
        assert [event["event"] for event in seen if event["event"] in ("preempted", "crashed", "errored")] == [
            "preempted"
        ]
        tpus.preempt(spare)
        until(lambda: not ray.get(driver.broker.slices.remote())["ready"], "the slice to be gone")
        tpus.add("a")
        assert driver.first("moved", "started", times=3)["attempt"] == 3
        assert place(driver, "slice-0", 0) == ("a", "0")
        driver.stop("moved")
        assert driver.end("moved")[-1]["outcome"] == "stopped"


def test_a_slice_that_lacks_a_host_is_passed_over_for_a_whole_one(tpus: FakeTpus) -> None:
    tpus.lose_host("a", 1)  # its head is there, and free
    with leased(tpus, 1) as driver:
        assert [place(driver, "slice-0", rank) for rank in (0, 1)] == [("b", "0"), ("b", "1")]


class _DiesOnce(XlaBackend):
    """In the first group of workers, one dies as it is told who it is."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute_single_async(1, _die_once, backend_config.mark)
        super().on_start(worker_group, backend_config)


@dataclasses.dataclass
class _DiesOnceConfig(XlaConfig):
    mark: str = ""

    @property
    def backend_cls(self) -> type[XlaBackend]:
        return _DiesOnce


def _die_once(mark: str) -> None:
    if not Path(mark).exists():
        Path(mark).touch()
        os._exit(1)


@pytest.mark.usefixtures("watcher")
def test_a_worker_that_dies_as_it_is_told_who_it_is_leaves_no_slice_behind(tpus: FakeTpus, tmp_path: Path) -> None:
    tpus.preempt("b")  # one slice is left, and the second group of workers needs what the first one held
    run = DataParallelTrainer(
        lambda: None,
        backend_config=_DiesOnceConfig(mark=str(tmp_path / "died")),
        scaling_config=scaling_of(PAIR.hosts, {"CPU": 1.0, "TPU": 4.0}, PAIR),
        run_config=ray.train.RunConfig(storage_path=str(tmp_path / "train")),
    )
    fitting = threading.Thread(target=run.fit, daemon=True)
    fitting.start()
    fitting.join(300)
    assert not fitting.is_alive(), held()
    assert (tmp_path / "died").exists()
    wait_until_free()


STUDY = """
name: tpus
data: {source: digits, image_size: 8, augment: shift}
model: {variants: [F0], width: 0.0625, group_size: 8, stem: small}
budgets: [BUDGET]
epochs: {min: 0.1, max: 400}
learning_rate: {base: 0.8, min: 0.8, max: 3.2}
search: {sampler: grid}
training: {batch_size: 16, eval_batch_size: 16, precision: float32, checkpoint: {every_s: null, every_steps: 20}}
compute: {device: tpu, accelerator: tpu-v4-16, slices: 2}
storage: runs
"""
PROGRAM = (sys.executable, "-m", "tests.search.fake_tpus", "search")


@pytest.fixture
def start(tpus: FakeTpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Command]]:
    """Starts `convscale search` on the cluster, in a process of its own."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    started: list[Command] = []

    def start_one(text: str = STUDY, budget: str = "3e9 FLOPs") -> Command:
        (tmp_path / "tpus.yaml").write_text(text.replace("BUDGET", budget))
        started.append(Command("tpus.yaml", "--address", tpus.address, cwd=tmp_path, joins=True, program=PROGRAM))
        return started[-1]

    yield start_one
    for command in started:
        for process in command.family():
            process.kill()


@pytest.mark.usefixtures("watcher")
def test_a_head_that_is_left_behind_would_be_seen() -> None:
    """As Ray Train leaves one where Tune stops a trial that runs it: no chip is held, and no slice can be leased."""
    left = placement_group([{"TPU-v4-16-head": 1}], lifetime="detached")
    assert left.wait(60)
    until(lambda: held() == {"TPU-v4-16-head": 1.0}, "the head to be held")
    assert not all_free()
    remove_placement_group(left)
    wait_until_free()


def both_have_checkpoints(records: list[Record]) -> bool:
    return len({record["trial"] for record in records if record.event == "trial_checkpointed"}) == 2


@pytest.mark.usefixtures("watcher")
def test_a_killed_driver_and_an_interrupt_leave_every_chip_free_and_the_search_goes_on(
    start: Callable[..., Command], tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "tpus" / "run-1"
    first = start(budget="3e11 FLOPs")  # its trials take long enough not to end here
    wait_for(run, first, both_have_checkpoints)
    assert held() == {"TPU": 16.0, "TPU-v4-16-head": 2.0}
    first.signal_group(signal.SIGKILL)
    first.wait()
    wait_until_free()
    before = read_ledger(str(run))
    under_way = {record["trial"] for record in before if record.event == "trial_started"}
    assert len(under_way) == 2

    def steps_gone_on_from(records: list[Record]) -> list[int]:
        again = [record for record in records[len(before) :] if record.event == "trial_started"]
        return [record["step"] for record in again if record["trial"] in under_way]

    second = start(budget="3e11 FLOPs")
    wait_for(run, second, lambda records: len(steps_gone_on_from(records)) == 2)
    assert min(steps_gone_on_from(read_ledger(str(run)))) >= 20
    second.signal_group(signal.SIGINT)
    assert second.wait() == 130, second.output
    wait_until_free()


@pytest.mark.usefixtures("watcher")
def test_a_whole_search_gives_its_slices_back(start: Callable[..., Command], tmp_path: Path) -> None:
    command = start()
    assert command.wait() == 0, command.output
    wait_until_free()
    records = read_ledger(str(tmp_path / "runs" / "tpus" / "run-1"))
    assert [record["outcome"] for record in records if record.event == "trial_ended"] == ["finished"] * 3


@pytest.mark.usefixtures("watcher")
def test_what_the_cluster_cannot_train_is_refused_before_anything_is_leased(
    start: Callable[..., Command], tmp_path: Path
) -> None:
    command = start(STUDY.replace("tpu-v4-16", "tpu-v4-32"))
    assert command.wait() == 2
    assert command.output.splitlines() == [
        "convscale: tpus.yaml: compute.slices: 2 slices of tpu-v4-32 with 1 CPU a host asked for, and the cluster has "
        "none (it has 2 of tpu-v4-16; nodes of 1 CPU and 4 TPU, 2 CPU); start one, or set compute.accelerator, "
        "workers_per_slice and cores_per_slice to what is there"
    ]
    assert all_free()


@pytest.mark.usefixtures("watcher")
def test_storage_that_another_node_sees_otherwise_is_refused(tmp_path: Path) -> None:
    """Nodes of a test are one machine with one disk, so this process is told of a disk that they do not have."""
    of = read_study(STUDY.replace("BUDGET", "3e9 FLOPs"), source="tpus.yaml")
    here = str(ray.get_runtime_context().get_node_id())
    nodes = list(ray.nodes())
    check_reach(of, str(tmp_path / "all"), nodes, "tpu", here=here)
    assert list((tmp_path / "all").iterdir()) == []
    with pytest.raises(StudyError) as refused:
        check_reach(of, "memory://only/here", nodes, "tpu", here=here)
    (line,) = str(refused.value).splitlines()
    assert line.startswith("tpus.yaml: storage: 'runs' given, which 4 nodes (")
    assert line.endswith(
        " and others) of the cluster cannot use as this machine does (it is not there); give a folder that all nodes "
        "mount there, or an address such as gs://bucket/folder"
    )
    assert held() == {}
