"""What a report begins with: what to train with the next budget, or what is known and what is missing to say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from search.figures.fronts import pareto_fronts_data, read_pareto_fronts
from search.figures.trials import all_diverged, between, percent_of, size
from search.foretold import of_unfinished
from search.formats import MISSING, duration, number, percent, scientific
from search.law import Estimate, Law, Refused
from search.law.forecast import BudgetForecast, unsure
from search.law.forms import RANGE_NEEDED
from search.law.power import PowerLaw
from search.report.tables import Counts, Table, counts_of, hours, loss_of
from search.results import best_rows
from search.state import StudyState
from search.study import Study

_BUDGETS_OF_A_LAW: Final = 3
_PENALTY: Final = 0.005  # of the loss, below which a variant is as good as the best size


@dataclass(frozen=True, slots=True)
class Answer:
    """A headline, a sentence below it, the particulars by name, what is to be borne in mind, and further budgets."""

    headline: str
    lead: str
    facts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    speaks: bool
    further: Table | None = None


def interval(estimate: Estimate, digits: int = 3) -> str:
    """An estimate's interval as text."""
    return between(estimate.low, estimate.high, lambda value: number(value, digits))


def answer_of(
    state: StudyState, law: Law | None, forecasts: Sequence[BudgetForecast], study: Study | None = None
) -> Answer:
    """The answer to "what to train with the next budget", which is the first of `forecasts`.

    `law` is None where nothing has finished. The `study`, if it is given, tells how many budgets there will be.
    """
    counts = counts_of(state, study)
    if law is None:
        known = all_diverged(state) or "Nothing is known yet."
        lead = f"{counts.ended} of {counts.planned} trials have ended, none with a held-out loss. {known}"
        return Answer("No trial has finished yet.", lead, (), _unfinished(counts), speaks=False)
    fronts = pareto_fronts_data(state)
    cheaper = (("Cheaper models", read_pareto_fronts(fronts)),) if fronts.fronts else ()
    if not isinstance(law.chosen, Refused) and not forecasts:
        found = _law_alone(state, law, law.chosen, counts)
    elif not forecasts or isinstance(forecasts[0].loss, Refused):
        found = _refusal(state, law, forecasts[0] if forecasts else None, counts)
    else:
        found = _recommendation(forecasts[0], forecasts[0].loss, law, counts, further_table(forecasts[1:]))
    waits = (sentence(line),) if (line := of_unfinished(state)) else ()
    return replace(found, facts=(*found.facts, *cheaper), notes=(*found.notes, *waits))


def _law_alone(state: StudyState, law: Law, chosen: PowerLaw, counts: Counts) -> Answer:
    """What is known where the law speaks, but no budget was named to forecast."""
    bound, goes = law.confidence, "goes" if unsure(law) else "falls"
    lead = (
        f"The law speaks: held-out loss {goes} as C^-{number(chosen.exponent.value)} ({percent_of(bound)} interval of "
        f"the exponent {interval(chosen.exponent)}) over {len(law.budgets)} budgets."
    )
    facts = (*_best_known(state), ("A forecast of any budget", 'convscale law STUDY --budget "1e21 FLOPs"'))
    notes = (*_unfinished(counts), *_unsure(law))
    return Answer("No next budget is known: name one to get its forecast.", lead, facts, notes, speaks=False)


def _best_known(state: StudyState) -> tuple[tuple[str, str], ...]:
    best = best_rows(state)[-1]
    budget = state.budgets[best.budget]
    known = (
        f"{best.variant} for {number(best.epochs, trim=True)} epochs with learning rate "
        f"{number(best.learning_rate, trim=True)}: held-out loss {loss_of(budget.best_loss, budget.best_seeds)}"
    )
    return ((f"Best at {best.budget}", known),)


def _recommendation(ahead: BudgetForecast, loss: Estimate, law: Law, counts: Counts, further: Table | None) -> Answer:
    training = _training(ahead)
    within = f"{percent_of(law.confidence)} interval {interval(loss)}"
    lead = f"Expected held-out loss: {number(loss.value)} ({within})."
    cost = _cost(ahead)
    headline = f"With {ahead.label}, train {training}." if training else f"{ahead.label} buy no variant of the study."
    return Answer(
        headline=headline,
        lead=f"{lead} Cost: {cost}." if cost else lead,
        facts=_facts(ahead),
        notes=(*_unfinished(counts), *_unsure(law), *map(sentence, ahead.notes)),
        speaks=bool(training),
        further=further,
    )


