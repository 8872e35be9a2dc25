"""Optuna's storage, a view of the ledger for Optuna's dashboard: one Optuna study per budget, "<study>/<run>/<budget>".

Nothing is read back from it: proposals are made from the ledger. A trial is RUNNING from its suggestion on, then
COMPLETE with its held-out loss, PRUNED if it diverged, or FAIL. One background thread writes, so that no commit holds
the search up.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages._rdb.models import TrialModel
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import update

from search.feeder import Feeder
from search.ledger import Record
from search.state import BudgetState, StudyState
from search.state import TrialState as Trial

TRIAL_ATTRIBUTE: Final = "convscale_trial"
_STATES: Final = {None: TrialState.RUNNING, "diverged": TrialState.PRUNED, "failed": TrialState.FAIL}


class OptunaView:
    """Keeps an Optuna storage up with the ledger. Feed it the ledger from its first record, always.

    `path_or_url` is a file for SQLite, or a database address. `learning_rates` are the bounds of the search, for the
    dashboard's axes. A storage that cannot be written is said once through `say` (a line) and tried again; `rebuild`
    mends it at any time.
    """

    def __init__(
        self,
        path_or_url: str | Path,
        *,
        learning_rates: tuple[float, float] = (1e-4, 1e2),
        say: Callable[[str], None] = lambda line: None,
        linger_s: float = 0.5,
    ) -> None:
        self.url = _url(path_or_url)
        self._mirror = _Mirror(self.url, learning_rates)
        self._say, self._next_seq = say, 0
        self._feeder: Feeder[Record] = Feeder(
            "optuna-view", self._mirror.deliver, on_error=self._failed, linger_s=linger_s
        )

    def feed(self, record: Record) -> None:
        """Queue one event; returns at once. One that was fed before is passed over; ValueError if one is left out."""
        if record.seq > self._next_seq:
            raise ValueError(
                f"event {record.seq} was fed after event {self._next_seq - 1}; feed the ledger from its first event"
            )
        if record.seq == self._next_seq:
            self._next_seq += 1
            self._feeder.put(record)

    def close(self, timeout_s: float) -> int:
        """Write what waits, for `timeout_s` at most; returns how many events are not written."""
        return self._feeder.close(timeout_s)

    def _failed(self, error: Exception) -> None:
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        self._say(f"Optuna's storage {self.url} cannot be written ({what}); the search goes on without it")


def rebuild(
    records: Sequence[Record], path_or_url: str | Path, *, learning_rates: tuple[float, float] = (1e-4, 1e2)
) -> None:
    """Write the view anew from a ledger: its Optuna studies are deleted and made again, no others."""
    mirror = _Mirror(_url(path_or_url), learning_rates)
    mirror.forget(records)
    mirror.deliver(records)


class _Mirror:
    """Writes what the ledger says. `deliver` is idempotent; after an exception it looks at the storage anew."""

    def __init__(self, url: str, learning_rates: tuple[float, float]) -> None:
        self._url, self._learning_rates = url, learning_rates
        self._state = StudyState()
        self._next_seq = 0
        self._started_at: dict[str, float] = {}
        self._ended_at: dict[str, float] = {}
        self._reopened: set[str] = set()
        self._changed: dict[str, None] = {}  # trial ids, in order
        self._storage: optuna.storages.RDBStorage | None = None
        self._study_ids: dict[str, int] = {}
        self._known: dict[str, tuple[int, TrialState]] = {}

    def deliver(self, records: Iterable[Record]) -> None:
        for record in records:
            if record.seq >= self._next_seq:
                self._next_seq = record.seq + 1
                self._state.apply(record)
                if record.event == "budget_opened":
                    self._study_ids.pop(record["budget"], None)  # looked at anew: its variants may be others
                if record.event in ("trial_suggested", "trial_started", "trial_ended", "trial_reopened"):
                    self._changed[record["trial"]] = None
                if record.event == "trial_started":
                    self._started_at.setdefault(record["trial"], record.time)
                if record.event == "trial_ended":
                    self._ended_at[record["trial"]] = record.time
                if record.event == "trial_reopened":
                    self._ended_at.pop(record["trial"], None)
                    self._reopened.add(record["trial"])
        try:
            for label in self._state.budgets:
                self._study_id(label)
            for trial_id in list(self._changed):
                self._write(self._state.trials[trial_id])
                del self._changed[trial_id]
        except Exception:
            self._storage = None
            raise

    def forget(self, records: Iterable[Record]) -> None:
        """Delete the Optuna studies of this ledger's budgets."""
        state, storage = StudyState.of(records), self._connected()
        names = {_name(state, label) for label in state.budgets}
        for study in storage.get_all_studies():
            if study.study_name in names:
                storage.delete_study(study._study_id)
        self._storage = None

    def _connected(self) -> optuna.storages.RDBStorage:
        if self._storage is None:
            optuna.logging.set_verbosity(optuna.logging.ERROR)
            logging.getLogger("alembic").setLevel(logging.WARNING)
            self._study_ids, self._known = {}, {}
            self._storage = optuna.storages.RDBStorage(self._url)
        return self._storage

    def _study_id(self, label: str) -> int:
        storage = self._connected()
        if label not in self._study_ids:
            budget = self._state.budgets[label]
            try:
                found = storage.get_study_id_from_name(_name(self._state, label))
            except KeyError:
                found = self._new_study(budget)
            trials = storage.get_all_trials(found, deepcopy=False)
            if _outgrown(trials, budget):
                storage.delete_study(found)
                found, trials = self._new_study(budget), []
                for ours in budget.trials:
                    self._known.pop(ours.trial_id, None)
                self._changed = dict.fromkeys(ours.trial_id for ours in budget.trials) | self._changed
            for trial in trials:
                if (trial_id := trial.user_attrs.get(TRIAL_ATTRIBUTE)) is not None:
                    self._known[trial_id] = (trial._trial_id, trial.state)
            self._study_ids[label] = found
        return self._study_ids[label]

    def _new_study(self, budget: BudgetState) -> int:
        storage = self._connected()
        made = storage.create_new_study([StudyDirection.MINIMIZE], _name(self._state, budget.label))
        for key, value in (("budget", budget.label), ("budget_flops", budget.flops)):
            storage.set_study_user_attr(made, key, value)
        return made

    def _write(self, trial: Trial) -> None:
        study_id, storage = self._study_id(trial.budget), self._connected()
        state, value = _state_and_value(trial)
        known = self._known.get(trial.trial_id)
        if known is None:
            template = self._template(trial, state, value)
            self._known[trial.trial_id] = (storage.create_new_trial(study_id, template), state)
            return
        optuna_id, before = known
        if before == TrialState.FAIL and trial.trial_id in self._reopened and state != before:
            before = self._overwrite(optuna_id, trial, state=TrialState.RUNNING)
            for key in ("outcome", "reason"):
                storage.set_trial_user_attr(optuna_id, key, None)
        if not before.is_finished():
            if state.is_finished():
                for key, attribute in _attributes(trial).items():
                    storage.set_trial_user_attr(optuna_id, key, attribute)
                storage.set_trial_state_values(optuna_id, state, None if value is None else [value])
            before = self._overwrite(optuna_id, trial, state=state)
        self._known[trial.trial_id] = (optuna_id, before)

    def _times(self, trial: Trial) -> tuple[datetime, datetime | None]:
        """When the ledger says that a trial began (its suggestion, until it has started) and ended."""
        ended = self._ended_at.get(trial.trial_id)
        began = self._started_at.get(trial.trial_id, trial.suggested_at)
        return datetime.fromtimestamp(began), None if ended is None else datetime.fromtimestamp(ended)

    def _overwrite(self, optuna_id: int, trial: Trial, *, state: TrialState) -> TrialState:
        """Set what Optuna has no call for: times other than that of writing, and an end that is taken back."""
        began, ended = self._times(trial)
        row = update(TrialModel).where(TrialModel.trial_id == optuna_id)
        with self._connected().engine.begin() as connection:
            connection.execute(row.values(state=state, datetime_start=began, datetime_complete=ended))
        return state

    def _template(self, trial: Trial, state: TrialState, value: float | None) -> FrozenTrial:
        began, ended = self._times(trial)
        distributions = {
            name: self._distribution(param, self._state.budgets[trial.budget]) for name, param in trial.params.items()
        }
        return FrozenTrial(
            number=-1,
            trial_id=-1,
            state=state,
            value=value,
            params=trial.params,
            distributions=distributions,
            user_attrs=_attributes(trial),
            system_attrs={},
            intermediate_values={},
            datetime_start=began,
            datetime_complete=ended,
        )

    def _distribution(self, param: Any, budget: BudgetState) -> BaseDistribution:
        """Variants are choices; all else is a learning rate."""
        if isinstance(param, str):
            return CategoricalDistribution(_choices(budget))
        low, high = self._learning_rates
        return FloatDistribution(min(low, param), max(high, param), log=True)


