"""Which of the host's waits for input an asynchronous device did not notice."""

from __future__ import annotations

from typing import Any

from trainables.meter import Bucket, Meter
from trainables.runtime import Runtime


class InputOverlap:
    """Moves the part of `input_wait` in which the device worked on an earlier step to that step's own bucket.

    The device waits for input from the end of a step to the time the next batch has come, if that is later; marks in
    the device's work tell. They can be read once the device has passed them, so the moving is done in `settle`, after
    the losses were fetched. A device without marks is not asynchronous: nothing overlaps there.
    """

    def __init__(self, runtime: Runtime, meter: Meter) -> None:
        self._runtime, self._meter = runtime, meter
        self._seen = meter.seconds["input_wait"]
        self._step_done: Any = None
        self._waits: list[tuple[Bucket, float, Any, Any]] = []

    def batch_came(self, step: int) -> None:
        """The batch of step `step` is here, and the clock has left `input_wait`."""
        waited = self._meter.seconds["input_wait"] - self._seen
        self._seen += waited
        if self._step_done is not None:
            came = self._runtime.mark()
            self._waits.append((self._meter.bucket_of(max(step - 1, 0)), waited, self._step_done, came))
            self._step_done = None

    def step_given(self) -> None:
        """All of a step's work has been given to the device."""
        self._step_done = self._runtime.mark()

    def settle(self) -> None:
        """The device has done all it was given, and waits."""
        for bucket, waited, done, came in self._waits:
            idle = max(0.0, self._runtime.elapsed_s(done, came))
            self._meter.move(max(0.0, waited - idle), bucket, source="input_wait")
        self._waits.clear()
        self._step_done = None
        self._seen = self._meter.seconds["input_wait"]
