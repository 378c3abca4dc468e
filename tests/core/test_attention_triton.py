import importlib
import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rounds import attend_in_rounds, random_rounds
from transformers import AttentionInterface

from decodner_hf.core import attention
from decodner_hf.core.attention_metadata import AttentionMetadata
from decodner_hf.core.attention_torch import forest_attention, forest_attention_reference
from decodner_hf.core.forest import SpanPaths, build_forest
from decodner_hf.core.layer_window import LayerWindow

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs Triton", allow_module_level=True)

from decodner_hf.core import attention_triton
from decodner_hf.core.attention_triton import (  # triton reads TRITON_INTERPRET here, once
    CONFIGS,
    KernelConfig,
    forest_attention_triton,
    kernel_config,
    kernel_supports,
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreter = pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
SMALL = KernelConfig(32, 16, 16, num_warps=4, num_stages=1, max_registers=255, tma=False, resident=1)
SMALL_TMA = replace(SMALL, tma=True)
SPLIT = replace(SMALL, resident=1000)
EVERYTHING = LayerWindow()


@dataclass(frozen=True)
class Layer:
    nodes: int = 60
    prefix: int = 37
    heads: int = 4
    kv_heads: int = 2
    key_size: int = 16
    value_size: int = 16
    window: LayerWindow = EVERYTHING
    softcap: float | None = None
    sinks: bool = False
    strength: float = 1.0

    def metadata(self, random):
        """The first `nodes` nodes of random documents with span trees."""
        chains, paths, size = [], [], 0
        while size < self.nodes:
            chains.append(random.integers(0, 9, random.integers(0, 40)).tolist())
            spans = [random.integers(0, 3, random.integers(1, 6)).tolist() for _ in range(int(random.integers(1, 30)))]
            paths.append(SpanPaths.from_lists(spans))
            size += len(chains[-1]) + len({tuple(span[:end]) for span in spans for end in range(1, len(span) + 1)})
        forest = build_forest(chains, paths, first_position=self.prefix)
        ends = forest.subtree_end[: self.nodes].clamp(max=self.nodes - 1)
        return AttentionMetadata(forest.position_ids[: self.nodes], ends, prefix_length=self.prefix)

    def inputs(self, random, dtype, device):
        """Heads inside nodes as models lay them out; the prefix a view of a buffer that holds NaN behind it."""

        def normal(*shape):
            return torch.from_numpy(random.standard_normal(shape)).to(device, dtype)

        query = normal(1, self.nodes, self.heads, self.key_size).transpose(1, 2) * self.strength
        key = normal(1, self.nodes, self.kv_heads, self.key_size).transpose(1, 2)
        value = normal(1, self.nodes, self.kv_heads, self.value_size).transpose(1, 2)
        buffers = [
            torch.full((1, self.kv_heads, self.prefix + 40, size), float("nan"), dtype=dtype, device=device)
            for size in (self.key_size, self.value_size)
        ]
        for buffer in buffers:
            buffer[:, :, : self.prefix] = normal(1, self.kv_heads, self.prefix, buffer.shape[3])
        prefix = tuple(buffer[:, :, : self.prefix] for buffer in buffers) if self.prefix else None
        sinks = normal(self.heads) if self.sinks else None
        return query, key, value, prefix, sinks


LAYERS = {
    "plain": Layer(),
    "no_prefix": Layer(prefix=0),
    "one_head_a_group": Layer(heads=2),
    "one_key_head": Layer(heads=3, kv_heads=1),
    "seven_a_group": Layer(nodes=33, heads=7, kv_heads=1),
    "more_heads_than_rows": Layer(nodes=5, heads=48, kv_heads=1),
    "head_size_40": Layer(key_size=40, value_size=40),
    "value_size_24": Layer(key_size=32, value_size=24),
    "sliding_window": Layer(window=LayerWindow(sliding=9)),
    "window_into_prefix": Layer(prefix=70, window=LayerWindow(sliding=50)),
    "chunk": Layer(window=LayerWindow(chunk=16)),
    "chunk_and_window": Layer(prefix=70, window=LayerWindow(sliding=20, chunk=32)),
    "softcap": Layer(softcap=2.0, strength=3.0),
    "wide_softcap": Layer(softcap=50.0),
    "sinks": Layer(sinks=True),
    "everything": Layer(heads=6, window=LayerWindow(sliding=30), softcap=5.0, sinks=True, value_size=32),
    "one_node": Layer(nodes=1),
    "one_node_alone": Layer(nodes=1, prefix=0),
    "strong_logits": Layer(strength=30.0),
}
layers = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())


