"""The training losses of a trial: fetched now and then, averaged between log points, watched for divergence."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from trainables.config import DivergenceConfig
from trainables.runtime import Runtime


class Losses:
    """Takes the loss of every step, in order.

    `reason` says why the trial has diverged, in one line, or is None. `logged` is the mean loss at the last log point.
    """

    def __init__(self, config: DivergenceConfig, classes: int) -> None:
        self.patience = config.patience
        self.limit = config.factor * math.log(classes)
        self.factor = config.factor
        self.sum, self.count, self.steps_above = 0.0, 0, 0
        self.logged: float | None = None
        self.reason: str | None = None
        self._pending: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        """Take a step's loss (0-dim, of the part of the batch that its program saw), still on the device."""
        self._pending.append(loss)

    def fetch(self, runtime: Runtime, step: int) -> None:
        """Wait for the losses taken since the last time, of the steps up to the `step`-th; all workers must call it."""
        if not self._pending:
            return
        losses = (runtime.gather_sums(self._pending) / runtime.programs).tolist()
        self._pending.clear()
        for number, loss in enumerate(losses, start=step - len(losses) + 1):
            self.sum, self.count = self.sum + loss, self.count + 1
            self.reason = self.reason or self._judge(number, loss)

    def diverged(self) -> bool:
        """Whether a loss fetched so far ends the trial."""
        return self.reason is not None

    def log(self) -> float:
        """The mean loss since the last log point; begins anew."""
        self.logged = self.sum / self.count
        self.sum, self.count = 0.0, 0
        return self.logged

    def to_dict(self) -> dict[str, Any]:
        """What a restart needs; `load` takes it."""
        return {"sum": self.sum, "count": self.count, "steps_above": self.steps_above, "logged": self.logged}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `to_dict`."""
        self.sum, self.count = state["sum"], state["count"]
        self.steps_above, self.logged = state["steps_above"], state["logged"]

    def _judge(self, number: int, loss: float) -> str | None:
        if not math.isfinite(loss):
            return f"training loss is {loss} at step {number}"
        self.steps_above = self.steps_above + 1 if loss > self.limit else 0
        if self.steps_above < self.patience:
            return None
        return (
            f"training loss above {self.limit:.3g} ({self.factor:g} x ln(classes)) "
            f"for {self.steps_above} steps on end, at step {number}"
        )
