"""Which trial comes next where valleys follow a trend, and when there has been enough of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.sampler_scores import Score, Step, score, summarise
from search.points import Points
from search.samplers import SamplerName, propose
from search.simulate import proposer, simulate
from search.space import Explored, Point, Space, Tried
from search.surfaces import paper_like
from search.trend_choice import Choice, choose
from tests.search.valleys import RATES, Run, Valley, budget

SPACE: Final = budget(4)
ONE: Final = budget(1)
DOUBT: Final = 0.15


def smaller(valley: Valley, variants: int = 4, rates: Sequence[float] = RATES) -> list[Explored]:
    """Two budgets that were searched well before, in which the trend is plain to see."""
    return [valley.explored(budget(variants, epochs=epochs, rates=rates)) for epochs in (0.5, 1.0, 2.0)]


def searched(
    space: Space,
    valley: Valley,
    before: Sequence[Explored] = (),
    *,
    trials: int = 24,
    doubt: float = DOUBT,
    batch_size: int = 4096,
) -> list[Run]:
    """One budget to its end, one trial after the other."""
    runs: list[Run] = []
    while len(runs) < trials:
        choice = choose(space, runs, before, batch_size=batch_size)
        if choice.decides(doubt):
            break
        assert choice.point is not None
        runs.append(valley.run(choice.point.variant, choice.point.learning_rate))
    return runs


def points(runs: Sequence[Tried]) -> list[Point]:
    return [Point(run.variant, run.learning_rate) for run in runs]


# ---------------------------------------------------------------- where a cell is tried


@pytest.mark.parametrize("place", [1, 2, 3, 4])
def test_a_budget_is_tried_first_where_smaller_ones_say_its_best_rate_is(place: int) -> None:
    at = math.log2(RATES[place])
    choice = choose(SPACE, [], smaller(Valley(at, fall=0.0)))
    assert choice.point is not None
    assert choice.point.learning_rate == RATES[place]


@pytest.mark.parametrize(("between", "side"), [(0.3, +1), (-0.3, -1)])
def test_the_second_trial_of_a_cell_stands_next_to_the_first_on_the_side_that_decides(
    between: float, side: int
) -> None:
    """On the side where the best rate is believed to be."""
    before = smaller(Valley(math.log2(RATES[2]) + between, fall=0.0), variants=1)
    first = choose(ONE, [], before).point
    assert first == Point("F0", RATES[2])
    runs = [Valley(math.log2(RATES[2]) + between, fall=0.0).run("F0", RATES[2])]
    assert choose(ONE, runs, before).point == Point("F0", RATES[2 + side])


def test_the_second_trial_goes_on_downhill() -> None:
    for best, side in ((0, -1), (5, +1)):
        runs = [Valley(math.log2(RATES[best]), fall=0.0).run("F0", rate) for rate in (RATES[2], RATES[3])]
        point = choose(ONE, runs).point
        assert point is not None
        assert (math.log2(point.learning_rate) - math.log2(RATES[2])) * side > 0


def test_a_cell_that_is_clearly_worse_gets_no_second_trial() -> None:
    valley = Valley(-1.3, worse={"F3": 0.15})
    known = [Valley(-1.3).explored(budget(4, epochs=epochs)) for epochs in (0.5, 1.0, 2.0)]
    runs = searched(SPACE, valley, known)
    assert sum(run.variant == "F3" for run in runs) <= 1
    assert min(runs, key=lambda run: run.heldout_loss).variant != "F3"


def test_a_variant_that_was_worse_in_every_smaller_budget_is_not_tried_at_all() -> None:
    valley = Valley(-1.3, worse={"F3": 0.2})
    assert "F3" not in {run.variant for run in searched(SPACE, valley, smaller(valley))}


def test_where_the_trend_is_known_one_trial_a_cell_is_enough_and_more() -> None:
    valley = Valley(-1.0, worse={"F0": 0.03, "F2": 0.02, "F3": 0.04})
    runs = searched(SPACE, valley, smaller(valley))
    assert 1 <= len(runs) <= 4
    assert {run.variant for run in runs} >= {"F1"}


def test_no_point_is_tried_twice_and_all_are_if_there_is_no_end() -> None:
    runs = searched(SPACE, Valley(-1.0), doubt=0.0, trials=100)
    assert sorted(map(str, points(runs))) == sorted(map(str, SPACE.points()))
    assert choose(SPACE, runs) == Choice(None, 0.0, 0.0, False)


@pytest.mark.parametrize("outcome", ["finished", "diverged", "failed", None])
def test_the_last_point_is_found_whatever_became_of_the_others(outcome: str | None) -> None:
    *others, last = SPACE.points()
    runs = [Run(p.variant, p.learning_rate, outcome, 3.0 if outcome == "finished" else math.nan) for p in others]
    assert choose(SPACE, runs).point == last


def test_trials_off_the_grid_are_learnt_from_but_are_no_points() -> None:
    valley = Valley(-1.0, fall=0.0)
    runs = valley.runs(SPACE, (0.15, 0.3, 0.6, 1.2))
    choice = choose(SPACE, runs)
    assert choice.point is not None
    assert choice.point.learning_rate in (0.4, 0.8)
    assert choice.better == choice.off == 1.0, "none of the grid has finished"


# ---------------------------------------------------------------- rates that diverge


def test_nothing_at_or_above_a_rate_that_diverged_is_tried_while_others_are_left() -> None:
    valley = Valley(-1.0, edge=0.8)
    diverged: dict[str, float] = {}
    runs = searched(SPACE, valley, doubt=0.0, trials=100)
    for number, run in enumerate(runs):
        left = [p for p in SPACE.points() if p not in points(runs[:number])]
        others = [p for p in left if p.learning_rate < diverged.get(p.variant, math.inf)]
        assert run.learning_rate < diverged.get(run.variant, math.inf) or not others
        if run.outcome == "diverged":
            diverged[run.variant] = min(diverged.get(run.variant, math.inf), run.learning_rate)
    assert diverged


def test_a_budget_in_which_nothing_else_is_left_than_what_would_diverge_is_decided() -> None:
    rising = [run for v in SPACE.variants for run in (Run(v, 0.1, "finished", 3.3), Run(v, 0.2, "finished", 3.0))]
    runs = [*rising, *(Run(variant, 0.4, "diverged") for variant in SPACE.variants)]
    assert choose(SPACE, runs).decides(DOUBT)
    assert not choose(SPACE, rising).decides(DOUBT)


def test_where_nothing_finishes_all_is_tried_in_the_end() -> None:
    runs = searched(SPACE, Valley(-20.0, edge=0.1), trials=100)
    assert len(runs) == 24


def test_the_cells_learn_from_each_other_s_divergence() -> None:
    """Everything from 0.2 on diverges: not every cell has to find that out from the top of the grid."""
    runs = searched(SPACE, Valley(-2.9, fall=0.0, edge=0.5))
    first = next(number for number, run in enumerate(runs) if run.outcome == "finished")
    assert first <= 8, "of fifteen if each halves its own"
    assert runs[first].learning_rate == 0.1


def test_a_rate_that_diverged_in_a_smaller_budget_is_tried_where_the_losses_lead_there() -> None:
    """Few steps diverge where many do not: their warm-up is short."""
    small, space = budget(3, epochs=1.0), budget(3)
    before = [Valley(-1.9, fall=0.0, edge=1.4).explored(small)]
    assert {run.learning_rate for run in before[0].trials if run.outcome == "diverged"} == {0.8, 1.6, 3.2}
    runs = searched(space, Valley(-0.3, fall=0.0, edge=1.8), before)
    assert min(run.heldout_loss for run in runs) <= 1.01 * 3.0


# ---------------------------------------------------------------- several trials at a time


def test_slices_that_start_together_spread() -> None:
    runs: list[Run] = []
    for _ in range(4):
        point = choose(SPACE, runs).point
        assert point is not None
        assert point not in points(runs)
        runs.append(Run(point.variant, point.learning_rate, None))
    assert runs[0].variant != runs[1].variant
    assert len({run.learning_rate for run in runs}) > 1


@pytest.mark.parametrize("slices", [2, 5])
def test_trials_that_run_are_not_started_again(slices: int) -> None:
    for seed in range(2):
        for trials in simulate(paper_like(seed), "trend", seed=seed, slices=slices):
            assert len(set(points(trials))) == len(trials)


def test_a_running_trial_counts_as_one_that_may_turn_out_best() -> None:
    """So that what it covers is not covered twice."""
    valley = Valley(-1.0, worse={"F0": 0.05, "F2": 0.05, "F3": 0.05})
    runs = [run for run in valley.runs(SPACE, (0.1, 0.2, 0.8, 1.6)) if run.variant != "F2"]
    alone, running = choose(SPACE, runs), choose(SPACE, [*runs, Run("F1", 0.4, None)])
    assert alone.point == Point("F1", 0.4)
    assert running.better < alone.better
    assert (alone.waits, running.waits) == (False, True)


def test_it_waits_while_a_trial_runs_that_may_decide() -> None:
    valley = Valley(-1.32, fall=0.0, worse={"F0": 0.05, "F2": 0.05, "F3": 0.05})
    before = smaller(valley)
    runs = [run for run in valley.runs(SPACE, (0.4,)) if run.variant != "F1"]
    choice = choose(SPACE, [*runs, Run("F1", 0.4, None)], before)
    assert choice.decides(DOUBT)
    assert choice.waits
    assert not choose(SPACE, [*runs, Run("F1", 0.4, "failed")], before).decides(0.01)


# ---------------------------------------------------------------- a second objective


def test_cells_that_cost_the_same_are_searched_as_without_costs() -> None:
    runs = Valley(-1.0).runs(SPACE)[:7]
    assert choose(SPACE, runs, costs=[2.0] * 4) == choose(SPACE, runs)


def test_where_costs_count_the_best_of_the_cheap_is_looked_for_too() -> None:
    """F3 is by far the best; but F0 costs a hundredth, and its best rate is not known."""
    valley = Valley(-1.3, worse={"F0": 0.3, "F1": 0.3, "F2": 0.3})
    runs = [*valley.runs(SPACE, (0.4,)), *valley.runs(SPACE, (0.1, 0.2, 0.8))[-3:]]
    alone, both = choose(SPACE, runs), choose(SPACE, runs, costs=[1.0, 100.0, 100.0, 100.0])
    assert alone.decides(DOUBT)
    assert not both.decides(DOUBT)
    assert both.point is not None
    assert both.point.variant == "F0"


# ---------------------------------------------------------------- deciding

chances = st.floats(0, 1)


@given(better=chances, off=chances, doubts=st.tuples(chances, chances))
def test_what_decides_with_little_doubt_decides_with_more(
    better: float, off: float, doubts: tuple[float, float]
) -> None:
    choice = Choice(SPACE.points()[0], better, off, waits=False)
    low, high = sorted(doubts)
    assert choice.decides(high) or not choice.decides(low)


@given(better=chances, off=chances)
def test_without_any_doubt_only_the_whole_grid_decides(better: float, off: float) -> None:
    assert not Choice(SPACE.points()[0], better, off, waits=False).decides(0)
    assert Choice(None, better, off, waits=False).decides(0)


def test_less_doubt_takes_more_trials() -> None:
    valley = Valley(-1.0, worse={"F0": 0.02, "F2": 0.01, "F3": 0.03})
    counts = [len(searched(SPACE, valley, doubt=doubt)) for doubt in (0.5, 0.15, 0.02, 0.0)]
    assert counts == sorted(counts)
    assert counts[0] < counts[2] < counts[3] == 24


def test_nothing_is_decided_before_a_trial_has_finished_or_runs() -> None:
    for runs in ([], [Run("F0", 0.4, "diverged")], [Run("F0", 0.4, "failed")]):
        choice = choose(SPACE, runs, smaller(Valley(-1.0)))
        assert choice.better == choice.off == 1.0
        assert not choice.decides(0.5)


def test_with_trials_that_run_there_is_something_to_wait_for() -> None:
    """Where smaller budgets leave little doubt, four slices do not start four trials of a budget that needs two."""
    valley = Valley(-1.0, worse={"F0": 0.3, "F2": 0.0, "F3": 0.3})
    before = smaller(valley)
    best = choose(SPACE, [], before).point
    assert best is not None
    waiting = choose(SPACE, [Run(best.variant, best.learning_rate, None)], before)
    assert waiting.waits
    assert waiting.better < choose(SPACE, [], before).better


@pytest.mark.parametrize("factor", [1.19, 1.41, 2.0, 4.0])
def test_a_finer_grid_takes_hardly_more_trials(factor: float) -> None:
    rates = [3.2 / factor**k for k in range(1 + round(math.log(32) / math.log(factor)))][::-1]
    runs = searched(
        budget(4, rates=rates), Valley(-0.5, curvature=0.03, worse={"F0": 0.03, "F2": 0.01, "F3": 0.03}), trials=60
    )
    assert len(runs) <= 12
    best = min(runs, key=lambda run: run.heldout_loss)
    assert best.heldout_loss <= 1.01 * 3.0 * math.exp(0.03 * math.log2(factor) ** 2 / 4)


# ---------------------------------------------------------------- a pure function


def test_the_first_rate_is_in_proportion_to_the_batch() -> None:
    space = budget(2, rates=[0.0125 * 2**k for k in range(12)])
    first = [choose(space, [], batch_size=batch_size).point for batch_size in (1024, 4096, 16384)]
    rates = [point.learning_rate for point in first if point is not None]
    assert rates[1] / rates[0] == pytest.approx(4)
    assert rates[2] / rates[1] == pytest.approx(4)


def test_the_same_trials_and_seed_give_the_same_choice_whatever_else_happens() -> None:
    valley = Valley(-1.0)
    runs, before = valley.runs(SPACE)[:7], smaller(valley)
    kept = list(runs)
    first = choose(SPACE, runs, before, seed=5)
    np.random.seed(1)
    choose(ONE, [], seed=9)
    assert choose(SPACE, runs, before, seed=5) == first
    assert choose(SPACE, tuple(runs), tuple(before), seed=5) == first
    assert runs == kept


def test_a_search_that_is_resumed_goes_on_with_the_same_sequence() -> None:
    valley = Valley(-1.0, worse={"F0": 0.02, "F2": 0.01})
    whole = searched(SPACE, valley)
    for kept in range(len(whole)):
        choice = choose(SPACE, whole[:kept])
        assert choice.point == points(whole)[kept]


def test_proposing_is_choosing_until_it_is_decided() -> None:
    surface = paper_like(3)
    found = simulate(surface, "trend", seed=3)
    for number, trials in enumerate(found):
        seed = 3 * 1009 + round(math.log2(surface.budgets[number]) * 1000)
        before = [Explored(surface.space(k), found[k]) for k in range(number)]
        last = choose(surface.space(number), trials, before, batch_size=surface.batch_size, seed=seed)
        asked = propose(
            "trend", surface.space(number), trials, seed=seed, worst_loss=9.0, smaller=before,
            batch_size=surface.batch_size,
        )  # fmt: skip
        assert asked is None
        assert last.decides(DOUBT)
        assert not last.waits


OUTCOMES: Final = st.sampled_from(["finished", "finished", "diverged", "failed", None])


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    ends=st.dictionaries(st.sampled_from(SPACE.points()), st.tuples(OUTCOMES, st.floats(-3, 3)), max_size=23),
)
def test_whatever_became_of_the_trials_the_choice_is_a_new_point_and_two_chances(
    seed: int, ends: dict[Point, tuple[str | None, float]]
) -> None:
    runs = [
        Run(p.variant, p.learning_rate, outcome, math.exp(loss) if outcome == "finished" else math.nan)
        for p, (outcome, loss) in ends.items()
    ]
    choice = choose(SPACE, runs, seed=seed)
    assert choice.point in SPACE.points()
    assert choice.point not in points(runs)
    assert 0 <= choice.better <= 1
    assert 0 <= choice.off <= 1
    assert choice.waits == any(run.outcome is None for run in runs)


# ---------------------------------------------------------------- on surfaces like the paper's


def scores(sampler: SamplerName, seeds: range, trials: int | None = None) -> list[Score]:
    found = []
    for seed in seeds:
        surface = paper_like(seed)
        for number, done in enumerate(simulate(surface, proposer(sampler, doubt=DOUBT), seed=seed, trials=trials)):
            steps = [
                Step(t.variant, t.learning_rate, t.heldout_loss if t.outcome == "finished" else None, 1.0) for t in done
            ]
            given_up = surface.points(number)
            found.append(score(surface, number, sampler, seed, steps, given_up=given_up, stops=True))
    return found


@pytest.mark.slow
def test_budgets_like_the_paper_s_are_decided_rightly_with_few_trials() -> None:
    found = scores("trend", range(25))
    ours = summarise(found)
    assert ours.budgets > 100
    assert ours.spent <= 1.5
    assert ours.right >= 0.85
    chance = scores("random", range(8))
    both = summarise(chance), summarise([one for one in found if one.seed < 8])
    assert both[1].trials.value < 0.5 * both[0].trials.value
    assert both[1].compute.value < 0.5 * both[0].compute.value


def test_chances_of_being_wrong_come_true_no_more_often_than_they_say() -> None:
    """Of the budgets that are decided at a doubt, about so many are not rightly so."""
    found = scores("trend", range(100, 106))
    assert statistics.fmean(bool(one.right) for one in found) > 1 - 2 * DOUBT


@pytest.mark.parametrize("rates", [(0.4,), (0.2, 0.4), (0.1, 0.2, 0.4, 0.8)])
@pytest.mark.parametrize("outcome", [None, "failed", "diverged"])
@pytest.mark.parametrize("others", [[], [Run("F3", 0.4, "finished", 3.0)]])
def test_a_front_is_looked_for_also_where_its_cheapest_part_has_nothing_left(
    rates: tuple[float, ...], outcome: str | None, others: list[Run]
) -> None:
    space = budget(3, rates=list(rates))
    cheapest = space.variants[0]
    runs = [Run(cheapest, rate, outcome) for rate in rates] + others
    choice = choose(space, runs, costs=[cell.parameters for cell in space.cells])
    assert choice.point is not None
    assert choice.point.variant != cheapest


def test_a_front_is_searched_to_the_end_whatever_diverges() -> None:
    space = budget(3, rates=[0.1, 0.2, 0.4])
    costs = [cell.parameters for cell in space.cells]
    runs = [Run(space.variants[0], 0.1, "diverged"), Run(space.variants[2], 0.2, "finished", 3.0)]
    for _ in range(9):
        choice = choose(space, runs, costs=costs)
        if choice.decides(0.15):
            break
        assert choice.point is not None
        runs.append(Run(choice.point.variant, choice.point.learning_rate, "diverged"))
    assert choose(space, runs, costs=costs).decides(0.15)


# ---------------------------------------------------------------- points that diverged with a further seed


def test_a_point_that_diverged_with_another_seed_is_no_best_to_be_content_with() -> None:
    valley = Valley(-1.0, fall=0.0)
    before, best = smaller(valley, variants=1), valley.run("F0", 0.4)
    lost = Run("F0", 0.4, "diverged")
    assert choose(ONE, [valley.run("F0", 0.8), best], before).decides(DOUBT)
    unsure = choose(ONE, [best, lost], before)
    assert (unsure.better, unsure.off) == (1.0, 1.0)
    assert unsure.point is not None
    assert unsure.point.learning_rate < 0.4  # what is above is barred
    assert choose(ONE, [valley.run("F0", 0.1), best, lost], before).better > DOUBT  # 0.2 is better than 0.1


def test_a_budget_whose_best_diverged_with_another_seed_is_searched_until_there_is_a_sound_one() -> None:
    valley = Valley(-1.0, fall=0.0)
    runs = [valley.run("F0", 0.4), Run("F0", 0.4, "diverged")]
    while not (choice := choose(ONE, runs, smaller(valley, variants=1))).decides(DOUBT):
        assert choice.point is not None
        runs.append(valley.run("F0", choice.point.learning_rate))
    assert Points(runs).ranked()[0].point == Point("F0", 0.2)
