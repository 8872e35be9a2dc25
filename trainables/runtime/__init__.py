"""The device runtime: the little a training loop asks of a device, and which implementation serves it.

The loop's steps are functions of tensors (`trainables.step`). A runtime places the model, turns host batches into
device batches, makes one program of a step, adds up numbers over workers, and saves random state. It belongs to the
process and serves trial after trial; nothing of a trial stays in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from glob import glob
from pathlib import Path
from typing import Any, Final, Literal, ParamSpec, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from trainables.config import LOOP_FROM
from trainables.runtime.workers import Workers

Precision = Literal["float32", "bfloat16"]
_GOOGLE: Final = "0x1ae0"  # PCI vendor
_VENDORS_OF_PASSED_THROUGH: Final = "/sys/bus/pci/drivers/vfio-pci/*/vendor"
DEVICES: Final = ("auto", "cpu", "cuda", "tpu", "xla-cpu")
DeviceBatch = dict[str, Tensor]
P = ParamSpec("P")
R = TypeVar("R")


class Runtime(Protocol):
    """One worker's view of its devices and of the other workers.

    Attributes:
        device: where tensors live.
        device_name: the hardware's own name, for people.
        workers: this worker among those that train one trial together; each reads 1 / `workers.world` of a batch.
        programs: how many programs make one step: one for each worker, or one that spans all of them.
        devices: over how many devices a program splits its batch.
        shares_of: what `programs` x `devices` counts, for people: "workers", or "devices".
        cores: cores (CPU threads, GPUs, TPU cores) of all workers together, what core-hours count.
        losses_every: how many steps' losses are fetched together; 1 where fetching one costs nothing.
        compilations: programs compiled by this process so far.
        compile_s: seconds that took, and that loading programs which had been kept took.
    """

    @property
    def device(self) -> torch.device: ...
    @property
    def device_name(self) -> str: ...
    @property
    def workers(self) -> Workers: ...
    @property
    def programs(self) -> int: ...
    @property
    def devices(self) -> int: ...
    @property
    def shares_of(self) -> str: ...
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

    def place(self, model: nn.Module, *, loop_from: int | None = LOOP_FROM) -> nn.Module:
        """The model on the device. `loop_from`: where steps are compiled, see `TrialConfig`."""

    def parallel(self, model: nn.Module) -> nn.Module:
        """What a training step calls: the placed model, whose backward pass averages gradients over the workers."""

    def unsynchronised(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Backward passes of a `parallel` model within add to its gradients; workers need not meet for that.

        A program that spans all workers has its gradients summed all the same.
        """

    def autocast(self, precision: Precision) -> AbstractContextManager[Any]:
        """Arithmetic at `precision` within; a new context each call."""

    def compile(self, step: Callable[P, R], state: Sequence[Tensor] = ()) -> Callable[P, R]:
        """`step`, a function of tensors, as one program of the device for each set of shapes.

        `state`: tensors that change from call to call, by `step` or by others; no other tensor may it change. Whatever
        else it depends on besides its arguments and random numbers must stay what it is while this is used. Its outputs
        must be computed, not passed on, and may not be there yet when it returns.
        """

    def scalar(self, value: float) -> Tensor:
        """A 0-dim float32 tensor on the device, as data: another value is not another program."""

    def to_device(self, batch: dict[str, np.ndarray[Any, Any]]) -> DeviceBatch:
        """A host batch on the device, dtypes and shapes unchanged."""

    def from_host(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same tensors where the model's are, to be copied into it."""

    def to_host(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same tensors on the host, finished, to be saved."""

    def gather_sums(self, outputs: Sequence[Tensor]) -> Tensor:
        """What steps gave, tensors of one shape, each summed over the `programs` that made it: [n, ...] in float64 on
        the host. Waits for the device.
        """

    def mark(self) -> Any:
        """A point in the device's work, after all it was given so far; None where the host waits for every step."""

    def elapsed_s(self, start: Any, end: Any) -> float:
        """Seconds from the device's passing of one `mark` to that of another; it must have passed both."""

    def synchronise(self) -> None:
        """Wait until the device has done all it was given."""


def select_runtime(device: str = "auto", *, cores: int | None = None) -> Runtime:
    """The runtime for `device`, one of `DEVICES`; `auto` takes a TPU if this host has one, else a GPU, else the CPU.

    `cores`: CPU threads of this worker, its share of the machine (None: leave torch's own number); for `xla-cpu` its
    virtual devices. If `torch.distributed` has been initialised, its workers train together. An XLA device is the
    process's for good: the runtime must be made before anything else uses torch_xla or passes a gradient back.
    Raises `TrialRefused` for a device that is not there.
    """
    if device == "tpu" or (device == "auto" and tpu_chips_here()):
        from trainables.runtime.xla import XlaRuntime

        return XlaRuntime("tpu")
    if device == "xla-cpu":
        from trainables.runtime.xla import XlaRuntime

        return XlaRuntime("xla-cpu", cores=cores)
    from trainables.runtime.torch import TorchRuntime

    return TorchRuntime(device, cores=cores)


def tpu_chips_here() -> int:
    """TPU chips of this host: device files /dev/accel0, ..., or PCI devices of Google's that are passed through."""
    return len(glob("/dev/accel[0-9]*")) or sum(
        Path(path).read_text(encoding="ascii").strip() == _GOOGLE for path in glob(_VENDORS_OF_PASSED_THROUGH)
    )
