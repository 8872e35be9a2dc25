"""What `benchmarks.samplers` measures: when a budget's best was found, what it had cost, what was missed until then.

Found is the first trial after which the incumbent, the finished trial with the lowest observed loss,

- has a true loss (without the noise of a run) within 1 % of the best one of the budget's grid, and
- has a learning rate no more than one step of the grid from the best one of its own variant.

A budget whose best was never found counts with all of its grid's points. A searcher that may repeat points is given up
after four times as many trials, and counts with those; with the grid's points where noise hides the best, so that even
the whole grid would not show it. Each trial costs the FLOPs of its cell; one that a pruner ends, its share of that.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from search.surfaces import Surface

WITHIN: Final = 0.01
REGRET_AFTER: Final = (1, 2, 4, 8, 16)
_RESAMPLES: Final = 2000


@dataclass(frozen=True, slots=True)
class Step:
    """A trial as the searcher saw it: its point, its observed loss (None if diverged or pruned), and its FLOPs over the
    mean of the budget's cells: 1, but where cells take different FLOPs, or a pruner ended it.
    """

    variant: str
    learning_rate: float
    loss: float | None
    cost: float


@dataclass(frozen=True, slots=True)
class Score:
    """One searcher in one budget of one surface.

    Attributes:
        surface: its name.
        family: its kind.
        budget: index of the budget.
        flops: training FLOPs of one trial, mean over the budget's cells.
        cells: variants of the budget.
        searcher: who.
        seed: with which seed.
        trials: until the best was found; infinite if it never was.
        cost: the compute of those trials, in that of `flops`.
        limit: trials that count for a best that was never found.
        spent: trials in all, where the searcher itself stopped; None where it was stopped, or had nothing left.
        spent_cost: the compute of those, in that of `flops`.
        right: whether the incumbent was a best one at the end of that.
        hidden: whether noise hides the best one.
        regret: relative true loss over the best after so many trials, in the order of `REGRET_AFTER`.
    """

    surface: str
    family: str
    budget: int
    flops: float
    cells: int
    searcher: str
    seed: int
    trials: float
    cost: float
    limit: int
    spent: int | None
    spent_cost: float | None
    right: bool | None
    hidden: bool
    regret: tuple[float, ...]

    @property
    def trials_counted(self) -> float:
        """`trials`, or the limit."""
        return min(self.trials, self.limit)

    @property
    def cost_counted(self) -> float:
        """`cost`, or the limit."""
        return min(self.cost, self.limit)


def _good(surface: Surface, budget: int, step: Step) -> bool:
    best = surface.optimum(budget)[2]
    if surface.true_loss(budget, step.variant, step.learning_rate) > (1 + WITHIN) * best:
        return False
    own = surface.best_rate(budget, step.variant)
    rates = surface.learning_rates
    return abs(_index(rates, own) - _index(rates, step.learning_rate)) <= 1


def _index(rates: Sequence[float], rate: float) -> int:
    return next(k for k, other in enumerate(rates) if math.isclose(other, rate))


def _incumbents(steps: Sequence[Step]) -> list[Step | None]:
    """The finished step with the lowest observed loss after each of the steps."""
    best: Step | None = None
    found: list[Step | None] = []
    for step in steps:
        if step.loss is not None and (best is None or best.loss is None or step.loss < best.loss):
            best = step
        found.append(best)
    return found


def found_at(surface: Surface, budget: int, steps: Sequence[Step]) -> int | None:
    """How many steps it took until the best was found; None if it was not."""
    known: dict[int, bool] = {}
    for number, best in enumerate(_incumbents(steps), start=1):
        if best is not None:
            if id(best) not in known:
                known[id(best)] = _good(surface, budget, best)
            if known[id(best)]:
                return number
    return None


def hidden(surface: Surface, budget: int, seed: int) -> bool:
    """Whether noise hides the best: the point that looks best of the whole grid is none that counts as found."""
    space = surface.space(budget)
    every = [(surface.observed(budget, p.variant, p.learning_rate, seed)[1], p) for p in space.points()]
    point = min(every, key=lambda one: one[0])[1]
    return not _good(surface, budget, Step(point.variant, point.learning_rate, None, 1.0))


def score(
    surface: Surface, budget: int, searcher: str, seed: int, steps: Sequence[Step], *, given_up: int, stops: bool
) -> Score:
    """What came of one budget.

    Args:
        surface: where.
        budget: index of the budget.
        searcher: who.
        seed: with which seed.
        steps: its trials, in order.
        given_up: trials after which it was given up, or had tried every point.
        stops: whether the searcher may end by itself before the grid is through.
    """
    at = found_at(surface, budget, steps)
    incumbents = _incumbents(steps)
    best = surface.optimum(budget)[2]
    after = [incumbents[min(k, len(steps)) - 1] if steps else None for k in REGRET_AFTER]
    last = incumbents[-1] if incumbents else None
    return Score(
        surface=surface.name,
        family=surface.family,
        budget=budget,
        flops=surface.mean_flops(budget),
        cells=len(surface.cells[budget]),
        searcher=searcher,
        seed=seed,
        trials=math.inf if at is None else at,
        cost=math.inf if at is None else sum(step.cost for step in steps[:at]),
        limit=min(given_up, surface.points(budget)) if hidden(surface, budget, seed) else given_up,
        spent=len(steps) if stops else None,
        spent_cost=sum(step.cost for step in steps) if stops else None,
        right=(last is not None and _good(surface, budget, last)) if stops else None,
        hidden=hidden(surface, budget, seed),
        regret=tuple(
            (surface.worst_loss if it is None else surface.true_loss(budget, it.variant, it.learning_rate)) / best - 1
            for it in after
        ),
    )


# ---------------------------------------------------------------- over surfaces


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over surfaces, and the interval that holds 95 % of its bootstrap's (surfaces drawn with replacement)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Summary:
    """One searcher over the surfaces of one family.

    Attributes:
        surfaces: how many there were (a recorded table counts with each seed).
        budgets: how many budgets they have together.
        trials: per cell, until the best was found; mean over surfaces of the mean over their budgets.
        median: the same, median over budgets.
        spread: the same, the middle 90 % of budgets.
        compute: of a surface until the best of each budget was found, in that of one trial in each of its cells.
        never: share of budgets whose best was never found.
        hidden: share of budgets whose best noise hides.
        spent: trials per cell when the searcher itself stopped; NaN where it does not.
        spent_compute: the compute of those, as `compute`.
        right: share of budgets in which it then had a best point.
        regret: mean, after so many trials, in the order of `REGRET_AFTER`.
        regret_median: the same, median over budgets.
        regret_spread: the same, the middle 90 % of budgets.
    """

    surfaces: int
    budgets: int
    trials: Estimate
    median: float
    spread: tuple[float, float]
    compute: Estimate
    never: float
    hidden: float
    spent: float
    spent_compute: float
    right: float
    regret: tuple[float, ...]
    regret_median: tuple[float, ...]
    regret_spread: tuple[tuple[float, float], ...]


def by_surface(scores: Sequence[Score]) -> dict[tuple[str, int], list[Score]]:
    """Scores by surface and seed."""
    found: dict[tuple[str, int], list[Score]] = {}
    for one in scores:
        found.setdefault((one.surface, one.seed), []).append(one)
    return found


def trials_per_cell(scores: Sequence[Score]) -> float:
    """Of one surface, until found: the mean over its budgets."""
    return statistics.fmean(one.trials_counted / one.cells for one in scores)


def compute_per_cell(scores: Sequence[Score]) -> float:
    """Of one surface, until found in each budget, in units of one trial in each cell."""
    return _weighed(scores, lambda one: one.cost_counted)


def compute_spent_per_cell(scores: Sequence[Score]) -> float:
    """Of one surface, until the searcher itself stopped in each budget, in units of one trial in each cell."""
    return _weighed(scores, lambda one: one.spent_cost or 0)


def _weighed(scores: Sequence[Score], trials: Callable[[Score], float]) -> float:
    return sum(one.flops * trials(one) for one in scores) / sum(one.flops * one.cells for one in scores)


def summarise(scores: Sequence[Score]) -> Summary:
    """Over the surfaces of the scores, which are one searcher's."""
    surfaces = by_surface(scores)
    each = [one.trials_counted / one.cells for one in scores]
    regrets = [[one.regret[k] for one in scores] for k in range(len(REGRET_AFTER))]
    stopped = all(one.spent is not None for one in scores)
    return Summary(
        surfaces=len(surfaces),
        budgets=len(scores),
        trials=_mean([trials_per_cell(here) for here in surfaces.values()]),
        median=statistics.median(each),
        spread=_middle(each),
        compute=_mean([compute_per_cell(here) for here in surfaces.values()]),
        never=statistics.fmean(math.isinf(one.trials) for one in scores),
        hidden=statistics.fmean(one.hidden for one in scores),
        spent=statistics.fmean((one.spent or 0) / one.cells for one in scores) if stopped else math.nan,
        spent_compute=statistics.fmean(map(compute_spent_per_cell, surfaces.values())) if stopped else math.nan,
        right=statistics.fmean(bool(one.right) for one in scores) if stopped else math.nan,
        regret=tuple(map(statistics.fmean, regrets)),
        regret_median=tuple(map(statistics.median, regrets)),
        regret_spread=tuple(map(_middle, regrets)),
    )


