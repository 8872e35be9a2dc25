"""Tables of what real runs gave at every point of their grids, and the loss surfaces that they make.

`studies/recorded/*.csv` hold studies of the handwritten digits, each trained at every learning rate of its grid with
every variant, with more than one seed; their README says how. A row is a trial; its columns are

    study, batch_size, classes                              the same in every row
    budget_flops, variant, epochs, flops_per_image, parameters, learning_rate, seed
    outcome, loss                                           finished or diverged; held-out loss, nats per image
    train_loss_at_0.125, ..._0.25, ..._0.5, ..._0.75        training loss so far, see `SHARES`

`rows_of` makes such rows of any study's ledger.
"""

from __future__ import annotations

import csv
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from search.ledger import Record
from search.space import CellSize
from search.state import StudyState
from search.surfaces import Observed, Surface

FOLDER: Final = Path(__file__).resolve().parent.parent / "studies" / "recorded"
SHARES: Final = (0.125, 0.25, 0.5, 0.75)
"""Where of the training the partial losses are taken: the mean training loss over the eighth that ends there."""

_COLUMNS: Final = (
    "study",
    "batch_size",
    "classes",
    "budget_flops",
    "variant",
    "epochs",
    "flops_per_image",
    "parameters",
    "learning_rate",
    "seed",
    "outcome",
    "loss",
)
COLUMNS: Final = (*_COLUMNS, *(f"train_loss_at_{share:g}" for share in SHARES))

_Number = TypeVar("_Number", int, float)
_Key = tuple[float, str, float, int]  # budget in FLOPs, variant, learning rate, seed


class TableError(ValueError):
    """The table cannot be read as a surface; the message is one line that says why."""


@dataclass(frozen=True, slots=True)
class Table:
    """A recorded study.

    Attributes:
        surface: as a loss surface. Its true losses are means over the seeds; a point where one diverged diverges.
        seeds: the runs' seeds, in the order of `surface.runs`.
        partial: by (budget's FLOPs, variant, learning rate, seed) the training losses at the first of `SHARES`, until
            one that the run did not come to, or logged nothing for.
    """

    surface: Surface
    seeds: tuple[int, ...]
    partial: Mapping[_Key, tuple[float, ...]]

    def alone(self, number: int) -> Surface:
        """The runs of one of the seeds (by its place in `seeds`) as a surface without noise.

        A search trains all of its trials with one seed, so this is what it looks for the best in. Seeds of small data
        differ by more than neighbouring points: the mean of a few of them is no better known than each.
        """
        run = self.surface.runs[number]
        losses = tuple(tuple(tuple(loss for _, loss in cell) for cell in here) for here in run)
        name = f"{self.surface.name}, seed {self.seeds[number]}"
        return replace(self.surface, name=name, losses=losses, noise=0.0, runs=(run,))


def names() -> list[str]:
    """The tables there are, such as "digits-64"."""
    return sorted(path.stem for path in FOLDER.glob("*.csv"))


def recorded(name: str) -> Surface:
    """The surface of a table. Raises `TableError` if there is none of that name."""
    return table(name).surface


def table(name: str) -> Table:
    """A table by name. Raises `TableError` if there is none of that name."""
    path = FOLDER / f"{name}.csv"
    if not path.exists():
        raise TableError(f"no table {name!r} in {FOLDER}; there are {', '.join(names())}")
    return read_table(path)


