"""Attention of a token forest over a shared prefix, and its entry into transformers' attention registry.

In: one layer's query, key and value and, as the keyword `forest_plan`, which nodes see which. Out: attended values.
Importing this file registers the attention function and its mask function under the name "decodner". Without a plan
the function is the model's ordinary attention. It shares no state with other modules, so that two copies of this file
(the package's, and one that came with a checkpoint) can serve each other's models.
Knows nothing of tokenizers, labels or heads on top of the decoder.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention_flex import flex_supports, forest_attention_flex
from .attention_metadata import ForestPlan, LayerWindow

try:
    from .attention_triton import forest_attention_triton, kernel_supports
except ImportError:  # no Triton: the torch blocks serve every device
    HAS_KERNEL = False
else:
    HAS_KERNEL = True

ATTENTION_NAME = "decodner"
NOT_PASSED = -1  # sliding_window's default: the model does not hand its window to attention functions


def forest_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    prefix: tuple[torch.Tensor, torch.Tensor] | None,
    plan: ForestPlan,
    window: LayerWindow,
    scaling: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of N forest nodes over P prefix entries and their own ancestors, query block by query block.

    Cost is near linear in documents: a block meets only the nodes that one of its rows can see.

    Args:
        query: [1, H, N, Dk], rotated.
        key: [1, Hkv, N, Dk], rotated.
        value: [1, Hkv, N, Dv].
        prefix: keys [1, Hkv, P, Dk] and values [1, Hkv, P, Dv], or None where P is 0.
        plan: which nodes see which.
        window: the layer's window, by positions.
        scaling: factor of the logits.
        softcap: logits become softcap * tanh(logits / softcap).
        sinks: [H], one logit a head that takes part in the softmax and has no value.

    Returns:
        [1, N, H, Dv].
    """
    pieces = [query.new_empty(1, 0, query.shape[1], value.shape[3])]
    for block in plan.blocks(window, query.device):
        keys, values = key.index_select(2, block.key_nodes), value.index_select(2, block.key_nodes)
        if prefix is not None:
            keys = torch.cat([prefix[0][:, :, block.prefix_start :], keys], dim=2)
            values = torch.cat([prefix[1][:, :, block.prefix_start :], values], dim=2)
        rows = query[:, :, block.start : block.end]
        attended = masked_attention(rows, keys, values, block.mask, scaling, softcap, sinks)
        pieces.append(attended.transpose(1, 2))
    return torch.cat(pieces, dim=1)


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
    plan: ForestPlan,
    window: LayerWindow,
    scaling: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """`forest_attention` written out with one dense mask [N, P + N] and no other library call than matmul; the oracle.

    Node i sees every prefix entry, and node j iff j <= i <= subtree_end[j]; of both, what its window admits.
    Computes in at least float32. Arguments and result as `forest_attention`.
    """
    exact = torch.promote_types(query.dtype, torch.float32)
    nodes = torch.arange(query.shape[2], device=query.device)
    subtree_end, positions = plan.subtree_end.to(query.device), plan.position_ids.to(query.device)
    ancestor = (nodes[None, :] <= nodes[:, None]) & (nodes[:, None] <= subtree_end[None, :])
    prefix_positions = torch.arange(plan.prefix_length, device=query.device)
    mask = torch.cat([torch.ones_like(ancestor[:, :1]).expand(-1, plan.prefix_length), ancestor], dim=1)
    mask = mask & window.visible(positions, torch.cat([prefix_positions, positions]))
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


