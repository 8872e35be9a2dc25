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
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import ray
import ray.train
from ray.train.torch import TorchTrainer
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from search.ray_logs import keep_ray_logs
from search.terminal import shown
from trainables.broker import Broker
from trainables.worker import ControllerReporter, LossReporter, SliceSettings, serve

log = logging.getLogger(__name__)

ROOT: Final = Path(__file__).resolve().parent.parent
NAMESPACE: Final = "convscale"
CHECK_EVERY_S: Final = 5.0
BROKER_ANSWERS_S: Final = 60.0
START_ATTEMPTS: Final = 3
SLOW_START_S: Final = 60.0
GOING_HOME_S: Final = 20.0
KILLED_S: Final = 30.0
REMOVED_S: Final = 5.0
LONGEST_TEMP: Final = 30


class FleetError(RuntimeError):
    """The cluster or its slices could not be had; the message is one line."""


class ClusterNotFoundError(FleetError):
    """No Ray cluster answers at the address that was given."""


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """What to lease: `slices` of `workers` processes each, `cores` CPU threads a worker, on "cpu", "cuda", "tpu" or
    "xla-cpu"; on "tpu" a worker takes `chips` TPU chips, all of its host's.
    """

    slices: int
    workers: int
    cores: int
    device: str
    recycle_after: int | None
    max_errors: int
    chips: int = 0

    def resources(self) -> dict[str, float]:
        """What a worker asks of Ray."""
        wanted = {"CPU": float(self.cores)}
        if self.device == "cuda":
            wanted["GPU"] = 1.0
        if self.device == "tpu":
            wanted["TPU"] = float(self.chips)
        return wanted


