"""Plans which tiles of keys each tile of query rows of the attention kernel meets, once a pass and window.

In: a forest's positions and subtree ends, a layer's window, the kernel's tile sizes. Out: `KernelTiles`, int32 tables.
A query tile is `block_m` consecutive rows, a row being one node and one of the `group` query heads that share a
key/value head. Its tiles of forest keys are counted back from its own last node, so that they need not start at
multiples of their size. Knows nothing of the kernel, of models or of devices' properties.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .arrays import IndexArray

PAGE_TILES = 8  # key tiles that are looked at together first, where many may be met
TILE_COLUMNS = 8  # of a query tile in `KernelTiles.tables`; a row is one aligned 32-byte read
LAST_POSITION = np.iinfo(np.int32).max


@dataclass(frozen=True)
class TileShape:
    """Sizes of the kernel's tiles, powers of two but for the group.

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
class KernelTiles:
    """The block map of T query tiles over N nodes and P prefix entries.

    Attributes:
        tables: int32, flat, what the kernel reads; one behind the other:
            query tiles [T, 8], T = ceil(N * group / block_m), those with most work first. Columns: the tile's index;
            first and one behind the last of its partial tiles among the key starts; the same of its full tiles; the
            prefix entry at which its first prefix tile starts; the one from which on its prefix tiles need no window
            mask; P.
            nodes [1, N]: subtree end; [3, N] where there is a window: position, and the lowest position that the node
            sees, too.
            key starts [K]: first node of each key tile, negative where a partial one begins before the forest does.
        windowed: whether there is a window.
        prefix_length: P.
        shape: the tile sizes that the map was made for.
    """

    tables: torch.Tensor
    windowed: bool
    prefix_length: int
    shape: TileShape


def plan_tiles(
    position_ids: torch.Tensor,
    subtree_end: torch.Tensor,
    prefix_length: int,
    window: Any,
    shape: TileShape,
    device: torch.device,
) -> KernelTiles:
    """Makes the block map and moves it to `device`, without waiting; the other arguments as `tile_arrays`."""
    arrays = tile_arrays(position_ids.numpy(), subtree_end.numpy(), prefix_length, window, shape)
    tables = torch.from_numpy(np.concatenate(arrays))
    if device.type == "cuda":
        tables = tables.pin_memory()
    return KernelTiles(tables.to(device, non_blocking=True), is_windowed(window), prefix_length, shape)


def is_windowed(window: Any) -> bool:
    """Whether the window hides anything."""
    return window.sliding is not None or window.chunk is not None


