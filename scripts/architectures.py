"""Makes tiny random models of any decoder architecture that transformers has, to try span scoring on.

In: a transformers `model_type`. Out: a configuration of two to four layers and a model with enlarged weights, so that
a token that sees too much or too little changes the logits visibly.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from decodner_hf import DualBufferCache, SpanPaths, UniversalDecoder, build_forest
from decodner_hf.core.compatibility import native_class

VOCABULARY = 64
INSTRUCTION_TOKENS = 9
DOCUMENT_TOKENS = (8, 3, 6)
WIDTH = 3  # longest span, in tokens
ALPHABET = 12  # different tokens in the documents, and label symbols
ENLARGED, ENLARGED_QUERIES, ENLARGED_HEAD = 4.0, 16.0, 4.0  # factors of random weights
QUERY_NAMES = ("q_proj", "k_proj", "qkv", "query_key_value", "c_attn", "Wqkv", "q_b_proj", "kv_a_proj", "kv_proj")
TINY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Beside these, where a configuration has the name: experts, latent attention, embeddings a layer.
TINY_PARTS: dict[str, int] = {
    **{"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "n_shared_experts": 1},
    **{
        "num_experts_per_tok": 2,
        "moe_topk": 2,
        "moe_k": 2,
        "moe_num_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
    },
    **{"moe_intermediate_size": 16, "expert_ffn_hidden_size": 16, "ffn_hidden_size": 48, "first_k_dense_replace": 1},
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12},
    **{"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8},
    **{"head_dim": 8, "global_head_dim": 8, "zero_expert_num": 0, "num_layers": 3},
}
TINY_VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
# What the usual names do not reach, by model type.
OVERRIDES: dict[str, dict[str, Any]] = {
    "gemma2": {"sliding_window": 7, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0},
    "gemma3_text": {"sliding_window": 7, "query_pre_attn_scalar": 8},
    "gpt_oss": {"sliding_window": 7},
    "gpt2": {"n_inner": 48},
    "mistral": {"sliding_window": 7},
    "phi3": {"sliding_window": 7},
    "qwen2_moe": {
        "shared_expert_intermediate_size": 16,
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 1,
    },
    "phimoe": {"sliding_window": 7},
    "qwen3_moe": {"head_dim": 8},
    "granite": {"logits_scaling": 4.0, "attention_multiplier": 0.3, "residual_multiplier": 0.5},
    "cohere": {"logit_scale": 4.0},
    "cohere2": {"logit_scale": 4.0, "sliding_window": 7},
    "llama4_text": {
        "attention_chunk_size": 8,
        "num_local_experts": 2,
        "intermediate_size_mlp": 48,
        "no_rope_layers": [1, 0, 1],
    },
    "exaone4": {"sliding_window": 7, "sliding_window_pattern": 2},
    "olmo3": {"sliding_window": 7},
    "jetmoe": {"initializer_range": 0.05},
    "modernbert-decoder": {"initializer_range": 0.06, "sliding_window": 7},
}


def tiny_config(model_type: str, **overrides: Any) -> PreTrainedConfig:
    """Returns a configuration of `model_type` small enough to run in milliseconds."""
    defaults = CONFIG_MAPPING[model_type]()
    known = set(vars(defaults)) | set(getattr(defaults, "attribute_map", {}))
    values = {name: value for name, value in (TINY | TINY_PARTS).items() if name in known}
    if "kv_lora_rank" in known:  # latent attention has no grouped heads, and a head size made of two
        values["num_key_value_heads"] = values["num_attention_heads"]
        values.pop("head_dim", None)
    if "text_config" in getattr(defaults, "sub_configs", {}):
        values["text_config"] = tiny_config(defaults.text_config.model_type).to_dict()
        if getattr(defaults, "vision_config", None) is not None:
            values["vision_config"] = {"model_type": defaults.vision_config.model_type, **TINY_VISION}
    values |= OVERRIDES.get(model_type, {}) | overrides
    if getattr(defaults, "layer_types", None) and "layer_types" not in values:
        kinds = list(dict.fromkeys(defaults.layer_types))
        values["layer_types"] = (kinds * 4)[: values.get("num_hidden_layers", 3)]
    config: PreTrainedConfig = AutoConfig.for_model(model_type, **values)
    return config


def tiny_model(config: PreTrainedConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Returns a random native causal LM with eager attention, its weights enlarged, those of queries and keys most."""
    config._experts_implementation = "eager"  # grouped matrix products have no float64
    torch.manual_seed(seed)
    model: PreTrainedModel = native_class(config)._from_config(config, attn_implementation="eager", dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(ENLARGED_QUERIES if any(part in name for part in QUERY_NAMES) else ENLARGED)
            elif "norm" not in name and "ln" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        head = model.get_output_embeddings()
        if head is not None and head.weight is not model.get_input_embeddings().weight:
            head.weight.mul_(ENLARGED_HEAD)
    return model.eval()


@dataclass(frozen=True)
class Exactness:
    """Largest absolute differences between packed scores and the native model run on every prompt alone.

    Attributes:
        cached: instruction, document and spans in passes of their own over the cache.
        one_pass: everything in one pass, several documents below one instruction, no cache.
        padded: the padded API, `forward_spans` and `score_spans`.
        native_head: as `cached`, with the native head in place of its rows.
        control: as `one_pass`, with a mask that lets every node see all nodes before it; a test that sees no
            difference here could not see a wrong mask.
        largest_logit: the largest absolute reference logit.
        row_head: whether the label head's rows served the first four, and not the native head.
    """

    cached: float
    one_pass: float
    padded: float
    native_head: float
    control: float
    largest_logit: float
    row_head: bool

    @property
    def worst(self) -> float:
        """The largest difference of those that should be none."""
        return max(self.cached, self.one_pass, self.padded, self.native_head)


def spans_of(document: Sequence[int], width: int = WIDTH) -> list[list[int]]:
    """Returns all spans of 1 to `width` tokens."""
    return [list(document[i : i + n]) for i in range(len(document)) for n in range(1, width + 1)][: -width + 1]


@torch.no_grad()
def score_alone(native: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Next-token logits [S, V] of each prompt by the native model; prompts of equal length share a batch."""
    rows: dict[int, torch.Tensor] = {}
    for length in {len(prompt) for prompt in prompts}:
        chosen = [index for index, prompt in enumerate(prompts) if len(prompt) == length]
        batch = torch.tensor([list(prompts[index]) for index in chosen])
        logits = native(input_ids=batch, use_cache=False).logits[:, -1]
        rows |= dict(zip(chosen, logits, strict=True))
    return torch.stack([rows[index] for index in range(len(prompts))])


@torch.no_grad()
def measure_exactness(native: PreTrainedModel, seed: int = 0) -> Exactness:
    """Scores the spans of a few documents in every way the model has, against `native` with its eager attention."""
    generator = torch.Generator().manual_seed(seed)
    instruction = torch.randint(3, VOCABULARY, (INSTRUCTION_TOKENS,), generator=generator).tolist()
    few = (3, 3 + ALPHABET)  # few different tokens, so that spans share beginnings
    documents = [torch.randint(*few, (length,), generator=generator).tolist() for length in DOCUMENT_TOKENS]
    spans = [spans_of(document) for document in documents]
    reference = score_alone(
        native,
        [instruction + doc + span for doc, found in zip(documents, spans, strict=True) for span in found],
    )
    model = UniversalDecoder.from_backbone(native)
    instruction_cache = model.encode_prefix(instruction)
    symbols = torch.arange(3, 3 + ALPHABET)
    expected = reference[:, symbols]

    def cached() -> torch.Tensor:
        rows = []
        for document, found in zip(documents, spans, strict=True):
            cache = model.encode_prefix(document, instruction_cache)
            for half in (found[: len(found) // 2], found[len(found) // 2 :]):
                forest = build_forest([[]], [SpanPaths.from_lists(half)], first_position=cache.prefix_length)
                rows.append(model.score_forest(forest, symbols, cache))
            cache.crop(-len(document))
        return torch.cat(rows)

    forest = build_forest(documents, [SpanPaths.from_lists(found) for found in spans]).below(instruction)
    wrong = replace(forest, subtree_end=torch.full_like(forest.subtree_end, forest.num_nodes - 1))
    with patch("decodner_hf.core.packed_pass.check_structure"):  # which refuses a mask that does not fit the positions
        control = model.score_forest(wrong, symbols)
    differences = {
        "cached": cached() - expected,
        "one_pass": model.score_forest(forest, symbols) - expected,
        "padded": _padded_logits(model, instruction + documents[0], spans[0]) - reference[: len(spans[0])],
        "control": control - expected,
    }
    row_head, model.row_head = model.row_head, False
    differences["native_head"] = cached() - expected
    worst = {name: float(difference.abs().max()) for name, difference in differences.items()}
    return Exactness(**worst, largest_logit=float(reference.abs().max()), row_head=row_head)


def _padded_logits(model: UniversalDecoder, prefix: Sequence[int], spans: Sequence[Sequence[int]]) -> torch.Tensor:
    """Logits [S, V] at each span's last token by the padded API, in mini-batches and, for one span, in one call."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(span) for span in spans], batch_first=True)
    cache = DualBufferCache(max_prefix_len=len(prefix), max_suffix_len=ids.shape[1])
    model.prefill_prefix(torch.tensor(prefix), cache)
    positions = (len(prefix) + torch.arange(ids.shape[1])).expand_as(ids)
    middle = len(spans) // 2
    halves = [model.forward_spans(ids[rows], positions[rows], cache) for rows in (slice(middle), slice(middle, None))]
    logits = torch.cat([*halves])
    logits[0] = model.score_spans(torch.tensor([prefix]), ids[:1])[0]
    ends = torch.tensor([len(span) - 1 for span in spans])
    return logits[torch.arange(len(spans)), ends]
