"""Defines what annotates the documents of a run, and the engine that does it in this process.

In: documents. Out: each document, in order, with what the pipeline gives for it or with the error by which it refuses.
An engine also says which model and settings its results come from.
Knows nothing of files or journals.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from .fingerprint import fingerprint, settings_of
from .records import Outcome, Record
from .streaming import annotate_records

if TYPE_CHECKING:
    from ..core.pipeline import DecodNERPipeline

LoadPipeline = Callable[[str], "DecodNERPipeline"]  # a device ("cuda:0") -> the pipeline on it


class Engine(Protocol):
    """What annotates documents."""

    identity: dict[str, Any]  # of model and settings; values of JSON

    def annotate(self, records: Iterator[Record]) -> Iterator[tuple[Record, Outcome]]:
        """Yields each document, in order, with its outcome; where `records` fails, what came before it comes first."""

    def close(self) -> None:
        """Releases what the engine holds beside this process's memory."""


class PipelineEngine:
    """A pipeline in this process."""

    def __init__(self, pipe: "DecodNERPipeline") -> None:
        """Takes the pipeline with its labels and settings."""
        self.pipe = pipe
        self.identity = identity_of(pipe)

    def annotate(self, records: Iterator[Record]) -> Iterator[tuple[Record, Outcome]]:
        """See `Engine.annotate`."""
        return annotate_records(partial(self.pipe, return_report=True), records)

    def close(self) -> None:
        """Does nothing: the pipeline is the caller's."""


def identity_of(pipe: "DecodNERPipeline") -> dict[str, Any]:
    """Returns what a pipeline's results depend on: its settings, under the names that messages use, and its model."""
    names = {"candidate_labels": "labels"}
    settings = {names.get(name, name.replace("_", " ")): value for name, value in settings_of(pipe).items()}
    return settings | {"model": fingerprint(pipe)}
