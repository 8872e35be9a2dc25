"""What is done to make a sharded data set: a plan of jobs, and the part that each leaves when it is done."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from trainables.data.shards import ROW, Rows, digest_of
from trainables.data.storage import Storage

Count = Callable[[int, int], None]
"""Told of images done, and of the bytes they took."""


class Part(NamedTuple):
    """What came of a shard.

    rows: with the checksums of the images alone. names: where classes are texts, those of this shard, and a row's label
    counts in them. left_out: images that could not be read, by name.
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
    def shard(self) -> str:
        """The shard's name."""

    @property
    def part(self) -> str:
        """What its part is called; no other job of the plan has that name."""

    @property
    def known_by(self) -> str:
        """The digest of all that the shard and its rows depend on."""

    def make(self, shards: Storage, count: Count) -> Part:
        """Does it. `shards` is where the shards lie.

        Raises DataError for the user's mistakes, OSError where a storage fails.
        """


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be made, and where: `storage` takes `dataset.json`, and the shards unless they lie in `shards_at`.

    jobs: of the splits, in order. made_by: all that the outcome depends on, as JSON values. classes: their names; None
    where the shards' own texts, or the highest number, tell. mendable: of `made_by`, what may change while it is under
    way, for jobs' own digests tell which of them that concerns. kept: what a plan that goes on has to know of the one
    that began, as JSON values.
    """

    storage: Storage
    jobs: Sequence[Job]
    made_by: dict[str, Any]
    classes: tuple[str, ...] | None
    shards_at: Storage | None = None
    writes_shards: bool = True
    mendable: frozenset[str] = frozenset()
    kept: dict[str, Any] | None = None

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


def store(plan: Plan, job: Job, part: Part) -> None:
    """Leave what came of a job."""
    head = {
        "known_by": job.known_by,
        "shard": part.shard,
        "size": part.size,
        "names": part.names,
        "left_out": part.left_out,
        "digest": digest_of(part.rows),
    }
    with plan.storage.writing(part_file(job)) as file:
        file.write(json.dumps(head).encode() + b"\n" + part.rows.tobytes())


def load(plan: Plan, job: Job) -> Part | None:
    """The part that a job has left, if it is there and whole."""
    try:
        head, _, content = plan.storage.read(part_file(job)).partition(b"\n")
        values = json.loads(head)
        rows = np.frombuffer(content, ROW)
        if values["known_by"] != job.known_by or digest_of(rows) != values["digest"]:
            return None
        names = values["names"]
        return Part(
            values["shard"], values["size"], rows, None if names is None else tuple(names), tuple(values["left_out"])
        )
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return None


def part_file(job: Job) -> str:
    return f"parts/{job.part}"
