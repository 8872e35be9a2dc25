"""The learning-rate trend: what the valleys that were seen say about those of a budget.

In each cell the logarithm of the loss is a parabola in x, the logarithm of the peak learning rate:

    log loss = level + slope x + curvature x^2

and the three numbers of a cell follow a trend over the sizes of model and budget, each with a scatter of its own. The
level bends with log(model FLOPs) and log(budget), and each variant may be a little better or worse than its size. The
valley's centre falls with log(model FLOPs) and with log(epochs), as the study of arXiv 2310.16764 (figure 3) finds. x
counts from where the prior expects the centre, so that what is learnt is the distance from there. All of that is linear
and Gaussian, hence solved exactly (the linear hierarchy of Lindley and Smith 1972). The rest is summed over
`search.trend_worlds`, each world weighed by how well it foretells the losses (Bayesian model averaging: Hoeting et al.
1999).

Logarithms of learning rates, FLOPs and epochs are to base 2 (octaves), those of the loss natural.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from search.space import Explored, Space, Tried
from search.trend_seen import Outcomes, Places
from search.trend_worlds import FALL, LEVEL_TERMS, SLOPE_TERMS, TERMS, Array, Worlds

_MISFIT: Final = 0.2  # a parabola errs by about so much of what a point lies above the lowest of its cell
# Where training diverges the valley is taken to rise as steeply as it does so many octaves above its best rate.
_DIVERGED, _DIVERGED_SD = 2.5, 1.5
_WEIGH_CELLS: Final = 60  # worlds are weighed by so many cells, the present budget's and those before it ...
_UNLIKELY: Final = 12.0  # ... and left out where they are so much less likely (log) than the likeliest
_LEAST_CURVATURE: Final = 0.3  # of the world's: no valley is a plain, or a ridge
_TINIEST_LOSS: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Belief:
    """What is believed of every cell of a budget after the trials: draws of their valleys.

    Attributes:
        valleys: (draws, cells, 3): level, slope and curvature of the log loss over x, cells in the order of the space.
        centre: (cells,): where x counts from, log2 of the learning rate.
        edge: (cells,): log2 of the lowest rate that diverged; infinite where none did.
    """

    valleys: Array
    centre: Array
    edge: Array

    def log_loss(self, learning_rates: Sequence[float]) -> Array:
        """Log loss without noise, in each draw: (draws, cells, rates)."""
        x = np.log2(np.asarray(learning_rates)) - self.centre[:, None]
        level, slope, curvature = (np.ascontiguousarray(self.valleys[..., k, None]) for k in range(3))
        drawn: Array = curvature * x
        drawn += slope
        drawn *= x
        drawn += level
        return drawn

    def best_rates(self) -> Array:
        """log2 of each valley's best learning rate, in each draw, below what diverged: (draws, cells)."""
        best: Array = np.minimum(self.centre - self.valleys[..., 1] / (2 * self.valleys[..., 2]), self.edge)
        return best


def believe(
    space: Space,
    trials: Sequence[Tried],
    smaller: Sequence[Explored] = (),
    *,
    batch_size: int,
    draws: int,
    random: np.random.Generator,
    worst_loss: float = math.inf,
) -> Belief:
    """What the trials of a budget, and of smaller ones, say about the budget's valleys.

    Finished trials count with their held-out loss, the lowest rate that diverged as a place up the valley's side;
    failed and running ones, and those of variants that their budget does not have, not at all. Raises `ValueError` for
    a loss below zero, which has no logarithm.

    Args:
        space: the budget's cells and grid.
        trials: the budget's trials.
        smaller: the budgets to learn from, cheapest first.
        batch_size: examples of an optimiser step; the prior's learning rate is in proportion to it.
        draws: how many valleys are drawn of each cell.
        random: what they are drawn with.
        worst_loss: that of a uniform guess; a trial that ends far above it has diverged, whatever it says.
    """
    budgets = [Outcomes.of(explored, worst_loss) for explored in (*smaller, Explored(space, trials))]
    return belief_of(budgets, batch_size=batch_size, draws=draws, random=random)


