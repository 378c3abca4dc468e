import pytest
import torch
from tiny_training import fixed_rows, open_rows
from torch.nn.attention.flex_attention import flex_attention
from window_rule import visible

from decodner_hf.core.attention_flex import BLOCK, flex_block_mask, flex_supports, forest_attention_flex
from decodner_hf.core.attention_metadata import AttentionMetadata
from decodner_hf.core.attention_torch import forest_attention_reference
from decodner_hf.core.layer_window import LayerWindow


@pytest.mark.parametrize(
    "window",
    [LayerWindow(), LayerWindow(sliding=20), LayerWindow(chunk=32)],
    ids=["full", "sliding", "chunked"],
)
def test_flex_mask_is_the_forest_rule(window):
    row = fixed_rows(row_tokens=1024)[0]
    positions, ends = torch.from_numpy(row["position_ids"][0]), torch.from_numpy(row["subtree_end"][0])
    mask = flex_block_mask(AttentionMetadata(positions, ends), window, torch.device("cpu"))
    nodes = torch.arange(len(ends))
    rule = (nodes[None] <= nodes[:, None]) & (nodes[:, None] <= ends[None]) & visible(window, positions, positions)
    assert torch.equal(mask.mask_mod(0, 0, nodes[:, None], nodes[None]), rule)
    tiles = rule.view(len(ends) // BLOCK, BLOCK, -1, BLOCK)
    listed = dense(mask.kv_num_blocks, mask.kv_indices)
    full = dense(mask.full_kv_num_blocks, mask.full_kv_indices)
    assert not (listed & full).any()
    assert (listed | full)[tiles.any(3).any(1)].all()
    assert tiles.all(3).all(1)[full].all()
    assert torch.equal(dense(mask.q_num_blocks, mask.q_indices), listed.T)
    assert torch.equal(dense(mask.full_q_num_blocks, mask.full_q_indices), full.T)


def dense(counts, indices):
    found = torch.zeros(indices.shape[2:], dtype=torch.bool)
    for line, count in enumerate(counts[0, 0].tolist()):
        found[line, indices[0, 0, line, :count].long()] = True
    return found


def test_flex_attention_equals_the_reference():
    row = open_rows()[0]
    positions, ends = torch.from_numpy(row["position_ids"][0]), torch.from_numpy(row["subtree_end"][0])
    window = LayerWindow(sliding=40)
    mask = flex_block_mask(AttentionMetadata(positions, ends), window, torch.device("cpu"))
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(1, 4, len(ends), 16),
        torch.randn(1, 2, len(ends), 16),
        torch.randn(1, 2, len(ends), 16),
    )
    own = flex_attention(query, key, value, block_mask=mask, scale=0.3, enable_gqa=True).transpose(1, 2)
    metadata = AttentionMetadata(positions, ends)
    expected = forest_attention_reference(query, key, value, None, metadata, window, 0.3)
    assert (own - expected).abs().max() < 1e-5


def test_flex_refuses_what_it_cannot_do():
    query = torch.zeros(1, 2, 256, 16)
    assert flex_supports(query, query, None, None)
    assert not flex_supports(query[:, :, :200], query, None, None)
    assert not flex_supports(query, query, None, torch.zeros(2))
    assert not flex_supports(query, query, (query, query), None)
    with pytest.raises(ValueError, match="use forest_attention"):
        forest_attention_flex(query, query, query, None, None, LayerWindow(), 1.0, None, torch.zeros(2))
