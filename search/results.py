"""What a study found: a row per trial, the best of each budget, and where the time went; as tables and as CSV."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import fsspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from search.foretold import score_of, so_far, unfinished_budgets
from search.formats import MISSING, duration, number, percent, percent_off, scientific
from search.state import BudgetState, StudyState, TrialState
from trainables.meter import Meter

BUCKETS: Final = {
    "productive": "training steps",
    "input_wait": "waiting for input",
    "evaluation": "evaluation",
    "checkpoint": "checkpoints",
    "start_up": "start-up",
    "compilation": "compilation",
    "repeated": "repeated steps",
    "restart": "restarts",
}
_SOMETIMES_THERE: Final = ("EMA\nloss", "MFU")
_DROPPED_FIRST: Final = ("goodput", "images\nper s", "EMA\nloss", "MFU", "FLOPs", "core-\nhours", "accuracy",
                         "recommended", "was best")  # fmt: skip

UNREADABLE_NAMED = 3


@dataclass(frozen=True, slots=True)
class TrialRow:
    """One trial in numbers; NaN where there is none (a diverged trial has no held-out loss, an unknown device no mfu).

    `outcome` is finished, diverged, failed or unfinished. `heldout_loss` (nats per image, of the raw weights) ranks the
    trials; `ema_heldout_loss` is that of the averaged weights. `flops` are training FLOPs and `core_hours` the
    core-hours of training steps; `core_hours_total` and `seconds` hold the trial's other time too, and `spent` says by
    bucket, in the order of `BUCKETS`, where the seconds went. `goodput` is the share of training steps in that time.
    `skipped_images` and `skipped_heldout_images` say how often training and evaluation met unreadable images.
    """

    trial_id: str
    budget: str
    variant: str
    epochs: float
    learning_rate: float
    seed: int
    heldout_loss: float
    heldout_accuracy: float
    ema_heldout_loss: float
    flops: float
    core_hours: float
    core_hours_total: float
    images_per_second: float
    mfu: float
    goodput: float
    outcome: str
    seconds: float
    spent: Mapping[str, float]
    skipped_images: int
    skipped_heldout_images: int
    reason: str


@dataclass(frozen=True, slots=True)
class TimeSplit:
    """Where the seconds of a study's trials went (`seconds` by bucket, in the order of `BUCKETS`)."""

    seconds: Mapping[str, float]

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float:
        """The share of training steps that were not repeated; NaN before any time was metered."""
        return self.seconds["productive"] / self.total if self.total else math.nan

    @property
    def undisturbed_goodput(self) -> float:
        """The same where nothing crashes or is interrupted: without repeated steps and restarts in the time."""
        total = self.total - self.seconds["repeated"] - self.seconds["restart"]
        return self.seconds["productive"] / total if total > 0 else math.nan


@dataclass(frozen=True, slots=True)
class MeasuredRates:
    """Training FLOPs a core did in a second, over the productive time of all trials: of all together, by variant."""

    overall: float
    by_variant: Mapping[str, float]


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)


def meter_summary(trial: TrialState) -> dict[str, Any]:
    """The trial's meter as `Meter.summary` gives it, up to its last report if it has not ended; empty if none came."""
    meter = trial.meter or {}
    return Meter.from_dict(meter, clock=lambda: 0.0).summary() if "seconds" in meter else meter


def _row(trial: TrialState) -> TrialRow:
    result, meter = trial.result, meter_summary(trial)
    finished = trial.outcome == "finished"
    spent = {bucket: _float(meter.get(f"seconds_{bucket}")) for bucket in BUCKETS}
    metered = [seconds for seconds in spent.values() if not math.isnan(seconds)]
    return TrialRow(
        trial_id=trial.trial_id,
        budget=trial.budget,
        variant=trial.variant,
        epochs=trial.epochs,
        learning_rate=trial.learning_rate,
        seed=trial.seed,
        heldout_loss=trial.heldout_loss,
        heldout_accuracy=_float(result.get("heldout_accuracy")) if finished else math.nan,
        ema_heldout_loss=_float(result.get("ema_heldout_loss")) if finished else math.nan,
        flops=trial.flops if finished else _float(meter.get("flops")),
        core_hours=_float(meter.get("core_hours")),
        core_hours_total=_float(meter.get("core_hours_total")),
        images_per_second=_float(meter.get("images_per_second")),
        mfu=_float(meter.get("mfu")),
        goodput=_float(meter.get("goodput")),
        outcome=trial.outcome or "unfinished",
        seconds=sum(metered) if metered else math.nan,
        spent=spent,
        skipped_images=int(result.get("skipped_images") or 0),
        skipped_heldout_images=int(result.get("skipped_heldout_images") or 0),
        reason=str(result.get("error") or result.get("reason") or ""),
    )


def _rank(row: TrialRow) -> tuple[bool, float, str, float]:
    missing = math.isnan(row.heldout_loss)
    return missing, 0.0 if missing else row.heldout_loss, row.outcome, row.learning_rate


