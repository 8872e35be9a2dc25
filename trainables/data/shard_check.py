"""Opens sharded images, and says in one line what is wrong with them, by a look that costs little."""

from __future__ import annotations

import functools
import hashlib
import os
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple, TypeVar

import numpy as np

from trainables.data.errors import DataError
from trainables.data.folder import shown
from trainables.data.index import Index
from trainables.data.shard_source import ShardSource
from trainables.data.shards import (
    BLOCK,
    DATASET_FILE,
    INDEX_HEADER,
    LAYOUT,
    SPLITS,
    Manifest,
    Table,
    digest_of,
    index_file,
)
from trainables.data.storage import Span, Storage, is_address, open_storage

# Looked into when a data set is opened; of more shards, an even sample. Over the network each costs some requests.
MOST_SHARDS: Final = 1_000
MOST_REMOTE_SHARDS: Final = 16
_THREADS: Final = 16

Sizes = tuple[int | None, ...]
Answer = TypeVar("Answer")


class Opened(NamedTuple):
    """A data set that was looked into; `digest` tells it apart from any other, wherever it lies."""

    train: ShardSource
    heldout: ShardSource
    classes: tuple[str, ...]
    digest: str


def open_shards(path: str, image_size: int) -> Opened:
    """The data set at a folder or an fsspec address.

    Reads `dataset.json` and looks into some shards: whether they have the bytes that they must have, the rows of the
    index that go with them, and their last image where those say. A data set that was looked into, and whose
    `dataset.json` and local shards' sizes are the same, is not looked into again.

    Raises:
        DataError: it is not there, or not as it must be; one line that begins with "data.path: ".
        OSError: the storage failed; opening it again may work.
    """
    try:
        storage = open_storage(path)
        text = read_manifest(storage)
        manifest = parse_manifest(storage, text)
        shards = _shards_of(storage, manifest)
        sizes = () if shards.remote else tuple(_sizes(shards, table) for table in (manifest.train, manifest.heldout))
        return _open(storage.address, text, image_size, sizes)
    except DataError as error:
        raise DataError(f"data.path: {error}") from error


def why_not_here(path: str) -> str | None:
    """Why a data set cannot be opened from here at all; None where there is something to open."""
    try:
        if not is_address(path):
            return None if os.path.exists(open_storage(path).address) else "is not here"
        open_storage(path).read(DATASET_FILE)
    except FileNotFoundError:
        return "is not here"
    except (OSError, DataError) as error:
        return f"cannot be reached ({_reason(error)})"
    return None


def read_manifest(storage: Storage) -> bytes:
    """The text of `dataset.json`. Raises DataError where there is none, or it may not be read."""
    try:
        return storage.read(DATASET_FILE)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(_missing(storage)) from None
    except (PermissionError, IsADirectoryError) as error:
        raise DataError(
            f"{storage.where(DATASET_FILE)!r} cannot be read ({_reason(error)}); mend that, or give another address"
        ) from error


def parse_manifest(storage: Storage, text: bytes) -> Manifest:
    """What that text says. Raises DataError where it is not as it must be."""
    try:
        return _parsed(text)
    except ValueError as error:
        raise DataError(f"{storage.where(DATASET_FILE)!r}: {_one_line(error)}") from None


@functools.lru_cache(maxsize=4)
def _parsed(text: bytes) -> Manifest:
    return Manifest.from_json(text)


@functools.lru_cache(maxsize=4)
def _open(address: str, text: bytes, image_size: int, _sizes_of_shards: tuple[Sizes, ...]) -> Opened:
    storage, manifest = open_storage(address), _parsed(text)
    shards = _shards_of(storage, manifest)
    tables = manifest.train, manifest.heldout
    indexes = [Index(storage, index_file(split), table) for split, table in zip(SPLITS, tables, strict=True)]
    for index in indexes:
        check(index, shards)
    train, heldout = (ShardSource(shards, index, len(manifest.classes), image_size) for index in indexes)
    names = "\0".join((str(len(manifest.classes)), *manifest.classes, ""))
    digest = hashlib.sha256(names.encode("utf-8", "surrogateescape"))
    for table in tables:
        digest.update(table.digest())
    return Opened(train, heldout, manifest.classes, digest.hexdigest())


def _shards_of(storage: Storage, manifest: Manifest) -> Storage:
    return storage if manifest.shards_at is None else open_storage(manifest.shards_at)


