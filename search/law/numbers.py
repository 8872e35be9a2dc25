"""A number with its interval, a refusal with its reason, and how draws become intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.intp]
_LARGEST_SD: Final = 2.0


class LawError(ValueError):
    """Runs that cannot be read, or a question that cannot be asked: one line that says how to mend it."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and the interval that holds the true one with the law's confidence; both ends in the value's unit."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Refused:
    """Why there is no answer, in one plain sentence."""

    reason: str


def estimate(value: float, draws: FloatArray, confidence: float) -> Estimate:
    """A value with the interval between the draws' quantiles; `draws`, shape (B,), may hold infinities, never NaN."""
    low, high = quantiles(draws, confidence)
    return Estimate(float(value), min(float(low), float(value)), max(float(high), float(value)))


def quantiles(draws: FloatArray, confidence: float) -> FloatArray:
    """The two ends of the central interval, along the first axis: shape (2, ...)."""
    tail = (1 - confidence) / 2
    found: FloatArray = np.quantile(draws, [tail, 1 - tail], axis=0, method="inverted_cdf")
    return found


def drawn_sd(
    rng: np.random.Generator, sd: float, degrees: int, count: int, *, largest: float = _LARGEST_SD
) -> FloatArray:
    """What the standard deviation may have been, `count` times, when it was estimated as `sd` with so many degrees.

    The squared deviation is drawn as `sd^2 degrees / chi^2(degrees)`. Draws of a linear fit made with it follow
    Student's t, so that intervals from few points are as wide as they must be; a bootstrap at a fixed deviation, or
    over the points, gives those of the normal distribution, or less. Draws are cut off at `largest`, 2 of
    ln(loss).
    """
    found: FloatArray = np.minimum(sd * np.sqrt(degrees / rng.chisquare(degrees, size=count)), largest)
    return found
