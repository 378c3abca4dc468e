"""Encodes documents: finds their candidate spans and cuts each one's tokens out of its document's own tokens.

In: texts (or lists of words), a fast tokenizer, a prompt template. Out: one `EncodedDocument` each, whose candidates
are character offsets into the text, word indices and token paths: `text[start:end]` is the span, always.
A batch is tokenized as one row of characters and one of tokens, so that no step loops over spans.
Knows nothing of labels, models or attention.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from transformers import PreTrainedTokenizerBase

from .arrays import BoolArray, IntArray, bounds_of, ramp_of
from .forest import SpanPaths
from .piece_cache import PieceCache
from .prompting import PromptTemplate
from .span_tokens import BatchPaths, TokenizedBatch, span_paths
from .tokenization import check_tokenizer, text_problem
from .validation import check_count
from .wider_spans import WiderSpans, WordRuns
from .words import split_texts

Spans = Sequence[tuple[int, int]] | IntArray

FIRST_ROUND_NODES = 2  # per token of a document: itself, and its words


class DocumentError(ValueError):
    """A document that cannot be encoded or scored.

    Attributes:
        number: the document's number in what was given, from 0; None where only one was given.
        reason: what is wrong with it.
    """

    def __init__(self, number: int | None, reason: str) -> None:
        """Makes the message, which names the document unless it is the only one."""
        super().__init__(reason if number is None else f"document {number}: {reason}")
        self.number, self.reason = number, reason


@dataclass(frozen=True)
class CandidateSpans:
    """The S candidate spans of one document.

    Attributes:
        start: int64 [S], first character in the user's text.
        end: int64 [S], one past its last character.
        start_word: int64 [S], index of the first word that the span touches.
        end_word: int64 [S], one past the last one.
        paths: the spans' tokens.
    """

    start: IntArray
    end: IntArray
    start_word: IntArray
    end_word: IntArray
    paths: SpanPaths

    @property
    def num_spans(self) -> int:
        """Number of candidate spans (S)."""
        return len(self.start)

    @property
    def longest(self) -> int:
        """Number of tokens of the longest path; 0 without candidates."""
        return int(np.diff(self.paths.cu_seqlens).max(initial=0))

    def select(self, chosen: BoolArray | IntArray) -> "CandidateSpans":
        """The candidates that a boolean mask [S] or indices [K] choose, with the path tokens that they need."""
        used, span_path = np.unique(self.paths.span_path[chosen], return_inverse=True)
        span_length = self.paths.span_length[chosen]
        lengths = np.zeros(len(used), np.int64)
        np.maximum.at(lengths, span_path, span_length)
        tokens = np.repeat(self.paths.cu_seqlens[used], lengths) + ramp_of(lengths)
        paths = SpanPaths(self.paths.token_ids[tokens], bounds_of(lengths), span_path, span_length)
        return CandidateSpans(
            self.start[chosen], self.end[chosen], self.start_word[chosen], self.end_word[chosen], paths
        )


@dataclass(frozen=True)
class EncodedDocument:
    """One document, ready to be placed below the prompt's prefix.

    Attributes:
        text: the user's text; words given as such are joined.
        chain_token_ids: int64 [n], the tokens of document head, text and document tail.
        word_starts: int64 [W], first character of each word.
        word_ends: int64 [W], one past the last character of each word.
        candidates: the candidate spans.
        wider: finds further candidates, longer runs of words than those listed; None where all are listed.
    """

    text: str
    chain_token_ids: IntArray
    word_starts: IntArray
    word_ends: IntArray
    candidates: CandidateSpans
    wider: WiderSpans | None = None

    @property
    def max_nodes(self) -> int:
        """The most forest nodes it can have, answer cues left out: nodes that spans share count repeatedly.

        Candidates that are not listed do not count.
        """
        return len(self.chain_token_ids) + len(self.candidates.paths.token_ids)

    def budget_nodes(self, grown: bool) -> int:
        """Forest nodes that a pass over it is planned for: the most it can have or, grown, those of the first round.

        Of a first round, that is a guess: the document and its words. Later rounds count when they come.
        """
        return min(self.max_nodes, FIRST_ROUND_NODES * len(self.chain_token_ids)) if grown else self.max_nodes


def encode_documents(
    documents: Sequence[str | Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    *,
    max_span_words: int,
    is_split_into_words: bool = False,
    delimiter: str = " ",
    spans: Sequence[Spans | None] | None = None,
    pieces: PieceCache | None = None,
    listed_words: int | None = None,
) -> list[EncodedDocument]:
    """Tokenizes B documents and makes their candidate spans; each comes out as it would alone.

    A span's tokens are a slice of its document's tokens, as if it stood after a space. Where no single space stands
    before it, its tokens up to the first word end at which a token ends are tokenized again after a space. A span that
    does not end where a token ends is tokenized by itself. A span for which the tokenizer has no token (a control
    character that it drops, say) is no candidate.

    Args:
        documents: B texts or, with `is_split_into_words`, B lists of words.
        tokenizer: a fast tokenizer.
        template: the prompt's parts around a document.
        max_span_words: longest candidate in words, where `spans` gives none.
        is_split_into_words: whether each document is a list of words.
        delimiter: what the words of a list are joined by.
        spans: per document the user's own candidates instead, or None for all runs of words: half-open pairs of
            characters or, with `is_split_into_words`, of word indices. They keep their order.
        pieces: the tokenizer's cache, where several calls share one.
        listed_words: longest candidate in words that is listed, where the longer ones are to be found on demand by
            `EncodedDocument.wider`; all are listed if None.

    Returns:
        One `EncodedDocument` per document. A blank text has no candidates.

    Raises:
        DocumentError: a document that is not valid text, an empty word, or spans that are not pairs of integers,
            empty, out of range or without a token.
        ValueError: documents that are no list, max_span_words below 1, or another number of lists of spans.
    """
    check_tokenizer(tokenizer)
    check_count("max_span_words", max_span_words)
    texts, words = _read_documents(documents, is_split_into_words, delimiter)
    given = [None] * len(texts) if spans is None else list(spans)
    if len(given) != len(texts):
        raise ValueError(
            f"{len(texts)} documents but {len(given)} lists of spans were given: one per document is needed."
        )
    if not texts:
        return []
    batch = TokenizedBatch.of(texts, words, tokenizer, template.document_head, template.document_tail)
    own = [None if g is None else _read_spans(g, batch, d, is_split_into_words) for d, g in enumerate(given)]
    listed = max_span_words if listed_words is None else min(max_span_words, listed_words)
    limits = np.array([listed if g is None else 0 for g in own])
    candidates = _BatchCandidates.of(batch, limits, own)
    pieces = PieceCache(tokenizer) if pieces is None else pieces
    paths = span_paths(batch, candidates.document, candidates.start, candidates.end, pieces)
    for empty in np.flatnonzero((paths.span_length == 0) & (limits[candidates.document] == 0)):
        span = batch.text[candidates.start[empty] : candidates.end[empty]]
        raise DocumentError(
            int(candidates.document[empty]), f"the tokenizer has no token for the span {span!r}: leave it out."
        )
    encoded = _split(batch, texts, candidates, paths)
    if listed == max_span_words:
        return encoded
    source = WordRuns(batch, listed, max_span_words, pieces)
    of_place = np.split(paths.of_place, np.searchsorted(paths.document, np.arange(1, len(texts))))
    return [
        replace(document, wider=WiderSpans(source, number, of_place[number]))
        if own[number] is None and len(document.word_starts) > listed
        else document
        for number, document in enumerate(encoded)
    ]


def _split(
    batch: TokenizedBatch, texts: Sequence[str], candidates: "_BatchCandidates", paths: BatchPaths
) -> list[EncodedDocument]:
    """Splits the batch into its documents; candidates without tokens are left out."""
    kept = paths.span_length > 0
    document, numbers = candidates.document[kept], np.arange(len(texts) + 1)
    cu_spans, cu_paths = np.searchsorted(document, numbers), np.searchsorted(paths.document, numbers)
    cu_path_tokens, num_bounds = paths.cu_seqlens[cu_paths], np.diff(cu_paths) + 1
    bounds = paths.cu_seqlens[np.repeat(cu_paths[:-1], num_bounds) + ramp_of(num_bounds)]
    text_starts, word_shift = batch.text_starts[document], np.repeat(batch.text_starts, np.diff(batch.cu_words))
    columns = (  # of all documents, and where each one's part of it starts
        (batch.token_ids, batch.cu_tokens),
        (batch.word_starts - word_shift, batch.cu_words),
        (batch.word_ends - word_shift, batch.cu_words),
        (candidates.start[kept] - text_starts, cu_spans),
        (candidates.end[kept] - text_starts, cu_spans),
        (candidates.start_word[kept], cu_spans),
        (candidates.end_word[kept], cu_spans),
        (paths.token_ids, cu_path_tokens),
        (bounds - np.repeat(cu_path_tokens[:-1], num_bounds), bounds_of(num_bounds)),
        (paths.span_path[kept] - cu_paths[document], cu_spans),
        (paths.span_length[kept], cu_spans),
    )
    parts = ([values[first:last] for first, last in pairwise(starts.tolist())] for values, starts in columns)
    return [
        EncodedDocument(
            text, row[0], row[1], row[2], CandidateSpans(row[3], row[4], row[5], row[6], SpanPaths(*row[7:]))
        )
        for text, *row in zip(texts, *parts, strict=True)
    ]


def _read_documents(
    documents: Sequence[str | Sequence[str]], is_split_into_words: bool, delimiter: str
) -> tuple[list[str], tuple[IntArray, IntArray, IntArray]]:
    """The documents' texts, and their words as `split_texts` gives them."""
    if isinstance(documents, str | bytes) or not isinstance(documents, Sequence):
        raise ValueError(f"documents must be a list, not {type(documents).__name__}: put a single document in a list.")
    texts: list[str] = []
    words = [np.empty(0, np.int64)]  # the length of each
    for number, document in enumerate(documents):
        if not is_split_into_words:
            if (problem := text_problem(document)) is not None:
                raise DocumentError(number, f"the text {problem}")
            texts.append(str(document))
            continue
        if isinstance(document, str) or not isinstance(document, Sequence):
            raise DocumentError(number, f"the words must be a list of strings, not {type(document).__name__}.")
        problems = ((index, problem) for index, word in enumerate(document) if (problem := text_problem(word)))
        for index, problem in problems:
            raise DocumentError(number, f"word {index} {problem}")
        lengths = np.fromiter((len(word) for word in document), np.int64, len(document))
        if not lengths.all():
            raise DocumentError(number, f"word {int(lengths.argmin())} is an empty string: leave it out.")
        texts.append(delimiter.join(document))
        words.append(lengths)
    if not is_split_into_words:
        return texts, split_texts(texts)
    counts = np.fromiter((len(lengths) for lengths in words[1:]), np.int64, len(texts))
    lengths = np.concatenate(words)
    after_gap = np.cumsum(lengths + len(delimiter))
    ends = after_gap - len(delimiter) - np.repeat(np.append(0, after_gap)[bounds_of(counts)[:-1]], counts)
    return texts, (ends - lengths, ends, counts)


