"""What a report says of the law: its coefficients with their intervals, and how far it can be trusted."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from search.figures.trials import between, percent_of, size
from search.formats import MISSING, number, scientific
from search.law import Estimate, HeldOut, Law, Refused, Straightness
from search.law.forecast import BudgetForecast, unsure
from search.law.power import STEEPEST
from search.law.surface import SHALLOWEST
from search.report.answer import interval, sentence
from search.report.tables import Table

_EXPONENTS: Final = (SHALLOWEST, STEEPEST)  # the fit of L(N, D) looks for no others
_SHARES: Final = (1e-3, 1 - 1e-3)  # of exponents that add up to one
_FLOOR: Final = (0.0, math.inf)
_AT: Final = 1e-3  # of a bound


@dataclass(frozen=True, slots=True)
class Fitted:
    """Sentences about the law, its coefficients, its compute-optimal sizes, and what it refuses to say."""

    sentences: tuple[str, ...]
    coefficients: Table | None
    optimal: Table | None
    refusals: tuple[tuple[str, str], ...]


def fitted_of(law: Law, forecasts: Sequence[BudgetForecast] = (), foretold: Collection[str] = ()) -> Fitted:
    """What to say of a law, and of how the `forecasts` follow from it. `foretold` are the budgets whose forecasts, made
    before they were searched, are told beside: those need not be told anew from the smaller ones.
    """
    return Fitted(
        sentences=(*_sentences(law, foretold), *_of_forecasts(law, forecasts), *_left_out(law)),
        coefficients=_coefficients(law),
        optimal=_optimal(law),
        refusals=_refusals(law),
    )


def _sentences(law: Law, foretold: Collection[str]) -> tuple[str, ...]:
    sentences = []
    chosen = law.chosen
    if not isinstance(chosen, Refused):
        formula = "L = A / C^α" if chosen.form == "plain" else "L = E + A / C^α"
        exponent = chosen.exponent
        times, goes = 2**-exponent.value, "goes" if unsure(law) else "falls"
        sentences.append(
            f"Held-out loss L {goes} with training compute C as {formula}, with α = {number(exponent.value)} "
            f"({interval(exponent)}): twice the compute leaves {number(100 * times)} % of the loss"
            + (" that can be reduced." if chosen.form != "plain" else ".")
        )
    if not isinstance(law.straightness, Refused):
        sentences.append(_of_straightness(law, law.straightness))
    if not isinstance(law.allocation, Refused):
        a, b = law.allocation.size_exponent, law.allocation.examples_exponent
        sentences.append(
            f"The best model size grows as C^{number(a.value, 2)} ({interval(a, 2)}) and the examples seen as "
            f"C^{number(b.value, 2)} ({interval(b, 2)})."
        )
    if isinstance(law.held_out, HeldOut):
        for row in (row for row in law.held_out.rows if row.label not in foretold):
            inside = "inside" if row.inside else "outside"
            sentences.append(
                f"Told from the smaller budgets alone, the loss at {row.label} would have been "
                f"{number(row.predicted.value)}; it came out as {number(row.loss)}, so that was "
                f"{number(100 * abs(row.error), 2)} % too {'high' if row.error > 0 else 'low'}, {inside} the interval "
                f"{interval(row.predicted)}."
            )
    return tuple(sentences)


def _of_straightness(law: Law, found: Straightness) -> str:
    """The test between the forms; where it finds nothing, what so few budgets could not have shown."""
    if found.chosen == "saturating":
        return sentence(found.text)
    said = f"Nothing speaks against a straight line (p = {found.p_value:.2g})"
    floor = None if isinstance(law.saturating, Refused) else law.saturating.irreducible
    many = len(law.budgets)
    if floor is None or not 0 < floor.high < min(budget.loss for budget in law.budgets):
        return f"{said}, but {many} budgets decide little: any floor below the losses seen may be there."
    return f"{said}, but {many} budgets cannot show a floor below {number(floor.high)}."


def _of_forecasts(law: Law, forecasts: Sequence[BudgetForecast]) -> tuple[str, ...]:
    """Why a forecast is not what the formula gives."""
    ahead = next((each for each in forecasts if not isinstance(each.loss, Refused)), None)
    if isinstance(law.chosen, Refused):
        return ()
    averaged = "Forecasts average over the floors that the data allow"
    if ahead is None or isinstance(ahead.loss, Refused):
        return (f"{averaged}, and not over one form alone.",)
    alone = law.chosen.loss(ahead.flops)
    line = "straight line's" if law.chosen.form == "plain" else "formula's"
    side = "above" if ahead.loss.value >= alone else "below"
    return (
        f"{averaged}, so that of {ahead.label}, {number(ahead.loss.value)}, lies {side} the {line} {number(alone)}.",
    )


def _left_out(law: Law) -> tuple[str, ...]:
    """What the law was not fitted to."""
    sentences = []
    if law.tuning.text:
        sentences.append(sentence(f"of what is compared by size and examples, {law.tuning.text}"))
    if count := law.tuning.corrected:
        losses = "the loss of one cell is" if count == 1 else f"the losses of {count} cells are"
        sentences.append(
            f"Of those compared, {losses} brought down by what a learning rate more than half a step off has cost, by "
            "the valley of all cells."
        )
    if count := law.left_out:
        sentences.append(
            "One run without a loss was left out." if count == 1 else f"{count} runs without a loss were left out."
        )
    return tuple(sentences)


@dataclass(frozen=True, slots=True)
class _Coefficient:
    """A coefficient by name, and the least and the most that its fit allows it."""

    what: str
    found: Estimate
    bounds: tuple[float, float] = (-math.inf, math.inf)

    @property
    def determined(self) -> bool:
        """Whether neither the value nor an end of its interval is a bound of the fit."""
        low, high = (math.nan if math.isinf(end) else end for end in self.bounds)  # nothing is beyond NaN
        at_low, at_high = self.found.low <= low + _AT * abs(low), self.found.high >= high - _AT * abs(high)
        return not (at_low or at_high)


def _all_coefficients(law: Law) -> list[_Coefficient]:
    found: list[tuple[str, Estimate | None, tuple[float, float]]] = []
    free = (-math.inf, math.inf)
    chosen, surface, trend = law.chosen, law.surface, law.rate_trend
    if not isinstance(chosen, Refused):
        found.append(("exponent α of compute", chosen.exponent, free if chosen.form == "plain" else (0.0, STEEPEST)))
        what = "loss" if chosen.irreducible is None else "loss above E"
        found.append((f"{what} at {scientific(chosen.reference_flops)} FLOPs", chosen.at_reference, free))
        found.append(("irreducible loss E", chosen.irreducible, _FLOOR))
    if not isinstance(surface, Refused):
        by = "by size and examples: "
        found.append((f"{by}exponent of parameters", surface.size_exponent, _EXPONENTS))
        found.append((f"{by}exponent of examples", surface.examples_exponent, _EXPONENTS))
        found.append((f"{by}irreducible loss", surface.irreducible, _FLOOR))
    if not isinstance(law.allocation, Refused):
        found.append(("best parameters against compute: exponent", law.allocation.size_exponent, _SHARES))
        found.append(("best examples against compute: exponent", law.allocation.examples_exponent, _SHARES))
    if not isinstance(law.iso_compute, Refused):
        for what, exponent in (("parameters", law.iso_compute.size_exponent),
                               ("examples", law.iso_compute.examples_exponent)):  # fmt: skip
            if not isinstance(exponent, Refused):
                found.append((f"best {what} against compute, by parabolas: exponent", exponent, free))
    if not isinstance(trend, Refused):
        size_by = {None: "", "parameters": "parameters", "flops_per_example": "FLOPs per example"}[trend.size]
        found.append((f"best learning rate falls with {size_by}: exponent", trend.size_exponent, free))
        found.append((f"best learning rate falls with {trend.duration}: exponent", trend.duration_exponent, free))
    return [_Coefficient(what, each, bounds) for what, each, bounds in found if each is not None]


def _coefficients(law: Law) -> Table | None:
    rows = [
        (each.what, number(each.found.value), interval(each.found))
        if each.determined
        else (each.what, "not determined", MISSING)
        for each in _all_coefficients(law)
    ]
    columns = ("what", "value", f"{percent_of(law.confidence)} interval")
    return Table("The law's coefficients", columns, tuple(rows), wrapped=True) if rows else None


def _optimal(law: Law) -> Table | None:
    if isinstance(law.allocation, Refused) or not law.allocation.rows:
        return None
    rows = [
        (
            f"{scientific(row.flops)}",
            f"{size(row.parameters.value)} ({between(row.parameters.low, row.parameters.high, size)})",
            f"{size(row.examples.value)} ({between(row.examples.low, row.examples.high, size)})",
            "-" if row.epochs is None else f"{number(row.epochs.value, 2)} ({interval(row.epochs, 2)})",
        )
        for row in law.allocation.rows
    ]
    return Table("Best size and examples by compute", ("FLOPs", "parameters", "examples seen", "epochs"), tuple(rows))


def _refusals(law: Law) -> tuple[tuple[str, str], ...]:
    """(what is not said, why), the same reason once."""
    asked: list[tuple[str, Any]] = [
        ("Loss by compute", law.chosen),
        ("Loss by size and examples", law.surface),
        ("Best size by compute", law.allocation),
        ("Best size by parabolas", law.iso_compute),
        ("Learning-rate trend", law.rate_trend),
        ("Prediction of a budget left out", law.held_out),
    ]
    said: dict[str, str] = {}
    for what, found in asked:
        if isinstance(found, Refused):
            said[found.reason] = f"{said[found.reason]}; {what.lower()}" if found.reason in said else what
    loose = [each.what for each in _all_coefficients(law) if not each.determined]
    why = "the fit reaches a bound of what it may be, so these runs do not determine it"
    return (*((what, reason) for reason, what in said.items()), *((sentence(what)[:-1], why) for what in loose))
