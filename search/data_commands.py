"""What the commands of data sets do, and what they show while they do it."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from search.formats import duration, number
from search.terminal import tell
from trainables.data import DataError
from trainables.data.building import alone, begin, finish
from trainables.data.converting import Conversion, plan_conversion
from trainables.data.crew import Progress as Done
from trainables.data.crew import do_all
from trainables.data.jobs import Plan
from trainables.data.shards import Manifest
from trainables.data.storage import Storage, is_address, open_storage
from trainables.data.webdatasets import plan_index

_UNITS: Final[dict[str, int]] = {"": 1, "B": 1} | {
    f"{letter}{kind}": base**power
    for power, letter in enumerate("KMGT", start=1)
    for kind, base in (("B", 1000), ("iB", 1024))
}
_LINE_EVERY_S: Final = 30.0  # where there is no terminal
_MOST_NAMED: Final = 10
_NOT_KEPT: Final = {
    "http": "nothing can be written",
    "https": "nothing can be written",
    "memory": "nothing outlives this command",
}


def convert_folder(
    folder: str,
    address: str,
    *,
    shard_size: str,
    seed: int,
    held_out_fraction: float,
    split_seed: int,
    image_size: int | None,
    bad_images: str,
    workers: int | None,
) -> None:
    """Convert a folder of images to shards at an address, or go on with that, and tell the outcome.

    Raises:
        DataError: a mistake of the user's, in one line.
    """
    console, processes, folder = Console(), _processes(workers), _of_this_machine(folder)
    _check_apart(folder, address)
    conversion = Conversion(
        folder, _bytes(shard_size), seed, held_out_fraction, split_seed, image_size, _bad_images(bad_images)
    )
    storage = _writable(address)
    with _looking(console, f"Looking at the files of {folder}"):
        work = plan_conversion(conversion, storage)
    if storage.remote:
        _check_spool(min(processes * conversion.shard_size, work.size), processes)
    for line in work.warnings:
        tell(console, line)
    _make(work.plan, address, console, workers=processes, images=work.images, size=work.size)


def index_shards(
    address: str,
    *,
    train: Sequence[str],
    heldout: Sequence[str],
    label: str,
    image: str | None,
    classes: Path | None,
    bad_images: str,
    workers: int | None,
) -> None:
    """Make shards that are there a data set, or go on with that, and tell the outcome. Raises as `convert_folder`."""
    console, processes = Console(), _processes(workers)
    names, bad, storage = None if classes is None else _names(classes), _bad_images(bad_images), _writable(address)
    with _looking(console, "Looking for the shards"):
        plan = plan_index(
            storage,
            {"train": train, "heldout": heldout},
            label=label,
            image=image,
            classes=names,
            bad_images=bad,
        )
    _make(plan, address, console, workers=processes)


def _make(
    plan: Plan, address: str, console: Console, *, workers: int, images: int | None = None, size: int | None = None
) -> None:
    began_s = time.monotonic()
    try:
        with alone(plan.storage):
            if (there := begin(plan)) is not None:
                tell(console, f"{address} holds these already: {_described(there)}")
                _tell_section(console, address)
                return
            with _shown(console, images, size) as show:
                done = do_all(plan, workers=workers, tell=show)
            manifest, unused = finish(plan)
    except KeyboardInterrupt:
        tell(console, f"Interrupted after {_time(began_s)}; the same command goes on from here")
        raise
    except RuntimeError:
        tell(console, "A mistake of convscale's own, which follows; what is done stays, and the same command goes on")
        raise
    except OSError as error:
        if not plan.storage.remote and not plan.shards.remote:
            raise
        raise DataError(
            f"{error.filename or address}: {error.strerror or error}; mend that, and give the same command again, "
            "which goes on where it was"
        ) from error
    before = f" ({done.images_before:,} of them before)" if done.images_before else ""
    tell(console, f"{_described(manifest)}{before}, in {_time(began_s)}")
    if unused:
        tell(console, f"{unused:,} of the classes have no image to train on")
    if left_out := [name.encode("utf-8", "backslashreplace").decode() for name in done.left_out]:
        more = f", and {len(left_out) - _MOST_NAMED:,} more" if len(left_out) > _MOST_NAMED else ""
        tell(console, f"Left out, {len(left_out):,} that cannot be used: {', '.join(left_out[:_MOST_NAMED])}{more}")
    _tell_section(console, address)


def _described(manifest: Manifest) -> str:
    train, heldout = manifest.train, manifest.heldout
    shards, size = len(train.names) + len(heldout.names), int(train.sizes.sum() + heldout.sizes.sum())
    return (
        f"{len(train):,} images to train on and {len(heldout):,} held out, of {len(manifest.classes):,} classes, in "
        f"{shards:,} shards of {_size(size)} in all"
    )


def _size(size: int) -> str:
    """Bytes, as "5.24 MB"."""
    unit, name = next(((unit, name) for name in ("TB", "GB", "MB") if size >= (unit := _UNITS[name])), (1000, "KB"))
    return f"{number(size / unit)} {name}"


def _tell_section(console: Console, address: str) -> None:
    tell(console, "")
    for line in ("data:", "  source: shards", f"  path: {address}", "  image_size: 224", "  augment: crop"):
        tell(console, line)


# ----------------------------------------------------------------------------------------------------- while it goes on


@contextmanager
def _looking(console: Console, what: str) -> Iterator[None]:
    if console.is_terminal:
        with console.status(what):
            yield
    else:
        tell(console, what)
        yield


@contextmanager
def _shown(console: Console, images: int | None, size: int | None) -> Iterator[Callable[[Done], None]]:
    """What shows how far the work is: a bar on a terminal, else a line now and then. `size` is in bytes."""
    began_s = last_s = time.monotonic()
    if console.is_terminal:
        columns = BarColumn(), TaskProgressColumn(), TextColumn("{task.description}")
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=1.0)

            def draw(done: Done) -> None:
                bar.update(task, completed=_share(done, size), description=_line(done, images, size, began_s))

            yield draw
        return

    def say(done: Done) -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= _LINE_EVERY_S:
            last_s = time.monotonic()
            tell(console, _line(done, images, size, began_s))

    yield say


def _share(done: Done, size: int | None) -> float:
    if size:
        return min(1.0, (done.size + done.size_before) / size)
    return done.done / done.jobs


def _line(done: Done, images: int | None, size: int | None, began_s: float) -> str:
    """ "12,300 of 50,000 images, 3 of 12 shards, 210 MB/s, 3 min 20 s left"."""
    elapsed_s = max(time.monotonic() - began_s, 1e-9)
    known = f" of {images:,}" if images is not None else ""
    line = (
        f"{done.images + done.images_before:,}{known} images, {done.done:,} of {done.jobs:,} shards, "
        f"{number(done.size / elapsed_s / 1e6)} MB/s"
    )
    if size and done.size:
        left_s = max(0.0, size - done.size - done.size_before) / done.size * elapsed_s
        line += f", {duration(left_s)} left"
    return line


def _time(began_s: float) -> str:
    return duration(time.monotonic() - began_s)


# ------------------------------------------------------------------------------------------------------- what was given


def _bytes(text: str) -> int:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if found is None or found[2] not in _UNITS:
        raise DataError(f"--shard-size: {text!r} given; allowed: a number with B, KB, MB, GB, KiB, MiB or GiB: 256MiB")
    return int(float(found[1]) * _UNITS[found[2]])


def _bad_images(text: str) -> Literal["error", "skip"]:
    if text == "error":
        return "error"
    if text == "skip":
        return "skip"
    raise DataError(f"--bad-images: {text!r} given; allowed: error or skip")


def _processes(workers: int | None) -> int:
    if workers is None:
        return len(os.sched_getaffinity(0))
    if not 1 <= workers <= 1024:
        raise DataError(f"--workers: {workers} given; allowed: 1 to 1024")
    return workers


def _names(path: Path) -> tuple[str, ...]:
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"--classes: {str(path)!r} cannot be read ({getattr(error, 'strerror', None) or error})"
        ) from None
    if len(names) < 2 or len(set(names)) < len(names):
        raise DataError(f"--classes: {str(path)!r} has {len(names)} names; allowed: two or more, none twice")
    return names


def _of_this_machine(folder: str) -> str:
    found = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]*):/+(.*)", folder)  # of an address a path has one slash left
    if found is None:
        return folder
    if found[1] != "file":
        raise DataError(
            f"FOLDER: {found[1]}://{found[2]} given; allowed: a folder of this machine; copy the images there"
        )
    return f"/{found[2]}"


def _check_spool(needed: int, workers: int) -> None:
    """Each process writes its shard to a file here, before it is sent off."""
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder!r} has {free / 1e9:,.3g} GB left, and {workers} processes write shards of {needed / 1e9:,.3g} GB "
            "there before they are sent off; make room, set TMPDIR, or give fewer --workers or a smaller --shard-size"
        )


def _writable(address: str) -> Storage:
    protocol = address.partition("://")[0] if is_address(address) else "file"
    if protocol in _NOT_KEPT:
        raise DataError(f"ADDRESS: {address!r} given, where {_NOT_KEPT[protocol]}; give a folder or an object store")
    return open_storage(address)


def _check_apart(folder: str, address: str) -> None:
    """Shards inside the folder would become a class of it."""
    if is_address(address):
        return
    source, target = os.path.realpath(os.path.expanduser(folder)), os.path.realpath(open_storage(address).address)
    if source == target or target.startswith(source + os.sep):
        raise DataError(f"ADDRESS: {address!r} given, which is inside of the images' own folder; give one beside it")
