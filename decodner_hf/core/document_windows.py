"""Fits documents that are too long for a model into its positions: in overlapping windows, or truncated.

In: an `EncodedDocument` and the number of tokens that the prompt leaves. Out: its windows, `EncodedDocument` each.
Every window is a document of its own for the model; text, words and offsets stay those of the whole document.
Knows nothing of labels, models or attention.
"""

from dataclasses import replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from .arrays import IntArray
from .prompting import PromptTemplate
from .spans import CandidateSpans, EncodedDocument
from .tokenization import continuation_ids, encode_with_offsets


class NoWindowError(ValueError):
    """So little room that a document's windows cannot hold a candidate, or a single word."""


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
