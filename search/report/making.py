"""Making a report: the law is fitted, the next budgets are forecast, the figures drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from search.figures.album import Picture, album
from search.law import Law, Refused, fit_law
from search.law.forecast import BudgetForecast
from search.law_command import counted_runs, study_forecasts
from search.ledger import Record
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
    table = counted_runs(state)
    budgets = len({run.budget for run in table.runs})
    left_out = 2 if budgets >= _MANY else 1
    law = fit_law(table, bootstraps=bootstraps, leave_out=left_out) if table.runs else None
    forecasts = () if law is None or study is None else tuple(study_forecasts(study, records, law))
    ahead = [forecast.flops for forecast in forecasts[:1] if not isinstance(forecast.loss, Refused)]
    return Findings(law, forecasts, tuple(album(state, law, ahead)))
