"""Images in shards of records, for data sets that are too large for a folder of files.

A data set is a folder of ArrayRecord files, the shards, and `dataset.json` beside them:

    {"version": 1, "classes": ["cat", "dog"],
     "train": {"train-00000.array_record": 1000, "train-00001.array_record": 998},
     "heldout": {"heldout-00000.array_record": 100}}

`classes` are the names of the classes, or only how many there are. `train` and `heldout` give each shard's file and its
number of records; a record's number counts through the shards in that order. A record is the number of its class, four
bytes (unsigned, little-endian), and after them the encoded image: the bytes of a JPEG, PNG, WebP or BMP file. Shards
are written with group_size:1, so that any record is read by itself. `write_records` writes all of this.

ArrayRecord (github.com/google/array_record) finds a record by its number in constant time, which the order of epochs
needs, and knows a damaged record by its checksum.
"""

from __future__ import annotations

import bisect
import itertools
import json
import os
import struct
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from trainables.data.errors import DataError
from trainables.data.folder import shown

INDEX_FILE: Final = "dataset.json"
VERSION: Final = 1
LAYOUT: Final = f"{INDEX_FILE} and its shards"
SPLITS: Final = ("train", "heldout")
LABEL: Final = struct.Struct("<I")
MOST_SHARDS: Final = 1_000  # opened to count their records; of more, an even sample
_THREADS: Final = 16


class Record(NamedTuple):
    """A class number, and the bytes of an image file."""

    label: int
    image: bytes


@dataclass(frozen=True, slots=True)
class Instruction:
    """Which records of a shard are read, as Grain asks for it."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


@dataclass(frozen=True, slots=True)
class Index:
    """What `dataset.json` says: the classes, and the (file, records) of each split's shards."""

    classes: tuple[str, ...]
    train: tuple[tuple[str, int], ...]
    heldout: tuple[tuple[str, int], ...]


