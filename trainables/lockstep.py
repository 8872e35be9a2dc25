"""Several workers that read their own batches and must do the same at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from trainables.config import TrialRefused
from trainables.runtime import Runtime

HostBatch = dict[str, np.ndarray[Any, Any]]
T = TypeVar("T")


def agreed(call: Callable[[], T], runtime: Runtime) -> T:
    """`call()`, made by every worker; where one of them is refused, all raise that `TrialRefused`.

    `call` itself must not wait for other workers.
    """
    refusal: TrialRefused | None = None
    try:
        value = call()
    except TrialRefused as error:
        refusal = error
    (refused,) = runtime.workers.agree(refusal is not None)
    if refused:
        raise _refusal_of_all(refusal, runtime)
    return value


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
        refused, *answers = runtime.workers.agree(refusal is not None, *(flag() for flag in flags))
        if refused:
            raise _refusal_of_all(refusal, runtime)
        yield batch, tuple(answers)


def _refusal_of_all(own: TrialRefused | None, runtime: Runtime) -> TrialRefused:
    """The first refused worker's refusal, on all workers."""
    reasons = runtime.workers.gather_text(str(own) if own is not None else "")
    reason = next(reason for reason in reasons if reason)
    return own if own is not None and str(own) == reason else TrialRefused(reason)
