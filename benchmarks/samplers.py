"""How much compute the samplers take until they have found each budget's best, on loss surfaces that cost nothing:

    python -m benchmarks.samplers               on 300 made-up surfaces and the recorded tables
    python -m benchmarks.samplers --proposal    how long a proposal takes with 10,000 finished trials

The surfaces are those of `search.surfaces` (like the paper's, the same with its grid of epochs, and seven families that
break an assumption) and of `search.recorded` (digits, really trained). Draws below `FIRST_SEED` are for development:
samplers may have been tuned on them, so what they give is not to be quoted; `--first-seed 0` has them. What counts as
found, and what a best that is never found counts as: `benchmarks.sampler_scores`. Who competes:
`benchmarks.sampler_peers`. Prints tables, and writes them as JSON with a figure into a folder.
"""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import statistics
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.table import Table as RichTable

from benchmarks.report import Report, arguments
from benchmarks.sampler_peers import PRUNING, REPEATING, TREND_ON, Place, searchers
from benchmarks.sampler_scores import (
    REGRET_AFTER,
    Estimate,
    Score,
    Summary,
    as_json,
    by_surface,
    compute_per_cell,
    compute_spent_per_cell,
    families,
    ratio,
    score,
    summarise,
    trials_per_cell,
)
from search.budgets import MOST_TRIALS_PER_CELL
from search.recorded import names, table
from search.surfaces import HOSTILE, PAPER

PAPER_LIKE: Final = "paper-like"
SNAPPED: Final = "paper-like, snapped"
RECORDED: Final = "recorded"
STOCK: Final = "stock tpe"
FIRST_SEED: Final = 10_000  # draws from here on are fresh: nothing was developed on them
MOST_TRIALS: Final = 1.3
LEAST_RATIO: Final = 5.0
WORST_TO_RANDOM: Final = 1.1
NOTES: Final = (
    "Trials per cell: of a budget until found, over its variants; mean over surfaces, with the 95 % interval of a "
    "bootstrap over surfaces; median over budgets, with their middle 90 %. Found: the incumbent's true loss is within "
    "1 % of the grid's best, its rate within a step of its variant's best. Never: share of budgets where it was not; "
    f"they count with the whole grid, and with {REPEATING} times the grid for stock searchers, which repeat points, "
    "except where noise hides the best: where the lowest observed loss of the grid is none that counts as found. "
    "Compute: of all budgets of a surface until found, over that of one trial in each cell; a diverged trial costs a "
    "whole one, a pruned one its share. Stops at: trials per cell, and compute, when the sampler itself proposes no "
    f"more, or at the {MOST_TRIALS_PER_CELL} trials a cell at which a search ends it: what its user pays, right or "
    "not; right: share of budgets with a best incumbent then. Stock tpe's compute is that until found, for it never "
    "stops: over this one's until found, where what trend has not found when it stops counts as never found; and over "
    "this one's until it stops. With doubt 0 trend goes on until it has found, as the others do. That and gp are "
    "stopped when they have found, so their later regret is that of their find: the figure leaves it out. "
    "Recorded grids are searched again and again: their intervals are those of the searchers' chance, not of other "
    "studies."
)


@dataclass(frozen=True, slots=True)
class Task:
    """One searcher on one surface: draw `number` of a family, or a recorded table (by its name), with a seed.

    `slices` trials run at a time, where the searcher is one of the product's; 1 elsewhere.
    """

    searcher: str
    family: str
    number: int | str
    seed: int
    slices: int = 1


@dataclass(frozen=True, slots=True)
class Done:
    """What came of it: a score for each budget, the time it took, the proposals it made."""

    scores: list[Score]
    seconds: float
    proposals: int


def run(task: Task) -> Done:
    """Go through a surface with a searcher."""
    here = searchers()[task.searcher]
    recorded = table(str(task.number)) if task.family == RECORDED else None
    draw = {**PAPER, **HOSTILE}
    surface = (
        recorded.alone(task.seed % len(recorded.seeds)) if recorded is not None else draw[task.family](int(task.number))
    )
    begun = time.perf_counter()
    found = here.search(Place(surface, recorded, task.slices), task.seed)
    seconds = time.perf_counter() - begun
    scores = [
        score(
            surface,
            budget,
            task.searcher,
            task.seed,
            steps,
            given_up=surface.points(budget) * (REPEATING if here.repeats else 1),
            stops=task.searcher == "trend",
        )
        for budget, steps in enumerate(found)
    ]
    return Done(scores, seconds, sum(map(len, found)))


