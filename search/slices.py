"""Leasing slices from Ray: each for the whole study, as one long Ray Train run that serves trials.

`Fleet` owns everything that a search starts on a cluster: the broker, the slices, and (on a laptop) the cluster
itself; `close` gives all of it back, on every way out.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import ray
import ray.train
from ray.train.torch import TorchTrainer
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from trainables.broker import Broker
from trainables.worker import LossReporter, SliceSettings, serve

log = logging.getLogger(__name__)

ROOT: Final = Path(__file__).resolve().parent.parent
NAMESPACE: Final = "convscale"
CHECK_EVERY_S: Final = 5.0
START_ATTEMPTS: Final = 3
GOING_HOME_S: Final = 20.0


class FleetError(RuntimeError):
    """The cluster or its slices could not be had; the message is one line."""


class ClusterNotFoundError(FleetError):
    """No Ray cluster answers at the address that was given."""


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """What to lease: `slices` of `workers` processes each, `cores` CPU threads a worker, on "cpu" or "cuda"."""

    slices: int
    workers: int
    cores: int
    device: str
    recycle_after: int | None
    max_errors: int


class Fleet:
    """A context manager: enter to start the cluster (or join the one at `address`), then `lease` the slices."""

    def __init__(self, plan: FleetPlan, *, address: str | None) -> None:
        self.plan, self.address = plan, address
        self.broker_name = f"broker-{secrets.token_hex(4)}"
        self.broker: Any = None
        self._leases: list[Lease] = []
        self._next_check = 0.0
        self.scratch = Path(tempfile.mkdtemp(prefix="convscale-"))

    def __enter__(self) -> Fleet:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
                _node_ip_address="127.0.0.1",
            )
        else:
            _check_address(self.address)
            try:
                ray.init(
                    address=self.address,
                    namespace=NAMESPACE,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    runtime_env=_shipped_code(),
                )
            except (ConnectionError, ray.exceptions.RayError, RuntimeError) as error:
                raise ClusterNotFoundError(_not_found(self.address, error)) from error
        self.broker = (
            ray.remote(Broker)
            .options(name=self.broker_name, num_cpus=0, max_concurrency=10_000)
            .remote(plan.max_errors)
        )

    def lease(self) -> None:
        """Ask for the slices; they come up in the background, and trials start on each as soon as it is there."""
        plan = self.plan
        for number in range(plan.slices):
            settings = SliceSettings(
                name=f"slice-{number}",
                broker=self.broker_name,
                namespace=NAMESPACE,
                device=plan.device,
                cores=plan.cores,
                recycle_after=plan.recycle_after,
            )
            self._leases.append(Lease(settings, plan.workers, self.scratch))

    def check(self) -> None:
        """Raise `FleetError` if a slice is lost for good, or cannot start; asks the broker now and then only."""
        for lease in self._leases:
            if lease.error is not None:
                raise FleetError(f"{lease.name} could not be kept: {_last_line(lease.error)}") from lease.error
        if time.monotonic() < self._next_check:
            return
        self._next_check = time.monotonic() + CHECK_EVERY_S
        for name, (times, text) in ray.get(self.broker.status.remote())["start_failures"].items():
            if times >= START_ATTEMPTS:
                raise FleetError(f"{name} cannot start its workers ({times} times): {_last_line(text)}")

    def close(self) -> None:
        """Send the slices home, wait for them, and (where this fleet started the cluster) end the cluster."""
        if ray.is_initialized():
            if self.broker is not None:
                try:
                    ray.get(self.broker.close.remote(), timeout=5)
                    for lease in self._leases:
                        lease.join(timeout=GOING_HOME_S)
                    ray.kill(self.broker)
                except ray.exceptions.RayError as error:
                    log.warning("the broker was gone at the end: %s", error)
            for lease in self._leases:
                lease.over = True
            ray.shutdown()
        shutil.rmtree(self.scratch, ignore_errors=True)


def _check_address(address: str) -> None:
    """Ray tries for minutes before it gives an address up; a port that nobody listens on is known at once."""
    if address == "auto" or "://" in address:
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise ClusterNotFoundError(_not_found(address, error)) from error


def _not_found(address: str, error: Exception) -> str:
    return (
        f"--address {address}: no Ray cluster answers ({_last_line(error)}); allowed: auto, or HOST:PORT of a cluster; "
        "start one with: ray start --head"
    )


def _shipped_code() -> dict[str, Any] | None:
    """This checkout, sent to every node of the cluster; None within a job that was submitted with its code."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return None
    return {"working_dir": str(ROOT), "excludes": ["/.venv", "/.git", "/runs", "/tests", "/benchmarks"]}


class _Lean:
    """Leaves out two helper processes of each Ray Train run, seconds of start-up each: one manages Ray datasets, which
    are not used here; the other frees the placement group if the controller dies, which Ray does by itself (the group
    belongs to the controller).
    """

    def _create_default_callbacks(self) -> list[Any]:
        not_needed = ("DatasetsCallback", "PlacementGroupCleanerCallback")
        every: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
        return [callback for callback in every if type(callback).__name__ not in not_needed]


class _Run(_Lean, DataParallelTrainer):  # type: ignore[misc]
    pass


class _TorchRun(_Lean, TorchTrainer):  # type: ignore[misc]
    pass


class Lease(threading.Thread):
    """Holds one slice until its workers are sent home: a thread around one long Ray Train run, begun anew if its
    controller dies.
    """

    def __init__(self, settings: SliceSettings, workers: int, scratch: Path) -> None:
        super().__init__(name=settings.name, daemon=True)
        self.settings, self.workers, self.scratch = settings, workers, scratch
        self.error: Exception | None = None
        self.over = False
        self.start()

    def run(self) -> None:
        for _ in range(START_ATTEMPTS):
            try:
                self._hold()
                return
            except SystemExit:  # how a wait ends when Ray is shut down under it
                return
            except Exception as error:  # told by `Fleet.check`, in the driver's own thread
                if self.over:
                    return
                log.warning("%s: its Ray Train run ended: %s", self.name, error)
                failure = error
        self.error = failure

    def _hold(self) -> None:
        settings = self.settings
        cuda = settings.device == "cuda"
        trainer = _TorchRun if self.workers > 1 else _Run  # a lone worker needs no process group
        trainer(
            serve,
            train_loop_config=asdict(settings),
            scaling_config=ray.train.ScalingConfig(
                num_workers=self.workers,
                use_gpu=cuda,
                resources_per_worker={"CPU": float(settings.cores)} | ({"GPU": 1.0} if cuda else {}),
            ),
            run_config=ray.train.RunConfig(
                name=f"{settings.name}-{secrets.token_hex(3)}",
                storage_path=str(self.scratch),
                failure_config=ray.train.FailureConfig(max_failures=-1),
                callbacks=[LossReporter(settings.name, settings.broker, settings.namespace)],
            ),
        ).fit()


def _last_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
