"""Trials of several studies side by side, as MLflow has them."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies
from rich.cells import cell_len
from rich.console import Console

from search import cli
from search.compare import CompareError, Comparison, Trial, choose, compare, newest_ledger, trials_of
from search.compare_command import compare_studies
from search.compare_table import alike, columns, print_comparison, title, write_csv, write_markdown
from search.law.runs import read_csv
from search.ledger import Record
from search.state import StudyState
from search.tracked_runs import TrackedStudy
from search.tracking import sync
from search.tracking_server import FoundExperiment, FoundRun
from search.tracking_uri import default_uri
from tests.search.ledgers import synthetic_records
from tests.search.seeded_ledger import two_seeds

FLOPS = "6e11 FLOPs"


def experiment_of(*ledgers: Sequence[Record]) -> FoundExperiment:
    """What a server would show that was given these ledgers."""
    runs: list[FoundRun] = []
    for records in ledgers:
        study = TrackedStudy(records[0]["study"], records[0]["run"])
        for record in records:
            study.apply(record)
        for key, run in study.runs.items():
            changes = run.changes(-1)
            last = {point.name: point.value for point in changes.points}
            runs.append(FoundRun(f"{records[0]['study']} {key}", changes.tags, changes.params, last))
    return FoundExperiment("1", {}, tuple(runs))


def opened_with(records: list[Record], *, later_s: float = 0.0, **changes: Any) -> list[Record]:
    """The same ledger, but for its first event."""
    first = replace(records[0], fields=records[0].fields | changes)
    return [replace(record, time=record.time + later_s) for record in (first, *records[1:])]


def trials(*ledgers: Sequence[Record]) -> list[Trial]:
    return trials_of(experiment_of(*ledgers), None)


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """A study of three budgets, of 15 trials each, of which one failed and one, with the highest loss, diverged."""
    records = synthetic_records(fail=7)
    ended = [record for record in records if record.event == "trial_ended" and record["outcome"] == "finished"]
    worst = max(ended, key=lambda record: record["result"]["heldout_loss"])
    worst.fields["outcome"] = "diverged"
    worst.fields["result"] |= {"heldout_loss": math.nan, "heldout_accuracy": None, "reason": "loss is not finite"}
    return records


def of_budget(comparisons: Sequence[Comparison], label: str = FLOPS) -> Comparison:
    return next(comparison for comparison in comparisons if label in comparison.labels)


# ---------------------------------------------------------------- what is compared, and in which order


def test_a_budgets_trials_come_best_first_and_the_smallest_budget_first(records: list[Record]) -> None:
    state = StudyState.of(records)
    comparisons = compare(trials(records))
    assert [comparison.flops for comparison in comparisons] == [2e11, 6e11, 1.8e12]
    for comparison in comparisons:
        known = state.budgets[comparison.labels[0]]
        finished = sorted((trial.heldout_loss, trial.trial_id) for trial in known.trials if trial.outcome == "finished")
        shown = [(trial.heldout_loss, trial.trial_id) for trial in comparison.trials]
        assert shown[: len(finished)] == finished
        assert all(math.isnan(loss) for loss, _ in shown[len(finished) :])
        assert (comparison.total, len(shown)) == (15, 15)


def test_what_did_not_finish_comes_last_and_has_no_loss_and_no_gap(records: list[Record]) -> None:
    comparison = compare(trials(records))[0]
    last = [trial for trial in comparison.trials if trial.outcome != "finished"]
    assert {trial.outcome for trial in last} == {"diverged", "failed"}
    assert list(comparison.trials[-len(last) :]) == last
    assert all(math.isnan(comparison.gap(trial)) for trial in last)
    assert comparison.gap(comparison.trials[0]) == 0
    assert comparison.gap(comparison.trials[1]) == pytest.approx(
        comparison.trials[1].heldout_loss - comparison.trials[0].heldout_loss
    )


def test_a_trial_under_way_is_unfinished(records: list[Record]) -> None:
    (comparison,) = compare(trials(records[:4]))
    assert [(trial.outcome, math.isnan(trial.heldout_loss)) for trial in comparison.trials] == [("unfinished", True)]
    assert math.isnan(comparison.best_loss)


def test_budgets_of_several_studies_are_one_if_their_flops_are() -> None:
    ours = synthetic_records(trials=2)
    hours = json.loads(json.dumps([json.loads(record.to_json()) for record in ours]).replace(FLOPS, "4 core-hours"))
    theirs = opened_with([Record.from_json(json.dumps(record)) for record in hours], study="theirs")
    comparisons = compare(trials(ours, theirs))
    assert [comparison.labels for comparison in comparisons] == [
        ("2e11 FLOPs",),
        (FLOPS, "4 core-hours"),
        ("1.8e12 FLOPs",),
    ]
    assert [comparison.total for comparison in comparisons] == [4, 4, 4]


def test_budgets_whose_flops_differ_beyond_six_digits_are_told_apart_as_the_ledger_does() -> None:
    one, other = (
        synthetic_records(budgets=[1.2345678e13], trials=1),
        synthetic_records(budgets=[1.2345699e13], trials=1),
    )
    same = synthetic_records(budgets=[1.2345678e13 * (1 + 5e-7)], trials=1)
    assert [comparison.total for comparison in compare(trials(one, other))] == [1, 1]
    assert [comparison.total for comparison in compare(trials(one, same))] == [2]


def test_so_many_of_each_budget_as_asked_for(records: list[Record]) -> None:
    every, best = compare(trials(records)), compare(trials(records), top=3)
    assert [comparison.trials for comparison in best] == [comparison.trials[:3] for comparison in every]
    assert title(best[1]) == "Budget 6e11 FLOPs: best 3 of 15 trials"
    assert title(every[1]) == "Budget 6e11 FLOPs: 15 trials"
    assert title(replace(every[1], labels=("4 core-hours",))) == "Budget 4 core-hours (6.0e11 FLOPs): 15 trials"


def test_points_of_several_seeds_are_ranked_by_their_mean_then_by_loss() -> None:
    comparison = compare(trials(two_seeds()))[0]
    assert [(t.trial_id[-3:], t.mean_loss, t.seeds) for t in comparison.trials] == [
        ("001", 0.3, 1),
        ("000", pytest.approx(0.4), 2),
        ("003", pytest.approx(0.4), 2),
        ("002", 0.5, 1),
    ]
    state = StudyState.of(two_seeds()).budgets[comparison.labels[0]]
    assert state.best is not None
    assert comparison.trials[0].trial_id == state.best.trial_id
    assert comparison.best_loss == state.best_loss
    assert [comparison.gap(trial) for trial in comparison.trials] == pytest.approx([0, 0.1, 0.1, 0.2])


def test_the_mean_of_a_point_is_over_all_its_seeds_whichever_are_shown() -> None:
    shown = compare(trials(two_seeds()), top=2)[0].trials
    assert [(trial.trial_id[-3:], trial.seeds) for trial in shown] == [("001", 1), ("000", 2)]
    assert shown[1].mean_loss == pytest.approx(0.4)


def test_seeds_of_one_study_are_not_another_studys() -> None:
    ours, theirs = two_seeds(), opened_with(two_seeds(), study="theirs")
    moved = opened_with(two_seeds(), later_s=1e6)  # of the same name, elsewhere
    assert {t.seeds for t in compare(trials(ours, theirs, moved))[0].trials} == {1, 2}


def test_a_point_that_diverged_with_some_seed_comes_after_those_that_did_not_and_says_so() -> None:
    (comparison, *_) = compare(trials(two_seeds(diverging=True)))
    found = comparison.trials
    assert [(t.trial_id[-3:], t.seeds, t.point_diverged) for t in found] == [
        ("001", 1, 0),
        ("002", 1, 0),
        ("000", 1, 1),
        ("003", 1, 1),
    ]
    assert (comparison.best_loss, found[2].mean_loss) == (0.3, 0.2)
    assert math.isnan(found[-1].mean_loss)
    by_name = {column.name: column.cells for column in columns(comparison)}
    assert by_name["seeds"] == ("1", "1", "1, 1 diverged", "1, 1 diverged")
    assert by_name["gap"] == ("-", "+0.20", "-0.10", "-")
    out = io.StringIO()
    write_csv([comparison], out)
    assert [row["seeds_diverged"] for row in csv.DictReader(io.StringIO(out.getvalue()))] == ["0", "0", "1", "1"]


@given(
    strategies.lists(
        strategies.tuples(strategies.sampled_from([1e9, 2e9, 4e9]), strategies.floats(0.01, 10) | strategies.none())
    )
)
def test_every_trial_is_in_its_budget_once_whatever_there_is(given_trials: list[tuple[float, float | None]]) -> None:
    made = [
        Trial(str(k), str(k), f"{flops:g} FLOPs", flops, "diverged" if loss is None else "finished", {},
              {} if loss is None else {"heldout_loss": loss})
        for k, (flops, loss) in enumerate(given_trials)
    ]  # fmt: skip
    comparisons = compare(made)
    assert sorted(t.trial_id for c in comparisons for t in c.trials) == sorted(t.trial_id for t in made)
    for comparison in comparisons:
        losses = [trial.heldout_loss for trial in comparison.trials]
        known = [loss for loss in losses if not math.isnan(loss)]
        assert losses[: len(known)] == sorted(known)
        assert {trial.budget_flops for trial in comparison.trials} == {comparison.flops}


@pytest.mark.parametrize("text", ["6e11 FLOPs", "600 GFLOPs", "0.6 tflops", "600000000000 FLOPs"])
def test_a_budget_is_named_by_its_flops_in_any_spelling(records: list[Record], text: str) -> None:
    (chosen,) = choose(compare(trials(records)), [text])
    assert chosen.labels == (FLOPS,)


def test_a_budget_in_core_hours_is_named_as_the_study_has_it(records: list[Record]) -> None:
    hours = [replace(c, labels=("4 TPU-v4 core-hours",)) for c in compare(trials(records))[:1]]
    assert choose(hours, ["4 tpu-v4 core hours"]) == hours


def test_several_budgets_come_in_their_order_and_once(records: list[Record]) -> None:
    comparisons = compare(trials(records))
    assert choose(comparisons, ["1.8e12 FLOPs", "2e11 FLOPs", "200 GFLOPs"]) == [comparisons[0], comparisons[2]]
    assert choose(comparisons, []) == comparisons


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("5e11 FLOPs", 'allowed: the budgets that have trials ("2e11 FLOPs", "6e11 FLOPs", "1.8e12 FLOPs")'),
        ("much", "allowed: an amount and a unit"),
        ("6e11", 'add the unit: "6e11 FLOPs"'),
    ],
)
def test_a_budget_that_is_not_there_is_refused_with_those_that_are(records: list[Record], text: str, why: str) -> None:
    with pytest.raises(CompareError) as caught:
        choose(compare(trials(records)), [text])
    assert str(caught.value).startswith(f"--budget: {text!r} given; ")
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- what differs


def test_what_differs_is_a_column_and_the_rest_is_said_once(records: list[Record]) -> None:
    comparison = of_budget(compare(trials(records)))
    assert comparison.differing == ["variant", "epochs", "learning_rate", "seed"]
    assert alike(comparison) == "the same in all: study digits, run run-1, batch size 64"
    of_f1 = tuple(t for t in comparison.trials if t.settings["variant"] == "F1")
    one = replace(comparison, trials=of_f1, total=len(of_f1))
    assert one.differing == ["learning_rate", "seed"]
    assert alike(one) == "the same in all: study digits, run run-1, batch size 64"
    best = compare(trials(records), top=2)[1]
    assert alike(best).startswith("the same in those shown: study digits")


def test_a_single_trial_says_which_it_is(records: list[Record]) -> None:
    best = of_budget(compare(trials(records), top=1))
    (trial,) = best.trials
    cells = {column.name: column.cells for column in columns(best)}
    assert [cells[name] for name in ("variant", "epochs", "learning_rate")] == [("F1",), ("36.3",), ("0.2",)]
    assert alike(best) == f"study digits, run run-1, seed {trial.settings['seed']}, batch size 64"


def test_studies_that_were_trained_otherwise_differ_by_the_name_of_the_setting() -> None:
    identity = {"training.weight_decay": 2e-5, "training.ema_decay": None, "model.width": 0.5}
    ours = opened_with(synthetic_records(trials=2), identity=identity)
    theirs = opened_with(
        synthetic_records(trials=2), identity=identity | {"training.weight_decay": 0.1}, study="theirs"
    )
    comparison = of_budget(compare(trials(ours, theirs)))
    assert comparison.differing == ["study", "variant", "epochs", "learning_rate", "seed", "training.weight_decay"] or (
        comparison.differing == ["study", "variant", "epochs", "seed", "training.weight_decay"]
    )
    decay = next(column for column in columns(comparison) if column.name == "training.weight_decay")
    assert decay.heading == "weight decay"
    assert set(decay.cells) == {"0.00002", "0.1"}


def test_what_a_trial_says_itself_is_not_said_again_of_its_study() -> None:
    ours = opened_with(synthetic_records(trials=1), identity={"training.batch_size": 64, "learning_rate.base": 0.4})
    theirs = opened_with(
        synthetic_records(trials=1), identity={"training.batch_size": 128, "learning_rate.base": 0.8}, study="theirs"
    )
    theirs = [replace(r, fields=r.fields | {"batch_size": 128}) if r.event == "trial_suggested" else r for r in theirs]
    assert of_budget(compare(trials(ours, theirs))).differing == ["study", "batch_size"]


def test_sessions_of_another_version_or_on_another_device_differ_by_that() -> None:
    ours = synthetic_records(trials=1)
    theirs = opened_with(synthetic_records(trials=1), device="cuda", code_version="0.2.0", study="theirs")
    theirs = [replace(r, fields=r.fields | {"device": "cuda"}) if r.event == "session_started" else r for r in theirs]
    assert of_budget(compare(trials(ours, theirs))).differing == ["study", "code_version", "device"]


def test_a_column_that_would_be_empty_is_left_out(records: list[Record]) -> None:
    names = [column.name for column in columns(compare(trials(records))[0])]
    assert names == ["variant", "epochs", "learning_rate", "seed", "heldout_loss", "gap", "heldout_accuracy",
                     "core_hours", "goodput", "images_per_second", "outcome"]  # fmt: skip
    finished = compare(trials(records), top=2)[0]
    assert "outcome" not in [column.name for column in columns(finished)]


# ---------------------------------------------------------------- which runs of a study


def test_of_several_runs_the_one_that_began_last_is_the_newest(records: list[Record]) -> None:
    early, late = opened_with(records, run="run-1"), opened_with(records, run="run-2", later_s=1e6)
    experiment = experiment_of(early, late)
    newest = newest_ledger(experiment)
    assert newest is not None
    assert {trial.settings["run"] for trial in trials_of(experiment, [newest])} == {"run-2"}
    assert of_budget(compare(trials_of(experiment, None))).differing[0] == "run"
    assert newest_ledger(FoundExperiment("1", {}, ())) is None


def test_a_study_whose_own_run_was_deleted_is_still_found_by_its_trials(records: list[Record]) -> None:
    whole = experiment_of(records)
    left = replace(whole, runs=tuple(run for run in whole.runs if run.tags["kind"] == "trial"))
    assert newest_ledger(left) == newest_ledger(whole)
    assert len(trials_of(left, [newest_ledger(whole) or ""])) == 45


def test_runs_that_people_made_themselves_are_none_of_a_studys(records: list[Record]) -> None:
    whole = experiment_of(records)
    own = tuple(FoundRun(kind, {"kind": kind, "budget": FLOPS}, {}, {}) for kind in ("study", "budget", "trial"))
    with_own = replace(whole, runs=(*whole.runs, *own))
    assert newest_ledger(with_own) == newest_ledger(whole)
    assert trials_of(with_own, None) == trials_of(whole, None)
    assert newest_ledger(replace(whole, runs=own)) is None


def test_what_an_earlier_version_left_on_a_server_is_read_too(records: list[Record]) -> None:
    """It named tags convscale.<name>, and had neither exact FLOPs nor the study's settings."""
    machine = {"key", "ledger", "seq"}

    def old(run: FoundRun) -> FoundRun:
        tags = {name: value for name, value in run.tags.items() if name != "convscale.budget_flops"}
        tags = {name if name.startswith("convscale.") else f"convscale.{name}": value for name, value in tags.items()}
        assert {f"convscale.{name}" for name in machine - {"seq"}} <= tags.keys()
        return replace(run, tags=tags)

    now = experiment_of(records)
    before = replace(now, runs=tuple(map(old, now.runs)))
    assert newest_ledger(before) == newest_ledger(now)
    assert trials_of(before, None) == trials_of(now, None)


