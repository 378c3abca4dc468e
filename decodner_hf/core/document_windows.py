"""Cuts documents that are too long for the model into windows, truncates them, or leaves out overlong words.

In: an encoded document and room in tokens. Out: `EncodedDocument` windows; a window is a document of its own for the
model, but its text, words and offsets stay those of the whole document. All candidates must be listed.
Knows nothing of models, prompts, attention, scores or thresholds.
"""

from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from .arrays import BoolArray, IntArray
from .prompting import PromptTemplate
from .spans import CandidateSpans, EncodedDocument
from .tokenization import continuation_ids, encode_with_offsets

DEFAULT_OVERLAP = 0.25  # part of a window
SHORTEST_OVERLONG = 16  # tokens: a shorter word is never left out
ROOMY_WORDS = 8  # a window has room for every candidate of up to so many words
WIDE_SHARE = 4  # a wider candidate takes such a part of a window's tokens at most


class NoWindowError(ValueError):
    """There is too little room for a document's windows to hold a candidate, or a single word."""


def split_into_windows(
    document: EncodedDocument,
    max_tokens: int,
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    *,
    stride: int | None = None,
    keep_all: bool = False,
) -> list[EncodedDocument]:
    """Cuts a document that is too long for the model into overlapping windows, which share out its candidates.

    Windows begin and end at words and are tokenized like documents of their own. They overlap by as many words as
    candidates need, at least. A candidate belongs to the window of its first
    word: the one that shows, of the longest candidate that starts there, the most words on its poorer side. So a span
    and its shorter prefixes are always in one window. Windows without candidates are left out.

    Args:
        document: what `encode_documents` made.
        max_tokens: room for the chain and the longest candidate after it.
        tokenizer: the tokenizer that `document` was encoded with.
        template: likewise.
        stride: tokens that a window repeats of the one before it, fewer than a window holds; a quarter of it if None.
        keep_all: make room for every candidate, whatever it takes; else as `without_widest`.

    Returns:
        At least one window; `[document]` where it fits.

    Raises:
        NoWindowError: so little room that a window cannot hold a candidate, or a single word.
        ValueError: a stride of a whole window.
    """
    if not keep_all:
        document = without_widest(document, max_tokens)
    candidates = document.candidates
    room = max_tokens - candidates.longest
    if len(document.chain_token_ids) <= room:
        return [document]
    first, last, chains = _fit_windows(document, room, tokenizer, template, stride)
    owner = _owners(candidates, first, last, len(document.word_starts))
    owners = np.unique(owner) if candidates.num_spans else [0]
    return [
        replace(document, chain_token_ids=chains[window], candidates=candidates.select(owner == window))
        for window in owners
    ]


def check_widths(own: CandidateSpans, max_span_words: int, in_words: bool) -> None:
    """Refuses a caller's own spans that are wider than any that grow: training showed the model none like them.

    Args:
        own: the spans.
        max_span_words: the widest that grow.
        in_words: whether the caller counts in words, for the message.

    Raises:
        ValueError: there are such spans.
    """
    width = own.end_word - own.start_word
    wide = np.flatnonzero(width > max_span_words)
    if len(wide):
        first = wide[0]
        bounds = (own.start_word, own.end_word) if in_words else (own.start, own.end)
        raise ValueError(
            f"span {tuple(int(side[first]) for side in bounds)} has {width[first]} words, but spans are grown up to "
            f"max_span_words={max_span_words}: give a larger max_span_words, or growth=False."
        )


