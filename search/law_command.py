"""The command `convscale law`: the law of a CSV of runs, or of a study's newest run, and forecasts by it."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import harmonic_mean

from rich.console import Console

from search.budgets import Budget, amounts_in_flops
from search.foretold import counted_only, of_unfinished, unfinished_budgets
from search.formats import number
from search.law import Law, LawError, RunTable, fit_law, read_csv, runs_of_state
from search.law.as_json import law_as_json
from search.law.forecast import BudgetForecast, forecast_budget, in_core_hours, next_budgets
from search.law.grouping import budgets_of
from search.law.report_text import render_law
from search.ledger import Record
from search.rates import core_hour_rates
from search.resume import as_begun
from search.speed import speed_of_study
from search.state import StudyState
from search.study import Study
from search.terminal import tell
from search.units import Quantity, parse_quantity

_MOST_FLOPS = 1e60
_MOST_BOOTSTRAPS = 100_000  # so that they fit into memory
_FEWEST_BUDGETS = 3  # that a law can be fitted to
_CLOSE = 0.1  # of the core-hours asked for, within which the cost is as good as they


def show_law(
    path: Path,
    console: Console,
    *,
    forecasts: Sequence[float] = (),
    budgets: Sequence[str] = (),
    leave_out: int = 0,
    bootstraps: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    as_json: bool = False,
) -> None:
    """Fit the law of a CSV (a path that ends in .csv or .tsv) or of a study's newest run, and print it.

    Args:
        path: the CSV, or the study file.
        console: where to.
        forecasts: FLOPs to forecast the loss at.
        budgets: amounts to say what to train with, of a study; none given are those that come next.
        leave_out: how many of the largest budgets to predict from the others.
        bootstraps, seed, confidence: see `search.law.fit_law`.
        as_json: print one JSON object, and nothing else.

    Raises:
        LawError, StudyError, SessionError: what cannot be read or asked, in one line.
    """
    for flops in forecasts:
        if not (0 < flops <= _MOST_FLOPS):
            raise LawError(
                f"--forecast: {flops:g} given; allowed: FLOPs above 0 and up to {_MOST_FLOPS:g}, such as 1e21"
            )
    if bootstraps > _MOST_BOOTSTRAPS:
        raise LawError(f"--bootstraps: {bootstraps} given; allowed: up to {_MOST_BOOTSTRAPS}; the default is 1000")
    nexts: list[BudgetForecast] = []
    state = StudyState()
    if path.suffix.casefold() in (".csv", ".tsv"):
        if budgets:
            raise LawError(
                f"--budget: {budgets[0]!r} given for {path}; allowed: with a study, which knows its variants; "
                "use --forecast and FLOPs for a CSV"
            )
        law = _fit(read_csv(path), leave_out, bootstraps, seed, confidence)
    else:
        study, records = _newest_run(path)
        state = StudyState.of(records)
        asked = [_quantity(text) for text in budgets]
        law = _fit(counted_runs(state, str(path)), leave_out, bootstraps, seed, confidence)
        nexts = study_forecasts(study, records, law, asked)
    found = [law.forecast(flops) for flops in forecasts]
    if as_json:
        sys.stdout.write(json.dumps(law_as_json(law, found, nexts, unfinished_budgets(state)), allow_nan=False) + "\n")
        return
    render_law(law, console, found, nexts)
    if line := of_unfinished(state):
        tell(console, f"Note: {line}")
    if nexts:
        tell(console, f"Figures and a page to keep: convscale report {path}")


def counted_runs(state: StudyState, source: str = "study") -> RunTable:
    """The runs that a study's law is fitted to, see `search.foretold.counted_only`."""
    return runs_of_state(counted_only(state), source)


