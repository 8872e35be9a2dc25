"""What a report says of the law: its coefficients with their intervals, and how far it can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from search.figures.trials import between, percent_of, size
from search.formats import number, scientific
from search.law import Estimate, HeldOut, Law, Refused
from search.report.answer import interval, sentence
from search.report.tables import Table


@dataclass(frozen=True, slots=True)
class Fitted:
    """Sentences about the law, its coefficients, its compute-optimal sizes, and what it refuses to say."""

    sentences: tuple[str, ...]
    coefficients: Table | None
    optimal: Table | None
    refusals: tuple[tuple[str, str], ...]


def fitted_of(law: Law) -> Fitted:
    """What to say of a law."""
    return Fitted(
        sentences=_sentences(law),
        coefficients=_coefficients(law),
        optimal=_optimal(law),
        refusals=_refusals(law),
    )


def _sentences(law: Law) -> tuple[str, ...]:
    sentences = []
    chosen = law.chosen
    if not isinstance(chosen, Refused):
        formula = "L = A / C^α" if chosen.form == "plain" else "L = E + A / C^α"
        exponent = chosen.exponent
        times = 2**-exponent.value
        sentences.append(
            f"Held-out loss L falls with training compute C as {formula}, with α = {number(exponent.value)} "
            f"({interval(exponent)}): twice the compute leaves {number(100 * times)} % of the loss"
            + (" that can be reduced." if chosen.form != "plain" else ".")
        )
    if not isinstance(law.straightness, Refused):
        sentences.append(sentence(law.straightness.text))
    if not isinstance(law.allocation, Refused):
        a, b = law.allocation.size_exponent, law.allocation.examples_exponent
        sentences.append(
            f"The best model size grows as C^{number(a.value, 2)} ({interval(a, 2)}) and the examples seen as "
            f"C^{number(b.value, 2)} ({interval(b, 2)})."
        )
    if isinstance(law.held_out, HeldOut):
        for row in law.held_out.rows:
            inside = "inside" if row.inside else "outside"
            sentences.append(
                f"Told from the smaller budgets alone, the loss at {row.label} would have been "
                f"{number(row.predicted.value)}; it came out as {number(row.loss)}: an error of "
                f"{number(100 * abs(row.error), 2)} %, {inside} the interval."
            )
    return tuple(sentences)


def _row(what: str, estimate: Estimate | None) -> list[tuple[str, ...]]:
    return [] if estimate is None else [(what, number(estimate.value), interval(estimate))]


def _coefficients(law: Law) -> Table | None:
    rows: list[tuple[str, ...]] = []
    chosen, surface, trend = law.chosen, law.surface, law.rate_trend
    if not isinstance(chosen, Refused):
        rows += _row("exponent α of compute", chosen.exponent)
        what = "loss" if chosen.irreducible is None else "loss above E"
        rows += _row(f"{what} at {scientific(chosen.reference_flops)} FLOPs", chosen.at_reference)
        rows += _row("irreducible loss E", chosen.irreducible)
    if not isinstance(surface, Refused):
        rows += _row("by size and examples: exponent of parameters", surface.size_exponent)
        rows += _row("by size and examples: exponent of examples", surface.examples_exponent)
        rows += _row("by size and examples: irreducible loss", surface.irreducible)
    if not isinstance(law.allocation, Refused):
        rows += _row("best parameters against compute: exponent", law.allocation.size_exponent)
        rows += _row("best examples against compute: exponent", law.allocation.examples_exponent)
    if not isinstance(law.iso_compute, Refused):
        for what, found in (("parameters", law.iso_compute.size_exponent),
                            ("examples", law.iso_compute.examples_exponent)):  # fmt: skip
            if not isinstance(found, Refused):
                rows += _row(f"best {what} against compute, by parabolas: exponent", found)
    if not isinstance(trend, Refused):
        by = {None: "", "parameters": "parameters", "flops_per_example": "FLOPs per example"}[trend.size]
        rows += _row(f"best learning rate falls with {by}: exponent", trend.size_exponent)
        rows += _row(f"best learning rate falls with {trend.duration}: exponent", trend.duration_exponent)
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
    return tuple((what, reason) for reason, what in said.items())
