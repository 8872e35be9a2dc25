"""The training step and the evaluation step, as functions of tensors that any runtime can make a program of."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.optimiser import Optimiser, WeightAverage

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
    micro_batch_size: int | None = None,
    devices: int = 1,
    unsynchronised: Context = nullcontext,
) -> Callable[[Batch, Tensor, Tensor], Tensor]:
    """A step `(batch, learning rate, share of the new weights in the average) -> loss of this worker's part`.

    A batch larger than `micro_batch_size` is taken in parts, so that only one part's activations are held at a time;
    NFNets have no statistics over the batch, so the gradient is the same. All parts but the last are passed back under
    `unsynchronised`, for workers need to meet only once. Of a batch that is split over `devices`, in order, every part
    has an even share of each device's.
    """

    def backward(batch: Batch, share_of_batch: float) -> Tensor:
        with autocast():
            logits = model(as_input(batch["image"]))
        loss = training_loss(logits, batch, label_smoothing)
        if share_of_batch != 1:
            loss = loss * share_of_batch
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def step(batch: Batch, learning_rate: Tensor, share: Tensor) -> Tensor:
        *parts, last = in_parts(batch, micro_batch_size, devices)
        size = len(batch["label"])
        losses = []
        for part in parts:
            with unsynchronised():
                losses.append(backward(part, len(part["label"]) / size))
        losses.append(backward(last, len(last["label"]) / size))
        optimiser.step(learning_rate)
        if average is not None:
            average.update(share)
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    return step


def in_parts(batch: Batch, size: int | None, devices: int = 1) -> list[Batch]:
    """A batch as parts of `size` examples, the last one of what is left; None: one part.

    Both are split over `devices`: part 0 is the beginning of each device's share, so that no example changes devices.
    """
    examples = len(batch["label"])
    if size is None or size >= examples:
        return [batch]
    if devices == 1:
        return [{name: values[at : at + size] for name, values in batch.items()} for at in range(0, examples, size)]
    shares = {name: values.view(devices, -1, *values.shape[1:]) for name, values in batch.items()}
    own, step = examples // devices, size // devices
    return [
        {name: values[:, at : at + step].flatten(0, 1) for name, values in shares.items()} for at in range(0, own, step)
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
