"""Further seeds: only of the best points, each seed once, and the best is then the best on average."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies
from rich.console import Console

from search.budgets import open_budgets
from search.director import Suggestion
from search.figures import (
    iso_compute_data,
    learning_rate_valley_data,
    loss_vs_compute_data,
    read_iso_compute,
    read_loss_vs_compute,
    search_progress_data,
)
from search.law import fit_law, runs_of_state
from search.ledger import read_ledger
from search.points import Points
from search.progress import ProgressView
from search.repeats import next_repeat
from search.results import best_rows
from search.second_objective import pareto_front
from search.space import CellSize, Point, Space
from search.state import BudgetState, StudyState
from search.state import TrialState as Trial
from search.study import read_study
from search.tracked_runs import TrackedStudy
from tests.search.seeded_ledger import two_seeds
from tests.search.test_director import STUDY, World, events_of

SPACE = Space(tuple(CellSize(name, 1.0, 1e9, 10**6) for name in ("F0", "F1", "F3")), (0.1, 0.2, 0.4))


def trial(variant: str, rate: float, loss: float | None, seed: int = 0, outcome: Any = "finished") -> Trial:
    point = Point(variant, rate)
    return Trial(
        trial_id="b", budget="b", variant=variant, epochs=1.0, steps=10, learning_rate=rate, seed=seed, flops=1.0,
        parameters=1, params=point.params, suggested_at=0.0, outcome=outcome, result={"heldout_loss": loss},
    )  # fmt: skip


def test_each_variant_within_two_per_cent_of_the_best_is_repeated_at_its_best_rate_the_best_first() -> None:
    trials = [trial("F0", 0.1, 1.01), trial("F0", 0.2, 1.5), trial("F1", 0.4, 1.0), trial("F3", 0.2, 1.03)]
    found = []
    while (repeat := next_repeat(SPACE, trials, range(3))) is not None:
        point, seed = repeat
        found.append((point.variant, point.learning_rate, seed))
        first = next(each for each in trials if (each.variant, each.learning_rate) == found[-1][:2])
        trials.append(trial(point.variant, point.learning_rate, first.heldout_loss, seed))
    assert found == [("F1", 0.4, 1), ("F0", 0.1, 1), ("F1", 0.4, 2), ("F0", 0.1, 2)]


def test_a_lucky_point_is_no_longer_the_best_once_it_was_repeated() -> None:
    trials = [trial("F0", 0.1, 0.9), trial("F0", 0.1, 1.1, 1), trial("F0", 0.2, 0.95)]
    assert next_repeat(SPACE, trials, range(2)) == (Point("F0", 0.2), 1)


def test_a_seed_that_runs_failed_or_diverged_is_not_run_again() -> None:
    for outcome in (None, "failed", "diverged"):
        trials = [trial("F0", 0.1, 1.0), trial("F0", 0.1, None, 1, outcome)]
        assert next_repeat(SPACE, trials, range(2)) is None


def test_nothing_is_repeated_where_nothing_has_finished() -> None:
    assert next_repeat(SPACE, [trial("F0", 0.1, None, 0, "diverged")], range(3)) is None


@pytest.mark.parametrize("sampler", ["grid", "trend"])
def test_a_search_ends_each_budget_with_the_further_seeds_of_its_best_points(tmp_path: Path, sampler: str) -> None:
    study = read_study(STUDY.replace("{sampler: tpe, trials: 8}", f"{{sampler: {sampler}, seeds: 3}}"))
    with World(study, open_budgets(study, 1437, 10)[0], tmp_path) as world:
        world.run()
        assert world.director.done
    state = StudyState.of(read_ledger(str(tmp_path)))
    for budget in state.budgets.values():
        points = Counter((each.variant, each.learning_rate) for each in budget.trials)
        repeated = {point for point, count in points.items() if count > 1}
        assert repeated == {("F0", 0.4)}  # F1 is five per cent worse
        assert sorted(each.seed for each in budget.trials if each.learning_rate == 0.4 and each.variant == "F0") == [
            0, 1, 2,
        ]  # fmt: skip


def test_seeds_that_are_asked_for_later_are_run_beside_what_there_is(tmp_path: Path) -> None:
    text = STUDY.replace("{sampler: tpe, trials: 8}", "{sampler: grid}")
    for seeds, trials in ((1, 20), (2, 22), (2, 22)):
        study = read_study(text.replace("grid}", f"grid, seeds: {seeds}}}"))
        with World(study, open_budgets(study, 1437, 10)[0], tmp_path) as world:
            world.run()
            assert world.director.done
            assert len(world.director.state.trials) == trials


def test_the_trials_of_a_further_seed_are_trained_with_it(tmp_path: Path) -> None:
    study = read_study(STUDY.replace("{sampler: tpe, trials: 8}", "{sampler: grid, seeds: 2}"))
    with World(study, open_budgets(study, 1437, 10)[0], tmp_path, slices=1) as world:
        seen: list[Suggestion] = []
        while isinstance(suggestion := world.director.suggest(), Suggestion):
            seen.append(suggestion)
            for event in events_of(suggestion):
                world.director.take_events(suggestion.trial, [event])
    seeds = Counter(suggestion.config["seed"] for suggestion in seen)
    assert seeds == {0: 20, 1: 2}


def test_the_best_of_a_budget_is_the_best_on_average() -> None:
    budget = BudgetState("b", 1.0, 3, [], frozenset({"F0"}))
    budget.trials += [
        trial("F0", 0.1, 0.9),
        trial("F0", 0.1, 1.1, 1),
        trial("F0", 0.2, 0.97),
        trial("F0", 0.2, 0.95, 1),
    ]
    assert budget.best is not None
    assert (budget.best.learning_rate, budget.best.heldout_loss) == (0.2, 0.95)


def test_the_loss_of_the_best_is_the_mean_over_its_seeds() -> None:
    budget = BudgetState("b", 1.0, 3, [], frozenset({"F0"}))
    assert math.isnan(budget.best_loss)
    budget.trials += [trial("F0", 0.1, 0.9), trial("F0", 0.1, 1.1, 1), trial("F0", 0.2, 1.2)]
    assert budget.best_loss == 1.0


def test_a_point_that_diverged_with_some_seed_is_not_the_best_where_another_did_not() -> None:
    budget = BudgetState("b", 1.0, 3, [], frozenset({"F0"}))
    budget.trials += [trial("F0", 0.2, 0.9), trial("F0", 0.2, None, 1, "diverged"), trial("F0", 0.1, 1.0)]
    assert budget.best is not None
    assert budget.best.learning_rate == 0.1
    assert next_repeat(SPACE, budget.trials, range(2)) == (Point("F0", 0.1), 1)
    del budget.trials[-1]
    assert budget.best is not None
    assert budget.best_loss == 0.9


@given(
    strategies.lists(
        strategies.tuples(
            strategies.sampled_from(["F0", "F1"]),
            strategies.sampled_from([0.1, 0.2]),
            strategies.sampled_from(["finished", "diverged", "failed", None]),
            strategies.sampled_from([0.5, 1.0, 2.0, math.nan, math.inf]),
        )
    )
)
def test_the_best_is_the_first_in_rank_after_every_trial_that_ends(
    ended: list[tuple[str, float, Any, float]],
) -> None:
    points: Points[Trial] = Points()
    for seed, (variant, rate, outcome, loss) in enumerate(ended):
        points.add(trial(variant, rate, loss, seed, outcome))
        ranked = points.ranked()
        assert points.best is (ranked[0] if ranked else None)
        keys = [(each.diverged, each.mean_loss) for each in ranked]
        assert keys == sorted(keys)
        assert all(math.isfinite(each.mean_loss) for each in ranked)


def test_a_trial_that_finished_with_no_loss_is_never_the_best() -> None:
    budget = BudgetState("b", 1.0, 3, [], frozenset({"F0"}))
    budget.trials += [trial("F0", 0.2, math.nan), trial("F0", 0.1, 1.0)]
    assert budget.best is not None
    assert budget.best.learning_rate == 0.1


@pytest.mark.parametrize("diverging", [False, True])
def test_the_best_is_the_same_wherever_one_is_named(diverging: bool) -> None:
    """Of single runs 000 has the lowest loss, but its second seed was worse, or diverged."""
    records = two_seeds(diverging=diverging)
    state = StudyState.of(records)
    tracked = TrackedStudy("digits", "run-1")
    for record in records:
        tracked.apply(record)
    progress = search_progress_data(state).budgets
    valleys, frontier = learning_rate_valley_data(state).valleys, loss_vs_compute_data(state).frontier
    law = fit_law(runs_of_state(state), bootstraps=100)
    of_study = [point for point in tracked.runs["study"].changes(-1).points if point.name == "best_heldout_loss"]
    for place, (budget, row) in enumerate(zip(state.budgets.values(), best_rows(state), strict=True)):
        assert (row.trial_id[-3:], row.variant, budget.best_loss) == ("001", "F1", 0.3)
        assert (frontier[place].variant, frontier[place].loss) == ("F1", 0.3)
        assert valleys[place].best == frontier[place]
        assert law.budgets[place].best.variant == "F1"
        assert law.budgets[place].loss == pytest.approx(0.3)
        assert (progress[place].found, progress[place].steps[-1].best) == (2, 0.3)
        (front,) = pareto_front(budget.trials, {"F0": 1.0, "F1": 1.0, "F3": 1.0})
        assert (front.variant, front.heldout_loss) == ("F1", 0.3)
        run = tracked.runs[f"budget {budget.label}"].changes(-1)
        assert [point.value for point in run.points if point.name == "best_heldout_loss"][-1] == 0.3
        assert of_study[place].value == 0.3
    assert "Best of the sizes tried: F1 at 2e11 FLOPs, F1 at 6e11" in read_iso_compute(iso_compute_data(state, None))
    assert "goes from 0.300 (F1) to 0.300 (F1)" in read_loss_vs_compute(loss_vs_compute_data(state))


def test_a_wider_grid_opens_a_budget_again_that_was_decided_on_the_narrow_one(tmp_path: Path) -> None:
    """The best rate was at the edge, so the grid is widened; a decision by the old one no longer holds."""
    text = STUDY.replace("{sampler: tpe, trials: 8}", "{sampler: trend}")
    counts = []
    for low in (0.4, 0.4, 0.1):
        study = read_study(text.replace("min: 0.1", f"min: {low}"))
        with World(study, open_budgets(study, 1437, 10)[0], tmp_path) as world:
            assert world.director.done == (len(counts) == 1)
            world.run()
            assert world.director.done
            counts.append(sum(record.event == "budget_opened" for record in world.ledger.records))
    assert counts == [2, 2, 4]


# ---------------------------------------------------------------- how many further seeds there are


def ends(
    monkeypatch: pytest.MonkeyPatch, outcome_of: Callable[[str, float, int], tuple[str, float]]
) -> Callable[[Suggestion], dict[str, Any]]:
    """Let trials of a variant, a rate and a seed end with an outcome and a loss."""

    def outcome(suggestion: Suggestion) -> dict[str, Any]:
        config = suggestion.config
        how, loss = outcome_of(config["model"]["variant"], config["optimiser"]["learning_rate"], config["seed"])
        return {"outcome": how, "result": {"heldout_loss": loss, "step": 5, "meter": {}, "reason": "", "error": ""}}

    monkeypatch.setattr("tests.search.test_director.scripted_outcome", outcome)
    return outcome


def octaves(rate: float) -> float:
    return math.log2(rate / 0.4)


GRID = STUDY.replace("{sampler: tpe, trials: 8}", "{sampler: grid, seeds: 3}")


@pytest.mark.parametrize("lost", ["diverged", "failed"])
def test_further_seeds_that_are_lost_leave_the_best_point_all_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """All but one point diverge with any seed but the first; that one is far from the best at first."""

    def outcome(variant: str, rate: float, seed: int) -> tuple[str, float]:
        sound = seed == 0 or (variant, rate) == ("F0", 0.1) or (lost == "failed" and rate != 0.4)
        return "finished" if sound else lost, 1 + 0.1 * octaves(rate) ** 2 + 0.05 * (variant == "F1")

    ends(monkeypatch, outcome)
    study = read_study(GRID)
    with World(study, open_budgets(study, 1437, 10)[0], tmp_path, slices=1) as world:
        world.run()
        assert world.director.done
    for budget in StudyState.of(read_ledger(str(tmp_path))).budgets.values():
        assert budget.best is not None
        if lost == "diverged":
            assert (budget.best.variant, budget.best.learning_rate, budget.best_seeds) == ("F0", 0.1, 3)
        else:  # it stays the best, of what there is of it
            assert (budget.best.learning_rate, budget.best_seeds) == (0.4, 1)
        further = [trial for trial in budget.trials if trial.seed]
        assert sum(trial.outcome == "finished" for trial in further) <= 6


def test_further_seeds_of_an_earlier_opening_leave_those_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More trials are asked for twice, and each time the new ones are better than all before."""
    ends(monkeypatch, lambda variant, rate, seed: ("finished", 2 - 0.2 * abs(octaves(rate)) - 0.01 * octaves(rate)))
    for trials in (2, 6, 10):
        study = read_study(GRID.replace("sampler: grid", f"sampler: grid, trials: {trials}"))
        with World(study, open_budgets(study, 1437, 10)[0], tmp_path) as world:
            world.run()
            assert world.director.done
            for budget in world.director.state.budgets.values():
                assert budget.best_seeds == 3


