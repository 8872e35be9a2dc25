"""`convscale law`: a CSV or a study in, an answer or one JSON object out, mistakes in one line with status 2."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from search import cli
from tests.search.law.made_up import STUDY, searched, study, table

Called = Callable[..., tuple[int, str, str]]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Called:
    """Run the command line in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["convscale", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture
def runs_csv(tmp_path: Path) -> Path:
    lines = ["flops,loss,parameters,examples,learning_rate,variant"]
    for run in table((1e10, 4e10, 1.6e11, 6.4e11), (3e4, 1e5, 3e5, 1e6)).runs:
        lines.append(f"{run.flops},{run.loss},{run.parameters},{run.examples},{run.learning_rate},{run.variant}")
    file = tmp_path / "runs.csv"
    file.write_text("\n".join(lines))
    return file


@pytest.fixture
def a_study(tmp_path: Path) -> Path:
    file = tmp_path / "digits.yaml"
    file.write_text(f"{STUDY}storage: {tmp_path}/runs\n")
    folder = tmp_path / "runs" / "digits" / "run-1"
    folder.mkdir(parents=True)
    searched(study(), str(folder))
    return file


def test_a_csv_becomes_one_json_object(called: Called, runs_csv: Path) -> None:
    status, out, err = called(
        "law", str(runs_csv), "--json", "--forecast", "1e13", "--leave-out", "1", "--bootstraps", "200"
    )
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found["source"] == str(runs_csv)
    assert found["forecasts"][0]["flops"] == 1e13
    assert found["forecasts"][0]["loss"]["low"] < found["forecasts"][0]["loss"]["high"]
    assert found["compute_optimal"]["rows"][-1]["flops"] == 1e13
    assert found["next_budgets"] == []
    assert found["bootstraps"] == 200


def test_a_csv_becomes_text_that_begins_with_the_forecast(called: Called, runs_csv: Path) -> None:
    status, out, err = called("law", str(runs_csv), "--forecast", "1e13", "--bootstraps", "200")
    assert (status, err) == (0, "")
    assert out.startswith("At 1.00e13 FLOPs: held-out loss")


def test_a_study_begins_with_what_to_train_next(called: Called, a_study: Path) -> None:
    status, out, err = called("law", str(a_study), "--bootstraps", "200")
    assert (status, err) == (0, "")
    assert out.startswith("1.6e11 FLOPs: train F0 for 22.8 epochs at learning rate 0.4")
    assert "core-hours, ~36 s a trial" in out


def test_a_studys_budget_may_be_in_core_hours_even_in_thousands(called: Called, a_study: Path) -> None:
    words = ("--budget", "0.01 core-hours", "--budget", "110k core-hours", "--json", "--bootstraps", "200")
    status, out, err = called("law", str(a_study), *words)
    assert (status, err) == (0, "")
    small, large = json.loads(out)["next_budgets"]
    assert small["label"] == "0.01 core-hours"
    assert small["flops"] == pytest.approx(0.01 * 3600 * 5e9, rel=1e-3)
    assert small["core_hours"] == pytest.approx(0.01, rel=0.02)
    assert large["label"] == "110000 core-hours"
    assert large["variant"] is None
    assert "buys no variant" in large["notes"][0]


def test_a_study_that_was_not_searched_is_told(called: Called, tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text(f"{STUDY}storage: {tmp_path}/runs\n")
    status, out, err = called("law", "digits.yaml")
    assert (status, out) == (2, "")
    assert "no run of digits" in err
    assert "convscale search digits.yaml" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("none.csv",), "none.csv: no such file"),
        (("{csv}", "--forecast", "0"), "--forecast: 0 given; allowed: FLOPs above 0"),
        (("{csv}", "--forecast=-1"), "--forecast: -1 given; allowed: FLOPs above 0"),
        (("{csv}", "--forecast=nan"), "--forecast: nan given; allowed: FLOPs above 0"),
        (("{csv}", "--forecast=1e61"), "--forecast: 1e+61 given; allowed: FLOPs above 0 and up to 1e+60"),
        (("{csv}", "--forecast=abc"), "Invalid value for '--forecast'"),
        (("{csv}", "--leave-out=x"), "Invalid value for '--leave-out'"),
        (("{csv}", "--budget", "2e15 FLOPs"), "--budget: '2e15 FLOPs' given for"),
        (("{csv}", "--bootstraps", "5"), "bootstraps: 5 given; allowed: 100 or more"),
        (("{csv}", "--leave-out", "99"), "--leave-out: 99 given; allowed: up to 1, for "),
        (("{csv}", "--leave-out", "99"), " has 4 budgets, and a law needs 3 of them"),
        (("{csv}", "--leave-out", "2"), "--leave-out: 2 given; allowed: up to 1, for "),
        (("{csv}", "--leave-out", "-1"), "leave-out: -1 given; allowed: 0 or more"),
        (("{csv}", "--confidence", "2"), "confidence: 2 given; allowed: from 0.5 to below 1"),
        (("{study}", "--budget", "much"), "--budget: 'much' given; allowed: an amount and a unit"),
        (("{study}", "--budget", "3"), "--budget: '3' given; allowed: an amount and a unit"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    called: Called, runs_csv: Path, a_study: Path, words: tuple[str, ...], told: str
) -> None:
    status, out, err = called("law", *(word.format(csv=runs_csv, study=a_study) for word in words))
    assert (status, out) == (2, "")
    assert told in err
    assert err.startswith("convscale: ")
    assert err.count("\n") == 1
