"""What a tracking server should show of a study, as a pure function of its ledger: runs, with parameters, tags and
metrics.

Three kinds of run: one "study" run, which holds the study file and the figures; one run per budget; under it one run
per trial, with all the tags that it takes to compare trials without their parents. Every value knows the event it came
from, so that a server which has seen the ledger up to some event can be given just the rest.

Tags that people filter by have plain names; those that only programs read begin with `convscale.`.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from search.ledger import Record
from search.points import Points

Status = Literal["SCHEDULED", "RUNNING", "FINISHED", "FAILED", "KILLED"]

STUDY_KEY: Final = "study"
LAYOUT: Final = 2  # of runs on a server; those of a lower one are given everything anew
LAYOUT_TAG: Final = "convscale.layout"
COMMON_TAGS: Final = ("code_version", "device")  # of a session, and so of what it trains
TEXT_LIMIT: Final = 1000  # characters of a tag; servers allow 5,000
_STATUS_OF_OUTCOME: Final[dict[str, Status]] = {"finished": "FINISHED", "diverged": "KILLED", "failed": "FAILED"}
_STATUS_OF_SESSION: Final[dict[str, Status]] = {"finished": "FINISHED", "interrupted": "SCHEDULED", "error": "FAILED"}
_SERIES: Final = ("train_loss", "learning_rate", "images_per_second")
# Tags of layout 1, named convscale.<name>, which are plain or parameters now.
_LAYOUT_1: Final = frozenset(
    f"convscale.{name}"
    for name in (
        "kind", "study", "run", "code_version", "device", "budget", "trial", "variant", "epochs", "learning_rate",
        "outcome", "reason", "error", "attempts", "trials_planned", "variants", "best_trial",
    )
)  # fmt: skip
# A trial's own mean and last value get names of their own, so that they do not become one more point of a series.
_RENAMED: Final = {"train_loss": "final_train_loss", "images_per_second": "mean_images_per_second"}


def budget_key(label: str) -> str:
    """The key of a budget's run."""
    return f"budget {label}"


def is_outdated(tag: str) -> bool:
    """Whether a run's tag is one that an earlier version wrote, and this one does not."""
    return tag in _LAYOUT_1


