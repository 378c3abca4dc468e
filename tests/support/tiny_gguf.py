"""A tiny Llama with its tokenizer as a GGUF file, as llama.cpp's converter writes one."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers_for_tests import byte_level_single_digits
from transformers import PreTrainedModel


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    *,
    architecture: str = "llama",
    left_out: str | None = None,
    quantized: bool = False,
) -> Path:
    """Writes a model and the test tokenizer.

    Args:
        path: the file.
        model: a native Llama whose vocabulary is the tokenizer's.
        architecture: what the file calls its architecture.
        left_out: part of the names of tensors that the file lacks.
        quantized: whether matrices are stored as blocks of eight bits.
    """
    config: Any = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if left_out is not None and left_out in name:
            continue
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.float().numpy()
        for part, count in heads.items():
            if part in name:  # llama.cpp rotates neighbouring dimensions, transformers the two halves of a head
                values = values.reshape(count, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        values = np.ascontiguousarray(values)
        kind = gguf.GGMLQuantizationType.Q8_0 if quantized and values.ndim == 2 else gguf.GGMLQuantizationType.F32
        target = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(target, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    """Adds the vocabulary and the merges of the test tokenizer."""
    tokenizer = byte_level_single_digits()
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    writer.add_token_types([3 if token in tokenizer.all_special_ids else 1 for token in range(len(tokenizer))])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(tokenizer.eos_token_id)  # transformers 5.17 reads no file without it
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
