"""Finds the candidate spans of documents and cuts each one's tokens out of its document's own tokens.

In: texts (or lists of words), a fast tokenizer, a prompt template. Out: one `EncodedDocument` each, whose candidates
are character offsets into the text, word indices and token paths: `text[start:end]` is the span, always.
A batch is laid out as one page of characters and one row of tokens, so that no step loops over spans.
Knows nothing of labels, models or attention.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from .arrays import bounds_of, ramp_of
from .candidates import Spans, Spots, read_documents, read_spans
from .forest import SpanPaths
from .prompting import PromptTemplate
from .span_tokens import Page, PagePaths, trace
from .tokenization import check_tokenizer, continuation_ids, encode_with_offsets
from .validation import is_count

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


class NoWindowError(ValueError):
    """So little room that a document's windows cannot hold a candidate, or a single word."""


@dataclass(frozen=True)
class CandidateSpans:
    """The S candidate spans of one document.

    Attributes:
        start: int64 [S], first character in the user's text.
        end: int64 [S], character behind the last one (half-open).
        start_word: int64 [S], index of the first word that the span touches.
        end_word: int64 [S], index behind the last one (half-open).
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
        """The candidates that a boolean mask [S] or indices [K] choose, with the paths that they need."""
        used, span_path = np.unique(self.paths.span_path[chosen], return_inverse=True)
        lengths = np.diff(self.paths.cu_seqlens)[used]
        tokens = np.repeat(self.paths.cu_seqlens[used], lengths) + ramp_of(lengths)
        paths = SpanPaths(self.paths.token_ids[tokens], bounds_of(lengths), span_path, self.paths.span_length[chosen])
        return CandidateSpans(
            self.start[chosen], self.end[chosen], self.start_word[chosen], self.end_word[chosen], paths
        )


@dataclass(frozen=True)
class EncodedDocument:
    """One document, ready to be hung below the prompt's prefix.

    Attributes:
        text: the user's text; words given as such joined by single spaces.
        chain_token_ids: int64 [n], the tokens of document head, text and document tail.
        word_starts: int64 [W], first character of each word.
        word_ends: int64 [W], character behind each word.
        candidates: the candidate spans.
    """

    text: str
    chain_token_ids: IntArray
    word_starts: IntArray
    word_ends: IntArray
    candidates: CandidateSpans


def encode_documents(
    documents: Sequence[str] | Sequence[Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    *,
    max_span_words: int,
    is_split_into_words: bool = False,
    spans: Sequence[Spans | None] | None = None,
) -> list[EncodedDocument]:
    """Tokenizes B documents and makes their candidate spans; each comes out as it would alone.

    A span's tokens are a slice of its document's tokens, as if it stood after a space. Where no single space stands
    before it, its tokens up to the first word end at which a token ends are made anew behind a space. A span that
    does not end where a token ends is tokenized by itself. A span for which the tokenizer has no token (a control
    character that it drops, say) is no candidate.

    Args:
        documents: B texts or, with `is_split_into_words`, B lists of words, which are joined by single spaces.
        tokenizer: a fast tokenizer.
        template: the prompt's parts around a document.
        max_span_words: longest candidate in words, where `spans` gives none.
        is_split_into_words: whether each document is a list of words.
        spans: per document the user's own candidates instead, or None for all runs of words: half-open pairs of
            characters or, with `is_split_into_words`, of word indices. They keep their order.

    Returns:
        One `EncodedDocument` a document. A blank text has no candidates.

    Raises:
        ValueError: documents that are not valid text, an empty word, max_span_words below 1, or spans that are not
            pairs of integers, empty, out of range or without a token.
    """
    check_tokenizer(tokenizer)
    if not is_count(max_span_words):
        raise ValueError(f"max_span_words must be at least 1, not {max_span_words!r}.")
    texts, words = read_documents(documents, is_split_into_words)
    given = [None] * len(texts) if spans is None else list(spans)
    if len(given) != len(texts):
        raise ValueError(
            f"{len(texts)} documents but {len(given)} lists of spans were given: one a document is needed."
        )
    if not texts:
        return []
    page = Page.of(texts, words, tokenizer, template.document_head, template.document_tail)
    own = [None if g is None else read_spans(g, page, d, is_split_into_words) for d, g in enumerate(given)]
    limits = np.array([max_span_words if g is None else 0 for g in own])
    spots = Spots.gather(page, limits, own)
    paths = trace(page, spots.document, spots.start, spots.end, tokenizer)
    for empty in np.flatnonzero((paths.span_length == 0) & (limits[spots.document] == 0)):
        span = page.text[spots.start[empty] : spots.end[empty]]
        raise ValueError(f"the tokenizer has no token for the span {span!r}: leave it out.")
    return _split(page, texts, spots, paths)


def _split(page: Page, texts: Sequence[str], spots: Spots, paths: PagePaths) -> list[EncodedDocument]:
    """Takes the page apart into its documents; candidates without tokens are left out."""
    kept = paths.span_length > 0
    document, numbers = spots.document[kept], np.arange(len(texts) + 1)
    cu_spans, cu_paths = np.searchsorted(document, numbers), np.searchsorted(paths.document, numbers)
    cu_path_tokens, num_bounds = paths.cu_seqlens[cu_paths], np.diff(cu_paths) + 1
    bounds = paths.cu_seqlens[np.repeat(cu_paths[:-1], num_bounds) + ramp_of(num_bounds)]
    text_starts, word_shift = page.text_starts[document], np.repeat(page.text_starts, np.diff(page.cu_words))
    columns = (  # of all documents, and where each one's part of it starts
        (page.token_ids, page.cu_tokens),
        (page.word_starts - word_shift, page.cu_words),
        (page.word_ends - word_shift, page.cu_words),
        (spots.start[kept] - text_starts, cu_spans),
        (spots.end[kept] - text_starts, cu_spans),
        (spots.start_word[kept], cu_spans),
        (spots.end_word[kept], cu_spans),
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


def split_into_windows(
    document: EncodedDocument,
    max_tokens: int,
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    *,
    overlap: float = 0.25,
) -> list[EncodedDocument]:
    """Cuts a document that is too long for the model into overlapping windows, which share out its candidates.

    Windows begin and end at words and are tokenized like documents of their own. They overlap by a part `overlap` of
    a window, and by no fewer words than the longest candidate has. Each candidate belongs to the one window that shows
    the most words on its poorer side; windows without candidates are left out. Text, words and offsets stay those of
    the whole document.

    Args:
        document: what `encode_documents` made.
        max_tokens: room for the chain and the longest candidate behind it.
        tokenizer: the tokenizer that `document` was encoded with.
        template: likewise.
        overlap: part of a window that the next one repeats, 0 <= overlap < 1.

    Returns:
        At least one window; `[document]` where it fits.

    Raises:
        NoWindowError: so little room that a window cannot hold a candidate, or a single word.
        ValueError: an overlap out of range.
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must be a number from 0 to below 1, not {overlap!r}.")
    candidates = document.candidates
    room = max_tokens - candidates.longest
    if len(document.chain_token_ids) <= room:
        return [document]
    first, last, chains = _fit_windows(document, room, tokenizer, template, overlap)
    owner = _owners(candidates, first, last, len(document.word_starts))
    owners = np.unique(owner) if candidates.num_spans else [0]
    return [
        replace(document, chain_token_ids=chains[window], candidates=candidates.select(owner == window))
        for window in owners
    ]


