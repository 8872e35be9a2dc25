"""A model as the XLA runtime trains it."""

from __future__ import annotations

from typing import Final

from torch import nn

from models.forms import compact
from trainables.runtime.scan import Scan

FEWEST_IN_A_LOOP: Final = 8
"""Blocks of a stage that are compiled one by one up to here, and as one body from here on.

A program grows with the blocks that are compiled one by one. With 8 it has the bodies of 12 blocks for F0, 14 for F1,
16 for F3 and 14 for F7. Steps are slower by a loop (benchmarks/aot.py says by how much), and most so at the high
resolution of the first stages, which have few blocks.
"""


def prepared(model: nn.Module, *, fewest: int = FEWEST_IN_A_LOOP) -> nn.Module:
    """`model`, changed in place: see `models.forms.compact`. The arithmetic stays, in another order."""
    return compact(model, Scan, fewest=fewest)
