"""Encodes labelled examples for training: the pipeline's own candidate spans, each with its gold label.

In: `TrainingSource`s and a tokenizer. Out: `EncodedSources`, with the coverage of each source: how many gold spans are
candidates, and what became of the others. In a partially labelled example only gold spans, and a few spans that
surely are none, carry a label. Knows nothing of prompts, rows or models.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from ..core.arrays import BoolArray, IntArray
from ..core.document_windows import NoWindowError, split_into_windows
from ..core.forest import SpanPaths, build_forest
from ..core.label_head import UNLABELLED
from ..core.prompting import PromptTemplate
from ..core.spans import EncodedDocument
from ..data.document_context import Context, Passage, passages_of
from ..data.examples import Example, labels_of
from ..data.gold_spans import COVERAGE_KINDS, bounds_of_entities, coverage_kinds, in_words, indices_among
from .candidates import CandidateEncoder
from .continuation import Continued
from .sources import TrainingSource

NONE = 0  # gold codes: 0 is no entity, t + 1 the type number t
SHOWN_CHARACTERS = 60  # of an example in messages
CHUNK_EXAMPLES = 512
SURE_NEGATIVES = 8  # per gold span of a partially labelled example


@dataclass(frozen=True)
class Coverage:
    """What became of the examples of a source and of their gold spans.

    Attributes:
        examples: number of examples read.
        gold: number of gold spans.
        kinds: gold spans by `COVERAGE_KINDS`; those of skipped examples are in none.
        relabelled: candidates that are labelled twice; the first label counts.
        wide_by_label: how many gold spans are wider than the limit, by label.
        skipped: examples that are left out because no window holds the document that they are read in.
        skipped_gold: gold spans of these.
        skip_reason: why the first of them is left out.
    """

    examples: int = 0
    gold: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    relabelled: int = 0
    wide_by_label: Counter[str] = field(default_factory=Counter)
    skipped: int = 0
    skipped_gold: int = 0
    skip_reason: str = ""

    def __add__(self, other: "Coverage") -> "Coverage":
        """Returns the counts of both."""
        return Coverage(
            examples=self.examples + other.examples,
            gold=self.gold + other.gold,
            kinds=self.kinds + other.kinds,
            relabelled=self.relabelled + other.relabelled,
            wide_by_label=self.wide_by_label + other.wide_by_label,
            skipped=self.skipped + other.skipped,
            skipped_gold=self.skipped_gold + other.skipped_gold,
            skip_reason=self.skip_reason or other.skip_reason,
        )

    def report(self) -> str:
        """Returns one line for people."""
        share = 100 * self.kinds["candidate"] / self.gold if self.gold else 100.0
        text = f"{self.examples:,} examples, {self.gold:,} gold spans, {share:.2f}% of them candidates"
        parts = {kind.replace("_", " "): self.kinds[kind] for kind in COVERAGE_KINDS[1:]}
        parts["labelled twice (first label taken)"] = self.relabelled
        text += "".join(f"; {count:,} {what}" for what, count in parts.items() if count)
        if self.wide_by_label:
            text += f" (widest by label: {', '.join(f'{n} {c}' for n, c in self.wide_by_label.most_common(3))})"
        if self.skipped:
            text += (
                f"; {self.skipped:,} examples with {self.skipped_gold:,} gold spans left out, which no window holds"
            )
            text += f" ({self.skip_reason})"
        return text


@dataclass(frozen=True)
class TrainingDocument:
    """One document, or one window of it, with its gold labels.

    Attributes:
        chain_token_ids: int64 [n], the document's tokens with what the prompt puts around them.
        paths: its S candidate spans.
        gold: int64 [S]: 0 no entity, t + 1 the type number t, -100 not known.
        types: int64, the numbers of the types that occur in it, those in `continued` included, each once.
        num_nodes: forest nodes of chain and spans.
        source: number of its source.
        partial: whether it is labelled in part.
        continued: which candidates a gold span of which type continues; None without the continuation question.
    """

    chain_token_ids: IntArray
    paths: SpanPaths
    gold: IntArray
    types: IntArray
    num_nodes: int
    source: int
    partial: bool
    continued: Continued | None = None

    def continues(self, is_asked: BoolArray) -> NDArray[np.int8]:
        """Returns int8 [S]: the answers of `Continued.answers`; none without the continuation question."""
        if self.continued is None:
            return np.empty(0, np.int8)
        return self.continued.answers(is_asked, self.partial)


@dataclass(frozen=True)
class EncodedSources:
    """All sources, encoded.

    Attributes:
        types: the names of all types, their number being their index.
        inventories: per source the numbers of its types.
        documents: of all sources, in order.
        repeats: per source how often an epoch shows its documents.
        coverage: per source.
        continuation: whether the documents say which candidates are continued.
    """

    types: tuple[str, ...]
    inventories: tuple[IntArray, ...]
    documents: list[TrainingDocument]
    repeats: tuple[float, ...]
    coverage: tuple[Coverage, ...]
    continuation: bool = False


def encode_sources(
    sources: Sequence[TrainingSource],
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    *,
    max_span_words: int,
    listed_span_words: int | None = None,
    continuation: bool = False,
    types: Sequence[str] | None = None,
    max_tokens: int | None = None,
    cue_tokens: int = 0,
    seed: int = 0,
    workers: int = 0,
) -> EncodedSources:
    """Encodes every example with the candidate generator of the pipeline.

    Args:
        sources: what to train on.
        tokenizer: a fast tokenizer.
        template: the prompt's parts around a document.
        max_span_words: longest candidate.
        listed_span_words: up to this length every span is a candidate, beyond it only those near gold spans (see
            `CandidateEncoder`); `max_span_words` if None.
        continuation: whether to find out which candidates a longer gold span continues.
        types: all types in their order; those of the sources if None.
        max_tokens: documents are cut into windows that fit this with their longest span; those that no window holds,
            because of an overlong word for instance, are left out.
        cue_tokens: tokens of the answer cue, for the number of nodes.
        seed: of the choice of sure negatives.
        workers: processes that encode; 0 for this one alone. The result is the same for any number.

    Raises:
        ValueError: no source, a label that is not among `types`, what `encode_documents` refuses, or nothing left.
    """
    if not sources:
        raise ValueError("no sources were given: name at least one to train on.")
    names = tuple(dict.fromkeys(label for source in sources for label in source.labels) if types is None else types)
    numbers = {name: number for number, name in enumerate(names)}
    for source in sources:
        missing = sorted({*source.labels, *labels_of(source.examples)} - set(names))
        if missing:
            raise ValueError(
                f"the source {source.name!r} has labels {missing[:10]} that are not asked for; the labels are "
                f"{list(names)[:20]}: map or leave out labels with a label map."
            )
    listed = max_span_words if listed_span_words is None else listed_span_words
    candidates = CandidateEncoder(tokenizer, template, max_span_words, listed)
    chunks = _Chunks(sources, _Encoder(candidates, max_tokens, cue_tokens, continuation, numbers), seed)
    documents: list[TrainingDocument] = []
    coverage = [Coverage() for _ in sources]
    loader = DataLoader(chunks, batch_size=None, num_workers=workers)
    for (index, _), outcome in zip(chunks.places, loader, strict=True):
        if isinstance(outcome, ValueError):
            raise outcome
        encoded, counts = outcome
        documents += encoded
        coverage[index] += counts
    if not documents:
        raise ValueError(_nothing_left(sources, coverage))
    inventories = tuple(np.array([numbers[label] for label in source.labels], np.int64) for source in sources)
    repeats = tuple(source.repeat for source in sources)
    return EncodedSources(names, inventories, documents, repeats, tuple(coverage), continuation)


def _nothing_left(sources: Sequence[TrainingSource], coverage: Sequence[Coverage]) -> str:
    """Says why there is no document to train on."""
    for source, counts in zip(sources, coverage, strict=True):
        if counts.skip_reason:
            return f"the source {source.name!r}: {counts.skip_reason}"
    return (
        f"no example of the sources {[source.name for source in sources]} can be trained on: give some whose text is "
        "not blank, and of those that are labelled in part some with entities."
    )


class _Chunks(Dataset[tuple[list["TrainingDocument"], Coverage] | ValueError]):
    """Encodes a few hundred examples of a source at a time: what one worker does at once.

    An error is returned: raised in a worker it would come with a traceback for a message.

    Attributes:
        places: number of its source and first example of each chunk.
    """

    def __init__(self, sources: Sequence[TrainingSource], encoder: "_Encoder", seed: int) -> None:
        self.sources, self.encoder, self.seed = sources, encoder, seed
        self.places = [
            (number, start)
            for number, source in enumerate(sources)
            for start in range(0, len(source.examples), CHUNK_EXAMPLES)
        ]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[list[TrainingDocument], Coverage] | ValueError:
        number, start = self.places[index]
        source, generator = self.sources[number], np.random.default_rng([self.seed, number, start])
        examples = source.examples[start : start + CHUNK_EXAMPLES]
        try:
            return self.encoder.encode(examples, number, source.context, generator)
        except ValueError as error:
            return ValueError(f"the source {source.name!r}: {error}")


@dataclass(frozen=True)
class _Gold:
    """The gold spans of a document.

    Attributes:
        candidates: (start, end) in characters -> type number, for those that are candidates.
        words: int64 [G, 2], all of them in words; empty where a span does not begin and end with a word.
        types: int64 [G], their type numbers.
    """

    candidates: Mapping[tuple[int, int], int]
    words: IntArray
    types: IntArray


@dataclass(frozen=True)
class _Encoder:
    """Encodes examples and counts what it sees."""

    candidates: CandidateEncoder
    max_tokens: int | None
    cue_tokens: int
    continuation: bool
    numbers: Mapping[str, int]

    def encode(
        self, examples: Sequence[Example], source: int, context: Context | None, generator: np.random.Generator
    ) -> tuple[list[TrainingDocument], Coverage]:
        coverage = Coverage()
        documents: list[TrainingDocument] = []
        for passages in _by_content(examples, context):
            for passage, document in zip(passages, self.candidates.encode(passages), strict=True):
                try:
                    windows = self._windows(document)
                except NoWindowError as error:
                    coverage += _skipped(passage, document, error)
                    continue
                gold, counts = self._gold(passage, document)
                coverage += counts
                documents += self._documents(windows, gold, source, passage.example.partial, generator)
        return _with_sizes(documents, self.cue_tokens), coverage

    def _windows(self, document: EncodedDocument) -> list[EncodedDocument]:
        if self.max_tokens is None:
            return [document]
        tokenizer, template = self.candidates.tokenizer, self.candidates.template
        return split_into_windows(document, self.max_tokens, tokenizer, template, keep_all=True)

    def _gold(self, passage: Passage, document: EncodedDocument) -> tuple[_Gold, Coverage]:
        """Returns the gold spans, and the coverage of them."""
        bounds, spans = bounds_of_entities(passage.example), document.candidates
        is_candidate = indices_among(bounds, spans.start, spans.end) >= 0
        words = in_words(bounds, document.word_starts, document.word_ends)
        kinds = coverage_kinds(words, is_candidate, self.candidates.max_span_words)
        labels = [label for *_, label in passage.example.entities]
        types = [self.numbers[label] for label in labels]
        found: dict[tuple[int, int], int] = {}
        relabelled = 0
        for (start, end), number, known in zip(bounds.tolist(), types, is_candidate.tolist(), strict=True):
            if known and found.setdefault((start, end), number) != number:
                relabelled += 1
        named = [COVERAGE_KINDS[kind] for kind in kinds.tolist()]
        wide = (label for label, kind in zip(labels, named, strict=True) if kind == "wider_than_limit")
        counts = Coverage(len(passage.members), len(bounds), Counter(named), relabelled, Counter(wide))
        return _Gold(found, words, np.array(types, np.int64)), counts

    def _documents(
        self,
        windows: Sequence[EncodedDocument],
        gold: _Gold,
        source: int,
        partial: bool,
        generator: np.random.Generator,
    ) -> Iterator[TrainingDocument]:
        """Yields the windows in which some candidate has a label."""
        for window in windows:
            codes = _gold_codes(gold.candidates, window, generator if partial else None)
            if (codes != UNLABELLED).any():
                types = np.unique(codes[codes > NONE]) - 1
                continued = None
                if self.continuation:
                    continued = Continued.of(window.candidates, gold.words, gold.types)
                    types = np.union1d(types, continued.type)
                yield TrainingDocument(
                    window.chain_token_ids, window.candidates.paths, codes, types, 0, source, partial, continued
                )


def _by_content(examples: Sequence[Example], context: Context | None) -> Iterator[list[Passage]]:
    """Yields the passages of texts, then those of lists of words, each in order."""
    for kind in (str, list):
        chosen = [example for example in examples if isinstance(example.content, kind)]
        if chosen:
            yield passages_of(chosen, context)


def _skipped(passage: Passage, document: EncodedDocument, error: NoWindowError) -> Coverage:
    """Counts the examples of a document that no window holds."""
    examples, gold = len(passage.members), len(passage.example.entities)
    reason = f"the example {document.text[:SHOWN_CHARACTERS]!r}: {error}"
    return Coverage(examples=examples, gold=gold, skipped=examples, skipped_gold=gold, skip_reason=reason)


def _gold_codes(
    gold: Mapping[tuple[int, int], int], window: EncodedDocument, partial: np.random.Generator | None
) -> IntArray:
    """Returns int64 [S]: the gold code of each of the window's candidates; `partial` draws the sure negatives."""
    codes = np.full(window.candidates.num_spans, NONE if partial is None else UNLABELLED)
    spans = window.candidates
    places = indices_among(np.array(list(gold), np.int64).reshape(-1, 2), spans.start, spans.end)
    labelled = places[places >= 0]
    codes[labelled] = np.fromiter(gold.values(), np.int64, len(gold))[places >= 0] + 1
    if partial is not None:
        codes[_sure_negatives(window, labelled, partial)] = NONE
    return codes


def _sure_negatives(window: EncodedDocument, labelled: IntArray, generator: np.random.Generator) -> IntArray:
    """Draws candidates that overlap a labelled one without being one: of one name, one reading is right."""
    start, end = window.candidates.start, window.candidates.end
    overlap = (start[:, None] < end[labelled]) & (start[labelled] < end[:, None])
    near = np.setdiff1d(np.flatnonzero(overlap.any(axis=1)), labelled)
    return generator.permutation(near)[: SURE_NEGATIVES * len(labelled)]


def _with_sizes(documents: Sequence[TrainingDocument], cue_tokens: int) -> list[TrainingDocument]:
    """Returns the documents with their exact number of nodes."""
    forest = build_forest(
        [d.chain_token_ids for d in documents], [d.paths for d in documents], cue_token_ids=[0] * cue_tokens
    )
    sizes = np.diff(forest.cu_nodes.numpy()).tolist()
    return [replace(document, num_nodes=size) for document, size in zip(documents, sizes, strict=True)]
