"""A law in the terminal: the answer first, then what it rests on."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from search.formats import MISSING, duration, number, percent, scientific
from search.law.fit import HeldOut, Law
from search.law.forecast import BudgetForecast
from search.law.forms import LossForecast
from search.law.numbers import Estimate, Refused
from search.law.optimum import Allocation, AllocationRow, IsoCompute, IsoCurve
from search.law.power import PowerLaw
from search.law.surface import Surface
from search.tables import figures_table
from search.terminal import tell

_RATES_SHOWN = 40


def render_law(
    law: Law,
    console: Console,
    forecasts: Sequence[LossForecast | Refused] = (),
    budgets: Sequence[BudgetForecast] = (),
) -> None:
    """Print a law: forecasts, the form of the loss, the best size and learning rate, what was held out, refusals."""
    for budget in budgets:
        _render_budget(budget, law, console)
    for forecast in forecasts:
        tell(console, _forecast_line(forecast, law))
    if budgets or forecasts:
        console.print()
    _render_forms(law, console)
    _render_surface(law, console)
    _render_iso(law, console)
    _render_rates(law, console)
    if law.held_out is not None:
        _render_held_out(law.held_out, law, console)
    left_out = f"; {law.left_out} more without a loss were left out" if law.left_out else ""
    noise = f"; repeated seeds differ by {percent(law.noise.log_sd)}" if law.noise else "; no seed is repeated"
    tell(
        console,
        f"From {len(law.runs):,} runs of {law.source} in {len(law.budgets)} budgets, told apart {law.grouped}{left_out}"
        f"{noise}. Intervals of {law.confidence:.0%} from {law.bootstraps:,} resamples.",
    )


def interval(found: Estimate | None, digits: int = 3) -> str:
    """ "0.213 (0.204 to 0.223)"."""
    if found is None:
        return MISSING
    low, high = number(found.low, digits), number(found.high, digits)
    return f"{number(found.value, digits)} ({low} to {high})"


def _render_budget(budget: BudgetForecast, law: Law, console: Console) -> None:
    if budget.variant is None:
        console.print(f"[bold]{escape(budget.label)}[/bold]: no variant to recommend", soft_wrap=True)
    else:
        rate = f" at learning rate {number(budget.learning_rate, trim=True)}" if budget.learning_rate else ""
        console.print(
            f"[bold]{escape(budget.label)}: train {escape(budget.variant)} for {number(budget.epochs, trim=True)} "
            f"epochs{rate}[/bold]",
            soft_wrap=True,
            highlight=False,
        )
    loss = budget.loss
    if isinstance(loss, Refused):
        tell(console, f"  held-out loss: not forecast; {loss.reason}")
    else:
        beyond = f", {number(budget.beyond)} x the largest budget searched" if budget.beyond else ""
        tell(console, f"  held-out loss {interval(loss)} at {scientific(budget.flops, 3)} FLOPs{beyond}")
    if budget.learning_rate_estimate is not None:
        tell(console, f"  best learning rate by the trend {interval(budget.learning_rate_estimate)}")
    if budget.optimal_parameters is not None:
        size = f"  best size {_sized(budget.optimal_parameters)} parameters"
        epochs = f", best epochs {interval(budget.optimal_epochs)}" if budget.optimal_epochs else ""
        penalty = (
            "" if budget.size_penalty is None else f"; {budget.variant} loses {percent(budget.size_penalty)} to it"
        )
        tell(console, f"{size}{epochs}{penalty}")
    if budget.core_hours is not None:
        search = (
            f"; the search of its {budget.trials} trials ~{duration(budget.search_seconds)}"
            if budget.search_seconds is not None
            else ""
        )
        tell(console, f"  cost {number(budget.core_hours)} core-hours, ~{duration(budget.seconds)} a trial{search}")
    elif budget.variant is not None:
        tell(console, "  cost unknown: set compute.flops_per_core_second")
    for note in budget.notes:
        tell(console, f"  note: {note}")


def _sized(found: Estimate) -> str:
    return f"{_short(found.value)} ({_short(found.low)} to {_short(found.high)})"


def _short(value: float) -> str:
    """1.2 M; four digits and more only where no unit has a name."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if size <= value < 1e3 * size:
            return f"{number(value / size)} {unit}"
    return scientific(value, 3)


def _forecast_line(forecast: LossForecast | Refused, law: Law) -> str:
    if isinstance(forecast, Refused):
        return f"No forecast: {forecast.reason}"
    return (
        f"At {scientific(forecast.flops, 3)} FLOPs: held-out loss {interval(forecast.loss)} by the {forecast.form} law "
        f"({number(forecast.beyond)} x the largest budget)"
    )


def _render_forms(law: Law, console: Console) -> None:
    chosen = law.chosen
    if isinstance(chosen, Refused):
        tell(console, f"No law: {chosen.reason}")
        return
    tell(console, f"Loss falls with compute as {_formula(chosen)}")
    if isinstance(law.straightness, Refused):
        tell(
            console,
            f"Whether it bends towards a floor cannot be told, and intervals take it for straight: "
            f"{law.straightness.reason}",
        )
    else:
        tell(console, f"Form: {law.straightness.text}; the {law.straightness.chosen} form is used")
    table = figures_table("Loss against compute", ("form",), ("exponent", "floor (nats)", "scatter of loss"))
    for name, form in (("plain", law.plain), ("saturating", law.saturating)):
        if isinstance(form, PowerLaw):
            scatter = percent(form.residual_log_sd)
            table.add_row(name, interval(form.exponent), interval(form.irreducible), scatter)
        else:
            table.add_row(name, "refused", MISSING, MISSING)
    console.print()
    console.print(table)
    console.print()


