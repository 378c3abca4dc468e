"""The numpy array types that all stages share, and the two helpers for runs of different lengths that lie end to end.

Knows nothing of what the arrays mean.
"""

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
