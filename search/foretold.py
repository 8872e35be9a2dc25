"""What a search says of a budget before it spends it, and how that turned out.

The forecast is made from the budgets that are closed by then, written into the ledger before the budget's first trial,
and held against the budget's best point once it is closed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from search.budgets import Budget
from search.state import BudgetState, StudyState
from search.study import Study

BOOTSTRAPS: Final = 200  # of a forecast within a search: it is to take a part of a second

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


def foreteller(
    study: Study, *, train_examples: int, classes: int, cores_per_slice: int
) -> Callable[[StudyState, Budget], dict[str, Any] | None]:
    """What a director asks of each budget before its first trial: `search.law.forecast.BudgetForecast` as JSON values.

    The answer is None before a budget is closed with a finished trial. A forecast that fails must not end a search: it
    is logged, and the answer says so in the place of a loss.

    Args:
        study: the study.
        train_examples, classes: what its data holds.
        cores_per_slice: cores that train one trial.
    """

    def foretell(state: StudyState, budget: Budget) -> dict[str, Any] | None:
        closed = StudyState(
            state.opened,
            {label: budget for label, budget in state.budgets.items() if budget.closed},
            {name: trial for name, trial in state.trials.items() if state.budgets[trial.budget].closed},
        )
        if all(known.best is None for known in closed.budgets.values()):
            return None
        try:
            from search.law import fit_law, runs_of_state  # imports scipy
            from search.law.forecast import forecast_budget, speed_of_state

            law = fit_law(runs_of_state(closed), bootstraps=BOOTSTRAPS)
            speed = speed_of_state(study, state, cores_per_slice)
            expected = forecast_budget(law, study, budget, train_examples=train_examples, classes=classes, speed=speed)
        except Exception as error:
            log.exception("no forecast of budget %s", budget.label)
            reason = f"the forecast failed: {type(error).__name__}; see logs/search.log"
            return {"loss": {"refused": reason}, "variant": None, "epochs": None, "learning_rate": None}
        return expected.as_json()

    return foretell