class Fleet:
    """A context manager: enter to start the cluster (or join the one at `address`), then `lease` the slices.

    With `logs`, a folder, a cluster of one's own has its workers' warnings and errors in `logs/workers.log`, and Ray's
    own logs in `logs/ray` if it ends with an error. Those of a cluster that was joined stay where it has them.
    """

    def __init__(self, plan: FleetPlan, *, address: str | None, logs: Path | None = None) -> None:
        self.plan, self.address = plan, address
        self.logs = logs.absolute() if logs is not None and address is None else None
        self.broker_name = f"broker-{secrets.token_hex(4)}"
        self.broker: Any = None
        self.patience_s = GOING_HOME_S
        self.say: Callable[[str], None] = log.info
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
            _check_address(self.address)
            try:
                ray.init(
                    address=self.address,
                    namespace=NAMESPACE,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    runtime_env=_shipped_code(),
                )
            except ray.exceptions.AuthenticationError as error:
                raise ClusterNotFoundError(
                    f"--address {self.address}: the cluster wants another token ({_last_line(error)}); set "
                    "RAY_AUTH_MODE and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to what it was started with"
                ) from error
            except (ConnectionError, ray.exceptions.RayError, RuntimeError) as error:
                raise ClusterNotFoundError(_not_found(self.address, error)) from error
        self.broker = (
            ray.remote(Broker)
            .options(name=self.broker_name, num_cpus=0, max_concurrency=10_000)
            .remote(plan.max_errors)
        )

    def resources(self) -> dict[str, float]:
        """What the cluster has in all: CPU, GPU and so on."""
        return dict(ray.cluster_resources())

    def nodes(self) -> list[dict[str, Any]]:
        """The cluster's nodes, as Ray describes them."""
        return list(ray.nodes())

    def lease(self) -> None:
        """Ask for the slices; they come up in the background, and trials start on each as soon as it is there."""
        plan = self.plan
        self._leased_at = time.monotonic()
        if self.logs is not None:
            self.logs.mkdir(parents=True, exist_ok=True)
        for number in range(plan.slices):
            settings = SliceSettings(
                name=f"slice-{number}",
                broker=self.broker_name,
                namespace=NAMESPACE,
                device=plan.device,
                cores=plan.cores,
                recycle_after=plan.recycle_after,
                log=str(self.logs / "workers.log") if self.logs is not None else None,
            )
            self._leases.append(Lease(settings, plan.workers, plan.resources(), self.scratch))

    def check(self) -> None:
        """Raise `FleetError` if the broker or a slice is lost for good, or cannot start; say once which slices are slow
        to come up. Cheap: asks the broker every few seconds at most.
        """
        for lease in self._leases:
            if lease.error is not None:
                raise self._error(f"{lease.name} could not be kept: {_last_line(lease.error)}") from lease.error
        now = time.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + CHECK_EVERY_S
        try:
            status = ray.get(self.broker.status.remote(), timeout=BROKER_ANSWERS_S)
        except ray.exceptions.RayError as error:
            raise self._error(
                f"the broker of the slices died ({_last_line(error)}); the same command goes on"
            ) from error
        for name, (times, text) in status["start_failures"].items():
            if times >= START_ATTEMPTS:
                raise self._error(f"{name} cannot start its workers ({times} times): {_last_line(text)}")
        missing = [lease.name for lease in self._leases if lease.name not in status["ready"]]
        if missing and not self._missed and now > self._leased_at + SLOW_START_S:
            self._missed = True
            free = ", ".join(f"{amount:g} {name}" for name, amount in self._free().items()) or "nothing"
            self.say(f"waiting for {', '.join(missing)}: each needs {self._needs()}; the cluster has {free} free")

    def _error(self, text: str) -> FleetError:
        """The error to raise now; from here on Ray's own logs are worth keeping."""
        self._failed = True
        return FleetError(text if self.logs is None else f"{text}; see the logs in {shown(self.logs)}")

    def _needs(self) -> str:
        plan = self.plan
        return " and ".join(f"{plan.workers * amount:g} {name}" for name, amount in plan.resources().items())

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
        end = time.monotonic() + self.patience_s
        for lease in self._leases:
            lease.over = True
        controllers: dict[str, Any] = {}
        try:
            if self.broker is not None:
                controllers = ray.get(self.broker.close.remote(), timeout=max(10.0, self.patience_s))
        except ray.exceptions.RayError as error:  # workers notice that themselves, and go home
            log.warning("the broker was gone at the end: %s", error)
        for lease in self._leases:
            lease.join(timeout=max(0.0, end - time.monotonic()))
        for lease in self._leases:
            if lease.is_alive() and (controller := controllers.get(lease.name)) is not None:
                log.warning("%s did not come home in time; its run is ended by force", lease.name)
                ray.kill(controller)
                lease.join(timeout=KILLED_S)
        if self.broker is not None:
            ray.kill(self.broker)


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

    def __init__(self, settings: SliceSettings, workers: int, resources: dict[str, float], scratch: Path) -> None:
        super().__init__(name=settings.name, daemon=True)
        self.settings, self.workers, self.resources, self.scratch = settings, workers, resources, scratch
        self.error: Exception | None = None
        self.over = False
        self.start()

    def run(self) -> None:
        for _ in range(START_ATTEMPTS):
            if not ray.is_initialized():  # Ray Train would start a cluster of its own
                return
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
        trainer = _TorchRun if self.workers > 1 else _Run  # a lone worker needs no process group
        trainer(
            serve,
            train_loop_config=asdict(settings),
            scaling_config=ray.train.ScalingConfig(
                num_workers=self.workers,
                use_gpu="GPU" in self.resources,
                use_tpu="TPU" in self.resources,
                resources_per_worker=self.resources,
            ),
            run_config=ray.train.RunConfig(
                name=f"{settings.name}-{secrets.token_hex(3)}",
                storage_path=str(self.scratch),
                failure_config=ray.train.FailureConfig(max_failures=-1),
                callbacks=[
                    reporter(settings.name, settings.broker, settings.namespace)
                    for reporter in (LossReporter, ControllerReporter)
                ],
            ),
        ).fit()


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


def _last_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