def ordered_budgets(state: StudyState) -> list[BudgetState]:
    """The study's opened budgets, the smallest first."""
    return sorted(state.budgets.values(), key=lambda budget: budget.flops)


def trial_rows(state: StudyState) -> list[TrialRow]:
    """A row per trial: by budget, the smallest first, and in each by held-out loss, the best first."""
    return [row for budget in ordered_budgets(state) for row in sorted(map(_row, budget.trials), key=_rank)]


def best_rows(state: StudyState) -> list[TrialRow]:
    """The best trial of each budget that has a finished one; its variant and epochs are the budget's best cell."""
    return [_row(budget.best) for budget in ordered_budgets(state) if budget.best is not None]


def time_split(state: StudyState) -> TimeSplit:
    """The seconds of all trials, by what they were spent on."""
    meters = [meter_summary(trial) for trial in state.trials.values()]
    return TimeSplit({bucket: sum(meter.get(f"seconds_{bucket}") or 0.0 for meter in meters) for bucket in BUCKETS})


def measured_rates(state: StudyState) -> MeasuredRates | None:
    """The rates of the trials so far; None before any time was metered."""
    flops: dict[str, float] = {}
    core_seconds: dict[str, float] = {}
    for trial in state.trials.values():
        meter = meter_summary(trial)
        if meter.get("flops") and meter.get("core_hours"):
            flops[trial.variant] = flops.get(trial.variant, 0.0) + meter["flops"]
            core_seconds[trial.variant] = core_seconds.get(trial.variant, 0.0) + meter["core_hours"] * 3600
    if not flops:
        return None
    rates = {variant: flops[variant] / core_seconds[variant] for variant in sorted(flops)}
    return MeasuredRates(sum(flops.values()) / sum(core_seconds.values()), rates)


def write_csv(state: StudyState, path: str) -> None:
    """Write `trial_rows` to `path` (any fsspec address), a line per trial, full precision, missing values empty.

    What a row has `spent` comes last, a column `seconds_<bucket>` each.
    """
    names = [field.name for field in dataclasses.fields(TrialRow) if field.name != "spent"]
    with fsspec.open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*names, *(f"seconds_{bucket}" for bucket in BUCKETS)])
        for row in trial_rows(state):
            values = [*(getattr(row, name) for name in names), *row.spent.values()]
            writer.writerow(["" if isinstance(value, float) and math.isnan(value) else value for value in values])


def _cells(row: TrialRow) -> dict[str, str]:
    return {
        "epochs": number(row.epochs, trim=True),
        "learning\nrate": number(row.learning_rate, trim=True),
        "held-out\nloss": number(row.heldout_loss),
        "EMA\nloss": number(row.ema_heldout_loss),
        "accuracy": percent(row.heldout_accuracy),
        "FLOPs": scientific(row.flops),
        "core-\nhours": number(row.core_hours, 2 if row.core_hours < 1 else 3),
        "images\nper s": number(row.images_per_second),
        "MFU": percent(row.mfu),
        "goodput": percent(row.goodput),
    }


