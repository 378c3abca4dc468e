from types import SimpleNamespace

import pytest
import torch
from architectures import tiny_config, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from window_rule import visible

from decodner_hf import DualBufferCache, SpanPaths, build_forest
from decodner_hf.core.attention import NOT_PASSED, decodner_attention
from decodner_hf.core.attention_metadata import AttentionMetadata
from decodner_hf.core.attention_torch import BLOCK_ROWS, forest_attention, forest_attention_reference, query_blocks
from decodner_hf.core.layer_window import LayerWindow

WINDOWS = {"full": LayerWindow(), "sliding": LayerWindow(sliding=5), "chunked": LayerWindow(chunk=4)}
EXTRAS = {"plain": {}, "softcap": {"softcap": 1.5}, "sinks": {"sinks": torch.tensor([0.5, -1.0, 2.0, 0.0])}}
SIZES = ((1, 0), (15, 7), (16, 16), (17, 0), (63, 3), (257, 20), (1000, 40))  # nodes, prefix tokens


def random_forest(nodes, prefix, seed=0):
    """A forest of about that many nodes: documents of a few tokens with their spans."""
    generator = torch.Generator().manual_seed(seed)
    chains, spans, total = [], [], 0
    while total < nodes:
        chain = torch.randint(0, 50, (min(6, nodes - total),), generator=generator).tolist()
        found = [chain[i : i + n] for i in range(len(chain)) for n in (1, 2, 3)]
        found = found if total + len(chain) + 3 * len(chain) <= nodes else []
        chains.append(chain)
        spans.append(SpanPaths.from_lists(found))
        total = build_forest(chains, spans).num_nodes
    return build_forest(chains, spans, first_position=prefix)


def tensors(nodes, prefix, dtype=torch.float32, seed=0, as_float64=False):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        values = (2 * torch.randn(*shape, generator=generator)).to(dtype)
        return values.double() if as_float64 else values

    query, key, value = draw(1, 4, nodes, 8), draw(1, 2, nodes, 8), draw(1, 2, nodes, 6)
    cached = (draw(1, 2, prefix, 8), draw(1, 2, prefix, 6)) if prefix else None
    return query, key, value, cached


