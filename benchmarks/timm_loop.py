"""The peer of the step benchmark: timm's own training loop, as its train.py has it, cut to the steps themselves.

Everything that costs time is timm's: optimiser, adaptive gradient clipping, schedule, loss, collation, normalisation,
prefetching, in train.py's order. The model is built by the same function as ours. Left out, in timm's favour: its
average meters, its log lines, and PIL, with which its transforms would handle each image.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from timm.data.loader import PrefetchLoader, fast_collate
from timm.loss import LabelSmoothingCrossEntropy
from timm.models import model_parameters
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import dispatch_clip_grad
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from models.families import build_model
from trainables.config import TrialConfig
from trainables.data import open_splits
from trainables.data.sources import ImageSource


class Shifted(Dataset[tuple[np.ndarray[Any, Any], int]]):
    """The training images for a DataLoader, uint8 [3, H, W], each moved at random by up to an eighth of its size."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source
        self.most = source.image_size // 8

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[np.ndarray[Any, Any], int]:
        most, size = self.most, self.source.image_size
        image = np.zeros((size + 2 * most, size + 2 * most, 3), np.uint8)  # np.pad takes five times as long
        image[most : most + size, most : most + size] = self.source.read(index)
        top, left = np.random.randint(0, 2 * most + 1, 2)
        return image[top : top + size, left : left + size].transpose(2, 0, 1), self.source.label(index)


def timm_seconds(config: TrialConfig, device: torch.device, *, channels_last: bool) -> tuple[float, float]:
    """Seconds of wall time, and of this process's CPU time, of the config's steps: from asking for the first batch to
    the end of the last step.
    """
    torch.manual_seed(config.seed)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = build_model(config.model).to(device)
    model.to(memory_format=layout)  # type: ignore[call-overload]
    model.train()
    optimiser = create_optimizer_v2(
        model,
        opt="sgd",  # timm's name of SGD with Nesterov momentum
        lr=config.optimiser.learning_rate,
        weight_decay=config.optimiser.weight_decay,
        momentum=config.optimiser.momentum,
    )
    schedule = CosineLRScheduler(
        optimiser,
        t_initial=config.steps,
        warmup_t=config.warmup_steps,
        warmup_lr_init=0.0,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    loss_of = LabelSmoothingCrossEntropy(config.optimiser.label_smoothing).to(device)
    batches = _endless(config, device)

    def autocast() -> AbstractContextManager[Any]:
        return torch.autocast(device.type, torch.bfloat16) if config.precision == "bfloat16" else nullcontext()

    _wait(device)
    began, cpu_began = time.perf_counter(), time.process_time()
    for step in range(config.steps):
        images, labels = next(batches)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with autocast():
            loss = loss_of(model(images), labels)
        loss.backward()
        if config.optimiser.agc_clip is not None:
            dispatch_clip_grad(model_parameters(model, exclude_head=True), config.optimiser.agc_clip, mode="agc")
        optimiser.step()
        optimiser.zero_grad()
        schedule.step_update(num_updates=step + 1)
    _wait(device)
    return time.perf_counter() - began, time.process_time() - cpu_began


def _endless(config: TrialConfig, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Whole batches of shuffled epochs, normalised to [-1, 1], the loader built as timm's `create_loader` does."""
    source = Shifted(open_splits(config.data).train)
    sampler = RandomSampler(source, num_samples=config.steps * config.batch_size)  # one long pass: no epoch's restart
    workers = config.data.decode_workers
    loader: DataLoader[Any] = DataLoader(
        source,
        batch_size=config.batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=fast_collate,
        pin_memory=device.type == "cuda",
        drop_last=True,
        persistent_workers=workers > 0,
    )
    return iter(PrefetchLoader(loader, mean=(0.5,) * 3, std=(0.5,) * 3, device=device))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
