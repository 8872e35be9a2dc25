"""The trials of a study as its figures show them: ended ones, by budget and variant."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from search.formats import number
from search.law import Law
from search.points import Points
from search.results import meter_summary
from search.state import BudgetState, StudyState, TrialState

_BOUNDLESS: Final = 1e30  # an interval's end beyond it is none
_PREFIXES: Final = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True, slots=True)
class Point:
    """An ended trial: planned training FLOPs, held-out loss (NaN if diverged), metered core-hours (NaN if unknown).

    Where `seeds` is above one it stands for so many trials alike but for their seed, and the loss is their mean;
    `unsound` says that another such trial diverged.
    """

    variant: str
    flops: float
    learning_rate: float
    loss: float
    core_hours: float
    epochs: float
    parameters: int
    seeds: int = 1
    unsound: bool = False


def study_name(state: StudyState) -> str:
    """The study's name, "" before it was opened."""
    return str(state.opened.get("study", ""))


def variants_of(state: StudyState) -> tuple[str, ...]:
    """The study's variants by compute per image (so by depth within a family), the cheapest first."""
    cost: dict[str, float] = {}
    for budget in state.budgets.values():
        cost |= {cell["variant"]: cell["flops_per_image"] for cell in budget.cells}
    for trial in state.trials.values():
        cost.setdefault(trial.variant, math.inf)
    return tuple(sorted(cost, key=lambda variant: (cost[variant], variant)))


def point_of(trial: TrialState) -> Point:
    """A trial as a figure shows it."""
    core_hours = meter_summary(trial).get("core_hours")
    return Point(
        variant=trial.variant,
        flops=trial.flops,
        learning_rate=trial.learning_rate,
        loss=trial.heldout_loss,
        core_hours=math.nan if core_hours is None else core_hours,
        epochs=trial.epochs,
        parameters=trial.parameters,
    )


def can_be_shown(trial: TrialState) -> bool:
    """Whether a trial has finished with a loss that a logarithmic axis can show."""
    return trial.outcome == "finished" and 0 < trial.heldout_loss < math.inf


def finished(budget: BudgetState) -> tuple[Point, ...]:
    """The budget's finished trials by learning rate; a loss that a log axis cannot show is left out."""
    points = [point_of(trial) for trial in budget.trials if can_be_shown(trial)]
    return tuple(sorted(points, key=lambda point: point.learning_rate))


def diverged(budget: BudgetState) -> tuple[Point, ...]:
    """The budget's diverged trials by learning rate."""
    points = [point_of(trial) for trial in budget.trials if trial.outcome == "diverged"]
    return tuple(sorted(points, key=lambda point: point.learning_rate))


def ranked(budget: BudgetState) -> tuple[Point, ...]:
    """A point for each variant and learning rate of a budget, the best first, as `search.points` has them: the mean
    loss over its seeds, and else what its best trial has. A loss that a log axis cannot show is left out.
    """
    points = Points(trial for trial in budget.trials if not trial.heldout_loss <= 0).ranked()
    return tuple(
        replace(point_of(each.lowest), loss=each.mean_loss, seeds=len(each.finished), unsound=each.diverged)
        for each in points
    )


def of_seeds(seeds: int) -> str:
    """What follows a loss that is the mean of several seeds; "" else."""
    return f", mean of {seeds} seeds" if seeds > 1 else ""


def untuned_cells(law: Law | None) -> frozenset[tuple[str, str]]:
    """(budget, variant) of the cells that the law does not compare with others, their learning rate not being tuned."""
    left_out = () if law is None else law.tuning.left_out
    return frozenset((cell.budget, cell.variant or "") for cell in left_out)


def all_diverged(state: StudyState) -> str:
    """What to say where trials have diverged and none has finished; "" else."""
    outcomes = {trial.outcome for trial in state.trials.values()}
    if "diverged" not in outcomes or "finished" in outcomes:
        return ""
    rates = [trial.learning_rate for trial in state.trials.values() if trial.outcome == "diverged"]
    low, high = (number(rate, trim=True) for rate in (min(rates), max(rates)))
    tried = f"The one learning rate tried, {low}," if low == high else f"Every learning rate from {low} to {high}"
    return f"{tried} diverged; search below {low}."


def of_variant(variant: str, points: Iterable[Point]) -> list[Point]:
    """Those of one variant, in their order."""
    return [point for point in points if point.variant == variant]


def cell_bests(variants: Sequence[str], points: Sequence[Point]) -> list[Point]:
    """Of points that are `ranked` the best of each variant that has one, in the order of `variants`."""
    return [point for variant in variants for point in of_variant(variant, points)[:1]]


def size(count: float) -> str:
    """Parameters or examples as people write them: 275606 is "276k", 8.2948e8 is "829M"."""
    for unit, letter in _PREFIXES:
        if count >= 0.9995 * unit:
            return number(count / unit, 3, trim=True) + letter
    return number(count, 3, trim=True)


def between(low: float, high: float, show: Callable[[float], str]) -> str:
    """An interval as text; an end that says nothing is left out."""
    if high >= _BOUNDLESS:
        return "any" if low <= 0 else f"{show(low)} or more"
    return f"{show(low)} to {show(high)}"


def percent_of(confidence: float) -> str:
    """An interval's confidence as text: 0.95 is "95 %"."""
    return f"{100 * confidence:g} %"
