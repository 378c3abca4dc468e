from itertools import chain, combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decodner_hf.core.decoding import Entity, decode_entities, label_scores, merge_shards
from decodner_hf.core.low_level import get_entity_scores
from decodner_hf.core.selection import LOGIT_MARGIN, WEIGHT_UNITS, select_spans

# Few values, so that ties, scores at the threshold and scores of 0 and 1 are common.
VALUES = st.sampled_from([0.0, 0.2, 0.3, 0.5, 0.500001, 0.8, 0.9, 1.0])
FAST = settings(deadline=None, max_examples=150)


@st.composite
def candidates(draw, max_spans=7, max_labels=3, width=6):
    labels = draw(st.integers(1, max_labels))
    row = st.tuples(
        st.integers(0, width - 1), st.integers(1, width), st.lists(VALUES, min_size=labels, max_size=labels)
    )
    rows = draw(st.lists(row, max_size=max_spans))
    start = np.array([first for first, _, _ in rows], np.int64)
    end = start + np.array([length for _, length, _ in rows], np.int64)
    scores = np.array([[0.1, *values] for _, _, values in rows]).reshape(len(rows), labels + 1)
    thresholds = np.array(draw(st.lists(VALUES, min_size=labels, max_size=labels)))
    return start, end, scores, thresholds


def eligible_by_definition(start, end, scores, thresholds, multi_label=False):
    """(start, -end, label, span, score) of every candidate that may be reported, repeated spans merged, sorted."""
    best = {}
    for span in range(len(start)):
        passing = [label for label, limit in enumerate(thresholds) if scores[span, label + 1] >= limit]
        if not multi_label:
            passing = sorted(passing, key=lambda label: (-scores[span, label + 1], label))[:1]
        for label in passing:
            key = (start[span], -end[span], label if multi_label else None)
            rank = (-scores[span, label + 1], label, span)
            best[key] = min(best.get(key, rank), rank)
    return sorted((key[0], key[1], label, span, -score) for key, (score, label, span) in best.items())


def overlap_of(a, b):
    return a[0] < -b[1] and b[0] < -a[1]


def cross(a, b):
    return a[0] < b[0] < -a[1] < -b[1] or b[0] < a[0] < -b[1] < -a[1]


def greedy_by_definition(spans, conflict):
    chosen = []
    for span in sorted(spans, key=lambda span: (-span[4], *span)):
        if not any(conflict(span, other) for other in chosen):
            chosen.append(span)
    return sorted(chosen)


def exact_by_definition(spans, thresholds):
    def logit(p):
        p = min(max(p, LOGIT_MARGIN), 1 - LOGIT_MARGIN)
        return np.log(p) - np.log1p(-p)

    weights = [round((logit(span[4]) - logit(thresholds[span[2]])) * WEIGHT_UNITS) for span in spans]
    everything = range(len(spans))
    subsets = chain.from_iterable(combinations(everything, size) for size in range(len(spans) + 1))
    valid = [s for s in subsets if not any(overlap_of(spans[a], spans[b]) for a, b in combinations(s, 2))]
    # the largest sum; among equal sums the one that has the earliest span in reading order
    best = max(valid, key=lambda subset: (sum(weights[i] for i in subset), [i in subset for i in everything]))
    return [spans[i] for i in best]


def as_rows(start, end, selected):
    span, label, score = selected
    return [(start[s], -end[s], lab, s, value) for s, lab, value in zip(span, label, score, strict=True)]


