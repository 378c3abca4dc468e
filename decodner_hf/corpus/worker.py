"""Annotates chunks of texts in a worker process.

In: numbered chunks of texts over one connection. Out: `Ready`, then a `Done` per chunk, in order, over another; or
`Failed`. The process ends when the one that started it does.
Knows nothing of files or of other workers.
"""

import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import torch

from .engine import LoadPipeline, PipelineEngine
from .records import Outcome, Record

if TYPE_CHECKING:
    from ..core.pipeline import DecodNERPipeline

SECONDS_WITHOUT_CHUNKS = 0.05  # after which results are finished instead of waiting for a fuller pass
EXPECTED = (ValueError, OSError, RuntimeError, ImportError)  # errors whose message says enough

Chunk = tuple[int, list[str]]


@dataclass(frozen=True)
class Ready:
    """The pipeline is loaded; `identity` says what its results depend on."""

    identity: dict[str, Any]


@dataclass(frozen=True)
class Done:
    """The outcomes of a chunk's documents, in order."""

    number: int
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True)
class Failed:
    """The error that ends the worker."""

    error: Exception


def serve(load: LoadPipeline, device: str, threads: int | None, texts: Connection, outcomes: Connection) -> None:
    """Loads the pipeline and annotates chunks until `texts` is closed; the whole life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        engine = PipelineEngine(load(device))
        outcomes.send(Ready(engine.identity))
        inbox = _Inbox(texts)
        while inbox.wait():
            for done in _done(engine, inbox):
                outcomes.send(done)
    except (EOFError, BrokenPipeError, ConnectionResetError):  # there is nobody left to tell
        return
    except Exception as error:
        outcomes.send(Failed(_sendable(error, device)))


def load_copy(path: str, device: str) -> "DecodNERPipeline":
    """Returns on `device` the pipeline that `torch.save` wrote."""
    pipe: DecodNERPipeline = torch.load(path, map_location=device, weights_only=False)
    pipe.device = torch.device(device)
    pipe.model.to(pipe.device)
    return pipe


class _Inbox:
    """The chunks that have come. A thread receives them at once, so that sending one never waits for results."""

    def __init__(self, texts: Connection) -> None:
        self.texts = texts
        self.waiting: SimpleQueue[Chunk | None] = SimpleQueue()
        self.first: Chunk | None = None
        self.under_way: deque[tuple[int, int]] = deque()  # number and size of the chunks handed to the pipeline
        threading.Thread(target=self._receive, daemon=True).start()

    def wait(self) -> bool:
        """Waits for a chunk; returns False when there will be none."""
        self.first = self.waiting.get()
        return self.first is not None

    def records(self) -> Iterator[Record]:
        """Yields the documents of the chunks that are there or come soon."""
        chunk = self.first
        while chunk is not None:
            number, texts = chunk
            self.under_way.append((number, len(texts)))
            for text in texts:
                yield Record("", text, {})
            try:
                chunk = self.waiting.get(timeout=SECONDS_WITHOUT_CHUNKS)
            except Empty:
                return
        self.waiting.put(None)  # the end, for `wait` too

    def _receive(self) -> None:
        try:
            while True:
                self.waiting.put(self.texts.recv())
        except (EOFError, OSError):
            self.waiting.put(None)


def _done(engine: PipelineEngine, inbox: _Inbox) -> Iterator[Done]:
    """Yields each chunk when all its documents have outcomes."""
    outcomes: list[Outcome] = []
    for _, outcome in engine.annotate(inbox.records()):
        outcomes.append(ValueError(str(outcome)) if isinstance(outcome, ValueError) else outcome)
        number, size = inbox.under_way[0]
        if len(outcomes) == size:
            inbox.under_way.popleft()
            yield Done(number, tuple(outcomes))
            outcomes = []


def _sendable(error: Exception, device: str) -> Exception:
    """Returns the error itself where its message says enough and it can be sent, else one with its traceback."""
    if isinstance(error, EXPECTED):
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # classes whose constructors take other arguments
            return RuntimeError(str(error))
        return error
    return RuntimeError(f"the process on {device} failed:\n{''.join(traceback.format_exception(error))}")
