"""A model as the XLA runtime trains it."""

from __future__ import annotations

from torch import nn

from models.forms import compact
from trainables.config import LOOP_FROM
from trainables.runtime.scan import Scan


def prepared(model: nn.Module, *, loop_from: int | None = LOOP_FROM) -> nn.Module:
    """`model`, changed in place: see `models.forms.compact`. The arithmetic stays, in another order."""
    return compact(model, Scan, fewest=loop_from)
