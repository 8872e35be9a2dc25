"""Finds out what WebDataset shards hold that are there already, so that their images can be read by number.

The shards stay as they are. Each is read once, from its beginning to its end.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from glob import has_magic
from typing import Any, Final, Literal

from trainables.data.errors import DataError
from trainables.data.jobs import Count, Part, Plan
from trainables.data.shards import BLOCK, SPLITS, VERSION, rows_of
from trainables.data.storage import Storage, check_address, is_address, open_storage
from trainables.data.tars import Member, members

ENDINGS: Final = frozenset({"jpg", "jpeg", "png", "webp", "bmp"})
_MOST_NUMBER: Final = 2**24  # classes
_LONGEST_LABEL: Final = 1_000  # characters
_MOST_SHARDS: Final = 10**6
_THREADS: Final = 64  # that ask whether shards are there
# Of what a data set is made by: what may be corrected under way, for what was found out about a shard stays true.
_MENDABLE: Final = frozenset({*SPLITS, "classes"})
_RANGE: Final = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MAGIC: Final = re.compile(r"[*?[]")
_CHOICE: Final = re.compile(r"\{([^{}]*,[^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Sample:
    """The members of a shard that have the same key and stand together. `twice`: endings that more than one has."""

    key: str
    members: dict[str, Member]
    twice: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Labels:
    """Where a sample's class stands: a member's ending, and within a JSON member a key."""

    ending: str
    key: str | None = None

    @classmethod
    def parse(cls, text: str) -> Labels:
        """From `cls`, or `json.KEY`. Raises DataError."""
        ending, _, key = text.partition(".")
        if not ending or (ending == "json") != bool(key):
            raise DataError(f"--label: {text!r} given; allowed: an ending such as cls, or json.KEY such as json.label")
        return cls(ending.lower(), key or None)

    def of(self, sample: Sample, where: str) -> int | str:
        """The class of a sample: a number, or any other text. Raises DataError where it has none."""
        member = sample.members.get(self.ending)
        if member is None:
            raise DataError(
                f"{where}: {sample.key!r} has no class, as {self.ending!r} beside its image (it has "
                f"{', '.join(sorted(sample.members))}); say where classes are with --label"
            )
        try:
            text: Any = member.content.decode().strip()
            value = json.loads(text)[self.key] if self.key is not None else text
            str(value).encode()  # JSON may have what is no text
        except (ValueError, LookupError, TypeError):
            raise DataError(
                f"{where}: {sample.key!r} has no class {str(self.key or '')!r} in its {self.ending!r}; say where "
                "classes are with --label"
            ) from None
        fits = type(value) is int or (isinstance(value, str) and 0 < len(value) <= _LONGEST_LABEL)
        if fits and isinstance(value, str) and value.isdecimal():
            value = int(value)
        if not fits or (type(value) is int and not 0 <= value < _MOST_NUMBER):
            given = repr(value) if len(repr(value)) < 60 else f"{repr(value)[:50]}..."
            raise DataError(
                f"{where}: {sample.key!r} has the class {given}; allowed: a number from 0 to {_MOST_NUMBER - 1}, or "
                f"a name of at most {_LONGEST_LABEL} characters"
            )
        return value  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class IndexJob:
    """Reads a shard that is there. `image`: the ending of images; None: any of `ENDINGS`, if a sample has but one."""

    split: str
    shard: str
    labels: Labels
    image: str | None
    bad_images: str

    @property
    def known_by(self) -> str:
        return _digest((self.shard, self.labels.ending, self.labels.key or "", self.image or ""))

    @property
    def part(self) -> str:
        return f"of-{self.known_by}"

    def make(self, shards: Storage, count: Count) -> Part:
        where = shards.where(self.shard)
        columns: tuple[list[int], list[int], list[int]] = [], [], []
        labels: list[int | str] = []
        left_out: list[str] = []
        with _reading(where):
            size = shards.size(self.shard)
            with shards.stream(self.shard) as file:
                for sample in _samples(members(file, where)):
                    try:
                        image, label = self._image(sample, where), self.labels.of(sample, where)
                    except DataError as error:
                        if self.bad_images == "error":
                            raise DataError(f"{error}, or leave such out with --bad-images skip") from None
                        image = None
                    if image is None or not image.content:
                        left_out.append(f"{where}: {sample.key}")
                        continue
                    for column, value in zip(
                        columns, (image.start // BLOCK, len(image.content), zlib.crc32(image.content)), strict=True
                    ):
                        column.append(value)
                    labels.append(label)
                    count(1, len(image.content))
        if not labels:
            raise DataError(f"{where!r} holds no images; leave it out")
        numbers, names = _numbered(labels, where)
        blocks, lengths, crcs = columns
        return Part(self.shard, size or 0, rows_of(blocks, lengths, numbers, crcs), names, tuple(left_out))

    def _image(self, sample: Sample, where: str) -> Member | None:
        if sample.twice:
            raise DataError(
                f"{where}: {sample.key!r} has {sample.twice[0]!r} twice; give each example a key of its own"
            )
        found = [
            member
            for ending, member in sample.members.items()
            if (ending.rpartition(".")[2] in ENDINGS if self.image is None else ending == self.image)
        ]
        if len(found) == 1:
            return found[0]
        which = ", ".join(sorted(sample.members))
        if found:
            raise DataError(f"{where}: {sample.key!r} has {len(found)} images ({which}); say which one with --image")
        what = f"no {self.image!r}" if self.image is not None else f"no image ({', '.join(sorted(ENDINGS))})"
        raise DataError(f"{where}: {sample.key!r} has {what}, but {which}; say what images are called with --image")


def plan_index(
    storage: Storage,
    patterns: Mapping[str, Sequence[str]],
    *,
    label: str = "cls",
    image: str | None = None,
    classes: tuple[str, ...] | None = None,
    bad_images: Literal["error", "skip"] = "error",
) -> Plan:
    """What is to be looked into. patterns: of each split's shards, names below the storage's address, or addresses,
    with wild cards or {000..123}. bad_images: what to do with an example without an image or a class; an empty image is
    left out in any case.

    Raises:
        DataError: nothing matches, a shard is not there or given twice, or shards lie on more than one storage.
    """
    labels = Labels.parse(label)
    base, wanted = _base(storage, {split: _names(split, patterns[split]) for split in SPLITS})
    shards = {split: _found(base, split, wanted[split]) for split in SPLITS}
    known: set[str] = set()
    for name in itertools.chain.from_iterable(shards.values()):
        if name in known:
            raise DataError(f"{base.where(name)!r} is given twice; give each shard once, to train on or held out")
        known.add(name)
    jobs = [IndexJob(split, name, labels, image, bad_images) for split in SPLITS for name in shards[split]]
    shards_at = None if base is storage else base
    made_by = {
        "command": "index",
        "version": VERSION,
        "shards_at": None if shards_at is None else shards_at.address,
        **{split: _digest(shards[split]) for split in SPLITS},
        "label": label,
        "image": image,
        "classes": None if classes is None else _digest(classes),
    }
    return Plan(storage, jobs, made_by, classes, shards_at, writes_shards=False, mendable=_MENDABLE)


def _names(split: str, patterns: Sequence[str]) -> list[str]:
    """Patterns without braces, and of this machine's own files the plain paths."""
    names = [*itertools.islice(_expanded(patterns), _MOST_SHARDS + 1)]
    if len(names) > _MOST_SHARDS:
        raise DataError(f"--{split}: more than {_MOST_SHARDS:,} shards given; allowed: up to that")
    for name in names:
        check_address(name)
    return [name if is_address(name) else os.path.expanduser(name.removeprefix("file://")) for name in names]