@pytest.fixture
def nan_memory():
    """Memory that torch.empty hands out holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def check_layer(layer, dtype, device="cpu", config=None, seed=0):
    random = np.random.default_rng(seed)
    metadata = layer.metadata(random)
    query, key, value, prefix, sinks = layer.inputs(random, dtype, device)
    rest = (metadata, layer.window, layer.key_size**-0.5, layer.softcap)
    found = forest_attention_triton(query, key, value, prefix, *rest, sinks, config=config)
    assert found.shape == (1, layer.nodes, layer.heads, layer.value_size)
    assert found.dtype == dtype
    assert found.is_contiguous()
    same_dtype = forest_attention(query, key, value, prefix, *rest, sinks)
    exact = forest_attention_reference(
        query.double(),
        key.double(),
        value.double(),
        prefix and tuple(part.double() for part in prefix),
        *rest,
        None if sinks is None else sinks.double(),
    )
    error, allowed = (found - exact).abs().max(), 2 * (same_dtype - exact).abs().max() + 1e-6
    assert error <= allowed, f"{error:.2e} > {allowed:.2e}"


@interpreter
@pytest.mark.usefixtures("nan_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@layers
def test_interpreted_kernel_equals_the_reference(layer, dtype):
    check_layer(layer, dtype, config=SMALL)


@interpreter
@pytest.mark.usefixtures("nan_memory")
@pytest.mark.parametrize("name", ["plain", "head_size_40", "everything", "no_prefix"])
def test_interpreted_kernel_equals_the_reference_by_descriptors(name):
    check_layer(LAYERS[name], torch.float32, config=SMALL_TMA)


@interpreter
@pytest.mark.usefixtures("nan_memory")
@pytest.mark.parametrize("config", [SPLIT, replace(SPLIT, tma=True)], ids=["pointers", "descriptors"])
@pytest.mark.parametrize("prefix", [32, 37, 80, 85])  # as many tiles as splits, more of them, with a rest and without
@pytest.mark.parametrize("name", ["plain", "everything", "sinks", "value_size_24", "softcap"])
def test_interpreted_kernel_equals_the_reference_with_its_prefix_split(name, prefix, config, monkeypatch):
    launched = []
    monkeypatch.setattr(attention_triton, "MIN_SPLIT", 16)
    splits = attention_triton._splits
    monkeypatch.setattr(attention_triton, "_splits", lambda *given: launched.append(splits(*given)) or launched[-1])
    check_layer(replace(LAYERS[name], prefix=prefix, window=EVERYTHING), torch.float32, config=config)
    assert launched == [prefix // 16]


@interpreter
def test_more_splits_than_prefix_tiles_leave_some_without_work(monkeypatch):
    monkeypatch.setattr(attention_triton, "_splits", lambda *_: 4)
    for prefix in (5, 33):
        check_layer(replace(LAYERS["sinks"], prefix=prefix), torch.float32, config=SPLIT)


@interpreter
@pytest.mark.parametrize("config", [SMALL, replace(SMALL, block_m=16, block_n=32, block_p=64)], ids=["small", "mixed"])
@pytest.mark.parametrize("nodes", [15, 16, 17, 63])
def test_interpreted_kernel_at_the_edges_of_tiles(nodes, config):
    check_layer(Layer(nodes=nodes, prefix=16, heads=2, kv_heads=1), torch.float32, config=config, seed=nodes)


@interpreter
def test_interpreted_kernel_of_an_empty_forest_is_empty():
    empty = Layer(nodes=0)
    query, key, value, prefix, _ = empty.inputs(np.random.default_rng(0), torch.float32, "cpu")
    metadata = AttentionMetadata(
        torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int32), prefix_length=37
    )
    assert forest_attention_triton(query, key, value, prefix, metadata, LayerWindow(), 1.0).shape == (1, 0, 4, 16)


@interpreter
def test_interpreted_kernel_takes_an_empty_prefix_as_none():
    layer = LAYERS["no_prefix"]
    query, key, value, _, _ = layer.inputs(np.random.default_rng(0), torch.float32, "cpu")
    inputs = (layer.metadata(np.random.default_rng(0)), layer.window, 0.25, None, None, SMALL_TMA)
    empty = forest_attention_triton(query, key, value, (key[:, :, :0], value[:, :, :0]), *inputs)
    torch.testing.assert_close(empty, forest_attention_triton(query, key, value, None, *inputs), rtol=0, atol=0)


ROUND_LAYERS = {
    "plain": Layer(),
    "no_prefix": Layer(prefix=0),
    "seven_a_group": Layer(heads=7, kv_heads=1),
    "value_size_24": Layer(key_size=32, value_size=24),
    "chunk_and_window": Layer(window=LayerWindow(sliding=20, chunk=32)),
    "everything": Layer(heads=6, window=LayerWindow(sliding=30), softcap=5.0, sinks=True, value_size=32),
    "split": Layer(prefix=85, sinks=True),
}


def check_rounds(layer, seed, dtype, device="cpu", config=None):
    """Every round of a random forest by the kernel against the whole forest by the reference."""
    rounds = random_rounds(seed, layer.prefix, documents=2)
    layer = replace(layer, nodes=rounds.forest.num_nodes)
    query, key, value, prefix, sinks = layer.inputs(np.random.default_rng(seed), dtype, device)
    rest = (layer.window, layer.key_size**-0.5, layer.softcap)

    def kernel(queries, keys, values, metadata):
        return forest_attention_triton(queries, keys, values, prefix, metadata, *rest, sinks, config=config)

    found = attend_in_rounds(rounds, kernel, query, key, value)
    same_dtype = forest_attention(query, key, value, prefix, rounds.whole(), *rest, sinks)
    doubles = [part if part is None else part.double() for part in (query, key, value, sinks)]
    prefix = prefix and tuple(part.double() for part in prefix)
    exact = forest_attention_reference(*doubles[:3], prefix, rounds.whole(), *rest, doubles[3])
    error, allowed = (found - exact).abs().max(), 2 * (same_dtype - exact).abs().max() + 1e-6
    assert error <= allowed, f"{error:.2e} > {allowed:.2e}"


@interpreter
@pytest.mark.usefixtures("nan_memory")
@pytest.mark.parametrize("name", [name for name in ROUND_LAYERS if name != "split"])
def test_interpreted_kernel_in_rounds_equals_the_reference_in_one_pass(name):
    for seed, config in enumerate((SMALL, SMALL_TMA)):
        check_rounds(ROUND_LAYERS[name], seed, torch.float32, config=config)


@interpreter
@pytest.mark.usefixtures("nan_memory")
def test_interpreted_kernel_in_rounds_with_its_prefix_split(monkeypatch):
    monkeypatch.setattr(attention_triton, "MIN_SPLIT", 16)
    check_rounds(ROUND_LAYERS["split"], 1, torch.float32, config=SPLIT)


@pytest.mark.gpu
@pytest.mark.usefixtures("nan_memory")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", ROUND_LAYERS)
def test_kernel_in_rounds_equals_the_reference_in_one_pass(name, dtype):
    for seed in range(20):
        check_rounds(ROUND_LAYERS[name], seed, dtype, "cuda")


def operator_arguments(layer, config, dtype=torch.float32):
    random = np.random.default_rng(0)
    metadata = layer.metadata(random)
    query, key, value, prefix, sinks = layer.inputs(random, dtype, "cpu")
    captured = []
    operator = torch.ops.decodner.forest_attention

    class Capture(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is operator.default:
                captured.append(args)
            return function(*args, **(kwargs or {}))

    with Capture():
        forest_attention_triton(query, key, value, prefix, metadata, layer.window, 0.25, layer.softcap, sinks, config)
    return captured[0]


@interpreter
@pytest.mark.parametrize("name", ["no_prefix", "everything"])
def test_operator_keeps_torch_library_s_contract(name):
    arguments = operator_arguments(replace(LAYERS[name], nodes=12, prefix=min(LAYERS[name].prefix, 5)), SMALL)
    torch.library.opcheck(torch.ops.decodner.forest_attention.default, arguments)


@interpreter
@pytest.mark.parametrize("config", [SMALL, SMALL_TMA], ids=["pointers", "descriptors"])
@pytest.mark.parametrize("name", ["plain", "window_into_prefix", "value_size_24"])
def test_the_table_says_how_long_the_prefix_is_whatever_the_buffer_holds_behind_it(name, config):
    arguments = list(operator_arguments(LAYERS[name], config))
    expected = torch.ops.decodner.forest_attention(*arguments)
    for index in (3, 4):
        view = arguments[index]
        arguments[index] = view.as_strided((*view.shape[:2], view.shape[2] + 40, view.shape[3]), view.stride())
        assert arguments[index][:, :, view.shape[2] :].isnan().all()
    torch.testing.assert_close(torch.ops.decodner.forest_attention(*arguments), expected)


@interpreter
def test_kernel_compiles_into_one_graph():
    layer = Layer(nodes=20, prefix=5)
    random = np.random.default_rng(0)
    metadata = layer.metadata(random)
    query, key, value, prefix, _ = layer.inputs(random, torch.float32, "cpu")

    def two_layers(query, key, value):
        for _ in range(2):
            attended = forest_attention_triton(query, key, value, prefix, metadata, layer.window, 0.25, config=SMALL)
            query = query + attended.transpose(1, 2)
        return query

    expected = two_layers(query, key, value)
    compiled = torch.compile(two_layers, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(query, key, value), expected)


@interpreter
def test_a_second_copy_of_the_kernel_s_file_serves_beside_the_first(tmp_path, monkeypatch):
    package = tmp_path / "copied"
    package.mkdir()
    for file in Path(attention.__file__).parent.glob("*.py"):
        shutil.copy(file, package)
    monkeypatch.syspath_prepend(str(tmp_path))
    copied = importlib.import_module("copied.attention_triton")
    layer = LAYERS["plain"]
    random = np.random.default_rng(0)
    metadata = layer.metadata(random)
    query, key, value, prefix, _ = layer.inputs(random, torch.float32, "cpu")
    inputs = (query, key, value, prefix, metadata, layer.window, 0.25)
    first = forest_attention_triton(*inputs, config=SMALL)
    second = copied.forest_attention_triton(*inputs, config=copied.KernelConfig(*vars(SMALL).values()))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_package_imports_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in ("attention", "attention_triton", "kernel_triton"):
        monkeypatch.delitem(sys.modules, f"decodner_hf.core.{name}")
    try:
        assert importlib.import_module("decodner_hf.core.attention").HAS_KERNEL is False
        with pytest.raises(ImportError, match="pip install triton"):
            importlib.import_module("decodner_hf.core.attention_triton")
    finally:
        AttentionInterface.register(attention.ATTENTION_NAME, attention.decodner_attention)


def test_a_prefix_of_another_length_than_the_metadata_s_is_refused():
    query, key, value, prefix, _ = Layer().inputs(np.random.default_rng(0), torch.float32, "cpu")
    metadata = replace(Layer().metadata(np.random.default_rng(0)), prefix_length=36)
    with pytest.raises(ValueError, match="a prefix of 37 tokens was given, but the metadata speaks of 36"):
        forest_attention_triton(query, key, value, prefix, metadata, LayerWindow(), 1.0)


@pytest.mark.parametrize(
    ("change", "scaling", "softcap"),
    [
        (lambda tensor: tensor.double(), 1.0, None),
        (lambda tensor: tensor.repeat(1, 1, 1, 17), 1.0, None),
        (lambda tensor: tensor.repeat(2, 1, 1, 1), 1.0, None),
        (lambda tensor: tensor.repeat(1, 2, 1, 1)[:, :-1], 1.0, None),
        (lambda tensor: tensor, -1.0, None),
        (lambda tensor: tensor, 1.0, 0.0),
    ],
    ids=["dtype", "head_size", "batch", "heads", "scaling", "softcap"],
)
def test_what_the_kernel_cannot_do_is_refused_with_the_way_out(change, scaling, softcap):
    query, key, value, prefix, _ = Layer().inputs(np.random.default_rng(0), torch.float32, "cpu")
    query, value = change(query), change(value)
    assert not kernel_supports(query, key, value, scaling, softcap)
    metadata = Layer().metadata(np.random.default_rng(0))
    with pytest.raises(ValueError, match="use forest_attention"):
        forest_attention_triton(query, key, value, prefix, metadata, LayerWindow(), scaling, softcap)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("head_size", [16, 32, 64, 80, 96, 128, 192, 256])
def test_every_head_size_has_a_configuration(head_size, dtype):
    assert kernel_config(dtype, head_size, head_size, torch.device("cpu")) in [config for *_, config in CONFIGS]


GPU_LAYERS = {
    name: replace(layer, nodes=333 if layer.nodes > 5 else layer.nodes, prefix=200 if layer.prefix else 0)
    for name, layer in LAYERS.items()
} | {
    "head_size_32": Layer(257, 100, 4, 2, 32, 32),
    "head_size_36_unaligned": Layer(257, 100, 4, 2, 36, 36),
    "head_size_80": Layer(257, 100, 4, 2, 80, 80),
    "head_size_96": Layer(257, 100, 4, 4, 96, 96),
    "head_size_128": Layer(1000, 513, 8, 2, 128, 128),
    "head_size_192_128": Layer(257, 100, 4, 4, 192, 128),
    "head_size_256": Layer(257, 100, 4, 1, 256, 256, LayerWindow(sliding=60), softcap=20.0),
}
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.mark.gpu
@pytest.mark.usefixtures("nan_memory")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layer", GPU_LAYERS.values(), ids=GPU_LAYERS.keys())
def test_kernel_equals_the_reference(layer, dtype):
    check_layer(layer, dtype, "cuda")


@pytest.mark.gpu
@pytest.mark.usefixtures("nan_memory")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("prefix", [0, 1, 100, 513])
@pytest.mark.parametrize("nodes", [1, 15, 16, 17, 63, 257, 1000])
def test_kernel_at_the_edges_of_tiles(nodes, prefix, dtype):
    check_layer(Layer(nodes, prefix, 8, 2, 64, 64), dtype, "cuda", seed=nodes)


@pytest.mark.gpu
@pytest.mark.usefixtures("nan_memory")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nodes", [1, 63, 257])
@pytest.mark.parametrize("size", [64, 128])
def test_kernel_with_its_prefix_split(size, nodes, dtype, monkeypatch):
    launched = []
    splits = attention_triton._splits
    monkeypatch.setattr(attention_triton, "_splits", lambda *given: launched.append(splits(*given)) or launched[-1])
    check_layer(Layer(nodes, 2100, 8, 2, size, size, softcap=20.0, sinks=True), dtype, "cuda", seed=nodes)
    assert launched[0] > 1


@pytest.mark.gpu
def test_kernel_gives_the_same_bits_again_and_inside_a_cuda_graph():
    layer = Layer(1000, 513, 8, 2, 64, 64)
    random = np.random.default_rng(0)
    metadata = layer.metadata(random)
    query, key, value, prefix, _ = layer.inputs(random, torch.bfloat16, "cuda")
    inputs = (query, key, value, prefix, metadata, layer.window, 0.125)
    expected = forest_attention_triton(*inputs)
    assert torch.equal(forest_attention_triton(*inputs), expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = forest_attention_triton(*inputs)
    captured.fill_(float("nan"))
    graph.replay()
    assert torch.equal(captured, expected)


@pytest.mark.gpu
def test_attention_takes_the_kernel_on_a_gpu_unless_gradients_are_wanted(monkeypatch):
    calls = []
    monkeypatch.setattr(
        attention,
        "forest_attention_triton",
        lambda *inputs: calls.append(1) or forest_attention_triton(*inputs),
    )
    layer = Layer()
    random = np.random.default_rng(0)
    metadata = replace(layer.metadata(random), prefix_length=0)
    query, key, value, _, _ = layer.inputs(random, torch.float32, "cuda")
    module = torch.nn.Module()
    module.layer_idx = 0
    inputs = (module, query, key, value, None)
    fused, _ = attention.decodner_attention(*inputs, sliding_window=None, forest_metadata=metadata)
    assert calls == [1]
    query.requires_grad_()
    blocks, _ = attention.decodner_attention(*inputs, sliding_window=None, forest_metadata=metadata)
    assert calls == [1]
    assert blocks.requires_grad
    torch.testing.assert_close(fused, blocks.detach(), rtol=1e-4, atol=1e-5)