def _owners(candidates: CandidateSpans, first: IntArray, last: IntArray, num_words: int) -> IntArray:
    """The window [S] of each candidate: of those that hold it, the one with the most words on its poorer side.

    `first` and `last` are the windows' words, half-open. Where the document itself ends, nothing is missing.
    """
    lowest = np.searchsorted(last, candidates.end_word, side="left")  # the windows that hold a candidate: from, to
    highest = np.searchsorted(first, candidates.start_word, side="right") - 1
    owner, most = lowest, np.full(candidates.num_spans, -1)
    for step in range(int((highest - lowest).max(initial=0)) + 1):
        window = np.minimum(lowest + step, highest)
        before = np.where(window == 0, num_words, candidates.start_word - first[window])
        behind = np.where(window == len(first) - 1, num_words, last[window] - candidates.end_word)
        context = np.minimum(before, behind)
        owner, most = np.where(context > most, window, owner), np.maximum(context, most)
    return owner


def truncate_document(
    document: EncodedDocument, max_tokens: int, tokenizer: PreTrainedTokenizerBase, template: PromptTemplate
) -> tuple[EncodedDocument, int]:
    """Keeps the beginning of a document that is too long for the model; for the arguments see `split_into_windows`.

    Returns:
        The document with the chain and the candidates of its first window, and the number of characters kept.

    Raises:
        NoWindowError: as `split_into_windows`.
    """
    room = max_tokens - document.candidates.longest
    if len(document.chain_token_ids) <= room:
        return document, len(document.text)
    _, last, chains = _fit_windows(document, room, tokenizer, template, 0.0)
    kept = document.candidates.select(document.candidates.end_word <= last[0])
    length = int(document.word_ends[last[0] - 1]) if last[0] else 0
    return replace(document, chain_token_ids=chains[0], candidates=kept), length


