"""Proposals: a pure function of sampler, seed and trials; never a point twice; better than chance."""

from __future__ import annotations

import math
import os
import random
import statistics
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, get_args

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.samplers import SamplerName, propose
from search.space import CellSize, Point, Space
from search.state import Outcome
from search.state import TrialState as Trial

SAMPLERS: Final[tuple[SamplerName, ...]] = get_args(SamplerName)


def cells(*variants: str) -> tuple[CellSize, ...]:
    return tuple(CellSize(variant, 4.0 / 2**k, 1e9 * 2**k, 10**6 * 2**k) for k, variant in enumerate(variants))


SPACE: Final = Space(cells("F0", "F1", "F3"), tuple(0.05 * 2**k for k in range(8)))
SMALL: Final = Space(cells("F0", "F1"), (0.1, 0.2, 0.4))
GUESS: Final = 2.3  # the loss of a uniform guess among ten classes


def trial(number: int, point: Point, outcome: Outcome | None, loss: float = math.nan) -> Trial:
    return Trial(
        trial_id=f"b-{number:03d}", budget="b", variant=point.variant, epochs=1.0, steps=10,
        learning_rate=point.learning_rate, seed=0, flops=1.0, parameters=1, params=point.params, suggested_at=0.0,
        outcome=outcome, result={"heldout_loss": loss} if outcome == "finished" else {},
    )  # fmt: skip


def valley(point: Point, space: Space = SPACE) -> float | None:
    """A loss with its best point at F1 and 0.4, a parabola in the learning rate; None (diverged) far above its best."""
    best = {"F0": 4, "F1": 3, "F3": 2}[point.variant]
    place = space.place(point.learning_rate)
    assert place is not None
    if place - best > 3:
        return None
    return 0.5 + {"F0": 0.15, "F1": 0.0, "F3": 0.1}[point.variant] + 0.04 * (place - best) ** 2


def searched(
    sampler: SamplerName, trials: int, *, seed: int = 0, before: Sequence[Trial] = (), space: Space = SPACE
) -> list[Trial]:
    """`before`, gone on with until there are so many trials; each ends before the next is proposed."""
    found = list(before)
    while len(found) < trials:
        point = propose(sampler, space, found, seed=seed, worst_loss=GUESS, doubt=0)
        if point is None:
            break
        loss = valley(point, space)
        found.append(trial(len(found), point, "diverged" if loss is None else "finished", loss or math.nan))
    return found


def points(trials: Sequence[Trial]) -> list[Point]:
    return [Point(trial.variant, trial.learning_rate) for trial in trials]


# ---------------------------------------------------------------- each point once


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_whole_grid_is_tried_once_and_then_there_is_nothing_more(sampler: SamplerName) -> None:
    found = points(searched(sampler, 100, space=SMALL))
    assert len(found) == 6
    assert set(found) == set(SMALL.points())


@settings(deadline=None, max_examples=40)
@given(
    sampler=st.sampled_from([name for name in SAMPLERS if name != "gp"]),
    seed=st.integers(0, 2**32 - 1),
    outcomes=st.lists(st.sampled_from(["finished", "diverged", "failed", None]), max_size=24),
)
def test_no_point_comes_twice_whatever_became_of_the_trials(
    sampler: SamplerName, seed: int, outcomes: list[Outcome | None]
) -> None:
    trials: list[Trial] = []
    for outcome in outcomes:
        point = propose(sampler, SPACE, trials, seed=seed, worst_loss=GUESS, doubt=0)
        assert point is not None
        assert point in SPACE.points()
        assert point not in points(trials)
        trials.append(trial(len(trials), point, outcome, valley(point) or 9.0))


def test_gp_proposes_none_of_the_running_failed_or_diverged_points_again() -> None:
    trials: list[Trial] = []
    outcomes: list[Outcome | None] = ["finished", "diverged", "failed", None]
    for number in range(12):
        point = propose("gp", SPACE, trials, seed=3, worst_loss=GUESS)
        assert point is not None
        assert point not in points(trials)
        trials.append(trial(number, point, outcomes[number % 4], valley(point) or 9.0))


def test_grid_goes_from_the_middle_of_the_rates_outwards_with_every_variant_at_each() -> None:
    assert points(searched("grid", 6, space=SMALL)) == [
        Point("F0", 0.2), Point("F1", 0.2), Point("F0", 0.1), Point("F1", 0.1), Point("F0", 0.4), Point("F1", 0.4),
    ]  # fmt: skip


def test_a_point_names_its_rate_after_its_variant() -> None:
    assert Point("F3+", 0.4).params == {"variant": "F3+", "lr_F3+": 0.4}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_trials_of_an_earlier_grid_are_passed_over(sampler: SamplerName) -> None:
    """The bounds of the learning rates may be moved between two runs, and the data's size changes which variants
    a budget buys.
    """
    wider = Space(cells("F0", "F1", "F3"), (0.05, *SMALL.learning_rates, 0.8))
    earlier = [
        trial(n, point, "finished", 1.0) for n, point in enumerate(p for p in wider.points() if p not in SMALL.points())
    ]
    assert set(points(searched(sampler, 100, before=earlier, space=SMALL))[len(earlier) :]) == set(SMALL.points())


