"""A model as the XLA runtime trains it."""

from __future__ import annotations

from typing import Final

from torch import nn

from models.forms import compact
from trainables.runtime.scan import Scan

FEWEST_IN_A_LOOP: Final = 24
"""Blocks of a stage that are alike are compiled one by one below this number, and as one body from it on.

By the TPU's compiler a block in a loop takes about two fifths longer: an F3 in loops is compiled in two thirds of the
time, and held in nine tenths of the memory, but trains a fifth slower (benchmarks/aot.py). Up to F3 there is no loop;
beyond, the third stage is one, so that no program has the bodies of more than fifty blocks.
"""


def prepared(model: nn.Module, *, fewest: int = FEWEST_IN_A_LOOP) -> nn.Module:
    """`model`, changed in place: see `models.forms.compact`. The arithmetic stays, in another order."""
    return compact(model, Scan, fewest=fewest)
