"""Annotates the documents of a file, restartable at any moment.

In: a file, a pipeline. Out: a file with each document's entities. Results go to a journal beside the output, one line
a document; when every document has one, the output is written from input and journal and the journal is removed. What
an interruption leaves is whole lines and at most one torn one, which is dropped: nothing is lost, nothing is doubled.
Knows nothing of the command line, nor of how the pipeline works.
"""

import errno
import json
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import IO, Any

from .files import Annotated, Record, check_files, read_records, write_annotated

Entities = list[dict[str, Any]]
Pipe = Callable[[Any], Any]  # a text -> its entities; an iterator of texts -> an iterator of entities, in order
SECONDS_BETWEEN_FLUSHES = 1.0
WARNINGS_SHOWN = 10
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # file systems of networks


@dataclass(frozen=True)
class Job:
    """What to annotate, and how.

    Attributes:
        source: the input file.
        target: the output file.
        text_column: the field that holds a document's text.
        entities_column: the output's field for the entities.
        skip_errors: leave out documents that cannot be read or annotated, with a warning, instead of stopping.
        settings: everything else that changes the result (model, labels, thresholds); JSON.
    """

    source: Path
    target: Path
    text_column: str
    entities_column: str
    skip_errors: bool
    settings: dict[str, Any]

    @property
    def journal(self) -> Path:
        """Where the results are kept until the output is written."""
        return self.target.with_name(self.target.name + ".journal")

    def records(self) -> Iterator[Record]:
        """Yields the records that can be annotated, in order."""
        return (record for record in read_records(self.source, self.text_column) if record.problem is None)

    def identity(self) -> str:
        """Returns a line of JSON: the input and everything that changes what the journal holds."""
        status = self.source.stat()
        described = {"input": [str(self.source.resolve()), status.st_size, status.st_mtime_ns]}
        return json.dumps(described | {"text column": self.text_column} | self.settings)


@contextmanager
def exclusive(job: Job) -> Iterator[None]:
    """Keeps other runs from the job's output and journal; where the system has no such locks, does nothing.

    Raises:
        ValueError: wrong paths.
        OSError: files that are missing, or a run on the same output.
    """
    check_files(job.source, job.target)
    if sys.platform == "win32":
        yield
        return
    path = job.target.with_name(job.target.name + ".lock")
    with path.open("a") as file:
        if not _locked(file, path):
            raise BlockingIOError(f"another run is writing {job.target}: wait for its end, or name another output.")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _locked(file: IO[str], path: Path) -> bool:
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
    # The run that held it may have removed it in the meantime: then what is locked is no longer the file others see.
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


def prepare(job: Job, resume: bool, overwrite: bool, warn: Callable[[str], None]) -> tuple[int, int]:
    """Checks a job before any model is loaded and settles what an earlier run left behind; runs within `exclusive`.

    Args:
        job: the job.
        resume: go on with the journal of an interrupted run, if there is one.
        overwrite: replace an output, and forget a journal, that are there.
        warn: is told of each of the first broken records that are skipped.

    Returns:
        Number of documents to annotate, and how many of them the journal holds.

    Raises:
        ValueError: broken records (unless skipped), a journal of another job.
        OSError: files that are missing, cannot be read, or would be replaced.
    """
    if job.target.exists() and not overwrite:
        raise FileExistsError(f"{job.target} exists: replace it with --overwrite, or name another output.")
    total = _count(job, warn)
    if job.journal.exists() and overwrite:
        job.journal.unlink()
    if not job.journal.exists():
        return total, 0
    done = _repair_journal(job)
    if not resume:
        raise FileExistsError(
            f"{job.journal} holds {done} documents of an interrupted run: go on with --resume, "
            "or start anew with --overwrite."
        )
    return total, done


