"""Runs packed passes on a model: encodes a prefix, scores the spans of a forest or of a round of growth.

In: token ids, tree structure, a cached prefix. Out: a longer prefix, or label logits at every span.
What comes in is checked against the model first: structure, positions, vocabulary, whose cache it is.
Knows nothing of loading, saving or text.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from transformers import PreTrainedModel

from .attention import ATTENTION_NAME
from .attention_metadata import AttentionMetadata
from .cache import DualBufferCache
from .compatibility import PositionLimit, TokenIds, check_limits, check_structure, check_token_ids, input_device
from .cuda_graphs import SpanPassGraphs
from .forest import TokenForest, build_forest
from .growth import GrownRows
from .kept_rows import KeptRows
from .label_head import SpanClassifierOutput, SpanPass, label_output, last_hidden_states
from .layer_window import LayerWindow
from .transfers import copy_to_device
from .transformers_private import attention_name


class PackedModel(Protocol):
    """What a packed pass needs of a model.

    Attributes:
        backbone: the decoder, whose attention is ours.
        row_head: whether a few rows of the head give its own logits.
        layer_windows: per layer, what its queries see.
        position_limit: how many positions the decoder has; None for no limit.
        node_limit: nodes of the largest pass; None for no limit.
        graphs: CUDA graphs of span passes, after `compile_forest`.
    """

    backbone: PreTrainedModel
    row_head: bool
    layer_windows: Sequence[LayerWindow]
    position_limit: PositionLimit | None
    node_limit: int | None
    graphs: SpanPassGraphs | None

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens that the decoder can read."""


def extend_prefix(model: PackedModel, token_ids: TokenIds, cache: DualBufferCache | None) -> DualBufferCache:
    """Encodes tokens [P] after the prefix that `cache` holds; see `encode_prefix` of the model class."""
    prefix = torch.as_tensor(token_ids).cpu()
    if prefix.dim() > 1 and prefix.shape[0] > 1:
        raise ValueError(f"{prefix.shape[0]} prefixes were given: a cache holds one; encode each into its own.")
    if not prefix.numel():
        raise ValueError("the prefix is empty: give at least one token.")
    checked = check_token_ids(prefix.reshape(-1), model.vocabulary_size)
    forest = build_forest([prefix.reshape(-1).numpy()], first_position=cache.prefix_length if cache is not None else 0)
    cache = DualBufferCache() if cache is None else cache
    cache.check_fits(forest.num_nodes)
    if not cache.prefix_length:
        cache.claim(model.backbone)
    metadata = pass_metadata(model, forest.position_ids, forest.subtree_end, cache, write=True)
    checked, position_ids = copy_to_device([checked, metadata.position_ids], input_device(model.backbone))
    last_hidden_states(model.backbone, checked, position_ids, metadata)
    cache.commit(forest.num_nodes)
    return cache


def forest_logits(
    model: PackedModel, forest: TokenForest, symbol_token_ids: TokenIds, cache: DualBufferCache | None
) -> torch.Tensor:
    """Scores the spans of a forest, [S, L]; see `score_forest` of the model class."""
    if not forest.num_spans:
        raise ValueError("the forest has no spans to score.")
    symbols = check_token_ids(
        torch.as_tensor(symbol_token_ids).reshape(-1).cpu(), model.vocabulary_size, "label token ids"
    )
    if len(set(symbols.tolist())) != symbols.numel():
        raise ValueError(f"label token ids {symbols.tolist()} are not distinct: two labels would share a token.")
    metadata = pass_metadata(model, forest.position_ids, forest.subtree_end, cache)
    token_ids = check_token_ids(forest.token_ids.cpu(), model.vocabulary_size)
    return _logits(model, SpanPass(token_ids, metadata, forest.span_nodes.cpu(), symbols[None]))


def round_logits(
    model: PackedModel, rows: GrownRows, symbol_token_ids: TokenIds, cache: DualBufferCache, kept_rows: KeptRows
) -> torch.Tensor:
    """Scores the spans of a round, [K, L], and keeps its rows; see `score_rows` of the model class."""
    metadata = AttentionMetadata(
        position_ids=torch.from_numpy(rows.position_ids),
        subtree_end=torch.from_numpy(rows.subtree_end),
        prefix_length=cache.prefix_length,
        cache=cache,
        layer_windows=model.layer_windows,
        numbers=torch.from_numpy(rows.numbers),
        kept_rows=kept_rows,
    )
    check_limits(metadata, model.position_limit, model.node_limit)
    symbols = torch.as_tensor(symbol_token_ids).reshape(1, -1)
    token_ids = check_token_ids(torch.from_numpy(rows.token_ids), model.vocabulary_size)
    logits = _logits(model, SpanPass(token_ids, metadata, torch.from_numpy(rows.span_nodes), symbols))
    kept_rows.commit(metadata.own_rows())
    return logits


def pass_metadata(
    model: PackedModel,
    position_ids: torch.Tensor,
    subtree_end: torch.Tensor,
    cache: DualBufferCache | None,
    write: bool = False,
) -> AttentionMetadata:
    """Returns what a packed pass asks of attention, checked against the model and the cache.

    Args:
        model: runs the pass.
        position_ids: int64 [N].
        subtree_end: int32 [N], inclusive.
        cache: the prefix, or None.
        write: whether the pass extends the prefix.

    Raises:
        ValueError: structure, positions or cache do not fit this model.
    """
    metadata = AttentionMetadata(
        position_ids=position_ids.cpu(),
        subtree_end=subtree_end.cpu(),
        prefix_length=cache.prefix_length if cache is not None else 0,
        cache=cache,
        write=write,
        layer_windows=model.layer_windows,
    )
    attention = attention_name(model.backbone.config)
    if attention != ATTENTION_NAME:
        raise ValueError(
            f"the decoder's attention was set to {attention!r}, which knows no "
            f'forests: set it back with model.backbone.set_attn_implementation("{ATTENTION_NAME}").'
        )
    if cache is not None and not cache.belongs_to(model.backbone):
        raise ValueError("the cache holds a prefix of another model: encode the prefix with this model.")
    check_structure(metadata, model.position_limit, model.node_limit)
    return metadata


def run_span_pass(model: PackedModel, span_pass: SpanPass, **options: object) -> SpanClassifierOutput:
    """Computes the label logits [S, L] of a pass, by a CUDA graph where there is one for it.

    Args:
        model: runs the pass.
        span_pass: checked already, but for the number of its tokens and the range of its span nodes.
        **options: handed to the decoder.

    Raises:
        ValueError: more or fewer tokens than nodes, or spans that end outside the forest.
    """
    token_ids, span_nodes = span_pass.token_ids, span_pass.span_nodes
    if token_ids.numel() != span_pass.metadata.num_nodes:
        raise ValueError(f"{token_ids.numel()} tokens for {span_pass.metadata.num_nodes} nodes: one each is needed.")
    if span_nodes.device.type == "cpu" and span_nodes.numel():
        first, last = span_nodes.aminmax()
        if first < 0 or last >= token_ids.numel():
            raise ValueError(f"span_nodes must lie in 0 .. {token_ids.numel() - 1}.")
    if model.graphs is not None and model.row_head and not options and span_pass.span_prompts is None:
        replayed = model.graphs.logits(span_pass.metadata, token_ids, span_nodes, span_pass.symbols)
        if replayed is not None:
            return SpanClassifierOutput(logits=replayed)
    return label_output(model.backbone, model.row_head, span_pass, **options)


def _logits(model: PackedModel, span_pass: SpanPass) -> torch.Tensor:
    logits = run_span_pass(model, span_pass).logits
    assert logits is not None
    return logits
