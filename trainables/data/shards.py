"""The format of sharded images: tar files as WebDataset has them, an index of where each image lies, `dataset.json`.

A data set is a folder, or an fsspec address, of

    dataset.json     written last: the classes, and of each split its shards in order
    train.index      where each image lies, in the order of its number; heldout.index likewise
    train-000000.tar, train-000001.tar, ..., heldout-000000.tar, ...

A shard is an uncompressed tar file that holds an image file and its class for each example: `000000017.jpg`, and
`000000017.cls` with the class's number as text. Any tool for WebDataset reads it, in order.

`dataset.json` is

    {"version": 2, "classes": ["cat", "dog"], "shards_at": null,
     "train": [["train-000000.tar", 2612, 268435456, "9f86d081884c7d659a2feaa0c55ad015"], ...],
     "heldout": [...], "made_by": {...}}

A shard is given by its name below `shards_at` (null: beside this file), its examples, its bytes, and the first 128 bits
of the SHA-256 of its rows of the index. `made_by` says by what settings it was made.

An index is 16 bytes of `INDEX_HEADER`, then 16 bytes for each example: four little-endian unsigned numbers of 32 bits,
see `ROW`. So an example's row is found by its number alone, in a file that a process need not read: it is mapped into
memory, and all processes of a host share it. Four billion images have an index of 64 GB.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

DATASET_FILE: Final = "dataset.json"
VERSION: Final = 2
SPLITS: Final = ("train", "heldout")
LAYOUT: Final = f"{DATASET_FILE}, the indexes and the shards"
BLOCK: Final = 512  # bytes; a member of a tar file begins at a multiple of it
ROW: Final = np.dtype([("block", "<u4"), ("length", "<u4"), ("label", "<u4"), ("crc32", "<u4")])
"""Of an example: where its image begins in its shard, in blocks of 512 bytes; the image's bytes; its class; the
CRC-32 of its bytes and then its class, as it stands here.
"""
INDEX_HEADER: Final = b"convscale-idx-3\n"

_CRC_TABLE: Final = ~np.array([zlib.crc32(bytes([value]), 0xFFFFFFFF) for value in range(256)], np.uint32)

Rows = npt.NDArray[np.void]
Indices = npt.NDArray[np.int64]


class Shard(NamedTuple):
    """A shard: its name, how many examples and bytes it has, and the digest of its rows, 32 hexadecimal digits."""

    name: str
    examples: int
    size: int
    digest: str


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """The shards of a split, column by column; `ends` counts the examples up to and with each shard."""

    names: tuple[str, ...]
    ends: Indices
    sizes: Indices
    digests: tuple[str, ...]

    @classmethod
    def of(cls, shards: Sequence[Shard]) -> Table:
        return cls(
            names=tuple(shard.name for shard in shards),
            ends=np.cumsum([shard.examples for shard in shards], dtype=np.int64),
            sizes=np.array([shard.size for shard in shards], np.int64),
            digests=tuple(shard.digest for shard in shards),
        )

    def __len__(self) -> int:
        return int(self.ends[-1])

    def place(self, index: int) -> tuple[int, int]:
        """(shard, number within it) of an example."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = int(np.searchsorted(self.ends, index, side="right"))
        return shard, index - self.first(shard)

    def places(self, indices: Indices) -> Indices:
        """The shard of each example."""
        return np.searchsorted(self.ends, indices, side="right")

    def first(self, shard: int) -> int:
        """The number of a shard's first example."""
        return int(self.ends[shard - 1]) if shard else 0

    def digest(self) -> bytes:
        """The SHA-256 of which bytes these examples are, and in which order; names of shards do not enter."""
        found = hashlib.sha256("".join(self.digests).encode())
        for array in (self.ends, self.sizes):
            found.update(array.astype("<i8").tobytes())
        return found.digest()

    def rows(self) -> list[Shard]:
        """The shards again, one by one."""
        examples = np.diff(self.ends, prepend=0).tolist()
        return [*itertools.starmap(Shard, zip(self.names, examples, self.sizes.tolist(), self.digests, strict=True))]


