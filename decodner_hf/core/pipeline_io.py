"""Reads what users give the pipeline, and writes what they get from it.

In: keyword arguments; strings, word lists or dicts; entities. Out: `Settings` and `Document`, checked; dicts of plain
Python values. Also holds the type that documents have between these two ends, `PreparedDocument`.
Knows nothing of tokenizers, models or scores.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NotRequired, Protocol, TypedDict, TypeGuard

from .configuration import FLAT_SELECTIONS, OVERLAPS
from .decoding import Entity
from .prompting import EncodedPrompt, Labels
from .spans import DocumentError, EncodedDocument, Spans
from .validation import check_choice, check_count, check_number, near_miss

AGGREGATIONS = ("simple", "none", "first", "average", "max")
WHOLE_WORDS = ("first", "average", "max")  # ways to settle words whose tokens disagree; those of a span cannot
LONG_DOCUMENTS = ("window", "error", "truncate")
ON_ERROR = ("raise", "skip")
EXTRA_KEYS = ("return", "ignore")
CONTENT_KEYS = ("text", "words", "tokens")
DOCUMENT_KEYS = (*CONTENT_KEYS, "candidate_labels", "spans", "threshold")
RESULT_KEYS = ("entities", "report")

LabelChoice = Mapping[str, str | None] | Sequence[str]
ThresholdChoice = float | Mapping[str, float]
TokenNumbers = Callable[[str | Sequence[str], Sequence[int]], Sequence[int]]


class DatasetLike(Protocol):
    """A map-style dataset, which may have no `__iter__`."""

    def __len__(self) -> int:
        """Number of items."""

    def __getitem__(self, index: int, /) -> object:
        """An item."""


Inputs = Iterable[object] | DatasetLike


class Row(TypedDict):
    """What all rows have."""

    score: float
    word: str
    start: int
    end: int
    start_word: NotRequired[int]
    end_word: NotRequired[int]
    scores: NotRequired[dict[str, float]]
    truncated_at: NotRequired[int]


class EntityRow(Row):
    """An entity, as aggregation gives it."""

    entity_group: str


class WordRow(Row):
    """A word of an entity, as `aggregation_strategy="none"` gives it."""

    entity: str
    index: int


class Report(TypedDict):
    """How a document was read and what of it was not, see the pipeline's `return_report`."""

    windows: int
    truncated_at: int | None
    words_left_out: list[list[int]]
    candidates: int
    candidates_left_out: dict[str, int]


Rows = list[EntityRow] | list[WordRow]
Result = Rows | dict[str, object]


