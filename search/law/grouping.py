"""Runs put in order: repeated seeds and budgets together, the best of each, and the noise between seeds."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from search.formats import scientific
from search.law.runs import Run
from search.units import parse_quantity

NEAR: Final = 1.1
"""Runs whose FLOPs follow each other within this factor are of one budget, if no budget is named."""
WIDEST: Final = 1.25
"""A budget spans no more than this factor."""
SAME: Final = 0.005
"""FLOPs, parameters, examples and epochs that follow each other within this share are the same, counted differently."""
SAME_RATE: Final = 1e-4
"""Learning rates that do are the same, rounded elsewhere."""
_LONGEST: Final = 10  # tolerances; values that follow each other over more than that are a continuum
_CELL: Final = ("variant", "parameters", "examples", "epochs")
_ALONE_AT_MOST: Final = 12
_RUNS_PER_BIN, _BINS_AT_MOST = 5, 20
_VALLEY: Final = 1.25

By: TypeAlias = Literal["names", "flops", "bins"]
"""What tells budgets apart."""


@dataclass(frozen=True, slots=True)
class BudgetRuns:
    """The runs of one compute budget.

    Attributes:
        label: its name.
        flops: training FLOPs of the best run.
        runs: all of them.
        best: the run of the lowest loss, seeds averaged; of its seeds the best. A setting that diverged with some seed
            comes after all that did not.
        loss: the loss of the best: the mean over its seeds, as in a study's tables (see `search.points`).
        seeds: how many those are.
    """

    label: str
    flops: float
    runs: tuple[Run, ...]
    best: Run
    loss: float
    seeds: int


@dataclass(frozen=True, slots=True)
class Noise:
    """Standard deviation of ln(loss) between runs that differ in nothing but their seed, and its degrees of freedom."""

    log_sd: float
    degrees: int


@dataclass(frozen=True, slots=True)
class Setting:
    """Runs alike but for the seed: one of them (the best), the mean of their losses, how many they are, and whether
    none diverged.
    """

    run: Run
    loss: float
    seeds: int
    log_losses: tuple[float, ...]
    sound: bool = True


@dataclass(frozen=True, slots=True)
class Cell:
    """One model trained on so many examples, at its best learning rate.

    `loss` is the mean over seeds; `budget` the label of its budget; `tried` its rates, but for those that are
    better than the best and diverged with some seed; `diverged` the rates that diverged, rising.
    """

    variant: str | None
    budget: str
    flops: float
    parameters: float | None
    examples: float | None
    epochs: float | None
    learning_rate: float | None
    loss: float
    seeds: int
    tried: tuple[Setting, ...]
    diverged: tuple[float, ...] = ()


def budgets_of(
    runs: Sequence[Run], diverged: Sequence[Run] = (), *, by: By | None = None
) -> tuple[tuple[BudgetRuns, ...], By]:
    """The budgets of runs, rising in FLOPs, and by what they were told apart, or are to be, where `by` is given.

    Where every run names its budget, by that name. Else runs whose FLOPs follow each other within `NEAR` are of one
    budget, which spans `WIDEST` at most. Where runs hardly repeat FLOPs, or fill them without gaps, they are a cloud
    rather than a frontier (if they differ in size, examples, learning rate or variant, or are very many): then bins of
    equal width in log FLOPs stand for budgets, and the run farthest below the straight line through all runs stands for
    a bin (its lowest loss would always be at its right edge).

    Where a seed of a setting is among `diverged`, that setting is the best of its budget only if all have such a seed;
    in a bin single runs compete.
    """
    groups = _near(runs)
    by = by or _told_by(runs, groups)
    if by == "names":
        named: dict[Hashable, list[Run]] = defaultdict(list)
        for run in runs:
            named[_budget_key(str(run.budget))].append(run)
        found = [_budget(group[0].budget, group, diverged) for group in named.values()]
    elif by == "bins":
        found = _bins(runs)
    else:
        found = [_budget(None, group, diverged) for group in groups]
    return tuple(sorted(found, key=lambda budget: budget.flops)), by


def told_apart(budgets: Sequence[BudgetRuns], by: By) -> str:
    """How they were, in a few words."""
    if by == "names":
        return "by the names of their budgets"
    if by == "flops":
        return f"by FLOPs within {NEAR - 1:.0%} of each other"
    return (
        f"as {len(budgets)} bins of equal width in log FLOPs (hardly two runs have the same FLOPs), the run farthest "
        "below the trend of all standing for its bin"
    )


def _near(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs whose FLOPs follow each other within `NEAR`, over `WIDEST` at most."""
    groups: list[list[Run]] = []
    for run in sorted(runs, key=lambda run: run.flops):
        if groups and run.flops <= min(NEAR * groups[-1][-1].flops, WIDEST * groups[-1][0].flops):
            groups[-1].append(run)
        else:
            groups.append([run])
    return groups


