"""Attention of a token forest for training on a GPU: compiled FlexAttention, which has a gradient.

In: a layer's query, key and value, and the pass's metadata. Out: attended values, as `forest_attention` gives them.
The block mask is built on the host from positions and subtree ends, in a few array operations; nothing is compiled
for it, and rows of one length share one compiled kernel.
Knows nothing of caches, models or labels.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from .arrays import BoolArray, IndexArray, Int32Array
from .attention_metadata import AttentionMetadata
from .layer_window import LayerWindow

BLOCK = 128  # nodes of a query block and of a key block
SMALLEST_HEAD = 16


def flex_supports(
    query: torch.Tensor,
    value: torch.Tensor,
    prefix: tuple[torch.Tensor, torch.Tensor] | None,
    sinks: torch.Tensor | None,
) -> bool:
    """Whether `forest_attention_flex` takes this layer: no cached prefix, no sinks, whole blocks, heads of 16 up."""
    whole = query.shape[0] == 1 and query.shape[2] % BLOCK == 0
    return prefix is None and sinks is None and whole and min(query.shape[3], value.shape[3]) >= SMALLEST_HEAD


def forest_attention_flex(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    prefix: tuple[torch.Tensor, torch.Tensor] | None,
    metadata: AttentionMetadata,
    window: LayerWindow,
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
        metadata: which nodes see which; keeps the block mask for the next layer.
        window: the layer's window, by positions.
        scaling: factor of the logits.
        softcap: logits become softcap * tanh(logits / softcap).
        sinks: must be None.

    Returns:
        [1, N, H, Dv]; under autocast in its type.

    Raises:
        ValueError: what `flex_supports` refuses; metadata with numbers or kept rows.
    """
    if not flex_supports(query, value, prefix, sinks):
        raise ValueError(
            f"FlexAttention takes one row of a multiple of {BLOCK} nodes, without prefix or sinks, with heads of at "
            f"least {SMALLEST_HEAD}, not {list(query.shape)}: use forest_attention."
        )
    if not metadata.is_ordered or metadata.kept_rows is not None:
        raise ValueError("FlexAttention serves whole forests in one pass: rounds run without gradients.")
    dtype = _working_type(query, value)
    attended = _compiled()(
        query.to(dtype),
        key.to(dtype),
        value.to(dtype),
        score_mod=None if softcap is None else _softcap(softcap),
        block_mask=metadata.once(flex_block_mask, window, query.device),
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


def _softcap(softcap: float) -> Callable[..., torch.Tensor]:
    def cap(score: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return softcap * torch.tanh(score / softcap)

    return cap


def flex_block_mask(metadata: AttentionMetadata, window: LayerWindow, device: torch.device) -> BlockMask:
    """Builds the mask of a forest: which blocks are read, which of them need no mask, and the rule for the others.

    Args:
        metadata: of N nodes, N a multiple of 128.
        window: the layer's window.
        device: where attention runs; everything is copied there at once.
    """
    positions = metadata.position_ids.numpy().astype(np.int32)
    ends, lowest = metadata.subtree_end.numpy().astype(np.int32), window.lowest_visible(positions)
    partial, full = _blocks_read(positions, ends, lowest)
    lists = [array for dense in (partial, full, partial.T, full.T) for array in _ordered(dense)]
    arrays = [ends, positions, lowest, *lists]
    flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]))
    flat = flat.pin_memory() if device.type == "cuda" else flat
    pieces = flat.to(device, non_blocking=True).split([array.size for array in arrays])
    ends_there, positions_there, lowest_there = pieces[:3]
    tables = [piece.view(1, 1, *array.shape) for piece, array in zip(pieces[3:], lists, strict=True)]

    def visible(_batch: torch.Tensor, _head: torch.Tensor, row: torch.Tensor, node: torch.Tensor) -> torch.Tensor:
        seen: torch.Tensor = (node <= row) & (row <= ends_there[node])
        return seen

    def visible_in_window(
        batch: torch.Tensor, head: torch.Tensor, row: torch.Tensor, node: torch.Tensor
    ) -> torch.Tensor:
        inside: torch.Tensor = positions_there[node] >= lowest_there[row]
        return visible(batch, head, row, node) & inside

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
        mask_mod=visible_in_window if window.is_limited else visible,
    )


def _blocks_read(positions: IndexArray, ends: IndexArray, lowest: IndexArray) -> tuple[BoolArray, BoolArray]:
    """[T, T] each: query block s reads key block t under a mask; and without one, all pairs being visible."""
    index = np.arange(len(ends) // BLOCK)
    ends, positions, lowest = (values.reshape(-1, BLOCK) for values in (ends, positions, lowest))
    first, last = index * BLOCK, index * BLOCK + BLOCK - 1
    read = (index[None, :] <= index[:, None]) & (ends.max(axis=1)[None, :] >= first[:, None])
    read &= positions.max(axis=1)[None, :] >= lowest.min(axis=1)[:, None]
    full = (index[None, :] < index[:, None]) & (ends.min(axis=1)[None, :] >= last[:, None])
    full &= positions.min(axis=1)[None, :] >= lowest.max(axis=1)[:, None]
    return read & ~full, full


def _ordered(dense: BoolArray) -> tuple[Int32Array, Int32Array]:
    """[T, T] -> [T] number of blocks in each row, [T, T] their columns in ascending order, then the others."""
    columns = np.argsort(~dense, axis=1, kind="stable")
    return dense.sum(axis=1).astype(np.int32), columns.astype(np.int32)