def ledger_id(first: Record) -> str:
    """What tells one ledger from any other, wherever it is moved to: a digest of its first event."""
    return hashlib.sha256(first.to_json().encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """One value of a metric; `time_ms` is the ledger's time, so that logging it twice is logging it once."""

    name: str
    value: float
    step: int
    time_ms: int


@dataclass(frozen=True, slots=True)
class Changes:
    """What a server that knows a run up to some event still lacks."""

    params: dict[str, str]
    tags: dict[str, str]
    points: list[MetricPoint]


@dataclass(slots=True)
class TrackedRun:
    """One run as it should be. `seq` is the last event that changed it."""

    key: str
    name: str
    parent: str | None
    started_ms: int
    seq: int
    status: Status = "RUNNING"
    ended_ms: int | None = None
    last_step: int = -1
    _params: dict[str, tuple[int, str]] = field(default_factory=dict)
    _tags: dict[str, tuple[int, str]] = field(default_factory=dict)
    _points: list[tuple[int, MetricPoint]] = field(default_factory=list)

    def changes(self, after: int) -> Changes:
        """Everything that events later than `after` brought (-1: everything)."""
        return Changes(
            {name: value for name, (seq, value) in self._params.items() if seq > after},
            {name: value for name, (seq, value) in self._tags.items() if seq > after},
            [point for seq, point in self._points if seq > after],
        )

    def set_params(self, record: Record, **values: Any) -> None:
        self.seq = record.seq
        self._params |= {name: (record.seq, _text(value)) for name, value in values.items()}

    def set_tags(self, record: Record, **values: Any) -> None:
        """A tag whose value is None is left out."""
        self.seq = record.seq
        self._tags |= {name: (record.seq, _text(value)) for name, value in values.items() if value is not None}

    def set_marks(self, record: Record, **values: str) -> None:
        """Tags for programs: named `convscale.<name>`."""
        self.set_tags(record, **{f"convscale.{name}": value for name, value in values.items()})

    def set_status(self, record: Record, status: Status) -> None:
        self.seq, self.status = record.seq, status
        self.ended_ms = None if status in ("SCHEDULED", "RUNNING") else _ms(record)

    def add_point(self, record: Record, name: str, value: Any, step: int) -> None:
        """A value that is no finite number is no metric: servers would sort and filter by it wrongly."""
        self.seq = record.seq
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            self._points.append((record.seq, MetricPoint(name, float(value), step, _ms(record))))


def _ms(record: Record) -> int:
    return round(1000 * record.time)


def _text(value: Any) -> str:
    text = format(value, ".6g") if isinstance(value, float) else str(value)
    return text if len(text) <= TEXT_LIMIT else text[: TEXT_LIMIT - 1] + "…"


class _Trial(NamedTuple):
    """A trial, as what is best of a budget depends on it."""

    variant: str
    learning_rate: float
    outcome: str | None = None
    heldout_loss: float = math.nan


@dataclass(slots=True)
class _Budget:
    """A budget, and what has ended of it so far."""

    index: int
    flops: float
    ended: int = 0
    forecast: dict[str, float] = field(default_factory=dict)  # of the loss: value, low, high
    points: Points[_Trial] = field(default_factory=Points)

    @property
    def best_loss(self) -> float | None:
        """Of the best point, the mean over its seeds; None where nothing has finished."""
        return None if self.points.best is None else self.points.best.mean_loss


@dataclass(slots=True)
class TrackedStudy:
    """All runs of a study, parents before children. `apply` takes the ledger's records in order, from its first."""

    study: str
    run: str
    runs: dict[str, TrackedRun] = field(default_factory=dict)
    ledger: str = ""
    study_file: str = ""
    next_seq: int = 0
    _common: dict[str, Any] = field(default_factory=dict)
    _budgets: dict[str, _Budget] = field(default_factory=dict)
    _budget_of: dict[str, str] = field(default_factory=dict)
    _trials: dict[str, _Trial] = field(default_factory=dict)

    @property
    def budgets(self) -> dict[str, float]:
        """The FLOPs of the budgets that were opened, by their labels."""
        return {label: budget.flops for label, budget in self._budgets.items()}

    def apply(self, record: Record) -> None:
        """Take one event into account. One that was taken before is passed over, and so is an unknown one."""
        if record.seq < self.next_seq:
            return
        self._take(record)
        self.next_seq = record.seq + 1

    def _take(self, record: Record) -> None:
        match record.event:
            case "study_opened":
                self._study_opened(record)
            case "session_started":
                self._session_started(record)
            case "session_ended":
                self._pause_trials(record)
                for run in self.runs.values():
                    if run.parent is None and run.status == "RUNNING":
                        ended = run.key == STUDY_KEY
                        run.set_status(record, _STATUS_OF_SESSION[record["reason"]] if ended else "SCHEDULED")
            case "study_ended":
                self.runs[STUDY_KEY].set_status(record, "FINISHED")
            case "budget_opened":
                self._budget_opened(record)
            case "forecast_made":
                self._forecast_made(record)
            case "budget_closed":
                self._budget_closed(record)
            case "trial_suggested":
                self._trial_suggested(record)
            case "trial_started":
                self.runs[record["trial"]].set_tags(record, attempts=record["attempt"], **self._common)
                self.runs[record["trial"]].set_status(record, "RUNNING")
            case "trial_progressed":
                self._trial_progressed(record)
            case "trial_ended":
                self._trial_ended(record)
            case "trial_reopened":
                self._trial_reopened(record)
            case _:
                pass

    def _new_run(self, record: Record, key: str, name: str, parent: str | None, kind: str) -> TrackedRun:
        run = self.runs[key] = TrackedRun(key, name, parent, _ms(record), record.seq)
        run.set_marks(record, key=key, ledger=self.ledger)
        run.set_tags(record, kind=kind, study=self.study, run=self.run, **self._common)
        return run

    def _study_opened(self, record: Record) -> None:
        self.ledger, self.study_file = ledger_id(record), record["study_file"]
        self._common = {name: record.get(name) for name in COMMON_TAGS}
        run = self._new_run(record, STUDY_KEY, f"study {self.run}", None, "study")
        run.set_params(record, **{name: record[name] for name in ("classes", "train_examples", "heldout_examples")})
        run.set_params(record, **(record.get("identity") or {}))

    def _session_started(self, record: Record) -> None:
        """The code and the device of a session hold for the study, and for what it opens and trains."""
        self._common |= {name: record[name] for name in COMMON_TAGS if record.get(name) is not None}
        self._pause_trials(record)
        for run in self.runs.values():
            if run.parent is None and (run.key == STUDY_KEY or run.ended_ms is None):
                run.set_tags(record, **self._common)
                run.set_status(record, "RUNNING")

    def _pause_trials(self, record: Record) -> None:
        for run in self.runs.values():
            if run.parent is not None and run.status == "RUNNING":
                run.set_status(record, "SCHEDULED")

    def _budget_opened(self, record: Record) -> None:
        label = record["budget"]
        if (run := self.runs.get(budget_key(label))) is None:
            run = self._new_run(record, budget_key(label), label, None, "budget")
            run.set_params(record, budget=label, budget_flops=record["flops"])
            run.set_tags(record, budget=label)
            self._budgets[label] = _Budget(record["index"], record["flops"])
        variants = ", ".join(cell["variant"] for cell in record["cells"])  # no parameters: those cannot change
        run.set_tags(record, trials_planned=record["trials"], variants=variants, **self._common)
        run.set_status(record, "RUNNING")

    def _forecast_made(self, record: Record) -> None:
        """In the budget's run, and in the study's beside what came of it: both by the budget's index."""
        run, said = self.runs[budget_key(record["budget"])], record["forecast"]
        budget = self._budgets[record["budget"]]
        known = {name: said[name] for name in ("variant", "epochs", "learning_rate") if said.get(name) is not None}
        run.set_params(record, **{f"forecast_{name}": value for name, value in known.items()})
        if (reason := said["loss"].get("refused")) is not None:
            run.set_tags(record, forecast=f"none: {reason}")
            return
        budget.forecast = said["loss"]
        for name, end in (("forecast_loss", "value"), ("forecast_low", "low"), ("forecast_high", "high")):
            run.add_point(record, name, said["loss"][end], 0)
            self.runs[STUDY_KEY].add_point(record, name, said["loss"][end], budget.index)

    def _budget_closed(self, record: Record) -> None:
        label, run = record["budget"], self.runs[budget_key(record["budget"])]
        run.set_tags(record, best_trial=record["best"])
        run.set_status(record, "FINISHED")
        budget = self._budgets[label]
        best = budget.best_loss
        self.runs[STUDY_KEY].add_point(record, "best_heldout_loss", best, budget.index)
        if budget.forecast and best is not None:
            run.add_point(record, "forecast_error", budget.forecast["value"] / best - 1, budget.ended)
            inside = budget.forecast["low"] <= best <= budget.forecast["high"]
            run.set_tags(record, forecast="inside its interval" if inside else "outside its interval")

    def _trial_suggested(self, record: Record) -> None:
        label, trial = record["budget"], record["trial"]
        name = f"{record['variant']} lr {_text(float(record['learning_rate']))}"
        run = self._new_run(record, trial, name, budget_key(label), "trial")
        keys = ("variant", "epochs", "steps", "learning_rate", "batch_size", "seed", "parameters", "flops")
        flops = self._budgets[label].flops
        run.set_params(record, budget_flops=flops, **{key: record[key] for key in keys})
        logarithms = {f"log10_{key}": math.log10(record[key]) for key in ("learning_rate", "flops")}
        run.set_params(record, **logarithms)  # the axes of MLflow's charts are linear
        run.set_marks(record, budget_flops=repr(flops))  # all its digits
        run.set_tags(record, budget=label, trial=trial, variant=record["variant"])
        run.set_status(record, "SCHEDULED")
        self._budget_of[trial] = label
        self._trials[trial] = _Trial(record["variant"], record["learning_rate"])

    def _trial_progressed(self, record: Record) -> None:
        """Steps that are repeated after a crash are the same steps: the first report of each stands."""
        run = self.runs[record["trial"]]
        for step, *values in record["points"]:
            if step > run.last_step:
                run.last_step = step
                for name, value in zip(_SERIES, values, strict=True):
                    run.add_point(record, name, value, step)

    def _trial_ended(self, record: Record) -> None:
        run, outcome, result = self.runs[record["trial"]], record["outcome"], record["result"]
        step = int(result.get("step") or 0)
        for name, value in {**result, **(result.get("meter") or {})}.items():
            if name != "step":
                run.add_point(record, _RENAMED.get(name, name), value, step)
        run.set_tags(record, outcome=outcome, reason=result.get("reason"), error=result.get("error"))
        run.set_status(record, _STATUS_OF_OUTCOME[outcome])
        label = self._budget_of[record["trial"]]
        budget = self._budgets[label]
        before, loss = budget.best_loss, result["heldout_loss"] if outcome == "finished" else math.nan
        budget.points.add(self._trials[record["trial"]]._replace(outcome=outcome, heldout_loss=loss))
        budget.ended += 1
        if budget.best_loss != before:
            self.runs[budget_key(label)].add_point(record, "best_heldout_loss", budget.best_loss, budget.ended)

    def _trial_reopened(self, record: Record) -> None:
        """A trial that failed is tried again: what was said of its end no longer holds."""
        run = self.runs[record["trial"]]
        run.set_tags(record, outcome="unfinished", reason="", error="")
        run.set_status(record, "SCHEDULED")
        budget_run = self.runs[budget_key(self._budget_of[record["trial"]])]
        budget_run.set_tags(record, **self._common)
        budget_run.set_status(record, "RUNNING")
