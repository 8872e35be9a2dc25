"""What a study would do, before anything is trained: its budgets, cells, steps, FLOPs and expected time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clusters.tpu import CORES_PER_HOST
from search.budgets import Budget, Cell, open_budgets
from search.devices import check_batches, device_here, metered_cores
from search.formats import duration, number, percent, scientific
from search.memory import gigabytes, memory_by_variant, memory_warnings
from search.rates import Rate
from search.results import MeasuredRates
from search.space import DOUBT, TREND_TRIALS_PER_CELL
from search.study import Study
from search.tables import figures_table
from search.terminal import tell
from search.tpu_plan import estimate, published_notes, published_table, rates_notes, rates_table
from search.units import KNOWN_FLOPS_PER_CORE_SECOND


@dataclass(frozen=True, slots=True)
class Plan:
    """A study on its data, in numbers.

    Attributes:
        study: the study.
        train_examples, heldout_examples, classes: the data as it was found.
        budgets: what each budget buys, cheapest first.
        warnings: one line each.
        device: what trials train on.
        cores_per_slice: cores that train one trial (CPU threads, GPUs, or TPU cores).
        flops_per_core_second: by variant; empty where nothing is known.
        measured: whether those were measured by an earlier search, or are the study's estimate.
        goodput: share of training steps in a trial's time, measured; None if it is not known.
        memory: bytes that training takes of each worker, by variant: as compiled where `rates` has that, else at least.
        rates: of a plan for TPUs, by variant: where `flops_per_core_second` is from, and what it may be at most.
    """

    study: Study
    train_examples: int
    heldout_examples: int
    classes: int
    budgets: tuple[Budget, ...]
    warnings: tuple[str, ...]
    device: str
    cores_per_slice: int
    flops_per_core_second: Mapping[str, float] = field(default_factory=dict)
    measured: bool = False
    goodput: float | None = None
    memory: Mapping[str, int] = field(default_factory=dict)
    rates: Mapping[str, Rate] = field(default_factory=dict)

    @property
    def trials(self) -> int:
        """Trials of the whole study; as everything that follows from them, at most, see `at_most`."""
        return sum(budget.runs for budget in self.budgets)

    @property
    def at_most(self) -> bool:
        """Whether there may be fewer, see `ends_early`."""
        return any(map(ends_early, self.budgets))

    @property
    def flops(self) -> float:
        """Training FLOPs of the whole study, if trials are spread evenly over each budget's cells."""
        return sum(budget.runs * _mean([cell.flops for cell in budget.cells]) for budget in self.budgets)

    def trial_seconds(self, cell: Cell) -> float | None:
        """Expected seconds of one trial (of its training steps, where no goodput is known); None without a rate."""
        rate = self.flops_per_core_second.get(cell.variant)
        return None if rate is None else cell.flops / (rate * self.cores_per_slice) / (self.goodput or 1.0)

    def core_hours(self, cell: Cell) -> float | None:
        """Expected core-hours of one trial's training steps; None without a rate."""
        rate = self.flops_per_core_second.get(cell.variant)
        return None if rate is None else cell.flops / rate / 3600

    def core_hours_at_least(self, cell: Cell) -> float | None:
        """The same by the roofline, where that is known."""
        rate = self.rates.get(cell.variant)
        return None if rate is None else rate.core_hours_at_least(cell.flops)

    def budget_seconds(self, budget: Budget) -> float | None:
        """Expected seconds of a budget's trials, see `search_seconds`."""
        return search_seconds(budget, self.study.compute.slices, self.trial_seconds)

    @property
    def seconds(self) -> float | None:
        """Expected seconds of the whole study; budgets follow one another."""
        each = [self.budget_seconds(budget) for budget in self.budgets]
        known = [seconds for seconds in each if seconds is not None]
        return sum(known) if len(known) == len(each) else None


def search_seconds(budget: Budget, slices: int, trial_seconds: Callable[[Cell], float | None]) -> float | None:
    """Expected seconds of a budget's trials, further seeds included, in rounds of one on each slice and spread evenly
    over its cells; None where those of a cell are not known. As everything of a plan at most, see `Plan.at_most`.
    """
    seconds = [trial_seconds(cell) for cell in budget.cells]
    known = [each for each in seconds if each is not None]
    return math.ceil(budget.runs / slices) * _mean(known) if len(known) == len(seconds) else None


