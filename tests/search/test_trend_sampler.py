"""`trend` in anybody's Optuna study: the same points as in a search, to the same end."""

from __future__ import annotations

import math
import multiprocessing
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Final, Literal

import optuna
import pytest
from optuna.samplers import TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from search.samplers import propose
from search.space import DOUBT, CellSize, Point, Space
from search.state import TrialState as Known
from search.trend_choice import Choice
from search.trend_sampler import TrendSampler, _Tried, explored
from tests.search.valleys import RATES, Run, Valley, budget

SPACE: Final = budget(3)
VALLEY: Final = Valley(-0.5, worse={"F0": 0.03, "F2": 0.02})


def point_of(trial: Trial, space: Space = SPACE) -> Point:
    """As an objective asks for it."""
    variant = trial.suggest_categorical("variant", space.variants)
    return Point(variant, trial.suggest_float("learning_rate", RATES[0], RATES[-1], log=True))


def loss_of(point: Point, valley: Valley = VALLEY) -> float:
    run = valley.run(point.variant, point.learning_rate)
    if run.outcome == "diverged":
        raise optuna.TrialPruned
    return run.heldout_loss


def objective(trial: Trial) -> float:
    return loss_of(point_of(trial))


def study_of(
    sampler: TrendSampler, storage: BaseStorage | None = None, direction: Literal["minimize", "maximize"] = "minimize"
) -> Study:
    return optuna.create_study(sampler=sampler, storage=storage, direction=direction)


def points(study: Study) -> list[Point]:
    return [Point(trial.params["variant"], trial.params["learning_rate"]) for trial in study.get_trials()]


def known(runs: Sequence[Run]) -> list[Known]:
    """The same trials as a ledger has them."""
    return [
        Known(
            trial_id=f"b-{number:03d}", budget="b", variant=run.variant, epochs=1.0, steps=10,
            learning_rate=run.learning_rate, seed=0, flops=1.0, parameters=1, params={}, suggested_at=0.0,
            outcome=run.outcome, result={"heldout_loss": run.heldout_loss} if run.outcome == "finished" else {},  # type: ignore[arg-type]
        )
        for number, run in enumerate(runs)
    ]  # fmt: skip


def proposed(valley: Valley, *, seed: int = 0, batch_size: int = 4096, doubt: float = DOUBT) -> list[Point]:
    """What a search of the budget tries, to its end."""
    runs: list[Run] = []
    while True:
        point = propose(
            "trend", SPACE, known(runs), seed=seed, worst_loss=9.0, batch_size=batch_size, doubt=doubt
        )  # fmt: skip
        if point is None:
            return [Point(run.variant, run.learning_rate) for run in runs]
        runs.append(valley.run(point.variant, point.learning_rate))


# ---------------------------------------------------------------- to its end


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("valley", [VALLEY, Valley(-2.0, edge=1.5)], ids=["finishes", "diverges"])
def test_a_study_tries_the_points_of_a_search_and_stops_where_it_does(seed: int, valley: Valley) -> None:
    sampler = TrendSampler(SPACE, seed=seed)
    study = study_of(sampler)
    study.optimize(lambda trial: loss_of(point_of(trial), valley), 50, callbacks=[sampler.stop_when_decided])
    assert points(study) == proposed(valley, seed=seed)
    assert 1 < len(study.trials) < 18
    assert sampler.decided(study)


def test_batch_size_and_doubt_are_those_of_a_search() -> None:
    sampler = TrendSampler(SPACE, batch_size=1024, doubt=0.4)
    study = study_of(sampler)
    study.optimize(objective, 50, callbacks=[sampler.stop_when_decided])
    assert points(study) == proposed(VALLEY, batch_size=1024, doubt=0.4) != proposed(VALLEY)


def test_asked_and_told_it_proposes_the_same() -> None:
    study = study_of(TrendSampler(SPACE))
    for point in proposed(VALLEY):
        trial = study.ask()
        assert point_of(trial) == point
        study.tell(trial, loss_of(point))


def test_fixed_distributions_are_filled_in_when_a_trial_is_asked_for() -> None:
    sampler = TrendSampler(SPACE)
    study = study_of(sampler)
    trial = study.ask(sampler.infer_relative_search_space(study, None))  # type: ignore[arg-type]
    assert Point(trial.params["variant"], trial.params["learning_rate"]) == proposed(VALLEY)[0]


