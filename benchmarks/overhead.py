"""Overhead: what a search costs beyond the training steps themselves.

(a) Seconds from a suggestion to the trial's first step, ours against the documented pattern (a Tune function that
    builds a TorchTrainer), in the same run and with the same trials; and what the first trial's seconds are made of.
(b) Wall time of a whole search over its productive step time per slot (a slot is a slice), without the start of the
    cluster, which is named; and where the rest went.

    python -m benchmarks.overhead [--quick] [--long] [--report FILE]

--long measures (b) with trials of 60 s as well, which takes several minutes.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.table import Table

from benchmarks.report import Report, arguments
from benchmarks.searches import (
    Search,
    Split,
    images_per_second_alone,
    run_module,
    run_search,
    split,
    steps_in,
    trial,
    write_study,
)
from trainables.meter import BUCKETS

TARGET_FURTHER_S, TARGET_RATIO = 0.2, 1.05


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--long", action="store_true", help="measure trials of 60 s as well")
    options = parser.parse_args()
    report = Report("Overhead: what a search costs beyond its training steps")
    with tempfile.TemporaryDirectory(prefix="convscale-bench-") as name:
        folder = Path(name)
        report_starts(report, folder, trials=4 if options.quick else 10, peer_trials=1 if options.quick else 3)
        alone = images_per_second_alone(folder)
        lengths_s = [3.0] if options.quick else [10.0, 60.0] if options.long else [10.0]
        rows = []
        for length_s in lengths_s:
            for slices in (1, 2):
                trials = 2 * slices if options.quick else 3 * slices if length_s > 30 else 10 * slices
                study = write_study(
                    folder, f"{slices}-of-{length_s:g}s", slices, trials, steps=steps_in(length_s, alone)
                )
                rows.append((length_s, run_search(study, folder, slices)))
        report_ratios(report, rows, alone)
    report.finish(options.report)


# ------------------------------------------------------------------------------------------ (a) from suggestion to step


def report_starts(report: Report, folder: Path, *, trials: int, peer_trials: int) -> None:
    """Measure and print (a)."""
    tiny = {"steps": 12, "image_size": 8}
    search = run_search(write_study(folder, "starts", 1, trials, **tiny), folder, 1)
    suggested = {record["trial"]: record.time for record in search.of("trial_suggested")}
    started = {record["trial"]: suggested[record["trial"]] + record["wait_s"] for record in search.of("trial_started")}
    ours = sorted((suggested[name], started[name]) for name in started)
    ended = sorted(record.time for record in search.of("trial_ended"))
    our_gaps = [after - before for before, (_, after) in zip(ended, ours[1:], strict=False)]

    moments = folder / "peer.json"
    (folder / "trial.json").write_text(json.dumps(trial(folder / "peer", **tiny).to_dict()))
    peer_called = time.time()
    run_module("benchmarks.documented_pattern", str(folder / "trial.json"), str(moments), str(peer_trials))
    peer = json.loads(moments.read_text())
    theirs = [(one["suggested"], one["started"]) for one in peer["trials"]]
    peer_gaps = [
        after["started"] - before["ended"] for before, after in zip(peer["trials"], peer["trials"][1:], strict=False)
    ]

    table = Table("seconds", "ours", "documented pattern", "ours is faster by", title="(a) From a suggestion to a step")
    _compare(table, "first trial: suggestion to first step", [ours[0][1] - ours[0][0]], [theirs[0][1] - theirs[0][0]])
    our_further, peer_further = [b - a for a, b in ours[1:]], [b - a for a, b in theirs[1:]]
    _compare(table, f"each further trial (target {TARGET_FURTHER_S})", our_further, peer_further)
    _compare(table, "end of a trial to the next one's first step", our_gaps, peer_gaps)
    _compare(table, "the command to the first step", [ours[0][1] - search.called], [theirs[0][1] - peer_called])
    report.show(table)
    report.show(first_trial(search, ours[0]))
    report.say(
        f"Measured: {trials} trials of ours, {peer_trials} of the documented pattern, one slot each, {tiny['steps']} "
        f"steps of F0 at width 1/16 and {tiny['image_size']} px; median (lowest to highest). Nothing is estimated."
    )


def _compare(table: Table, name: str, ours: list[float], theirs: list[float]) -> None:
    ratio = f"{statistics.median(theirs) / statistics.median(ours):.0f} x" if ours and theirs else "-"
    table.add_row(name, _spread(ours), _spread(theirs), ratio)


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    middle = _seconds(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({_seconds(min(values))} to {_seconds(max(values))})"


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.1f}"


def first_trial(search: Search, first: tuple[float, float]) -> Table:
    """What lies between the command and the first trial's first step."""
    moments, slice_ = search.moments, search.moments["slices"]["slice-0"]
    suggested, started = first
    served = slice_["ready"] - slice_["import_s"]
    process = max(slice_["process"], moments["leased"])
    stages = [
        ("our imports: study file, data, tables", search.called, moments["own_imports"]),
        ("importing Ray", moments["own_imports"], moments["ray_imports"]),
        ("the study file and its data, storage, ledger", moments["ray_imports"], moments["entering"]),
        ("ray.init and the broker (budgets are worked out beside it)", moments["entering"], moments["entered"]),
        ("the slice's Ray Train run: its controller, placement", moments["leased"], process),
        ("its worker process: start, importing Ray", process, served),
        ("its worker process: importing torch, the loop, timm", served, slice_["ready"]),
        ("the trial: images, model, optimiser, first batch asked for", slice_["ready"], started),
    ]
    table = Table("stage", "seconds", "from the command on", title="(a) What the first trial waits for")
    for name, begin, end in stages:
        table.add_row(name, f"{end - begin:.1f}", f"{begin - search.called:.1f} to {end - search.called:.1f}")
    table.add_row(
        "(beside it: views, ledger, sampler, Tune)", "", f"to the first suggestion at {suggested - search.called:.1f}"
    )
    return table


