"""From a folder of images to shards: the same images trained on and held out as `source: folder` has, shuffled.

What comes out depends on the folder and the settings alone, to the byte.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from trainables.config import DataConfig
from trainables.data.building import under_way
from trainables.data.errors import DataError
from trainables.data.folder import OF_THE_FILE, Files
from trainables.data.jobs import Count, Part, Plan
from trainables.data.recode import JPEG_QUALITY, check_image, smaller
from trainables.data.shards import BLOCK, SPLITS, VERSION, Indices
from trainables.data.sources import FolderSource, Splits, open_splits
from trainables.data.storage import Storage
from trainables.data.tars import TarWriter

_SAMPLED: Final = 64  # images made smaller to tell how much smaller shards become
_THREADS: Final = 16
_LOOKED_AT: Final = 4_096  # files, by a thread at a time
_ROOM_LEFT: Final = 64 * 2**20
# Of what a data set is made by: a file that was mended changes its size, and the job that it belongs to.
_MENDABLE: Final = frozenset({"sizes"})
MOST_SHARD: Final = 2**40
LEAST_SHARD: Final = 2**16


@dataclass(frozen=True, slots=True)
class Conversion:
    """How a folder becomes shards. shard_size: bytes that a shard has at most (but for its last image).

    seed: of the order of the images. held_out_fraction, split_seed: as in a study, where the folder has no held-out
    images of its own. image_size: the shorter side that larger images are made to have; None: bytes stay as they are.
    """

    folder: str
    shard_size: int = 256 * 2**20
    seed: int = 0
    held_out_fraction: float = 0.2
    split_seed: int = 0
    image_size: int | None = None
    bad_images: Literal["error", "skip"] = "error"


@dataclass(frozen=True, slots=True)
class Work:
    """A plan, and how much there is to do: images, and bytes that are read."""

    plan: Plan
    images: int
    size: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FolderJob:
    """Some files of a folder, in this order, as a shard. `first` is the number of the first in its split, `known_by`
    the digest of these, of the files' sizes, and of what is made of them.
    """

    split: str
    number: int
    files: Files
    first: int
    image_size: int | None
    bad_images: str
    known_by: str

    @classmethod
    def of(
        cls, conversion: Conversion, split: str, number: int, files: Files, sizes: Indices, span: tuple[int, int]
    ) -> FolderJob:
        """The files [first, end) of a split."""
        first, end = span
        some, size = files.select(np.arange(first, end)), conversion.image_size
        known_by = hashlib.sha256(f"{split} {first} {size} {JPEG_QUALITY}".encode() + some.digest())
        known_by.update(sizes[first:end].astype("<i8").tobytes())
        return cls(split, number, some, first, size, conversion.bad_images, known_by.hexdigest()[:32])

    @property
    def shard(self) -> str:
        return f"{self.split}-{self.number:06d}.tar"

    @property
    def part(self) -> str:
        return f"{self.split}-{self.number:06d}"

    def make(self, shards: Storage, count: Count) -> Part:
        left_out = []
        with shards.writing(self.shard) as file:
            tar = TarWriter(file)
            for place in range(len(self.files)):
                path, label = self.files.path(place), int(self.files.labels[place])
                try:
                    content = _read(path)
                    image, ending = self._image(content, path)
                except DataError:
                    if self.bad_images == "error":
                        raise
                    left_out.append(path)
                    count(1, 0)
                    continue
                tar.add(f"{self.first + place:09d}", ending, image, label)
                count(1, len(content))
            rows = tar.finish()
        return Part(self.shard, tar.size, rows, None, tuple(left_out))

    def _image(self, content: bytes, path: str) -> tuple[bytes, str]:
        ending = os.path.splitext(path)[1][1:].lower()
        if self.image_size is None:
            check_image(content, path)
            return content, ending
        image, changed = smaller(content, self.image_size, path)
        return image, "jpg" if changed else ending


def plan_conversion(conversion: Conversion, storage: Storage) -> Work:
    """Which images go into which shard.

    Raises:
        DataError: a folder that is not as it must be, a setting out of range, or no room for the shards.
    """
    _check_settings(conversion)
    config = DataConfig(
        "folder",
        1,
        path=conversion.folder,
        held_out_fraction=conversion.held_out_fraction,
        split_seed=conversion.split_seed,
    )
    try:
        splits = open_splits(config)
    except OSError as error:
        raise DataError(
            f"FOLDER: {error.filename or conversion.folder!r} cannot be read ({error.strerror}); mend that, and give "
            "the same command again"
        ) from error
    except DataError as error:
        raise DataError(_said_of_the_folder(str(error))) from error
    _check_names(splits.classes)
    listed = _files(splits)
    sizes = [_sizes(files) for files in listed]
    known_sizes = hashlib.sha256(b"".join(size.astype("<i8").tobytes() for size in sizes))
    orders = [
        np.random.default_rng([conversion.seed, number]).permutation(len(size)) for number, size in enumerate(sizes)
    ]
    ordered = [files.select(order) for files, order in zip(listed, orders, strict=True)]
    sizes = [size[order] for size, order in zip(sizes, orders, strict=True)]
    made_by = {
        "command": "convert",
        "version": VERSION,
        "images": splits.digest[:32],
        "sizes": known_sizes.hexdigest()[:32],
        "shard_size": conversion.shard_size,
        "seed": conversion.seed,
        "image_size": conversion.image_size,
        "quality": None if conversion.image_size is None else JPEG_QUALITY,
    }
    cuts = _cuts_under_way(storage, made_by) or _cuts(conversion, ordered[0], sizes)
    jobs = [
        FolderJob.of(conversion, split, number, files, size, span)
        for split, files, size in zip(SPLITS, ordered, sizes, strict=True)
        for number, span in enumerate(itertools.pairwise([0, *cuts[split]]))
    ]
    total = int(sum(size.sum() for size in sizes))
    _check_room(storage, round(cuts["share"] * sum(int(_taken(size).sum()) for size in sizes)))
    plan = Plan(storage, jobs, made_by, splits.classes, mendable=_MENDABLE, kept=cuts)
    warnings = tuple(_said_of_the_folder(line) for line in splits.warnings())
    return Work(plan, sum(map(len, ordered)), total, warnings)


def _cuts(conversion: Conversion, train: Files, sizes: list[Indices]) -> dict[str, Any]:
    """Where the shards of each split end, and the share of their bytes that images keep."""
    share = _share_kept(train, conversion.image_size)
    limit = (conversion.shard_size - 2 * BLOCK) / share
    return {"share": share} | {split: _ends(size, limit) for split, size in zip(SPLITS, sizes, strict=True)}


def _cuts_under_way(storage: Storage, made_by: dict[str, Any]) -> dict[str, Any] | None:
    """Those of a conversion that was begun there, of the same images: they stay, though a file was mended since."""
    began = under_way(storage)
    if began is None or any(began["made_by"].get(name) != made_by[name] for name in {*made_by} - _MENDABLE):
        return None
    cuts: dict[str, Any] | None = began.get("kept")
    return cuts


def _check_names(classes: tuple[str, ...]) -> None:
    for name in classes:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(f"FOLDER: the class {name!r} has a name that is not UTF-8; rename its folder") from None


def _taken(images: Indices) -> Indices:
    """Bytes of a shard that examples take up whose images have so many: a header each for image and class."""
    return 3 * BLOCK + -(-images // BLOCK) * BLOCK


def _files(splits: Splits) -> tuple[Files, Files]:
    train, heldout = splits.train, splits.heldout
    assert isinstance(train, FolderSource)
    assert isinstance(heldout, FolderSource)
    return train.files, heldout.files


def _sizes(files: Files) -> Indices:
    """Bytes of each file; 0 for one that cannot be looked at, which is met again when it is read."""

    def size(index: int) -> int:
        try:
            return os.stat(files.path(index)).st_size
        except OSError:
            return 0

    def some(first: int) -> list[int]:
        return [size(index) for index in range(first, min(first + _LOOKED_AT, len(files)))]

    with ThreadPoolExecutor(_THREADS) as threads:
        found = threads.map(some, range(0, len(files), _LOOKED_AT))
        return np.fromiter(itertools.chain.from_iterable(found), np.int64, len(files))


def _ends(sizes: Indices, limit: float) -> list[int]:
    """Where groups of neighbours end that take up `limit` bytes at most, or are one image."""
    taken = np.cumsum(_taken(sizes))
    ends, before = [0], 0
    while ends[-1] < len(sizes):
        ends.append(max(ends[-1] + 1, int(np.searchsorted(taken, before + limit, side="right"))))
        before = int(taken[ends[-1] - 1])
    return ends[1:]


def _share_kept(files: Files, image_size: int | None) -> float:
    """How many of their bytes images keep when they are made smaller, by some of them."""
    if image_size is None:
        return 1.0
    before, after = 0, 0
    for index in np.unique(np.linspace(0, len(files) - 1, _SAMPLED).astype(int)):
        try:
            content = _read(files.path(int(index)))
            made, _ = smaller(content, image_size, files.path(int(index)))
        except DataError:
            continue
        before, after = before + len(content), after + len(made)
    return after / before if after else 1.0


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        if error.errno not in OF_THE_FILE:
            raise
        raise DataError(
            f"cannot read image {path!r} ({error.strerror}); put a good one in its place, or leave such out with "
            "--bad-images skip"
        ) from error


def _check_settings(conversion: Conversion) -> None:
    if not LEAST_SHARD <= conversion.shard_size <= MOST_SHARD:
        raise DataError(
            f"--shard-size: {conversion.shard_size} bytes given; allowed: {LEAST_SHARD:,} to {MOST_SHARD:,}, such as "
            "256MiB"
        )
    if conversion.image_size is not None and conversion.image_size < 1:
        raise DataError(f"--image-size: {conversion.image_size} given; allowed: a positive number of pixels")
    if conversion.seed < 0:
        raise DataError(f"--seed: {conversion.seed} given; allowed: a whole number of at least 0")


def _check_room(storage: Storage, needed: int) -> None:
    """What was written already by an interrupted conversion is not needed again."""
    free = storage.free_bytes()
    if free is None:
        return
    there = sum(storage.size(name) or 0 for split in SPLITS for name in storage.matching(f"{split}-*.tar"))
    if needed - there + _ROOM_LEFT > free:
        raise DataError(
            f"{storage.address!r} has {free / 1e9:,.3g} GB left, and the shards need about "
            f"{(needed - there) / 1e9:,.3g} GB; make room, give another address, or a smaller --image-size"
        )


def _said_of_the_folder(line: str) -> str:
    """What is said of a study's field, in the words of the command."""
    for field, option in (
        ("data.path", "FOLDER"),
        ("data.held_out_fraction", "--held-out-fraction"),
        ("data.split_seed", "--split-seed"),
    ):
        line = line.replace(field, option)
    return line
