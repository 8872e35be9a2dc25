"""A made-up but plausible ledger: a small study whose losses follow a law, with a valley in the learning rate.

Nothing is trained. The best loss of a variant at C training FLOPs is `a C^-b` times a penalty for being too deep or
too shallow for C, and rises as a parabola in log2(learning rate / best learning rate). Rates far above the
best diverge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Any

from search.ledger import Record

BUDGETS = (2e11, 6e11, 1.8e12)
VARIANTS = {
    "F0": (6.1e6, 41_000),
    "F1": (1.15e7, 77_000),
    "F3": (2.23e7, 149_000),
}  # training FLOPs an image, parameters
RATES = tuple(0.025 * 2**k for k in range(7))  # 0.025 to 1.6
TRAIN_EXAMPLES, BATCH_SIZE, CORES = 1437, 64, 1
BUCKETS = ("productive", "input_wait", "evaluation", "checkpoint", "start_up", "compilation", "repeated", "restart")


def label(flops: float) -> str:
    """A budget as the study file writes it: 2e11 -> "2e11 FLOPs"."""
    return f"{flops:.2g} FLOPs".replace("e+", "e")


def meter(flops: float, images: int, seconds: float) -> dict[str, Any]:
    """The summary a trial's meter would give: nine tenths of the time productive."""
    split = dict.fromkeys(BUCKETS, 0.0) | {"productive": 0.9 * seconds, "input_wait": 0.02 * seconds}
    split |= {"evaluation": 0.03 * seconds, "checkpoint": 0.02 * seconds, "start_up": 0.03 * seconds}
    return {
        "core_hours": split["productive"] * CORES / 3600,
        "core_hours_total": seconds * CORES / 3600,
        "flops": flops,
        "images_per_second": images / split["productive"],
        "mfu": None,
        "goodput": 0.9,
        **{f"seconds_{bucket}": value for bucket, value in split.items()},
    }


def raw_meter(summary: dict[str, Any], images: int, cost: float) -> dict[str, Any]:
    """The meter as reported during training (`Meter.to_dict`), half-way to the end that `summary` tells of."""
    seconds = {bucket: summary[f"seconds_{bucket}"] / 2 for bucket in BUCKETS}
    return {
        "cores": CORES,
        "peak_flops_per_s": None,
        "flops_per_image": cost,
        "images": images // 2,
        "flops": summary["flops"] / 2,
        "steps_reached": 0,
        "seconds": seconds,
        "core_seconds": {bucket: CORES * value for bucket, value in seconds.items()},
    }


def synthetic_records(
    *,
    budgets: Sequence[float] = BUDGETS,
    trials: int = 15,
    seed: int = 0,
    study: str = "digits",
    base_loss: float = 0.9,
    exponent: float = 0.3,
    fail: int | None = None,
    until: int | None = None,
) -> list[Record]:
    """The records of a whole study.

    `trials` per budget walk over variants and learning rates. The `fail`-th trial (from 0, over the study) fails.
    `until` cuts the ledger off after so many records, as a search in progress would leave it.
    """
    rng, now, number = Random(seed), 1.7e9, 0
    records: list[Record] = []

    def add(event: str, after: float = 0.01, **fields: Any) -> None:
        nonlocal now
        now += after
        records.append(Record(len(records), round(now, 3), event, fields))

    add("study_opened", study=study, run="run-1", study_file="name: digits\n", study_path="studies/digits.yaml",
        code_version="0.1.0", identity={}, classes=10, train_examples=TRAIN_EXAMPLES, heldout_examples=360,
        device="cpu")  # fmt: skip
    add("session_started", host="host", pid=1, slices=2, cores_per_slice=CORES, device="cpu")
    for index, budget in enumerate(budgets):
        name = label(budget)
        cells: list[dict[str, Any]] = []
        for variant, (cost, parameters) in VARIANTS.items():
            steps = round(budget / cost / BATCH_SIZE)
            epochs = steps * BATCH_SIZE / TRAIN_EXAMPLES
            cells.append({"variant": variant, "epochs": epochs, "steps": steps, "flops_per_image": cost,
                          "parameters": parameters})  # fmt: skip
        add("budget_opened", budget=name, index=index, flops=budget, trials=trials, cells=cells)
        best: str | None = None
        best_loss = math.inf
        for place in range(trials):
            cell = cells[place % len(cells)]
            # each variant's learning rates: from the middle of the grid outwards
            rank = place // len(cells) % len(RATES)
            rate = RATES[len(RATES) // 2 + (rank + 1) // 2 * (-1) ** rank]
            trial = f"{name.replace(' ', '-')}-{place:03d}"
            flops, images = cell["steps"] * BATCH_SIZE * cell["flops_per_image"], cell["steps"] * BATCH_SIZE
            add("trial_suggested", trial=trial, budget=name, variant=cell["variant"], epochs=cell["epochs"],
                steps=cell["steps"], learning_rate=rate, seed=place, flops=flops, parameters=cell["parameters"],
                params={"variant": cell["variant"], "learning_rate": rate}, batch_size=BATCH_SIZE)  # fmt: skip
            add("trial_started", trial=trial, slice=place % 2, attempt=1, step=0, wait_s=0.02)
            depth = list(VARIANTS).index(cell["variant"])
            best_rate = 0.4 * (budget / budgets[0]) ** -0.15 * 0.8**depth
            offset = math.log2(rate / best_rate)
            ideal = 0.2 + 1.6 * index / max(1, len(budgets) - 1)
            floor = base_loss * (budget / budgets[0]) ** -exponent * (1 + 0.09 * (depth - ideal) ** 2)
            loss = min(max(2.3, 2 * base_loss), floor * math.exp(0.07 * offset**2) * rng.lognormvariate(0, 0.02))
            diverged, failed = offset > 1.9, number == fail
            fraction = 0.2 if diverged or failed else 1.0
            seconds, step = flops * fraction / 5e10, round(cell["steps"] * fraction)
            work = meter(flops * fraction, round(images * fraction), seconds)
            half, ips = step // 2, work["images_per_second"]
            points = [[half, 1.5 * loss, rate, ips]]
            so_far = raw_meter(work, round(images * fraction), cell["flops_per_image"])
            add("trial_progressed", seconds / 2, trial=trial, step=half, points=points, meter=so_far)
            add("trial_checkpointed", trial=trial, step=half)
            result: dict[str, Any] = {"heldout_loss": loss, "heldout_accuracy": math.exp(-0.35 * loss), "step": step,
                                      "ema_heldout_loss": None, "train_loss": 0.9 * loss, "skipped_images": 0,
                                      "meter": work, "reason": None, "error": None}  # fmt: skip
            outcome = "failed" if failed else "diverged" if diverged else "finished"
            if outcome != "finished":
                result |= {"heldout_loss": None, "heldout_accuracy": None, "train_loss": None}
                result |= {"error": "RuntimeError: worker died 4 times"} if failed else {"reason": "loss is not finite"}
            elif loss < best_loss:
                best, best_loss = trial, loss
            add("trial_ended", seconds / 2, trial=trial, outcome=outcome, result=result)
            number += 1
        add("budget_closed", budget=name, best=best)
    add("study_ended")
    add("session_ended", reason="finished")
    return records[:until]
