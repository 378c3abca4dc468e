import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from architectures import tiny_config, tiny_model
from compiled_models import PREFIXES, SIZES, SYMBOLS, model_of, random_forest, scores
from tiny_pipelines import tiny_native
from tokenizers_for_tests import byte_level_single_digits
from torch import nn
from torch._dynamo.utils import counters

from decodner_hf import DecodNERForSpanClassification, DecodNERPipeline
from decodner_hf.core import attention, compilation, cuda_graphs, static_inputs
from decodner_hf.core.cache import KeyValueBuffer
from decodner_hf.core.cuda_graphs import Captured, SpanPassGraphs
from decodner_hf.core.forest import rows_forest
from decodner_hf.core.pass_queues import documents_by_pass
from decodner_hf.core.static_inputs import PREFIX_SIZES, PassSize


class Rerun:
    """Stands in for a CUDA graph: runs the pass's Python again on the static inputs, and checks their addresses.

    What it does not see: a value on the host that a real graph would have fixed at capture, and that is another one at
    the replay; weights that a real graph reads where they lay at capture; memory outside the static inputs that was
    given back; a wait for the device inside the pass; and the order of streams. The tests marked `gpu` see those.
    """

    def __init__(self, run, logits, inputs):
        self.run, self.logits, self.inputs = run, logits, inputs
        self.addresses = addresses(inputs)

    def replay(self):
        assert addresses(self.inputs)[: len(self.addresses)] == self.addresses
        self.logits.copy_(self.run())


def addresses(inputs):
    flat = [inputs.nodes, *inputs.tables.values()]
    buffers = [buffer for layer in inputs.prefix.layers for buffer in layer.calls]
    tensors = [
        *(static.values for static in flat),
        *(held for buffer in buffers for held in (buffer.keys, buffer.values)),
    ]
    return [tensor.data_ptr() for tensor in tensors]


def record(graphs, run):
    logits = torch.full_like(run(), float("nan"))
    return Captured(Rerun(run, logits, graphs.inputs), logits)


@pytest.fixture
def captured_at_the_second_pass(kernel_on_cpu, monkeypatch):  # noqa: ARG001
    monkeypatch.setattr(SpanPassGraphs, "record", record)


@pytest.fixture
def graphs_on_cpu(captured_at_the_second_pass, monkeypatch):  # noqa: ARG001
    monkeypatch.setattr(cuda_graphs, "PASSES_BEFORE_CAPTURE", 0)


def graphed(model):
    kinds = {(call.window, call.shape) for call in compilation.attention_calls(model.backbone)}
    model.graphs = SpanPassGraphs(model.backbone, 1000, kinds)
    return model


def test_sizes_hold_their_passes_and_bound_what_is_added():
    for nodes in (1, 64, 65, 511, 513, 4096, 4097, 16384):
        size = PassSize.of(nodes, 7, 3)
        assert nodes <= size.nodes < nodes + max(64, nodes / 4)
        assert (size.prefix, size.rows) == (512, 16)
    assert PassSize.of(5, 513, 17) == PassSize(64, PREFIX_SIZES[-1], 64)
    assert PassSize.of(5, PREFIX_SIZES[-1] + 1, 3) is None
    assert PassSize.of(5, 7, 257) is None
    assert PassSize.of(5, 0, 3) is None


@pytest.mark.usefixtures("graphs_on_cpu")
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3_text"])
def test_graphs_equal_passes_without_them_and_one_serves_all_passes_of_its_size(kind):
    model = model_of(kind)
    lengths = [*zip(PREFIXES, SIZES, strict=True), (50, SIZES[0])]
    expected = [scores(model, *given) for given in lengths]
    graphed(model)
    for _ in range(2):
        for given, found in zip(lengths, expected, strict=True):
            torch.testing.assert_close(scores(model, *given), found, rtol=1e-4, atol=1e-4)
        sizes = {PassSize.of(random_forest(size, 9).num_nodes, 9, 3) for _, size in lengths}
        assert model.graphs.captures == len(sizes) < len(lengths)


