"""Finds broken held-out images before compute is spent: they would be met only after the last training step."""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from trainables.config import DataConfig
from trainables.data.sources import FolderSource, RecordsSource, Splits

# A look at a file takes some tens of microseconds on a local disk, and milliseconds on a network's; a record is read.
MOST_FILES = 20_000
_THREADS = 8
_TAIL = 4096  # cameras and editors leave a few notes after the end of the picture


def check_heldout(splits: Splits, config: DataConfig, *, rank: int = 0, world: int = 1) -> None:
    """Look at both ends of the held-out images, of which this worker takes every `world`-th; all, or an even sample.

    An image that begins as one and does not end as one is decoded as a whole, to be sure. Only where
    `config.bad_images` is "error", and once per process and data set. What is broken in a file's middle stays unseen
    (in a record's it does not: a record has a checksum).

    Raises:
        DataError: an image that cannot be read; the message names it.
        OSError: the storage failed; reading again may work.
    """
    if config.bad_images != "error":
        return
    if isinstance(splits.heldout, FolderSource):
        _check(_Looked(splits.digest, splits.heldout.files.folders, rank, world, splits.heldout))
    if isinstance(splits.heldout, RecordsSource):
        _check(_Looked(splits.digest, (splits.heldout.shards.folder,), rank, world, splits.heldout))


@dataclass(frozen=True, slots=True)
class _Looked:
    """What was looked at, known by all but the list of files itself."""

    digest: str
    folders: tuple[str, ...]
    rank: int
    world: int
    source: FolderSource | RecordsSource = field(compare=False)


@functools.lru_cache(maxsize=4)
def _check(looked: _Looked) -> None:
    source, count = looked.source, len(looked.source)
    chosen = np.arange(count) if count <= MOST_FILES else np.linspace(0, count - 1, MOST_FILES).astype(np.int64)

    def look(index: int) -> None:
        if isinstance(source, RecordsSource):
            image = source.shards.record(index).image
            whole = _whole(image[:16], image[-_TAIL:], len(image))
        else:
            whole = _looks_whole(source.name(index))
        if not whole:
            source.read(index)

    with ThreadPoolExecutor(_THREADS) as threads:
        found = [threads.submit(look, index) for index in chosen[looked.rank :: looked.world].tolist()]
        try:
            for one in found:
                one.result()
        finally:
            threads.shutdown(cancel_futures=True)


def _looks_whole(path: str) -> bool:
    """Whether a file begins and ends as an image of its kind; False where that cannot be told."""
    try:
        with open(path, "rb") as file:
            head = file.read(16)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            tail = file.read()
    except OSError:
        return False
    return _whole(head, tail, size)


def _whole(head: bytes, tail: bytes, size: int) -> bool:
    """The same by a file's first 16 bytes, its last `_TAIL`, and how many it has in all."""
    if head.startswith(b"\xff\xd8\xff"):  # JPEG: its mark of the end
        return b"\xff\xd9" in tail
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return b"IEND\xae\x42\x60\x82" in tail
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return size >= 8 + int.from_bytes(head[4:8], "little")
    if head.startswith(b"BM"):
        return size >= int.from_bytes(head[2:6], "little")
    return False
