"""Speed of input: decoded and augmented images per second per core, against torchvision and WebDataset, in one run.

All read the same photographs from the page cache, with a decoding process for each of (at most) two cores, and give
batches of 64 images of 224 px, uint8: a random crop, resized, flipped at random (training), or the centre, resized
(evaluation). They run in alternating rounds, so that whatever else the machine does hits all of them.

    python -m benchmarks.input [--quick] [--report FILE]
"""

from __future__ import annotations

import itertools
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import psutil  # type: ignore[import-untyped]
from rich.table import Table

from benchmarks.fidelity import fidelity
from benchmarks.input_peers import Split, torchvision_batches, webdataset_batches, write_tars
from benchmarks.photographs import write_photographs
from benchmarks.report import Report, arguments
from trainables.config import DataConfig
from trainables.data import open_splits
from trainables.data.building import begin, finish
from trainables.data.converting import Conversion, plan_conversion
from trainables.data.crew import do_all
from trainables.data.pipeline import heldout_batches, train_batches
from trainables.data.storage import open_storage

IMAGE_SIZE, BATCH_SIZE = 224, 64
PEERS = ("torchvision", "WebDataset")
_PACKAGES = ("pillow", "simplejpeg", "cykooz-resizer", "torchvision", "webdataset")
_MOST_CORES = 2
_SHARD_BYTES = 8 * 2**20
_ENDLESS = 10**6
_TICK_S = 0.01  # in which the system counts CPU time
_MOST_REST_S = 30.0
_ROUNDS: dict[Split, int] = {"train": 4, "val": 3}
_PHOTOGRAPHS, _HELDOUT_COPIES = 384, 32  # an evaluation is one pass, which all rounds take their images from
HOST_IMAGES_PER_S = 5_500
"""What a v4 host takes of F0: 4 chips of two cores, 690 images per second each, which the paper's core-hours imply."""
THREADS = "ours, threads"

Open = Callable[[], AbstractContextManager[Iterator[Any]]]


@dataclass(frozen=True, slots=True)
class Window:
    """How much is measured at a time: `batches`, after `before` of them, with which all that was read ahead is used."""

    before: int = 12  # twice what two processes read ahead
    batches: int = 32


@dataclass(frozen=True, slots=True)
class Speed:
    """Images per second of wall time and per second of CPU time of all processes, the reading one included."""

    wall: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Place:
    """Where the photographs are: a folder train/CLASS, val/CLASS; the training images as shards; and as tar files of
    WebDataset's own.
    """

    root: Path
    shards: Path
    tars: list[Path]


def main() -> None:
    options = arguments(__doc__.splitlines()[0]).parse_args()
    report = Report("Input: our pipeline against torchvision and WebDataset")
    report.say(", ".join(f"{package} {metadata.version(package)}" for package in _PACKAGES))
    window = Window(before=4, batches=4) if options.quick else Window()
    with _cores() as cores, tempfile.TemporaryDirectory() as folder:
        place = make_place(Path(folder), _PHOTOGRAPHS, _HELDOUT_COPIES, cores)
        files = sorted((place.root / "train").rglob("*.jpg"))
        size_kb = sum(path.stat().st_size for path in files) / len(files) / 1000
        report.say(
            f"{len(files)} distinct JPEG files of about 500x375 px and {size_kb:.0f} kB, made of the two photographs "
            f"that scikit-learn ships; {cores} cores."
        )
        rounds: dict[Split, int] = {"train": 2, "val": 1} if options.quick else _ROUNDS
        for split, count in rounds.items():
            speeds = measure(contenders(place, split, cores), window, count)
            report.show(_table(split, speeds, cores))
            report.say(_cores_of_a_host(split, speeds, cores))
        report.show(_fidelity_table(files[:: 8 if options.quick else 2]))
    report.say(
        f"Measured: {window.batches} batches at a time, after {window.before} with which what was read ahead is used; "
        "alternating rounds after one to warm up; medians; ratio = ours / the faster peer, round by round, and of the "
        "medians; target 1.3. "
        "Threads, and evaluation, read the folder. "
        "CPU time is that of all processes; it feels less of what else the machine does. The peers resize by "
        "torchvision's default, bilinear, we by bicubic; nobody converts to floats. Images are in the page cache. "
        "Cores of a host are computed, not measured: its cores are others than these, and threads, of which there are "
        "two, do not use so many."
    )
    report.finish(options.report)


