"""Says which spans of which documents are candidates.

In: what the caller gave (texts or lists of words, spans of their own or none) and the page they make. Out: `Spots`.
Knows nothing of tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .arrays import bounds_of, ramp_of
from .span_tokens import Page
from .tokenization import check_texts
from .words import split_texts

IntArray = NDArray[np.int64]
Spans = Sequence[tuple[int, int]] | IntArray


def read_documents(
    documents: Sequence[str] | Sequence[Sequence[str]], is_split_into_words: bool
) -> tuple[list[str], tuple[IntArray, IntArray, IntArray]]:
    """The documents' texts, and their words as `split_texts` gives them."""
    if isinstance(documents, str | bytes) or not isinstance(documents, Sequence):
        raise ValueError(f"documents must be a list, not {type(documents).__name__}: put a single document in a list.")
    texts: list[str] = []
    if not is_split_into_words:
        check_texts(documents, "the documents")  # type: ignore[arg-type]  # finds out what they are
        texts.extend(document for document in documents if isinstance(document, str))
        return texts, split_texts(texts)
    words = [np.empty(0, np.int64)]  # the length of each
    for number, document in enumerate(documents):
        check_texts(document, f"the words of document {number}")
        lengths = np.fromiter((len(word) for word in document), np.int64, len(document))
        if not lengths.all():
            raise ValueError(f"word {int(lengths.argmin())} of document {number} is an empty string: leave it out.")
        texts.append(" ".join(document))
        words.append(lengths)
    counts = np.fromiter((len(lengths) for lengths in words[1:]), np.int64, len(texts))
    lengths = np.concatenate(words)
    behind = np.cumsum(lengths + 1)
    ends = behind - 1 - np.repeat(np.append(0, behind)[bounds_of(counts)[:-1]], counts)
    return texts, (ends - lengths, ends, counts)


def read_spans(given: Spans, page: Page, document: int, in_words: bool) -> IntArray:
    """A document's own spans as rows (start, end, start_word, end_word), int64 [S, 4], counted within the document."""
    if not isinstance(given, Sequence | np.ndarray) or isinstance(given, str | bytes):
        raise ValueError(f"the spans of document {document} must be a list of pairs, not {type(given).__name__}.")
    if not len(given):
        return np.empty((0, 4), np.int64)
    try:
        pairs = np.asarray(given)
    except ValueError:  # numpy's complaint about rows of different lengths; ours follows
        pairs = np.empty(0)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise ValueError(
            f"the spans of document {document} must be pairs of integers (start, end), not {given!r:.200}."
        )
    word_starts, word_ends = page.words_of(document)
    limit, unit = (len(word_starts), "words") if in_words else (int(page.text_lengths[document]), "characters")
    start, end = pairs.astype(np.int64).T
    wrong = np.flatnonzero((start < 0) | (start >= end) | (end > limit))
    if len(wrong):
        raise ValueError(
            f"span {tuple(pairs[wrong[0]].tolist())} of document {document} is empty or out of range: "
            f"0 <= start < end <= {limit} {unit} is needed (end is half-open)."
        )
    if in_words:
        return np.stack([word_starts[start], word_ends[end - 1], start, end], axis=1)
    start_word = np.searchsorted(word_ends, start, side="right")
    return np.stack([start, end, start_word, np.searchsorted(word_starts, end, side="left")], axis=1)


@dataclass(frozen=True)
class Spots:
    """Where the S candidates of all documents stand: characters on the page, words within each document."""

    document: IntArray
    start: IntArray
    end: IntArray
    start_word: IntArray
    end_word: IntArray

    @classmethod
    def gather(cls, page: Page, limits: IntArray, own: Sequence[IntArray | None]) -> "Spots":
        """All runs of up to `limits[document]` words, and the documents' `own` spans; document after document."""
        word_document = np.repeat(np.arange(len(limits)), np.diff(page.cu_words))
        word = np.arange(len(word_document))
        counts = np.minimum(limits[word_document], page.cu_words[word_document + 1] - word)
        document, first = np.repeat(word_document, counts), np.repeat(word, counts)
        last = first + ramp_of(counts)
        shift = page.cu_words[document]
        runs = np.stack([page.word_starts[first], page.word_ends[last], first - shift, last + 1 - shift])
        rows = np.concatenate([spans for spans in own if spans is not None] or [np.empty((0, 4), np.int64)]).T
        row_document = np.repeat(np.arange(len(own)), [0 if spans is None else len(spans) for spans in own])
        rows[:2] += page.text_starts[row_document]
        if rows.size:
            document = np.concatenate([document, row_document])
            order = np.argsort(document, kind="stable")
            document, runs = document[order], np.concatenate([runs, rows], axis=1)[:, order]
        return cls(document, *runs)
