"""Attention of a token forest for training on a GPU: compiled FlexAttention, which has a gradient.

In: a layer's query, key and value, and which nodes see which. Out: attended values, as `forest_attention` gives them.
The map of blocks is made on the host from positions and subtree ends, in a few array operations; nothing is compiled
for it, and rows of one length share one compiled kernel.
Knows nothing of caches, models or labels.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from .arrays import BoolArray, Int32Array

BLOCK = 128  # nodes of a query block and of a key block
SMALLEST_HEAD = 16


def flex_supports(query: torch.Tensor, value: torch.Tensor, prefix: Any, sinks: torch.Tensor | None) -> bool:
    """Whether `forest_attention_flex` takes this layer: no cached prefix, no sinks, whole blocks, heads of 16 up."""
    whole = query.shape[0] == 1 and query.shape[2] % BLOCK == 0
    return prefix is None and sinks is None and whole and min(query.shape[3], value.shape[3]) >= SMALLEST_HEAD


def forest_attention_flex(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    prefix: tuple[torch.Tensor, torch.Tensor] | None,
    plan: Any,
    window: Any,
    scaling: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of N forest nodes over their own ancestors, differentiable and compiled.

    Args:
        query: [1, H, N, Dk], rotated; N a multiple of 128.
        key: [1, Hkv, N, Dk], rotated.
        value: [1, Hkv, N, Dv].
        prefix: must be None: in training the prompt is part of the forest.
        plan: a `ForestPlan`, of which `flex_mask` is used.
        window: the layer's window, by positions.
        scaling: factor of the logits.
        softcap: logits become softcap * tanh(logits / softcap).
        sinks: must be None.

    Returns:
        [1, N, H, Dv]; under autocast in its type.

    Raises:
        ValueError: what `flex_supports` refuses.
    """
    if not flex_supports(query, value, prefix, sinks):
        raise ValueError(
            f"FlexAttention takes one row of a multiple of {BLOCK} nodes, without prefix or sinks, with heads of at "
            f"least {SMALLEST_HEAD}, not {list(query.shape)}: use forest_attention."
        )
    dtype = _working_type(query, value)
    attended = _compiled()(
        query.to(dtype),
        key.to(dtype),
        value.to(dtype),
        score_mod=None if softcap is None else _capped(softcap),
        block_mask=plan.flex_mask(window, query.device),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return attended.transpose(1, 2).contiguous()


@cache
def _compiled() -> Callable[..., torch.Tensor]:
    """FlexAttention, compiled for one shape at a time; the code is kept for the life of the process."""
    return torch.compile(flex_attention, dynamic=False)


def _working_type(query: torch.Tensor, value: torch.Tensor) -> torch.dtype:
    """One type for all three: autocast leaves rotated queries in float32 beside half-precision values."""
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return value.dtype


def _capped(softcap: float) -> Callable[..., torch.Tensor]:
    def cap(score: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return softcap * torch.tanh(score / softcap)

    return cap


def flex_block_mask(
    position_ids: torch.Tensor, subtree_end: torch.Tensor, window: Any, device: torch.device
) -> BlockMask:
    """The mask of a forest: which blocks meet, which of them need no mask, and the rule for the others.

    Args:
        position_ids: int64 [N], on the CPU.
        subtree_end: int32 [N], inclusive, on the CPU; N a multiple of 128.
        window: what has `sliding` and `chunk`, sizes in tokens or None.
        device: where attention runs; everything travels there in one copy.
    """
    positions, ends = position_ids.numpy().astype(np.int32), subtree_end.numpy().astype(np.int32)
    partial, full = _meeting_blocks(positions, ends, window)
    lists = [array for dense in (partial, full, partial.T, full.T) for array in _ordered(dense)]
    arrays = [ends, positions, *lists]
    flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]))
    flat = flat.pin_memory() if device.type == "cuda" else flat
    pieces = flat.to(device, non_blocking=True).split([array.size for array in arrays])
    ends_on, positions_on = pieces[0], pieces[1]
    tables = [piece.view(1, 1, *array.shape) for piece, array in zip(pieces[2:], lists, strict=True)]
    sliding, chunk = window.sliding, window.chunk

    def visible(_batch: Any, _head: Any, row: torch.Tensor, node: torch.Tensor) -> torch.Tensor:
        seen: torch.Tensor = (node <= row) & (row <= ends_on[node])
        if sliding is not None:
            seen = seen & (positions_on[row] - positions_on[node] < sliding)
        if chunk is not None:
            seen = seen & (positions_on[row] // chunk == positions_on[node] // chunk)
        return seen

    return BlockMask(
        seq_lengths=(len(ends), len(ends)),
        kv_num_blocks=tables[0],
        kv_indices=tables[1],
        full_kv_num_blocks=tables[2],
        full_kv_indices=tables[3],
        q_num_blocks=tables[4],
        q_indices=tables[5],
        full_q_num_blocks=tables[6],
        full_q_indices=tables[7],
        BLOCK_SIZE=(BLOCK, BLOCK),
        mask_mod=visible,
    )


def _meeting_blocks(positions: Int32Array, ends: Int32Array, window: Any) -> tuple[BoolArray, BoolArray]:
    """[T, T] each: query block s meets key block t under a mask; and without one, all pairs being visible."""
    count = len(ends) // BLOCK
    index = np.arange(count)
    by_block = ends.reshape(count, BLOCK)
    first, last = index * BLOCK, index * BLOCK + BLOCK - 1
    meets = (index[None, :] <= index[:, None]) & (by_block.max(axis=1)[None, :] >= first[:, None])
    full = (index[None, :] < index[:, None]) & (by_block.min(axis=1)[None, :] >= last[:, None])
    if window.sliding is not None or window.chunk is not None:
        depth = positions.reshape(count, BLOCK)
        lowest, highest = depth.min(axis=1), depth.max(axis=1)
        if window.sliding is not None:
            meets &= lowest[:, None] - highest[None, :] < window.sliding
            full &= highest[:, None] - lowest[None, :] < window.sliding
        if window.chunk is not None:
            low, high = lowest // window.chunk, highest // window.chunk
            meets &= (low[:, None] <= high[None, :]) & (low[None, :] <= high[:, None])
            full &= (low[:, None] == high[None, :]) & (high[:, None] == low[None, :])
    return meets & ~full, full


def _ordered(dense: BoolArray) -> tuple[Int32Array, Int32Array]:
    """[T, T] -> [T] number of blocks in each row, [T, T] their columns in ascending order, then the others."""
    columns = np.argsort(~dense, axis=1, kind="stable")
    return dense.sum(axis=1).astype(np.int32), columns.astype(np.int32)