def _base(storage: Storage, wanted: dict[str, list[str]]) -> tuple[Storage, dict[str, list[str]]]:
    """Where the shards lie, and their names (or patterns) below that."""
    every = [*itertools.chain.from_iterable(wanted.values())]
    elsewhere = [name for name in every if _is_absolute(name)]
    if not elsewhere:
        return storage, wanted
    if len(elsewhere) < len(every):
        raise DataError(
            f"shards: {elsewhere[0]!r} and {next(name for name in every if not _is_absolute(name))!r} given; allowed: "
            "names below the data set's address, or full addresses, for all alike"
        )
    folders = [_folder_of(name).split("/") for name in every]
    common = [
        parts[0] for parts in itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False))
    ]
    if len(common) < (3 if is_address(every[0]) else 1):
        raise DataError(f"shards: {every[0]!r} and {every[-1]!r} given; allowed: addresses on one storage")
    root = "/".join(common) or "/"
    below = {split: [name[len(root) :].lstrip("/") for name in names] for split, names in wanted.items()}
    return (storage if root == storage.address else open_storage(root)), below


def _found(base: Storage, split: str, wanted: Sequence[str]) -> list[str]:
    """The names that patterns stand for, in order; all of them are there."""

    def look(pattern: str) -> list[str]:
        literal = not has_magic(pattern)
        try:
            if literal or "[" in pattern:  # which a name may have, too
                with _reading(base.where(pattern)) if literal else contextlib.suppress(FileNotFoundError):
                    base.size(pattern)
                    return [pattern]
            found = base.matching(pattern)
        except OSError as error:
            raise DataError(f"--{split}: {base.where(pattern)!r} cannot be looked for ({_said(error)})") from error
        if not found:
            raise DataError(f"--{split}: {base.where(pattern)!r} given, and nothing matches; correct it")
        return found

    with ThreadPoolExecutor(_THREADS) as threads:
        names = [*itertools.chain.from_iterable(threads.map(look, wanted))]
    if not names:
        raise DataError(f"--{split}: nothing given; give shards, such as --{split} '{split}-{{0000..0099}}.tar'")
    return names


