"""Trials of one or several studies side by side, from what MLflow holds of them: by budget, best first, with what
differs between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Final

from search.tracked_page import ALL_TRIALS, VIEW_PREFIX
from search.tracked_runs import COMMON_TAGS
from search.tracking_server import FoundExperiment, FoundRun
from search.units import parse_quantity, same_amount

SETTINGS: Final = ("study", "run", "variant", "epochs", "learning_rate", "seed", "batch_size", "steps", "parameters",
                   "flops")  # fmt: skip
RESULTS: Final = ("heldout_loss", "heldout_accuracy", "ema_heldout_loss", "core_hours", "core_hours_total", "goodput",
                  "mean_images_per_second", "mfu", "final_train_loss", "skipped_images")  # fmt: skip
_IN_CELL: Final = ("steps", "parameters", "flops")  # the variant and the epochs say as much
# A study's settings that its trials have themselves, or that say only which trials there are.
_OF_THE_SEARCH: Final = frozenset({"training.batch_size", "training.seed", "learning_rate.base", "learning_rate.factor",
                                   "epochs.grid"})  # fmt: skip
_FOR_CHARTS: Final = ("budget", "budget_flops", "log10_learning_rate", "log10_flops")


class CompareError(ValueError):
    """What was asked cannot be compared; the message is one line that says why and how to mend it."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial as MLflow has it.

    `settings` is all that it was given, as text: first `SETTINGS`, then what holds for its whole study. `results` are
    the last values of its metrics (losses in nats per image). `outcome` is finished, diverged, failed or unfinished.
    `point_losses` are the held-out losses of all finished trials of its study's run, its budget, its variant and its
    learning rate: those that differ in the seed alone. `point_diverged` is how many of those diverged.
    """

    trial_id: str
    run_id: str
    budget: str
    budget_flops: float
    outcome: str
    settings: Mapping[str, str]
    results: Mapping[str, float]
    point_losses: tuple[float, ...] = ()
    point_diverged: int = 0

    @property
    def heldout_loss(self) -> float:
        """NaN unless the trial has finished."""
        return self.results.get("heldout_loss", math.nan) if self.outcome == "finished" else math.nan

    @property
    def mean_loss(self) -> float:
        """The mean held-out loss over the seeds of its point; NaN unless the trial has finished."""
        if math.isnan(self.heldout_loss) or not self.point_losses:
            return self.heldout_loss
        return fmean(self.point_losses)

    @property
    def seeds(self) -> int:
        """How many seeds of its point have finished; of a point where none has, 0."""
        return len(self.point_losses) or int(not math.isnan(self.heldout_loss))


@dataclass(frozen=True, slots=True)
class Comparison:
    """The trials of one budget, best first: those to show, and how many there are in all.

    The best has the lowest mean held-out loss over the seeds of its point; of those it is the one with the lowest loss.
    Points that diverged with some seed come after those that did not, as in `search.points`.
    """

    labels: tuple[str, ...]
    flops: float
    trials: tuple[Trial, ...]
    total: int

    @property
    def best_loss(self) -> float:
        """Held-out loss of the best, the mean over seeds where there are several, or NaN."""
        return self.trials[0].mean_loss if self.trials else math.nan

    def gap(self, trial: Trial) -> float:
        """How much higher a trial's held-out loss, the mean over its seeds, is than that of the best (nats per image);
        below zero only where another seed diverged.
        """
        return trial.mean_loss - self.best_loss

    @property
    def differing(self) -> list[str]:
        """The settings that the trials shown differ in; those that follow from others only if those do not differ."""
        names = list(dict.fromkeys(name for trial in self.trials for name in trial.settings))
        differ = [name for name in names if len({trial.settings.get(name) for trial in self.trials}) > 1]
        told = {"variant", "epochs"} & set(differ)
        return [name for name in differ if not (told and name in _IN_CELL)]

    @property
    def alike(self) -> dict[str, str]:
        """The main settings that the trials shown have in common."""
        first = self.trials[0].settings if self.trials else {}
        return {
            name: first[name]
            for name in SETTINGS
            if name not in _IN_CELL and name in first and all(t.settings.get(name) == first[name] for t in self.trials)
        }


def newest_ledger(experiment: FoundExperiment) -> str | None:
    """The ledger whose study began last, of those an experiment holds, or (where all the studies' own runs have been
    deleted) of which a run began last; None if it holds none.
    """
    ours = _ours(experiment)
    studies = [run for run in ours if _tag(run, "kind") == "study"] or ours
    return studies[-1].tags["convscale.ledger"] if studies else None


def trials_of(experiment: FoundExperiment, ledgers: Iterable[str] | None) -> list[Trial]:
    """The trials of these ledgers (None: of all), with the settings of their studies."""
    wanted = None if ledgers is None else set(ledgers)
    runs = [run for run in _ours(experiment) if wanted is None or run.tags["convscale.ledger"] in wanted]
    studies = {run.tags["convscale.ledger"]: run.params for run in runs if _tag(run, "kind") == "study"}
    budgets = {
        (run.tags["convscale.ledger"], _tag(run, "budget")): run.params["budget_flops"]
        for run in runs
        if _tag(run, "kind") == "budget"
    }
    trials = [
        (run, _trial(run, studies.get(run.tags["convscale.ledger"], {}), budgets))
        for run in runs
        if _tag(run, "kind") == "trial"
    ]
    alike: dict[tuple[str, ...], list[Trial]] = {}
    for run, trial in trials:
        alike.setdefault(_point(run, trial), []).append(trial)
    return [_with_seeds(trial, alike[_point(run, trial)]) for run, trial in trials]


def _with_seeds(trial: Trial, seeds: Sequence[Trial]) -> Trial:
    losses = tuple(each.heldout_loss for each in seeds if not math.isnan(each.heldout_loss))
    return replace(trial, point_losses=losses, point_diverged=sum(each.outcome == "diverged" for each in seeds))


def _ours(experiment: FoundExperiment) -> list[FoundRun]:
    """The runs that are of a study: people may have made more, with tags of their own."""
    return [run for run in experiment.runs if "convscale.ledger" in run.tags]


def _point(run: FoundRun, trial: Trial) -> tuple[str, ...]:
    """What trials that differ in the seed alone have in common."""
    settings = trial.settings
    ledger = run.tags["convscale.ledger"]
    return ledger, trial.budget, settings.get("variant", ""), settings.get("learning_rate", "")


def _tag(run: FoundRun, name: str) -> str:
    """A tag as it is named now, or as early versions named it."""
    return run.tags.get(name, run.tags.get(f"convscale.{name}", ""))


def _trial(run: FoundRun, study: Mapping[str, str], budgets: Mapping[tuple[str, str], str]) -> Trial:
    given = {"study": _tag(run, "study"), "run": _tag(run, "run"), **run.params}
    ours: dict[str, str] = {name: given[name] for name in SETTINGS if name in given}
    others = {name: value for name, value in given.items() if name not in (*SETTINGS, *_FOR_CHARTS)}
    common = {name: value for name in COMMON_TAGS if (value := _tag(run, name))}
    label = _tag(run, "budget")
    flops = run.tags.get("convscale.budget_flops", run.params.get("budget_flops"))
    if flops is None:
        flops = budgets.get((run.tags["convscale.ledger"], label), "nan")
    outcome = _tag(run, "outcome") or "unfinished"
    whole = {name: value for name, value in study.items() if name not in _OF_THE_SEARCH}
    settings: dict[str, str] = {**ours, **others, **common, **whole}
    return Trial(_tag(run, "trial"), run.run_id, label, float(flops), outcome, settings, run.metrics)


def _rank(trial: Trial) -> tuple[bool, bool, float, float, str, str]:
    missing = math.isnan(trial.heldout_loss)
    losses = (0.0, 0.0) if missing else (trial.mean_loss, trial.heldout_loss)
    return missing, trial.point_diverged > 0, *losses, trial.outcome, trial.trial_id


def compare(trials: Sequence[Trial], *, top: int | None = None) -> list[Comparison]:
    """A comparison for each budget, the smallest first. Budgets are the same if their FLOPs are, however they are
    written. `top`: show so many of each.
    """
    groups: list[list[Trial]] = []
    for trial in sorted(trials, key=lambda trial: trial.budget_flops):
        if groups and same_amount(groups[-1][0].budget_flops, trial.budget_flops):
            groups[-1].append(trial)
        else:
            groups.append([trial])
    return [
        Comparison(
            tuple(dict.fromkeys(trial.budget for trial in group)),
            group[0].budget_flops,
            tuple(sorted(group, key=_rank)[:top]),
            len(group),
        )
        for group in groups
    ]


def choose(comparisons: Sequence[Comparison], budgets: Sequence[str]) -> list[Comparison]:
    """Those of these budgets: by what a study calls one, or by its FLOPs in any spelling; all, if none is named.

    Raises `CompareError`: one that is not there, with those that are.
    """
    chosen: list[Comparison] = []
    for text in budgets:
        found = next((comparison for comparison in comparisons if _is_meant(text)(comparison)), None)
        if found is None:
            there = ", ".join(f'"{label}"' for comparison in comparisons for label in comparison.labels) or "none yet"
            raise CompareError(f"--budget: {text!r} given; allowed: the budgets that have trials ({there})")
        if found not in chosen:
            chosen.append(found)
    return sorted(chosen, key=lambda comparison: comparison.flops) if budgets else list(comparisons)


def _is_meant(text: str) -> Callable[[Comparison], bool]:
    try:
        quantity = parse_quantity(text)
    except ValueError as error:
        raise CompareError(f"--budget: {text!r} given; {error}") from None
    flops = quantity.amount if quantity.unit == "FLOPs" else math.nan
    return lambda comparison: quantity.label in comparison.labels or same_amount(flops, comparison.flops)


def view_of(experiment: FoundExperiment) -> str | None:
    """The view of its trials that an experiment's page has, if it has it still."""
    return ALL_TRIALS if VIEW_PREFIX + ALL_TRIALS in experiment.tags else None
