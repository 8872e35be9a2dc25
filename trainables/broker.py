"""The broker: hands trials to slices and their events back to the driver.

A plain asyncio class; the driver runs it as one Ray actor. It keeps no truth: what it knows is lost with it, and the
ledger and the checkpoints suffice to go on. Per trial it keeps an order, a growing list of events and how often its
worker was lost.

Life of a trial: submitted -> taken by a slice (attempt 1) -> events -> ended. If its worker is lost, or the loop
raises, the trial goes back to the head of the queue and the next free slice takes it (attempt 2 ...), until a limit
is reached. Lost nodes are retried without limit; a worker that dies (killed, out of memory) `max_crashes` times
without a new checkpoint in between, and a loop that raises `max_errors` times, end the trial as failed.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

Event = dict[str, Any]


@dataclass(slots=True)
class Order:
    """One trial as the broker sees it. `slice` is None while it waits; `previous` is what a lost attempt last
    reported.
    """

    trial: str
    payload: dict[str, Any]
    previous: dict[str, Any] | None
    slice: str | None = None
    attempt: int = 0
    crashes: int = 0
    errors: int = 0
    checkpoint_step: int = -1
    stopping: bool = False
    ended: bool = False
    next_number: int = 0  # of the current attempt's events; they may arrive out of order
    early: dict[int, Event] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)


class Broker:
    """See the module's text. All methods are coroutines of one event loop, so none needs a lock beyond its
    conditions.
    """

    def __init__(self, max_errors: int = 3, max_crashes: int = 3) -> None:
        self._orders: dict[str, Order] = {}
        self._queue: deque[Order] = deque()
        self._queued = asyncio.Condition()
        self._limits = (max_errors, max_crashes)
        self._serving: dict[str, Order] = {}
        self._ready: dict[str, dict[int, dict[str, Any]]] = {}
        self._nodes: dict[str, list[str]] = {}
        self._start_failures: dict[str, tuple[int, str]] = {}
        self._controllers: dict[str, Any] = {}
        self._turns: dict[str, int] = {}  # a call of `take` is void once its worker is lost or asks again
        self._closed = False

    # ---------------------------------------------------------------- the driver's side

    async def submit(
        self, trial: str, payload: dict[str, Any], previous: dict[str, Any] | None = None, attempt: int = 0
    ) -> None:
        """Queue a trial; submitting one that is known does nothing, so a proxy that was restarted may submit again."""
        if trial in self._orders:
            return
        order = Order(trial, payload, previous, attempt=attempt)
        self._orders[trial] = order
        if self._closed:
            await self._end(order, "stopped")
            return
        await self._enqueue(order)

    async def pull(self, trial: str, after: int = 0) -> list[Event]:
        """The trial's events from number `after` on; waits until there is one. The last one ever is "ended"."""
        order = self._orders[trial]
        async with order.changed:
            await order.changed.wait_for(lambda: bool(order.events) and order.events[-1]["number"] >= after)
            return [event for event in order.events if event["number"] >= after]

    async def forget(self, trial: str) -> None:
        """Drop all of an ended trial but its end, so that memory grows little with the study."""
        order = self._orders[trial]
        order.payload, order.previous, order.events = {}, None, order.events[-1:]

    async def stop(self, trial: str) -> None:
        """Tell a trial to stop at its next step and keep its checkpoint; one that waits ends at once."""
        order = self._orders[trial]
        if order in self._queue:
            self._queue.remove(order)
            await self._end(order, "stopped")
        async with order.changed:
            order.stopping = True
            order.changed.notify_all()

    async def stop_all(self) -> None:
        """Stop every trial, and hand out no further one."""
        self._closed = True
        for trial in list(self._orders):
            await self.stop(trial)
        async with self._queued:
            self._queued.notify_all()

    async def close(self) -> dict[str, Any]:
        """Send every slice home: each waiting or coming `take` answers None. Returns the slices' controllers."""
        await self.stop_all()
        return dict(self._controllers)

    async def status(self) -> dict[str, Any]:
        """What each slice's workers said when they were ready (by rank), how often and why a slice failed to serve, and
        the trials that wait or run.
        """
        return {
            "ready": dict(self._ready),
            "nodes": dict(self._nodes),
            "start_failures": dict(self._start_failures),
            "queued": len(self._queue),
            "serving": {name: order.trial for name, order in self._serving.items()},
        }

    async def slices(self) -> dict[str, Any]:
        """How many of each slice's workers are ready, and how often and why a slice failed to serve."""
        ready = {name: len(ranks) for name, ranks in self._ready.items()}
        return {"ready": ready, "start_failures": dict(self._start_failures)}

    # ---------------------------------------------------------------- the slices' side

    async def ready(self, slice_name: str, rank: int, facts: dict[str, Any]) -> None:
        """A worker of a slice has its process, imports and device, and is about to take its first trial."""
        self._ready.setdefault(slice_name, {})[rank] = facts

    async def placed(self, slice_name: str, nodes: list[str]) -> None:
        """A slice's workers have processes, on these nodes; they are not ready yet."""
        self._nodes[slice_name] = nodes

    async def controlled_by(self, slice_name: str, controller: Any) -> None:
        """The actor that holds a slice, for a driver that must end it by force."""
        self._controllers[slice_name] = controller

    async def take(self, slice_name: str) -> dict[str, Any] | None:
        """The next trial for this slice; waits for one; None when the study is over."""
        if slice_name in self._serving:
            await self._give_back_from(slice_name, "crashed", "its worker was replaced")
        turn = self._turns[slice_name] = self._turns.get(slice_name, 0) + 1
        async with self._queued:
            await self._queued.wait_for(lambda: bool(self._queue) or self._closed or self._turns[slice_name] != turn)
            if self._closed or self._turns[slice_name] != turn:
                return None
            order = self._queue.popleft()
        order.slice, order.attempt = slice_name, order.attempt + 1
        order.next_number, order.early = 0, {}
        self._serving[slice_name] = order
        self._start_failures.pop(slice_name, None)
        return await self.order(order.trial)

    async def order(self, trial: str) -> dict[str, Any]:
        """What a slice's other ranks need to run the trial that rank 0 took."""
        order = self._orders[trial]
        return {"trial": trial, "attempt": order.attempt, "payload": order.payload, "previous": order.previous}

    async def push(self, trial: str, attempt: int, number: int, event: Event) -> None:
        """Take an attempt's `number`-th event (from 0), and return once it has been added; one that overtook others
        waits for them. Events of an attempt that was given up are dropped.
        """
        order = self._orders[trial]

        def over() -> bool:
            return order.ended or order.attempt != attempt or order.slice is None

        if over():
            return
        order.early[number] = event
        while not over() and (event_in_turn := order.early.pop(order.next_number, None)) is not None:
            order.next_number += 1
            await self._take_event(order, event_in_turn)
        async with order.changed:
            await order.changed.wait_for(lambda: over() or order.next_number > number)

    async def _take_event(self, order: Order, event: Event) -> None:
        kind = event["event"]
        if kind == "progressed":
            order.previous = {"step": event["step"], "meter": event["meter"], "time": time.time()}
        elif kind == "checkpointed":
            if event["step"] > order.checkpoint_step:
                order.checkpoint_step, order.crashes = event["step"], 0
        elif kind == "ended":
            self._serving.pop(order.slice or "", None)
            order.slice, order.ended = None, True
        await self._add(order, event)

    async def lost(self, slice_name: str, kind: str, text: str) -> None:
        """A slice's workers are gone: `kind` is "preempted" (a node went), "crashed" (a process died) or "errored" (the
        loop raised).
        """
        self._turns[slice_name] = self._turns.get(slice_name, 0) + 1
        async with self._queued:
            self._queued.notify_all()
        self._ready.pop(slice_name, None)
        if slice_name in self._serving:
            await self._give_back_from(slice_name, kind, text)
        elif kind != "preempted":  # counted until the slice takes a trial again
            self._start_failures[slice_name] = (self._start_failures.get(slice_name, (0, ""))[0] + 1, text)

    async def wait_stop(self, trial: str, attempt: int) -> bool:
        """Waits until this attempt should stop (True) or has ended (False)."""
        order = self._orders[trial]
        async with order.changed:
            await order.changed.wait_for(
                lambda: order.stopping or order.ended or order.attempt != attempt or order.slice is None
            )
        return order.stopping and not order.ended

    # ---------------------------------------------------------------- inside

    async def _enqueue(self, order: Order, *, first: bool = False) -> None:
        async with self._queued:
            (self._queue.appendleft if first else self._queue.append)(order)
            self._queued.notify_all()

    async def _give_back_from(self, slice_name: str, kind: str, text: str) -> None:
        order = self._serving[slice_name]
        if kind == "crashed":
            order.crashes += 1
        elif kind == "errored":
            order.errors += 1
        final = order.errors >= self._limits[0] or order.crashes >= self._limits[1]
        await self._give_back(order, kind, text, final=final)

    async def _give_back(self, order: Order, kind: str, text: str, *, final: bool) -> None:
        """Take a trial from its slice: back to the head of the queue, or to its end."""
        self._serving.pop(order.slice or "", None)
        order.slice = None
        if order.stopping:
            await self._end(order, "stopped")
        elif final:
            reason = (
                "its training raised an error"
                if kind == "errored"
                else "its worker died without reaching a new checkpoint (killed, or out of memory)"
            )
            tries = order.errors if kind == "errored" else order.crashes
            await self._end(order, "failed", reason=f"{reason}, {tries} times", error=text)
        else:
            await self._add(order, {"event": kind, "reason": text})
            await self._enqueue(order, first=True)

    async def _end(self, order: Order, outcome: str, **result: Any) -> None:
        order.ended = True
        step, meter = (order.previous["step"], order.previous["meter"]) if order.previous else (0, {})
        await self._add(
            order, {"event": "ended", "outcome": outcome, "result": {"step": step, "meter": meter, **result}}
        )

    async def _add(self, order: Order, event: Event) -> None:
        async with order.changed:
            order.events.append({**event, "number": len(order.events), "attempt": order.attempt})
            order.changed.notify_all()
