"""Makes tiny random models of any decoder architecture that transformers has, to try span scoring on.

In: a transformers `model_type`. Out: a configuration of two to four layers and a model with enlarged weights, so that
a token that sees too much or too little changes the logits visibly.
"""

from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from decodner_hf.guard_decodner import native_class

VOCABULARY = 64
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
# What the usual names do not reach, by model type.
OVERRIDES: dict[str, dict[str, Any]] = {
    "gemma2": {"head_dim": 8, "sliding_window": 7, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0},
    "gemma3_text": {"head_dim": 8, "sliding_window": 7, "query_pre_attn_scalar": 8},
    "gpt_oss": {"head_dim": 8, "sliding_window": 7, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256, "n_inner": 48},
    "mistral": {"sliding_window": 7},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "phi3": {"sliding_window": 7},
    "qwen2_moe": {
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 1,
    },
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 7},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
    "diffllama": {"num_key_value_heads": 2},
    "granite": {"logits_scaling": 4.0, "attention_multiplier": 0.3, "residual_multiplier": 0.5},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25, "sliding_window": 7, "head_dim": 8},
    "llama4_text": {
        "attention_chunk_size": 8,
        "num_local_experts": 2,
        "intermediate_size_mlp": 48,
        "head_dim": 8,
        "interleave_moe_layer_step": 1,
    },
    "exaone4": {"sliding_window": 7, "sliding_window_pattern": 2},
    "olmo3": {"sliding_window": 7},
    "jetmoe": {"kv_channels": 8, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 12,
        "first_k_dense_replace": 1,
    },
}


def tiny_config(model_type: str, **overrides: Any) -> PreTrainedConfig:
    """A configuration of `model_type` small enough to run in milliseconds."""
    defaults = CONFIG_MAPPING[model_type]()
    known = set(vars(defaults)) | set(getattr(defaults, "attribute_map", {}))
    values = {name: value for name, value in TINY.items() if name in known}
    values |= OVERRIDES.get(model_type, {}) | overrides
    if getattr(defaults, "layer_types", None) and "layer_types" not in values:
        kinds = list(dict.fromkeys(defaults.layer_types))
        values["layer_types"] = (kinds * 4)[: values.get("num_hidden_layers", 3)]
    config: PreTrainedConfig = AutoConfig.for_model(model_type, **values)
    return config


def tiny_model(config: PreTrainedConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random native causal LM, its weights enlarged."""
    config._experts_implementation = "eager"
    torch.manual_seed(seed)
    model: PreTrainedModel = native_class(config)._from_config(config, attn_implementation="eager", dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
            elif "norm" not in name and "ln" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()
