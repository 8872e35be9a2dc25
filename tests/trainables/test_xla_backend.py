"""What each TPU host's worker is told before PyTorch/XLA starts in it, and when its chips are its own."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ray._private.accelerators import TPUAcceleratorManager
from ray._private.accelerators import tpu as rays

from clusters.tpu import Topology
from trainables.xla_backend import (
    Host,
    HostsError,
    XlaConfig,
    environment_of,
    one_group,
    ranks_of,
    set_environment,
    teach_ray,
    wait_for_chips,
)

ALONE = Host(slice_name="a", number=0, accelerator="v4-8", chips=4, address="10.0.0.1", port=4000)


def hosts_of(*places: tuple[str, int]) -> list[Host]:
    """Hosts of v4-16 slices by the slice's name and their number in it."""
    return [Host(name, number, "v4-16", 4, f"10.0.{name}.{number}", 4000 + number) for name, number in places]


def test_ranks_are_in_the_order_of_hosts_whatever_order_the_workers_come_in() -> None:
    assert ranks_of(hosts_of(("a", 1), ("a", 0))) == [1, 0]
    assert ranks_of(hosts_of(("b", 0), ("a", 1), ("b", 1), ("a", 0))) == [2, 1, 3, 0]
    assert ranks_of([dataclasses.replace(ALONE, number=-1)] * 3) == [0, 1, 2]


def test_every_host_of_a_slice_meets_at_the_first() -> None:
    hosts = hosts_of(("a", 1), ("a", 0))
    told = [environment_of(hosts, index) for index in (0, 1)]
    assert [each["CONVSCALE_HOST"] for each in told] == ["1/2", "0/2"]
    assert {(each["MASTER_ADDR"], each["MASTER_PORT"]) for each in told} == {("10.0.a.0", "4000")}


def test_a_slice_of_several_hosts_knows_its_neighbours_from_its_platform() -> None:
    told = environment_of(hosts_of(("a", 0), ("a", 1)), 0)
    assert told["PJRT_DEVICE"] == "TPU"
    assert not [name for name, value in told.items() if name.startswith("TPU_") and value is not None]
    # Ray's, for workers that have a part of a host; and what a platform says of slices that went
    gone = ("TPU_VISIBLE_CHIPS", "TPU_CHIPS_PER_HOST_BOUNDS", "TPU_HOST_BOUNDS", "MEGASCALE_NUM_SLICES")
    assert [told[name] for name in gone] == [None] * len(gone)


def test_a_lone_host_is_told_that_it_is_alone_for_it_may_be_a_part_of_a_slice() -> None:
    for host in (ALONE, dataclasses.replace(ALONE, accelerator="v4-32", number=3), hosts_of(("a", 1))[0]):
        told = environment_of([host], 0)
        assert told["CONVSCALE_HOST"] == "0/1"
        assert (told["TPU_WORKER_ID"], told["TPU_PROCESS_BOUNDS"]) == ("0", "1,1,1")
        assert (told["TPU_ACCELERATOR_TYPE"], told["TPU_CHIPS_PER_PROCESS_BOUNDS"]) == ("v4-8", "2,2,1")
        assert told["TPU_PROCESS_ADDRESSES"] is None


@pytest.mark.parametrize("other", [{"accelerator": "v5litepod-8"}, {"chips": 8}, {"chips": 1}])
def test_a_host_of_another_kind_is_left_to_its_platform(other: dict[str, object]) -> None:
    told = environment_of([dataclasses.replace(ALONE, **other)], 0)  # type: ignore[arg-type]
    assert "TPU_ACCELERATOR_TYPE" not in told


def test_several_slices_that_train_together_are_told_which_each_is() -> None:
    hosts = hosts_of(("b", 1), ("a", 0), ("a", 1), ("b", 0))
    told = [environment_of(hosts, index) for index in range(4)]
    assert [each["MEGASCALE_SLICE_ID"] for each in told] == ["1", "0", "0", "1"]
    assert {each["MEGASCALE_NUM_SLICES"] for each in told} == {"2"}
    assert {each["MEGASCALE_COORDINATOR_ADDRESS"] for each in told} == {"10.0.a.0"}


def test_the_environment_is_set_and_what_must_not_be_there_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"TPU_VISIBLE_CHIPS": "0", "KEPT": "yes"})
    set_environment({"PJRT_DEVICE": "TPU", "TPU_VISIBLE_CHIPS": None}, XlaConfig(programs="/programs"))
    assert os.environ == {"PJRT_DEVICE": "TPU", "KEPT": "yes", "CONVSCALE_PROGRAMS": "/programs"}


def test_a_worker_that_was_told_nothing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONVSCALE_HOST", raising=False)
    with pytest.raises(HostsError, match="was not given its place in its slice"), one_group(tpu=False):
        pass


def test_a_lone_worker_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed as dist

    monkeypatch.setenv("CONVSCALE_HOST", "0/1")
    with one_group(tpu=False):
        assert not dist.is_initialized()


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "rb+")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_chips_that_another_process_holds_are_waited_for_and_told_of(tmp_path: Path) -> None:
    """libtpu's own lock is one of `lockf`, too."""
    lockfile = tmp_path / "libtpu_lockfile"
    lockfile.touch()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, lockfile], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(HostsError, match=rf"in use by process {holder.pid} .*; end it, and go on"):
            wait_for_chips(lockfile, patience_s=0.0)
        assert holder.stdin is not None
        holder.stdin.close()
        wait_for_chips(lockfile, patience_s=60.0)
    lockfile.unlink()
    wait_for_chips(lockfile)


def test_a_lock_whose_process_cannot_be_seen_is_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(*_: object) -> None:
        raise BlockingIOError

    lockfile = tmp_path / "libtpu_lockfile"
    lockfile.touch()
    monkeypatch.setattr("fcntl.lockf", locked)
    with pytest.raises(HostsError, match="in use by a process that cannot be seen from here"):
        wait_for_chips(lockfile, patience_s=0.0)
    assert lockfile.exists()


def test_another_users_file_that_nobody_locks_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, mode: str = "r", **settings: Any) -> Any:
        if path == lockfile:
            raise PermissionError
        return open_of_path(path, mode, **settings)

    lockfile, open_of_path = tmp_path / "libtpu_lockfile", Path.open
    lockfile.touch()
    monkeypatch.setattr(Path, "open", refused)
    wait_for_chips(lockfile, patience_s=0.0)
    assert not lockfile.exists()


def test_ray_learns_the_shapes_of_google_that_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rays.VALID_TPU_TOPOLOGY, "v4", set(rays.VALID_TPU_TOPOLOGY["v4"]))
    shape = Topology.of_accelerator("tpu-v4-4096").shape
    known = TPUAcceleratorManager.is_valid_tpu_accelerator_topology
    assert not known("v4", shape)
    teach_ray(shape)
    assert known("v4", shape)
