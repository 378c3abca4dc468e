"""Composes the stages read -> encode -> score -> decode -> write over a stream of inputs.

In: the stages, and any iterable of inputs. Out: results, lazily, in input order.
A thread reads and encodes the next groups while one is scored; a pass is decoded while the next ones run. Where a
document fails, the results of all documents before it come first, and then its error: raised, or in its place.
Knows nothing of how a stage works, and calls none but through its arguments.
"""

from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from threading import Semaphore, Thread
from typing import Generic, TypeVar

from .decoding import Entity
from .pass_queues import GrowthQueue, PassQueue, Scorer, Skip
from .pipeline_io import Document, Inputs, PreparedDocument, Result, iterate
from .scored_document import ScoredDocument
from .spans import DocumentError

DOCUMENTS_AT_ONCE = 256  # encoded together
CHARACTERS_AT_ONCE = 65536
FIRST_PART = 8  # the first group is such a part of a whole one: the device idles until it is encoded
GROUPS_AHEAD = 2

Item = TypeVar("Item")
Output = TypeVar("Output")


class EntityStream:
    """The results of the stages over an iterable of inputs, one per document, lazily."""

    def __init__(
        self,
        inputs: Inputs,
        *,
        read: Callable[[object, int], Document],
        encode: Callable[[Sequence[Document]], list[PreparedDocument]],
        scorer: Scorer,
        decode: Callable[[Sequence[ScoredDocument]], list[list[Entity]]],
        write: Callable[[Sequence[Entity], PreparedDocument], Result],
        skip_errors: bool = False,
    ) -> None:
        """Takes the stages; nothing is read before the first result is asked for.

        `skip_errors` gives the error of a document that is refused in place of its result, and goes on.
        """
        self.inputs, self.read, self.encode, self.scorer = inputs, read, encode, scorer
        self.decode, self.write, self.skip_errors = decode, write, skip_errors

    def __len__(self) -> int:
        """Number of documents, where the input knows it."""
        return len(self.inputs)  # type: ignore[arg-type]  # or Python's own TypeError

    def __iter__(self) -> Iterator[Result | DocumentError]:
        """Yields each document's result, as `write` gives it, or its error."""
        failed: dict[int | None, DocumentError] = {}
        skip = (lambda error: failed.update({error.number: error})) if self.skip_errors else None
        number, failure = 0, None  # of the next result
        batches = self._decoded(skip)
        while True:
            try:
                batch = next(batches, None)
            except Exception as error:  # raised again below, after the errors of documents before it
                batch, failure = None, error
            for result in [*(batch or ()), None]:
                while number in failed:
                    yield failed.pop(number)
                    number += 1
                if result is not None:
                    document, entities = result
                    yield self.write(entities, document.prepared)
                    number += 1
            if batch is None:
                break
        if failure is not None:
            raise failure

    def _decoded(self, skip: Skip | None) -> Iterator[list[tuple[ScoredDocument, list[Entity]]]]:
        """Yields documents that no stage refuses, with their entities; an empty list where there are only others."""
        groups = encoded_groups(read_groups(self.inputs, self.read, skip), self.encode, skip)
        for scored in scored_passes(groups, self.scorer, skip):
            if not scored:
                yield []
                continue
            for documents, decoded in in_parts_on_failure(self.decode, scored, skip):
                yield list(zip(documents, decoded, strict=True))