def test_the_best_of_the_study_is_the_best_of_the_grid() -> None:
    sampler = TrendSampler(SPACE)
    study = study_of(sampler)
    study.optimize(objective, 50, callbacks=[sampler.stop_when_decided])
    best = min(SPACE.points(), key=lambda point: VALLEY.run(point.variant, point.learning_rate).heldout_loss)
    assert study.best_value <= 1.01 * loss_of(best)


def test_an_interrupted_study_goes_on_as_if_it_had_not_been() -> None:
    study = study_of(TrendSampler(SPACE))
    study.optimize(objective, 3)
    again = study_of(TrendSampler(SPACE))
    again.add_trials(study.get_trials())
    sampler = TrendSampler(SPACE)
    again.sampler = sampler
    again.optimize(objective, 50, callbacks=[sampler.stop_when_decided])
    assert points(again) == proposed(VALLEY)


@pytest.mark.parametrize("rates", [RATES, (0.4,)], ids=["a grid", "one rate"])
@pytest.mark.parametrize("variants", [1, 2])
def test_the_smallest_spaces_are_searched(variants: int, rates: tuple[float, ...]) -> None:
    """Optuna stores a parameter of one value before it asks for the other."""
    space = budget(variants, rates=rates)
    sampler = TrendSampler(space, doubt=0.0)
    study = study_of(sampler)

    def ask(trial: Trial) -> float:
        variant = trial.suggest_categorical("variant", space.variants)
        rate = trial.suggest_float("learning_rate", rates[0], rates[-1], log=True)
        return loss_of(Point(variant, rate))

    study.optimize(ask, 50, callbacks=[sampler.stop_when_decided])
    assert sorted(map(str, points(study))) == sorted(map(str, space.points()))


def test_once_the_grid_is_through_it_draws_from_the_ranges_at_random() -> None:
    study = study_of(TrendSampler(SPACE))
    study.optimize(objective, 20)
    assert set(points(study)[:18]) == set(SPACE.points())
    assert all(RATES[0] <= point.learning_rate <= RATES[-1] for point in points(study)[18:])


# ---------------------------------------------------------------- names, and other parameters


def test_parameters_may_have_names_of_their_own() -> None:
    sampler = TrendSampler(SPACE, variant="model", learning_rate="peak")
    study = study_of(sampler)

    def ask(trial: Trial) -> float:
        model = trial.suggest_categorical("model", SPACE.variants)
        return loss_of(Point(model, trial.suggest_float("peak", RATES[0], RATES[-1], log=True)))

    study.optimize(ask, 50, callbacks=[sampler.stop_when_decided])
    assert [Point(t.params["model"], t.params["peak"]) for t in study.trials] == proposed(VALLEY)
    again = explored(study, SPACE, variant="model", learning_rate="peak")
    assert [trial.heldout_loss for trial in again.trials] == [trial.value for trial in study.trials]


def test_further_parameters_are_drawn_at_random_and_change_nothing_else() -> None:
    sampler = TrendSampler(SPACE, seed=3)
    study = study_of(sampler)

    def ask(trial: Trial) -> float:
        trial.suggest_float("weight_decay", 1e-6, 1e-3, log=True)
        point = point_of(trial)
        trial.suggest_categorical("augmentation", ["none", "flips"])
        return loss_of(point)

    study.optimize(ask, 50, callbacks=[sampler.stop_when_decided])
    assert points(study) == proposed(VALLEY, seed=3)
    assert len({trial.params["weight_decay"] for trial in study.trials}) == len(study.trials)


def test_they_may_be_asked_for_the_other_way_round() -> None:
    sampler = TrendSampler(SPACE)
    study = study_of(sampler)

    def ask(trial: Trial) -> float:
        rate = trial.suggest_float("learning_rate", RATES[0], RATES[-1], log=True)
        return loss_of(Point(trial.suggest_categorical("variant", SPACE.variants), rate))

    study.optimize(ask, 50, callbacks=[sampler.stop_when_decided])
    assert points(study) == proposed(VALLEY)


