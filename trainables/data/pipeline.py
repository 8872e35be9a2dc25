"""The stream of batches: a pure function of (seed, step), on Grain.

Training reads one endless stream of positions 0, 1, 2, ... Each run of N = len(source) positions is an epoch: a
permutation of all N examples, another for every epoch (`order`). Batch s of a run holds positions [s B, (s + 1) B);
rank r of w takes positions s B + r, s B + r + w, ... of it. A batch may span two epochs (many, where it is larger
than the data set), and no example is dropped: only what the last batch of a run leaves of its epoch goes unseen.
Neither the number of workers nor a restart enters, and augmentation is drawn from (seed, position), so they change
nothing.

Grain's unit of work is here this rank's batch, or an even part of it of at most 256 images: its bookkeeping (tens of
microseconds) is not paid for every example, which keeps small images cheap, and what is read ahead is not several
large batches. Grain gives the permutation in constant memory, the reading ahead, and the processes that decode.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from trainables.config import DataConfig
from trainables.data import augment
from trainables.data.errors import DataError
from trainables.data.examples import ImageSource
from trainables.data.grain_library import grain, light_main, set_up_decoding_process
from trainables.data.order import MAX_EXAMPLES, examples_at

Batch = dict[str, npt.NDArray[Any]]

_UNIT = 256
# Units read ahead: by the threads of this process (up to the second number, where a batch has so many), and by each
# decoding process.
_READ_AHEAD, _MOST_READ_AHEAD = 4, 16
_THREADS = 2
_READ_AHEAD_PER_PROCESS = 1
_START_S = 10.0  # a process that could not be started is an error of the first batch, not a hang


def train_batches(
    source: ImageSource,
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    steps: int,
    rank: int = 0,
    world: int = 1,
) -> Batches:
    """This rank's share of the global batches `start_step` to `steps - 1` of the training stream.

    A batch is a dictionary of b = batch_size / world examples: image uint8 [b, H, W, 3], label int32 [b], weight
    float32 [b] (0 where the image could not be read and `config.bad_images` is "skip", its pixels then zero), index
    int64 [b] (the number of the example in the source).

    Raises:
        ValueError: world does not divide batch_size, or a number is out of range.
        DataError: (while iterating) an image cannot be read and `config.bad_images` is "error".
    """
    share = _share(source, batch_size, rank, world)
    if seed < 0:
        raise ValueError(f"seed {seed} is given; give a whole number of at least 0")
    if not 0 <= start_step <= steps:
        raise ValueError(f"start_step {start_step} of {steps} steps is given; give 0 to {steps}")
    if config.augment not in ("none", "shift", "crop"):
        raise DataError(f"data.augment: {config.augment!r} is given; give 'none', 'shift' or 'crop'")
    order_seed, augment_key = np.random.SeedSequence(seed).generate_state(2, np.uint64)
    make = _TrainUnit(share, int(order_seed) % 2**32, int(augment_key), source, config)
    return Batches(make, start_step, steps, config)


def heldout_batches(
    source: ImageSource, config: DataConfig, *, batch_size: int, rank: int = 0, world: int = 1
) -> Batches:
    """This rank's share of all examples, in order, each once and never augmented.

    Batches are as in `train_batches`. The last one is filled up to its full size with weight 0, index -1 and zeros,
    so that every batch of every rank has the same shape and every rank has as many.
    """
    share = _share(source, batch_size, rank, world)
    return Batches(_HeldoutUnit(share, source, config), 0, -(-len(source) // batch_size), config)


def _share(source: ImageSource, batch_size: int, rank: int, world: int) -> _Share:
    if batch_size < 1 or world < 1 or batch_size % world:
        raise ValueError(f"batch_size {batch_size} on {world} workers is given; give a batch size that {world} divides")
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} of {world} workers is given; give 0 to {world - 1}")
    if not 0 < len(source) <= MAX_EXAMPLES:
        raise DataError(f"a data set of {len(source)} images is given; give 1 to {MAX_EXAMPLES}")
    return _Share(batch_size, rank, world, units=-(-batch_size // world // _UNIT))


@dataclass(frozen=True, slots=True)
class _Share:
    """Which positions of a global batch are this rank's, and into how many units of work they are parted."""

    batch_size: int
    rank: int
    world: int
    units: int

    @property
    def size(self) -> int:
        return self.batch_size // self.world

    def bounds(self, part: int) -> tuple[int, int]:
        """The rows [first, end) of this rank's batch that its unit `part` holds."""
        return part * self.size // self.units, (part + 1) * self.size // self.units

    def positions(self, unit: int) -> npt.NDArray[np.int64]:
        """The stream positions of a unit, counted from the first unit of step 0."""
        step, part = divmod(unit, self.units)
        first, end = self.bounds(part)
        return step * self.batch_size + self.rank + self.world * np.arange(first, end, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class _TrainUnit:
    """Makes a unit of this rank's training batches."""

    share: _Share
    order_seed: int
    augment_key: int
    source: ImageSource
    config: DataConfig

    def __call__(self, unit: int) -> Batch:
        positions = self.share.positions(unit)
        crops = self.config.augment == "crop"
        draws = augment.uniforms(self.augment_key, positions, 3 + augment.CROP_DRAWS if crops else 3)
        indices = examples_at(positions, len(self.source), self.order_seed).tolist()
        batch = _read(self.source, indices, self.config, draws[:, 3:] if crops else None)
        if self.config.augment == "shift":
            batch["image"] = augment.shift(batch["image"], draws[:, 1:3])
        if self.config.flip:
            batch["image"] = augment.flip(batch["image"], draws[:, 0])
        return batch


@dataclass(frozen=True, slots=True)
class _HeldoutUnit:
    """Makes a unit of this rank's held-out batches, filled up with padding."""

    share: _Share
    source: ImageSource
    config: DataConfig

    def __call__(self, unit: int) -> Batch:
        positions = self.share.positions(unit)
        real = positions[positions < len(self.source)]
        batch = _read(self.source, real.tolist(), self.config, None)
        missing = len(positions) - len(real)
        if missing:
            fill = {"image": 0, "label": 0, "weight": 0, "index": -1}
            for name, values in batch.items():
                widths = [(0, missing)] + [(0, 0)] * (values.ndim - 1)
                batch[name] = np.pad(values, widths, constant_values=fill[name])
        return batch


def _read(source: ImageSource, indices: list[int], config: DataConfig, crops: augment.Draws | None) -> Batch:
    size = source.image_size
    images = np.zeros((len(indices), size, size, 3), np.uint8)
    labels, weights = np.zeros(len(indices), np.int32), np.ones(len(indices), np.float32)
    fetched = source.fetched(indices)
    for row, index in enumerate(indices):
        try:
            labels[row] = fetched.label(index)
            images[row] = fetched.read(index, None if crops is None else crops[row])
        except DataError:
            if config.bad_images == "error":
                raise
            weights[row] = 0
    return {
        "image": images,
        "label": labels,
        "weight": weights,
        "index": np.array(indices, np.int64),
    }


class Batches(Iterator[Batch]):
    """Batches in order, read ahead in the background from the moment of construction.

    With `config.decode_workers` at 0, by threads of this process; else by as many processes (never more than there is
    work for). `close()`, the end of a `with` block, the end of the stream, an error or garbage collection ends them.
    """

    def __init__(self, make_unit: _TrainUnit | _HeldoutUnit, start: int, stop: int, config: DataConfig) -> None:
        self._share = share = make_unit.share
        self._remaining = stop - start
        self._next = 0
        workers = min(config.decode_workers, self._remaining * share.units)
        units = grain.MapDataset.range(start * share.units, stop * share.units).map(make_unit)
        if self._remaining == 0:
            self._readers: list[Any] = []
        elif workers <= 0:
            options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_units_ahead(share))
            self._readers = [iter(units.to_iter_dataset(options))]
            self._readers[0].start_prefetch()
        else:
            self._readers = _start_processes(units, workers, _unit_bytes(make_unit))
        self._copies = workers > 0
        self._finaliser = weakref.finalize(self, _close_all, self._readers)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self._remaining == 0 or not self._finaliser.alive:
            self.close()
            raise StopIteration
        try:
            batch = self._batch()
        except BaseException:
            self.close()
            raise
        self._remaining -= 1
        return batch

    def _batch(self) -> Batch:
        """The next batch, put together from its units."""
        batch: Batch = {}
        for part in range(self._share.units):
            # Reader k of n has every n-th unit, so taking turns gives them in order.
            unit: Batch = next(self._readers[self._next])
            self._next = (self._next + 1) % len(self._readers)
            if self._share.units == 1 and not self._copies:
                return unit
            first, end = self._share.bounds(part)
            for name, values in unit.items():
                if part == 0:
                    batch[name] = np.empty((self._share.size, *values.shape[1:]), values.dtype)
                # Out of the memory shared with the process that decoded it, which is given back after that.
                batch[name][first:end] = values
        return batch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the threads or processes that read ahead, and waits for processes to be gone. May be called again."""
        self._finaliser()


def _units_ahead(share: _Share) -> int:
    return min(max(_READ_AHEAD, share.units), _MOST_READ_AHEAD)


def _unit_bytes(make_unit: _TrainUnit | _HeldoutUnit) -> int:
    return -(-make_unit.share.size // make_unit.share.units) * (make_unit.source.image_size**2 * 3 + 16)


def _start_processes(units: Any, workers: int, unit_bytes: int) -> list[Any]:
    """Starts the decoding processes: one reader each, for every `workers`-th unit."""
    # In containers shared memory is often 64 MB; where it is short, units travel through pipes instead.
    fits = unit_bytes * workers * (2 * _READ_AHEAD_PER_PROCESS + 2) < _free_shared_memory() / 2
    options = grain.experimental.DatasetOptions(min_shm_size=0 if fits else sys.maxsize)
    readers: list[Any] = []
    before = set(multiprocessing.active_children())
    try:
        with light_main():
            for worker in range(workers):
                part = units[worker::workers].to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
                part = grain.experimental.WithOptionsIterDataset(part, options)
                part = part.mp_prefetch(
                    grain.MultiprocessingOptions(num_workers=1, per_worker_buffer_size=_READ_AHEAD_PER_PROCESS),
                    worker_init_fn=set_up_decoding_process,
                )
                readers.append(iter(part))
                readers[-1].get_state()  # makes the inner iterator, which alone `start_prefetch` can start
                readers[-1].start_prefetch()
            # Grain starts the processes from threads of its own; `light_main` has to be open until the last is started.
            deadline = time.monotonic() + _START_S
            while len(set(multiprocessing.active_children()) - before) < workers and time.monotonic() < deadline:
                time.sleep(0.001)
    except BaseException:
        _close_all(readers)
        raise
    return readers


def _free_shared_memory() -> float:
    try:
        status = os.statvfs("/dev/shm")
    except OSError:
        return float("inf")  # not Linux: shared memory is not a file system there
    return status.f_bavail * status.f_frsize


def _close_all(readers: list[Any]) -> None:
    """Closes readers at the same time (each waits for its process to finish the unit it is at) and forgets them."""
    # Plain threads: an executor takes no work any more when the interpreter ends, which is one time this runs.
    threads = [threading.Thread(target=reader.close, name="close-reader") for reader in readers[1:]]
    for thread in threads:
        thread.start()
    for reader in readers[:1]:
        reader.close()
    for thread in threads:
        thread.join()
    readers.clear()