def _url(path_or_url: str | Path) -> str:
    return str(path_or_url) if "://" in str(path_or_url) else f"sqlite:///{Path(path_or_url).absolute()}"


def _name(state: StudyState, label: str) -> str:
    return f"{state.opened['study']}/{state.opened['run']}/{label}"


def _choices(budget: BudgetState) -> list[str]:
    return [cell["variant"] for cell in budget.cells]


def _outgrown(trials: Iterable[FrozenTrial], budget: BudgetState) -> bool:
    """Whether the budget has got other variants since these trials were written: Optuna takes no new choices then."""
    written = [distribution for trial in trials for distribution in trial.distributions.values()]
    choices = CategoricalDistribution(_choices(budget))
    return any(isinstance(known, CategoricalDistribution) and known != choices for known in written)


def _state_and_value(trial: Trial) -> tuple[TrialState, float | None]:
    if trial.outcome != "finished":
        return _STATES[trial.outcome], None
    loss = trial.heldout_loss
    return (TrialState.COMPLETE, loss) if math.isfinite(loss) else (TrialState.FAIL, None)


def _attributes(trial: Trial) -> dict[str, Any]:
    """What the dashboard shows beside a trial's parameters; numbers that are not known (yet) are left out."""
    known: dict[str, Any] = {
        TRIAL_ATTRIBUTE: trial.trial_id,
        "variant": trial.variant,
        "epochs": trial.epochs,
        "steps": trial.steps,
        "learning_rate": trial.learning_rate,
        "seed": trial.seed,
        "parameters": trial.parameters,
        "flops": trial.flops,
        "outcome": trial.outcome,
        "heldout_accuracy": trial.result.get("heldout_accuracy"),
        "core_hours": trial.meter.get("core_hours"),
        "reason": trial.result.get("error") or trial.result.get("reason"),
    }
    finite = {k: v for k, v in known.items() if not isinstance(v, float) or math.isfinite(v)}
    return {key: value for key, value in finite.items() if value is not None}
