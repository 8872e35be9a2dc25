"""Made-up budgets whose valleys are known, and trials in them, for the tests of the `trend` sampler."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from search.space import CellSize, Explored, Space

RATES: Final = tuple(0.1 * 2**k for k in range(6))
RULE: Final = math.log2(1.6)  # NFNet's learning rate at batch 4096


@dataclass(frozen=True, slots=True)
class Run:
    """A trial, as far as samplers look at it."""

    variant: str
    learning_rate: float
    outcome: str | None = "finished"
    heldout_loss: float = math.nan


def budget(variants: int, *, epochs: float = 4.0, rates: Sequence[float] = RATES) -> Space:
    """F0, F1, ...: each twice the model that the one before is, for half of its epochs."""
    cells = (CellSize(f"F{k}", epochs / 2**k, 6e10 * 2**k, 7 * 10**7 * 2**k) for k in range(variants))
    return Space(tuple(cells), tuple(rates))


@dataclass(frozen=True, slots=True)
class Valley:
    """Losses with their best rate at `centre` (log2) in F0 and `fall` octaves lower in each larger model.

    `worse` is how much higher a variant's floor is, in log loss; more than `edge` octaves above the best rate training
    diverges.
    """

    centre: float
    fall: float = 0.2
    curvature: float = 0.05
    floor: float = 3.0
    worse: Mapping[str, float] = field(default_factory=dict)
    edge: float = math.inf

    def best(self, variant: str) -> float:
        """log2 of a variant's best rate."""
        return self.centre - self.fall * int(variant[1:])

    def run(self, variant: str, learning_rate: float) -> Run:
        """What becomes of a trial."""
        x = math.log2(learning_rate) - self.best(variant)
        if x > self.edge:
            return Run(variant, learning_rate, "diverged")
        loss = self.floor * math.exp(self.curvature * x * x + self.worse.get(variant, 0.0))
        return Run(variant, learning_rate, "finished", loss)

    def runs(self, space: Space, rates: Sequence[float] | None = None) -> list[Run]:
        """Every cell at every one of these rates, the whole grid by default."""
        return [self.run(v, rate) for v in space.variants for rate in rates or space.learning_rates]

    def explored(self, space: Space, rates: Sequence[float] | None = None) -> Explored:
        """The same as a budget that was searched."""
        return Explored(space, self.runs(space, rates))
