"""Defines what the stages of annotating files hand to one another: documents, and documents with their entities.

Knows nothing of files, models or formats.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.pipeline_io import EntityRow

Entities = Sequence[EntityRow]
Pipe = Callable[..., Any]  # a text -> its result; an iterator of texts -> an iterator of results, in order
Outcome = dict[str, Any] | ValueError  # what the pipeline returns with its report, or why it refuses the document
Warn = Callable[[str], None]


@dataclass(frozen=True)
class Record:
    """One document of a file.

    Attributes:
        place: where it stands in its file, for messages ("line 12").
        text: the document; empty where `problem` says why there is none.
        fields: everything that the file holds for it, the text included.
        problem: what is wrong with it, None where nothing is.
        row: its index in a parquet file; 0 in files of other types.
        source: index of its file among those of the run.
    """

    place: str
    text: str
    fields: dict[str, object]
    problem: str | None = None
    row: int = 0
    source: int = 0


@dataclass(frozen=True)
class Annotated:
    """A document with its entities."""

    record: Record
    entities: Entities


Annotations = Callable[[], Iterator[Annotated]]  # each call starts anew: tables are written in two passes