def _training(ahead: BudgetForecast) -> str:
    """What is recommended: variant, epochs and learning rate; "" where there is no variant to recommend."""
    if ahead.variant is None:
        return ""
    text = f"{ahead.variant} for {number(ahead.epochs, trim=True)} epochs"
    rate = ahead.learning_rate
    return text if rate is None else f"{text} with learning rate {number(rate, trim=True)}"


def _facts(ahead: BudgetForecast) -> tuple[tuple[str, str], ...]:
    """The particulars of a forecast, those that are known."""
    compute = f"{scientific(ahead.flops)} FLOPs of training"
    if ahead.beyond is not None and ahead.beyond > 1:
        compute += f", {number(ahead.beyond, 2, trim=True)} times the largest that was searched"
    model = "" if ahead.parameters is None else f"{ahead.variant}, {size(ahead.parameters)} parameters"
    if model and ahead.size_penalty is not None and ahead.size_penalty >= _PENALTY:
        model += f"; its loss is about {percent(ahead.size_penalty)} above that of the best size"
    optimum = [
        f"{show(found.value)} {unit} ({between(found.low, found.high, show)})"
        for found, unit, show in (
            (ahead.optimal_parameters, "parameters", size),
            (ahead.optimal_epochs, "epochs", _plain),
        )
        if found is not None
    ]
    rate = ahead.learning_rate_estimate
    search = ""
    if ahead.trials is not None and ahead.search_seconds is not None:
        search = f"{'at most ' if ahead.at_most else ''}{ahead.trials} trials, about {duration(ahead.search_seconds)}"
    facts = {
        "Budget": compute,
        "Model": model,
        "Best size, if every size could be had": ", for ".join(optimum),
        "Learning rate by its trend": "" if rate is None else f"{_plain(rate.value)} ({interval(rate, 2)})",
        "A search of this budget": search,
    }
    return tuple((name, text) for name, text in facts.items() if text)


def _plain(value: float) -> str:
    return number(value, trim=True)


def _cost(ahead: BudgetForecast) -> str:
    parts = []
    if ahead.core_hours is not None:
        parts.append(f"about {hours(ahead.core_hours)} core-hours")
    if ahead.seconds is not None:
        parts.append(f"{duration(ahead.seconds)} on one slice")
    return ", ".join(parts) + (" (estimated, not measured)" if parts and ahead.cost_estimated else "")


def further_table(forecasts: Sequence[BudgetForecast]) -> Table | None:
    """Forecasts as a table; None of none."""
    rows = [
        (
            one.label,
            one.variant or MISSING,
            number(one.epochs, trim=True),
            number(one.learning_rate, trim=True),
            MISSING if isinstance(one.loss, Refused) else number(one.loss.value),
            MISSING if isinstance(one.loss, Refused) else interval(one.loss),
            MISSING if one.core_hours is None else hours(one.core_hours),
        )
        for one in forecasts
    ]
    columns = ("budget", "variant", "epochs", "learning rate", "expected loss", "interval", "core-hours")
    return Table("Further budgets", columns, tuple(rows), names=2) if rows else None


def _refusal(state: StudyState, law: Law, ahead: BudgetForecast | None, counts: Counts) -> Answer:
    facts = dict(_best_known(state))
    if missing := _missing(law):
        facts["What would make it speak"] = missing
    if ahead is not None and (training := _training(ahead)):
        facts[f"A guess at {ahead.label}"] = training
    refused = law.chosen if ahead is None or isinstance(ahead.loss, Estimate) else ahead.loss
    lead = sentence(refused.reason) if isinstance(refused, Refused) else ""
    notes = (*_unfinished(counts), *map(sentence, () if ahead is None else ahead.notes))
    return Answer("The data cannot say yet what to train next.", lead, tuple(facts.items()), notes, speaks=False)


def _missing(law: Law) -> str:
    """What a law lacks that more budgets would give; "" where it is something else."""
    if (more := _BUDGETS_OF_A_LAW - len(law.budgets)) > 0:
        several = "two more budgets" if more > 1 else "one more budget"
        return f"finished trials at {several}: a law needs at least three, best a factor of two or more apart"
    if law.budgets[-1].flops < RANGE_NEEDED["plain"] * law.budgets[0].flops:
        return "budgets over a wider range of compute"
    return ""


def _unsure(law: Law) -> tuple[str, ...]:
    return (sentence(line),) if (line := unsure(law)) else ()


def _unfinished(counts: Counts) -> tuple[str, ...]:
    if counts.over:
        return ()
    so_far = f"{counts.ended} of {counts.planned} trials have ended{counts.of_budgets}"
    return (f"The search is not over: {so_far}; the answer may change.",)


def sentence(text: str) -> str:
    """A reason as a sentence of its own."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
