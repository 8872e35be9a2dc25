"""A plan says what a study would do, without doing any of it."""

from __future__ import annotations

import io
import math
from types import SimpleNamespace

import pytest
from rich.console import Console

from search.devices import resolve_device
from search.formats import duration
from search.plan import Plan, plan, render_plan
from search.results import MeasuredRates
from search.study import StudyError, read_study

STUDY = """
name: mini
data: {source: digits, image_size: 8}
model: {variants: [F0, F1], width: 0.0625, group_size: 8, stem: small}
budgets: [1e10 FLOPs, 2e10 FLOPs]
training: {batch_size: 16}
learning_rate: {base: 0.8, min: 0.2, max: 1.6}
search: {trials: 4}
"""
COMPUTE = "compute: {device: cpu, slices: 2, cores_per_slice: 3, flops_per_core_second: 1e9}\n"
RATES = MeasuredRates(1.5e9, {"F0": 2e9})


def planned(more: str = "", **kwargs: object) -> Plan:
    return plan(read_study(STUDY + more, source="mini.yaml"), 1000, 100, 10, **kwargs)  # type: ignore[arg-type]


def shown(plan: Plan, width: int = 80) -> str:
    out = io.StringIO()
    render_plan(plan, Console(file=out, width=width))
    return out.getvalue()


def test_a_trials_time_is_its_flops_over_the_rate_of_its_cores() -> None:
    made = planned(COMPUTE)
    cell = made.budgets[0].cell("F0")
    assert made.trial_seconds(cell) == pytest.approx(cell.flops / 3e9)


def test_a_trials_core_hours_are_its_flops_over_the_rate_of_a_core() -> None:
    made = planned(COMPUTE)
    cell = made.budgets[0].cell("F0")
    assert made.core_hours(cell) == pytest.approx(cell.flops / 1e9 / 3600)
    assert planned().core_hours(cell) is None


def test_a_studys_time_is_that_of_its_trials_on_its_slices() -> None:
    made = planned(COMPUTE)
    assert made.trials == 8
    assert made.flops == pytest.approx(4 * 3e10, rel=0.02)
    assert made.seconds == pytest.approx(made.flops / (2 * 3e9), rel=0.001)


@pytest.mark.parametrize(("slices", "rounds"), [(1, 4), (2, 2), (3, 2), (4, 1), (5, 1)])
def test_trials_that_fill_a_part_of_the_slices_take_as_long_as_a_full_round(slices: int, rounds: int) -> None:
    made = planned(COMPUTE.replace("slices: 2", f"slices: {slices}"))
    assert made.budget_seconds(made.budgets[0]) == pytest.approx(rounds * 1e10 / 3e9, rel=0.02)


def test_the_measured_goodput_makes_a_trial_longer() -> None:
    bare, made = planned(COMPUTE), planned(COMPUTE, measured=RATES, goodput=0.5)
    cell = made.budgets[0].cell("F0")
    assert made.trial_seconds(cell) == pytest.approx(cell.flops / 6e9 / 0.5)
    assert "measured by an earlier search, at its goodput of 50.0 %; not counted: start-up of the cluster" in shown(
        made, 200
    )
    assert "not counted: input, evaluation, checkpoints and start-up" in shown(bare, 300)


@pytest.mark.parametrize("unknown", [None, math.nan, 0.0])
def test_without_a_goodput_only_training_steps_are_counted(unknown: float | None) -> None:
    made = planned(COMPUTE, measured=RATES, goodput=unknown)
    cell = made.budgets[0].cell("F0")
    assert made.trial_seconds(cell) == pytest.approx(cell.flops / 6e9)
    assert "not counted: input" in shown(made, 300)


def test_slices_beyond_the_trials_do_not_shorten_a_study() -> None:
    many = COMPUTE.replace("slices: 2", "slices: 64")
    made = planned(many)
    assert made.budget_seconds(made.budgets[0]) == pytest.approx(1e10 / 3e9, rel=0.02)


def test_without_a_rate_times_are_unknown() -> None:
    made = planned()
    assert made.seconds is None
    assert "unknown" in shown(made)
    assert "set compute.flops_per_core_second" in shown(made)


def test_measured_rates_go_before_the_studys_estimate() -> None:
    made = planned(COMPUTE, measured=RATES)
    assert made.measured
    assert made.flops_per_core_second == {"F0": 2e9, "F1": 1.5e9}
    assert "measured by an earlier search" in shown(made, 300)


@pytest.mark.parametrize("measured", [None, RATES])
def test_a_time_is_marked_as_an_estimate(measured: MeasuredRates | None) -> None:
    made = planned(COMPUTE, measured=measured)
    text = shown(made, 300)
    assert ("estimated from compute.flops_per_core_second" in text) == (measured is None)
    assert made.seconds is not None
    assert f"~{duration(made.seconds)} on 2 slices of 3 cores" in text
    for budget in made.budgets:
        for cell in budget.cells:
            assert f"~{duration(made.trial_seconds(cell))}\n" in text


