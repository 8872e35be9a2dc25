"""Images in shards as a source: any of them by number, from a disk or over the network.

On a disk an image is one read of its bytes. Over the network it is one request (neighbours share one), so the images of
a unit of work are asked for ahead, in parts, all at the same time, and decoded part by part as they arrive.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from trainables.data.augment import Draws, Images
from trainables.data.decode import decode_bytes
from trainables.data.errors import DataError
from trainables.data.examples import Example
from trainables.data.index import Index
from trainables.data.shards import BLOCK, checksum
from trainables.data.storage import Span, Storage

_PART: Final = 32  # images that arrive together
_PARTS_AT_ONCE: Final = 16  # by each process: 512 images; how many requests at a time that is, the storage says


class ShardSource:
    """The images of one split. Holds the index's pages and open shards, but no image; travels as addresses only."""

    def __init__(self, shards: Storage, index: Index, classes: int, image_size: int) -> None:
        self.shards, self.index, self.classes, self.image_size = shards, index, classes, image_size
        self._process = _OfThisProcess()

    def __getstate__(self) -> tuple[Storage, Index, int, int]:
        return self.shards, self.index, self.classes, self.image_size

    def __setstate__(self, state: tuple[Storage, Index, int, int]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self.index.table)

    def __getitem__(self, index: int) -> Example:
        return self.fetched([index])[index]

    def read(self, index: int, crop: Draws | None = None) -> Images:
        return self.fetched([index]).read(index, crop)

    def label(self, index: int) -> int:
        (row,) = self.index.rows(np.array([index]))
        return self.checked_label(index, int(row["label"]))

    def name(self, index: int) -> str:
        """The shard and the number within it: "gs://bucket/jft/train-000017.tar[2]" is its third image."""
        shard, place = self.index.table.place(index)
        return f"{self.shards.where(self.index.table.names[shard])}[{place}]"

    def fetched(self, indices: Sequence[int]) -> Fetched:
        """These images, under way."""
        found = Fetched(self, indices)
        if self.shards.remote:
            threads = self._process.threads()
            parts = [found.spans[first : first + _PART] for first in range(0, len(found.spans), _PART)]
            found.parts = {number: threads.submit(self.shards.ranges, part) for number, part in enumerate(parts)}
            found.left = [len(part) for part in parts]
        elif len(indices) > 1:
            self.shards.expect(found.spans)
        return found

    def checked_label(self, index: int, label: int) -> int:
        """Raises DataError where this is no class of the data set."""
        if label >= self.classes:
            raise self.damaged(index, f"its class is {label}, and the data set has {self.classes}, from 0")
        return label

    def damaged(self, index: int, reason: str) -> DataError:
        """The error that says so."""
        return DataError(
            f"cannot read image {self.name(index)!r} ({reason}); bring its shard back whole, or set data.bad_images to "
            "'skip', and go on with --retry-failed"
        )


class Fetched:
    """Some images of a `ShardSource`, by the numbers that they have there. Itself a source of those."""

    def __init__(self, source: ShardSource, indices: Sequence[int]) -> None:
        self.source, self.image_size = source, source.image_size
        wanted = np.array(indices, np.int64)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(source):
            raise IndexError(indices)
        self.rows = source.index.rows(wanted)
        names, table = source.index.table.names, source.index.table
        self.spans = [
            Span(names[shard], BLOCK * block, length)
            for shard, block, length in zip(
                table.places(wanted).tolist(), self.rows["block"].tolist(), self.rows["length"].tolist(), strict=True
            )
        ]
        self.places = {index: place for place, index in enumerate(indices)}
        self.parts: dict[int, Future[list[bytes]]] = {}
        self.left: list[int] = []  # images of each part that were not taken yet

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        return Example(self.read(index), self.label(index))

    def read(self, index: int, crop: Draws | None = None) -> Images:
        return decode_bytes(self.content(index), self.image_size, self.source.name(index), crop)

    def label(self, index: int) -> int:
        return self.source.checked_label(index, int(self.rows["label"][self.places[index]]))

    def name(self, index: int) -> str:
        return self.source.name(index)

    def fetched(self, indices: Sequence[int]) -> Fetched:
        return self.source.fetched(indices)

    def content(self, index: int) -> bytes:
        """The bytes of an image file.

        Raises:
            DataError: they, or the example's class, are not those that the index has the checksum of.
            OSError: the storage failed, or the shard has gone.
        """
        place = self.places[index]
        span, crc, label = self.spans[place], int(self.rows["crc32"][place]), int(self.rows["label"][place])
        content = self._arrived(place)
        if content is None:
            (content,) = self.source.shards.ranges([span])
        if checksum(content, label) != crc:
            (content,) = self.source.shards.ranges([span])  # it may have been damaged on its way
        if len(content) < span.length:
            raise self.source.damaged(index, f"its shard ends {span.length - len(content)} bytes before it does")
        if checksum(content, label) != crc:
            raise self.source.damaged(index, "its bytes, or its class, are not those that were written")
        return content

    def _arrived(self, place: int) -> bytes | None:
        """An image's bytes, if they were asked for ahead. A part whose images have all been taken is not kept."""
        number = place // _PART
        part = self.parts.get(number)
        if part is None:
            return None
        content = part.result()[place % _PART]
        self.left[number] -= 1
        if not self.left[number]:
            del self.parts[number]
        return content


@dataclass(slots=True)
class _OfThisProcess:
    """The threads that ask for parts: made where they are needed first."""

    pool: Any = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def threads(self) -> ThreadPoolExecutor:
        with self.lock:
            if self.pool is None:
                self.pool = ThreadPoolExecutor(_PARTS_AT_ONCE, thread_name_prefix="fetch-images")
            pool: ThreadPoolExecutor = self.pool
            return pool
