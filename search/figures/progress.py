"""How the search went: the best loss so far of each budget, against its trials and against the core-hours spent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, Literal

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from search.figures.marks import (
    DOT,
    EDGE,
    RING,
    Target,
    at_top,
    handle,
    legend_below,
    say_empty,
    set_log_ticks,
    titled_figure,
)
from search.figures.trials import can_be_shown, study_name
from search.foretold import so_far, unfinished_budgets
from search.formats import number
from search.plotting import GREY, budget_colours, log_ticks, set_loss_axis, style_axes
from search.points import Points
from search.results import meter_summary, ordered_budgets
from search.state import BudgetState, StudyState, TrialState

Ended = Literal["finished", "diverged", "failed"]
_LISTED: Final = 5
MARKS: Final[dict[str, str]] = {"diverged": "x", "failed": "v"}
_CLIP: Final = 2.0  # the loss axis ends at so many times the highest best loss of a budget


@dataclass(frozen=True, slots=True)
class Step:
    """One ended trial: its loss (NaN if it did not finish), the best of the budget so far (NaN before the first), and
    the core-hours that the budget has taken up to and with it, of training and of all else.

    The best is that of a variant and learning rate, the mean over the seeds that have finished by then; so it may rise,
    also when a seed diverges.
    """

    outcome: Ended
    loss: float
    best: float
    core_hours: float


@dataclass(frozen=True, slots=True)
class BudgetProgress:
    """One budget's ended trials in the order of suggestion; `found` is the place (from 1) of the best, 0 if none; of
    several seeds that of the first.
    """

    budget: str
    cells: int
    planned: int
    steps: tuple[Step, ...]
    found: int


@dataclass(frozen=True, slots=True)
class SearchProgress:
    """The budgets with an ended trial, the smallest first; `searched` are those whose bests may still change."""

    study: str
    budgets: tuple[BudgetProgress, ...]
    searched: tuple[str, ...] = ()


def search_progress_data(state: StudyState) -> SearchProgress:
    """The best loss so far of each budget, trial by trial."""
    budgets = (_progress(budget) for budget in ordered_budgets(state))
    shown = tuple(budget for budget in budgets if budget.steps)
    return SearchProgress(study_name(state), shown, unfinished_budgets(state))


def _progress(budget: BudgetState) -> BudgetProgress:
    steps: list[Step] = []
    points: Points[TrialState] = Points()
    places: dict[str, int] = {}
    spent = 0.0
    for trial in budget.trials:
        if trial.outcome is None:
            continue
        spent += _spent(trial)
        if not trial.heldout_loss <= 0:
            points.add(trial)
        loss = trial.heldout_loss if can_be_shown(trial) else math.nan
        steps.append(Step(trial.outcome, loss, math.nan if points.best is None else points.best.mean_loss, spent))
        places[trial.trial_id] = len(steps)
    found = 0 if points.best is None else places[points.best.finished[0].trial_id]
    return BudgetProgress(budget.label, len(budget.cells), budget.trials_total, tuple(steps), found)


def _spent(trial: TrialState) -> float:
    return float(meter_summary(trial).get("core_hours_total") or 0.0)


def read_search_progress(data: SearchProgress) -> str:
    """The figure in one sentence."""
    found_in = [budget for budget in data.budgets if budget.found]
    known = [budget for budget in found_in if budget.budget not in data.searched] or found_in[:1]
    places = [budget.found for budget in known]
    if not places:
        return "No trial has finished yet."
    if len(places) == 1:
        so = " so far" if known[0].budget in data.searched else ""
        found = f"The best trial{so} came as number {places[0]} of {len(known[0].steps)}"
    elif len(places) <= _LISTED:
        listed = f"{', '.join(map(str, places[:-1]))} and {places[-1]}"
        found = f"From the smallest budget to the largest, the best trial came as number {listed}"
    else:
        found = (
            f"The best trial of a budget came as number {min(places)} to {max(places)}, the median {median(places):g}"
        )
    outcomes = [step.outcome for budget in data.budgets for step in budget.steps]
    lost = ", ".join(f"{outcomes.count(kind)} {kind}" for kind in MARKS if kind in outcomes)
    spent = sum(budget.steps[-1].core_hours for budget in data.budgets)
    trials = f"{len(outcomes)} trial{'s' if len(outcomes) != 1 else ''}{f' ({lost})' if lost else ''}"
    return f"{found}; {trials}" + (f" took {number(spent, 2)} core-hours in all." if spent else " ended.")


def draw_search_progress(data: SearchProgress, target: Target) -> None:
    """Draw the best loss so far as a PNG: against trials above, against core-hours below, a line per budget."""
    metered = any(budget.steps[-1].core_hours > 0 for budget in data.budgets)
    figure = titled_figure(data.study, "best loss so far", 6.8 if metered else 4.6)
    grid = list(figure.subplots(2 if metered else 1, 1, sharey=True, squeeze=False).flatten())
    figure.supylabel("held-out loss (nats per image)", fontsize=11.5)
    for axes in grid:
        style_axes(axes)
    grid[0].set_xlabel("trials of the budget", fontsize=11.5)
    losses = [step.loss for budget in data.budgets for step in budget.steps if not math.isnan(step.loss)]
    if not losses:
        for axes in grid:
            say_empty(axes)
        figure.savefig(target)
        return
    most = max(len(budget.steps) for budget in data.budgets)
    last = max(budget.steps[-1].best for budget in data.budgets if budget.found)
    top, low = min(max(losses), _CLIP * last), min(losses)
    margin = max((top / low) ** 0.08, 1.01)
    high = top * margin**2.4
    set_loss_axis(grid[0], low / margin, high)
    grid[0].set_xlim(0.5, most + 0.5)
    grid[0].xaxis.set_major_locator(MaxNLocator(8, integer=True))
    if metered:
        _set_hours_axis(grid[1], data)
    shades = budget_colours(len(data.budgets))
    for index, axes in enumerate(grid):
        for budget, shade in zip(data.budgets, shades, strict=True):
            _draw_budget(axes, budget, shade, high, hours=index == 1)
    for kind, mark in (("above", "^"), *MARKS.items()):
        _draw_outside(grid, data, shades, high, kind, mark)
    labels = [so_far(budget.budget, data.searched) for budget in data.budgets]
    handles = [handle(label, shade, linewidth=2.2) for label, shade in zip(labels, shades, strict=True)]
    handles += [
        handle("best of the budget", "black", markersize=11, **RING),
        handle("a trial", GREY, **DOT, alpha=_faint(most)),
    ]
    outcomes = {step.outcome for budget in data.budgets for step in budget.steps}
    marks = {str(kind): mark for kind, mark in MARKS.items() if kind in outcomes}
    marks |= {"above the axis": "^"} if any(loss >= high for loss in losses) else {}
    legend_below(figure, [*handles, *(Line2D([], [], marker=mark, label=kind, **EDGE) for kind, mark in marks.items())])
    figure.savefig(target)


def _set_hours_axis(axes: Axes, data: SearchProgress) -> None:
    hours = [step.core_hours for budget in data.budgets for step in budget.steps if step.core_hours > 0]
    low, high = min(hours), max(hours)
    margin = (high / low) ** 0.05 if high > low * 1.01 else 1.5
    axes.set_xscale("log")
    axes.set_xlim(low / margin, high * margin)
    set_log_ticks(axes, log_ticks(low / margin, high * margin, 3))
    axes.set_xlabel("core-hours spent on the budget, all time counted", fontsize=11.5)


def _places(budget: BudgetProgress, hours: bool) -> list[float]:
    return [step.core_hours if hours else index for index, step in enumerate(budget.steps, start=1)]


def _faint(trials: int) -> float:
    """How opaque the dots of so many trials are; a legend's can still be seen."""
    return max(0.15, min(0.5, 40 / trials))


