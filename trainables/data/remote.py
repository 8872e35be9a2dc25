"""A storage at an fsspec address: Google Cloud Storage, S3, a web server with range requests, memory, and others.

One request costs tens of milliseconds, so spans are asked for at the same time. What fails for a moment is asked for
again, after a growing wait.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import random
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from glob import has_magic
from typing import IO, Any, Final, TypeVar

import fsspec

from trainables.data.errors import DataError
from trainables.data.storage import ASIDE, Span

_WAITS_S: Final = (0.2, 0.6, 2.0, 5.0)  # between tries, each by up to half more
_PATIENCE_S: Final = 30.0  # after which no other try begins: most stores' packages have tried themselves by then
_GAP: Final = 64 * 2**10  # bytes between two spans that are read along rather than asked for apart
_MOST_MERGED: Final = 8 * 2**20  # beyond, a second request at the same time is quicker than one more byte
_STREAM_BLOCK: Final = 32 * 2**20
_REMOVED: Final = 1_000  # at a time
# Asking again changes nothing about these; ValueError and TypeError are of the address, or of the library itself.
_LASTING: Final = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError,
                   ImportError, TypeError, ValueError, AttributeError)  # fmt: skip
_NOT_ALLOWED: Final = (401, 403)  # what web servers answer
_GONE: Final = (404, 410)
_OUTSIDE: Final = re.compile(r"\b416\b|InvalidRange|range.{0,5}not satisfiable", re.IGNORECASE)
_CONNECTIONS: Final = 256  # to a web server or S3, of each process; their packages' own limits are 100 and 10
_SILENCE_S: Final = 60.0  # of a web server, after which a request has failed
# Stores on which an upload is seen only when it is complete.
_ATOMIC: Final = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"})

Answer = TypeVar("Answer")


class RemoteStorage:
    """The files below an fsspec address."""

    remote = True

    def __init__(self, address: str) -> None:
        self.address = address if address.endswith("://") else address.rstrip("/")
        self._connected: Any = None
        self._root = ""
        self._lock = threading.Lock()
        self._fs()

    def __getstate__(self) -> str:
        return self.address

    def __setstate__(self, address: str) -> None:
        self.address, self._connected, self._root, self._lock = address, None, "", threading.Lock()

    def where(self, name: str) -> str:
        return f"{self.address}{'' if self.address.endswith('/') else '/'}{name}"

    def size(self, name: str) -> int | None:
        size = self._again(name, lambda fs, path: fs.info(path)["size"])
        return None if size is None else int(size)

    def read(self, name: str) -> bytes:
        return self._again(name, lambda fs, path: bytes(fs.cat_file(path)))

    def ranges(self, spans: Sequence[Span]) -> list[bytes]:
        requests = _merged(spans)  # of no bytes there is none: some stores answer a whole file to that
        answers = self._answers([span for span, _ in requests])
        found = [b""] * len(spans)
        for (request, members), answer in zip(requests, answers, strict=True):
            for member in members:
                start = spans[member].start - request.start
                found[member] = answer[start : start + spans[member].length]
        return found

    def expect(self, spans: Sequence[Span]) -> None:
        """Nothing: the network is not asked for what is not wanted yet."""

    def stream(self, name: str) -> IO[bytes]:
        size = self.size(name)
        if size is None:
            raise OSError(errno.EIO, "the storage does not tell its size", self.where(name))
        return io.BufferedReader(_Stream(self, name, size), 1 << 20)

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        with tempfile.NamedTemporaryFile(prefix="convscale-") as file:
            try:
                yield file.file
                file.flush()
            except OSError as error:
                error.filename = error.filename or file.name  # of a full disk; writing does not say where
                raise
            self._again(name, lambda fs, path: _upload(fs, file.name, path))

    def remove(self, names: Sequence[str]) -> None:
        for first in range(0, len(names), _REMOVED):
            some = names[first : first + _REMOVED]
            paths = [self._path(name) for name in some]
            try:
                self._again(some[0], lambda fs, _: fs.rm(paths))  # noqa: B023 - called at once
            except FileNotFoundError:
                for name in some:
                    with contextlib.suppress(FileNotFoundError):
                        self._again(name, lambda fs, path: fs.rm_file(path))

    def matching(self, pattern: str) -> list[str]:
        if not has_magic(pattern):
            return [pattern]
        root = self._path("")
        self._fs().invalidate_cache()  # of listings, to which other processes have added
        found = self._again(pattern, lambda fs, path: fs.glob(path))
        return sorted(path.removeprefix(root).lstrip("/") for path in found)

    def free_bytes(self) -> int | None:
        return None

    # ---------------------------------------------------------------------------------------------------- asking again

    def _answers(self, spans: Sequence[Span]) -> list[bytes]:
        """The bytes of spans, each asked for by one request, all of them at the same time."""
        found: dict[int, bytes] = {}
        sizes: dict[str, int | None] = {}
        began_s = time.monotonic()
        for wait_s in (*_WAITS_S, None):
            left = [number for number in range(len(spans)) if number not in found]
            failed: tuple[Span, Exception] | None = None
            for number, answer in zip(left, self._ask([spans[number] for number in left]), strict=True):
                span = spans[number]
                if isinstance(answer, bytes):
                    found[number] = self._fits(span, answer)
                elif isinstance(answer, _LASTING):
                    raise self._failed(span.name, answer) from answer
                elif self._ends_before(span, answer, sizes):
                    found[number] = b""
                else:
                    failed = span, answer
            if failed is None:
                return [found[number] for number in range(len(spans))]
            if wait_s is None or time.monotonic() - began_s > _PATIENCE_S:
                raise self._failed(failed[0].name, failed[1]) from failed[1]
            _wait(wait_s)
        raise AssertionError("the last wait is None")

    def _ask(self, spans: Sequence[Span]) -> list[bytes | Exception]:
        paths = [self._path(span.name) for span in spans]
        starts, ends = [span.start for span in spans], [span.start + span.length for span in spans]
        try:
            answers = self._fs().cat_ranges(paths, starts, ends, on_error="return")
        except Exception as error:
            return [_own(error)] * len(spans)
        return [_own(answer) if isinstance(answer, Exception) else bytes(answer) for answer in answers]

    def _fits(self, span: Span, answer: bytes) -> bytes:
        if len(answer) > span.length:
            raise DataError(
                f"{self.where(span.name)!r} was asked for {span.length} bytes and gave {len(answer)}: its server does "
                "not serve byte ranges; use one that does, or copy the data to a disk"
            )
        return answer

    def _ends_before(self, span: Span, error: Exception, sizes: dict[str, int | None]) -> bool:
        """Whether a request failed because the file has no such bytes: some servers refuse that, some answer none.

        `sizes` are of the files that were asked for before.
        """
        status = getattr(error, "status", None) or getattr(error, "code", None)
        if not _OUTSIDE.search(f"{status} {error}"):
            return False
        if span.name not in sizes:
            sizes[span.name] = self.size(span.name)
        size = sizes[span.name]
        return size is not None and size <= span.start

    def _again(self, name: str, ask: Callable[[Any, str], Answer]) -> Answer:
        began_s = time.monotonic()
        for wait_s in (*_WAITS_S, None):
            try:
                return ask(self._fs(), self._path(name))
            except DataError:
                raise
            except Exception as failure:
                error = _own(failure)
                if wait_s is None or isinstance(error, _LASTING) or time.monotonic() - began_s > _PATIENCE_S:
                    raise self._failed(name, error) from error
                _wait(wait_s)
        raise AssertionError("the last wait is None")

    def _failed(self, name: str, error: Exception) -> OSError:
        """What to raise: the storage's own error number where it has one, in one line, with the file's address."""
        where, reason = self.where(name), one_line(error)
        if isinstance(error, FileNotFoundError):
            return FileNotFoundError(errno.ENOENT, "No such file", where)
        if isinstance(error, PermissionError):
            return PermissionError(errno.EACCES, reason, where)
        return OSError(errno.EIO, reason, where)

    # -------------------------------------------------------------------------------------------------- the connection

    def _path(self, name: str) -> str:
        self._fs()
        root = self._root
        return f"{root}{'' if not root or root.endswith('/') else '/'}{name}" if name else root

    def _fs(self) -> Any:
        with self._lock:
            if self._connected is None:
                self._connected, self._root = _connect(self.address)
            return self._connected


class _Stream(io.RawIOBase):
    """A file from its beginning to its end, in blocks, each of which is asked for again where that fails."""

    def __init__(self, storage: RemoteStorage, name: str, size: int) -> None:
        self._storage, self._name, self._size = storage, name, size
        self._block, self._next = memoryview(b""), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._block:
            parts = range(self._next, min(self._next + _STREAM_BLOCK, self._size), _MOST_MERGED)
            spans = [Span(self._name, start, min(_MOST_MERGED, self._size - start)) for start in parts]
            self._block = memoryview(b"".join(self._storage.ranges(spans)))
            self._next += len(self._block)
        count = min(len(buffer), len(self._block))
        buffer[:count] = self._block[:count]
        self._block = self._block[count:]
        return count


async def _client(**settings: Any) -> Any:
    """As fsspec's, but with as many requests under way as a process asks for, and none that waits for ever."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE_S, sock_read=_SILENCE_S)
    connector = aiohttp.TCPConnector(limit=_CONNECTIONS)
    return aiohttp.ClientSession(timeout=timeout, connector=connector, **settings)


