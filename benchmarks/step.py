"""Whole-loop speed: images per second of our training loop against timm's own, data included, in one run.

Both loops train the same model on the same images with the same batch size and threads, in alternating rounds, so that
whatever else the machine does hits both. timm's loop runs in torch's default layout and in channels last; the better of
the two is the peer. The process is pinned to as many cores as the loops have threads, so that neither can hide its data
work on an idle core.

    python -m benchmarks.step [--quick] [--report FILE]
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from rich.table import Table

from benchmarks.report import Report, arguments
from benchmarks.timm_loop import timm_seconds
from models.costs import costs
from trainables.config import CheckpointConfig, DataConfig, ModelConfig, OptimiserConfig, TrialConfig
from trainables.loop import train
from trainables.runtime import Runtime, select_runtime


@dataclass(frozen=True, slots=True)
class Case:
    """What both loops train: a variant on the digits, for `steps` steps in each round."""

    variant: str
    image_size: int
    width: float
    group_size: int
    steps: int
    batch_size: int = 64
    threads: int = 1
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["float32", "bfloat16"] = "float32"
    decode_workers: int = 0

    @property
    def name(self) -> str:
        width = "" if self.width == 1 else f", width {self.width:g}"
        return f"{self.variant}{width}, {self.image_size} px, batch {self.batch_size}"

    @property
    def place(self) -> str:
        if self.device == "cuda":
            return f"one GPU, {self.precision}"
        return f"{self.threads} thread{'s' if self.threads > 1 else ''}, {self.precision}"


SMALL = (
    Case("F0", 8, 1 / 16, 8, steps=40),
    Case("F0", 16, 1 / 16, 8, steps=16),
    Case("F1", 16, 1 / 16, 8, steps=8),
)
ON_GPU = Case("F0", 224, 1.0, 128, steps=60, batch_size=128, device="cuda", precision="bfloat16", decode_workers=8)


@dataclass(frozen=True, slots=True)
class Speed:
    """Images per second of wall time, and per second of the process's CPU time."""

    wall: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Round:
    """The three loops, measured one after another."""

    ours: Speed
    contiguous: Speed
    channels_last: Speed


def main() -> None:
    options = arguments(__doc__.splitlines()[0]).parse_args()
    report = Report("Step: our loop against timm's")
    cases = SMALL + ((ON_GPU,) if torch.cuda.is_available() else ())
    rounds = 2 if options.quick else 7
    table = Table(
        "case", "where", "ours, images/s", "timm's, images/s", "timm's layout", "ratio", "range", "ratio by CPU time"
    )
    for case in cases:
        if options.quick:
            case = replace(case, steps=max(4, case.steps // 4))
        _add(table, case, measure(case, rounds))
    report.show(table)
    if not torch.cuda.is_available():
        report.say(f"Not measured here, for want of a GPU: {ON_GPU.name}, {ON_GPU.place}.")
    report.say(
        f"Measured: wall time from asking for the first batch to the end of the last step, {rounds} alternating rounds "
        "after one to warm up; medians; ratio = ours / the better of timm's layouts, round by round; target 1.0. "
        "By CPU time: the same of the process's own CPU seconds, against the better layout of each round; it hardly "
        "feels what else the machine does. "
        "Nothing is estimated."
    )
    report.finish(options.report)


def measure(case: Case, rounds: int) -> list[Round]:
    """Run the loops in turns, the order turned from round to round."""
    cores = os.sched_getaffinity(0)
    pinned = case.device == "cpu" and case.threads < len(cores)
    if pinned:
        os.sched_setaffinity(0, set(sorted(cores)[-case.threads :]))
    try:
        runtime = select_runtime(case.device, cores=case.threads)
        config = _config(case)
        device = torch.device(case.device)
        loops: dict[str, Callable[[], tuple[float, float]]] = {
            "ours": lambda: our_seconds(config, runtime),
            "contiguous": lambda: timm_seconds(config, device, channels_last=False),
            "channels_last": lambda: timm_seconds(config, device, channels_last=True),
        }
        found = []
        for number in range(rounds + 1):
            names = list(loops)[number % 3 :] + list(loops)[: number % 3]
            seconds = {name: loops[name]() for name in names}
            if number > 0:
                images = case.steps * case.batch_size
                found.append(
                    Round(**{name: Speed(images / wall, images / cpu) for name, (wall, cpu) in seconds.items()})
                )
        return found
    finally:
        os.sched_setaffinity(0, cores)


def our_seconds(config: TrialConfig, runtime: Runtime) -> tuple[float, float]:
    """Seconds of wall and of CPU time of the config's steps in `trainables.loop.train`, seen from outside by its
    events.
    """
    moments: dict[str, tuple[float, float]] = {}

    def report(event: dict[str, Any]) -> None:
        moments[event["event"]] = time.perf_counter(), time.process_time()

    with tempfile.TemporaryDirectory() as folder:
        train(replace(config, checkpoint=CheckpointConfig(folder, every_s=None)), runtime, report)
    (began, cpu_began), (ended, cpu_ended) = moments["started"], moments["progressed"]
    return ended - began, cpu_ended - cpu_began


def _config(case: Case) -> TrialConfig:
    stem: Literal["paper", "small"] = "small" if case.image_size <= 64 else "paper"
    model = ModelConfig(
        case.variant, case.image_size, classes=10, width=case.width, group_size=case.group_size, stem=stem
    )
    size = costs(model)
    return TrialConfig(
        trial_id="step",
        model=model,
        data=DataConfig("digits", case.image_size, augment="shift", decode_workers=case.decode_workers),
        optimiser=OptimiserConfig(learning_rate=0.1),
        checkpoint=CheckpointConfig("unused"),
        batch_size=case.batch_size,
        steps=case.steps,
        warmup_steps=2,
        seed=0,
        precision=case.precision,
        flops_per_image=float(size.training_flops),
    )


def _add(table: Table, case: Case, rounds: list[Round]) -> None:
    def median(name: str) -> float:
        return float(statistics.median(getattr(one, name).wall for one in rounds))

    peer = max(("contiguous", "channels_last"), key=median)
    ratios = sorted(one.ours.wall / getattr(one, peer).wall for one in rounds)
    cpu_ratios = sorted(one.ours.cpu / max(one.contiguous.cpu, one.channels_last.cpu) for one in rounds)
    table.add_row(
        case.name,
        case.place,
        f"{median('ours'):.0f}",
        f"{median(peer):.0f} (other: {median('channels_last' if peer == 'contiguous' else 'contiguous'):.0f})",
        peer.replace("_", " "),
        f"{statistics.median(ratios):.2f}",
        f"{ratios[0]:.2f} to {ratios[-1]:.2f}",
        f"{statistics.median(cpu_ratios):.2f} ({cpu_ratios[0]:.2f} to {cpu_ratios[-1]:.2f})"
        if case.device == "cpu"
        else "-",
    )


if __name__ == "__main__":
    main()
