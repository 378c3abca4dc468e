import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from window_rule import visible

from decodner_hf.core.attention_metadata import AttentionMetadata
from decodner_hf.core.block_map import TILE_COLUMNS, TileShape, make_block_map
from decodner_hf.core.forest import SpanPaths, build_forest
from decodner_hf.core.layer_window import LayerWindow

CPU = torch.device("cpu")


def random_forest(random, prefix_length, documents=3):
    chains = [random.integers(0, 9, random.integers(0, 30)).tolist() for _ in range(documents)]
    paths = [
        SpanPaths.from_lists([random.integers(0, 3, random.integers(1, 6)).tolist() for _ in range(8)]) for _ in chains
    ]
    return build_forest(chains, paths, first_position=prefix_length)


def visible_pairs(forest, window):
    nodes = torch.arange(forest.num_nodes)
    ancestor = (nodes[None, :] <= nodes[:, None]) & (nodes[:, None] <= forest.subtree_end[None, :])
    return (ancestor & visible(window, forest.position_ids, forest.position_ids)).numpy()


def tile_nodes(tile, shape, num_nodes):
    rows = np.arange(tile * shape.block_m, (tile + 1) * shape.block_m) // shape.group
    return np.unique(rows[rows < num_nodes])


def block_map(forest, prefix_length, window, shape):
    """The query tiles [T, 8] and the key starts [K] of a forest's tables."""
    metadata = AttentionMetadata(forest.position_ids, forest.subtree_end, prefix_length)
    tables = metadata.once(make_block_map, window, shape, CPU).tables
    query_tiles = -(-forest.num_nodes * shape.group // shape.block_m)
    sizes = [query_tiles * TILE_COLUMNS, (3 if window.is_limited else 1) * forest.num_nodes]
    table, nodes, starts = tables.split([*sizes, len(tables) - sum(sizes)])
    assert tables.dtype == torch.int32
    assert torch.equal(nodes[: forest.num_nodes], forest.subtree_end)
    return table.view(query_tiles, TILE_COLUMNS), starts


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    block_m=st.sampled_from([16, 32, 64]),
    key_blocks=st.sampled_from([(4, 8), (8, 8), (8, 16), (16, 32)]),
    group=st.sampled_from([1, 3, 4, 24]),
    prefix_length=st.sampled_from([0, 5, 40]),
    window=st.sampled_from([LayerWindow(), LayerWindow(sliding=7), LayerWindow(sliding=30), LayerWindow(5, 8)]),
)
def test_key_tiles_hold_every_visible_pair_once_and_full_tiles_nothing_else(
    seed, block_m, key_blocks, group, prefix_length, window
):
    block_n, block_p = key_blocks
    forest = random_forest(np.random.default_rng(seed), prefix_length)
    shape = TileShape(block_m, block_n, block_p, group)
    table, starts = block_map(forest, prefix_length, window, shape)
    pairs, starts = visible_pairs(forest, window), starts.numpy()
    assert sorted(table[:, 0].tolist()) == list(range(-(-forest.num_nodes * group // block_m)))
    for tile, partial, partial_end, full, full_end, *_ in table.tolist():
        rows = tile_nodes(tile, shape, forest.num_nodes)
        met = np.zeros(forest.num_nodes, int)
        for start in starts[partial:partial_end]:
            met[max(start, 0) : start + block_n] += 1
        for start in starts[full:full_end]:
            assert start >= 0
            assert pairs[np.ix_(rows, np.arange(start, start + block_p))].all()
            met[start : start + block_p] += 1
        assert met.max() == 1
        assert not pairs[rows][:, met == 0].any()


@pytest.mark.parametrize("window", [LayerWindow(sliding=40), LayerWindow(chunk=48)], ids=["sliding", "chunk"])
def test_full_tiles_under_a_window_are_inside_it_for_every_row(window):
    forest = build_forest([list(range(200))])
    table, starts = block_map(forest, 0, window, TileShape(16, 8, 8, 1))
    pairs = visible_pairs(forest, window)
    fulls = 0
    for tile, _, _, full, full_end, *_ in table.tolist():
        for start in starts[full:full_end].tolist():
            assert pairs[tile * 16 : tile * 16 + 16, start : start + 8].all()
            fulls += 1
    assert fulls > 10


@pytest.mark.parametrize("group", [1, 4])
def test_tiles_without_an_ancestor_are_left_out(group):
    chains = [list(range(64))] * 8
    forest = build_forest(chains)
    table, _ = block_map(forest, 0, LayerWindow(), TileShape(64, 64, 64, group))
    partial, full = table[:, 2] - table[:, 1], table[:, 4] - table[:, 3]
    assert partial.max() <= 2
    assert full.max() == 0


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    prefix_length=st.sampled_from([0, 5, 16, 70]),
    window=st.sampled_from([LayerWindow(), LayerWindow(sliding=30), LayerWindow(chunk=32), LayerWindow(20, 32)]),
)
def test_prefix_bounds_hold_every_visible_entry_and_need_no_mask_after_the_second(seed, prefix_length, window):
    forest = random_forest(np.random.default_rng(seed), prefix_length)
    shape = TileShape(32, 4, 8, 2)
    table, _ = block_map(forest, prefix_length, window, shape)
    pairs = visible(window, forest.position_ids, torch.arange(prefix_length)).numpy()
    whole = prefix_length // shape.block_p * shape.block_p
    for tile, *_, first, unmasked, _ in table.tolist():
        seen = pairs[tile_nodes(tile, shape, forest.num_nodes)]
        assert first % shape.block_p == unmasked % shape.block_p == 0
        assert first <= unmasked <= whole
        assert not seen[:, :first].any()
        assert seen[:, unmasked:whole].all()


def test_tiles_with_most_work_come_first():
    forest = build_forest([list(range(200)), [1, 2, 3]])
    table, _ = block_map(forest, 0, LayerWindow(), TileShape(16, 16, 16, 1))
    work = (table[:, 2] - table[:, 1] + table[:, 4] - table[:, 3]).tolist()
    assert work == sorted(work, reverse=True)
    assert work[0] > work[-1]


def test_a_forest_without_nodes_has_no_tiles():
    forest = build_forest([])
    table, starts = block_map(forest, 3, LayerWindow(), TileShape(16, 16, 16, 1))
    assert table.shape == (0, 8)
    assert starts.shape == (0,)
