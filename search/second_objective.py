"""What else than the loss a study may keep low: the cost of each variant within a budget, and the Pareto front.

All trials of a budget take the same training FLOPs; yet on real machines some variants take more core-hours for them,
and larger ones more memory and, once trained, more compute for every image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from rich.console import Console

from search.formats import number
from search.points import Points
from search.results import meter_summary, ordered_budgets
from search.sections import SecondObjective
from search.state import BudgetState, StudyState, TrialState
from search.tables import figures_table

SAME_COST: Final = 0.02
UNITS: Final[Mapping[SecondObjective, str]] = {
    "core_hours": "core-hours of training",
    "inference_flops": "FLOPs of inference per image",
    "memory": "bytes of memory in training",
    "parameters": "parameters",
}


def costs_of(objective: SecondObjective, state: StudyState, budget: BudgetState) -> dict[str, float]:
    """The cost of each variant of a budget, those that the study has taken out since included.

    Inference takes a third of the training FLOPs of an image (one forward pass of three passes' worth). Core-hours are
    the mean of what the variant's finished trials of this budget took in training steps; before there are any, what
    they took for each FLOP in other budgets, or what all variants did; and without any at all, alike for all. Memory is
    the estimate, a lower bound, that the budget was opened with (`search.memory`); a variant that was taken out before
    there was one has none.
    """
    cells = {cell["variant"]: cell for cell in budget.cells}
    match objective:
        case "parameters":
            return {variant: float(cell["parameters"]) for variant, cell in cells.items()}
        case "inference_flops":
            return {variant: cell["flops_per_image"] / 3 for variant, cell in cells.items()}
        case "memory":
            return {variant: float(cell["memory"]) for variant, cell in cells.items() if "memory" in cell}
        case "core_hours":
            return {variant: _core_hours(variant, state, budget) for variant in cells}


def _core_hours(variant: str, state: StudyState, budget: BudgetState) -> float:
    known = [(trial, hours) for trial in state.trials.values() if (hours := _metered(trial)) is not None]
    here = [hours for trial, hours in known if trial.budget == budget.label and trial.variant == variant]
    if here:
        return fmean(here)
    per_flop = [hours / trial.flops for trial, hours in known if trial.variant == variant]
    per_flop = per_flop or [hours / trial.flops for trial, hours in known]
    return fmean(per_flop) * budget.flops if per_flop else 1.0


def _metered(trial: TrialState) -> float | None:
    if trial.outcome != "finished":
        return None
    hours = meter_summary(trial).get("core_hours")
    return float(hours) if hours else None


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """A variant and learning rate, what it costs, and its held-out loss, the mean over `seeds`."""

    variant: str
    epochs: float
    learning_rate: float
    heldout_loss: float
    cost: float
    seeds: int


def pareto_front(trials: Iterable[TrialState], costs: Mapping[str, float]) -> list[FrontPoint]:
    """What no other beats of the trials, seeds averaged: none that costs as little, or less, has a lower loss.

    Cheapest first. Costs within `SAME_COST` of each other count as equal: core-hours are measured. A point that
    diverged with some seed is on it only where all did.
    """
    ranked = Points(trial for trial in trials if trial.variant in costs).ranked()
    points = [
        FrontPoint(
            seeds.point.variant, seeds.finished[0].epochs, seeds.point.learning_rate, seeds.mean_loss,
            costs[seeds.point.variant], len(seeds.finished),
        )
        for seeds in ranked
        if seeds.diverged == ranked[0].diverged
    ]  # fmt: skip
    equal = _levels(point.cost for point in points)
    front: list[FrontPoint] = []
    lowest = math.inf
    for point in sorted(points, key=lambda point: (equal[point.cost], point.heldout_loss)):
        if point.heldout_loss < lowest:
            lowest = point.heldout_loss
            front.append(point)
    return front


def _levels(costs: Iterable[float]) -> dict[float, float]:
    """Of each cost the least one that counts as equal to it."""
    levels: dict[float, float] = {}
    level = -math.inf
    for cost in sorted(set(costs)):
        if cost > level * (1 + SAME_COST) or level == -math.inf:
            level = cost
        levels[cost] = level
    return levels


def render_fronts(state: StudyState, console: Console) -> None:
    """Print the Pareto front of every budget that was searched with a second objective."""
    for budget in ordered_budgets(state):
        objective = budget.second_objective
        if objective is None:
            continue
        costs = costs_of(objective, state, budget)
        if not (front := pareto_front(budget.trials, costs)):
            continue
        title = f"Budget {budget.label}: Pareto front of held-out loss and {UNITS[objective]}"
        console.print(title, style="bold", highlight=False, soft_wrap=True)
        table = figures_table(None, ("variant",), ("epochs", "learning rate", "held-out loss", UNITS[objective]))
        for point in front:
            table.add_row(
                point.variant, number(point.epochs, trim=True), number(point.learning_rate, trim=True),
                number(point.heldout_loss), number(point.cost),
            )  # fmt: skip
        console.print(table)
        console.print()
