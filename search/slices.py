"""Leasing slices from Ray: each for the whole study, as one long Ray Train run that serves trials.

`Fleet` owns everything that a search starts on a cluster: the broker, the slices, and (on a laptop) the cluster
itself; `close` gives all of it back, on every way out.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import ray

from clusters.tpu import CHIPS_PER_HOST, Topology
from search.joining import NAMESPACE, FleetError, join, last_line
from search.lease import START_ATTEMPTS, Lease
from search.ray_logs import keep_ray_logs
from search.terminal import shown
from trainables.broker import Broker
from trainables.worker import SliceSettings

log = logging.getLogger(__name__)

NODE_ID: Final = "ray.io/node-id"
CHECK_EVERY_S: Final = 1.0
BROKER_ANSWERS_S: Final = 60.0
SLOW_START_S: Final = 60.0
GOING_HOME_S: Final = 20.0
KILLED_S: Final = 30.0
REMOVED_S: Final = 5.0
LONGEST_TEMP: Final = 30


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """What to lease: `slices` of `workers` processes each, `cores` CPU threads a worker, which train on `device`:
    "cpu", "cuda", "tpu" or "xla-cpu". With a `topology` a slice is one of TPU hosts, a worker for each, which takes
    its `chips`.
    """

    slices: int
    workers: int
    cores: int
    device: str
    recycle_after: int | None
    max_errors: int
    chips: int = CHIPS_PER_HOST
    topology: Topology | None = None

    def resources(self) -> dict[str, float]:
        """What a worker asks of Ray."""
        wanted = {"CPU": float(self.cores)}
        if self.device == "cuda":
            wanted["GPU"] = 1.0
        if self.topology is not None:
            wanted["TPU"] = float(self.chips)
        return wanted

    def needs(self) -> str:
        """What a slice takes, for people."""
        each = " and ".join(f"{self.workers * amount:g} {name}" for name, amount in self.resources().items())
        return each if self.topology is None else f"a whole slice of tpu-{self.topology.accelerator} ({each})"


class Fleet:
    """A context manager: enter to start the cluster (or join the one at `address`), then `lease` the slices.

    With `logs`, a folder, a cluster of one's own has its workers' warnings and errors in `logs/workers.log`, and Ray's
    own logs in `logs/ray` if it ends with an error. Those of a cluster that was joined stay where it has them.

    Attributes:
        capacity: trials that can run now: the slices that serve, at least 1. Slices may come and go.
        at_first: how many slices to ask for at first (None: all); one more whenever all of those serve.
    """

    def __init__(self, plan: FleetPlan, *, address: str | None, logs: Path | None = None) -> None:
        self.plan, self.address = plan, address
        self.logs = logs.absolute() if logs is not None and address is None else None
        self.broker_name = f"broker-{secrets.token_hex(4)}"
        self.broker: Any = None
        self.patience_s = GOING_HOME_S
        self.say: Callable[[str], None] = log.info
        self.capacity = 1
        self.at_first: int | None = None
        self._leases: list[Lease] = []
        self._next_check = self._leased_at = 0.0
        self._missed = self._failed = False
        self.scratch = _new_scratch()

    def __enter__(self) -> Fleet:
        try:
            self._start()
        except BaseException as error:
            self._failed = isinstance(error, Exception)
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._failed |= isinstance(error, Exception) and not isinstance(error, ValueError)  # those are the user's
        self.close()

    def _start(self) -> None:
        plan = self.plan
        if self.address is None:
            ray.init(
                address="local",
                num_cpus=plan.slices * plan.workers * plan.cores + 1,
                namespace=NAMESPACE,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=str(self.scratch / "ray"),
            )
        else:
            join(self.address)
        self.broker = (
            ray.remote(Broker)
            .options(name=self.broker_name, num_cpus=0, max_concurrency=10_000, label_selector={NODE_ID: self.node_id})
            .remote(plan.max_errors)
        )

    @property
    def node_id(self) -> str:
        """The node that the driver is on; what the search itself needs runs there, for others may be taken away."""
        return str(ray.get_runtime_context().get_node_id())

    def resources(self) -> dict[str, float]:
        """What the cluster has in all: CPU, GPU and so on."""
        return dict(ray.cluster_resources())

    def nodes(self) -> list[dict[str, Any]]:
        """The cluster's nodes, as Ray describes them."""
        return list(ray.nodes())

    def lease(self) -> None:
        """Ask for the slices; they come up in the background, and trials start on each as soon as it is there.

        Of those that are not there yet one at a time is asked for: each request is a process on the driver's node.
        """
        self._leased_at = time.monotonic()
        if self.logs is not None:
            self.logs.mkdir(parents=True, exist_ok=True)
        self._ask_for(self.plan.slices if self.at_first is None else min(self.at_first, self.plan.slices))

    def _ask_for(self, slices: int) -> None:
        plan = self.plan
        for number in range(len(self._leases), slices):
            settings = SliceSettings(
                name=f"slice-{number}",
                broker=self.broker_name,
                namespace=NAMESPACE,
                device=plan.device,
                cores=plan.cores,
                recycle_after=plan.recycle_after,
                log=str(self.logs / "workers.log") if self.logs is not None else None,
                on_tpu_hosts=plan.topology is not None,
            )
            joined = self.address is not None
            self._leases.append(
                Lease(settings, plan.workers, plan.resources(), self.scratch, plan.topology, joined=joined)
            )

    def check(self) -> None:
        """Raise `FleetError` if the broker or a slice is lost for good, or cannot start; say once which slices are slow
        to come up; count those that serve. Cheap: asks the broker once a second at most.
        """
        for lease in self._leases:
            if lease.error is not None:
                raise self._error(f"{lease.name} could not be kept: {last_line(lease.error)}") from lease.error
        now = time.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + CHECK_EVERY_S
        try:
            status = ray.get(self.broker.slices.remote(), timeout=BROKER_ANSWERS_S)
        except ray.exceptions.RayError as error:
            raise self._error(
                f"the broker of the slices died ({last_line(error)}); the same command goes on"
            ) from error
        serving = {name for name, workers in status["ready"].items() if workers == self.plan.workers}
        self.capacity = max(1, len(serving))
        for name, (times, text) in status["start_failures"].items():
            if times >= START_ATTEMPTS:
                raise self._error(f"{name} cannot start its workers ({times} times): {last_line(text)}")
        missing = [lease.name for lease in self._leases if lease.name not in serving]
        if not missing and len(self._leases) < self.plan.slices:
            self._ask_for(len(self._leases) + 1)
        if missing and not self._missed and now > self._leased_at + SLOW_START_S:
            self._missed = True
            free = ", ".join(f"{amount:g} {name}" for name, amount in self._free().items()) or "nothing"
            self.say(f"waiting for {', '.join(missing)}: each needs {self.plan.needs()}; the cluster has {free} free")

    def _error(self, text: str) -> FleetError:
        """The error to raise now; from here on Ray's own logs are worth keeping."""
        self._failed = True
        return FleetError(text if self.logs is None else f"{text}; see the logs in {shown(self.logs)}")

    @staticmethod
    def _free() -> dict[str, float]:
        free: dict[str, float] = ray.available_resources()
        return {name: free[name] for name in ("CPU", "GPU", "TPU") if name in free}

    def close(self) -> None:
        """Send the slices home, wait `patience_s` for them, and end the cluster if this fleet started it."""
        try:
            if ray.is_initialized():
                self._send_home()
        finally:
            try:
                ray.shutdown(wait_for_processes=True)
            finally:
                self._keep_ray_logs()
                _remove(self.scratch)

    def _keep_ray_logs(self) -> None:
        if self.logs is None or not self._failed:
            return
        try:
            keep_ray_logs(self.scratch / "ray" / "session_latest" / "logs", self.logs / "ray")
        except OSError:  # hides not the error that ended the fleet
            log.exception("Ray's own logs could not be kept")

    def _send_home(self) -> None:
        """Have every slice's workers end, and with them their reservations: those that serve when they have been told,
        those that are still waited for, and those that do not come home in time, by ending their controller, to which
        all that they hold belongs.
        """
        end = time.monotonic() + self.patience_s
        for lease in self._leases:
            lease.over.set()
        controllers: dict[str, Any] = {}
        serving: set[str] = set()
        try:
            if self.broker is not None:
                serving = set(ray.get(self.broker.slices.remote(), timeout=BROKER_ANSWERS_S)["ready"])
                controllers = ray.get(self.broker.close.remote(), timeout=max(10.0, self.patience_s))
        except ray.exceptions.RayError as error:  # workers notice that themselves, and go home
            log.warning("the broker was gone at the end: %s", error)
            serving = {lease.name for lease in self._leases}
        for name in controllers.keys() - serving:
            ray.kill(controllers[name])
        for lease in self._leases:
            lease.join(timeout=max(0.0, end - time.monotonic()))
        for lease in self._leases:
            if lease.is_alive() and (controller := controllers.get(lease.name)) is not None:
                log.warning("%s did not come home in time; its run is ended by force", lease.name)
                ray.kill(controller)
                lease.join(timeout=KILLED_S)
        if self.broker is not None:
            ray.kill(self.broker)


def _new_scratch() -> Path:
    """A folder for what Ray writes, named by this process; those of processes that were killed are removed.

    Ray's sockets lie in it, and a socket's path must be short.
    """
    root = Path(tempfile.gettempdir())
    if len(str(root)) > LONGEST_TEMP:
        root = Path("/tmp")
    for left in root.glob("convscale-*-*"):
        owner = left.name.split("-")[1]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists() and left.stat().st_uid == os.getuid():
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"convscale-{os.getpid()}-", dir=root))


def _remove(folder: Path) -> None:
    """Remove a folder that workers write to: they end a moment after their raylet."""
    end = time.monotonic() + REMOVED_S
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists() or time.monotonic() > end:
            return
        time.sleep(0.1)
