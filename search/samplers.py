"""Proposals within one budget: which variant, and which learning rate for it, to try next.

A proposal is a pure function of the sampler, its seed, and the trials so far (of this budget; `trend` looks at the
smaller ones, too): so a search that was interrupted goes on as if it had not been, never repeats a suggestion, and
nothing but the ledger has to be kept. `trend` is `search.trend_choice`. For Optuna's own samplers each proposal builds
an in-memory Optuna study from the ledger's trials and asks it once, with a seed that depends on how many there are.

Their space is define-by-run: the variant first, then the learning rate given the variant (`lr_F1` on Optuna's pages), a
power of the grid's factor. The samplers model the two jointly: what one variant says about a rate is evidence, if
weaker, for its neighbours. With a model for each variant, Optuna's TPE does no better than random search at 10 to 30
trials, for then most variants have no good trial of their own to learn from.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.space import DOUBT, Explored, Point, Space
from search.state import TrialState as Trial
from search.trend_choice import choose

SamplerName = Literal["trend", "tpe", "gp", "random", "grid"]
STARTUP_TRIALS: Final = 6  # ended trials before a sampler stops drawing at random

optuna.logging.set_verbosity(optuna.logging.ERROR)


def propose(
    sampler: SamplerName,
    space: Space,
    trials: Sequence[Trial],
    *,
    seed: int,
    worst_loss: float,
    smaller: Sequence[Explored] = (),
    batch_size: int = 4096,
    doubt: float = DOUBT,
    costs: Mapping[str, float] | None = None,
) -> Point | None:
    """The next point to try, never one that was tried before; None when the whole grid has been.

    Of `trend` it is None too when the budget is decided by what has ended, or may be by what is running; the others
    know no end. Only `trend` looks at `smaller` budgets (cheapest first), at the batch size (examples of a step), and
    at `doubt`: the chance of being wrong at which it is content, see `search.trend_choice.Choice`. With `costs` (of
    each variant) they look for the Pareto front of loss and cost instead of the lowest loss.

    `trials` are the budget's trials in the order of suggestion, running ones included. A diverged trial counts with
    the loss of a uniform guess, `worst_loss` (or the worst finished one, if that is higher): so samplers turn away
    from its learning rate. Failed trials say nothing about their point, and trials of other variants nothing at all; of
    those off the grid `trend` learns, the others do not.
    """
    if sampler == "trend":
        of_cells = None if costs is None else [costs[variant] for variant in space.variants]
        choice = choose(space, trials, smaller, batch_size=batch_size, seed=seed, costs=of_cells, worst_loss=worst_loss)
        return None if choice.decides(doubt) else choice.point
    inside = [trial for trial in trials if space.holds(trial)]
    tried = {(trial.variant, space.place(trial.learning_rate)) for trial in inside}
    untried = [p for p in space.points() if (p.variant, space.place(p.learning_rate)) not in tried]
    if not untried:
        return None
    if sampler == "grid":
        return untried[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        point = _ask(sampler, space, inside, seed=seed * 1_000_003 + len(trials), worst_loss=worst_loss, costs=costs)
    if point in untried:
        return point
    same = [p for p in untried if p.variant == point.variant] or untried
    return min(same, key=lambda p: abs(math.log(p.learning_rate / point.learning_rate)))


def _ask(
    sampler: SamplerName,
    space: Space,
    trials: Sequence[Trial],
    *,
    seed: int,
    worst_loss: float,
    costs: Mapping[str, float] | None,
) -> Point:
    study = optuna.create_study(directions=["minimize"] * (1 if costs is None else 2), sampler=_sampler(sampler, seed))
    finished = [trial.heldout_loss for trial in trials if trial.outcome == "finished"]
    penalty = max([worst_loss, *finished])
    study.add_trials([_frozen(space, trial, penalty, costs) for trial in trials])
    asked = study.ask()
    variant = asked.suggest_categorical("variant", space.variants)
    place = asked.suggest_int("lr", 0, len(space.learning_rates) - 1)
    return Point(variant, space.learning_rates[place])


def _frozen(space: Space, trial: Trial, penalty: float, costs: Mapping[str, float] | None) -> FrozenTrial:
    distributions: dict[str, BaseDistribution] = {
        "variant": CategoricalDistribution(space.variants),
        "lr": IntDistribution(0, len(space.learning_rates) - 1),
    }
    params = {"variant": trial.variant, "lr": space.place(trial.learning_rate)}
    cost = [] if costs is None else [costs[trial.variant]]
    values: list[float] | None
    match trial.outcome:
        case None:
            state, values = TrialState.RUNNING, None
        case "failed":
            state, values = TrialState.FAIL, None
        case "diverged":
            state, values = TrialState.COMPLETE, [penalty, *cost]
        case "finished":
            state, values = TrialState.COMPLETE, [trial.heldout_loss, *cost]
    return create_trial(state=state, values=values, params=params, distributions=distributions)


def _sampler(name: SamplerName, seed: int) -> BaseSampler:
    seed %= 2**32
    match name:
        case "tpe":
            return TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS, multivariate=True, constant_liar=True)
        case "gp":
            return GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
        case "random":
            return RandomSampler(seed=seed)
        case _:
            raise AssertionError(f"{name} is not an Optuna sampler")