def make_place(folder: Path, photographs: int, heldout_copies: int, workers: int) -> Place:
    """Writes the photographs below `folder`, our shards, and two tar files for each worker of WebDataset."""
    root, shards = folder / "photographs", folder / "shards"
    write_photographs(root, photographs, heldout_copies=heldout_copies)
    conversion = Conversion(str(root / "train"), shard_size=_SHARD_BYTES, held_out_fraction=1 / photographs)
    plan = plan_conversion(conversion, open_storage(str(shards))).plan
    begin(plan)
    do_all(plan, workers=1, tell=lambda _progress: None)
    finish(plan)
    return Place(root, shards, write_tars(root, folder / "tars", 2 * workers))


def contenders(place: Place, split: Split, workers: int) -> dict[str, Open]:
    """Ours, by decoding processes; for training also from shards, and by threads; and the peers."""

    def ours(source: Literal["folder", "shards"], decode_workers: int) -> Open:
        path = str(place.root if source == "folder" else place.shards)
        config = DataConfig(source, IMAGE_SIZE, path, augment="crop", flip=True, decode_workers=decode_workers)

        def opened() -> AbstractContextManager[Iterator[Any]]:
            splits = open_splits(config)
            if split == "val":
                return heldout_batches(splits.heldout, config, batch_size=BATCH_SIZE)
            return train_batches(splits.train, config, batch_size=BATCH_SIZE, seed=0, start_step=0, steps=_ENDLESS)

        return opened

    def torchvision() -> AbstractContextManager[Iterator[Any]]:
        return nullcontext(iter(torchvision_batches(place.root, split, IMAGE_SIZE, BATCH_SIZE, workers)))

    def webdataset() -> AbstractContextManager[Iterator[Any]]:
        return nullcontext(iter(webdataset_batches(place.tars, split, IMAGE_SIZE, BATCH_SIZE, workers)))

    peers: dict[str, Open] = dict(zip(PEERS, (torchvision, webdataset), strict=True))
    if split == "val":
        return {"ours, folder": ours("folder", workers), **peers}
    return {
        "ours, folder": ours("folder", workers),
        "ours, shards": ours("shards", workers),
        THREADS: ours("folder", 0),
        **peers,
    }


def measure(ways: dict[str, Open], window: Window, rounds: int) -> list[dict[str, Speed]]:
    """Run all ways in turns, the order turned from round to round; a first round is not counted.

    Each stays open from the first round to the last. While one is measured the others have read ahead all that they
    may, and wait.
    """
    found = []
    with ExitStack() as stack:
        loaders = {}
        for name in sorted(ways, key=lambda name: name not in PEERS):  # those that fork, before there are threads
            loaders[name] = stack.enter_context(ways[name]())
            _take(loaders[name], 1)
        for number in range(rounds + 1):
            names = list(ways)[number % len(ways) :] + list(ways)[: number % len(ways)]
            speeds = {}
            for name in names:
                _wait_for_rest()
                speeds[name] = _speed(loaders[name], window)
            if number > 0:
                found.append({name: speeds[name] for name in ways})
    return found


def _wait_for_rest() -> None:
    """Until neither this process nor any that it has started computes. What never rests is measured as it is."""
    before, deadline_s = -1.0, time.monotonic() + _MOST_REST_S
    while (now := _cpu_s()) - before > 2 * _TICK_S and time.monotonic() < deadline_s:
        before = now
        time.sleep(0.1)


