"""Which cells have a tuned learning rate: by the rates around their best one, or by the valley of all cells together.

In every cell ln L is taken to be a parabola in x, the logarithm of the learning rate, of the same curvature k, whose
centre is linear in the logarithms of size and duration. Within a cell, then,

    ln L = level + k x^2 - 2 k x (c + b ln size + g ln duration)

which is linear in a level for each cell and four numbers of all cells: least squares solves it exactly, and a cell with
two rates, neither of them known to be the best, counts, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

import numpy as np

from search.law.grouping import SAME_RATE, Cell, Setting
from search.law.line import Line
from search.law.numbers import FloatArray, IntArray, drawn_sd

FACTOR: Final = 2.0
"""How far off a learning rate may be where the runs tell no grid."""
_LEAST_STEP: Final = 1.2  # closer rates are no grid
_WIDEST_BRACKET: Final = 2.5  # steps
_HIGHEST: Final = 0.3  # ln of loss over the cell's best, beyond which a valley is no parabola
_SPAN: Final = math.log(1.5)  # of what a direction of the trend needs
_DEGREES: Final = 2
_LEAST_CURVATURE: Final = 0.01
_TINY: Final = 1e-9
_ROUNDS: Final = 3
_SINGLE: Final = 0.8  # of the cells
_OFF: Final = 1.5 * math.log(2)  # of the centre from the mean of the rates tried
SLOPE, SLOPE_SD = -0.15, 0.2
"""The best rate's exponent in size and in duration, as expected: from NFNet-F0 for a quarter of an epoch to F7+ for
eight (11 and 32 times as much) it falls by a factor of two to eight (arXiv 2310.16764, figure 3).
"""
Size = Literal["flops_per_example", "parameters"]
Duration = Literal["epochs", "examples"]
SIZES: Final[tuple[Size, ...]] = get_args(Size)
DURATIONS: Final[tuple[Duration, ...]] = get_args(Duration)


@dataclass(frozen=True, slots=True, eq=False)
class Valley:
    """The valley of all cells: its curvature k, over ln of the rate, and where its centre lies.

    Attributes:
        curvature: k.
        line: the centre, ln of the rate, along ln of size and ln of duration (those of them that are known and vary).
        size, duration: what those are.
        centres: of each cell.
        cells: how many have two rates or more.
    """

    curvature: float
    line: Line
    size: Size | None
    duration: Duration | None
    centres: FloatArray
    cells: int


@dataclass(frozen=True, slots=True)
class Tuning:
    """Cells that may be compared with each other, and those that may not.

    Attributes:
        cells: those that may.
        left_out: those that may not.
        corrected: how many of `cells` have a loss that was brought down to the valley's floor.
        text: how many are left out, and why; empty where none is.
    """

    cells: tuple[Cell, ...]
    left_out: tuple[Cell, ...]
    corrected: int
    text: str


def tuned_cells(cells: Sequence[Cell]) -> Tuning:
    """Those whose best learning rate lies between two others (above, one that diverged will do), or within a step of
    the grid of where the valley of all cells has its centre. All of them, where no run tells its learning rate, or
    where hardly a cell has tried two (`_SINGLE`) and nothing says where its rate should be: such runs were not meant to
    tune it.

    A cell of the second kind that is more than half a step off takes the loss that the valley gives for half a step,
    which is the most that the grid's nearest rate can be off.
    """
    if all(len(_rates(cell)) + len(cell.diverged) < 2 for cell in cells):
        return Tuning(tuple(cells), (), 0, "")
    step = grid_step(cells)
    valley = fit_valley(cells)
    single = sum(len(_rates(cell)) + len(cell.diverged) < 2 for cell in cells)
    if valley is None and single >= _SINGLE * len(cells):
        return Tuning(tuple(cells), (), 0, "")
    kept, left_out, corrected = [], [], 0
    for place, cell in enumerate(cells):
        if cell.learning_rate is None or bracketed(cell, step):
            kept.append(cell)
            continue
        off = math.inf if valley is None else abs(math.log(cell.learning_rate) - valley.centres[place])
        if valley is None or off > step * (1 + 1e-6):
            left_out.append(cell)
            continue
        rise = valley.curvature * max(0.0, off**2 - (step / 2) ** 2)
        kept.append(replace(cell, loss=cell.loss * math.exp(-rise)))
        corrected += rise > 0
    return Tuning(tuple(kept), tuple(left_out), corrected, _in_words(len(cells), len(left_out), valley, step))


def _in_words(cells: int, left_out: int, valley: Valley | None, step: float) -> str:
    if not left_out:
        return ""
    trend = (
        "no trend says where it should be"
        if valley is None
        else f"more than a factor of {math.exp(step):.3g} off the trend of all cells"
    )
    verb = "is" if left_out == 1 else "are"
    return (
        f"{left_out} of {cells} cells {verb} left out, as their learning rate is not tuned (no rate tried on either "
        f"side of the best, and {trend})"
    )


def grid_step(cells: Sequence[Cell]) -> float:
    """ln of the factor between neighbouring learning rates of all cells, `FACTOR` where they are no grid."""
    steps = np.diff(np.sort(np.log([rate for cell in cells for rate in (*_rates(cell), *cell.diverged)])))
    steps = steps[steps > SAME_RATE]
    step = float(np.median(steps)) if len(steps) else 0.0
    return step if step >= math.log(_LEAST_STEP) else math.log(FACTOR)


def bracketed(cell: Cell, step: float) -> bool:
    """Whether the cell's best rate has one below it, and above it one that is worse or diverged, none of them far."""
    if cell.learning_rate is None:
        return False
    best, widest = math.log(cell.learning_rate), _WIDEST_BRACKET * step
    finished = [math.log(rate) - best for rate in _rates(cell)]
    above = [math.log(rate) - best for rate in cell.diverged]
    return any(-widest <= off < -SAME_RATE for off in finished) and any(
        SAME_RATE < off <= widest for off in (*finished, *above)
    )


