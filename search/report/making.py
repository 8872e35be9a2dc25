"""Making a report: the law is fitted, the next budgets are forecast, the figures drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from search.budgets import amounts_in_flops
from search.figures.album import Picture, album
from search.law import Law, Refused, RunTable, fit_law, runs_of_state
from search.law.forecast import BudgetForecast, forecast_budget, next_budgets, speed_of_state
from search.ledger import Record
from search.rates import core_hour_rates
from search.state import StudyState
from search.study import Study

BOOTSTRAPS: Final = 1000
_MANY: Final = 6  # budgets, from which two can be left out and foretold from the rest


@dataclass(frozen=True, slots=True)
class Findings:
    """What a study's state amounts to: the law (None: no trial has finished), the next budgets, the figures."""

    law: Law | None
    forecasts: tuple[BudgetForecast, ...]
    pictures: tuple[Picture, ...]


def findings_of(
    records: Sequence[Record], state: StudyState, study: Study | None = None, *, bootstraps: int = BOOTSTRAPS
) -> Findings:
    """Fit the law and draw the figures; with the `study` that the state is of, forecast its next budgets, too.

    `state` is what the ledger's `records` fold into.
    """
    table = _usable(runs_of_state(state))
    budgets = len({run.budget for run in table.runs})
    left_out = 2 if budgets >= _MANY else 1
    law = fit_law(table, bootstraps=bootstraps, leave_out=left_out) if table.runs else None
    forecasts = () if law is None or study is None else _forecasts(records, state, law, study)
    ahead = [forecast.flops for forecast in forecasts[:1] if not isinstance(forecast.loss, Refused)]
    return Findings(law, forecasts, tuple(album(state, law, ahead)))


def _usable(table: RunTable) -> RunTable:
    """Without the runs whose loss has no logarithm, which are counted as left out."""
    runs = tuple(run for run in table.runs if 0 < run.loss < math.inf)
    return replace(table, runs=runs, left_out=table.left_out + len(table.runs) - len(runs))


def _forecasts(records: Sequence[Record], state: StudyState, law: Law, study: Study) -> tuple[BudgetForecast, ...]:
    examples, classes = int(state.opened["train_examples"]), int(state.opened["classes"])
    cores = next((record["cores_per_slice"] for record in reversed(records) if record.event == "session_started"), None)
    speed = None if cores is None else speed_of_state(study, state, cores)
    amounts = amounts_in_flops(study, core_hour_rates(study, classes, state.opened))
    quantities = next_budgets(study, state, amounts)
    return tuple(
        forecast_budget(law, study, quantity, train_examples=examples, classes=classes, speed=speed)
        for quantity in quantities
    )
