"""The label head: next-token logits for a few rows of the vocabulary only.

In: hidden states of span ends and the token ids of label symbols. Out: the native model's logits for those tokens.
A model whose head does more than what is written here is recognised by `row_head_equals_native` and keeps its own.
Knows nothing of forests, spans or labels.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention_metadata import AttentionMetadata
from .compatibility import input_device, packed_arguments

PROBE_TOKENS = 5
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # of the largest logit
TOLERANCE_HALF = 2e-2


def has_plain_head(backbone: PreTrainedModel) -> bool:
    """Whether the output embedding is an ordinary linear layer whose weights are at hand.

    Quantized, adapted, offloaded and tensor-parallel heads are not.
    """
    head = backbone.get_output_embeddings()
    if type(head) is not nn.Linear or type(head.weight) is not nn.Parameter:
        return False
    return head.weight.is_floating_point() and head.weight.device.type != "meta"


def inner_decoder(backbone: PreTrainedModel) -> PreTrainedModel:
    """The decoder without its head; `get_decoder` answers otherwise for some (Llama 4, ModernBERT's decoder)."""
    for candidate in (backbone.get_decoder(), backbone.base_model, getattr(backbone, "model", None)):
        if isinstance(candidate, PreTrainedModel) and candidate is not backbone:
            return candidate
    raise ValueError(f"{type(backbone).__name__} has no decoder apart from its head; it cannot be used.")


def decoder_layers(backbone: PreTrainedModel) -> list[nn.Module]:
    """The decoder's layers, in their order."""
    return [module for module in inner_decoder(backbone).modules() if isinstance(module, GradientCheckpointingLayer)]


def last_hidden_states(
    backbone: PreTrainedModel,
    token_ids: torch.Tensor,
    position_ids: torch.Tensor,
    plan: AttentionMetadata,
    **kwargs: Any,
) -> torch.Tensor:
    """Runs a packed pass: tokens [N] and positions [N] on the model's device -> hidden states [N, hidden size]."""
    packed = packed_arguments(position_ids[None], plan)
    states: torch.Tensor = inner_decoder(backbone)(input_ids=token_ids[None], **packed, **kwargs).last_hidden_state
    return states[0]


def row_logits(backbone: PreTrainedModel, hidden_states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Logits of the tokens `rows` alone, at the cost of their rows of the head.

    Args:
        backbone: a model for which `has_plain_head` holds.
        hidden_states: [S, hidden size], the decoder's last hidden states.
        rows: int64 [U], token ids.

    Returns:
        [S, U], with head bias, logit scale (Cohere, Granite) and final softcap (Gemma 2) as in the native forward.
    """
    head = backbone.get_output_embeddings()
    rows = rows.to(head.weight.device)
    bias = head.bias[rows] if head.bias is not None else None
    logits = nn.functional.linear(hidden_states.to(head.weight.device), head.weight[rows], bias)
    config = backbone.config.get_text_config(decoder=True)
    scale = getattr(config, "logit_scale", None)
    if scale is not None:
        logits = logits * scale
    divisor = getattr(config, "logits_scaling", None)
    if divisor is not None:
        logits = logits / divisor
    softcap = getattr(config, "final_logit_softcapping", None)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits


@torch.no_grad()
def row_head_equals_native(backbone: PreTrainedModel) -> bool:
    """Runs a few tokens and compares `row_logits` with the model's own logits."""
    if not has_plain_head(backbone):
        return False
    weight = backbone.get_input_embeddings().weight
    tokens = (torch.arange(PROBE_TOKENS) * 5 + 1) % weight.shape[0]
    tokens = tokens.to(input_device(backbone))[None]
    native = backbone(input_ids=tokens, use_cache=False).logits[0]
    hidden_states = inner_decoder(backbone)(input_ids=tokens, use_cache=False).last_hidden_state[0]
    if hidden_states.shape[-1] != backbone.get_output_embeddings().weight.shape[1]:
        return False
    rows = torch.arange(0, native.shape[1], max(1, native.shape[1] // 64))
    own = row_logits(backbone, hidden_states, rows)
    tolerance = TOLERANCE.get(native.dtype, TOLERANCE_HALF) * float(native.abs().max())
    return bool((own - native[:, rows.to(native.device)]).abs().max() <= tolerance)
