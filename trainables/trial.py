"""The moving parts of one trial in training, and how they become a checkpoint and come back from one."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from models.costs import costs
from models.families import build_model
from models.forms import as_built, as_trained
from trainables.checkpoint import Checkpoints
from trainables.config import ModelConfig, TrialConfig, TrialRefused, flat
from trainables.losses import Losses
from trainables.meter import Meter
from trainables.optimiser import Optimiser, WeightAverage
from trainables.runtime import Runtime

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrialResult:
    """How a trial ended, after `step` steps.

    `heldout_loss` (nats per image, no label smoothing), `heldout_accuracy` (top-1) and `ema_heldout_loss` (of the
    averaged weights) are there only for a finished trial; `reason` only for a diverged one. `train_loss`: mean since
    the last log point. `skipped_images`: how often training met an image it could not read; `skipped_heldout_images`:
    how many of the held-out ones could not be. `meter`: `Meter.summary()`.
    """

    outcome: Literal["finished", "diverged", "stopped"]
    step: int
    heldout_loss: float | None
    heldout_accuracy: float | None
    ema_heldout_loss: float | None
    train_loss: float | None
    skipped_images: int
    meter: dict[str, Any]
    reason: str | None
    skipped_heldout_images: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON-serialisable values."""
        return dataclasses.asdict(self)


@dataclass(slots=True)
class Trial:
    """A trial after `step` steps. `skipped` counts unreadable images met by this worker."""

    config: TrialConfig
    model: nn.Module
    optimiser: Optimiser
    average: WeightAverage | None
    losses: Losses
    meter: Meter
    step: int = 0
    skipped: int = 0

    @classmethod
    def at_start(cls, config: TrialConfig, runtime: Runtime, meter: Meter) -> Trial:
        """The trial before its first step: a function of the config alone, whatever this process did before."""
        runtime.seed(config.seed)
        model = runtime.place(_build(config.model), loop_from=config.loop_from)
        decay = config.optimiser.ema_decay
        trial = cls(
            config=config,
            model=model,
            optimiser=Optimiser(model, config.optimiser),
            average=WeightAverage(model, decay) if decay is not None else None,
            losses=Losses(config.divergence, config.model.classes),
            meter=meter,
        )
        runtime.fork_rng(config.seed)
        return trial

    def snapshot(self, runtime: Runtime, result: TrialResult | None = None) -> dict[str, Any] | None:
        """Everything that a restart needs, on the host; None but for rank 0. All workers must call it."""
        rng, skipped = runtime.rng_state(), self.skipped_by_all(runtime)
        if runtime.workers.rank != 0:
            return None
        return {
            "config": identity(self.config),
            "step": self.step,
            "model": self._saved(self.model.state_dict(), runtime),
            "momenta": self._saved(self.optimiser.state_dict(), runtime),
            "average": self._saved(self.average.model.state_dict(), runtime) if self.average is not None else None,
            "rng": rng,
            "losses": self.losses.to_dict(),
            "skipped": skipped,
            "threads": torch.get_num_threads(),
            "meter": self.meter.to_dict(),
            "time": time.time(),
            "result": result.to_dict() if result is not None else None,
        }

    def restore(self, state: dict[str, Any], runtime: Runtime) -> None:
        """Go back to where `snapshot` was taken, but for the meter, which only goes forward.

        On the CPU what follows is the same bit for bit only with the same number of threads.
        """
        threads = torch.get_num_threads()
        if runtime.device.type == "cpu" and state["threads"] != threads:
            log.warning(
                "%s goes on with %d threads and was trained with %d: its losses may differ in their last digits",
                self.config.trial_id,
                threads,
                state["threads"],
            )
        self.step = state["step"]
        self.model.load_state_dict(self._restored(state["model"], runtime))
        self.optimiser.load_state_dict(self._restored(state["momenta"], runtime))
        if self.average is not None:
            self.average.model.load_state_dict(self._restored(state["average"], runtime))
        self.losses.load(state["losses"])
        self.skipped = state["skipped"] if runtime.workers.rank == 0 else 0
        if not runtime.set_rng_state(state["rng"]):
            # Another number of workers, or another device: other dropout masks, as good as those it would have drawn.
            runtime.fork_rng(self.config.seed + self.step)

    def _saved(self, values: dict[str, Tensor], runtime: Runtime) -> dict[str, Tensor]:
        """Values by parameter names as they are saved: whatever runtime trained them, any other can go on."""
        return as_built(self.model, runtime.to_host(values))

    def _restored(self, values: dict[str, Tensor], runtime: Runtime) -> dict[str, Tensor]:
        """The inverse of `_saved`."""
        return runtime.from_host(as_trained(self.model, values))

    def skipped_by_all(self, runtime: Runtime) -> int:
        """Unreadable images met by all workers together."""
        return round(runtime.workers.sum(torch.tensor([float(self.skipped)])).item())

    def ended(
        self,
        outcome: Literal["finished", "diverged", "stopped"],
        runtime: Runtime,
        *,
        heldout_loss: float | None = None,
        heldout_accuracy: float | None = None,
        ema_heldout_loss: float | None = None,
        skipped_heldout_images: int = 0,
    ) -> TrialResult:
        """The trial's result. All workers must call it."""
        return TrialResult(
            outcome=outcome,
            step=self.step,
            heldout_loss=heldout_loss,
            heldout_accuracy=heldout_accuracy,
            ema_heldout_loss=ema_heldout_loss,
            train_loss=self.losses.logged,
            skipped_images=self.skipped_by_all(runtime),
            meter=self.meter.summary(),
            reason=self.losses.reason,
            skipped_heldout_images=skipped_heldout_images,
        )


