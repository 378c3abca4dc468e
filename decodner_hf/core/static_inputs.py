"""The memory that CUDA graphs of span passes read their inputs from, at addresses that never change.

In: a pass's metadata, tokens and label rows. Out: the same on the device, padded to a graph's size: tokens, positions,
block maps and a copy of the prefix. The host may be a few passes ahead of the device.
Knows nothing of graphs, labels or layers.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar, TypeVarTuple

import numpy as np
import torch

from .arrays import IndexArray
from .attention_metadata import AttentionMetadata
from .block_map import BlockMap, TileShape, block_map_arrays, make_block_map, most_table_entries
from .cache import DualBufferCache
from .layer_window import LayerWindow

NODE_STEPS = ((512, 64), (4096, 128), (8192, 256), (2**31, 512))  # up to so many nodes, sizes are multiples of
PREFIX_SIZES = (512, 4096)
ROW_SIZES = (16, 64, 256)
MOST_KEY_TILES = 2**18
PASSES_IN_FLIGHT = 4  # how far the host may be ahead of the device

BlockMapKind = tuple[LayerWindow, TileShape]
Derived = TypeVar("Derived")
Arguments = TypeVarTuple("Arguments")


@dataclass(frozen=True)
class PassSize:
    """What one graph serves: passes of at most so many nodes, prefix entries and rows of the head."""

    nodes: int
    prefix: int
    rows: int

    @classmethod
    def of(cls, nodes: int, prefix_length: int, rows: int) -> "PassSize | None":
        """The smallest size that holds such a pass; None where none does, or where there is no prefix."""
        prefixes = [size for size in PREFIX_SIZES if prefix_length <= size]
        row_sizes = [size for size in ROW_SIZES if rows <= size]
        if not prefixes or not row_sizes or not prefix_length:
            return None
        return cls(whole_nodes(nodes), prefixes[0], row_sizes[0])


def whole_nodes(nodes: int) -> int:
    """The smallest size of at least so many nodes."""
    step = next(step for most, step in NODE_STEPS if nodes <= most)
    return -(-nodes // step) * step


class StaticTensor:
    """A flat tensor on the device, written from the host again and again without waiting for work in flight."""

    def __init__(self, count: int, dtype: torch.dtype, device: torch.device) -> None:
        """Takes its memory: on the device, and on the host once for each pass that may be in flight."""
        pinned = device.type == "cuda"
        self.values = torch.zeros(count, dtype=dtype, device=device)
        self._staged = [torch.empty(count, dtype=dtype, pin_memory=pinned) for _ in range(PASSES_IN_FLIGHT)]
        self._arrays = [staged.numpy() for staged in self._staged]

    def write(self, parts: Sequence[IndexArray], slot: int) -> None:
        """Copies flat arrays to the front, end to end; the device must be done with the last use of `slot`."""
        count = sum(map(len, parts))
        np.concatenate(parts, out=self._arrays[slot][:count])
        self.values[:count].copy_(self._staged[slot][:count], non_blocking=True)


class StaticInputs:
    """The memory that all graphs read their inputs from.

    Attributes:
        nodes: int64; where a graph's size is N nodes, N positions, N tokens, then the rows of the head.
        prefix: a copy of the pass's prefix.
        tables: by kind of layer, `BlockMap.tables`.
    """

    def __init__(self, most_nodes: int, kinds: Collection[BlockMapKind], device: torch.device) -> None:
        """Takes memory for tokens, positions, rows and block maps; for the prefix at the first pass."""
        self.device = device
        self.nodes = StaticTensor(2 * most_nodes + ROW_SIZES[-1], torch.int64, device)
        self.prefix = DualBufferCache(max_prefix_len=PREFIX_SIZES[-1])
        self.tables = {
            (window, shape): StaticTensor(most_table_entries(most_nodes, shape) + MOST_KEY_TILES, torch.int32, device)
            for window, shape in kinds
        }
        self._held: tuple[torch.Tensor, int, int] | None = None  # which prefix `prefix` is a copy of
        self._kept: list[tuple[int, int, torch.dtype, torch.device]] = []  # kinds of keys and values in `prefix`
        self._events = [torch.cuda.Event() for _ in range(PASSES_IN_FLIGHT)] if device.type == "cuda" else []
        self._slot = 0

    def fill(self, metadata: AttentionMetadata, token_ids: torch.Tensor, rows: torch.Tensor, size: PassSize) -> bool:
        """Writes a pass's inputs, padded to `size` with nodes that see nothing but the prefix and themselves.

        Returns:
            False where they do not fit: the block map may be too large; the prefix may have other dtypes or sizes than
            the memory that graphs read it from.
        """
        nodes = token_ids.shape[0]
        position_ids = np.full(size.nodes, metadata.prefix_length, np.int64)
        position_ids[:nodes] = metadata.position_ids.numpy()
        subtree_end = np.arange(size.nodes, dtype=np.int32)
        subtree_end[:nodes] = metadata.subtree_end.numpy()
        padded = AttentionMetadata(
            torch.from_numpy(position_ids), torch.from_numpy(subtree_end), metadata.prefix_length
        )
        self._begin()
        for kind, table in self.tables.items():
            arrays = block_map_arrays(padded, *kind)
            if len(arrays[-2]) + len(arrays[-1]) > MOST_KEY_TILES:
                return False
            table.write(arrays, self._slot)
        assert metadata.cache is not None
        if not self._copy_prefix(metadata.cache):
            return False
        unused_nodes, unused_rows = (
            np.zeros(count, np.int64) for count in (size.nodes - nodes, size.rows - rows.shape[0])
        )
        self.nodes.write([position_ids, token_ids.numpy(), unused_nodes, rows.numpy(), unused_rows], self._slot)
        return True

    def end(self) -> None:
        """To be called once the pass is launched: from where the device is then, the inputs may be written again."""
        if self._events:
            self._events[self._slot].record()

    def metadata(self, size: PassSize, layer_windows: Sequence[LayerWindow]) -> "StaticMetadata":
        """What a pass of that size that reads these inputs tells its attention calls; made anew for each run."""
        self.prefix.prefix_length = size.prefix
        metadata = StaticMetadata(
            position_ids=torch.empty(size.nodes, dtype=torch.int64),
            subtree_end=torch.empty(size.nodes, dtype=torch.int32),
            prefix_length=size.prefix,
            cache=self.prefix,
            layer_windows=layer_windows,
        )
        for (window, shape), table in self.tables.items():
            block_map = BlockMap(table.values, window.is_limited, size.prefix)
            metadata.derived[make_block_map, window, shape, self.device] = block_map
        return metadata

    def _begin(self) -> None:
        before, self._slot = self._slot, (self._slot + 1) % PASSES_IN_FLIGHT
        if self._events:
            self._events[before].wait()  # it may have been launched on another stream
            self._events[self._slot].synchronize()

    def _copy_prefix(self, cache: DualBufferCache) -> bool:
        """Copies the prefix, unless it is there already; False for one of another kind than those before."""
        keys = cache.layer(0).prefix_buffer(0).keys
        assert keys is not None, "a prefix is counted, but no buffer holds it"
        version = -1 if keys.is_inference() else keys._version
        held = self._held
        if held is not None and version >= 0 and held[0] is keys and held[1:] == (version, cache.prefix_length):
            return True
        calls = [(layer_idx, call) for layer_idx, layer in enumerate(cache.layers) for call in range(len(layer.calls))]
        pairs = [cache.read_prefix(*call) for call in calls]
        kinds = [(kept.shape[1], kept.shape[3], kept.dtype, kept.device) for pair in pairs for kept in pair]
        self._kept = self._kept or kinds
        if kinds != self._kept:
            return False
        self._held = None  # until all of it is copied
        for (layer_idx, call), pair in zip(calls, pairs, strict=True):
            self.prefix.layer(layer_idx).prefix_buffer(call).write(0, *pair)
        self._held = keys, version, cache.prefix_length
        return True


class StaticMetadata(AttentionMetadata):
    """The metadata of a pass over static inputs; `prefix_length` is the graph's size, not the prefix's length."""

    def once(self, derive: Callable[[AttentionMetadata, *Arguments], Derived], *arguments: *Arguments) -> Derived:
        """What is at hand; nothing else can be derived, for the structure of later passes is not known."""
        if (derive, *arguments) not in self.derived:
            raise NotStaticError("an attention call that does not read the block maps of the compiled layers")
        return super().once(derive, *arguments)


class NotStaticError(Exception):
    """A pass that no graph can serve, because its attention reads more than static inputs."""
