"""Builds the block map of the attention kernel: which tiles of keys each tile of query rows reads.

In: a pass's metadata, a layer's window, the kernel's tile sizes. Out: `BlockMap`, int32 tables.
A query tile holds `block_m` pairs of a node and one of the `group` query heads that share a key/value head, node after
node. Its tiles of forest keys are counted back from its own last node, or from the last row where nodes are numbered,
so that they need not start at multiples of their size. Knows nothing of the kernel, models or devices' properties.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from .arrays import IndexArray
from .attention_metadata import AttentionMetadata
from .kept_rows import RowStructure
from .layer_window import LayerWindow

COARSE_BLOCKS = 8  # key tiles that are looked at together first, where many may be read
TILE_COLUMNS = 8  # of a query tile in `BlockMap.tables`; a row is one aligned 32-byte read
LAST = np.iinfo(np.int32).max  # above every number and position


@dataclass(frozen=True)
class TileShape:
    """Sizes of the kernel's tiles, powers of two except for the group.

    Attributes:
        block_m: query rows of a tile, `group` rows a node.
        block_n: nodes of a partial key tile, at most `block_p`.
        block_p: keys of any other key tile, be they prefix entries or nodes.
        group: query heads that share a key/value head.
    """

    block_m: int
    block_n: int
    block_p: int
    group: int


@dataclass(frozen=True)
class BlockMap:
    """The key tiles of T query tiles over P prefix entries and M rows: K kept ones, then the N nodes.

    Attributes:
        tables: int32, flat, what the kernel reads, one part after the other:
            query tiles [T, 8], T = ceil(N * group / block_m), those with most work first. Columns: the tile's index;
            first partial tile among the key starts and the end of the partial tiles (exclusive); the same of its full
            tiles; the prefix entry at which its first prefix tile starts; the one from which on its prefix tiles need
            no window mask; P.
            rows [2, M]: number and subtree end; [4, M] where the window is limited: position, and the lowest position
            that the row sees, too.
            key starts: first row of each key tile, negative where a partial one begins before the first row.
        limited: whether the layer's window hides anything.
        prefix_length: P.
    """

    tables: torch.Tensor
    limited: bool
    prefix_length: int


def make_block_map(
    metadata: AttentionMetadata, window: LayerWindow, shape: TileShape, device: torch.device
) -> BlockMap:
    """Builds the block map and copies it to `device` without waiting for work in flight there."""
    tables = torch.from_numpy(np.concatenate(block_map_arrays(metadata, window, shape)))
    if device.type == "cuda":
        tables = tables.pin_memory()
    return BlockMap(tables.to(device, non_blocking=True), window.is_limited, metadata.prefix_length)


def count_query_tiles(nodes: int, group: int, block_m: int) -> int:
    """T: tiles of `block_m` rows that hold `group` rows a node."""
    return -(-nodes * group // block_m)


def most_table_entries(nodes: int, shape: TileShape) -> int:
    """Entries of the tables of that many nodes before the key starts, at most."""
    return count_query_tiles(nodes, shape.group, shape.block_m) * TILE_COLUMNS + 4 * nodes


def block_map_arrays(metadata: AttentionMetadata, window: LayerWindow, shape: TileShape) -> list[IndexArray]:
    """Builds the block map: the parts of `BlockMap.tables`, int32, flat, on the host; the key starts are the last two.

    A key tile is read iff one of its rows can be an ancestor of a query tile's node, or the node itself, by the least
    and the greatest of their numbers and subtree ends; it is full iff every node sees every one of its rows. What is
    read and not full is cut into partial tiles, of which those without an ancestor are left out again. Tiles that the
    window hides from all nodes are not read.
    """
    prefix_length, kept = metadata.prefix_length, metadata.num_kept
    keys = metadata.key_rows()
    count = count_query_tiles(metadata.num_nodes, shape.group, shape.block_m)
    bounds = np.arange(count + 1, dtype=np.int32) * shape.block_m
    first, last = bounds[:-1] // shape.group, np.minimum((bounds[1:] - 1) // shape.group, metadata.num_nodes - 1)
    low, high = (first, last) if metadata.is_ordered else _row_extremes(keys.numbers[kept:], first, last)
    tables: list[IndexArray] = [keys.numbers, keys.subtree_end]
    least: IndexArray = np.zeros_like(first)
    most = least
    if window.is_limited:
        lowest = window.lowest_visible(keys.positions)
        least, most = _row_extremes(lowest[kept:], first, last)
        tables += [keys.positions, lowest]
    tiles = _QueryTiles(low, high, least, most, metadata.is_ordered)
    deepest = keys.positions.max(initial=prefix_length) - prefix_length
    partial_of, partial_starts, full_of, full_starts = _key_tiles(keys, tiles, deepest, shape, window.is_limited)
    partials, fulls = (np.bincount(tile_of, minlength=count) for tile_of in (partial_of, full_of))
    prefix_tiles = prefix_length // shape.block_p
    prefix_first = np.minimum(least // shape.block_p, prefix_tiles)
    prefix_unmasked = np.minimum(-(-most // shape.block_p), prefix_tiles)
    work = partials * shape.block_n + (fulls + prefix_tiles - prefix_first) * shape.block_p
    order = np.argsort(-work, kind="stable")
    partial_end, full_end = np.cumsum(partials), len(partial_starts) + np.cumsum(fulls)
    table = np.empty((count, TILE_COLUMNS), np.int32)
    table[:, 0] = order
    table[:, 1], table[:, 2] = (partial_end - partials)[order], partial_end[order]
    table[:, 3], table[:, 4] = (full_end - fulls)[order], full_end[order]
    table[:, 5], table[:, 6] = prefix_first[order] * shape.block_p, prefix_unmasked[order] * shape.block_p
    table[:, 7] = prefix_length
    return [table.ravel(), *tables, partial_starts, full_starts]


def _row_extremes(values: IndexArray, first: IndexArray, last: IndexArray) -> tuple[IndexArray, IndexArray]:
    """[T], [T]: least and greatest of `values` over the nodes first .. last of each query tile.

    A node that two tiles share counts for both: tiles overlap by one node at most, so that it is enough to look at
    the nodes from each tile's first to the next one's, and at its last.
    """
    if not len(first):
        return values[:0], values[:0]
    least, most = np.minimum.reduceat(values, first), np.maximum.reduceat(values, first)
    return np.minimum(least, values[last]), np.maximum(most, values[last])


@dataclass(frozen=True)
class _QueryTiles:
    """Per query tile [T]: the range of its nodes' numbers, and the range of the lowest positions that they see.

    `ordered` says that numbers are indices of the key rows, so that no later row is an ancestor.
    """

    low: IndexArray
    high: IndexArray
    least: IndexArray
    most: IndexArray
    ordered: bool


def _key_tiles(
    keys: RowStructure, tiles: _QueryTiles, deepest: int, shape: TileShape, limited: bool
) -> tuple[IndexArray, IndexArray, IndexArray, IndexArray]:
    """The forest's key tiles: query tile and first row of each partial one, the same of each full one."""
    if deepest + 1 < shape.block_p:  # no node has as many ancestors as a full tile holds
        query_tile, starts = _blocks_read(keys, tiles, shape.block_n)
        full_of, full_starts = query_tile[:0], starts[:0]
    else:
        query_tile, starts = _blocks_read(keys, tiles, shape.block_p)
        at = starts + shape.block_p - 1
        highest = at if tiles.ordered else _extremes(keys.numbers, shape.block_p, np.maximum, LAST)[at]
        full = (starts >= 0) & (highest <= tiles.low[query_tile])
        full &= _extremes(keys.subtree_end, shape.block_p, np.minimum, -1)[at] >= tiles.high[query_tile]
        if limited:
            full &= _extremes(keys.positions, shape.block_p, np.minimum, LAST)[at] >= tiles.most[query_tile]
        full_of, full_starts = query_tile[full], starts[full]
        query_tile, starts = _cut(query_tile[~full], starts[~full], shape.block_p, shape.block_n)
        query_tile, starts = _with_ancestors(keys, tiles, query_tile, starts, shape.block_n)
    if limited:
        nearest = _extremes(keys.positions, shape.block_n, np.maximum, -1)[starts + shape.block_n - 1]
        inside = nearest >= tiles.least[query_tile]
        query_tile, starts = query_tile[inside], starts[inside]
    return query_tile, starts, full_of, full_starts


