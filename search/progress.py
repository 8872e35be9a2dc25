"""The live view of a search: budgets, running trials, the best so far, time left; plain lines when not on a terminal.

It is fed with the ledger's records as they are written, and keeps its own `StudyState` of them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from search.budgets import Budget
from search.formats import duration, number
from search.ledger import Record
from search.results import ordered_budgets
from search.state import BudgetState, StudyState, TrialState

REFRESHES_PER_SECOND = 2.0
_MOST_RUNNING = 12

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PlannedBudget:
    """A budget of the study file that the ledger may not know yet, or with other trials or variants.

    `flops` are training FLOPs a trial. `variants` are those that the study now has for it; None if it is not said, then
    those that the ledger knows. `budget` is all of it, where that is known.
    """

    label: str
    flops: float
    trials: int
    variants: frozenset[str] | None = None
    budget: Budget | None = None


@dataclass(slots=True)
class _Running:
    slice: str
    loss: float | None = None
    images_per_second: float | None = None


def _work(trial: TrialState) -> float:
    """Training FLOPs that a trial has done so far, from its steps."""
    return trial.flops * min(1.0, trial.step / max(1, trial.steps))


def _cell(trial: TrialState) -> str:
    rate, epochs = number(trial.learning_rate, trim=True), number(trial.epochs, trim=True)
    return f"{trial.variant}, {epochs} epochs, learning rate {rate}"


def _of_seeds(budget: BudgetState) -> str:
    """How many seeds the loss of a budget's best is the mean of, where it was to be of more than one."""
    if budget.best_seeds >= budget.seeds:
        return f" (mean of {budget.best_seeds} seeds)" if budget.best_seeds > 1 else ""
    return (
        f" (of {budget.best_seeds} of {budget.seeds} seeds: the others failed, or went to points that were better "
        "before)"
    )


def _one_line(text: object) -> str:
    return " ".join(str(text or "").split())


def _columns(**sides: Literal["left", "right"]) -> Table:
    """A borderless table; each column's name (with _ for a blank) and its side."""
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for name, side in sides.items():
        table.add_column(name.replace("_", " ").strip(), justify=side, no_wrap=True, overflow="ellipsis")
    return table


