"""Makes a sharded data set shard by shard, in several processes, and goes on where it was interrupted.

Each shard is a job, and what it gives does not depend on who does it or when. A finished job leaves its part, the rows
of its shard, in `parts/` beside the shards, with the digest of all that the job depends on; a job whose part is there
and has its digest is done. When all are, the parts are joined into the indexes, `dataset.json` is written, and the
parts are removed. `making.json` says until then what is being made, so that nothing else is mixed into it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from trainables.data.errors import DataError
from trainables.data.jobs import Count, Done, Job, Part, Plan, load, part_file, store
from trainables.data.shard_check import parse_manifest
from trainables.data.shards import (
    DATASET_FILE,
    INDEX_HEADER,
    SPLITS,
    Manifest,
    Shard,
    Table,
    digest_of,
    index_file,
    with_labels,
)
from trainables.data.storage import ASIDE, LocalStorage, Storage

MAKING_FILE: Final = "making.json"
_THREADS: Final = 16
_JOINED: Final = 64  # parts held at a time
# What file systems answer that have no locks of folders, as some networks' have not.
_NO_LOCKS: Final = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


class Finished(NamedTuple):
    """A data set that was made, and how many of its classes have no image to train on."""

    manifest: Manifest
    unused: int


def begin(plan: Plan) -> Manifest | None:
    """Make sure that this, and nothing else, is made there, while nobody else writes there (`alone`). Returns the data
    set if it is finished already.

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
    began = under_way(storage)
    if began is None:
        _begin_anew(plan)
    elif differing := _differing(began["made_by"], plan.made_by, but=plan.mendable):
        raise DataError(
            f"{storage.address!r} holds the beginning of another data set{differing}; give another address, or remove "
            "it"
        )
    return None


def under_way(storage: Storage) -> dict[str, Any] | None:
    """The `made_by` and `kept` of the plan that was begun there, if any. Raises DataError where that cannot be told."""
    try:
        began = json.loads(storage.read(MAKING_FILE))
        if not isinstance(began, dict) or not isinstance(began.get("made_by"), dict):
            raise ValueError("it is of another version")
        return began
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{storage.where(MAKING_FILE)!r} cannot be read ({_said(error)}); mend that, or give another address"
        ) from error


