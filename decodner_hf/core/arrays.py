"""The numpy array types that all stages share, and the two helpers for runs of different lengths that lie end to end.

Knows nothing of what the arrays mean.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
Int32Array = NDArray[np.int32]
IndexArray = NDArray[np.integer[Any]]  # any integer type
BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]  # scores, probabilities
FloatingArray = NDArray[np.floating[Any]]  # any floating type


def bounds_of(lengths: IntArray) -> IntArray:
    """Returns where each of n runs of these lengths starts, and the total: [n] -> [n + 1], as `cu_seqlens`."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def ramp_of(lengths: IntArray) -> IntArray:
    """Returns 0 .. length - 1 for each length, one run after the other."""
    return np.arange(int(lengths.sum())) - np.repeat(bounds_of(lengths)[:-1], lengths)


def packed_runs(sizes: Sequence[float] | IntArray, budget: int) -> Iterator[range]:
    """Cuts items of these sizes into consecutive runs of at most `budget` in all; a larger item is its own run."""
    start, filled = 0, 0.0
    for index, size in enumerate(sizes):
        if index > start and filled + size > budget:
            yield range(start, index)
            start, filled = index, 0.0
        filled += size
    if start < len(sizes):
        yield range(start, len(sizes))
