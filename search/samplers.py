"""Proposals within one budget: which variant, and which learning rate for it, to try next.

A proposal is a pure function of (sampler, seed, the budget's trials so far). Each one builds an in-memory Optuna
study from the ledger's trials and asks it once, with a seed that depends on how many there are: so a search that was
interrupted goes on as if it had not been, never repeats a suggestion, and nothing but the ledger has to be kept.

The space is define-by-run: the variant first, then the learning rate given the variant (`lr_F1` on Optuna's pages), a
power of the grid's factor. The samplers model the two jointly: what one variant says about a rate is evidence, if
weaker, for its neighbours. With a model for each variant, Optuna's TPE does no better than random search at 10 to 30
trials, for then most variants have no good trial of their own to learn from.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.state import TrialState as Trial

SamplerName = Literal["tpe", "gp", "random", "grid"]
STARTUP_TRIALS: Final = 6  # ended trials before a sampler stops drawing at random

optuna.logging.set_verbosity(optuna.logging.ERROR)


@dataclass(frozen=True, slots=True)
class Point:
    """A variant and a place on the learning-rate grid."""

    variant: str
    learning_rate: float

    @property
    def params(self) -> dict[str, str | float]:
        """The point in the names that Optuna's dashboard shows."""
        return {"variant": self.variant, f"lr_{self.variant}": self.learning_rate}


@dataclass(frozen=True, slots=True)
class Space:
    """The points of one budget: its variants, and the learning-rate grid, rising."""

    variants: tuple[str, ...]
    learning_rates: tuple[float, ...]

    def points(self) -> list[Point]:
        """Every point: from the middle of the learning-rate grid outwards, every variant at each rate."""
        middle = (len(self.learning_rates) - 1) / 2
        order = sorted(range(len(self.learning_rates)), key=lambda k: (abs(k - middle), k))
        return [Point(variant, self.learning_rates[k]) for k in order for variant in self.variants]

    def place(self, learning_rate: float) -> int | None:
        """The index of a rate in the grid, or None if it is not on it."""
        return next((k for k, rate in enumerate(self.learning_rates) if math.isclose(rate, learning_rate)), None)

    def holds(self, trial: Trial) -> bool:
        """Whether a trial is one of the points: its study file may have had other bounds then."""
        return trial.variant in self.variants and self.place(trial.learning_rate) is not None


def propose(
    sampler: SamplerName, space: Space, trials: Sequence[Trial], *, seed: int, worst_loss: float
) -> Point | None:
    """The next point to try, never one that was tried before; None when the whole grid has been.

    `trials` are the budget's trials in the order of suggestion, running ones included. A diverged trial counts with
    the loss of a uniform guess, `worst_loss` (or the worst finished one, if that is higher): so samplers turn away
    from its learning rate. Failed trials say nothing about their point, and trials outside the space nothing at all.
    """
    inside = [trial for trial in trials if space.holds(trial)]
    tried = {(trial.variant, space.place(trial.learning_rate)) for trial in inside}
    untried = [p for p in space.points() if (p.variant, space.place(p.learning_rate)) not in tried]
    if not untried:
        return None
    if sampler == "grid":
        return untried[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        point = _ask(sampler, space, inside, seed=seed * 1_000_003 + len(trials), worst_loss=worst_loss)
    if point in untried:
        return point
    same = [p for p in untried if p.variant == point.variant] or untried
    return min(same, key=lambda p: abs(math.log(p.learning_rate / point.learning_rate)))


def _ask(sampler: SamplerName, space: Space, trials: Sequence[Trial], *, seed: int, worst_loss: float) -> Point:
    study = optuna.create_study(direction="minimize", sampler=_sampler(sampler, seed))
    finished = [trial.heldout_loss for trial in trials if trial.outcome == "finished"]
    penalty = max([worst_loss, *finished])
    study.add_trials([_frozen(space, trial, penalty) for trial in trials])
    asked = study.ask()
    variant = asked.suggest_categorical("variant", space.variants)
    place = asked.suggest_int("lr", 0, len(space.learning_rates) - 1)
    return Point(variant, space.learning_rates[place])


def _frozen(space: Space, trial: Trial, penalty: float) -> FrozenTrial:
    distributions: dict[str, BaseDistribution] = {
        "variant": CategoricalDistribution(space.variants),
        "lr": IntDistribution(0, len(space.learning_rates) - 1),
    }
    params = {"variant": trial.variant, "lr": space.place(trial.learning_rate)}
    match trial.outcome:
        case None:
            state, value = TrialState.RUNNING, None
        case "failed":
            state, value = TrialState.FAIL, None
        case "diverged":
            state, value = TrialState.COMPLETE, penalty
        case "finished":
            state, value = TrialState.COMPLETE, trial.heldout_loss
    return create_trial(state=state, value=value, params=params, distributions=distributions)


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
