"""The searchers that `benchmarks.samplers` compares: the product's samplers, and Optuna's as people use them.

Each one goes through a surface's budgets and gives, for every budget, what it tried, in order. The product's samplers
run unchanged, through `search.simulate`. `trend` does all as in a search: it stops by itself, at the latest after
`MOST_TRIALS_PER_CELL` trials a cell. The others, and trend that is never content, go on until they have found, where a
search would end tpe, gp and random after `TRIALS_PER_CELL` trials a cell. Optuna's own get one study for each budget,
over the same grid, with nothing but their defaults: such a study may try a point twice, and starts with ten random
trials.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, get_args

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from benchmarks.sampler_scores import Step, found_at
from search.budgets import MOST_TRIALS_PER_CELL
from search.recorded import SHARES, Table
from search.samplers import SamplerName
from search.simulate import proposer, replay, simulate
from search.space import DOUBT, Explored, Point, Space
from search.state import TrialState as Trial
from search.surfaces import Surface

AT_LEAST: Final = 16  # trials of each budget, for regret; where there are so many points
REPEATING: Final = 4  # a searcher that repeats points is given up after so many trials for every point of the grid
RUNGS: Final = (1, 2, 4)  # eighths of training at which a pruner may end a trial; 8 is the end
_EIGHTHS: Final = 8


@dataclass(frozen=True, slots=True)
class Place:
    """Where to search: a surface, its table if it was recorded, and how many trials run at a time, if the product's."""

    surface: Surface
    table: Table | None = None
    slices: int = 1


Search = Callable[[Place, int], list[list[Step]]]
"""(where, seed) to what was tried in each budget."""


@dataclass(frozen=True, slots=True)
class Searcher:
    """One competitor.

    Attributes:
        name: as tables and figures show it.
        repeats: whether it may try a point twice.
        search: goes through a surface's budgets.
    """

    name: str
    repeats: bool
    search: Search


def searchers() -> dict[str, Searcher]:
    """All of them, by name."""
    found = [Searcher(name, False, _product(name)) for name in get_args(SamplerName)]
    found.insert(1, Searcher(TREND_ON, False, _product("trend", doubt=0)))
    found += [
        Searcher("stock tpe", True, _stock(lambda seed: TPESampler(seed=seed))),
        Searcher("stock random", True, _stock(lambda seed: RandomSampler(seed=seed))),
        Searcher("asha, random", True, _pruned(lambda seed: RandomSampler(seed=seed), _asha)),
        Searcher("asha, tpe", True, _pruned(lambda seed: TPESampler(seed=seed), _asha)),
        Searcher("hyperband, tpe", True, _pruned(lambda seed: TPESampler(seed=seed), _hyperband)),
    ]
    return {searcher.name: searcher for searcher in found}


TREND_ON: Final = "trend, doubt 0"
"""The trend sampler that is never content: it goes on until the best is found, as the others do."""

UNTIL_FOUND: Final = (TREND_ON, "gp")
"""Those that are stopped as soon as they have found, for their proposals are slow: their later regret says nothing."""

PRUNING: Final = ("asha, random", "asha, tpe", "hyperband, tpe")
"""Those that need partial losses, so run on recorded tables only."""


def _asha(seed: int) -> BasePruner:
    return SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)


def _hyperband(seed: int) -> BasePruner:
    return HyperbandPruner(min_resource=1, max_resource=_EIGHTHS, reduction_factor=2)


def steps_of(surface: Surface, trials: Sequence[Trial]) -> list[Step]:
    """Ended trials as steps: each costs a whole trial of its cell, diverged ones too."""
    return [
        Step(
            trial.variant,
            trial.learning_rate,
            trial.heldout_loss if trial.outcome == "finished" else None,
            trial.flops / surface.mean_flops(int(trial.budget)),
        )
        for trial in trials
    ]


def most_trials(surface: Surface) -> list[int]:
    """Of each budget, how many trials a search with trend runs at most, as `search.budgets.open_budgets` has it."""
    return [min(MOST_TRIALS_PER_CELL * len(here), surface.points(budget)) for budget, here in enumerate(surface.cells)]


# ---------------------------------------------------------------- the product's