def without_widest(document: EncodedDocument, max_tokens: int) -> EncodedDocument:
    """Leaves out candidates that would take too much of every window: wide ones of many tokens.

    Each window keeps room for the longest candidate. A few of 32 words that spell out names or numbers in hundreds of
    tokens would leave none for the document.

    Args:
        document: what `encode_documents` made, with all runs of words as candidates.
        max_tokens: room for the chain and the longest candidate after it.

    Returns:
        The document with its candidates of up to `ROOMY_WORDS` words, and the wider ones that take no more tokens
        than these do, or a quarter of the room.
    """
    candidates = document.candidates
    is_wide = candidates.end_word - candidates.start_word > ROOMY_WORDS
    if not is_wide.any():
        return document
    length = candidates.paths.span_length
    most = max(int(length[~is_wide].max(initial=0)), max_tokens // WIDE_SHARE)
    fits = ~is_wide | (length <= most)
    return document if fits.all() else replace(document, candidates=candidates.select(fits))


def _reach(candidates: CandidateSpans, num_words: int) -> IntArray:
    """Returns int64 [W + 1]: one past the last word that each word needs, that of the longest candidate it starts.

    Candidates after the last word begin at word W.
    """
    reach = np.minimum(np.arange(1, num_words + 2), num_words)
    np.maximum.at(reach, candidates.start_word, candidates.end_word)
    return reach


def _owners(candidates: CandidateSpans, first: IntArray, last: IntArray, num_words: int) -> IntArray:
    """Returns the window [S] of each candidate's first word.

    Of the windows that hold the longest candidate that starts at the word, it is the one with the most words on that
    candidate's poorer side. `first` and `last` are the windows' words, half-open. Where the document itself ends,
    nothing is missing.
    """
    start = candidates.start_word
    end = _reach(candidates, num_words)[start]
    lowest = np.searchsorted(last, end, side="left")  # the windows that hold it: from, to
    highest = np.searchsorted(first, start, side="right") - 1
    owner, most = lowest, np.full(candidates.num_spans, -1)
    for step in range(int((highest - lowest).max(initial=0)) + 1):
        window = np.minimum(lowest + step, highest)
        before = np.where(window == 0, num_words, start - first[window])
        after = np.where(window == len(first) - 1, num_words, last[window] - end)
        context = np.minimum(before, after)
        owner, most = np.where(context > most, window, owner), np.maximum(context, most)
    return owner


def truncate_document(
    document: EncodedDocument,
    max_tokens: int,
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    *,
    keep_all: bool = False,
) -> tuple[EncodedDocument, int]:
    """Keeps the beginning of a document that is too long for the model; for the arguments see `split_into_windows`.

    Returns:
        The document with the chain and the candidates of its first window, and the number of characters kept.

    Raises:
        NoWindowError: as `split_into_windows`.
    """
    if not keep_all:
        document = without_widest(document, max_tokens)
    room = max_tokens - document.candidates.longest
    if len(document.chain_token_ids) <= room:
        return document, len(document.text)
    _, last, chains = _fit_windows(document, room, tokenizer, template, 0)
    kept = document.candidates.select(document.candidates.end_word <= last[0])
    length = int(document.word_ends[last[0] - 1]) if last[0] else 0
    return replace(document, chain_token_ids=chains[0], candidates=kept), length


@dataclass(frozen=True)
class DocumentPart:
    """A run of words of a document.

    Attributes:
        alone: the part as a document of its own: text, offsets and word indices are those of the part.
        first_word: index in the whole document of its first word.
        last_word: one past that of its last one.
    """

    alone: EncodedDocument
    first_word: int
    last_word: int

    def within(self, whole: EncodedDocument, window: EncodedDocument) -> EncodedDocument:
        """Returns a window of the part with the text, offsets and word indices of the whole document."""
        candidates = _shifted(window.candidates, int(whole.word_starts[self.first_word]), self.first_word)
        return replace(whole, chain_token_ids=window.chain_token_ids, candidates=candidates)


def split_around_overlong_words(
    document: EncodedDocument, max_tokens: int, tokenizer: PreTrainedTokenizerBase, template: PromptTemplate
) -> list[DocumentPart]:
    """Cuts a document into the parts between words that no window can hold (URLs, base64), which are not read.

    Words are left out from the longest down, until the rest fits into windows.

    Args:
        document: what `encode_documents` made of a text, with all runs of words as candidates.
        max_tokens: room for the chain and the longest candidate after it.
        tokenizer: the tokenizer that `document` was encoded with.
        template: likewise.

    Raises:
        NoWindowError: words of `SHORTEST_OVERLONG` tokens or fewer do not fit, or there are no others.
    """
    span_words = (document.candidates.end_word - document.candidates.start_word).max(initial=1)
    span_words = min(int(span_words), ROOMY_WORDS)
    lowest = max(SHORTEST_OVERLONG, max_tokens // (3 * span_words))  # so many of such words fit beside each other
    token_starts, token_ends = _token_bounds(document, tokenizer, template)
    lengths = token_ends - token_starts
    limit = max(int(lengths.max(initial=0)) // 2, lowest)
    while True:
        parts = _parts_without(document, lengths > limit, tokenizer, template)
        try:
            for part in parts:
                split_into_windows(part.alone, max_tokens, tokenizer, template)
        except NoWindowError:
            if limit == lowest:
                raise
            limit = max(limit // 2, lowest)
        else:
            return parts


def _parts_without(
    document: EncodedDocument, left_out: BoolArray, tokenizer: PreTrainedTokenizerBase, template: PromptTemplate
) -> list[DocumentPart]:
    """Returns the runs of words that `left_out`, bool [W], leaves; at least one, which may have no words."""
    edges = np.flatnonzero(np.diff(np.concatenate([[True], left_out, [True]])))
    bounds = list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)) or [(0, 0)]
    starts, ends = np.append(document.word_starts, 0), np.append(0, document.word_ends)
    head, tail = template.document_head, template.document_tail
    texts = [document.text[starts[first] : ends[last]] if last else "" for first, last in bounds]
    chains = continuation_ids(tokenizer, [f"{head}{text}{tail}" for text in texts])
    candidates = document.candidates
    parts = []
    for (first, last), text, chain in zip(bounds, texts, chains, strict=True):
        inside = candidates.select((candidates.start_word >= first) & (candidates.end_word <= last))
        start = int(starts[first])
        words = document.word_starts[first:last] - start, document.word_ends[first:last] - start
        part = EncodedDocument(text, chain, *words, _shifted(inside, -start, -first))
        parts.append(DocumentPart(part, first, last))
    return parts


def _shifted(candidates: CandidateSpans, characters: int, words: int) -> CandidateSpans:
    return CandidateSpans(
        candidates.start + characters,
        candidates.end + characters,
        candidates.start_word + words,
        candidates.end_word + words,
        candidates.paths,
    )


def _token_bounds(
    document: EncodedDocument, tokenizer: PreTrainedTokenizerBase, template: PromptTemplate
) -> tuple[IntArray, IntArray]:
    """Returns how many of the document's tokens begin before each word, and before its end, int64 [W] each."""
    head, tail, text = template.document_head, template.document_tail, document.text
    ((_, token_starts, _),) = encode_with_offsets(tokenizer, [f"{head}{text}{tail}"])
    reached = np.maximum.accumulate(token_starts)
    before, until = (
        np.searchsorted(reached, bounds + len(head)) for bounds in (document.word_starts, document.word_ends)
    )
    return before, until


def _fit_windows(
    document: EncodedDocument,
    room: int,
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    stride: int | None,
) -> tuple[IntArray, IntArray, list[IntArray]]:
    """Returns each window's first word, one past its last one, and its chain of at most `room` tokens."""
    head, tail, text = template.document_head, template.document_tail, document.text
    token_starts, token_ends = _token_bounds(document, tokenizer, template)
    frame = len(continuation_ids(tokenizer, [f"{head}{tail}"])[0])
    if frame > room:
        raise NoWindowError(
            f"a document's frame in the prompt takes {frame} tokens, but a window has room for {max(room, 0)} beside "
            f"the prompt and the longest span ({document.candidates.longest} tokens): use a model with more "
            "positions, a shorter prompt or a smaller max_span_words, or break up overlong words."
        )
    reach = _reach(document.candidates, len(document.word_starts))
    slack = 1  # a window's own tokens may be a few more than its share of the document's
    while True:
        first, last = _place_windows(token_starts, token_ends, room - frame - slack, reach, stride)
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
    token_starts: IntArray, token_ends: IntArray, room: int, reach: IntArray, stride: int | None
) -> tuple[IntArray, IntArray]:
    """Places windows of at most `room` text tokens, as words [first, last); each overlaps the one before it.

    Every word is in a window with all words up to `reach`, one past the last that it needs.
    """
    num_words, ends = len(token_starts), np.append(0, token_ends)  # ends[v]: tokens up to the end of word v - 1
    if not num_words:
        return np.zeros(1, np.int64), np.zeros(1, np.int64)
    if stride is not None and stride >= room > 0:
        raise ValueError(f"stride={stride} leaves nothing new for a window of {room} tokens: make it smaller.")
    repeat = DEFAULT_OVERLAP * room if stride is None else stride
    windows: list[tuple[int, int]] = []
    start = 0
    while not windows or windows[-1][1] < num_words:
        end = int(np.searchsorted(ends, token_starts[start] + room, side="right")) - 1
        needed = int(reach[start])
        if end < needed:
            raise NoWindowError(
                f"words {start} to {needed - 1} take {ends[needed] - token_starts[start]} tokens, but a window has "
                f"room for {max(room, 0)} beside the prompt and the longest span: use a model with more positions, a "
                "shorter prompt or a smaller max_span_words, or break up overlong words."
            )
        if end == num_words:
            start = int(np.searchsorted(token_starts, ends[end] - room, side="left"))
        windows.append((start, end))
        repeated = int(np.searchsorted(token_starts, ends[end] - repeat, side="left"))
        short = np.flatnonzero(reach[start:end] > end)  # words that need more than this window has
        unserved = start + int(short[0]) if len(short) else end
        start = max(start + 1, min(unserved - 1, repeated))
    first, last = np.array(windows, np.int64).T
    return first, last
