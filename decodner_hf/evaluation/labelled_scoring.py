"""Scores labelled examples with a pipeline once, and decodes the scores any number of times.

In: a `DecodNERPipeline` and a list of `Example`. Out: `ScoredExamples`, and with a `Decoder` predictions and figures.
Candidates, scores and decoding are the pipeline's own; this file adds the gold spans and document context.
Knows nothing of files, tables or figures.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from ..core.arrays import BoolArray, FloatArray, FloatingArray, IntArray, bounds_of
from ..core.decoding import label_scores
from ..core.pipeline import DecodNERPipeline
from ..core.pipeline_io import Document, PreparedDocument, Settings
from ..core.prompting import Labels
from ..core.selection import select_spans
from ..core.spans import CandidateSpans
from ..core.streaming import scored_passes
from ..data.document_context import Context, Passage, passages_of
from ..data.examples import Example, labels_of
from ..data.gold_spans import (
    COVERAGE_KINDS,
    NOT_GROWN,
    bounds_of_entities,
    coverage_kinds,
    in_words,
    indices_among,
)
from .simulated_growth import GrowthAnswers, asking, split_answers
from .span_metrics import SpanTable, row_numbers, span_scores

PASSAGES_AT_ONCE = 64  # encoded together


@dataclass(frozen=True)
class ScoredExamples:
    """The candidate spans of B examples with their label logits, and the gold spans.

    Attributes:
        labels: the labels that were asked for.
        start: int64 [S], first character of each candidate in its example's text; candidates in order of examples.
        end: int64 [S], half-open.
        label_logits: [S, L + 1], the none label's first.
        cu_spans: int64 [B + 1], where each example's candidates start.
        gold: the gold spans, in characters.
        documents: int64 [B], the number of each example's document; examples without one are one each.
        coverage: how many gold spans are a "candidate" and, of the others, are "wider_than_limit", "off_word_bounds",
            "without_token" or "not_grown".
        seconds: time taken to encode and score.
        growth: the candidates' answers to the continuation question, where they were asked for.
    """

    labels: tuple[str, ...]
    start: IntArray
    end: IntArray
    label_logits: FloatingArray
    cu_spans: IntArray
    gold: SpanTable
    documents: IntArray
    coverage: dict[str, int]
    seconds: float
    growth: GrowthAnswers | None = None

    @property
    def num_examples(self) -> int:
        """Number of examples (B)."""
        return len(self.cu_spans) - 1

    @property
    def example(self) -> IntArray:
        """int64 [S]: the example of each candidate."""
        return np.repeat(np.arange(self.num_examples), np.diff(self.cu_spans))

    def is_gold(self) -> BoolArray:
        """Returns bool [S, L]: the gold labels of each candidate."""
        spans = np.stack([self.example, self.start, self.end], axis=1)
        numbers = row_numbers(np.concatenate([spans, self.gold.rows[:, :3]]))
        candidates, gold = numbers[: len(spans)], numbers[len(spans) :]
        order = np.argsort(candidates)
        place = np.minimum(np.searchsorted(candidates[order], gold), max(len(spans) - 1, 0))
        table = np.zeros((len(spans), len(self.labels)), np.bool_)
        if len(spans):
            same = candidates[order[place]] == gold
            table[order[place[same]], self.gold.label[same]] = True
        return table

    def gold_label(self) -> IntArray:
        """Returns int64 [S]: each candidate's gold label, the first of several, as a column of `label_logits`."""
        table = self.is_gold()
        return np.where(table.any(axis=1), table.argmax(axis=1) + 1, 0)

    def select(self, kept: BoolArray) -> "ScoredExamples":
        """Returns the candidates that a mask [S] chooses; gold spans and coverage stay."""
        counts = np.bincount(self.example[kept], minlength=self.num_examples)
        return replace(
            self,
            start=self.start[kept],
            end=self.end[kept],
            label_logits=self.label_logits[kept],
            cu_spans=bounds_of(counts),
            growth=None if self.growth is None else self.growth.select(kept),
        )