POLICIES = {
    "flat-greedy": ("flat", "greedy", False),
    "flat-exact": ("flat", "exact", False),
    "nested": ("nested", "greedy", False),
    "all": ("all", "greedy", False),
    "all-multi-label": ("all", "greedy", True),
}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
@FAST
@given(given_spans=candidates())
def test_selection_equals_its_definition(policy, given_spans):
    start, end, scores, thresholds = given_spans
    overlap, flat_selection, multi_label = policy
    spans = eligible_by_definition(start, end, scores, thresholds, multi_label)
    if overlap == "flat":
        greedy = flat_selection == "greedy"
        expected = greedy_by_definition(spans, overlap_of) if greedy else exact_by_definition(spans, thresholds)
    else:
        expected = greedy_by_definition(spans, cross) if overlap == "nested" else spans
    assert as_rows(start, end, select_spans(start, end, scores, thresholds, *policy)) == expected


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_many_documents_at_once_equal_each_alone(policy, data):
    thresholds = np.array([0.5, 0.3])
    documents = data.draw(st.lists(candidates(max_labels=1), max_size=4))
    tables = [np.repeat(scores, [1, 2], axis=1) for _, _, scores, _ in documents]
    alone = [
        select_spans(start, end, table, thresholds, *policy)
        for (start, end, _, _), table in zip(documents, tables, strict=True)
    ]
    cu_spans = np.cumsum([0, *(len(table) for table in tables)])
    empty = np.empty(0, np.int64)
    together = select_spans(
        np.concatenate([empty, *(document[0] for document in documents)]),
        np.concatenate([empty, *(document[1] for document in documents)]),
        np.concatenate([np.empty((0, 3)), *tables]),
        thresholds,
        *policy,
        cu_spans=cu_spans,
    )
    shifted = [(span + first, label, score) for (span, label, score), first in zip(alone, cu_spans, strict=False)]
    for index, values in enumerate(together):
        assert values.tolist() == [value for document in shifted for value in document[index].tolist()]


@FAST
@given(given_spans=candidates(), seed=st.integers(0, 99))
def test_the_order_in_which_candidates_come_does_not_matter(given_spans, seed):
    start, end, scores, thresholds = given_spans
    order = np.random.default_rng(seed).permutation(len(start))
    for policy in POLICIES.values():
        one = as_rows(start, end, select_spans(start, end, scores, thresholds, *policy))
        shuffled = start[order], end[order]
        other = as_rows(*shuffled, select_spans(*shuffled, scores[order], thresholds, *policy))
        assert [(*row[:3], row[4]) for row in one] == [(*row[:3], row[4]) for row in other]


def select_one(values, thresholds, **options):
    span, label, score = select_spans([0], [3], [values], thresholds, **options)
    return list(zip(span.tolist(), label.tolist(), score.tolist(), strict=True))


def test_flat_selection_among_many_spans_equals_its_definition():
    generator = np.random.default_rng(0)
    for _ in range(20):
        start = generator.integers(0, 60, 80)
        end = start + generator.integers(1, 9, 80)
        scores = label_scores(generator.normal(size=(80, 3)).round(1))  # with ties
        expected = greedy_by_definition(eligible_by_definition(start, end, scores, [0.2, 0.3]), overlap_of)
        assert len(expected) > 5
        assert as_rows(start, end, select_spans(start, end, scores, [0.2, 0.3])) == expected


def test_flat_selection_takes_any_offsets():
    start, end = np.array([0, 2, 5]), np.array([3, 4, 6])
    scores = label_scores(np.array([[0.0, 2.0], [0.0, 3.0], [0.0, 1.0]]))
    for scale in (1, 10**12):
        span, _, _ = select_spans(start * scale, end * scale, scores, [0.5])
        assert span.tolist() == [1, 2]


def test_a_low_threshold_reports_a_label_that_none_outscores():
    assert select_one([0.7, 0.25, 0.05], [0.5, 0.5]) == []
    assert select_one([0.7, 0.25, 0.05], [0.2, 0.5]) == [(0, 0, 0.25)]


def test_the_best_label_below_its_threshold_gives_way_to_one_above_its_own():
    assert select_one([0.1, 0.5, 0.4], [0.6, 0.3]) == [(0, 1, 0.4)]


def test_a_score_at_the_threshold_is_reported():
    for flat_selection in ("greedy", "exact"):
        assert select_one([0.5, 0.5], [0.5], flat_selection=flat_selection) == [(0, 0, 0.5)]


