"""Encodes documents with their prompts and fits them into the model's positions.

In: documents as they were read. Out: `PreparedDocument`, whose windows are `EncodedDocument` each: mostly the document
itself. Where spans are grown, the longer candidates need not be listed: they are found when a round asks for them.
Knows nothing of models but their number of positions, nor of attention, scores or thresholds.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from .document_windows import (
    SHORTEST_OVERLONG,
    NoWindowError,
    check_widths,
    split_around_overlong_words,
    split_into_windows,
    truncate_document,
)
from .piece_cache import PieceCache
from .pipeline_io import Document, PreparedDocument, Settings
from .prompting import EncodedPrompt, Labels, PromptTemplate
from .spans import DocumentError, EncodedDocument, encode_documents

logger = logging.getLogger(__name__)

LISTED_WORDS = 2  # longest candidate that is listed where growing the spans finds the others
LISTED_WORDS_OF_GRAPHS = 8  # of one document alone where a CUDA graph scores them at once


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
        self._pieces = PieceCache(tokenizer)

    def encode(
        self, documents: Sequence[Document], settings: Settings, listed_words: int | None = None
    ) -> list[PreparedDocument]:
        """Encodes a group of documents.

        Args:
            documents: as they were read.
            settings: the call's arguments.
            listed_words: longest candidate that is listed where spans are grown, which finds the longer ones as it
                needs them; all are listed if None.

        Raises:
            DocumentError: a document that is refused; of several, not always the first is the one named.
            ValueError: likewise, where it cannot be told which document of the group it is.
        """
        encoded: dict[int, EncodedDocument] = {}
        lists_all = not settings.growth or settings.return_report  # which counts all
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
                    pieces=self._pieces,
                    listed_words=None if lists_all else listed_words,
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

    def _fits(self, encoded: EncodedDocument, prompts: Sequence[EncodedPrompt]) -> bool:
        """Whether a document surely fits the model with its longest span, listed or not."""
        room = None if self.max_positions is None else self.max_positions - max(p.num_tokens for p in prompts)
        assert encoded.wider is not None
        longest = int(encoded.wider.most_tokens().max())
        return room is None or len(encoded.chain_token_ids) + 2 * longest + SHORTEST_OVERLONG <= room

    def _prepare(self, source: Document, encoded: EncodedDocument, settings: Settings) -> PreparedDocument:
        try:
            threshold = settings.growth_threshold if settings.growth else None
            if settings.growth and source.spans is not None:
                check_widths(encoded.candidates, settings.max_span_words, source.is_split)
            prompts = self.prompts(source.labels)
            if encoded.wider is not None and not self._fits(encoded, prompts):
                return self.encode([source], settings)[0]
            whole = PreparedDocument(source, encoded, (encoded,), prompts, growth_threshold=threshold)
            if self.max_positions is None or encoded.wider is not None:
                return whole
            return self._fit(whole, self.max_positions, settings)
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
        document, keep_all = whole.document, whole.source.spans is not None
        if settings.long_documents == "window":
            windows = split_into_windows(
                document, room, self.tokenizer, self.template, stride=settings.stride, keep_all=keep_all
            )
            return replace(whole, windows=tuple(windows))
        beginning, kept = truncate_document(document, room, self.tokenizer, self.template, keep_all=keep_all)
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