def read_groups(
    inputs: Inputs, read: Callable[[object, int], Document], skip: Skip | None = None
) -> Iterator[list[Document]]:
    """Reads inputs in groups to be encoded together; where reading fails, the failure comes after what was read.

    With `skip` it gets the errors of documents, and a group of nothing but those is empty.
    """
    source, failure = iterate(inputs), None
    group: list[Document] = []
    number = first = characters = 0
    part = FIRST_PART
    while True:
        try:
            given = next(source)
        except StopIteration:
            break
        except Exception as error:  # the caller's own, raised again below
            failure = error
            break
        try:
            group.append(read(given, number))
            characters += group[-1].size
        except Exception as error:
            if skip is None or not isinstance(error, DocumentError):
                failure = error
                break
            skip(error)
        number += 1
        if number - first >= DOCUMENTS_AT_ONCE // part or characters >= CHARACTERS_AT_ONCE // part:
            yield group
            group, characters, first, part = [], 0, number, max(1, part // 2)
    if group:
        yield group
    if failure is not None:
        raise failure


def encoded_groups(
    groups: Iterator[list[Document]],
    encode: Callable[[Sequence[Document]], list[PreparedDocument]],
    skip: Skip | None = None,
) -> Iterator[list[PreparedDocument]]:
    """Encodes groups of documents; with `skip`, each is followed by an empty one: its errors are known then."""
    for group in groups:
        for _, encoded in in_parts_on_failure(encode, group, skip):
            yield encoded
        if skip is not None:
            yield []


def in_parts_on_failure(
    stage: Callable[[Sequence[Item]], Output], group: Sequence[Item], skip: Skip | None = None
) -> Iterator[tuple[Sequence[Item], Output]]:
    """Runs a stage on a group; if that raises a ValueError, on one item after another, up to the one that fails.

    With `skip` all items are tried, and it gets the errors of the documents that fail.

    Yields:
        The items of a run of the stage, and its result.
    """
    parts = [group] if group else []
    while parts:
        part = parts.pop(0)
        try:
            result = stage(part)
        except ValueError as error:
            if len(part) > 1:
                parts = [[item] for item in part]
            elif skip is not None and isinstance(error, DocumentError):
                skip(error)
            else:
                raise
        else:
            yield part, result


def scored_passes(
    groups: Iterator[list[PreparedDocument]], scorer: Scorer, skip: Skip | None = None
) -> Iterator[list[ScoredDocument]]:
    """Scores groups of documents, pass by pass; a thread iterates `groups` a little ahead.

    Yields:
        Scored documents; an empty list for an empty group.
    """
    coming = _ReadAhead(groups, GROUPS_AHEAD)
    passes: PassQueue | GrowthQueue = PassQueue(scorer, skip)
    interrupted = False
    try:
        while True:
            while passes.pending and not coming.ready:
                yield from passes.advance()
            try:
                group = next(coming)
            except StopIteration:
                break
            except Exception:
                yield from passes.finish()
                raise
            if not group:
                yield []
                continue
            is_grown = group[0].growth_threshold is not None
            if is_grown != isinstance(passes, GrowthQueue):
                yield from passes.finish()
                passes = GrowthQueue(scorer, skip) if is_grown else PassQueue(scorer, skip)
            yield from passes.add(group)
        yield from passes.finish()
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        coming.close(wait=not interrupted)


class _ReadAhead(Generic[Item]):
    """Iterates in a thread of its own, at most `ahead` items before its consumer."""

    def __init__(self, items: Iterator[Item], ahead: int) -> None:
        self._items = items
        self._results: SimpleQueue[tuple[Item, None] | tuple[None, BaseException]] = SimpleQueue()
        self._room = Semaphore(ahead)
        self._closed = False
        self._thread = Thread(target=self._run, daemon=True)  # an interrupted process need not wait for it
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether the next item is there already."""
        return not self._results.empty()

    def __next__(self) -> Item:
        """Waits for the next item; raises what the iterator raises."""
        item, error = self._results.get()
        if error is not None:
            self._results.put((None, error))
            raise error
        self._room.release()
        return item  # type: ignore[return-value]  # an item where there is no error

    def close(self, *, wait: bool) -> None:
        """Ends the thread after the item that it is at; `wait` returns only then."""
        self._closed = True
        self._room.release()
        if wait:
            self._thread.join()

    def _run(self) -> None:
        while True:
            self._room.acquire()
            if self._closed:
                return
            try:
                self._results.put((next(self._items), None))
            except BaseException as error:  # for the consumer, StopIteration too
                self._results.put((None, error))
                return
