"""What each budget buys: how many epochs of each variant, in how many steps.

One training step costs three forward passes, so a budget of C FLOPs buys `C / (FLOPs per image x training examples)`
epochs of a variant (design of arXiv 2310.16764, section 2: every variant at several epoch budgets).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from models.costs import Costs, costs
from search.sections import Epochs, SecondObjective
from search.study import Study, StudyError
from search.units import KNOWN_FLOPS_PER_CORE_SECOND, same_amount

FEW_STEPS: Final = 10
TRIALS_PER_CELL: Final = 2
MOST_TRIALS_PER_CELL: Final = 3  # of sampler trend, which ends before where it can
_EDGE = 1e-9


def slug(label: str) -> str:
    """A budget's label fit for a path: "2.5e+4 core-hours" as "2.5e4-core-hours", ".5 GFLOPs" as "0.5-GFLOPs"."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", re.sub(r"^\.(?=[0-9])", "0.", label.replace("+", ""))).strip("-.")


@dataclass(frozen=True, slots=True)
class Cell:
    """One variant within a budget, and the training that the budget buys for it.

    Attributes:
        variant: the model.
        epochs: passes over the training examples.
        steps: optimiser steps, the nearest whole number to `epochs`.
        warmup_steps: those of them that warm up.
        flops_per_image: training FLOPs of one image, forward and backward.
        parameters: trainable numbers of the model.
        flops: training FLOPs of all steps; a little off the budget where steps are few or epochs are snapped to a grid.
    """

    variant: str
    epochs: float
    steps: int
    warmup_steps: int
    flops_per_image: float
    parameters: int
    flops: float


@dataclass(frozen=True, slots=True)
class Budget:
    """An amount of training compute for one trial, what it buys, and how many trials it gets.

    Attributes:
        label: as the study writes it, such as "2e13 FLOPs".
        flops: the same in training FLOPs.
        index: place among the study's budgets, from 0.
        cells: the variants it buys within the study's epochs, in the study's order; never empty.
        trials: how many trials are to be run; of sampler trend, how many at most.
        seeds: with how many seeds its best points are to be run.
        doubt: the chance of being wrong at which its sampler may end it before; 0: not before its trials.
        second_objective: what is kept low beside the loss, see `search.second_objective`.
        learning_rates: the grid, rising.
    """

    label: str
    flops: float
    index: int
    cells: tuple[Cell, ...]
    trials: int
    seeds: int = 1
    doubt: float = 0.0
    second_objective: SecondObjective | None = None
    learning_rates: tuple[float, ...] = ()

    @property
    def further_runs(self) -> int:
        """How many of its runs have a further seed at most: enough for the best point of every variant, and for one
        more, as the point that looks best before may be a lucky one. Those that diverge or fail come on top: they
        would leave the points that are best then without.
        """
        return (self.seeds - 1) * min(len(self.cells) + 1, self.trials)

    @property
    def runs(self) -> int:
        """How many trials there are at most, those with further seeds included, see `further_runs`."""
        return self.trials + self.further_runs

    @property
    def slug(self) -> str:
        """The label fit for a path and for trial ids, such as "2e13-FLOPs"."""
        return slug(self.label)

    def cell(self, variant: str) -> Cell:
        """The cell of a variant. Raises KeyError if the budget does not buy it."""
        for cell in self.cells:
            if cell.variant == variant:
                return cell
        raise KeyError(variant)


