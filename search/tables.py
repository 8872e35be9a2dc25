"""The look of the tables that plans and estimates print."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table


def figures_table(title: str | None, names: Sequence[str], figures: Sequence[str]) -> Table:
    """A table without rows: columns of names to the left, columns of figures set right, none broken into lines."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=0,
    )
    for name in names:
        table.add_column(name, no_wrap=True)
    for heading in figures:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
