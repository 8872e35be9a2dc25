"""The training step and the evaluation step: functions of tensors that any runtime can make programs of."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.lockstep import HostBatch
from trainables.optimiser import Optimiser, WeightAverage
from trainables.runtime import Precision, Runtime

Batch = dict[str, Tensor]
Context = Callable[[], AbstractContextManager[Any]]


def as_input(images: Tensor) -> Tensor:
    """uint8 [b, H, W, 3] to float32 [b, 3, H, W] in [-1, 1], channels last as the images are.

    On the CPU an NFNet trains about an eighth faster so than in the default layout, and tensor cores want it.
    """
    return images.permute(0, 3, 1, 2).to(torch.float32).mul_(1 / 127.5).sub_(1.0)


def training_loss(logits: Tensor, batch: Batch, label_smoothing: float) -> Tensor:
    """Cross entropy with label smoothing, weighted, over the size of the batch: sum(weight x loss) / b.

    b counts images of weight 0 too, so the mean over workers (of equal b) is the same sum over the global batch.
    """
    losses = F.cross_entropy(logits.float(), batch["label"].long(), reduction="none", label_smoothing=label_smoothing)
    return (losses * batch["weight"]).sum() / len(losses)


def training_step(
    model: nn.Module,
    optimiser: Optimiser,
    average: WeightAverage | None,
    label_smoothing: float,
    *,
    autocast: Context,
) -> Callable[..., Tensor]:
    """A step `(batch, learning rate, share) -> loss of this worker's part`.

    `share`: that of the new weights in the average; not an argument where there is no average.
    """

    def step(batch: Batch, learning_rate: Tensor, *share: Tensor) -> Tensor:
        loss = _backward(model, batch, label_smoothing, autocast)
        _update(optimiser, average, learning_rate, share)
        return loss

    return step


def training_step_in_parts(
    model: nn.Module,
    optimiser: Optimiser,
    average: WeightAverage | None,
    label_smoothing: float,
    size: int,
    *,
    autocast: Context,
) -> tuple[Callable[[Batch, Tensor], Tensor], Callable[..., Tensor]]:
    """A step on a program's batch of `size` examples, in parts: what is done with each part but the last,
    `(part, loss so far) -> loss so far`, and with the last one, `(part, loss so far, learning rate, share) -> loss`.

    Only one part's activations are held at a time; NFNets have no statistics over the batch, so the gradient is the
    same. The optimiser must keep its gradients (`Optimiser.keep_gradients`).
    """

    def accumulate(part: Batch, so_far: Tensor) -> Tensor:
        return so_far + _backward(model, part, label_smoothing, autocast, len(part["label"]) / size)

    def finish(part: Batch, so_far: Tensor, learning_rate: Tensor, *share: Tensor) -> Tensor:
        loss = accumulate(part, so_far)
        _update(optimiser, average, learning_rate, share)
        return loss

    return accumulate, finish


def _backward(
    model: nn.Module, batch: Batch, label_smoothing: float, autocast: Context, share_of_batch: float = 1.0
) -> Tensor:
    """Pass a batch's loss, times its share of a larger one, back into the gradients; returns that loss."""
    with autocast():
        logits = model(as_input(batch["image"]))
    loss = training_loss(logits, batch, label_smoothing)
    if share_of_batch != 1:
        loss = loss * share_of_batch
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def _update(
    optimiser: Optimiser, average: WeightAverage | None, learning_rate: Tensor, share: tuple[Tensor, ...]
) -> None:
    optimiser.step(learning_rate)
    if average is not None:
        average.update(*share)


class TrainingStep:
    """A step on a worker's host batch, as programs of a runtime: one; or two, where a batch is taken in parts.

    `model` is what `runtime.parallel` gave; `batch_size` counts the examples of all workers. A worker's batch larger
    than `micro_batch_size` is taken in parts of that many examples, the last one of what is left; the workers meet in
    the last one only. Make it before `runtime.synchronise`, so that every buffer is there when the first step is taken.
    """

    def __init__(
        self,
        model: nn.Module,
        optimiser: Optimiser,
        average: WeightAverage | None,
        label_smoothing: float,
        runtime: Runtime,
        precision: Precision,
        *,
        batch_size: int,
        micro_batch_size: int | None = None,
    ) -> None:
        self._model, self._runtime, self._has_average = model, runtime, average is not None
        in_one = micro_batch_size is None or micro_batch_size >= batch_size // runtime.workers.world
        self._size_of_parts = None if in_one else micro_batch_size
        moving = (model, optimiser, average, label_smoothing)
        state = [*optimiser.parameters, *optimiser.momenta, *(average.averages if average is not None else ())]

        def autocast() -> AbstractContextManager[Any]:
            return runtime.autocast(precision)

        if in_one:
            self._step = runtime.compile(training_step(*moving, autocast=autocast), state)
            return
        gradients = optimiser.keep_gradients()
        size = batch_size // runtime.programs
        accumulate, finish = training_step_in_parts(*moving, size, autocast=autocast)
        self._accumulate = runtime.compile(accumulate, [*optimiser.parameters, *gradients])
        self._step = runtime.compile(finish, [*state, *gradients])

    def __call__(self, batch: HostBatch, learning_rate: float, share: float) -> Tensor:
        """Take a step. `share`: of the new weights in the average. Returns the loss of this worker's part."""
        runtime = self._runtime
        rates = [runtime.scalar(learning_rate), *([runtime.scalar(share)] if self._has_average else [])]
        if self._size_of_parts is None:
            return self._step(to_device(batch, runtime), *rates)
        *parts, last = in_parts(batch, self._size_of_parts)
        loss = runtime.scalar(0.0)
        for part in parts:
            with runtime.unsynchronised(self._model):
                loss = self._accumulate(to_device(part, runtime), loss)
        return self._step(to_device(last, runtime), loss, *rates)


def to_device(batch: HostBatch, runtime: Runtime) -> Batch:
    """What steps need of a host batch, on the device."""
    return runtime.to_device({name: batch[name] for name in ("image", "label", "weight")})


def in_parts(batch: HostBatch, size: int) -> list[HostBatch]:
    """A batch as parts of `size` examples, the last one of what is left."""
    return [
        {name: values[at : at + size] for name, values in batch.items()} for at in range(0, len(batch["label"]), size)
    ]


def evaluation_step(model: nn.Module, autocast: Context) -> Callable[[Batch], Tensor]:
    """A step `batch -> sums of [weight x loss, weight x correct, weight]`; no label smoothing."""

    def step(batch: Batch) -> Tensor:
        with torch.no_grad():
            with autocast():
                logits = model(as_input(batch["image"]))
            logits, label, weight = logits.float(), batch["label"].long(), batch["weight"]
            losses = F.cross_entropy(logits, label, reduction="none")
            correct = (logits.argmax(dim=-1) == label).to(torch.float32)
            return torch.stack(((losses * weight).sum(), (correct * weight).sum(), weight.sum()))

    return step
