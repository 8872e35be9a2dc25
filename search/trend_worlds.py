"""What the trend's model cannot solve for in one step: how steep valleys are, how noisy losses, how far cells scatter,
whether the best learning rate falls at all. A grid of possible worlds, each with its prior.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FALL: Final = 0.2  # octaves of learning rate lost for each of model FLOPs or of epochs; the paper's figure 3: about 0.2
LEVEL_TERMS: Final = 7  # one, budget, budget^2, size, size^2, size x budget, present budget
SLOPE_TERMS: Final = 4  # one, size, epochs, present budget
CURVATURE_TERMS: Final = 2  # one, budget
TERMS: Final = LEVEL_TERMS + SLOPE_TERMS + CURVATURE_TERMS  # and then one for each variant's own level

_CURVATURES: Final = (0.015, 0.04, 0.1, 0.3, 0.8)
_LEVELS: Final = (0.05, 0.25)
_NOISES: Final = (0.002, 0.006, 0.02, 0.05)
_SCATTERS: Final = ((0.15, 0.7), (0.8, 0.3))  # octaves, probability
# Offset (octaves), spread of the fall (octaves an octave), whether it must fall, probability. The first is the paper's:
# within a factor of two of NFNet's rule, falling. The second is of other data and recipes, the third of those where
# the paper's finding does not hold.
_TRENDS: Final = ((0.8, 0.15, True, 0.6), (2.5, 0.15, True, 0.2), (2.5, 0.8, False, 0.2))


@dataclass(frozen=True, slots=True)
class Worlds:
    """A grid of what is not linear; each array is of shape (worlds,).

    Attributes:
        curvature: of a typical valley, in log loss per octave squared; half of it is lost one octave off the centre.
        level: how much the level may change per octave of model size, in log loss.
        noise: standard deviation of a run's log loss.
        scatter: standard deviation of a cell's centre about the trend, octaves.
        offset: standard deviation of the trend's centre about the prior's, octaves.
        spread: standard deviation of the centre's fall about `FALL`, octaves per octave.
        falling: whether the centre must fall, or stay, with size and with epochs.
        prior: log probability before any loss is seen, but for a constant.
    """

    curvature: Array
    level: Array
    noise: Array
    scatter: Array
    offset: Array
    spread: Array
    falling: NDArray[np.bool_]
    prior: Array

    @classmethod
    def all(cls) -> Worlds:
        """Every combination that is considered."""
        grid = [*itertools.product(_CURVATURES, _LEVELS, _NOISES, _SCATTERS, _TRENDS)]
        curvature, level, noise, scatter, trend = zip(*grid, strict=True)
        width, of_width = np.array(scatter).T
        offset, spread, falling, of_trend = np.array(trend, dtype=float).T
        return cls(
            np.array(curvature), np.array(level), np.array(noise), width, offset, spread, falling.astype(bool),
            np.log(of_width * of_trend),
        )  # fmt: skip

    def some(self, chosen: NDArray[np.intp]) -> Worlds:
        """Those worlds, in that order."""
        return Worlds(
            self.curvature[chosen], self.level[chosen], self.noise[chosen], self.scatter[chosen], self.offset[chosen],
            self.spread[chosen], self.falling[chosen], self.prior[chosen],
        )  # fmt: skip

    def cell_variance(self) -> Array:
        """Variance of a cell's level, slope and curvature about the trend: (worlds, 3)."""
        deviation = [0.04 * self.level, self.curvature * self.scatter, 0.125 * self.curvature]
        return np.stack(deviation, axis=-1) ** 2

    def trend_prior(self, variants: int) -> tuple[Array, Array]:
        """Mean and standard deviation of the trend's terms, each (worlds, `TERMS` + variants).

        In a valley of curvature k, c octaves farther off is k c more slope: hence the scale of the slope's terms.
        """
        one, steep = np.ones_like(self.curvature), self.curvature
        deviation = [
            one, 0.3 * one, 0.03 * one, self.level, self.level / 4, self.level / 16, self.level,
            steep * self.offset, steep * self.spread, steep * self.spread, 0.2 * steep,
            0.2 * steep, 0.1 * steep,
            *[0.25 * self.level] * variants,
        ]  # fmt: skip
        mean = np.zeros((len(one), TERMS + variants))
        mean[:, 4] = self.level * 0.4
        mean[:, LEVEL_TERMS + SLOPE_TERMS] = steep / 2
        return mean, np.stack(deviation, axis=-1)