class Shards:
    """The records of one split, by number. No file is open before the first is read, nor in a pickled copy.

    Reading is safe from several threads; each remembers the record it has read last, so that an image and its label
    are read once.
    """

    def __init__(self, folder: str, shards: Sequence[tuple[str, int]], classes: int) -> None:
        self.folder, self.shards, self.classes = folder, tuple(shards), classes
        self.ends = list(itertools.accumulate(count for _, count in shards))
        self._opened = _Opened()

    def __len__(self) -> int:
        return self.ends[-1]

    def __getstate__(self) -> tuple[str, tuple[tuple[str, int], ...], int]:
        return self.folder, self.shards, self.classes

    def __setstate__(self, state: tuple[str, tuple[tuple[str, int], ...], int]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def name(self, index: int) -> str:
        """What a person knows a record by: its shard and its number there, "jft/train-00000.array_record[17]"."""
        shard, place = self._place(index)
        return f"{os.path.join(self.folder, self.shards[shard][0])}[{place}]"

    def record(self, index: int) -> Record:
        """A record.

        Raises:
            DataError: it is damaged, or its class is not one of the data set's.
            OSError: the storage failed, or a shard has gone.
        """
        last = self._opened.last
        if getattr(last, "index", None) == index:
            found: Record = last.record
            return found
        self._place(index)
        content = self._read(index)
        if len(content) < LABEL.size:
            raise self._damaged(index, f"it has {len(content)} bytes, fewer than the {LABEL.size} of its class number")
        (label,) = LABEL.unpack_from(content)
        if label >= self.classes:
            raise self._damaged(index, f"its class is {label}, and {INDEX_FILE} has {self.classes}, from 0")
        last.index, last.record = index, Record(label, content[LABEL.size :])
        return Record(label, content[LABEL.size :])

    def _read(self, index: int) -> bytes:
        try:
            content: bytes = self._reader()[index]
        except (RuntimeError, ValueError, IndexError) as error:  # how ArrayRecord tells of damage, and of missing files
            with open(os.path.join(self.folder, self.shards[self._place(index)[0]][0]), "rb") as shard:
                shard.read(1)  # raises an OSError where it is the storage that failed
            raise self._damaged(index, _one_line(error)) from error
        return content

    def _reader(self) -> Any:
        opened = self._opened
        with opened.lock:
            if opened.reader is None:
                from trainables.data.grain_library import grain

                wanted = [Instruction(os.path.join(self.folder, name), 0, n, n) for name, n in self.shards if n]
                opened.reader = grain.sources.ArrayRecordDataSource(wanted)
            return opened.reader

    def _place(self, index: int) -> tuple[int, int]:
        """(shard, number within it)."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = bisect.bisect_right(self.ends, index)
        return shard, index - (self.ends[shard - 1] if shard else 0)

    def _damaged(self, index: int, reason: str) -> DataError:
        return DataError(
            f"cannot read record {self.name(index)} ({reason}); write its shard anew, or set data.bad_images to "
            "'skip', and go on with --retry-failed"
        )


@dataclass(slots=True)
class _Opened:
    """What a process has open of a split."""

    reader: Any = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    last: threading.local = field(default_factory=threading.local)


def read_index(folder: str) -> Index:
    """What `dataset.json` in a folder says.

    Raises:
        DataError: no such folder or file, or one that is not as it must be; one line.
    """
    if "://" in folder:
        raise DataError(
            f"data.path: {folder!r} given; allowed for source records: a folder of this machine's disk (or one that it "
            "has mounted); copy or mount it"
        )
    path = os.path.join(folder, INDEX_FILE)
    if not os.path.isdir(folder):
        state = "is not a folder" if os.path.exists(folder) else "does not exist"
        raise DataError(f"data.path: {shown(folder)!r} {state}; give a folder that holds {LAYOUT}")
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"data.path: {shown(folder)!r} has no {INDEX_FILE}; give a folder that holds it and its shards"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"data.path: {shown(path)!r} cannot be read ({_one_line(error)}); write it anew") from error
    try:
        return _index_of(values)
    except ValueError as error:
        raise DataError(f"data.path: {shown(path)!r}: {error}") from None


def fingerprint(folder: str, index: Index) -> tuple[int, ...]:
    """The size of every shard in bytes, of training and then of the held-out ones.

    Raises:
        DataError: a shard is missing.
    """
    sizes: list[int] = []
    for name, _ in (*index.train, *index.heldout):
        path = os.path.join(folder, name)
        try:
            sizes.append(os.stat(path).st_size)
        except OSError as error:
            raise DataError(
                f"data.path: {shown(path)!r} is named in {INDEX_FILE} and cannot be read ({error.strerror}); bring it "
                f"back, or correct {INDEX_FILE}"
            ) from error
    return tuple(sizes)


def check_shards(folder: str, shards: Sequence[tuple[str, int]]) -> None:
    """Look into shards, as many as `MOST_SHARDS`: whether they have the records that they must have.

    Raises:
        DataError: one that is damaged, or has another number of records.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    paths = [os.path.join(folder, name) for name, _ in shards]

    def check(number: int) -> None:
        path, said = paths[number], shards[number][1]
        try:
            reader = ArrayRecordReader(path)
            found = reader.num_records()
            reader.close()
        except (RuntimeError, ValueError) as error:
            raise DataError(
                f"data.path: {shown(path)!r} is damaged, or no ArrayRecord file ({_one_line(error)}); write it anew"
            ) from error
        if found != said:
            raise DataError(
                f"data.path: {shown(path)!r} has {found:,} records, and {INDEX_FILE} says {said:,}; correct "
                f"{INDEX_FILE}, or write the shard anew"
            )

    few = len(shards) <= MOST_SHARDS
    chosen = range(len(shards)) if few else np.linspace(0, len(shards) - 1, MOST_SHARDS).astype(int).tolist()
    with ThreadPoolExecutor(_THREADS) as threads:
        found = [threads.submit(check, number) for number in chosen]
        try:
            for one in found:
                one.result()
        finally:
            threads.shutdown(cancel_futures=True)


def write_records(
    folder: str | os.PathLike[str],
    classes: Sequence[str] | int,
    *,
    train: Iterable[tuple[int, bytes]],
    heldout: Iterable[tuple[int, bytes]],
    records_per_shard: int = 10_000,
) -> None:
    """Write a data set of (class number, bytes of an image file) pairs to a folder; `dataset.json` comes last.

    One shard is open at a time and no image is decoded, so this takes hardly any memory. Images should come shuffled:
    a shard is what lies together on a disk.

    Raises:
        ValueError: a class number out of range, a split without records, or a `records_per_shard` below 1.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    if records_per_shard < 1:
        raise ValueError(f"records_per_shard {records_per_shard} given; allowed: 1 or more")
    os.makedirs(folder, exist_ok=True)
    count = classes if isinstance(classes, int) else len(classes)
    index: dict[str, Any] = {"version": VERSION, "classes": classes if isinstance(classes, int) else list(classes)}
    for split, records in zip(SPLITS, (train, heldout), strict=True):
        shards: dict[str, int] = {}
        coming = iter(records)
        while part := next(coming, None):
            name = f"{split}-{len(shards):05d}.array_record"
            writer = ArrayRecordWriter(os.path.join(folder, name), "group_size:1")
            written = 0
            for label, image in itertools.chain([part], itertools.islice(coming, records_per_shard - 1)):
                if not 0 <= label < count:
                    raise ValueError(f"class {label} given for an image of {split}; allowed: 0 to {count - 1}")
                writer.write(LABEL.pack(label) + image)
                written += 1
            writer.close()
            shards[name] = written
        if not shards:
            raise ValueError(f"no images given for {split}; allowed: 1 or more")
        index[split] = shards
    unfinished = Path(folder, f"{INDEX_FILE}.new")
    unfinished.write_text(json.dumps(index, indent=1, ensure_ascii=False), encoding="utf-8")
    unfinished.replace(Path(folder, INDEX_FILE))


def _index_of(values: Any) -> Index:
    """Raises ValueError: what is wrong, what is allowed."""
    if not isinstance(values, dict):
        raise ValueError("is not a JSON object; see trainables/data/records.py for what it must hold")
    if (version := values.get("version")) != VERSION:
        raise ValueError(f"version {version!r} given; allowed: {VERSION}")
    classes = values.get("classes")
    if isinstance(classes, int) and not isinstance(classes, bool):
        names = tuple(str(number) for number in range(classes))
    elif isinstance(classes, list) and all(isinstance(name, str) for name in classes):
        names = tuple(classes)
    else:
        raise ValueError("classes: allowed: a list of names, or how many there are")
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError("classes: allowed: two or more, none twice")
    return Index(names, *(_shards_of(split, values.get(split)) for split in SPLITS))


def _shards_of(split: str, shards: Any) -> tuple[tuple[str, int], ...]:
    if not isinstance(shards, dict) or not shards:
        raise ValueError(f'{split}: allowed: each shard\'s file and its number of records, {{"a.array_record": 1000}}')
    for name, count in shards.items():
        if "/" in name or name in ("", ".", ".."):
            raise ValueError(f"{split}: {name!r} given; allowed: names of files beside {INDEX_FILE}")
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{split}: {name!r} has {count!r} records; allowed: whole numbers of 1 or more")
    return tuple(shards.items())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
