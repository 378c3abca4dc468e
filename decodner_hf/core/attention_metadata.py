"""What a packed pass tells every attention call: which nodes see which, over which prefix, under which layer windows.

In: a forest's positions and subtree ends, and the cache. Out: `AttentionMetadata`, which also keeps what the attention
backends derive from it (query blocks, the kernel's block map, FlexAttention's mask), so that the layers of a kind
share it. Knows nothing of queries, keys, backends or models.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, TypeVarTuple, cast

import numpy as np
import torch

from .cache import DualBufferCache
from .kept_rows import KeptRows, RowStructure
from .layer_window import LayerWindow

Derived = TypeVar("Derived")
Arguments = TypeVarTuple("Arguments")


@dataclass
class AttentionMetadata:
    """What one packed pass asks of every attention call; made once per pass.

    Attributes:
        position_ids: int64 [N], on the CPU.
        subtree_end: int32 [N], number of each node's last descendant, inclusive, on the CPU.
        prefix_length: cached tokens (P) that every node sees.
        cache: where the prefix is read, and written if `write`.
        write: whether the nodes' keys and values are to be stored after the prefix.
        layer_windows: per layer its window by the config; used where the model does not hand it to attention.
        numbers: int32 [N], the nodes' numbers in depth-first pre-order of the forest that `subtree_end` speaks of, on
            the CPU; None where a node's number is its index.
        kept_rows: rows of earlier rounds, which the nodes see by their numbers, and to which this pass adds its own;
            they count as kept once the caller commits `own_rows`.
        calls: per layer, the attention calls made so far in this pass.
        derived: what `once` has computed, by function and arguments.
    """

    position_ids: torch.Tensor
    subtree_end: torch.Tensor
    prefix_length: int = 0
    cache: DualBufferCache | None = None
    write: bool = False
    layer_windows: Sequence[LayerWindow] = ()
    numbers: torch.Tensor | None = None
    kept_rows: KeptRows | None = None
    calls: dict[int, int] = field(default_factory=dict)
    derived: dict[tuple[object, ...], object] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Raises a ValueError where kept rows cannot be told from this pass's nodes."""
        if self.num_kept and self.numbers is None:
            raise ValueError(
                f"{self.num_kept} rows are kept: give the nodes' numbers in the forest that all rows belong to."
            )

    @property
    def num_nodes(self) -> int:
        """Number of nodes (N)."""
        return self.subtree_end.shape[0]

    @property
    def num_kept(self) -> int:
        """Number of rows kept from earlier rounds (K)."""
        return 0 if self.kept_rows is None else self.kept_rows.num_rows

    @property
    def is_ordered(self) -> bool:
        """Whether the nodes are all rows there are, each at the index that is its number."""
        return self.numbers is None

    def own_rows(self) -> RowStructure:
        """The structure of this pass's N nodes."""
        ends = self.subtree_end.numpy().astype(np.int32, copy=False)
        numbers = np.arange(len(ends), dtype=np.int32) if self.numbers is None else self.numbers.numpy()
        return RowStructure(numbers.astype(np.int32, copy=False), ends, self.position_ids.numpy().astype(np.int32))

    def key_rows(self) -> RowStructure:
        """The structure of all K + N rows that the nodes may see, kept ones first."""
        own = self.own_rows()
        return self.kept_rows.structure.followed_by(own) if self.kept_rows is not None and self.num_kept else own

    def next_call(self, layer_idx: int) -> int:
        """Counts an attention call of layer `layer_idx`; returns how many that layer made before it in this pass."""
        before = self.calls.get(layer_idx, 0)
        self.calls[layer_idx] = before + 1
        return before

    def once(self, derive: Callable[["AttentionMetadata", *Arguments], Derived], *arguments: *Arguments) -> Derived:
        """Returns `derive(self, *arguments)`, computed at the first call with these arguments, which are hashable."""
        key = (derive, *arguments)
        if key not in self.derived:
            self.derived[key] = derive(self, *arguments)
        return cast(Derived, self.derived[key])


@dataclass
class LayerInputs:
    """What one compiled layer reads of a pass, in place of its metadata.

    Attributes:
        prefix_key: [1, Hkv, P, Dk], a view of the cache.
        prefix_value: [1, Hkv, P, Dv], a view of the cache.
        tables: `BlockMap.tables`.
        limited: whether the layer has a window.
        config: the kernel's settings, the fields of its `KernelConfig`.
        kept: key [1, Hkv, K, Dk] and value [1, Hkv, K, Dv] of rows kept from earlier rounds, if there are any.
        computed: filled by the layer's attention call: its own key [1, Hkv, N, Dk] and value [1, Hkv, N, Dv].
    """

    prefix_key: torch.Tensor
    prefix_value: torch.Tensor
    tables: torch.Tensor
    limited: bool
    config: tuple[int, ...]
    kept: tuple[torch.Tensor, torch.Tensor] | None = None
    computed: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
