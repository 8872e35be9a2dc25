"""Recorded tables: what real runs gave, as a loss surface; and how a ledger becomes one."""

from __future__ import annotations

import csv
import itertools
import math
import re
import statistics
from pathlib import Path

import pytest

from search.recorded import COLUMNS, SHARES, TableError, names, read_table, recorded, rows_of, table, write_table
from search.simulate import simulate
from tests.search.ledgers import synthetic_records


def a_row(**changes: object) -> dict[str, object]:
    row: dict[str, object] = dict.fromkeys(COLUMNS, "")
    row |= {"study": "small", "batch_size": 64, "classes": 10, "budget_flops": 1e10, "variant": "F0", "epochs": 2.0}
    row |= {"flops_per_image": 5e6, "parameters": 1000, "learning_rate": 0.4, "seed": 0, "outcome": "finished"}
    return row | {"loss": 1.0} | changes


def small(folder: Path, **changes: object) -> Path:
    """Two variants at two rates with two seeds; the second seed's losses are a tenth higher."""
    rows = [
        a_row(variant=variant, flops_per_image=cost, learning_rate=rate, seed=seed, loss=loss * (1 + 0.1 * seed))
        for variant, cost in (("F1", 9e6), ("F0", 5e6))
        for rate, loss in ((0.8, 1.0), (0.4, 1.4))
        for seed in (0, 1)
    ]
    rows[0] |= changes
    path = folder / "small.csv"
    write_table(rows, path)
    return path


# ---------------------------------------------------------------- the tables of the repository


@pytest.mark.parametrize("name", names())
def test_a_recorded_study_is_a_surface_with_every_point_of_its_grid(name: str) -> None:
    surface = recorded(name)
    assert len(surface.budgets) == 4
    assert len(surface.learning_rates) == 7
    assert len(surface.runs) >= 2
    assert surface.classes == 10
    assert all(here[0].variant == "F0" for here in surface.cells)
    assert all(math.isfinite(surface.optimum(budget)[2]) for budget in range(4))


@pytest.mark.parametrize("name", names())
def test_its_losses_fall_with_compute_and_are_lowest_inside_the_grid(name: str) -> None:
    surface = recorded(name)
    best = [surface.optimum(budget) for budget in range(4)]
    assert all(later[2] < 0.9 * earlier[2] for earlier, later in itertools.pairwise(best))
    assert all(surface.learning_rates[0] < rate < surface.learning_rates[-1] for _, rate, _ in best)


@pytest.mark.parametrize("name", names())
def test_its_training_losses_are_there_as_far_as_each_run_came(name: str) -> None:
    here = table(name)
    assert all(len(losses) <= len(SHARES) for losses in here.partial.values())
    finished = [
        here.partial[surface_budget, cell.variant, rate, here.seeds[0]]
        for surface_budget, cells in zip(here.surface.budgets, here.surface.cells, strict=True)
        for cell in cells
        for rate in here.surface.learning_rates
        if here.surface.observed(here.surface.budgets.index(surface_budget), cell.variant, rate, 0)[0] == "finished"
    ]
    assert statistics.fmean(len(losses) == len(SHARES) for losses in finished) == 1


def test_a_recorded_study_can_be_replayed() -> None:
    surface = recorded(names()[0])
    found = simulate(surface, "grid", seed=1)
    for budget, trials in enumerate(found):
        assert len(trials) == surface.points(budget)
        losses = [trial.heldout_loss for trial in trials if trial.outcome == "finished"]
        assert min(losses) == min(
            surface.observed(budget, p.variant, p.learning_rate, 1)[1] for p in surface.space(budget).points()
        )


def test_a_table_that_is_not_there_is_refused_by_naming_those_that_are() -> None:
    with pytest.raises(TableError, match=f"no table 'mnist' in .*; there are {', '.join(names())}"):
        table("mnist")


# ---------------------------------------------------------------- reading


def test_a_table_gives_each_seed_s_runs_and_their_mean_as_the_true_loss(tmp_path: Path) -> None:
    surface = read_table(small(tmp_path)).surface
    assert surface.learning_rates == (0.4, 0.8)
    assert [cell.variant for cell in surface.cells[0]] == ["F0", "F1"], "the cheaper first"
    assert surface.observed(0, "F1", 0.4, 0) == ("finished", 1.4)
    assert surface.observed(0, "F1", 0.4, 1) == ("finished", pytest.approx(1.54))
    assert surface.observed(0, "F1", 0.4, 2) == surface.observed(0, "F1", 0.4, 0)
    assert surface.true_loss(0, "F1", 0.4) == pytest.approx(1.47)
    assert surface.noise == pytest.approx(0.1 / 1.05 / math.sqrt(2))
    assert surface.batch_size == 64


