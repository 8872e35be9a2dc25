"""The compute-optimal size and examples, N_opt ~ C^a and D_opt ~ C^b: in closed form, and from iso-compute parabolas.

Approaches 3 and 2 of Hoffmann et al. 2022 (arXiv 2203.15556). The closed form minimises the fitted L(N, D) under
C = k N D (their eq. 4), with k taken from the runs: 6 holds for dense transformers only. The parabolas need no such
law: in each budget the loss of its models is a parabola in ln N, whose lowest place is the budget's best size.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from search.law.grouping import WIDEST, BudgetRuns, Cell
from search.law.line import Line, fit_line
from search.law.numbers import Estimate, FloatArray, Refused, drawn_sd, estimate
from search.law.surface import Surface, examples_per_epoch

SIZES_NEEDED: Final = 3
MINIMA_NEEDED: Final = 3
_AROUND: Final = 2


@dataclass(frozen=True, slots=True)
class Scatter:
    """How far losses are off (standard deviation of ln L), and with how many degrees that is known."""

    log_sd: float
    degrees: int


@dataclass(frozen=True, slots=True)
class AllocationRow:
    """The best size (trainable numbers), examples seen and epochs at so many FLOPs; None where epochs are not known."""

    flops: float
    parameters: Estimate
    examples: Estimate
    epochs: Estimate | None


@dataclass(frozen=True, slots=True, eq=False)
class Allocation:
    """How compute is best split, by the closed form: exponents a and b, and `rows` at the budgets."""

    size_exponent: Estimate
    examples_exponent: Estimate
    rows: tuple[AllocationRow, ...]
    surface: Surface = field(repr=False)
    confidence: float = field(repr=False)

    def at(self, flops: float) -> AllocationRow:
        """The best split of so many FLOPs."""
        return _closed_form(self.surface, flops, self.confidence)


@dataclass(frozen=True, slots=True)
class IsoMinimum:
    """The lowest place of a budget's parabola: size, loss there, and the examples and epochs that its FLOPs buy."""

    parameters: Estimate
    loss: float
    examples: float | None
    epochs: float | None


@dataclass(frozen=True, slots=True)
class IsoCurve:
    """One budget: its models by size, their losses (at the budget's FLOPs), and the lowest place between them."""

    budget: str
    flops: float
    parameters: tuple[float, ...]
    losses: tuple[float, ...]
    variants: tuple[str | None, ...]
    minimum: IsoMinimum | Refused
    parabola: tuple[float, float, float] | None = field(default=None, repr=False)  # ln L in ln N

    def loss(self, parameters: float) -> float | None:
        """The parabola at a size; None where there is none."""
        return None if self.parabola is None else float(np.exp(np.polyval(self.parabola, math.log(parameters))))


@dataclass(frozen=True, slots=True, eq=False)
class IsoCompute:
    """The parabolas of all budgets, and how their lowest places move with compute."""

    curves: tuple[IsoCurve, ...]
    size_exponent: Estimate | Refused
    examples_exponent: Estimate | Refused
    epochs_exponent: Estimate | Refused
    lines: tuple[Line | Refused, Line | Refused, Line | Refused] = field(repr=False)
    confidence: float = field(repr=False)

    def at(self, flops: float) -> AllocationRow | Refused:
        """The best split of so many FLOPs."""
        size, examples, epochs = self.lines
        if isinstance(size, Refused):
            return size
        if isinstance(examples, Refused):
            return examples
        place = np.array([math.log(flops)])
        return AllocationRow(
            flops,
            size.exp_at(place, self.confidence),
            examples.exp_at(place, self.confidence),
            None if isinstance(epochs, Refused) else epochs.exp_at(place, self.confidence),
        )


