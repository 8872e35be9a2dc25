"""Comparisons of trials as tables: on a terminal, in Markdown, and all that is known of each trial as CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Final

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from search.compare import RESULTS, SETTINGS, Comparison, Trial
from search.formats import MISSING, number, percent, scientific
from search.terminal import tell

# Where the terminal is narrow, settings that hold for whole studies go first, then these, in this order.
_DROPPED_FIRST: Final = ("images_per_second", "mfu", "ema_heldout_loss", "goodput", "parameters", "core_hours", "gap",
                         "seeds")  # fmt: skip
_POINT: Final = frozenset({"variant", "epochs", "learning_rate"})  # which trial it is
_TEXT: Final = frozenset({"study", "run", "variant", "outcome", "device", "code_version"})
_HEADINGS: Final = {"heldout_loss": "held-out loss", "mean_heldout_loss": "mean", "heldout_accuracy": "accuracy",
                    "ema_heldout_loss": "EMA loss", "core_hours": "core-hours", "images_per_second": "images per s",
                    "mfu": "MFU"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its name, what stands above it, and a cell for each trial."""

    name: str
    heading: str
    cells: tuple[str, ...]

    @property
    def right(self) -> bool:
        """Whether it is set right: figures are, words are not."""
        return self.name not in _TEXT


def columns(comparison: Comparison) -> list[Column]:
    """Variant, epochs, learning rate and what else differs between the trials shown, then what came of them, with means
    if a point was run with several seeds; a column that would be empty is left out.
    """

    def column(name: str, show: Callable[[Trial], str]) -> Column:
        heading = _HEADINGS.get(name, name.rpartition(".")[2].replace("_", " "))
        return Column(name, heading, tuple(show(trial) for trial in comparison.trials))

    differing = comparison.differing
    settings: list[str] = [name for name in SETTINGS if name in differing or name in _POINT]
    settings += [name for name in differing if name not in SETTINGS]
    made = [column(name, lambda trial, name=name: _setting(trial, name)) for name in settings]  # type: ignore[misc]
    mean = column("mean_heldout_loss", lambda trial: number(trial.mean_loss, 4))
    seeds = column("seeds", _seeds)
    made += [
        column("heldout_loss", lambda trial: number(trial.heldout_loss, 4)),
        *(
            [mean, seeds]
            if any(trial.seeds and trial.seeds + trial.point_diverged > 1 for trial in comparison.trials)
            else ()
        ),
        column("gap", lambda trial: _gap(comparison.gap(trial))),
        column("ema_heldout_loss", lambda trial: number(_result(trial, "ema_heldout_loss"), 4)),
        column("heldout_accuracy", lambda trial: percent(_result(trial, "heldout_accuracy"))),
        column("core_hours", lambda trial: _core_hours(_result(trial, "core_hours"))),
        column("goodput", lambda trial: percent(_result(trial, "goodput"))),
        column("images_per_second", lambda trial: number(_result(trial, "mean_images_per_second"))),
        column("mfu", lambda trial: percent(_result(trial, "mfu"))),
    ]
    if any(trial.outcome != "finished" for trial in comparison.trials):
        made.append(column("outcome", lambda trial: trial.outcome))
    return [column for column in made if any(cell != MISSING for cell in column.cells)]


def _result(trial: Trial, name: str) -> float:
    return trial.results.get(name, math.nan)


def _setting(trial: Trial, name: str) -> str:
    """A number as people read it, a word as it is."""
    text = trial.settings.get(name, MISSING)
    if name in ("seed", "run", "code_version"):
        return text
    try:
        return number(float(text), 3, trim=True)
    except ValueError:
        return text


def _seeds(trial: Trial) -> str:
    return str(trial.seeds) + (f", {trial.point_diverged} diverged" if trial.point_diverged else "")


def _gap(value: float) -> str:
    return MISSING if math.isnan(value) or value == 0 else f"{'+' if value > 0 else ''}{number(value, 2)}"


def _core_hours(value: float) -> str:
    return number(value, 2 if value < 1 else 3)


def title(comparison: Comparison) -> str:
    """The budget, as the studies call it, and how many trials it has."""
    label = " = ".join(comparison.labels)
    if not any("FLOPs" in label for label in comparison.labels):
        label += f" ({scientific(comparison.flops)} FLOPs)"
    shown, total = len(comparison.trials), comparison.total
    return f"Budget {label}: {'' if shown == total else f'best {shown} of '}{total} trial{'' if total == 1 else 's'}"