def _expanded(patterns: Iterable[str]) -> Iterator[str]:
    """Patterns without braces: {000..123} counts up, with as many digits, and {a,b} chooses."""
    for pattern in patterns:
        if found := _RANGE.search(pattern):
            first, last = int(found[1]), int(found[2])
            if last < first:
                raise DataError(f"shards: {found[0]!r} given in {pattern!r}; allowed: numbers that count up")
            width = len(found[1])
            inner = (f"{number:0{width}d}" for number in range(first, last + 1))
        elif found := _CHOICE.search(pattern):
            inner = (choice for choice in found[1].split(","))
        else:
            yield pattern
            continue
        before, after = pattern[: found.start()], pattern[found.end() :]
        yield from _expanded(f"{before}{choice}{after}" for choice in inner)


def _is_absolute(name: str) -> bool:
    return is_address(name) or name.startswith("/")


def _folder_of(name: str) -> str:
    """The folder of a name or pattern, as far as it has no wild card."""
    folder = name.rpartition("/")[0]
    found = _MAGIC.search(folder)
    return folder if found is None else folder[: found.start()].rpartition("/")[0]


def _samples(found: Iterable[Member]) -> Iterator[Sample]:
    for key, together in itertools.groupby(found, key=lambda member: member.key):
        every = [*together]
        by_ending = {member.ending: member for member in every}
        twice = [ending for ending, count in Counter(member.ending for member in every).items() if count > 1]
        yield Sample(key, by_ending, tuple(twice))


def _numbered(labels: Sequence[int | str], where: str) -> tuple[list[int], tuple[str, ...] | None]:
    """Classes as numbers, and, where they are names, the names that these count in."""
    names = sorted({label for label in labels if isinstance(label, str)})
    if not names:
        return [int(label) for label in labels], None
    strange = next((label for label in labels if not isinstance(label, str)), None)
    if strange is not None:
        raise DataError(f"{where}: classes are {names[0]!r} and {strange!r}; give names, or numbers, to all")
    number_of = {name: number for number, name in enumerate(names)}
    return [number_of[str(label)] for label in labels], tuple(names)


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Around the reading of a shard that was named: one that is not there is the user's to mend."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise DataError(f"{where!r} cannot be read ({error.strerror}); correct the names of the shards") from error


def _digest(names: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _said(error: OSError) -> str:
    return error.strerror or str(error)