@dataclass(frozen=True, slots=True, eq=False)
class Manifest:
    """What `dataset.json` says. `shards_at` is the address of the shards where they lie elsewhere."""

    classes: tuple[str, ...]
    train: Table
    heldout: Table
    shards_at: str | None = None
    made_by: dict[str, Any] | None = None

    def to_json(self) -> str:
        """The text of `dataset.json`: a line for each shard."""
        splits = [
            f" {json.dumps(split)}: [\n" + ",\n".join(f"  {json.dumps(list(shard))}" for shard in table.rows()) + "\n ]"
            for split, table in zip(SPLITS, (self.train, self.heldout), strict=True)
        ]
        head = [
            f' "version": {VERSION}',
            f' "classes": {json.dumps(list(self.classes), ensure_ascii=False)}',
            f' "shards_at": {json.dumps(self.shards_at)}',
        ]
        return "{\n" + ",\n".join([*head, *splits, f' "made_by": {json.dumps(self.made_by, sort_keys=True)}']) + "\n}\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Raises ValueError: what is wrong with the text, what is allowed."""
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("is not a JSON object; write it anew with convscale data convert or convscale data index")
        if (version := values.get("version")) != VERSION:
            mend = "; its shards are ArrayRecord files, which are no longer read" if version == 1 else ""
            raise ValueError(f"version {version!r} given; allowed: {VERSION}{mend}; convert the images anew")
        classes = values.get("classes")
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise ValueError("classes: allowed: a list of names")
        if len(classes) < 2 or len(set(classes)) < len(classes):
            raise ValueError("classes: allowed: two or more, none twice")
        shards_at, made_by = values.get("shards_at"), values.get("made_by")
        if not (shards_at is None or isinstance(shards_at, str)) or not (made_by is None or isinstance(made_by, dict)):
            raise ValueError("shards_at and made_by: allowed: an address or null, and an object or null")
        train, heldout = (Table.of(_shards_of(split, values.get(split))) for split in SPLITS)
        return cls(tuple(classes), train, heldout, shards_at, made_by)


def rows_of(blocks: Sequence[int], lengths: Sequence[int], labels: Sequence[int], crcs: Sequence[int]) -> Rows:
    """Rows of an index from its columns."""
    rows = np.empty(len(blocks), ROW)
    rows["block"], rows["length"], rows["label"], rows["crc32"] = blocks, lengths, labels, crcs
    return rows


def checksum(image: bytes, label: int) -> int:
    """What an example's row has as `crc32`."""
    return zlib.crc32(label.to_bytes(4, "little"), zlib.crc32(image))


def with_labels(rows: Rows, labels: npt.NDArray[np.uint32]) -> Rows:
    """Rows whose `crc32` is of the images alone, with these classes: what an index has."""
    register = ~rows["crc32"]
    for shift in (0, 8, 16, 24):
        register = _CRC_TABLE[(register ^ (labels >> np.uint32(shift))) & 0xFF] ^ (register >> 8)
    found = rows.copy()
    found["label"], found["crc32"] = labels, ~register
    return found


def digest_of(rows: Rows) -> str:
    """The digest of a shard's rows, as `dataset.json` has it."""
    return hashlib.sha256(rows.tobytes()).hexdigest()[:32]


def index_file(split: str) -> str:
    """The name of a split's index."""
    return f"{split}.index"


def _shards_of(split: str, shards: Any) -> list[Shard]:
    allowed = 'each shard as ["train-000000.tar", examples, bytes, digest]'
    if not isinstance(shards, list) or not shards:
        raise ValueError(f"{split}: allowed: {allowed}")
    found = [_shard_of(split, shard, allowed) for shard in shards]
    if not sum(shard.examples for shard in found):
        raise ValueError(f"{split}: has no examples; allowed: 1 or more")
    return found


def _shard_of(split: str, shard: Any, allowed: str) -> Shard:
    if not isinstance(shard, list) or len(shard) != 4:
        raise ValueError(f"{split}: {shard!r} given; allowed: {allowed}")
    name, examples, size, digest = shard
    if not isinstance(name, str) or not _inside(name.split("/")):
        raise ValueError(f"{split}: {name!r} given; allowed: names below the folder of the shards")
    for what, number in (("examples", examples), ("bytes", size)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ValueError(f"{split}: {name!r} has {number!r} {what}; allowed: whole numbers of 0 or more")
    if not isinstance(digest, str) or len(digest) != 32:
        raise ValueError(f"{split}: {name!r} has the digest {digest!r}; allowed: 32 hexadecimal digits")
    return Shard(name, examples, size, digest)


def _inside(parts: Iterable[str]) -> bool:
    return all(part not in ("", ".", "..") for part in parts)
