"""Grown rows of all rounds against the definition: what a span's node sees spells chain, tokens and cue."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decodner_hf.core.forest import SpanPaths
from decodner_hf.core.growth import GrowingForest, existing_spans


@st.composite
def documents(draw):
    """Words of few distinct tokens, spans of up to `width` words, some on a path of their own."""
    chain = draw(st.lists(st.integers(50, 60), min_size=1, max_size=3))
    words = draw(st.lists(st.lists(st.integers(0, 2), max_size=3), min_size=0, max_size=9))
    width = draw(st.integers(1, 12))
    paths, spans = [], []
    for first in range(len(words)):
        own = len(paths)
        paths.append([])
        for last in range(first + 1, min(len(words), first + width) + 1):
            tokens = [token for word in words[first:last] for token in word]
            if not tokens:
                continue
            if draw(st.integers(0, 5)) == 0:  # the tokenizer reads it differently than its prefix
                spans.append((len(paths), len(tokens), first, last - first))
                paths.append([token + 1 for token in tokens])
            else:
                paths[own] = tokens
                spans.append((own, len(tokens), first, last - first))
    return chain, paths, spans


def forest_of(batch, cue, first_number):
    columns = [np.array(spans, np.int64).reshape(-1, 4).T for _, _, spans in batch]
    lists = [SpanPaths.from_lists(paths) for _, paths, _ in batch]
    paths = [
        SpanPaths(every.token_ids, every.cu_seqlens, own[0], own[1]) for every, own in zip(lists, columns, strict=True)
    ]
    return GrowingForest(
        [np.array(chain) for chain, _, _ in batch],
        paths,
        [own[2] for own in columns],
        [own[3] for own in columns],
        first_position=7,
        first_number=first_number,
        cue_token_ids=cue,
    )


def rounds_of(forest, goes_on, max_nodes=None):
    parts = list(forest.first_round(max_nodes))
    while parts:
        yield from parts
        parts = list(forest.next_round(goes_on, max_nodes))


@given(st.lists(documents(), min_size=1, max_size=3), st.integers(0, 2), st.integers(0, 2**32), st.data())
def test_what_a_span_sees_is_its_chain_its_tokens_and_the_cue(batch, cue_length, seed, data):
    cue, first_number = [90, 91][:cue_length], data.draw(st.integers(0, 5))
    forest = forest_of(batch, cue, first_number)
    random = np.random.default_rng(seed)
    goes_on = random.random(forest.num_spans) < random.random()
    flat = [
        (chain, paths[path][:length], place, width, number)
        for number, (chain, paths, spans) in enumerate(batch)
        for path, length, place, width in spans
    ]
    numbers, ends, tokens, positions = (np.empty(0, np.int64) for _ in range(4))
    scored, copied = set(), {}
    for rows in rounds_of(forest, goes_on, data.draw(st.none() | st.integers(1, 40))):
        new = len(numbers)
        numbers, ends = np.append(numbers, rows.numbers), np.append(ends, rows.subtree_end)
        tokens, positions = np.append(tokens, rows.token_ids), np.append(positions, rows.position_ids)
        for span, node in zip(rows.spans.tolist(), (new + rows.span_nodes).tolist(), strict=True):
            seen = np.flatnonzero((numbers <= numbers[node]) & (numbers[node] <= ends))
            seen = seen[np.argsort(positions[seen])]
            chain, own, _, _, _ = flat[span]
            assert tokens[seen].tolist() == [*chain, *own, *cue]
            assert positions[seen].tolist() == list(range(7, 7 + len(seen)))
            assert span not in scored
            scored.add(span)
        for span, source in rows.repeats.T.tolist():
            assert flat[span][0:2] == flat[source][0:2]
            assert span not in scored
            assert source in scored
            copied[span] = source
            scored.add(span)
    assert len(set(numbers.tolist())) == len(numbers)
    assert first_number <= numbers.min(initial=first_number) <= numbers.max(initial=0) < max(forest.next_number, 1)
    places = {key: index for index, key in enumerate(dict.fromkeys((number, place) for *_, place, _, number in flat))}
    place = np.array([places[number, place] for *_, place, _, number in flat], np.int64)
    width = np.array([width for *_, width, _ in flat], np.int64)
    exists = existing_spans(place, width, goes_on)
    assert set(np.flatnonzero(exists).tolist()) <= scored
    if goes_on.all():
        assert len(scored) == forest.num_spans


@given(documents(), st.integers(0, 2**32))
def test_a_span_exists_if_every_shorter_prefix_goes_on(document, seed):
    _, _, spans = document
    place = np.array([span[2] for span in spans], np.int64)
    width = np.array([span[3] for span in spans], np.int64)
    goes_on = np.random.default_rng(seed).random(len(spans)) < 0.6
    expected = [
        all(
            any(goes_on[other] for other in range(len(spans)) if (place[other], width[other]) == (start, shorter))
            or (start, shorter) not in set(zip(place.tolist(), width.tolist(), strict=True))
            for shorter in range(1, words)
        )
        for start, words in zip(place.tolist(), width.tolist(), strict=True)
    ]
    assert existing_spans(place, width, goes_on).tolist() == expected


def test_nodes_that_are_not_scored_cost_nothing():
    words = 400
    spans = [
        (first, last - first, first, last - first)
        for first in range(words)
        for last in range(first + 1, min(words, first + 32) + 1)
    ]
    paths = [[(first + offset) % 97 for offset in range(32)][: words - first] for first in range(words)]
    forest = forest_of([([5], paths, spans)], [], 0)
    goes_on = np.zeros(forest.num_spans, bool)
    rows = list(rounds_of(forest, goes_on))
    assert [len(round_.token_ids) for round_ in rows] == [1 + 97]
    everything = forest_of([([5], paths, spans)], [], 0)
    assert sum(len(round_.token_ids) for round_ in rounds_of(everything, ~goes_on)) == pytest.approx(
        1 + 97 * 32, abs=40
    )
