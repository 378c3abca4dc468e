"""Reads what users give the pipeline, and writes what they get from it.

In: keyword arguments; strings, word lists or dicts; entities. Out: `Settings` and `Document`, checked; dicts of plain
Python values. Also holds the type that documents have between these two ends, `PreparedDocument`.
Knows nothing of tokenizers, models, scores or thresholds.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .configuration import FLAT_SELECTIONS, OVERLAPS
from .decoding import Entity
from .prompting import EncodedPrompt, Labels
from .spans import DocumentError, EncodedDocument
from .validation import check_count, check_number

AGGREGATIONS = ("simple", "none")
LONG_DOCUMENTS = ("window", "error", "truncate")
DOCUMENT_KEYS = ("text", "words", "candidate_labels", "spans")


@dataclass(frozen=True)
class Settings:
    """The arguments of a call; the fields are the pipeline's keyword arguments, documented at `DecodNERPipeline`."""

    candidate_labels: Any = None
    threshold: Any = None
    overlap: str = "flat"
    flat_selection: str = "greedy"
    multi_label: bool = False
    aggregation_strategy: str = "simple"
    return_all_scores: bool = False
    max_span_words: int = 8
    spans: Any = None
    is_split_into_words: bool = False
    long_documents: str = "window"
    return_report: bool = False
    growth: bool = False
    growth_threshold: float = 0.01

    def __post_init__(self) -> None:
        """Checks every choice; a ValueError lists what is allowed."""
        choices = {
            "overlap": OVERLAPS,
            "flat_selection": FLAT_SELECTIONS,
            "aggregation_strategy": AGGREGATIONS,
            "long_documents": LONG_DOCUMENTS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {list(allowed)}, not {getattr(self, name)!r}.")
        switches = ("multi_label", "return_all_scores", "is_split_into_words", "return_report", "growth")
        for name in switches:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, not {getattr(self, name)!r}.")
        if self.multi_label and self.overlap != "all":
            raise ValueError(f'multi_label=True needs overlap="all", not {self.overlap!r}.')
        check_count("max_span_words", self.max_span_words)
        check_number("growth_threshold", self.growth_threshold, 0.0, 1.0)


@dataclass(frozen=True)
class Document:
    """One input as it was read.

    Attributes:
        content: its text, or its words.
        labels: the labels to look for.
        spans: its own candidate spans as given, not checked yet; None for all runs of words.
        number: its number among the inputs, for messages; None where it is the only one.
    """

    content: str | Sequence[str]
    labels: Labels
    spans: Any = None
    number: int | None = None

    @property
    def is_split(self) -> bool:
        """Whether the content is a list of words."""
        return not isinstance(self.content, str)

    @property
    def size(self) -> int:
        """Number of characters, roughly; what is not a string has none: encoding checks that."""
        if isinstance(self.content, str):
            return len(self.content)
        return sum(len(word) for word in self.content if isinstance(word, str))


@dataclass(frozen=True)
class PreparedDocument:
    """One input, encoded and ready to be scored.

    Attributes:
        source: the input as it was read.
        document: the whole document, encoded.
        windows: what is scored: mostly just the document itself.
        prompts: the prompts of its labels; every window is scored against each.
        truncated_at: the number of characters kept, if the rest was cut off.
        growth_threshold: probability from which on a span goes on; None to score every candidate.
        words_left_out: overlong words that are not read, as half-open pairs of characters.
        not_grown: after scoring, the number of candidates of which a shorter prefix does not go on.
    """

    source: Document
    document: EncodedDocument
    windows: tuple[EncodedDocument, ...]
    prompts: tuple[EncodedPrompt, ...]
    truncated_at: int | None = None
    growth_threshold: float | None = None
    words_left_out: tuple[tuple[int, int], ...] = ()
    not_grown: int = 0

    @property
    def budget_nodes(self) -> int:
        """Forest nodes that its passes are planned for: the most that all windows can have, or fewer for growth."""
        return sum(window.budget_nodes(grown=self.growth_threshold is not None) for window in self.windows)


# ------------------------------------------------------------------ reading


def is_document(inputs: Any, is_split_into_words: bool) -> bool:
    """Returns whether the input is one document and not several."""
    if isinstance(inputs, str | Mapping):
        return True
    return is_split_into_words and isinstance(inputs, list | tuple) and bool(inputs) and isinstance(inputs[0], str)


def iterate(inputs: Any) -> Iterator[Any]:
    """Iterates over anything with `__iter__`, or with `__getitem__` and `__len__` as map-style datasets."""
    if isinstance(inputs, Iterable):
        return iter(inputs)
    return (inputs[index] for index in range(len(inputs)))


def read_document(
    given: Any, settings: Settings, labels_for: Callable[[Any], Labels], number: int | None = None
) -> Document:
    """Reads one input.

    Args:
        given: a string, a list of words (with `is_split_into_words`), or a dict of either with what belongs to it.
        settings: the call's arguments.
        labels_for: turns labels as a caller gives them, or None, into `Labels`.
        number: the input's number, for messages; None where it is the only one.

    Raises:
        DocumentError: an input of another type or with other keys, or labels that are not valid.
    """
    content, labels, spans = given, settings.candidate_labels, settings.spans
    split = settings.is_split_into_words
    if isinstance(given, Mapping):
        unknown = [key for key in given if key not in DOCUMENT_KEYS]
        if unknown or ("text" in given) == ("words" in given):
            raise DocumentError(
                number,
                "a document given as a dict has 'text' or 'words', and may have 'candidate_labels' and 'spans'; "
                f"this one has {sorted(map(str, given))}.",
            )
        labels, spans = given.get("candidate_labels", labels), given.get("spans", spans)
        split = "words" in given
        content = given["words" if split else "text"]
    if not isinstance(content, Sequence if split else str) or (split and isinstance(content, str)):
        allowed = "a list of words (is_split_into_words=True)" if split else "a string"
        raise DocumentError(number, f"the document must be {allowed}, not {type(content).__name__}: {content!r:.80}")
    try:
        named = labels_for(labels)
    except ValueError as error:
        raise DocumentError(number, str(error)) from error
    return Document(content if isinstance(content, str) else list(content), named, spans, number)


# ------------------------------------------------------------------ writing


def entity_rows(entity: Entity, prepared: PreparedDocument) -> list[dict[str, Any]]:
    """Writes an entity as one dict."""
    row: dict[str, Any] = {"entity_group": entity.label, "score": entity.score}
    row |= {"word": prepared.document.text[entity.start : entity.end], "start": entity.start, "end": entity.end}
    if prepared.source.is_split:
        row |= {"start_word": entity.start_word, "end_word": entity.end_word}
    return [_completed(row, entity, prepared)]


def word_rows(entity: Entity, prepared: PreparedDocument) -> list[dict[str, Any]]:
    """Writes an entity as one dict per word, B- on the first and I- on the others."""
    document = prepared.document
    rows: list[dict[str, Any]] = []
    for index in range(entity.start_word, entity.end_word):
        start = max(int(document.word_starts[index]), entity.start)
        end = min(int(document.word_ends[index]), entity.end)
        row = {"entity": f"{'I' if rows else 'B'}-{entity.label}", "score": entity.score, "index": index}
        row |= {"word": document.text[start:end], "start": start, "end": end}
        rows.append(_completed(row, entity, prepared))
    return rows


def document_report(prepared: PreparedDocument, max_span_words: int) -> dict[str, Any]:
    """Returns how a document was read and what of it was not, as plain values; see the pipeline's `return_report`."""
    words, found = len(prepared.document.word_starts), prepared.document.candidates.num_spans
    scored = sum(window.candidates.num_spans for window in prepared.windows)
    own = prepared.source.spans is not None
    longest = min(max_span_words, words)
    runs = longest * words - longest * (longest - 1) // 2  # runs of up to max_span_words words
    not_grown = {} if prepared.growth_threshold is None else {"not_grown": prepared.not_grown}
    return {
        "windows": len(prepared.windows),
        "truncated_at": prepared.truncated_at,
        "words_left_out": [list(bounds) for bounds in prepared.words_left_out],
        "candidates": scored,
        "candidates_left_out": {
            "too_many_words": 0 if own else words * (words + 1) // 2 - runs,
            "no_tokens": 0 if own else runs - found,
            "not_read": found - scored - prepared.not_grown,
            **not_grown,
        },
    }


def _completed(row: dict[str, Any], entity: Entity, prepared: PreparedDocument) -> dict[str, Any]:
    if entity.scores is not None:
        row["scores"] = entity.scores
    if prepared.truncated_at is not None:
        row["truncated_at"] = prepared.truncated_at
    return row
