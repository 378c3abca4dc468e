"""Rows kept from earlier rounds: each round's rows equal those of the whole forest in one pass."""

from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch
from architectures import tiny_config, tiny_model
from rounds import attend_in_rounds, random_rounds

from decodner_hf import DecodNERForSpanClassification, DualBufferCache
from decodner_hf.core.attention_metadata import AttentionMetadata
from decodner_hf.core.attention_torch import BLOCK_ROWS, forest_attention, forest_attention_reference
from decodner_hf.core.compatibility import input_device
from decodner_hf.core.kept_rows import KeptRows
from decodner_hf.core.label_head import last_hidden_states
from decodner_hf.core.layer_window import LayerWindow

WINDOWS = {
    "full": LayerWindow(),
    "sliding": LayerWindow(sliding=7),
    "chunked": LayerWindow(chunk=8),
    "both": LayerWindow(sliding=5, chunk=16),
}
EXTRAS = {
    "plain": (None, None),
    "softcap": (1.5, None),
    "sinks": (None, torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)),
    "both": (1.5, torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)),
}


def tensors(rounds, seed):
    generator = torch.Generator().manual_seed(seed)
    nodes, prefix = rounds.forest.num_nodes, rounds.prefix_length

    def draw(*shape):
        return 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)

    cached = (draw(1, 2, prefix, 8), draw(1, 2, prefix, 6)) if prefix else None
    return draw(1, 4, nodes, 8), draw(1, 2, nodes, 8), draw(1, 2, nodes, 6), cached


@pytest.mark.parametrize("extra", EXTRAS.values(), ids=EXTRAS.keys())
@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS.keys())
@pytest.mark.parametrize("backend", [forest_attention, forest_attention_reference], ids=["blocks", "reference"])
def test_rounds_equal_the_whole_forest_in_one_pass(backend, window, extra, monkeypatch):
    monkeypatch.setitem(BLOCK_ROWS, "cpu", 16)
    counts = set()
    for seed in range(12):
        rounds = random_rounds(seed, prefix_length=(0, 5, 21)[seed % 3], offset=100 * (seed % 2))
        query, key, value, cached = tensors(rounds, seed)
        expected = forest_attention_reference(query, key, value, cached, rounds.whole(), window, 0.4, *extra)

        def attend(queries, keys, values, metadata, cached=cached):
            return backend(queries, keys, values, cached, metadata, window, 0.4, *extra)

        found = attend_in_rounds(rounds, attend, query, key, value)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
        counts.add(len(rounds.rows))
    assert max(counts) == 3


def states_in_rounds(model, rounds, cache, kept):
    """The last hidden states [N, hidden size] of a forest; the rows stay in `kept`."""
    found = None
    for nodes in rounds.rows:
        metadata = rounds.metadata(nodes, kept, cache=cache, layer_windows=model.layer_windows)
        states = last_hidden_states(model.backbone, rounds.forest.token_ids[nodes], metadata.position_ids, metadata)
        found = states.new_full((rounds.forest.num_nodes, states.shape[1]), float("nan")) if found is None else found
        found[nodes] = states
        kept.commit(metadata.own_rows())
    return found


