"""The held-out loss and accuracy of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainables.data import DataError
from trainables.lockstep import HostBatch, in_step
from trainables.runtime import Precision, Runtime
from trainables.step import evaluation_step, to_device
from trainables.unreadable import unreadable


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Mean cross entropy (nats per image, no label smoothing), top-1 accuracy, how many images they are over, and how
    many more could not be read.
    """

    loss: float
    accuracy: float
    images: int
    unreadable: int


def evaluate(
    model: nn.Module,
    batches: Iterable[HostBatch],
    runtime: Runtime,
    precision: Precision,
    should_stop: Callable[[], bool] = lambda: False,
) -> HeldOut | None:
    """Evaluate `model` on this worker's `batches`, summed over all workers in float64; None if stopped before the end.

    Every worker must bring the same number of batches; images of weight 0 (padding, unreadable) do not count.
    Leaves the model's mode as it was. Raises `DataError` if no image counts.
    """
    was_training = model.training
    model.eval()
    step = runtime.compile(evaluation_step(model, lambda: runtime.autocast(precision)))
    sums: list[Tensor] = []
    totals = torch.zeros(3, dtype=torch.float64)
    stopped, skipped = False, 0
    for batch, (stopped,) in in_step(iter(batches), runtime, should_stop):
        if stopped:
            break
        skipped += unreadable(batch)
        sums.append(step(to_device(batch, runtime)))
        if len(sums) == runtime.losses_every:  # so that the host does not run ahead of the device without bound
            totals += runtime.gather_sums(sums).sum(0)
            sums.clear()
    model.train(was_training)
    if stopped:
        return None
    if sums:
        totals += runtime.gather_sums(sums).sum(0)
    loss, correct, images = totals.tolist()
    skipped_by_all = runtime.workers.sum(torch.tensor(float(skipped))).item()
    if not images:
        raise DataError("no held-out image could be read: there is nothing to evaluate on; mend the files")
    return HeldOut(loss / images, correct / images, images=round(images), unreadable=round(skipped_by_all))
