"""What a decoder layer's sliding window or attention chunk admits: the one rule, which every attention backend reads.

In: positions of queries. Out: the lowest position that each of them sees. Tree visibility comes on top: a node sees
only its ancestors and itself, whose positions are never higher than its own.
Knows nothing of forests, tensors' devices or models.
"""

from dataclasses import dataclass

import numpy as np

from .arrays import IndexArray


@dataclass(frozen=True)
class LayerWindow:
    """How far back a layer's queries see; by default as far as the text goes.

    Attributes:
        sliding: a query sees the last `sliding` positions, its own included; None for all.
        chunk: a query sees the positions of its own chunk of `chunk` positions, counted from 0; None for all.
    """

    sliding: int | None = None
    chunk: int | None = None

    @property
    def is_limited(self) -> bool:
        """Whether there is anything that a query cannot see."""
        return self.sliding is not None or self.chunk is not None

    def lowest_visible(self, positions: IndexArray) -> IndexArray:
        """Returns the lowest position, at least 0, that a query at each position sees: [N] -> [N] of the same type.

        Never falls as the positions rise, so that the lowest position of several queries gives their lowest bound.
        """
        lowest = np.zeros_like(positions)
        if self.sliding is not None:
            lowest = np.maximum(lowest, positions - self.sliding + 1)
        if self.chunk is not None:
            lowest = np.maximum(lowest, positions // self.chunk * self.chunk)
        return lowest
