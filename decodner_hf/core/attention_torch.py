"""Attention of a token forest over a shared prefix in plain torch: block by block, and the dense reference.

In: a layer's query, key, value and prefix, and the pass's metadata. Out: attended values. The blocks serve the CPU and
whatever the other backends do not; the reference is documentation and the tests' oracle.
Knows nothing of models, caches or labels.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from .attention_metadata import AttentionMetadata
from .layer_window import LayerWindow

BLOCK_ROWS = {"cpu": 256, "cuda": 1024}  # query rows of one block


@dataclass(frozen=True)
class QueryBlock:
    """The keys that query rows start .. end - 1 can see, on the device of the pass.

    Attributes:
        prefix_start: first prefix entry that any of the rows sees.
        key_rows: int64 [R], kept rows and nodes that any of the rows sees.
        mask: bool [end - start, P - prefix_start + R].
    """

    start: int
    end: int
    prefix_start: int
    key_rows: torch.Tensor
    mask: torch.Tensor


def forest_attention(
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
    """Attention of N forest nodes over P prefix entries and their own ancestors, query block by query block.

    The ancestors are among M rows: K kept from earlier rounds, then the N nodes. Cost is near linear in documents: a
    block reads only the rows that one of its nodes can see.

    Args:
        query: [1, H, N, Dk], rotated.
        key: [1, Hkv, M, Dk], rotated.
        value: [1, Hkv, M, Dv].
        prefix: keys [1, Hkv, P, Dk] and values [1, Hkv, P, Dv], or None where P is 0.
        metadata: which nodes see which.
        window: the layer's window, by positions.
        scaling: factor of the logits.
        softcap: logits become softcap * tanh(logits / softcap).
        sinks: [H], one logit a head that takes part in the softmax and has no value.

    Returns:
        [1, N, H, Dv].
    """
    pieces = [query.new_empty(1, 0, query.shape[1], value.shape[3])]
    for block in metadata.once(query_blocks, window, query.device):
        keys, values = key.index_select(2, block.key_rows), value.index_select(2, block.key_rows)
        if prefix is not None:
            keys = torch.cat([prefix[0][:, :, block.prefix_start :], keys], dim=2)
            values = torch.cat([prefix[1][:, :, block.prefix_start :], values], dim=2)
        rows = query[:, :, block.start : block.end]
        attended = masked_attention(rows, keys, values, block.mask, scaling, softcap, sinks)
        pieces.append(attended.transpose(1, 2))
    return torch.cat(pieces, dim=1)


def query_blocks(metadata: AttentionMetadata, window: LayerWindow, device: torch.device) -> list[QueryBlock]:
    """Cuts the nodes into blocks of consecutive query rows and finds what each of them sees."""
    size, kept = BLOCK_ROWS.get(device.type, BLOCK_ROWS["cpu"]), metadata.num_kept
    rows, lowest = metadata.key_rows(), window.lowest_visible(metadata.own_rows().positions)
    blocks = []
    for start in range(0, metadata.num_nodes, size):
        end = min(start + size, metadata.num_nodes)
        numbers, block_lowest = rows.numbers[kept + start : kept + end], lowest[start:end, None]
        near = np.flatnonzero((rows.numbers <= numbers.max()) & (rows.subtree_end >= numbers.min()))
        seen = (rows.numbers[near] <= numbers[:, None]) & (numbers[:, None] <= rows.subtree_end[near])
        seen &= rows.positions[near] >= block_lowest
        useful = seen.any(axis=0)
        prefix_start = min(int(block_lowest.min()), metadata.prefix_length)
        prefix_seen = np.arange(prefix_start, metadata.prefix_length) >= block_lowest
        mask = torch.from_numpy(np.concatenate([prefix_seen, seen[:, useful]], axis=1))
        key_rows = torch.from_numpy(near[useful])
        blocks.append(QueryBlock(start, end, prefix_start, key_rows.to(device), mask.to(device)))
    return blocks


def masked_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(query key^T * scaling) value under a boolean mask, with grouped heads, softcap and sinks.

    Args:
        query: [B, H, M, Dk].
        key: [B, Hkv, K, Dk].
        value: [B, Hkv, K, Dv].
        mask: bool, broadcastable to [B, H, M, K], True where visible; None for all.
        scaling: factor of the logits.
        softcap: see `forest_attention`.
        sinks: see `forest_attention`.

    Returns:
        [B, H, M, Dv].
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if softcap is None and sinks is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    logits = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if mask is not None:
        logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)  # finite: rows of padding see nothing
    if sinks is not None:
        column = sinks.to(logits.dtype).view(1, -1, 1, 1).expand(logits.shape[0], -1, logits.shape[2], 1)
        logits = torch.cat([logits, column], dim=3)
    weights = logits.softmax(dim=3, dtype=torch.promote_types(logits.dtype, torch.float32)).to(query.dtype)
    return weights[..., : key.shape[2]] @ value


def forest_attention_reference(
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
    """`forest_attention` written out with one dense mask [N, P + M] and no other library call than matmul; the oracle.

    Node i sees every prefix entry, and row j iff numbers[j] <= numbers[i] <= subtree_end[j]; of both, what its window
    admits. Computes in at least float32. Arguments and result as `forest_attention`.
    """
    exact = torch.promote_types(query.dtype, torch.float32)
    own, rows = metadata.own_rows(), metadata.key_rows()
    ancestor = (rows.numbers <= own.numbers[:, None]) & (own.numbers[:, None] <= rows.subtree_end)
    whole_prefix = np.ones((len(own.numbers), metadata.prefix_length), bool)
    positions = np.concatenate([np.arange(metadata.prefix_length), rows.positions])
    inside = positions >= window.lowest_visible(own.positions)[:, None]
    mask = torch.from_numpy(np.concatenate([whole_prefix, ancestor], axis=1) & inside).to(query.device)
    if prefix is not None:
        key, value = torch.cat([prefix[0], key], dim=2), torch.cat([prefix[1], value], dim=2)
    groups = query.shape[1] // key.shape[1]
    keys = key.to(exact).repeat_interleave(groups, dim=1)
    values = value.to(exact).repeat_interleave(groups, dim=1)
    logits = query.to(exact) @ keys.transpose(2, 3) * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    highest = torch.where(mask, logits, float("-inf")).amax(dim=3, keepdim=True)
    if sinks is not None:
        highest = torch.maximum(highest, sinks.to(exact).view(1, -1, 1, 1))
    weights = torch.where(mask, (logits - highest).exp(), 0.0)
    total = weights.sum(dim=3, keepdim=True)
    if sinks is not None:
        total = total + (sinks.to(exact).view(1, -1, 1, 1) - highest).exp()
    return (weights / total @ values).transpose(1, 2).to(query.dtype)
