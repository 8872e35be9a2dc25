"""Whether a study's trainings fit the memory of this machine, told before any of them is tried."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from clusters.tpu import CORES_PER_CHIP, HBM_BYTES_PER_CHIP
from models.costs import training_memory
from search.devices import chips_of_worker
from search.formats import number
from search.study import Study


def memory_by_variant(
    study: Study, classes: int, device: str = "cpu", variants: Iterable[str] | None = None
) -> dict[str, int]:
    """Bytes that training each variant (None: all) takes of a worker at least, with what it holds of the batch; an
    estimate.

    On a TPU each core holds its share of the images, and all of the weights.
    """
    training = study.training
    share = training.batch_size // study.compute.workers_per_slice
    held = min(share, training.micro_batch_size or share)
    cores = chips_of_worker() * CORES_PER_CHIP if device == "tpu" else 1
    return {
        variant: cores * training_memory(study.model_size(variant, classes), training.precision).of(-(-held // cores))
        for variant in (study.model.variants if variants is None else variants)
    }


def memory_warnings(study: Study, memory: Mapping[str, int], device: str) -> list[str]:
    """One line if variants take more than there is for a worker; nothing where that is not known."""
    there = memory_here(study, device)
    if there is None or not (short := [variant for variant, needed in memory.items() if needed > there]):
        return []
    fewer_slices = ", or compute.slices" if device in ("cpu", "xla-cpu") else ""  # a GPU or a TPU is never shared
    where = "a worker's TPU chips have" if device == "tpu" else "this machine has for a worker"
    return [
        f"{', '.join(short)} take{'s' if len(short) == 1 else ''} more memory than the {gigabytes(there)} that "
        f"{where}; set training.micro_batch_size lower{fewer_slices}"
    ]


def memory_here(study: Study, device: str) -> int | None:
    """Bytes that there are for each worker: its GPU's, its TPU chips', or an even share of this machine's memory."""
    if device == "tpu":
        return chips_of_worker() * HBM_BYTES_PER_CHIP
    if device == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None
    workers = study.compute.slices * study.compute.workers_per_slice
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // workers


def gigabytes(size: int) -> str:
    """A number of bytes as people read it: "5.12 GB"."""
    return f"{number(size / 1e9)} GB"