def test_a_wider_range_is_as_good_as_the_grid_s() -> None:
    study = study_of(TrendSampler(SPACE))
    trial = study.ask()
    trial.suggest_categorical("variant", SPACE.variants)
    assert trial.suggest_float("learning_rate", 1e-6, 1e3, log=True) == proposed(VALLEY)[0].learning_rate


def ask_too_narrow(trial: Trial) -> float:
    return trial.suggest_float("learning_rate", 0.1, 0.15, log=True)


def ask_linear(trial: Trial) -> float:
    return trial.suggest_float("learning_rate", RATES[0], RATES[-1])


def ask_other_variants(trial: Trial) -> str:
    return str(trial.suggest_categorical("variant", [*SPACE.variants, "ViT-S"]))


@pytest.mark.parametrize(
    ("ask", "why"),
    [
        (ask_too_narrow, r"learning_rate was asked for as .*low=0\.1.*allowed: .*high=3\.2"),
        (ask_linear, "log configuration"),  # Optuna's own words
        (ask_other_variants, "value space"),
    ],
)
def test_ranges_that_cannot_take_the_proposal_are_refused(ask: Callable[[Trial], object], why: str) -> None:
    with pytest.raises(ValueError, match=why) as refused:
        ask(study_of(TrendSampler(SPACE)).ask())
    assert "\n" not in str(refused.value)


# ---------------------------------------------------------------- how trials end


def seen(study: Study) -> list[str | None]:
    return [trial.outcome for trial in explored(study, SPACE).trials]


def added(state: TrialState, value: float | None = None, rate: float = 0.4, variant: str = "F0") -> FrozenTrial:
    sampler = TrendSampler(SPACE)
    return create_trial(
        state=state, value=value, params={"variant": variant, "learning_rate": rate},
        distributions=sampler.infer_relative_search_space(study_of(sampler), None),  # type: ignore[arg-type]
    )  # fmt: skip


def test_pruned_and_infinite_trials_diverged_and_others_are_what_they_are() -> None:
    study = study_of(TrendSampler(SPACE))
    study.add_trials(
        [
            added(TrialState.COMPLETE, 3.0), added(TrialState.COMPLETE, math.inf), added(TrialState.PRUNED),
            added(TrialState.FAIL), added(TrialState.RUNNING), create_trial(state=TrialState.WAITING),
        ]
    )  # fmt: skip
    assert seen(study) == ["finished", "diverged", "diverged", "failed", None]
    assert explored(study, SPACE).trials[0].heldout_loss == 3.0


def test_nothing_at_or_above_a_pruned_rate_is_tried_in_its_cell() -> None:
    for end in (added(TrialState.PRUNED, rate=0.8), added(TrialState.COMPLETE, math.inf, rate=0.8)):
        study = study_of(TrendSampler(SPACE))
        study.add_trials([end])
        study.optimize(objective, 12)
        assert all(point.learning_rate < 0.8 for point in points(study)[1:] if point.variant == "F0")


def test_a_failed_trial_is_not_tried_again_and_says_nothing() -> None:
    study = study_of(TrendSampler(SPACE))
    first = proposed(VALLEY)[0]
    study.add_trials([added(TrialState.FAIL, rate=first.learning_rate, variant=first.variant)])
    study.optimize(objective, 17)
    assert len(set(points(study))) == 18


def test_a_trial_that_ended_before_it_had_both_parameters_breaks_nothing() -> None:
    study = study_of(TrendSampler(SPACE))

    def breaks(trial: Trial) -> float:
        trial.suggest_categorical("variant", SPACE.variants)
        raise OSError("disk full")

    study.optimize(breaks, 2, catch=OSError)
    assert "finished" not in seen(study)
    assert point_of(study.ask()) in SPACE.points()


def test_an_objective_that_asks_for_other_names_is_found_out_at_its_first_end() -> None:
    sampler = TrendSampler(SPACE)
    study = study_of(sampler)
    with pytest.raises(
        ValueError, match=r"trial 0 has the parameters lr; allowed: variant and learning_rate;"
    ) as refused:
        study.optimize(
            lambda trial: trial.suggest_float("lr", 0.1, 0.4, log=True), 1, callbacks=[sampler.stop_when_decided]
        )
    assert "\n" not in str(refused.value)


