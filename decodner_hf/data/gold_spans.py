"""Matches gold spans with candidate spans, and says of each gold span that is no candidate why.

In: (start, end) of both in characters, and the words of their document. Out: arrays with an entry for each gold span.
Knows nothing of labels, tokens or models.
"""

import numpy as np

from ..core.arrays import BoolArray, IntArray
from .examples import Example

COVERAGE_KINDS = ("candidate", "wider_than_limit", "off_word_bounds", "without_token")


def bounds_of_entities(example: Example) -> IntArray:
    """Returns int64 [G, 2]: start and end of each of the example's entities, in characters, half-open."""
    return np.array([entity[:2] for entity in example.character_entities], np.int64).reshape(-1, 2)


def indices_among(spans: IntArray, candidates: IntArray) -> IntArray:
    """Returns int64 [G]: which of the `candidates` [S, 2] each of the `spans` [G, 2] is; -1 for none."""
    if not len(candidates):
        return np.full(len(spans), -1)
    stride = int(max(candidates[:, 1].max(), spans[:, 1].max(initial=0))) + 1
    keys, wanted = (bounds[:, 0] * stride + bounds[:, 1] for bounds in (candidates, spans))
    order = np.argsort(keys, kind="stable")
    place = order[np.searchsorted(keys, wanted, sorter=order).clip(max=len(keys) - 1)]
    return np.where(keys[place] == wanted, place, -1)


def coverage_kinds(
    gold: IntArray, is_candidate: BoolArray, word_starts: IntArray, word_ends: IntArray, max_span_words: int
) -> IntArray:
    """Returns int64 [G]: for each of the spans `gold` [G, 2], the index in `COVERAGE_KINDS` of what became of it.

    Args:
        gold: gold spans in characters.
        is_candidate: [G], whether each is a candidate.
        word_starts: int64 [W], first character of each word of the document.
        word_ends: int64 [W], the character after each word's last.
        max_span_words: longest candidate.
    """
    first, last = np.searchsorted(word_starts, gold[:, 0]), np.searchsorted(word_ends, gold[:, 1])
    on_words = np.isin(gold[:, 0], word_starts) & np.isin(gold[:, 1], word_ends)
    reasons = [is_candidate, on_words & (last + 1 - first > max_span_words), ~on_words]
    return np.select(reasons, [0, 1, 2], 3)
