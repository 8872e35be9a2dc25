"""Lists a folder of image files per class, and says in one line what is wrong with it."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trainables.data.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
HELDOUT_NAMES = ("val", "valid", "validation", "test")
OF_THE_FILE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENOTDIR)
_SETTLED_S = 5.0
_MOST_ENDINGS = 5  # said one by one
LAYOUTS = "train/CLASS/*.jpg and val/CLASS/*.jpg, or CLASS/*.jpg"


@dataclass(frozen=True, slots=True)
class Files:
    """Paths of images with their labels, packed: about thirty bytes an image, cheap to send to another process.

    folders: the folder of each label; labels: int32 [n]; names: all file names, end to end; ends: int64 [n + 1],
    where each name ends (ends[0] is 0).
    """

    folders: tuple[str, ...]
    labels: npt.NDArray[np.int32]
    names: bytes
    ends: npt.NDArray[np.int64]

    @classmethod
    def pack(cls, folders: tuple[str, ...], files: list[tuple[int, bytes]]) -> Files:
        """From (label, file name) pairs."""
        lengths = [0, *(len(name) for _, name in files)]
        return cls(
            folders=folders,
            labels=np.array([label for label, _ in files], np.int32),
            names=b"".join(name for _, name in files),
            ends=np.cumsum(lengths, dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """The path of a file."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return os.path.join(self.folders[self.labels[index]], os.fsdecode(self._name(index)))

    def select(self, indices: npt.NDArray[np.int64]) -> Files:
        """Some of the files, in the order given."""
        return Files.pack(self.folders, [(int(self.labels[index]), self._name(index)) for index in indices])

    def digest(self) -> bytes:
        """The SHA-256 of which files these are: names, labels and order, but not the folders' own place."""
        found = hashlib.sha256(self.names)
        for array in (self.ends, self.labels):
            found.update(np.ascontiguousarray(array).data)
        return found.digest()

    def _name(self, index: int) -> bytes:
        return self.names[self.ends[index] : self.ends[index + 1]]


@dataclass(frozen=True, slots=True)
class Listing:
    """What a folder holds; `heldout` is None where it has no held-out folder of its own. `left_out` says what its class
    folders hold besides, one line for each reason.
    """

    train: Files
    heldout: Files | None
    classes: tuple[str, ...]
    left_out: tuple[str, ...]


@dataclass(slots=True)
class _LeftOut:
    """What was met in class folders and is not taken: how many files of each ending, and folders."""

    endings: Counter[str] = field(default_factory=Counter)
    folders: list[str] = field(default_factory=list)

    def lines(self, root: str) -> tuple[str, ...]:
        lines = []
        if self.endings:
            every = sorted(self.endings.items(), key=lambda item: (-item[1], item[0]))
            said = [f"{ending}: {count}" for ending, count in every[:_MOST_ENDINGS]]
            if others := every[_MOST_ENDINGS:]:
                said.append(f"of {len(others)} more endings: {sum(count for _, count in others)}")
            lines.append(
                f"data.path: {shown(root)!r}: {self.endings.total()} file(s) left out because of their ending "
                f"({', '.join(said)}); allowed: {', '.join(SUFFIXES)}; convert those that are images"
            )
        if self.folders:
            lines.append(
                f"data.path: {shown(root)!r}: {len(self.folders)} folder(s) inside class folders left out, one is "
                f"{shown(min(self.folders))!r}; put their images into the class folder itself"
            )
        return tuple(lines)


def shown(path: str) -> str:
    """A path as a person would type it: relative if it is below the working directory."""
    return path.removeprefix(os.path.join(os.getcwd(), ""))


