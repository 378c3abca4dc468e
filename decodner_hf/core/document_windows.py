"""Encodes documents with their prompts and fits long ones into the model's positions, in windows or truncated.

In: documents as they were read. Out: `PreparedDocument`, whose windows are `EncodedDocument` each; a window is a
document of its own for the model, but its text, words and offsets stay those of the whole document.
Knows nothing of models but their number of positions, nor of attention, scores or thresholds.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from .arrays import BoolArray, IntArray
from .pipeline_io import Document, PreparedDocument, Settings
from .prompting import EncodedPrompt, Labels, PromptTemplate
from .spans import CandidateSpans, DocumentError, EncodedDocument, encode_documents
from .tokenization import continuation_ids, encode_with_offsets

logger = logging.getLogger(__name__)


DEFAULT_OVERLAP = 0.25  # part of a window
SHORTEST_OVERLONG = 16  # tokens: a shorter word is never left out


class NoWindowError(ValueError):
    """There is too little room for a document's windows to hold a candidate, or a single word."""


def split_into_windows(
    document: EncodedDocument,
    max_tokens: int,
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    *,
    stride: int | None = None,
) -> list[EncodedDocument]:
    """Cuts a document that is too long for the model into overlapping windows, which share out its candidates.

    Windows begin and end at words and are tokenized like documents of their own. They overlap by no fewer words than
    the longest candidate has. A candidate belongs to the window of its first
    word: the one that shows, of the longest candidate that starts there, the most words on its poorer side. So a span
    and its shorter prefixes are always in one window. Windows without candidates are left out.

    Args:
        document: what `encode_documents` made.
        max_tokens: room for the chain and the longest candidate after it.
        tokenizer: the tokenizer that `document` was encoded with.
        template: likewise.
        stride: tokens that a window repeats of the one before it, fewer than a window holds; a quarter of it if None.

    Returns:
        At least one window; `[document]` where it fits.

    Raises:
        NoWindowError: so little room that a window cannot hold a candidate, or a single word.
        ValueError: a stride of a whole window.
    """
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


def _owners(candidates: CandidateSpans, first: IntArray, last: IntArray, num_words: int) -> IntArray:
    """Returns the window [S] of each candidate's first word.

    Of the windows that hold the longest candidate that starts at the word, it is the one with the most words on that
    candidate's poorer side. `first` and `last` are the windows' words, half-open. Where the document itself ends,
    nothing is missing.
    """
    start = candidates.start_word
    reach = np.zeros(num_words + 1, np.int64)  # one past the last word of the longest candidate from each word
    np.maximum.at(reach, start, candidates.end_word)
    end = reach[start]
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
    lowest = max(SHORTEST_OVERLONG, max_tokens // (3 * int(span_words)))  # so many of such words fit beside each other
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
    longest = int((document.candidates.end_word - document.candidates.start_word).max(initial=1))
    slack = 1  # a window's own tokens may be a few more than its share of the document's
    while True:
        first, last = _place_windows(token_starts, token_ends, room - frame - slack, longest, stride)
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
    token_starts: IntArray, token_ends: IntArray, room: int, longest: int, stride: int | None
) -> tuple[IntArray, IntArray]:
    """Places windows of at most `room` text tokens, as words [first, last); each overlaps the one before it."""
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
        repeated = int(np.searchsorted(token_starts, ends[end] - repeat, side="left"))
        start = max(start + 1, min(end - longest, repeated))
    first, last = np.array(windows, np.int64).T
    return first, last