_OF_THE_WEB: Final = {"get_client": _client}
_OF_S3: Final = {"config_kwargs": {"max_pool_connections": _CONNECTIONS}}
_SETTINGS: Final[dict[str, dict[str, Any]]] = {
    "http": _OF_THE_WEB,
    "https": _OF_THE_WEB,
    "s3": _OF_S3,
    "s3a": _OF_S3,
}


def _connect(address: str) -> tuple[Any, str]:
    protocol = address.split("://", 1)[0].split("::")[-1]
    try:
        fs, root = fsspec.core.url_to_fs(address, **_SETTINGS.get(protocol, {}))
    except ImportError as error:
        missing = getattr(error.__cause__, "name", None) or getattr(error, "name", None)
        package = f"the package {missing}" if missing else one_line(error)
        raise DataError(
            f"{address!r} needs {package}, which is not installed here; install it beside convscale "
            f"({'pip install ' + missing if missing else 'see its documentation'})"
        ) from None
    except ValueError as error:
        raise DataError(
            f"{address!r} given, and {protocol + '://'!r} cannot be used ({one_line(error)}); allowed: a folder, or an "
            "fsspec address such as gs://bucket/images, s3://bucket/images or https://host/images"
        ) from None
    except Exception as error:  # credentials that are missing, as each store says it
        raise DataError(
            f"{address!r} cannot be reached ({one_line(error)}); mend that, or copy the data here"
        ) from None
    # What the store's package logs of each try is for a log, where there is one, and not for a terminal.
    logger = logging.getLogger(type(fs).__module__.partition(".")[0])
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    return fs, str(root)


