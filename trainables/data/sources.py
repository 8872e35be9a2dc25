"""Labelled images: handwritten digits, a folder of image files per class, or shards.

A source knows its examples by number, holds no decoded image but the digits in memory, and can be sent to another
process.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from trainables.config import DataConfig
from trainables.data import folder
from trainables.data.augment import Draws, Images
from trainables.data.decode import decode_file, resize_array
from trainables.data.errors import DataError
from trainables.data.examples import Example, ImageSource
from trainables.data.shard_check import open_shards
from trainables.data.shards import LAYOUT

__all__ = ["DigitsSource", "Example", "FolderSource", "ImageSource", "Splits", "open_splits", "split_off"]

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Splits:
    """The images to train on, those held out, and the names of the classes: label k is classes[k].

    `digest` (64 hexadecimal digits) tells data sets apart: by the names of the classes, by the names of the files (of
    shards the images' bytes instead) or the digits themselves, and by which of them are held out. Where they lie does
    not enter. `left_out` says what lies in a folder's classes and is not taken, one line for each reason.
    """

    train: ImageSource
    heldout: ImageSource
    classes: tuple[str, ...]
    digest: str
    left_out: tuple[str, ...] = ()

    def warnings(self) -> list[str]:
        """What the user should know before any compute is spent, one line each."""
        return list(self.left_out)


def open_splits(config: DataConfig) -> Splits:
    """Opens what `config` names. No image of a folder or of a shard is read yet.

    A folder that this process has listed, and that has not changed since, is not listed again; shards of a data set are
    looked into once.

    Raises:
        DataError: the folder is missing or not laid out as it must be, or a setting is out of range.
        OSError: the storage failed; opening them again may work.
    """
    if config.image_size < 1:
        raise DataError(f"data.image_size: {config.image_size} is given; give a positive number of pixels, such as 224")
    if not 0 < config.held_out_fraction < 1:
        raise DataError(
            f"data.held_out_fraction: {config.held_out_fraction} is given; give a number between 0 and 1, such as 0.1"
        )
    if config.split_seed < 0:
        raise DataError(f"data.split_seed: {config.split_seed} is given; give a whole number of at least 0")
    if config.source == "digits":
        return _open_digits(config)
    if config.source == "folder":
        if not config.path:
            raise DataError(f"data.path: nothing is given; give a folder that holds {folder.LAYOUTS}")
        known_by = folder.fingerprint(config.path)
        listed = _open_folder if known_by is not None else _open_folder.__wrapped__
        return listed(config.path, config.image_size, config.held_out_fraction, config.split_seed, known_by)
    if config.source == "shards":
        if not config.path:
            raise DataError(f"data.path: nothing is given; give a folder or an address that holds {LAYOUT}")
        opened = open_shards(config.path, config.image_size)
        return Splits(opened.train, opened.heldout, opened.classes, opened.digest)
    raise DataError(f"data.source: {config.source!r} is given; give 'digits', 'folder' or 'shards'")


def split_off(labels: npt.NDArray[np.int32], fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Splits examples into (train, held-out), class by class: the same fraction of each, chosen by the seed.

    A class of one image stays in training. The choice within a class depends on the seed and that class alone.
    """
    held_out = []
    present, counts = np.unique(labels, return_counts=True)
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    for label, members in zip(present.tolist(), by_class, strict=True):
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held_out.append(np.random.default_rng([seed, label]).permutation(members)[:count])
    chosen = np.zeros(len(labels), bool)
    chosen[np.concatenate(held_out)] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


# -------------------------------------------------------------------------------------------------------------- digits


@dataclass(frozen=True, slots=True)
class DigitsSource:
    """Handwritten digits, in memory: grey uint8 [n, H, W], their labels, and their numbers in scikit-learn's."""

    grey: Images
    digits: npt.NDArray[np.int32]
    numbers: Indices
    image_size: int

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> Example:
        return Example(self.read(index), self.label(index))

    def read(self, index: int, crop: Draws | None = None) -> Images:
        if crop is not None:
            return resize_array(self.grey[index], self.image_size, crop)
        return np.repeat(self.grey[index][:, :, None], 3, axis=2)

    def label(self, index: int) -> int:
        return int(self.digits[index])

    def name(self, index: int) -> str:
        return f"digits[{self.numbers[index]}]"

    def fetched(self, indices: Sequence[int]) -> Self:
        return self

    def digest(self) -> bytes:
        """The SHA-256 of the pixels, the labels and the numbers."""
        found = hashlib.sha256()
        for array in (self.grey, self.digits, self.numbers):
            found.update(np.ascontiguousarray(array).data)
        return found.digest()


def _open_digits(config: DataConfig) -> Splits:
    grey, labels = _load_digits(config.image_size)
    train, heldout = (
        DigitsSource(grey[chosen], labels[chosen], chosen, config.image_size)
        for chosen in split_off(labels, config.held_out_fraction, config.split_seed)
    )
    classes = tuple(str(digit) for digit in range(10))
    return Splits(train, heldout, classes, _digest(classes, train.digest(), heldout.digest()))


@functools.lru_cache(maxsize=2)
def _load_digits(image_size: int) -> tuple[Images, npt.NDArray[np.int32]]:
    """scikit-learn's 1,797 digits, 8 x 8 with values 0 to 16, as uint8 [1797, H, W], and their labels."""
    # Read from the file: importing scikit-learn takes a second or two, and this needs nothing else of it.
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise DataError(
            "data.source: 'digits' needs scikit-learn, which is not installed; install it (pip install scikit-learn)"
        )
    table = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    pixels = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    return np.stack([resize_array(image, image_size)[:, :, 0] for image in pixels]), table[:, -1].astype(np.int32)


# -------------------------------------------------------------------------------------------------------------- folder


@dataclass(frozen=True, slots=True)
class FolderSource:
    """Image files by class; only their paths are in memory."""

    files: folder.Files
    image_size: int

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        return Example(self.read(index), self.label(index))

    def read(self, index: int, crop: Draws | None = None) -> Images:
        return decode_file(self.files.path(index), self.image_size, crop)

    def label(self, index: int) -> int:
        return int(self.files.labels[index])

    def name(self, index: int) -> str:
        return self.files.path(index)

    def fetched(self, indices: Sequence[int]) -> Self:
        return self


@functools.lru_cache(maxsize=4)
def _open_folder(
    path: str, image_size: int, held_out_fraction: float, split_seed: int, _fingerprint: tuple[Any, ...] | None
) -> Splits:
    """`_fingerprint` is what the cache knows an unchanged folder by."""
    listing = folder.list_folder(path)
    train, heldout = listing.train, listing.heldout
    if heldout is None:
        kept, held = split_off(train.labels, held_out_fraction, split_seed)
        if len(held) == 0:
            raise DataError(
                f"data.path: {folder.shown(path)!r} has one image per class, so none can be held out; "
                "give at least two images of some class, or a folder val/CLASS"
            )
        train, heldout = train.select(kept), train.select(held)
    return Splits(
        FolderSource(train, image_size),
        FolderSource(heldout, image_size),
        listing.classes,
        _digest(listing.classes, train.digest(), heldout.digest()),
        listing.left_out,
    )


def _digest(classes: tuple[str, ...], *parts: bytes) -> str:
    names = "\0".join((str(len(classes)), *classes, ""))
    return hashlib.sha256(names.encode("utf-8", "surrogateescape") + b"".join(parts)).hexdigest()