def decodner_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = NOT_PASSED,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    forest_plan: ForestPlan | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The function that transformers calls in every attention layer under the name "decodner".

    With `forest_plan` it attends as a forest over the cached prefix, which it reads and writes itself; without one it
    is the model's ordinary attention under `attention_mask`.

    Args:
        module: the attention module; its `layer_idx` tells the layer.
        query: [B, H, N, Dk], rotated; B is 1 with a plan.
        key: [B, Hkv, N, Dk], rotated.
        value: [B, Hkv, N, Dv].
        attention_mask: used without a plan only.
        scaling: factor of the logits, Dk ** -0.5 where None.
        dropout: used without a plan only.
        sliding_window: the layer's window where the model passes it.
        softcap: see `forest_attention`.
        s_aux: attention sinks [H], see `forest_attention`.
        forest_plan: what the pass asks for.
        **kwargs: what models hand to attention functions beside these.

    Returns:
        ([B, N, H, Dv] contiguous, None).
    """
    scaling = query.shape[3] ** -0.5 if scaling is None else scaling
    if forest_plan is None:
        return _ordinary_attention(module, query, key, value, attention_mask, scaling, dropout, softcap, s_aux, kwargs)
    if kwargs.get("position_bias") is not None or kwargs.get("block_indices") is not None:
        raise ValueError("this model adds its own bias or sparsity to attention, which a token forest cannot follow.")
    if hasattr(forest_plan, "attend"):  # a compiled layer's share of a plan
        return forest_plan.attend(query, key, value, scaling, softcap, s_aux), None
    layer_idx = _layer_idx(module)
    call = forest_plan.next_call(layer_idx)
    prefix = None
    if forest_plan.cache is not None and forest_plan.prefix_length:
        prefix = forest_plan.cache.read_prefix(layer_idx, call)
        _check_prefix(prefix[0], key)
    if forest_plan.cache is not None and forest_plan.write:
        forest_plan.cache.write_prefix(layer_idx, call, key, value)
    window = _layer_window(module, sliding_window, forest_plan)
    attend = _choose(query, key, value, prefix, scaling, softcap, s_aux)
    return attend(query, key, value, prefix, forest_plan, window, scaling, softcap, s_aux), None


def _layer_idx(module: torch.nn.Module) -> int:
    index: Any = module.layer_idx
    return int(index)


def _choose(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    prefix: tuple[torch.Tensor, torch.Tensor] | None,
    scaling: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> Callable[..., torch.Tensor]:
    """On a GPU the fused kernel, or FlexAttention where a gradient is wanted; else the torch blocks."""
    if query.is_cuda:
        trains = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
        if trains and flex_supports(query, value, prefix, sinks):
            return forest_attention_flex
        if HAS_KERNEL and not trains and kernel_supports(query, key, value, scaling, softcap):
            return forest_attention_triton
    return forest_attention


def _layer_window(module: torch.nn.Module, sliding_window: int | None, plan: ForestPlan) -> LayerWindow:
    """The layer's window: as passed, else as the module says, else by the config; chunks only by the config."""
    by_config = plan.layer_windows[_layer_idx(module)] if plan.layer_windows else LayerWindow()
    if by_config.chunk is not None:
        return by_config
    if sliding_window == NOT_PASSED:
        sliding_window = getattr(module, "sliding_window", by_config.sliding)
    return LayerWindow(sliding=sliding_window)


def _check_prefix(prefix_key: torch.Tensor, key: torch.Tensor) -> None:
    held = (prefix_key.shape[1], prefix_key.shape[3], prefix_key.dtype, prefix_key.device)
    given = (key.shape[1], key.shape[3], key.dtype, key.device)
    if held != given:
        raise ValueError(
            f"the cached prefix has (key/value heads, head size, dtype, device) = {held}, but the model now computes "
            f"{given}: encode the prefix again with this model."
        )


def _ordinary_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
    kwargs: dict[str, Any],
) -> tuple[torch.Tensor, None]:
    """The sdpa attention of transformers; models with softcap or sinks, which it cannot do, take the plain formula."""
    if softcap is None and sinks is None:
        sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
        attended: tuple[torch.Tensor, None] = sdpa(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return attended
    if attention_mask is None:  # transformers leaves a purely causal mask out
        rows, columns = query.shape[2], key.shape[2]
        causal = torch.ones(rows, columns, dtype=torch.bool, device=query.device).tril(columns - rows)
        attention_mask = causal[None, None]
    elif attention_mask.dtype != torch.bool:
        raise ValueError(f"a boolean attention mask is needed here, not {attention_mask.dtype}.")
    attended_rows = masked_attention(query, key, value, attention_mask, scaling, softcap, sinks)
    return attended_rows.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION_NAME, decodner_attention)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
