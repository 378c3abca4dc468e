"""Forms batches across requests and sends them through the pipeline, which packs them into passes.

In: requests, each with its documents and the arguments of their calls. Out: futures of the documents' results.
One thread annotates. Requests take turns document by document, so that a large one does not hold up small ones.
A document that the pipeline refuses fails its own request only.
Knows nothing of HTTP.
"""

import json
import logging
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from itertools import groupby
from threading import Condition, Thread
from time import perf_counter
from typing import Any, Protocol

from .limits import Limits, RequestError

logger = logging.getLogger(__name__)

CHARACTERS_PER_BUDGET_NODE = 4  # so that a batch fills several passes of the pipeline
CHARACTERS_PER_DOCUMENT = 32  # that every document counts more than its text has: its head and its tail
RETRY_SECONDS = 1
FAILURES_UNTIL_UNWELL = 3

Result = dict[str, Any]  # "entities" and "report", as the pipeline returns them


class Pipe(Protocol):
    """What annotates: a `DecodNERPipeline`, for one."""

    def __call__(self, inputs: Any, **arguments: Any) -> Any:
        """Annotates one document, or lazily an iterator of them."""


def size_of(document: Mapping[str, Any]) -> int:
    """Returns the number of characters of the text, or of the words with the spaces between them."""
    if "text" in document:
        return len(document["text"])
    return sum(map(len, document["words"])) + max(len(document["words"]) - 1, 0)


@dataclass(frozen=True)
class Ask:
    """One document of a request.

    Attributes:
        document: as the pipeline takes it, a dict.
        arguments: of its call.
    """

    document: Mapping[str, Any]
    arguments: Mapping[str, Any]

    @property
    def characters(self) -> int:
        """Size of the document."""
        return size_of(self.document)

    @property
    def arguments_key(self) -> str:
        """Equal for documents that can share a call."""
        return json.dumps(self.arguments, sort_keys=True)

    @property
    def labels_key(self) -> str:
        """Equal for documents that can share a pass; the order of labels counts."""
        return json.dumps(self.document.get("candidate_labels"))


@dataclass(eq=False)
class _Request:
    """A request on its way; `taken` of its documents were put into batches, `left` have no result yet."""

    asks: Sequence[Ask]
    future: Future[list[Result]]
    taken: int = 0
    left: int = 0
    results: list[Result | None] = field(default_factory=list)

    def finish(self, index: int, result: Result) -> None:
        """Keeps the result of a document; the last one completes the future."""
        self.results[index] = result
        self.left -= 1
        if not self.left:
            _settle(lambda: self.future.set_result([found for found in self.results if found is not None]))

    def fail(self, error: Exception) -> None:
        """Ends the request with an error, whatever becomes of its other documents."""
        _settle(lambda: self.future.set_exception(error))


@dataclass(frozen=True)
class _Item:
    """A document in a batch: the `index`-th of a request."""

    request: _Request
    index: int

    @property
    def ask(self) -> Ask:
        return self.request.asks[self.index]


@dataclass(frozen=True)
class Batch:
    """What a batch was, for metrics.

    Attributes:
        documents: number of documents.
        characters: of them all.
        seconds: from text to entities.
    """

    documents: int
    characters: int
    seconds: float