def test_further_seeds_off_the_grid_leave_those_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lowest rate is taken out when its points have had all their seeds."""
    ends(monkeypatch, lambda variant, rate, seed: ("finished", 2 + 0.2 * octaves(rate)))
    study = read_study(GRID)
    with World(study, open_budgets(study, 1437, 10)[0][:1], tmp_path, slices=1) as world:
        first = world.director.state.trials
        world.run(until=lambda: sum(each.seed > 0 and each.outcome is not None for each in first.values()) == 3)
    study = read_study(GRID.replace("min: 0.1", "min: 0.2"))
    with World(study, open_budgets(study, 1437, 10)[0][:1], tmp_path, slices=1) as world:
        assert not world.director.done
        world.run()
        assert world.director.done
        trials = world.director.state.trials
    further = Counter((each.variant, each.learning_rate) for each in trials.values() if each.seed)
    assert further == {("F0", 0.1): 2, ("F1", 0.1): 2, ("F0", 0.2): 2, ("F1", 0.2): 2}


def test_a_trial_of_a_variant_that_was_taken_out_keeps_no_further_seed_waiting(tmp_path: Path) -> None:
    whole = read_study(GRID)
    with World(whole, open_budgets(whole, 1437, 10)[0][:1], tmp_path) as world:
        while world.suggest().config["model"]["variant"] != "F1":
            pass
    study = read_study(GRID.replace("[F0, F1]", "[F0]"))
    with World(study, open_budgets(study, 1437, 10)[0][:1], tmp_path) as world:
        world.run()
        assert world.director.done
        (budget,) = world.director.state.budgets.values()
    assert [trial.variant for trial in budget.trials if trial.outcome is None] == ["F1"]
    assert budget.best_seeds == 3


def test_a_point_that_diverged_with_a_further_seed_gets_no_more_of_them() -> None:
    trials = [trial("F0", 0.1, 1.0), trial("F0", 0.1, None, 1, "diverged")]
    assert next_repeat(SPACE, trials, range(3)) is None


@pytest.mark.parametrize(
    ("seeds", "lost", "said"),
    [(1, False, ": loss 1.00"), (3, False, ": loss 1.20 (mean of 3 seeds)"), (3, True, " (of 1 of 3 seeds: the ")],
)
def test_a_budget_that_is_done_says_of_how_many_seeds_its_best_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: int, lost: bool, said: str
) -> None:
    study = read_study(GRID.replace("seeds: 3", f"seeds: {seeds}").replace("[F0, F1]", "[F0]"))
    ends(
        monkeypatch,
        lambda _, rate, seed: (
            "failed" if lost and seed else "finished",
            1 + octaves(rate) ** 2 + 0.3 * (seed > 0),
        ),
    )
    with World(study, open_budgets(study, 1437, 10)[0][:1], tmp_path) as world:
        world.run()
    console = Console(file=io.StringIO(), width=200)
    view = ProgressView(console)
    for record in world.heard:
        view.feed(record)
    written = console.file.getvalue()  # type: ignore[attr-defined]
    (line,) = [line for line in written.splitlines() if "FLOPs done: best F0" in line]
    assert said in line
    assert line.endswith(said) or lost
