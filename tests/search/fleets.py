"""Driving a real fleet's broker from a test, without Ray Tune: submit trials, collect their events, wait for slices."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

from search.slices import Fleet
from trainables.config import TrialConfig

PATIENCE_S = 600.0


def until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Wait until `condition` gives something true, and return that; fail after `patience_s`."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.02)
    raise AssertionError(f"waited {patience_s:g} s for {what}")


class Driver:
    """The driver's side of a fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.broker = fleet, fleet.broker

    def submit(self, config: TrialConfig) -> str:
        ray.get(self.broker.submit.remote(config.trial_id, config.to_dict()))
        return config.trial_id

    def events(self, trial: str, after: int = 0) -> list[dict[str, Any]]:
        """Events from number `after` on; waits for at least one."""
        pulled = self.broker.pull.remote(trial, after)
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if ray.wait([pulled], timeout=1)[0]:
                return list(ray.get(pulled))
            self.fleet.check()
        raise AssertionError(f"waited {PATIENCE_S:g} s for event {after} of {trial}")

    def first(self, trial: str, name: str, times: int = 1) -> dict[str, Any]:
        """The trial's event of that name, once there are `times` of them (the last of those)."""
        seen: list[dict[str, Any]] = []
        while len(named := [event for event in seen if event["event"] == name]) < times:
            assert not any(event["event"] == "ended" for event in seen), f"{trial} ended without {name}: {seen[-1]}"
            seen += self.events(trial, len(seen))
        return named[times - 1]

    def end(self, trial: str) -> list[dict[str, Any]]:
        """All events of the trial, once it has ended."""
        seen: list[dict[str, Any]] = []
        while not seen or seen[-1]["event"] != "ended":
            seen += self.events(trial, len(seen))
        return seen

    def run(self, config: TrialConfig) -> dict[str, Any]:
        """Train one trial to its end; returns the last event."""
        return self.end(self.submit(config))[-1]

    def facts(self, slice_name: str = "slice-0", rank: int = 0) -> dict[str, Any]:
        """What a slice's worker said of itself, once it is ready."""

        def ready() -> dict[str, Any] | None:
            facts: dict[str, Any] | None = ray.get(self.broker.status.remote())["ready"].get(slice_name, {}).get(rank)
            return facts

        found: dict[str, Any] = until(ready, f"rank {rank} of {slice_name} to be ready")
        return found

    def pid(self, slice_name: str = "slice-0", rank: int = 0) -> int:
        """The process of a slice's worker, once it is ready."""
        return int(self.facts(slice_name, rank)["pid"])

    def stop(self, trial: str) -> None:
        ray.get(self.broker.stop.remote(trial))
