"""Images that cannot be read, where the study skips them: counted, and too many of them refused."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from trainables.data import DataError, ImageSource
from trainables.lockstep import HostBatch

MOST = 0.1
AFTER_IMAGES = 200


def unreadable(batch: HostBatch) -> int:
    """How many of the batch's images could not be read (weight 0 and no padding)."""
    return 0 if batch["weight"].all() else int(np.count_nonzero((batch["weight"] == 0) & (batch["index"] >= 0)))


def few_unreadable(batches: Iterator[HostBatch], source: ImageSource) -> Iterator[HostBatch]:
    """The same batches, as long as few of their images cannot be read.

    Raises `DataError` once more than `MOST` of the images met could not, of `AFTER_IMAGES` or more, naming one.
    """
    met = skipped = 0
    for batch in batches:
        met += int(np.count_nonzero(batch["index"] >= 0))
        here = unreadable(batch)
        skipped += here
        if here and met >= AFTER_IMAGES and skipped > MOST * met:
            row = np.flatnonzero((batch["weight"] == 0) & (batch["index"] >= 0))[0]
            name = source.name(int(batch["index"][row]))
            raise DataError(
                f"{skipped} of {met} images cannot be read, one is {name!r}; data.bad_images 'skip' allows {MOST:.0%}: "
                "mend or remove the files"
            )
        yield batch
