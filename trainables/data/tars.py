"""Tar files as WebDataset has them: written byte for byte the same whenever, and read member by member."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, Any, Final, NamedTuple

from trainables.data.errors import DataError
from trainables.data.shards import BLOCK, Rows, rows_of

_END: Final = bytes(2 * BLOCK)
_COMPRESSED: Final = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_HEAD: Final = 8


def padded(size: int) -> int:
    """Bytes that a member of `size` bytes takes up after its header."""
    return -(-size // BLOCK) * BLOCK


@dataclass(slots=True)
class TarWriter:
    """Writes examples into a tar file, and keeps the rows of their index."""

    file: IO[bytes]
    size: int = 0
    _columns: tuple[list[int], list[int], list[int], list[int]] = field(default_factory=lambda: ([], [], [], []))

    def add(self, key: str, ending: str, image: bytes, label: int) -> None:
        """An image with its class, as KEY.ENDING and KEY.cls."""
        self._member(f"{key}.{ending}", image)
        block = (self.size - padded(len(image))) // BLOCK
        for column, value in zip(self._columns, (block, len(image), label, zlib.crc32(image)), strict=True):
            column.append(value)
        self._member(f"{key}.cls", str(label).encode())

    def finish(self) -> Rows:
        """Write tar's mark of the end; returns the rows."""
        self._write(_END)
        return rows_of(*self._columns)

    def _member(self, name: str, content: bytes) -> None:
        header = tarfile.TarInfo(name)  # its time is 0 and its owner nobody
        header.size = len(content)
        self._write(header.tobuf(tarfile.USTAR_FORMAT) + content + bytes(padded(len(content)) - len(content)))

    def _write(self, content: bytes) -> None:
        self.file.write(content)
        self.size += len(content)


class Member(NamedTuple):
    """A file of a tar file: its key and ending as WebDataset has them, where its bytes begin, and what they are."""

    key: str
    ending: str
    start: int
    content: bytes


def members(file: IO[bytes], name: str) -> Iterator[Member]:
    """The files of a tar file, in order, from a stream of its bytes; `name` is what messages call it.

    A member `train/000017.img.jpg` has the key `train/000017` and the ending `img.jpg`, in small letters. Folders,
    links, WebDataset's own notes (`__...__`), and what has no key or no ending (`.DS_Store`, `README`) are passed over,
    as WebDataset does.

    Raises:
        DataError: it is no tar file, is compressed, is damaged, or ends too soon.
    """
    ahead = _Ahead(file)
    stream: Any = ahead  # tarfile reads of a stream, and asks for no more of a file
    for mark, kind in _COMPRESSED.items():
        if ahead.head.startswith(mark):
            raise DataError(f"{name!r} is compressed ({kind}), so no image in it can be read by itself; unpack it")
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=64 * BLOCK) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                key, _, ending = path.name.partition(".")
                if not member.isreg() or not key or not ending or key.startswith("__"):
                    continue
                opened = tar.extractfile(member)
                content = opened.read() if opened is not None else b""
                if len(content) != member.size:
                    raise DataError(f"{name!r} ends within {member.name!r}; bring it back whole")
                yield Member(str(path.with_name(key)), ending.lower(), member.offset_data, content)
            end = tar.offset
    except (tarfile.TarError, EOFError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name!r} is no tar file, or is damaged ({said}); bring it back whole") from None
    while ahead.read(1 << 20):  # to the end, so that all bytes are counted
        continue
    if ahead.size < end + BLOCK:
        raise DataError(f"{name!r} ends after {ahead.size} bytes without tar's mark of the end; bring it back whole")
    if ahead.content_end > end:  # tarfile takes a damaged header for the end
        raise DataError(
            f"{name!r} is damaged at byte {end}, or is several tar files in one; bring it back whole, or pack it anew"
        )


class _Ahead:
    """A stream whose first bytes are known before they are read, and which counts what was read: bytes in all, and up
    to the last that is not zero.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.size, self.content_end = file, 0, 0
        self.head = self._left = file.read(_HEAD)

    def read(self, size: int) -> bytes:
        content, self._left = self._left[:size], self._left[size:]
        if len(content) < size:
            content += self._file.read(size - len(content))
        if kept := len(content.rstrip(b"\0")):
            self.content_end = self.size + kept
        self.size += len(content)
        return content
