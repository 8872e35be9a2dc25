"""What to train with a budget that was not searched yet: variant, epochs, learning rate, loss and cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import harmonic_mean
from typing import Any, Protocol, TypeVar

from search.budgets import Budget, Cell, open_budgets
from search.law.fit import Law
from search.law.numbers import Estimate, Refused
from search.law.optimum import AllocationRow
from search.law.surface import Surface
from search.plan import ends_early, search_seconds
from search.results import measured_rates, time_split
from search.state import StudyState
from search.study import Study, StudyError
from search.units import SECONDS_PER_HOUR, Quantity, same_amount


class _Cell(Protocol):
    """What a recommendation looks at in a cell."""

    @property
    def variant(self) -> str: ...
    @property
    def epochs(self) -> float: ...
    @property
    def parameters(self) -> int: ...


_Sized = TypeVar("_Sized", bound=_Cell)


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast trials train.

    Attributes:
        flops_per_core_second: by variant; one that is missing is not known.
        cores_per_slice, slices: cores that train one trial, and trials at a time.
        goodput: share of training steps in a trial's time; None where not known.
        measured: the variants whose rate this study's own trials have measured; those of others are estimates.
    """

    flops_per_core_second: Mapping[str, float] = field(default_factory=dict)
    cores_per_slice: int = 1
    slices: int = 1
    goodput: float | None = None
    measured: frozenset[str] = frozenset()

    def core_hours(self, cell: Cell) -> float | None:
        """Core-hours of one trial's training steps."""
        rate = self.flops_per_core_second.get(cell.variant)
        return None if rate is None else cell.flops / rate / 3600

    def seconds(self, cell: Cell) -> float | None:
        """Seconds of one trial."""
        core_hours = self.core_hours(cell)
        return None if core_hours is None else core_hours * 3600 / self.cores_per_slice / (self.goodput or 1.0)

    def search_seconds(self, budget: Budget) -> float | None:
        """Seconds of a budget's trials, as a plan has them."""
        return search_seconds(budget, self.slices, self.seconds)


def speed_of_state(study: Study, state: StudyState, cores_per_slice: int) -> Speed:
    """The speed that a study's own trials were measured at; a variant that none trained takes that of all together."""
    measured, goodput = measured_rates(state), time_split(state).undisturbed_goodput
    given = study.compute.flops_per_core_second
    rates = {} if given is None else dict.fromkeys(study.model.variants, given)
    if measured is not None:
        rates = {variant: measured.by_variant.get(variant, measured.overall) for variant in study.model.variants}
    own = frozenset() if measured is None else frozenset(measured.by_variant)
    return Speed(rates, cores_per_slice, study.compute.slices, goodput if math.isfinite(goodput) else None, own)


@dataclass(frozen=True, slots=True)
class BudgetForecast:
    """What the law says of a budget before it is searched.

    Attributes:
        label, flops: the budget.
        loss: of the best run that a search of it finds, with the interval of that one run; or why there is none.
        beyond: the budget over the largest that was searched.
        variant: the study's variant of the best size (the nearest by the logarithm) among those whose epochs are
            allowed; None where the budget buys none.
        parameters, epochs, steps: of that variant.
        learning_rate: the one of the study's grid next to `learning_rate_estimate`.
        learning_rate_estimate: by the trend of the best rates; None where there is no trend.
        optimal_parameters, optimal_epochs: the best size and epochs if every size could be had; None where not known.
        size_penalty: the share of the loss that the variant loses against the best size, by L(N, D).
        core_hours, seconds: of one trial of that variant; None where no speed is known.
        search_seconds: of the search of this budget.
        trials: of that search, further seeds included.
        notes: what else should be known, one line each.
        cost_estimated: whether the cost is told by a speed that was not measured of this variant.
        at_most: whether that search may end with fewer trials, see `search.plan.ends_early`.
    """

    label: str
    flops: float
    loss: Estimate | Refused
    beyond: float | None
    variant: str | None
    parameters: int | None
    epochs: float | None
    steps: int | None
    learning_rate: float | None
    learning_rate_estimate: Estimate | None
    optimal_parameters: Estimate | None
    optimal_epochs: Estimate | None
    size_penalty: float | None
    core_hours: float | None
    seconds: float | None
    search_seconds: float | None
    trials: int | None
    notes: tuple[str, ...]
    cost_estimated: bool = False
    at_most: bool = False

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        from search.law.as_json import plain_values

        found: dict[str, Any] = plain_values(self)
        return found


