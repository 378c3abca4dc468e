"""Chooses the candidate spans of each round of growth: wider ones, at the places that are still open.

In: documents' listed candidates as token paths, what finds their wider ones, and which spans go on. Out: the spans of
the next round, with their tokens. Wider candidates are found for open places alone, so that cost follows what is
scored. Spans, paths and places are counted over all documents.
Knows nothing of nodes, numbers, models or attention.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .arrays import BoolArray, IntArray, bounds_of
from .forest import FoundSpans, SpanPaths

ROUND_WIDTHS = (1, 2, 4, 8)  # words that the spans of each round have at most; a last round takes all wider ones


class WiderRuns(Protocol):
    """Finds candidates that are not listed, for several documents; see `WordRuns`."""

    @property
    def listed_words(self) -> int:
        """Words of the longest candidate that is listed."""

    def starting_at(self, document: IntArray, word: IntArray, shortest: int, longest: int) -> FoundSpans:
        """Finds those of `shortest` to `longest` words from places, given as documents [n] and words [n]."""

    def most_words(self, document: IntArray, word: IntArray) -> IntArray:
        """Per place the words of the longest candidate."""

    def most_tokens(self, document: IntArray, word: IntArray) -> IntArray:
        """Per place at least the tokens that the longest candidate takes."""


class WiderSpans(Protocol):
    """The candidates of one document that are not listed; see the class of this name in `wider_spans`."""

    @property
    def source(self) -> WiderRuns:
        """What finds them."""

    @property
    def document(self) -> int:
        """The document's number there."""

    @property
    def of_place(self) -> BoolArray:
        """Which of the listed paths [R] is one that all spans from its place share."""

    @property
    def num_words(self) -> int:
        """Number of words of the document."""