def _draw_budget(axes: Axes, budget: BudgetProgress, shade: str, high: float, *, hours: bool) -> None:
    xs = _places(budget, hours)
    bests, losses = [step.best for step in budget.steps], [step.loss for step in budget.steps]
    axes.step(xs, bests, where="post", color=shade, linewidth=2.2, zorder=3)
    inside = [(x, loss) for x, loss in zip(xs, losses, strict=True) if loss < high]
    faint = _faint(len(xs))
    axes.plot(*zip(*inside, strict=True), **DOT, color=shade, markersize=4.5, markeredgewidth=0, alpha=faint, zorder=2)
    if budget.found:
        axes.plot([xs[budget.found - 1]], [bests[-1]], color="black", markersize=11, zorder=5, **RING)


def _draw_outside(
    grid: Sequence[Axes], data: SearchProgress, shades: Sequence[str], high: float, kind: str, mark: str
) -> None:
    """Markers at the top edge for the trials that the loss axis has no place for."""
    for index, axes in enumerate(grid):
        places = {
            budget.budget: [
                x
                for x, step in zip(_places(budget, index == 1), budget.steps, strict=True)
                if (step.loss >= high if kind == "above" else step.outcome == kind)
            ]
            for budget in data.budgets
        }
        at_top(axes, dict(zip(places, shades, strict=True)), mark, places)