# ---------------------------------------------------------------- a pure function


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_trials_and_seed_give_the_same_proposal_whatever_else_happens(sampler: SamplerName) -> None:
    trials = searched(sampler, 8, seed=5)
    first = propose(sampler, SPACE, trials, seed=5, worst_loss=GUESS)
    random.seed(1)
    np.random.seed(1)
    optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1)).optimize(lambda t: t.suggest_float("x", 0, 1), 3)
    propose("random", SMALL, [], seed=9, worst_loss=GUESS)
    assert propose(sampler, SPACE, trials, seed=5, worst_loss=GUESS) == first


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_that_is_resumed_goes_on_with_the_same_sequence(sampler: SamplerName) -> None:
    whole = searched(sampler, 10, seed=2)
    for kept in (0, 3, 6, 9):
        assert points(searched(sampler, 10, seed=2, before=whole[:kept])) == points(whole)


def test_another_process_proposes_the_same() -> None:
    program = (
        "import tests.search.test_samplers as t\n"
        "print([(p.variant, p.learning_rate) for n in ('tpe', 'random') for p in t.points(t.searched(n, 10, seed=4))])"
    )
    here = str([(p.variant, p.learning_rate) for n in ("tpe", "random") for p in points(searched(n, 10, seed=4))])
    there = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONHASHSEED": "7"}, capture_output=True, text=True
    )
    assert there.stdout.strip() == here, there.stderr


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])
def test_another_seed_searches_elsewhere(sampler: SamplerName) -> None:
    assert len({tuple(points(searched(sampler, 6, seed=seed))) for seed in range(5)}) == 5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_nothing_is_warned_of_or_printed(sampler: SamplerName, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trials = searched(sampler, 8)
        trials.append(trial(8, next(p for p in SPACE.points() if p not in points(trials)), None))
        propose(sampler, SPACE, trials, seed=0, worst_loss=GUESS)
    ours = [w for w in caught if "optuna" in w.filename or "search" in w.filename]
    assert [str(w.message) for w in ours] == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])
def test_proposals_are_drawn_anew_each_time(sampler: SamplerName) -> None:
    """Not one draw over and over, and then its neighbours."""
    pairs = [[point.variant for point in points(searched(sampler, 2, seed=seed))] for seed in range(30)]
    assert 2 <= sum(first == second for first, second in pairs) <= 20  # a third of them, by chance


# ---------------------------------------------------------------- what the outcomes say

LINE: Final = Space(cells("F0"), tuple(0.01 * 2 ** (k / 2) for k in range(24)))


def low_finished_high(outcome: Outcome | None, loss: float = math.nan) -> list[Trial]:
    """On a line of 24 rates, every other one tried: alike in the lower half, `outcome` in the upper half."""
    low = [trial(k, Point("F0", LINE.learning_rates[2 * k]), "finished", 1 + 0.01 * k) for k in range(6)]
    high = [trial(6 + k, Point("F0", LINE.learning_rates[12 + 2 * k]), outcome, loss) for k in range(6)]
    return low + high


def share_high(sampler: SamplerName, trials: list[Trial], seeds: int) -> float:
    """How often the upper half of the line is proposed next."""
    proposed = [propose(sampler, LINE, trials, seed=seed, worst_loss=GUESS) for seed in range(seeds)]
    return statistics.mean(p is not None and p.learning_rate >= LINE.learning_rates[12] for p in proposed)


@pytest.mark.parametrize(("sampler", "seeds"), [("tpe", 30), ("gp", 3)])
def test_samplers_turn_away_from_where_trials_diverged(sampler: SamplerName, seeds: int) -> None:
    assert share_high(sampler, low_finished_high("diverged"), seeds) < 0.2
    assert 0.3 < share_high("random", low_finished_high("diverged"), 100) < 0.7  # and chance would not


def test_a_diverged_trial_is_never_better_than_a_finished_one() -> None:
    """Were the loss of a uniform guess taken for it, then where finished trials are worse it would look good."""
    bad = [replace(t, result={"heldout_loss": 5 + 0.01 * n}) for n, t in enumerate(low_finished_high("diverged")[:6])]
    assert share_high("tpe", bad + low_finished_high("diverged")[6:], 30) < 0.2


def test_a_failed_trial_says_nothing_about_its_point() -> None:
    finished = searched("tpe", 9, seed=1)
    free = [point for point in SPACE.points() if point not in points(finished)]
    for seed in range(10):
        after = {propose("tpe", SPACE, [*finished, trial(9, p, "failed")], seed=seed, worst_loss=GUESS) for p in free}
        # the same proposal wherever it failed, but for the one time that it failed at the point proposed
        assert len(after) <= 2


def test_a_running_trial_is_reckoned_with() -> None:
    """Not only its point is left out: TPE takes it for a bad one, so that parallel trials spread out."""
    running = low_finished_high(None)
    assert share_high("tpe", running, 30) < share_high("tpe", low_finished_high("failed"), 30)


def test_tpe_finds_better_points_than_random_search_does() -> None:
    def regret(sampler: SamplerName) -> float:
        best = [
            min(t.heldout_loss for t in searched(sampler, 16, seed=s) if t.outcome == "finished") for s in range(25)
        ]
        return statistics.mean(best) - 0.5

    assert regret("tpe") < 0.75 * regret("random")


def test_gp_finds_the_bottom_of_the_valley() -> None:
    best = min((t for t in searched("gp", 16) if t.outcome == "finished"), key=lambda t: t.heldout_loss)
    assert best.heldout_loss <= 0.54