def test_points_that_somebody_else_put_in_count() -> None:
    sampler = TrendSampler(SPACE)
    study = study_of(sampler)
    first = proposed(VALLEY)[0]
    study.enqueue_trial({"variant": first.variant, "learning_rate": first.learning_rate})
    study.optimize(objective, 50, callbacks=[sampler.stop_when_decided])
    assert points(study) == proposed(VALLEY)


# ---------------------------------------------------------------- budget after budget


def test_what_a_smaller_budget_found_leads_the_next() -> None:
    small = budget(3, epochs=1.0)
    study = study_of(TrendSampler(small))
    study.optimize(lambda trial: loss_of(point_of(trial, small), Valley(-2.0)), 12)
    found = explored(study, small)
    assert found.space == small
    assert len(found.trials) == 12
    first = point_of(study_of(TrendSampler(SPACE, smaller=[found])).ask())
    assert first.learning_rate <= 0.2
    assert first.learning_rate < proposed(VALLEY)[0].learning_rate


# ---------------------------------------------------------------- studies it is not for


@pytest.mark.parametrize("use", [lambda study: point_of(study.ask()), lambda study: explored(study, SPACE)])
def test_a_study_that_maximises_or_has_several_objectives_is_refused(use: Callable[[Study], object]) -> None:
    two = optuna.create_study(directions=["minimize", "minimize"], sampler=TrendSampler(SPACE))
    for study in (study_of(TrendSampler(SPACE), direction="maximize"), two):
        with pytest.raises(ValueError, match="MINIMIZE") as refused:
            use(study)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("loss", [0.0, -1.5, -math.inf])
def test_a_loss_that_has_no_logarithm_is_refused(loss: float) -> None:
    study = study_of(TrendSampler(SPACE))
    study.add_trials([added(TrialState.COMPLETE, loss)])
    with pytest.raises(ValueError, match=r"trial 0 has the loss .*allowed: above 0"):
        point_of(study.ask())


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"doubt": -0.1}, "doubt"), ({"doubt": 0.7}, "doubt"), ({"doubt": math.nan}, "doubt"),
        ({"batch_size": 0}, "batch_size"), ({"seed": -1}, "seed"), ({"seed": None}, "seed"),
        ({"worst_loss": 0.0}, "worst_loss"), ({"worst_loss": -1.0}, "worst_loss"),
        ({"worst_loss": math.nan}, "worst_loss"),
        ({"space": Space((), RATES)}, "space"), ({"space": Space(SPACE.cells, ())}, "space"),
        ({"space": Space(SPACE.cells, RATES[::-1])}, "space"), ({"space": Space(SPACE.cells, (0.0, 0.4))}, "space"),
    ],
)  # fmt: skip
def test_arguments_that_cannot_be_are_refused_at_once(given: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}: .*allowed: "):
        TrendSampler(**{"space": SPACE, **given})  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [{"epochs": 0.0}, {"flops_per_image": -1e9}, {"epochs": math.nan}])
def test_a_cell_without_a_size_is_refused_where_it_is_made(given: dict[str, float]) -> None:
    (name,) = given
    with pytest.raises(ValueError, match=f"^{name}: .* given for F0; allowed: above 0$"):
        CellSize(**{"variant": "F0", "epochs": 1.0, "flops_per_image": 1e9, "parameters": 1000, **given})  # type: ignore[arg-type]


# ---------------------------------------------------------------- several workers


def test_trials_that_are_asked_for_together_are_different_points() -> None:
    study = study_of(TrendSampler(SPACE))
    asked = [point_of(study.ask()) for _ in range(18)]
    assert set(asked) == set(SPACE.points())


def test_a_trial_that_has_its_proposal_but_not_yet_its_parameters_is_reckoned_with() -> None:
    study = study_of(TrendSampler(SPACE))
    one, other = study.ask(), study.ask()
    one.suggest_float("weight_decay", 1e-6, 1e-3, log=True)  # its point is proposed with the first that it asks for
    variant = one.suggest_categorical("variant", SPACE.variants)
    second = point_of(other)
    assert Point(variant, one.suggest_float("learning_rate", RATES[0], RATES[-1], log=True)) != second