def _upload(fs: Any, local: str, path: str) -> None:
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    if protocols & _ATOMIC:
        fs.put_file(local, path)
        return
    fs.makedirs(os.path.dirname(path), exist_ok=True)
    fs.put_file(local, f"{path}{ASIDE}")
    fs.mv(f"{path}{ASIDE}", path)


def _merged(spans: Sequence[Span]) -> list[tuple[Span, list[int]]]:
    """Requests for spans: of neighbours in a file one for all, with the numbers of the spans that each one holds."""
    order = sorted((number for number, span in enumerate(spans) if span.length), key=lambda number: spans[number])
    requests: list[tuple[Span, list[int]]] = []
    for number in order:
        name, start, length = spans[number]
        if requests:
            last, members = requests[-1]
            end = max(last.start + last.length, start + length)
            near = last.name == name and start - (last.start + last.length) <= _GAP
            if near and (end - last.start <= _MOST_MERGED or end == last.start + last.length):
                requests[-1] = Span(name, last.start, end - last.start), [*members, number]
                continue
        requests.append((spans[number], [number]))
    return requests


def _wait(wait_s: float) -> None:
    time.sleep(wait_s * random.uniform(1.0, 1.5))  # so that a host's processes do not ask again all at once


def _own(error: Exception) -> Exception:
    """An error by what it is: for fsspec a web server's file is not found whatever went wrong as its size was asked."""
    cause = error.__cause__ if isinstance(error, FileNotFoundError) else error
    if not (isinstance(cause, TimeoutError) or type(cause).__module__.partition(".")[0] == "aiohttp"):
        return error
    assert isinstance(cause, Exception)
    status = getattr(cause, "status", None)
    if status in _NOT_ALLOWED:
        return PermissionError(errno.EACCES, one_line(cause))
    return FileNotFoundError(errno.ENOENT, one_line(cause)) if status in _GONE else cause


def one_line(error: BaseException) -> str:
    """What an error says, in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__