def _middle(values: Sequence[float]) -> tuple[float, float]:
    """The middle 90 %."""
    low, high = np.quantile(values, (0.05, 0.95))
    return float(low), float(high)


def _mean(values: Sequence[float]) -> Estimate:
    array = np.asarray(values)
    draws = np.random.default_rng(0).integers(len(array), size=(_RESAMPLES, len(array)))
    low, high = np.quantile(array[draws].mean(axis=1), (0.025, 0.975))
    return Estimate(float(array.mean()), float(low), float(high))


def ratio(
    ours: Sequence[Score],
    theirs: Sequence[Score],
    measure: Callable[[Sequence[Score]], float],
    of_ours: Callable[[Sequence[Score]], float] | None = None,
) -> Estimate | None:
    """Their mean over ours, over the surfaces that both went through; None if there are none. `measure` takes the
    scores of one surface; `of_ours` takes ours, where they are measured otherwise.
    """
    mine, other = by_surface(ours), by_surface(theirs)
    both = [key for key in mine if key in other]
    if not both:
        return None
    a = np.asarray([(of_ours or measure)(mine[key]) for key in both])
    b = np.asarray([measure(other[key]) for key in both])
    draws = np.random.default_rng(0).integers(len(both), size=(_RESAMPLES, len(both)))
    low, high = np.quantile(b[draws].mean(axis=1) / a[draws].mean(axis=1), (0.025, 0.975))
    return Estimate(float(b.mean() / a.mean()), float(low), float(high))


def families(scores: Sequence[Score]) -> dict[str, dict[str, list[Score]]]:
    """Scores by family, in it by searcher, in the order they come."""
    found: dict[str, dict[str, list[Score]]] = {}
    for one in scores:
        found.setdefault(one.family, {}).setdefault(one.searcher, []).append(one)
    return found


def as_json(scores: Sequence[Score]) -> dict[str, Mapping[str, Summary]]:
    """Summaries by family, in it by searcher."""
    return {
        family: {name: summarise(of) for name, of in searchers.items()}
        for family, searchers in families(scores).items()
    }
