"""Cuts a stream of documents into the chunks that are handed to worker processes.

In: documents. Out: lists of documents, each bounded in number and characters.
Knows nothing of processes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from .records import Record


@dataclass(frozen=True)
class ChunkSize:
    """The bounds of a chunk: it ends with the document that reaches one of them.

    Attributes:
        documents: number of documents.
        characters: characters of all its documents.
    """

    documents: int
    characters: int


class Chunks:
    """The chunks of a stream, in order.

    Where the stream fails, what came before it is still a chunk, and `failure` holds the error.
    """

    def __init__(self, records: Iterator[Record], size: ChunkSize) -> None:
        """Reads nothing yet."""
        self.records, self.size = records, size
        self.failure: Exception | None = None
        self.exhausted = False

    def next(self) -> list[Record]:
        """Returns the next chunk, an empty list after the last."""
        chunk: list[Record] = []
        characters = 0
        while not self.exhausted and len(chunk) < self.size.documents and characters < self.size.characters:
            try:
                record = next(self.records, None)
            except Exception as error:  # the caller raises it once all before it is annotated
                self.failure, record = error, None
            if record is None:
                self.exhausted = True
            else:
                chunk.append(record)
                characters += len(record.text)
        return chunk
