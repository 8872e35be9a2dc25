"""The simulator: the samplers as they are, run over a whole study whose losses are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

import pytest

from search.samplers import SamplerName, propose
from search.simulate import replay, simulate
from search.space import Explored, Point, Space
from search.state import TrialState as Trial
from search.surfaces import HOSTILE, Surface, paper_like, snapped

SURFACE = paper_like(0)


def points(trials: Sequence[Trial]) -> list[Point]:
    return [Point(trial.variant, trial.learning_rate) for trial in trials]


@dataclass(slots=True)
class Recorder:
    """Proposes the grid in its order, and keeps what it was asked with."""

    running: list[int] = field(default_factory=list)
    smaller: list[tuple[int, ...]] = field(default_factory=list)
    unended: list[int] = field(default_factory=list)
    asked: list[tuple[int, float, int]] = field(default_factory=list)

    def __call__(
        self,
        space: Space,
        trials: Sequence[Trial],
        *,
        seed: int,
        worst_loss: float,
        smaller: Sequence[Explored] = (),
        batch_size: int = 4096,
    ) -> Point | None:
        self.running.append(sum(trial.outcome is None for trial in trials))
        self.smaller.append(tuple(len(budget.trials) for budget in smaller))
        self.unended.append(sum(trial.outcome is None for budget in smaller for trial in budget.trials))
        self.asked.append((seed, worst_loss, batch_size))
        return propose("grid", space, trials, seed=seed, worst_loss=worst_loss)


@pytest.mark.parametrize("sampler", [name for name in get_args(SamplerName) if name != "gp"])
def test_each_sampler_goes_through_a_study_unchanged(sampler: SamplerName) -> None:
    found = simulate(SURFACE, sampler, seed=0, trials=4)
    assert len(found) == len(SURFACE.budgets)
    for budget, trials in enumerate(found):
        assert 1 <= len(trials) <= 4
        assert all(SURFACE.space(budget).holds(trial) for trial in trials)
        assert len(set(points(trials))) == len(trials)


def test_a_gaussian_process_does_too() -> None:
    assert [len(trials) for trials in simulate(SURFACE, "gp", seed=0, trials=2)] == [2] * len(SURFACE.budgets)


def test_trials_end_as_the_surface_says() -> None:
    outcomes = set()
    surface = HOSTILE["divergent low"](0)
    for budget, trials in enumerate(simulate(surface, "grid", seed=3)):
        for trial in trials:
            outcome, loss = surface.observed(budget, trial.variant, trial.learning_rate, 3)
            assert trial.outcome == outcome
            assert trial.heldout_loss == loss or (outcome == "diverged" and math.isnan(trial.heldout_loss))
            outcomes.add(outcome)
    assert outcomes == {"finished", "diverged"}


def test_without_a_limit_the_whole_grid_is_tried() -> None:
    found = simulate(SURFACE, "random", seed=0)
    assert [len(trials) for trials in found] == [SURFACE.points(budget) for budget in range(len(SURFACE.budgets))]


def test_the_same_seed_gives_the_same_study_and_another_one_another() -> None:
    first, again, other = (simulate(SURFACE, "random", seed=seed, trials=5) for seed in (1, 1, 2))
    assert [points(trials) for trials in first] == [points(trials) for trials in again]
    assert [points(trials) for trials in first] != [points(trials) for trials in other]


def test_budgets_come_in_their_order_and_each_proposal_knows_the_smaller_ones() -> None:
    recorder = Recorder()
    simulate(SURFACE, recorder, seed=0, trials=2)
    assert recorder.smaller == [(2,) * budget for budget in range(len(SURFACE.budgets)) for _ in range(2)]
    assert recorder.unended == [0] * len(recorder.unended)


def test_a_proposal_is_made_with_the_study_s_batch_size_and_the_loss_of_a_guess_and_a_seed_for_each_budget() -> None:
    recorder = Recorder()
    simulate(SURFACE, recorder, seed=7, trials=2)
    assert {(worst, batch) for _, worst, batch in recorder.asked} == {(SURFACE.worst_loss, SURFACE.batch_size)}
    assert len({seed for seed, _, _ in recorder.asked}) == len(SURFACE.budgets)


def test_with_several_slices_proposals_are_made_while_trials_run() -> None:
    recorder = Recorder()
    found = simulate(SURFACE, recorder, seed=0, trials=5, slices=3)
    assert recorder.running[:5] == [0, 1, 2, 2, 2]
    assert recorder.unended[5:8] == [2, 1, 0], "the next budget begins while the last trials of this one run"
    assert all(trial.outcome is not None for trials in found for trial in trials)


def test_the_oldest_trial_ends_first() -> None:
    seen: list[list[bool]] = []

    def enough(trials: Sequence[Trial]) -> bool:
        seen.append([trial.outcome is not None for trial in trials])
        return len(trials) == 4

    replay(SURFACE, Recorder(), 0, seed=0, slices=2, enough=enough)
    assert seen == [[], [False], [True, False], [True, True, False], [True, True, True, False]]


def test_a_trial_of_a_cheaper_cell_ends_before_a_dearer_one_that_began_first() -> None:
    surface = snapped(0)
    flops = {cell.variant: surface.flops(0, cell.variant) for cell in surface.cells[0]}
    dear, cheap = max(flops, key=lambda name: flops[name]), min(flops, key=lambda name: flops[name])
    assert flops[cheap] < flops[dear]
    order = [Point(dear, rate) for rate in surface.learning_rates[:1]]
    order += [Point(cheap, rate) for rate in surface.learning_rates[:2]]
    seen: list[list[bool]] = []

    def given(
        space: Space,
        trials: Sequence[Trial],
        *,
        seed: int,
        worst_loss: float,
        smaller: Sequence[Explored] = (),
        batch_size: int = 4096,
    ) -> Point:
        seen.append([trial.outcome is not None for trial in trials])
        return order[len(trials)]

    trials = replay(surface, given, 0, seed=0, trials=3, slices=2)
    assert seen == [[], [False], [False, True]]
    assert [trial.flops for trial in trials] == [flops[dear], flops[cheap], flops[cheap]]


def test_a_limit_may_be_given_for_each_budget() -> None:
    limits = list(range(1, len(SURFACE.budgets) + 1))
    assert [len(trials) for trials in simulate(SURFACE, "random", seed=0, trials=limits)] == limits
    with pytest.raises(ValueError, match="shorter"):
        simulate(SURFACE, "random", seed=0, trials=limits[1:])


def test_a_budget_ends_when_the_sampler_has_nothing_more_to_propose() -> None:
    def twice(
        space: Space,
        trials: Sequence[Trial],
        *,
        seed: int,
        worst_loss: float,
        smaller: Sequence[Explored] = (),
        batch_size: int = 4096,
    ) -> Point | None:
        return space.points()[len(trials)] if len(trials) < 2 else None

    assert [len(trials) for trials in simulate(SURFACE, twice, seed=0)] == [2] * len(SURFACE.budgets)


def test_a_sampler_that_waits_for_running_trials_is_asked_again_when_they_have_ended() -> None:
    asked: list[tuple[int, int]] = []  # (trials, those of them that run), by proposal of the first budget

    def pairs(
        space: Space,
        trials: Sequence[Trial],
        *,
        seed: int,
        worst_loss: float,
        smaller: Sequence[Explored] = (),
        batch_size: int = 4096,
    ) -> Point | None:
        """Two points, then two more when it knows both; then nothing."""
        running = sum(trial.outcome is None for trial in trials)
        if not smaller:
            asked.append((len(trials), running))
        wait = len(trials) == 2 and running > 0
        return None if wait or len(trials) == 4 else space.points()[len(trials)]

    found = simulate(SURFACE, pairs, seed=0, slices=3)
    assert [len(trials) for trials in found] == [4] * len(SURFACE.budgets)
    assert asked[:5] == [(0, 0), (1, 1), (2, 2), (2, 1), (2, 0)]


def test_a_study_in_the_simulator_has_the_sizes_of_its_cells() -> None:
    surface: Surface = paper_like(5)
    for budget, trials in enumerate(simulate(surface, "grid", seed=0, trials=3)):
        for trial in trials:
            cell = next(cell for cell in surface.cells[budget] if cell.variant == trial.variant)
            assert (trial.epochs, trial.parameters, trial.flops) == (
                cell.epochs,
                cell.parameters,
                surface.budgets[budget],
            )