@dataclass(frozen=True)
class Decoder:
    """Turns scores into entities; see `DecodNERConfig` for the meaning of each setting."""

    thresholds: tuple[float, ...]
    temperature: float = 1.0
    overlap: str = "flat"
    flat_selection: str = "greedy"
    multi_label: bool = False

    @classmethod
    def of(cls, pipe: DecodNERPipeline, labels: Sequence[str], **choices: Any) -> "Decoder":
        """Returns the pipeline's own decoder for these labels; `choices` are keyword arguments of a call to it."""
        settings = pipe.settings_for(choices)
        thresholds = tuple(pipe.thresholds_for(labels, settings))
        ways = (settings.overlap, settings.flat_selection, settings.multi_label)
        return cls(thresholds, pipe.model.config.temperature, *ways)

    def scores(self, scored: ScoredExamples) -> FloatArray:
        """Returns float64 [S, L + 1]: the scores of every candidate's labels."""
        return label_scores(scored.label_logits, self.temperature, self.multi_label)

    def select(self, scored: ScoredExamples, scores: FloatArray) -> tuple[IntArray, IntArray]:
        """Returns the selected candidates and their labels, [K] each, given the `scores` of this decoder."""
        span, label, _ = select_spans(
            scored.start,
            scored.end,
            scores,
            self.thresholds,
            self.overlap,
            self.flat_selection,
            self.multi_label,
            cu_spans=scored.cu_spans,
        )
        return span, label

    def f1(self, scored: ScoredExamples) -> float:
        """Returns the micro F1 of the entities selected, from 0 to 1."""
        span, label = self.select(scored, self.scores(scored))
        return micro_f1(scored.is_gold(), span, label, len(scored.gold))

    def decode(self, scored: ScoredExamples) -> SpanTable:
        """Selects the entities of every example."""
        span, label = self.select(scored, self.scores(scored))
        return SpanTable.of(scored.example[span], scored.start[span], scored.end[span], label, scored.num_examples)


def micro_f1(is_gold: BoolArray, span: IntArray, label: IntArray, num_gold: int) -> float:
    """Returns the micro F1 of K selected entities, candidates `span` [K] with `label` [K]; `is_gold` is [S, L]."""
    return 2.0 * int(is_gold[span, label].sum()) / max(1, len(span) + num_gold)


def evaluate(
    pipe: DecodNERPipeline, examples: Sequence[Example], *, context: Context | None = None, **choices: Any
) -> dict[str, Any]:
    """Evaluates a pipeline on labelled examples; returns the figures of `span_scores` and the coverage.

    Args:
        pipe: the pipeline.
        examples: what to score it on.
        context: see `score_examples`.
        **choices: keyword arguments of a call to the pipeline.

    Raises:
        ValueError: what `score_examples` refuses.
    """
    scored = score_examples(pipe, examples, context=context, **choices)
    predicted = Decoder.of(pipe, scored.labels, **choices).decode(scored)
    return span_scores(scored.gold, predicted, scored.labels) | {"coverage": scored.coverage}


def score_examples(
    pipe: DecodNERPipeline,
    examples: Sequence[Example],
    *,
    context: Context | None = None,
    progress: Callable[[int], object] | None = None,
    ask_growth: bool = False,
    **choices: Any,
) -> ScoredExamples:
    """Scores every candidate span of every example.

    Args:
        pipe: the pipeline.
        examples: B examples. Without candidate_labels the model's own are asked for, or the examples' if it has none.
        context: how much of its document each is read with; candidates stay within sentences. None: every example
            alone.
        progress: called after every passage with the number of its examples.
        ask_growth: also return the answers to the continuation question of a model that was trained to answer it;
            every candidate is then scored, whatever `growth` says.
        **choices: keyword arguments of a call to the pipeline (candidate_labels, max_span_words).

    Raises:
        ValueError: no examples, partially labelled ones, gold labels that are not asked for, or what the pipeline
            refuses.
    """
    _check(examples)
    settings = pipe.settings_for(choices)
    ask_growth = ask_growth and pipe.model.config.continuation
    if ask_growth:
        settings = replace(settings, growth=False)
    if settings.candidate_labels is None and not pipe.model.config.labels:
        settings = replace(settings, candidate_labels=labels_of(examples))
    asked = pipe.labels_for(settings.candidate_labels)
    labels = [name for name, _ in asked]
    unknown = sorted(set(labels_of(examples)) - set(labels))
    if unknown:
        raise ValueError(
            f"the examples have labels {unknown}, but {labels} are asked for: give a label map that says what each "
            "gold label is called, or name candidate_labels."
        )
    gold = SpanTable.from_lists([example.character_entities for example in examples], labels)
    started = time.perf_counter()
    passages = passages_of(examples, context)
    coverage = np.zeros(len(COVERAGE_KINDS), np.int64)
    columns: list[tuple[IntArray, ...]] = []
    logits: list[FloatingArray] = []
    answers: list[FloatArray] = []
    passes = scored_passes(_encoded(pipe, passages, asked, settings, ask_growth), pipe.scorer)
    for passage, result in zip(passages, chain.from_iterable(passes), strict=True):
        prepared = result.prepared
        coverage += _coverage(passage.example, prepared, settings.max_span_words)
        columns += [_columns(passage, window.candidates) for window in prepared.windows]
        label_logits = result.label_logits
        if ask_growth:
            label_logits, goes_on = split_answers(label_logits, prepared.prompts)
            answers.append(goes_on)
        logits.append(label_logits)
        if progress is not None:
            progress(len(passage.members))
    owner, start, end, width = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    order = np.argsort(owner, kind="stable")
    growth = None
    if ask_growth:
        place = row_numbers(np.stack([owner, start], axis=1))
        growth = GrowthAnswers(place, width, np.concatenate(answers)).select(order)
    return ScoredExamples(
        labels=tuple(labels),
        start=start[order],
        end=end[order],
        label_logits=np.concatenate(logits)[order],
        cu_spans=np.searchsorted(owner[order], np.arange(len(examples) + 1)),
        gold=gold,
        documents=_documents(examples),
        coverage=dict(zip(COVERAGE_KINDS, coverage.tolist(), strict=True)),
        seconds=time.perf_counter() - started,
        growth=growth,
    )