# ---------------------------------------------------------------- as text


def printed(comparison: Comparison, width: int) -> str:
    out = io.StringIO()
    print_comparison(comparison, Console(file=out, width=width, color_system=None))
    return out.getvalue()


def test_the_table_has_a_row_for_each_trial_with_its_gap_to_the_best(records: list[Record]) -> None:
    comparison = of_budget(compare(trials(records), top=2))
    lines = [line.split() for line in printed(comparison, 120).splitlines()]
    first, second = (f"{trial.heldout_loss:.4f}" for trial in comparison.trials)
    assert lines[-2][:8] == ["F1", "36.3", "0.2", "1", first, "-", "80.3", "%"]
    assert lines[-1][:8] == ["F1", "36.3", "0.4", "7", second, "+0.046", "79.0", "%"]


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_a_table_fits_the_terminal_and_says_what_it_left_out(records: list[Record], width: int) -> None:
    comparison = of_budget(compare(trials(records)))
    text = printed(comparison, width)
    rows = text.splitlines()[2:-1]
    assert max(map(len, rows)) <= width
    assert ("for want of room" in text) == (width < 100)
    assert "loss" in text
    assert "variant" in text


def test_no_cell_is_cut_and_no_column_dropped_that_there_is_room_for(records: list[Record]) -> None:
    """Letters may be two cells wide, and the widest cell stands in any row."""
    comparison = of_budget(compare(trials(records)))
    comparison = replace(
        comparison,
        trials=tuple(
            replace(trial, settings={**trial.settings, "model.name": "学" * (k % 5)})
            for k, trial in enumerate(comparison.trials)
        ),
    )
    left_out = []
    for width in range(45, 140):
        lines = printed(comparison, width).splitlines()
        note = lines.pop() if "for want of room" in lines[-1] else ""
        assert max(map(cell_len, lines[2:])) <= width
        assert "…" not in "".join(lines)
        left_out.append((note.count(","), max(map(cell_len, lines[2:]))))
    dropped = [count for count, _ in left_out]
    assert dropped == sorted(dropped, reverse=True)
    for (count, taken), (fewer, _), width in zip(left_out[1:], left_out, range(46, 140), strict=False):
        assert count == fewer or taken == width  # a column comes back at the very width that it takes