class Batcher:
    """Documents of many requests on their way through one pipeline.

    Attributes:
        waiting_documents: number of documents that are in no batch yet.
        waiting_characters: size of these.
    """

    def __init__(self, pipe: Pipe, token_budget: int, limits: Limits, watch: Callable[[Batch], None]) -> None:
        """Starts the thread.

        Args:
            pipe: the pipeline.
            token_budget: forest nodes of its passes.
            limits: how much may wait.
            watch: is told of every batch, in the thread.
        """
        self._pipe, self._limits, self._watch = pipe, limits, watch
        self._batch_characters = CHARACTERS_PER_BUDGET_NODE * token_budget
        self._requests: deque[_Request] = deque()
        self.waiting_documents = self.waiting_characters = 0
        self._failures = 0
        self._closed = False
        self._changed = Condition()
        self._thread = Thread(target=self._run, name="decodner-batcher", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> str | None:
        """Why the batcher answers no requests, or None where it does."""
        if self._closed:
            return "the service is shutting down"
        if self._failures >= FAILURES_UNTIL_UNWELL:
            return f"the model failed {self._failures} times in a row"
        return None

    def submit(self, asks: Sequence[Ask]) -> Future[list[Result]]:
        """Lets documents wait; the future has their results in order, or a `RequestError`.

        A cancelled future's documents are dropped where they are in no batch yet.

        Raises:
            RequestError: too much waits (429), or the batcher is closed (503).
        """
        request = _Request(asks, Future(), left=len(asks), results=[None] * len(asks))
        if not asks:
            request.future.set_result([])
            return request.future
        characters = sum(ask.characters for ask in asks)
        with self._changed:
            if self._closed:
                raise RequestError(503, "the service is shutting down.")
            full = (
                self.waiting_documents + len(asks) > self._limits.waiting_documents
                or self.waiting_characters + characters > self._limits.waiting_characters
            )
            if full and self._requests:  # alone, any request of allowed size is taken
                raise RequestError(
                    429,
                    f"{self.waiting_documents} documents of {self.waiting_characters} characters wait already; "
                    f"at most {self._limits.waiting_documents} and {self._limits.waiting_characters} may: "
                    "send this request again later.",
                    {"Retry-After": str(RETRY_SECONDS)},
                )
            self._requests.append(request)
            self.waiting_documents += len(asks)
            self.waiting_characters += characters
            self._changed.notify()
        return request.future

    def close(self) -> None:
        """Takes no more requests; returns when all that were taken are answered."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        while batch := self._take():
            began = perf_counter()
            batch.sort(key=lambda item: (item.ask.arguments_key, item.ask.labels_key))
            try:
                for _, same in groupby(batch, key=lambda item: item.ask.arguments_key):
                    self._annotate(list(same))
            except Exception as error:  # of this file: the thread must go on, and no client wait for ever
                logger.error("annotating a batch failed: %s", without_message(error))
                for item in batch:
                    item.request.fail(RequestError(500, f"the service failed: {type(error).__name__}."))
            characters = sum(item.ask.characters for item in batch)
            self._watch(Batch(len(batch), characters, perf_counter() - began))

    def _take(self) -> list[_Item]:
        """Waits for documents and returns a batch of them; an empty one when closed and nothing is left."""
        batch: list[_Item] = []
        room = self._batch_characters
        with self._changed:
            while room > 0:
                if not self._requests:
                    if batch or self._closed:
                        break
                    self._changed.wait()
                    continue
                request = self._requests.popleft()
                if request.future.done():  # nobody waits for it, or it has failed
                    self._drop(request)
                    continue
                item = _Item(request, request.taken)
                batch.append(item)
                room -= item.ask.characters + CHARACTERS_PER_DOCUMENT
                self.waiting_documents -= 1
                self.waiting_characters -= item.ask.characters
                request.taken += 1
                if request.taken < len(request.asks):
                    self._requests.append(request)
        return batch

    def _drop(self, request: _Request) -> None:
        rest = request.asks[request.taken :]
        self.waiting_documents -= len(rest)
        self.waiting_characters -= sum(ask.characters for ask in rest)

    def _annotate(self, items: list[_Item]) -> None:
        """Annotates documents of one call; gives each one's request its result, or the reason why it has none."""
        done = 0
        try:
            for item, result in zip(items, self._results(items), strict=True):
                if isinstance(result, ValueError):
                    reason = getattr(result, "reason", None) or str(result)
                    item.request.fail(RequestError(422, f"documents.{item.index}: {reason}"))
                else:
                    item.request.finish(item.index, result)
                done += 1
        except Exception as error:
            if len(items) > 1:  # which of them it was, each alone will tell
                for item in items[done:]:
                    self._annotate([item])
                return
            self._failures += 1
            logger.error("annotating a document failed: %s", without_message(error))
            items[0].request.fail(RequestError(500, f"the model failed: {type(error).__name__}."))
        else:
            self._failures = 0

    def _results(self, items: list[_Item]) -> Iterator[Result | ValueError]:
        """The results of documents of one call, in place of one that is refused the error."""
        arguments = {**items[0].ask.arguments, "return_report": True}
        if len(items) > 1:
            yield from self._pipe(iter([dict(item.ask.document) for item in items]), **arguments, on_error="skip")
            return
        try:
            yield self._pipe(dict(items[0].ask.document), **arguments)
        except ValueError as error:
            yield error


def without_message(error: BaseException) -> str:
    """Returns an error's type and where it was raised: its message may quote a document."""
    frames = traceback.extract_tb(error.__traceback__ or sys.exc_info()[2])
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"


def _settle(settle: Callable[[], None]) -> None:
    try:
        settle()
    except InvalidStateError:  # cancelled meanwhile, or failed with another document
        return
