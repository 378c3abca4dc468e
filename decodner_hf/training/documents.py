"""Encodes labelled examples for training: the product's own candidate spans, each with its gold label.

In: sources of `Example`s and a tokenizer. Out: `EncodedSources`, with a count of what could not be used.
Only gold spans, and a few spans that surely are none, carry a label where an example is labelled in part.
Knows nothing of prompts, rows or models.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from ..core.forest import SpanPaths, build_forest
from ..core.label_head import UNLABELLED
from ..core.prompting import PromptTemplate
from ..core.spans import EncodedDocument, NoWindowError, encode_documents, split_into_windows
from ..data.document_context import Context, Passage, passages_of
from ..data.examples import Example, labels_of
from .coverage import Coverage

IntArray = NDArray[np.int64]
NONE = 0  # gold codes: 0 is no entity, t + 1 the type number t
SHOWN = 60  # characters of an example in messages
AT_ONCE = 512  # examples
SURE_NEGATIVES = 8  # per gold span of an example that is labelled in part


@dataclass(frozen=True)
class TrainingSource:
    """Examples that are labelled by one scheme.

    Attributes:
        name: for reports and the model card.
        examples: what to train on.
        labels: the types that the scheme knows, which is what its examples may be asked for; those that occur if ().
        repeat: how often an epoch shows each example; 0.5 is a random half, anew in every epoch.
        licence: of the data, for the model card.
        context: what of its document an example is read with; each is read alone if None.
    """

    name: str
    examples: Sequence[Example]
    labels: tuple[str, ...] = ()
    repeat: float = 1.0
    licence: str | None = None
    context: Context | None = None

    def __post_init__(self) -> None:
        """Checks that there is something to train on."""
        if not self.examples:
            raise ValueError(f"the source {self.name!r} has no examples.")
        if not self.repeat > 0:
            raise ValueError(f"repeat of the source {self.name!r} must be greater than 0, not {self.repeat!r}.")
        if not self.labels:
            object.__setattr__(self, "labels", tuple(labels_of(self.examples)))
        if not self.labels:
            raise ValueError(f"no example of the source {self.name!r} has an entity, and no labels were named for it.")


@dataclass(frozen=True)
class TrainingDocument:
    """One document, or one window of it, with its gold labels.

    Attributes:
        chain_token_ids: int64 [n], the document's tokens with what the prompt puts around them.
        paths: its S candidate spans.
        gold: int64 [S]: 0 no entity, t + 1 the type number t, -100 not known.
        types: int64, the numbers of the types that occur in it, each once.
        num_nodes: forest nodes of chain and spans.
        source: number of its source.
        partial: whether it is labelled in part.
    """

    chain_token_ids: IntArray
    paths: SpanPaths
    gold: IntArray
    types: IntArray
    num_nodes: int
    source: int
    partial: bool


@dataclass(frozen=True)
class EncodedSources:
    """All sources, encoded.

    Attributes:
        types: the names of all types, their number being their index.
        inventories: per source the numbers of its types.
        documents: of all sources, in order.
        repeats: per source how often an epoch shows its documents.
        coverage: per source.
    """

    types: tuple[str, ...]
    inventories: tuple[IntArray, ...]
    documents: list[TrainingDocument]
    repeats: tuple[float, ...]
    coverage: tuple[Coverage, ...]


def encode_sources(
    sources: Sequence[TrainingSource],
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    *,
    max_span_words: int,
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
        types: all types in their order; those of the sources if None.
        max_tokens: cut documents into windows that fit this with their longest span; those that no window holds, for
            an overlong word, say, are left out.
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
    encoder = _Encoder(tokenizer, template, max_span_words, max_tokens, cue_tokens, numbers)
    chunks = _Chunks(sources, encoder, seed)
    documents: list[TrainingDocument] = []
    coverage = [Coverage() for _ in sources]
    for (index, _), outcome in zip(
        chunks.places, DataLoader(chunks, batch_size=None, num_workers=workers), strict=True
    ):
        if isinstance(outcome, ValueError):
            raise outcome
        encoded, counts = outcome
        documents += encoded
        coverage[index].add(counts)
    if not documents:
        raise ValueError(_nothing_left(sources, coverage))
    inventories = tuple(np.array([numbers[label] for label in source.labels], np.int64) for source in sources)
    return EncodedSources(names, inventories, documents, tuple(s.repeat for s in sources), tuple(coverage))


def _nothing_left(sources: Sequence[TrainingSource], coverage: Sequence[Coverage]) -> str:
    """Why there is no document to train on."""
    for source, counts in zip(sources, coverage, strict=True):
        if counts.reason:
            return f"the source {source.name!r}: {counts.reason}"
    return (
        f"no example of the sources {[source.name for source in sources]} can be trained on: give some whose text is "
        "not blank, and of those that are labelled in part some with entities."
    )


def _alike(examples: Sequence[Example]) -> Iterator[list[Example]]:
    """Texts and lists of words apart, each in order."""
    for kind in (str, list):
        chosen = [example for example in examples if isinstance(example.content, kind)]
        if chosen:
            yield chosen


class _Chunks(Dataset[tuple[list["TrainingDocument"], Coverage] | ValueError]):
    """Some hundred examples of a source at a time, encoded: what one worker does at once.

    An error is returned: raised in a worker it would come with a traceback for a message.

    Attributes:
        places: number of its source and first example of each chunk.
    """

    def __init__(self, sources: Sequence[TrainingSource], encoder: "_Encoder", seed: int) -> None:
        self.sources, self.encoder, self.seed = sources, encoder, seed
        self.places = [
            (number, start)
            for number, source in enumerate(sources)
            for start in range(0, len(source.examples), AT_ONCE)
        ]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[list[TrainingDocument], Coverage] | ValueError:
        number, start = self.places[index]
        source, generator = self.sources[number], np.random.default_rng([self.seed, number, start])
        try:
            return self.encoder.encode(source.examples[start : start + AT_ONCE], number, source.context, generator)
        except ValueError as error:
            return ValueError(f"the source {source.name!r}: {error}")


@dataclass(frozen=True)
class _Encoder:
    """Encodes examples and counts what it sees."""

    tokenizer: PreTrainedTokenizerBase
    template: PromptTemplate
    max_span_words: int
    max_tokens: int | None
    cue_tokens: int
    numbers: dict[str, int]

    def encode(
        self, examples: Sequence[Example], source: int, context: Context | None, generator: np.random.Generator
    ) -> tuple[list[TrainingDocument], Coverage]:
        counts = Coverage()
        documents: list[TrainingDocument] = []
        for kind in _alike(examples):
            documents += self._documents(passages_of(kind, context), source, counts, generator)
        return _counted(documents, self.cue_tokens), counts

    def _documents(
        self, passages: Sequence[Passage], source: int, counts: Coverage, generator: np.random.Generator
    ) -> list[TrainingDocument]:
        contents: Any = [passage.example.content for passage in passages]
        encoded = encode_documents(
            contents,
            self.tokenizer,
            self.template,
            max_span_words=self.max_span_words,
            is_split_into_words=isinstance(contents[0], list),
        )
        documents = []
        for passage, document in zip(passages, encoded, strict=True):
            inside = _within(passage, document)
            try:
                windows = self._windows(inside)
            except NoWindowError as error:
                reason = f"the example {document.text[:SHOWN]!r}: {error}"
                counts.leave_out(len(passage.members), len(passage.example.entities), reason)
                continue
            gold = self._gold(passage, inside, counts)
            for window in windows:
                codes = self._codes(gold, window, generator if passage.example.partial else None)
                if len(codes) and (codes != UNLABELLED).any():
                    found = np.unique(codes[codes > NONE]) - 1
                    chain, paths = window.chain_token_ids, window.candidates.paths
                    documents.append(TrainingDocument(chain, paths, codes, found, 0, source, passage.example.partial))
        return documents

    def _windows(self, document: EncodedDocument) -> list[EncodedDocument]:
        if self.max_tokens is None:
            return [document]
        return split_into_windows(document, self.max_tokens, self.tokenizer, self.template)

    def _gold(self, passage: Passage, document: EncodedDocument, counts: Coverage) -> dict[tuple[int, int], int]:
        """Type number of each labelled span that is a candidate; the others are counted."""
        spans = document.candidates
        known = set(zip(spans.start.tolist(), spans.end.tolist(), strict=True))
        gold: dict[tuple[int, int], int] = {}
        counts.examples += len(passage.members)
        for start, end, label in passage.example.character_entities:
            counts.gold += 1
            words = int(((document.word_starts < end) & (document.word_ends > start)).sum())
            if (start, end) not in known:
                if words > self.max_span_words:
                    counts.wider += 1
                    counts.wide_by_label[label] += 1
                else:
                    counts.off_words += 1
            elif gold.setdefault((start, end), self.numbers[label]) != self.numbers[label]:
                counts.relabelled += 1
        return gold

    def _codes(
        self, gold: dict[tuple[int, int], int], window: EncodedDocument, partial: np.random.Generator | None
    ) -> IntArray:
        """int64 [S]: the gold code of each of the window's candidates; `partial` draws the sure negatives."""
        spans = window.candidates
        codes = np.full(spans.num_spans, NONE if partial is None else UNLABELLED)
        stride = len(window.text) + 1
        keys = spans.start * stride + spans.end
        order = np.argsort(keys)
        wanted = np.array([start * stride + end for start, end in gold], np.int64)
        places = np.searchsorted(keys, wanted, sorter=order).clip(max=max(0, len(keys) - 1))
        held = keys[order[places]] == wanted if len(keys) else np.zeros(len(wanted), bool)
        labelled = order[places[held]]
        codes[labelled] = np.fromiter(gold.values(), np.int64, len(gold))[held] + 1
        if partial is not None:
            codes[_sure_negatives(window, labelled, partial)] = NONE
        return codes


def _sure_negatives(window: EncodedDocument, labelled: IntArray, generator: np.random.Generator) -> IntArray:
    """Some candidates that overlap a labelled one without being one: of one name, one reading is right."""
    start, end = window.candidates.start, window.candidates.end
    overlap = (start[:, None] < end[labelled]) & (start[labelled] < end[:, None])
    near = np.setdiff1d(np.flatnonzero(overlap.any(axis=1)), labelled)
    return generator.permutation(near)[: SURE_NEGATIVES * len(labelled)]


def _within(passage: Passage, document: EncodedDocument) -> EncodedDocument:
    """The document with the candidates that lie within one of the passage's members."""
    if passage.is_one:
        return document
    spans = document.candidates
    return replace(document, candidates=spans.select(passage.within_members(spans.start, spans.end)))


def _counted(documents: Sequence[TrainingDocument], cue_tokens: int) -> list[TrainingDocument]:
    """The documents with their exact number of nodes."""
    forest = build_forest(
        [d.chain_token_ids for d in documents], [d.paths for d in documents], cue_token_ids=[0] * cue_tokens
    )
    sizes = np.diff(forest.cu_nodes.numpy()).tolist()
    return [replace(document, num_nodes=size) for document, size in zip(documents, sizes, strict=True)]