def test_means_are_columns_where_a_point_was_run_with_several_seeds(records: list[Record]) -> None:
    comparison = compare(trials(two_seeds()))[0]
    by_name = {column.name: column for column in columns(comparison)}
    assert [by_name[name].heading for name in ("mean_heldout_loss", "seeds")] == ["mean", "seeds"]
    assert by_name["mean_heldout_loss"].cells == ("0.3000", "0.4000", "0.4000", "0.5000")
    assert by_name["seeds"].cells == ("1", "2", "2", "1")
    assert by_name["gap"].cells == ("-", "+0.10", "+0.10", "+0.20")
    assert not {"mean_heldout_loss", "seeds"} & {column.name for column in columns(compare(trials(records))[0])}
    out = io.StringIO()
    write_csv([comparison], out)
    rows = list(csv.DictReader(io.StringIO(out.getvalue())))
    assert [(float(row["mean_heldout_loss"]), row["seeds"]) for row in rows[:2]] == [
        (0.3, "1"),
        (pytest.approx(0.4), "2"),
    ]


def test_the_markdown_is_a_table_for_each_budget(records: list[Record]) -> None:
    out = io.StringIO()
    write_markdown(compare(trials(records), top=2), out)
    text = out.getvalue()
    assert text.count("### Budget") == 3
    block = text.split("### ")[2].splitlines()
    assert block[0] == "Budget 6e11 FLOPs: best 2 of 15 trials"
    heads, rule, *rows = (line.strip("|").split("|") for line in block if line.startswith("|"))
    assert [head.strip() for head in heads][:4] == ["variant", "epochs", "learning rate", "seed"]
    assert [cell.strip() for cell in rule] == ["---", *["---:"] * (len(rule) - 1)]
    assert [len(row) for row in rows] == [len(heads)] * 2


