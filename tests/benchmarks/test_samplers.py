"""The sampler benchmark: what counts as found, what it costs, and a run of it all on a few surfaces."""

from __future__ import annotations

import json
import math
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import sampler_peers, samplers
from benchmarks.proposal import history
from benchmarks.sampler_figure import draw
from benchmarks.sampler_peers import PRUNING, TREND_ON, Place, most_trials, searchers, steps_of
from benchmarks.sampler_scores import (
    Score,
    Step,
    compute_per_cell,
    compute_spent_per_cell,
    found_at,
    hidden,
    ratio,
    score,
    summarise,
)
from benchmarks.samplers import FIRST_SEED, Task, run, stock_over
from search.budgets import MOST_TRIALS_PER_CELL
from search.recorded import names
from search.simulate import proposer, simulate
from search.space import CellSize
from search.surfaces import Surface, paper_like, snapped

RATES = (0.1, 0.2, 0.4, 0.8)
SURFACE = Surface(  # F0 is best at 0.4; F1 is within 1 % of that at 0.1 and 0.2, but its best rate is 0.8
    name="two",
    family="made-up",
    budgets=(1e18,),
    cells=((CellSize("F0", 2.0, 1e9, 10**6), CellSize("F1", 1.0, 2e9, 2 * 10**6)),),
    learning_rates=RATES,
    losses=(((3.0, 2.2, 2.0, math.inf), (2.011, 2.012, 2.3, 2.010)),),
    noise=0.0,
    batch_size=64,
    classes=10,
)


def steps(*tried: tuple[str, float, float | None], cost: float = 1.0) -> list[Step]:
    return [Step(variant, rate, loss, cost) for variant, rate, loss in tried]


def a_score(trials: float, cells: int = 2, flops: float = 1.0, surface: str = "a") -> Score:
    return Score(surface, "made-up", 0, flops, cells, "x", 0, trials, trials, 8, None, None, None, False, (0.0,) * 5)


def test_found_is_the_first_trial_after_which_the_incumbent_is_a_good_point() -> None:
    assert found_at(SURFACE, 0, steps(("F0", 0.1, 3.0), ("F0", 0.4, 2.0), ("F0", 0.2, 2.2))) == 2
    assert found_at(SURFACE, 0, steps(("F0", 0.1, 3.0), ("F0", 0.2, 2.2))) is None
    assert found_at(SURFACE, 0, []) is None


def test_the_incumbent_goes_by_what_was_observed_and_its_quality_by_the_truth() -> None:
    assert found_at(SURFACE, 0, steps(("F0", 0.1, 1.9), ("F0", 0.4, 2.0))) is None
    assert found_at(SURFACE, 0, steps(("F0", 0.4, 9.0))) == 1


def test_another_variant_s_point_is_good_within_one_per_cent_and_a_step_of_its_best_rate() -> None:
    assert found_at(SURFACE, 0, steps(("F1", 0.8, 2.010))) == 1
    assert found_at(SURFACE, 0, steps(("F1", 0.1, 2.011))) is None, "three steps from its best rate"


def test_diverged_and_pruned_trials_are_no_incumbents_but_count_and_cost() -> None:
    tried = steps(("F0", 0.8, None), ("F1", 0.4, None), cost=0.25) + steps(("F0", 0.4, 2.0))
    found = score(SURFACE, 0, "x", 0, tried, given_up=8, stops=False)
    assert (found.trials, found.cost) == (3, 1.5)


def test_a_best_that_was_not_found_counts_as_the_trials_after_which_it_was_given_up() -> None:
    found = score(SURFACE, 0, "x", 0, steps(("F0", 0.2, 2.2)), given_up=32, stops=False)
    assert (found.trials, found.trials_counted, found.cost_counted) == (math.inf, 32, 32)


def test_where_noise_hides_the_best_it_counts_as_the_grid() -> None:
    looks = tuple(
        tuple(("finished", 1.0) if loss == 2.2 else ("finished", min(loss, 9.0)) for loss in cell)
        for cell in SURFACE.losses[0]
    )
    noisy = replace(SURFACE, runs=((looks,),))  # F0 at 0.2 looks best
    assert hidden(noisy, 0, 0)
    assert not hidden(SURFACE, 0, 0)
    found = score(noisy, 0, "x", 0, steps(("F0", 0.2, 1.0)), given_up=32, stops=False)
    assert found.trials_counted == 8


def test_regret_is_that_of_the_incumbent_and_of_a_guess_before_there_is_one() -> None:
    tried = steps(("F0", 0.8, None), ("F0", 0.2, 2.2), ("F0", 0.4, 2.0))
    found = score(SURFACE, 0, "x", 0, tried, given_up=8, stops=False)
    assert found.regret == pytest.approx((math.log(10) / 2 - 1, 0.1, 0.0, 0.0, 0.0))


def test_what_a_sampler_spent_is_told_where_it_stops_by_itself() -> None:
    found = score(SURFACE, 0, "x", 0, steps(("F0", 0.4, 2.0), ("F0", 0.2, 2.2)), given_up=8, stops=True)
    assert (found.spent, found.right) == (2, True)
    summary = summarise([found])
    assert (summary.spent, summary.spent_compute, summary.right) == (1.0, 1.0, 1.0)


def test_stock_tpe_s_compute_is_told_over_that_until_found_and_over_that_until_it_stops() -> None:
    tried = steps(("F0", 0.4, 2.0), ("F0", 0.2, 2.2), ("F0", 0.1, 3.0))
    ours = [score(SURFACE, 0, "trend", 0, tried, given_up=8, stops=True)]
    stock = [
        score(SURFACE, 0, "stock tpe", 0, steps(*[("F0", 0.2, 2.2)] * 5, ("F0", 0.4, 2.0)), given_up=8, stops=False)
    ]
    found, stopped = stock_over(ours, {"stock tpe": stock})
    assert found is not None
    assert stopped is not None
    assert (found.value, stopped.value) == (6.0, 2.0)
    assert stock_over(stock, {"stock tpe": stock})[1] is None, "it never stops"


