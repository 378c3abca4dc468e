"""Finds the longer runs of words that a document does not list, where growing spans asks for them.

In: a tokenized batch; then places and widths. Out: the tokens of the runs of words of these widths that start there,
the very ones that listing them all would give.
Knows nothing of which spans go on, of labels or of models.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .arrays import BoolArray, IntArray, ramp_of
from .forest import FoundSpans
from .piece_cache import PieceCache
from .span_tokens import TokenizedBatch, span_paths


@dataclass(frozen=True)
class WordRuns:
    """The runs of up to `max_words` words of a batch's documents, of which those of `listed_words` are listed."""

    batch: TokenizedBatch
    listed_words: int
    max_words: int
    pieces: PieceCache

    def starting_at(self, document: IntArray, word: IntArray, shortest: int, longest: int) -> FoundSpans:
        """Finds the runs of `shortest` to `longest` words from n places that are not listed.

        Args:
            document: int64 [n], each place's document.
            word: int64 [n], its word there.
            shortest: fewest words.
            longest: most words.
        """
        first = self.batch.cu_words[document] + word
        shortest = max(shortest, self.listed_words + 1)
        counts = np.maximum(np.minimum(self.most_words(document, word), longest) - (shortest - 1), 0)
        place = np.repeat(np.arange(len(first)), counts)
        width = shortest + ramp_of(counts)
        starts = self.batch.word_starts[first[place]]
        ends = self.batch.word_ends[first[place] + width - 1]
        paths = span_paths(self.batch, document[place], starts, ends, self.pieces)
        has_tokens = paths.span_length > 0
        path_place = np.zeros(len(paths.document), np.int64)
        path_place[paths.span_path[has_tokens]] = place[has_tokens]
        return FoundSpans(
            place=place[has_tokens],
            width=width[has_tokens],
            token_ids=paths.token_ids,
            cu_seqlens=paths.cu_seqlens,
            path_place=path_place,
            of_place=paths.of_place,
            span_path=paths.span_path[has_tokens],
            span_length=paths.span_length[has_tokens],
        )

    def most_words(self, document: IntArray, word: IntArray) -> IntArray:
        """Per place the words of the longest run from there."""
        left: IntArray = self.batch.cu_words[document + 1] - self.batch.cu_words[document] - word
        return np.minimum(left, self.max_words)

    def most_tokens(self, document: IntArray, word: IntArray) -> IntArray:
        """Per place no fewer tokens than the path of the longest run from there takes of its text."""
        most: IntArray = self._most_tokens[self.batch.cu_words[document] + word]
        return most

    @cached_property
    def _most_tokens(self) -> IntArray:
        """`most_tokens` per word of the batch."""
        batch = self.batch
        words = np.arange(len(batch.word_starts))
        ends = np.repeat(batch.cu_words[1:], np.diff(batch.cu_words))
        last = np.minimum(words + self.max_words, ends) - 1
        return batch.most_tokens(batch.word_starts, batch.word_ends[last])


@dataclass(frozen=True)
class WiderSpans:
    """The longer candidates of one document, which are not listed.

    Attributes:
        source: finds them.
        document: the document's number there.
        of_place: bool [R], which of the paths of the listed candidates is one that all spans from its place share.
    """

    source: WordRuns
    document: int
    of_place: BoolArray

    @property
    def num_words(self) -> int:
        """Number of words of the document (W)."""
        first, end = self.source.batch.cu_words[self.document : self.document + 2].tolist()
        return int(end - first)

    def most_tokens(self) -> IntArray:
        """Per word of the document [W]; see `WordRuns.most_tokens`."""
        words = np.arange(self.num_words)
        return self.source.most_tokens(np.full_like(words, self.document), words)
