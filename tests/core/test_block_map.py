import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rounds import random_rounds
from window_rule import visible

from decodner_hf.core.attention_metadata import AttentionMetadata
from decodner_hf.core.block_map import TILE_COLUMNS, TileShape, block_map_arrays, make_block_map
from decodner_hf.core.forest import SpanPaths, build_forest
from decodner_hf.core.kept_rows import KeptRows, RowStructure
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


def pairs_among_rows(metadata, window):
    """[N, K + N]: which of a later round's nodes see which rows."""
    own, rows = metadata.own_rows(), metadata.key_rows()
    ancestor = (rows.numbers <= own.numbers[:, None]) & (own.numbers[:, None] <= rows.subtree_end)
    inside = visible(window, torch.from_numpy(own.positions), torch.from_numpy(rows.positions)).numpy()
    return ancestor & inside


def tile_nodes(tile, shape, num_nodes):
    rows = np.arange(tile * shape.block_m, (tile + 1) * shape.block_m) // shape.group
    return np.unique(rows[rows < num_nodes])


def block_map(forest, prefix_length, window, shape):
    """The query tiles [T, 8] and the key starts [K] of a forest's tables."""
    metadata = AttentionMetadata(forest.position_ids, forest.subtree_end, prefix_length)
    tables = metadata.once(make_block_map, window, shape, CPU).tables
    query_tiles = -(-forest.num_nodes * shape.group // shape.block_m)
    sizes = [query_tiles * TILE_COLUMNS, (4 if window.is_limited else 2) * forest.num_nodes]
    table, nodes, starts = tables.split([*sizes, len(tables) - sum(sizes)])
    assert tables.dtype == torch.int32
    assert torch.equal(nodes[forest.num_nodes : 2 * forest.num_nodes], forest.subtree_end)
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
    forest = random_forest(np.random.default_rng(seed), prefix_length)
    shape = TileShape(block_m, *key_blocks, group)
    table, starts = block_map(forest, prefix_length, window, shape)
    check_tiles(table, starts.numpy(), visible_pairs(forest, window), shape)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    block_m=st.sampled_from([16, 32, 64]),
    key_blocks=st.sampled_from([(4, 8), (8, 8), (8, 16), (16, 32)]),
    group=st.sampled_from([1, 3, 4]),
    prefix_length=st.sampled_from([0, 40]),
    window=st.sampled_from([LayerWindow(), LayerWindow(sliding=7), LayerWindow(sliding=30), LayerWindow(5, 8)]),
)
def test_key_tiles_of_later_rounds_hold_every_visible_pair_once(
    seed, block_m, key_blocks, group, prefix_length, window
):
    rounds, shape, kept = random_rounds(seed, prefix_length), TileShape(block_m, *key_blocks, group), KeptRows()
    for nodes in rounds.rows:
        metadata = rounds.metadata(nodes, kept)
        query_tiles = -(-len(nodes) * group // block_m)
        arrays = block_map_arrays(metadata, window, shape)
        table = torch.from_numpy(arrays[0]).view(query_tiles, TILE_COLUMNS)
        assert all(array.dtype == np.int32 for array in arrays)
        check_tiles(table, np.concatenate(arrays[-2:]), pairs_among_rows(metadata, window), shape)
        kept.commit(metadata.own_rows())


@pytest.mark.parametrize("window", [LayerWindow(), LayerWindow(sliding=90)], ids=["full", "sliding"])
def test_kept_rows_that_all_nodes_see_need_no_mask(window):
    ends = np.full(64, 499, np.int32)
    kept = KeptRows()
    kept.commit(RowStructure(np.arange(64, dtype=np.int32)[::-1], ends, np.arange(64, dtype=np.int32)[::-1]))
    numbers = torch.arange(64, 72, dtype=torch.int32)
    metadata = AttentionMetadata(
        numbers.long(), torch.full((8,), 499, dtype=torch.int32), 0, None, numbers=numbers, kept_rows=kept
    )
    table = block_map_arrays(metadata, window, TileShape(16, 8, 8, 1))[0].reshape(1, TILE_COLUMNS)
    assert table[0, 4] - table[0, 3] == 8
    assert table[0, 2] - table[0, 1] == 1


def check_tiles(table, starts, pairs, shape):
    """Every visible pair is in one key tile, and full tiles hold no other."""
    num_nodes, num_rows = pairs.shape
    assert sorted(table[:, 0].tolist()) == list(range(-(-num_nodes * shape.group // shape.block_m)))
    for tile, partial, partial_end, full, full_end, *_ in table.tolist():
        rows = tile_nodes(tile, shape, num_nodes)
        met = np.zeros(num_rows, int)
        for start in starts[partial:partial_end]:
            assert start + shape.block_n <= num_rows
            met[max(start, 0) : start + shape.block_n] += 1
        for start in starts[full:full_end]:
            assert start >= 0
            assert pairs[np.ix_(rows, np.arange(start, start + shape.block_p))].all()
            met[start : start + shape.block_p] += 1
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
