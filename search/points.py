"""The points of a budget, a variant and a learning rate each, and which is the best: runs alike but for their seed are
one point. Everything that names a best, or draws one, takes it from here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Generic, TypeVar

from search.space import Point, Tried, ended

Run = TypeVar("Run", bound=Tried)


@dataclass(slots=True)
class Seeds(Generic[Run]):
    """A point's finished trials, in the order they were added, their mean held-out loss (nats per image), and whether
    it `diverged` with some other seed. `place` is that among the points, as they were met.
    """

    point: Point
    place: int
    finished: list[Run] = field(default_factory=list)
    mean_loss: float = 0.0
    diverged: bool = False

    @property
    def rank(self) -> tuple[bool, float, int]:
        """What points are ordered by, the best first: those that diverged with some seed come after all others."""
        return self.diverged, self.mean_loss, self.place

    @property
    def lowest(self) -> Run:
        """Of its trials that with the lowest loss."""
        return min(self.finished, key=lambda trial: trial.heldout_loss)


class Points(Generic[Run]):
    """The points of a budget, as its trials come: all at once, or one by one as they end.

    `best` is the first of `ranked`, None without one.
    """

    def __init__(self, trials: Iterable[Run] = ()) -> None:
        self.best: Seeds[Run] | None = None
        self._seeds: dict[Point, Seeds[Run]] = {}
        for trial in trials:
            self.add(trial)

    def add(self, trial: Run) -> None:
        """Take a trial into account. One that did not end, or failed, says nothing of its point."""
        outcome = ended(trial)
        if outcome not in ("finished", "diverged"):
            return
        point = Point(trial.variant, trial.learning_rate)
        seeds = self._seeds.setdefault(point, Seeds(point, len(self._seeds)))
        if outcome == "diverged":
            seeds.diverged = True
        else:
            seeds.finished.append(trial)
            seeds.mean_loss = fmean(each.heldout_loss for each in seeds.finished)
        if seeds is self.best:  # which may have become worse
            self.best = self.ranked()[0]
        elif seeds.finished and (self.best is None or seeds.rank < self.best.rank):
            self.best = seeds

    def ranked(self) -> list[Seeds[Run]]:
        """Those with a finished trial, the best first."""
        return sorted((each for each in self._seeds.values() if each.finished), key=lambda each: each.rank)