@pytest.mark.usefixtures("graphs_on_cpu")
def test_graphs_around_compiled_layers_compile_nothing_more():
    model = model_of("llama")
    expected = [scores(model, *lengths) for lengths in zip(PREFIXES, SIZES, strict=True)]
    counters.clear()
    model.compile_forest(backend="aot_eager")
    graphed(model)
    for prefix_length, size, uncompiled in zip(PREFIXES, SIZES, expected, strict=True):
        torch.testing.assert_close(scores(model, prefix_length, size), uncompiled, rtol=1e-4, atol=1e-4)
    assert model.graphs.captures > 1
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.usefixtures("graphs_on_cpu")
def test_prefixes_take_turns_and_grow():
    model, plain = graphed(model_of("llama")), model_of("llama")

    def found(owner, caches):
        return [owner.score_forest(random_forest(SIZES[0], cache.prefix_length), SYMBOLS, cache) for cache in caches]

    both = [[owner.encode_prefix(torch.arange(start, start + 20)) for start in (0, 30)] for owner in (model, plain)]
    for used in (2, 1, 1):
        torch.testing.assert_close(found(model, both[0][:used]), found(plain, both[1][:used]), rtol=1e-4, atol=1e-4)
        for owner, caches in zip((model, plain), both, strict=True):
            caches[0].crop(-5)  # as many tokens as before, others
            owner.encode_prefix(torch.arange(40 + used, 45 + used), caches[0])
    assert model.graphs.captures == 1


@pytest.mark.usefixtures("graphs_on_cpu")
def test_a_prefix_of_another_dtype_does_not_move_what_graphs_read():
    model, plain = graphed(model_of("llama")), model_of("llama")
    forest = random_forest(SIZES[0], 20)
    for kept in (torch.float32, torch.bfloat16, torch.float32):
        found, expected = (
            owner.score_forest(forest, SYMBOLS, prefix_kept_in(owner, kept)) for owner in (model, plain)
        )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert model.graphs.captures == 1


def prefix_kept_in(model, dtype):
    """As under autocast, which leaves rotated keys in float32 beside values in half precision."""
    cache = model.encode_prefix(torch.arange(20))
    for layer in cache.layers:
        layer.calls[0].values = layer.calls[0].values.to(dtype)
    return cache


