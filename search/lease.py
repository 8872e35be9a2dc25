"""A slice, leased from Ray for a whole study: a thread around one long Ray Train run, whose workers serve trials."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import ray
import ray.train
from ray.train.torch import TorchTrainer
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from clusters.hosts import ACCELERATOR
from clusters.tpu import Topology
from trainables.worker import ControllerReporter, LossReporter, SliceSettings, serve
from trainables.xla_backend import XlaConfig

log = logging.getLogger(__name__)

START_ATTEMPTS: Final = 3
SERVED_S: Final = 600.0  # a run that ends after that began in order


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
    """Holds one slice until its workers are sent home, in a Ray Train run that is begun anew if its controller dies.

    `workers` processes that take `resources` each; with `topology` they are the hosts of a slice of TPUs, all of them
    or none, which Ray reserves by the head that every slice announces. A lease waits for as long as it takes. `joined`:
    the cluster is not this machine alone.
    """

    def __init__(
        self,
        settings: SliceSettings,
        workers: int,
        resources: Mapping[str, float],
        scratch: Path,
        topology: Topology | None = None,
        *,
        joined: bool = False,
    ) -> None:
        super().__init__(name=settings.name, daemon=True)
        self.settings, self.workers, self.resources, self.scratch = settings, workers, resources, scratch
        self.topology, self.joined = topology, joined
        self.error: Exception | None = None
        self.over = threading.Event()
        self.start()

    def run(self) -> None:
        failures = 0
        while ray.is_initialized() and not self.over.is_set():  # else Ray Train would start a cluster of its own
            began = time.monotonic()
            try:
                self._hold()
                return
            except SystemExit:  # how a wait ends when Ray is shut down under it
                return
            except Exception as error:  # told by `Fleet.check`, in the driver's own thread
                if self.over.is_set():
                    return
                log.warning("%s: its Ray Train run ended: %s", self.name, error)
                failures = 1 if time.monotonic() - began > SERVED_S else failures + 1
                if failures == START_ATTEMPTS:
                    self.error = error
                    return

    def _hold(self) -> None:
        settings, shape = self.settings, self.topology.shape if self.topology is not None else None
        trainer: Any = _Run
        backend: dict[str, Any] = {}
        if self.topology is not None:
            backend["backend_config"] = XlaConfig(programs=os.environ.get("CONVSCALE_PROGRAMS"))
        elif self.workers > 1:  # a lone worker needs no process group
            trainer = _TorchRun
        trainer(
            serve,
            train_loop_config=asdict(settings),
            scaling_config=scaling_of(self.workers, self.resources, self.topology if self.joined else None),
            run_config=ray.train.RunConfig(
                name=f"{settings.name}-{secrets.token_hex(3)}",
                storage_path=str(self.scratch),
                failure_config=ray.train.FailureConfig(max_failures=-1),
                callbacks=[
                    LossReporter(settings.name, settings.broker, settings.namespace),
                    ControllerReporter(settings.name, settings.broker, settings.namespace, shape),
                ],
            ),
            **backend,
        ).fit()


def scaling_of(workers: int, resources: Mapping[str, float], topology: Topology | None) -> ray.train.ScalingConfig:
    """What Ray Train is asked for: so many workers of these resources; with `topology` all hosts of one TPU v4 slice.

    On a machine of one's own, which may not know what it is, the chips are enough.
    """
    slice_of_tpus: dict[str, Any] = {}
    if topology is not None:
        slice_of_tpus = {"topology": topology.shape, "accelerator_type": ACCELERATOR, "placement_strategy": "SPREAD"}
    return ray.train.ScalingConfig(
        num_workers=workers,
        use_gpu="GPU" in resources,
        use_tpu="TPU" in resources,
        resources_per_worker=dict(resources),
        **slice_of_tpus,
    )
