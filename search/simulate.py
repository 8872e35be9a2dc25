"""Replays a study on a loss surface: the samplers as they are, at the price of their own arithmetic.

The replay does what `search.director` does, less the training: budgets from the cheapest, one proposal after the other,
`slices` trials at a time, each budget's proposals knowing what the smaller ones have found. How many trials a budget
may have is the caller's to say: a study's own limits are in `search.budgets`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from search.samplers import SamplerName, propose
from search.space import DOUBT, Explored, Point, Space
from search.state import TrialState as Trial
from search.surfaces import Surface


class Proposer(Protocol):
    """`search.samplers.propose` without its first argument, and whatever else is called like it."""

    def __call__(
        self,
        space: Space,
        trials: Sequence[Trial],
        *,
        seed: int,
        worst_loss: float,
        smaller: Sequence[Explored] = (),
        batch_size: int = 4096,
    ) -> Point | None:
        """The next point to try; None when there is nothing left to try."""
        ...


def proposer(sampler: SamplerName, *, doubt: float = DOUBT) -> Proposer:
    """One of the product's samplers; `doubt` as for `search.samplers.propose`."""
    return partial(propose, sampler, doubt=doubt)


@dataclass(frozen=True, slots=True)
class _Running:
    """A trial of the budget of that index; `ends_at` in FLOPs of a slice since the search began."""

    budget: int
    trial: Trial
    ends_at: float


@dataclass(slots=True)
class _Search:
    """Some of a surface's budgets under way.

    A trial runs as long as its FLOPs take, all slices being as fast; of two that end at a time the one that began
    first does. `most` trials are run of each budget, None: no limit. `smaller` are budgets below those, searched
    before.
    """

    surface: Surface
    ask: Proposer
    seed: int
    most: Mapping[int, int | None]
    slices: int
    enough: Callable[[Sequence[Trial]], bool]
    smaller: Sequence[Explored]
    found: dict[int, list[Trial]]
    running: list[_Running] = field(default_factory=list)
    clock: float = 0.0
    closed: set[int] = field(default_factory=set)

    def run(self) -> None:
        """To the end of every budget, as `search.director.Director.suggest` goes about it."""
        while True:
            if len(self.running) >= self.slices:
                self._end_next()
            if not any(self._start(budget) for budget in self.found):
                if not self.running:
                    return
                self._end_next()

    def _end_next(self) -> None:
        ended = min(self.running, key=lambda one: one.ends_at)
        self.running.remove(ended)
        self.clock, trial = ended.ends_at, ended.trial
        outcome, loss = self.surface.observed(ended.budget, trial.variant, trial.learning_rate, self.seed)
        trial.result = {"heldout_loss": loss if outcome == "finished" else None}
        trial.outcome = outcome

    def _start(self, budget: int) -> bool:
        """Start a trial of this budget, if it is to have another now."""
        done = self.found[budget]
        if budget not in self.closed and (len(done) == self.most[budget] or self.enough(done)):
            self.closed.add(budget)
        if budget in self.closed:
            return False
        point = self._propose(budget)
        if point is None:
            if all(trial.outcome is not None for trial in done):  # else the sampler may wait for those that run
                self.closed.add(budget)
            return False
        done.append(_trial(self.surface, budget, len(done), point, self.seed))
        self.running.append(_Running(budget, done[-1], self.clock + done[-1].flops))
        return True

    def _propose(self, budget: int) -> Point | None:
        below = [Explored(self.surface.space(k), trials) for k, trials in self.found.items() if k < budget]
        return self.ask(
            self.surface.space(budget),
            self.found[budget],
            seed=self.seed * 1009 + round(math.log2(self.surface.budgets[budget]) * 1000),  # as search.director has it
            worst_loss=self.surface.worst_loss,
            smaller=[*self.smaller, *below],
            batch_size=self.surface.batch_size,
        )


def _trial(surface: Surface, budget: int, number: int, point: Point, seed: int) -> Trial:
    cell = next(cell for cell in surface.cells[budget] if cell.variant == point.variant)
    flops = surface.flops(budget, point.variant)
    return Trial(
        trial_id=f"{budget}-{number:03d}",
        budget=str(budget),
        variant=point.variant,
        epochs=cell.epochs,
        steps=max(1, round(flops / cell.flops_per_image / surface.batch_size)),
        learning_rate=point.learning_rate,
        seed=seed,
        flops=flops,
        parameters=cell.parameters,
        params=point.params,
        suggested_at=float(number),
    )


def _never(trials: Sequence[Trial]) -> bool:
    return False


def replay(
    surface: Surface,
    ask: Proposer,
    budget: int,
    *,
    seed: int,
    smaller: Sequence[Explored] = (),
    trials: int | None = None,
    slices: int = 1,
    enough: Callable[[Sequence[Trial]], bool] = _never,
) -> list[Trial]:
    """One budget's trials, ended, in the order of suggestion.

    Args:
        surface: what the trials give.
        ask: the sampler.
        budget: index of the budget.
        seed: of the sampler and of the runs' noise.
        smaller: what was found in the budgets before.
        trials: at most so many; None: until the sampler proposes nothing more.
        slices: trials that run at a time; proposals are made with the others running.
        enough: looked at before each proposal; true ends the budget.
    """
    search = _Search(surface, ask, seed, {budget: trials}, slices, enough, smaller, {budget: []})
    search.run()
    return search.found[budget]


def simulate(
    surface: Surface,
    sampler: SamplerName | Proposer,
    *,
    seed: int,
    trials: int | Sequence[int] | None = None,
    slices: int = 1,
) -> list[list[Trial]]:
    """The trials of every budget, from the cheapest, ended, each in the order of suggestion.

    A slice without work begins with the next budget, whose first proposals are then made while trials of this one run,
    and a sampler that proposes nothing while trials run is asked again when they have ended: all as in a search. For
    the arguments see `replay`; `trials` may be a limit for each budget, too.
    """
    ask = proposer(sampler) if isinstance(sampler, str) else sampler
    count = len(surface.budgets)
    limits = [trials] * count if trials is None or isinstance(trials, int) else trials
    most = dict(zip(range(count), limits, strict=True))
    search = _Search(surface, ask, seed, most, slices, _never, (), {k: [] for k in range(count)})
    search.run()
    return list(search.found.values())
