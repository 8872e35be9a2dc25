"""What the overhead benchmark runs, and where the time of a search went: tiny studies, each in a process of its own."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from models.costs import costs
from search.ledger import Record, read_ledger
from trainables.config import CheckpointConfig, DataConfig, ModelConfig, OptimiserConfig, TrialConfig
from trainables.meter import BUCKETS, Bucket

BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class Search:
    """A search that has ended: its ledger, the moments of its process, and when that was called."""

    slices: int
    called: float
    exited: float
    moments: dict[str, Any]
    records: list[Record]

    def of(self, event: str) -> list[Record]:
        """The ledger's records of one kind."""
        return [record for record in self.records if record.event == event]


def _model(image_size: int) -> ModelConfig:
    return ModelConfig("F0", image_size, classes=10, width=1 / 16, group_size=8, stem="small")


def write_study(folder: Path, name: str, slices: int, trials: int, *, steps: int, image_size: int = 16) -> Path:
    """A study of F0 at width 1/16 on the digits, one budget of `steps` steps, `trials` learning rates."""
    size = costs(_model(image_size))
    low, high = 0.1, 0.4
    study = {
        "name": name,
        "data": {"source": "digits", "image_size": image_size, "augment": "shift"},
        "model": {"variants": ["F0"], "width": 1 / 16, "group_size": 8, "stem": "small"},
        "budgets": [f"{steps * BATCH * size.training_flops} FLOPs"],
        "epochs": {"min": 0.01, "max": 1000},
        "learning_rate": {"base": low, "factor": (high / low) ** (1 / trials), "min": low, "max": high},
        "search": {"sampler": "tpe", "trials": trials},
        "training": {
            "batch_size": BATCH,
            "precision": "float32",
            "eval_batch_size": 128,
            "checkpoint": {"every_s": 30},
        },
        "compute": {"device": "cpu", "slices": slices, "cores_per_slice": 1},
        "storage": str(folder / "runs"),
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def run_search(study: Path, folder: Path, slices: int) -> Search:
    """Run a study in a process of its own, to its end."""
    moments = folder / f"{study.stem}.json"
    called = time.time()
    run_module("benchmarks.timed_search", str(study), str(moments))
    exited = time.time()
    records = read_ledger(str(folder / "runs" / study.stem / "run-1"))
    return Search(slices, called, exited, json.loads(moments.read_text()), records)


def run_module(module: str, *arguments: str) -> None:
    """Run a module with this interpreter; a status other than 0 ends the benchmark with the last it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryFile("w+") as log:  # not a pipe: its end would come only with that of the last grandchild
        done = subprocess.run([sys.executable, "-m", module, *arguments], env=environment, stdout=log, stderr=log)
        if done.returncode:
            log.seek(0)
            raise SystemExit(f"{module} ended with status {done.returncode}:\n{log.read()[-4000:]}")


def trial(folder: Path, *, steps: int, image_size: int) -> TrialConfig:
    """The trial of `write_study`, to be run without a search."""
    size = costs(_model(image_size))
    return TrialConfig(
        trial_id="alone",
        model=_model(image_size),
        data=DataConfig("digits", image_size, augment="shift"),
        optimiser=OptimiserConfig(learning_rate=0.2),
        checkpoint=CheckpointConfig(str(folder), every_s=None),
        batch_size=BATCH,
        steps=steps,
        warmup_steps=1,
        seed=0,
        eval_batch_size=128,
        flops_per_image=float(size.training_flops),
    )


def images_per_second_alone(folder: Path) -> float:
    """How fast one slice's trial trains where nothing else runs: the loop in this process, on one thread."""
    from trainables.loop import train
    from trainables.runtime import select_runtime

    runtime = select_runtime("cpu", cores=1)
    speeds = []
    for number in range(3):
        result = train(trial(folder / f"alone-{number}", steps=30, image_size=16), runtime, lambda event: None)
        speeds.append(float(result.meter["images_per_second"]))
    return max(speeds)


def steps_in(seconds: float, images_per_second: float) -> int:
    """Steps that take about so long."""
    return max(1, round(seconds * images_per_second / BATCH))


@dataclass(frozen=True, slots=True)
class Split:
    """Where a search's time went: seconds of wall time, those of the slots as their mean.

    A slot's `wall` runs from the moment its first trial is being set up to the last trial's result. Before it lies
    `start_of_cluster`, after it `closing`, whose parts are named. `trials` is how many a slot ran.
    """

    start_of_cluster: float
    wall: float
    buckets: dict[Bucket, float]
    between_trials: float
    no_trial_left: float
    closing: dict[str, float]
    images_per_second: float
    trials: float

    @property
    def productive(self) -> float:
        """Productive seconds of a slot."""
        return self.buckets["productive"]

    @property
    def ratio(self) -> float:
        """The whole search, up to the end of its process, over its productive time."""
        return (self.wall + sum(self.closing.values())) / self.productive

    @property
    def ratio_of_trials(self) -> float:
        """The same up to the last trial's result."""
        return self.wall / self.productive

    @property
    def ratio_busy(self) -> float:
        """The same without the time that slots stand idle because no trial is left."""
        return (self.wall - self.no_trial_left) / self.productive

    def ratio_with(self, trials: int) -> float:
        """What `ratio` would be with so many trials a slot: each costs as much, the end comes once."""
        once = self.no_trial_left + sum(self.closing.values())
        return self.ratio_busy + once / (trials * self.productive / self.trials)


def split(search: Search) -> Split:
    """Read a search's ledger and moments."""
    suggested = {record["trial"]: record.time for record in search.of("trial_suggested")}
    started = {record["trial"]: record for record in search.of("trial_started")}
    ended = search.of("trial_ended")
    buckets: dict[Bucket, float] = dict.fromkeys(BUCKETS, 0.0)
    setups: dict[str, list[float]] = {}
    results: dict[str, list[float]] = {}
    for record in ended:
        begun, meter = started[record["trial"]], record["result"]["meter"]
        setup = suggested[record["trial"]] + begun["wait_s"] - meter["seconds_start_up"]
        setups.setdefault(begun["slice"], []).append(setup)
        results.setdefault(begun["slice"], []).append(record.time)
        for bucket in BUCKETS:
            buckets[bucket] += meter[f"seconds_{bucket}"] / search.slices
    last_result = max(map(max, results.values()))
    first_setup = statistics.mean(map(min, setups.values()))
    wall = last_result - first_setup
    no_trial_left = last_result - statistics.mean(map(max, results.values()))
    moments = search.moments
    return Split(
        start_of_cluster=first_setup - search.called,
        wall=wall,
        buckets=buckets,
        between_trials=wall - no_trial_left - sum(buckets.values()),
        no_trial_left=no_trial_left,
        closing={
            "Tune ends": moments["closing"] - last_result,
            "slices go home, cluster stops": moments["closed"] - moments["closing"],
            "figures, tables, tracking": moments["ended"] - moments["closed"],
            "the interpreter ends": search.exited - moments["ended"],
        },
        images_per_second=statistics.median(record["result"]["meter"]["images_per_second"] for record in ended),
        trials=len(ended) / search.slices,
    )
