"""Runs a packed pass up to its label logits: next-token logits of a few vocabulary rows, and the loss on them.

In: a pass's tokens, its span ends and the token ids of label symbols; or label logits and each span's gold column.
Out: the native model's logits of those tokens; or a scalar loss.
A model whose head computes more than `row_logits` does is recognized by `row_head_equals_native` and keeps its own.
Knows nothing of text, or of how a pass is made.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import ModelOutput

from .attention_metadata import AttentionMetadata
from .compatibility import input_device, packed_arguments
from .transfers import copy_to_device

UNLABELLED = -100  # the gold column of a span that carries no loss
PROBE_TOKENS = 5
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # of the largest logit
TOLERANCE_HALF = 2e-2


@dataclass(frozen=True)
class SpanPass:
    """A packed pass over N nodes with S spans to score.

    Attributes:
        token_ids: int64 [N].
        metadata: structure and prefix.
        span_nodes: int64 [S], each span's last node.
        symbols: int64 [Q, L], token ids of Q prompts' label symbols, shorter rows padded with -1.
        span_prompts: int64 [S] or [1, S], each span's row of `symbols`; None for the first.
    """

    token_ids: torch.Tensor
    metadata: AttentionMetadata
    span_nodes: torch.Tensor
    symbols: torch.Tensor
    span_prompts: torch.Tensor | None = None


@dataclass
class SpanClassifierOutput(ModelOutput):
    """What a packed forward returns.

    Attributes:
        loss: cross-entropy over each prompt's label symbols, summed over spans and divided by the gold spans; None
            where no labels were given.
        logits: [S, L], the label symbols' next-token logits at each span; -inf where a prompt has fewer symbols.
            [1, S, L] where the spans were given as [1, S].
        hidden_states: with `output_hidden_states`, [1, N, hidden size] of the embedding and of each layer.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


def has_plain_head(backbone: PreTrainedModel) -> bool:
    """Returns whether the output embedding is an ordinary linear layer with its weights in memory.

    Quantized, adapted, offloaded and tensor-parallel heads are not.
    """
    head = backbone.get_output_embeddings()
    if type(head) is not nn.Linear or type(head.weight) is not nn.Parameter:
        return False
    return head.weight.is_floating_point() and head.weight.device.type != "meta"


def inner_decoder(backbone: PreTrainedModel) -> PreTrainedModel:
    """Returns the decoder without its head; for some models `get_decoder` does not (Llama 4, ModernBERT's decoder)."""
    for candidate in (backbone.get_decoder(), backbone.base_model, getattr(backbone, "model", None)):
        if isinstance(candidate, PreTrainedModel) and candidate is not backbone:
            return candidate
    raise ValueError(f"{type(backbone).__name__} has no decoder apart from its head; it cannot be used.")


def decoder_layers(backbone: PreTrainedModel) -> list[nn.Module]:
    """Returns the decoder's layers in order."""
    return [module for module in inner_decoder(backbone).modules() if isinstance(module, GradientCheckpointingLayer)]


def last_hidden_states(
    backbone: PreTrainedModel,
    token_ids: torch.Tensor,
    position_ids: torch.Tensor,
    metadata: AttentionMetadata,
    **options: object,
) -> torch.Tensor:
    """Runs a packed pass: tokens [N] and positions [N] on the model's device -> hidden states [N, hidden size]."""
    states: torch.Tensor = _decoder_pass(backbone, token_ids, position_ids, metadata, **options).last_hidden_state
    return states[0]


def _decoder_pass(
    backbone: PreTrainedModel,
    token_ids: torch.Tensor,
    position_ids: torch.Tensor,
    metadata: AttentionMetadata,
    **options: object,
) -> BaseModelOutput:
    """As `last_hidden_states`, with the decoder's whole output."""
    packed = packed_arguments(position_ids[None], metadata)
    output: BaseModelOutput = inner_decoder(backbone)(input_ids=token_ids[None], **packed, **options)
    return output


