"""Tables and CSV of a study: right numbers, best first, whole at any width."""

import csv
import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from search.formats import duration, number, percent, scientific
from search.ledger import Record
from search.results import BUCKETS, best_rows, measured_rates, render_results, time_split, trial_rows, write_csv
from search.state import StudyState
from tests.search.ledgers import synthetic_records


@pytest.fixture
def state() -> StudyState:
    return StudyState.of(synthetic_records(trials=21, fail=4))


def rendered(state: StudyState, width: int, terminal: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    render_results(state, console)
    return console.file.getvalue()


def test_rows_are_ordered_by_budget_and_then_best_first_with_ended_badly_last(state: StudyState) -> None:
    rows = trial_rows(state)
    assert len(rows) == 63
    assert list(dict.fromkeys(row.budget for row in rows)) == ["2e11 FLOPs", "6e11 FLOPs", "1.8e12 FLOPs"]
    first = [row for row in rows if row.budget == "2e11 FLOPs"]
    losses = [row.heldout_loss for row in first if row.outcome == "finished"]
    assert losses == sorted(losses)
    after = [row.outcome for row in first[len(losses) :]]
    assert set(after) == {"diverged", "failed"}
    assert all(math.isnan(row.heldout_loss) for row in first[len(losses) :])


def test_the_best_row_of_a_budget_is_the_finished_trial_with_the_lowest_loss(state: StudyState) -> None:
    for row in best_rows(state):
        losses = [trial.heldout_loss for trial in state.budgets[row.budget].trials if trial.outcome == "finished"]
        assert row.heldout_loss == min(losses)


def test_a_row_holds_the_metered_numbers(state: StudyState) -> None:
    row = best_rows(state)[0]
    trial = state.trials[row.trial_id]
    assert row.core_hours == trial.result["meter"]["core_hours"]
    assert row.flops == trial.flops
    assert row.seconds == pytest.approx(row.core_hours_total * 3600)
    assert row.goodput == 0.9
    assert math.isnan(row.mfu)


def test_a_trial_in_progress_is_unfinished_and_shows_what_its_last_report_metered() -> None:
    records = synthetic_records(trials=2, until=6)
    assert records[-1].event == "trial_progressed"
    (row,) = trial_rows(StudyState.of(records))
    assert row.outcome == "unfinished"
    assert math.isnan(row.heldout_loss)
    assert row.flops == records[-1]["meter"]["flops"]
    assert row.goodput == pytest.approx(0.9)
    assert row.seconds == pytest.approx(sum(records[-1]["meter"]["seconds"].values()))


def test_the_time_split_adds_up_over_trials(state: StudyState) -> None:
    split = time_split(state)
    assert split.total == pytest.approx(sum(row.seconds for row in trial_rows(state)))
    assert split.goodput == pytest.approx(0.9)
    assert split.seconds["evaluation"] == pytest.approx(0.03 * split.total)


def test_crashes_and_interruptions_are_left_out_of_the_undisturbed_goodput() -> None:
    state = StudyState.of(synthetic_records(trials=1, budgets=[2e11]))
    (trial,) = state.trials.values()
    total = time_split(state).total
    trial.meter |= {"seconds_restart": 99 * total, "seconds_repeated": total}
    split = time_split(state)
    assert split.goodput == pytest.approx(0.9 / 101)
    assert split.undisturbed_goodput == pytest.approx(0.9)
    assert math.isnan(time_split(StudyState()).undisturbed_goodput)


def test_rates_are_measured_over_all_trials(state: StudyState) -> None:
    rates = measured_rates(state)
    assert rates is not None
    assert set(rates.by_variant) == {"F0", "F1", "F3"}
    f0 = [trial.meter for trial in state.trials.values() if trial.variant == "F0"]
    assert rates.by_variant["F0"] == pytest.approx(
        sum(meter["flops"] for meter in f0) / sum(3600 * meter["core_hours"] for meter in f0)
    )
    assert rates.overall == pytest.approx(5e10 / 0.9)
    assert measured_rates(StudyState.of(synthetic_records(until=4))) is None


def test_a_trial_in_progress_is_measured_too() -> None:
    rates = measured_rates(StudyState.of(synthetic_records(until=6)))
    assert rates is not None
    assert rates.by_variant == {"F0": pytest.approx(5e10 / 0.9)}


def test_the_measured_rate_is_printed_for_the_study_file(state: StudyState) -> None:
    (line,) = (line for line in rendered(state, 80).splitlines() if line.startswith("Measured: "))
    assert line == (
        "Measured: 5.6e10 training FLOPs per core-second (F0 5.6e10, F1 5.6e10, F3 5.6e10): "
        "set compute.flops_per_core_second to it to give budgets in core-hours"
    )


def test_unreadable_images_are_told_by_trial_and_in_sum(state: StudyState, tmp_path: Path) -> None:
    assert "unreadable" not in rendered(state, 80)
    first, second, *_ = state.trials.values()
    first.result |= {"skipped_images": 1200}
    second.result |= {"skipped_images": 34, "skipped_heldout_images": 5}
    line = "2 trials met unreadable images and left them out: 1,234 times in training, 5 times in evaluation"
    assert line in rendered(state, 60)
    write_csv(state, str(tmp_path / "results.csv"))
    with (tmp_path / "results.csv").open(newline="") as file:
        lines = {line["trial_id"]: line for line in csv.DictReader(file)}
    assert lines[first.trial_id]["skipped_images"] == "1200"
    assert lines[second.trial_id]["skipped_heldout_images"] == "5"


def test_csv_holds_flops_core_hours_speed_and_mfu(state: StudyState, tmp_path: Path) -> None:
    trial = state.budgets["2e11 FLOPs"].best
    assert trial is not None
    trial.meter |= {"mfu": 0.41}
    write_csv(state, str(tmp_path / "results.csv"))
    with (tmp_path / "results.csv").open(newline="") as file:
        line = next(csv.DictReader(file))
    assert line["trial_id"] == trial.trial_id
    for name in ("core_hours", "core_hours_total", "images_per_second", "goodput", "mfu"):
        assert float(line[name]) == trial.meter[name]
    assert float(line["flops"]) == trial.flops


def test_csv_says_where_each_trials_seconds_went(state: StudyState, tmp_path: Path) -> None:
    write_csv(state, str(tmp_path / "results.csv"))
    with (tmp_path / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    for line in lines:
        split = {bucket: float(line[f"seconds_{bucket}"]) for bucket in BUCKETS}
        assert split == {bucket: state.trials[line["trial_id"]].meter[f"seconds_{bucket}"] for bucket in BUCKETS}
        assert sum(split.values()) == pytest.approx(float(line["seconds"]))


def test_csv_leaves_the_seconds_of_a_trial_that_was_not_metered_empty(tmp_path: Path) -> None:
    write_csv(StudyState.of(synthetic_records(until=4)), str(tmp_path / "results.csv"))
    with (tmp_path / "results.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert {line[name] for name in ("seconds", "seconds_productive", "seconds_restart")} == {""}


def test_mfu_has_a_column_where_a_trial_has_one(state: StudyState) -> None:
    assert "MFU" not in rendered(state, 200)
    best = state.budgets["2e11 FLOPs"].best
    assert best is not None
    best.meter |= {"mfu": 0.417}
    first, second, *_, summary = rendered(state, 200).split("Budget ")[1:]
    assert "MFU" in first
    assert "41.7 %" in next(line for line in first.splitlines() if line.startswith("* "))
    assert "MFU" not in second
    assert "41.7 %" in summary.partition("Best cell of each budget")[2]


def test_the_averaged_weights_loss_is_shown_where_a_trial_has_one(state: StudyState, tmp_path: Path) -> None:
    assert "EMA" not in rendered(state, 200)
    finished = [trial for trial in state.budgets["2e11 FLOPs"].trials if trial.outcome == "finished"]
    best = min(finished, key=lambda trial: trial.heldout_loss)
    for place, trial in enumerate(sorted(finished, key=lambda trial: -trial.heldout_loss)):
        trial.result |= {"ema_heldout_loss": 0.1234 + place}  # the other way round
    text = rendered(state, 200)
    assert text.count("EMA") == 3  # a budget's table, the best cells, the note
    assert number(best.result["ema_heldout_loss"]) in next(line for line in text.splitlines() if line.startswith("* "))
    assert best_rows(state)[0].trial_id == best.trial_id
    assert "Trials are ranked by held-out loss, that of the raw weights" in text
    write_csv(state, str(tmp_path / "results.csv"))
    with (tmp_path / "results.csv").open(newline="") as file:
        line = next(csv.DictReader(file))
    assert float(line["ema_heldout_loss"]) == best.result["ema_heldout_loss"]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_columns_that_are_only_sometimes_there_give_way_where_it_is_narrow(state: StudyState, width: int) -> None:
    for trial in state.trials.values():
        trial.meter |= {"mfu": 0.417}
        trial.result |= {"ema_heldout_loss": 0.123}
    text = rendered(state, width)
    tables = text.partition("Goodput ")[0].splitlines()
    assert all(len(line.rstrip()) <= width for line in tables)
    assert all(name in "".join(tables) for name in ("variant", "epochs", "learning", "held-out", "outcome"))
    assert ("MFU" in text) == (width >= 80)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_wraps_at_any_usual_width(state: StudyState, width: int, terminal: bool) -> None:
    lines = [line for line in rendered(state, width, terminal).splitlines() if "Measured: " not in line]
    assert all(len(line.rstrip()) <= width for line in lines)
    trials = [line for line in lines if line.rstrip().endswith(("finished", "diverged", "failed"))]
    assert len(trials) == 63
    assert "…" not in "".join(lines)


def test_a_table_of_eighty_columns_holds_what_a_reader_must_see(state: StudyState) -> None:
    text = rendered(state, 80)
    for name in ("variant", "epochs", "learning", "held-out", "accuracy", "FLOPs", "hours", "outcome"):
        assert name in text
    best = best_rows(state)[0]
    (line,) = (line for line in text.splitlines() if line.startswith("* ") and number(best.heldout_loss) in line)
    assert line.split()[:5] == ["*", best.variant, "22.8", "0.4", number(best.heldout_loss)]
    assert text.count("\n* ") == 3
    assert "Best cell of each budget" in text
    assert "Goodput 90.0 %" in text


def test_wide_terminals_show_speed_and_goodput_too(state: StudyState) -> None:
    text = rendered(state, 120)
    assert "images" in text
    assert "goodput" in text


@pytest.mark.parametrize(
    ("later", "line"),
    [
        (["1.0"], None),
        (["1.0", "1.0"], None),
        ([None, "1.0"], None),
        (["1.0", "1.1+", "1.0"], "The sessions of this run differ in code version (1.0, 1.1+): "),
    ],
)
def test_sessions_of_different_code_are_told(state: StudyState, later: list[str | None], line: str | None) -> None:
    for place, version in enumerate(later):
        fields = {} if version is None else {"code_version": version}
        state.apply(Record(1000 + place, 2e9, "session_started", fields))
    text = rendered(state, 60)
    assert ("differ in code version" in text) == (line is not None)
    assert line is None or any(found.startswith(line) for found in text.splitlines())


def test_trials_of_a_variant_taken_out_are_listed_but_not_counted() -> None:
    state = StudyState.of(records := synthetic_records(trials=6, budgets=[2e11]))
    opened = next(record for record in records if record.event == "budget_opened")
    fewer = opened.fields | {"trials": 4, "cells": opened["cells"][:1]}
    state.apply(Record(len(records), 2e9, "budget_opened", fewer))
    text = rendered(state, 80)
    assert "Budget 2e11 FLOPs: 2 of 4 trials" in text
    assert sum(line.rstrip().endswith(("finished", "diverged")) for line in text.splitlines()) == 6


def test_a_failed_trial_says_why(state: StudyState) -> None:
    assert "2e11-FLOPs-004 failed: RuntimeError: worker died 4 times" in rendered(state, 80)


def test_where_no_terminal_reads_there_are_no_escape_codes(state: StudyState) -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    render_results(state, console)
    assert "\x1b" not in console.file.getvalue()


@pytest.mark.parametrize("until", [0, 2, 3, 4, 6, 8])
def test_a_study_that_has_hardly_begun_can_be_shown(until: int) -> None:
    text = rendered(StudyState.of(synthetic_records(until=until)), 80)
    assert ("No trials yet." in text) == (until < 4)


def test_csv_has_a_line_per_trial_in_full_precision(state: StudyState, tmp_path: Path) -> None:
    write_csv(state, str(tmp_path / "results.csv"))
    with (tmp_path / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    rows = trial_rows(state)
    assert [line["trial_id"] for line in lines] == [row.trial_id for row in rows]
    assert float(lines[0]["heldout_loss"]) == rows[0].heldout_loss
    assert lines[0]["mfu"] == ""
    assert {line["heldout_loss"] for line in lines if line["outcome"] == "diverged"} == {""}


def test_csv_goes_to_any_fsspec_address(state: StudyState) -> None:
    import fsspec

    write_csv(state, "memory://somewhere/results.csv")
    assert fsspec.filesystem("memory").cat("/somewhere/results.csv").startswith(b"trial_id,budget,variant,")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0021, "0.00210"), (2.345, "2.35"), (9.999, "10.0"), (12345, "12,300"), (0, "0"), (None, "-"),
     (math.nan, "-"), (math.inf, "inf"), (3e-7, "3.00e-7"), (-0.5, "-0.500")],
)  # fmt: skip
def test_numbers_have_three_significant_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_other_formats() -> None:
    assert number(0.4, trim=True) == "0.4"
    assert number(100, trim=True) == "100"
    assert number(0.0021, 2) == "0.0021"
    assert scientific(2e13) == "2.0e13"
    assert percent(0.9123) == "91.2 %"
    assert [duration(s) for s in (3.21, 42, 59.7, 245, 11520, 183600)] == [
        "3.2 s", "42 s", "1 min 00 s", "4 min 05 s", "3 h 12 min", "2 d 3 h",
    ]  # fmt: skip
