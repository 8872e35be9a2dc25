"""The Ray Train worker: a warm slice that serves one trial after another.

One long Ray Train run per slice runs `serve` on each of the slice's workers. The process keeps its imports, its
device and its compiled graphs from trial to trial; `trainables.loop.train` makes sure that nothing else stays. This
is the only file of the room that knows Ray.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.train import UserCallback
from ray.train.collective import broadcast_from_rank_zero

from trainables.config import TrialConfig, TrialRefused

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SliceSettings:
    """What a worker must know about its slice: `cores` is CPU threads per worker, `recycle_after` trials a process."""

    name: str
    broker: str
    namespace: str
    device: str
    cores: int
    recycle_after: int | None = None


class Recycle(RuntimeError):  # noqa: N818 - a request, not an error
    """Raised to have Ray Train replace this slice's processes; the slice's trial has been given back or has ended."""


class LossReporter(UserCallback):  # type: ignore[misc]
    """Runs in Ray Train's controller: tells the broker at once that a slice's worker is gone, and why."""

    def __init__(self, slice_name: str, broker: str, namespace: str) -> None:
        self.slice_name, self.broker, self.namespace = slice_name, broker, namespace

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        causes = [_root_cause(error) for error in worker_exceptions.values()]
        if any(isinstance(cause, Recycle) for cause in causes):
            return
        preempted = any(
            getattr(cause, "preempted", False) or isinstance(cause, ray.exceptions.NodeDiedError) for cause in causes
        )
        text = "; ".join(f"rank {rank}: {error}" for rank, error in worker_exceptions.items())
        broker = ray.get_actor(self.broker, namespace=self.namespace)
        ray.get(broker.lost.remote(self.slice_name, "preempted" if preempted else "crashed", text[-4000:]))


def _root_cause(error: BaseException) -> BaseException:
    """The worker's own exception under Ray's wrappers."""
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None and isinstance(inner, BaseException):
        error = inner
    return error


def serve(settings: dict[str, Any]) -> None:
    """Take trials from the broker and train them until it answers None (or this process is due to be replaced).

    Raises `Recycle` when Ray Train shall start this slice's processes anew: after an unexpected error in a trial, and
    after `recycle_after` trials.
    """
    slice_ = SliceSettings(**settings)
    began = time.time()
    broker = ray.get_actor(slice_.broker, namespace=slice_.namespace)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()

    import timm.models  # noqa: F401 - a second or two, which the first trial would count as its own start
    import torch

    from trainables.loop import train
    from trainables.runtime import select_runtime

    torch.set_num_threads(slice_.cores)
    runtime = select_runtime(slice_.device, cores=slice_.cores)
    if rank == 0:
        ray.get(
            broker.ready.remote(
                slice_.name, {"pid": os.getpid(), "import_s": time.time() - began, "device": str(runtime.device)}
            )
        )
    served = 0
    while True:
        order = _next_order(broker, slice_.name, rank, world)
        if order is None:
            return
        trial, attempt = order["trial"], order["attempt"]

        def report(event: dict[str, Any], trial: str = trial, attempt: int = attempt) -> None:
            if rank == 0:
                broker.push.remote(trial, attempt, {**event, "slice": slice_.name, "time": time.time()})

        try:
            config = TrialConfig.from_dict(order["payload"])
            with _stop_flag(broker, trial, attempt, rank) as stop:
                result = train(config, runtime, report, should_stop=stop.is_set, previous=order["previous"])
            ending = {"event": "ended", "outcome": result.outcome, "result": result.to_dict()}
        except TrialRefused as refusal:
            ending = {"event": "ended", "outcome": "failed", "result": {"reason": str(refusal), "refused": True}}
        except Exception as error:
            ray.get(broker.errored.remote(trial, attempt, traceback.format_exc()[-8000:]))
            raise Recycle(f"{trial}: {error}") from error
        if rank == 0:
            ray.get(broker.push.remote(trial, attempt, {**ending, "slice": slice_.name}))
        served += 1
        if slice_.recycle_after and served >= slice_.recycle_after:
            raise Recycle(f"served {served} trials")


def _next_order(broker: Any, slice_name: str, rank: int, world: int) -> dict[str, Any] | None:
    """The slice's next order on every rank: rank 0 takes it, the others fetch the one it took."""
    order: dict[str, Any] | None = ray.get(broker.take.remote(slice_name)) if rank == 0 else None
    if world == 1:
        return order
    trial = broadcast_from_rank_zero(order["trial"] if order else "")
    if not trial:
        return None
    return order if rank == 0 else ray.get(broker.order.remote(trial))


@contextmanager
def _stop_flag(broker: Any, trial: str, attempt: int, rank: int) -> Iterator[threading.Event]:
    """An event that is set as soon as the broker wants this attempt to stop (rank 0 listens; the loop tells the
    others).
    """
    flag = threading.Event()

    def listen() -> None:
        try:
            if ray.get(broker.wait_stop.remote(trial, attempt)):
                flag.set()
        except ray.exceptions.RayError:
            flag.set()  # the broker is gone, and with it the study's driver: keep a checkpoint and end

    if rank == 0:
        threading.Thread(target=listen, name=f"stop-{trial}", daemon=True).start()
    yield flag