def _formula(law: PowerLaw) -> str:
    floor = "" if law.irreducible is None else f"{number(law.irreducible.value)} + "
    return (
        f"{floor}{number(law.at_reference.value)} x (C / {scientific(law.reference_flops, 3)} FLOPs)"
        f"^-{interval(law.exponent)}"
    )


def _render_surface(law: Law, console: Console) -> None:
    if isinstance(law.surface, Refused):
        tell(console, f"L(N, D) refused: {law.surface.reason}")
        return
    _surface_lines(law.surface, console)
    if isinstance(law.allocation, Allocation):
        allocation = law.allocation
        tell(
            console,
            f"Compute-optimal by it: size ~ C^{interval(allocation.size_exponent)}, examples ~ "
            f"C^{interval(allocation.examples_exponent)}",
        )
        console.print()
        console.print(_rows_table(allocation.rows))
        console.print()
    else:
        tell(console, f"No compute-optimal size: {law.allocation.reason}")


def _surface_lines(surface: Surface, console: Console) -> None:
    tell(
        console,
        f"L(N, D) = {interval(surface.irreducible)} + A N^-{interval(surface.size_exponent)} + "
        f"B D^-{interval(surface.examples_exponent)} on {len(surface.cells)} cells, which lie "
        f"{percent(surface.residual_log_sd)} around it",
    )
    k = surface.flops_per_parameter_example
    spread = f"{number(surface.flops_per_parameter_example_low)} to {number(surface.flops_per_parameter_example_high)}"
    tell(console, f"Training takes {number(k)} FLOPs for each parameter and example ({spread}; 6 in a transformer)")


def _rows_table(rows: Sequence[AllocationRow]) -> Table:
    table = figures_table("Best split of compute", ("FLOPs",), ("parameters", "examples", "epochs"))
    for row in rows:
        table.add_row(scientific(row.flops, 3), _sized(row.parameters), _sized(row.examples), interval(row.epochs))
    return table


def _render_iso(law: Law, console: Console) -> None:
    found = law.iso_compute
    if not isinstance(found, IsoCompute):
        tell(console, f"Iso-compute curves refused: {found.reason}")
        return
    for what, exponent in (("size", found.size_exponent), ("examples", found.examples_exponent)):
        if isinstance(exponent, Refused):
            tell(console, f"Iso-compute curves: no exponent of {what}: {exponent.reason}")
        else:
            tell(console, f"Iso-compute curves: best {what} ~ C^{interval(exponent)}")
    table = figures_table("Iso-compute curves", ("budget",), ("sizes", "best size", "loss there"))
    for curve in found.curves:
        if isinstance(curve.minimum, Refused):
            table.add_row(escape(curve.budget), str(len(curve.parameters)), _bound(curve), number(min(curve.losses)))
        else:
            best, loss = _sized(curve.minimum.parameters), number(curve.minimum.loss)
            table.add_row(escape(curve.budget), str(len(curve.parameters)), best, loss)
    console.print()
    console.print(table)
    console.print()


def _bound(curve: IsoCurve) -> str:
    """What can be said of the best size where no parabola tells it."""
    lowest = curve.losses.index(min(curve.losses))
    if len(curve.losses) > 1 and lowest in (0, len(curve.losses) - 1):
        return f"{'at most' if lowest == 0 else 'at least'} {_short(curve.parameters[lowest])}"
    return "refused"


def _render_rates(law: Law, console: Console) -> None:
    trend = law.rate_trend
    if isinstance(trend, Refused):
        tell(console, f"No trend of the learning rate: {trend.reason}")
    else:
        parts = [f"best learning rate {interval(trend.at_reference)}"]
        if trend.size_exponent is not None:
            name = "parameters" if trend.size == "parameters" else "FLOPs per example"
            parts.append(f"x ({name} / {number(trend.reference_size)})^-{interval(trend.size_exponent)}")
        if trend.duration_exponent is not None:
            name = f"{trend.duration} / {number(trend.reference_duration)}"
            parts.append(f"x ({name})^-{interval(trend.duration_exponent)}")
        tell(console, f"Learning rate: {' '.join(parts)}, from {trend.cells} cells")
    if not law.learning_rates:
        return
    headings = ("epochs", "best of the grid", "optimum")
    table = figures_table("Best learning rates", ("budget", "variant"), headings)
    for each in law.learning_rates[:_RATES_SHOWN]:
        optimum = interval(each.optimum) if each.optimum is not None else f"{each.bound} {number(each.best, trim=True)}"
        name = escape(each.variant or (MISSING if each.parameters is None else f"{each.parameters:.3g}"))
        epochs, best = number(each.epochs, trim=True), number(each.best, trim=True)
        table.add_row(escape(each.budget), name, epochs, best, optimum)
    console.print()
    console.print(table)
    if len(law.learning_rates) > _RATES_SHOWN:
        tell(console, f"and {len(law.learning_rates) - _RATES_SHOWN:,} more cells, with --json")
    console.print()


def _render_held_out(held_out: HeldOut | Refused, law: Law, console: Console) -> None:
    if isinstance(held_out, Refused):
        tell(console, f"Held out: not predicted; {held_out.reason}")
        return
    title = f"Held out, and predicted from the smaller budgets by the {held_out.form} law"
    table = figures_table(title, ("budget",), ("loss", "predicted", "error", "in the interval"))
    for row in held_out.rows:
        inside = "yes" if row.inside else "no"
        error = f"{100 * row.error:+.1f} %"
        table.add_row(escape(row.label), number(row.loss), interval(row.predicted), error, inside)
    console.print(table)
    console.print()
