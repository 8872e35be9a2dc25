"""The director: which trial runs next, and what becomes of the trials' events. It knows no Ray.

It turns the ledger into suggestions and events into ledger records: every record is durable before the director acts
on it. A search that was interrupted goes on from its ledger: trials in flight are handed out again under their own
name (their checkpoints say from which step), ended ones never.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from search.budgets import Budget, Cell
from search.ledger import Ledger, Record
from search.memory import memory_by_variant
from search.repeats import next_repeat
from search.samplers import propose
from search.second_objective import costs_of
from search.space import CellSize, Point, Space, ended
from search.state import BudgetState, StudyState
from search.state import TrialState as Trial
from search.study import Study


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A trial to run: its config as JSON values, and the `{"step", "meter"}` that it last reported in an earlier
    session (None if it did not).
    """

    trial: str
    config: dict[str, Any]
    attempt: int
    previous: dict[str, Any] | None


class FailuresError(RuntimeError):
    """Trial after trial failed, so that the next would fail too; the message is one line."""


class Finished:
    """What `suggest` answers when the study has nothing left to suggest."""


FINISHED: Final = Finished()
FAILURES_IN_A_ROW: Final = 3


def space_of(study: Study, budget: Budget) -> Space:
    """What a budget's trials are chosen from."""
    cells = (CellSize(cell.variant, cell.epochs, cell.flops_per_image, cell.parameters) for cell in budget.cells)
    return Space(tuple(cells), study.learning_rates)


