"""What a study's trials train on: the device, and how many cores each worker gets; here, or on a cluster's nodes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TYPE_CHECKING

from clusters.tpu import CHIPS_PER_HOST, CORES_PER_CHIP
from search.compute_section import needs_accelerator
from search.study import Study, StudyError
from trainables.config import TrialRefused

if TYPE_CHECKING:
    from trainables.runtime import Precision


def resolve_device(study: Study, *, own_cluster: bool) -> str:
    """The device that trials train on; "auto" where only the cluster knows (see `search.cluster`).

    Raises `StudyError` for what the device cannot train (see `check_xla`), and where a cluster of one's own has fewer
    TPUs or GPUs than the slices take: Ray would wait for them.
    """
    compute = study.compute
    if not own_cluster:
        if compute.device == "tpu":
            check_xla(study, "tpu")
        return compute.device
    device = device_here(study)
    if device == "tpu":
        _check_tpus_here(study)
    check_xla(study, device)
    needed = compute.slices * compute.workers_per_slice
    if device == "cuda" and (there := _gpus_here()) < needed:
        raise StudyError(
            f"{study.source}: compute.device: {compute.device!r} given, and {compute.slices} slices of "
            f"{compute.workers_per_slice} workers take a GPU each ({needed}), but this machine has {there}; lower "
            "compute.slices, set compute.device to cpu, or name a cluster with --address"
        )
    return device


def device_here(study: Study) -> str:
    """The device a study trains on if it is run on this machine: the study's, or (auto) a TPU, a GPU, or the CPU."""
    if study.compute.device != "auto":
        return study.compute.device
    if _tpu_chips_here():
        return "tpu"
    return "cuda" if _gpus_here() else "cpu"


def check_xla(study: Study, device: str, *, nodes: Sequence[int] | None = None) -> None:
    """Raise `StudyError` for what trials on this device would refuse: XLA splits every batch over all devices of a
    slice, whose workers are its hosts. Any other device passes. `nodes`: see `cores_per_worker`.
    """
    if device not in ("tpu", "xla-cpu"):
        return
    workers = study.compute.workers_per_slice
    if device == "tpu" and workers != study.compute.tpu_slice.hosts:
        raise StudyError(f"{study.source}: compute.{needs_accelerator(workers)}")
    if device == "xla-cpu" and workers != 1:
        raise StudyError(
            f"{study.source}: compute.workers_per_slice: {workers} given; allowed on xla-cpu: 1, for XLA's CPU device "
            "is one process; set it to 1 (cores_per_slice is its number of devices)"
        )
    check_batches(study, device, nodes=nodes)


def check_batches(study: Study, device: str, *, nodes: Sequence[int] | None = None) -> None:
    """Raise `StudyError`, a line for each, for batches that XLA cannot split evenly over a slice's devices.

    A TPU v4 chip is one device of two cores (which share its memory), a core of `xla-cpu` one.
    """
    if device not in ("tpu", "xla-cpu"):
        return
    training, workers = study.training, study.compute.workers_per_slice
    each = chips_of_worker() if device == "tpu" else cores_per_worker(study, nodes)
    what = "TPU chips" if device == "tpu" else "devices (CPU cores)"
    sizes = (
        ("batch_size", training.batch_size, each * workers, "slice"),
        ("eval_batch_size", training.eval_batch_size, each * workers, "slice"),
        ("micro_batch_size", training.micro_batch_size or each, each, "worker"),
    )
    problems = [
        f"{study.source}: training.{name}: {size} given; allowed: multiples of the {shares} {what} of a {whole}; "
        f"use {max(1, round(size / shares)) * shares}"
        for name, size, shares, whole in sizes
        if size % shares
    ]
    if problems:
        raise StudyError("\n".join(problems))


def _check_tpus_here(study: Study) -> None:
    given, slices, there = study.compute.device, study.compute.slices, _tpu_chips_here()
    hosts = study.compute.tpu_slice.hosts
    if there and slices == 1 and hosts == 1:
        return
    if there and hosts > 1:
        wrong = f"a slice of {study.compute.accelerator} has {hosts} hosts, but this machine is one"
        mend = "set compute.accelerator to tpu-v4-8"
    elif there:
        wrong, mend = f"{slices} slices take a TPU host each, but this machine is one", "lower compute.slices to 1"
    else:
        wrong, mend = "this machine has no TPU", "set compute.device to auto or cpu"
    raise StudyError(
        f"{study.source}: compute.device: {given!r} given, and {wrong}; {mend}, or name a cluster with --address"
    )


def check_precision_here(study: Study) -> None:
    """Raise `StudyError` if this machine's device, where it has the study's, lacks the study's precision."""
    device, precision = device_here(study), study.training.precision
    if precision == "float32" or device in ("tpu", "xla-cpu") or (device == "cuda" and not _gpus_here()):
        return
    try:
        if device == "cpu":
            _check_precision(device, precision)
        else:  # in a process of its own: this one's would hold memory of a GPU for as long as it lives
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                process.submit(_check_precision, device, precision).result()
    except BrokenProcessPool:  # not known then, and the first trial tells
        return
    except TrialRefused as error:
        raise StudyError(f"{study.source}: training.precision: {error}") from error


def _check_precision(device: str, precision: Precision) -> None:
    from trainables.runtime import select_runtime  # imports torch

    select_runtime(device).check_precision(precision)


def warnings_here(study: Study) -> list[str]:
    """What makes the study slow on a cluster of one's own, which is this machine; one line each."""
    compute, there = study.compute, len(os.sched_getaffinity(0))
    threads = cores_per_worker(study) * compute.workers_per_slice
    asked = threads * compute.slices
    if asked <= there:
        return []
    return [
        f"{study.source}: compute: {asked} CPU threads asked for (slices {compute.slices} x {threads}), but this "
        f"machine has {there}: they wait for one another, and the plan's times are too short; "
        "lower compute.slices, workers_per_slice or cores_per_slice"
    ]


def chips_of_worker() -> int:
    """TPU chips of a worker, which has all of its host's: this machine's, or those of a v4 host."""
    return _tpu_chips_here() or CHIPS_PER_HOST


def cores_per_worker(study: Study, nodes: Sequence[int] | None = None) -> int:
    """CPU threads of each worker process: the study's, else as many as let all workers run at the same time.

    `nodes` are the cores of each node, which no worker can straddle; default: this machine's.
    """
    compute = study.compute
    if compute.cores_per_slice is not None:
        return max(1, compute.cores_per_slice // compute.workers_per_slice)
    workers = compute.slices * compute.workers_per_slice
    there = [len(os.sched_getaffinity(0))] if nodes is None else nodes
    fits = (cores for cores in range(max(there, default=1), 0, -1) if sum(node // cores for node in there) >= workers)
    return next(fits, 1)


def metered_cores(study: Study, device: str) -> int:
    """The cores that core-hours of one trial count: its workers' CPU threads, their GPUs, or their TPU cores."""
    workers = study.compute.workers_per_slice
    if device == "tpu":
        return workers * chips_of_worker() * CORES_PER_CHIP
    return workers if device == "cuda" else workers * cores_per_worker(study)


def _tpu_chips_here() -> int:
    from trainables.runtime import tpu_chips_here  # imports torch

    return tpu_chips_here()


def _gpus_here() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