def alike(comparison: Comparison) -> str:
    """What the trials shown have in common, but for what is a column all the same, in one line; empty if nothing."""
    settings = {name: value for name, value in comparison.alike.items() if name not in _POINT}
    common = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())
    which = "all" if len(comparison.trials) == comparison.total else "those shown"
    return f"the same in {which}: {common}" if common and len(comparison.trials) > 1 else common


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print a table that fits the console: the least important columns go first where it is narrow."""
    every = columns(comparison)
    told = {"study", "run", "variant", "epochs", "learning_rate", "seed", "batch_size", "heldout_loss", "outcome",
            "mean_heldout_loss", "heldout_accuracy", *_DROPPED_FIRST}  # fmt: skip
    order = [column.name for column in reversed(every) if column.name not in told]
    order += [name for name in (*_DROPPED_FIRST, "heldout_accuracy", "seed") if name in {c.name for c in every}]
    dropped, gap = _fitting(every, order, console)
    kept = [column for column in every if column.name not in order[:dropped]]
    table = _table(kept, gap)
    for place, cells in enumerate(zip(*(column.cells for column in kept), strict=True)):
        best = place == 0 and not math.isnan(comparison.best_loss)
        table.add_row(*map(Text, cells), style="bold green" if best else None)
    tell(console, title(comparison))
    if common := alike(comparison):
        console.print(Text(common, style="dim"), soft_wrap=True)
    console.print(table)
    if dropped:
        names = ", ".join(column.heading for column in every if column.name in order[:dropped])
        console.print(Text(f"not shown, for want of room: {names}; --csv has them", style="dim"), soft_wrap=True)


def _fitting(every: Sequence[Column], order: Sequence[str], console: Console) -> tuple[int, int]:
    """How many columns of `order` to drop, and the gap between the rest, so that the console is wide enough: all and 1
    if it never is.
    """
    # A table is as wide as one that has just the widest cell of each column, which is measured in no time.
    widest = {column.name: max(column.cells, key=_width, default="") for column in every}
    for dropped in range(len(order) + 1):
        kept = [column for column in every if column.name not in order[:dropped]]
        for gap in (2, 1):
            table = _table(kept, gap)
            table.add_row(*(Text(widest[column.name]) for column in kept))
            if console.measure(table, options=console.options.update(width=10_000)).maximum <= console.width:
                return dropped, gap
    return len(order), 1


def _width(cell: str) -> int:
    return max(map(cell_len, cell.splitlines()), default=0)


def _table(kept: Sequence[Column], gap: int) -> Table:
    """A table of these columns, without rows."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap, 0, 0))
    for column in kept:
        heading = column.heading.replace(" ", "\n", 1) if column.right else column.heading
        table.add_column(heading, justify="right" if column.right else "left", vertical="bottom", no_wrap=True)
    return table


def write_markdown(comparisons: Sequence[Comparison], file: IO[str]) -> None:
    """A heading and a table for each budget, with the columns that the terminal shows where it is wide."""
    for place, comparison in enumerate(comparisons):
        kept = columns(comparison)
        lines = [f"### {title(comparison)}", ""]
        if common := alike(comparison):
            lines += [_escaped(common), ""]
        lines.append(f"| {' | '.join(_escaped(column.heading) for column in kept)} |")
        lines.append(f"| {' | '.join('---:' if column.right else '---' for column in kept)} |")
        lines += [
            f"| {' | '.join(map(_escaped, cells))} |" for cells in zip(*(column.cells for column in kept), strict=True)
        ]
        file.write(("\n" if place else "") + "\n".join(lines) + "\n")


def _escaped(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())


def write_csv(comparisons: Sequence[Comparison], file: IO[str]) -> None:
    """A line for each trial with all that MLflow has of it; what is missing is empty. Results, the budget's FLOPs and
    whole numbers are there in full precision, other settings to the six digits that MLflow was given.

    `convscale law` reads it.
    """
    trials = [trial for comparison in comparisons for trial in comparison.trials]
    more = list(dict.fromkeys(name for trial in trials for name in trial.settings if name not in SETTINGS))
    times = sorted({name for trial in trials for name in trial.results if name.startswith("seconds_")})
    results = [*RESULTS, *times]
    writer = csv.writer(file, lineterminator="\n")
    of_budget, ids = ["budget", "budget_flops", "rank"], ["trial", "mlflow_run_id"]
    writer.writerow(
        [
            *of_budget,
            *SETTINGS,
            "examples",
            "outcome",
            "gap",
            "mean_heldout_loss",
            "seeds",
            "seeds_diverged",
            *results,
            *more,
            *ids,
        ]
    )
    for comparison in comparisons:
        for rank, trial in enumerate(comparison.trials, start=1):
            given = [*(trial.settings.get(name, "") for name in SETTINGS), _examples(trial)]
            figures = [_figure(trial.heldout_loss), *(_figure(_result(trial, name)) for name in results[1:])]
            ends = [
                trial.outcome,
                _figure(comparison.gap(trial)),
                _figure(trial.mean_loss),
                trial.seeds,
                trial.point_diverged,
                *figures,
            ]
            others = [trial.settings.get(name, "") for name in more]
            writer.writerow(
                [trial.budget, trial.budget_flops, rank, *given, *ends, *others, trial.trial_id, trial.run_id]
            )


def _examples(trial: Trial) -> int | str:
    """Images trained on, of all epochs."""
    steps, batch_size = (trial.settings.get(name) for name in ("steps", "batch_size"))
    return int(steps) * int(batch_size) if steps and batch_size else ""


def _figure(value: float) -> str | float:
    return "" if math.isnan(value) else value
