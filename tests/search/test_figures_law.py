"""Figures of the law: the forecast beside the trials, optima and their bounds, minima, residuals; and the album."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from search.figures import (
    draw_iso_compute,
    draw_law_residuals,
    draw_loss_vs_compute,
    draw_rates_vs_epochs,
    iso_compute_data,
    law_residuals_data,
    loss_vs_compute_data,
    rates_vs_epochs_data,
    read_iso_compute,
    read_law_residuals,
    read_loss_vs_compute,
    read_rates_vs_epochs,
)
from search.figures.album import album
from search.foretold import closed_only
from search.formats import number
from search.law import Law, Refused, fit_law, runs_of_state
from search.ledger import Record
from search.state import StudyState
from tests.search.ledgers import RATES, synthetic_records

BUDGETS = [2e11 * 2.2**k for k in range(6)]


def fitted(records: list[Record]) -> tuple[StudyState, Law]:
    state = StudyState.of(records)
    return state, fit_law(runs_of_state(state), bootstraps=100)


@pytest.fixture(scope="module")
def study() -> tuple[StudyState, Law]:
    return fitted(synthetic_records(budgets=BUDGETS, trials=21))


# ---------------------------------------------------------------- loss against compute


def test_the_laws_line_runs_from_the_smallest_budget_to_the_forecast(study: tuple[StudyState, Law]) -> None:
    data = loss_vs_compute_data(*study, forecasts=[5e13])
    assert data.law is not None
    assert math.isclose(data.law.flops[0], data.frontier[0].flops)
    assert math.isclose(data.law.flops[-1], 5e13)
    assert list(data.law.loss) == sorted(data.law.loss, reverse=True)
    (forecast,) = data.forecasts
    assert math.isclose(forecast.loss.value, data.law.loss[-1])
    assert forecast.loss.low < forecast.loss.value < forecast.loss.high
    within = f"({number(forecast.loss.low)} to {number(forecast.loss.high)})"
    said = f"at 5.0e13 FLOPs the law expects {number(forecast.loss.value)} {within}."
    assert read_loss_vs_compute(data).endswith(said)


def test_without_a_forecast_it_ends_at_the_largest_budget(study: tuple[StudyState, Law]) -> None:
    data = loss_vs_compute_data(*study)
    assert data.law is not None
    assert math.isclose(data.law.flops[-1], data.frontier[-1].flops)


def test_the_line_is_solid_as_far_as_the_law_knows_and_not_to_a_budget_that_is_still_searched(
    study: tuple[StudyState, Law],
) -> None:
    state, law = study
    assert loss_vs_compute_data(state, law).law_flops == law.budgets[-1].flops
    smaller = closed_only(state, below=BUDGETS[-1])
    data = loss_vs_compute_data(state, fit_law(runs_of_state(smaller), bootstraps=100))
    assert data.law_flops == law.budgets[-2].flops < data.frontier[-1].flops


def test_a_law_that_refuses_leaves_the_frontier_alone() -> None:
    data = loss_vs_compute_data(*fitted(synthetic_records(budgets=BUDGETS[:2], trials=9)), forecasts=[5e13])
    assert (data.law, data.forecasts) == (None, ())
    assert len(data.frontier) == 2


# ---------------------------------------------------------------- the best learning rate by epochs


def test_a_cell_has_its_optimum_between_the_rates_or_a_bound_at_an_edge() -> None:
    data = rates_vs_epochs_data(*fitted(synthetic_records(budgets=BUDGETS, trials=9)))  # 0.1, 0.2, 0.4
    assert {one.bound for one in data.optima} == {"", "at most", "at least"}
    for one in data.optima:
        assert one.best in RATES
        assert (one.optimum is None) == (one.bound != "")
        if one.optimum is not None:
            assert data.tried[0] < one.optimum.value < data.tried[-1]
        else:
            assert one.best == (data.tried[0] if one.bound == "at most" else data.tried[-1])
    edges = sum(one.bound != "" for one in data.optima)
    assert f"{edges} of 18 cells have the best rate at an edge of those tried" in read_rates_vs_epochs(data)
    assert " at most 0.1 " in read_rates_vs_epochs(data)


def test_the_trend_is_drawn_for_each_variant_over_its_own_epochs(study: tuple[StudyState, Law]) -> None:
    data = rates_vs_epochs_data(*study)
    assert [line.variant for line in data.trend] == ["F0", "F1", "F3"]
    for line in data.trend:
        epochs = [one.epochs for one in data.optima if one.variant == line.variant]
        assert math.isclose(line.epochs[0], min(epochs))
        assert math.isclose(line.epochs[-1], max(epochs))
        assert list(line.learning_rates) == sorted(line.learning_rates, reverse=True)  # as the ledger was made


def test_the_trend_passes_through_what_the_law_says_of_a_cell(study: tuple[StudyState, Law]) -> None:
    _, law = study
    assert not isinstance(law.rate_trend, Refused)
    cell = min((one for one in law.learning_rates if one.variant == "F1"), key=lambda one: one.epochs or 0.0)
    assert cell.examples is not None
    assert cell.epochs is not None
    line = next(line for line in rates_vs_epochs_data(*study).trend if line.variant == "F1")
    duration = cell.epochs if law.rate_trend.duration == "epochs" else cell.examples
    assert math.isclose(line.learning_rates[0], law.rate_trend.at(cell.flops / cell.examples, duration).value)


def test_a_rate_that_diverged_bounds_the_optimum_from_above() -> None:
    records = synthetic_records(budgets=BUDGETS, trials=9)
    for record in records:
        if record.event == "trial_ended" and record["trial"] == "2e11-FLOPs-006":
            record.fields["outcome"] = "diverged"  # F0 at 0.4, so that 0.2 is best of 0.1 and 0.2
    data = rates_vs_epochs_data(*fitted(records))
    (cell,) = [one for one in data.optima if one.diverged is not None]
    assert (cell.variant, cell.best, cell.bound, cell.diverged) == ("F0", 0.2, "at least", 0.4)
    assert "between 0.2 and 0.4 (diverged)" in read_rates_vs_epochs(data)
    edges = sum(one.bound != "" for one in data.optima) - 1
    assert f"{edges} of 18 cells have the best" in read_rates_vs_epochs(data)


def test_a_single_learning_rate_bounds_nothing() -> None:
    data = rates_vs_epochs_data(*fitted(synthetic_records(budgets=BUDGETS, trials=3)))
    assert {one.bound for one in data.optima} == {"unknown"}
    assert "at an edge" not in read_rates_vs_epochs(data)
    assert read_rates_vs_epochs(data).startswith("No cell has tried two learning rates yet. In 18 cells only one rate")


def test_cells_with_one_rate_are_no_finding_and_are_counted_apart() -> None:
    records = [
        record
        for record in synthetic_records(budgets=BUDGETS, trials=9)
        if not (str(record.fields.get("trial", "")).startswith("2e11") and int(record["trial"][-3:]) in (3, 6))
    ]  # of F0's three rates in the smallest budget one is left
    data = rates_vs_epochs_data(*fitted(records))
    (single,) = [one for one in data.optima if one.bound == "unknown"]
    assert single.variant == "F0"
    others = sorted(one.epochs for one in data.optima if one.variant == "F0" and one is not single)
    said = read_rates_vs_epochs(data)
    assert (
        f"({number(others[0], 2, trim=True)} to {number(others[-1], 2, trim=True)} epochs)" in said.partition("F1")[0]
    )
    assert "of 17 cells have the best rate at an edge" in said
    assert said.endswith("In one cell only one rate was tried, which says nothing of the optimum.")


# ---------------------------------------------------------------- cells that are not tuned


def half_tuned() -> tuple[StudyState, Law]:
    """F0 has many learning rates in every budget, F1 and F3 in the larger three only one, far off."""
    records = []
    for record in synthetic_records(budgets=BUDGETS, trials=21):
        trial = str(record.fields.get("trial", ""))
        large = not trial.startswith(("2e11", "4.4e11", "9.7e11"))
        place = int(trial[-3:]) if trial else 0
        rate = (0.2, 0.1, 0.4, 0.05, 0.8, 0.025, 1.6)[place // 3]
        if not (trial and large and place % 3 and rate != 0.025):
            records.append(record)
    return fitted(records)


def test_cells_that_are_not_tuned_are_neither_joined_nor_called_the_best_of_their_variant() -> None:
    state, law = half_tuned()
    left_out = {(cell.budget, cell.variant) for cell in law.tuning.left_out}
    assert left_out
    data = loss_vs_compute_data(state, law)
    assert len(data.untuned) == len(left_out)
    assert len(data.best) + len(data.untuned) == 18
    assert {point.learning_rate for point in data.untuned} == {0.025}
    curves = iso_compute_data(state, law)
    found = {(curve.budget, point.variant) for curve in curves.curves for point in curve.untuned}
    assert found == left_out
    assert not any(set(curve.best) & set(curve.untuned) for curve in curves.curves)


def test_a_size_that_had_no_tuned_rival_is_not_said_to_lead() -> None:
    state, law = half_tuned()
    data = iso_compute_data(state, law)
    alone = tuple(
        replace(curve, best=curve.best[:1], untuned=(*curve.best[1:], *curve.untuned), minimum=None, parabola=())
        for curve in data.curves
    )
    assert read_iso_compute(replace(data, curves=alone)).startswith("Which size is best cannot be judged")


# ---------------------------------------------------------------- iso-compute curves


def test_a_curve_holds_the_best_of_each_variant_by_size(study: tuple[StudyState, Law]) -> None:
    state, _ = study
    for curve, budget in zip(iso_compute_data(*study).curves, state.budgets.values(), strict=True):
        assert [point.variant for point in curve.best] == ["F0", "F1", "F3"]
        assert min(point.loss for point in curve.best) == budget.best.heldout_loss  # type: ignore[union-attr]


def test_a_minimum_lies_on_its_parabola_and_between_the_sizes(study: tuple[StudyState, Law]) -> None:
    known = [curve for curve in iso_compute_data(*study).curves if curve.minimum is not None]
    assert known
    for curve in known:
        assert curve.minimum is not None
        assert curve.best[0].parameters < curve.minimum.parameters.value < curve.best[-1].parameters
        losses = [loss for _, loss in curve.parabola]
        assert min(losses) == pytest.approx(curve.minimum.loss, rel=0.01)
        assert losses[0] > min(losses) < losses[-1]
    assert read_iso_compute(iso_compute_data(*study)).startswith("By the parabolas the best size is ")


def test_where_an_end_of_the_sizes_is_best_no_minimum_is_marked_and_it_is_said() -> None:
    records = synthetic_records(budgets=BUDGETS, trials=21)
    for record in records:
        if record.event == "trial_ended" and record["outcome"] == "finished" and int(record["trial"][-3:]) % 3 == 0:
            record["result"]["heldout_loss"] *= 0.3  # F0 is far ahead
    data = iso_compute_data(*fitted(records))
    assert all(curve.minimum is None and curve.parabola == () for curve in data.curves)
    assert read_iso_compute(data).startswith("F0, the smallest model tried, leads at every budget")


# ---------------------------------------------------------------- residuals


def test_residuals_are_what_the_law_leaves_of_every_budget_and_cell(study: tuple[StudyState, Law]) -> None:
    _, law = study
    data = law_residuals_data(*study)
    assert not isinstance(law.chosen, Refused)
    for residual, budget in zip(data.frontier, law.budgets, strict=True):
        assert residual.percent == pytest.approx(100 * (budget.loss / law.chosen.loss(budget.flops) - 1))
    assert len(data.cells) == 18
    assert data.spread == pytest.approx(100 * law.chosen.residual_log_sd)
    assert read_law_residuals(data).startswith("The best losses of the 6 budgets lie within ")


def test_without_a_law_residuals_say_why() -> None:
    data = law_residuals_data(*fitted(synthetic_records(budgets=BUDGETS[:1], trials=9)))
    assert data.frontier == data.cells == ()
    assert data.refusal
    assert read_law_residuals(data) == f"There is no law to compare with: {data.refusal}"


# ---------------------------------------------------------------- drawing


def colours_of(path: Path) -> int:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert 1000 <= picture.width <= 1300  # as wide as a phone is sharp
        return len(picture.convert("RGB").getcolors(1 << 20) or [])


@pytest.mark.parametrize("budgets", [1, 2, 6])
@pytest.mark.parametrize("trials", [1, 3, 21])
def test_every_figure_can_be_drawn_of_few_trials_and_of_many(tmp_path: Path, budgets: int, trials: int) -> None:
    state, law = fitted(synthetic_records(budgets=BUDGETS[:budgets], trials=trials, fail=2))
    reach = [BUDGETS[-1] * 3]
    draw_loss_vs_compute(loss_vs_compute_data(state, law, reach), tmp_path / "loss.png")
    draw_rates_vs_epochs(rates_vs_epochs_data(state, law), tmp_path / "rates.png")
    draw_iso_compute(iso_compute_data(state, law), tmp_path / "iso.png")
    draw_law_residuals(law_residuals_data(state, law), tmp_path / "residuals.png")
    assert all(colours_of(path) > 20 for path in tmp_path.iterdir())


def test_one_trial_in_all_can_be_drawn(tmp_path: Path) -> None:
    state, law = fitted(synthetic_records(trials=1, until=8))
    assert len(state.trials) == 1
    for picture in album(state, law):
        (tmp_path / "picture.png").write_bytes(picture.png)
        assert colours_of(tmp_path / "picture.png") > 5


def test_a_forecast_far_below_what_was_seen_stays_in_the_figure(tmp_path: Path, study: tuple[StudyState, Law]) -> None:
    far = loss_vs_compute_data(*study, forecasts=[BUDGETS[-1] * 1e4])
    assert far.law is not None
    draw_loss_vs_compute(far, tmp_path / "far.png")
    near = replace(far, forecasts=(), law=None)
    draw_loss_vs_compute(near, tmp_path / "near.png")
    assert (tmp_path / "far.png").read_bytes() != (tmp_path / "near.png").read_bytes()


def test_an_album_has_every_figure_once_with_what_it_says(study: tuple[StudyState, Law]) -> None:
    pictures = album(*study)
    names = ["loss_vs_compute", "optimal_learning_rate", "iso_compute", "learning_rate_valley", "law_residuals"]
    assert [picture.name for picture in pictures] == [*names, "search_progress"]
    for picture in pictures:
        assert picture.png.startswith(b"\x89PNG")
        assert picture.width > 1000
        assert picture.reading.endswith(".")
        assert not picture.empty


def test_an_album_of_nothing_is_empty_pictures() -> None:
    assert all(picture.empty for picture in album(StudyState.of(synthetic_records(until=3)), None))
