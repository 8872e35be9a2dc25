"""The peer of the overhead benchmark: a Tune function that builds a TorchTrainer for each trial, as Ray documents it.

    python -m benchmarks.documented_pattern TRIAL.json MOMENTS.json TRIALS

OptunaSearch proposes; each trial's worker imports torch and timm and runs `trainables.loop.train`, the loop that our
slices run. Settings are Ray's own; trials run one after another. The moments of each trial are written into
MOMENTS.json: when it was suggested, when its loop began its first step, and when it ended. See
https://docs.ray.io/en/latest/train/user-guides/hyperparameter-optimization.html.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import optuna
import ray
import ray.train
import ray.tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search.optuna import OptunaSearch


class TimedOptunaSearch(OptunaSearch):  # type: ignore[misc]
    """Notes in each suggestion when it was made."""

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        suggestion = super().suggest(trial_id)
        return None if suggestion is None else {**suggestion, "suggested": time.time()}


def train_loop(config: dict[str, Any]) -> None:
    """Runs in the Ray Train worker."""
    from trainables.config import TrialConfig
    from trainables.loop import train
    from trainables.runtime import select_runtime

    started: list[float] = []

    def report(event: dict[str, Any]) -> None:
        if event["event"] == "started":
            started.append(time.time())

    trial = TrialConfig.from_dict(config["trial"])
    result = train(trial, select_runtime("cpu", cores=1), report)
    moments = {"suggested": config["suggested"], "started": started[0], "ended": time.time()}
    ray.train.report({"heldout_loss": result.heldout_loss, **moments})


def tune_function(config: dict[str, Any]) -> None:
    """The Tune trial: a Ray Train run of its own."""
    from trainables.config import OptimiserConfig, TrialConfig

    trial = TrialConfig.from_dict(config["trial"])
    name = ray.tune.get_context().get_trial_id()
    trial = replace(
        trial,
        optimiser=OptimiserConfig(learning_rate=config["learning_rate"]),
        checkpoint=replace(trial.checkpoint, folder=f"{config['folder']}/{name}"),
    )
    TorchTrainer(
        train_loop,
        train_loop_config={"trial": trial.to_dict(), "suggested": config["suggested"]},
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(
            name=f"train-{name}", storage_path=config["folder"], callbacks=[TuneReportCallback()]
        ),
    ).fit()


def main() -> None:
    trial, target, trials = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), int(sys.argv[3])
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        ray.init(num_cpus=4, log_to_driver=False)
        cluster = time.time()
        space = {
            "learning_rate": ray.tune.loguniform(0.1, 0.8),
            "trial": trial,
            "folder": folder,
        }
        results = ray.tune.Tuner(
            tune_function,
            param_space=space,
            tune_config=ray.tune.TuneConfig(
                num_samples=trials,
                max_concurrent_trials=1,
                search_alg=TimedOptunaSearch(metric="heldout_loss", mode="min"),
            ),
            run_config=ray.tune.RunConfig(name="tune", storage_path=folder, verbose=0),
        ).fit()
        found = [{key: result.metrics[key] for key in ("suggested", "started", "ended")} for result in results]
        ray.shutdown()
    found.sort(key=lambda moment: moment["suggested"])
    target.write_text(json.dumps({"began": began, "cluster": cluster, "trials": found}))


if __name__ == "__main__":
    main()
