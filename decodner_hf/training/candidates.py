"""Encodes documents with the candidate spans of training: all short spans, and long ones only around gold spans.

In: passages with their gold spans, and a tokenizer. Out: one `EncodedDocument` per passage. Listing all spans of up to
32 words would cost four times as much, for spans that hardly any name is like.
Knows nothing of types, prompts or models.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..core.arrays import IntArray, bounds_of, ramp_of
from ..core.forest import SpanPaths
from ..core.prompting import PromptTemplate
from ..core.spans import CandidateSpans, EncodedDocument, encode_documents
from ..data.document_context import Passage
from ..data.gold_spans import bounds_of_entities, in_words


@dataclass(frozen=True)
class CandidateEncoder:
    """Encodes passages with the candidates that training scores.

    Attributes:
        tokenizer: a fast tokenizer.
        template: the prompt's parts around a document.
        max_span_words: longest candidate.
        listed_span_words: up to this length every span is a candidate. Longer candidates are gold spans, their word
            prefixes, and gold spans made one word longer.
    """

    tokenizer: PreTrainedTokenizerBase
    template: PromptTemplate
    max_span_words: int
    listed_span_words: int

    def encode(self, passages: Sequence[Passage]) -> list[EncodedDocument]:
        """Encodes passages that are all texts or all lists of words; candidates lie within one member each."""
        listed = self._encoded(passages, min(self.listed_span_words, self.max_span_words))
        pairs = [self._long_spans(passage, document) for passage, document in zip(passages, listed, strict=True)]
        chosen = [number for number, found in enumerate(pairs) if len(found)]
        if chosen:
            own = [_in_units_of(listed[number], passages[number], pairs[number]) for number in chosen]
            longer = self._encoded([passages[number] for number in chosen], self.max_span_words, own)
            for number, document in zip(chosen, longer, strict=True):
                merged = _merged(listed[number].candidates, document.candidates)
                listed[number] = replace(listed[number], candidates=merged)
        return [
            replace(document, candidates=passage.own_candidates(document.candidates))
            for passage, document in zip(passages, listed, strict=True)
        ]

    def _encoded(
        self, passages: Sequence[Passage], max_span_words: int, spans: Sequence[IntArray] | None = None
    ) -> list[EncodedDocument]:
        texts = [p.example.content for p in passages if isinstance(p.example.content, str)]
        words = [p.example.content for p in passages if isinstance(p.example.content, list)]
        return encode_documents(
            texts or words,
            self.tokenizer,
            self.template,
            max_span_words=max_span_words,
            is_split_into_words=bool(words),
            spans=spans,
        )

    def _long_spans(self, passage: Passage, document: EncodedDocument) -> IntArray:
        """Returns int64 [K, 2], in words: the candidates of more than `listed_span_words`, each once."""
        if self.listed_span_words >= self.max_span_words:
            return np.empty((0, 2), np.int64)
        gold = bounds_of_entities(passage.example)
        start, end = in_words(gold, document.word_starts, document.word_ends).T
        held = (end - start >= self.listed_span_words) & (end - start <= self.max_span_words)
        if not held.any():
            return np.empty((0, 2), np.int64)
        start, end = start[held], end[held]
        lengths = end + 1 - start - self.listed_span_words  # from one more than listed to one more than the gold span
        starts, ends = np.repeat(start, lengths), np.repeat(start + self.listed_span_words + 1, lengths)
        ends = ends + ramp_of(lengths)
        fits = (ends - starts <= self.max_span_words) & (ends <= len(document.word_starts))
        with_tokens = np.isin(starts, _starts_with_tokens(document, self.listed_span_words))
        return np.unique(np.stack([starts, ends], axis=1)[fits & with_tokens], axis=0)


def _starts_with_tokens(document: EncodedDocument, words: int) -> IntArray:
    """Returns the first words of the candidates of so many words: what begins like one of these has tokens."""
    candidates = document.candidates
    starts: IntArray = candidates.start_word[candidates.end_word - candidates.start_word == words]
    return starts


def _in_units_of(document: EncodedDocument, passage: Passage, pairs: IntArray) -> IntArray:
    """Returns pairs of words [K, 2] as `encode_documents` takes them: in words of a list, in characters of a text."""
    if isinstance(passage.example.content, list):
        return pairs
    return np.stack([document.word_starts[pairs[:, 0]], document.word_ends[pairs[:, 1] - 1]], axis=1)


def _merged(first: CandidateSpans, second: CandidateSpans) -> CandidateSpans:
    """Returns the candidates of both, sorted by start and end."""
    a, b = first.paths, second.paths
    paths = SpanPaths(
        np.concatenate([a.token_ids, b.token_ids]),
        bounds_of(np.concatenate([np.diff(a.cu_seqlens), np.diff(b.cu_seqlens)])),
        np.concatenate([a.span_path, b.span_path + len(a.cu_seqlens) - 1]),
        np.concatenate([a.span_length, b.span_length]),
    )
    names = ("start", "end", "start_word", "end_word")
    start, end, start_word, end_word = (
        np.concatenate([getattr(first, name), getattr(second, name)]) for name in names
    )
    both = CandidateSpans(start, end, start_word, end_word, paths)
    return both.select(np.lexsort((end_word, start_word)))