def belief_of(budgets: Sequence[Outcomes], *, batch_size: int, draws: int, random: np.random.Generator) -> Belief:
    """As `believe`, of budgets whose last is the one in question."""
    cells = _Cells.of([outcomes.space for outcomes in budgets], batch_size)
    rows = _Rows.of(budgets, cells)
    worlds = Worlds.all()
    near = _Solved.of(worlds, cells, rows, max(0, len(cells.centre) - _WEIGH_CELLS))
    likely = np.flatnonzero(near.log_weight > near.log_weight.max() - _UNLIKELY)
    solved = _Solved.of(worlds.some(likely), cells, rows)
    return solved.draw(len(budgets[-1].space.cells), draws, random)


def prior_centre(space: Space, batch_size: int) -> float:
    """log2 of the learning rate where the first valley is expected: NFNet's rule, 1.6 at batch 4096 and in proportion
    to the batch (arXiv 2102.06171), or the middle of a grid that does not hold that.
    """
    rule = math.log2(0.1 * batch_size / 256)
    low, high = math.log2(space.learning_rates[0]), math.log2(space.learning_rates[-1])
    return rule if low - 1e-9 <= rule <= high + 1e-9 else (low + high) / 2


@dataclass(frozen=True, slots=True)
class _Cells:
    """The cells of all budgets, the cheapest budget's first.

    Attributes:
        centre: (cells,): where the prior expects each valley, log2 of the learning rate.
        design: (cells, 3, terms): what the trend's terms add to each cell's level, slope and curvature.
    """

    centre: Array
    design: Array

    @classmethod
    def of(cls, spaces: Sequence[Space], batch_size: int) -> _Cells:
        present, variants = spaces[-1], spaces[-1].variants
        sizes = [cell for space in spaces for cell in space.cells]
        budget = np.repeat(np.arange(len(spaces)), [len(space.cells) for space in spaces])
        size = np.log2([cell.flops_per_image for cell in sizes])
        epochs = np.log2([cell.epochs for cell in sizes])
        present_cells, one = budget == budget[-1], np.ones(len(sizes))
        compute = size + epochs  # of a cell, not of its budget: whole steps, or a grid of epochs, do not meet that
        c, n = (each - each[present_cells].mean() for each in (compute, size))
        e, now = epochs - epochs.min(), present_cells.astype(float)
        design = np.zeros((len(sizes), 3, TERMS + len(variants)))
        design[:, 0, :LEVEL_TERMS] = np.stack([one, c, c * c, n, (n - c / 2) ** 2, n * c, now], axis=-1)
        design[:, 1, LEVEL_TERMS : LEVEL_TERMS + SLOPE_TERMS] = np.stack([one, n, e, now], axis=-1)
        design[:, 2, LEVEL_TERMS + SLOPE_TERMS : TERMS] = np.stack([one, c], axis=-1)
        design[:, 0, TERMS:] = [[cell.variant == variant for variant in variants] for cell in sizes]
        return cls(prior_centre(present, batch_size) - FALL * (size - size.min()) - FALL * e, design)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Trials as points (x, log loss); of those that diverged the lowest x of each cell (infinite without one). `above`
    is what a point lies above its cell's lowest; `middle` was taken off all losses.
    """

    cell: Places
    x: Array
    y: Array
    above: Array
    edge: Array
    middle: float

    @classmethod
    def of(cls, budgets: Sequence[Outcomes], cells: _Cells) -> _Rows:
        first = np.cumsum([0, *(len(outcomes.space.cells) for outcomes in budgets)])
        place = np.concatenate([outcomes.cell + start for outcomes, start in zip(budgets, first, strict=False)])
        rates = np.concatenate([outcomes.rate for outcomes in budgets])
        finished = np.concatenate([outcomes.finished for outcomes in budgets])
        diverged = np.concatenate([outcomes.diverged for outcomes in budgets])
        loss, cell, rate = (
            np.concatenate([outcomes.loss for outcomes in budgets])[finished],
            place[finished],
            rates[finished],
        )
        if (loss < 0).any():
            raise ValueError(f"a loss of {loss.min():g} given; allowed: 0 or more, for its logarithm is modelled")
        y = np.log(np.maximum(loss, _TINIEST_LOSS))
        middle = float(y.mean()) if len(y) else 0.0
        y = y - middle
        lowest, edge = np.full(len(cells.centre), np.inf), np.full(len(cells.centre), np.inf)
        np.minimum.at(lowest, cell, y)
        np.minimum.at(edge, place[diverged], np.log2(rates[diverged]))
        x = np.log2(rate) - cells.centre[cell]
        return cls(cell, x, y, y - lowest[cell], edge - cells.centre, middle)

    def equations(self, worlds: Worlds, first: int, cells: int) -> _Equations:
        """The normal equations of every cell's parabola from the `first` on, in every world."""
        noise, of_noise = np.unique(worlds.noise, return_inverse=True)
        here = self.cell >= first
        variance = noise[:, None] ** 2 + (_MISFIT * self.above[here]) ** 2
        seen = _Equations.of(self.cell[here] - first, self.x[here], self.y[here], variance, cells - first)
        return seen.some(of_noise).with_edges(self.edge[first:], worlds.curvature)


