"""A study's state: what its ledger says, folded into budgets and trials."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from search.ledger import Record
from search.points import Points
from search.space import CellSize, Explored, Space
from search.units import same_amount

if TYPE_CHECKING:
    from search.budgets import Budget
    from search.sections import SecondObjective

Outcome = Literal["finished", "diverged", "failed"]


@dataclass(slots=True)
class TrialState:
    """One trial as the ledger knows it. `outcome` is None until it has ended; `attempt` counts its starts."""

    trial_id: str
    budget: str
    variant: str
    epochs: float
    steps: int
    learning_rate: float
    seed: int
    flops: float
    parameters: int
    params: dict[str, Any]
    suggested_at: float
    attempt: int = 0
    step: int = 0
    checkpoint_step: int | None = None
    meter: dict[str, Any] = field(default_factory=dict)
    outcome: Outcome | None = None
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def heldout_loss(self) -> float:
        """Held-out loss at the end of training (nats per image); NaN unless the trial has finished."""
        return float(self.result["heldout_loss"]) if self.outcome == "finished" else math.nan


@dataclass(slots=True)
class BudgetState:
    """One budget as the ledger knows it, its trials in the order of suggestion, and what was foretold of it before.

    `trials_planned`, `seeds`, `doubt`, `second_objective` and `learning_rates` are those that it was last opened
    with, see `search.budgets.Budget`.

    `variants` are those it was last opened with, the ones whose trials are waited for; `cells` also has those that the
    study has taken out since. `trials_before` is how many of its trials there were then.
    """

    label: str
    flops: float
    trials_planned: int
    cells: list[dict[str, Any]]
    variants: frozenset[str]
    trials: list[TrialState] = field(default_factory=list)
    forecast: dict[str, Any] | None = None
    seeds: int = 1
    doubt: float = 0.0
    second_objective: SecondObjective | None = None
    learning_rates: tuple[float, ...] = ()
    trials_before: int = 0
    closed: bool = False

    @property
    def best(self) -> TrialState | None:
        """The best finished trial, or None: of the best of its `search.points` that with the lowest loss."""
        best = Points(self.trials).best
        return None if best is None else best.lowest

    @property
    def best_loss(self) -> float:
        """Held-out loss of the best point, the mean over its seeds; NaN where nothing has finished."""
        best = Points(self.trials).best
        return math.nan if best is None else best.mean_loss

    @property
    def best_seeds(self) -> int:
        """How many trials that is the mean of; 0 where nothing has finished."""
        best = Points(self.trials).best
        return 0 if best is None else len(best.finished)

    @property
    def sizes(self) -> tuple[CellSize, ...]:
        """Its cells, those that the study has taken out since included."""
        return tuple(
            CellSize(cell["variant"], cell["epochs"], cell["flops_per_image"], cell["parameters"])
            for cell in self.cells
        )

    @property
    def trials_counted(self) -> list[TrialState]:
        """The trials of its variants: those that count towards `trials_planned`."""
        return [trial for trial in self.trials if trial.variant in self.variants]

    @property
    def trials_total(self) -> int:
        """How many of `trials_counted` there will be: those planned, or those there are where they are more, or where
        the budget is closed, for its sampler may be content with fewer.
        """
        return (
            len(self.trials_counted)
            if self.closed and self.ended
            else max(self.trials_planned, len(self.trials_counted))
        )

    @property
    def ended(self) -> bool:
        """Whether no trial of its variants is unfinished."""
        return all(trial.outcome is not None for trial in self.trials_counted)

    def opened_as(self, budget: Budget) -> bool:
        """Whether it was last opened with the variants that this budget has, and to as much effort, or more."""
        return not self.lacks(budget)

    def lacks(self, budget: Budget) -> list[str]:
        """What this budget has that it was not last opened with, in words; nothing where it was opened as this is."""
        variants = [cell.variant for cell in budget.cells]
        # it was decided by the rates it had, where it was decided
        rates = sorted(set(budget.learning_rates) - set(self.learning_rates)) if self.doubt else []
        asked = {
            f"{budget.trials} trials instead of {self.trials_planned}": budget.trials > self.trials_planned,
            f"variants {', '.join(variants)}": self.variants != set(variants),
            f"{budget.seeds} seeds instead of {self.seeds}": budget.seeds > self.seeds,
            f"doubt {budget.doubt:g} instead of {self.doubt:g}": budget.doubt < self.doubt,
            f"second objective {budget.second_objective}": budget.second_objective not in (None, self.second_objective),
            f"learning rates {', '.join(f'{rate:g}' for rate in rates)}": rates,
        }
        return [what for what, more in asked.items() if more]

    def opened_with(self, trials: int, variants: AbstractSet[str]) -> bool:
        """Whether it was last opened with these variants, and with as many trials, or more."""
        return self.trials_planned >= trials and self.variants == variants


@dataclass(slots=True)
class StudyState:
    """Everything a study has done so far. `apply` takes the ledger's records in order."""

    opened: dict[str, Any] = field(default_factory=dict)
    budgets: dict[str, BudgetState] = field(default_factory=dict)
    trials: dict[str, TrialState] = field(default_factory=dict)
    unreadable: dict[str, None] = field(default_factory=dict)  # paths of images, in the order they were met
    code_versions: dict[str, None] = field(default_factory=dict)  # of its sessions, in the order they came
    ended: bool = False

    @classmethod
    def of(cls, records: Iterable[Record]) -> StudyState:
        state = cls()
        for record in records:
            state.apply(record)
        return state

    def named(self, budgets: Iterable[Budget]) -> list[Budget]:
        """These budgets under the labels of the ledger: a budget is known by its FLOPs, however the study spells it."""
        return [
            replace(budget, label=known.label, flops=known.flops) if (known := self._known(budget)) else budget
            for budget in budgets
        ]

    def _known(self, budget: Budget) -> BudgetState | None:
        same = [known for known in self.budgets.values() if same_amount(known.flops, budget.flops)]
        return next((known for known in same if known.label == budget.label), same[0] if same else None)

    def covers(self, budgets: Sequence[Budget]) -> bool:
        """Whether each of these budgets was opened as it is now, and has been closed."""
        known = [(budget, self.budgets.get(budget.label)) for budget in self.named(budgets)]
        return all(here is not None and here.closed and here.opened_as(budget) for budget, here in known)

    def explored_below(self, flops: float, learning_rates: tuple[float, ...]) -> list[Explored]:
        """What was found in the budgets smaller than this, cheapest first, by the sizes that they were opened with."""
        smaller = sorted((each for each in self.budgets.values() if each.flops < flops), key=lambda each: each.flops)
        return [Explored(Space(budget.sizes, learning_rates), budget.trials) for budget in smaller]

    def apply(self, record: Record) -> None:
        """Take one event into account. Unknown events (from a later version) are passed over."""
        match record.event:
            case "study_opened":
                self.opened = record.fields
            case "session_started":
                self.ended = False
                if (version := record.get("code_version")) is not None:
                    self.code_versions[version] = None
            case "study_ended":
                self.ended = True
            case "budget_opened":
                cells = {cell["variant"]: cell for cell in record["cells"]}
                known = self.budgets.get(record["budget"])
                if known is None:
                    self.budgets[record["budget"]] = BudgetState(
                        record["budget"], record["flops"], record["trials"], record["cells"], frozenset(cells)
                    )
                else:
                    known.trials_planned, known.variants, known.closed = record["trials"], frozenset(cells), False
                    known.cells = list(({cell["variant"]: cell for cell in known.cells} | cells).values())
                known = self.budgets[record["budget"]]
                known.seeds, known.doubt = record.get("seeds", 1), record.get("doubt", 0.0)
                known.second_objective = record.get("second_objective")
                known.learning_rates = tuple(record.get("learning_rates", ()))
                known.trials_before = len(known.trials)
            case "forecast_made":
                self.budgets[record["budget"]].forecast = record["forecast"]
            case "budget_closed":
                self.budgets[record["budget"]].closed = True
            case "trial_suggested":
                keys = (
                    "budget",
                    "variant",
                    "epochs",
                    "steps",
                    "learning_rate",
                    "seed",
                    "flops",
                    "parameters",
                    "params",
                )
                trial = TrialState(
                    trial_id=record["trial"], suggested_at=record.time, **{key: record[key] for key in keys}
                )
                self.trials[trial.trial_id] = trial
                self.budgets[trial.budget].trials.append(trial)
                self.budgets[trial.budget].closed = False
            case "trial_reopened":
                trial = self.trials[record["trial"]]
                trial.outcome, trial.result = None, {}
                self.budgets[trial.budget].closed = False
            case "trial_started":
                trial = self.trials[record["trial"]]
                trial.attempt, trial.step = record["attempt"], record["step"]
            case "trial_progressed":
                trial = self.trials[record["trial"]]
                trial.step, trial.meter = record["step"], record["meter"]
            case "images_unreadable":
                self.unreadable.update(dict.fromkeys(record["images"]))
            case "trial_checkpointed":
                self.trials[record["trial"]].checkpoint_step = record["step"]
            case "trial_ended":
                trial = self.trials[record["trial"]]
                trial.outcome, trial.result = record["outcome"], record["result"]
                trial.meter = record["result"].get("meter", trial.meter)
                trial.step = record["result"].get("step", trial.step)
            case _:
                pass
