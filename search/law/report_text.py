"""A law in the terminal: the answer first, then what it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from search.formats import MISSING, duration, number, percent, percent_off, scientific
from search.law.fit import HeldOut, Law
from search.law.forecast import BudgetForecast, unsure
from search.law.forms import LossForecast
from search.law.learning_rates import RateOptimum
from search.law.numbers import Estimate, Refused
from search.law.optimum import SIZES_NEEDED, Allocation, AllocationRow, IsoCompute, IsoCurve
from search.law.power import PowerLaw
from search.law.surface import Surface
from search.tables import figures_table

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
        _say(console, _forecast_line(forecast, law))
    if (budgets or forecasts) and (line := unsure(law)):
        _say(console, f"Note: {line}")
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
    if (unnamed := sum(run.budget is None for run in law.runs)) and unnamed < len(law.runs):
        have = "has" if unnamed == 1 else "have"
        _say(
            console,
            f"Note: {unnamed:,} of {len(law.runs):,} runs {have} no budget, so the names of the others are not used",
        )
    _say(
        console,
        f"From {len(law.runs):,} runs of {law.source} in {len(law.budgets)} budgets, told apart {law.grouped}{left_out}"
        f"{noise}. Intervals of {law.confidence:.0%} from {law.bootstraps:,} resamples.",
    )


def _say(console: Console, text: str) -> None:
    """Print a paragraph as it is, markup or not, wrapped to the console; what follows its first line is indented."""
    indent = " " * (len(text) - len(text.lstrip()))
    lines = wrap(text, console.width, subsequent_indent=f"{indent}  ", break_long_words=False, break_on_hyphens=False)
    console.print(Text("\n".join(lines)), soft_wrap=True)


def interval(found: Estimate | None) -> str:
    """ "0.213 (0.204 to 0.223)": two digits where the interval is wide, up to four where it is narrow."""
    if found is None:
        return MISSING
    digits = _digits(found)
    return f"{number(found.value, digits)} ({number(found.low, digits)} to {number(found.high, digits)})"


def _digits(found: Estimate) -> int:
    wide = (found.high - found.low) / 2 / abs(found.value) if found.value else 1.0
    return 2 if wide > 0.3 else 3 if wide > 0.003 else 4


def _to_minus(exponent: Estimate) -> str:
    """An exponent b as x^-b has it: "^-0.21 (-0.32 to -0.10)"."""
    return f"^{interval(Estimate(-exponent.value, -exponent.high, -exponent.low))}"


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
        _say(console, f"  held-out loss: not forecast; {loss.reason}")
    else:
        beyond = f", {number(budget.beyond)} x the largest budget searched" if budget.beyond else ""
        _say(console, f"  held-out loss {interval(loss)} at {scientific(budget.flops, 3)} FLOPs{beyond}")
    if budget.learning_rate_estimate is not None:
        _say(console, f"  best learning rate by the trend {interval(budget.learning_rate_estimate)}")
    if budget.optimal_parameters is not None:
        size = f"  best size {_sized(budget.optimal_parameters)} parameters"
        epochs = f", best epochs {interval(budget.optimal_epochs)}" if budget.optimal_epochs else ""
        penalty = (
            "" if budget.size_penalty is None else f"; {budget.variant} loses {percent(budget.size_penalty)} to it"
        )
        _say(console, f"{size}{epochs}{penalty}")
    if budget.core_hours is not None:
        trials = f"{'at most ' if budget.at_most else ''}{budget.trials} trials"
        search = "" if budget.search_seconds is None else f"; its search: {trials}, ~{duration(budget.search_seconds)}"
        estimated = " (estimated, not measured)" if budget.cost_estimated else ""
        cost = f"{number(budget.core_hours)} core-hours, ~{duration(budget.seconds)} a trial"
        _say(console, f"  cost {cost}{estimated}{search}")
    elif budget.variant is not None:
        _say(console, "  cost unknown: set compute.flops_per_core_second")
    for note in budget.notes:
        _say(console, f"  note: {note}")


def _sized(found: Estimate) -> str:
    return f"{_short(found.value)} ({_short(found.low)} to {_short(found.high)})"


def _short(value: float) -> str:
    """1.23 M, 45.6; powers of ten where no unit has a name."""
    if 0.01 <= value < 1e3:
        return number(value)
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if size <= value < 1e3 * size:
            return f"{number(value / size)} {unit}"
    return scientific(value, 3)


def _forecast_line(forecast: LossForecast | Refused, law: Law) -> str:
    if isinstance(forecast, Refused):
        return f"No forecast: {forecast.reason}"
    return (
        f"At {scientific(forecast.flops, 3)} FLOPs: held-out loss {interval(forecast.loss)}, "
        f"{number(forecast.beyond)} x the largest budget{f'; {forecast.note}' if forecast.note else ''}"
    )


def _render_forms(law: Law, console: Console) -> None:
    chosen = law.chosen
    if isinstance(chosen, Refused):
        _say(console, f"No law: {chosen.reason}")
        return
    goes = "goes" if unsure(law) else "falls"
    _say(console, f"Loss {goes} with compute as {_formula(chosen)}")
    if isinstance(law.straightness, Refused):
        _say(
            console,
            f"Whether it bends towards a floor cannot be told: {law.straightness.reason}",
        )
    else:
        told = "a law with a floor" if law.straightness.chosen == "saturating" else "a straight line"
        _say(console, f"Form: {law.straightness.text}; it is told as {told}")
    table = figures_table("Loss against compute", ("form",), ("exponent", "floor (nats)", "scatter of loss"))
    for name, form in (("plain", law.plain), ("saturating", law.saturating)):
        if isinstance(form, PowerLaw):
            scatter = percent(form.residual_log_sd)
            table.add_row(name, interval(form.exponent), interval(form.irreducible), scatter)
        else:
            table.add_row(name, "refused", MISSING, MISSING)
    console.print()
    console.print(table)
    if isinstance(law.saturating, PowerLaw) and law.saturating.irreducible and not law.saturating.irreducible.low:
        _say(console, "The floor may be none: then the exponent beside it is less sure than its interval says")
    console.print()


def _formula(law: PowerLaw) -> str:
    floor = "" if law.irreducible is None else f"{number(law.irreducible.value)} + "
    return (
        f"{floor}{number(law.at_reference.value)} x (C / {scientific(law.reference_flops, 3)} FLOPs)"
        f"{_to_minus(law.exponent)}"
    )


def _render_surface(law: Law, console: Console) -> None:
    if law.tuning.text:
        _say(console, f"Comparing cells (a model in a budget): {law.tuning.text}")
    if law.tuning.corrected:
        _say(
            console,
            f"Of those compared, the losses of {law.tuning.corrected} are brought down by what the valley of all cells "
            "says that their learning rate, more than half a step off, has cost",
        )
    if isinstance(law.surface, Refused):
        _say(console, f"L(N, D) refused: {law.surface.reason}")
        return
    _surface_lines(law.surface, console)
    if isinstance(law.allocation, Allocation):
        allocation = law.allocation
        _say(
            console,
            f"Compute-optimal by it: size ~ C^{interval(allocation.size_exponent)}, examples ~ "
            f"C^{interval(allocation.examples_exponent)}",
        )
        console.print()
        console.print(_rows_table(allocation.rows))
        console.print()
    else:
        _say(console, f"No compute-optimal size: {law.allocation.reason}")


def _surface_lines(surface: Surface, console: Console) -> None:
    terms = [interval(surface.irreducible)]
    for name, coefficient, exponent in (
        ("A N", surface.size_coefficient, surface.size_exponent),
        ("B D", surface.examples_coefficient, surface.examples_exponent),
    ):
        if coefficient.value > 0:
            terms.append(f"{name}{_to_minus(exponent)}")
    _say(
        console,
        f"L(N, D) = {' + '.join(terms)} on {len(surface.cells)} cells, which lie "
        f"{percent(surface.residual_log_sd)} around it",
    )
    k = surface.flops_per_parameter_example
    spread = f"{number(surface.flops_per_parameter_example_low)} to {number(surface.flops_per_parameter_example_high)}"
    _say(console, f"Training takes {number(k)} FLOPs for each parameter and example ({spread}; 6 in a transformer)")


def _rows_table(rows: Sequence[AllocationRow]) -> Table:
    table = figures_table("Best split of compute", ("FLOPs",), ("parameters", "examples", "epochs"))
    for row in rows:
        table.add_row(scientific(row.flops, 3), _sized(row.parameters), _sized(row.examples), interval(row.epochs))
    return table


def _render_iso(law: Law, console: Console) -> None:
    found = law.iso_compute
    if not isinstance(found, IsoCompute):
        _say(console, f"Iso-compute curves refused: {found.reason}")
        return
    both: tuple[tuple[str, Estimate | Refused], ...] = (
        ("size", found.size_exponent),
        ("examples", found.examples_exponent),
    )
    if found.size_exponent == found.examples_exponent and isinstance(found.size_exponent, Refused):
        _say(console, f"Iso-compute curves: no exponent of size or examples: {found.size_exponent.reason}")
        both = ()
    for what, exponent in both:
        if isinstance(exponent, Refused):
            _say(console, f"Iso-compute curves: no exponent of {what}: {exponent.reason}")
        else:
            _say(console, f"Iso-compute curves: best {what} ~ C^{interval(exponent)}")
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
    return "too few sizes" if len(curve.losses) < SIZES_NEEDED else "no valley"


def _render_rates(law: Law, console: Console) -> None:
    trend = law.rate_trend
    if isinstance(trend, Refused):
        _say(console, f"No trend of the learning rate: {trend.reason}")
    else:
        parts = [f"best learning rate {interval(trend.at_reference)}"]
        if trend.size_exponent is not None:
            name = "parameters" if trend.size == "parameters" else "FLOPs per example"
            parts.append(f"x ({name} / {_short(trend.reference_size)}){_to_minus(trend.size_exponent)}")
        if trend.duration_exponent is not None:
            name = f"{trend.duration} / {_short(trend.reference_duration)}"
            parts.append(f"x ({name}){_to_minus(trend.duration_exponent)}")
        _say(console, f"Learning rate: {' '.join(parts)}, from {trend.cells} cells")
    if not law.learning_rates:
        return
    headings = ("epochs", "best of the grid", "optimum")
    table = figures_table("Best learning rates", ("budget", "variant"), headings)
    for each in law.learning_rates[:_RATES_SHOWN]:
        name = escape(each.variant or (MISSING if each.parameters is None else f"{each.parameters:.3g}"))
        epochs, best = number(each.epochs, trim=True), number(each.best, trim=True)
        table.add_row(escape(each.budget), name, epochs, best, _optimum(each))
    console.print()
    console.print(table)
    if len(law.learning_rates) > _RATES_SHOWN:
        _say(console, f"and {len(law.learning_rates) - _RATES_SHOWN:,} more cells, with --json")
    console.print()


def _optimum(found: RateOptimum) -> str:
    if found.optimum is not None:
        return interval(found.optimum)
    return "one rate tried" if found.bound == "unknown" else f"{found.bound} {number(found.best, trim=True)}"


def _render_held_out(held_out: HeldOut | Refused, law: Law, console: Console) -> None:
    if isinstance(held_out, Refused):
        _say(console, f"Held out: not predicted; {held_out.reason}")
        return
    title = "Held out, and predicted from the smaller budgets"
    table = figures_table(title, ("budget",), ("loss", "predicted", "error", "in the interval"))
    for row in held_out.rows:
        inside = "yes" if row.inside else "no"
        error = percent_off(row.error)
        table.add_row(escape(row.label), number(row.loss), interval(row.predicted), error, inside)
    console.print(table)
    console.print()
