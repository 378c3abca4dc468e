import pytest
import torch
from compiled_models import PREFIXES, SIZES, SYMBOLS, model_of, random_forest, scores
from rounds import random_rounds
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters
from transformers.modeling_layers import GradientCheckpointingLayer

from decodner_hf import SpanPaths, UniversalDecoder, build_forest
from decodner_hf.core import attention, compilation
from decodner_hf.core.kept_rows import KeptRows
from decodner_hf.core.label_head import last_hidden_states


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
    monkeypatch.setattr(attention, "choose_backend", lambda *_: attention.forest_attention)
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
        prefix_cache=cache,
    )
    output.loss.backward()
    assert model.backbone.model.layers[0].mlp.up_proj.weight.grad is not None
    assert model(input_ids=torch.arange(9)[None]).logits.shape[1] == 9
    assert counter.frame_count == 1


@pytest.mark.usefixtures("kernel_on_cpu")
def test_inference_mode_compiles_nothing_more():
    model = model_of("llama", UniversalDecoder)
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
@pytest.mark.parametrize(("kind", "graphs"), [("llama", 1), ("gemma3_text", 2)])
@torch.no_grad()
def test_compiled_layers_run_in_rounds(kind, graphs):
    model, plain = model_of(kind), model_of(kind)
    counters.clear()
    model.compile_forest(backend="aot_eager")
    for seed in range(4):
        rounds = random_rounds(seed, 20)
        cache, kept = plain.encode_prefix(torch.arange(20)), KeptRows()
        whole = rounds.whole(cache=cache, layer_windows=model.layer_windows)
        expected = last_hidden_states(plain.backbone, rounds.forest.token_ids, whole.position_ids, whole)
        for nodes in rounds.rows:
            metadata = rounds.metadata(nodes, kept, cache=cache, layer_windows=model.layer_windows)
            found = last_hidden_states(model.backbone, rounds.forest.token_ids[nodes], metadata.position_ids, metadata)
            kept.commit(metadata.own_rows())
            torch.testing.assert_close(found, expected[nodes], rtol=1e-4, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == 2 * graphs  # one without kept rows and one with them


@pytest.mark.usefixtures("kernel_on_cpu")
def test_compiling_again_serves_the_model_as_it_is_now_and_compiles_nothing_that_is_compiled():
    model, given = model_of("llama"), (20, SIZES[0])
    counters.clear()
    model.compile_forest(backend="aot_eager")
    model.compile_forest(backend="aot_eager")
    assert counters["stats"]["unique_graphs"] == 1
    model.bfloat16()
    scores(model, *given)
    assert counters["stats"]["unique_graphs"] == 1  # layers of another dtype run uncompiled
    model.compile_forest(backend="aot_eager")
    assert counters["stats"]["unique_graphs"] == 2
    torch.testing.assert_close(scores(model, *given), scores(model_of("llama").bfloat16(), *given), rtol=0.1, atol=0.1)


def test_layers_that_something_else_has_wrapped_are_refused():
    model = model_of("llama")
    layer = model.backbone.model.layers[0]
    layer.forward = layer.forward  # as accelerate's hooks do
    with pytest.raises(ValueError, match="spread over several devices or wrapped"):
        model.compile_forest(backend="eager")


def test_without_the_kernel_compiling_is_refused():
    model = model_of("llama")
    with pytest.raises(ValueError, match="needs a GPU"):
        model.compile_forest()
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert not any("forward" in vars(layer) for layer in layers)