def test_what_would_break_a_markdown_table_is_escaped() -> None:
    ours = synthetic_records(trials=1)
    theirs = opened_with(synthetic_records(trials=1), study="a|b")
    out = io.StringIO()
    write_markdown(compare(trials(ours, theirs))[:1], out)
    assert r"a\|b" in out.getvalue()


def test_the_csv_has_all_of_every_trial_its_results_in_full_precision(records: list[Record]) -> None:
    known = StudyState.of(records).trials
    comparisons = compare(trials(records))
    out = io.StringIO()
    write_csv(comparisons, out)
    rows = list(csv.DictReader(io.StringIO(out.getvalue())))
    every = [trial for comparison in comparisons for trial in comparison.trials]
    assert [row["trial"] for row in rows] == [trial.trial_id for trial in every]
    assert [row["rank"] for row in rows[:2]] == ["1", "2"]
    for row, trial in zip(rows, every, strict=True):
        assert row["outcome"] == trial.outcome
        assert row["heldout_loss"] == ("" if math.isnan(trial.heldout_loss) else repr(trial.heldout_loss))
        assert float(row["core_hours"]) == trial.results["core_hours"]
        assert (row["study"], row["run"], row["device"]) == ("digits", "run-1", "cpu")
        assert int(row["examples"]) == int(row["steps"]) * 64
        assert float(row["budget_flops"]) == StudyState.of(records).budgets[row["budget"]].flops
        assert float(row["epochs"]) == pytest.approx(known[row["trial"]].epochs, rel=5e-6)  # six digits, as MLflow has
        assert row["mlflow_run_id"] == trial.run_id