def open_budgets(
    study: Study,
    train_examples: int,
    classes: int,
    core_hours: Mapping[str, float] = KNOWN_FLOPS_PER_CORE_SECOND,
) -> tuple[list[Budget], list[str]]:
    """The study's budgets, cheapest first, and one-line warnings about what makes little sense.

    Args:
        study: the study.
        train_examples: images of one epoch.
        classes: outputs of the classifier.
        core_hours: FLOPs per core-second of a device that budgets name, see `search.rates.core_hour_rates`.

    Raises:
        StudyError: core-hours that cannot be converted, a budget that buys no variant; one line for each problem.
    """
    amounts = amounts_in_flops(study, core_hours)
    sizes = {variant: costs(study.model_size(variant, classes)) for variant in study.model.variants}
    budgets: list[Budget] = []
    warnings = _study_warnings(study, train_examples, core_hours)
    problems: list[str] = []
    for index, (quantity, flops) in enumerate(zip(study.budgets, amounts, strict=True)):
        cells: list[Cell] = []
        left_out: list[str] = []
        for variant, size in sizes.items():
            exact = flops / (size.training_flops * train_examples)
            epochs = _allowed_epochs(study.epochs, exact)
            if epochs is None:
                left_out.append(f"{variant} ({exact:.3g} epochs, outside {_span(study.epochs)})")
            elif (steps := round(epochs * train_examples / study.training.batch_size)) == 0:
                left_out.append(f"{variant} ({epochs:.3g} epochs are less than half a step)")
            else:
                cells.append(_cell(study, variant, size, epochs, steps, train_examples))
        if not cells:
            problems.append(_nothing_bought(study, index, sizes, train_examples))
            continue
        if left_out:
            warnings.append(f"budget {quantity.label}: left out {', '.join(left_out)}")
        doubt = study.search.doubt if study.search.sampler == "trend" else 0.0
        trials = _trials(study, len(cells))
        asked = study.search
        budget = Budget(
            quantity.label,
            flops,
            index,
            tuple(cells),
            trials,
            asked.seeds,
            doubt,
            asked.second_objective,
            study.learning_rates,
        )
        warnings += _budget_warnings(study, budget, budgets)
        budgets.append(budget)
    if problems:
        raise StudyError("\n".join(problems))
    return budgets, warnings


def amounts_in_flops(study: Study, core_hours: Mapping[str, float] = KNOWN_FLOPS_PER_CORE_SECOND) -> list[float]:
    """Every budget in training FLOPs, rising; costs no model. Errors as for `open_budgets`."""
    rate = study.compute.flops_per_core_second
    amounts: list[float] = []
    problems: list[str] = []
    for index, quantity in enumerate(study.budgets):
        flops = quantity.flops(rate, core_hours)
        if flops is None:
            problems.append(
                f"{study.source}: budgets[{index}]: {quantity.label} given, but not the FLOPs a core does in a second; "
                "set compute.flops_per_core_second (a finished search prints the measured value), or give FLOPs"
            )
            continue
        if amounts and (flops < amounts[-1] or same_amount(flops, amounts[-1])):
            problems.append(
                f"{study.source}: budgets[{index}]: {quantity.label} is {flops:.3g} FLOPs, given after "
                f"{amounts[-1]:.3g} FLOPs; allowed: rising budgets, none twice; sort them"
            )
        amounts.append(flops)
    if problems:
        raise StudyError("\n".join(problems))
    return amounts


def _allowed_epochs(epochs: Epochs, exact: float) -> float | None:
    """The epochs a cell gets: `exact` within a range, the nearest entry of a grid, or None where it is off either.

    A grid's ends reach half a step (of the logarithm) beyond themselves, as its inner entries do; a lone entry reaches
    half an octave.
    """
    if epochs.grid is None:
        return exact if epochs.min * (1 - _EDGE) <= exact <= epochs.max * (1 + _EDGE) else None
    grid = epochs.grid
    reach_down = math.sqrt(grid[1] / grid[0]) if len(grid) > 1 else math.sqrt(2)
    reach_up = math.sqrt(grid[-1] / grid[-2]) if len(grid) > 1 else math.sqrt(2)
    if not grid[0] / reach_down * (1 - _EDGE) <= exact <= grid[-1] * reach_up * (1 + _EDGE):
        return None
    return min(grid, key=lambda entry: abs(math.log(entry / exact)))


def _cell(study: Study, variant: str, size: Costs, epochs: float, steps: int, train_examples: int) -> Cell:
    batch_size = study.training.batch_size
    warmup = study.training.warmup.in_steps(steps=steps, batch_size=batch_size, train_examples=train_examples)
    flops = float(size.training_flops) * steps * batch_size
    return Cell(variant, epochs, steps, min(warmup, steps), float(size.training_flops), size.parameters, flops)