def _speed(batches: Iterator[Any], window: Window) -> Speed:
    _take(batches, window.before)
    began, cpu_began = time.perf_counter(), _cpu_s()
    images = _take(batches, window.batches)
    elapsed_s, cpu_s = time.perf_counter() - began, _cpu_s() - cpu_began
    return Speed(images / elapsed_s, images / max(cpu_s, _TICK_S))


def _take(batches: Iterator[Any], count: int) -> int:
    """How many images the next `count` batches hold."""
    images = 0
    for batch in itertools.islice(batches, count):
        images += len(batch["label"] if isinstance(batch, dict) else batch[1])
    if images != count * BATCH_SIZE:
        raise RuntimeError(f"{images} images came in {count} batches: the data end before the measurement")
    return images


def _cpu_s() -> float:
    """CPU seconds so far of this process and of those that it has started."""
    here, found = psutil.Process(), 0.0
    for process in (here, *here.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # one that has just ended
            times = process.cpu_times()
            found += times.user + times.system
    return found


@contextmanager
def _cores() -> Iterator[int]:
    """Pins this process, and all that it starts, to as many cores as it has, two at the most."""
    cores = os.sched_getaffinity(0)
    chosen = sorted(cores)[-_MOST_CORES:]
    os.sched_setaffinity(0, chosen)
    try:
        yield len(chosen)
    finally:
        os.sched_setaffinity(0, cores)


# --------------------------------------------------------------------------------------------------------------- tables


def _ratios(speeds: list[dict[str, Speed]], ours: str, kind: str) -> list[float]:
    """Of each round: ours over the faster peer, by wall time or by CPU time."""
    return sorted(getattr(one[ours], kind) / max(getattr(one[peer], kind) for peer in PEERS) for one in speeds)


def _median(speeds: list[dict[str, Speed]], name: str, kind: str) -> float:
    return float(statistics.median(getattr(one[name], kind) for one in speeds))


def _of_medians(speeds: list[dict[str, Speed]], ours: str, kind: str) -> float:
    """The median of ours over that of the faster peer."""
    return _median(speeds, ours, kind) / max(_median(speeds, peer, kind) for peer in PEERS)


def _table(split: Split, speeds: list[dict[str, Speed]], cores: int) -> Table:
    table = Table(
        "training" if split == "train" else "evaluation",
        "images/s",
        "images/s per core",
        "per core, by CPU time",
        "ratio (range), of medians",
        "by CPU time (range), of medians",
    )
    for name in speeds[0]:
        wall, cpu = (_median(speeds, name, kind) for kind in ("wall", "cpu"))
        ratios = (
            ("", "")
            if name in PEERS
            else [
                f"{statistics.median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f}), "
                f"{_of_medians(speeds, name, kind):.2f}"
                for kind, found in ((kind, _ratios(speeds, name, kind)) for kind in ("wall", "cpu"))
            ]
        )
        table.add_row(name, f"{wall:.0f}", f"{wall / cores:.0f}", f"{cpu:.0f}", *ratios)
    return table


def _cores_of_a_host(split: Split, speeds: list[dict[str, Speed]], cores: int) -> str:
    work = "training" if split == "train" else "evaluation, at the same rate,"
    needed = ", ".join(
        f"{name} {math.ceil(HOST_IMAGES_PER_S / _median(speeds, name, 'cpu'))} / "
        f"{math.ceil(HOST_IMAGES_PER_S / (_median(speeds, name, 'wall') / cores))}"
        for name in speeds[0]
        if name != THREADS
    )
    return (
        f"Cores like these that {work} takes on a v4 host at F0's {HOST_IMAGES_PER_S} images/s, by CPU time / by wall "
        f"time with a process for each core: {needed}."
    )


def _fidelity_table(files: list[Path]) -> Table:
    table = Table("against Pillow's full decoding and bicubic", "mean abs. difference", "PSNR", "largest difference")
    for name, found in fidelity(files, IMAGE_SIZE).items():
        table.add_row(name, f"{found.mean:.2f} of 255", f"{found.psnr_db:.1f} dB", f"{found.largest}")
    return table


if __name__ == "__main__":
    main()
