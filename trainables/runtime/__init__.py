"""The device runtime: the little a training loop asks of a device, and which implementation serves it.

The loop's steps are functions of tensors (`trainables.step`). A runtime places the model, turns host batches into
device batches, makes one program of a step, adds up numbers over workers, and saves random state. It belongs to the
process and serves trial after trial; nothing of a trial stays in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, ParamSpec, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Precision = Literal["float32", "bfloat16"]
DeviceBatch = dict[str, Tensor]
P = ParamSpec("P")
R = TypeVar("R")


class Runtime(Protocol):
    """One worker's view of its devices and of the other workers.

    Attributes:
        device: where tensors live.
        device_name: the hardware's own name, for people.
        rank: this worker's place among `world` workers that train one trial together.
        world: how many workers there are; each reads 1 / `world` of a batch.
        cores: cores (CPU threads, GPUs, TPU cores) of all workers together, what core-hours count.
        losses_every: how many steps' losses are fetched together; 1 where fetching one costs nothing.
        compilations: programs compiled by this process so far.
        compile_s: seconds that took.
    """

    @property
    def device(self) -> torch.device: ...
    @property
    def device_name(self) -> str: ...
    @property
    def rank(self) -> int: ...
    @property
    def world(self) -> int: ...
    @property
    def cores(self) -> int: ...
    @property
    def losses_every(self) -> int: ...
    @property
    def compilations(self) -> int: ...
    @property
    def compile_s(self) -> float: ...

    def check_precision(self, precision: Precision) -> None:
        """Raise `trainables.config.TrialRefused` if the device does not have `precision`."""

    def peak_flops_per_s(self, precision: Precision) -> float | None:
        """What all `cores` together could do at `precision`, from the maker's data sheet; None if not known."""

    def seed(self, seed: int) -> None:
        """Set every random generator from `seed` alone, alike on all workers, whatever the process did before."""

    def fork_rng(self, seed: int) -> None:
        """Set this worker's generators from `seed` and its rank, so that workers draw different dropout masks."""

    def rng_state(self) -> list[Tensor]:
        """The generators' states of every worker, in the order of ranks, on the host. All workers must call it."""

    def set_rng_state(self, states: Sequence[Tensor]) -> bool:
        """Take this worker's part of `rng_state`; False if that was of another number of workers or kind of device."""

    def place(self, model: nn.Module) -> nn.Module:
        """The model on the device."""

    def parallel(self, model: nn.Module) -> nn.Module:
        """What a training step calls: the placed model, whose backward pass averages gradients over the workers."""

    def unsynchronised(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Backward passes of a `parallel` model within add to this worker's own gradients, and meet no other's."""

    def autocast(self, precision: Precision) -> AbstractContextManager[Any]:
        """Arithmetic at `precision` within; a new context each call."""

    def compile(self, step: Callable[P, R]) -> Callable[P, R]:
        """`step` as one program of the device, for one set of shapes. Its outputs may not be there yet."""

    def scalar(self, value: float) -> Tensor:
        """A 0-dim float32 tensor on the device, as data: another value is not another program."""

    def to_device(self, batch: dict[str, np.ndarray[Any, Any]]) -> DeviceBatch:
        """A host batch on the device, dtypes and shapes unchanged."""

    def to_host(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same tensors on the host, finished, to be saved."""

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """The sum over workers, in float64 on the host. Waits for the device."""

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag, true if it is so for any worker. Does not wait for the device."""

    def all_gather_text(self, text: str) -> list[str]:
        """Every worker's text, in the order of ranks. Does not wait for the device."""

    def meet(self, timeout_s: float) -> None:
        """Wait for all workers to call this. Raises `RuntimeError` if one does not within `timeout_s`."""

    def mark(self) -> Any:
        """A point in the device's work, after all it was given so far; None where the host waits for every step."""

    def elapsed_s(self, start: Any, end: Any) -> float:
        """Seconds from the device's passing of one `mark` to that of another; it must have passed both."""

    def synchronise(self) -> None:
        """Wait until the device has done all it was given."""


def select_runtime(device: str = "auto", *, cores: int | None = None) -> Runtime:
    """The runtime for `device` ("auto", "cpu" or "cuda"); `auto` takes CUDA where there is a GPU, else the CPU.

    `cores`: CPU threads of this worker, its share of the machine (None: leave torch's own number). If
    `torch.distributed` has been initialised, its workers train together. Raises `TrialRefused` for a device that is
    not there.
    """
    from trainables.runtime.torch import TorchRuntime

    return TorchRuntime(device, cores=cores)
