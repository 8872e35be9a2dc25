"""One trial, from its config to its held-out loss.

`train` is read from top to bottom: set-up, restore, training loop, evaluation, final checkpoint. It knows of one
runtime, one folder and one `report` callable, so it runs in a test, in a notebook, or in a worker that has served
other trials, and gives the same result in each: nothing outlives it but its checkpoints. On the CPU a run that was
stopped or killed, and resumed, equals an undisturbed one bit for bit, given the same number of threads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from trainables.checkpoint import Checkpoints
from trainables.config import TrialConfig, TrialRefused
from trainables.data import DataError, Splits, open_splits
from trainables.data.pipeline import heldout_batches, train_batches
from trainables.data.readable import check_heldout
from trainables.evaluation import HeldOut, evaluate
from trainables.lockstep import agreed, in_step
from trainables.meter import Meter
from trainables.overlap import InputOverlap
from trainables.runtime import Runtime
from trainables.schedule import learning_rate_at
from trainables.step import TrainingStep
from trainables.trial import (
    Trial,
    TrialResult,
    check,
    flops_per_image,
    newest_state,
    out_of_memory,
)
from trainables.unreadable import few_unreadable, unreadable

__all__ = ["TrialResult", "train"]

_SAVING_SHARE = 1 / 20  # of the time, at most, goes to checkpoints that are written by the clock
_MEETING_S = 60.0


def train(
    config: TrialConfig,
    runtime: Runtime,
    report: Callable[[dict[str, Any]], None],
    *,
    should_stop: Callable[[], bool] = lambda: False,
    previous: dict[str, Any] | None = None,
) -> TrialResult:
    """Train one trial, or go on with it from its newest checkpoint, and evaluate it.

    `report` gets, on rank 0, `{"event": "started", "step"}`, `{"event": "progressed", "step", "points", "meter"}`
    with points `[step, training loss, learning rate, images per second]`, `{"event": "checkpointed", "step"}`,
    and `{"event": "unreadable", "images"}` with the paths of images that were left out.
    `should_stop` is asked before each step; the workers agree, so one that knows is enough. `previous` tells of an
    attempt that died: the `{"step", "meter", "time"}` of its last report (see `Meter.resume`).

    A loss that diverges ends the trial with that outcome. A trial that had ended gives its result again at once.
    Raises `TrialRefused` for what the user must mend, before any training where that can be told before; a trial that
    is refused only in its evaluation is saved first. A device's want of memory is such a refusal too.
    """
    try:
        return _train(config, runtime, report, should_stop, previous)
    except torch.OutOfMemoryError as error:
        # Where some workers go on and wait, it is an ordinary error, and all start anew.
        runtime.workers.meet(_MEETING_S)
        raise out_of_memory(config, error) from error


def _train(
    config: TrialConfig,
    runtime: Runtime,
    report: Callable[[dict[str, Any]], None],
    should_stop: Callable[[], bool],
    previous: dict[str, Any] | None,
) -> TrialResult:
    # ---- Set-up -----------------------------------------------------------------------------------------------------
    entered_at, workers = time.time(), runtime.workers
    meter = Meter(cores=runtime.cores, peak_flops_per_s=runtime.peak_flops_per_s(config.precision))
    checkpoints = Checkpoints(config.checkpoint.folder, config.checkpoint.keep)

    def find() -> dict[str, Any] | None:
        check(config, runtime)
        return newest_state(checkpoints, config)

    def set_up() -> tuple[Splits, Trial]:
        meter.flops_per_image = flops_per_image(config)
        splits = open_splits(config.data)
        if len(splits.classes) != config.model.classes:
            raise TrialRefused(
                f"{config.trial_id}: model.classes is {config.model.classes}, the data has {len(splits.classes)}: "
                "give that"
            )
        check_heldout(splits, config.data, rank=workers.rank, world=workers.world)
        try:
            return splits, Trial.at_start(config, runtime, meter)
        except torch.OutOfMemoryError as error:
            raise out_of_memory(config, error) from error

    saved = agreed(find, runtime)
    place = "none" if saved is None else f"step {saved['step']}, ended: {saved['result'] is not None}"
    if len(set(workers.gather_text(place))) > 1:
        raise RuntimeError(
            f"{config.checkpoint.folder}: the workers found different checkpoints; is the folder shared?"
        )
    if saved is not None and saved["result"] is not None:
        return TrialResult(**saved["result"])
    splits, trial = agreed(set_up, runtime)

    # ---- Restore ----------------------------------------------------------------------------------------------------
    if saved is not None:
        trial.restore(saved, runtime)
    if saved is not None:
        meter.resume(trial.step, saved["meter"], saved_at=saved["time"], previous=previous, now=entered_at)
    elif previous is not None:
        meter.resume(0, None, previous=previous, now=entered_at)
    del saved
    if workers.rank == 0:
        checkpoints.clean()
    last_saved = (trial.step, time.monotonic(), 0.0)
    overlap = InputOverlap(runtime, meter)

    @contextmanager
    def compilation_apart() -> Iterator[None]:
        """Count the time that the block's programs took to compile in its own bucket."""
        compiled_s = runtime.compile_s
        yield
        meter.move(runtime.compile_s - compiled_s, "compilation")

    def fetch() -> None:
        """Wait for the losses of the steps that were given to the device, which is productive time."""
        with meter.time(meter.bucket_of(max(trial.step - 1, 0))):
            trial.losses.fetch(runtime, trial.step)
        overlap.settle()

    def save(result: TrialResult | None = None) -> tuple[int, float, float]:
        """Write the trial as it is now; all workers take part, rank 0 writes. Returns the step, when, how long."""
        began = time.monotonic()
        with meter.time("checkpoint"):
            state = trial.snapshot(runtime, result)
            if state is not None:
                checkpoints.save(trial.step, state, final=result is not None)
                report({"event": "checkpointed", "step": trial.step})
        now = time.monotonic()
        return trial.step, now, now - began

    def checkpoint_due() -> bool:
        return workers.rank == 0 and _is_due(config, trial.step, *last_saved)

    # ---- Training loop ----------------------------------------------------------------------------------------------
    trial.model.train()
    step = TrainingStep(
        runtime.parallel(trial.model),
        trial.optimiser,
        trial.average,
        config.optimiser.label_smoothing,
        runtime,
        config.precision,
        batch_size=config.batch_size,
        micro_batch_size=config.micro_batch_size,
    )
    batches = train_batches(
        splits.train,
        config.data,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=trial.step,
        steps=config.steps,
        rank=workers.rank,
        world=workers.world,
    )
    log_steps = _log_steps(config.steps, config.log_points)
    stopped = False
    with compilation_apart():
        runtime.synchronise()  # every buffer is there, so the first step is the same program as the second
    if workers.rank == 0:
        report({"event": "started", "step": trial.step})

    def name_unreadable(images: list[str]) -> None:
        if workers.rank == 0:
            report({"event": "unreadable", "images": images})

    log_started = (trial.step, time.monotonic())
    with batches:
        stream = few_unreadable(batches, splits.train, name_unreadable)
        for host_batch, (stopped, due) in in_step(stream, runtime, should_stop, checkpoint_due):
            meter.enter(meter.bucket_of(trial.step))
            overlap.batch_came(trial.step)
            if due:
                fetch()
                last_saved = save()
            if stopped or trial.losses.diverged():
                break
            trial.skipped += unreadable(host_batch)
            learning_rate = learning_rate_at(
                trial.step,
                peak=config.optimiser.learning_rate,
                warmup_steps=config.warmup_steps,
                steps=config.steps,
            )
            share = trial.average.weight_at(trial.step) if trial.average is not None else 0.0
            with compilation_apart():
                trial.losses.add(step(host_batch, learning_rate, share))
            overlap.step_given()
            meter.count_step(trial.step, config.batch_size)
            trial.step += 1
            if trial.step in log_steps or trial.step % runtime.losses_every == 0:
                fetch()
            if trial.losses.diverged():
                break
            if trial.step in log_steps:
                now = time.monotonic()
                speed = config.batch_size * (trial.step - log_started[0]) / (now - log_started[1])
                log_started = (trial.step, now)
                train_loss = trial.losses.log()
                if workers.rank == 0:
                    points = [[trial.step, train_loss, learning_rate, speed]]
                    report({"event": "progressed", "step": trial.step, "points": points, "meter": meter.to_dict()})
            meter.enter("input_wait")
        fetch()
    if not stopped and trial.step and trial.skipped_by_all(runtime) == trial.step * config.batch_size:
        raise DataError(
            f"{config.trial_id}: none of the {trial.step * config.batch_size} images met in training could be read: "
            "put good ones in their places, and go on with --retry-failed"
        )
    meter.enter("evaluation")
    if trial.losses.diverged():
        result = trial.ended("diverged", runtime)
        save(result)
        return result

    # ---- Evaluation -------------------------------------------------------------------------------------------------
    def held_out(model: nn.Module) -> HeldOut | None:
        """The model on the held-out images; None if the trial is to stop."""
        with heldout_batches(
            splits.heldout, config.data, batch_size=config.eval_batch_size, rank=workers.rank, world=workers.world
        ) as batches:
            stream = few_unreadable(batches, splits.heldout, name_unreadable)
            with compilation_apart():
                return evaluate(model, stream, runtime, config.precision, should_stop)

    try:
        weights = None if stopped else held_out(trial.model)
        averaged = held_out(trial.average.model) if weights is not None and trial.average is not None else None
    except Exception as error:
        together = workers.world == 1 or isinstance(error, TrialRefused)  # of other errors only one worker may know
        if together and trial.step > last_saved[0]:
            save()
        raise
    if weights is None or (trial.average is not None and averaged is None):
        if trial.step > last_saved[0]:
            save()
        return trial.ended("stopped", runtime)

    # ---- Final checkpoint -------------------------------------------------------------------------------------------
    if math.isfinite(weights.loss):
        result = trial.ended(
            "finished",
            runtime,
            heldout_loss=weights.loss,
            heldout_accuracy=weights.accuracy,
            ema_heldout_loss=averaged.loss if averaged is not None and math.isfinite(averaged.loss) else None,
            skipped_heldout_images=weights.unreadable,
        )
    else:  # the last steps broke the weights after their losses were taken
        trial.losses.reason = f"held-out loss is {weights.loss} at step {trial.step}"
        result = trial.ended("diverged", runtime)
    save(result)
    return result


def _log_steps(steps: int, points: int) -> frozenset[int]:
    """The steps after which to log: `points` of them, spread evenly over the run, always the last."""
    points = min(max(points, 1), steps)
    return frozenset(round((k + 1) * steps / points) for k in range(points))


def _is_due(config: TrialConfig, step: int, saved_step: int, saved_at: float, took_s: float) -> bool:
    """Whether a checkpoint is to be written at `step`, the last having been at `saved_step`, in `took_s` seconds."""
    every = config.checkpoint
    if step == saved_step:
        return False
    if every.every_steps is not None and step % every.every_steps == 0:
        return True
    return every.every_s is not None and time.monotonic() - saved_at >= max(every.every_s, took_s / _SAVING_SHARE)
