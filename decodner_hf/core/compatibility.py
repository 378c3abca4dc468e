"""Which decoders a token forest is exact for, and which passes fit one; everything else is refused with the reason.

In: a decoder's configuration, a loaded native causal LM, or the inputs of a pass. Out: nothing, or a ValueError.
The structural checks ask transformers; `probe` then runs a few tokens packed and one by one.
Knows nothing of labels, prompts or files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from .arrays import IntArray
from .attention import ATTENTION_NAME
from .attention_metadata import AttentionMetadata
from .cache import DualBufferCache
from .configuration import DecodNERConfig
from .layer_window import LayerWindow
from .transformers_private import attention_name, execution_device, takes_registered_attention

EXACT_LAYER_TYPES = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
PROBE_PREFIX = 6  # tokens
PROBE_SPANS = ((0, 1), (0, 1, 2), (0, 3))  # offsets after the prefix; they share their first token
PROBE_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3}  # of the norm of the logits
PROBE_TOLERANCE_HALF = 0.1


TokenIds: TypeAlias = torch.Tensor | IntArray | Sequence[int] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class PositionLimit:
    """Positions from `limit` on are refused, because of `reason`."""

    limit: int
    reason: str


def native_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Returns transformers' causal LM class for `config`.

    Raises:
        ValueError: not a causal decoder of transformers, or one that a token forest cannot run on; says why.
    """
    name = config.model_type
    if name == DecodNERConfig.model_type:
        raise ValueError(f"this is a {name!r} model already; a plain decoder is needed here.")
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{name!r} is an encoder-decoder model; spans are scored by decoder-only models.")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"{name!r} has no causal language model in this version of transformers; decoders such as Llama, Mistral "
            "or Qwen2 have one. Models whose code comes with the checkpoint cannot be used."
        )
    found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    native: type[PreTrainedModel] = found[0] if isinstance(found, tuple | list) else found
    if getattr(config, "is_decoder", None) is False and hasattr(config, "add_cross_attention"):
        raise ValueError(
            f"{name!r} is an encoder (is_decoder=False): its tokens see what follows them; use a causal decoder."
        )
    layer_types = set(getattr(config, "layer_types", None) or ()) | set(
        getattr(config, "layers_block_type", None) or ()
    )
    foreign = sorted(layer_types - EXACT_LAYER_TYPES - {"attention"})
    if foreign:
        raise ValueError(
            f"{name!r} has layers of type {foreign}, whose state follows the order of the packed tokens instead of "
            "the tree: only attention layers can be shared between spans."
        )
    if not takes_registered_attention(native):
        raise ValueError(
            f"{native.__name__} does not take its attention from transformers' registry (ALiBi and older models do "
            "not), so its attention cannot be replaced."
        )
    return native


def layer_windows(config: PreTrainedConfig) -> list[LayerWindow]:
    """Returns each layer's window as the configuration states it."""
    layer_types = getattr(config, "layer_types", None) or []
    windows = []
    for index, layer in enumerate(DynamicCache(config=config).layers):
        if index < len(layer_types) and layer_types[index] == "chunked_attention":
            windows.append(LayerWindow(chunk=config.attention_chunk_size))
        elif getattr(layer, "is_sliding", False):
            windows.append(LayerWindow(sliding=layer.sliding_window))
        else:
            windows.append(LayerWindow())
    return windows


def node_limit(config: PreTrainedConfig) -> int | None:
    """Returns the most nodes of a pass, or None; Llama 4 scales queries by their index in the row, not by position."""
    if getattr(config, "attn_temperature_tuning", False) and getattr(config, "floor_scale", None):
        return int(config.floor_scale) - 1
    return None


def position_limit(config: PreTrainedConfig) -> PositionLimit | None:
    """Returns the first position at which packed scores would differ from re-encoded ones, or the model ends."""
    limits = []
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None:
        limits.append(PositionLimit(int(longest), f"the model has max_position_embeddings={longest}"))
    for rope in _rope_parameters(config):
        if rope.get("rope_type") == "longrope":
            original = rope.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            if original is not None:
                reason = (
                    f"the model's longrope scaling changes all positions of a pass that reaches {original}, so that "
                    "spans on either side of it could not share a pass"
                )
                limits.append(PositionLimit(int(original), reason))
    nodes = node_limit(config)
    if nodes is not None:
        limits.append(PositionLimit(nodes, f"the model scales its queries by position from {nodes} on"))
    return min(limits, key=lambda limit: limit.limit) if limits else None


