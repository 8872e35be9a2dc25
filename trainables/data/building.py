"""Makes a sharded data set shard by shard, in several processes, and goes on where it was interrupted.

Each shard is a job, and what it gives does not depend on who does it or when. A finished job leaves its part, the rows
of its shard, in `parts/` beside the shards; a job whose part is there is done. When all are, the parts are joined into
the indexes, `dataset.json` is written, and the parts are removed. `making.json` says until then what is being made, so
that nothing else is mixed into it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from trainables.data.errors import DataError
from trainables.data.shard_check import parse_manifest
from trainables.data.shards import (
    DATASET_FILE,
    INDEX_HEADER,
    ROW,
    SPLITS,
    Manifest,
    Rows,
    Shard,
    Table,
    digest_of,
    index_file,
)
from trainables.data.storage import LocalStorage, Storage

MAKING_FILE: Final = "making.json"
_THREADS: Final = 16
_JOINED: Final = 64  # parts held at a time

Count = Callable[[int, int], None]
"""Told of images done, and of the bytes they took."""


class Part(NamedTuple):
    """What came of a shard.

    names: where classes are texts, those of this shard, and a row's label counts in them. left_out: images that could
    not be read, by name.
    """

    shard: str
    size: int
    rows: Rows
    names: tuple[str, ...] | None = None
    left_out: tuple[str, ...] = ()


class Job(Protocol):
    """Makes one shard, or finds out what one holds. Can be sent to another process."""

    @property
    def split(self) -> str:
        """train or heldout."""

    @property
    def number(self) -> int:
        """The shard's number within its split."""

    @property
    def shard(self) -> str:
        """The shard's name."""

    def make(self, shards: Storage, count: Count) -> Part:
        """Does it. `shards` is where the shards lie.

        Raises DataError for the user's mistakes, OSError where a storage fails.
        """


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be made, and where: `storage` takes `dataset.json`, and the shards unless they lie in `shards_at`.

    jobs: of the splits, in order. made_by: all that the outcome depends on, as JSON values. classes: their names; None
    where the shards' own texts, or the highest number, tell.
    """

    storage: Storage
    jobs: Sequence[Job]
    made_by: dict[str, Any]
    classes: tuple[str, ...] | None
    shards_at: Storage | None = None
    writes_shards: bool = True

    @property
    def shards(self) -> Storage:
        """Where the shards lie."""
        return self.shards_at or self.storage


class Done(NamedTuple):
    """What a finished job tells: images, bytes, names of images left out, and whether it was done before."""

    images: int
    size: int
    left_out: tuple[str, ...]
    before: bool


def begin(plan: Plan) -> Manifest | None:
    """Make sure that this, and nothing else, is made there. Returns the data set if it is finished already.

    Raises:
        DataError: there is something else, or nothing can be written there.
    """
    storage = plan.storage
    if (manifest := _finished(storage)) is not None:
        if manifest.made_by != plan.made_by:
            raise DataError(
                f"{storage.address!r} holds another data set{_differing(manifest.made_by, plan.made_by)}; give another "
                "address, or remove it"
            )
        clear(plan)
        return manifest
    try:
        under_way = json.loads(storage.read(MAKING_FILE))
    except FileNotFoundError:
        under_way = None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{storage.where(MAKING_FILE)!r} cannot be read ({_said(error)}); mend that, or give another address"
        ) from error
    if under_way is not None and under_way != plan.made_by:
        raise DataError(
            f"{storage.address!r} holds the beginning of another data set{_differing(under_way, plan.made_by)}; give "
            "another address, or remove it"
        )
    if under_way is None:
        _begin_anew(plan)
    return None


@contextlib.contextmanager
def alone(storage: Storage) -> Iterator[None]:
    """While this is open, no other process of this machine makes a data set there. For local storage only."""
    if not isinstance(storage, LocalStorage):
        yield
        return
    with open(storage.where(MAKING_FILE), "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{storage.address!r} is being written by another convscale data; wait for it to end"
            ) from None
        yield


def do(plan: Plan, job: Job, count: Count) -> Done:
    """Do a job, or find that it is done."""
    part = _part(plan, job)
    if part is not None and part.shard == job.shard and _size(plan.shards, job.shard) == part.size:
        return Done(len(part.rows), part.size, part.left_out, before=True)
    part = job.make(plan.shards, count)
    head = {
        "shard": part.shard,
        "size": part.size,
        "names": part.names,
        "left_out": part.left_out,
        "digest": digest_of(part.rows),
    }
    with plan.storage.writing(_part_file(job)) as file:
        file.write(json.dumps(head).encode() + b"\n" + part.rows.tobytes())
    return Done(len(part.rows), part.size, part.left_out, before=False)


def finish(plan: Plan) -> Manifest:
    """Join the parts of all jobs, write the indexes and `dataset.json`, and remove what is not needed any more.

    Raises:
        DataError: a class is out of range, classes are numbers here and texts there, or a split has no image.
    """
    classes = plan.classes if plan.classes is not None else _classes(plan)
    train, heldout = (_join(plan, split, classes) for split in SPLITS)
    shards_at = None if plan.shards_at is None else plan.shards_at.address
    manifest = Manifest(classes, train, heldout, shards_at, plan.made_by)
    with plan.storage.writing(DATASET_FILE) as file:
        file.write(manifest.to_json().encode())
    clear(plan)
    return manifest


def clear(plan: Plan) -> None:
    """Remove what only the making needs."""
    storage = plan.storage
    storage.remove([*storage.matching("parts/*"), MAKING_FILE])
    if isinstance(storage, LocalStorage):
        with contextlib.suppress(OSError):
            os.rmdir(storage.where("parts"))


# ---------------------------------------------------------------------------------------------------------- joining


def _join(plan: Plan, split: str, classes: tuple[str, ...]) -> Table:
    """Write a split's index; returns the table of its shards."""
    number_of = {name: number for number, name in enumerate(classes)}
    shards = []
    with plan.storage.writing(index_file(split)) as file:
        file.write(INDEX_HEADER)
        for part in _parts(plan, split):
            rows = part.rows.copy()
            if part.names is not None:
                unknown = [name for name in part.names if name not in number_of]
                if unknown:
                    raise DataError(
                        f"{plan.shards.where(part.shard)!r} has the class {unknown[0]!r}; {_known(classes)}"
                    )
                rows["label"] = np.array([number_of[name] for name in part.names], np.uint32)[rows["label"]]
            elif len(rows) and rows["label"].max() >= len(classes):
                raise DataError(
                    f"{plan.shards.where(part.shard)!r} has the class {rows['label'].max()}; {_known(classes)}"
                )
            file.write(rows.tobytes())
            shards.append(Shard(part.shard, len(rows), part.size, digest_of(rows)))
    if not sum(shard.examples for shard in shards):
        raise DataError(f"{plan.storage.address!r}: no image of {split} could be read; give 1 or more")
    return Table.of(shards)


