"""Trials as the trend looks at them: a budget's outcomes as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from search.space import Explored, Space, ended
from search.trend_worlds import Array

Places = NDArray[np.intp]
Mask = NDArray[np.bool_]

_CODES: Final = {"finished": 0, "diverged": 1, "failed": 2, None: 3}


@dataclass(frozen=True, slots=True)
class Outcomes:
    """A budget's trials, but for those of variants that it does not have; arrays of shape (trials,).

    Attributes:
        space: the budget's cells and grid.
        cell: the place of each trial's cell.
        rate: its learning rate.
        loss: its held-out loss; of use where it finished.
        finished, diverged, running: what became of it, by `search.space.ended`.
    """

    space: Space
    cell: Places
    rate: Array
    loss: Array
    finished: Mask
    diverged: Mask
    running: Mask

    @classmethod
    def of(cls, explored: Explored, worst_loss: float) -> Outcomes:
        """`worst_loss` is that of a uniform guess; infinite where there is no such thing."""
        cells = {variant: place for place, variant in enumerate(explored.space.variants)}
        rows = [
            (cells[trial.variant], trial.learning_rate, _CODES[ended(trial, worst_loss)], trial.heldout_loss)
            for trial in explored.trials
            if trial.variant in cells
        ]
        cell, rate, code, loss = np.array(rows, dtype=float).reshape(-1, 4).T
        return cls(explored.space, cell.astype(np.intp), rate, loss, code == 0, code == 1, code == 3)