def tasks(options: Namespace) -> Iterator[Task]:
    """Everything to run, the slow first."""
    counts = {PAPER_LIKE: options.paper_like, SNAPPED: options.snapped} | dict.fromkeys(HOSTILE, options.hostile)
    for name in sorted(options.searchers or searchers(), key=lambda name: name != "gp"):
        for family, count in counts.items():
            if name not in PRUNING:
                numbers = range(options.first_seed, options.first_seed + count)
                yield from (Task(name, family, number, number, options.slices) for number in numbers)
        seeds = range(options.first_seed, options.first_seed + options.recorded)
        yield from (Task(name, RECORDED, of, seed, options.slices) for of in names() for seed in seeds)


def measure(options: Namespace) -> dict[str, list[Done]]:
    """Run everything, in so many processes; by searcher."""
    found: dict[str, list[Done]] = {}
    todo = list(tasks(options))
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for task, done in zip(todo, pool.imap(run, todo, chunksize=1), strict=True):
            found.setdefault(task.searcher, []).append(done)
    return {name: found[name] for name in searchers() if name in found}


# ---------------------------------------------------------------- tables


def _share(value: float, digits: int = 0) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.{digits}f} %"


def _interval(value: Estimate | None, digits: int = 2) -> str:
    if value is None:
        return "-"
    return f"{value.value:.{digits}f} {value.low:.{digits}f}-{value.high:.{digits}f}"


def _stops(of: Summary) -> str:
    return "-" if math.isnan(of.spent) else f"{of.spent:.2f} ({of.spent_compute:.2f})"


def stock_over(scores: list[Score], of: dict[str, list[Score]]) -> tuple[Estimate | None, Estimate | None]:
    """Stock TPE's compute until found over that of a searcher until found, and until it stops by itself, if it does."""
    stock = of.get(STOCK, [])
    stops = all(one.spent is not None for one in scores)
    return (
        ratio(scores, stock, compute_per_cell),
        ratio(scores, stock, compute_per_cell, compute_spent_per_cell) if stops else None,
    )


def until_found(family: str, of: dict[str, list[Score]]) -> RichTable:
    """Trials and compute until found, a row for each searcher."""
    heads = (
        "trials per cell",
        "median, 90 %",
        "never",
        "compute",
        "stock tpe's compute\n/ until found",
        "stock tpe's compute\n/ until it stops",
        "trials / \nrandom's",
        "stops at\n(compute)",
        "right",
    )
    title = f"{family}: until each budget's best is found, and until the sampler stops by itself"
    shown = RichTable("searcher", *heads, title=title, title_justify="left")
    for name, scores in of.items():
        all_of = summarise(scores)
        found, stopped = stock_over(scores, of)
        random = ratio(of.get("random", []), scores, trials_per_cell)
        shown.add_row(
            name,
            _interval(all_of.trials),
            f"{all_of.median:.2f} {all_of.spread[0]:.2f}-{all_of.spread[1]:.2f}",
            _share(all_of.never),
            _interval(all_of.compute),
            _interval(found),
            _interval(stopped),
            _interval(random),
            _stops(all_of),
            _share(all_of.right),
        )
    return shown


def regrets(family: str, of: dict[str, list[Score]]) -> RichTable:
    """Regret after so many trials of a budget, a row for each searcher."""
    title = f"{family}: regret in per cent of the best loss; mean; median, middle 90 % of budgets"
    shown = RichTable("searcher", *(f"after {k}" for k in REGRET_AFTER), title=title, title_justify="left")
    for name, scores in of.items():
        if name in PRUNING:
            continue
        all_of = summarise(scores)
        each = zip(all_of.regret, all_of.regret_median, all_of.regret_spread, strict=True)
        shown.add_row(
            name,
            *(f"{100 * m:.2f}\n{100 * half:.2f}, {100 * low:.2f}-{100 * high:.1f}" for m, half, (low, high) in each),
        )
    return shown


def bars(by_family: dict[str, dict[str, list[Score]]]) -> RichTable:
    """What is asked of trend and what it does, and who does better than it, on every family."""
    heads = (
        "trials per cell\nuntil found",
        "until it stops\n(compute)",
        "stock tpe's compute\n/ until found",
        "stock tpe's compute\n/ until it stops",
        "its trials\n/ random's",
        "found with fewer trials",
    )
    title = (
        f"trend against its bars: {MOST_TRIALS:g} trials per cell and {LEAST_RATIO:g} times less compute than stock "
        f"tpe on {PAPER_LIKE} surfaces, {WORST_TO_RANDOM:g} times random's trials on the others"
    )
    shown = RichTable("family", "searcher", *heads, title=title, title_justify="left")
    for family, of in by_family.items():
        for name in (name for name in ("trend", TREND_ON) if name in of):
            all_of = summarise(of[name])
            mine = all_of.trials.value
            others = {
                other: value.value * mine
                for other, scores in of.items()
                if other not in ("trend", TREND_ON) and (value := ratio(of[name], scores, trials_per_cell)) is not None
            }
            fewer = [f"{other} {value:.2f}" for other, value in others.items() if value < mine]
            shown.add_row(
                family,
                name,
                _interval(all_of.trials),
                _stops(all_of),
                *map(_interval, stock_over(of[name], of)),
                _interval(ratio(of.get("random", []), of[name], trials_per_cell)),
                ", ".join(fewer) or "-",
            )
    return shown