def test_a_law_can_be_fitted_to_the_csv(records: list[Record], tmp_path: Path) -> None:
    with (tmp_path / "trials.csv").open("w") as file:
        write_csv(compare(trials(records)), file)
    table = read_csv(tmp_path / "trials.csv")
    assert len(table.runs) == sum(trial.outcome == "finished" for trial in trials(records))
    assert {run.variant for run in table.runs} == {"F0", "F1", "F3"}
    assert all(run.examples and run.parameters and run.learning_rate for run in table.runs)


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, records: list[Record]) -> Path:
    """A storage with MLflow's database of the study digits, and with its ledger."""
    folder = tmp_path_factory.mktemp("filled") / "runs"
    folder.mkdir()
    uri, root = default_uri(folder)
    few = synthetic_records(trials=2)
    sync(few, uri, artifact_root=root)
    (folder / "digits" / "run-1").mkdir(parents=True)
    (folder / "digits" / "run-1" / "ledger.jsonl").write_text("".join(f"{record.to_json()}\n" for record in few))
    return folder


def write_study(name: str = "digits", into: str | None = None, **changes: Any) -> None:
    values = {"name": name, "data": {"source": "digits", "image_size": 32}, "budgets": ["2e11 FLOPs"]} | changes
    Path(into or f"{name}.yaml").write_text(json.dumps(values))


