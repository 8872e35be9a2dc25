"""Finds broken held-out images before compute is spent: they would be met only after the last training step."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from trainables.config import DataConfig
from trainables.data.shard_source import ShardSource
from trainables.data.sources import FolderSource, Splits

# A look at a file takes some tens of microseconds on a local disk, and milliseconds on a network's; of a shard, images
# are read as a whole, which costs most where they come over the network.
MOST_FILES = 20_000
MOST_FETCHED = 1_024
_FETCHED = 128
_THREADS = 8
_TAIL = 4096  # cameras and editors leave a few notes after the end of the picture


def check_heldout(splits: Splits, config: DataConfig, *, rank: int = 0, world: int = 1) -> None:
    """Look at both ends of the held-out images, of which this worker takes every `world`-th; all, or an even sample.

    An image that begins as one and does not end as one is decoded as a whole, to be sure. Only where
    `config.bad_images` is "error", and once per process and data set. What is broken in a file's middle stays unseen
    (in a shard it does not: each image has a checksum there).

    Raises:
        DataError: an image that cannot be read; the message names it.
        OSError: the storage failed; reading again may work.
    """
    if config.bad_images != "error":
        return
    if isinstance(splits.heldout, FolderSource):
        _check_files(_Looked(splits.digest, splits.heldout.files.folders, rank, world, splits.heldout))
    if isinstance(splits.heldout, ShardSource):
        _check_shards(_Looked(splits.digest, (splits.heldout.shards.address,), rank, world, splits.heldout))


Source = TypeVar("Source", FolderSource, ShardSource)


@dataclass(frozen=True, slots=True)
class _Looked(Generic[Source]):
    """What was looked at, known by all but the list of files itself."""

    digest: str
    places: tuple[str, ...]
    rank: int
    world: int
    source: Source = field(compare=False)

    def chosen(self, most: int) -> list[int]:
        """The numbers of this worker's images: of all, or of an even sample."""
        count = len(self.source)
        every = np.arange(count) if count <= most else np.linspace(0, count - 1, most).astype(np.int64)
        return [int(index) for index in every[self.rank :: self.world]]


@functools.lru_cache(maxsize=4)
def _check_files(looked: _Looked[FolderSource]) -> None:
    source = looked.source

    def look(index: int) -> None:
        if not _looks_whole(source.name(index)):
            source.read(index)

    _for_each(look, looked.chosen(MOST_FILES))


@functools.lru_cache(maxsize=4)
def _check_shards(looked: _Looked[ShardSource]) -> None:
    source = looked.source
    chosen = looked.chosen(MOST_FETCHED if source.shards.remote else MOST_FILES)

    def look(first: int) -> None:
        indices = chosen[first : first + _FETCHED]
        fetched = source.fetched(indices)
        for index in indices:
            fetched.label(index)
            image = fetched.content(index)
            if not _whole(image[:16], image[-_TAIL:], len(image)):
                fetched.read(index)

    _for_each(look, range(0, len(chosen), _FETCHED))


def _for_each(look: Callable[[int], None], numbers: Iterable[int]) -> None:
    """Looks at all, some at the same time. Raises what the first look raises, by order, and takes up no other."""
    with ThreadPoolExecutor(_THREADS) as threads:
        found = [threads.submit(look, number) for number in numbers]
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
