"""Images that cannot be read, where the study skips them: counted, and too many of them refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from trainables.data import DataError, ImageSource
from trainables.lockstep import HostBatch

MOST = 0.1
AFTER_IMAGES = 200
MOST_NAMED = 100


def unreadable(batch: HostBatch) -> int:
    """How many of the batch's images could not be read (weight 0 and no padding)."""
    return 0 if batch["weight"].all() else int(np.count_nonzero((batch["weight"] == 0) & (batch["index"] >= 0)))


def few_unreadable(
    batches: Iterator[HostBatch], source: ImageSource, tell: Callable[[list[str]], None] = lambda names: None
) -> Iterator[HostBatch]:
    """The same batches, as long as few of their images cannot be read. `tell` gets the names (paths) of those that
    cannot, each once and `MOST_NAMED` at most.

    Raises `DataError` once more than `MOST` of the images met could not, of `AFTER_IMAGES` or more, naming one.
    """
    met = skipped = 0
    told: set[int] = set()
    for batch in batches:
        met += int(np.count_nonzero(batch["index"] >= 0))
        here = unreadable(batch)
        skipped += here
        if not here:
            yield batch
            continue
        indices = {int(index) for index in batch["index"][(batch["weight"] == 0) & (batch["index"] >= 0)]}
        if new := sorted(indices - told)[: MOST_NAMED - len(told)]:
            told.update(new)
            tell([source.name(index) for index in new])
        if met >= AFTER_IMAGES and skipped > MOST * met:
            raise DataError(
                f"{skipped} of {met} images cannot be read, one is {source.name(min(indices))!r}; "
                f"data.bad_images 'skip' allows {MOST:.0%}; put good ones in their places, "
                "and go on with --retry-failed"
            )
        yield batch