def annotate(job: Job, pipe: Pipe, done: int, advance: Callable[[], object], warn: Callable[[str], None]) -> None:
    """Annotates what is not in the journal, then writes the output.

    Args:
        job: a job that `prepare` has checked.
        pipe: the pipeline.
        done: how many documents the journal holds.
        advance: called after each document.
        warn: is told of each document that is skipped.

    Raises:
        ValueError: a document the pipeline refuses, unless errors are skipped; the journal keeps the others.
    """
    if not job.journal.exists():
        job.journal.write_text(job.identity() + "\n", encoding="utf-8")
    with job.journal.open("a", encoding="utf-8") as journal:
        flushed = monotonic()
        for record, outcome in stream(pipe, islice(job.records(), done, None)):
            refused = isinstance(outcome, ValueError)
            if refused and not job.skip_errors:
                raise ValueError(f"{job.source}, {record.place}: {outcome}\nLeave it out with --on-error skip.")
            if refused:
                warn(f"{record.place} is left out: {outcome}")
            journal.write(json.dumps([record.place, None if refused else outcome]) + "\n")
            if monotonic() - flushed > SECONDS_BETWEEN_FLUSHES:
                journal.flush()
                flushed = monotonic()
            advance()
    write_annotated(job.target, lambda: _annotated(job), job.entities_column, job.source, warn)
    job.journal.unlink()


def _count(job: Job, warn: Callable[[str], None]) -> int:
    total = broken = 0
    for record in read_records(job.source, job.text_column):
        problem = record.problem
        if job.entities_column in record.fields:
            raise ValueError(
                f"{job.source}, {record.place} has a field {job.entities_column!r} already: "
                "choose another name for the entities with --entities-column."
            )
        if problem is None:
            total += 1
        elif not job.skip_errors:
            raise ValueError(f"{job.source}, {record.place}: {problem}. Leave broken ones out with --on-error skip.")
        else:
            broken += 1
            if broken <= WARNINGS_SHOWN:
                warn(f"{record.place} is left out: {problem}")
    if broken > WARNINGS_SHOWN:
        warn(f"{broken} broken records in all are left out")
    return total


def _repair_journal(job: Job) -> int:
    """Cuts a torn last line off the journal; returns how many documents it holds."""
    with job.journal.open("rb+") as file:
        header = file.readline()
        if not header.endswith(b"\n"):  # interrupted before the first document
            file.seek(0)
            file.truncate()
            file.write(job.identity().encode() + b"\n")
            return 0
        if header.decode().rstrip("\n") != job.identity():
            differing = _differences(json.loads(header), json.loads(job.identity()))
            raise ValueError(
                f"{job.journal} belongs to a run with another {differing}: repeat that run's command with --resume, "
                "or start anew with --overwrite."
            )
        done, whole = 0, file.tell()
        for line, record in zip(file, job.records(), strict=False):
            if _place_in(line) != record.place:
                break
            done, whole = done + 1, whole + len(line)
        file.truncate(whole)
    return done


def _differences(one: dict[str, Any], other: dict[str, Any]) -> str:
    return ", ".join(sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name)))


def _place_in(line: bytes) -> str | None:
    """Returns whose result a journal line holds, None where the line is torn."""
    try:
        return str(json.loads(line)[0]) if line.endswith(b"\n") else None
    except ValueError:
        return None


def _annotated(job: Job) -> Iterator[Annotated]:
    """Yields the documents with the entities that the journal holds, those that were skipped left out."""
    with job.journal.open(encoding="utf-8") as journal:
        next(journal)
        for record, line in zip(job.records(), journal, strict=True):
            place, entities = json.loads(line)
            if place != record.place:
                raise ValueError(
                    f"{job.journal} holds the result of {place} where that of {record.place} should be: "
                    "start anew with --overwrite."
                )
            if entities is not None:
                yield Annotated(record, entities)


class _Feed:
    """Hands texts to the pipeline and remembers whose result is still to come.

    The pipeline may read ahead in a thread of its own. `take_back` ends that and returns what was read for nothing.
    """

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
                except Exception as error:  # for the caller of `stream`: the pipeline's thread might lose it
                    self.failure, record = error, None
                if record is None:
                    self.exhausted = self.open
                    return
                self.waiting.append(record)
            yield record.text

    def take_back(self) -> list[Record]:
        with self.lock:
            self.open = False
            return list(self.waiting)


def stream(pipe: Pipe, records: Iterator[Record]) -> Iterator[tuple[Record, Entities | ValueError]]:
    """Yields each record, in order, with its entities or with why the pipeline refuses it.

    The pipeline packs documents, so that a refusal does not tell which one it is about: those that wait are then
    repeated one by one, and the stream goes on behind them.
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


def _one(pipe: Pipe, text: str) -> Entities | ValueError:
    try:
        entities: Entities = pipe(text)
    except ValueError as error:
        return error
    return entities
