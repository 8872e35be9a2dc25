"""The learning rate as a function of the step: linear warm-up, then cosine decay to zero."""

from __future__ import annotations

import math


def learning_rate_at(step: int, *, peak: float, warmup_steps: int, steps: int) -> float:
    """The learning rate of step `step` (from 0) of a run of `steps` steps.

    It rises by equal amounts over `warmup_steps` steps, is `peak` at step `warmup_steps`, and falls along half a
    cosine that would be zero at step `steps`, one past the last (arXiv 2102.06171, section 4; 2310.16764, section 2).
    Raises `ValueError` for a step outside [0, steps] or a warm-up longer than the run.
    """
    if not 0 <= step <= steps:
        raise ValueError(f"step {step} is outside the run: give one from 0 to {steps}")
    if not 0 <= warmup_steps <= steps:
        raise ValueError(f"warmup_steps {warmup_steps} does not fit a run of {steps} steps: give one from 0 to {steps}")
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    if step == steps:
        return 0.0
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - warmup_steps) / (steps - warmup_steps)))