def tell(report: Report, done: dict[str, list[Done]]) -> list[Score]:
    """Print everything; gives the scores."""
    scores = [one for dones in done.values() for here in dones for one in here.scores]
    for family, of in families(scores).items():
        first = max(of.values(), key=len)
        surfaces = len({one.surface for one in first})
        out_of_reach = _share(summarise(first).hidden)
        least = statistics.fmean(1 / one.cells for one in first)
        what = (
            f"{surfaces} surfaces"
            if family != RECORDED
            else f"{len(by_surface(first))} searches of {surfaces} recorded grids"
        )
        report.say(
            f"\n{family}: {what}, {len(first)} budgets; noise hides the best of {out_of_reach}; "
            f"who knew the best would need {least:.2f} trials per cell"
        )
        report.show(until_found(family, of))
        report.show(regrets(family, of))
    shown = RichTable("searcher", "ms per proposal", title="Time of the searchers themselves", title_justify="left")
    for name, dones in done.items():
        shown.add_row(name, f"{1000 * sum(d.seconds for d in dones) / sum(d.proposals for d in dones):.2f}")
    report.show(shown)
    if any(one.searcher == "trend" for one in scores):
        report.show(bars(families(scores)))
    report.say(NOTES)
    return scores


def write(folder: Path, scores: Sequence[Score], done: dict[str, list[Done]], first_seed: int) -> None:
    """Summaries and every score as JSON, and the figure."""
    from benchmarks.sampler_figure import draw

    folder.mkdir(parents=True, exist_ok=True)
    summaries = {
        family: {name: dataclasses.asdict(one) for name, one in of.items()} for family, of in as_json(scores).items()
    }
    seconds = {name: sum(d.seconds for d in dones) / sum(d.proposals for d in dones) for name, dones in done.items()}
    content = {
        "first_seed": first_seed,
        "regret_after": REGRET_AFTER,
        "summaries": summaries,
        "seconds_per_proposal": seconds,
        "scores": [dataclasses.asdict(one) for one in scores],
    }
    (folder / "samplers.json").write_text(json.dumps(_finite(content), indent=1) + "\n", encoding="utf-8")
    draw(scores).savefig(folder / "samplers.png")


def _finite(value: object) -> object:
    """JSON has no infinity and no NaN: null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def main() -> None:
    parser = arguments("Compare samplers on loss surfaces.")
    parser.add_argument("--paper-like", type=int, default=120, help="surfaces like the paper's")
    parser.add_argument("--snapped", type=int, default=40, help="the same with the epochs of the paper's grid")
    parser.add_argument("--hostile", type=int, default=20, help="surfaces of each family that breaks an assumption")
    parser.add_argument("--recorded", type=int, default=10, help="searches of each recorded table")
    parser.add_argument(
        "--first-seed",
        type=int,
        default=FIRST_SEED,
        help=f"number of the first draw of each family and of the first search of each table; {FIRST_SEED} (the "
        "default) and more: fresh, to quote; less: for development",
    )
    parser.add_argument("--searchers", nargs="+", choices=list(searchers()), help="those only")
    parser.add_argument("--slices", type=int, default=1, help="trials that run at a time, for the product's samplers")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=Path("runs/samplers"), help="folder for samplers.json and .png")
    parser.add_argument("--proposal", action="store_true", help="time one proposal with 10,000 finished trials instead")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes share the cores
    report = Report("Samplers on loss surfaces")
    if options.proposal:
        from benchmarks.proposal import tell_proposals

        tell_proposals(report, quick=options.quick)
    elif options.first_seed < 0:
        parser.error(f"--first-seed: {options.first_seed} given; allowed: 0 or more")
    else:
        if options.quick:
            options.paper_like, options.snapped, options.hostile, options.recorded = 8, 4, 2, 2
        begun = time.perf_counter()
        done = measure(options)
        fresh = "" if options.first_seed >= FIRST_SEED else f": below {FIRST_SEED}, so for development, not to quote"
        report.say(f"Draws and seeds from {options.first_seed} on{fresh}")
        scores = tell(report, done)
        write(options.out, scores, done, options.first_seed)
        report.say(
            f"{time.perf_counter() - begun:.0f} s; {options.out / 'samplers.json'}, {options.out / 'samplers.png'}"
        )
    report.finish(options.report)


if __name__ == "__main__":
    main()