@pytest.mark.parametrize(
    ("compute", "cores"),
    [
        ("{device: cuda, workers_per_slice: 2, slices: 4}", 2),
        ("{device: cpu, cores_per_slice: 5}", 5),
        ("{device: cpu, slices: 10000}", 1),
    ],
)
def test_the_cores_of_a_slice(compute: str, cores: int) -> None:
    assert planned(f"compute: {compute}").cores_per_slice == cores


@pytest.mark.parametrize(("there", "cores"), [(0, 3), (8, 2)])
def test_auto_is_what_a_search_on_this_machine_takes(there: int, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(7)))
    monkeypatch.setattr("torch.cuda.device_count", lambda: there)
    monkeypatch.setattr("torch.cuda.is_available", lambda: there > 0)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: SimpleNamespace(total_memory=10**9))
    compute = "compute: {slices: 2, flops_per_core_second: 1e9, workers_per_slice: WORKERS}".replace(
        "WORKERS", "2" if there else "1"
    )
    made = planned(compute)
    assert made.device == resolve_device(made.study, own_cluster=True)
    assert made.cores_per_slice == cores
    assert f"on 2 slices of {cores} {'GPUs' if there else 'cores'} " in shown(made, 300)


@pytest.mark.parametrize("width", [80, 140])
def test_a_plan_shows_every_cell_in_full(width: int) -> None:
    made = planned(COMPUTE)
    text = shown(made, width)
    assert "…" not in text
    assert "Budget 1e10 FLOPs: at most 4 trials" in text
    assert "Learning rates: 0.2, 0.4, 0.8, 1.6 (sampler trend)" in text
    for budget in made.budgets:
        for cell in budget.cells:
            (row,) = [
                line for line in text.splitlines() if line.startswith(cell.variant) and f" {cell.steps:,} " in line
            ]
            assert f"{cell.parameters / 1e6:.2f} M" in row


PAPER = """
name: paper
data: {source: folder, path: jft}
model: {variants: [F0, F7+]}
budgets: [400 TPU-v4 core-hours, 110_000 TPU-v4 core-hours]
epochs: {min: 0.2, max: 100}
compute: {flops_per_core_second: 4e13, cores_per_slice: 512}
"""


@pytest.fixture(scope="module")
def paper() -> Plan:
    return plan(read_study(PAPER), 4_000_000_000, 130_000, 30_000)


def test_a_big_plan_fits_eighty_columns(paper: Plan) -> None:
    text = shown(paper)
    assert "…" not in text
    assert f" {paper.budgets[1].cell('F7+').steps:,} " in text


def test_the_papers_budgets_buy_about_the_papers_epochs(paper: Plan) -> None:
    """400 core-hours are F0 for 0.25 epochs of JFT-4B, 110,000 are F7+ for 8 (36 %, not 29 %, of the peak)."""
    small, large = paper.budgets
    assert small.cell("F0").epochs == pytest.approx(0.25, rel=0.03)
    assert large.cell("F7+").epochs == pytest.approx(8 * 29 / 36, rel=0.05)


def test_warnings_are_one_line_each_where_no_terminal_is() -> None:
    text = shown(planned("epochs: {min: 1.5}\n"), width=60)
    (warning,) = [line for line in text.splitlines() if line.startswith("Warning: ")]
    assert "left out F1" in warning
    assert "outside the range of 1.5 to 8 epochs" in warning


def test_a_plan_opens_with_the_data_it_is_for() -> None:
    text = shown(planned(), 120)
    assert text.startswith("mini: digits, 1,000 training and 100 held-out images of 8 px in 10 classes; batch 16")


def test_a_budget_that_buys_nothing_is_refused() -> None:
    with pytest.raises(StudyError, match="buys no variant"):
        plan(read_study(STUDY.replace("1e10 FLOPs", "1 FLOPs")), 1000, 100, 10)


def test_what_is_expected_of_sampler_trend_counts_further_seeds() -> None:
    text = STUDY.replace("search: {trials: 4}", "search: {seeds: SEEDS}")
    lines = [
        shown(plan(read_study(text.replace("SEEDS", seeds)), 1000, 100, 10), width=200).splitlines()[-1]
        for seeds in ("1", "3")
    ]
    # two budgets of two variants: 1.3 trials each are expected, and two more seeds at least of each budget's best
    assert "at most 12 trials (~5 where losses are like the paper's)" in lines[0]
    assert "at most 24 trials (~9 or more where losses are like the paper's)" in lines[1]