def check(index: Index, shards: Storage) -> None:
    """Look into the index and into some shards of a split.

    Raises:
        DataError: something is missing, or is not what `dataset.json` says.
    """
    size = _of_file(index.storage, index.name, lambda: index.storage.size(index.name))
    if size is not None and size != index.size:
        raise DataError(
            f"{index.storage.where(index.name)!r} has {size} bytes, and {index.size} by {DATASET_FILE}; bring it back "
            "whole, or make it anew"
        )
    _of_file(index.storage, index.name, lambda: _check_header(index))
    table, chosen = index.table, _chosen(shards, index.table)

    def look(number: int) -> Span | None:
        name = table.names[number]
        found = _of_file(shards, name, lambda: shards.size(name))
        if found is not None and found != table.sizes[number]:
            raise DataError(
                f"{shards.where(name)!r} has {found} bytes, and {table.sizes[number]} by {DATASET_FILE}; bring it back "
                "whole, or make the data set anew"
            )
        rows = _of_file(index.storage, index.name, lambda: index.shard(number))
        if digest_of(rows) != table.digests[number]:
            index.bring_anew()
            rows = _of_file(index.storage, index.name, lambda: index.shard(number))
        if digest_of(rows) != table.digests[number]:
            raise DataError(
                f"{index.storage.where(index.name)!r} is damaged, or of another data set (the rows of {name!r}); bring "
                "it back whole, or make it anew"
            )
        return Span(name, BLOCK * (int(rows[-1]["block"]) - 1), int(rows[-1]["length"])) if len(rows) else None

    with ThreadPoolExecutor(_THREADS) as threads:
        ends = [span for span in threads.map(look, chosen) if span is not None]
    _check_ends(shards, ends)


def _check_header(index: Index) -> None:
    if index.storage.ranges([Span(index.name, 0, len(INDEX_HEADER))]) != [INDEX_HEADER]:
        raise DataError(f"{index.storage.where(index.name)!r} is no index; bring it back whole, or make it anew")


def _check_ends(shards: Storage, ends: list[Span]) -> None:
    """Whether before each of these files, which lie in tar files, stands a header that tells their length."""
    headers = [Span(name, start, BLOCK) for name, start, _ in ends]
    contents = _of_file(shards, headers[0].name if headers else "", lambda: shards.ranges(headers))
    for (name, start, length), content in zip(ends, contents, strict=True):
        try:
            told = tarfile.TarInfo.frombuf(content, "utf-8", "surrogateescape").size
        except tarfile.HeaderError:
            told = None
        if told != length:
            raise DataError(
                f"{shards.where(name)!r} has no image of {length} bytes at byte {start + BLOCK}, where the index has "
                "one; bring it back as it was, or make the data set anew"
            )


def _sizes(shards: Storage, table: Table) -> Sizes:
    names = [table.names[number] for number in _chosen(shards, table)]
    with ThreadPoolExecutor(_THREADS) as threads:
        return tuple(threads.map(lambda name: _of_file(shards, name, lambda: shards.size(name)), names))


def _chosen(shards: Storage, table: Table) -> list[int]:
    count, most = len(table.names), MOST_REMOTE_SHARDS if shards.remote else MOST_SHARDS
    return [*range(count)] if count <= most else np.linspace(0, count - 1, most).astype(int).tolist()


def _of_file(storage: Storage, name: str, look: Callable[[], Answer]) -> Answer:
    """What `look` finds in a file that the data set must have. Another failure than that it is not there to be read is
    the storage's.
    """
    try:
        return look()
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise DataError(
            f"{error.filename or storage.where(name)!r} is part of the data set and cannot be read ({_reason(error)}); "
            "bring it back, or make the data set anew"
        ) from error


def _missing(storage: Storage) -> str:
    """Why there is no `dataset.json`."""
    if storage.remote or os.path.isdir(storage.address):
        return (
            f"{_shown(storage)!r} has no {DATASET_FILE}; give the folder or address that holds it, or make it with "
            "convscale data convert, or convscale data index"
        )
    state = "is not a folder" if os.path.exists(storage.address) else "does not exist"
    return f"{_shown(storage)!r} {state}; give a folder or an address that holds {LAYOUT}"


def _shown(storage: Storage) -> str:
    return storage.address if storage.remote else shown(storage.address)


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or _one_line(error))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
