"""Several workers that read their own batches and must do the same at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from trainables.config import TrialRefused
from trainables.runtime import Runtime

HostBatch = dict[str, np.ndarray[Any, Any]]


def in_step(
    batches: Iterator[HostBatch], runtime: Runtime, *flags: Callable[[], bool]
) -> Iterator[tuple[HostBatch, tuple[bool, ...]]]:
    """This worker's batches, each with the answers to `flags`: true for all workers if true for any.

    Every worker must bring the same number of batches. Where one of them is refused (an image that cannot be read), all
    workers raise that `TrialRefused`, so that none waits for the others.
    """
    while True:
        batch: HostBatch = {}
        refusal: TrialRefused | None = None
        try:
            batch = next(batches)
        except StopIteration:
            return
        except TrialRefused as error:
            refusal = error
        refused, *answers = runtime.agree(refusal is not None, *(flag() for flag in flags))
        if refused:
            reasons = runtime.all_gather_text(str(refusal) if refusal is not None else "")
            raise refusal or TrialRefused(next(reason for reason in reasons if reason))
        yield batch, tuple(answers)