def _table(title: str, rows: Sequence[tuple[Mapping[str, str], bool]], left: frozenset[str], console: Console) -> Table:
    """A table that fits the console: the least important columns go first where it is narrow.

    Those that are only sometimes there are left out where no row has one.
    """
    absent = [name for name in _SOMETIMES_THERE if all(cells.get(name) == MISSING for cells, _ in rows)]
    dropped = 0
    while True:
        hidden = (*absent, *_DROPPED_FIRST[:dropped])
        for gap in (2, 1, 0):
            table = Table(title=title, title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
            table.box, table.padding = box.SIMPLE_HEAD, (0, gap, 0, 0)
            for name in (name for name in rows[0][0] if name not in hidden):
                table.add_column(name, justify="left" if name in left else "right", vertical="bottom", no_wrap=True)
            for cells, strong in rows:
                values = [Text(value) for name, value in cells.items() if name not in hidden]
                table.add_row(*values, style="bold green" if strong else None)
            width = console.measure(table, options=console.options.update(width=10_000)).maximum
            if width <= console.width:
                return table
        if dropped == len(_DROPPED_FIRST):
            return table
        dropped += 1


def _budget_table(budget: BudgetState, console: Console) -> Table:
    best = budget.best
    rows = []
    for row in sorted(map(_row, budget.trials), key=_rank):
        strong = best is not None and row.trial_id == best.trial_id
        name = ("* " if strong else "  ") + row.variant
        seed = {"seed": str(row.seed)} if budget.seeds > 1 else {}
        rows.append(({"variant": name, **seed, **_cells(row), "outcome": row.outcome}, strong))
    ended = sum(trial.outcome is not None for trial in budget.trials_counted)
    counts = f"{ended} of {budget.trials_total} trials"
    return _table(f"Budget {budget.label}: {counts}", rows, frozenset({"variant", "outcome"}), console)


def _summary_table(state: StudyState, console: Console) -> Table:
    rows = []
    for row in best_rows(state):
        trials = state.budgets[row.budget].trials
        spent = sum(other for trial in trials if not math.isnan(other := _row(trial).core_hours_total))
        cells = _cells(row)
        cells.pop("goodput")
        cells["held-out\nloss"] = number(state.budgets[row.budget].best_loss)
        searched = number(spent, 2 if spent < 1 else 3)
        budget = so_far(row.budget, unfinished_budgets(state))
        rows.append(({"budget": budget, "variant": row.variant, **cells, "core-hours\nof search": searched}, False))
    seeds = any(budget.seeds > 1 for budget in state.budgets.values())
    title = f"Best cell of each budget{' (loss: the mean over its seeds)' if seeds else ''}"
    return _table(title, rows, frozenset({"budget", "variant"}), console)


def _forecast_table(state: StudyState, console: Console) -> Table | None:
    rows = []
    for budget in ordered_budgets(state):
        if (score := score_of(budget)) is None:
            continue
        off = percent_off(score.error)
        cells = {
            "budget": budget.label,
            "forecast": number(score.predicted),
            "interval": f"{number(score.low)} to {number(score.high)}",
            "came out": number(score.actual),
            "off by": f"{off}, {'inside' if score.inside else 'outside'}",
            "recommended": f"{score.variant or MISSING} at {number(score.learning_rate, trim=True)}",
            "was best": f"{score.best_variant} at {number(score.best_learning_rate, trim=True)}",
        }
        rows.append((cells, False))
    texts = frozenset({"budget", "recommended", "was best"})
    return _table("Forecasts made before each budget", rows, texts, console) if rows else None


def _time_table(split: TimeSplit, console: Console) -> Table:
    rows = [
        ({"spent on": BUCKETS[bucket], "time": duration(seconds), "share": percent(seconds / split.total)}, False)
        for bucket, seconds in split.seconds.items()
        if seconds > 0
    ]
    title = f"Goodput {percent(split.goodput)} of {duration(split.total)} in trials"
    return _table(title, rows, frozenset({"spent on"}), console)


def render_results(state: StudyState, console: Console) -> None:
    """Print a table per budget (its best trial marked *), the best cell of each budget, where the time went, which loss
    ranks where there are two, code versions if the sessions differ in them, how often images could not be read, and the
    measured training FLOPs per core-second.

    Tables fit any width from about 60 columns: on narrow ones the less important columns are left out, and are in the
    CSV only.
    """
    opened = [budget for budget in ordered_budgets(state) if budget.trials]
    if not opened:
        console.print("No trials yet.", highlight=False)
        return
    for budget in opened:
        console.print(_budget_table(budget, console))
        for trial in budget.trials:
            if trial.outcome == "failed":
                reason = " ".join(_row(trial).reason.split()) or "no reason given"
                console.print(Text(f"{trial.trial_id} failed: {reason}", style="red"), soft_wrap=True)
        console.print()
    if best_rows(state):
        console.print(_summary_table(state, console))
        console.print()
    if (forecasts := _forecast_table(state, console)) is not None:
        console.print(forecasts)
        console.print()
    split = time_split(state)
    if split.total:
        console.print(_time_table(split, console))
        console.print()
    if any(not math.isnan(row.ema_heldout_loss) for row in trial_rows(state)):
        console.print(
            "Trials are ranked by held-out loss, that of the raw weights; EMA loss is that of the averaged ones",
            highlight=False,
            soft_wrap=True,
        )
    if len(state.code_versions) > 1:
        versions = ", ".join(state.code_versions)
        note = f"The sessions of this run differ in code version ({versions}): their numbers may not compare"
        console.print(Text(note, style="yellow"), soft_wrap=True)
    if note := _unreadable_note(state):
        console.print(Text(note, style="yellow"), soft_wrap=True)
    if (rates := measured_rates(state)) is not None:
        each = ", ".join(f"{variant} {scientific(rate)}" for variant, rate in rates.by_variant.items())
        console.print(
            f"Measured: {scientific(rates.overall)} training FLOPs per core-second ({each}): "
            "set compute.flops_per_core_second to it to give budgets in core-hours",
            highlight=False,
            soft_wrap=True,
        )


def _unreadable_note(state: StudyState) -> str:
    """One line about images that could not be read, or nothing."""
    rows = [row for row in trial_rows(state) if row.skipped_images or row.skipped_heldout_images]
    if not rows:
        return ""
    trials = "1 trial" if len(rows) == 1 else f"{len(rows)} trials"
    training, heldout = sum(row.skipped_images for row in rows), sum(row.skipped_heldout_images for row in rows)
    named = "".join(f", {path}" for path in list(state.unreadable)[:UNREADABLE_NAMED])
    more = len(state.unreadable) - UNREADABLE_NAMED
    return (
        f"{trials} met unreadable images and left them out: {training:,} times in training, {heldout:,} times in "
        f"evaluation (by trial in results.csv){named}{f' and {more:,} more, in the ledger' if more > 0 else ''}"
    )
