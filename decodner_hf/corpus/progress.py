"""Shows how far a run is: a bar on a terminal, a line every half minute elsewhere.

In: documents done, bytes read. Out: lines on standard error.
Knows nothing of what is done with the documents.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from tqdm import tqdm

from .inputs import Meter

SECONDS_BETWEEN_LINES = 30.0
DOCUMENTS_BETWEEN_ESTIMATES = 100


class Progress:
    """Shows nothing; the base of those that do."""

    @contextmanager
    def over(self, total: int | None, done: int, meter: Meter, size: int | None) -> Iterator[None]:  # noqa: ARG002
        """Shows progress within the context.

        Args:
            total: documents of the run, None where that is not known yet.
            done: documents that an earlier run did.
            meter: how many bytes were read.
            size: bytes of the whole input, None where that is not known.
        """
        yield

    def advance(self) -> None:
        """Counts a document."""


class ShownProgress(Progress):
    """Shows a bar on a terminal, elsewhere a line every `SECONDS_BETWEEN_LINES`: documents, rate, time left."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = monotonic) -> None:
        """Lines go to `say`; `clock` gives seconds."""
        self.say, self.clock = say, clock
        self.bar: tqdm | None = None

    @contextmanager
    def over(self, total: int | None, done: int, meter: Meter, size: int | None) -> Iterator[None]:
        """See `Progress.over`."""
        self.total, self.before, self.done, self.meter, self.size = total, done, done, meter, size
        self.began = self.shown = self.clock()
        self.bar = tqdm(total=total, initial=done, unit="doc") if sys.stderr.isatty() else None
        try:
            yield
        finally:
            if self.bar is not None:
                self.bar.close()
                self.bar = None

    def advance(self) -> None:
        """Counts a document, and shows where the run is, if it is time to."""
        self.done += 1
        if self.bar is not None:
            if self.total is None and self.done % DOCUMENTS_BETWEEN_ESTIMATES == 0:
                self.bar.total = self._expected()
            self.bar.update()
        elif self.clock() - self.shown >= SECONDS_BETWEEN_LINES:
            self.shown = self.clock()
            self.say(self._line())

    def _expected(self) -> int | None:
        """Returns how many documents there are, estimated from the part of the input that was read."""
        if self.total is not None or self.size is None:
            return self.total
        return max(self.done, round(self.done * self.size / max(self.meter.bytes_read(), 1)))

    def _line(self) -> str:
        rate = (self.done - self.before) / max(self.clock() - self.began, 1e-9)
        expected = self._expected()
        if expected is None:
            return f"{self.done:,} documents, {rate:,.1f} a second"
        seconds = round((expected - self.done) / rate)
        about = "" if self.total is not None else "about "
        left = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        return f"{self.done:,} of {about}{expected:,} documents, {rate:,.1f} a second, {left} left"
