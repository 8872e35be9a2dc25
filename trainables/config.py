"""What one trial is: plain, frozen values, with no Ray, no YAML and no device in them.

A `TrialConfig` says everything a trial's result depends on, so that the same config gives the same result in a test,
in a notebook, in a fresh process or in a worker that has served other trials. It travels as JSON (`to_dict`,
`from_dict`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from models.families import ModelSize


class TrialRefused(ValueError):  # noqa: N818 - what the trial is told, not a failure
    """The trial cannot be run as configured (the user's mistake): never retried. The message is one line."""


@dataclass(frozen=True, slots=True)
class ModelConfig(ModelSize):
    """A variant of a family, at a width and an image size, and how it is regularised."""

    drop_rate: float = 0.0
    drop_path_rate: float = 0.0


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Where the images come from, and how they become batches."""

    source: Literal["digits", "folder", "shards"]
    image_size: int
    path: str | None = None
    held_out_fraction: float = 0.2
    split_seed: int = 0
    augment: Literal["none", "shift", "crop"] = "none"
    flip: bool = False
    bad_images: Literal["error", "skip"] = "error"
    decode_workers: int = 0


@dataclass(frozen=True, slots=True)
class OptimiserConfig:
    """SGD with Nesterov momentum and adaptive gradient clipping; defaults from the study (arXiv 2310.16764,
    2102.06171).
    """

    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 2e-5
    agc_clip: float | None = 0.01
    agc_eps: float = 1e-3
    label_smoothing: float = 0.1
    ema_decay: float | None = None


@dataclass(frozen=True, slots=True)
class DivergenceConfig:
    """When a trial counts as diverged: a loss that is not finite, or above `factor` x ln(classes) for `patience`
    steps on end.
    """

    factor: float = 2.0
    patience: int = 50


@dataclass(frozen=True, slots=True)
class CheckpointConfig:
    """Where a trial's checkpoints go (any fsspec address), how often (seconds of wall time, or steps), and how many
    are kept.
    """

    folder: str
    every_s: float | None = 60.0
    every_steps: int | None = None
    keep: int = 2


LOOP_FROM: Final = 24
"""Blocks of a stage that are alike are compiled one by one below this number, and as one body from it on.

By the TPU's compiler a block in a loop takes about two fifths longer: an F3 in loops is compiled in two thirds of the
time, and held in nine tenths of the memory, but trains a fifth slower (benchmarks/aot.py). Up to F3 there is no loop;
beyond, the third stage is one, so that no program has the bodies of more than fifty blocks.
"""


@dataclass(frozen=True, slots=True)
class TrialConfig:
    """One trial. `steps` is the one unit of duration: epochs are converted once, before this object is made.

    `micro_batch_size`: examples that a worker passes through the model at once; a larger share of a batch is taken in
    parts, whose gradients are summed (None: all at once). It changes rounding only, and which masks dropout draws.
    `loop_from`: on TPUs, from how many blocks on that are alike they are one compiled body (None: never).
    `flops_per_image`: training FLOPs of one image, for the meter (None: counted at the trial's start, which takes
    seconds).
    """

    trial_id: str
    model: ModelConfig
    data: DataConfig
    optimiser: OptimiserConfig
    checkpoint: CheckpointConfig
    batch_size: int
    steps: int
    warmup_steps: int
    seed: int
    micro_batch_size: int | None = None
    eval_batch_size: int = 256
    precision: Literal["float32", "bfloat16"] = "float32"
    log_points: int = 40
    loop_from: int | None = LOOP_FROM
    flops_per_image: float | None = None
    divergence: DivergenceConfig = field(default_factory=DivergenceConfig)

    def to_dict(self) -> dict[str, Any]:
        """The config as JSON-serialisable dictionaries."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrialConfig:
        """The inverse of `to_dict`."""
        return cls(
            **{
                **values,
                "model": ModelConfig(**values["model"]),
                "data": DataConfig(**values["data"]),
                "optimiser": OptimiserConfig(**values["optimiser"]),
                "checkpoint": CheckpointConfig(**values["checkpoint"]),
                "divergence": DivergenceConfig(**values["divergence"]),
            }
        )


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, keys joined by dots; tuples become lists, as JSON would have them."""
    joined: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            joined |= flat(value, f"{prefix}{key}.")
        else:
            joined[prefix + key] = list(value) if isinstance(value, tuple) else value
    return joined
