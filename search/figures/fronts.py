"""Held-out loss against a second objective, and the Pareto front of each budget."""

from __future__ import annotations

from dataclasses import dataclass

from search.figures.marks import (
    DOT,
    LOSS,
    Target,
    handle,
    legend_below,
    new_axes,
    say_empty,
    set_log_ticks,
    titled_figure,
)
from search.figures.trials import can_be_shown, study_name
from search.foretold import so_far, unfinished_budgets
from search.formats import number
from search.plotting import GREY, budget_colours, log_ticks, set_loss_axis
from search.results import ordered_budgets
from search.second_objective import SAME_COST, UNITS, FrontPoint, costs_of, pareto_front
from search.state import StudyState

_CLIP = 2.0  # the loss axis ends at so many times the highest loss on a front


@dataclass(frozen=True, slots=True)
class Front:
    """A budget's finished trials as (cost, loss), and what no other beats, seeds averaged, the cheapest first.

    Trials whose loss or cost a logarithmic axis cannot show are left out.
    """

    budget: str
    trials: tuple[tuple[float, float], ...]
    front: tuple[FrontPoint, ...]


@dataclass(frozen=True, slots=True)
class ParetoFronts:
    """The fronts of the budgets that were searched for the `objective` (with its unit); empty where none was. Those of
    `searched` ones may still change.
    """

    study: str
    objective: str
    fronts: tuple[Front, ...]
    searched: tuple[str, ...] = ()


def pareto_fronts_data(state: StudyState) -> ParetoFronts:
    """The Pareto fronts of the second objective that the largest budget with one was searched for."""
    asked = [budget for budget in ordered_budgets(state) if budget.second_objective is not None]
    if not asked or (objective := asked[-1].second_objective) is None:
        return ParetoFronts(study_name(state), "", ())
    fronts = []
    for budget in asked:
        if budget.second_objective != objective:
            continue
        costs = costs_of(objective, state, budget)
        priced = [t for t in budget.trials if costs.get(t.variant, 0.0) > 0 and not t.heldout_loss <= 0]
        trials = tuple((costs[trial.variant], trial.heldout_loss) for trial in priced if can_be_shown(trial))
        if trials:
            fronts.append(Front(budget.label, trials, tuple(pareto_front(priced, costs))))
    return ParetoFronts(study_name(state), UNITS[objective], tuple(fronts), unfinished_budgets(state))


def read_pareto_fronts(data: ParetoFronts) -> str:
    """The figure in one sentence."""
    if not data.fronts:
        return "No budget with a second objective has a finished trial yet."
    last = next((front for front in reversed(data.fronts) if front.budget not in data.searched), data.fronts[-1])
    where = f"At {so_far(last.budget, data.searched)}"
    if len(last.front) == 1:
        costs = [cost for cost, _ in last.trials]
        if max(costs) <= min(costs) * (1 + SAME_COST) and len(set(costs)) > 1:
            alike = f"{where} all variants take as many {data.objective}, within {100 * SAME_COST:g} %"
            return f"{alike}; {last.front[0].variant} has the lowest loss."
        return f"{where}, {last.front[0].variant} has both the lowest loss and the fewest {data.objective}."
    cheap, best = last.front[0], last.front[-1]
    return (
        f"{where}, {best.variant} has the lowest loss, {number(best.heldout_loss)}; {cheap.variant} takes "
        f"{number(cheap.cost / best.cost, 2)} times as many {data.objective} at a loss of {number(cheap.heldout_loss)}."
    )


def draw_pareto_fronts(data: ParetoFronts, target: Target) -> None:
    """Draw the fronts as a PNG: a step line per budget, dots for the trials that are beaten."""
    figure = titled_figure(data.study, "loss against cost", 4.8)
    axes = new_axes(figure, data.objective or "cost", LOSS)
    if not data.fronts:
        say_empty(axes)
        figure.savefig(target)
        return
    shades = budget_colours(len(data.fronts))
    costs = [cost for front in data.fronts for cost, _ in front.trials]
    kept = [point.heldout_loss for front in data.fronts for point in front.front]
    margin = max((max(costs) / min(costs)) ** 0.08, 1.05)
    low, high = min(costs) / margin, max(costs) * margin
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    set_log_ticks(axes, log_ticks(low, high, 3))
    top = _CLIP * max(kept)
    room = max((top / min(kept)) ** 0.06, 1.01)
    set_loss_axis(axes, min(kept) / room, top)
    for front, shade in zip(data.fronts, shades, strict=True):
        beaten = [(cost, loss) for cost, loss in front.trials if loss < top]
        axes.plot(*zip(*beaten, strict=True), **DOT, color=shade, alpha=0.4, markersize=5.5, markeredgewidth=0)
        xs, ys = [point.cost for point in front.front], [point.heldout_loss for point in front.front]
        axes.step([*xs, max(cost for cost, _ in front.trials)], [*ys, ys[-1]], where="post", color=shade, linewidth=2)
        axes.plot(xs, ys, **DOT, color=shade, markersize=8, markeredgecolor="white", markeredgewidth=0.8, zorder=4)
    for point in data.fronts[-1].front:
        place = (point.cost, point.heldout_loss)
        axes.annotate(
            point.variant, place, xytext=(-4, -5), textcoords="offset points", ha="right", va="top", fontsize=10
        )
    labels = [so_far(front.budget, data.searched) for front in data.fronts]
    handles = [handle(label, shade, linewidth=2, marker="o") for label, shade in zip(labels, shades, strict=True)]
    legend_below(figure, [*handles, handle("other trials", GREY, alpha=0.5, **DOT)])
    figure.savefig(target)
