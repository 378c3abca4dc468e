"""What users ask of the pipeline: the arguments of a call, and the inputs it comes with.

In: keyword arguments; strings, word lists or dicts. Out: `Settings` and `Document`, checked.
Knows nothing of tokenizers or models.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .configuration import FLAT_SELECTIONS, OVERLAPS
from .validation import is_count

AGGREGATIONS = ("simple", "none")
LONG_DOCUMENTS = ("window", "error", "truncate")
DOCUMENT_KEYS = ("text", "words", "candidate_labels", "spans")

Labels = tuple[tuple[str, str | None], ...]  # (name, description), hashable


@dataclass(frozen=True)
class Settings:
    """What a call asks for; the fields are the pipeline's keyword arguments, documented at `DecodNERPipeline`."""

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
        for name in ("multi_label", "return_all_scores", "is_split_into_words"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, not {getattr(self, name)!r}.")
        if self.multi_label and self.overlap != "all":
            raise ValueError(f'multi_label=True needs overlap="all", not {self.overlap!r}.')
        if not is_count(self.max_span_words):
            raise ValueError(f"max_span_words must be at least 1, not {self.max_span_words!r}.")


@dataclass(frozen=True)
class Document:
    """One input, read: its text or words, its labels, and its own spans if it has any."""

    content: str | list[str]
    labels: Labels
    spans: Any


def is_document(inputs: Any, is_split_into_words: bool) -> bool:
    """Whether the input is one document and not several."""
    if isinstance(inputs, str | Mapping):
        return True
    return is_split_into_words and isinstance(inputs, list | tuple) and bool(inputs) and isinstance(inputs[0], str)


def items(inputs: Any) -> Iterator[Any]:
    """Iterates over anything with `__iter__`, or with `__getitem__` and `__len__` as map-style datasets."""
    if isinstance(inputs, Iterable):
        return iter(inputs)
    return (inputs[index] for index in range(len(inputs)))


def size(document: Any) -> int:
    """Characters of a document, roughly and without checking it: reading it comes later."""
    content = document.get("text", document.get("words", "")) if isinstance(document, Mapping) else document
    if isinstance(content, str):
        return len(content)
    return sum(len(word) for word in content if isinstance(word, str)) if isinstance(content, Sequence) else 0
