"""Sends documents through the pipeline and says which of them it refuses.

In: a pipeline, documents. Out: each document, in order, with its entities or with the error.
Knows nothing of files, nor of how the pipeline works.
"""

import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

from .records import Pipe, Record


def annotate_records(pipe: Pipe, records: Iterator[Record]) -> Iterator[tuple[Record, Any]]:
    """Yields each record, in order, with what the pipeline makes of it or with the ValueError by which it refuses it.

    Where the pipeline raises one, the first document that waits for its result is repeated alone, to learn whether it
    is the one; the stream goes on after it.

    Raises:
        RuntimeError: a pipeline that ends before every document has a result.
    """
    again: deque[Record] = deque()  # read, but not annotated
    exhausted, failure = False, None
    while not exhausted:
        feed = _Feed(iter(()) if failure is not None else records, again)
        try:
            for result in pipe(iter(feed)):
                yield feed.waiting.popleft(), result
        except ValueError:
            again, failure = feed.take_back(), failure or feed.failure
            if not again:
                raise
            record = again.popleft()
            yield record, _one(pipe, record.text)
        else:
            if feed.waiting or not feed.exhausted:
                raise RuntimeError("the pipeline ended before it had a result for every document.")
            failure, exhausted = failure or feed.failure, True
    if failure is not None:
        raise failure


class _Feed:
    """Hands texts to the pipeline, which may read ahead in a thread of its own, and keeps those without a result."""

    def __init__(self, records: Iterator[Record], first: deque[Record]) -> None:
        """Hands out those of `first`, and then `records`."""
        self.records, self.first = records, first
        self.waiting: deque[Record] = deque()
        self.open = True
        self.exhausted = False
        self.failure: Exception | None = None
        self.lock = threading.Lock()

    def __iter__(self) -> Iterator[str]:
        while (record := self._next()) is not None:
            yield record.text

    def _next(self) -> Record | None:
        with self.lock:
            if not self.open or self.exhausted:
                return None
            try:
                record = self.first.popleft() if self.first else next(self.records, None)
            except Exception as error:  # for the caller of `annotate_records`: the pipeline's thread may lose it
                self.failure, record = error, None
            if record is None:
                self.exhausted = True
            else:
                self.waiting.append(record)
            return record

    def take_back(self) -> deque[Record]:
        """Ends the feed; returns the records read but not annotated."""
        with self.lock:
            self.open = False
            return deque([*self.waiting, *self.first])


def _one(pipe: Pipe, text: str) -> Any:
    try:
        return pipe(text)
    except ValueError as error:
        return error