def row_logits(backbone: PreTrainedModel, hidden_states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Computes the logits of the tokens `rows` only, at the cost of those rows of the head.

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
    logits = F.linear(hidden_states.to(head.weight.device), head.weight[rows], bias)
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


def packed_options(kwargs: dict[str, Any], config: PreTrainedConfig) -> bool:
    """Takes what a packed pass answers itself out of the keyword arguments of a forward, which is changed.

    Args:
        kwargs: the rest is for the decoder.
        config: the outer model's; gives `return_dict` and `output_hidden_states` where the caller did not.

    Returns:
        Whether the output is to be a `ModelOutput`; else a tuple.

    Raises:
        ValueError: `output_attentions`, for there are none; inputs or a prefix that are not token ids.
    """
    kwargs.pop("use_cache", None)
    foreign = [name for name in ("inputs_embeds", "past_key_values", "cache") if kwargs.pop(name, None) is not None]
    if foreign:
        raise ValueError(
            f"a packed pass cannot take {foreign[0]}: it reads token ids, after the prefix in prefix_cache. PEFT's "
            "prompt-learning methods (prompt tuning, prefix tuning, P-tuning) give it: use LoRA or the like."
        )
    if kwargs.pop("output_attentions", None):
        raise ValueError(
            "a packed pass computes no attention matrix, so that output_attentions cannot be served: leave it out, or "
            "run the prompt by itself (without subtree_end) on a decoder with eager attention."
        )
    as_dict, states = kwargs.pop("return_dict", None), kwargs.pop("output_hidden_states", None)
    if config.output_hidden_states if states is None else states:
        kwargs["output_hidden_states"] = True
    return bool(config.return_dict if as_dict is None else as_dict)


def label_output(
    backbone: PreTrainedModel, row_head: bool, span_pass: SpanPass, **options: object
) -> SpanClassifierOutput:
    """Runs a packed pass and computes the label logits of its spans; without waiting for the GPU if all is on the CPU.

    Args:
        backbone: the decoder.
        row_head: whether `row_logits` equals its own head.
        span_pass: what to run.
        **options: handed to the decoder.

    Returns:
        Logits [S, L], -inf at the padding; the decoder's hidden states where they were asked for.
    """
    metadata, symbols, span_prompts = span_pass.metadata, span_pass.symbols, span_pass.span_prompts
    rows, columns = symbols.clamp(min=0).reshape(-1).unique(return_inverse=True)
    columns, absent = columns.reshape(symbols.shape), symbols < 0
    token_ids, position_ids, span_nodes, rows, columns, absent = copy_to_device(
        [span_pass.token_ids, metadata.position_ids, span_pass.span_nodes, rows, columns, absent],
        input_device(backbone),
    )
    if row_head and has_plain_head(backbone):
        output = _decoder_pass(backbone, token_ids, position_ids, metadata, **options)
        states = output.last_hidden_state[0]
        logits = row_logits(backbone, states[span_nodes.to(states.device)], rows)
    else:
        packed = packed_arguments(position_ids[None], metadata)
        output = backbone(input_ids=token_ids[None], logits_to_keep=span_nodes, **packed, **options)
        logits = output.logits[0][:, rows.to(output.logits.device)]
    columns, absent = columns.to(logits.device), absent.to(logits.device, torch.bool)
    if span_prompts is None:
        chosen = logits[:, columns[0]].masked_fill(absent[0], float("-inf"))
    else:
        prompts = span_prompts.reshape(-1).to(logits.device)
        chosen = logits.gather(1, columns[prompts]).masked_fill(absent[prompts], float("-inf"))
    return SpanClassifierOutput(logits=chosen, hidden_states=getattr(output, "hidden_states", None))


def span_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    num_gold: torch.Tensor | int | None = None,
    *,
    none_weight: float = 1.0,
) -> torch.Tensor:
    """Computes the cross-entropy summed over spans, divided by the number of gold spans (None spans outnumber them).

    Args:
        logits: [S, L] or [1, S, L], label logits, those of the none label first.
        labels: int64 [S] or [1, S], each span's gold column; 0 is None, -100 is left out.
        num_gold: what the sum is divided by; the number of labels above 0, at least 1, if None.
        none_weight: weight of the spans whose label is 0.

    Returns:
        A scalar, in float32.
    """
    logits, labels = logits.flatten(end_dim=-2), labels.reshape(-1)  # [S, L], [S]
    weights = torch.ones(logits.shape[1], device=logits.device)
    weights[0] = none_weight
    summed = F.cross_entropy(logits.float(), labels, weight=weights, ignore_index=UNLABELLED, reduction="sum")
    return summed / ((labels > 0).sum().clamp(min=1) if num_gold is None else num_gold)


def continuation_loss(logits: torch.Tensor, continues: torch.Tensor, num_gold: torch.Tensor | int) -> torch.Tensor:
    """Computes the binary cross-entropy of the continuation question, summed over spans, per gold span.

    The question has two symbols of its own and a loss of its own, so that it takes no probability from the entity
    types.

    Args:
        logits: [S, 2], of the answers "goes on" and "ends".
        continues: int [S]: 1 where a longer gold span of a type that is asked for begins with the span, 0 where none
            does, -100 where nobody knows.
        num_gold: number of gold spans.

    Returns:
        A scalar, in float32.
    """
    odds, known = logits[:, 0].float() - logits[:, 1].float(), continues != UNLABELLED
    each = F.binary_cross_entropy_with_logits(odds, (continues == 1).float(), reduction="none")
    return torch.where(known, each, 0.0).sum() / num_gold