def _blocks_read(keys: RowStructure, tiles: _QueryTiles, block: int) -> tuple[IndexArray, IndexArray]:
    """Finds the tiles of `block` rows that hold an ancestor of a query tile's node, or the node itself.

    Returns:
        Query tile and first row of each.
    """
    if tiles.ordered:
        width, query_tile, starts = _reachable_blocks(keys.subtree_end, tiles, block)
    else:  # every query tile with every wide block of a grid that ends at the last row
        width = block * COARSE_BLOCKS
        rows, count = len(keys.numbers), len(tiles.low)
        grid = rows - width * np.arange(1, -(-rows // width) + 1, dtype=np.int32)
        query_tile, starts = np.repeat(np.arange(count, dtype=np.int32), len(grid)), np.tile(grid, count)
    query_tile, starts = _with_ancestors(keys, tiles, query_tile, starts, width)
    if width > block:
        query_tile, starts = _cut(query_tile, starts, width, block)
        query_tile, starts = _with_ancestors(keys, tiles, query_tile, starts, block)
    return query_tile, starts


def _reachable_blocks(ends: IndexArray, tiles: _QueryTiles, block: int) -> tuple[int, IndexArray, IndexArray]:
    """The blocks from the first node that a query tile can see to its own last node, and how wide they are."""
    earliest = np.searchsorted(np.maximum.accumulate(ends), tiles.low)
    reach = tiles.high + 1 - earliest
    width = block if reach.sum() <= block * COARSE_BLOCKS * len(reach) else block * COARSE_BLOCKS
    counts = -(-reach // width)
    query_tile: IndexArray = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    first_starts = (tiles.high + 1 - np.cumsum(counts) * width).astype(np.int32)
    starts: IndexArray = first_starts[query_tile] + width * np.arange(len(query_tile), dtype=np.int32)
    return width, query_tile, starts


def _cut(query_tile: IndexArray, starts: IndexArray, width: int, narrower: int) -> tuple[IndexArray, IndexArray]:
    """Cuts tiles of `width` nodes into tiles of `narrower` ones; those before the forest are left out."""
    offsets = np.arange(0, width, narrower, dtype=np.int32)
    query_tile, starts = np.repeat(query_tile, len(offsets)), (starts[:, None] + offsets).ravel()
    exists = starts + narrower > 0
    return query_tile[exists], starts[exists]


def _with_ancestors(
    keys: RowStructure, tiles: _QueryTiles, query_tile: IndexArray, starts: IndexArray, width: int
) -> tuple[IndexArray, IndexArray]:
    """Keeps the tiles of `width` rows of which a subtree can reach the query tile."""
    at = starts + width - 1
    reads = _extremes(keys.subtree_end, width, np.maximum, -1)[at] >= tiles.low[query_tile]
    if not tiles.ordered:
        reads &= _extremes(keys.numbers, width, np.minimum, LAST)[at] <= tiles.high[query_tile]
    return query_tile[reads], starts[reads]


def _extremes(values: IndexArray, width: int, extreme: Callable[..., IndexArray], outside: int) -> IndexArray:
    """[N + width - 1]: entry s + width - 1 is the extreme of values[s : s + width], `width` a power of two."""
    padded = np.full(len(values) + 2 * (width - 1), outside, values.dtype)
    padded[width - 1 : width - 1 + len(values)] = values
    step = 1
    while step < width:
        padded = extreme(padded[:-step], padded[step:])
        step *= 2
    return padded
