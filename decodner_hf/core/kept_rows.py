"""Rows of earlier rounds, to which the rows of a later round attend: their keys, values and place in the forest.

In: keys and values of each attention call, handed over by the attention function, and the rows' structure. Out: views
of the kept and the new rows together. One object serves the rounds of the documents that share passes.
Knows nothing of spans, models or how rows are chosen.
"""

from dataclasses import dataclass

import numpy as np
import torch

from .arrays import IndexArray, Int32Array
from .cache import KeyValueBuffer
from .transfers import copy_to_device

GROWTH = 1.1  # of the buffers: in a stream all passes are of like size


@dataclass(frozen=True)
class RowStructure:
    """Who sees whom among M rows, in any order: row i sees row j iff `numbers[j] <= numbers[i] <= subtree_end[j]`.

    Attributes:
        numbers: int32 [M], the rows' numbers in depth-first pre-order of a forest of which they may be a part.
        subtree_end: int32 [M], the number of each row's last descendant in that forest, inclusive.
        positions: int32 [M], prefix length + depth.
    """

    numbers: Int32Array
    subtree_end: Int32Array
    positions: Int32Array

    def followed_by(self, other: "RowStructure") -> "RowStructure":
        """These rows, then those."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return RowStructure(*(np.concatenate(pair) for pair in pairs))


class KeptRows:
    """Keys and values of K rows per layer and attention call, preallocated, and the rows' structure.

    Attributes:
        structure: of the K rows that are kept.
    """

    def __init__(self, capacity: int | None = None) -> None:
        """Keeps no row yet; takes memory for `capacity` rows at the first write, or grows as needed if None."""
        self.capacity = capacity
        nothing = np.empty(0, np.int32)
        self.structure = RowStructure(nothing, nothing, nothing)
        self._buffers: dict[tuple[int, int], KeyValueBuffer] = {}

    @property
    def num_rows(self) -> int:
        """Number of kept rows (K)."""
        return len(self.structure.numbers)

    def write(self, layer_idx: int, call: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Stores n new rows' key [1, Hkv, n, Dk] and value [1, Hkv, n, Dv] after the kept ones.

        They count as kept only after `commit`, so that a pass that fails half-way leaves the kept rows as they were.

        Raises:
            ValueError: more rows than the capacity.
        """
        rows = self.num_rows + key.shape[2]
        if self.capacity is not None and rows > self.capacity:
            raise ValueError(
                f"{self.num_rows} rows are kept and {key.shape[2]} more were given, but there is room for "
                f"{self.capacity}: make the capacity larger, or drop rows by `select`."
            )
        buffer = self._buffers.setdefault((layer_idx, call), KeyValueBuffer(self.capacity, GROWTH))
        buffer.write(self.num_rows, key, value)

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        parts = (part for buffer in self._buffers.values() for part in (buffer.keys, buffer.values))
        return sum(part.nbytes for part in parts if part is not None)

    def read(self, layer_idx: int, call: int, new_rows: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Key [1, Hkv, K + n, Dk] and value [1, Hkv, K + n, Dv] of the kept rows and n written ones, as views."""
        return self._buffers[layer_idx, call].read(self.num_rows + new_rows)

    def commit(self, rows: RowStructure) -> None:
        """Counts the rows last written, whose structure this is, as kept."""
        self.structure = self.structure.followed_by(rows)

    def select(self, rows: IndexArray) -> None:
        """Keeps the given ones of the K rows alone, in the given order, and forgets the others; the memory stays."""
        chosen = torch.from_numpy(np.ascontiguousarray(rows, np.int64))
        for buffer in self._buffers.values():
            keys, values = buffer.read(self.num_rows)
            (there,) = copy_to_device([chosen], keys.device)
            buffer.write(0, keys.index_select(2, there), values.index_select(2, there))
        self.structure = RowStructure(*(values[rows] for values in vars(self.structure).values()))