@dataclass(frozen=True)
class Settings:
    """The arguments of a call; the fields are the pipeline's keyword arguments, documented at `DecodNERPipeline`."""

    candidate_labels: LabelChoice | None = None
    threshold: ThresholdChoice | None = None
    overlap: str = "flat"
    flat_selection: str = "greedy"
    multi_label: bool = False
    aggregation_strategy: str = "simple"
    ignore_labels: Sequence[str] = ("O",)
    return_all_scores: bool = False
    max_span_words: int = 8
    spans: Spans | None = None
    is_split_into_words: bool = False
    delimiter: str = " "
    extra_keys: str = "return"
    on_error: str = "raise"
    long_documents: str = "window"
    stride: int | None = None
    return_report: bool = False
    growth: bool = False
    growth_threshold: float = 0.01

    def __post_init__(self) -> None:
        """Checks every choice; a ValueError lists what is allowed."""
        check_choice("overlap", self.overlap, OVERLAPS)
        check_choice("flat_selection", self.flat_selection, FLAT_SELECTIONS)
        check_choice("aggregation_strategy", self.aggregation_strategy, AGGREGATIONS)
        check_choice("extra_keys", self.extra_keys, EXTRA_KEYS)
        check_choice("on_error", self.on_error, ON_ERROR)
        check_choice("long_documents", self.long_documents, LONG_DOCUMENTS)
        for name in ("multi_label", "return_all_scores", "is_split_into_words", "return_report", "growth"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, not {getattr(self, name)!r}.")
        if self.multi_label and self.overlap != "all":
            raise ValueError(f'multi_label=True needs overlap="all", not {self.overlap!r}.')
        if not isinstance(self.delimiter, str):
            raise ValueError(f"delimiter must be a string, not {self.delimiter!r}.")
        check_count("max_span_words", self.max_span_words)
        check_number("growth_threshold", self.growth_threshold, 0.0, 1.0)
        check_count("stride", self.stride or 0, least=0)
        if self.stride is not None and self.long_documents != "window":
            raise ValueError(f'stride is of windows: it needs long_documents="window", not {self.long_documents!r}.')
        ignored = self.ignore_labels
        is_list = isinstance(ignored, Sequence | set | frozenset) and not isinstance(ignored, str | bytes)
        if not is_list or not all(isinstance(label, str) for label in ignored):
            raise ValueError(f"ignore_labels must be a list of labels, not {ignored!r}.")
        if not ignored:
            raise ValueError(
                "ignore_labels=[] asks for the words that are in no entity (O), too, but these have no score of their "
                "own here: leave it out."
            )


@dataclass(frozen=True)
class Document:
    """One input as it was read.

    Attributes:
        content: its text, or its words.
        labels: the labels to look for.
        spans: its own candidate spans as given, not checked yet; None for all runs of words.
        number: its number among the inputs, for messages; None where it is the only one.
        thresholds: those of its labels, where it brings its own; None for those of the call.
        extra: what else it brings, to be given back with its result.
    """

    content: str | Sequence[str]
    labels: Labels
    spans: Spans | None = None
    number: int | None = None
    thresholds: tuple[float, ...] | None = None
    extra: Mapping[str, object] = field(default_factory=dict)

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


def is_document(inputs: object, is_split_into_words: bool) -> bool:
    """Returns whether the input is one document and not several.

    With `is_split_into_words` a list is one document unless all of its items are documents, as in transformers.
    """
    if isinstance(inputs, str | Mapping):
        return True
    if not is_split_into_words or not isinstance(inputs, list | tuple):
        return False
    return not all(isinstance(item, list | tuple | Mapping) for item in inputs)


def looks_like_words(inputs: Sequence[object]) -> bool:
    """Returns whether documents look like the words of one: to be warned of, not acted on."""
    return len(inputs) > 2 and all(isinstance(item, str) and len(item.split()) == 1 for item in inputs)


def is_stream(inputs: object) -> TypeGuard[Inputs]:
    """Returns whether `iterate` takes the inputs as several documents."""
    if isinstance(inputs, bytes | bytearray):
        return False
    return isinstance(inputs, Iterable) or (hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"))


def iterate(inputs: Inputs) -> Iterator[object]:
    """Iterates over anything with `__iter__`, or with `__getitem__` and `__len__` as map-style datasets."""
    if isinstance(inputs, Iterable):
        return iter(inputs)
    return (inputs[index] for index in range(len(inputs)))


def read_document(
    given: object,
    settings: Settings,
    labels_for: Callable[[LabelChoice | None], Labels],
    thresholds_for: Callable[[Labels, ThresholdChoice], Sequence[float]],
    number: int | None = None,
) -> Document:
    """Reads one input.

    Args:
        given: a string, a list of words (with `is_split_into_words`), or a dict of either with what belongs to it.
        settings: the call's arguments.
        labels_for: turns labels as a caller gives them, or None, into `Labels`.
        thresholds_for: turns a threshold as a caller gives it into one for each label.
        number: the input's number, for messages; None where it is the only one.

    Raises:
        DocumentError: an input of another type, a dict without one text or list of words or with a misspelled key, or
            labels or thresholds that are not valid.
    """
    values = given if isinstance(given, Mapping) else {}
    content, split = given, settings.is_split_into_words
    if isinstance(given, Mapping):
        key = _content_key(given, number)
        content, split = given[key], key != "text"
    if not isinstance(content, Sequence if split else str) or (split and isinstance(content, str)):
        allowed = "a list of words (is_split_into_words=True)" if split else "a string"
        raise DocumentError(number, f"the document must be {allowed}, not {type(content).__name__}: {content!r:.80}")
    labels, spans, threshold = (values.get(name) for name in ("candidate_labels", "spans", "threshold"))
    try:
        named = labels_for(settings.candidate_labels if labels is None else labels)
        thresholds = None if threshold is None else tuple(thresholds_for(named, threshold))
    except ValueError as error:
        raise DocumentError(number, str(error)) from error
    return Document(
        content if isinstance(content, str) else list(content),
        named,
        settings.spans if spans is None else spans,
        number,
        thresholds,
        _extra(values, settings.extra_keys, number),
    )


def _content_key(given: Mapping[str, object], number: int | None) -> str:
    found = [key for key in CONTENT_KEYS if key in given]
    if len(found) != 1:
        raise DocumentError(
            number,
            "a document given as a dict has one of 'text', 'words' and 'tokens' (a list of words), and may have "
            f"'candidate_labels', 'spans' and 'threshold'; this one has {sorted(map(str, given))}.",
        )
    return found[0]


def _extra(given: Mapping[str, object], extra_keys: str, number: int | None) -> dict[str, object]:
    """Returns what a dict holds besides what is asked of it; nothing where that is ignored."""
    extra = {key: value for key, value in given.items() if key not in DOCUMENT_KEYS}
    if not extra or extra_keys == "ignore":
        return {}
    for key in extra:
        meant = near_miss(key, DOCUMENT_KEYS, cutoff=0.85)
        if meant is not None or key in RESULT_KEYS:
            problem = f"did you mean {meant!r}?" if meant else "the result has one of its own."
            raise DocumentError(
                number, f'the document has the key {key!r}: {problem} Rename it, or pass extra_keys="ignore".'
            )
    return extra


# ------------------------------------------------------------------ writing


def document_result(
    entities: Sequence[Entity],
    prepared: PreparedDocument,
    settings: Settings,
    token_numbers: TokenNumbers,
) -> Result:
    """Returns a document's result: its rows or, with a report or keys of its own, a dict that holds them.

    Args:
        entities: those of the document.
        prepared: the document.
        settings: the call's arguments.
        token_numbers: counts tokens for `aggregation_strategy="none"`: see `tokenization.token_numbers`.
    """
    ignored = set(settings.ignore_labels)
    kept = [entity for entity in entities if entity.label not in ignored]
    rows: Rows
    if settings.aggregation_strategy == "none":
        rows = [row for row in word_rows(kept, prepared, token_numbers) if row["entity"] not in ignored]
    else:
        rows = [entity_row(entity, prepared) for entity in kept]
    if not settings.return_report and not prepared.source.extra:
        return rows
    report = {"report": document_report(prepared, settings.max_span_words)} if settings.return_report else {}
    return {**prepared.source.extra, "entities": rows, **report}


def entity_row(entity: Entity, prepared: PreparedDocument) -> EntityRow:
    """Writes an entity as one dict."""
    word = prepared.document.text[entity.start : entity.end]
    row = EntityRow(entity_group=entity.label, score=entity.score, word=word, start=entity.start, end=entity.end)
    _complete(row, entity, prepared, entity.start_word, entity.end_word)
    return row


def word_rows(entities: Sequence[Entity], prepared: PreparedDocument, token_numbers: TokenNumbers) -> list[WordRow]:
    """Writes entities as one dict per word, B- on the first and I- on the others."""
    document = prepared.document
    rows: list[WordRow] = []
    words: list[int] = []
    for entity in entities:
        for index in range(entity.start_word, entity.end_word):
            start = max(int(document.word_starts[index]), entity.start)
            end = min(int(document.word_ends[index]), entity.end)
            tag, word = f"{'B' if index == entity.start_word else 'I'}-{entity.label}", document.text[start:end]
            row = WordRow(entity=tag, score=entity.score, index=0, word=word, start=start, end=end)
            _complete(row, entity, prepared, index, index + 1)
            rows.append(row)
            words.append(index)
    if rows:
        places = words if prepared.source.is_split else [row["start"] for row in rows]
        for row, number in zip(rows, token_numbers(prepared.source.content, places), strict=True):
            row["index"] = number
    return rows


def document_report(prepared: PreparedDocument, max_span_words: int) -> Report:
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


def _complete(row: Row, entity: Entity, prepared: PreparedDocument, start_word: int, end_word: int) -> None:
    """Adds what only some rows have."""
    if prepared.source.is_split:
        row["start_word"], row["end_word"] = start_word, end_word
    if entity.scores is not None:
        row["scores"] = entity.scores
    if prepared.truncated_at is not None:
        row["truncated_at"] = prepared.truncated_at
