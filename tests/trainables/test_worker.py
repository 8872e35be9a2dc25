"""Why a slice's workers are gone, told from Ray's own exceptions."""

from __future__ import annotations

from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError

from trainables import worker
from trainables.worker import LoopError, Recycle, causes, loss_kind

ALIVE = {"NodeID": "here", "Alive": True}


class DrainedError(ActorDiedError):
    """What Ray raises for an actor on a node that was drained: `preempted` is set from its message there."""

    preempted = True


@pytest.fixture(autouse=True)
def cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [ALIVE, {"NodeID": "gone", "Alive": False}])
    monkeypatch.setattr(worker, "_answers", lambda actor: actor == "alive")


def facts(node: str = "here", actor: str = "alive") -> dict[int, dict[str, Any]]:
    return {0: {"node": "here", "actor": "alive"}, 1: {"node": node, "actor": actor}}


def kind(error: BaseException, known: dict[int, dict[str, Any]]) -> str:
    return loss_kind({0: causes(error)}, known)


def unhealthy(error: Exception) -> Exception:
    return WorkerHealthCheckFailedError("a worker health check failed", failure=error)


def raised(error: Exception) -> Exception:
    return UserExceptionWithTraceback(error, "Traceback: ...")


def test_a_worker_whose_process_died_has_crashed() -> None:
    assert kind(unhealthy(ActorDiedError()), facts()) == "crashed"


def test_a_worker_on_a_drained_node_was_preempted() -> None:
    assert kind(unhealthy(DrainedError()), facts()) == "preempted"


def test_a_worker_on_a_node_that_is_gone_was_preempted() -> None:
    assert kind(unhealthy(ActorDiedError()), facts(node="gone")) == "preempted"


def test_a_loop_that_raised_has_errored() -> None:
    assert kind(raised(RuntimeError("shapes do not match")), facts()) == "errored"


def test_a_lost_connection_to_a_worker_that_died_is_that_workers_crash() -> None:
    assert kind(raised(RuntimeError("Connection reset by peer")), facts(actor="dead")) == "crashed"


def test_a_lost_connection_to_a_node_that_is_gone_is_a_preemption() -> None:
    assert kind(raised(RuntimeError("Connection reset by peer")), facts(node="gone")) == "preempted"


def test_a_wish_to_be_replaced_is_found_under_its_wrappers() -> None:
    assert any(isinstance(cause, Recycle) for cause in causes(raised(Recycle("served 2 trials"))))
    assert worker._told(causes(raised(LoopError("Traceback: here")))) == "Traceback: here"
    assert isinstance(causes(unhealthy(RayTaskError("serve", "text", ValueError("inner"))))[-1], ValueError)
