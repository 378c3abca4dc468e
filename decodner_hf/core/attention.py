"""The entry into transformers' attention registry: chooses a backend for each attention call of a packed pass.

In: one layer's query, key and value and, as the keyword `forest_metadata`, which nodes see which. Out: attended
values. Importing this file registers the attention function and its mask function under the name "decodner". Without
metadata the function is the model's ordinary attention. It shares no state with other modules, so that two copies of
this file (the package's, and one that came with a checkpoint) can serve each other's models.
Knows nothing of tokenizers, labels or heads on top of the decoder.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention_flex import flex_supports, forest_attention_flex
from .attention_metadata import AttentionMetadata, LayerInputs
from .attention_torch import forest_attention, masked_attention
from .layer_window import LayerWindow

try:
    from .attention_triton import forest_attention_triton, kernel_supports
except ImportError:  # no Triton: the torch blocks serve every device
    HAS_KERNEL = False
else:
    HAS_KERNEL = True

ATTENTION_NAME = "decodner"
NOT_PASSED = -1  # sliding_window's default: the model does not hand its window to attention functions


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
    forest_metadata: AttentionMetadata | None = None,
    forest_layer: LayerInputs | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """The function that transformers calls in every attention layer under the name "decodner".

    With `forest_metadata` it attends as a forest over the cached prefix, which it reads and writes itself; without it,
    it is the model's ordinary attention under `attention_mask`.

    Args:
        module: the attention module; its `layer_idx` tells the layer.
        query: [B, H, N, Dk], rotated; B is 1 with metadata.
        key: [B, Hkv, N, Dk], rotated.
        value: [B, Hkv, N, Dv].
        attention_mask: used without metadata only.
        scaling: factor of the logits, Dk ** -0.5 where None.
        dropout: used without metadata only.
        sliding_window: the layer's window where the model passes it.
        softcap: see `forest_attention`.
        s_aux: attention sinks [H], see `forest_attention`.
        forest_metadata: what the pass asks for.
        forest_layer: in a compiled layer, what it reads of the pass, in place of `forest_metadata`.
        **kwargs: what models hand to attention functions besides these.

    Returns:
        ([B, N, H, Dv] contiguous, None).

    Raises:
        ValueError: an attention bias or sparsity of the model's own, or a prefix that this model did not encode.
    """
    scaling = query.shape[3] ** -0.5 if scaling is None else scaling
    if forest_metadata is None and forest_layer is None:
        return _ordinary_attention(module, query, key, value, attention_mask, scaling, dropout, softcap, s_aux, kwargs)
    if kwargs.get("position_bias") is not None or kwargs.get("block_indices") is not None:
        raise ValueError("this model adds its own bias or sparsity to attention, which a token forest cannot follow.")
    if forest_metadata is None:
        assert forest_layer is not None
        return _compiled_attention(forest_layer, query, key, value, scaling, softcap, s_aux), None
    layer_idx = _layer_idx(module)
    call = forest_metadata.next_call(layer_idx)
    prefix = None
    if forest_metadata.cache is not None and forest_metadata.prefix_length:
        prefix = forest_metadata.cache.read_prefix(layer_idx, call)
        _check_prefix(prefix[0], key)
    if forest_metadata.cache is not None and forest_metadata.write:
        forest_metadata.cache.write_prefix(layer_idx, call, key, value)
    if forest_metadata.kept_rows is not None:
        forest_metadata.kept_rows.write(layer_idx, call, key, value)
        key, value = forest_metadata.kept_rows.read(layer_idx, call, key.shape[2])
    window = _layer_window(module, sliding_window, forest_metadata)
    attend = choose_backend(query, key, value, prefix, scaling, softcap, s_aux)
    return attend(query, key, value, prefix, forest_metadata, window, scaling, softcap, s_aux), None


def _compiled_attention(
    layer: LayerInputs,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """The kernel's operator by itself, which is all that a compiled layer may contain of attention."""
    layer.computed.append((key, value))
    if layer.kept is not None:
        key, value = torch.cat([layer.kept[0], key], dim=2), torch.cat([layer.kept[1], value], dim=2)
    attended: torch.Tensor = torch.ops.decodner.forest_attention(
        query, key, value, layer.prefix_key, layer.prefix_value, layer.tables, layer.limited,
        scaling, softcap, sinks, layer.config,
    )  # fmt: skip
    return attended


def _layer_idx(module: torch.nn.Module) -> int:
    index: Any = module.layer_idx
    return int(index)


def choose_backend(
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


def _layer_window(module: torch.nn.Module, sliding_window: int | None, metadata: AttentionMetadata) -> LayerWindow:
    """The layer's window: as passed, else as the module says, else by the config; chunks only by the config."""
    by_config = metadata.layer_windows[_layer_idx(module)] if metadata.layer_windows else LayerWindow()
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
    kwargs: dict[str, object],
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