@pytest.mark.usefixtures("float64_softmax")
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2", "gpt_oss", "cohere2", "diffllama"])
@torch.no_grad()
def test_every_kind_of_decoder_runs_in_rounds(kind):
    torch.manual_seed(0)
    native = tiny_model(tiny_config(kind)).double()
    model = DecodNERForSpanClassification.from_backbone(native)
    assert input_device(model.backbone).type == "cpu"
    cache = model.encode_prefix(torch.arange(11))
    for seed in range(6):
        rounds = random_rounds(seed, prefix_length=11)
        whole = rounds.whole(cache=cache, layer_windows=model.layer_windows)
        expected = last_hidden_states(model.backbone, rounds.forest.token_ids, whole.position_ids, whole)
        found = states_in_rounds(model, rounds, cache, KeptRows())
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@torch.no_grad()
def test_groups_share_a_pass_and_leave_it_one_after_the_other():
    torch.manual_seed(0)
    model = DecodNERForSpanClassification.from_backbone(tiny_model(tiny_config("mistral")).double())
    cache = model.encode_prefix(torch.arange(11))
    several = (random_rounds(seed, 11, documents=2) for seed in count())
    first = next(rounds for rounds in several if len(rounds.rows) == 3)
    second = replace(next(rounds for rounds in several if len(rounds.rows) == 3), offset=1000)
    passes = [[(first, 0)], [(first, 1), (second, 0)], [(second, 1), (first, 2)], [(second, 2)]]
    kept = KeptRows()
    found = {
        id(group): torch.full((group.forest.num_nodes, 32), float("nan"), dtype=torch.float64)
        for group in (first, second)
    }
    for parts in passes:
        nodes = [group.rows[turn] for group, turn in parts]
        pieces = [group.metadata(rows, None) for (group, _), rows in zip(parts, nodes, strict=True)]
        metadata = AttentionMetadata(
            torch.cat([piece.position_ids for piece in pieces]),
            torch.cat([piece.subtree_end for piece in pieces]),
            prefix_length=11,
            cache=cache,
            layer_windows=model.layer_windows,
            numbers=torch.cat([piece.numbers for piece in pieces]),
            kept_rows=kept,
        )
        token_ids = torch.cat([group.forest.token_ids[rows] for (group, _), rows in zip(parts, nodes, strict=True)])
        states = last_hidden_states(model.backbone, token_ids, metadata.position_ids, metadata)
        for (group, _), rows, part in zip(parts, nodes, states.split([len(rows) for rows in nodes]), strict=True):
            found[id(group)][rows] = part
        kept.commit(metadata.own_rows())
        if parts is passes[2]:  # the first group is done
            kept.select(np.flatnonzero(kept.structure.numbers >= 1000)[::-1])
    assert kept.num_rows == second.forest.num_nodes
    for group in (first, second):
        whole = group.whole(cache=cache, layer_windows=model.layer_windows)
        expected = last_hidden_states(model.backbone, group.forest.token_ids, whole.position_ids, whole)
        torch.testing.assert_close(found[id(group)], expected, rtol=0, atol=1e-9)


def test_a_pass_that_fails_half_way_leaves_the_kept_rows_as_they_were():
    kept = KeptRows()
    rounds = random_rounds(1, 0)
    key = torch.randn(1, 2, 3, 8)
    kept.write(0, 0, key, key)
    kept.commit(rounds.metadata(torch.arange(3), None).own_rows())
    kept.write(0, 0, key + 1, key + 1)
    assert kept.num_rows == 3
    assert torch.equal(kept.read(0, 0)[0], key)


def test_more_rows_than_there_is_room_for_are_refused():
    kept = KeptRows(4)
    key = torch.zeros(1, 2, 5, 8)
    with pytest.raises(ValueError, match=r"0 rows are kept and 5 more were given, but there is room for 4"):
        kept.write(0, 0, key, key)


def test_kept_rows_without_numbers_are_refused():
    kept = KeptRows()
    kept.commit(random_rounds(1, 0).whole().own_rows())
    with pytest.raises(ValueError, match="give the nodes' numbers"):
        AttentionMetadata(torch.arange(2), torch.tensor([1, 1]), kept_rows=kept)


def test_a_cache_can_be_written_in_the_same_pass():
    model = DecodNERForSpanClassification.from_backbone(tiny_model(tiny_config("llama")))
    cache, kept = DualBufferCache(), KeptRows()
    metadata = AttentionMetadata(
        torch.arange(4), torch.full((4,), 3, dtype=torch.int32), cache=cache, write=True, kept_rows=kept
    )
    with torch.no_grad():
        last_hidden_states(model.backbone, torch.arange(4), metadata.position_ids, metadata)
    cache.commit(4)
    kept.commit(metadata.own_rows())
    for mine, theirs in zip(kept.read(1, 0), cache.read_prefix(1, 0), strict=True):
        assert torch.equal(mine, theirs)