def _read_spans(given: Spans, batch: TokenizedBatch, document: int, in_words: bool) -> IntArray:
    """A document's own spans as rows (start, end, start_word, end_word), int64 [S, 4], counted within the document."""
    if not isinstance(given, Sequence | np.ndarray) or isinstance(given, str | bytes):
        raise DocumentError(document, f"the spans must be a list of pairs, not {type(given).__name__}.")
    if not len(given):
        return np.empty((0, 4), np.int64)
    try:
        pairs = np.asarray(given)
    except ValueError:  # numpy's complaint about rows of different lengths; ours follows
        pairs = np.empty(0)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise DocumentError(document, f"the spans must be pairs of integers (start, end), not {given!r:.200}.")
    word_starts, word_ends = batch.words_of(document)
    limit, unit = (len(word_starts), "words") if in_words else (int(batch.text_lengths[document]), "characters")
    start, end = pairs.astype(np.int64).T
    wrong = np.flatnonzero((start < 0) | (start >= end) | (end > limit))
    if len(wrong):
        raise DocumentError(
            document,
            f"span {tuple(pairs[wrong[0]].tolist())} is empty or out of range: "
            f"0 <= start < end <= {limit} {unit} is needed (end is half-open).",
        )
    if in_words:
        return np.stack([word_starts[start], word_ends[end - 1], start, end], axis=1)
    start_word = np.searchsorted(word_ends, start, side="right")
    return np.stack([start, end, start_word, np.searchsorted(word_starts, end, side="left")], axis=1)


