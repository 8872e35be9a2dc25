"""Tiny trials on the real digits for the tests of the loop: an F0 of 1/32 width on 8-pixel images, a few steps."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from trainables.config import CheckpointConfig, DataConfig, ModelConfig, OptimiserConfig, TrialConfig


def tiny_trial(folder: str | Path, **changes: Any) -> TrialConfig:
    """A trial of 6 steps of 16 images; `changes` are fields of the config, or of a part as `part__field`."""
    config = TrialConfig(
        trial_id="tiny-001",
        model=ModelConfig(
            variant="F0", image_size=8, classes=10, width=1 / 32, group_size=4, stem="small", drop_rate=0.1,
            drop_path_rate=0.2,
        ),
        data=DataConfig(source="digits", image_size=8, augment="shift", held_out_fraction=0.1),
        optimiser=OptimiserConfig(learning_rate=0.4, agc_clip=0.05),
        checkpoint=CheckpointConfig(folder=str(folder), every_s=None),
        batch_size=16,
        eval_batch_size=64,
        steps=6,
        warmup_steps=1,
        seed=3,
        log_points=3,
        flops_per_image=1e6,
    )  # fmt: skip
    for name, value in changes.items():
        part, _, field = name.partition("__")
        new = dataclasses.replace(getattr(config, part), **{field: value}) if field else value
        config = dataclasses.replace(config, **{part: new})
    return config


class Events:
    """A `report` that keeps the events it was given, and a `should_stop` that answers yes from step `stop_at` on."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.events: list[dict[str, Any]] = []
        self.stop_at = stop_at
        self.polls = 0

    def __call__(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def should_stop(self) -> bool:
        self.polls += 1
        return self.stop_at is not None and self.polls > self.stop_at

    def named(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == name]