def _rates(cell: Cell) -> list[float]:
    return [rate for setting in cell.tried if (rate := setting.run.learning_rate) is not None]


def fit_valley(cells: Sequence[Cell], bootstraps: int = 0, rng: np.random.Generator | None = None) -> Valley | None:
    """The valley; None where too few cells have two rates, or these show none. Draws of the line need `rng`."""
    seen = [
        (place, math.log(setting.run.learning_rate), math.log(setting.loss), float(setting.seeds))
        for place, cell in enumerate(cells)
        for setting in near(cell)
        if setting.run.learning_rate is not None
    ]
    if not seen:
        return None
    columns = np.array(seen)
    place = columns[:, 0].astype(np.intp)
    middle = float(columns[:, 1].mean())
    points = _Points(place, columns[:, 1] - middle, columns[:, 2], columns[:, 3])
    named = _directions(cells, place)
    logs = np.array([values for _, values in named]).reshape(len(named), len(cells))
    centre = logs[:, place].mean(axis=1)
    found = _solve(points, logs - centre[:, None], bootstraps, rng)
    if found is None:
        return None
    curvature, line, draws, deviation = found
    line, draws = line + middle * _FIRST[: len(line)], draws + middle * _FIRST[: len(line)]
    names = [name for name, _ in named]
    return Valley(
        curvature,
        Line(centre, line, draws, (), deviation),
        next((name for name in SIZES if name in names), None),
        next((name for name in DURATIONS if name in names), None),
        line[0] + line[1:] @ (logs - centre[:, None]),
        int((np.bincount(place) > 1).sum()),
    )


_FIRST: Final = np.array([1.0, 0.0, 0.0])


def _directions(cells: Sequence[Cell], place: IntArray) -> list[tuple[str, FloatArray]]:
    """ln of size and of duration of all cells: the first of their measures that all cells have and that varies."""
    measures: tuple[dict[str, list[float | None]], ...] = (
        {
            "flops_per_example": [cell.flops / cell.examples if cell.examples else None for cell in cells],
            "parameters": [cell.parameters for cell in cells],
        },
        {"epochs": [cell.epochs for cell in cells], "examples": [cell.examples for cell in cells]},
    )
    found = []
    for of_one in measures:
        for name, values in of_one.items():
            known = [math.log(value) for value in values if value]
            if len(known) == len(cells) and np.ptp(np.array(known)[place]) >= _SPAN:
                found.append((name, np.array(known)))
                break
    return found


def near(cell: Cell) -> list[Setting]:
    """What was tried, without what nearly diverged."""
    return [setting for setting in cell.tried if math.log(setting.loss / cell.loss) <= _HIGHEST]


@dataclass(frozen=True, slots=True, eq=False)
class _Points:
    """Cell, ln of the rate less its mean, ln L, and seeds of all that was tried, each (n,)."""

    place: IntArray
    x: FloatArray
    y: FloatArray
    weight: FloatArray


def _solve(
    points: _Points, directions: FloatArray, bootstraps: int, rng: np.random.Generator | None
) -> tuple[float, FloatArray, FloatArray, float] | None:
    """(k, the centre's level and slopes, draws of these, deviation); None where k is not known, or not above zero.

    The centre's slopes and its distance from the mean rate have a prior, worth a row each: few cells tell them.
    """
    place, x, root = points.place, points.x, np.sqrt(points.weight)
    total = np.bincount(place, points.weight)
    total[total == 0] = 1.0

    def within(values: FloatArray) -> FloatArray:
        found: FloatArray = (values - (np.bincount(place, points.weight * values) / total)[place]) * root
        return found

    shape = np.column_stack([within(x**2), within(x)])
    target = within(points.y)
    degrees = len(x) - len(np.unique(place)) - 2
    if degrees < _DEGREES or np.linalg.matrix_rank(shape) < 2:
        return None
    found, root_of, deviation = _least_squares(shape, target, degrees)
    turned = np.column_stack([shape, *(within(x * values[place]) for values in directions)])
    count = turned.shape[1]
    sd = np.array([_OFF, *[SLOPE_SD] * len(directions)])
    expected = np.array([0.0, *[SLOPE] * len(directions)])
    for _ in range(_ROUNDS):
        bend = 2 * max(found[0], _LEAST_CURVATURE)
        weight = deviation / (bend * sd) + _TINY
        prior = np.column_stack([np.zeros(count - 1), np.diag(weight)])
        design = np.concatenate([turned, prior])
        found, root_of, deviation = _least_squares(design, np.concatenate([target, -weight * bend * expected]), degrees)
    if found[0] <= 0:
        return None
    draws = np.empty((0, len(found) - 1))
    if rng is not None:
        noise = drawn_sd(rng, deviation, degrees, bootstraps)[:, None] * rng.standard_normal((bootstraps, len(found)))
        off = noise @ root_of
        draws = -(found[1:] + off[:, 1:] - off[:, :1] * found[1:] / found[0]) / (2 * found[0])  # delta method
    return float(found[0]), -found[1:] / (2 * found[0]), draws, deviation


def _least_squares(design: FloatArray, target: FloatArray, degrees: int) -> tuple[FloatArray, FloatArray, float]:
    """The coefficients (p,), R with R^T R their covariance at a deviation of one (p, p), and the deviation."""
    left, singular, right = np.linalg.svd(design, full_matrices=False)
    singular = np.maximum(singular, _TINY)
    found = right.T @ (left.T @ target / singular)
    deviation = math.sqrt(float(np.square(target - design @ found).sum()) / degrees)
    return found, right / singular[:, None], deviation
