"""What stands in a report, as data: the answer, the law, figures, tables, and how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from search.figures.album import Picture
from search.figures.fronts import pareto_fronts_data
from search.law import Law
from search.law.forecast import BudgetForecast
from search.ledger import Record
from search.report.answer import Answer, answer_of
from search.report.fitted import Fitted, fitted_of
from search.report.tables import (
    Counts,
    Problems,
    Table,
    best_table,
    budgets_table,
    counts_of,
    foretold_table,
    fronts_table,
    problems_of,
    time_table,
)
from search.state import StudyState
from search.study import Study
from search.tracking_uri import without_passwords


@dataclass(frozen=True, slots=True)
class Report:
    """All that a report says of one run of a study. `facts` are (what, how it was) of its making."""

    study: str
    run: str
    counts: Counts
    answer: Answer
    fitted: Fitted | None
    pictures: tuple[Picture, ...]
    foretold: Table | None
    best: Table | None
    fronts: Table | None
    budgets: Table | None
    time: Table | None
    problems: Problems
    facts: tuple[tuple[str, str], ...]
    study_file: str


def report_of(
    records: Sequence[Record],
    state: StudyState,
    law: Law | None,
    *,
    forecasts: Sequence[BudgetForecast] = (),
    pictures: Sequence[Picture] = (),
    study: Study | None = None,
) -> Report:
    """The report of a run, from its ledger's records, the `state` they fold into, and the `law` fitted to that.

    Of the `forecasts` the first is the next budget. `law` is None where nothing has finished. The `study`, if it is
    given, tells which budgets are still to come.
    """
    opened, foretold = state.opened, foretold_table(state)
    told = [row[0] for row in foretold.rows] if foretold else []
    return Report(
        study=str(opened.get("study", "")),
        run=str(opened.get("run", "")),
        counts=counts_of(state, study),
        answer=answer_of(state, law, forecasts, study),
        fitted=None if law is None else fitted_of(law, forecasts, told),
        pictures=tuple(picture for picture in pictures if not picture.empty),
        foretold=foretold,
        best=best_table(state),
        fronts=fronts_table(pareto_fronts_data(state)),
        budgets=budgets_table(state),
        time=time_table(state),
        problems=problems_of(state),
        facts=_facts(records, state, law),
        study_file=without_passwords(str(opened.get("study_file", ""))),
    )


def _facts(records: Sequence[Record], state: StudyState, law: Law | None) -> tuple[tuple[str, str], ...]:
    opened = state.opened
    sessions = [record for record in records if record.event == "session_started"]
    versions = list(state.code_versions) or [str(opened.get("code_version", ""))]
    counts = (
        f"{opened[key]:,} {what}"
        for key, what in (("train_examples", "to train on"), ("heldout_examples", "held out"), ("classes", "classes"))
        if opened.get(key) is not None
    )
    slices = sorted({f"{s['slices']} x {s['cores_per_slice']} cores" for s in sessions if s.get("slices")})
    facts = {
        "Study file": str(opened.get("study_path", "")).rpartition("/")[
            2
        ],  # a report is shared, and folders are private
        "Run": str(opened.get("run", "")),
        "Code version": ", ".join(version for version in versions if version),
        "Data": ", ".join(counts),
        "Digest of the data": str(opened.get("data_digest") or ""),
        "Trained on": ", ".join(part for part in (str(opened.get("device") or ""), *slices) if part),
        "Began": _time(records[0].time) if records else "",
        "Last event": _time(records[-1].time) if records else "",
        "Sessions": str(len(sessions)) if sessions else "",
        "Intervals": "" if law is None else f"by {law.bootstraps:,} bootstraps over trials, seed {law.seed}",
    }
    return tuple((what, text) for what, text in facts.items() if text)


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
