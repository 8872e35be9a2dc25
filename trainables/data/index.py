"""The index of a split while it is read: mapped into memory, and asked for row by row only where it is too large."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import threading
from pathlib import Path
from typing import Final

import numpy as np

from trainables.data.errors import DataError
from trainables.data.shards import INDEX_HEADER, ROW, Indices, Rows, Table, digest_of
from trainables.data.storage import Span, Storage

# Of a remote index: up to this it is brought to this host, once; beyond, rows are asked for as they are needed, which
# is one more request for each image. 2^30 bytes are 67 million images.
MOST_BROUGHT: Final = 2**30
_PART: Final = 2**23
_PARTS: Final = 8  # asked for at a time


class Index:
    """Where the examples of a split lie. Reads nothing before the first is asked for, nor in a pickled copy."""

    def __init__(self, storage: Storage, name: str, table: Table) -> None:
        self.storage, self.name, self.table = storage, name, table
        self._mapped: Rows | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> tuple[Storage, str, Table]:
        return self.storage, self.name, self.table

    def __setstate__(self, state: tuple[Storage, str, Table]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    @property
    def size(self) -> int:
        """Bytes that the file must have."""
        return len(INDEX_HEADER) + ROW.itemsize * len(self.table)

    def rows(self, indices: Indices) -> Rows:
        """The rows of examples, in the order given."""
        mapped = self._whole()
        if mapped is not None:
            return np.asarray(mapped[indices])
        spans = [Span(self.name, self._start(index), ROW.itemsize) for index in indices.tolist()]
        return self._asked_for(spans)

    def shard(self, number: int) -> Rows:
        """The rows of a shard."""
        first, end = self.table.first(number), int(self.table.ends[number])
        mapped = self._whole()
        if mapped is not None:
            return np.asarray(mapped[first:end])
        return self._asked_for([Span(self.name, self._start(first), ROW.itemsize * (end - first))])

    def bring_anew(self) -> None:
        """Forgets what this host has kept of a remote index; it is brought here again, and checked, when it is read."""
        with self._lock:
            if self.storage.remote:
                self._mapped = None
                self._kept().unlink(missing_ok=True)

    def _start(self, index: int) -> int:
        return len(INDEX_HEADER) + ROW.itemsize * index

    def _asked_for(self, spans: list[Span]) -> Rows:
        found = b"".join(self.storage.ranges(spans))
        if len(found) != sum(span.length for span in spans):
            raise DataError(f"{self.storage.where(self.name)!r} ends too soon; bring it back whole")
        return np.frombuffer(found, ROW)

    def _whole(self) -> Rows | None:
        """All rows, mapped into memory; None where the index is too large to be brought here."""
        if self._mapped is None and not (self.storage.remote and self.size > MOST_BROUGHT):
            with self._lock:
                if self._mapped is None:
                    self._mapped = self._map()
        return self._mapped

    def _map(self) -> Rows:
        if not self.storage.remote:
            return _mapped(Path(self.storage.where(self.name)), len(self.table))
        kept = self._kept()
        with contextlib.suppress(OSError, ValueError):
            if kept.stat().st_size == self.size:
                return _mapped(kept, len(self.table))
        return self._brought(kept)

    def _kept(self) -> Path:
        return index_cache() / f"{self.table.digest().hex()}.index"

    def _brought(self, kept: Path) -> Rows:
        """The rows of a remote index, kept on this host for its other processes, or in memory where that cannot be."""
        content = b"".join(
            part
            for start in range(0, self.size, _PARTS * _PART)
            for part in self.storage.ranges(
                [
                    Span(self.name, begin, min(_PART, self.size - begin))
                    for begin in range(start, min(start + _PARTS * _PART, self.size), _PART)
                ]
            )
        )
        rows = _checked(content, self.table, self.storage.where(self.name))
        with contextlib.suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as aside:
                try:
                    aside.write(content)
                    aside.close()
                    os.replace(aside.name, kept)
                except BaseException:
                    os.unlink(aside.name)
                    raise
            return _mapped(kept, len(self.table))
        return rows


def index_cache() -> Path:
    """Where this host keeps remote indexes: `convscale/indexes` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "convscale" / "indexes"


def _mapped(path: Path, count: int) -> Rows:
    with open(path, "rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if len(pages) > MOST_BROUGHT:  # most of it is on the disk, and what lies around a row is not wanted
        pages.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(pages, ROW, count, offset=len(INDEX_HEADER))


def _checked(content: bytes, table: Table, where: str) -> Rows:
    """Raises DataError where these are not the rows that `dataset.json` has the digests of."""
    if content[: len(INDEX_HEADER)] != INDEX_HEADER or len(content) != len(INDEX_HEADER) + ROW.itemsize * len(table):
        raise DataError(f"{where!r} is no index of {len(table)} images; bring it back whole, or make it anew")
    rows = np.frombuffer(content, ROW, offset=len(INDEX_HEADER))
    for number, digest in enumerate(table.digests):
        if digest_of(rows[table.first(number) : int(table.ends[number])]) != digest:
            raise DataError(
                f"{where!r} is damaged (the rows of {table.names[number]!r}); bring it back whole, or make it anew"
            )
    return rows
