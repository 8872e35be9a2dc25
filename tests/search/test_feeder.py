"""A feeder hands on everything, in order, and holds nobody up."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from search.feeder import Feeder


def test_items_arrive_in_order_though_delivery_fails_now_and_then() -> None:
    arrived: list[int] = []
    errors: list[Exception] = []
    over, recovered = threading.Event(), []

    def deliver(items: Sequence[int]) -> None:
        if len(errors) == 1 and not over.is_set():
            over.set()
            raise ConnectionError("still")
        if not errors:
            raise ConnectionError("down")
        arrived.extend(items)

    feeder = Feeder("test", deliver, on_error=errors.append, on_recovered=recovered.append, linger_s=0, retry_s=(0, 0))
    for item in range(100):
        feeder.put(item)
    assert over.wait(30)
    assert feeder.close(30) == 0
    assert arrived == list(range(100))
    assert [str(error) for error in errors] == ["down"]  # an outage is told of once
    assert len(recovered) == 1


def test_putting_and_closing_do_not_wait_for_a_delivery_that_hangs() -> None:
    release = threading.Event()
    feeder = Feeder("test", lambda items: assert_true(release.wait(60)), on_error=lambda error: None, linger_s=0)
    for item in range(3):
        feeder.put(item)
    assert feeder.close(0.01) == 3
    release.set()
    assert feeder.close(30) == 0


def assert_true(value: bool) -> None:
    assert value


def test_closing_makes_one_last_attempt_and_counts_what_is_left() -> None:
    attempts: list[int] = []

    def deliver(items: Sequence[int]) -> None:
        attempts.append(len(items))
        raise ConnectionError

    feeder = Feeder("test", deliver, on_error=lambda error: None, linger_s=60, retry_s=(60, 60))
    feeder.put(1)
    feeder.put(2)
    assert feeder.close(30) == 2
    assert attempts == [2]


def test_closing_an_idle_feeder_ends_it() -> None:
    feeder: Feeder[int] = Feeder("idle", lambda items: None, on_error=lambda error: None)
    assert feeder.close(30) == 0
    assert "idle" not in {thread.name for thread in threading.enumerate()}