def test_a_seed_alone_is_a_surface_without_noise(tmp_path: Path) -> None:
    surface = read_table(small(tmp_path)).alone(1)
    assert surface.true_loss(0, "F1", 0.4) == pytest.approx(1.54)
    assert surface.observed(0, "F1", 0.4, 7) == ("finished", surface.true_loss(0, "F1", 0.4))
    assert surface.noise == 0
    assert surface.name == "recorded small, seed 1"


def test_a_point_where_one_seed_diverged_diverges(tmp_path: Path) -> None:
    surface = read_table(small(tmp_path, outcome="diverged", loss="")).surface  # F1 at 0.8 with seed 0
    assert surface.observed(0, "F1", 0.8, 0) == ("diverged", math.inf)
    assert surface.observed(0, "F1", 0.8, 1)[0] == "finished"
    assert surface.true_loss(0, "F1", 0.8) == math.inf


def test_partial_losses_end_at_the_first_gap_so_that_each_stands_for_its_share(tmp_path: Path) -> None:
    gap = {"train_loss_at_0.125": 2.0, "train_loss_at_0.25": 1.8, "train_loss_at_0.75": 1.2}  # none at 0.5
    here = read_table(small(tmp_path, **gap))
    assert here.partial[1e10, "F1", 0.8, 0] == (2.0, 1.8)
    assert here.partial[1e10, "F1", 0.8, 1] == ()


def test_a_table_with_a_point_missing_is_refused_by_naming_it(tmp_path: Path) -> None:
    path = small(tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2] + lines[3:]))
    message = "no run of F0 at 1e\\+10 FLOPs, learning rate 0.4 and seed 1; a surface needs every point"
    with pytest.raises(TableError, match=message):
        read_table(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outcome": "Finished"}, "outcome is 'Finished'; allowed: finished or diverged"),
        ({"outcome": "failed"}, "outcome is 'failed'; allowed: finished or diverged"),
        ({"loss": ""}, "loss is ''; allowed: a number"),
        ({"loss": "nan"}, "loss is 'nan'; allowed: a number"),
        ({"seed": 0.5}, "seed is '0.5'; allowed: a whole number"),
        ({"classes": "ten"}, "classes is 'ten'; allowed: a whole number"),
        ({"epochs": 0}, "epochs: 0.0 given for F1; allowed: above 0"),
        ({"train_loss_at_0.125": "-"}, "train_loss_at_0.125 is '-'; allowed: a number"),
        (
            {"learning_rate": 0.4},
            "a second run of F1 at 1e+10 FLOPs, learning rate 0.4 and seed 0; allowed: one of each",
        ),
    ],
)
def test_a_row_that_cannot_be_is_refused_by_its_line(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    path = small(tmp_path, **changes)  # sorted: F1 comes after the four rows of F0, and at 0.8 last
    with pytest.raises(TableError) as refused:
        read_table(path)
    assert re.fullmatch(rf"{re.escape(str(path))}, line [678]: {re.escape(message)}", str(refused.value))


@pytest.mark.parametrize(("text", "message"), [("", "no column study, batch_size"), (",".join(COLUMNS), "no rows")])
def test_a_file_that_is_no_table_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text(text)
    with pytest.raises(TableError, match=message):
        read_table(path)


# ---------------------------------------------------------------- recording


def test_a_ledger_becomes_rows_of_its_ended_trials() -> None:
    rows = rows_of(synthetic_records(fail=4), "again")
    assert len(rows) == 3 * 15 - 1, "the failed one is left out"
    assert {row["study"] for row in rows} == {"again"}
    assert {row["outcome"] for row in rows} == {"finished", "diverged"}
    assert all((row["loss"] == "") == (row["outcome"] == "diverged") for row in rows)
    assert rows[0]["batch_size"] == 64
    assert rows[0]["classes"] == 10
    assert list(rows[0]) == list(COLUMNS)


def test_a_partial_loss_is_the_mean_over_the_eighth_of_training_that_ends_there() -> None:
    records = synthetic_records(until=10)
    suggested = next(record for record in records if record.event == "trial_suggested")
    steps = suggested["steps"]
    progressed = next(record for record in records if record.event == "trial_progressed")
    progressed.fields["points"] = [[k, float(k), 0.4, 1.0] for k in range(1, steps + 1)]
    row = rows_of(records)[0]
    for share in SHARES:
        window = [k for k in range(1, steps + 1) if (share - 0.125) * steps < k <= share * steps]
        assert row[f"train_loss_at_{share:g}"] == pytest.approx(statistics.fmean(window), rel=1e-3)


def test_rows_are_written_by_budget_size_rate_and_seed(tmp_path: Path) -> None:
    with small(tmp_path).open() as file:
        rows = [(row["variant"], row["learning_rate"], row["seed"]) for row in csv.DictReader(file)]
    assert rows == [(variant, rate, seed) for variant in ("F0", "F1") for rate in ("0.4", "0.8") for seed in "01"]