@dataclass(frozen=True, slots=True)
class _Equations:
    """What was seen in each cell, as the normal equations of its parabola.

    Attributes:
        information: (worlds, cells, 3, 3), A.
        pull: (worlds, cells, 3), b.
        squares: (worlds,), the sum of y^2 over its variance.
        log_variance: (worlds,), the sum of its logarithm.
    """

    information: Array
    pull: Array
    squares: Array
    log_variance: Array

    @classmethod
    def of(cls, cell: Places, x: Array, y: Array, variance: Array, cells: int) -> _Equations:
        """Of points: `cell`, `x` and `y` (points,), `variance` (worlds, points)."""
        powers = [np.ones_like(x), x, x**2, x**3, x**4]

        def sums(weights: Array) -> Array:
            """(worlds, cells)."""
            return np.stack([np.bincount(cell, of_world, cells) for of_world in weights])

        moments = np.stack([sums(power / variance) for power in powers], axis=-1)
        pull = np.stack([sums(power * y / variance) for power in powers[:3]], axis=-1)
        information = moments[..., np.add.outer(np.arange(3), np.arange(3))]
        return cls(information, pull, (y * y / variance).sum(axis=1), np.log(variance).sum(axis=1))

    def some(self, chosen: Places) -> _Equations:
        return _Equations(self.information[chosen], self.pull[chosen], self.squares[chosen], self.log_variance[chosen])

    def with_edges(self, edge: Array, curvature: Array) -> _Equations:
        """And of what diverged: at `edge` (cells,; infinite where nothing did) the slope of the valley is known,
        roughly, in curvatures (worlds,).
        """
        there = np.isfinite(edge)
        z = np.stack([np.zeros_like(edge), there, 2 * np.where(there, edge, 0.0)], axis=-1)
        deviation = _DIVERGED_SD * curvature
        return _Equations(
            self.information + z[:, :, None] * z[:, None, :] / deviation[:, None, None, None] ** 2,
            self.pull + z * (_DIVERGED * curvature / deviation**2)[:, None, None],
            self.squares + there.sum() * (_DIVERGED / _DIVERGED_SD) ** 2,
            self.log_variance,  # measured in curvatures its variance is the same in all worlds
        )