def _check(examples: Sequence[Example]) -> None:
    if not examples:
        raise ValueError("there are no examples to score.")
    partial = sum(example.partial for example in examples)
    if partial:
        raise ValueError(
            f"{partial} of {len(examples)} examples are labelled only in part: what they leave out cannot be called "
            "wrong, so they cannot be scored."
        )


def _encoded(
    pipe: DecodNERPipeline, passages: Sequence[Passage], labels: Labels, settings: Settings, ask_growth: bool
) -> Iterator[list[PreparedDocument]]:
    """Encodes passages in groups; of their candidates those stay that lie within one member."""
    for start in range(0, len(passages), PASSAGES_AT_ONCE):
        group = passages[start : start + PASSAGES_AT_ONCE]
        documents = [Document(passage.example.content, labels, number=passage.members[0]) for passage in group]
        yield [
            _own_candidates(asking(prepared) if ask_growth else prepared, passage)
            for passage, prepared in zip(group, pipe.encoder.encode(documents, settings), strict=True)
        ]


def _own_candidates(prepared: PreparedDocument, passage: Passage) -> PreparedDocument:
    """Keeps the candidates that lie within one of the passage's members."""
    windows = (replace(w, candidates=passage.own_candidates(w.candidates)) for w in prepared.windows)
    return replace(prepared, windows=tuple(windows))


def _columns(passage: Passage, candidates: CandidateSpans) -> tuple[IntArray, ...]:
    """Returns example, start, end and words of candidates, offsets counted within their example."""
    member = passage.member_of(candidates.start)
    shift = np.array(passage.character_bounds, np.int64)[member, 0]
    width = candidates.end_word - candidates.start_word
    return np.array(passage.members, np.int64)[member], candidates.start - shift, candidates.end - shift, width


def _coverage(example: Example, prepared: PreparedDocument, max_span_words: int) -> IntArray:
    """Returns int64 [5]: how many gold spans of an example are of each of `COVERAGE_KINDS`."""
    gold, document = bounds_of_entities(example), prepared.document
    start, end = (np.concatenate([getattr(w.candidates, side) for w in prepared.windows]) for side in ("start", "end"))
    words = in_words(gold, document.word_starts, document.word_ends)
    is_candidate = indices_among(gold, start, end) >= 0
    kinds = coverage_kinds(words, is_candidate, max_span_words)
    if prepared.growth_threshold is not None:
        listed = document.candidates
        kinds[~is_candidate & (indices_among(gold, listed.start, listed.end) >= 0)] = NOT_GROWN
    return np.bincount(kinds, minlength=len(COVERAGE_KINDS))


def _documents(examples: Sequence[Example]) -> IntArray:
    """Returns int64 [B]: the number of each example's document."""
    keys = [
        (index, "") if example.document is None else (-1, example.document) for index, example in enumerate(examples)
    ]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], np.int64)
