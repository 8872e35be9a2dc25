"""Further seeds of a budget's best points: how far runs that differ by chance alone lie apart, where it matters.

Only points near the optimum are repeated: each variant's best one, if its mean loss is within `NEAR` of the budget's
lowest. So the best is not the luckiest, and the law knows the noise of its points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from search.points import Points, Seeds
from search.space import Point, Space
from search.state import TrialState as Trial

NEAR: Final = 0.02  # of the loss


def next_repeat(space: Space, trials: Sequence[Trial], seeds: Sequence[int]) -> tuple[Point, int] | None:
    """The point and the seed to run next, the best point first; None when all near ones have been run with all seeds.

    Args:
        space: the budget's cells and grid.
        trials: its trials so far, running ones included.
        seeds: each point's seeds, in their order.
    """
    inside = [trial for trial in trials if space.holds(trial)]
    sound = [each for each in Points(inside).ranked() if not each.diverged]
    bests: dict[str, Seeds[Trial]] = {}
    for each in sound:
        bests.setdefault(each.point.variant, each)
    near = [each.point for each in bests.values() if each.mean_loss <= (1 + NEAR) * sound[0].mean_loss]
    run = {(Point(trial.variant, trial.learning_rate), trial.seed) for trial in inside}
    return next(((point, seed) for seed in seeds for point in near if (point, seed) not in run), None)