def forecast_budget(
    law: Law,
    study: Study,
    budget: Budget | Quantity,
    *,
    train_examples: int,
    classes: int,
    speed: Speed | None = None,
    variant: str | None = None,
) -> BudgetForecast:
    """Forecast a budget.

    Args:
        law: of the study's runs so far.
        study: the study.
        budget: as `search.budgets.open_budgets` gives it; or an amount in FLOPs, from which that is made. Where no
            variant's epochs are allowed, the loss is forecast all the same, and a note says so.
        train_examples: images of one epoch.
        classes: outputs of the classifier.
        speed: to tell the cost by; None leaves it out.
        variant: the one to train, of those that the budget buys; None recommends one.
    """
    notes: list[str] = []
    bought: Budget | Refused
    if isinstance(budget, Quantity):
        bought, flops = bought_by(study, budget, train_examples, classes), budget.amount
    else:
        bought, flops = budget, budget.flops
    loss = law.forecast(flops)
    row = _best_split(law, flops)
    forecast = BudgetForecast(
        budget.label, flops,
        loss if isinstance(loss, Refused) else loss.loss,
        None if isinstance(loss, Refused) else loss.beyond,
        None, None, None, None, None, None,
        None if row is None else row.parameters,
        None if row is None else row.epochs,
        None, None, None, None, None, (),
    )  # fmt: skip
    if not isinstance(loss, Refused) and loss.note:
        notes.append(loss.note)
    if not isinstance(loss, Refused) and isinstance(law.straightness, Refused):
        notes.append(f"whether the loss bends towards a floor cannot be told ({law.straightness.reason})")
    if isinstance(bought, Refused):
        return replace(forecast, notes=(bought.reason, *notes))
    cells = bought.cells if variant is None else (bought.cell(variant),)
    cell = recommended(law, row, cells, train_examples, notes)
    trend, snapped = _learning_rate(law, study, cell, train_examples, notes)
    if row is not None:
        notes += _outside(law, row, study)
    return replace(
        forecast,
        variant=cell.variant,
        parameters=cell.parameters,
        epochs=cell.epochs,
        steps=cell.steps,
        learning_rate=snapped,
        learning_rate_estimate=trend,
        size_penalty=_penalty(law, row, cell, train_examples),
        core_hours=speed.core_hours(cell) if speed else None,
        seconds=speed.seconds(cell) if speed else None,
        search_seconds=speed.search_seconds(bought) if speed else None,
        trials=bought.runs,
        notes=tuple(notes),
        cost_estimated=speed is not None and cell.variant in speed.flops_per_core_second.keys() - speed.measured,
        at_most=ends_early(bought),
    )


def unsure(law: Law) -> str:
    """What is to be said where the loss may not fall with compute; "" where it does, or nothing is known."""
    if isinstance(law.chosen, Refused) or law.chosen.exponent.low > 0:
        return ""
    if law.chosen.exponent.high < 0:
        return "by these runs the loss rises with compute, so a larger budget is not forecast to help"
    return "the exponent of compute may be zero by its interval: these runs do not show yet that more compute helps"


def bought_by(study: Study, quantity: Quantity, train_examples: int, classes: int) -> Budget | Refused:
    """What an amount of FLOPs buys in a study, as if it were one of its budgets; or why nothing."""
    alone = study.model_copy(update={"budgets": (quantity,)})
    try:
        budgets, _ = open_budgets(alone, train_examples, classes)
    except StudyError as error:
        return Refused(str(error).removeprefix(f"{study.source}: budgets[0]: "))
    return budgets[0]


def in_core_hours(
    law: Law, study: Study, quantity: Quantity, speed: Speed, train_examples: int, classes: int
) -> tuple[Budget, str] | None:
    """What an amount of core-hours buys of each variant at the variant's own speed, and the one to train of them; None
    where it buys none. The FLOPs of the budget are those of that one.
    """
    bought: dict[str, Budget] = {}
    for variant, rate in speed.flops_per_core_second.items():
        alone = study.model_copy(update={"model": study.model.model_copy(update={"variants": (variant,)})})
        amount = replace(quantity, amount=quantity.amount * SECONDS_PER_HOUR * rate, unit="FLOPs")
        if isinstance(found := bought_by(alone, amount, train_examples, classes), Budget):
            bought[variant] = found
    if not bought:
        return None
    cells = tuple(budget.cells[0] for budget in bought.values())
    between = harmonic_mean([budget.flops for budget in bought.values()])
    chosen = recommended(law, _best_split(law, between), cells, train_examples, []).variant
    most = math.inf if study.search.trials is None else study.search.trials
    trials = int(min(most, sum(budget.trials for budget in bought.values())))
    return replace(bought[chosen], cells=cells, trials=trials), chosen


def next_budgets(study: Study, state: StudyState, amounts: Sequence[float]) -> list[Quantity]:
    """What to forecast unasked: the study's budgets that are not searched to their end with a finished trial, and if
    none of them is larger than those that are, the one that follows by the study's own spacing (the ratio of its two
    largest budgets; 2 if it has one).

    `amounts`: the study's budgets in FLOPs, as `search.budgets.amounts_in_flops` gives them.
    """
    searched = [known.flops for known in state.budgets.values() if known.closed and known.best is not None]
    unsearched = [
        Quantity(quantity.label, flops, "FLOPs")
        for quantity, flops in zip(study.budgets, amounts, strict=True)
        if not any(same_amount(flops, each) for each in searched)
    ]
    largest = max(searched, default=0.0)
    if any(quantity.amount > largest for quantity in unsearched):
        return unsearched
    last, top = study.budgets[-1], amounts[-1]
    following = largest * (top / amounts[-2] if len(amounts) > 1 else 2.0)
    unit = "FLOPs" if last.unit == "FLOPs" else f"{last.device} core-hours" if last.device else "core-hours"
    amount = last.amount * following / top
    return [*unsearched, Quantity(f"{amount:.4g} {unit}".replace("e+", "e"), following, "FLOPs")]