@pytest.mark.parametrize("jobs", [2, 4])
def test_threads_do_not_repeat_points_and_come_to_an_end(jobs: int) -> None:
    sampler = TrendSampler(SPACE)
    study = study_of(sampler)
    together = threading.Barrier(jobs)

    def ask(trial: Trial) -> float:
        if trial.number < jobs:
            together.wait(60)  # all of them stand before their first point
        return objective(trial)

    study.optimize(ask, 18, n_jobs=jobs, callbacks=[sampler.stop_when_decided])
    assert len(set(points(study))) == len(study.trials) < 18
    assert set(points(study)) <= set(SPACE.points())


class _Meeting(TrendSampler):
    """Chooses for the first time only together with the other process, and then waits until it may go on."""

    def __init__(self, together: Barrier, go_on: Event | None) -> None:
        super().__init__(SPACE)
        self._together, self._go_on, self._met = together, go_on, False

    def _choice(self, trials: Sequence[_Tried]) -> Choice:
        choice = super()._choice(trials)
        if not self._met:
            self._met = True
            self._together.wait(60)
            if self._go_on is not None:
                assert self._go_on.wait(60)
        return choice


_LATE: Final = {"none": None, "the older": 0, "the younger": 1}


def _work(url: str, number: int, together: Barrier, proposed_by: Mapping[str, Sequence[Event]]) -> None:
    for who, late in _LATE.items():
        go_on = proposed_by[who][1 - number] if number == late else None
        study = optuna.load_study(study_name=who, storage=url, sampler=_Meeting(together, go_on))
        point_of(Trial(study, study.trials[number]._trial_id))
        proposed_by[who][number].set()


def test_processes_that_propose_at_the_same_time_take_different_points_whoever_is_late(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/optuna.db"
    studies = [optuna.create_study(study_name=who, storage=url) for who in _LATE]
    for study in studies:
        study.ask()
        study.ask()
    context = multiprocessing.get_context("spawn")
    together, proposed_by = context.Barrier(2), {who: [context.Event(), context.Event()] for who in _LATE}
    workers = [context.Process(target=_work, args=(url, number, together, proposed_by)) for number in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    for study in studies:
        assert len(set(points(study))) == 2
        assert proposed(VALLEY)[0] in points(study)


def test_it_is_not_decided_while_a_trial_runs() -> None:
    sampler = TrendSampler(SPACE)
    study = study_of(sampler)
    study.optimize(objective, 50, callbacks=[sampler.stop_when_decided])
    assert sampler.decided(study)
    asked = study.ask()
    point_of(asked)
    assert not sampler.decided(study)
    study.tell(asked, state=TrialState.FAIL)
    assert sampler.decided(study)


# ---------------------------------------------------------------- storages


@pytest.fixture(params=["rdb", "journal"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> BaseStorage:
    if request.param == "rdb":
        return RDBStorage(f"sqlite:///{tmp_path}/optuna.db")
    return JournalStorage(JournalFileBackend(str(tmp_path / "journal.log")))


def test_a_study_that_is_stored_tries_the_same_points(storage: BaseStorage) -> None:
    sampler = TrendSampler(SPACE)
    study = study_of(sampler, storage)
    study.optimize(objective, 50, callbacks=[sampler.stop_when_decided])
    assert points(study) == proposed(VALLEY)


def test_a_stored_study_is_gone_on_with_by_another_process(storage: BaseStorage) -> None:
    study = study_of(TrendSampler(SPACE), storage)
    study.optimize(objective, 3)
    asked = point_of(study.ask())  # runs still
    sampler = TrendSampler(SPACE)
    again = optuna.load_study(study_name=study.study_name, storage=storage, sampler=sampler)
    again.optimize(objective, 50, callbacks=[sampler.stop_when_decided])
    assert points(again)[:4] == proposed(VALLEY)[:4]
    assert points(again).count(asked) == 1


def test_it_takes_over_a_study_of_another_sampler() -> None:
    study = optuna.create_study(sampler=TPESampler(seed=0))
    study.optimize(objective, 6)
    sampler = TrendSampler(SPACE)
    study.sampler = sampler
    study.optimize(objective, 50, callbacks=[sampler.stop_when_decided])
    assert set(points(study)[6:]) <= set(SPACE.points())
    assert len(study.trials) < 56