# --------------------------------------------------------------------------------------------------- (b) whole searches


def report_ratios(report: Report, searches: list[tuple[float, Search]], alone: float) -> None:
    """Print (b)."""
    splits = [(length_s, search, split(search)) for length_s, search in searches]
    heads = [f"{length_s:g} s, {search.slices} slot{'s' * (search.slices > 1)}" for length_s, search, _ in splits]
    table = Table("trials of about", *heads, title="(b) Wall time over productive step time per slot")

    def row(name: str, show: Callable[[Split], str]) -> None:
        table.add_row(name, *(show(one) for _, _, one in splits))

    def seconds_row(name: str, seconds: Callable[[Split], float]) -> None:
        row(name, lambda x: f"{seconds(x):6.2f} s {100 * seconds(x) / x.productive:6.2f} %")

    row("trials of a slot; productive seconds of each", lambda x: f"{x.trials:g}; {x.productive / x.trials:.1f}")
    row(f"ratio, whole search (target {TARGET_RATIO})", lambda x: f"{x.ratio:.3f}")
    row("  up to the last result", lambda x: f"{x.ratio_of_trials:.3f}")
    row("  while every slot has work", lambda x: f"{x.ratio_busy:.3f}")
    row("  whole search of 100 trials a slot, estimated", lambda x: f"{x.ratio_with(100):.3f}")
    table.add_section()
    for bucket in BUCKETS:
        if any(one.buckets[bucket] >= 0.0005 for _, _, one in splits):
            seconds_row(bucket.replace("_", " "), lambda x, bucket=bucket: x.buckets[bucket])  # type: ignore[misc]
    seconds_row("between trials", lambda x: x.between_trials)
    seconds_row("no trial left", lambda x: x.no_trial_left)
    for part in splits[0][2].closing:
        seconds_row(f"end: {part}", lambda x, part=part: x.closing[part])  # type: ignore[misc]
    table.add_section()
    seconds_row("left out: start of the cluster", lambda x: x.start_of_cluster)
    row("images/s of a trial", lambda x: f"{x.images_per_second:.0f} ({x.images_per_second / alone:.2f} of alone)")
    report.show(table)
    report.say(
        "Measured from the ledgers, per slot, in per cent of its productive time. Between trials: the final "
        "checkpoint's writing, ledger, sampler, Tune, broker. Start of the cluster: from the command until a slot's "
        f"first trial is being set up. Alone, the same loop trains {alone:.0f} images/s on one thread; what a slot is "
        "slower beside driver, Ray (which gives workers a low priority) and other slots lies in its productive time, "
        "not in the ratio. Estimated: only the row that says so, from this search's cost of a trial and of its end."
    )


if __name__ == "__main__":
    main()
