"""The command `convscale law`: the law of a CSV of runs, or of a study's newest run, and forecasts by it."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from search.law import Law, LawError, RunTable, fit_law, read_csv, runs_of_state
from search.law.as_json import law_as_json
from search.law.forecast import BudgetForecast, Speed, forecast_budget, next_budgets, speed_of_state
from search.law.grouping import budgets_of
from search.law.report_text import render_law
from search.ledger import Record
from search.state import StudyState
from search.study import Study
from search.terminal import tell
from search.units import Quantity, parse_quantity

_MOST_FLOPS = 1e60
_FEWEST_BUDGETS = 3  # that a law can be fitted to


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
    """Fit the law of a CSV (a path that ends in .csv) or of a study's newest run, and print it.

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
    nexts: list[BudgetForecast] = []
    if path.suffix.casefold() == ".csv":
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
        law = _fit(runs_of_state(state, str(path)), leave_out, bootstraps, seed, confidence)
        nexts = study_forecasts(study, records, law, asked)
    found = [law.forecast(flops) for flops in forecasts]
    if as_json:
        sys.stdout.write(json.dumps(law_as_json(law, found, nexts), allow_nan=False) + "\n")
        return
    render_law(law, console, found, nexts)
    if nexts:
        tell(console, f"Figures and a page to keep: convscale report {path}")


def study_forecasts(
    study: Study, records: Sequence[Record], law: Law, asked: Sequence[Quantity] = ()
) -> list[BudgetForecast]:
    """Forecasts of amounts, or else of the budgets that come next, of a study by its newest run's ledger.

    Raises:
        LawError: core-hours of a device whose speed is not known.
    """
    from search.budgets import amounts_in_flops
    from search.rates import core_hour_rates

    state = StudyState.of(records)
    train_examples, classes = int(state.opened["train_examples"]), int(state.opened["classes"])
    speed = speed_of_study(study, records)
    by_device = core_hour_rates(study, classes, state.opened)
    if asked:
        rates = list(speed.flops_per_core_second.values())
        rate = study.compute.flops_per_core_second or (sum(rates) / len(rates) if rates else None)
        amounts = [_in_flops(study, quantity, quantity.flops(rate, by_device)) for quantity in asked]
    else:
        amounts = next_budgets(study, state, amounts_in_flops(study, by_device))
    return [
        forecast_budget(law, study, amount, train_examples=train_examples, classes=classes, speed=speed)
        for amount in amounts
    ]


def speed_of_study(study: Study, records: Sequence[Record]) -> Speed:
    """How fast the study's compute trains its variants: as its newest run measured, where that trained on the same
    device, or else as a plan would have it.
    """
    from search.commands import has_rates_of
    from search.devices import device_here, metered_cores
    from search.programs import load_programs
    from search.rates import rates_on_tpu

    state, device = StudyState.of(records), device_here(study)
    here = state if has_rates_of(study, records, device) else StudyState()
    speed = speed_of_state(study, here, metered_cores(study, device))
    if device != "tpu":
        return speed
    from dataclasses import replace

    from search.results import measured_rates

    known = rates_on_tpu(study, load_programs(study), int(state.opened["classes"]), measured_rates(here))
    return replace(
        speed, flops_per_core_second={variant: rate.flops_per_core_second for variant, rate in known.items()}
    )


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