def test_thresholds_of_zero_and_one_are_served():
    assert select_one([1.0, 0.0], [0.0], flat_selection="exact") == [(0, 0, 0.0)]
    assert select_one([0.0, 1.0], [1.0], flat_selection="exact") == [(0, 0, 1.0)]
    assert select_one([0.01, 0.99], [1.0]) == []


def test_equal_labels_go_to_the_first():
    assert select_one([0.2, 0.4, 0.4], [0.1, 0.1]) == [(0, 0, 0.4)]


@pytest.mark.parametrize("flat_selection", ["greedy", "exact"])
def test_ties_go_to_the_earlier_then_the_longer_span(flat_selection):
    start, end = [2, 0, 0], [8, 3, 5]
    span, _, _ = select_spans(start, end, [[0.1, 0.9]] * 3, [0.5], flat_selection=flat_selection)
    assert span.tolist() == [2]


def test_exact_prefers_two_entities_to_one_better_between_them():
    start, end, scores = [0, 4, 2], [3, 7, 5], [[0.2, 0.8], [0.2, 0.8], [0.1, 0.9]]
    assert select_spans(start, end, scores, [0.5])[0].tolist() == [2]
    assert select_spans(start, end, scores, [0.5], flat_selection="exact")[0].tolist() == [0, 1]


def test_exact_weighs_a_score_against_its_own_labels_threshold():
    # 0.6 at a threshold of 0.1 is further above it than 0.8 at 0.7
    span, label, _ = select_spans([0, 1], [2, 3], [[0.1, 0.6, 0.1], [0.1, 0.1, 0.8]], [0.1, 0.7], "flat", "exact")
    assert (span.tolist(), label.tolist()) == ([0], [0])


def test_nested_keeps_what_lies_inside_and_drops_what_crosses():
    start, end = [0, 2, 4, 2], [10, 6, 12, 4]
    scores = [[0.1, 0.9], [0.3, 0.7], [0.2, 0.8], [0.4, 0.6]]
    assert select_spans(start, end, scores, [0.5], "nested")[0].tolist() == [0, 1, 3]


@pytest.mark.parametrize(("start", "end"), [([0, 4], [10, 10]), ([0, 0], [10, 4])], ids=["one end", "one start"])
@pytest.mark.parametrize("scores", [[[0, 0.6], [0, 0.9]], [[0, 0.9], [0, 0.6]]], ids=["inner first", "outer first"])
def test_nested_spans_may_share_a_boundary(start, end, scores):
    assert select_spans(start, end, scores, [0.5], "nested")[0].tolist() == [0, 1]


def test_output_is_in_reading_order_with_the_longer_span_first():
    span, label, _ = select_spans([3, 0, 0], [4, 2, 4], [[0, 1, 0.7]] * 3, [0.5, 0.6], "all", multi_label=True)
    assert list(zip(span.tolist(), label.tolist(), strict=True)) == [(2, 0), (2, 1), (1, 0), (1, 1), (0, 0), (0, 1)]


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
def test_no_candidates_no_entities(policy):
    for scores in (np.empty((0, 3)), np.zeros((2, 3))):
        starts = np.arange(len(scores))
        assert [len(part) for part in select_spans(starts, starts + 1, scores, [0.5, 0.5], *policy)] == [0, 0, 0]


LOGITS = st.lists(st.lists(st.floats(-1e4, 1e4), min_size=3, max_size=3), max_size=5).map(
    lambda rows: np.array(rows).reshape(-1, 3)
)


@FAST
@given(logits=LOGITS, temperature=st.floats(0.1, 10))
def test_scores_are_a_softmax_over_every_symbol(logits, temperature):
    scores = label_scores(logits, temperature)
    expected = torch.softmax(torch.tensor(logits) / temperature, dim=1).numpy()
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, expected, atol=1e-12)


@FAST
@given(logits=LOGITS, temperature=st.floats(0.1, 10))
def test_multi_label_scores_are_sigmoids_of_the_log_odds_against_none(logits, temperature):
    scores = label_scores(logits, temperature, multi_label=True)
    z = torch.tensor(logits) / temperature
    np.testing.assert_allclose(scores[:, 1:], torch.sigmoid(z[:, 1:] - z[:, :1]).numpy(), atol=1e-12)
    np.testing.assert_allclose(scores[:, 0], torch.sigmoid(z[:, 0] - z[:, 1:].amax(1)).numpy(), atol=1e-12)