def _best_split(law: Law, flops: float) -> AllocationRow | None:
    """The best size and examples: by L(N, D), or by the parabolas where that was refused."""
    if not isinstance(law.allocation, Refused):
        return law.allocation.at(flops)
    if not isinstance(law.iso_compute, Refused):
        row = law.iso_compute.at(flops)
        return None if isinstance(row, Refused) else row
    return None


def recommended(
    law: Law, row: AllocationRow | None, cells: Sequence[_Sized], train_examples: float, notes: list[str]
) -> _Sized:
    """The cell to train: of the lowest loss by L(N, D), each variant as much above or below it as it was so far (drawn
    to it as if one more cell lay on it, for a few residuals tell little); without L(N, D) the one nearest to the best
    size; and if that is not known, to the best of the largest budget, which is added to the notes.
    """
    surface = law.surface
    if isinstance(surface, Surface):
        off: dict[str | None, list[float]] = {}
        for known, residual in zip(surface.cells, surface.residuals, strict=True):
            off.setdefault(known.variant, []).append(residual)

        def expected(cell: _Sized) -> float:
            own = off.get(cell.variant, [])
            by_law = math.log(surface.loss(cell.parameters, cell.epochs * train_examples))
            return by_law + sum(own) / (len(own) + 1)

        return min(cells, key=expected)
    if row is not None:
        best = math.log(row.parameters.value)
        return min(cells, key=lambda cell: abs(math.log(cell.parameters) - best))
    before = law.budgets[-1].best
    notes.append(
        f"the best size is not known, so the variant is the one nearest to the best of {law.budgets[-1].label}, "
        f"{before.variant}"
    )
    size = math.log(before.parameters) if before.parameters else 0.0
    return min(cells, key=lambda cell: (cell.variant != before.variant, abs(math.log(cell.parameters) - size)))


def _outside(law: Law, row: AllocationRow, study: Study) -> list[str]:
    """Notes on a best size or best epochs that the study does not have."""
    notes = []
    sizes = [run.parameters for run in law.runs if run.parameters is not None]
    if sizes and not min(sizes) <= row.parameters.value <= max(sizes):
        more, end = ("larger", max(sizes)) if row.parameters.value > max(sizes) else ("smaller", min(sizes))
        notes.append(
            f"the best size, {row.parameters.value:.3g} parameters, is {more} than any that was searched ({end:.3g}); "
            f"add a {more} variant to model.variants"
        )
    low, high = study.epochs.span
    if row.epochs is not None and not low <= row.epochs.value <= high:
        notes.append(f"the best epochs, {row.epochs.value:.3g}, are outside the study's {low:g} to {high:g}")
    return notes


def _penalty(law: Law, row: AllocationRow | None, cell: Cell, train_examples: int) -> float | None:
    if not isinstance(law.surface, Surface) or row is None:
        return None
    best = law.surface.loss(row.parameters.value, row.examples.value)
    return max(0.0, law.surface.loss(cell.parameters, cell.epochs * train_examples) / best - 1)


def _learning_rate(
    law: Law, study: Study, cell: Cell, train_examples: int, notes: list[str]
) -> tuple[Estimate | None, float | None]:
    """The best rate by the trend, and the one of the grid next to it."""
    grid = study.learning_rates
    trend = law.rate_trend
    if isinstance(trend, Refused):
        alike = [each for each in law.learning_rates if each.variant == cell.variant] or list(law.learning_rates)
        if not alike:
            return None, None
        before = max(alike, key=lambda each: each.flops)
        notes.append(
            f"no trend of the learning rate ({trend.reason}), so it is the best of {before.variant} at {before.budget}"
        )
        return None, min(grid, key=lambda rate: abs(math.log(rate / before.best)))
    size = cell.flops_per_image if trend.size == "flops_per_example" else float(cell.parameters)
    duration = cell.epochs if trend.duration == "epochs" else cell.epochs * train_examples
    found = trend.at(size, duration)
    step = math.log(grid[1] / grid[0]) / 2 if len(grid) > 1 else math.log(2) / 2
    if not math.log(grid[0]) - step <= math.log(found.value) <= math.log(grid[-1]) + step:
        notes.append(
            f"the best learning rate by its trend, {found.value:.3g}, is off the study's grid of {grid[0]:g} to "
            f"{grid[-1]:g}; widen learning_rate"
        )
    return found, min(grid, key=lambda rate: abs(math.log(rate / found.value)))