class DocumentEncoder:
    """The encoding stage: documents as they were read -> documents that fit the model, with their prompts."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: PromptTemplate,
        prompts: Callable[[Labels], tuple[EncodedPrompt, ...]],
        max_positions: int | None = None,
        reason: str = "",
    ) -> None:
        """Takes the stage's tools.

        Args:
            tokenizer: a fast tokenizer that no one else uses, see `private_tokenizer`.
            template: the prompt's parts around a document.
            prompts: encodes the prompts of a label set.
            max_positions: the model's number of positions; None for no limit.
            reason: why there are no more, for messages.
        """
        self.tokenizer, self.template, self.prompts = tokenizer, template, prompts
        self.max_positions, self.reason = max_positions, reason

    def encode(self, documents: Sequence[Document], settings: Settings) -> list[PreparedDocument]:
        """Encodes a group of documents.

        Raises:
            DocumentError: a document that is refused; of several, not always the first is the one named.
            ValueError: likewise, where it cannot be told which document of the group it is.
        """
        encoded: dict[int, EncodedDocument] = {}
        for split in (False, True):
            chosen = [index for index, document in enumerate(documents) if document.is_split == split]
            contents: list[str | Sequence[str]] = [documents[index].content for index in chosen]
            spans = [documents[index].spans for index in chosen]
            try:
                batch = encode_documents(
                    contents,
                    self.tokenizer,
                    self.template,
                    max_span_words=settings.max_span_words,
                    is_split_into_words=split,
                    delimiter=settings.delimiter,
                    spans=spans if any(own is not None for own in spans) else None,
                )
            except DocumentError as error:
                number = None if error.number is None else documents[chosen[error.number]].number
                raise DocumentError(number, error.reason) from error
            except ValueError as error:
                if len(documents) > 1:
                    raise
                raise DocumentError(documents[0].number, str(error)) from error
            encoded |= dict(zip(chosen, batch, strict=True))
        return [self._prepare(document, encoded[index], settings) for index, document in enumerate(documents)]

    def _prepare(self, source: Document, encoded: EncodedDocument, settings: Settings) -> PreparedDocument:
        try:
            threshold = settings.growth_threshold if settings.growth else None
            prompts = self.prompts(source.labels)
            whole = PreparedDocument(source, encoded, (encoded,), prompts, growth_threshold=threshold)
            return whole if self.max_positions is None else self._fit(whole, self.max_positions, settings)
        except ValueError as error:
            raise DocumentError(source.number, str(error)) from error

    def _fit(self, whole: PreparedDocument, max_positions: int, settings: Settings) -> PreparedDocument:
        encoded = whole.document
        room = max_positions - max(prompt.num_tokens for prompt in whole.prompts)
        needed = encoded.max_nodes  # at most; the exact number takes longer
        if needed > room:
            needed = len(encoded.chain_token_ids) + encoded.candidates.longest
        if needed <= room:
            return whole
        if settings.long_documents == "error":
            raise ValueError(
                f"the document needs {needed} tokens with its longest span, but only {room} positions are left after "
                f'the prompt ({self.reason}). Use long_documents="window" or "truncate", or split it.'
            )
        try:
            return self._cut(whole, room, settings)
        except NoWindowError:
            if whole.source.spans is not None:  # each of them was asked for
                raise
        return self._without_overlong_words(whole, room, settings)

    def _cut(self, whole: PreparedDocument, room: int, settings: Settings) -> PreparedDocument:
        """Cuts a document into windows, or keeps its beginning."""
        document = whole.document
        if settings.long_documents == "window":
            windows = split_into_windows(document, room, self.tokenizer, self.template, stride=settings.stride)
            return replace(whole, windows=tuple(windows))
        beginning, kept = truncate_document(document, room, self.tokenizer, self.template)
        logger.warning("A document of %d characters is truncated after character %d.", len(document.text), kept)
        return replace(whole, windows=(beginning,), truncated_at=kept)

    def _without_overlong_words(self, whole: PreparedDocument, room: int, settings: Settings) -> PreparedDocument:
        """Cuts a document around the words that no window can hold; a truncated one keeps what is before the next."""
        document, truncates = whole.document, settings.long_documents == "truncate"
        parts = split_around_overlong_words(document, room, self.tokenizer, self.template)
        windows: list[EncodedDocument] = []
        truncated_at = None
        is_left_out = np.ones(len(document.word_starts), bool)
        for part in parts[:1] if truncates else parts:
            cut = self._cut(replace(whole, document=part.alone), room, settings)
            windows += (part.within(document, window) for window in cut.windows)
            is_left_out[part.first_word : part.last_word] = False
            if cut.truncated_at is not None:
                truncated_at = cut.truncated_at + int(document.word_starts[part.first_word])
                is_left_out[part.last_word :] = False  # they are cut off, with the rest
        starts, ends = document.word_starts[is_left_out].tolist(), document.word_ends[is_left_out].tolist()
        if starts:
            number = whole.source.number
            logger.warning(
                "%s: overlong words are not read: %d, the first of %d characters at character %d.",
                *("the document" if number is None else f"document {number}", len(starts)),
                *(ends[0] - starts[0], starts[0]),
            )
        words_left_out = tuple(zip(starts, ends, strict=True))
        return replace(whole, windows=tuple(windows), truncated_at=truncated_at, words_left_out=words_left_out)