def closed_form(surface: Surface, flops: Sequence[float], confidence: float) -> Allocation | Refused:
    """The compute-optimal split by L(N, D)."""
    if surface.place[1] <= 0:
        return Refused("larger models do not lower the loss in these runs, so that none is too small; try smaller ones")
    if surface.place[2] <= 0:
        return Refused("more examples do not lower the loss in these runs, so that no best split follows")
    alpha, beta = surface.draws[:, 3], surface.draws[:, 4]
    at = float(surface.place[4] / (surface.place[3] + surface.place[4]))
    return Allocation(
        estimate(at, beta / (alpha + beta), confidence),
        estimate(1 - at, alpha / (alpha + beta), confidence),
        tuple(_closed_form(surface, each, confidence) for each in flops),
        surface,
        confidence,
    )


def _closed_form(surface: Surface, flops: float, confidence: float) -> AllocationRow:
    """N_opt = G (C/k)^a, G = (alpha A / beta B)^(1/(alpha+beta)), a = beta / (alpha+beta), about the references."""
    pairs = flops / surface.flops_per_parameter_example
    distance = math.log(pairs / surface.reference_parameters / surface.reference_examples)

    def log_size(place: FloatArray) -> FloatArray:
        with np.errstate(divide="ignore"):  # A or B is zero in some resamples: then the best size is none, or any
            ratio = np.log(place[:, 3] * place[:, 1] + 1e-300) - np.log(place[:, 4] * place[:, 2] + 1e-300)
        found: FloatArray = (ratio + place[:, 4] * distance) / (place[:, 3] + place[:, 4])
        return np.clip(found, -300, 300)

    value = float(log_size(surface.place[None])[0])
    draws = log_size(surface.draws)
    sizes, lengths = surface.reference_parameters, surface.reference_examples
    parameters = estimate(sizes * math.exp(value), sizes * np.exp(draws), confidence)
    examples = estimate(lengths * math.exp(distance - value), lengths * np.exp(distance - draws), confidence)
    return AllocationRow(flops, parameters, examples, _in_epochs(examples, surface.examples_per_epoch))


def _in_epochs(examples: Estimate, per_epoch: float | None) -> Estimate | None:
    if per_epoch is None:
        return None
    return Estimate(examples.value / per_epoch, examples.low / per_epoch, examples.high / per_epoch)


def iso_compute(
    budgets: Sequence[BudgetRuns],
    cells: Sequence[Cell],
    exponent: float | None,
    scatter: Scatter | None,
    *,
    bootstraps: int,
    confidence: float,
    rng: np.random.Generator,
) -> IsoCompute | Refused:
    """A parabola for each budget, and the power laws through their lowest places.

    Args:
        budgets: the budgets, rising.
        cells: their cells; those without parameters are left out.
        exponent: of loss in compute, by which losses are brought to their budget's FLOPs; None leaves them.
        scatter: of the losses, from which a lowest place gets its interval; None takes the neighbouring sizes for it.
    """
    if not cells:
        return Refused("no cell is left to compare")
    if all(cell.parameters is None for cell in cells):
        return Refused("the runs have no parameters; iso-compute curves need the size of each run's model")
    by_budget: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.parameters is not None:
            by_budget[cell.budget].append(cell)
    curves = []
    for budget in budgets:
        members = by_budget[budget.label]
        flops = [cell.flops for cell in members]
        if members and max(flops) <= WIDEST**2 * min(flops):
            level = float(np.exp(np.mean(np.log(flops))))
            curves.append(_curve(budget.label, level, members, exponent or 0.0, scatter, bootstraps, confidence, rng))
    if not curves:
        return Refused("no budget has models of different sizes at the same FLOPs")
    found = [(curve.flops, curve.minimum) for curve in curves if isinstance(curve.minimum, IsoMinimum)]
    flops_found = np.array([flops for flops, _ in found])

    def line(name: str, values: Sequence[float | None]) -> Line | Refused:
        if any(value is None for value in values):
            return Refused(f"the runs do not tell {name}")
        if len(values) < MINIMA_NEEDED:
            return Refused(
                f"{len(values)} of {len(curves)} budgets have their lowest loss between two sizes; the exponent needs "
                f"at least {MINIMA_NEEDED}; search larger or smaller models"
            )
        logs = np.log([float(value or math.nan) for value in values])
        return fit_line(np.log(flops_found)[:, None], logs, bootstraps=bootstraps, rng=rng)

    lines = (
        line("parameters", [minimum.parameters.value for _, minimum in found]),
        line("examples", [minimum.examples for _, minimum in found]),
        line("epochs", [minimum.epochs for _, minimum in found]),
    )
    exponents = [each if isinstance(each, Refused) else each.slope(0, confidence) for each in lines]
    return IsoCompute(tuple(curves), exponents[0], exponents[1], exponents[2], lines, confidence)