def _fit_windows(
    document: EncodedDocument, room: int, tokenizer: PreTrainedTokenizerBase, template: PromptTemplate, overlap: float
) -> tuple[IntArray, IntArray, list[IntArray]]:
    """Each window's first word, the word behind its last one, and its chain of at most `room` tokens."""
    head, tail, text = template.document_head, template.document_tail, document.text
    ((_, token_starts, _),) = encode_with_offsets(tokenizer, [f"{head}{text}{tail}"])
    reached = np.maximum.accumulate(token_starts)
    token_starts, token_ends = (
        np.searchsorted(reached, bounds + len(head)) for bounds in (document.word_starts, document.word_ends)
    )  # [W] each: tokens that begin before the word, and before its end
    frame = len(continuation_ids(tokenizer, [f"{head}{tail}"])[0])
    longest = int((document.candidates.end_word - document.candidates.start_word).max(initial=1))
    slack = 1  # a window's own tokens may be a few more than its share of the document's
    while True:
        first, last = _place_windows(token_starts, token_ends, room - frame - slack, longest, overlap)
        texts = [
            text[document.word_starts[start] : document.word_ends[end - 1]] if end else ""
            for start, end in zip(first.tolist(), last.tolist(), strict=True)
        ]
        chains = continuation_ids(tokenizer, [f"{head}{part}{tail}" for part in texts])
        excess = max(len(chain) for chain in chains) - room
        if excess <= 0:
            return first, last, chains
        slack += excess


def _place_windows(
    token_starts: IntArray, token_ends: IntArray, room: int, longest: int, overlap: float
) -> tuple[IntArray, IntArray]:
    """Windows of at most `room` text tokens as words [first, last); the next one starts `longest` words earlier."""
    num_words, ends = len(token_starts), np.append(0, token_ends)  # ends[v]: tokens up to the end of word v - 1
    if not num_words:
        return np.zeros(1, np.int64), np.zeros(1, np.int64)
    windows: list[tuple[int, int]] = []
    start = 0
    while not windows or windows[-1][1] < num_words:
        end = int(np.searchsorted(ends, token_starts[start] + room, side="right")) - 1
        needed = min(start + longest, num_words)
        if end < needed:
            raise NoWindowError(
                f"words {start} to {needed - 1} take {ends[needed] - token_starts[start]} tokens, but a window has "
                f"room for {max(room, 0)} beside the prompt and the longest span: use a model with more positions, a "
                "shorter prompt or a smaller max_span_words, or break up overlong words."
            )
        if end == num_words:
            start = int(np.searchsorted(token_starts, ends[end] - room, side="left"))
        windows.append((start, end))
        repeated = int(np.searchsorted(token_starts, ends[end] - overlap * room, side="left"))
        start = max(start + 1, min(end - longest, repeated))
    first, last = np.array(windows, np.int64).T
    return first, last
