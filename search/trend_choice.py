"""Which trial comes next where valleys follow a trend, and when a budget has had enough of them.

The next trial is the one after which the least is expected to be lost by taking the best that was tried: greedy
expected improvement by draws (Mockus 1978; of several trials at a time: Ginsbourger et al. 2010), of which more than
`_WORST` counts no more, for draws that are far off would decide alone. So a cell is tried first at its predicted best
rate, then at the neighbour that decides whether that one is bracketed, and not again once it is, or once the cell is
clearly worse than the best. What holds no improvement worth having, but for a small chance, is let be (action
elimination: Even-Dar, Mannor and Mansour 2006, with a posterior in the place of confidence bounds); when that is true
of all, the budget is decided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from search.space import Explored, Point, Space, Tried
from search.trend import belief_of
from search.trend_seen import Mask, Outcomes
from search.trend_worlds import Array

TOLERANCE: Final = 0.01  # of the loss: an improvement that is worth another trial
_WORST: Final = 0.1
_DRAWS: Final = 512


@dataclass(frozen=True, slots=True)
class Choice:
    """What to try next in a budget.

    Attributes:
        point: the best next trial; None where every point has been tried.
        better: the chance that an untried point is better than the best finished one (and the running ones) by more
            than `TOLERANCE`; 1 before there are any.
        off: the chance that the best rate of its cell is more than a grid step from that of the best finished point,
            and not being tried.
        waits: whether trials are running, whose ends may change all this.
    """

    point: Point | None
    better: float
    off: float
    waits: bool

    def decides(self, doubt: float) -> bool:
        """Whether no further trial is called for, by a search that lets be what has no more than this chance; at 0 it
        lets nothing be.
        """
        return self.point is None or (doubt > 0 and max(self.better, self.off) <= doubt)


def choose(
    space: Space,
    trials: Sequence[Tried],
    smaller: Sequence[Explored] = (),
    *,
    batch_size: int = 4096,
    seed: int = 0,
    costs: Sequence[float] | None = None,
    worst_loss: float = math.inf,
) -> Choice:
    """The next trial of a budget: a pure function of what was seen.

    A rate at or above one that diverged in that cell is not tried unless nothing else is left, nor is one that diverged
    with that variant in a smaller budget, unless the rate below it is the cell's best; a budget in which some
    trial has finished is then decided.

    Args:
        space: the budget's cells and grid.
        trials: its trials so far, running ones included.
        smaller: the budgets to learn from, cheapest first.
        batch_size: examples of an optimiser step; the prior learning rate is in proportion to it.
        seed: of the draws.
        costs: of each cell, something else to keep low. Then not one best is looked for but the Pareto front: for
            every cost, the best of the cells that cost no more; what is said of chances is of the least sure of these.
        worst_loss: that of a uniform guess; a trial that ends far above it has diverged.
    """
    budgets = [Outcomes.of(explored, worst_loss) for explored in (*smaller, Explored(space, trials))]
    seen = _Seen.of(budgets)
    waits = bool(seen.running.any())
    if seen.tried.all():
        return Choice(None, 0.0, 0.0, waits)
    random = np.random.default_rng([seed, len(trials)])
    belief = belief_of(budgets, batch_size=batch_size, draws=_DRAWS, random=random)
    loss, best_rates = belief.log_loss(space.learning_rates), belief.best_rates()
    free = ~seen.tried & ~seen.barred
    offered = free.copy()
    left = np.zeros(free.shape)
    better = off = 0.0
    for allowed in _groups(space, costs):
        within = np.broadcast_to(allowed[:, None], free.shape)
        here, finished, running = free & within, seen.finished & within, seen.running & within
        if not here.any() and not finished.any():  # nothing but what is barred is left, and nothing has been found
            here = ~seen.tried & within
            offered |= here
        if not here.any():
            continue
        least = loss[:, here | finished | running].min(axis=1)
        regret = np.minimum(loss - least[:, None, None], _WORST)
        taken = np.minimum(regret[:, running].min(axis=1, initial=np.inf), _WORST)
        known = finished if finished.any() else running  # if nothing has ended: what runs will tell
        if known.any():
            best = np.where(known, loss.mean(axis=0), np.inf).argmin()
            cell, place = divmod(int(best), len(space.learning_rates))
            taken = np.minimum(taken, regret[:, cell, place])
            held = np.minimum(loss[:, cell, place], loss[:, running].min(axis=1, initial=np.inf))
            better = max(better, float((held - loss[:, here].min(axis=1) > TOLERANCE).mean()))
            off = max(off, _chance_off(space, best_rates[:, cell], place, running[cell], seen.barred[cell]))
        else:
            better = off = 1.0
        left += np.where(here, np.minimum(taken[:, None, None], regret), taken[:, None, None]).mean(axis=0)
    if not offered.any():
        offered = ~seen.tried
    cell, place = divmod(int(np.where(offered, left, np.inf).argmin()), len(space.learning_rates))
    return Choice(Point(space.cells[cell].variant, space.learning_rates[place]), better, off, waits)


def _groups(space: Space, costs: Sequence[float] | None) -> list[Mask]:
    """The cells among which a best is looked for: all; or for every cost those that cost no more."""
    if costs is None:
        return [np.ones(len(space.cells), dtype=bool)]
    each = np.asarray(costs)
    return [each <= most for most in np.unique(each)]


def _chance_off(space: Space, best_rates: Array, place: int, running: Mask, barred: Mask) -> float:
    """The chance that the grid's best rate is neither `place`, nor next to it, nor running; of one that is barred the
    next below counts. `best_rates` in octaves.
    """
    rates = np.log2(np.asarray(space.learning_rates))
    nearest = np.abs(best_rates[:, None] - rates).argmin(axis=1)
    nearest = np.minimum(nearest, max(place, int(np.flatnonzero(~barred).max(initial=0))))
    return float(((np.abs(nearest - place) > 1) & ~running[nearest]).mean())


@dataclass(frozen=True, slots=True)
class _Seen:
    """What became of each point, (cells, rates) each; `barred` are those at or above a rate that diverged, `finished`
    those that finished and diverged with no seed.
    """

    tried: Mask
    finished: Mask
    running: Mask
    barred: Mask

    @classmethod
    def of(cls, budgets: Sequence[Outcomes]) -> _Seen:
        """Of the last of these budgets, the cheapest of which comes first."""
        *smaller, present = budgets
        space, rates = present.space, np.asarray(present.space.learning_rates)
        shape = (len(space.cells), len(rates))
        seen = cls(*(np.zeros(shape, dtype=bool) for _ in range(4)))
        lowest = np.full(shape, np.inf)
        places = {rate: space.place(rate) for rate in np.unique(present.rate).tolist()}
        on_grid = np.array([places[rate] is not None for rate in present.rate.tolist()], dtype=bool)
        place = np.array([places[rate] or 0 for rate in present.rate.tolist()], dtype=np.intp)
        for mask, which in (
            (seen.tried, on_grid),
            (seen.finished, on_grid & present.finished),
            (seen.running, on_grid & present.running),
        ):
            mask[present.cell[which], place[which]] = True
        known = on_grid & present.finished
        np.minimum.at(lowest, (present.cell[known], place[known]), present.loss[known])
        diverged = on_grid & present.diverged
        for cell, first in zip(present.cell[diverged], place[diverged], strict=True):
            seen.barred[cell, first:] = True
        seen.running[seen.finished] = False
        edges = _edges(smaller)
        for cell, variant in enumerate(space.variants):
            if variant in edges:
                first = int((rates < edges[variant] * (1 - 1e-9)).sum())
                while first in (0, lowest[cell].argmin() + 1) and (first == 0 or seen.finished[cell, first - 1]):
                    first += 1
                seen.barred[cell, first:] |= not seen.finished[cell, first:].any()
        seen.finished[present.cell[diverged], place[diverged]] = False  # no best, see `search.points`
        return seen


def _edges(smaller: Sequence[Outcomes]) -> dict[str, float]:
    """The lowest rate at which each variant diverged; not where it finished at that rate, or above, in the same budget
    or a larger one.
    """
    edges: dict[str, float] = {}
    for outcomes in smaller:
        for cell, variant in enumerate(outcomes.space.variants):
            here = outcomes.cell == cell
            edge = outcomes.rate[here & outcomes.diverged].min(initial=edges.get(variant, math.inf))
            highest = outcomes.rate[here & outcomes.finished].max(initial=0.0)
            edges[variant] = edge if highest < edge else math.inf
    return {variant: edge for variant, edge in edges.items() if math.isfinite(edge)}
