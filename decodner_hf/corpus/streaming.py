"""Sends documents through the pipeline and says which of them it refuses.

In: a pipeline, documents. Out: each document, in order, with its entities or with the error.
Knows nothing of files, nor of how the pipeline works.
"""

import threading
from collections import deque
from collections.abc import Iterator

from .records import Entities, Pipe, Record


def annotate_records(pipe: Pipe, records: Iterator[Record]) -> Iterator[tuple[Record, Entities | ValueError]]:
    """Yields each record, in order, with its entities or with why the pipeline refuses it.

    The pipeline packs documents, so that a refusal does not tell which of them it is about: those that wait for their
    results are then repeated one by one, and the stream goes on after them.

    Raises:
        RuntimeError: a pipeline that ends before every document has a result.
    """
    exhausted = False
    while not exhausted:
        feed = _Feed(records)
        try:
            for entities in pipe(iter(feed)):
                yield feed.waiting.popleft(), entities
        except ValueError:
            waiting = feed.take_back()
            if not waiting:
                raise
            for record in waiting:
                yield record, _one(pipe, record.text)
        else:
            if feed.waiting or not feed.exhausted:
                raise RuntimeError("the pipeline ended before it had a result for every document.")
        if feed.failure is not None:
            raise feed.failure
        exhausted = feed.exhausted


class _Feed:
    """Hands texts to the pipeline, which may read ahead in a thread of its own, and keeps those without a result."""

    def __init__(self, records: Iterator[Record]) -> None:
        self.records = records
        self.waiting: deque[Record] = deque()
        self.open = True
        self.exhausted = False
        self.failure: Exception | None = None
        self.lock = threading.Lock()

    def __iter__(self) -> Iterator[str]:
        while True:
            with self.lock:
                try:
                    record = next(self.records, None) if self.open else None
                except Exception as error:  # for the caller of `annotate_records`: the pipeline's thread may lose it
                    self.failure, record = error, None
                if record is None:
                    self.exhausted = self.open
                    return
                self.waiting.append(record)
            yield record.text

    def take_back(self) -> list[Record]:
        """Ends the feed; returns the records read but not annotated."""
        with self.lock:
            self.open = False
            return list(self.waiting)


def _one(pipe: Pipe, text: str) -> Entities | ValueError:
    try:
        entities: Entities = pipe(text)
    except ValueError as error:
        return error
    return entities