@dataclass(slots=True)
class Director:
    """One search of one study. `listen` is called with every record after it is durable (for the views: they must not
    block); `foretell` says of a budget, before its first trial, what is expected of it, as JSON values.
    """

    study: Study
    budgets: Sequence[Budget]
    classes: int
    folder: str
    ledger: Ledger
    slices: int
    listen: Callable[[Record], None]
    foretell: Callable[[StudyState, Budget], dict[str, Any] | None] | None = None
    interrupted: bool = False
    state: StudyState = field(init=False)
    _resumed: list[str] = field(init=False)
    _in_flight: dict[str, float] = field(init=False, default_factory=dict)
    _exhausted: set[str] = field(init=False, default_factory=set)
    _failures: int = field(init=False, default=0)
    _ended: int = field(init=False, default=0)
    _without: dict[str, tuple[int, int]] = field(init=False, default_factory=dict)
    _seen: dict[str, int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.state = StudyState.of(self.ledger.records)
        self.budgets = self.state.named(self.budgets)
        cells = self._cells()
        open_trials = [trial for trial in self.state.trials.values() if trial.outcome is None]
        self._resumed = [trial.trial_id for trial in open_trials if (trial.budget, trial.variant) in cells]

    def write(self, event: str, **fields: Any) -> Record:
        """Append to the ledger, then to the state, then tell the listeners."""
        record = self.ledger.append(event, **fields)
        self.state.apply(record)
        self.listen(record)
        return record

    @property
    def done(self) -> bool:
        """Whether every budget has all of its trials, ended."""
        return self.state.covers(self.budgets)

    def reopen_failed(self) -> None:
        """Have every failed trial tried again, from its checkpoint where it has one."""
        for trial in list(self.state.trials.values()):
            if trial.outcome == "failed" and (trial.budget, trial.variant) in self._cells():
                self.write("trial_reopened", trial=trial.trial_id)
                self._resumed.append(trial.trial_id)

    def _cells(self) -> set[tuple[str, str]]:
        return {(budget.label, cell.variant) for budget in self.budgets for cell in budget.cells}

    # ---------------------------------------------------------------- suggestions

    def suggest(self) -> Suggestion | Finished | None:
        """The next trial to run; None when all slices are busy; `FINISHED` when there is nothing more to start.

        Budgets are taken in the order of their size. A slice that would stand idle while the last trials of a budget
        end, or those that the sampler waits for, starts on the next budget.
        """
        if self.interrupted:
            return FINISHED
        if len(self._in_flight) >= self.slices:
            return None
        trial = self.state.trials[self._resumed.pop(0)] if self._resumed else next(self._new_trials(), None)
        if trial is None:
            return None if self._undecided() else FINISHED
        self._in_flight[trial.trial_id] = time.time()
        return self._suggestion(trial)

    def _new_trials(self) -> Iterator[Trial]:
        for budget in self.budgets:
            known = self.state.budgets.get(budget.label)
            if known is None or not known.opened_as(budget):
                known = self._open(budget)
            elif known.closed:  # by what it had then: what was found since does not open it again
                continue
            self._foretell(budget, known)
            while budget.label not in self._exhausted:
                seen = (len(self.state.trials), self._ended)
                if self._without.get(budget.label) == seen:  # it was asked, and nothing has happened since
                    break
                if (run := self._next_run(budget, known)) is not None:
                    yield self._record_suggestion(budget, known, *run)
                elif known.ended or not self._waits(budget, known):
                    self._exhausted.add(budget.label)
                else:
                    self._without[budget.label] = seen
            else:
                self._close_if_done(known)

    def _next_run(self, budget: Budget, known: BudgetState) -> tuple[Point, int] | None:
        """A point that was not tried, with the study's seed; when there are no more, a further seed of a best one."""
        first = self.study.training.seed
        if self._tried(budget, known) < budget.trials and (point := self._propose(budget, known)) is not None:
            return point, first
        if any(trial.outcome is None and trial.seed == first for trial in known.trials_counted):
            return None
        space = space_of(self.study, budget)
        further = [trial for trial in known.trials[known.trials_before :] if trial.seed != first and space.holds(trial)]
        if sum(ended(trial) in (None, "finished") for trial in further) >= budget.further_runs:
            return None
        return next_repeat(space, known.trials, range(first, first + budget.seeds))

    def _waits(self, budget: Budget, known: BudgetState) -> bool:
        """Whether the ends of running trials may call for more: the sampler's, or further seeds."""
        return self._tried(budget, known) < budget.trials or budget.seeds > 1

    def _undecided(self) -> bool:
        """Whether there may be more trials of some budget once those that run have ended."""
        known = [(budget, self.state.budgets.get(budget.label)) for budget in self.budgets]
        return any(
            here is not None and not here.closed and budget.label not in self._exhausted for budget, here in known
        )

    def _tried(self, budget: Budget, known: BudgetState) -> int:
        """Points that were tried, of those that the study still has."""
        space = space_of(self.study, budget)
        return len({(trial.variant, space.place(trial.learning_rate)) for trial in known.trials if space.holds(trial)})

    def _open(self, budget: Budget) -> BudgetState:
        cells: list[dict[str, Any]] = [
            {
                "variant": cell.variant,
                "epochs": cell.epochs,
                "steps": cell.steps,
                "flops_per_image": cell.flops_per_image,
                "parameters": cell.parameters,
            }
            for cell in budget.cells
        ]
        if budget.second_objective == "memory":
            device, variants = self.state.opened.get("device", "cpu"), [cell.variant for cell in budget.cells]
            memory = memory_by_variant(self.study, self.classes, device, variants)
            cells = [cell | {"memory": memory[cell["variant"]]} for cell in cells]
        self.write(
            "budget_opened",
            budget=budget.label,
            index=budget.index,
            flops=budget.flops,
            trials=budget.trials,
            seeds=budget.seeds,
            doubt=budget.doubt,
            second_objective=budget.second_objective,
            learning_rates=budget.learning_rates,
            cells=cells,
        )
        return self.state.budgets[budget.label]

    def _foretell(self, budget: Budget, known: BudgetState) -> None:
        """Write what is expected of a budget that has neither a forecast nor a trial."""
        if self.foretell is None or known.forecast is not None or known.trials:
            return
        if (expected := self.foretell(self.state, budget)) is not None:
            self.write("forecast_made", budget=budget.label, forecast=expected)

    def _propose(self, budget: Budget, known: BudgetState) -> Point | None:
        space, second = space_of(self.study, budget), budget.second_objective
        # the seed follows the budget's own size, so that adding a budget to a study changes no other one's suggestions
        seed = self.study.search.seed * 1009 + round(math.log2(budget.flops) * 1000)
        return propose(
            self.study.search.sampler,
            space,
            known.trials,
            seed=seed,
            worst_loss=math.log(self.classes),
            smaller=self.state.explored_below(budget.flops, self.study.learning_rates),
            batch_size=self.study.training.batch_size,
            doubt=budget.doubt,
            costs=None if second is None else costs_of(second, self.state, known),
        )

    def _record_suggestion(self, budget: Budget, known: BudgetState, point: Point, seed: int) -> Trial:
        cell = budget.cell(point.variant)
        trial = f"{budget.slug}-{len(known.trials):03d}"
        self.write(
            "trial_suggested",
            trial=trial,
            budget=budget.label,
            variant=point.variant,
            epochs=cell.epochs,
            steps=cell.steps,
            learning_rate=point.learning_rate,
            seed=seed,
            flops=cell.flops,
            parameters=cell.parameters,
            batch_size=self.study.training.batch_size,
            params=point.params,
        )
        return self.state.trials[trial]

    def _suggestion(self, trial: Trial) -> Suggestion:
        config = self.study.trial_config(
            trial_id=trial.trial_id,
            cell=self._cell(trial),
            learning_rate=trial.learning_rate,
            seed=trial.seed,
            classes=self.classes,
            folder=f"{self.folder.rstrip('/')}/trials/{trial.trial_id}",
        )
        previous = {"step": trial.step, "meter": trial.meter} if trial.meter else None
        return Suggestion(trial.trial_id, config.to_dict(), trial.attempt, previous)

    def _cell(self, trial: Trial) -> Cell:
        return next(budget for budget in self.budgets if budget.label == trial.budget).cell(trial.variant)

    def _close_if_done(self, known: BudgetState) -> None:
        if known.ended and not known.closed:
            best = known.best
            self.write("budget_closed", budget=known.label, best=best.trial_id if best else None)

    # ---------------------------------------------------------------- events

    def take_events(self, trial: str, events: Sequence[dict[str, Any]]) -> None:
        """Write a trial's events into the ledger; ones that were already taken (a proxy that was restarted) are
        passed over.
        """
        for event in events:
            if trial not in self._in_flight or event["number"] < self._seen.get(trial, 0):
                continue
            self._seen[trial] = event["number"] + 1
            self._take(trial, event)

    def _take(self, trial: str, event: dict[str, Any]) -> None:
        match event["event"]:
            case "started":
                self.write(
                    "trial_started",
                    trial=trial,
                    slice=event["slice"],
                    attempt=event["attempt"],
                    step=event["step"],
                    # later attempts began long after the suggestion
                    wait_s=event["time"] - self._in_flight[trial] if event["attempt"] == 1 else None,
                )
            case "progressed":
                self.write(
                    "trial_progressed", trial=trial, step=event["step"], points=event["points"], meter=event["meter"]
                )
            case "checkpointed":
                self.write("trial_checkpointed", trial=trial, step=event["step"])
            case "unreadable":
                self.write("images_unreadable", trial=trial, images=event["images"])
            case "errored" | "crashed" | "preempted" as kind:
                self.write("trial_lost", trial=trial, kind=kind, reason=event["reason"], attempt=event["attempt"])
            case "ended":
                self._end(trial, event)

    def _end(self, trial: str, event: dict[str, Any]) -> None:
        self._in_flight.pop(trial, None)
        self._ended += 1
        if event["outcome"] == "stopped":  # stays open in the ledger: the next search goes on with it
            return
        self.write("trial_ended", trial=trial, outcome=event["outcome"], result=event["result"])
        self._failures = self._failures + 1 if event["outcome"] == "failed" else 0
        known = self.state.budgets[self.state.trials[trial].budget]
        budget = next(budget for budget in self.budgets if budget.label == known.label)
        if known.label in self._exhausted or not self._waits(budget, known):
            self._close_if_done(known)
        if self._failures >= FAILURES_IN_A_ROW:
            reason = " ".join(str(event["result"].get("reason")).split())
            raise FailuresError(
                f"{self._failures} trials in a row failed, {trial} the last: {reason}; mend that, and try them again "
                f"with --retry-failed (their errors: {self.ledger.where})"
            )