@dataclass(frozen=True, slots=True)
class _Solved:
    """The trend's posterior in every world, and how likely each world is.

    With A the information of a cell, D the variance of cells about the trend and T the cell's design, the cell knows
    (A^-1 + D)^-1 = (I + A D)^-1 A of the trend's value T beta there.
    """

    worlds: Worlds
    cells: _Cells
    equations: _Equations
    mean: Array
    precision: Array
    log_weight: Array
    edge: Array
    middle: float

    @classmethod
    def of(cls, worlds: Worlds, cells: _Cells, rows: _Rows, first: int = 0) -> _Solved:
        """From the cells from the `first` on."""
        equations = rows.equations(worlds, first, len(cells.centre))
        design, terms = cells.design[first:], cells.design.shape[-1]
        scatter = worlds.cell_variance()
        shrink = np.eye(3) + equations.information * scatter[:, None, None, :]
        inverse = np.linalg.inv(shrink)
        pull = (inverse @ equations.pull[..., None])[..., 0]
        known = (inverse @ equations.information) @ design
        stacked = design.reshape(-1, terms)
        mean, deviation = worlds.trend_prior(terms - TERMS)
        precision: Array = stacked.T @ known.reshape(len(mean), -1, terms)
        precision[:, np.arange(terms), np.arange(terms)] += deviation**-2
        right: Array = pull.reshape(len(mean), -1) @ stacked + mean / deviation**2
        solved = np.linalg.solve(precision, right[..., None])[..., 0].astype(np.float64, copy=False)
        quadratic = (
            equations.squares
            - np.einsum("hci,hi,hci->h", equations.pull, scatter, pull)
            + (mean**2 / deviation**2).sum(axis=-1)
            - (right * solved).sum(axis=-1)
        )
        log_determinant = (
            equations.log_variance
            + np.linalg.slogdet(shrink)[1].sum(axis=-1)
            + np.linalg.slogdet(precision)[1]
            + 2 * np.log(deviation).sum(axis=-1)
        )
        log_weight = worlds.prior - 0.5 * (quadratic + log_determinant)
        return cls(worlds, cells, equations, solved, precision, log_weight, rows.edge, rows.middle)

    def draw(self, cells: int, draws: int, random: np.random.Generator) -> Belief:
        """Valleys of the last `cells` cells: of worlds, of the trend in them, of each cell about the trend."""
        world, trend = self._draw_trends(draws, random)
        scatter = self.worlds.cell_variance()
        known = self.equations.information[:, -cells:] + (1 / scatter)[:, None, :, None] * np.eye(3)  # A + D^-1
        root = _inverse_root(known)
        expected = np.einsum("cip,sp->sci", self.cells.design[-cells:], trend)
        pull = self.equations.pull[:, -cells:][world] + expected / scatter[world][:, None, :]
        root = root[world]
        standard = np.swapaxes(root, -1, -2) @ pull[..., None] + random.standard_normal((*pull.shape, 1))
        valleys = (root @ standard)[..., 0]
        valleys[..., 0] += self.middle
        valleys[..., 2] = np.maximum(valleys[..., 2], _LEAST_CURVATURE * self.worlds.curvature[world][:, None])
        centre = self.cells.centre[-cells:]
        return Belief(valleys, centre, centre + self.edge[-cells:])

    def _draw_trends(self, draws: int, random: np.random.Generator) -> tuple[Places, Array]:
        """Worlds and their trends. Where the best rate must fall only trends that fall are kept: so those worlds count
        for less the less of them does.
        """
        weight = np.exp(self.log_weight - self.log_weight.max())
        factor = _inverse_root(self.precision)
        falls = slice(LEVEL_TERMS + 1, LEVEL_TERMS + 3)
        worlds: list[Places] = []
        trends: list[Array] = []
        for _ in range(20):
            world = random.choice(len(weight), size=draws, p=weight / weight.sum())
            normal = random.standard_normal((draws, self.mean.shape[-1], 1))
            trend = self.mean[world] + (factor[world] @ normal)[..., 0]
            rises = (trend[:, falls] < -FALL * self.worlds.curvature[world][:, None]).any(axis=1)
            kept = ~(self.worlds.falling[world] & rises)
            worlds.append(world[kept])
            trends.append(trend[kept])
            if sum(map(len, worlds)) >= draws:
                break
        if not any(map(len, worlds)):  # nothing that was drawn falls, however it had to
            return world, trend
        return np.concatenate(worlds)[:draws], np.concatenate(trends)[:draws]


def _inverse_root(precision: Array) -> Array:
    """R with R R^T the inverse, of matrices that are positive definite; stable where the inverse itself is not."""
    inverse: Array = np.linalg.inv(np.linalg.cholesky(precision))
    return np.swapaxes(inverse, -1, -2)
