"""Keeps a run's results until its outputs are complete: one checked line a document.

In: results. Out: the same results after any interruption, or an error where the file was damaged. An interruption
leaves whole lines and at most one torn end, which is cut off. Damage anywhere else is an error at once.
Knows nothing of how documents are read, annotated or written.
"""

import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .records import Entities, Record
from .side_files import open_side_file, sync

KIND = "decodner journal 2"
BEGINNING = f'{{"kind": "{KIND}"'.encode()
CHECK_BYTES = 9  # eight hexadecimal digits and a space
TORN_HEADER = re.compile(rb"[0-9a-f]{0,7}|[0-9a-f]{8} ?")


@dataclass(frozen=True)
class Result:
    """What the journal holds of one document.

    Attributes:
        source: index of the document's file.
        place: where it stands there.
        entities: None where the pipeline refused it.
        reason: why it was refused, None where it was not.
        reading: how it was read, as the pipeline's `return_report` gives it; None where it was refused.
    """

    source: int
    place: str
    entities: Entities | None
    reason: str | None
    reading: dict[str, object] | None


@dataclass(frozen=True)
class Written:
    """An output that was complete before it took its name: its index in the run, its bytes and modification time."""

    part: int
    size: int
    modified_ns: int


class Journal:
    """A file of checked lines: a header, a line a document, and a line an output that was written."""

    def __init__(self, path: Path) -> None:
        """Names the file; touches nothing."""
        self.path = path

    def create(self, header: dict[str, object]) -> None:
        """Begins a new journal with its header; FileExistsError if there is one."""
        with open_side_file(self.path, "x") as file:
            file.write(_line({"kind": KIND} | header))
            sync(file)

    def header(self) -> dict[str, object] | None:
        """Returns the header, None where there is no journal, or one that was interrupted within its header.

        Raises:
            ValueError: a file that is no journal.
        """
        try:
            with open_side_file(self.path, "r+") as file:
                line = file.readline()
        except FileNotFoundError:
            return None
        values = _value(line)
        if isinstance(values, dict) and values.pop("kind", None) == KIND:
            return values
        check, begun = line[:CHECK_BYTES], line[CHECK_BYTES:][: len(BEGINNING)]
        if not line.endswith(b"\n") and TORN_HEADER.fullmatch(check) and BEGINNING.startswith(begun):
            return None
        raise ValueError(
            f"{self.path} is no journal of this version, or its first line is damaged: finish the run with the "
            "version that began it, or start anew with --overwrite."
        )

    def remove(self) -> None:
        """Removes the file where there is one."""
        self.path.unlink(missing_ok=True)

    def recover(
        self, expected: Iterator[Record], count: Callable[[Record, Result], None]
    ) -> tuple[int, list[Written]]:
        """Cuts a torn end off.

        Args:
            expected: the documents of the run, in order; those that have results are consumed.
            count: gets each of these with its result.

        Returns:
            How many of them have results, and the outputs that were written.

        Raises:
            ValueError: a damaged line, or a result out of order.
        """
        done, written = 0, []
        with open_side_file(self.path, "r+") as file:
            file.readline()
            whole = file.tell()
            for number, line in enumerate(file, 2):
                value = _value(line)
                if value is None:
                    self._check_torn(file, number, done)
                    break
                if isinstance(value, dict):
                    written.append(Written(**value))
                else:
                    result, record = _result(value), next(expected, None)
                    self.check_order(result, record)
                    if record is not None:
                        count(record, result)
                    done += 1
                whole += len(line)
            file.truncate(whole)
            sync(file)
        return done, written

    def results(self, offset: int | None = None) -> Iterator[tuple[int, Result]]:
        """Yields (byte offset of its line, result) of each document, from the line at `offset` or from the first.

        Raises:
            ValueError: a damaged line.
        """
        with open_side_file(self.path, "r+") as file:
            file.readline()
            position = file.seek(file.tell() if offset is None else offset)
            for line in file:
                value = _value(line)
                if value is None:
                    raise ValueError(f"{self.path} is damaged at byte {position}: start anew with --overwrite.")
                if not isinstance(value, dict):
                    yield position, _result(value)
                position += len(line)

    def append(self) -> "JournalWriter":
        """Opens the journal for further lines."""
        return JournalWriter(open_side_file(self.path, "a"))

    def check_order(self, result: Result, record: Record | None) -> None:
        """Raises a ValueError if `result` is not that of `record`, the next document (None: there is none)."""
        due = None if record is None else (record.source, record.place)
        if (result.source, result.place) != due:
            expected = "no further one" if record is None else f"that of {record.place}"
            raise ValueError(
                f"{self.path} holds the result of {result.place} where {expected} should be: "
                "start anew with --overwrite."
            )

    def _check_torn(self, file: BinaryIO, number: int, done: int) -> None:
        if any(_value(line) is not None for line in file):
            raise ValueError(
                f"{self.path} is damaged in line {number}: remove that line and all lines after it to keep the first "
                f"{done} documents, or start anew with --overwrite."
            )


class JournalWriter:
    """Adds lines to a journal."""

    def __init__(self, file: BinaryIO) -> None:
        """Takes over an open file."""
        self.file = file

    def __enter__(self) -> "JournalWriter":
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file."""
        self.file.close()

    def add(self, result: Result) -> None:
        """Adds a document's result."""
        self.file.write(_line([result.source, result.place, result.entities, result.reason, result.reading]))

    def add_written(self, written: Written) -> None:
        """Adds an output that is complete, and brings the journal to the disk."""
        self.file.write(_line(vars(written)))
        sync(self.file)

    def sync(self) -> None:
        """Brings what was added to the disk."""
        sync(self.file)

    def flush(self) -> None:
        """Hands what was added to the system, so that the end of this process loses nothing."""
        self.file.flush()


def _line(value: dict[str, object] | list[object]) -> bytes:
    text = json.dumps(value).encode("ascii")
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _value(line: bytes) -> Any:
    """Returns what a line holds, None where it is torn or damaged."""
    check, text = line[: CHECK_BYTES - 1], line[CHECK_BYTES:-1]
    if not line.endswith(b"\n") or check != b"%08x" % zlib.crc32(text):
        return None
    return json.loads(text)


def _result(values: list[Any]) -> Result:
    return Result(*values)
