"""The report's tables of what was run: the best of each budget, the trials of each, where the time went."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from search.figures.fronts import ParetoFronts
from search.foretold import score_of, so_far, unfinished_budgets
from search.formats import MISSING, duration, number, percent, percent_off, scientific
from search.results import BUCKETS, TrialRow, best_rows, ordered_budgets, time_split, trial_rows
from search.state import StudyState
from search.study import Study

SHOWN: Final = 12  # of the trials that failed or diverged, the rest is counted


@dataclass(frozen=True, slots=True)
class Table:
    """A table as text. `names` is how many columns from the left hold names rather than numbers; `shares` are shares of
    one to draw as bars beside the rows, none or one per row. `wrapped`: what its rows are named by may be broken into
    lines.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: int = 1
    shares: tuple[float, ...] = ()
    wrapped: bool = False


@dataclass(frozen=True, slots=True)
class Problems:
    """Trials that did not finish: what is to be said of each, and how many more there are."""

    failed: tuple[str, ...] = ()
    diverged: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.failed or self.diverged or self.notes)


@dataclass(frozen=True, slots=True)
class Counts:
    """How many trials there are in the budgets opened so far, by how they ended; and whether the search is over.

    `opened` is the number of budgets with trials, of `budgets` in all; `budgets` is 0 where the study was not given.
    """

    planned: int
    outcomes: Counter[str] = field(default_factory=Counter)
    over: bool = False
    opened: int = 0
    budgets: int = 0

    @property
    def ended(self) -> int:
        return sum(count for outcome, count in self.outcomes.items() if outcome != "unfinished")

    @property
    def of_budgets(self) -> str:
        """Which budget the search is at: " (budget 1 of 3)"; "" where it is over, or the study was not given."""
        return f" (budget {self.opened} of {self.budgets})" if self.budgets and not self.over else ""


def counts_of(state: StudyState, study: Study | None = None) -> Counts:
    """The trials of a run by outcome, how many are planned in the budgets opened so far, and whether that is all.

    The search is over where the ledger says so, and where the `study`, if it is given, has no budget beyond.
    """
    planned = sum(budget.trials_total for budget in state.budgets.values())
    outcomes: Counter[str] = Counter(trial.outcome or "unfinished" for trial in state.trials.values())
    opened = len(state.budgets)
    budgets = 0 if study is None else max(opened, len(study.budgets))
    return Counts(planned, outcomes, state.ended and opened >= budgets, opened, budgets)


def best_table(state: StudyState) -> Table | None:
    """The best trial of each budget; None where none has finished."""
    rows = [
        (
            so_far(row.budget, unfinished_budgets(state)),
            row.variant,
            number(row.epochs, trim=True),
            number(row.learning_rate, trim=True),
            loss_of(state.budgets[row.budget].best_loss, state.budgets[row.budget].best_seeds),
            percent(row.heldout_accuracy),
            scientific(row.flops),
            hours(row.core_hours),
        )
        for row in best_rows(state)
    ]
    columns = ("budget", "variant", "epochs", "learning rate", "held-out loss", "accuracy", "FLOPs", "core-hours")
    return Table("Best trial of each budget", columns, tuple(rows), names=2) if rows else None


def hours(core_hours: float) -> str:
    """Core-hours, as precise as they are many."""
    return number(core_hours, 2 if core_hours < 1 else 3)


def budgets_table(state: StudyState) -> Table | None:
    """How the trials of each budget ended, and the core-hours they took with all that is not training."""
    spent: dict[str, list[TrialRow]] = {}
    for row in trial_rows(state):
        spent.setdefault(row.budget, []).append(row)
    rows = []
    for budget in ordered_budgets(state):
        mine = spent.get(budget.label, [])
        outcomes = Counter(row.outcome for row in mine)
        taken = [row.core_hours_total for row in mine if not math.isnan(row.core_hours_total)]
        rows.append(
            (
                budget.label,
                str(budget.trials_total),
                *(str(outcomes[outcome]) for outcome in ("finished", "diverged", "failed")),
                str(budget.trials_total - sum(outcomes[outcome] for outcome in ("finished", "diverged", "failed"))),
                hours(sum(taken)) if taken else MISSING,
            )
        )
    columns = ("budget", "trials", "finished", "diverged", "failed", "to come", "core-hours of search")
    return Table("How the trials of each budget ended", columns, tuple(rows)) if rows else None


