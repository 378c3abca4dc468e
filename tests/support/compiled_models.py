"""Tiny models for the tests of compiled layers and CUDA graphs, and the kernel's operator on the CPU.

Importing it skips the importing tests without Triton, whose operator it needs, and under Triton's interpreter.
"""

import os

import numpy as np
import pytest
import torch
from architectures import tiny_config, tiny_model
from bench_forest import random_document

from decodner_hf import DecodNERForSpanClassification, SpanPaths, build_forest

pytest.importorskip("triton", minversion="3.6", reason="the kernel's operator needs Triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("replaces the operator that the interpreter is to run", allow_module_level=True)

from decodner_hf.core.block_map import TILE_COLUMNS, count_query_tiles

SYMBOLS = [3, 5, 7]
SIZES = ((17, 3, 4), (40, 8, 9), (90, 2, 31), (5, 1, 2), (33, 6, 57))  # words, width, document tokens
PREFIXES = (20, 256 - 9, 127, 2, 199)  # one of them fills the cache's first buffer to the last token


@torch.library.register_kernel("decodner::forest_attention", "cpu")
def dense_attention(query, key, value, prefix_key, prefix_value, tables, limited, scaling, softcap, sinks, config):
    """The operator on the CPU, from the kernel's own tables."""
    assert softcap is None
    assert sinks is None
    num_nodes, group = query.shape[2], query.shape[1] // key.shape[1]
    held, before = int(tables[7]), count_query_tiles(num_nodes, group, config[0]) * TILE_COLUMNS
    num_rows, kept = key.shape[2], key.shape[2] - num_nodes
    rows = tables[before:].long().split(num_rows)
    numbers, ends = rows[:2]
    positions, lowest = (rows[2], rows[3][kept:]) if limited else (torch.zeros(()), torch.zeros(num_nodes))
    number = numbers[kept:, None]
    ancestor = (numbers <= number) & (number <= ends) & (positions >= lowest[:, None])
    mask = torch.cat([torch.arange(held) >= lowest[:, None], ancestor], dim=1)
    keys = torch.cat([prefix_key[:, :, :held], key], dim=2) if held else key
    values = torch.cat([prefix_value[:, :, :held], value], dim=2) if held else value
    keys, values = (part.repeat_interleave(group, dim=1) for part in (keys, values))
    logits = (query @ keys.transpose(2, 3) * scaling).masked_fill(~mask, float("-inf"))
    return (logits.softmax(-1) @ values).transpose(1, 2).contiguous()


def model_of(kind, model_class=DecodNERForSpanClassification, **overrides):
    torch.manual_seed(0)
    return model_class.from_backbone(tiny_model(tiny_config(kind, max_position_embeddings=512, **overrides)))


def random_forest(size, position, seed=0, vocabulary=64):
    words, width, chain = size
    generator = np.random.default_rng(seed)
    paths = random_document(words, width, 1.4, generator)
    paths = SpanPaths(paths.token_ids % vocabulary, paths.cu_seqlens, paths.span_path, paths.span_length)
    return build_forest([generator.integers(0, vocabulary, chain)], [paths], first_position=position)


def scores(model, prefix_length, size):
    cache = model.encode_prefix(torch.arange(prefix_length) % 64)
    cache = model.encode_prefix(torch.arange(size[2]) % 61, cache)  # a long document's chain, which is compiled too
    return model.score_forest(random_forest(size, cache.prefix_length), SYMBOLS, cache)
