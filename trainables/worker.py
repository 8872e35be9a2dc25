"""The Ray Train worker: a warm slice that serves one trial after another.

One long Ray Train run per slice runs `serve` on each of the slice's workers. The process keeps its imports, its
device and its compiled graphs from trial to trial; `trainables.loop.train` makes sure that nothing else stays. This
and its backend for TPUs (`trainables.xla_backend`) are the only files of the room that know Ray.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import ray
import ray.train
from ray.train import UserCallback
from ray.train.collective import barrier, broadcast_from_rank_zero
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

from clusters.hosts import listens
from trainables.config import TrialConfig, TrialRefused
from trainables.worker_log import warnings_to
from trainables.xla_backend import one_group, teach_ray

log = logging.getLogger(__name__)

PROBE_S: Final = 20.0
SHUT_DOWN_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class SliceSettings:
    """What a worker must know about its slice: `cores` is CPU threads per worker, `recycle_after` trials a process,
    `log` the file for warnings and errors (None: they go where Ray puts them).
    """

    name: str
    broker: str
    namespace: str
    device: str
    cores: int
    recycle_after: int | None = None
    log: str | None = None
    on_tpu_hosts: bool = False


class Recycle(Exception):  # noqa: N818 - a request, not an error
    """Raised to have Ray Train replace this slice's processes after enough trials."""


class LoopError(RuntimeError):
    """The training loop raised; the message is its traceback, which would not survive the way otherwise."""


class LossReporter(UserCallback):  # type: ignore[misc]
    """Runs in Ray Train's controller: tells the broker at once that a slice's workers are gone, and why."""

    def __init__(self, slice_name: str, broker: str, namespace: str) -> None:
        self.slice_name, self.broker, self.namespace = slice_name, broker, namespace

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        try:
            broker = ray.get_actor(self.broker, namespace=self.namespace)
        except ValueError:  # the broker is gone, and with it the study's driver: nobody to tell
            return
        chains = {rank: causes(error) for rank, error in worker_exceptions.items()}
        if any(isinstance(cause, Recycle) for chain in chains.values() for cause in chain):
            return
        status = ray.get(broker.status.remote())
        facts, nodes = status["ready"].get(self.slice_name, {}), status["nodes"].get(self.slice_name, ())
        kind = loss_kind(chains, [fact["actor"] for fact in facts.values()], nodes)
        text = "; ".join(f"worker {rank}: {_told(chain)}" for rank, chain in sorted(chains.items()))
        ray.get(broker.lost.remote(self.slice_name, kind, text[-8000:]))


class ControllerReporter(ControllerCallback, WorkerGroupCallback):  # type: ignore[misc]
    """Runs in Ray Train's controller: makes it known to the broker, so that a run that hangs can be ended, and tells on
    which nodes its workers are, so that one that goes before they are ready is known as lost. `topology`: of TPU hosts.
    """

    def __init__(self, slice_name: str, broker: str, namespace: str, topology: str | None = None) -> None:
        self.slice_name, self.broker, self.namespace, self.topology = slice_name, broker, namespace, topology

    def after_controller_start(self, train_run_context: Any) -> None:
        if self.topology is not None:
            teach_ray(self.topology)
        ray.get(self._broker().controlled_by.remote(self.slice_name, ray.get_runtime_context().current_actor))

    def after_worker_group_start(self, worker_group: Any) -> None:
        nodes = [worker.metadata.node_id for worker in worker_group.get_workers()]
        ray.get(self._broker().placed.remote(self.slice_name, nodes))

    def _broker(self) -> Any:
        return ray.get_actor(self.broker, namespace=self.namespace)


def causes(error: BaseException | None) -> list[BaseException]:
    """The error and all it wraps, outermost first. Ray Train wraps a worker's own exception in several ways."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        wrapped = (getattr(error, name, None) for name in ("health_check_failure", "_base_exc", "cause", "__cause__"))
        error = next((inner for inner in wrapped if isinstance(inner, BaseException)), None)
    return chain


def loss_kind(chains: dict[int, list[BaseException]], ready: Sequence[Any], nodes: Sequence[str]) -> str:
    """Why a slice's workers are gone: "preempted", "crashed" or "errored" (the training loop raised).

    `ready` are the actors of workers that were, `nodes` all that workers were on. When one of several workers dies, the
    others raise errors of their own (a lost connection), maybe first: what counts is whether every worker's node and
    process is still there.
    """
    every = [cause for chain in chains.values() for cause in chain]
    if any(getattr(cause, "preempted", False) for cause in every) or _gone(nodes):
        return "preempted"
    died = any(isinstance(cause, ray.exceptions.RayActorError) for cause in every)
    if not died and all(_answers(actor) for actor in ready):
        return "errored"
    if sum(node["Alive"] for node in ray.nodes()) > 1:  # a machine that is being shut down ends its processes first
        time.sleep(SHUT_DOWN_S)
    return "preempted" if _gone(nodes) else "crashed"


def _gone(names: Sequence[str]) -> bool:
    """Whether one of these nodes is gone. Ray takes seconds to notice that, its port refuses at once."""
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    return not all(name in nodes and listens(nodes[name]) for name in names)


def _answers(actor: Any) -> bool:
    """Whether an actor's process is alive."""
    try:
        ray.get(actor.__ray_ready__.remote(), timeout=PROBE_S)
    except ray.exceptions.GetTimeoutError:
        return True  # busy, not dead
    except ray.exceptions.RayError:
        return False
    return True


