"""The broker, driven directly: no Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from trainables.broker import Broker


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 20))


def ended(outcome: str = "finished") -> dict[str, Any]:
    return {"event": "ended", "outcome": outcome, "result": {"step": 10, "meter": {}}}


def progressed(step: int) -> dict[str, Any]:
    return {"event": "progressed", "step": step, "points": [], "meter": {"productive": float(step)}}


async def all_events(broker: Broker, trial: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    while not events or events[-1]["event"] != "ended":
        events += await broker.pull(trial, len(events))
    return events


def test_trials_are_taken_in_order_and_their_events_come_back_numbered() -> None:
    async def scenario() -> None:
        broker = Broker()
        await broker.submit("a", {"x": 1})
        await broker.submit("b", {"x": 2})
        order = await broker.take("slice-0")
        assert order == {"trial": "a", "attempt": 1, "payload": {"x": 1}, "previous": None}
        await broker.push("a", 1, 0, progressed(5))
        await broker.push("a", 1, 1, ended())
        events = await all_events(broker, "a")
        assert [(event["event"], event["number"], event["attempt"]) for event in events] == [
            ("progressed", 0, 1),
            ("ended", 1, 1),
        ]
        assert (await broker.take("slice-0"))["trial"] == "b"  # type: ignore[index]

    run(scenario())


def test_a_slice_that_waits_is_woken_by_a_trial() -> None:
    async def scenario() -> None:
        broker = Broker()
        waiting = asyncio.create_task(broker.take("slice-0"))
        await asyncio.sleep(0)
        await broker.submit("a", {})
        assert (await waiting)["trial"] == "a"  # type: ignore[index]

    run(scenario())


def test_submitting_twice_runs_once() -> None:
    async def scenario() -> None:
        broker = Broker()
        await broker.submit("a", {})
        await broker.submit("a", {})
        await broker.take("slice-0")
        assert (await broker.status())["queued"] == 0

    run(scenario())


@pytest.mark.parametrize("kind", ["crashed", "preempted"])
def test_a_lost_worker_gives_its_trial_to_the_next_free_slice_with_what_it_last_reported(kind: str) -> None:
    async def scenario() -> None:
        broker = Broker()
        await broker.submit("a", {})
        await broker.submit("b", {})
        await broker.take("slice-0")
        await broker.push("a", 1, 0, progressed(7))
        await broker.lost("slice-0", kind, "gone")
        order = await broker.take("slice-1")
        assert order is not None
        assert (order["trial"], order["attempt"]) == ("a", 2)
        assert (order["previous"]["step"], order["previous"]["meter"]) == (7, {"productive": 7.0})
        await broker.push("a", 1, 1, progressed(9))  # an echo of the lost attempt
        await broker.push("a", 2, 0, ended())
        assert [event["event"] for event in await all_events(broker, "a")] == ["progressed", kind, "ended"]

    run(scenario())


def test_a_worker_that_asks_again_has_lost_its_trial() -> None:
    async def scenario() -> None:
        broker = Broker()
        await broker.submit("a", {})
        await broker.take("slice-0")
        order = await broker.take("slice-0")
        assert order is not None
        assert (order["trial"], order["attempt"]) == ("a", 2)

    run(scenario())


def test_a_worker_that_died_while_it_waited_takes_no_trial_away() -> None:
    async def scenario() -> None:
        broker = Broker()
        dead = asyncio.create_task(broker.take("slice-0"))
        await asyncio.sleep(0)
        await broker.lost("slice-0", "crashed", "killed while idle")
        await broker.submit("a", {})
        assert (await broker.take("slice-1"))["trial"] == "a"  # type: ignore[index]
        assert await dead is None

    run(scenario())


def test_crashes_without_a_new_checkpoint_end_the_trial_and_a_checkpoint_clears_them() -> None:
    async def scenario() -> None:
        broker = Broker(max_crashes=2)
        await broker.submit("a", {})
        for attempt in range(1, 6):  # each attempt gets a little further before it dies
            await broker.take("slice-0")
            await broker.push("a", attempt, 0, {"event": "checkpointed", "step": attempt})
            await broker.lost("slice-0", "crashed", "out of memory")
        await broker.take("slice-0")
        await broker.lost("slice-0", "crashed", "out of memory")
        last = (await all_events(broker, "a"))[-1]
        assert last["outcome"] == "failed"
        assert last["result"]["reason"].startswith("its worker died without reaching a new checkpoint")
        assert last["result"]["error"] == "out of memory"

    run(scenario())


def test_preemptions_are_retried_without_limit() -> None:
    async def scenario() -> None:
        broker = Broker(max_crashes=1)
        await broker.submit("a", {})
        for _ in range(50):
            await broker.take("slice-0")
            await broker.lost("slice-0", "preempted", "the node went")
        order = await broker.take("slice-0")
        assert order is not None
        assert order["attempt"] == 51

    run(scenario())


def test_a_trial_whose_loop_raises_is_tried_again_then_fails_with_its_traceback() -> None:
    async def scenario() -> None:
        broker = Broker(max_errors=2)
        await broker.submit("a", {})
        for _ in range(2):
            await broker.take("slice-0")
            await broker.lost("slice-0", "errored", "Traceback: boom")
        events = await all_events(broker, "a")
        assert [event["event"] for event in events] == ["errored", "ended"]
        assert events[-1]["result"]["error"] == "Traceback: boom"
        assert events[-1]["result"]["reason"] == "its training raised an error, 2 times"

    run(scenario())


def test_stopping_reaches_running_trials_and_ends_waiting_ones() -> None:
    async def scenario() -> None:
        broker = Broker()
        await broker.submit("a", {})
        await broker.submit("b", {})
        await broker.take("slice-0")
        told = asyncio.create_task(broker.wait_stop("a", 1))
        await asyncio.sleep(0)
        await broker.stop_all()
        assert await told
        assert (await all_events(broker, "b"))[-1]["outcome"] == "stopped"
        await broker.push("a", 1, 0, ended("stopped"))
        assert await broker.take("slice-0") is None
        await broker.submit("late", {})
        assert (await all_events(broker, "late"))[-1]["outcome"] == "stopped"

    run(scenario())


def test_a_worker_that_dies_while_stopping_ends_its_trial_as_stopped() -> None:
    async def scenario() -> None:
        broker = Broker()
        await broker.submit("a", {})
        await broker.take("slice-0")
        await broker.push("a", 1, 0, progressed(3))
        await broker.stop_all()
        await broker.lost("slice-0", "crashed", "killed")
        last = (await all_events(broker, "a"))[-1]
        assert (last["outcome"], last["result"]["step"]) == ("stopped", 3)

    run(scenario())


def test_the_stop_listener_of_a_trial_that_ended_is_released() -> None:
    async def scenario() -> None:
        broker = Broker()
        await broker.submit("a", {})
        await broker.take("slice-0")
        told = asyncio.create_task(broker.wait_stop("a", 1))
        await asyncio.sleep(0)
        await broker.push("a", 1, 0, ended())
        assert not await told
        await broker.forget("a")
        assert not await broker.wait_stop("a", 1)
        await broker.submit("a", {})  # a proxy that died after the end, and was started again
        assert [event["event"] for event in await broker.pull("a")] == ["ended"]
        assert (await broker.status())["queued"] == 0

    run(scenario())


def test_events_that_overtake_each_other_on_the_way_come_out_in_order() -> None:
    async def scenario() -> None:
        broker = Broker()
        await broker.submit("a", {})
        await broker.take("slice-0")
        last = asyncio.create_task(broker.push("a", 1, 2, ended()))
        second = asyncio.create_task(broker.push("a", 1, 1, progressed(2)))
        await asyncio.sleep(0)
        assert not last.done()
        await broker.push("a", 1, 0, progressed(1))
        await asyncio.gather(second, last)
        events = await all_events(broker, "a")
        assert [(event["event"], event.get("step")) for event in events] == [
            ("progressed", 1),
            ("progressed", 2),
            ("ended", None),
        ]

    run(scenario())


def test_a_slice_that_fails_to_serve_is_counted_until_it_takes_a_trial() -> None:
    async def scenario() -> None:
        broker = Broker()
        await broker.lost("slice-0", "errored", "ImportError")
        await broker.ready("slice-0", 0, {"pid": 1})
        await broker.lost("slice-0", "crashed", "killed while idle")
        assert (await broker.status())["start_failures"] == {"slice-0": (2, "killed while idle")}
        await broker.submit("a", {})
        await broker.take("slice-0")
        assert (await broker.status())["start_failures"] == {}

    run(scenario())


def test_a_slice_serves_when_all_of_its_workers_are_ready_and_not_after_it_was_lost() -> None:
    async def scenario() -> None:
        broker = Broker()
        await broker.placed("slice-0", ["node-a", "node-b"])
        assert (await broker.status())["nodes"] == {"slice-0": ["node-a", "node-b"]}
        for rank in (1, 0):
            await broker.ready("slice-0", rank, {"node": "a"})
        assert (await broker.slices())["ready"] == {"slice-0": 2}
        await broker.lost("slice-0", "preempted", "its node is gone")
        assert await broker.slices() == {"ready": {}, "start_failures": {}}

    run(scenario())
