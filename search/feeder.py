"""A queue and one background thread: how a view of the ledger is fed without the search ever waiting for it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Feeder(Generic[Item]):
    """Hands items to `deliver` in the order they were put, from one daemon thread, many at a time, until they are
    through.

    `deliver` gets everything that waits. If it raises, the same items come again, with newer ones behind them, after a
    pause that doubles from `retry_s[0]` to `retry_s[1]` seconds: it must be idempotent. `on_error` is called with the
    first exception of an outage, `on_recovered` with the number of items once it is over. `linger_s` is how long items
    gather before they go.
    """

    def __init__(
        self,
        name: str,
        deliver: Callable[[Sequence[Item]], None],
        *,
        on_error: Callable[[Exception], None],
        on_recovered: Callable[[int], None] = lambda count: None,
        linger_s: float = 0.5,
        retry_s: tuple[float, float] = (1.0, 30.0),
        hold: bool = False,
    ) -> None:
        self._deliver, self._on_error, self._on_recovered = deliver, on_error, on_recovered
        self._linger_s, self._retry_s = linger_s, retry_s
        self._items: deque[Item] = deque()
        self._arrived, self._closing, self._released = threading.Event(), threading.Event(), threading.Event()
        if not hold:
            self._released.set()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Queue an item; returns at once."""
        self._items.append(item)
        self._arrived.set()

    def release(self) -> None:
        """Let items go that were held from the start; may be called again."""
        self._released.set()

    @property
    def pending(self) -> int:
        """Items that have not gone through."""
        return len(self._items)

    def close(self, timeout_s: float) -> int:
        """Deliver what waits, at once and in one last attempt, for `timeout_s` at most; returns the items not
        delivered."""
        self._closing.set()
        self._released.set()
        self._arrived.set()
        self._thread.join(timeout_s)
        return self.pending

    def _run(self) -> None:
        failing, pause_s = False, self._retry_s[0]
        self._released.wait()
        while True:
            self._arrived.wait()
            self._closing.wait(self._linger_s)
            last_attempt = self._closing.is_set()
            self._arrived.clear()
            batch = list(self._items)
            try:
                if batch:
                    self._deliver(batch)
            except Exception as error:  # whatever a view meets, it must not end the search; it is said, and tried again
                if not failing:
                    self._on_error(error)
                failing = True
                if last_attempt:
                    return
                self._closing.wait(pause_s)
                pause_s = min(2 * pause_s, self._retry_s[1])
                self._arrived.set()
                continue
            for _ in batch:
                self._items.popleft()
            if failing:
                self._on_recovered(len(batch))
            failing, pause_s = False, self._retry_s[0]
            if last_attempt and not self._items:
                return
            if self._closing.is_set():
                self._arrived.set()
