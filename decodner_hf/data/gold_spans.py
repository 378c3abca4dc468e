"""Matches gold spans with candidate spans, and says of each gold span that is no candidate why.

In: (start, end) of both in characters, and the words of their document. Out: arrays with an entry for each gold span.
Knows nothing of labels, tokens or models.
"""

import numpy as np

from ..core.arrays import BoolArray, IntArray
from .examples import Example

COVERAGE_KINDS = ("candidate", "wider_than_limit", "off_word_bounds", "without_token", "not_grown")
NOT_GROWN = COVERAGE_KINDS.index("not_grown")  # a candidate, had its shorter prefixes gone on


def bounds_of_entities(example: Example) -> IntArray:
    """Returns int64 [G, 2]: start and end of each of the example's entities, in characters, half-open."""
    return np.array([entity[:2] for entity in example.character_entities], np.int64).reshape(-1, 2)


def indices_among(spans: IntArray, start: IntArray, end: IntArray) -> IntArray:
    """Returns int64 [G]: which candidate (`start` [S], `end` [S]) each of the `spans` [G, 2] is; -1 for none."""
    if not len(spans) or not len(start):
        return np.full(len(spans), -1)
    keys, wanted = (start << 32) | end, (spans[:, 0] << 32) | spans[:, 1]  # offsets are below 2 ** 31
    order = np.argsort(keys, kind="stable")
    place = order[np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)]
    return np.where(keys[place] == wanted, place, -1)


def in_words(spans: IntArray, word_starts: IntArray, word_ends: IntArray) -> IntArray:
    """Returns int64 [G, 2]: start word and end word (one past the last) of spans [G, 2] in characters.

    A span that does not begin and end with a word becomes the empty span (0, 0).

    Args:
        spans: half-open, in characters.
        word_starts: int64 [W], first character of each word of the document.
        word_ends: int64 [W], one past the last character of each word.
    """
    if not len(word_starts):
        return np.zeros_like(spans)
    last_word = len(word_starts) - 1
    first = np.minimum(np.searchsorted(word_starts, spans[:, 0]), last_word)
    last = np.minimum(np.searchsorted(word_ends, spans[:, 1]), last_word)
    on_words = (word_starts[first] == spans[:, 0]) & (word_ends[last] == spans[:, 1])
    return np.stack([first * on_words, (last + 1) * on_words], axis=1)


def coverage_kinds(words: IntArray, is_candidate: BoolArray, max_span_words: int) -> IntArray:
    """Returns int64 [G]: for each gold span, the index in `COVERAGE_KINDS` of what became of it; never `NOT_GROWN`.

    Args:
        words: int64 [G, 2], the gold spans as `in_words` gives them.
        is_candidate: [G], whether each is a candidate.
        max_span_words: longest candidate.
    """
    size = words[:, 1] - words[:, 0]
    return np.where(is_candidate, 0, np.where(size == 0, 2, np.where(size > max_span_words, 1, 3)))