def read_table(path: Path) -> Table:
    """A table from a file.

    Raises:
        TableError: columns missing, a row that cannot be read or comes twice, or a point without a run of each seed.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in _COLUMNS if name not in (reader.fieldnames or ())]:
            raise TableError(f"{path}: no column {', '.join(missing)}; a table has {', '.join(_COLUMNS)}")
        rows = [(f"{path}, line {reader.line_num}", row) for row in reader]
    if not rows:
        raise TableError(f"{path}: no rows; a table has one for each trial")
    return _table(rows, path)


def _table(rows: Sequence[tuple[str, Mapping[str, str]]], path: Path) -> Table:
    cells: dict[float, dict[str, CellSize]] = {}
    runs: dict[_Key, Observed] = {}
    partial: dict[_Key, tuple[float, ...]] = {}
    for place, row in rows:
        try:
            key, cell, run, losses_so_far = _row(row)
            batch_size, classes = _number(row, "batch_size", int), _number(row, "classes", int)
        except ValueError as error:
            raise TableError(f"{place}: {error}") from error
        budget, variant, rate, seed = key
        if key in runs:
            raise TableError(
                f"{place}: a second run of {variant} at {budget:g} FLOPs, learning rate {rate:g} and seed {seed}; "
                "allowed: one of each"
            )
        cells.setdefault(budget, {}).setdefault(variant, cell)
        runs[key], partial[key] = run, losses_so_far
    budgets = tuple(sorted(cells))
    sizes = tuple(tuple(sorted(cells[budget].values(), key=lambda cell: cell.flops_per_image)) for budget in budgets)
    rates = tuple(sorted({rate for _, _, rate, _ in runs}))
    seeds = tuple(sorted({seed for _, _, _, seed in runs}))
    for budget, here in zip(budgets, sizes, strict=True):
        for cell, rate, seed in itertools.product(here, rates, seeds):
            if (budget, cell.variant, rate, seed) not in runs:
                raise TableError(
                    f"{path}: no run of {cell.variant} at {budget:g} FLOPs, learning rate {rate:g} and seed {seed}; "
                    "a surface needs every point with every seed"
                )

    def of(seed: int) -> tuple[tuple[tuple[Observed, ...], ...], ...]:
        return tuple(
            tuple(tuple(runs[budget, cell.variant, rate, seed] for rate in rates) for cell in here)
            for budget, here in zip(budgets, sizes, strict=True)
        )

    observed = tuple(of(seed) for seed in seeds)
    losses = tuple(
        tuple(
            tuple(statistics.fmean(seed[b][c][r][1] for seed in observed) for r in range(len(rates)))
            for c in range(len(sizes[b]))
        )
        for b in range(len(budgets))
    )
    surface = Surface(
        name=f"recorded {rows[0][1]['study']}",
        family="recorded",
        budgets=budgets,
        cells=sizes,
        learning_rates=rates,
        losses=losses,
        noise=_noise(observed, losses),
        batch_size=batch_size,
        classes=classes,
        runs=observed,
    )
    return Table(surface, seeds, partial)


def _row(row: Mapping[str, str]) -> tuple[_Key, CellSize, Observed, tuple[float, ...]]:
    """A row's point, its cell, how it ended, and its training losses so far. Raises `ValueError` for what is none."""
    run: Observed
    match row["outcome"]:
        case "finished":
            run = "finished", _number(row, "loss", float)
        case "diverged":
            run = "diverged", math.inf
        case other:
            raise ValueError(f"outcome is {other!r}; allowed: finished or diverged")
    variant = row["variant"]
    epochs, flops_per_image = _number(row, "epochs", float), _number(row, "flops_per_image", float)
    cell = CellSize(variant, epochs, flops_per_image, _number(row, "parameters", int))
    budget_flops, learning_rate = _number(row, "budget_flops", float), _number(row, "learning_rate", float)
    so_far = itertools.takewhile(row.get, COLUMNS[len(_COLUMNS) :])
    losses = tuple(_number(row, name, float) for name in so_far)
    return (budget_flops, variant, learning_rate, _number(row, "seed", int)), cell, run, losses


def _number(row: Mapping[str, str], name: str, kind: type[_Number]) -> _Number:
    try:
        value = kind(row[name])
        if math.isfinite(value):
            return value
    except (TypeError, ValueError):  # TypeError: None, where the row is too short
        pass
    allowed = "a whole number" if kind is int else "a number"
    raise ValueError(f"{name} is {row[name]!r}; allowed: {allowed}")


def _noise(
    runs: Sequence[Sequence[Sequence[Sequence[Observed]]]], losses: Sequence[Sequence[Sequence[float]]]
) -> float:
    """Relative standard deviation of a run about its point's mean; 0 for a single seed."""
    if len(runs) < 2:
        return 0.0
    squares = [
        sum((run[b][c][r][1] / loss - 1) ** 2 for run in runs) / (len(runs) - 1)
        for b, here in enumerate(losses)
        for c, cell in enumerate(here)
        for r, loss in enumerate(cell)
        if math.isfinite(loss)
    ]
    return math.sqrt(statistics.fmean(squares)) if squares else 0.0


# ---------------------------------------------------------------- recording


def rows_of(records: Iterable[Record], study: str | None = None) -> list[dict[str, Any]]:
    """A study's ended trials as rows of a table, in the order of suggestion; failed ones are left out.

    Args:
        records: the study's ledger.
        study: what the table calls the study; None: by its own name.
    """
    records = list(records)
    state = StudyState.of(records)
    batch_size: dict[str, int] = {}
    curves: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        if record.event == "trial_suggested":
            batch_size[record["trial"]] = record["batch_size"]
        elif record.event == "trial_progressed":
            curves.setdefault(record["trial"], []).extend((int(p[0]), float(p[1])) for p in record["points"])
    rows: list[dict[str, Any]] = []
    for trial in state.trials.values():
        if trial.outcome not in ("finished", "diverged"):
            continue
        budget = state.budgets[trial.budget]
        cell = next(cell for cell in budget.cells if cell["variant"] == trial.variant)
        values = (
            study or state.opened["study"],
            batch_size[trial.trial_id],
            state.opened["classes"],
            budget.flops,
            trial.variant,
            trial.epochs,
            cell["flops_per_image"],
            trial.parameters,
            trial.learning_rate,
            trial.seed,
            trial.outcome,
            round(trial.heldout_loss, 6) if trial.outcome == "finished" else "",
            *_at_shares(curves.get(trial.trial_id, []), trial.steps, trial.step),
        )
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def _at_shares(curve: Sequence[tuple[int, float]], steps: int, reached: int) -> list[float | str]:
    """Training losses at `SHARES`; empty texts where the run did not come so far, or logged nothing on the way."""
    found: list[float | str] = []
    for share in SHARES:
        losses = [loss for step, loss in curve if (share - 0.125) * steps < step <= share * steps]
        found.append(round(statistics.fmean(losses), 5) if losses and reached >= share * steps else "")
    return found


def write_table(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write a table, rows by budget, variant, learning rate and seed."""
    key = ("budget_flops", "flops_per_image", "learning_rate", "seed")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: tuple(row[name] for name in key)))
