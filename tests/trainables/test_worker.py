"""Why a slice's workers are gone, told from Ray's own exceptions; and what a worker writes down, with no Ray at all."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError

import trainables.loop
from tests.trainables.trials import tiny_trial
from trainables import worker
from trainables.worker import LoopError, Recycle, causes, loss_kind, serve


class DrainedError(ActorDiedError):
    """What Ray raises for an actor on a node that was drained: `preempted` is set from its message there."""

    preempted = True


@pytest.fixture(autouse=True)
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two nodes that Ray takes for alive, of which one has just gone; and one that it knows to be gone."""

    def node(name: str, listens: socket.socket, alive: bool = True) -> dict[str, Any]:
        address, port = listens.getsockname()
        return {"NodeID": name, "Alive": alive, "NodeManagerAddress": address, "NodeManagerPort": port}

    with socket.create_server(("127.0.0.1", 0)) as here, socket.create_server(("127.0.0.1", 0)) as going:
        nodes = [node("here", here), node("going", going), node("gone", here, alive=False)]
        going.close()
        monkeypatch.setattr(ray, "nodes", lambda: nodes)
        monkeypatch.setattr(worker, "_answers", lambda actor: actor == "alive")
        monkeypatch.setattr(worker, "SHUT_DOWN_S", 0.0)
        yield


def facts(node: str = "here", actor: str = "alive") -> tuple[list[str], list[str]]:
    """The actors of two workers that were ready, and their nodes."""
    return ["alive", actor], ["here", node]


def kind(error: BaseException, known: tuple[list[str], list[str]]) -> str:
    return loss_kind({0: causes(error)}, *known)


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


def test_a_worker_on_a_node_that_has_just_gone_was_preempted() -> None:
    assert kind(unhealthy(ActorDiedError()), facts(node="going")) == "preempted"
    assert kind(raised(RuntimeError("Connection reset by peer")), facts(node="going")) == "preempted"


def test_a_worker_whose_node_goes_before_it_is_ready_was_preempted() -> None:
    assert loss_kind({0: causes(unhealthy(ActorDiedError()))}, [], ["here", "going"]) == "preempted"
    assert loss_kind({0: causes(unhealthy(ActorDiedError()))}, [], ["here", "here"]) == "crashed"


def test_a_machine_that_ends_its_processes_before_it_goes_was_preempted(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([True, True, False])
    monkeypatch.setattr(worker, "listens", lambda node: next(answers))
    assert kind(unhealthy(ActorDiedError()), facts()) == "preempted"


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


class Remote:
    """A broker in this process: a method's `remote` answers at once. It hands out the orders that it was given."""

    def __init__(self, *orders: dict[str, Any]) -> None:
        self.orders = list(orders)

    def __getattr__(self, name: str) -> Any:
        answers = {"take": lambda *_: self.orders.pop(0) if self.orders else None, "wait_stop": lambda *_: False}
        return SimpleNamespace(remote=answers.get(name, lambda *_: None))


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ray's calls of a worker as plain ones; yields a function that sets the broker."""
    here = SimpleNamespace(get_node_id=lambda: "here", current_actor="alive")
    monkeypatch.setattr(ray, "get", lambda value: value)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: here)
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    threads = torch.get_num_threads()
    yield lambda broker: monkeypatch.setattr(ray, "get_actor", lambda name, namespace: broker)
    torch.set_num_threads(threads)


def test_an_error_of_a_trial_is_written_to_the_workers_log_with_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_ray: Any
) -> None:
    def mistaken(*_arguments: Any, **_settings: Any) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(trainables.loop, "train", mistaken)
    order = {"trial": "1e10-000", "attempt": 2, "payload": tiny_trial(tmp_path).to_dict(), "previous": None}
    settings = {"name": "slice-3", "broker": "broker", "namespace": "tests", "device": "cpu", "cores": 1}
    no_ray(Remote(order))
    with pytest.raises(LoopError, match="shapes do not match"):
        serve({**settings, "log": str(tmp_path / "workers.log")})
    first, *others = (tmp_path / "workers.log").read_text().splitlines()
    assert " ERROR slice-3 (process " in first
    assert first.endswith("1e10-000: attempt 2 raised an error")
    assert others[0].startswith("Traceback")
    assert others[-1] == "RuntimeError: shapes do not match"
