"""What is believed of valleys: the prior, and what trials, smaller budgets and diverged rates make of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.space import CellSize, Explored, Space, Tried
from search.trend import Belief, believe, prior_centre
from tests.search.valleys import RATES, RULE, Run, Valley, budget

SPACE: Final = budget(4)
ONE: Final = budget(1)
SMALLER: Final = budget(4, epochs=1.0)


def belief(
    space: Space,
    trials: Sequence[Tried] = (),
    smaller: Sequence[Explored] = (),
    *,
    batch_size: int = 4096,
    seed: int = 0,
) -> Belief:
    return believe(
        space, trials, smaller, batch_size=batch_size, draws=1000, random=np.random.default_rng(seed)
    )  # fmt: skip


def best_rates(
    space: Space, trials: Sequence[Tried] = (), smaller: Sequence[Explored] = (), *, batch_size: int = 4096
) -> list[float]:
    """The median of each cell, octaves."""
    drawn = belief(space, trials, smaller, batch_size=batch_size).best_rates()
    return [float(rate) for rate in np.median(drawn, axis=0)]


def width(found: Belief) -> float:
    """Half of the middle 68 % of best rates, octaves, the mean over cells."""
    low, high = np.quantile(found.best_rates(), (0.16, 0.84), axis=0)
    return float((high - low).mean() / 2)


# ---------------------------------------------------------------- before any trial


@pytest.mark.parametrize("batch_size", [512, 1024, 4096])
def test_the_smallest_model_at_the_fewest_epochs_is_believed_best_at_nfnet_s_rule(batch_size: int) -> None:
    (found,) = best_rates(ONE, batch_size=batch_size)
    assert found == pytest.approx(math.log2(0.1 * batch_size / 256), abs=0.2)


def test_larger_models_are_believed_best_at_lower_rates() -> None:
    sizes = [CellSize(f"F{k}", 1.0, 6e10 * 4**k, 10**8) for k in range(4)]
    found = best_rates(Space(tuple(sizes), RATES))
    assert found == sorted(found, reverse=True)
    assert found[0] - found[-1] > 0.6, "a fifth of an octave for each doubling"


def test_more_epochs_are_believed_to_want_lower_rates() -> None:
    sizes = [CellSize(f"F{k}", 4.0**k, 6e10, 10**8) for k in range(4)]
    found = best_rates(Space(tuple(sizes), RATES))
    assert found == sorted(found, reverse=True)
    assert found[0] - found[-1] > 0.6


def test_the_prior_is_the_rule_where_the_grid_holds_it_and_else_its_middle() -> None:
    assert prior_centre(SPACE, 4096) == pytest.approx(RULE)
    assert prior_centre(Space(SPACE.cells, (1.6, 3.2)), 4096) == pytest.approx(RULE)
    assert prior_centre(Space(SPACE.cells, (0.4, 0.8, 1.6)), 4096) == pytest.approx(RULE)
    assert prior_centre(Space(SPACE.cells, (0.001, 0.004, 0.016)), 4096) == pytest.approx(math.log2(0.004))
    assert prior_centre(SPACE, 4096 * 16) == pytest.approx(math.log2(0.1 * math.sqrt(32)))


def test_a_grid_without_the_rule_is_believed_best_about_its_middle() -> None:
    far = budget(1, rates=[0.001 * 2**k for k in range(5)])
    assert best_rates(far) == pytest.approx([math.log2(0.004)], abs=0.2)


def test_before_any_trial_the_best_rate_may_lie_an_octave_off_and_more() -> None:
    assert width(belief(SPACE)) > 1


# ---------------------------------------------------------------- trials


@pytest.mark.parametrize("curvature", [0.02, 0.05, 0.2])
@pytest.mark.parametrize("centre", [-1.8, -1.3, -0.8])
def test_three_points_of_each_cell_s_parabola_give_its_vertex(curvature: float, centre: float) -> None:
    valley = Valley(centre, fall=0.0, curvature=curvature)
    assert best_rates(SPACE, valley.runs(SPACE, (0.2, 0.4, 0.8))) == pytest.approx([centre] * 4, abs=0.1)


def test_many_points_give_the_level_too() -> None:
    valley = Valley(-0.5, worse={"F1": 0.05})
    loss = belief(SPACE, valley.runs(SPACE)).log_loss(RATES)
    told = [math.log(run.heldout_loss) for run in valley.runs(SPACE)]
    assert loss.mean(axis=0).ravel() == pytest.approx(told, abs=0.02)


def test_the_best_rate_is_where_the_loss_is_lowest() -> None:
    found = belief(SPACE, Valley(-1.0).runs(SPACE, (0.2, 0.4, 0.8)))
    best = found.best_rates()[:, 2]
    at, below, above = (
        np.array([found.log_loss([2.0 ** (rate + off)])[k, 2, 0] for k, rate in enumerate(best)])
        for off in (0.0, -0.5, 0.5)
    )
    assert (at < below).all()
    assert (at < above).all()


def test_a_cell_without_trials_is_believed_to_be_as_its_neighbours() -> None:
    runs = [run for run in Valley(-1.0, fall=0.3).runs(SPACE, (0.1, 0.2, 0.4, 0.8, 1.6)) if run.variant != "F2"]
    assert best_rates(SPACE, runs)[2] == pytest.approx(-1.6, abs=0.25)


def test_more_trials_narrow_the_belief() -> None:
    runs = Valley(-1.0).runs(SPACE)
    widths = [width(belief(SPACE, runs[:k])) for k in (0, 3, 24)]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.25 * widths[0]


def test_noisy_losses_are_believed_less() -> None:
    random = np.random.default_rng(1)
    runs = Valley(-1.0).runs(SPACE)
    noisy = [replace(run, heldout_loss=run.heldout_loss * math.exp(random.normal(0, 0.05))) for run in runs]
    assert width(belief(SPACE, noisy)) > 1.5 * width(belief(SPACE, runs))


@pytest.mark.parametrize("factor", [1e-6, 0.1, 7.0, 1e5])
def test_losses_in_another_unit_give_the_same_rates(factor: float) -> None:
    """Nats or bits: only ratios count."""
    runs = Valley(-1.0).runs(SPACE)[:9]
    other = [replace(run, heldout_loss=factor * run.heldout_loss) for run in runs]
    assert belief(SPACE, other).best_rates() == pytest.approx(belief(SPACE, runs).best_rates(), abs=1e-9)


def test_flops_in_another_unit_give_the_same_rates() -> None:
    def counted(space: Space) -> Space:
        return replace(
            space, cells=tuple(replace(cell, flops_per_image=cell.flops_per_image / 6) for cell in space.cells)
        )

    valley = Valley(-1.0)
    ours = belief(SPACE, valley.runs(SPACE)[:9], [valley.explored(SMALLER)])
    theirs = belief(counted(SPACE), valley.runs(SPACE)[:9], [valley.explored(counted(SMALLER))])
    assert theirs.best_rates() == pytest.approx(ours.best_rates(), abs=1e-6)


def test_the_order_of_trials_does_not_matter() -> None:
    runs = Valley(-1.0).runs(SPACE)
    assert belief(SPACE, runs[::-1]).best_rates() == pytest.approx(belief(SPACE, runs).best_rates(), abs=1e-6)


def test_failed_and_running_trials_say_nothing() -> None:
    runs: list[Run] = Valley(-1.0).runs(SPACE)[:5]
    others = [Run("F3", 0.4, "failed"), Run("F2", 0.8, None)]
    assert np.array_equal(belief(SPACE, [*runs, *others]).valleys, belief(SPACE, runs).valleys)


def test_trials_of_variants_that_the_budget_does_not_have_say_nothing() -> None:
    runs = Valley(-1.0).runs(SPACE)[:5]
    others = [Run("ViT-S", 0.4, "finished", 0.5), Run("ViT-S", 0.1, "diverged")]
    assert np.array_equal(belief(SPACE, [*others, *runs]).valleys, belief(SPACE, runs).valleys)


def test_trials_between_the_rates_of_the_grid_count() -> None:
    """A grid may have been made coarser, or moved."""
    between = Valley(-1.0, fall=0.0).runs(SPACE, (0.15, 0.3, 0.6, 1.2))
    assert best_rates(SPACE, between) == pytest.approx([-1.0] * 4, abs=0.1)


# ---------------------------------------------------------------- diverged trials


def test_a_rate_that_diverged_lowers_the_best_rate_that_is_believed() -> None:
    finished = [Run("F0", 0.4, "finished", 3.0), Run("F1", 0.4, "finished", 3.0)]
    before, after = best_rates(SPACE, finished), best_rates(SPACE, [*finished, Run("F0", 0.8, "diverged")])
    assert all(now < then - 0.3 for now, then in zip(after, before, strict=True)), "of the other cells too"


@pytest.mark.parametrize("rate", [0.2, 0.4, 0.8])
def test_it_does_so_where_nothing_has_finished_yet(rate: float) -> None:
    before = best_rates(SPACE)
    first = best_rates(SPACE, [Run("F0", rate, "diverged")])
    every = best_rates(SPACE, [Run(variant, rate, "diverged") for variant in SPACE.variants])
    assert first[0] < before[0] - 0.3
    assert all(now < then - 0.3 for now, then in zip(every, before, strict=True))
    assert all(now < math.log2(rate) for now in every)


def test_the_lower_the_rate_that_diverged_the_lower_the_belief() -> None:
    found = [
        best_rates(ONE, [Run("F0", 0.1, "finished", 3.0), Run("F0", rate, "diverged")])[0] for rate in (3.2, 0.8, 0.2)
    ]
    assert found == sorted(found, reverse=True)


def test_a_rate_that_diverged_far_above_the_valley_does_not_move_it() -> None:
    runs = Valley(-2.0, fall=0.0).runs(SPACE, (0.1, 0.2, 0.4, 0.8))
    after = best_rates(SPACE, [*runs, *(Run(variant, 3.2, "diverged") for variant in SPACE.variants)])
    assert after == pytest.approx(best_rates(SPACE, runs), abs=0.1)


def test_that_rates_diverged_says_nothing_of_how_steep_valleys_are() -> None:
    """Else a few would make believe that rates hardly matter, and that all is decided."""
    runs = [Run(variant, 0.8, "diverged") for variant in SPACE.variants]
    before, after = belief(SPACE), belief(SPACE, runs, [Explored(SMALLER, runs)])
    assert np.median(after.valleys[..., 2]) > 0.4 * np.median(before.valleys[..., 2])


# ---------------------------------------------------------------- smaller budgets


@pytest.mark.parametrize("centre", [-1.5, -1.0, 0.3])
def test_smaller_budgets_move_the_best_rate_and_narrow_it(centre: float) -> None:
    smaller = [Valley(centre).explored(SMALLER)]
    found = best_rates(SPACE, smaller=smaller)
    assert found == pytest.approx([centre - 0.4 - 0.2 * k for k in range(4)], abs=0.5), "two octaves more of epochs"
    assert width(belief(SPACE, smaller=smaller)) < 0.65 * width(belief(SPACE))


def test_two_smaller_budgets_say_more_than_one() -> None:
    valley = Valley(-1.0)
    both = [valley.explored(budget(4, epochs=0.5)), valley.explored(SMALLER)]
    assert width(belief(SPACE, smaller=both)) < width(belief(SPACE, smaller=both[1:]))


def test_a_study_whose_best_rate_rises_with_size_overrules_the_paper() -> None:
    valley = Valley(-2.3, fall=-0.6)
    found = best_rates(SPACE, smaller=[valley.explored(budget(4, epochs=2.0)), valley.explored(budget(4, epochs=3.0))])
    assert found == pytest.approx([valley.best(variant) for variant in SPACE.variants], abs=0.3)


def test_a_variant_that_was_better_than_its_size_is_believed_better_again() -> None:
    def floors(worse: dict[str, float]) -> list[float]:
        smaller = [Valley(-1.0, worse=worse).explored(SMALLER, (0.2, 0.4, 0.8))]
        return [float(f) for f in belief(SPACE, smaller=smaller).log_loss(RATES).min(axis=-1).mean(axis=0)]

    def ahead(levels: list[float]) -> float:
        return (levels[0] + levels[1] + levels[3]) / 3 - levels[2]

    assert ahead(floors({})) == pytest.approx(0, abs=0.02)
    assert ahead(floors({"F2": -0.03})) > ahead(floors({})) + 0.01


def test_the_law_s_line_foretells_the_level_of_the_next_budget() -> None:
    """Three budgets, each four times the one before and 6 % lower: so will the fourth be."""
    smaller = [Valley(-1.0, floor=3.0 * 0.94**k).explored(budget(3, epochs=0.25 * 4**k)) for k in range(3)]
    level = belief(budget(3, epochs=16.0), smaller=smaller).log_loss(RATES).min(axis=-1)
    assert np.median(level) == pytest.approx(math.log(3.0 * 0.94**3), abs=0.04)


# ---------------------------------------------------------------- draws


def test_draws_are_as_many_as_were_asked_for_even_where_hardly_any_trend_falls() -> None:
    valley = Valley(-2.5, fall=-1.0)
    smaller = [valley.explored(budget(4, epochs=epochs)) for epochs in (0.5, 1.0, 2.0)]
    found = belief(SPACE, valley.runs(SPACE), smaller)
    assert found.valleys.shape == (1000, 4, 3)
    assert found.log_loss(RATES).shape == (1000, 4, 6)
    assert found.best_rates().shape == (1000, 4)


def test_the_same_generator_draws_the_same_and_another_one_about_the_same() -> None:
    runs = Valley(-1.0).runs(SPACE)[:12]
    first, again, other = (belief(SPACE, runs, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first.valleys, again.valleys)
    assert not np.array_equal(first.valleys, other.valleys)
    assert np.median(other.best_rates(), axis=0) == pytest.approx(np.median(first.best_rates(), axis=0), abs=0.2)


# ---------------------------------------------------------------- whatever comes


def sound(space: Space, trials: Sequence[Tried], smaller: Sequence[Explored] = (), *, batch_size: int = 4096) -> None:
    """Nothing is raised or warned of (warnings are errors), and every draw is a valley."""
    found = belief(space, trials, smaller, batch_size=batch_size)
    assert found.valleys.shape == (1000, len(space.cells), 3)
    assert np.isfinite(found.valleys).all()
    assert (found.valleys[..., 2] > 0).all()
    assert np.isfinite(found.best_rates()).all()


def finished(space: Space, losses: Sequence[float]) -> list[Run]:
    """The first points of a budget, with these losses."""
    points = [(variant, rate) for rate in space.learning_rates for variant in space.variants]
    return [Run(*point, "finished", loss) for point, loss in zip(points, losses, strict=False)]


@pytest.mark.parametrize(
    "losses",
    [
        [3.0] * 24,
        [1e-9] * 12,
        [0.0] * 6,
        [3.0, 0.0, 3.0],
        [3.0, 2.9, 1e6, 3.0],
        [1e300, 3.0, 3.0],
        [1e-300] * 3,
        [5e-324],
    ],
    ids=["identical", "near zero", "zero", "one zero", "an extreme", "overflowing", "tiny", "the smallest"],
)
def test_any_losses_are_taken(losses: list[float]) -> None:
    sound(SPACE, finished(SPACE, losses))


@pytest.mark.parametrize("outcome", ["diverged", "failed", None])
def test_any_outcomes_are_taken(outcome: str) -> None:
    sound(SPACE, [Run(variant, rate, outcome) for variant in SPACE.variants for rate in RATES])


@pytest.mark.parametrize("factor", [1.001, 1.19, 4.0, 10.0])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_any_grid_is_taken(factor: float, count: int) -> None:
    space = budget(3, rates=[1e-4 * factor**k for k in range(count)])
    sound(space, Valley(math.log2(1e-4)).runs(space))


def test_one_variant_is_taken() -> None:
    for rates in (RATES, (0.4,)):
        space = budget(1, rates=rates)
        sound(space, [])
        sound(space, Valley(-1.0).runs(space), [Valley(-1.0).explored(budget(1, epochs=1.0, rates=rates))])


def test_cells_of_one_size_are_taken() -> None:
    space = Space(tuple(CellSize(name, 1.0, 6e10, 10**8) for name in ("a", "b", "c")), RATES)
    sound(space, [Run("a", 0.4, "finished", 3.0), Run("b", 0.4, "finished", 2.9)], [Explored(space, [])])


def test_sizes_far_apart_are_taken() -> None:
    space = Space((CellSize("a", 1e-3, 1e6, 10), CellSize("b", 1e3, 1e14, 10**12)), RATES)
    sound(space, [Run("a", 0.4, "finished", 3.0)])


@pytest.mark.parametrize("batch_size", [1, 10**7])
def test_any_batch_size_is_taken(batch_size: int) -> None:
    sound(SPACE, Valley(-1.0).runs(SPACE), batch_size=batch_size)


def test_several_seeds_of_a_point_are_taken_together() -> None:
    random = np.random.default_rng(0)
    runs = [
        replace(run, heldout_loss=run.heldout_loss * math.exp(random.normal(0, 0.02)))
        for run in Valley(-1.0).runs(SPACE, (0.2, 0.4, 0.8))
        for _ in range(30)
    ]
    sound(SPACE, runs)
    assert best_rates(SPACE, runs) == pytest.approx([-1.0, -1.2, -1.4, -1.6], abs=0.2)
    assert width(belief(SPACE, runs)) < 0.5 * width(belief(SPACE, runs[::30]))


def test_thousands_of_trials_are_taken() -> None:
    rates = [0.01 * 1.19**k for k in range(45)]
    smaller = [Valley(-1.0).explored(budget(6, epochs=2.0**k, rates=rates)) for k in range(-8, 2)]
    space = budget(6, rates=rates)
    runs = Valley(-1.0).runs(space) * 4
    assert sum(len(explored.trials) for explored in smaller) + len(runs) > 3000
    sound(space, runs, smaller)
    assert best_rates(space, runs, smaller) == pytest.approx([-1 - 0.2 * k for k in range(6)], abs=0.05)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_finished_trial_without_a_loss_has_diverged(loss: float) -> None:
    runs = [Run("F0", 0.4, "finished", 3.0), Run("F1", 0.8, "diverged")]
    other = [runs[0], Run("F1", 0.8, "finished", loss)]
    assert np.array_equal(belief(SPACE, other).valleys, belief(SPACE, runs).valleys)


_OUTCOMES: Final = ("finished", "finished", "finished", "diverged", "failed", None)


@st.composite
def studies(draw: st.DrawFn) -> list[Explored]:
    """One to three budgets, with any sizes, grid, outcomes and losses."""
    factor, lowest = draw(st.sampled_from((1.01, 1.19, 2.0, 4.0))), draw(st.sampled_from((1e-6, 0.01, 1.6)))
    rates = tuple(lowest * factor**k for k in range(draw(st.integers(1, 9))))
    count, ratio = draw(st.integers(1, 5)), draw(st.sampled_from((1.0, 1.1, 2.0, 8.0)))
    exponents = st.floats(-1.0, 1.0) if draw(st.booleans()) else st.floats(-25.0, 14.0)

    def run(variant: str, rate: float, outcome: str | None) -> Run:
        return Run(variant, rate, outcome, math.exp(draw(exponents)) if outcome == "finished" else math.nan)

    found = []
    for epochs in draw(st.lists(st.sampled_from((0.01, 1.0, 100.0)), min_size=1, max_size=3)):
        cells = (CellSize(f"F{k}", epochs / ratio**k, 6e10 * ratio**k, 1) for k in range(count))
        space = Space(tuple(cells), rates)
        points = st.tuples(st.sampled_from(space.variants), st.sampled_from(rates), st.sampled_from(_OUTCOMES))
        found.append(Explored(space, [run(*point) for point in draw(st.lists(points, max_size=12))]))
    return found


@settings(max_examples=60)
@given(study=studies())
def test_any_study_is_taken(study: list[Explored]) -> None:
    sound(study[-1].space, study[-1].trials, study[:-1])
