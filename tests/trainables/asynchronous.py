"""A fake device that works while the host goes on, and a clock for both that only their work moves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from trainables.runtime.torch import TorchRuntime


class Clock:
    """Seconds since the start; the host's waits move it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class AsynchronousRuntime(TorchRuntime):
    """The CPU, faking an accelerator: a step is computed at once, but the device is said to take `step_s` for it,
    after all it was given before, and the host waits for that only where it asks for a value.
    """

    def __init__(self, clock: Clock, step_s: float = 0.0) -> None:
        super().__init__("cpu", cores=1)
        self.losses_every = 16
        self.clock, self.step_s = clock, step_s
        self.free_at = 0.0

    def compile(self, step: Callable[..., Any], state: Sequence[Tensor] = ()) -> Callable[..., Any]:
        def given(*arguments: Any) -> Any:
            self.free_at = max(self.free_at, self.clock.now) + self.step_s
            return step(*arguments)

        return given

    def gather_sums(self, outputs: Sequence[Tensor]) -> Tensor:
        self.synchronise()
        return super().gather_sums(outputs)

    def synchronise(self) -> None:
        self.clock.now = max(self.clock.now, self.free_at)

    def mark(self) -> Any:
        return max(self.clock.now, self.free_at)

    def elapsed_s(self, start: Any, end: Any) -> float:
        assert max(start, end) <= self.clock.now, "a mark that the device has not passed cannot be read"
        return float(end - start)
