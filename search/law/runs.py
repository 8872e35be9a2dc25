"""The runs that a law is fitted to: a study's finished trials, or the rows of anyone's CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from search.law.numbers import LawError
from search.space import ended
from search.state import StudyState, TrialState

COLUMNS: Final = {
    "flops": "training FLOPs of the run",
    "loss": "held-out loss at its end",
    "parameters": "trainable numbers of the model",
    "examples": "training examples seen, repeats counted",
    "learning_rate": "peak learning rate",
    "variant": "name of the model",
    "epochs": "passes over the training examples",
    "seed": "whole number",
    "budget": "name of the compute budget",
}
"""What a CSV may have; flops and loss it must."""
_BESIDES: Final = ("outcome", "study", "run")  # of a study's own tables
_LISTED: Final = 5
_ALIASES: Final = {"heldout_loss": "loss"}  # what `results.csv` calls it
_RANGES: Final = {
    "flops": (1.0, 1e60),
    "loss": (1e-12, 1e12),
    "parameters": (1.0, 1e30),
    "examples": (1e-3, 1e30),
    "learning_rate": (1e-12, 1e12),
    "epochs": (1e-9, 1e30),
}
_LONGEST_CELL: Final = 2**31 - 1  # characters: of notes, say, in a column that is passed over


@dataclass(frozen=True, slots=True)
class Run:
    """One finished training run.

    Attributes:
        flops: training FLOPs.
        loss: held-out loss at the end (nats).
        parameters: trainable numbers of the model.
        examples: training examples seen, repeats counted.
        learning_rate: peak learning rate.
        variant: name of the model.
        epochs: passes over the training examples.
        seed: of its random streams.
        budget: the compute budget it belongs to.
    """

    flops: float
    loss: float
    parameters: float | None = None
    examples: float | None = None
    learning_rate: float | None = None
    variant: str | None = None
    epochs: float | None = None
    seed: int | None = None
    budget: str | None = None


@dataclass(frozen=True, slots=True)
class RunTable:
    """Runs, where they are from, and how many more there were without a loss: diverged, failed, or not finished.

    `diverged` are those of them that diverged, their loss infinite: they bound the best learning rate from above.
    """

    source: str
    runs: tuple[Run, ...]
    left_out: int = 0
    diverged: tuple[Run, ...] = ()


def runs_of_state(state: StudyState, source: str = "study") -> RunTable:
    """A study's finished trials; their examples are epochs times its training examples.

    A trial that ended with no loss, with one far above that of a uniform guess, or with one that has no logarithm, is
    left out and counted, like one that did not finish.
    """
    train_examples = float(state.opened["train_examples"]) if state.opened else math.nan
    worst_loss = math.log(int(state.opened["classes"])) if state.opened else math.inf
    how = [(trial, ended(trial, worst_loss)) for trial in state.trials.values()]
    finished = [trial for trial, end in how if end == "finished" and trial.heldout_loss > 0]
    return RunTable(
        source,
        tuple(_run_of(trial, train_examples, trial.heldout_loss) for trial in finished),
        sum(end is not None for _, end in how) - len(finished),
        tuple(_run_of(trial, train_examples, math.inf) for trial, end in how if end == "diverged"),
    )


def _run_of(trial: TrialState, train_examples: float, loss: float) -> Run:
    return Run(
        flops=trial.flops,
        loss=loss,
        parameters=float(trial.parameters),
        examples=trial.epochs * train_examples,
        learning_rate=trial.learning_rate,
        variant=trial.variant,
        epochs=trial.epochs,
        seed=trial.seed,
        budget=trial.budget,
    )


def read_csv(path: str | Path) -> RunTable:
    """The runs of a CSV (UTF-8, a header, commas or semicolons, or tabs): a row each, any of `COLUMNS`.

    Headings may be in capitals, other columns are passed over, and cells other than those of flops and loss may be
    empty. A study's own `results.csv` is read too, its `heldout_loss` as the loss. Rows without a loss (empty, NaN or
    infinite), and those whose `outcome` says anything but finished, are left out and counted; those that diverged, by
    their outcome or a loss that is no number, still bound the best learning rate.

    Raises:
        LawError: a file that cannot be read, or a cell that is not allowed: the file, line and column, what was given,
            and what is allowed.
    """
    limit = csv.field_size_limit(_LONGEST_CELL)
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            header = next((line for line in file if line.strip()), "")
            reader = csv.reader(file, delimiter=_delimiter(header), strict=True)
            file.seek(0)
            lines = [(reader.line_num, row) for row in reader]
    except FileNotFoundError:
        raise LawError(f"{path}: no such file; give the path of a CSV of runs, or of a study file (YAML)") from None
    except IsADirectoryError:
        raise LawError(f"{path}: is a folder; give the path of a CSV of runs in it") from None
    except UnicodeDecodeError as error:
        raise LawError(f"{path}: byte {error.start} is not UTF-8 text; save the file as UTF-8") from None
    except csv.Error as error:
        raise LawError(f"{path}: line {reader.line_num}: not a line of a CSV ({error}); save the file again") from None
    except OSError as error:
        raise LawError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    finally:
        csv.field_size_limit(limit)
    lines = [(number, row) for number, row in lines if any(cell.strip() for cell in row)]
    if not lines:
        raise LawError(f"{path}: is empty; a CSV of runs needs a header with flops and loss, and a row for each run")
    places = _places(str(path), *lines[0])
    runs: list[Run | None] = []
    studies: dict[tuple[str, str], None] = {}  # and their runs
    for number, row in lines[1:]:
        if len(row) != len(lines[0][1]):
            raise LawError(
                f"{path}: line {number}: {len(row)} cells given; allowed: as many as the header has, "
                f"{len(lines[0][1])}; quote cells that hold a comma"
            )
        cells = {name: row[place].strip() for name, place in places.items()}
        runs.append(run := _run(f"{path}: line {number}", cells))
        if run is not None and cells.get("study"):
            studies.setdefault((cells["study"], cells.get("run", "")))
    _refuse_several(str(path), list(studies))
    finished = tuple(run for run in runs if run is not None and run.loss < math.inf)
    if not finished:
        raise LawError(f"{path}: no row has a loss; a law needs the runs of at least three compute budgets")
    diverged = tuple(run for run in runs if run is not None and run.loss == math.inf)
    return RunTable(str(path), finished, len(runs) - len(finished), diverged)


def _refuse_several(path: str, studies: Sequence[tuple[str, str]]) -> None:
    """Runs of several studies (each with its run) are no runs of one law: what is alike would pass for repeated."""
    if len(studies) < 2:
        return
    names = [" ".join(study).strip() for study in studies]
    listed = ", ".join(names[:_LISTED]) + (" ..." if len(names) > _LISTED else "")
    raise LawError(
        f"{path}: column study: runs of {len(names)} studies given ({listed}); allowed: those of one, for runs alike "
        "would pass for seeds of one setting; leave the others out, or the column where the runs do compare"
    )


def _delimiter(header: str) -> str:
    """What separates the cells: what gives the header both flops and loss, else a comma."""
    needed = {"flops", "loss"}
    return next((mark for mark in ",;\t" if needed <= set(_names(next(csv.reader([header], delimiter=mark))))), ",")


def _names(header: Sequence[str]) -> list[str]:
    """Headings as `COLUMNS` has them."""
    headings = [heading.strip().casefold().replace(" ", "_") for heading in header]
    return [_ALIASES.get(name, name) if "loss" not in headings else name for name in headings]


def _places(path: str, line: int, header: Sequence[str]) -> dict[str, int]:
    """Where each known column stands."""
    names = _names(header)
    known = [name for name in names if name in COLUMNS or name in _BESIDES]
    for needed in ("flops", "loss"):
        if needed not in names:
            raise LawError(
                f"{path}: line {line}: no column {needed}; the header has {', '.join(header)}; needed: flops and loss; "
                f"read besides: {', '.join(name for name in COLUMNS if name not in ('flops', 'loss'))}"
            )
    if twice := sorted({name for name in known if known.count(name) > 1}):
        raise LawError(f"{path}: line {line}: column {twice[0]} given twice; allowed: once; rename the other")
    return {name: names.index(name) for name in known}


def _run(where: str, cells: Mapping[str, str]) -> Run | None:
    """A row's run, its loss infinite if it diverged; None where it has neither a loss nor a bound to tell."""
    outcome = cells.get("outcome", "").casefold() or "finished"
    loss = _number(where, "loss", cells["loss"], finite=False) if outcome == "finished" else None
    if outcome == "diverged" or (loss is not None and not math.isfinite(loss)):
        loss = math.inf
    if loss is None or (loss == math.inf and not cells["flops"]):
        return None
    flops = _number(where, "flops", cells["flops"])
    if flops is None:
        raise LawError(f"{where}: column flops: empty, but the row has a loss; allowed: numbers above 0")
    seed = cells.get("seed", "")
    try:
        whole = int(seed) if seed else None
    except ValueError:
        raise LawError(f"{where}: column seed: {seed!r} given; allowed: whole numbers, or nothing") from None
    return Run(
        flops=flops,
        loss=loss,
        parameters=_number(where, "parameters", cells.get("parameters", "")),
        examples=_number(where, "examples", cells.get("examples", "")),
        learning_rate=_number(where, "learning_rate", cells.get("learning_rate", "")),
        variant=cells.get("variant") or None,
        epochs=_number(where, "epochs", cells.get("epochs", "")),
        seed=whole,
        budget=cells.get("budget") or None,
    )


def _number(where: str, column: str, text: str, *, finite: bool = True) -> float | None:
    """A cell's number; None where it is empty. `finite` says whether NaN and infinities are refused."""
    if not text:
        return None
    try:
        value = float(text) if "_" not in text else None
    except ValueError:
        value = None
    least, most = _RANGES[column]
    if value is None or not (least <= value <= most or (not finite and not math.isfinite(value))):
        such = "2.31" if column == "loss" else "3e20" if column == "flops" else "0.4"
        raise LawError(
            f"{where}: column {column}: {text!r} given; allowed: numbers from {least:g} to {most:g} "
            f"({COLUMNS[column]}), such as {such}, with a decimal point and no thousands separators; mend the cell or "
            "leave it empty"
        )
    return value