def test_float16_logits_are_scored_in_float64_and_left_alone():
    logits = np.array([[1, 2, 3]], np.float16)
    assert label_scores(logits).sum() == pytest.approx(1, abs=1e-15)
    assert logits.tolist() == [[1, 2, 3]]
    wide = logits.astype(np.float64)
    label_scores(wide)
    assert wide.tolist() == [[1, 2, 3]]


@FAST
@given(logits=LOGITS)
def test_shards_with_equal_none_logits_are_one_softmax(logits):
    shards = [logits[:, [0, 1]], logits[:, [0, 2]]]
    np.testing.assert_allclose(label_scores(merge_shards(shards)), label_scores(logits), atol=1e-9)


def test_a_shard_counts_by_its_own_none():
    merged = merge_shards([[[5.0, 7.0]], [[-1.0, 0.0, 3.0]]])
    assert merged.tolist() == [[0.0, 2.0, 1.0, 4.0]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(value):
    logits = [[0.0, 1.0], [0.0, value]]
    with pytest.raises(ValueError, match="at span 1, column 1"):
        label_scores(logits)
    with pytest.raises(ValueError, match="shard 1 holds"):
        merge_shards([[[0.0, 1.0]] * 2, logits])


BAD_CALLS = {
    "one column": (lambda: label_scores([[1.0]]), r"not \[1, 1\]"),
    "one dimension": (lambda: label_scores([1.0, 2.0]), r"not \[2\]"),
    "temperature 0": (lambda: label_scores([[1.0, 2.0]], 0.0), "temperature"),
    "temperature NaN": (lambda: label_scores([[1.0, 2.0]], float("nan")), "temperature"),
    "no shard": (lambda: merge_shards([]), "no shard"),
    "shards of other spans": (lambda: merge_shards([[[1.0, 2.0]], [[1.0, 2.0]] * 2]), r"\[1, 2\] spans"),
    "unknown overlap": (lambda: select_one([0, 1], [0.5], overlap="none"), "overlap must be one of"),
    "unknown selection": (lambda: select_one([0, 1], [0.5], flat_selection="best"), "flat_selection must be"),
    "multi-label flat": (lambda: select_one([0, 1], [0.5], multi_label=True), "needs overlap='all'"),
    "threshold above 1": (lambda: select_one([0, 1], [1.5]), "thresholds must be from 0 to 1, but 1.5"),
    "threshold NaN": (lambda: select_one([0, 1], [np.nan]), "thresholds must be from 0 to 1, but nan"),
    "score below 0": (lambda: select_one([0, -0.1], [0.5]), "scores must be from 0 to 1, but -0.1"),
    "score NaN": (lambda: select_one([0, np.nan], [0.5]), "scores must be from 0 to 1, but nan"),
    "thresholds missing": (lambda: select_one([0, 0.2, 0.3], [0.5]), r"\[1, 3\]"),
    "spans missing": (lambda: select_spans([0, 1], [1], [[0, 1]], [0.5]), r"\[2\], \[1\]"),
    "empty span": (lambda: select_spans([2], [2], [[0, 1]], [0.5]), r"span 0 is \[2, 2\)"),
    "negative start": (lambda: select_spans([0, -1], [1, 1], [[0, 1]] * 2, [0.5]), r"span 1 is \[-1, 1\)"),
    "document bounds": (lambda: select_spans([0], [1], [[0, 1]], [0.5], cu_spans=[0, 2]), "cu_spans must ascend"),
}


@pytest.mark.parametrize(("call", "message"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def decode(logits, **options):
    spans = np.array([0, 6, 0]), np.array([5, 11, 11]), np.array([0, 1, 0]), np.array([1, 2, 2])
    return decode_entities(*spans, np.array(logits), ["PER", "ORG"], [0.5, 0.5], **options)


def test_logits_become_entities():
    [entities] = decode([[0, 9, 0], [9, 0, 0], [0, 0, 5]])
    score = float(np.exp(9) / (np.exp(9) + 2))
    assert entities == [Entity("PER", pytest.approx(score), 0, 5, 0, 1)]
    assert {type(value) for value in vars(entities[0]).values()} == {str, float, int, type(None)}


def test_entities_come_per_document_and_carry_all_scores_on_request():
    documents = decode([[0, 9, 0], [9, 0, 0], [0, 0, 5]], cu_spans=[0, 2, 2, 3], with_scores=True, temperature=2.0)
    assert [[entity.label for entity in entities] for entities in documents] == [["PER"], [], ["ORG"]]
    expected = label_scores([[0, 0, 5]], 2.0)[0, 1:].tolist()
    assert documents[2][0].scores == dict(zip(["PER", "ORG"], expected, strict=True))
    assert documents[2][0].score == documents[2][0].scores["ORG"]


def test_a_span_has_several_labels_where_asked_for():
    [entities] = decode([[0, 3, 2], [9, 0, 0], [9, 0, 0]], overlap="all", multi_label=True)
    assert [(entity.label, round(entity.score, 4)) for entity in entities] == [("PER", 0.9526), ("ORG", 0.8808)]


def test_labels_and_words_must_fit_the_logits():
    with pytest.raises(ValueError, match="2 labels but label_logits has 2 columns"):
        decode([[0.0, 1.0]] * 3)
    with pytest.raises(ValueError, match="word bounds"):
        decode([[0.0, 1.0, 2.0]] * 2)


def test_entity_scores_are_read_at_the_last_real_token():
    logits = torch.arange(2 * 3 * 5, dtype=torch.float32).reshape(2, 3, 5)
    scores = get_entity_scores(logits, [4, 1], torch.tensor([[1, 1, 0], [1, 1, 1]]))
    assert scores.tolist() == [[9.0, 6.0], [29.0, 26.0]]


def test_entity_scores_keep_dtype_and_gradient_and_take_tensors():
    logits = torch.zeros(1, 2, 5, dtype=torch.bfloat16, requires_grad=True)
    scores = get_entity_scores(logits, torch.tensor([2]), torch.tensor([[True, False]]))
    scores.sum().backward()
    assert scores.dtype == torch.bfloat16
    assert logits.grad.nonzero().tolist() == [[0, 0, 2]]


@pytest.mark.parametrize(
    ("mask", "ids", "message"),
    [
        pytest.param([[1, 1, 1], [0, 0, 0]], [0], "row 1 of attention_mask has no real token", id="empty row"),
        pytest.param([[1, 0, 1], [1, 1, 1]], [0], "row 0 of attention_mask has padding before", id="hole"),
        pytest.param([[1, 1, 1], [0, 1, 1]], [0], "row 1 of attention_mask has padding before", id="left padding"),
        pytest.param([[1, 1, 1], [2, 1, 1]], [0], "nothing else", id="mask of 2"),
        pytest.param([[1, 1], [1, 1]], [0], r"\[2, 3, 5\] and \[2, 2\]", id="mask too short"),
        pytest.param([[1, 1, 1]], [0], r"\[1, 3\]", id="rows missing"),
        pytest.param([[1, 1, 1]] * 2, [0, 5], r"\[5\] lie outside the vocabulary of 5", id="id beyond"),
        pytest.param([[1, 1, 1]] * 2, [-1], r"\[-1\] lie outside", id="negative id"),
        pytest.param([[1, 1, 1]] * 2, [1, 1], "twice", id="repeated id"),
        pytest.param([[1, 1, 1]] * 2, [], "one token id a label", id="no id"),
        pytest.param([[1, 1, 1]] * 2, [1.5], "one token id a label", id="fraction"),
    ],
)
def test_entity_scores_refuse_what_does_not_fit(mask, ids, message):
    with pytest.raises(ValueError, match=message):
        get_entity_scores(torch.zeros(2, 3, 5), ids, torch.tensor(mask))
