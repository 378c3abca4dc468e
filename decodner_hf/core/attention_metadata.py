"""What a packed pass asks of its attention calls: which nodes see which, over which prefix, under which windows.

In: a forest's positions and subtree ends, and the cache. Out: `ForestPlan`, which makes what each way of attending
needs (query blocks, the kernel's block map, FlexAttention's mask) once a pass and kind of layer.
Knows nothing of queries, keys, models or labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .attention_flex import flex_block_mask
from .block_map import KernelTiles, TileShape, plan_tiles
from .cache import DualBufferCache

BLOCK_ROWS = {"cpu": 256, "cuda": 1024}  # query rows of one torch attention call


@dataclass(frozen=True)
class LayerWindow:
    """What a layer's positions may see of each other: `sliding` tokens back, or the same chunk of `chunk` tokens."""

    sliding: int | None = None
    chunk: int | None = None

    def visible(self, query_positions: torch.Tensor, key_positions: torch.Tensor) -> torch.Tensor:
        """[M], [K] -> bool [M, K]: the window's part of visibility; causality is not part of it."""
        query_positions, key_positions = query_positions[:, None], key_positions[None, :]
        seen = torch.ones(1, 1, dtype=torch.bool, device=query_positions.device)
        if self.sliding is not None:
            seen = seen & (query_positions - key_positions < self.sliding)
        if self.chunk is not None:
            seen = seen & (query_positions // self.chunk == key_positions // self.chunk)
        return seen.expand(query_positions.shape[0], key_positions.shape[1])

    def first_prefix_key(self, first_position: int) -> int:
        """Lowest position that a query at `first_position`, or behind it, can see."""
        lowest = 0
        if self.sliding is not None:
            lowest = max(lowest, first_position - self.sliding + 1)
        if self.chunk is not None:
            lowest = max(lowest, first_position // self.chunk * self.chunk)
        return lowest


@dataclass(frozen=True)
class QueryBlock:
    """The keys that query rows start .. end - 1 can see, on the device of the pass.

    Attributes:
        prefix_start: first prefix entry that any of the rows sees.
        key_nodes: int64 [K], forest nodes that any of the rows sees.
        mask: bool [end - start, P - prefix_start + K].
    """

    start: int
    end: int
    prefix_start: int
    key_nodes: torch.Tensor
    mask: torch.Tensor


@dataclass
class ForestPlan:
    """What one packed pass asks of every attention call; made once a pass.

    Attributes:
        position_ids: int64 [N], on the CPU.
        subtree_end: int32 [N], on the CPU.
        prefix_length: cached tokens (P) that every node sees.
        cache: where the prefix is read, and written if `write`.
        write: whether the nodes' keys and values are to be stored behind the prefix.
        layer_windows: per layer its window by the config; used where the model does not hand it to attention.
        calls: per layer, the attention calls made so far in this pass.
    """

    position_ids: torch.Tensor
    subtree_end: torch.Tensor
    prefix_length: int = 0
    cache: DualBufferCache | None = None
    write: bool = False
    layer_windows: Sequence[LayerWindow] = ()
    calls: dict[int, int] = field(default_factory=dict)
    _blocks: dict[tuple[LayerWindow, torch.device], list[QueryBlock]] = field(default_factory=dict)
    _kernel_tiles: dict[tuple[LayerWindow, TileShape, torch.device], KernelTiles] = field(default_factory=dict)
    _flex_masks: dict[tuple[LayerWindow, torch.device], Any] = field(default_factory=dict)

    def next_call(self, layer_idx: int) -> int:
        """Counts an attention call of layer `layer_idx`; returns how many that layer made before it in this pass."""
        before = self.calls.get(layer_idx, 0)
        self.calls[layer_idx] = before + 1
        return before

    def blocks(self, window: LayerWindow, device: torch.device) -> list[QueryBlock]:
        """The query blocks under `window`; made at the first layer of each kind, reused by the others."""
        if (window, device) not in self._blocks:
            rows = BLOCK_ROWS.get(device.type, BLOCK_ROWS["cpu"])
            starts = range(0, self.subtree_end.shape[0], rows)
            self._blocks[window, device] = [self._block(start, rows, window, device) for start in starts]
        return self._blocks[window, device]

    def kernel_tiles(self, window: LayerWindow, shape: TileShape, device: torch.device) -> KernelTiles:
        """The kernel's block map under `window`; made at the first layer of each kind, reused by the others."""
        if (window, shape, device) not in self._kernel_tiles:
            self._kernel_tiles[window, shape, device] = plan_tiles(
                self.position_ids, self.subtree_end, self.prefix_length, window, shape, device
            )
        return self._kernel_tiles[window, shape, device]

    def flex_mask(self, window: LayerWindow, device: torch.device) -> Any:
        """FlexAttention's block mask under `window`; made at the first layer of each kind, reused by the others."""
        if (window, device) not in self._flex_masks:
            self._flex_masks[window, device] = flex_block_mask(self.position_ids, self.subtree_end, window, device)
        return self._flex_masks[window, device]

    def _block(self, start: int, rows: int, window: LayerWindow, device: torch.device) -> QueryBlock:
        end = min(start + rows, self.subtree_end.shape[0])
        queries = torch.arange(start, end)
        positions = self.position_ids[start:end]
        key_nodes = torch.nonzero(self.subtree_end[:end] >= start).squeeze(1)
        seen = (key_nodes[None, :] <= queries[:, None]) & (self.subtree_end[key_nodes][None, :] >= queries[:, None])
        seen &= window.visible(positions, self.position_ids[key_nodes])
        useful = seen.any(dim=0)
        prefix_start = min(window.first_prefix_key(int(positions.min())), self.prefix_length)
        prefix_seen = window.visible(positions, torch.arange(prefix_start, self.prefix_length))
        mask = torch.cat([prefix_seen, seen[:, useful]], dim=1)
        return QueryBlock(start, end, prefix_start, key_nodes[useful].to(device), mask.to(device))
