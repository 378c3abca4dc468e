"""Plans which tiles of keys each tile of query rows of the attention kernel meets, once a pass and window.

In: a forest's positions and subtree ends, a layer's window, the kernel's tile sizes. Out: `KernelTiles`, int32 tables.
A query tile is `block_m` consecutive rows, a row being one node and one of the `group` query heads that share a
key/value head. Its tiles of forest keys are counted back from its own last node, so that they need not start at
multiples of their size. Knows nothing of the kernel, of models or of devices' properties.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

IntArray = NDArray[np.integer[Any]]
BoolArray = NDArray[np.bool_]
PAGE_TILES = 4  # key tiles that are looked at together first
TABLE_WIDTH = 8  # columns of `KernelTiles.table`; a row is one aligned 32-byte read
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
        table: int32 [T, 8], one row a query tile, the tiles with most work first. Columns: the query tile's index;
            first and one behind the last of its partial tiles in `key_starts`; the same of its full tiles; the prefix
            entry at which its first prefix tile starts; the one from which on its prefix tiles need no window mask; P.
        key_starts: int32 [K], first node of each key tile, negative where a partial one begins before the forest does.
        nodes: int32 [3, N]: subtree end, position, and the lowest position that the node sees under the window.
        windowed: whether there is a window.
        prefix_length: P.
        shape: the tile sizes that the map was made for.
    """

    table: torch.Tensor
    key_starts: torch.Tensor
    nodes: torch.Tensor
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
    """Makes the block map and moves it to `device`; arguments as `tile_arrays`, and where the kernel runs."""
    arrays = tile_arrays(position_ids, subtree_end, prefix_length, window, shape)
    on_device = _to_device(arrays, device)
    return KernelTiles(on_device[0], on_device[1], on_device[2], is_windowed(window), prefix_length, shape)


def is_windowed(window: Any) -> bool:
    """Whether the window hides anything."""
    return window.sliding is not None or window.chunk is not None


