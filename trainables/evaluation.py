"""The held-out loss and accuracy of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainables.lockstep import HostBatch, in_step
from trainables.runtime import Precision, Runtime
from trainables.step import evaluation_step


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Mean cross entropy (nats per image, no label smoothing), top-1 accuracy, and how many images they are over."""

    loss: float
    accuracy: float
    images: int


def evaluate(
    model: nn.Module,
    batches: Iterable[HostBatch],
    runtime: Runtime,
    precision: Precision,
    should_stop: Callable[[], bool] = lambda: False,
) -> HeldOut | None:
    """Evaluate `model` on this worker's `batches`, summed over all workers in float64; None if stopped before the end.

    Every worker must bring the same number of batches; images of weight 0 (padding, unreadable) do not count.
    Leaves the model's mode as it was. Raises `ValueError` if no image counts.
    """
    was_training = model.training
    model.eval()
    step = runtime.compile(evaluation_step(model, lambda: runtime.autocast(precision)))
    sums: list[Tensor] = []
    stopped = False
    for batch, (stopped,) in in_step(iter(batches), runtime, should_stop):
        if stopped:
            break
        sums.append(step(runtime.to_device(batch)))
    model.train(was_training)
    if stopped:
        return None
    per_batch = torch.stack(sums).to("cpu", torch.float64) if sums else torch.zeros(1, 3, dtype=torch.float64)
    loss, correct, images = runtime.all_reduce_sum(per_batch.sum(0)).tolist()
    if not images:
        raise ValueError("no held-out image could be read: there is nothing to evaluate on")
    return HeldOut(loss=loss / images, accuracy=correct / images, images=round(images))