def test_where_cells_take_different_flops_each_trial_counts_with_its_own() -> None:
    surface = replace(SURFACE, trial_flops=((1e18, 3e18),))
    trials = simulate(surface, "grid", seed=0, trials=2)[0]
    assert [trial.variant for trial in trials] == ["F0", "F1"]
    tried = steps_of(surface, trials)
    assert [step.cost for step in tried] == [0.5, 1.5]
    found = score(surface, 0, "x", 0, tried[:1], given_up=8, stops=True)
    assert (found.flops, found.spent, found.spent_cost) == (2e18, 1, 0.5)
    assert compute_spent_per_cell([found]) == 0.25


@pytest.mark.parametrize("draw", [paper_like, snapped])
def test_a_trial_in_every_point_costs_the_grid(draw: Callable[[int], Surface]) -> None:
    surface = draw(FIRST_SEED)
    for budget, trials in enumerate(simulate(surface, "grid", seed=0)):
        assert sum(step.cost for step in steps_of(surface, trials)) == pytest.approx(surface.points(budget))


def test_trend_that_would_never_stop_is_ended_where_a_search_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    surface = paper_like(1)
    monkeypatch.setattr(sampler_peers, "proposer", lambda name, doubt: proposer("grid"))
    ran = [len(here) for here in searchers()["trend"].search(Place(surface), 0)]
    assert ran == most_trials(surface) == [MOST_TRIALS_PER_CELL * len(here) for here in surface.cells]
    assert most_trials(replace(SURFACE, learning_rates=RATES[:2])) == [4], "no point is tried twice"


def test_draws_are_fresh_unless_others_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"paper_like": 2, "snapped": 1, "hostile": 1, "recorded": 1, "slices": 1, "searchers": ["grid"]}
    fresh = [
        task.number for task in samplers.tasks(Namespace(**few, first_seed=FIRST_SEED)) if task.family != "recorded"
    ]
    assert fresh == [FIRST_SEED, FIRST_SEED + 1, *[FIRST_SEED] * 8]
    old = [task.seed for task in samplers.tasks(Namespace(**few, first_seed=0))]
    assert set(old) == {0, 1}


def test_compute_weighs_budgets_by_their_size() -> None:
    assert compute_per_cell([a_score(2, flops=1.0), a_score(8, flops=3.0)]) == pytest.approx((2 + 3 * 8) / (2 + 3 * 2))


def test_a_ratio_takes_the_surfaces_that_both_went_through() -> None:
    ours = [a_score(1, surface="a"), a_score(2, surface="b")]
    theirs = [a_score(4, surface="b"), a_score(8, surface="c")]
    found = ratio(ours, theirs, compute_per_cell)
    assert found is not None
    assert found.value == pytest.approx(2)
    assert ratio(ours, [], compute_per_cell) is None


@pytest.mark.parametrize("name", searchers())
def test_every_searcher_finds_the_best_of_a_recorded_budget(name: str) -> None:
    done = run(Task(name, "recorded", names()[0], 0))
    assert len(done.scores) == 4
    assert done.proposals >= 4
    assert any(math.isfinite(one.trials) for one in done.scores)
    if name in PRUNING:
        assert any(one.cost < one.trials for one in done.scores), "pruned trials cost less"


def test_a_history_has_as_many_finished_trials_as_asked_for() -> None:
    space, trials, smaller = history(2000)
    assert len(trials) + sum(len(budget.trials) for budget in smaller) == 2000
    assert len(trials) < len(space.points())


def test_every_searcher_runs_on_the_same_surfaces() -> None:
    counts = Namespace(paper_like=3, snapped=2, hostile=2, recorded=2, slices=1, searchers=None, first_seed=FIRST_SEED)
    ran: dict[str, set[tuple[str, int | str, int]]] = {}
    for task in samplers.tasks(counts):
        ran.setdefault(task.searcher, set()).add((task.family, task.number, task.seed))
    assert list(ran) == sorted(searchers(), key=lambda name: name != "gp")
    tables = {task for task in ran["random"] if task[0] == "recorded"}
    assert all(ran[name] == (tables if name in PRUNING else ran["random"]) for name in ran)


def test_the_figure_shows_no_regret_of_who_was_stopped_at_its_find() -> None:
    names = ["trend", TREND_ON, "tpe", "gp"]
    left, right = draw([replace(a_score(2), searcher=name, regret=(0.1,) * 5) for name in names]).axes
    marks = {line.get_label(): line.get_marker() for line in right.lines if line.get_linestyle() == "None"}
    assert list(marks) == names
    assert [line.get_marker() for line in left.lines] == [marks["trend"], marks["tpe"]]


def test_the_benchmark_prints_its_tables_and_writes_json_and_a_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--paper-like=2", "--snapped=1", "--hostile=1", "--recorded=1", "--processes=1", f"--out={tmp_path}")
    monkeypatch.setattr(sys, "argv", ["samplers", *few, "--searchers", "random", "grid"])
    samplers.main()
    printed = capsys.readouterr().out
    assert "paper-like: until each budget's best is found" in printed
    content = json.loads((tmp_path / "samplers.json").read_text())
    assert set(content["summaries"]["jumpy"]) == {"random", "grid"}
    assert content["first_seed"] == FIRST_SEED
    assert (tmp_path / "samplers.png").read_bytes().startswith(b"\x89PNG")