def tile_arrays(
    position_ids: torch.Tensor, subtree_end: torch.Tensor, prefix_length: int, window: Any, shape: TileShape
) -> tuple[IntArray, IntArray, IntArray]:
    """Makes the block map: `table`, `key_starts` and `nodes` of `KernelTiles`, on the host.

    A key tile is met iff one of its nodes is an ancestor of a row's node, or the node itself; it is full iff every row
    sees every one of its nodes. What is met and not full is cut into partial tiles, of which those without an ancestor
    are left out again. Tiles that a window hides from all rows are not met.

    Args:
        position_ids: int64 [N], on the CPU.
        subtree_end: int32 [N], inclusive, on the CPU.
        prefix_length: P; prefix entry p has position p.
        window: what has `sliding` and `chunk`, sizes in tokens or None.
        shape: the kernel's tile sizes.
    """
    positions = position_ids.numpy().astype(np.int32)
    ends = subtree_end.numpy().astype(np.int32)
    lowest = _lowest_visible(positions, window)
    tiles = -(-len(ends) * shape.group // shape.block_m)
    first = (np.arange(tiles) * shape.block_m // shape.group).astype(np.int32)
    last = np.minimum((np.arange(1, tiles + 1) * shape.block_m - 1) // shape.group, len(ends) - 1).astype(np.int32)
    unseen: IntArray = np.zeros(tiles, np.int32)
    least, most = _row_extremes(lowest, first, last) if is_windowed(window) else (unseen, unseen)
    rows = _QueryTiles(first, last, least, most)
    partial_of, partial_starts, full_of, full_starts = _key_tiles(positions, ends, rows, shape, is_windowed(window))
    partials, fulls = np.bincount(partial_of, minlength=tiles), np.bincount(full_of, minlength=tiles)
    prefix_tiles = prefix_length // shape.block_p
    prefix_first = np.clip(least // shape.block_p, 0, prefix_tiles)
    prefix_unmasked = np.clip(-(-most // shape.block_p), 0, prefix_tiles)
    work = partials * shape.block_n + (fulls + prefix_tiles - prefix_first) * shape.block_p
    behind_partial, behind_full = np.cumsum(partials), partials.sum() + np.cumsum(fulls)
    table = np.zeros((tiles, TABLE_WIDTH), np.int32)
    table[:, 0] = np.arange(tiles)
    table[:, 1], table[:, 2] = behind_partial - partials, behind_partial
    table[:, 3], table[:, 4] = behind_full - fulls, behind_full
    table[:, 5], table[:, 6] = prefix_first * shape.block_p, prefix_unmasked * shape.block_p
    table[:, 7] = prefix_length
    table = table[np.argsort(-work, kind="stable")]
    return table, np.concatenate([partial_starts, full_starts]), np.stack([ends, positions, lowest])


def _lowest_visible(positions: IntArray, window: Any) -> IntArray:
    """[N]: the lowest position that each node's window admits; what is visible there are its ancestors only."""
    lowest = np.zeros_like(positions)
    if window.sliding is not None:
        lowest = np.maximum(lowest, positions - window.sliding + 1)
    if window.chunk is not None:
        lowest = np.maximum(lowest, positions // window.chunk * window.chunk)
    return lowest


def _row_extremes(values: IntArray, first: IntArray, last: IntArray) -> tuple[IntArray, IntArray]:
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

    first: IntArray
    last: IntArray
    least: IntArray
    most: IntArray


def _key_tiles(
    positions: IntArray, ends: IntArray, rows: _QueryTiles, shape: TileShape, windowed: bool
) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """The forest's key tiles: query tile and first node of each partial one, the same of each full one."""
    query_tile, starts = _met_blocks(ends, rows, shape.block_p)
    full = (starts >= 0) & (starts + shape.block_p <= rows.first[query_tile])
    full &= _extremes(ends, shape.block_p, np.minimum, -1)[starts + shape.block_p - 1] >= rows.last[query_tile]
    if windowed:
        nearest = _extremes(positions, shape.block_p, np.minimum, LAST_POSITION)[starts + shape.block_p - 1]
        full &= nearest >= rows.most[query_tile]
    offsets = np.arange(shape.block_p - shape.block_n, -1, -shape.block_n, dtype=np.int32)
    partial_of = np.repeat(query_tile[~full], len(offsets))
    partial_starts = (starts[~full][:, None] + offsets).ravel()
    exists = partial_starts + shape.block_n > 0
    partial_of, partial_starts = partial_of[exists], partial_starts[exists]
    last_keys = partial_starts + shape.block_n - 1
    meets = _extremes(ends, shape.block_n, np.maximum, -1)[last_keys] >= rows.first[partial_of]
    if windowed:
        meets &= _extremes(positions, shape.block_n, np.maximum, -1)[last_keys] >= rows.least[partial_of]
    return partial_of[meets], partial_starts[meets], query_tile[full], starts[full]


def _met_blocks(ends: IntArray, rows: _QueryTiles, block: int) -> tuple[IntArray, IntArray]:
    """Query tile and first node of the tiles of `block` nodes that may be met; pages without any are skipped whole."""
    page = block * PAGE_TILES
    earliest = np.searchsorted(np.maximum.accumulate(ends), rows.first)  # the first node that a row can see
    counts = -(-(rows.last + 1 - earliest) // page)
    query_tile = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    before = (np.cumsum(counts) - counts).astype(np.int32)
    back = np.arange(len(query_tile), dtype=np.int32) - np.repeat(before, counts)
    starts = rows.last[query_tile] + 1 - (back + 1) * page
    met = _extremes(ends, page, np.maximum, -1)[starts + page - 1] >= rows.first[query_tile]
    query_tile = np.repeat(query_tile[met], PAGE_TILES)
    starts = (starts[met][:, None] + np.arange(page - block, -1, -block, dtype=np.int32)).ravel()
    exists = starts + block > 0
    return query_tile[exists], starts[exists]


def _extremes(values: IntArray, width: int, extreme: Callable[..., IntArray], outside: int) -> IntArray:
    """[N + width - 1]: entry s + width - 1 is the extreme of values[s : s + width], `width` a power of two."""
    padded = np.full(len(values) + 2 * (width - 1), outside, values.dtype)
    padded[width - 1 : width - 1 + len(values)] = values
    step = 1
    while step < width:
        padded = extreme(padded[:-step], padded[step:])
        step *= 2
    return padded


def _to_device(arrays: Iterable[IntArray], device: torch.device) -> list[torch.Tensor]:
    """The arrays as int32 on `device`, each in memory of its own, for which the host does not wait.

    A compiled graph would depend on a shared tensor's size and on where in it an array starts.
    """
    tensors = [torch.from_numpy(array) for array in arrays]
    if device.type == "cuda":
        tensors = [tensor.pin_memory() for tensor in tensors]
    return [tensor.to(device, non_blocking=True) for tensor in tensors]
