"""What a search says of a budget before it spends it, and how that turned out.

The forecast is made from the smaller budgets that are closed by then, written into the ledger before the budget's first
trial, and held against the budget's best point once it is closed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from search.budgets import Budget
from search.state import BudgetState, StudyState
from search.study import Study

if TYPE_CHECKING:
    from search.law.forecast import Speed

BOOTSTRAPS: Final = 1000  # of a forecast within a search, as elsewhere: fewer leave the ends of intervals to chance

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Score:
    """A forecast and what came of it.

    Attributes:
        predicted, low, high: the loss that was foretold, and the interval of that one run.
        actual: the loss of the budget's best point, the mean over its seeds.
        variant, learning_rate: what was recommended.
        best_variant, best_learning_rate: what turned out best.
    """

    predicted: float
    low: float
    high: float
    actual: float
    variant: str | None
    learning_rate: float | None
    best_variant: str
    best_learning_rate: float

    @property
    def error(self) -> float:
        """How far the forecast was off, as a share of the loss: above zero where it was too high."""
        return self.predicted / self.actual - 1

    @property
    def inside(self) -> bool:
        """Whether the loss lies in the interval."""
        return self.low <= self.actual <= self.high


def score_of(budget: BudgetState) -> Score | None:
    """How a budget's forecast turned out; None before the budget is closed, or where no loss was foretold."""
    best, said = budget.best, budget.forecast
    if not budget.closed or best is None or said is None or "value" not in said["loss"]:
        return None
    loss = said["loss"]
    return Score(
        loss["value"], loss["low"], loss["high"], budget.best_loss, said["variant"], said["learning_rate"],
        best.variant, best.learning_rate,
    )  # fmt: skip


def closed_only(state: StudyState, below: float = math.inf) -> StudyState:
    """A study without the budgets that are not finished, for their best may change, and those that are not
    `below` so many FLOPs.
    """
    budgets = {label: known for label, known in state.budgets.items() if known.closed and known.flops < below}
    trials = {name: trial for name, trial in state.trials.items() if trial.budget in budgets}
    return StudyState(state.opened, budgets, trials)


def counted_only(state: StudyState) -> StudyState:
    """The part of a study that its law is fitted to: its closed budgets. Before one is closed with a finished trial the
    smallest that has one is counted, too: no law, but its learning rates.
    """
    closed = closed_only(state)
    begun = [budget for budget in state.budgets.values() if budget.best is not None]
    if not begun or any(budget.closed for budget in begun):
        return closed
    first = min(begun, key=lambda budget: budget.flops)
    trials = {name: trial for name, trial in state.trials.items() if trial.budget == first.label}
    return StudyState(state.opened, {**closed.budgets, first.label: first}, {**closed.trials, **trials})


def unfinished_budgets(state: StudyState) -> tuple[str, ...]:
    """The budgets that are not closed, of those with a finished trial, the smallest first: their bests may change."""
    waited = [budget for budget in state.budgets.values() if not budget.closed and budget.best is not None]
    return tuple(budget.label for budget in sorted(waited, key=lambda budget: budget.flops))


def so_far(budget: str, searched: Collection[str]) -> str:
    """A budget's name, and that it is not finished where it is one of those `searched`."""
    return f"{budget} (so far)" if budget in searched else budget


def of_unfinished(state: StudyState) -> str:
    """What is to be known of them, in a line; "" where there are none."""
    labels, counted = unfinished_budgets(state), counted_only(state).budgets
    if not labels:
        return ""
    changes = [f"what is said of {label} may change" for label in labels if label in counted]
    others = [label for label in labels if label not in counted]
    them = ", ".join(others) if changes else "it" if len(others) == 1 else "them"
    without = [f"the law and its forecasts do not count {them}"] if others else []
    are = "is" if len(labels) == 1 else "are"
    return f"{', '.join(labels)} {are} not finished: {', and '.join([*changes, *without])}"


def foreteller(
    study: Study, *, train_examples: int, classes: int, speed: Callable[[], Speed]
) -> Callable[[StudyState, Budget], dict[str, Any] | None]:
    """What a director asks of each budget before its first trial: `search.law.forecast.BudgetForecast` as JSON values.

    The answer is None before a smaller budget is closed with a finished trial. A forecast that fails must not end a
    search: it is logged, and the answer says so in the place of a loss.

    Args:
        study: the study.
        train_examples, classes: what its data holds.
        speed: how fast trials train, as far as it is known when a forecast is made.
    """

    def foretell(state: StudyState, budget: Budget) -> dict[str, Any] | None:
        closed = closed_only(state, below=budget.flops)
        if all(known.best is None for known in closed.budgets.values()):
            return None
        try:
            from search.law import fit_law, runs_of_state  # imports scipy
            from search.law.forecast import forecast_budget

            law = fit_law(runs_of_state(closed), bootstraps=BOOTSTRAPS)
            expected = forecast_budget(
                law, study, budget, train_examples=train_examples, classes=classes, speed=speed()
            )
        except Exception as error:
            log.exception("no forecast of budget %s", budget.label)
            reason = f"the forecast failed: {type(error).__name__}; see logs/search.log"
            return {"loss": {"refused": reason}, "variant": None, "epochs": None, "learning_rate": None}
        return expected.as_json()

    return foretell
