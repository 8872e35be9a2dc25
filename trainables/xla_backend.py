"""Ray Train's backend for torch_xla on TPU hosts: one worker for each host, which drives all of the host's chips.

Ray Train starts the workers of a slice together; this gives each of them the environment that PyTorch/XLA reads as it
starts, an order (that of the hosts in their slice, which is not the order that Ray Train gives them), and a process
group by which hosts talk while devices work. What the hosts compute together goes by their own links, not by it.

Of a slice of several hosts, each knows its neighbours from its platform (GCE's metadata server, GKE's variables), so
nothing of that is touched. A host that trains alone is told so, as it may be a part of a larger slice.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import ray
from ray.train.backend import Backend, BackendConfig
from ray.util.placement_group import remove_placement_group

from clusters.hosts import NUMBER, POD_TYPE, SLICE_NAME, listens, whole_slices
from clusters.tpu import CHIPS_PER_HOST, GENERATION, Topology

log = logging.getLogger(__name__)

MEETING_S: Final = 2 * 3600.0
"""Longest that a host waits for another: one may find a program in its cache that the other has to compile."""
LOCKFILE: Final = Path("/tmp/libtpu_lockfile")
LOCKED_S: Final = 60.0
MEGASCALE_PORT: Final = 8081
_HEAD_S: Final = 30.0
_LOOK_AGAIN_S: Final = 1.0
_PLACE: Final = "CONVSCALE_HOST"
_FOR_PARTS_OF_A_HOST: Final = ("TPU_VISIBLE_CHIPS", "TPU_CHIPS_PER_HOST_BOUNDS", "TPU_HOST_BOUNDS")
_FOR_SEVERAL_SLICES: Final = (
    "MEGASCALE_COORDINATOR_ADDRESS",
    "MEGASCALE_PORT",
    "MEGASCALE_NUM_SLICES",
    "MEGASCALE_SLICE_ID",
)
_ALONE: Final = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": f"{GENERATION}-8",
    "TPU_WORKER_ID": "0",
    "CLOUD_TPU_TASK_ID": "0",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_PROCESS_BOUNDS": "1,1,1",
    "TPU_CHIPS_PER_PROCESS_BOUNDS": "2,2,1",
}
_OF_OTHER_HOSTS: Final = ("TPU_PROCESS_ADDRESSES", "TPU_PROCESS_PORT", "TPU_TOPOLOGY")


class HostsError(RuntimeError):
    """The hosts of a slice cannot work together; the message is one line."""


@dataclass(frozen=True, slots=True)
class Host:
    """What a worker says of the host it is on: its TPU slice and its number there (-1: it does not say), the slice's
    accelerator type ("v4-16"), its chips, its address, and a port that is free.
    """

    slice_name: str
    number: int
    accelerator: str
    chips: int
    address: str
    port: int


@dataclass
class XlaConfig(BackendConfig):  # type: ignore[misc]
    """Ray Train's settings for torch_xla: `programs` is the folder for compiled programs on every host (None: each
    host's own, see `trainables.runtime.program_cache`).
    """

    programs: str | None = None

    @property
    def backend_cls(self) -> type[XlaBackend]:
        return XlaBackend


class XlaBackend(Backend):  # type: ignore[misc]
    """Tells each worker who it is. See `XlaConfig`."""

    def on_start(self, worker_group: Any, backend_config: XlaConfig) -> None:
        """Every worker's environment, before its loop runs.

        What is raised from here Ray Train retries, or not, but it would forget the workers, and the slice that they
        hold. So a worker's death ends the whole group first, and any other error is left to the loop, which finds its
        environment missing (`one_group`).
        """
        try:
            hosts = worker_group.execute(this_host)
            ray.get(
                [
                    worker_group.execute_single_async(
                        index, set_environment, environment_of(hosts, index), backend_config
                    )
                    for index in range(len(hosts))
                ]
            )
        except ray.exceptions.RayActorError:
            worker_group.shutdown()
            raise
        except Exception:
            log.exception("the hosts of a slice could not be given their environment")


def this_host() -> Host:
    """The host that this process is on."""
    from ray.train._internal.utils import get_address_and_port

    context = ray.get_runtime_context()
    labels: Mapping[str, str] = context.get_node_labels() or {}
    number = labels.get(NUMBER, "")
    address, port = get_address_and_port()
    return Host(
        slice_name=labels.get(SLICE_NAME, ""),
        number=int(number) if number.isdigit() else -1,
        accelerator=labels.get(POD_TYPE, ""),
        chips=int(context.get_assigned_resources().get("TPU", 0)),
        address=address,
        port=port,
    )


def ranks_of(hosts: Sequence[Host]) -> list[int]:
    """The rank of each host: by slice, and in a slice by the host's number."""
    order = sorted(range(len(hosts)), key=lambda index: (hosts[index].slice_name, hosts[index].number, index))
    return [order.index(index) for index in range(len(hosts))]