@contextlib.contextmanager
def alone(storage: Storage) -> Iterator[None]:
    """While this is open, no other process of this machine makes a data set there. For local storage only."""
    if not isinstance(storage, LocalStorage):
        yield
        return
    os.makedirs(storage.address, exist_ok=True)
    folder = os.open(storage.address, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{storage.address!r} is being written by another convscale data; wait for it to end"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        os.close(folder)


def do(plan: Plan, job: Job, count: Count) -> Done:
    """Do a job, or find that it is done.

    Raises:
        DataError: (besides what the job raises) a class that is not of those given; the part is kept then.
    """
    part = load(plan, job)
    if part is not None and _size(plan.shards, job.shard) == part.size:
        _labels(plan, part, plan.classes)
        return Done(len(part.rows), part.size, part.left_out, before=True)
    if plan.writes_shards and _size(plan.storage, part_file(job)) is not None:
        plan.storage.remove([part_file(job)])  # so that it never stands beside another shard than its own
    part = job.make(plan.shards, count)
    store(plan, job, part)
    _labels(plan, part, plan.classes)
    return Done(len(part.rows), part.size, part.left_out, before=False)


def finish(plan: Plan) -> Finished:
    """Join the parts of all jobs, write the indexes and `dataset.json`, and remove what is not needed any more.

    Raises:
        DataError: a class is out of range, classes are numbers here and texts there, or a split has no image.
    """
    classes = plan.classes if plan.classes is not None else _classes(plan)
    (train, used), (heldout, _) = (_join(plan, split, classes) for split in SPLITS)
    shards_at = None if plan.shards_at is None else plan.shards_at.address
    manifest = Manifest(classes, train, heldout, shards_at, plan.made_by)
    with plan.storage.writing(DATASET_FILE) as file:
        file.write(manifest.to_json().encode())
    clear(plan)
    return Finished(manifest, len(classes) - int(used.sum()))


def clear(plan: Plan) -> None:
    """Remove what only the making needs."""
    storage = plan.storage
    storage.remove([*storage.matching("parts/*"), MAKING_FILE])
    if isinstance(storage, LocalStorage):  # and what processes that were killed have left half written
        shutil.rmtree(storage.where("parts"), ignore_errors=True)
        made = re.compile(
            rf"({'|'.join(SPLITS)})(-\d{{6,}}\.tar|\.index){re.escape(ASIDE)}|{re.escape(DATASET_FILE + ASIDE)}"
        )
        storage.remove([name for name in os.listdir(storage.address) if made.fullmatch(name)])


# ---------------------------------------------------------------------------------------------------------- joining


def _join(plan: Plan, split: str, classes: tuple[str, ...]) -> tuple[Table, npt.NDArray[np.bool_]]:
    """Write a split's index; returns the table of its shards, and which classes have an image."""
    shards, used = [], np.zeros(len(classes), bool)
    with plan.storage.writing(index_file(split)) as file:
        file.write(INDEX_HEADER)
        for part in _parts(plan, split):
            labels = _labels(plan, part, classes)
            used[labels] = True
            rows = with_labels(part.rows, labels)
            file.write(rows.tobytes())
            shards.append(Shard(part.shard, len(rows), part.size, digest_of(rows)))
    if not sum(shard.examples for shard in shards):
        raise DataError(f"{plan.storage.address!r}: no image of {split} could be read; give 1 or more")
    return Table.of(shards), used


def _labels(plan: Plan, part: Part, classes: tuple[str, ...] | None) -> npt.NDArray[np.uint32]:
    """The classes of a part's images, as numbers; where all classes are not known yet, as the part has them."""
    labels = cast("npt.NDArray[np.uint32]", part.rows["label"])
    if classes is None:
        return labels
    if part.names is not None:
        number_of = {name: number for number, name in enumerate(classes)}
        if unknown := [name for name in part.names if name not in number_of]:
            raise DataError(f"{plan.shards.where(part.shard)!r} has the class {unknown[0]!r}; {_known(classes)}")
        return np.array([number_of[name] for name in part.names], np.uint32)[labels]
    if len(labels) and labels.max() >= len(classes):
        raise DataError(f"{plan.shards.where(part.shard)!r} has the class {labels.max()}; {_known(classes)}")
    return labels


def _classes(plan: Plan) -> tuple[str, ...]:
    """The classes that the shards name: texts in order, or numbers from 0 on."""
    names: set[str] = set()
    highest, images, texts, numbers = -1, 0, None, None
    for split in SPLITS:
        for part in _parts(plan, split):
            images += len(part.rows)
            if part.names is not None:
                texts = part.shard
                names.update(part.names)
            elif len(part.rows) and (most := int(part.rows["label"].max())) >= highest:
                numbers, highest = part.shard, most
    if texts is not None and numbers is not None:
        raise DataError(
            f"classes are texts in {plan.shards.where(texts)!r} and numbers in {plan.shards.where(numbers)!r}; make "
            "them alike"
        )
    if highest >= images:
        raise DataError(
            f"{plan.shards.where(str(numbers))!r} has the class {highest}, and there are {images} images in all; "
            "allowed: classes that count from 0 on; correct it, or give their names with --classes"
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
            for job, part in zip(some, threads.map(lambda job: load(plan, job), some), strict=True):
                if part is None:
                    raise DataError(
                        f"{plan.storage.where(part_file(job))!r} has gone or is damaged; give the same command again"
                    )
                yield part


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
            file.write(json.dumps({"made_by": plan.made_by, "kept": plan.kept}, sort_keys=True).encode())
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


def _differing(there: dict[str, Any] | None, given: dict[str, Any], but: Collection[str] = ()) -> str:
    differing = [
        f"{name}: {(there or {}).get(name)!r} there, {given.get(name)!r} given"
        for name in sorted({*(there or {}), *given} - {*but})
        if (there or {}).get(name) != given.get(name)
    ]
    return f" ({'; '.join(differing)})" if differing else ""


def _known(classes: tuple[str, ...]) -> str:
    return f"allowed: the {len(classes)} classes given, {classes[0]!r} to {classes[-1]!r}; add it to them"


def _said(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or " ".join(str(error).split())[:200])
