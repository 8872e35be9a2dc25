"""`convscale law`: a CSV or a study in, an answer or one JSON object out, mistakes in one line with status 2."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from search import cli
from search.budgets import Budget
from search.law import as_json
from search.ledger import Ledger, read_ledger
from tests.search.law.made_up import STUDY, budgets_of, searched, study, table
from tests.search.ledgers import meter

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


def begin(budget: Budget, folder: Path, *, loss: float) -> None:
    """Open a budget in a study's ledger, and let one trial of it finish."""
    cell = budget.cells[-1]
    names = ("variant", "epochs", "steps", "flops_per_image", "parameters")
    with Ledger(str(folder)) as ledger:
        ledger.append("budget_opened", budget=budget.label, index=budget.index, flops=budget.flops, trials=9,
                      cells=[{name: getattr(each, name) for name in names} for each in budget.cells])  # fmt: skip
        ledger.append("trial_suggested", trial="one", budget=budget.label, variant=cell.variant, epochs=cell.epochs,
                      steps=cell.steps, learning_rate=1.6, seed=0, flops=cell.flops, parameters=cell.parameters,
                      params={}, batch_size=64)  # fmt: skip
        spent = meter(cell.flops, cell.steps * 64, cell.flops / 4.5e9)
        result = {"heldout_loss": loss, "heldout_accuracy": 0.5, "step": cell.steps, "meter": spent}
        ledger.append("trial_ended", trial="one", outcome="finished", result=result)


def test_a_budget_that_is_still_being_searched_is_not_counted_and_comes_next(called: Called, a_study: Path) -> None:
    """Its best so far is that of one trial at a bad rate: as a budget's best it would turn the law upside down."""
    words = ("law", str(a_study), "--bootstraps", "200")
    before = json.loads(called(*words, "--json")[1])
    begin(budgets_of(study())[4], a_study.parent / "runs" / "digits" / "run-1", loss=2.0)
    after = json.loads(called(*words, "--json")[1])
    assert (before.pop("unfinished_budgets"), after.pop("unfinished_budgets")) == ([], ["1.6e11 FLOPs"])
    assert (after["plain"], after["budgets"]) == (before["plain"], before["budgets"])
    assert after["next_budgets"][0]["loss"] == before["next_budgets"][0]["loss"]
    out = called(*words)[1]
    assert out.startswith("1.6e11 FLOPs: train F0 for 22.8 epochs at learning rate 0.4")
    assert "1.6e11 FLOPs is not finished: the law and its forecasts do not count it" in out


def test_before_a_budget_is_closed_there_is_no_law_but_the_rates_that_were_tried(called: Called, a_study: Path) -> None:
    ledger = a_study.parent / "runs" / "digits" / "run-1" / "ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    closed = next(place for place, line in enumerate(lines) if "budget_closed" in line)
    ledger.write_text("".join(lines[:closed]))
    status, out, err = called("law", str(a_study), "--bootstraps", "200")
    assert (status, err) == (0, "")
    assert "No law: 1 budget given" in out
    assert "Best learning rates" in out


def at_speeds(folder: Path, **flops_per_second: float) -> None:
    """Let the trials of a study's ledger have trained at these speeds, by variant."""
    records, variants = read_ledger(str(folder)), {}
    (folder / "ledger.jsonl").unlink()
    with Ledger(str(folder)) as ledger:
        for record in records:
            if record.event == "trial_suggested":
                variants[record["trial"]] = (record["variant"], record["flops"], record["steps"])
            elif record.event == "trial_ended":
                variant, flops, steps = variants[record["trial"]]
                record["result"]["meter"] = meter(flops, steps * 64, flops / flops_per_second[variant] / 0.9)
            ledger.append(record.event, **record.fields)


@pytest.mark.parametrize("slow", ["F0", "F3"])
def test_core_hours_are_what_the_recommended_run_costs_however_fast_variants_train(
    called: Called, a_study: Path, slow: str
) -> None:
    at_speeds(a_study.parent / "runs" / "digits" / "run-1", **({"F0": 4.5e9, "F1": 4.5e9, "F3": 4.5e9} | {slow: 1e9}))
    words = ("--budget", "0.01 core-hours", "--json", "--bootstraps", "200")
    (found,) = json.loads(called("law", str(a_study), *words)[1])["next_budgets"]
    assert found["core_hours"] == pytest.approx(0.01, rel=0.02)
    speed = 1e9 if found["variant"] == slow else 4.5e9
    assert found["flops"] == pytest.approx(0.01 * 3600 * speed)
    assert found["trials"] == 6  # of all three variants, by sampler tpe, with which that ledger was begun
    assert found["search_seconds"] == pytest.approx(3 * 0.01 * 3600 / 0.9, rel=0.05)


def test_a_cost_that_is_not_the_amount_asked_for_is_noted(called: Called, a_study: Path) -> None:
    """Where the study says what a core-hour is, an amount means what it would mean among the study's budgets."""
    at_speeds(a_study.parent / "runs" / "digits" / "run-1", F0=1e9, F1=1e9, F3=1e9)
    words = ("law", str(a_study), "--budget", "0.01 core-hours", "--bootstraps", "200")
    assert "core-hours, not 0.01" not in called(*words)[1]
    a_study.write_text(a_study.read_text().replace("slices: 2", "slices: 2, flops_per_core_second: 3e9"))
    assert "note: a run of F0 costs 0.0300 core-hours, not 0.01" in called(*words)[1]


def test_a_loss_that_does_not_fall_is_not_said_to(called: Called, tmp_path: Path) -> None:
    for losses, said in (
        ((4, 3.2, 2.5, 2.0, 1.6), ""),
        ((2, 2.12, 2.2, 2.32, 2.4), "the loss rises with compute"),
        ((2, 2.12, 1.9, 2.12, 1.9), "may be zero by its interval"),
    ):
        lines = [f"1e{18 + place},{loss}" for place, loss in enumerate(losses)]
        (tmp_path / "runs.csv").write_text("\n".join(["flops,loss", *lines]))
        out = called("law", "runs.csv", "--forecast", "1e24", "--bootstraps", "200")[1]
        assert (f"Loss {'goes' if said else 'falls'} with compute as") in out
        assert ("Note:" in out) == bool(said)
        assert said in out


def test_tabs_are_read_too_and_a_budget_column_with_gaps_is_not_used(called: Called, tmp_path: Path) -> None:
    lines = [f"1e{18 + place}\t{4 - 0.5 * place}\t{'b' if place else ''}" for place in range(5)]
    (tmp_path / "runs.tsv").write_text("\n".join(["flops\tloss\tbudget", *lines]))
    status, out, err = called("law", "runs.tsv", "--bootstraps", "200")
    assert (status, err) == (0, "")
    assert "Note: 1 runs have no budget" not in out
    assert "1 of 5 runs has no budget, so the names of the others are not used" in out


def test_every_key_of_the_json_is_told(called: Called, a_study: Path) -> None:
    out = called("law", str(a_study), "--json", "--forecast", "1e13", "--leave-out", "1", "--bootstraps", "200")[1]
    found = json.loads(out)
    del found["next_budgets"]  # told in a class of its own

    def keys(value: object) -> set[str]:
        if isinstance(value, dict):
            return set(value) | set().union(*map(keys, value.values()))
        return set().union(*map(keys, value)) if isinstance(value, list) else set()

    told = str(as_json.__doc__)
    assert sorted(key for key in keys(found) if not key.endswith(("_low", "_high")) and key not in told) == []


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
        (("{csv}", "--bootstraps", "100001"), "--bootstraps: 100001 given; allowed: up to 100000"),
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
