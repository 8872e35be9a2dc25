"""Runs from a CSV and from a study: what is read, what is left out, and what a mistake looks like."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from search.law import LawError, Run, read_csv, runs_of_state
from search.results import write_csv
from search.state import StudyState
from tests.search.ledgers import TRAIN_EXAMPLES, synthetic_records


@pytest.fixture
def csv_of(tmp_path: Path) -> Path:
    return tmp_path / "runs.csv"


def test_flops_and_loss_are_enough(csv_of: Path) -> None:
    csv_of.write_text("flops,loss\n1e18,3.1\n4e18,2.9\n")
    table = read_csv(csv_of)
    assert table.runs == (Run(1e18, 3.1), Run(4e18, 2.9))
    assert table.left_out == 0


def test_headings_in_capitals_other_columns_and_empty_cells_do_no_harm(csv_of: Path) -> None:
    csv_of.write_text(
        "\ufeffnotes,FLOPs, Loss ,Parameters,Learning Rate,variant,seed,epochs\n"
        '"a, b",1e18,3.1,1e8,0.4,F0,3,0.5\n\n,4e18,2.9,,,,,\n',
        encoding="utf-8",
    )
    first, second = read_csv(csv_of).runs
    assert first == Run(1e18, 3.1, parameters=1e8, learning_rate=0.4, variant="F0", seed=3, epochs=0.5)
    assert second == Run(4e18, 2.9)


def test_rows_without_a_loss_are_left_out_and_counted(csv_of: Path) -> None:
    csv_of.write_text("flops,loss,outcome\n1e18,3.1,finished\n,,failed\n2e18,nan,\n3e18,inf,\n4e18,2.0,diverged\n")
    table = read_csv(csv_of)
    assert (len(table.runs), table.left_out) == (1, 4)


def test_a_studys_results_csv_tells_the_same_runs_as_its_ledger(csv_of: Path) -> None:
    state = StudyState.of(synthetic_records(trials=21, fail=4))
    write_csv(state, str(csv_of))
    of_csv, of_state = read_csv(csv_of), runs_of_state(state)
    assert {run.loss for run in of_csv.runs} == {run.loss for run in of_state.runs}
    assert of_csv.left_out == of_state.left_out > 0
    assert {run.budget for run in of_csv.runs} == {"2e11 FLOPs", "6e11 FLOPs", "1.8e12 FLOPs"}


def test_a_studys_examples_are_its_epochs_times_its_training_examples() -> None:
    for run in runs_of_state(StudyState.of(synthetic_records(trials=6))).runs:
        assert run.epochs is not None
        assert run.examples == run.epochs * TRAIN_EXAMPLES
        assert run.parameters in (41_000, 77_000, 149_000)


def test_a_trial_whose_loss_has_no_logarithm_is_left_out_and_counted() -> None:
    state = StudyState.of(synthetic_records(trials=6))
    whole = runs_of_state(state)
    first, second = (trial for trial in list(state.trials.values())[:2])
    first.result["heldout_loss"], second.result["heldout_loss"] = 0.0, float("inf")
    fewer = runs_of_state(state)
    assert (len(fewer.runs), fewer.left_out) == (len(whole.runs) - 2, whole.left_out + 2)


def test_a_study_that_has_not_begun_has_no_runs() -> None:
    assert runs_of_state(StudyState()).runs == ()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty"),
        ("flops,size\n1,2\n", "line 1: no column loss; the header has flops, size; needed: flops and loss"),
        ("flops,loss\n1e18,3\n2e18\n", "line 3: 1 cells given; allowed: as many as the header has, 2"),
        ("flops,loss\n1e18,3\n2e18,two\n", "line 3: column loss: 'two' given; allowed: numbers from 1e-12 to 1e+12"),
        ("flops,loss\n1e18,1e-200\n", "line 2: column loss: '1e-200' given; allowed: numbers from 1e-12"),
        ("flops,loss\n1e18,-3\n", "line 2: column loss: '-3' given; allowed: numbers from"),
        ("flops,loss\n0,3\n", "line 2: column flops: '0' given; allowed: numbers from"),
        ("flops,loss\nnan,3\n", "line 2: column flops: 'nan' given"),
        ("flops,loss\n,3\n", "line 2: column flops: empty, but the row has a loss"),
        ("flops,loss,seed\n1,3,a\n", "line 2: column seed: 'a' given; allowed: whole numbers, or nothing"),
        ("flops,loss,Loss\n1,3,3\n", "line 1: column loss given twice"),
        ("flops,loss\n1,\n", "no row has a loss"),
        ('flops,loss\n1,"3"x\n', "line 2: not a line of a CSV"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line_with_its_place(csv_of: Path, text: str, told: str) -> None:
    csv_of.write_text(text)
    with pytest.raises(LawError) as caught:
        read_csv(csv_of)
    assert told in str(caught.value)
    assert str(caught.value).startswith(str(csv_of))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_a_folder_and_bytes_are_told(tmp_path: Path) -> None:
    with pytest.raises(LawError, match="no such file"):
        read_csv(tmp_path / "none.csv")
    with pytest.raises(LawError, match="is a folder"):
        read_csv(tmp_path)
    (tmp_path / "bytes.csv").write_bytes(b"flops,loss\n\xff,2\n")
    with pytest.raises(LawError, match="byte 11 is not UTF-8"):
        read_csv(tmp_path / "bytes.csv")


@pytest.mark.parametrize("mark", [";", "\t"])
def test_semicolons_and_tabs_and_a_byte_order_mark_are_read(csv_of: Path, mark: str) -> None:
    csv_of.write_text("flops,loss,variant\n1e18,3.1,F0\n".replace(",", mark), encoding="utf-8-sig")
    assert read_csv(csv_of).runs == (Run(1e18, 3.1, variant="F0"),)


def test_the_mark_between_cells_is_the_one_that_gives_flops_and_loss(csv_of: Path) -> None:
    csv_of.write_text('\n"flops";"loss";"note, a"\n1e18;3.1;"x, y"\n')
    assert read_csv(csv_of).runs == (Run(1e18, 3.1),)
    csv_of.write_text("flops\tloss\ta;b, c\n1e18\t3.1\tx\n")
    assert read_csv(csv_of).runs == (Run(1e18, 3.1),)


def test_a_long_cell_in_a_column_that_is_passed_over_does_no_harm(csv_of: Path) -> None:
    csv_of.write_text(f"flops,loss,notes\n1e18,3.1,{'x' * 200_000}\n")
    limit = csv.field_size_limit()
    assert read_csv(csv_of).runs == (Run(1e18, 3.1),)
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("number", ['"1,000,000"', "1_000", "1e400", "-1", "0", "nan", "inf", "20%", "0x10"])
def test_a_number_that_is_none_is_told_with_how_to_write_it(csv_of: Path, number: str) -> None:
    csv_of.write_text(f"flops,loss\n{number},3.1\n")
    with pytest.raises(LawError, match=r"line 2: column flops: .* decimal point and no thousands separators"):
        read_csv(csv_of)


def test_runs_that_diverged_bound_the_learning_rate_and_are_counted_as_left_out(csv_of: Path) -> None:
    csv_of.write_text(
        "flops,loss,learning_rate,outcome\n"
        "1e18,3.1,0.4,finished\n1e18,,0.8,diverged\n1e18,nan,1.6,\n1e18,,3.2,failed\n,nan,6.4,\n"
    )
    table = read_csv(csv_of)
    assert [run.learning_rate for run in table.runs] == [0.4]
    assert [run.learning_rate for run in table.diverged] == [0.8, 1.6]
    assert table.left_out == 4


def test_nothing_but_runs_that_diverged_is_told(csv_of: Path) -> None:
    csv_of.write_text("flops,loss,outcome\n1e18,,diverged\n4e18,inf,\n")
    with pytest.raises(LawError, match="no row has a loss"):
        read_csv(csv_of)


def test_trials_of_a_study_that_diverged_come_with_it() -> None:
    state = StudyState.of(synthetic_records())
    table = runs_of_state(state)
    lost = [trial for trial in state.trials.values() if trial.outcome == "diverged"]
    assert [run.learning_rate for run in table.diverged] == [trial.learning_rate for trial in lost]
    assert all(run.loss == math.inf for run in table.diverged)


def test_runs_of_several_studies_are_not_taken_for_seeds_of_one(csv_of: Path) -> None:
    csv_of.write_text("study,run,flops,loss\na,run-1,1e18,3\nb,run-1,1e18,2\n")
    with pytest.raises(LawError, match=r"runs of 2 studies given \(a run-1, b run-1\); allowed: those of one"):
        read_csv(csv_of)
    csv_of.write_text("study,run,flops,loss\na,run-1,1e18,3\na,run-2,1e18,2\n")
    with pytest.raises(LawError, match="runs of 2 studies"):
        read_csv(csv_of)
    csv_of.write_text("run,flops,loss\nfirst,1e18,3\nsecond,1e18,2\n")  # names of runs, of no study
    assert len(read_csv(csv_of).runs) == 2
