"""What one budget's trials are chosen from: its cells, and the grid of learning rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

# The chance of being wrong at which the trend sampler is content. On simulated surfaces like the paper's, with its grid
# of epochs, it then runs so many trials a cell, and is right in 97 % of the budgets (benchmarks/samplers.py).
DOUBT: Final = 0.15
TREND_TRIALS_PER_CELL: Final = 1.3
HOPELESS: Final = 1.2  # times the loss of a uniform guess: what has learnt nothing is a little above it, too


class Tried(Protocol):
    """What samplers look at in a trial."""

    @property
    def variant(self) -> str:
        """The model."""
        ...

    @property
    def learning_rate(self) -> float:
        """The peak of its schedule."""
        ...

    @property
    def outcome(self) -> str | None:
        """finished, diverged or failed; None while it runs."""
        ...

    @property
    def heldout_loss(self) -> float:
        """Held-out loss at the end of training; NaN unless it has finished."""
        ...


def ended(trial: Tried, worst_loss: float = math.inf) -> str | None:
    """How a trial ended: its outcome, but that one which finished with no loss, or with one far above the loss of a
    uniform guess, has diverged.
    """
    outcome = trial.outcome
    return "diverged" if outcome == "finished" and not trial.heldout_loss < HOPELESS * worst_loss else outcome


@dataclass(frozen=True, slots=True)
class CellSize:
    """One variant within a budget, by what the learning-rate trend and the law know it by.

    Attributes:
        variant: the model.
        epochs: passes over the training examples.
        flops_per_image: training FLOPs of one image.
        parameters: trainable numbers of the model.

    Raises:
        ValueError: epochs or FLOPs that are not above zero, for their logarithms are modelled.
    """

    variant: str
    epochs: float
    flops_per_image: float
    parameters: int

    def __post_init__(self) -> None:
        for name, value in (("epochs", self.epochs), ("flops_per_image", self.flops_per_image)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name}: {value!r} given for {self.variant}; allowed: above 0")


@dataclass(frozen=True, slots=True)
class Point:
    """A variant and a place on the learning-rate grid."""

    variant: str
    learning_rate: float

    @property
    def params(self) -> dict[str, str | float]:
        """The point in the names that Optuna's dashboard shows."""
        return {"variant": self.variant, f"lr_{self.variant}": self.learning_rate}


@dataclass(frozen=True, slots=True)
class Space:
    """The points of one budget: its cells, one for each variant that it buys, and the learning-rate grid, rising."""

    cells: tuple[CellSize, ...]
    learning_rates: tuple[float, ...]

    @property
    def variants(self) -> tuple[str, ...]:
        """The cells' variants, in their order."""
        return tuple(cell.variant for cell in self.cells)

    def points(self) -> list[Point]:
        """Every point: from the middle of the learning-rate grid outwards, every variant at each rate."""
        middle = (len(self.learning_rates) - 1) / 2
        order = sorted(range(len(self.learning_rates)), key=lambda k: (abs(k - middle), k))
        return [Point(variant, self.learning_rates[k]) for k in order for variant in self.variants]

    def place(self, learning_rate: float) -> int | None:
        """The index of a rate in the grid, or None if it is not on it."""
        return next((k for k, rate in enumerate(self.learning_rates) if math.isclose(rate, learning_rate)), None)

    def index(self, variant: str) -> int | None:
        """The place of a variant's cell, or None if the budget does not buy it."""
        return next((k for k, cell in enumerate(self.cells) if cell.variant == variant), None)

    def holds(self, trial: Tried) -> bool:
        """Whether a trial is one of the points: its study file may have had other bounds then."""
        return trial.variant in self.variants and self.place(trial.learning_rate) is not None


@dataclass(frozen=True, slots=True)
class Explored:
    """A budget that was searched before, or in part: its space, and its trials in the order of suggestion."""

    space: Space
    trials: Sequence[Tried]