def ends_early(budget: Budget) -> bool:
    """Whether there may be fewer trials: sampler trend ends a decided budget, and only best points are repeated."""
    return budget.doubt > 0 or budget.seeds > 1


def plan(
    study: Study,
    train_examples: int,
    heldout_examples: int,
    classes: int,
    *,
    measured: MeasuredRates | None = None,
    goodput: float | None = None,
    rates: Mapping[str, Rate] | None = None,
    core_hours: Mapping[str, float] = KNOWN_FLOPS_PER_CORE_SECOND,
) -> Plan:
    """Plan a study; nothing is trained.

    Args:
        study: the study.
        train_examples, heldout_examples, classes: what its data holds.
        measured: FLOPs per core-second of an earlier search; a variant that it has not trained takes the overall one.
        goodput: share of training steps in the time of that search's trials (NaN as good as None).
        rates: makes it a plan for TPU v4, at these rates, instead of one for the study's device; in them is what was
            `measured`.
        core_hours: see `search.budgets.open_budgets`.

    Raises:
        StudyError: budgets that cannot be planned, see `search.budgets.open_budgets`; batches that cannot be split, see
            `search.devices.check_batches`.
    """
    device = device_here(study) if rates is None else "tpu"
    check_batches(study, device)
    budgets, warnings = open_budgets(study, train_examples, classes, core_hours)
    if rates is not None:
        expected = {variant: rate.flops_per_core_second for variant, rate in rates.items()}
    elif measured:
        expected = {variant: measured.by_variant.get(variant, measured.overall) for variant in study.model.variants}
    else:
        given = study.compute.flops_per_core_second
        expected = {} if given is None else dict.fromkeys(study.model.variants, given)
    memory = memory_by_variant(study, classes, device) | _memory_compiled(rates or {})
    warnings += memory_warnings(study, memory, device)
    return Plan(
        study=study,
        train_examples=train_examples,
        heldout_examples=heldout_examples,
        classes=classes,
        budgets=tuple(budgets),
        warnings=tuple(warnings),
        device=device,
        cores_per_slice=metered_cores(study, device),
        flops_per_core_second=expected,
        measured=measured is not None,
        goodput=goodput if goodput and math.isfinite(goodput) else None,
        memory=memory,
        rates=rates or {},
    )


def render_plan(plan: Plan, console: Console) -> None:
    """Print a plan: a table for each budget, the learning rates, the sum, and the warnings.

    Columns: parameters; epochs; optimiser steps and how many of them warm up; training FLOPs of one trial, and their
    share of the budget (whole steps and grids of epochs do not meet it exactly); expected core-hours of its training
    steps (on TPUs also at least), and expected time of one trial. A plan for TPUs opens with a table of their rates,
    and compares with what others have published.
    """
    study = plan.study
    console.print(
        f"[bold]{escape(study.name)}[/bold]: {study.data.source}, {plan.train_examples:,} training and "
        f"{plan.heldout_examples:,} held-out images of {study.data.image_size} px in {plan.classes:,} classes; "
        f"batch {study.training.batch_size:,}"
    )
    if plan.rates:
        console.print()
        console.print(rates_table(plan.rates, plan.train_examples))
        for note in rates_notes(study, plan.rates):
            tell(console, note)
    for budget in plan.budgets:
        console.print()
        console.print(_budget_table(plan, budget))
    console.print()
    if plan.rates and study.published:
        console.print(published_table(study, plan.rates, plan.train_examples, plan.classes))
        for note in published_notes(study, plan.rates, plan.train_examples, plan.classes):
            tell(console, note)
        console.print()
    rates = ", ".join(f"{rate:g}" for rate in study.learning_rates)
    console.print(f"Learning rates: {rates} (sampler {study.search.sampler})")
    one_line = not console.is_terminal
    compiled = _memory_compiled(plan.rates)
    if compiled:
        console.print(f"Memory of a worker: {_sizes(compiled)} (as compiled)", soft_wrap=one_line)
    if others := {variant: needed for variant, needed in plan.memory.items() if variant not in compiled}:
        console.print(f"Memory of a worker, at least: {_sizes(others)} (estimated)", soft_wrap=one_line)
    console.print(_total_line(plan), soft_wrap=one_line)
    for warning in plan.warnings:
        console.print(f"[yellow]Warning:[/yellow] {escape(warning)}", soft_wrap=one_line)


