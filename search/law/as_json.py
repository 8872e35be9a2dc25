"""A law as one JSON object: every number plain, every interval `{"value", "low", "high"}`, every part that the runs do
not allow `{"refused": "why"}`, what is not known null.

    source, runs, left_out      where the runs are from, how many, and how many more had no loss
    confidence, bootstraps, seed
    grouped                     how budgets were told apart
    unfinished_budgets              of a study: the budgets that are not closed; but for the first before any
                                is, they are not counted
    budgets                     [{label, flops, loss, runs, seeds, variant, parameters, examples, epochs,
                                learning_rate}]: the best run of each, rising
    noise                       {log_sd, degrees} of repeated seeds, or null
    plain                       L = A C^-alpha: {form, exponent, coefficient (at one FLOP), reference_flops,
                                at_reference, irreducible (null), residual_log_sd, degrees, residuals, weights}: ln L
                                above the law, and each budget's weight in the fit, by budget
    saturating                  L = E + A C^-alpha: the same, irreducible the floor E
    straightness                {p_value, statistic, chosen, text}
    compared                    cells that the next three compare: {cells, left_out, corrected, text}
    surface                     L = E + A N^-alpha + B D^-beta: {irreducible, size_coefficient, size_exponent,
                                examples_coefficient, examples_exponent (coefficients are at one parameter and one
                                example), reference_parameters, reference_examples, flops_per_parameter_example (k in
                                C = k N D; _low, _high), examples_per_epoch, residual_log_sd, residuals, cells}
    compute_optimal             by the surface: {size_exponent, examples_exponent, rows: [{flops, parameters, examples,
                                epochs}]} at the budgets and forecasts
    iso_compute                 by parabolas: {size_exponent, examples_exponent, epochs_exponent, curves: [{budget,
                                flops, parameters, losses, variants, minimum: {parameters, examples, epochs, loss}}]}
    learning_rates              [{budget, variant, flops, parameters, examples, epochs, tried: [[rate, loss]], best,
                                optimum, bound}]
    learning_rate_trend         {size, size_exponent, duration, duration_exponent, at_reference, reference_size,
                                reference_duration, cells, residual_log_sd}
    held_out                    {rows: [{label, flops, loss, predicted, error, inside}]}, or null
    forecasts                   [{flops, loss (interval of the best run), law (interval of the law), beyond, note}],
                                averaged over forms
    next_budgets                of a study: see `search.law.forecast.BudgetForecast`
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from search.law.fit import Law
from search.law.forms import LossForecast
from search.law.numbers import Refused
from search.law.optimum import Allocation
from search.law.surface import Surface

if TYPE_CHECKING:
    from search.law.forecast import BudgetForecast


def law_as_json(
    law: Law,
    forecasts: Sequence[LossForecast | Refused] = (),
    budgets: Sequence[BudgetForecast] = (),
    unfinished_budgets: Sequence[str] = (),
) -> dict[str, Any]:
    """The law, forecasts made with it, and the budgets that are still searched, as JSON values."""
    optimal: Any = law.allocation
    if isinstance(law.allocation, Allocation):
        beyond = [law.allocation.at(each.flops) for each in forecasts if isinstance(each, LossForecast)]
        optimal = {
            "size_exponent": law.allocation.size_exponent,
            "examples_exponent": law.allocation.examples_exponent,
            "rows": [*law.allocation.rows, *beyond],
        }
    found = {
        "source": law.source,
        "runs": len(law.runs),
        "left_out": law.left_out,
        "confidence": law.confidence,
        "bootstraps": law.bootstraps,
        "seed": law.seed,
        "grouped": law.grouped,
        "unfinished_budgets": unfinished_budgets,
        "budgets": [
            {
                "label": budget.label,
                "flops": budget.flops,
                "loss": budget.loss,
                "runs": len(budget.runs),
                "seeds": budget.seeds,
                **{
                    name: getattr(budget.best, name)
                    for name in ("variant", "parameters", "examples", "epochs", "learning_rate")
                },
            }
            for budget in law.budgets
        ],
        "noise": law.noise,
        "plain": law.plain,
        "saturating": law.saturating,
        "straightness": law.straightness,
        "compared": {
            "cells": len(law.tuning.cells),
            "left_out": len(law.tuning.left_out),
            "corrected": law.tuning.corrected,
            "text": law.tuning.text,
        },
        "surface": _surface(law.surface),
        "compute_optimal": optimal,
        "iso_compute": law.iso_compute,
        "learning_rates": law.learning_rates,
        "learning_rate_trend": law.rate_trend,
        "held_out": law.held_out,
        "forecasts": forecasts,
        "next_budgets": budgets,
    }
    values: dict[str, Any] = plain_values(found)
    return values


def _surface(surface: Surface | Refused) -> Any:
    if isinstance(surface, Refused):
        return surface
    return {**plain_values(surface), "cells": len(surface.cells), "residuals": surface.residuals}


def plain_values(value: Any) -> Any:
    """JSON values of dataclasses and what is in them; a field that is not shown (`repr=False`) is left out, and so is
    what a number cannot be: NaN and infinities become null.
    """
    if isinstance(value, Refused):
        return {"refused": value.reason}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain_values(getattr(value, field.name)) for field in dataclasses.fields(value) if field.repr
        }
    if isinstance(value, Mapping):
        return {str(name): plain_values(each) for name, each in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain_values(each) for each in value]
    if isinstance(value, (bool, str, int)) or value is None:
        return value
    number = float(value)
    return number if math.isfinite(number) else None