class _Panel(Live):
    """rich's live display; each redraw, also those of rich's own thread, is done by `redraw`."""

    def __init__(
        self, console: Console, panel: Callable[[], RenderableType], redraw: Callable[[Callable[[], None]], None]
    ) -> None:
        self._redraw = redraw
        super().__init__(
            console=console,
            get_renderable=panel,
            refresh_per_second=REFRESHES_PER_SECOND,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def refresh(self) -> None:
        self._redraw(super().refresh)


class ProgressView:
    """Shows a search as it goes. Feed it each record after it is written; call from any thread.

    `records` are those of earlier sessions: their trials count as done, but not towards this session's pace.
    `budgets` are all that the study plans, also those not opened yet; by default those of the records. `live` forces
    the live panel on or off; by default it is on where the console is a terminal that can move its cursor. `clock`
    gives seconds.

    A terminal that cannot be written to (closed, a full disk behind a pipe) ends no search: that is logged once, and
    the view is quiet from then on.
    """

    def __init__(
        self,
        console: Console,
        records: Iterable[Record] = (),
        *,
        budgets: Sequence[PlannedBudget] = (),
        live: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._state = StudyState.of(records)
        self._planned = {budget.label: budget for budget in budgets}
        self._clock = clock
        self._running: dict[str, _Running] = {}
        self._lock = threading.Lock()
        self._quiet = False
        self._began = clock()
        self._work_before = self._total_work()
        use_live = console.is_terminal and not console.is_dumb_terminal if live is None else live
        self._live = _Panel(console, self.panel, self._show) if use_live else None

    def start(self) -> None:
        """Begin to show; the time elapsed counts from here."""
        self._began = self._clock()
        ended = sum(trial.outcome is not None for trial in self._state.trials.values())
        if self._state.trials:
            going_on = len(self._state.trials) - ended
            unfinished = f", {going_on} to go on with" if going_on else ""
            self._print(f"continuing {self._name()}: {ended} trials already ended{unfinished}")
        if self._live is not None and not self._quiet and not self._write(self._live.start):
            self._live = None
            self._console.clear_live()  # all that rich has set up by then

    def stop(self) -> None:
        """Leave the last state of the view on the screen. May be called twice."""
        if self._live is not None:
            with self._lock:
                self._running.clear()
            self._write(self._live.stop)  # also where the view is quiet: it ends the panel's thread

    def __enter__(self) -> ProgressView:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def note(self, line: str) -> None:
        """Show a message, for example that the tracking server cannot be reached; it stays on the screen."""
        self._print(_one_line(line), style="yellow")

    def feed(self, record: Record) -> None:
        """Take one event into account."""
        if self._quiet:
            return
        with self._lock:
            self._state.apply(record)
            self._follow(record)
            line, style = self._line(record)
        if line and (self._live is None or style):
            self._print(line, style=style)

    def _follow(self, record: Record) -> None:
        """Keep what `StudyState` does not: which trial runs where, its newest point."""
        match record.event:
            case "session_started":
                self._running.clear()
            case "trial_started":
                self._running[record["trial"]] = _Running(str(record["slice"]))
            case "trial_progressed":
                running = self._running.get(record["trial"])
                if running is not None and record["points"]:
                    _, running.loss, _, running.images_per_second = record["points"][-1]
            case "trial_lost" | "trial_ended":
                self._running.pop(record["trial"], None)
            case _:
                pass

    def _line(self, record: Record) -> tuple[str, str]:
        """What to say of an event, and in which style; an event with a style is told above the live panel too."""
        match record.event:
            case "budget_opened":
                budget = self._state.budgets[record["budget"]]
                cells = ", ".join(f"{c['variant']} ({number(c['epochs'], trim=True)} epochs)" for c in record["cells"])
                most = "at most " if budget.doubt else ""
                return f"budget {budget.label}: {most}{budget.trials_planned} trials of {cells}", ""
            case "forecast_made":
                said = record["forecast"]
                if "value" not in said["loss"]:
                    return f"budget {record['budget']}: no forecast ({said['loss']['refused']})", ""
                loss = " to ".join(number(said["loss"][end]) for end in ("low", "high"))
                of = f", {said['variant']} at {number(said['learning_rate'], trim=True)}" if said["variant"] else ""
                return f"budget {record['budget']}: forecast {number(said['loss']['value'])} ({loss}){of}", ""
            case "budget_closed":
                known = self._state.budgets[record["budget"]]
                if known.best is None:
                    return f"budget {known.label} done: no finished trial", ""
                found = f"best {_cell(known.best)}: loss {number(known.best_loss)}{_of_seeds(known)}"
                return f"budget {known.label} done: {found}", "yellow" if known.best_seeds < known.seeds else ""
            case "trial_started" if record["attempt"] > 1:
                return f"{record['trial']} goes on from step {record['step']} (attempt {record['attempt']})", ""
            case "trial_reopened":
                return f"{record['trial']} failed before; it is tried again", ""
            case "trial_lost":
                return f"{record['trial']} {record['kind']}: {_one_line(record['reason'])}", "yellow"
            case "trial_ended":
                return self._ended_line(self._state.trials[record["trial"]])
            case "study_ended":
                return f"{self._name()} done in {duration(self._clock() - self._began)}", ""
            case _:
                return "", ""

    def _ended_line(self, trial: TrialState) -> tuple[str, str]:
        count = f"[{self._count(self._as_planned(self._state.budgets[trial.budget]))}]"
        if trial.outcome == "finished":
            return f"{count} {trial.trial_id}: {_cell(trial)}: held-out loss {number(trial.heldout_loss)}", ""
        reason = _one_line(trial.result.get("error") or trial.result.get("reason"))
        because = f": {reason}" if reason else ""
        style = "red" if trial.outcome == "failed" else ""
        return f"{count} {trial.trial_id}: {_cell(trial)}: {trial.outcome} at step {trial.step}{because}", style

    def _print(self, line: str, style: str = "") -> None:
        text = Text(line, style=style if self._live is not None else "")
        self._show(lambda: self._console.print(text, soft_wrap=self._live is None))

    def _show(self, action: Callable[[], None]) -> None:
        """Write to the terminal unless the view is quiet."""
        if not self._quiet:
            self._write(action)

    def _write(self, action: Callable[[], None]) -> bool:
        """Write to the terminal; False, and the view is quiet, if that fails."""
        try:
            action()
        except (OSError, ValueError):  # a closed file raises ValueError
            with self._lock:
                known, self._quiet = self._quiet, True
            if not known:
                log.exception("the terminal cannot be written to; it is left alone now")
            return False
        return True

    def _name(self) -> str:
        return (
            " ".join(str(self._state.opened[key]) for key in ("study", "run") if key in self._state.opened) or "study"
        )

    @property
    def _wide(self) -> bool:
        return self._console.width >= 76

    @staticmethod
    def _count(budget: BudgetState) -> str:
        return f"{sum(trial.outcome is not None for trial in budget.trials_counted)}/{budget.trials_total}"

    def _as_planned(self, budget: BudgetState) -> BudgetState:
        """A budget of the ledger as the study now has it, which may be before it is opened so."""
        if not self._planned:
            return budget
        planned = self._planned.get(budget.label)
        if planned is None:  # taken out of the study: nothing more is done for it
            return replace(budget, closed=True)
        variants = budget.variants if planned.variants is None else planned.variants
        as_now = budget.opened_with(planned.trials, variants)
        closed = budget.closed and as_now and (planned.budget is None or budget.opened_as(planned.budget))
        return replace(budget, trials_planned=planned.trials, variants=variants, closed=closed)

    def _total_work(self) -> float:
        return sum(_work(trial) for trial in self._state.trials.values())

    def left_flops(self) -> float:
        """Training FLOPs still to do: of the trials that run, of the opened budgets, and of those to come, also to come
        again.
        """
        left = 0.0
        for budget in map(self._as_planned, self._state.budgets.values()):
            if not budget.closed:
                left += sum(trial.flops - _work(trial) for trial in budget.trials_counted if trial.outcome is None)
                left += budget.flops * (budget.trials_total - len(budget.trials_counted))
        return left + sum(
            budget.flops * budget.trials for budget in self._planned.values() if budget.label not in self._state.budgets
        )

    def time_left(self) -> float | None:
        """Seconds left at this session's pace, an estimate from FLOPs done and planned; None before any are done."""
        done = self._total_work() - self._work_before
        elapsed = self._clock() - self._began
        return elapsed * self.left_flops() / done if done > 0 else None

    def panel(self) -> RenderableType:
        """The live panel as it is now."""
        with self._lock:
            parts: list[RenderableType] = [self._budget_table()]
            if self._running:
                parts += [Text(), self._running_table()]
            parts += [Text(), self._footer()]
        return Panel(Group(*parts), title=Text(self._name(), style="bold"), title_align="left", border_style="dim")

    def _budget_table(self) -> Table:
        columns: dict[str, Literal["left", "right"]] = {"budget": "left", "trials": "right", "best": "left"}
        if self._wide:
            columns |= {"epochs": "right", "learning_rate": "right"}
        table = _columns(**columns, heldout_loss="right")
        table.columns[-1].header = "held-out loss" if self._wide else "loss"
        for budget in map(self._as_planned, ordered_budgets(self._state)):
            count, best = self._count(budget), budget.best
            if best is None:
                table.add_row(budget.label, count, "-")
            else:
                cell = [number(best.epochs, trim=True), number(best.learning_rate, trim=True)] if self._wide else []
                table.add_row(budget.label, count, best.variant, *cell, number(best.heldout_loss))
        for planned in self._planned.values():
            if planned.label not in self._state.budgets:
                table.add_row(planned.label, f"0/{planned.trials}", "-", style="dim")
        return table

    def _running_table(self) -> Table:
        columns: dict[str, Literal["left", "right"]] = {"slice": "right", "variant": "left"}
        if self._wide:
            columns |= {"epochs": "right", "rate": "right", "_": "left"}
        table = _columns(**columns, step="right", train_loss="right", images_s="right")
        table.columns[-1].header = "images/s"
        shown = sorted(self._running.items(), key=lambda item: (len(item[1].slice), item[1].slice))
        for trial_id, running in shown[:_MOST_RUNNING]:
            trial = self._state.trials[trial_id]
            cell: list[RenderableType] = []
            if self._wide:
                bar = ProgressBar(total=max(1, trial.steps), completed=trial.step, width=12)
                cell = [number(trial.epochs, trim=True), number(trial.learning_rate, trim=True), bar]
            speed = number(running.images_per_second)
            table.add_row(
                running.slice, trial.variant, *cell, f"{trial.step}/{trial.steps}", number(running.loss), speed
            )
        if len(shown) > _MOST_RUNNING:
            table.add_row("", f"and {len(shown) - _MOST_RUNNING} more")
        return table

    def _footer(self) -> Text:
        left = self.time_left()
        parts = [f"elapsed {duration(self._clock() - self._began)}"]
        if self._state.ended:
            parts.append("done")
        elif left is not None:
            parts.append(
                f"about {duration(left)} left (estimated from FLOPs)" if self._wide else f"about {duration(left)} left"
            )
        outcomes = [trial.outcome for trial in self._state.trials.values()]
        parts += [f"{outcomes.count(name)} {name}" for name in ("diverged", "failed") if name in outcomes]
        return Text("  ".join(parts), style="dim", overflow="ellipsis", no_wrap=True)