@dataclass(frozen=True)
class _BatchCandidates:
    """Bounds of the S candidates of all documents: characters counted over the batch, words within each document."""

    document: IntArray
    start: IntArray
    end: IntArray
    start_word: IntArray
    end_word: IntArray

    @classmethod
    def of(cls, batch: TokenizedBatch, limits: IntArray, own: Sequence[IntArray | None]) -> "_BatchCandidates":
        """Lists all runs of up to `limits[document]` words and the documents' `own` spans, document by document."""
        word_document = np.repeat(np.arange(len(limits)), np.diff(batch.cu_words))
        word = np.arange(len(word_document))
        counts = np.minimum(limits[word_document], batch.cu_words[word_document + 1] - word)
        document, first = np.repeat(word_document, counts), np.repeat(word, counts)
        last = first + ramp_of(counts)
        shift = batch.cu_words[document]
        runs = np.stack([batch.word_starts[first], batch.word_ends[last], first - shift, last + 1 - shift])
        rows = np.concatenate([spans for spans in own if spans is not None] or [np.empty((0, 4), np.int64)]).T
        row_document = np.repeat(np.arange(len(own)), [0 if spans is None else len(spans) for spans in own])
        rows[:2] += batch.text_starts[row_document]
        if rows.size:
            document = np.concatenate([document, row_document])
            order = np.argsort(document, kind="stable")
            document, runs = document[order], np.concatenate([runs, rows], axis=1)[:, order]
        return cls(document, *runs)
