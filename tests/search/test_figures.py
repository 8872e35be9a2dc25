"""Figures: the data that goes in, and pictures that come out whatever the study's state."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from search.figures import (
    draw_learning_rate_valley,
    draw_loss_vs_compute,
    draw_search_progress,
    iso_compute_data,
    learning_rate_valley_data,
    loss_vs_compute_data,
    read_iso_compute,
    read_learning_rate_valley,
    read_loss_vs_compute,
    read_search_progress,
    search_progress_data,
)
from search.figures.marks import titled_figure
from search.figures.trials import between, size
from search.foretold import unfinished_budgets
from search.formats import number
from search.plotting import budget_colours, colours, exactly, log_ticks
from search.state import StudyState
from tests.search.ledgers import synthetic_records


@pytest.fixture(scope="module")
def state() -> StudyState:
    return StudyState.of(synthetic_records(trials=21))


def test_the_frontier_is_the_best_trial_of_each_budget_by_compute(state: StudyState) -> None:
    data = loss_vs_compute_data(state)
    bests = [budget.best for budget in state.budgets.values()]
    assert [point.loss for point in data.frontier] == [best.heldout_loss for best in bests if best is not None]
    assert [point.flops for point in data.frontier] == sorted(point.flops for point in data.frontier)


def test_the_best_of_each_cell_is_the_lowest_of_its_variant_at_its_budget(state: StudyState) -> None:
    data = loss_vs_compute_data(state)
    assert data.variants == ("F0", "F1", "F3")
    assert len(data.best) == 9
    for budget in state.budgets.values():
        for variant in data.variants:
            losses = [t.heldout_loss for t in budget.trials if t.variant == variant and t.outcome == "finished"]
            assert min(losses) in [point.loss for point in data.best if point.variant == variant]


def test_every_ended_trial_is_in_the_picture_once(state: StudyState) -> None:
    data = loss_vs_compute_data(state)
    outcomes = [trial.outcome for trial in state.trials.values()]
    assert len(data.finished) == outcomes.count("finished")
    assert len(data.diverged) == outcomes.count("diverged") > 0
    assert all(math.isnan(point.loss) for point in data.diverged)


def test_variants_are_in_order_of_compute_per_image_not_of_appearance() -> None:
    records = synthetic_records(trials=3)
    for record in records:
        if record.event == "budget_opened":
            record.fields["cells"].reverse()
    assert loss_vs_compute_data(StudyState.of(records)).variants == ("F0", "F1", "F3")


def test_a_valley_per_budget_marks_its_minimum(state: StudyState) -> None:
    data = learning_rate_valley_data(state)
    assert [valley.budget for valley in data.valleys] == ["2e11 FLOPs", "6e11 FLOPs", "1.8e12 FLOPs"]
    for valley in data.valleys:
        assert valley.best is not None
        assert valley.best.loss == min(point.loss for point in valley.finished)
        rates = [point.learning_rate for point in valley.finished]
        assert rates == sorted(rates)
        assert min(rates) < valley.best.learning_rate < max(rates)


@pytest.mark.parametrize("until", [0, 3, 6, 9, None], ids=["empty", "opened", "running", "one trial", "whole"])
def test_these_figures_can_be_drawn_at_any_time(tmp_path: Path, until: int | None) -> None:
    state = StudyState.of(synthetic_records(trials=9, fail=1, until=until))
    draw_loss_vs_compute(loss_vs_compute_data(state), tmp_path / "loss.png")
    draw_learning_rate_valley(learning_rate_valley_data(state), tmp_path / "valley.png")
    draw_search_progress(search_progress_data(state), tmp_path / "progress.png")
    for name in ("loss.png", "valley.png", "progress.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) >= 500
            assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 20  # something was drawn


def test_trials_that_all_diverged_or_lie_far_above_the_best_are_no_obstacle(tmp_path: Path) -> None:
    records = synthetic_records(trials=6)
    for record in records:
        if record.event == "trial_ended" and record["trial"].startswith("2e11"):
            record.fields["outcome"] = "diverged"
        elif record.event == "trial_ended" and record["trial"].endswith("004"):
            record["result"]["heldout_loss"] = 1e4
    state = StudyState.of(records)
    draw_loss_vs_compute(loss_vs_compute_data(state), tmp_path / "loss.png")
    draw_learning_rate_valley(learning_rate_valley_data(state), tmp_path / "valley.png")
    draw_search_progress(search_progress_data(state), tmp_path / "progress.png")
    assert learning_rate_valley_data(state).valleys[0].best is None
    assert search_progress_data(state).budgets[0].found == 0
    assert len(loss_vs_compute_data(state).frontier) == 2


@pytest.mark.parametrize(
    ("low", "high"), [(2.3, 3.1), (0.99, 1.01), (0.05, 2.4), (1e3, 1e5), (1e13, 1e19), (0.9, 1.1), (2e11, 2.2e12)]
)
def test_a_log_axis_always_gets_a_few_round_labels(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert 3 <= len(ticks) <= 9
    assert all(low <= tick <= high for tick in ticks)
    assert ticks == sorted(set(ticks))


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.494, 0.506), (0.94, 1.03), (2.3, 3.1), (0.05, 2.4), (1e3, 1e5), (1e13, 1.06e13), (9.9e-4, 1.1e-3)],
)
def test_a_ticks_label_says_where_the_tick_is(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert [float(label.replace(",", "")) for label in exactly(ticks)] == pytest.approx(ticks, rel=1e-9)


def test_labels_of_ticks_have_as_many_digits_as_they_need_and_no_more() -> None:
    assert exactly([0.4975, 0.5, 0.5025]) == ["0.4975", "0.5", "0.5025"]
    assert exactly([0.95, 0.975, 1.0, 1.025]) == ["0.95", "0.975", "1", "1.025"]
    assert exactly([0.1, 0.3, 1.0]) == ["0.1", "0.3", "1"]


def test_every_variant_has_its_own_colour() -> None:
    for count in range(1, 11):
        names = [f"F{index}" for index in range(count)]
        assert len(set(colours(names).values())) == count
        assert len(set(budget_colours(count))) == count


# ---------------------------------------------------------------- the search's progress


def test_the_best_so_far_never_rises_and_ends_at_the_best_of_the_budget(state: StudyState) -> None:
    for progress, budget in zip(search_progress_data(state).budgets, state.budgets.values(), strict=True):
        bests = [step.best for step in progress.steps if not math.isnan(step.best)]
        assert bests == sorted(bests, reverse=True)
        assert budget.best is not None
        assert bests[-1] == budget.best.heldout_loss == progress.steps[progress.found - 1].loss


def test_a_trial_that_diverged_or_failed_costs_core_hours_and_changes_no_best() -> None:
    state = StudyState.of(synthetic_records(trials=21, fail=5))
    steps = [
        (before, step) for budget in search_progress_data(state).budgets for before, step in pairwise(budget.steps)
    ]
    lost = [(before, step) for before, step in steps if step.outcome != "finished"]
    assert {step.outcome for _, step in lost} == {"diverged", "failed"}
    for before, step in lost:
        assert math.isnan(step.loss)
        assert step.best == before.best
        assert step.core_hours > before.core_hours


def test_a_loss_that_no_axis_can_show_is_never_the_best_so_far() -> None:
    records = synthetic_records(trials=6)
    for record in records:
        if record.event == "trial_ended" and record["trial"].endswith(("000", "003")):
            record["result"]["heldout_loss"] = math.nan if record["trial"].endswith("000") else math.inf
    for budget in search_progress_data(StudyState.of(records)).budgets:
        assert math.isnan(budget.steps[0].best)
        assert math.isfinite(budget.steps[3].best)


# ---------------------------------------------------------------- seeds


@pytest.fixture
def seeded() -> StudyState:
    """F0 at 0.2 was lucky once and unlucky once; F0 at 0.1 is better on the mean."""
    records = synthetic_records(budgets=[2e11], trials=9)
    lots = {"000": (0.2, 0.5), "001": (0.2, 0.9), "002": (0.1, 0.6)}
    for record in records:
        place = str(record.fields.get("trial", ""))[-3:]
        rate, loss = lots.get(place, (0.4, 1.2))
        if record.event == "trial_suggested":
            record.fields.update(variant="F0", learning_rate=rate)
        elif record.event == "trial_ended":
            record.fields["outcome"] = "finished"
            record["result"]["heldout_loss"] = loss
    return StudyState.of(records)


def test_figures_take_the_mean_over_seeds_and_not_the_luckiest(seeded: StudyState) -> None:
    (valley,) = learning_rate_valley_data(seeded).valleys
    assert valley.best is not None
    assert (valley.best.learning_rate, valley.best.loss, valley.best.seeds) == (0.1, 0.6, 1)
    by_rate = {point.learning_rate: point for point in valley.points}
    assert [by_rate[rate].seeds for rate in (0.1, 0.2, 0.4)] == [1, 2, 6]
    assert by_rate[0.2].loss == pytest.approx(0.7)
    (progress,) = search_progress_data(seeded).budgets
    assert [step.best for step in progress.steps[:3]] == [0.5, pytest.approx(0.7), 0.6]
    assert progress.found == 3


def test_a_best_that_is_a_mean_says_of_how_many_seeds(seeded: StudyState) -> None:
    for trial in seeded.trials.values():
        if trial.learning_rate == 0.1:
            trial.result["heldout_loss"] = 0.8
    assert "loss is 0.700, mean of 2 seeds, reached by F0." in read_loss_vs_compute(loss_vs_compute_data(seeded))


# ---------------------------------------------------------------- what they say, and how they look


def test_where_every_trial_diverged_the_range_is_told() -> None:
    records = synthetic_records(trials=6)
    for record in records:
        if record.event == "trial_ended":
            record.fields["outcome"] = "diverged"
    said = read_learning_rate_valley(learning_rate_valley_data(StudyState.of(records)))
    assert said == "Every learning rate from 0.1 to 0.2 diverged; search below 0.1."


def test_a_reading_says_what_the_data_say(state: StudyState) -> None:
    best = [budget.best for budget in state.budgets.values()]
    said = read_loss_vs_compute(loss_vs_compute_data(state))
    assert said.startswith("With 9 times the compute (2.0e11 to 1.8e12 FLOPs) the best held-out loss goes from ")
    assert best[0] is not None
    assert f"{number(best[0].heldout_loss)} ({best[0].variant}) to " in said
    assert "the learning rate of the best trial goes from 0.4 to 0.2." in read_learning_rate_valley(
        learning_rate_valley_data(state)
    )
    assert "63 trials (10 diverged) took " in read_search_progress(search_progress_data(state))


def test_one_trial_is_no_trials() -> None:
    said = read_search_progress(search_progress_data(StudyState.of(synthetic_records(trials=1, until=8))))
    assert said.startswith("The best trial so far came as number 1 of 1; 1 trial took ")


def test_before_anything_has_finished_a_reading_says_so() -> None:
    state = StudyState.of(synthetic_records(until=3))
    assert read_loss_vs_compute(loss_vs_compute_data(state)) == "No trial has finished yet."
    assert read_learning_rate_valley(learning_rate_valley_data(state)).startswith("No trial has finished yet")
    assert read_search_progress(search_progress_data(state)) == "No trial has finished yet."


def test_a_long_name_of_a_study_leaves_room_for_what_the_figure_shows() -> None:
    figure = titled_figure("a" * 64, "held-out loss against compute", 3)
    assert figure.get_suptitle().endswith("…: held-out loss against compute")
    assert len(figure.get_suptitle()) < 50
    assert titled_figure("digits", "loss", 3).get_suptitle() == "digits: loss"


def test_parameters_are_told_in_thousands_and_millions() -> None:
    assert [size(count) for count in (999, 275_606, 999_999, 71.49e6, 829.48e6, 1.5e9)] == [
        "999", "276k", "1M", "71.5M", "829M", "1.5G"
    ]  # fmt: skip


def test_an_interval_without_an_end_says_so() -> None:
    assert between(61e3, 1.1e5, size) == "61k to 110k"
    assert between(61e3, 1e300, size) == "61k or more"
    assert between(0.0, math.inf, size) == "any"


@pytest.fixture(scope="module")
def interrupted() -> StudyState:
    """Two budgets and the first two trials of the third, which are worse than anything before."""
    records = synthetic_records(trials=9)
    last = next(place for place, one in enumerate(records) if one.event == "budget_opened" and place > 60)
    ended = [place for place, one in enumerate(records) if one.event == "trial_ended" and place > last]
    for place in ended[:2]:
        records[place].fields["result"]["heldout_loss"] = 2.2
    return StudyState.of(records[: ended[1] + 1])


def test_a_budget_that_is_still_searched_shows_its_trials_and_says_nothing_of_the_best(
    interrupted: StudyState, tmp_path: Path
) -> None:
    closed = [budget for budget in interrupted.budgets.values() if budget.closed]
    assert (len(closed), len(interrupted.budgets)) == (2, 3)
    data = loss_vs_compute_data(interrupted)
    assert [point.loss for point in data.frontier] == [budget.best_loss for budget in closed]
    assert [point.loss for point in data.finished][-2:] == [2.2, 2.2]
    assert 2.2 not in [point.loss for point in data.best]
    said = read_loss_vs_compute(data)
    assert "2.2" not in said.replace("2.2e", "")
    assert said.endswith(" 1.8e12 FLOPs is not finished.")
    valleys = learning_rate_valley_data(interrupted)
    assert [valley.budget for valley in valleys.valleys][-1] == "1.8e12 FLOPs"
    assert read_learning_rate_valley(valleys).startswith("From 2e11 FLOPs to 6e11 FLOPs ")
    assert [curve.budget for curve in iso_compute_data(interrupted, None).curves] == ["2e11 FLOPs", "6e11 FLOPs"]
    progress = search_progress_data(interrupted)
    assert progress.budgets[-1].found == 1
    assert " as number 7 and 8; " in read_search_progress(progress)
    for draw, what in ((draw_loss_vs_compute, data), (draw_learning_rate_valley, valleys)):
        draw(what, tmp_path / "figure.png")  # type: ignore[operator]
        with Image.open(tmp_path / "figure.png") as image:
            assert image.size[0] > 500


def test_before_any_budget_is_closed_the_smallest_speaks() -> None:
    records = synthetic_records(trials=9)
    first = StudyState.of(records[: next(k for k, one in enumerate(records) if one.event == "budget_closed")])
    data = loss_vs_compute_data(first)
    assert len(data.frontier) == 1
    assert read_loss_vs_compute(data).startswith("One budget so far: ")
    assert unfinished_budgets(first) == ("2e11 FLOPs",)
    assert read_loss_vs_compute(data).endswith(" 2e11 FLOPs is not finished.")
    assert read_iso_compute(iso_compute_data(first, None)).startswith("2e11 FLOPs is not finished, so which")
    assert read_learning_rate_valley(learning_rate_valley_data(first)).startswith("At 2e11 FLOPs (so far) the best")