def _product(name: SamplerName, *, doubt: float = DOUBT) -> Search:
    def search(place: Place, seed: int) -> list[list[Step]]:
        surface, ask = place.surface, proposer(name, doubt=doubt)
        if name == "trend" and doubt > 0:  # it says itself when it has done, and later budgets build on what it spent
            trials = most_trials(surface)
            done = simulate(surface, ask, seed=seed, trials=trials, slices=place.slices)
            return [steps_of(surface, here) for here in done]
        smaller: list[Explored] = []
        found: list[list[Step]] = []
        for budget in range(len(surface.budgets)):

            def enough(trials: Sequence[Trial], budget: int = budget) -> bool:
                """Where nothing follows from later trials, they are left out."""
                least = 0 if name in ("gp", "trend") else AT_LEAST  # see UNTIL_FOUND
                return len(trials) >= least and found_at(surface, budget, steps_of(surface, trials)) is not None

            here = replay(surface, ask, budget, seed=seed, smaller=smaller, slices=place.slices, enough=enough)
            smaller.append(Explored(surface.space(budget), here))
            found.append(steps_of(surface, here))
        return found

    return search


# ---------------------------------------------------------------- Optuna's


class _Study:
    """An Optuna study of one budget, asked through the interface of `search.simulate.Proposer`."""

    def __init__(self, sampler: BaseSampler) -> None:
        self._study = optuna.create_study(direction="minimize", sampler=sampler)
        self._asked: list[optuna.Trial] = []

    def __call__(
        self,
        space: Space,
        trials: Sequence[Trial],
        *,
        seed: int,
        worst_loss: float,
        smaller: Sequence[Explored] = (),
        batch_size: int = 4096,
    ) -> Point:
        if trials:
            last = trials[-1]
            assert last.outcome is not None, "one trial at a time"
            self._study.tell(self._asked[-1], last.heldout_loss if last.outcome == "finished" else worst_loss)
        asked = self._study.ask()
        self._asked.append(asked)
        return _suggested(asked, space)


def _suggested(asked: optuna.Trial, space: Space) -> Point:
    variant = asked.suggest_categorical("variant", space.variants)
    return Point(variant, space.learning_rates[asked.suggest_int("lr", 0, len(space.learning_rates) - 1)])


def _stock(sampler: Callable[[int], BaseSampler]) -> Search:
    def search(place: Place, seed: int) -> list[list[Step]]:
        surface = place.surface
        found: list[list[Step]] = []
        for budget in range(len(surface.budgets)):

            def enough(trials: Sequence[Trial], budget: int = budget) -> bool:
                steps = steps_of(surface, trials)
                return len(steps) >= AT_LEAST and found_at(surface, budget, steps) is not None

            ask = _Study(sampler(seed * 1009 + budget))
            most = REPEATING * surface.points(budget)
            found.append(steps_of(surface, replay(surface, ask, budget, seed=seed, trials=most, enough=enough)))
        return found

    return search


def _pruned(sampler: Callable[[int], BaseSampler], pruner: Callable[[int], BasePruner]) -> Search:
    def search(place: Place, seed: int) -> list[list[Step]]:
        table = place.table
        assert table is not None, "pruning needs partial losses"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return [
                _pruned_budget(place.surface, table, budget, seed, sampler(seed * 1009 + budget), pruner(seed))
                for budget in range(len(place.surface.budgets))
            ]

    return search


def _pruned_budget(
    surface: Surface, table: Table, budget: int, seed: int, sampler: BaseSampler, pruner: BasePruner
) -> list[Step]:
    """One budget by an Optuna study that ends trials early by their training loss so far."""
    run = table.seeds[seed % len(table.seeds)]
    space = surface.space(budget)
    study = optuna.create_study(direction="minimize", sampler=sampler, pruner=pruner)
    steps: list[Step] = []
    while len(steps) < REPEATING * surface.points(budget):
        asked = study.ask()
        point = _suggested(asked, space)
        partial = table.partial[surface.budgets[budget], point.variant, point.learning_rate, run]
        whole = surface.flops(budget, point.variant) / surface.mean_flops(budget)
        ended = None
        for share, loss in zip(SHARES, partial, strict=False):
            eighth = round(share * _EIGHTHS)
            if eighth not in RUNGS:
                continue
            asked.report(loss, eighth)
            if asked.should_prune():
                ended = eighth / _EIGHTHS
                break
        if ended is not None:
            study.tell(asked, state=optuna.trial.TrialState.PRUNED)
            steps.append(Step(point.variant, point.learning_rate, None, ended * whole))
        else:
            outcome, loss = surface.observed(budget, point.variant, point.learning_rate, seed)
            study.tell(asked, loss if math.isfinite(loss) else surface.worst_loss)
            steps.append(Step(point.variant, point.learning_rate, loss if outcome == "finished" else None, whole))
        if len(steps) >= AT_LEAST and found_at(surface, budget, steps) is not None:
            break
    return steps
