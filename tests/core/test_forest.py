import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decodner_hf import SpanPaths, build_forest
from decodner_hf.core.forest import MAX_TOKEN_ID, rows_forest

TOKENS = st.integers(0, 3)
SPAN = st.lists(TOKENS, min_size=1, max_size=5)
DOCUMENTS = st.lists(st.tuples(st.lists(TOKENS, max_size=4), st.lists(SPAN, max_size=8)), max_size=4)
FAST = settings(deadline=None, max_examples=150)


def built(documents, **options):
    chains = [chain for chain, _ in documents]
    return build_forest(chains, [SpanPaths.from_lists(spans) for _, spans in documents], **options)


def ancestors(forest, node):
    return [other for other in range(node + 1) if other <= node <= int(forest.subtree_end[other])]


def tokens_on_the_way(forest, node):
    return forest.token_ids[ancestors(forest, node)].tolist()


@FAST
@given(documents=DOCUMENTS, first=st.integers(0, 9), cue=st.lists(TOKENS, max_size=2))
def test_every_span_end_sees_its_document_its_span_and_the_cue(documents, first, cue):
    forest = built(documents, first_position=first, cue_token_ids=cue)
    expected = [chain + span + cue for chain, spans in documents for span in spans]
    assert [tokens_on_the_way(forest, node) for node in forest.span_nodes.tolist()] == expected
    assert forest.cu_spans.tolist() == np.cumsum([0, *(len(spans) for _, spans in documents)]).tolist()


@FAST
@given(documents=DOCUMENTS, first=st.integers(0, 9))
def test_the_rule_is_the_ancestor_closure_of_a_pre_order_without_duplicates(documents, first):
    forest = built(documents, first_position=first)
    ends, positions = forest.subtree_end.tolist(), forest.position_ids.tolist()
    for node in range(forest.num_nodes):
        line = ancestors(forest, node)
        assert positions[node] == first + len(line) - 1
        assert all(ends[node] <= ends[above] for above in line)
    starts = forest.cu_nodes.tolist()
    for start, end, (chain, spans) in zip(starts, starts[1:], documents, strict=False):
        paths = {tuple(chain[: depth + 1]) for depth in range(len(chain))}
        paths |= {tuple(chain + span[: depth + 1]) for span in spans for depth in range(len(span))}
        assert end - start == len(paths)
        assert {tuple(tokens_on_the_way(forest, node)) for node in range(start, end)} == paths


@FAST
@given(documents=DOCUMENTS.filter(bool), chain=st.lists(TOKENS, min_size=1, max_size=3), first=st.integers(0, 9))
def test_below_hangs_every_node_under_the_chain(documents, chain, first):
    forest = built(documents, first_position=first)
    below = forest.below(chain)
    assert below.position_ids.min() == first if forest.num_nodes else True
    expected = [chain + tokens_on_the_way(forest, node) for node in range(forest.num_nodes)]
    assert [tokens_on_the_way(below, node) for node in range(len(chain), below.num_nodes)] == expected
    assert below.cu_nodes[-1] == below.num_nodes
    assert below.cu_nodes[0] == 0
    assert (below.span_nodes - forest.span_nodes == len(chain)).all()


def test_below_continues_the_positions_of_the_chain():
    below = built([([5], [[6], [6, 7]])], first_position=4).below([1, 2])
    assert below.position_ids.tolist() == [4, 5, 6, 7, 8]
    assert below.subtree_end.tolist() == [4, 4, 4, 4, 4]


@FAST
@given(documents=DOCUMENTS.filter(bool))
def test_documents_lie_side_by_side_as_each_does_alone(documents):
    together, alone = built(documents), [built([document]) for document in documents]
    nodes = np.cumsum([0, *(forest.num_nodes for forest in alone)]).tolist()
    spans = np.cumsum([0, *(forest.num_spans for forest in alone)]).tolist()
    assert (together.cu_nodes.tolist(), together.cu_spans.tolist()) == (nodes, spans)
    for name in ("token_ids", "position_ids"):
        assert torch.equal(getattr(together, name), torch.cat([getattr(forest, name) for forest in alone]))
    for name in ("subtree_end", "span_nodes"):
        parts = [getattr(forest, name) + first for forest, first in zip(alone, nodes, strict=False)]
        assert torch.equal(getattr(together, name), torch.cat(parts)), name


@FAST
@given(document=st.lists(TOKENS, max_size=7), width=st.integers(1, 4), chain=st.lists(TOKENS, max_size=2))
def test_spans_that_share_a_path_give_the_same_forest_as_lists(document, width, chain):
    windows = [document[start : start + width] for start in range(len(document))]
    lengths = np.array([len(window) for window in windows], np.int64)
    shared = SpanPaths(
        token_ids=np.array([token for window in windows for token in window], np.int64),
        cu_seqlens=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        span_path=np.repeat(np.arange(len(windows)), lengths),
        span_length=np.array([n + 1 for length in lengths for n in range(length)], np.int64),
    )
    spans = [window[: n + 1] for window in windows for n in range(len(window))]
    one, other = build_forest([chain], [shared]), build_forest([chain], [SpanPaths.from_lists(spans)])
    for name, tensor in vars(one).items():
        assert torch.equal(getattr(other, name), tensor), name


def test_rows_are_chains_of_their_own():
    forest = rows_forest(torch.tensor([[5, 6, 0], [5, 7, 8]]), 10)
    assert forest.position_ids.tolist() == [10, 11, 12] * 2
    assert [tokens_on_the_way(forest, node) for node in range(6)] == [[5], [5, 6], [5, 6, 0], [5], [5, 7], [5, 7, 8]]


def test_large_token_ids_keep_their_order_and_type():
    forest = built([([MAX_TOKEN_ID], [[MAX_TOKEN_ID, 0], [MAX_TOKEN_ID], [MAX_TOKEN_ID, MAX_TOKEN_ID - 1]])])
    assert forest.num_nodes == 4
    assert forest.span_nodes.tolist() == [2, 1, 3]
    assert [forest.token_ids.dtype, forest.subtree_end.dtype] == [torch.int64, torch.int32]
    assert forest.to("cpu").token_ids.tolist() == forest.token_ids.tolist()


def test_no_documents_and_no_spans_are_forests_too():
    assert build_forest([]).num_nodes == 0
    chain = build_forest([[7, 8]], first_position=3)
    assert (chain.num_spans, chain.subtree_end.tolist(), chain.position_ids.tolist()) == (0, [1, 1], [3, 4])


def paths(path, length, token_ids=(1, 2)):
    return SpanPaths(np.array(token_ids), np.array([0, len(token_ids)]), np.array([path]), np.array([length]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda: build_forest([[1]], []), "1 chains but 0 lists of spans", id="lists missing"),
        pytest.param(lambda: built([([1], [[2], []])]), "span 1 is empty", id="empty span"),
        pytest.param(lambda: build_forest([[]], [paths(0, 3)]), "3 tokens, its path only 2", id="longer than path"),
        pytest.param(
            lambda: build_forest([[]], [paths(1, 1)]), "a path that its document does not", id="no such path"
        ),
        pytest.param(lambda: build_forest([[]], [paths(-1, 1)]), "a path that its document does not", id="path -1"),
        pytest.param(lambda: build_forest([[1, -2]]), r"but -2..1 were given", id="negative token"),
        pytest.param(lambda: built([([], [[2**31]])]), "token ids must lie in", id="token beyond int32"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