def _told_by(runs: Sequence[Run], groups: Sequence[Sequence[Run]]) -> By:
    """See `budgets_of`."""
    if all(run.budget is not None for run in runs):
        return "names"
    without_gap = sum(after[0].flops <= NEAR * before[-1].flops for before, after in pairwise(groups))
    apart = float(np.median([len(group) for group in groups])) < 2
    compete = len(groups) > _ALONE_AT_MOST and (apart or without_gap > len(groups) / 2)
    names = ("parameters", "examples", "variant", "learning_rate")
    differ = any(getattr(run, name) is not None for run in runs for name in names)
    return "bins" if compete and (differ or len(groups) > 2 * _BINS_AT_MOST) else "flops"


@functools.lru_cache(maxsize=4096)
def _budget_key(name: str) -> Hashable:
    """The same for one budget spelt twice: "1e18 FLOPs" and "1E18 flops"."""
    try:
        found = parse_quantity(name)
    except ValueError:
        return " ".join(name.casefold().split())
    return found.amount, found.unit, found.device


def _budget(label: str | None, runs: Sequence[Run], diverged: Sequence[Run]) -> BudgetRuns:
    best = _best(settings_of([*runs, *_lost(runs, diverged)]))
    return BudgetRuns(label or _label(runs), best.run.flops, tuple(runs), best.run, best.loss, best.seeds)


def _label(runs: Sequence[Run]) -> str:
    return f"{scientific(math.exp(float(np.mean(np.log([run.flops for run in runs])))), 3)} FLOPs"