def _curve(
    label: str,
    flops: float,
    cells: Sequence[Cell],
    exponent: float,
    scatter: Scatter | None,
    bootstraps: int,
    confidence: float,
    rng: np.random.Generator,
) -> IsoCurve:
    best: dict[float, Cell] = {}
    for cell in sorted(cells, key=lambda cell: -cell.loss):
        best[float(cell.parameters or 0)] = cell
    sizes = tuple(sorted(best))
    losses = tuple(best[size].loss * (best[size].flops / flops) ** exponent for size in sizes)
    variants = tuple(best[size].variant for size in sizes)
    lowest = int(np.argmin(losses))
    if len(sizes) < SIZES_NEEDED:
        why = Refused(f"{len(sizes)} size{'s' * (len(sizes) != 1)}; a parabola needs at least {SIZES_NEEDED}")
        return IsoCurve(label, flops, sizes, losses, variants, why)
    if lowest in (0, len(sizes) - 1):
        end, side = ("smallest", "at most") if lowest == 0 else ("largest", "at least")
        why = Refused(f"the {end} model is the best, so the best size is {side} {sizes[lowest]:.3g} parameters")
        return IsoCurve(label, flops, sizes, losses, variants, why)
    near = slice(max(0, lowest - _AROUND), lowest + _AROUND + 1)
    place, loss = np.log(sizes[near]), np.log(losses[near])
    centre = float(place.mean())
    inverse = np.linalg.pinv(np.vander(place - centre, 3))
    ends = (math.log(sizes[lowest - 1]) - centre, math.log(sizes[lowest + 1]) - centre)
    square, slope, level = inverse @ loss
    if square <= 0:
        why = Refused("the losses of the sizes do not form a valley")
        return IsoCurve(label, flops, sizes, losses, variants, why)
    vertex = float(np.clip(-slope / (2 * square), *ends))
    draws = np.array(ends)
    if scatter is not None:
        deviations = drawn_sd(rng, scatter.log_sd, scatter.degrees, bootstraps)[:, None]
        seeds = np.array([best[size].seeds for size in sizes[near]])
        drawn = (loss + deviations * rng.standard_normal((bootstraps, len(loss))) / np.sqrt(seeds)) @ inverse.T
        convex = drawn[:, 0] > 0
        with np.errstate(divide="ignore", invalid="ignore"):
            turned = np.where(convex, -drawn[:, 1] / (2 * drawn[:, 0]), -np.sign(drawn[:, 1]) * np.inf)
        draws = np.clip(np.nan_to_num(turned), place[0] - centre, place[-1] - centre)
    size = estimate(math.exp(centre + vertex), np.exp(centre + draws), confidence)
    at_vertex = math.exp(level + slope * vertex + square * vertex**2)
    parabola = (float(square), float(slope - 2 * square * centre), float(level - slope * centre + square * centre**2))
    examples = _between([best[each] for each in sizes[near]], centre + vertex)
    per_epoch = examples_per_epoch([best[each] for each in sizes])
    epochs = None if examples is None or per_epoch is None else examples / per_epoch
    return IsoCurve(
        label, flops, sizes, losses, variants, IsoMinimum(size, at_vertex, examples, epochs), parabola
    )  # fmt: skip


def _between(cells: Sequence[Cell], log_size: float) -> float | None:
    """The examples that the budget buys at a size: between those of its models, in logarithms."""
    if any(cell.examples is None for cell in cells):
        return None
    sizes = np.log([float(cell.parameters or 1) for cell in cells])
    return float(np.exp(np.interp(log_size, sizes, np.log([float(cell.examples or 1) for cell in cells]))))