def _told(chain: list[BaseException]) -> str:
    """The loop's traceback where it raised, else what Ray says of the worker's end."""
    return str(next((cause for cause in chain if isinstance(cause, LoopError)), chain[-1]))


def serve(settings: dict[str, Any]) -> None:
    """Serve trials until the study is over (`_serve`), or its broker is gone: then nobody is left to serve."""
    slice_ = SliceSettings(**settings)
    broker = ray.get_actor(slice_.broker, namespace=slice_.namespace)
    try:
        with ExitStack() as stack:
            if slice_.log:
                stack.enter_context(warnings_to(slice_.log, slice_.name))
            if slice_.on_tpu_hosts:
                stack.enter_context(one_group(tpu=slice_.device == "tpu"))
            _serve(slice_, broker)
    except ray.exceptions.RayActorError:
        if _answers(broker):
            raise


def _serve(slice_: SliceSettings, broker: Any) -> None:
    """Take trials from the broker and train them until it answers None (or this process is due to be replaced).

    An unexpected error in a trial is raised, so that Ray Train starts the slice's processes anew (`LossReporter` gives
    the trial back); so is `Recycle`, after `recycle_after` trials.
    """
    began = time.time()
    context = ray.train.get_context()
    leads, world = context.get_world_rank() == 0, context.get_world_size()

    import timm.models  # noqa: F401 - a second or two, which the first trial would count as its own start
    import torch

    from trainables.loop import train
    from trainables.runtime import select_runtime

    torch.set_num_threads(slice_.cores)
    runtime = select_runtime(slice_.device, cores=slice_.cores)
    rank = runtime.workers.rank  # on TPUs not that of Ray Train
    here = ray.get_runtime_context()
    facts = {"pid": os.getpid(), "node": here.get_node_id(), "actor": here.current_actor}
    ray.get(broker.ready.remote(slice_.name, rank, {**facts, "import_s": time.time() - began}))
    served = 0
    while True:
        order = _next_order(broker, slice_.name, world, leads=leads)
        if order is None:
            return
        trial, attempt = order["trial"], order["attempt"]

        pushes: list[Any] = []

        def report(event: dict[str, Any], order: dict[str, Any] = order, pushes: list[Any] = pushes) -> None:
            told = {**event, "slice": slice_.name, "time": time.time()}
            pushes.append(broker.push.remote(order["trial"], order["attempt"], len(pushes), told))

        try:
            config = TrialConfig.from_dict(order["payload"])
            with _stop_flag(broker, trial, attempt, rank) as stop:
                result = train(config, runtime, report, should_stop=stop.is_set, previous=order["previous"])
            ending = {"event": "ended", "outcome": result.outcome, "result": result.to_dict()}
        except TrialRefused as refusal:
            ending = {"event": "ended", "outcome": "failed", "result": {"reason": str(refusal), "refused": True}}
        except ray.exceptions.RayError:
            raise
        except Exception as error:
            log.exception("%s: attempt %d raised an error", trial, attempt)
            raise LoopError(traceback.format_exc()) from error
        if rank == 0:
            report(ending)
            ray.get(pushes[-1])
        if world > 1:  # whoever takes the next trial need not be who told of this one's end
            barrier()
        served += 1
        if slice_.recycle_after and served >= slice_.recycle_after:
            raise Recycle(f"served {served} trials")


def _next_order(broker: Any, slice_name: str, world: int, *, leads: bool) -> dict[str, Any] | None:
    """The slice's next order on every worker: Ray Train's rank 0 takes it, the others fetch the one it took."""
    order: dict[str, Any] | None = ray.get(broker.take.remote(slice_name)) if leads else None
    if world == 1:
        return order
    trial = broadcast_from_rank_zero(order["trial"] if order else "")
    if not trial:
        return None
    return order if leads else ray.get(broker.order.remote(trial))


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