def time_table(state: StudyState) -> Table | None:
    """Where the seconds of all trials went; None before any were metered."""
    split = time_split(state)
    if not split.total:
        return None
    parts = [(BUCKETS[bucket], seconds) for bucket, seconds in split.seconds.items() if seconds > 0]
    rows = tuple((what, duration(seconds), percent(seconds / split.total)) for what, seconds in parts)
    caption = f"Goodput {percent(split.goodput)} of {duration(split.total)} in trials"
    return Table(caption, ("spent on", "time", "share"), rows, shares=tuple(s / split.total for _, s in parts))


def foretold_table(state: StudyState) -> Table | None:
    """What was forecast of each closed budget before its first trial, and what came of it; None where nothing was."""
    rows = []
    for budget in ordered_budgets(state):
        if (score := score_of(budget)) is None:
            continue
        rows.append(
            (
                budget.label,
                number(score.predicted),
                f"{number(score.low)} to {number(score.high)}",
                number(score.actual),
                percent_off(score.error),
                "inside" if score.inside else "outside",
                f"{score.variant or MISSING} at {number(score.learning_rate, trim=True)}",
                f"{score.best_variant} at {number(score.best_learning_rate, trim=True)}",
            )
        )
    columns = (
        "budget", "forecast", "interval", "came out as", "error", "of the interval", "recommended", "was best",
    )  # fmt: skip
    return Table("Forecasts made before each budget was searched", columns, tuple(rows)) if rows else None


def fronts_table(data: ParetoFronts) -> Table | None:
    """The Pareto front of every budget that was searched with a second objective; None where none was."""
    rows = [
        (
            front.budget,
            point.variant,
            number(point.epochs, trim=True),
            number(point.learning_rate, trim=True),
            loss_of(point.heldout_loss, point.seeds),
            number(point.cost),
        )
        for front in data.fronts
        for point in front.front
    ]
    columns = ("budget", "variant", "epochs", "learning rate", "held-out loss", data.objective)
    return Table(f"Pareto front of held-out loss and {data.objective}", columns, tuple(rows), names=2) if rows else None


def loss_of(loss: float, seeds: int) -> str:
    """A loss, and of how many seeds it is the mean."""
    return number(loss) + (f" (mean of {seeds} seeds)" if seeds > 1 else "")


def problems_of(state: StudyState) -> Problems:
    """What failed and what diverged, by trial; images that could not be read; sessions of differing code."""
    rows = trial_rows(state)
    failed = [f"{_name(row)}: {_reason(row)}" for row in rows if row.outcome == "failed"]
    diverged = [f"{_name(row)}: {_reason(row)}" for row in rows if row.outcome == "diverged"]
    notes = []
    unreadable = sum(row.skipped_images + row.skipped_heldout_images for row in rows)
    if unreadable:
        notes.append(f"Images that could not be read were left out {unreadable:,} times (by trial in results.csv).")
    if len(state.code_versions) > 1:
        versions = ", ".join(state.code_versions)
        notes.append(f"The sessions of this run differ in code version ({versions}): their numbers may not compare.")
    return Problems(_cut(failed), _cut(diverged), tuple(notes))


def _cut(lines: Sequence[str]) -> tuple[str, ...]:
    more = len(lines) - SHOWN
    return (*lines[:SHOWN], f"and {more:,} more, in results.csv") if more > 1 else tuple(lines)


def _name(row: TrialRow) -> str:
    rate, epochs = number(row.learning_rate, trim=True), number(row.epochs, trim=True)
    return f"{row.variant} at {row.budget}, learning rate {rate}, {epochs} epochs"


def _reason(row: TrialRow) -> str:
    return " ".join(row.reason.split()) or "no reason given"