def _memory_compiled(rates: Mapping[str, Rate]) -> dict[str, int]:
    """Bytes of a TPU worker's memory, by variant, of the steps that were compiled as the study takes them."""
    return {
        variant: rate.memory_of_core * CORES_PER_HOST
        for variant, rate in rates.items()
        if rate.memory_of_core is not None
    }


def _sizes(memory: Mapping[str, int]) -> str:
    return ", ".join(f"{variant} {gigabytes(needed)}" for variant, needed in memory.items())


def _budget_table(plan: Plan, budget: Budget) -> Table:
    seconds = plan.budget_seconds(budget)
    spent = "" if seconds is None else f", ~{duration(seconds)}"
    at_most = "at most " if plan.at_most else ""
    trials = f"{at_most}{'1 trial' if budget.runs == 1 else f'{budget.runs} trials'}"
    first, last = (("parameters",), ()) if not plan.rates else ((), ("\nat least",))
    headings = (*first, "epochs", "steps", "warm-up", "FLOPs", "share", "core-\nhours", *last, "time")
    table = figures_table(escape(f"Budget {budget.label}: {trials}{spent}"), ("variant",), headings)
    for cell in budget.cells:
        expected = plan.trial_seconds(cell)
        table.add_row(
            cell.variant,
            *([] if plan.rates else [f"{cell.parameters / 1e6:.2f} M"]),
            number(cell.epochs, trim=True),
            f"{cell.steps:,}",
            f"{cell.warmup_steps:,}",
            scientific(cell.flops, 3),
            f"{cell.flops / budget.flops:.0%}",
            estimate(plan.core_hours(cell)),
            *([estimate(plan.core_hours_at_least(cell))] if plan.rates else []),
            "unknown" if expected is None else f"~{duration(expected)}",
        )
    return table


def _total_line(plan: Plan) -> str:
    compute = plan.study.compute
    at_most = "at most " if plan.at_most else ""
    again = ", one more for each further seed that diverges or fails" if plan.study.search.seeds > 1 else ""
    trials = f"{at_most}{plan.trials} trials{_expected(plan)}{again}"
    line = f"In all: {trials}, {at_most or 'about '}{scientific(plan.flops, 3)} FLOPs"
    if plan.seconds is None:
        return f"{line}; time unknown: set compute.flops_per_core_second (a finished search prints the measured value)"
    slices = f"{compute.slices} {'slice' if compute.slices == 1 else 'slices'}"
    unit = {"cuda": "GPU", "tpu": "TPU core"}.get(plan.device, "core")
    cores = f"{plan.cores_per_slice} {unit}{'' if plan.cores_per_slice == 1 else 's'}"
    source = "measured by an earlier search" if plan.measured else "estimated from compute.flops_per_core_second"
    if plan.rates:
        source = "estimated at the speeds above"
    if plan.goodput is not None:
        source += f", at its goodput of {percent(plan.goodput)}"
        left_out = "start-up of the cluster"
    else:
        left_out = "input, evaluation, checkpoints and start-up"
    return f"{line}, {at_most}~{duration(plan.seconds)} on {slices} of {cores} ({source}; not counted: {left_out})"


def _expected(plan: Plan) -> str:
    """How many of them sampler trend will have run when it is content, going by simulated studies, with at least the
    further seeds of one point of each budget.
    """
    if plan.study.search.sampler != "trend" or plan.study.search.doubt != DOUBT:
        return ""
    expected = sum(
        min(budget.trials, TREND_TRIALS_PER_CELL * len(budget.cells)) + budget.seeds - 1 for budget in plan.budgets
    )
    or_more = " or more" if plan.study.search.seeds > 1 else ""
    return f" (~{round(expected)}{or_more} where losses are like the paper's)"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