def _trials(study: Study, cells: int) -> int:
    """Trials of a budget: none is run twice, so never more than it has combinations of variant and learning rate."""
    combinations = cells * len(study.learning_rates)
    if study.search.trials is not None:
        return min(study.search.trials, combinations)
    match study.search.sampler:
        case "grid":
            return combinations
        case "trend":
            return min(MOST_TRIALS_PER_CELL * cells, combinations)
        case _:
            return min(TRIALS_PER_CELL * cells, combinations)


def _study_warnings(study: Study, train_examples: int, core_hours: Mapping[str, float]) -> list[str]:
    compiled = " (the mean of the study's variants as convscale aot compiled them)"
    warnings = [
        f"{device} core-hours are converted at {rate:.3g} FLOPs per core-second, which is an estimate"
        f"{'' if same_amount(rate, KNOWN_FLOPS_PER_CORE_SECOND[device]) else compiled}"
        for device, rate in core_hours.items()
        if any(quantity.device == device for quantity in study.budgets)
    ]
    if study.search.sampler != "trend" and "doubt" in study.search.model_fields_set:
        warnings.append(f"search.doubt is of sampler trend; {study.search.sampler} runs all of its trials")
    if study.training.batch_size > train_examples:
        warnings.append(
            f"training.batch_size {study.training.batch_size} is larger than the {train_examples} training examples: "
            "a step sees some of them more than once; use a smaller batch"
        )
    return warnings


def _budget_warnings(study: Study, budget: Budget, earlier: list[Budget]) -> list[str]:
    warnings: list[str] = []
    if few := [f"{cell.variant} ({cell.steps})" for cell in budget.cells if cell.steps < FEW_STEPS]:
        warnings.append(
            f"budget {budget.label}: fewer than {FEW_STEPS} steps: {', '.join(few)}; "
            "use a larger budget or a smaller training.batch_size"
        )
    if cold := [f"{cell.variant} ({cell.steps})" for cell in budget.cells if cell.warmup_steps >= cell.steps]:
        warnings.append(
            f"budget {budget.label}: the warm-up takes all steps: {', '.join(cold)}; "
            "shorten training.warmup, or give it as a fraction"
        )
    seen = {(cell.variant, cell.steps) for other in earlier for cell in other.cells}
    if again := [f"{cell.variant} ({cell.steps} steps)" for cell in budget.cells if (cell.variant, cell.steps) in seen]:
        warnings.append(
            f"budget {budget.label}: trained alike in a smaller budget: {', '.join(again)}; space the budgets wider"
        )
    asked, combinations = study.search.trials, len(budget.cells) * len(study.learning_rates)
    if asked is not None and asked > combinations:
        warnings.append(
            f"budget {budget.label}: {asked} trials asked for, but variants and learning rates have {combinations} "
            f"combinations, so it runs {combinations}; lower search.trials, or widen learning_rate"
        )
    elif study.search.sampler == "grid" and budget.trials < combinations:
        warnings.append(
            f"budget {budget.label}: {budget.trials} trials cover a part of the grid of {combinations}; "
            "leave out search.trials for all of it"
        )
    return warnings


def _nothing_bought(study: Study, index: int, sizes: dict[str, Costs], train_examples: int) -> str:
    low, high = study.epochs.span
    half_a_step = study.training.batch_size / 2  # in images, as the others
    least, most = max(low * train_examples, half_a_step), high * train_examples
    given = f"{study.source}: budgets[{index}]: {study.budgets[index].label} buys no variant within "
    if least > most:
        return (
            f"{given}{_span(study.epochs)}, and none could: training.batch_size {study.training.batch_size} is more "
            f"than twice the images of {high:g} epochs; lower it, or raise epochs"
        )
    flops = [size.training_flops for size in sizes.values()]
    return (
        f"{given}{_span(study.epochs)}; allowed: about {min(flops) * least:.2g} to {max(flops) * most:.2g} FLOPs for "
        "these variants, batches and data; change the budget, epochs or model.variants"
    )


def _span(epochs: Epochs) -> str:
    low, high = epochs.span
    return f"the {'range' if epochs.grid is None else 'grid'} of {low:g} to {high:g} epochs"