def list_folder(path: str) -> Listing:
    """Lists `path`: train/CLASS/* with val/CLASS/* (or valid, validation, test), train/CLASS/* alone, or CLASS/*.

    Files are taken directly inside a class folder, with the endings of `SUFFIXES` in either case; links are followed,
    hidden files and folders left out. Classes and files are sorted by name, so that a folder gives the same numbers
    everywhere.

    Raises:
        DataError: the folder is missing or may not be read, has fewer than two classes, a class without images, or a
            held-out class that training does not have.
        OSError: the storage failed (for example EIO, ESTALE); listing it again may work.
    """
    root = os.path.abspath(os.path.expanduser(path))
    if not os.path.isdir(root):
        state = "is not a folder" if os.path.exists(root) else "does not exist"
        raise DataError(f"data.path: {shown(root)!r} {state}; give a folder that holds {LAYOUTS}")
    names = _subfolders(root)
    left_out = _LeftOut()
    if "train" not in names or not _subfolders(os.path.join(root, "train")):
        classes, files = _list_split(root, left_out)
        return Listing(files, None, classes, left_out.lines(root))
    classes, train = _list_split(os.path.join(root, "train"), left_out)
    heldout_name = next((name for name in HELDOUT_NAMES if name in names), None)
    if heldout_name is None:
        return Listing(train, None, classes, left_out.lines(root))
    _, heldout = _list_split(os.path.join(root, heldout_name), left_out, of=classes)
    return Listing(train, heldout, classes, left_out.lines(root))


def fingerprint(path: str) -> tuple[tuple[str, int, int, int], ...] | None:
    """What changes when a file is added to, or removed from, what `list_folder` lists; None where that cannot be told.

    It costs a look at each class folder, not at each file. A folder that was changed a moment ago may change again
    within the resolution of its time stamp.
    """
    root = os.path.abspath(os.path.expanduser(path))
    try:
        names = _subfolders(root)
        splits = [name for name in ("train", *HELDOUT_NAMES) if name in names]
        folders = [root, *(os.path.join(root, name) for name in names)]
        folders += [
            os.path.join(root, split, name) for split in splits for name in _subfolders(os.path.join(root, split))
        ]
        stats = [os.stat(folder) for folder in folders]
    except (OSError, DataError):
        return None
    if max(stat.st_mtime for stat in stats) > time.time() - _SETTLED_S:
        return None
    found = zip(folders, stats, strict=True)
    return tuple((folder, stat.st_dev, stat.st_ino, stat.st_mtime_ns) for folder, stat in found)


def _list_split(root: str, left_out: _LeftOut, of: tuple[str, ...] | None = None) -> tuple[tuple[str, ...], Files]:
    """The classes and files of one split. A held-out split names in `of` the classes that it may have."""
    found = _subfolders(root)
    classes = of if of is not None else tuple(found)
    if not found:
        raise DataError(f"data.path: {shown(root)!r} has no class folders; give a folder that holds {LAYOUTS}")
    known = set(classes)
    unknown = [name for name in found if name not in known]
    if unknown:
        raise DataError(
            f"data.path: {shown(root)!r} has the class {unknown[0]!r}, which train has not "
            f"({len(unknown)} such class(es)); add it to train, or remove it here"
        )
    if len(classes) < 2:
        raise DataError(
            f"data.path: {shown(root)!r} has one class only, {classes[0]!r}; "
            f"give at least two class folders ({LAYOUTS})"
        )
    files: list[tuple[int, bytes]] = []
    present = set(found)
    for label, name in enumerate(classes):
        if name in present:
            folder = os.path.join(root, name)
            images = _images(folder, left_out)
            if not images:
                raise DataError(
                    f"data.path: {shown(folder)!r} has no images; add some ({', '.join(SUFFIXES)}), or remove it"
                )
            files.extend((label, image) for image in images)
    return classes, Files.pack(tuple(os.path.join(root, name) for name in classes), files)


def _subfolders(folder: str) -> list[str]:
    with _reading(folder):
        return sorted(entry.name for entry in _entries(folder) if entry.is_dir())


def _images(folder: str, left_out: _LeftOut) -> list[bytes]:
    names: list[str] = []
    with _reading(folder):
        for entry in _entries(folder):
            if entry.is_dir():
                left_out.folders.append(entry.path)
            elif entry.name.lower().endswith(SUFFIXES):
                # A broken link counts as an image: it is named as unreadable later, not silently left out.
                names.append(entry.name)
            else:
                left_out.endings[os.path.splitext(entry.name)[1].lower() or "no ending"] += 1
    return [os.fsencode(name) for name in sorted(names)]


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


@contextmanager
def _reading(folder: str) -> Iterator[None]:
    """Around a look into `folder`: what is missing there, or may not be read, is the user's to mend."""
    try:
        yield
    except OSError as error:
        if error.errno not in OF_THE_FILE:
            raise
        raise DataError(
            f"data.path: {shown(error.filename or folder)!r} cannot be read ({error.strerror}); "
            "mend or remove it, or give this user the right to read it"
        ) from error