def by_loops(query, key, value, cached, metadata, window, scaling, softcap=None, sinks=None):
    """Every node's attention written out by itself."""
    rows = []
    positions = metadata.position_ids.tolist()
    for node, position in enumerate(positions):
        line = [j for j in range(node + 1) if node <= int(metadata.subtree_end[j])]
        line = [j for j in line if bool(visible(window, torch.tensor([position]), torch.tensor([positions[j]])))]
        seen = torch.arange(metadata.prefix_length)
        seen = seen[visible(window, torch.tensor([position]), seen)[0]]
        keys, values = key[0][:, line], value[0][:, line]
        if cached is not None:
            keys = torch.cat([cached[0][0][:, seen], keys], dim=1)
            values = torch.cat([cached[1][0][:, seen], values], dim=1)
        heads = []
        for head in range(query.shape[1]):
            logits = keys[head // 2] @ query[0, head, node] * scaling
            logits = softcap * torch.tanh(logits / softcap) if softcap is not None else logits
            if sinks is not None:
                logits = torch.cat([logits, sinks[head : head + 1].to(logits.dtype)])
            heads.append(logits.softmax(0)[: len(keys[0])] @ values[head // 2])
        rows.append(torch.stack(heads))
    return torch.stack(rows)[None]


def eager_in_its_dtype(query, key, value, cached, metadata, window, scaling, softcap=None, sinks=None):
    """As models' eager attention computes: every product rounded to the tensors' dtype, the softmax in float32."""
    nodes = torch.arange(query.shape[2])
    positions = torch.cat([torch.arange(metadata.prefix_length), metadata.position_ids])
    tree = (nodes[None, :] <= nodes[:, None]) & (nodes[:, None] <= metadata.subtree_end[None, :])
    mask = torch.cat([torch.ones(len(nodes), metadata.prefix_length, dtype=torch.bool), tree], dim=1)
    mask &= visible(window, metadata.position_ids, positions)
    if cached is not None:
        key, value = torch.cat([cached[0], key], dim=2), torch.cat([cached[1], value], dim=2)
    logits = query @ key.repeat_interleave(2, dim=1).transpose(2, 3) * scaling
    logits = softcap * torch.tanh(logits / softcap) if softcap is not None else logits
    logits = logits.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        column = sinks.to(logits.dtype).view(1, -1, 1, 1).expand(1, -1, len(nodes), 1)
        logits = torch.cat([logits, column], dim=3)
    weights = logits.softmax(3, dtype=torch.float32).to(query.dtype)[..., : key.shape[2]]
    return (weights @ value.repeat_interleave(2, dim=1)).transpose(1, 2)


def metadata_of(forest, prefix):
    return AttentionMetadata(forest.position_ids, forest.subtree_end, prefix_length=prefix)


@pytest.mark.parametrize("extra", EXTRAS.values(), ids=EXTRAS.keys())
@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS.keys())
def test_reference_is_what_the_rule_says(window, extra):
    forest = random_forest(40, 7)
    arguments = tensors(forest.num_nodes, 7, torch.float64)
    metadata = metadata_of(forest, 7)
    expected = by_loops(*arguments, metadata, window, 0.4, **extra)
    torch.testing.assert_close(
        forest_attention_reference(*arguments, metadata, window, 0.4, **extra), expected, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("extra", EXTRAS.values(), ids=EXTRAS.keys())
@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS.keys())
@pytest.mark.parametrize(("nodes", "prefix"), SIZES, ids=[f"N={n} P={p}" for n, p in SIZES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_blocks_equal_the_reference(dtype, nodes, prefix, window, extra, monkeypatch):
    monkeypatch.setitem(BLOCK_ROWS, "cpu", 64)  # so that a pass has several blocks
    forest = random_forest(nodes, prefix)
    arguments = tensors(forest.num_nodes, prefix, dtype)
    metadata = metadata_of(forest, prefix)
    own = forest_attention(*arguments, metadata, window, 0.4, **extra)
    exact = tensors(forest.num_nodes, prefix, dtype, as_float64=True)
    reference = forest_attention_reference(*exact, metadata, window, 0.4, **extra)
    same_dtype = eager_in_its_dtype(*arguments, metadata, window, 0.4, **extra)
    assert own.shape == (1, forest.num_nodes, 4, 6)
    allowed = 2 * float((same_dtype.double() - reference).abs().max()) + 1e-6
    assert float((own.double() - reference).abs().max()) <= allowed


@settings(deadline=None, max_examples=30)
@given(
    nodes=st.integers(1, 60),
    prefix=st.integers(0, 12),
    seed=st.integers(0, 99),
    sliding=st.none() | st.integers(1, 9),
    chunk=st.none() | st.integers(1, 9),
)
def test_blocks_equal_the_reference_under_any_window(nodes, prefix, seed, sliding, chunk):
    forest = random_forest(nodes, prefix, seed)
    arguments = tensors(forest.num_nodes, prefix, torch.float64, seed)
    window, metadata = LayerWindow(sliding, chunk), metadata_of(forest, prefix)
    reference = forest_attention_reference(*arguments, metadata, window, 0.4)
    torch.testing.assert_close(forest_attention(*arguments, metadata, window, 0.4), reference, rtol=0, atol=1e-12)


def test_blocks_read_only_what_they_can_see(monkeypatch):
    monkeypatch.setitem(BLOCK_ROWS, "cpu", 16)
    metadata = metadata_of(random_forest(400, 30), 30)
    blocks = metadata.once(query_blocks, LayerWindow(sliding=4), torch.device("cpu"))
    assert max(len(block.key_rows) for block in blocks) < 60
    assert min(block.prefix_start for block in blocks) == 27
    assert metadata.once(query_blocks, LayerWindow(sliding=4), torch.device("cpu")) is blocks


def test_a_pass_without_nodes_attends_to_nothing():
    metadata = AttentionMetadata(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int32))
    assert forest_attention(*tensors(0, 0), metadata, LayerWindow(), 0.4).shape == (1, 0, 4, 6)


def attend(module=None, **options):
    query, key, value, _ = tensors(4, 0)
    return decodner_attention(module or SimpleNamespace(layer_idx=0), query, key, value, None, 0.4, **options)[0]


def chain_metadata(**options):
    return AttentionMetadata(torch.arange(4), torch.full((4,), 3, dtype=torch.int32), **options)


def expected_with(window):
    return forest_attention_reference(*tensors(4, 0), chain_metadata(), window, 0.4)


def test_the_window_comes_from_the_call_then_the_module_then_the_configuration():
    table = chain_metadata(layer_windows=[LayerWindow(sliding=3)])
    own = SimpleNamespace(layer_idx=0, sliding_window=2)
    cases = [
        (attend(own, forest_metadata=table, sliding_window=1), LayerWindow(sliding=1)),
        (attend(own, forest_metadata=table, sliding_window=None), LayerWindow()),
        (attend(own, forest_metadata=table, sliding_window=NOT_PASSED), LayerWindow(sliding=2)),
        (attend(forest_metadata=table), LayerWindow(sliding=3)),
        (
            attend(forest_metadata=chain_metadata(layer_windows=[LayerWindow(chunk=2)]), sliding_window=1),
            LayerWindow(chunk=2),
        ),
    ]
    for attended, window in cases:
        torch.testing.assert_close(attended, expected_with(window), rtol=0, atol=1e-5)


def test_bias_and_sparsity_of_the_models_own_are_refused():
    for name in ("position_bias", "block_indices"):
        with pytest.raises(ValueError, match="its own bias or sparsity"):
            attend(forest_metadata=chain_metadata(), **{name: torch.zeros(1)})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["other dtype", "other heads"])
def test_a_cached_prefix_of_another_kind_is_refused(dtype):
    cache = DualBufferCache()
    heads = 2 if dtype == torch.float64 else 3
    cache.write_prefix(0, 0, torch.zeros(1, heads, 2, 8, dtype=dtype), torch.zeros(1, heads, 2, 6, dtype=dtype))
    cache.commit(2)
    with pytest.raises(ValueError, match="encode the prefix again with this model"):
        attend(forest_metadata=chain_metadata(cache=cache, prefix_length=2))


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gemma2", "gpt_oss", "gpt2", "cohere2"])
def test_without_metadata_it_is_the_models_ordinary_attention(model_type):
    native = tiny_model(tiny_config(model_type))
    input_ids = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(0))
    padding = torch.ones(2, 12, dtype=torch.int64)
    padding[1, :5] = 0
    expected = [native(input_ids=input_ids, attention_mask=mask).logits for mask in (None, padding)]
    native.set_attn_implementation("decodner")
    own = [native(input_ids=input_ids, attention_mask=mask).logits for mask in (None, padding)]
    torch.testing.assert_close(own[0], expected[0], rtol=0, atol=5e-5)
    torch.testing.assert_close(own[1][0], expected[1][0], rtol=0, atol=5e-5)
    torch.testing.assert_close(own[1][1, 5:], expected[1][1, 5:], rtol=0, atol=5e-5)
    assert float((own[0] - own[1]).abs().max()) > 0.1