def study_forecasts(
    study: Study, records: Sequence[Record], law: Law, asked: Sequence[Quantity] = ()
) -> list[BudgetForecast]:
    """Forecasts of amounts, or else of the budgets that come next, of a study by its newest run's ledger.

    Raises:
        LawError: core-hours of a device whose speed is not known.
    """
    study, _ = as_begun(study, records)
    state = StudyState.of(records)
    train_examples, classes = int(state.opened["train_examples"]), int(state.opened["classes"])
    speed = speed_of_study(study, records)
    by_device = core_hour_rates(study, classes, state.opened)

    def foretold(budget: Budget | Quantity, variant: str | None = None) -> BudgetForecast:
        found = forecast_budget(
            law, study, budget, train_examples=train_examples, classes=classes, speed=speed, variant=variant
        )
        return replace(found, notes=(*found.notes, *_off_core_hours(study, found)))

    def of_asked(quantity: Quantity) -> BudgetForecast:
        given, rates = study.compute.flops_per_core_second, list(speed.flops_per_core_second.values())
        if quantity.unit == "core-hours" and quantity.device is None and given is None:
            if bought := in_core_hours(law, study, quantity, speed, train_examples, classes):
                return foretold(*bought)
            given = harmonic_mean(rates) if rates else None
        return foretold(_in_flops(study, quantity, quantity.flops(given, by_device)))

    if asked:
        return [of_asked(quantity) for quantity in asked]
    return [foretold(quantity) for quantity in next_budgets(study, state, amounts_in_flops(study, by_device))]


def _off_core_hours(study: Study, found: BudgetForecast) -> list[str]:
    """A line where an amount of core-hours of the study's own device is not about what the recommended run costs."""
    asked = parse_quantity(found.label)
    own = asked.device is None or study.compute.device == "tpu"
    if asked.unit != "core-hours" or not own or found.core_hours is None:
        return []
    if abs(found.core_hours / asked.amount - 1) <= _CLOSE:
        return []
    return [
        f"a run of {found.variant} costs {number(found.core_hours)} core-hours, not {number(asked.amount, trim=True)}: "
        "core-hours become FLOPs at one rate for all variants, or whole steps and grids of epochs do not meet them"
    ]


def _fit(table: RunTable, leave_out: int, bootstraps: int, seed: int, confidence: float) -> Law:
    count = len(budgets_of(table.runs)[0])
    most = max(0, count - _FEWEST_BUDGETS)
    if leave_out > most:
        there = f"{count} budget{'' if count == 1 else 's'}"
        raise LawError(
            f"--leave-out: {leave_out} given; allowed: {f'up to {most}' if most else 'none'}, for {table.source} has "
            f"{there}, and a law needs {_FEWEST_BUDGETS} of them"
        )
    return fit_law(table, bootstraps=bootstraps, seed=seed, confidence=confidence, leave_out=leave_out)


def _quantity(text: str) -> Quantity:
    """An amount as the study's budgets have it; core-hours in thousands may be written "110k core-hours"."""
    thousands = re.fullmatch(r"\s*([0-9.]+)\s*k\s+(.*core.*)", text, re.IGNORECASE | re.DOTALL)
    written = text
    if thousands and thousands[1].count(".") <= 1 and thousands[1] != ".":
        written = f"{float(thousands[1]) * 1000:.15g} {thousands[2]}"
    try:
        return parse_quantity(written)
    except ValueError as error:
        raise LawError(f"--budget: {text!r} given; {error}") from None


def _in_flops(study: Study, quantity: Quantity, flops: float | None) -> Quantity:
    if flops is None or not math.isfinite(flops):
        raise LawError(
            f"--budget: {quantity.label} given, but not the FLOPs a core does in a second; set "
            f"compute.flops_per_core_second in {study.source}, or give FLOPs"
        )
    return Quantity(quantity.label, flops, "FLOPs")


def _newest_run(path: Path) -> tuple[Study, list[Record]]:
    from search.runs import SessionError, newest_begun
    from search.study import load_study

    study = load_study(path)
    begun = newest_begun(study)
    if begun is None:
        raise SessionError(
            f"{path}: no run of {study.name} in {study.storage_url}; start one with: convscale search {path}"
        )
    return study, begun[1]
