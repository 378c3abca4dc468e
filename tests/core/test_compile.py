import os

import numpy as np
import pytest
import torch
from architectures import tiny_config, tiny_model
from bench_forest import random_document
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters
from transformers.modeling_layers import GradientCheckpointingLayer

from decodner_hf import DecodNERForSpanClassification, SpanPaths, build_forest
from decodner_hf.core import attention, compilation
from decodner_hf.core.block_map import TILE_COLUMNS, count_query_tiles

pytest.importorskip("triton", minversion="3.6", reason="the kernel's operator needs Triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("replaces the operator that the interpreter is to run", allow_module_level=True)

SYMBOLS = [3, 5, 7]
SIZES = ((17, 3, 4), (40, 8, 9), (90, 2, 31), (5, 1, 2), (33, 6, 57))  # words, width, document tokens
PREFIXES = (20, 256 - 9, 127, 2, 199)  # one of them fills the cache's first buffer to the last token


@torch.library.register_kernel("decodner::forest_attention", "cpu")
def dense_attention(query, key, value, prefix_key, prefix_value, tables, windowed, scaling, softcap, sinks, config):
    """The operator on the CPU, from the kernel's own tables."""
    assert softcap is None
    assert sinks is None
    num_nodes, group = query.shape[2], query.shape[1] // key.shape[1]
    held, before = int(tables[7]), count_query_tiles(num_nodes, group, config[0]) * TILE_COLUMNS
    nodes = tables[before:].long().split(num_nodes)
    ends, positions, lowest = nodes[:3] if windowed else (nodes[0], torch.zeros(()), torch.zeros(num_nodes))
    row = torch.arange(num_nodes)
    ancestor = (row <= row[:, None]) & (row[:, None] <= ends) & (positions >= lowest[:, None])
    mask = torch.cat([torch.arange(held) >= lowest[:, None], ancestor], dim=1)
    keys = torch.cat([prefix_key[:, :, :held], key], dim=2) if held else key
    values = torch.cat([prefix_value[:, :, :held], value], dim=2) if held else value
    keys, values = (part.repeat_interleave(group, dim=1) for part in (keys, values))
    logits = (query @ keys.transpose(2, 3) * scaling).masked_fill(~mask, float("-inf"))
    return (logits.softmax(-1) @ values).transpose(1, 2).contiguous()


@pytest.fixture
def kernel_on_cpu(monkeypatch):
    def choose(*_):
        with_gradient = torch.is_grad_enabled()
        return attention.forest_attention if with_gradient else attention.forest_attention_triton

    monkeypatch.setattr(attention, "_choose", choose)
    torch._dynamo.reset()


def model_of(kind, **overrides):
    torch.manual_seed(0)
    return DecodNERForSpanClassification.from_backbone(
        tiny_model(tiny_config(kind, max_position_embeddings=512, **overrides))
    )


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


@pytest.mark.usefixtures("kernel_on_cpu")
@pytest.mark.parametrize(("kind", "graphs"), [("llama", 1), ("qwen2", 1), ("gemma3_text", 2), ("mistral", 1)])
def test_compiled_layers_equal_uncompiled_ones_and_never_compile_again(kind, graphs):
    model = model_of(kind)
    expected = [scores(model, *lengths) for lengths in zip(PREFIXES, SIZES, strict=True)]
    counters.clear()
    model.compile_forest(backend="aot_eager")
    assert counters["stats"]["unique_graphs"] == graphs
    for prefix_length, size, uncompiled in zip(PREFIXES, SIZES, expected, strict=True):
        torch.testing.assert_close(scores(model, prefix_length, size), uncompiled, rtol=1e-4, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == graphs


@pytest.mark.usefixtures("kernel_on_cpu")
def test_graphs_survive_aot_autograd():
    model = model_of("llama")
    expected = scores(model, 20, SIZES[0])
    model.compile_forest(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(scores(model, 20, SIZES[0]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("kernel_on_cpu")
def test_smallest_passes_run(monkeypatch):
    model = model_of("llama")
    counter = CompileCounter()
    model.compile_forest(backend=counter)
    plain = model_of("llama")
    monkeypatch.setattr(attention, "_choose", lambda *_: attention.forest_attention)
    for prefix_length, spans in ((1, [[4, 5]]), (2, [[4]]), (2, [[4, 5]])):
        forest = build_forest([[]], [SpanPaths.from_lists(spans)], first_position=prefix_length)
        found, expected = (
            owner.score_forest(forest, SYMBOLS, owner.encode_prefix(torch.arange(prefix_length)))
            for owner in (model, plain)
        )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 1


@pytest.mark.usefixtures("kernel_on_cpu")
def test_training_and_ordinary_passes_stay_uncompiled():
    model = model_of("llama")
    counter = CompileCounter()
    model.compile_forest(backend=counter)
    cache = model.encode_prefix(torch.arange(6))
    forest = random_forest(SIZES[0], cache.prefix_length)
    output = model(
        input_ids=forest.token_ids[None],
        position_ids=forest.position_ids,
        subtree_end=forest.subtree_end,
        span_nodes=forest.span_nodes,
        symbol_token_ids=torch.tensor(SYMBOLS),
        labels=torch.zeros(forest.num_spans, dtype=torch.int64),
        cache=cache,
    )
    output.loss.backward()
    assert model.backbone.model.layers[0].mlp.up_proj.weight.grad is not None
    assert model(input_ids=torch.arange(9)[None]).logits.shape[1] == 9
    assert counter.frame_count == 1


@pytest.mark.usefixtures("kernel_on_cpu")
def test_inference_mode_compiles_nothing_more():
    model = model_of("llama")
    counter = CompileCounter()
    model.compile_forest(backend=counter)
    with torch.inference_mode():
        scores(model, 20, SIZES[0])
        cache = model.encode_prefix(torch.arange(20))
        model.forward_spans(torch.arange(6).reshape(3, 2), None, cache)
    assert counter.frame_count == 1


def test_larger_models_get_graphs_for_fewer_nodes_and_weights_that_are_buffers_count_as_none():
    small, large = nn.Linear(10, 10, bias=False), nn.Linear(20, 10, bias=False)
    assert compilation.most_graph_nodes([small]) == 2 * compilation.most_graph_nodes([large])
    assert compilation.most_graph_nodes([nn.Identity()]) > compilation.most_graph_nodes([small])


def test_fewer_than_no_nodes_are_refused():
    with pytest.raises(ValueError, match=r"cuda_graph_nodes must be at least 0.*not -5"):
        model_of("llama").compile_forest(cuda_graph_nodes=-5)


@pytest.mark.usefixtures("kernel_on_cpu")
def test_compiling_twice_is_refused():
    model = model_of("llama")
    model.compile_forest(backend="eager")
    with pytest.raises(ValueError, match="compiled already"):
        model.compile_forest(backend="eager")


def test_without_the_kernel_compiling_is_refused():
    model = model_of("llama")
    with pytest.raises(ValueError, match="needs a GPU"):
        model.compile_forest()
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert not any("forward" in vars(layer) for layer in layers)
