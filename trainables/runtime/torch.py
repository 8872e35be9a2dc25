"""The runtime on PyTorch itself: CPU and CUDA, and several workers by DistributedDataParallel."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from trainables.config import LOOP_FROM, TrialRefused
from trainables.runtime import DEVICES, DeviceBatch, P, Precision, R
from trainables.runtime.workers import Workers

PEAK_FLOPS_PER_S: Final[tuple[tuple[str, dict[Precision, float]], ...]] = (
    # One GPU's dense peak in NVIDIA's data sheets. float32: TF32 where there is one, as convolutions use by default.
    ("H200", {"bfloat16": 989e12, "float32": 494e12}),
    ("H100 PCIe", {"bfloat16": 756e12, "float32": 378e12}),
    ("H100", {"bfloat16": 989e12, "float32": 494e12}),
    ("A100", {"bfloat16": 312e12, "float32": 156e12}),
    ("L40S", {"bfloat16": 362e12, "float32": 183e12}),
    ("L4", {"bfloat16": 121e12, "float32": 60e12}),
    ("A10G", {"bfloat16": 70e12, "float32": 35e12}),
    ("V100", {"float32": 15.7e12}),
    ("T4", {"float32": 8.1e12}),
)


def peak_of(device_name: str, precision: Precision) -> float | None:
    """FLOP/s of one GPU by its CUDA device name ("NVIDIA A100-SXM4-80GB"), None if the table has it not."""
    words = device_name.replace("-", " ").split()
    for name, peaks in PEAK_FLOPS_PER_S:
        if all(word in words for word in name.split()):
            return peaks.get(precision)
    return None


class TorchRuntime:
    """`trainables.runtime.Runtime` on torch; one device per worker."""

    devices = 1
    shares_of = "workers"
    compilations = 0  # eager: nothing is compiled
    compile_s = 0.0

    def __init__(self, device: str = "auto", *, cores: int | None = None) -> None:
        if device not in ("auto", "cpu", "cuda"):
            raise TrialRefused(f"device {device!r} is not known: use {', '.join(DEVICES)}")
        if device == "cuda" and not torch.cuda.is_available():
            raise TrialRefused("device 'cuda' is not there (torch sees no GPU): use auto or cpu, or mend the driver")
        on_gpu = device != "cpu" and torch.cuda.is_available()
        self.workers = workers = Workers()
        self.programs = workers.world
        if cores is not None:
            torch.set_num_threads(cores)
        if on_gpu:
            local_rank = int(os.environ.get("LOCAL_RANK", workers.rank)) % torch.cuda.device_count()
            self.device = torch.device("cuda", local_rank)
            torch.cuda.set_device(self.device)
            self.device_name = torch.cuda.get_device_name(self.device)
            self.cores, self.losses_every = workers.world, 16
            torch.backends.cudnn.benchmark = True  # shapes do not change
        else:
            self.device, self.device_name = torch.device("cpu"), "CPU"
            self.cores, self.losses_every = torch.get_num_threads() * workers.world, 1 if workers.world == 1 else 16

    # ---- precision

    def check_precision(self, precision: Precision) -> None:
        if precision == "float32" or self._has_bfloat16():
            return
        allowed = "float32" if precision == "bfloat16" else "float32 or bfloat16"
        raise TrialRefused(f"precision {precision!r} is not there on {self.device_name}: use {allowed}")

    def _has_bfloat16(self) -> bool:
        if self.device.type == "cuda":
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())

    def peak_flops_per_s(self, precision: Precision) -> float | None:
        peak = peak_of(self.device_name, precision) if self.device.type == "cuda" else None
        return peak * self.workers.world if peak else None

    def autocast(self, precision: Precision) -> AbstractContextManager[Any]:
        if precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    # ---- random state

    def seed(self, seed: int) -> None:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)

    def fork_rng(self, seed: int) -> None:
        self.seed((seed * 1_000_003 + self.workers.rank + 1) % 2**63)

    def rng_state(self) -> list[Tensor]:
        state = torch.get_rng_state()
        if self.device.type == "cuda":
            state = torch.cat((state, torch.cuda.get_rng_state(self.device)))
        return self.workers.gather(state)

    def set_rng_state(self, states: Sequence[Tensor]) -> bool:
        host = torch.get_rng_state()
        extra = torch.cuda.get_rng_state(self.device).numel() if self.device.type == "cuda" else 0
        rank = self.workers.rank
        if len(states) != self.workers.world or states[rank].numel() != host.numel() + extra:
            return False
        torch.set_rng_state(states[rank][: host.numel()])
        if extra:
            torch.cuda.set_rng_state(states[rank][host.numel() :], self.device)
        return True

    # ---- the model and its steps

    def place(self, model: nn.Module, *, loop_from: int | None = LOOP_FROM) -> nn.Module:
        # Weights keep the default layout, which DDP's buckets have too; the images' layout, channels last, decides a
        # convolution's, and standardised weights come out of it anew at every step.
        return model.to(self.device)

    def parallel(self, model: nn.Module) -> nn.Module:
        if self.workers.world == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            model, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
        )

    def unsynchronised(self, model: nn.Module) -> AbstractContextManager[Any]:
        return model.no_sync() if isinstance(model, nn.parallel.DistributedDataParallel) else nullcontext()

    def compile(self, step: Callable[P, R], state: Sequence[Tensor] = ()) -> Callable[P, R]:
        return step

    # ---- values

    def scalar(self, value: float) -> Tensor:
        return torch.full((), value, dtype=torch.float32, device=self.device)  # a kernel's argument: waits for nothing

    def to_device(self, batch: dict[str, np.ndarray[Any, Any]]) -> DeviceBatch:
        tensors = {name: torch.from_numpy(values) for name, values in batch.items()}
        if self.device.type == "cpu":
            return tensors
        return {name: t.pin_memory().to(self.device, non_blocking=True) for name, t in tensors.items()}

    def from_host(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return values

    def to_host(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.detach().cpu() for name, value in values.items()}

    def gather_sums(self, outputs: Sequence[Tensor]) -> Tensor:
        return self.workers.sum(torch.stack(list(outputs)))

    def mark(self) -> torch.cuda.Event | None:
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))  # type: ignore[no-untyped-call]
        return event

    def elapsed_s(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end)) / 1000

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