@pytest.mark.usefixtures("graphs_on_cpu")
def test_a_prefix_that_was_copied_in_part_is_copied_again(monkeypatch):
    model = graphed(model_of("llama"))
    forest = random_forest(SIZES[0], 20)
    first, second = (model.encode_prefix(torch.arange(start, start + 20)) for start in (0, 30))
    expected = model.score_forest(forest, SYMBOLS, first)
    writes = iter([KeyValueBuffer.write])

    def interrupted(*given):
        for write in writes:
            return write(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(KeyValueBuffer, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.score_forest(forest, SYMBOLS, second)
    torch.testing.assert_close(model.score_forest(forest, SYMBOLS, first), expected)


@pytest.mark.usefixtures("graphs_on_cpu")
def test_under_autocast_passes_run_without_graphs(monkeypatch):
    monkeypatch.setattr(attention, "choose_backend", lambda *_: attention.forest_attention)
    model = graphed(model_of("llama"))
    with torch.autocast("cpu", torch.bfloat16):
        scores(model, 20, SIZES[0])
    assert not model.graphs.refused


@pytest.mark.usefixtures("graphs_on_cpu")
def test_weights_written_in_place_keep_their_graphs():
    model, given = graphed(model_of("llama")), (PREFIXES[0], SIZES[0])
    before = scores(model, *given)
    with torch.no_grad():
        model.backbone.lm_head.weight.mul_(2)
    torch.testing.assert_close(scores(model, *given), 2 * before)
    assert model.graphs.captures == 1


def replace_head(model):
    model.backbone.lm_head.weight = nn.Parameter(model.backbone.lm_head.weight.detach() / 2)


def replace_values(model):
    layer = model.backbone.model.layers[1].mlp.up_proj
    layer.weight.data = layer.weight.data / 2


def replace_layer(model):
    model.backbone.model.layers[0] = copy.deepcopy(model.backbone.model.layers[0]).requires_grad_(False)
    model.backbone.model.layers[0].mlp.up_proj.weight.mul_(2)


def grow_embedding(model):
    model.backbone.resize_token_embeddings(model.backbone.config.vocab_size + 9, mean_resizing=False)


@pytest.mark.usefixtures("graphs_on_cpu")
@pytest.mark.parametrize("change", [replace_head, replace_values, replace_layer, grow_embedding])
def test_no_graph_runs_over_weights_that_were_replaced(change, monkeypatch):
    model = graphed(model_of("llama"))
    rows, cache = rows_forest(torch.arange(9).reshape(3, 3), 6), model.encode_prefix(torch.arange(6))
    model.score_forest(rows, SYMBOLS, cache)
    assert model.graphs.captures == 1
    change(model)
    with monkeypatch.context() as patch:
        patch.setattr(Rerun, "replay", lambda _: pytest.fail("a graph over the old weights ran"))
        cache = model.encode_prefix(torch.arange(6))
        found = model.score_forest(rows, SYMBOLS, cache)
    assert model.graphs.sizes == []
    captured_anew = model.score_forest(rows, SYMBOLS, cache)
    assert model.graphs.captures == 2
    model.graphs = None
    for logits in (found, captured_anew):
        torch.testing.assert_close(logits, model.score_forest(rows, SYMBOLS, cache), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("graphs_on_cpu")
def test_a_model_that_is_cast_runs_without_graphs_until_it_is_compiled_again(caplog):
    model, given = graphed(model_of("llama")), (PREFIXES[0], SIZES[0])
    scores(model, *given)
    model.bfloat16()
    assert model.graphs.inputs is None  # nothing of it stays behind
    for _ in range(2):  # the first notices that the weights were moved
        assert scores(model, *given).dtype == torch.bfloat16
    assert model.graphs.refused
    assert "call compile_forest() again" in caplog.text
    graphed(model)
    assert scores(model, *given).dtype == torch.bfloat16
    assert model.graphs.captures == 1


@pytest.mark.usefixtures("graphs_on_cpu")
def test_what_graphs_do_not_serve_runs_without_them(monkeypatch):
    model = graphed(model_of("llama"))
    cache = model.encode_prefix(torch.arange(6))
    rows = rows_forest(torch.arange(60).reshape(20, 3), 6)
    model.train()
    model.score_forest(rows, SYMBOLS, cache)
    model.eval()
    with torch.enable_grad():
        structure = (rows.token_ids[None], rows.position_ids, rows.subtree_end, rows.span_nodes)
        assert model(*structure, torch.tensor(SYMBOLS), prefix_cache=cache).logits.requires_grad
    with torch.no_grad():
        two = model(*structure, torch.tensor([[3, 5], [7, 9]]), torch.zeros(60, dtype=torch.int64), prefix_cache=cache)
    assert two.logits.shape == (60, 2)
    assert model.graphs.captures == 0
    model.score_forest(rows, SYMBOLS, cache)
    assert model.graphs.captures == 1
    model.score_forest(rows_forest(torch.arange(1200).reshape(400, 3) % 64, 6), SYMBOLS, cache)
    assert model.graphs.captures == 1
    monkeypatch.setattr(static_inputs, "MOST_KEY_TILES", 1)
    model.score_forest(rows_forest(torch.arange(180).reshape(60, 3) % 64, 6), SYMBOLS, cache)
    assert model.graphs.captures == 1


@pytest.mark.usefixtures("captured_at_the_second_pass")
def test_the_second_pass_of_a_size_is_captured():
    model = graphed(model_of("llama"))
    for captures in (0, 1, 1):
        scores(model, 20, SIZES[0])
        assert model.graphs.captures == captures
    scores(model, 20, SIZES[1])
    assert model.graphs.captures == 1


@pytest.mark.usefixtures("graphs_on_cpu")
def test_attention_with_masks_from_the_host_is_not_captured(monkeypatch):
    model = model_of("llama")
    expected = scores(model, 20, SIZES[0])
    monkeypatch.setattr(attention, "choose_backend", lambda *_: attention.forest_attention)
    graphed(model)
    for _ in range(2):
        torch.testing.assert_close(scores(model, 20, SIZES[0]), expected, rtol=1e-4, atol=1e-4)
    assert model.graphs.captures == 0


@pytest.mark.usefixtures("graphs_on_cpu")
@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("too small"), torch.AcceleratorError("CUDA error: out of memory\nSearch for ...")],
    ids=["for_a_tensor", "of_the_driver"],
)
def test_without_memory_for_a_graph_passes_run_without(error, monkeypatch, caplog):
    def fail(*_):
        raise error

    monkeypatch.setattr(SpanPassGraphs, "record", fail)
    model = model_of("llama")
    expected = scores(model, 20, SIZES[0])
    graphed(model)
    for _ in range(2):
        torch.testing.assert_close(scores(model, 20, SIZES[0]), expected)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.usefixtures("graphs_on_cpu")
def test_few_graphs_are_kept(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "KEPT_GRAPHS", 1)
    model = graphed(model_of("llama"))
    for size in (SIZES[0], SIZES[2], SIZES[0]):
        scores(model, 20, size)
    assert model.graphs.captures == 3
    assert len(model.graphs.sizes) == 1


@pytest.mark.usefixtures("captured_at_the_second_pass")
def test_a_size_whose_graph_was_dropped_must_come_twice_again(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "KEPT_GRAPHS", 1)
    model = graphed(model_of("llama"))
    for size, captures in ((0, 0), (0, 1), (2, 1), (2, 2), (0, 2), (0, 3)):
        scores(model, 20, SIZES[size])
        assert model.graphs.captures == captures


def test_copies_start_without_graphs():
    model = graphed(model_of("llama"))
    assert copy.deepcopy(model).graphs is None


@pytest.mark.parametrize("message", ["CUDA error: out of memory", "CUDA error: an illegal memory access"])
def test_only_a_lack_of_memory_leaves_the_warm_up_undone(message, monkeypatch):
    model, passes = model_of("llama"), iter([None])

    def score_rows(*_):
        for _ in passes:
            return
        raise torch.AcceleratorError(message)

    monkeypatch.setattr(compilation, "score_rows", score_rows)
    lacking = nullcontext() if "out of" in message else pytest.raises(RuntimeError, match="illegal")
    with lacking:
        compilation.warm_up_graphs(model, 64)


@pytest.mark.parametrize("by", ["inject_adapter_in_model", "get_peft_model"])
def test_adapted_models_have_no_graphs(by):
    peft = pytest.importorskip("peft")
    backbone = tiny_model(tiny_config("llama"))
    assert not SpanPassGraphs(backbone, 64, ()).refused
    adapter = peft.LoraConfig(target_modules=["q_proj"])
    if by == "get_peft_model":
        peft.get_peft_model(backbone, adapter)
    else:  # as transformers' add_adapter does
        peft.inject_adapter_in_model(adapter, backbone)
    assert SpanPassGraphs(backbone, 64, ()).refused


def gpu_model(**overrides):
    torch.manual_seed(0)
    native = tiny_model(tiny_config("llama", max_position_embeddings=8192, **overrides))
    return DecodNERForSpanClassification.from_backbone(native.to("cuda", torch.bfloat16))


def gpu_scores(model, lengths, seed):
    prefix_length, size = lengths
    tokens = torch.from_numpy(np.random.default_rng(seed).integers(0, 64, prefix_length))
    return model.score_forest(random_forest(size, prefix_length), SYMBOLS, model.encode_prefix(tokens)).float()


@pytest.mark.gpu
def test_cuda_graphs_are_as_exact_as_passes_without_them():
    plain, model, exact = gpu_model(), gpu_model(), gpu_model().float()
    counters.clear()
    model.compile_forest()
    captures = model.graphs.captures
    assert captures == 1
    lengths = [(20, SIZES[1]), (700, SIZES[1]), (20, SIZES[2]), (3000, SIZES[0])]
    for seed in range(4):
        for given in lengths:
            found, same_dtype, expected = (gpu_scores(owner, given, seed) for owner in (model, plain, exact))
            error, allowed = (found - expected).abs().max(), 2 * (same_dtype - expected).abs().max() + 1e-6
            assert error <= allowed, f"{given}, round {seed}: {error:.2e} > {allowed:.2e}"
    assert model.graphs.captures == captures + len(lengths)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.gpu
def test_results_of_passes_in_a_row_are_their_own():
    model = gpu_model()
    model.compile_forest()
    cache = model.encode_prefix(torch.arange(30))
    forests = [random_forest(SIZES[0], 30, seed) for seed in range(8)]
    for forest in forests[:2] * 2:
        model.score_forest(forest, SYMBOLS, cache)
    alone = [model.score_forest(forest, SYMBOLS, cache).cpu() for forest in forests]
    captures = model.graphs.captures
    launched = [model.score_forest(forest, SYMBOLS, cache) for forest in forests]
    assert model.graphs.captures == captures
    for found, expected in zip(launched, alone, strict=True):
        assert torch.equal(found.cpu(), expected)


@pytest.mark.gpu
def test_memory_does_not_grow_with_passes_or_prompts():
    model = gpu_model()
    model.compile_forest()
    for seed in range(4):
        gpu_scores(model, (300, SIZES[2]), seed)
    before = torch.cuda.memory_allocated()
    for seed in range(4, 12):
        gpu_scores(model, (300 + seed, SIZES[2]), seed)
    assert (
        torch.cuda.memory_allocated() <= before + 2**16
    )  # eight prompts, had they been kept, are seven times as much


@pytest.mark.gpu
def test_a_decoder_that_waits_for_the_gpu_gets_no_graphs():
    model = gpu_model(rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})
    model.compile_forest()
    assert model.graphs is None
    assert gpu_scores(model, (30, SIZES[0]), 0).isfinite().all()


@pytest.mark.gpu
def test_a_corpus_met_before_captures_and_compiles_nothing_more():
    texts = [f"Steve Jobs founded Apple number {number} in Cupertino, it is said." for number in range(200)]
    plain, pipe = (
        DecodNERPipeline(
            model=tiny_native().to("cuda"),
            tokenizer=byte_level_single_digits(),
            device="cuda",
            compile=compiled,
            token_budget=2048,
            candidate_labels=["Person", "Company"],
        )
        for compiled in (False, True)
    )
    runs = list(documents_by_pass([pipe.preprocess(text) for text in texts], pipe.scorer.token_budget))
    for _ in range(2):
        for run in runs:
            pipe.scorer.score(run)
    captures, compiled = pipe.model.graphs.captures, counters["stats"]["unique_graphs"]
    assert captures > 1
    for run in runs:
        for found, expected in zip(pipe.scorer.score(run), plain.scorer.score(run), strict=True):
            np.testing.assert_allclose(found.label_logits, expected.label_logits, rtol=1e-3, atol=1e-3)
    assert pipe.model.graphs.captures == captures
    assert counters["stats"]["unique_graphs"] == compiled
