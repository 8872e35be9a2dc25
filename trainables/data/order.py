"""Which example stands at a position of the training stream."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from trainables.data.augment import hashes
from trainables.data.grain_library import grain

# Grain's permutation works in a domain of at least 2^16 and walks it until it meets an index that exists: 5
# microseconds an index for a large data set, but 40 for the 1,437 of the digits and thousands for ten. Below this,
# epochs are sorted.
_DENSE = 2**16
MAX_EXAMPLES = 2**32 - 1  # Grain's permutation has 32-bit indices

Indices = npt.NDArray[np.int64]


def examples_at(positions: Indices, examples: int, seed: int) -> Indices:
    """The examples at these positions of the stream: int64, as many as positions.

    Positions e N to (e + 1) N - 1 are epoch e: a permutation of the N examples, drawn from (seed, e). From 2^16
    examples on it is Grain's (as in `MapDataset.shuffle`), which takes no memory; below, the order of N hashes.
    """
    epochs, places = np.divmod(positions, examples)
    if examples < _DENSE:
        found = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            found[here] = _epoch_order(examples, seed, epoch)[places[here]]
        return found
    shuffled = functools.partial(grain.experimental.index_shuffle, max_index=examples - 1, rounds=4)
    pairs = zip(places.tolist(), epochs.tolist(), strict=True)
    return np.array([shuffled(place, seed=(seed + epoch) % 2**32) for place, epoch in pairs], np.int64)


@functools.lru_cache(maxsize=8)
def _epoch_order(examples: int, seed: int, epoch: int) -> Indices:
    return np.argsort(hashes(seed, np.array([epoch]), examples)[0], kind="stable")