def count_query_tiles(nodes: int, group: int, block_m: int) -> int:
    """T: tiles of `block_m` rows that hold `group` rows a node."""
    return -(-nodes * group // block_m)


def most_table_entries(nodes: int, shape: TileShape) -> int:
    """Entries of the tables of that many nodes before the key starts, at most."""
    return count_query_tiles(nodes, shape.group, shape.block_m) * TILE_COLUMNS + 3 * nodes


def tile_arrays(
    position_ids: IndexArray, subtree_end: IndexArray, prefix_length: int, window: Any, shape: TileShape
) -> list[IndexArray]:
    """Makes the block map: the parts of `KernelTiles.tables`, int32, flat, on the host.

    A key tile is met iff one of its nodes is an ancestor of a row's node, or the node itself; it is full iff every row
    sees every one of its nodes. What is met and not full is cut into partial tiles, of which those without an ancestor
    are left out again. Tiles that a window hides from all rows are not met.

    Args:
        position_ids: integers [N].
        subtree_end: integers [N], inclusive.
        prefix_length: P; prefix entry p has position p.
        window: what has `sliding` and `chunk`, sizes in tokens or None.
        shape: the kernel's tile sizes.
    """
    positions, ends = position_ids.astype(np.int32), subtree_end.astype(np.int32, copy=False)
    tiles = count_query_tiles(len(ends), shape.group, shape.block_m)
    bounds = np.arange(tiles + 1, dtype=np.int32) * shape.block_m
    first, last = bounds[:-1] // shape.group, np.minimum((bounds[1:] - 1) // shape.group, len(ends) - 1)
    nodes: list[IndexArray] = [ends]
    least: IndexArray = np.zeros_like(first)
    most = least
    if is_windowed(window):
        lowest = _lowest_visible(positions, window)
        least, most = _row_extremes(lowest, first, last)
        nodes = [ends, positions, lowest]
    rows = _QueryTiles(first, last, least, most)
    partial_of, partial_starts, full_of, full_starts = _key_tiles(
        positions, ends, rows, prefix_length, shape, is_windowed(window)
    )
    partials, fulls = (np.bincount(tile_of, minlength=tiles) for tile_of in (partial_of, full_of))
    prefix_tiles = prefix_length // shape.block_p
    prefix_first = np.minimum(least // shape.block_p, prefix_tiles)
    prefix_unmasked = np.minimum(-(-most // shape.block_p), prefix_tiles)
    work = partials * shape.block_n + (fulls + prefix_tiles - prefix_first) * shape.block_p
    order = np.argsort(-work, kind="stable")
    behind_partial, behind_full = np.cumsum(partials), len(partial_starts) + np.cumsum(fulls)
    table = np.empty((tiles, TILE_COLUMNS), np.int32)
    table[:, 0] = order
    table[:, 1], table[:, 2] = (behind_partial - partials)[order], behind_partial[order]
    table[:, 3], table[:, 4] = (behind_full - fulls)[order], behind_full[order]
    table[:, 5], table[:, 6] = prefix_first[order] * shape.block_p, prefix_unmasked[order] * shape.block_p
    table[:, 7] = prefix_length
    return [table.ravel(), *nodes, partial_starts, full_starts]


def _lowest_visible(positions: IndexArray, window: Any) -> IndexArray:
    """[N]: the lowest position that each node's window admits; what is visible there are its ancestors only."""
    lowest = np.zeros_like(positions)
    if window.sliding is not None:
        lowest = np.maximum(lowest, positions - window.sliding + 1)
    if window.chunk is not None:
        lowest = np.maximum(lowest, positions // window.chunk * window.chunk)
    return lowest


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
    """Per query tile [T]: its first and last node, and the least and greatest lowest visible position of its nodes."""

    first: IndexArray
    last: IndexArray
    least: IndexArray
    most: IndexArray


def _key_tiles(
    positions: IndexArray, ends: IndexArray, rows: _QueryTiles, prefix_length: int, shape: TileShape, windowed: bool
) -> tuple[IndexArray, IndexArray, IndexArray, IndexArray]:
    """The forest's key tiles: query tile and first node of each partial one, the same of each full one."""
    deepest = positions.max(initial=prefix_length) - prefix_length
    if deepest + 1 < shape.block_p:  # no node has as many ancestors as a full tile holds
        query_tile, starts = _met_blocks(ends, rows, shape.block_n)
        full_of, full_starts = query_tile[:0], starts[:0]
    else:
        query_tile, starts = _met_blocks(ends, rows, shape.block_p)
        full = (starts >= 0) & (starts + shape.block_p <= rows.first[query_tile])
        full &= _extremes(ends, shape.block_p, np.minimum, -1)[starts + shape.block_p - 1] >= rows.last[query_tile]
        if windowed:
            nearest = _extremes(positions, shape.block_p, np.minimum, LAST_POSITION)[starts + shape.block_p - 1]
            full &= nearest >= rows.most[query_tile]
        full_of, full_starts = query_tile[full], starts[full]
        query_tile, starts = _cut(query_tile[~full], starts[~full], shape.block_p, shape.block_n)
        query_tile, starts = _meeting(ends, rows, query_tile, starts, shape.block_n)
    if windowed:
        nearest = _extremes(positions, shape.block_n, np.maximum, -1)[starts + shape.block_n - 1]
        inside = nearest >= rows.least[query_tile]
        query_tile, starts = query_tile[inside], starts[inside]
    return query_tile, starts, full_of, full_starts


def _met_blocks(ends: IndexArray, rows: _QueryTiles, block: int) -> tuple[IndexArray, IndexArray]:
    """Query tile and first node of the tiles of `block` nodes that hold an ancestor of one of its nodes, or itself."""
    earliest = np.searchsorted(np.maximum.accumulate(ends), rows.first)  # the first node that a row can see
    reach = rows.last + 1 - earliest
    width = block if reach.sum() <= block * PAGE_TILES * len(reach) else block * PAGE_TILES
    counts = -(-reach // width)
    query_tile: IndexArray = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    first_starts = (rows.last + 1 - np.cumsum(counts) * width).astype(np.int32)
    starts: IndexArray = first_starts[query_tile] + width * np.arange(len(query_tile), dtype=np.int32)
    query_tile, starts = _meeting(ends, rows, query_tile, starts, width)
    if width > block:
        query_tile, starts = _cut(query_tile, starts, width, block)
        query_tile, starts = _meeting(ends, rows, query_tile, starts, block)
    return query_tile, starts


def _cut(query_tile: IndexArray, starts: IndexArray, width: int, narrower: int) -> tuple[IndexArray, IndexArray]:
    """Tiles of `width` nodes as tiles of `narrower` ones; those before the forest are left out."""
    offsets = np.arange(0, width, narrower, dtype=np.int32)
    query_tile, starts = np.repeat(query_tile, len(offsets)), (starts[:, None] + offsets).ravel()
    exists = starts + narrower > 0
    return query_tile[exists], starts[exists]


def _meeting(
    ends: IndexArray, rows: _QueryTiles, query_tile: IndexArray, starts: IndexArray, width: int
) -> tuple[IndexArray, IndexArray]:
    """Those tiles of `width` nodes, one of which at least is no earlier subtree's for the query tile."""
    meets = _extremes(ends, width, np.maximum, -1)[starts + width - 1] >= rows.first[query_tile]
    return query_tile[meets], starts[meets]


def _extremes(values: IndexArray, width: int, extreme: Callable[..., IndexArray], outside: int) -> IndexArray:
    """[N + width - 1]: entry s + width - 1 is the extreme of values[s : s + width], `width` a power of two."""
    padded = np.full(len(values) + 2 * (width - 1), outside, values.dtype)
    padded[width - 1 : width - 1 + len(values)] = values
    step = 1
    while step < width:
        padded = extreme(padded[:-step], padded[step:])
        step *= 2
    return padded
