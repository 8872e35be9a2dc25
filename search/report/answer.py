"""What a report begins with: what to train with the next budget, or what is known and what is missing to say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from search.figures.trials import between, percent_of, size
from search.formats import MISSING, duration, number, percent, scientific
from search.law import Estimate, Law, Refused
from search.law.forecast import BudgetForecast
from search.report.tables import Counts, Table, counts_of, hours
from search.results import best_rows
from search.state import StudyState

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


def answer_of(state: StudyState, law: Law | None, forecasts: Sequence[BudgetForecast]) -> Answer:
    """The answer to "what to train with the next budget", which is the first of `forecasts`.

    `law` is None where nothing has finished.
    """
    counts = counts_of(state)
    if law is None:
        lead = f"{counts.ended} of {counts.planned} trials have ended, none with a held-out loss: nothing is known yet."
        return Answer("No trial has finished yet.", lead, (), _unfinished(counts), speaks=False)
    if not forecasts or isinstance(forecasts[0].loss, Refused):
        return _refusal(state, law, forecasts[0] if forecasts else None, counts)
    return _recommendation(forecasts[0], forecasts[0].loss, law, counts, further_table(forecasts[1:]))


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
        search = f"{ahead.trials} trials, about {duration(ahead.search_seconds)}"
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
    return ", ".join(parts)


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
    best = best_rows(state)[-1]
    known = (
        f"{best.variant} for {number(best.epochs, trim=True)} epochs with learning rate "
        f"{number(best.learning_rate, trim=True)}: held-out loss {number(best.heldout_loss)}"
    )
    facts = {f"Best at {best.budget}": known, "What would make it speak": _missing(state)}
    if ahead is not None and (training := _training(ahead)):
        facts[f"A guess at {ahead.label}"] = training
    lead = sentence(law.chosen.reason) if isinstance(law.chosen, Refused) else "Which budget comes next is not known."
    notes = (*_unfinished(counts), *map(sentence, () if ahead is None else ahead.notes))
    return Answer("The data cannot say yet what to train next.", lead, tuple(facts.items()), notes, speaks=False)


def _missing(state: StudyState) -> str:
    budgets = len(best_rows(state))
    if (more := _BUDGETS_OF_A_LAW - budgets) > 0:
        several = "two more budgets" if more > 1 else "one more budget"
        return f"finished trials at {several}: a law needs at least three, best a factor of two or more apart"
    return "budgets over a wider range of compute"


def _unsure(law: Law) -> tuple[str, ...]:
    if isinstance(law.chosen, Refused) or law.chosen.exponent.low > 0:
        return ()
    return ("The exponent of compute may be zero by its interval: these runs do not show yet that more compute helps.",)


def _unfinished(counts: Counts) -> tuple[str, ...]:
    if counts.ended >= counts.planned:
        return ()
    return (f"The search is not over: {counts.ended} of {counts.planned} trials have ended; the answer may change.",)


def sentence(text: str) -> str:
    """A reason as a sentence of its own."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