def check(config: TrialConfig, runtime: Runtime) -> None:
    """Raise `TrialRefused` for what cannot be trained as configured on this runtime, before any work is done."""
    runtime.check_precision(config.precision)
    shares = runtime.programs * runtime.devices
    if config.steps < 1:
        raise TrialRefused(f"{config.trial_id}: steps {config.steps} is too few: train 1 or more")
    if not 0 <= config.warmup_steps <= config.steps:
        raise TrialRefused(
            f"{config.trial_id}: warmup_steps {config.warmup_steps} is longer than the run: give 0 to {config.steps}"
        )
    for name, size in (("batch_size", config.batch_size), ("eval_batch_size", config.eval_batch_size)):
        if size < 1 or size % shares:
            raise TrialRefused(
                f"{config.trial_id}: {name} {size} cannot be split over {shares} {runtime.shares_of}: give a multiple"
            )
    if config.micro_batch_size is not None and config.micro_batch_size < 1:
        raise TrialRefused(
            f"{config.trial_id}: micro_batch_size {config.micro_batch_size} is too small: give 1 or more"
        )
    devices_here = shares // runtime.workers.world
    if config.micro_batch_size is not None and config.micro_batch_size % devices_here:
        raise TrialRefused(
            f"{config.trial_id}: micro_batch_size {config.micro_batch_size} cannot be split over the devices of a "
            f"worker: give a multiple of {devices_here}"
        )
    if config.model.image_size != config.data.image_size:
        raise TrialRefused(
            f"{config.trial_id}: the model takes images of {config.model.image_size} pixels and the data gives "
            f"{config.data.image_size}: give both the same image_size"
        )


def out_of_memory(config: TrialConfig, error: torch.OutOfMemoryError) -> TrialRefused:
    """The refusal of a trial that does not fit its device: a retry would not fit either."""
    reason = str(error).split(". ")[0].split("\n")[0]
    return TrialRefused(
        f"{config.trial_id}: batch_size {config.batch_size} does not fit the device's memory ({reason}): set "
        "training.micro_batch_size (or a smaller one), lower training.eval_batch_size, or raise "
        "compute.workers_per_slice; then go on with --retry-failed"
    )


def flops_per_image(config: TrialConfig) -> float:
    """Training FLOPs of one image: as given, else counted. Raises `TrialRefused` for a model that cannot be built."""
    if config.flops_per_image is not None:
        return config.flops_per_image
    return _refusing(lambda: costs(config.model).training_flops)


def identity(config: TrialConfig) -> dict[str, Any]:
    """What a trial's result depends on: the config without its name, in which parts a step is taken, how it is
    compiled and measured, how often it logs and saves, where its data stand (the same images may have moved), and what
    becomes of images that cannot be read.
    """
    values = config.to_dict()
    for name in (
        "trial_id",
        "checkpoint",
        "log_points",
        "flops_per_image",
        "micro_batch_size",
        "eval_batch_size",
        "loop_from",
    ):
        del values[name]
    for name in ("path", "bad_images", "decode_workers"):
        del values["data"][name]
    return values


def newest_state(checkpoints: Checkpoints, config: TrialConfig) -> dict[str, Any] | None:
    """The newest whole checkpoint, or None. Raises `TrialRefused` if it is of another config, naming what differs."""
    found = checkpoints.load_latest()
    if found is None:
        return None
    state = found[1]
    saved, given = flat(state["config"]), flat(identity(config))
    for name in sorted(given):  # a checkpoint of an earlier version may hold more
        if saved.get(name) != given.get(name):
            raise TrialRefused(
                f"{checkpoints.folder}: its checkpoint is of another trial: {name} was {saved.get(name)!r} and is now "
                f"{given.get(name)!r}; give the old value, or another folder"
            )
    return state


def _build(model: ModelConfig) -> nn.Module:
    return _refusing(lambda: build_model(model, drop_rate=model.drop_rate, drop_path_rate=model.drop_path_rate))


def _refusing(call: Callable[[], T]) -> T:
    try:
        return call()
    except ValueError as error:
        raise TrialRefused(str(error)) from error
