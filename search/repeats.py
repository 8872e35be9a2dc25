"""Further seeds of a budget's best points: how far runs that differ by chance alone lie apart, where it matters.

Only points near the optimum are repeated: each variant's best one, if its mean loss is within `NEAR` of the budget's
lowest. So the best is not the luckiest, and the law knows the noise of its points.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Final

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
    runs: dict[Point, list[Trial]] = {}
    for trial in trials:
        if space.holds(trial):
            runs.setdefault(Point(trial.variant, trial.learning_rate), []).append(trial)
    means = {point: mean for point, of_point in runs.items() if (mean := mean_loss(of_point)) is not None}
    bests = [
        min((point for point in means if point.variant == variant), key=means.__getitem__, default=None)
        for variant in space.variants
    ]
    near = sorted(
        (point for point in bests if point is not None and means[point] <= (1 + NEAR) * min(means.values())),
        key=means.__getitem__,
    )
    for seed in seeds:
        for point in near:
            if all(trial.seed != seed for trial in runs[point]):
                return point, seed
    return None


def mean_loss(trials: Iterable[Trial]) -> float | None:
    """Mean held-out loss of a point's finished trials; None without one, or where one diverged."""
    of_point = list(trials)
    losses = [trial.heldout_loss for trial in of_point if trial.outcome == "finished"]
    return fmean(losses) if losses and all(trial.outcome != "diverged" for trial in of_point) else None