class RoundCandidates:
    """The candidates of B documents known so far: S spans on R paths, at places (words) that are open or closed.

    Attributes:
        tokens: int64, the paths' tokens, in any order.
        path_start: int64 [R], where each path's tokens start there.
        path_document: int64 [R].
        path_length: int64 [R], tokens of the path, those that wider candidates may add among them.
        span_path: int64 [S].
        span_length: int64 [S], tokens.
        place: int64 [S], the word at which each starts.
        width: int64 [S], words.
        num_places: int64 [B], places of each document.
        widest: most words of any candidate.
    """

    def __init__(
        self,
        paths: Sequence[SpanPaths],
        places: Sequence[IntArray],
        widths: Sequence[IntArray],
        wider: Sequence[WiderSpans | None] | None,
    ) -> None:
        """Takes the listed candidates and what finds the others; see `GrowingForest`."""
        sources = [None] * len(paths) if wider is None else list(wider)
        path_counts = np.array([len(document.cu_seqlens) - 1 for document in paths], np.int64)
        span_counts = np.array([len(document.span_path) for document in paths], np.int64)
        token_counts = np.array([len(document.token_ids) for document in paths], np.int64)
        self.tokens = joined([document.token_ids for document in paths])
        bounds = joined([document.cu_seqlens for document in paths])
        last = np.cumsum(path_counts + 1) - 1  # in the documents' bounds, one after the other
        self.path_length = np.delete(np.diff(bounds), last[:-1])
        self.path_start = np.delete(bounds, last) + np.repeat(bounds_of(token_counts)[:-1], path_counts)
        self.path_document = np.repeat(np.arange(len(paths)), path_counts)
        self.span_path = joined([d.span_path for d in paths]) + np.repeat(bounds_of(path_counts)[:-1], span_counts)
        self.span_length = joined([document.span_length for document in paths])
        self.num_places = np.array(
            [
                int(place.max(initial=-1)) + 1 if source is None else source.num_words
                for place, source in zip(places, sources, strict=True)
            ],
            np.int64,
        )
        self._cu_places = bounds_of(self.num_places)
        self.place = joined(places) + np.repeat(self._cu_places[:-1], span_counts)
        self.width = joined(widths)
        self._is_open = np.ones(self._cu_places[-1], bool)  # [places]: whether every prefix scored so far goes on
        self._widest = np.zeros(self._cu_places[-1], np.int64)  # [places]: words of the longest candidate there
        np.maximum.at(self._widest, self.place, self.width)
        self._place_document = np.repeat(np.arange(len(paths)), self.num_places)
        self._sources = self._sources_of(sources)
        if self._sources:
            self._take_sources(sources, path_counts)
        self.widest = int(self._widest.max(initial=1))
        self._rounds = _round_bounds(self.widest)
        self._last_round: IntArray = np.empty(0, np.int64)  # spans
        self._done = 0  # words of the spans scored so far, at most

    def _sources_of(self, wider: Sequence[WiderSpans | None]) -> list["_Source"]:
        """What finds wider candidates, each once for all documents that it serves."""
        runs = {id(source.source): source.source for source in wider if source is not None}
        keys = np.array([0 if source is None else id(source.source) for source in wider], np.int64)
        numbers = np.array([0 if source is None else source.document for source in wider], np.int64)
        word = np.arange(len(self._place_document)) - self._cu_places[self._place_document]
        found = []
        for key, source in runs.items():
            places = np.flatnonzero(keys[self._place_document] == key)
            found.append(_Source(source, places, numbers[self._place_document[places]], word[places]))
        return found

    def _take_sources(self, wider: Sequence[WiderSpans | None], path_counts: IntArray) -> None:
        """Notes how far the candidates that are not listed may reach, and which paths they go on from."""
        self._most_tokens = np.zeros(len(self._is_open), np.int64)  # [places]: that they can add to a path
        for source in self._sources:
            self._most_tokens[source.places] = source.runs.most_tokens(source.document, source.word)
            self._widest[source.places] = source.runs.most_words(source.document, source.word)
        of_place = np.concatenate(
            [
                np.zeros(count, bool) if source is None else source.of_place
                for source, count in zip(wider, path_counts.tolist(), strict=True)
            ]
        )
        self._path_of_place = np.full(len(self._is_open), -1)  # that all spans from the place share; -1 for none yet
        shared = of_place[self.span_path]
        self._path_of_place[self.place[shared]] = self.span_path[shared]
        path_place = np.zeros(len(self.path_start), np.int64)
        path_place[self.span_path] = self.place
        self.path_length[of_place] += self._most_tokens[path_place[of_place]]

    @property
    def has_wider(self) -> bool:
        """Whether some candidates are not listed."""
        return bool(self._sources)

    def close(self, goes_on: BoolArray) -> None:
        """Closes the places at which a prefix of the last round does not go on; `goes_on` is [S]."""
        last = self._last_round
        self._is_open[ended_prefixes(self.place[last], self.width[last], goes_on[last])[0]] = False

    def open_places(self) -> BoolArray:
        """[places]: where a later round may have candidates."""
        return self._is_open & (self._widest > self._done)

    def open_documents(self, is_open: BoolArray) -> IntArray:
        """The documents of the places that a mask chooses."""
        return np.unique(self._place_document[is_open])

    def choose(self) -> IntArray | None:
        """Returns the spans of the next round, in order of their places; None after the last round."""
        if not self._rounds:
            return None
        shortest, longest = self._rounds.pop(0)
        self._find_wider(shortest, longest)
        fits = (self.width >= shortest) & (self.width <= longest)
        chosen = np.flatnonzero(fits & self._is_open[self.place])
        self._last_round, self._done = chosen[np.argsort(self.place[chosen], kind="stable")], longest
        return self._last_round

    def _find_wider(self, shortest: int, longest: int) -> None:
        for source in self._sources:
            is_open = self.open_places()[source.places]
            if longest > source.runs.listed_words and is_open.any():
                found = source.runs.starting_at(source.document[is_open], source.word[is_open], shortest, longest)
                self._append(found, source.places[is_open])

    def _append(self, found: FoundSpans, places: IntArray) -> None:
        """Adds spans found at `places`; where a place has a path that all its spans share, they are on that."""
        path_place, of_place = places[found.path_place], found.of_place
        continues = of_place & (self._path_of_place[path_place] >= 0)
        path = len(self.path_start) + np.cumsum(~continues) - 1
        path[continues] = self._path_of_place[path_place[continues]]
        self._path_of_place[path_place[of_place]] = path[of_place]
        starts = len(self.tokens) + found.cu_seqlens[:-1]
        self.path_start[path[continues]] = starts[continues]
        lengths = np.diff(found.cu_seqlens) + np.where(of_place, self._most_tokens[path_place], 0)
        self.tokens = np.append(self.tokens, found.token_ids)
        self.path_start = np.append(self.path_start, starts[~continues])
        self.path_length = np.append(self.path_length, lengths[~continues])
        self.path_document = np.append(self.path_document, self._place_document[path_place[~continues]])
        self.span_path = np.append(self.span_path, path[found.span_path])
        self.span_length = np.append(self.span_length, found.span_length)
        self.place = np.append(self.place, places[found.place])
        self.width = np.append(self.width, found.width)


def ended_prefixes(place: IntArray, width: IntArray, goes_on: BoolArray) -> tuple[IntArray, IntArray]:
    """Place and width of the prefixes of which no candidate goes on; for the arguments see `existing_spans`."""
    stride = int(width.max(initial=0)) + 1
    prefixes, prefix = np.unique(place * stride + width, return_inverse=True)
    ends = np.ones(len(prefixes), bool)
    ends[prefix[goes_on]] = False
    return prefixes[ends] // stride, prefixes[ends] % stride


@dataclass(frozen=True)
class _Source:
    """The places [n] whose wider candidates `runs` finds, and each one's document and word there."""

    runs: WiderRuns
    places: IntArray
    document: IntArray
    word: IntArray


def _round_bounds(widest: int) -> list[tuple[int, int]]:
    """Fewest and most words of the spans of each round."""
    starts = [0, *(width for width in ROUND_WIDTHS if width < widest)]
    return [(start + 1, end) for start, end in zip(starts, [*starts[1:], widest], strict=True)]


def joined(arrays: Sequence[IntArray]) -> IntArray:
    """Concatenates any number of arrays."""
    return np.concatenate([np.empty(0, np.int64), *arrays])
