"""The runtime on PyTorch/XLA: TPUs, and (to try and to test the same path) the CPU as virtual devices.

One worker per host drives all of its devices by one program (SPMD) over a mesh of one axis, "data", that spans the
devices of all hosts: weights are replicated, batches are split. The compiler puts the sums over devices where gradients
need them, so a step's loss is that of the global batch, on every host.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from clusters.tpu import CORES_PER_CHIP, PEAK_FLOPS_PER_S
from trainables.config import LOOP_FROM, TrialRefused
from trainables.runtime import DeviceBatch, P, Precision, R
from trainables.runtime.prepared import prepared
from trainables.runtime.program_cache import cache_root, key_of, open_cache
from trainables.runtime.replay import Replayed
from trainables.runtime.workers import Workers

log = logging.getLogger(__name__)

# torch_xla passes XLA's messages on, not always with their code. The compiler's, the TPU's, the CPU's.
_OUT_OF_MEMORY: Final = ("RESOURCE_EXHAUSTED", "Ran out of memory", "Error allocating device buffer", "Out of memory")
_KIND: Final = 0x584C41  # "XLA": marks random state, which no other kind of device can take
_METRIC_IS_LATE_S: Final = 0.05  # at most: it is written just after a program's values are there
_MOST_AHEAD: Final = 8  # programs that wait for the device: each holds its part of a batch in the device's memory
_OF_WHERE_IT_RUNS: Final = ("TPU_NAME", "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "TPU_PROCESS_PORT")
_KEYS_OF_ENVIRONMENT: Final = ("PJRT_DEVICE", "CPU_NUM_DEVICES", "XLA_FLAGS", "LIBTPU_INIT_ARGS")


class XlaRuntime:
    """`trainables.runtime.Runtime` on torch_xla; one in a process, whose first use of torch_xla it must be.

    `device`: "tpu", or "xla-cpu" with `cores` virtual devices. `keep_programs`: whether compiled programs are kept for
    other processes on this host (`program_cache`). XLA's CPU device writes them and cannot load them again (its client
    does not implement it in torch_xla 2.9), so there it is of use to tests alone. `loop_from`: goes before what models
    are placed with; on the CPU it is 2, for its compiler takes long for each block, and its steps are of no concern.
    """

    losses_every = 16
    programs = 1
    shares_of = "devices"

    def __init__(
        self,
        device: Literal["tpu", "xla-cpu"],
        *,
        cores: int | None = None,
        keep_programs: bool | None = None,
        loop_from: int | None = None,
    ) -> None:
        log.setLevel(logging.INFO)  # what was compiled, and what was at hand, is worth a line wherever warnings go
        os.environ["PJRT_DEVICE"] = "TPU" if device == "tpu" else "CPU"
        if device == "xla-cpu":
            os.environ["CPU_NUM_DEVICES"] = str(cores or 1)
        keep = device == "tpu" if keep_programs is None else keep_programs
        self._cache = open_cache(cache_root() / key_of(_environment())) if keep else None
        # Imported here, after the variables that torch_xla reads as it is loaded.
        import torch_xla
        from torch_xla import runtime as xr
        from torch_xla.core import xla_model as xm
        from torch_xla.debug import metrics
        from torch_xla.distributed import spmd

        self._library, self._xm, self._metrics, self._spmd = torch_xla, xm, metrics, spmd
        try:
            if self._cache is not None:
                xr.initialize_cache(str(self._cache.folder))
            xr.use_spmd()
            self.device = torch_xla.device()
            count = xr.global_runtime_device_count()
            self.device_name = f"TPU v{_tpu_version()}" if device == "tpu" else "CPU by XLA"
        except (RuntimeError, OSError, ValueError, TypeError) as error:  # whatever the libraries below make of it
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise TrialRefused(
                f"device {device!r} is not there ({reason}): use auto, cpu or cuda; on a TPU's host run make tpu first"
            ) from error
        self.workers = Workers()
        self.devices = count
        self.cores = _cores(xr.global_runtime_device_attributes()) if device == "tpu" else count
        self.mesh = spmd.Mesh(np.arange(count), (count,), ("data",))
        self._loop_from = loop_from or (None if device == "tpu" else 2)
        self._seed, self._steps = 0, 0
        self._given = 0  # programs that were given to the device
        self._replays = 0  # those of them that torch_xla does not count
        self._unfinished: deque[tuple[Tensor, list[Tensor]]] = deque()  # of the newest an output, and what it replaced
        if self._cache is not None:
            log.info("compiled programs at hand: %d, in %s", self._cache.loaded, self._cache.store)

    # ---- compilations

    @property
    def compilations(self) -> int:
        return self._count("CompileTime")

    @property
    def compile_s(self) -> float:
        return self._seconds("CompileTime") + self._seconds("PersistentCacheLoad")

    @property
    def cache_hits(self) -> int:
        """Programs that were not compiled because the store had them."""
        return int(self._metrics.counter_value("PersistentCacheHit") or 0)

    def _count(self, metric: str) -> int:
        data = self._metrics.metric_data(metric)
        return int(data[0]) if data else 0

    def _seconds(self, metric: str) -> float:
        data = self._metrics.metric_data(metric)
        return float(data[1]) / 1e9 if data else 0.0

    # ---- precision

    def check_precision(self, precision: Precision) -> None:
        """Every XLA device has both."""

    def peak_flops_per_s(self, precision: Precision) -> float | None:
        if "v4" not in self.device_name or precision != "bfloat16":
            return None
        return PEAK_FLOPS_PER_S * self.cores

    def autocast(self, precision: Precision) -> AbstractContextManager[Any]:
        if precision == "float32":
            return nullcontext()
        return torch.autocast("xla", dtype=torch.bfloat16)

    # ---- random state

    def seed(self, seed: int) -> None:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        self._seed, self._steps = seed, 0

    def fork_rng(self, seed: int) -> None:
        """Nothing to fork: the program is one, and its masks are drawn for the global batch."""
        self.seed((seed * 1_000_003 + 1) % 2**63)

    def rng_state(self) -> list[Tensor]:
        own = torch.tensor([_KIND, self._seed, self._steps], dtype=torch.int64).view(torch.uint8)
        return self.workers.gather(torch.cat((torch.get_rng_state(), own)))

    def set_rng_state(self, states: Sequence[Tensor]) -> bool:
        host = torch.get_rng_state()
        rank = self.workers.rank
        if len(states) != self.workers.world or states[rank].numel() != host.numel() + 3 * 8:
            return False
        # The program is one, so its seed must be: that of rank 0, on every host.
        kind, seed, steps = states[0][host.numel() :].clone().view(torch.int64).tolist()
        if kind != _KIND:
            return False
        torch.set_rng_state(states[rank][: host.numel()])
        self._seed, self._steps = seed, steps
        return True

    # ---- the model and its steps

    def place(self, model: nn.Module, *, loop_from: int | None = LOOP_FROM) -> nn.Module:
        # Put as what a program gives, which says how it is laid out over the devices: else the first step, which takes
        # these weights, were another program than the second, which takes those that the first step gave.
        model = prepared(model, loop_from=self._loop_from or loop_from)
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                placed = nn.Parameter(self._put(parameter.detach(), None), requires_grad=parameter.requires_grad)
                module.register_parameter(name, placed)
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = self._put(buffer, None)
        return model

    def parallel(self, model: nn.Module) -> nn.Module:
        return model

    def unsynchronised(self, model: nn.Module) -> AbstractContextManager[Any]:
        """What one program leaves is the same on all devices, so each part's gradients are summed over them."""
        return nullcontext()

    def compile(self, step: Callable[P, R], state: Sequence[Tensor] = ()) -> Callable[P, R]:
        replayed = Replayed(step, state)

        @wraps(step)
        def launched(*args: P.args, **kwargs: P.kwargs) -> R:
            # A seed of its own for each step, whatever else ran in between, so that a resumed run draws the same masks.
            self._xm.set_rng_state((self._seed * 1_000_003 + self._steps) % 2**62)
            self._steps += 1
            with self._launching():
                outputs = replayed(*args, **kwargs)
            self._replays += 1
            self._unfinished.append((min(tree_leaves(outputs), key=torch.numel), replayed.take_replaced()))
            if len(self._unfinished) > _MOST_AHEAD:
                output, _ = self._unfinished.popleft()
                self.gather_sums([output])  # which is there once the program is done
            return outputs

        return launched

    @contextmanager
    def _launching(self) -> Iterator[None]:
        """What within gives the device a program, which is compiled if it is new."""
        compiled, compiled_s, hits = self.compilations, self.compile_s, self.cache_hits
        with _want_of_memory():
            yield
        self._given += 1
        if self.compilations > compiled:
            log.info(
                "%scompiled in %.1f s", "program cache: miss, " if self._cache else "", self.compile_s - compiled_s
            )
            if self._cache is not None:
                self._cache.publish()
        elif self.cache_hits > hits:
            log.info("program cache: hit, loaded in %.1f s", self.compile_s - compiled_s)

    # ---- values

    def scalar(self, value: float) -> Tensor:
        # A tensor that was put on the device is data whatever its value; of a number torch_xla makes a constant where
        # it is 0 or 1, and shares it with other numbers of the same value, so that the graph would change with it.
        return self._put(torch.tensor(value, dtype=torch.float32), None)

    def to_device(self, batch: dict[str, np.ndarray[Any, Any]]) -> DeviceBatch:
        return {name: self._put(torch.from_numpy(values), "data") for name, values in batch.items()}

    def _put(self, value: Tensor, axis: str | None) -> Tensor:
        """On the device, this host's part of it if its first axis is split over `axis`, else one for all devices."""
        spec = (axis, *[None] * (value.ndim - 1)) if axis else (None,) * value.ndim
        sharding = self._spmd.ShardingSpec(self.mesh, spec, minibatch=axis is not None)
        with _want_of_memory():
            placed: Tensor = self._xm.send_cpu_data_to_device(value, self.device, input_sharding=sharding)[0]
        return placed

    def from_host(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: self._put(value, None) for name, value in values.items()}

    def to_host(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        with _want_of_memory():
            tensors = self._library._XLAC._xla_get_cpu_tensors([value.detach() for value in values.values()])
        return dict(zip(values, tensors, strict=True))

    def gather_sums(self, outputs: Sequence[Tensor]) -> Tensor:
        # Fetched one by one: stacked on the device they would be another program for each number of them.
        with _want_of_memory():
            return torch.stack(self._library._XLAC._xla_get_cpu_tensors(list(outputs))).to(torch.float64)

    # ---- time

    def mark(self) -> tuple[float, int]:
        return time.time(), self._given

    def elapsed_s(self, start: Any, end: Any) -> float:
        ends = self._ends_of_programs()
        return self._time_of(end, ends) - self._time_of(start, ends) if ends else 0.0

    def _time_of(self, mark: tuple[float, int], ends: Sequence[float]) -> float:
        """When the device had passed a mark: when it was made, or when the program before it ended, if that is later.

        `ends`: of the newest programs.
        """
        made, given = mark
        place = len(ends) - (self._given - given) - 1
        return max(made, ends[place]) if given and place >= 0 else made

    def _ends_of_programs(self) -> list[float]:
        """Unix times at which the newest programs ended, from torch_xla's own metric; nothing if some still run.

        To wait for the device in a thread would keep the next step from being given to it.
        """
        end = time.monotonic() + _METRIC_IS_LATE_S
        while self._count("ExecuteReplicatedTime") < self._programs_begun():
            if time.monotonic() > end:
                return []
            time.sleep(0.001)
        data = self._metrics.metric_data("ExecuteReplicatedTime")
        return [float(stamp) for stamp, _ in data[2]] if data else []

    def _programs_begun(self) -> int:
        """Those of torch_xla's own counter, which leaves replayed ones out."""
        return int(self._metrics.counter_value("ExecuteReplicated") or 0) + self._replays

    def synchronise(self) -> None:
        self._unfinished.clear()
        with self._launching():  # of what was made by the way; no mark is set between that and steps
            self._library.sync()
        self._given -= 1
        self._xm.wait_device_ops()


@contextmanager
def _want_of_memory() -> Iterator[None]:
    """Raise what torch raises for it on other devices where XLA's compiler, or the device, has too little memory."""
    try:
        yield
    except (RuntimeError, ValueError) as error:  # the compiler's are the latter
        if not any(words in str(error) for words in _OUT_OF_MEMORY):
            raise
        raise torch.OutOfMemoryError(str(error).strip().splitlines()[0]) from error


def _tpu_version() -> int:
    from torch_xla._internal import tpu

    return int(tpu.version())


def _cores(attributes: Sequence[dict[str, Any]]) -> int:
    """TPU cores of all devices: two to each v4 chip, whether they are one device (megacore) or two."""
    return CORES_PER_CHIP * len({tuple(device["coords"]) for device in attributes})


def _environment() -> dict[str, str]:
    """What a compiled program depends on besides its graph: versions, hardware, and the compiler's settings."""
    facts = {name: os.environ.get(name, "") for name in _KEYS_OF_ENVIRONMENT}
    facts |= {
        name: value
        for name, value in os.environ.items()
        if name.startswith("TPU_") and name not in _OF_WHERE_IT_RUNS  # a slice that comes back has others
    }
    for library in ("torch", "torch_xla", "libtpu"):
        try:
            facts[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            facts[library] = ""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(encoding="utf-8").splitlines() if cpu.exists() else []
    facts["cpu"] = next((line for line in lines if line.startswith("flags")), platform.machine())
    return facts