@pytest.fixture
def here(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a study file and its storage."""
    shutil.copytree(filled, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    write_study()
    return tmp_path


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Calls convscale compare in this process; its exit status, standard output and standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["convscale", "compare", *arguments])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return call


Called = Callable[..., tuple[int, str, str]]


def test_the_command_prints_every_budget_and_where_to_look_further(here: Path, called: Called) -> None:
    status, out, err = called("digits.yaml")
    assert (status, err) == (0, "")
    assert [line for line in out.splitlines() if line.startswith("Budget")] == [
        "Budget 2e11 FLOPs: 2 trials",
        "Budget 6e11 FLOPs: 2 trials",
        "Budget 1.8e12 FLOPs: 2 trials",
    ]
    last = out.splitlines()[-1]
    assert last.startswith("MLflow's page of digits: ")
    assert last.endswith("/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=convscale-trials")


def test_the_options_choose_budgets_and_trials(here: Path, called: Called) -> None:
    status, out, _ = called("digits.yaml", "digits.yaml", "--budget", "600 GFLOPs", "--top", "1")
    assert status == 0
    assert [line for line in out.splitlines() if line.startswith("Budget")] == ["Budget 6e11 FLOPs: best 1 of 2 trials"]


def test_exports_go_to_files_or_alone_to_standard_output(here: Path, called: Called) -> None:
    status, out, _ = called("digits.yaml", "--csv", "all.csv", "--markdown", "all.md")
    assert (status, out[:6]) == (0, "Budget")
    assert called("digits.yaml", "--csv", "-")[1] == Path("all.csv").read_text()
    assert called("digits.yaml", "--markdown", "-")[1] == Path("all.md").read_text()
    assert len(Path("all.csv").read_text().splitlines()) == 7


def test_an_export_of_the_best_says_that_it_holds_no_more(here: Path, called: Called) -> None:
    note = "--csv: has the best 1 of each budget alone; leave --top out to export every trial"
    assert note in called("digits.yaml", "--top", "1", "--csv", "best.csv")[1].splitlines()
    _, out, err = called("digits.yaml", "--top", "1", "--csv", "-")
    assert err.splitlines() == [note]
    assert out == Path("best.csv").read_text()
    assert "--csv" not in "".join(called("digits.yaml", "--top", "2", "--csv", "all.csv")[1:])


def test_experiments_can_be_named_at_an_address(here: Path, called: Called) -> None:
    uri = default_uri(here / "runs")[0]
    Path("digits.yaml").unlink()
    status, out, _ = called("digits", "--uri", uri)
    assert (status, out.count("Budget ")) == (0, 3)


def test_studies_of_one_name_in_two_storages_are_two(here: Path, called: Called) -> None:
    uri, root = default_uri(here / "runs")
    write_study(tracking={"uri": uri})
    theirs = opened_with(synthetic_records(trials=1), later_s=1e6)
    sync(theirs, uri, artifact_root=root)
    (here / "elsewhere" / "digits" / "run-1").mkdir(parents=True)
    (here / "elsewhere" / "digits" / "run-1" / "ledger.jsonl").write_text("".join(f"{r.to_json()}\n" for r in theirs))
    write_study(tracking={"uri": uri}, storage="elsewhere", into="other.yaml")
    for asked in (["digits.yaml", "other.yaml", "digits.yaml"], ["other.yaml", "digits.yaml", "--all-runs"]):
        status, out, _ = called(*asked)
        assert status == 0
        assert out.count(": 3 trials\n") == 3
        assert out.count("MLflow's page of digits: ") == 1
        assert [out.count(f"digits ({name}.yaml)") for name in ("digits", "other")] == (
            [0, 0] if "--all-runs" in asked else [6, 3]
        )
    assert called("other.yaml")[1].count(": 1 trial\n") == 3
    write_study(tracking={"uri": uri}, storage="nowhere", into="third.yaml")
    said = refused(called, "third.yaml", "digits.yaml")
    assert "third.yaml: MLflow at " in said
    assert "has no trials of digits from its storage; no run of it has begun either; start one with: " in said


def append(*events: Record) -> None:
    with Path("runs/digits/run-1/ledger.jsonl").open("a") as file:
        file.writelines(f"{event.to_json()}\n" for event in events)


def test_where_mlflow_lags_behind_the_ledger_it_is_said_with_how_to_mend_it(here: Path, called: Called) -> None:
    last = synthetic_records(trials=2)[-1]
    append(Record(last.seq + 1, last.time + 1, "trial_reopened", {"trial": "6e11-FLOPs-001"}))
    status, out, _ = called("digits.yaml")
    assert status == 0
    assert out.splitlines()[0] == (
        "digits.yaml: MLflow is behind the ledger in 2 of 10 runs; bring it up to date with: convscale sync digits.yaml"
    )
    _, out, err = called("digits.yaml", "--csv", "-")
    assert "is behind" in err
    assert "is behind" not in out
    elsewhere = f"sqlite:///{here}/other.db"
    shutil.copy("runs/mlflow.db", "other.db")
    _, out, _ = called("digits.yaml", "--uri", elsewhere)
    assert out.splitlines()[0].endswith(f"convscale sync digits.yaml --uri {elsewhere}")


def test_a_newer_run_that_mlflow_lacks_is_missed_and_the_earlier_shown(here: Path, called: Called) -> None:
    later = opened_with(synthetic_records(trials=1), run="run-2", later_s=1e6)
    (here / "runs" / "digits" / "run-2").mkdir()
    (here / "runs" / "digits" / "run-2" / "ledger.jsonl").write_text("".join(f"{r.to_json()}\n" for r in later))
    status, out, _ = called("digits.yaml")
    assert status == 0
    assert "lacks the study's newest run, so the newest there is shown; bring it up to date with" in out
    uri, root = default_uri(here / "runs")
    sync(later, uri, artifact_root=root)
    assert "Budget 2e11 FLOPs: 1 trial\n" in called("digits.yaml")[1]
    assert "Budget 2e11 FLOPs: 3 trials\n" in called("digits.yaml", "--all-runs")[1]


def test_a_ledger_that_cannot_be_read_hides_nothing_that_mlflow_has(here: Path, called: Called) -> None:
    path = Path("runs/digits/run-1/ledger.jsonl")
    path.write_text("no event\n" + path.read_text())
    status, out, _ = called("digits.yaml")
    assert (status, out.count("Budget ")) == (0, 3)
    assert "(what follows is what MLflow has)" in out


def refused(called: Called, *arguments: str) -> str:
    status, out, err = called(*arguments)
    assert (status, out) == (2, ""), err
    (line,) = err.splitlines()
    return line.removeprefix("convscale: ")


def test_a_study_that_is_not_in_mlflow_is_refused_with_the_command_that_brings_it(here: Path, called: Called) -> None:
    uri = default_uri(here / "runs")[0]
    Path("runs/mlflow.db").unlink()
    assert refused(called, "digits.yaml") == (
        f"digits.yaml: MLflow at {uri} has no trials of digits; bring the study there with: convscale sync digits.yaml"
    )
    assert not Path("runs/mlflow.db").exists()


def test_a_study_that_never_began_is_refused_with_the_command_that_begins_it(here: Path, called: Called) -> None:
    write_study("other")
    assert refused(called, "digits.yaml", "other.yaml").endswith(
        "has no trials of other; no run of it has begun either; start one with: convscale search other.yaml"
    )


def test_an_experiment_that_is_not_there_is_refused(here: Path, called: Called) -> None:
    uri = default_uri(here / "runs")[0]
    assert refused(called, "digit", "--uri", uri) == (
        f"digit: MLflow at {uri} has no trials of digit; name one that is there, or give the study's file"
    )


def test_a_server_that_does_not_answer_is_refused_in_one_line(here: Path, called: Called) -> None:
    line = refused(called, "digits.yaml", "--uri", "http://user:secret@127.0.0.1:9")
    where = "digits.yaml: MLflow at http://127.0.0.1:9"
    assert line == f"{where} cannot be reached (Connection refused); start it, or correct the address"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["digits.yaml", "--budget", "1 FLOPs"], "--budget: '1 FLOPs' given; allowed: the budgets that have trials"),
        (["digits.yaml", "--csv", "no/such/folder.csv"], "--csv: 'no/such/folder.csv' cannot be written (No such file"),
        (["digits.yaml", "--markdown", "runs"], "--markdown: 'runs' cannot be written (Is a directory); name a file"),
        (["digits.yaml", "--csv", "-", "--markdown", "-"], "--csv and --markdown: both are -, standard output"),
        (["digits.yaml", "--uri", "nowhere"], "tracking address 'nowhere' is neither a server nor an SQLite file"),
        (["digit.yaml"], "digit.yaml: no such file; did you mean digits.yaml?"),
        (["digits"], "digits: no such file; "),
        (["digits.yaml", "--top", "0"], "Invalid value for '--top': "),
        ([], "Missing argument 'STUDY...'."),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(here: Path, called: Called, arguments: list[str], why: str) -> None:
    assert refused(called, *arguments).startswith(why)


def test_a_database_that_is_none_is_refused(here: Path, called: Called) -> None:
    Path("runs/mlflow.db").write_text("this is not a database")
    assert "file is not a database" in refused(called, "digits.yaml")


def test_nothing_is_printed_of_a_study_whose_trials_have_not_begun(
    tmp_path: Path, filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(filled, tmp_path / "runs")
    uri, root = default_uri(tmp_path / "runs")
    sync(opened_with(synthetic_records(study="fresh"))[:2], uri, artifact_root=root)
    write_study("fresh")
    out = io.StringIO()
    compare_studies(["fresh.yaml"], Console(file=out, width=100))
    assert out.getvalue().splitlines()[0] == "No trials yet."
