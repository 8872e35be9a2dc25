"""Files of a data set, on a disk of this machine or at an fsspec address: whole files, and many byte ranges at a time.

A storage knows its files by their names below its address. It is safe to use from several threads, holds nothing open
in a pickled copy, and is opened anew by each process.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from glob import glob, has_magic
from pathlib import Path
from typing import IO, Final, NamedTuple, Protocol

from trainables.data.errors import DataError

_MOST_FILES: Final = 2**16  # of a process, where its limit is higher, or there is none
_WRITTEN_BADLY: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?!//)/+(.*)", re.DOTALL)
_SECRET: Final = re.compile(r"://[^/]*:[^/]*@|https?://([^/]*@|.*\?)", re.DOTALL)
ASIDE: Final = ".aside"


class Span(NamedTuple):
    """Bytes of a file: `length` of them from `start` on."""

    name: str
    start: int
    length: int


class Storage(Protocol):
    """A folder of files. What fails is an OSError; FileNotFoundError and PermissionError where it is that.

    A storage that is not of this machine tries again, for some seconds, before it fails.
    """

    address: str
    remote: bool

    def where(self, name: str) -> str:
        """What a person knows a file by."""

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where the storage does not tell."""

    def read(self, name: str) -> bytes:
        """A whole file."""

    def ranges(self, spans: Sequence[Span]) -> list[bytes]:
        """The bytes of each span, in that order; fewer than asked for where its file ends before."""

    def expect(self, spans: Sequence[Span]) -> None:
        """Tells that these will be read one after another."""

    def stream(self, name: str) -> IO[bytes]:
        """A file to be read from its beginning to its end."""

    def writing(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """A file to write to, which takes its name, whole, when the context ends, and never after an error."""

    def remove(self, names: Sequence[str]) -> None:
        """Removes files, those that are there."""

    def matching(self, pattern: str) -> list[str]:
        """Names that match a glob pattern, sorted; a pattern without wild cards is a name, and is not looked for."""

    def free_bytes(self) -> int | None:
        """Room that is left; None where there is no telling."""


def is_address(path: str) -> bool:
    """Whether this names a place by its protocol (gs://bucket/images), and not a folder of this machine."""
    return "://" in path and not path.startswith("file://")


def open_storage(address: str) -> Storage:
    """The storage at a folder, or at an fsspec address; nothing is looked for there yet.

    Raises:
        DataError: a protocol that is unknown, or whose package is not installed, or an address that cannot be meant.
    """
    check_address(address)
    if not is_address(address):
        return LocalStorage(os.path.abspath(os.path.expanduser(address.removeprefix("file://"))))
    from trainables.data.remote import RemoteStorage

    return RemoteStorage(address)


def check_address(address: str) -> None:
    """Raises DataError for one with credentials in it, which would be told and kept, and for one of a single slash."""
    if found := _WRITTEN_BADLY.fullmatch(address):
        meant = f"/{found[2]}" if found[1] == "file" else f"{found[1]}://{found[2]}"
        raise DataError(
            f"{address!r} given; allowed: a folder, or an address with ://; write {meant}, or ./{address} for a folder"
        )
    if _SECRET.search(address):
        raise DataError(
            f"an address of {address.partition('://')[0]}:// given with a password or a query (?...), which would be "
            "told and kept; give the address alone, and credentials as that protocol's package takes them"
        )


def _files_to_keep_open() -> int:
    """Half of those that a process may have open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(1, min(limit if limit != resource.RLIM_INFINITY else _MOST_FILES, _MOST_FILES) // 2)


class _Descriptor:
    """A file that is open for reading until nobody holds this any more."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self.number)


class LocalStorage:
    """A folder of this machine, or one that it has mounted."""

    remote = False

    def __init__(self, address: str) -> None:
        self.address = address
        self._open: OrderedDict[str, _Descriptor] = OrderedDict()
        self._most_open = _files_to_keep_open()
        self._lock = threading.Lock()

    def __getstate__(self) -> str:
        return self.address

    def __setstate__(self, address: str) -> None:
        self.__init__(address)  # type: ignore[misc]

    def where(self, name: str) -> str:
        return os.path.join(self.address, name)

    def size(self, name: str) -> int | None:
        return os.stat(self.where(name)).st_size

    def read(self, name: str) -> bytes:
        return Path(self.where(name)).read_bytes()

    def ranges(self, spans: Sequence[Span]) -> list[bytes]:
        return [self._range(span) for span in spans]

    def expect(self, spans: Sequence[Span]) -> None:
        for name, start, length in spans:
            os.posix_fadvise(self._descriptor(name).number, start, length, os.POSIX_FADV_WILLNEED)

    def stream(self, name: str) -> IO[bytes]:
        return open(self.where(name), "rb", buffering=1 << 20)

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        path = self.where(name)
        aside = f"{path}{ASIDE}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            with open(aside, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        except BaseException as error:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(aside)
            if isinstance(error, OSError) and error.filename is None:
                error.filename = path  # writing and fsync do not say where
            raise

    def remove(self, names: Sequence[str]) -> None:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.where(name))

    def matching(self, pattern: str) -> list[str]:
        if not has_magic(pattern):
            return [pattern]
        return sorted(name for name in glob(pattern, root_dir=self.address) if not name.endswith(ASIDE))

    def free_bytes(self) -> int | None:
        folder = Path(self.address)
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def _range(self, span: Span) -> bytes:
        descriptor = self._descriptor(span.name)
        content = os.pread(descriptor.number, span.length, span.start)
        if len(content) == span.length:
            return content
        while more := os.pread(descriptor.number, span.length - len(content), span.start + len(content)):
            content += more
        return content

    def _descriptor(self, name: str) -> _Descriptor:
        with self._lock:
            found = self._open.get(name)
            if found is not None:
                self._open.move_to_end(name)
                return found
        opened = _Descriptor(self.where(name))  # not under the lock: on a network's file system it takes its time
        with self._lock:
            found = self._open.setdefault(name, opened)
            if len(self._open) > self._most_open:
                self._open.popitem(last=False)  # whoever reads from it now still holds it
            return found