def environment_of(hosts: Sequence[Host], index: int) -> dict[str, str | None]:
    """What the worker on one of the hosts must find in its environment; None: it must not be there."""
    ranks = ranks_of(hosts)
    first, mine = hosts[ranks.index(0)], hosts[index]
    slices = sorted({host.slice_name for host in hosts})
    found: dict[str, str | None] = {
        "PJRT_DEVICE": "TPU",
        _PLACE: f"{ranks[index]}/{len(hosts)}",
        "MASTER_ADDR": first.address,
        "MASTER_PORT": str(first.port),
    }
    found |= dict.fromkeys(_FOR_PARTS_OF_A_HOST)  # a worker has its whole host
    found |= dict.fromkeys(_FOR_SEVERAL_SLICES)  # what the platform says of them may be of slices that went
    if len(slices) > 1:
        values = (first.address, str(MEGASCALE_PORT), str(len(slices)), str(slices.index(mine.slice_name)))
        found |= dict(zip(_FOR_SEVERAL_SLICES, values, strict=True))
    ours = mine.accelerator.startswith(f"{GENERATION}-") or not mine.accelerator
    if len(hosts) == 1 and mine.chips == CHIPS_PER_HOST and ours:
        found |= _ALONE | dict.fromkeys(_OF_OTHER_HOSTS)
    return found


def set_environment(values: Mapping[str, str | None], config: XlaConfig) -> None:
    """Set what `environment_of` says in this process."""
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if config.programs is not None:
        os.environ["CONVSCALE_PROGRAMS"] = config.programs


@contextmanager
def one_group(*, tpu: bool) -> Iterator[None]:
    """Within it, the workers of a slice are one `torch.distributed` group over gloo, their ranks in the hosts' order.

    A lone worker needs none. With `tpu`, waits first until the chips are free of the process that had them before.

    Raises:
        HostsError: the worker was given no environment, or its chips are not free.
    """
    place = os.environ.get(_PLACE)
    if place is None:
        raise HostsError("this host was not given its place in its slice; see the log of Ray Train's controller")
    if tpu:
        wait_for_chips()
    rank, world = (int(part) for part in place.split("/"))
    if world == 1:
        yield
        return
    import torch.distributed as dist

    dist.init_process_group("gloo", rank=rank, world_size=world, timeout=timedelta(seconds=MEETING_S))
    try:
        yield
    finally:
        dist.destroy_process_group()


def wait_for_chips(lockfile: Path = LOCKFILE, patience_s: float = LOCKED_S) -> None:
    """Wait until no process holds this host's TPU: libtpu locks a file for as long as its process lives.

    A file of another user's that nobody locks any more is removed, for libtpu cannot open it.

    Raises:
        HostsError: a process holds it still after `patience_s` seconds.
    """
    end = time.monotonic() + patience_s
    while (holder := _holder(lockfile)) is not None:
        if time.monotonic() > end:
            raise HostsError(f"the TPU of this host is in use by {holder} (it locks {lockfile}); end it, and go on")
        time.sleep(0.2)


def _holder(lockfile: Path) -> str | None:
    """The process that locks a file, for people; None if none does."""
    try:
        with lockfile.open("rb+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return _locker(lockfile) or "a process that cannot be seen from here"
    except PermissionError:
        if (locker := _locker(lockfile)) is None:
            _remove(lockfile)
        return locker


def _locker(lockfile: Path) -> str | None:
    """Who locks a file, as Linux tells everybody; a process of another container is not to be seen."""
    try:
        inode = lockfile.stat().st_ino
    except FileNotFoundError:
        return None
    for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
        fields = line.split()
        if "POSIX" in fields and fields[fields.index("POSIX") + 4].endswith(f":{inode}"):
            return f"process {fields[fields.index('POSIX') + 3]}"
    return None


def _remove(lockfile: Path) -> None:
    try:
        lockfile.unlink(missing_ok=True)
    except PermissionError:
        log.warning("%s belongs to another user, which libtpu may not get over; remove it", lockfile)


def teach_ray(shape: str) -> None:
    """Have Ray, in this process, lease v4 slices of this shape, and no others.

    It does not know all of Google's shapes. And it reserves a slice by the first free head of its accelerator type:
    also one of another shape, or one that lacks a host, and would wait for that host while other slices are free.
    """
    from ray._private.accelerators import tpu
    from ray.util import tpu as leasing

    tpu.VALID_TPU_TOPOLOGY[GENERATION].add(shape)
    leasing.reserve_tpu_slice = reserve_whole_slice


def reserve_whole_slice(
    topology: str, accelerator_type: str, timeout_s: float | None = None, slice_name: str | None = None
) -> tuple[str, Any]:
    """What Ray's `reserve_tpu_slice` does, of slices that are whole, idle and of this very shape: the name of one, and
    the placement group that holds its head.

    Raises:
        TimeoutError: there is no such slice within `timeout_s`; Ray Train tries again.
    """
    from ray._private.accelerators.tpu import reserve_tpu_slice

    wanted = Topology.parse(f"{GENERATION}:{topology}")
    end = time.monotonic() + (MEETING_S if timeout_s is None else timeout_s)
    while time.monotonic() < end:
        idle = [name for name in idle_slices(wanted) if slice_name in (None, name)]
        # without one, any head is waited for: that is how an autoscaler hears of it
        patience_s = min(_HEAD_S, end - time.monotonic())
        try:
            name, head = reserve_tpu_slice(topology, accelerator_type, patience_s, idle[0] if idle else slice_name)
        except TimeoutError:
            continue
        if name in idle_slices(wanted):
            return name, head
        remove_placement_group(head)
        time.sleep(_LOOK_AGAIN_S)
    raise TimeoutError(f"no whole slice of {accelerator_type} {topology} was free within {timeout_s:g} s")


def idle_slices(wanted: Topology) -> list[str]:
    """The names of the whole slices of a shape none of whose chips is in use."""
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    return [
        name
        for name, hosts in whole_slices(ray.nodes(), wanted).items()
        if all(free.get(host["NodeID"], {}).get("TPU", 0.0) == CHIPS_PER_HOST and listens(host) for host in hosts)
    ]