def _classes(plan: Plan) -> tuple[str, ...]:
    """The classes that the shards name: texts in order, or numbers from 0 on."""
    names: set[str] = set()
    highest, texts, numbers = -1, None, None
    for split in SPLITS:
        for part in _parts(plan, split):
            if part.names is not None:
                texts = part.shard
                names.update(part.names)
            elif len(part.rows):
                numbers = part.shard
                highest = max(highest, int(part.rows["label"].max()))
    if texts is not None and numbers is not None:
        raise DataError(
            f"classes are texts in {plan.shards.where(texts)!r} and numbers in {plan.shards.where(numbers)!r}; make "
            "them alike"
        )
    classes = tuple(sorted(names)) if texts is not None else tuple(str(number) for number in range(highest + 1))
    if len(classes) < 2:
        raise DataError(f"{plan.shards.address!r} has one class only; give images of two or more")
    return classes


def _parts(plan: Plan, split: str) -> Iterator[Part]:
    """The parts of a split's jobs, in order."""
    jobs = [job for job in plan.jobs if job.split == split]
    with ThreadPoolExecutor(_THREADS) as threads:
        for first in range(0, len(jobs), _JOINED):
            some = jobs[first : first + _JOINED]
            for job, part in zip(some, threads.map(lambda job: _part(plan, job), some), strict=True):
                if part is None:
                    raise DataError(
                        f"{plan.storage.where(_part_file(job))!r} has gone or is damaged; give the same command again"
                    )
                yield part


def _part(plan: Plan, job: Job) -> Part | None:
    """The part that a job has left, if it is there and whole."""
    try:
        head, _, content = plan.storage.read(_part_file(job)).partition(b"\n")
        values = json.loads(head)
        rows = np.frombuffer(content, ROW)
        if digest_of(rows) != values["digest"]:
            return None
        names = values["names"]
        return Part(
            values["shard"], values["size"], rows, None if names is None else tuple(names), tuple(values["left_out"])
        )
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return None


def _part_file(job: Job) -> str:
    return f"parts/{job.split}-{job.number:06d}"


# ---------------------------------------------------------------------------------------------------------- beginning


def _begin_anew(plan: Plan) -> None:
    storage = plan.storage
    if plan.writes_shards and (found := [name for split in SPLITS for name in storage.matching(f"{split}-*.tar")]):
        raise DataError(
            f"{storage.address!r} holds shards already, such as {found[0]!r}, and no {DATASET_FILE}; give another "
            "address, remove them, or give them a data set's index (convscale data index)"
        )
    try:
        with storage.writing(MAKING_FILE) as file:
            file.write(json.dumps(plan.made_by, sort_keys=True).encode())
    except OSError as error:
        if not storage.remote:
            raise
        raise DataError(f"{storage.address!r} cannot be written ({_said(error)}); give another address") from error


def _finished(storage: Storage) -> Manifest | None:
    try:
        text = storage.read(DATASET_FILE)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(
            f"{storage.address!r} cannot be looked into ({_said(error)}); mend that, or give another address"
        ) from error
    return parse_manifest(storage, text)


def _size(shards: Storage, name: str) -> int | None:
    try:
        return shards.size(name)
    except FileNotFoundError:
        return None


def _differing(there: dict[str, Any] | None, given: dict[str, Any]) -> str:
    differing = [
        f"{name}: {(there or {}).get(name)!r} there, {given.get(name)!r} given"
        for name in sorted({*(there or {}), *given})
        if (there or {}).get(name) != given.get(name)
    ]
    return f" ({'; '.join(differing)})" if differing else ""


def _known(classes: tuple[str, ...]) -> str:
    return f"allowed: the {len(classes)} classes given, {classes[0]!r} to {classes[-1]!r}; add it to them"


def _said(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or " ".join(str(error).split())[:200])