def _bins(runs: Sequence[Run]) -> list[BudgetRuns]:
    """Bins as budgets, each with the run farthest below the trend as its best."""
    flops = np.log([run.flops for run in runs])
    loss = np.log([run.loss for run in runs])
    slope, level = np.polyfit(flops - flops.mean(), loss, 1) if np.ptp(flops) > 0 else (0.0, loss.mean())
    below = loss - level - slope * (flops - flops.mean())
    count = min(_BINS_AT_MOST, max(3, len(runs) // _RUNS_PER_BIN))
    edges = np.linspace(flops.min(), flops.max(), count + 1)
    places = np.clip(np.searchsorted(edges, flops, side="right") - 1, 0, count - 1)
    budgets = []
    for place in range(count):
        members = [int(k) for k in np.flatnonzero(places == place)]
        if len(members):
            inside, best = tuple(runs[k] for k in members), runs[members[int(np.argmin(below[members]))]]
            budgets.append(BudgetRuns(_label(inside), best.flops, inside, best, best.loss, 1))
    return budgets


def settings_of(runs: Sequence[Run]) -> list[Setting]:
    """Runs alike in budget, model, examples, epochs and learning rate together, their seeds averaged; what diverged
    (its loss is infinite) has no part in the mean, and where nothing else is alike there is no setting.

    Runs without a learning rate are alike only if they differ in their seeds: something else may differ.
    """
    groups: list[list[Run]] = []
    for alike in _alike(runs, (*_CELL, "learning_rate", "flops")):
        alone = [run for run in alike if run.learning_rate is None and run.seed is None]
        groups += [[run] for run in alone]
        groups.append([run for run in alike if run.learning_rate is not None or run.seed is not None])
    return [_setting(group) for group in groups if any(run.loss < math.inf for run in group)]


def _setting(runs: Sequence[Run]) -> Setting:
    finished = [run for run in runs if run.loss < math.inf]
    logs = tuple(math.log(run.loss) for run in finished)
    best, mean = min(finished, key=lambda run: run.loss), fmean(run.loss for run in finished)
    return Setting(best, mean, len(logs), logs, len(finished) == len(runs))


def _best(settings: Sequence[Setting]) -> Setting:
    return min(settings, key=lambda setting: (not setting.sound, setting.loss))


def cells_of(budgets: Sequence[BudgetRuns], diverged: Sequence[Run] = ()) -> tuple[Cell, ...]:
    """The cells of every budget: a model and so many examples each, at its best learning rate.

    A diverged run belongs to the cells that are alike and, where both name their budget, of the same.
    """
    cells: list[Cell] = []
    for budget in budgets:
        for group in _alike([*budget.runs, *_lost(budget.runs, diverged)], _CELL):
            if not (settings := settings_of(group)):
                continue
            best = _best(settings)
            run = best.run
            lost = {each.learning_rate for each in group if each.loss == math.inf and each.learning_rate is not None}
            cells.append(
                Cell(
                    run.variant,
                    budget.label,
                    run.flops,
                    run.parameters,
                    run.examples,
                    run.epochs,
                    run.learning_rate,
                    best.loss,
                    best.seeds,
                    tuple(setting for setting in settings if setting.sound or setting.loss >= best.loss),
                    tuple(sorted(lost)),
                )
            )
    return tuple(cells)


def _lost(runs: Sequence[Run], diverged: Sequence[Run]) -> list[Run]:
    """Those that diverged in the budget of these runs: by its name where both have one, else by their FLOPs."""
    names = {_budget_key(run.budget) for run in runs if run.budget is not None}
    low, high = min(run.flops for run in runs) / NEAR, max(run.flops for run in runs) * NEAR
    return [
        each
        for each in diverged
        if (_budget_key(each.budget) in names if names and each.budget is not None else low <= each.flops <= high)
    ]


def noise_of(cells: Sequence[Cell]) -> Noise | None:
    """How much losses differ between seeds; None where no setting has two.

    Only settings whose loss is within a quarter of their cell's best count: beyond the valley, where training nearly
    diverges, seeds differ more, and nothing depends on it.
    """
    squares, degrees = 0.0, 0
    for cell in cells:
        for setting in cell.tried:
            if setting.seeds > 1 and setting.loss <= _VALLEY * cell.loss:
                logs = np.array(setting.log_losses)
                squares += float(np.square(logs - logs.mean()).sum())
                degrees += setting.seeds - 1
    return Noise(math.sqrt(squares / degrees), degrees) if degrees else None


def _alike(runs: Sequence[Run], names: Sequence[str]) -> list[list[Run]]:
    """Runs that differ in none of these by more than its tolerance, in the order of their first ones."""
    groups = [list(range(len(runs)))]
    for name in names:
        groups = [part for group in groups for part in _parted(group, runs, name)]
    return [[runs[place] for place in group] for group in sorted(sorted(group) for group in groups)]


def _parted(group: Sequence[int], runs: Sequence[Run], name: str) -> list[list[int]]:
    """A group cut where a value follows the one before by more than the tolerance: nothing is rounded, which would cut
    between values however close. Where such a chain is long its values are a continuum, each of them itself.
    """
    places: dict[Any, list[int]] = defaultdict(list)
    for place in group:
        places[getattr(runs[place], name)].append(place)
    if name == "variant" or len(places) == 1:
        return list(places.values())
    parts, tolerance = [places.pop(None)] if None in places else [], SAME_RATE if name == "learning_rate" else SAME
    chains: list[list[float]] = []
    for value in sorted(places):
        if chains and value <= (1 + tolerance) * chains[-1][-1]:
            chains[-1].append(value)
        else:
            chains.append([value])
    for chain in chains:
        one = chain[-1] <= (1 + _LONGEST * tolerance) * chain[0]
        parts += [[place for value in chain for place in places[value]]] if one else [places[value] for value in chain]
    return parts