def _rope_parameters(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """Returns the rope settings of a config: one dict, or one per kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict) and "rope_type" in value]
    return [parameters, *nested] if parameters else []


def input_device(backbone: PreTrainedModel) -> torch.device:
    """Returns where token ids go: the embedding's device, or that of accelerate's hook for offloaded weights."""
    embedding = backbone.get_input_embeddings()
    execution = execution_device(embedding)
    if embedding.weight.device.type == "meta" and execution is not None:
        return execution
    found: torch.device = embedding.weight.device
    return found


@torch.no_grad()
def probe(backbone: PreTrainedModel) -> None:
    """Scores a few tokens packed as a forest and one by one, and compares.

    Raises:
        ValueError: a layer's attention did not pass through our function, the logits differ, or they say nothing of
            the architecture, because they are not finite or all zero.
    """
    config = backbone.config.get_text_config(decoder=True)
    device = input_device(backbone)
    name = type(backbone).__name__
    vocabulary = backbone.get_input_embeddings().weight.shape[0]
    tokens = (torch.arange(PROBE_PREFIX + 8) * 7 + 3) % vocabulary
    prefix, after = tokens[:PROBE_PREFIX], tokens[PROBE_PREFIX:]
    cache = DualBufferCache()
    windows = layer_windows(config)
    chain = AttentionMetadata(
        torch.arange(PROBE_PREFIX),
        torch.full((PROBE_PREFIX,), PROBE_PREFIX - 1, dtype=torch.int32),
        cache=cache,
        write=True,
        layer_windows=windows,
    )
    _packed_logits(backbone, prefix, chain, device)
    layers = int(config.num_hidden_layers)
    if set(chain.calls) != set(range(layers)):
        raise ValueError(
            f"{name}: attention was called with a forest in {len(chain.calls)} of {layers} layers. The model keeps "
            "some attention to itself, drops keyword arguments on the way (StableLM, Nemotron), or has layers "
            "without attention; such models cannot score a token forest."
        )
    cache.commit(PROBE_PREFIX)
    # nodes 0 - 1 - 2 and 3 below 0: the spans (0, 1), (0, 1, 2) and (0, 3)
    depth = torch.tensor([0, 1, 2, 1])
    forest = AttentionMetadata(
        PROBE_PREFIX + depth,
        torch.tensor([3, 2, 2, 3], dtype=torch.int32),
        prefix_length=PROBE_PREFIX,
        cache=cache,
        layer_windows=windows,
    )
    packed = _packed_logits(backbone, after[:4], forest, device)[[1, 2, 3]].double()
    for row, span in zip(packed, PROBE_SPANS, strict=True):
        alone = torch.cat([prefix, after[list(span)]])[None].to(device)
        native = backbone(input_ids=alone, use_cache=False).logits[0, -1].double().to(row.device)
        _check_logits(backbone, native)
        error = float((row - native).norm() / native.norm())
        tolerance = PROBE_TOLERANCE.get(backbone.dtype, PROBE_TOLERANCE_HALF)
        if not error <= tolerance:
            raise ValueError(
                f"{name}: logits of a packed forest differ from the model's own by {error:.2g} of their norm "
                f"(allowed {tolerance:.2g}), so this architecture does not follow the tree; it cannot be used."
            )


def _check_logits(backbone: PreTrainedModel, logits: torch.Tensor) -> None:
    """Refuses a model by its own logits [V], and names the weights that are to blame."""
    weights = [(name, weight) for name, weight in backbone.named_parameters() if weight.is_floating_point()]
    known = [(name, weight) for name, weight in weights if weight.device.type != "meta"]
    source = backbone.name_or_path or type(backbone).__name__
    if not bool(logits.isfinite().all()):
        broken = next((name for name, weight in known if not bool(weight.isfinite().all())), None)
        if broken is not None:
            raise ValueError(
                f"the weights of {source} are not finite: {broken} holds NaN or infinity. Download or save them again."
            )
        raise ValueError(
            f"{source} computes logits that are not finite in {backbone.dtype}, although its weights are: load it "
            "with dtype=torch.float32."
        )
    if not bool(logits.any()):
        zero = [name for name, weight in known if not bool(weight.any())]
        raise ValueError(
            f"{source} gives every token the logit 0: {len(zero)} of its {len(weights)} weights are zero"
            f"{f', for example {zero[0]}' if zero else ''}. Download or save them again."
        )


def _packed_logits(
    backbone: PreTrainedModel, token_ids: torch.Tensor, metadata: AttentionMetadata, device: torch.device
) -> torch.Tensor:
    logits: torch.Tensor = backbone(
        input_ids=token_ids[None].to(device), **packed_arguments(metadata.position_ids[None].to(device), metadata)
    ).logits
    return logits[0]


def packed_arguments(position_ids: torch.Tensor, metadata: AttentionMetadata) -> dict[str, Any]:
    """Returns the keyword arguments that turn a native forward into a packed pass.

    The 4D dummy mask keeps transformers from building one; the cache is read and written by the attention function,
    never by the model.
    """
    dummy = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=position_ids.device)
    return {"position_ids": position_ids, "attention_mask": dummy, "use_cache": False, "forest_metadata": metadata}


def check_backbone(backbone: PreTrainedModel) -> None:
    """Runs all checks on a loaded native model whose attention implementation is "decodner" already."""
    native_class(backbone.config)
    implementation = attention_name(backbone.config)
    if implementation != ATTENTION_NAME:
        raise ValueError(f"the backbone's attention implementation is {implementation!r}, not {ATTENTION_NAME!r}.")
    probe(backbone)


def check_structure(
    metadata: AttentionMetadata, positions_limit: PositionLimit | None, nodes_limit: int | None
) -> None:
    """Raises a ValueError unless positions and subtree ends describe a forest after the prefix, within the limits.

    Args:
        metadata: the pass.
        positions_limit: from `position_limit`.
        nodes_limit: from `node_limit`.
    """
    positions, ends = metadata.position_ids.long().numpy(), metadata.subtree_end.long().numpy()
    if positions.shape != ends.shape or not positions.size:
        raise ValueError(f"{positions.size} position ids for {ends.size} nodes: one each, and at least one.")
    nodes = np.arange(ends.size)
    if (ends < nodes).any() or ends.max() >= ends.size:
        raise ValueError("subtree_end must lie between the node itself and the last node, inclusive.")
    closed = np.cumsum(np.bincount(ends + 1, minlength=ends.size)[: ends.size])  # subtrees ended
    if not np.array_equal(positions, metadata.prefix_length + nodes - closed):
        raise ValueError(
            f"position ids run from {int(positions.min())} to {int(positions.max())}, but the prefix has "
            f"{metadata.prefix_length} tokens: a node's position is the prefix length plus its depth in the forest."
        )
    check_limits(metadata, positions_limit, nodes_limit)


def check_limits(metadata: AttentionMetadata, positions_limit: PositionLimit | None, nodes_limit: int | None) -> None:
    """Raises a ValueError where a pass has too many nodes or too high positions; arguments as `check_structure`."""
    nodes, last = metadata.num_nodes, int(metadata.position_ids.max())
    if nodes_limit is not None and nodes > nodes_limit:
        raise ValueError(
            f"{nodes} nodes were given, but this model scales its queries by their index in the row from "
            f"{nodes_limit} on: score at most {nodes_limit} nodes a pass."
        )
    if positions_limit is not None and last >= positions_limit.limit:
        raise ValueError(
            f"prefix and spans reach position {last}, but only positions below {positions_limit.limit} can be used: "
            f"{positions_limit.reason}. Shorten the text or score it in windows."
        )


def check_token_ids(token_ids: torch.Tensor, vocabulary: int, what: str = "token ids") -> torch.Tensor:
    """Returns `token_ids` unchanged; a ValueError unless they are integers in 0 .. vocabulary - 1, at least one.

    Args:
        token_ids: of any shape.
        vocabulary: number of tokens.
        what: what the message calls them.
    """
    if not token_ids.numel() or token_ids.is_floating_point():
        raise ValueError(f"{what} must be integers, at least one, not {token_ids.dtype} of {list(token_ids.shape)}.")
    lowest, highest = map(int, token_ids.aminmax())
    if lowest < 0 or highest >= vocabulary:
        raise ValueError(f"{what} run from {lowest} to {highest}, but the vocabulary is 0 .. {vocabulary - 1}.")
    return token_ids
