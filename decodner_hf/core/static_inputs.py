"""The memory that CUDA graphs of span passes read their inputs from, at addresses that never change.

In: a pass's plan, tokens and label rows. Out: the same on the device, padded to a graph's size, in fixed memory:
tokens, positions, block maps and a copy of the prefix. The host may be a few passes ahead of the device.
Knows nothing of graphs, labels or layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .arrays import IndexArray
from .attention_metadata import ForestPlan, LayerWindow, QueryBlock
from .block_map import KernelTiles, TileShape, is_windowed, most_table_entries, tile_arrays
from .cache import DualBufferCache

NODE_STEPS = ((512, 64), (4096, 128), (8192, 256), (2**31, 512))  # up to so many nodes, sizes are multiples of
PREFIX_SIZES = (512, 4096)
ROW_SIZES = (16, 64, 256)
MOST_KEY_TILES = 2**18
PASSES_IN_FLIGHT = 4  # how far the host may be ahead of the device


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


class FixedTensor:
    """A flat tensor on the device, written from the host again and again without waiting for work in flight."""

    def __init__(self, count: int, dtype: torch.dtype, device: torch.device) -> None:
        """Takes its memory: on the device, and on the host once for each pass that may be in flight."""
        pinned = device.type == "cuda"
        self.values = torch.zeros(count, dtype=dtype, device=device)
        self._staged = [torch.empty(count, dtype=dtype, pin_memory=pinned) for _ in range(PASSES_IN_FLIGHT)]
        self._arrays = [staged.numpy() for staged in self._staged]

    def write(self, parts: Sequence[IndexArray], slot: int) -> None:
        """Copies flat arrays to the front, one behind the other; of `slot`'s last use the device is done."""
        count = sum(map(len, parts))
        np.concatenate(parts, out=self._arrays[slot][:count])
        self.values[:count].copy_(self._staged[slot][:count], non_blocking=True)


class FixedInputs:
    """The memory that all graphs read their inputs from.

    Attributes:
        nodes: int64; where a graph's size is N nodes, N positions, N tokens, then the rows of the head.
        prefix: a copy of the pass's prefix.
        tables: by kind of layer, `KernelTiles.tables`.
    """

    def __init__(self, most_nodes: int, device: torch.device) -> None:
        """Takes memory for tokens, positions and rows; for the rest when a pass first asks for it."""
        self.most_nodes, self.device = most_nodes, device
        self.nodes = FixedTensor(2 * most_nodes + ROW_SIZES[-1], torch.int64, device)
        self.prefix = DualBufferCache(max_prefix_len=PREFIX_SIZES[-1])
        self.tables: dict[tuple[LayerWindow, TileShape], FixedTensor] = {}
        self._held: tuple[torch.Tensor, int, int] | None = None  # which prefix `prefix` is a copy of
        self._kinds: list[tuple[Any, ...]] = []  # of its keys and values, as all graphs read them
        self._events = [torch.cuda.Event() for _ in range(PASSES_IN_FLIGHT)] if device.type == "cuda" else []
        self._slot = 0

    def fill(self, plan: ForestPlan, token_ids: torch.Tensor, rows: torch.Tensor, size: PassSize) -> ForestPlan | None:
        """Writes a pass's inputs; returns its plan, padded, or None where they do not fit.

        A block map may be too large; a prefix may have other dtypes or sizes than the memory that graphs read it from.
        """
        nodes = token_ids.shape[0]
        position_ids = np.full(size.nodes, plan.prefix_length, np.int64)
        position_ids[:nodes] = plan.position_ids.numpy()
        subtree_end = np.arange(size.nodes, dtype=np.int32)
        subtree_end[:nodes] = plan.subtree_end.numpy()
        padded = ForestPlan(
            position_ids=torch.from_numpy(position_ids),
            subtree_end=torch.from_numpy(subtree_end),
            prefix_length=plan.prefix_length,
            layer_windows=plan.layer_windows,
        )
        self._begin()
        if not all(self.fill_tables(padded, *kind) for kind in self.tables):
            return None
        assert plan.cache is not None
        if not self._copy_prefix(plan.cache):
            return None
        unused_nodes, unused_rows = (
            np.zeros(count, np.int64) for count in (size.nodes - nodes, size.rows - rows.shape[0])
        )
        self.nodes.write([position_ids, token_ids.numpy(), unused_nodes, rows.numpy(), unused_rows], self._slot)
        return padded

    def fill_tables(self, plan: ForestPlan, window: LayerWindow, shape: TileShape) -> bool:
        """Writes the block map of a padded plan; False if it is too large."""
        if (window, shape) not in self.tables:
            most = most_table_entries(self.most_nodes, shape) + MOST_KEY_TILES
            self.tables[window, shape] = FixedTensor(most, torch.int32, self.device)
        positions, ends = plan.position_ids.numpy(), plan.subtree_end.numpy()
        arrays = tile_arrays(positions, ends, plan.prefix_length, window, shape)
        if len(arrays[-2]) + len(arrays[-1]) > MOST_KEY_TILES:
            return False
        self.tables[window, shape].write(arrays, self._slot)
        return True

    def end(self) -> None:
        """To be called once the pass is launched: from where the device is then, the inputs may be written again."""
        if self._events:
            self._events[self._slot].record()

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
        self._kinds = self._kinds or kinds
        if kinds != self._kinds:
            return False
        self._held = None  # until all of it is copied
        for (layer_idx, call), pair in zip(calls, pairs, strict=True):
            self.prefix.layer(layer_idx).prefix_buffer(call).write(0, *pair)
        self._held = keys, version, cache.prefix_length
        return True


@dataclass
class FixedPlan(ForestPlan):
    """The plan of a pass that runs on fixed inputs; `prefix_length` is the graph's size, not the prefix's length."""

    inputs: FixedInputs | None = None
    source: ForestPlan | None = None

    def kernel_tiles(self, window: LayerWindow, shape: TileShape, device: torch.device) -> KernelTiles:  # noqa: ARG002
        """The block map at its fixed address; written for the first layer of each kind that asks for it."""
        assert self.inputs is not None
        assert self.source is not None
        if (window, shape) not in self.inputs.tables and not self.inputs.fill_tables(self.source, window, shape):
            raise NotFixedError(f"more than {MOST_KEY_TILES} key tiles")
        return KernelTiles(
            tables=self.inputs.tables[window, shape].values,
            windowed=is_windowed(window),
            prefix_length=self.prefix_length,
            shape=shape,
        )

    def blocks(self, window: LayerWindow, device: torch.device) -> list[QueryBlock]:  # noqa: ARG002
        """Torch's own attention has its masks from the host."""
        raise NotFixedError("attention without the kernel")


class NotFixedError(Exception):
    """A pass that a graph cannot serve: its block map is too large, or its attention does not read one."""
