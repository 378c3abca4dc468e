"""Reads documents from text, JSON, CSV and parquet files.

In: `Source`s. Out: a stream of `Record`s, the broken ones included, each with its place in its file.
Knows nothing of models or outputs.
"""

import codecs
import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from .inputs import Meter, Source, opened
from .records import Record

OTHER_DELIMITERS = (",", ";", "\t", "|")


@dataclass(frozen=True)
class Layout:
    """Where in a file its documents are.

    Attributes:
        text_column: the field that holds a document's text.
        whole_file: a text file is one document instead of one a line.
        file_column: a field to add that holds the file's name, None for none.
        report_column: a field to add that holds how the document was read, None for none.
    """

    text_column: str = "text"
    whole_file: bool = False
    file_column: str | None = None
    report_column: str | None = None


Reader = Callable[[BinaryIO, Source, Layout], Iterator[Record]]


def read_records(
    sources: Sequence[Source], layout: Layout, meter: Meter | None = None, first: int = 0
) -> Iterator[Record]:
    """Yields the records of all files in order; blank lines of a text file are empty documents.

    Args:
        sources: the files.
        layout: where in them the documents are.
        meter: follows how much is read.
        first: index in the run of the first of `sources`.

    Raises:
        ValueError: a table without the text column or with a column named twice, a file that is damaged.
        OSError: a file that cannot be read.
        ImportError: parquet without pyarrow, .zst without zstandard.
    """
    for index, source in enumerate(sources, first):
        reader = _read_whole if layout.whole_file and source.suffix in (".txt", ".md") else READERS[source.suffix]
        with opened(source, meter) as file:
            for record in reader(file, source, layout):
                fields = record.fields
                if layout.file_column in fields:
                    raise ValueError(
                        f"{source.name}, {record.place} has a field {layout.file_column!r} already: choose another "
                        "name for the file with --file-column."
                    )
                if layout.file_column is not None:
                    fields = {layout.file_column: source.name, **fields}
                yield Record(record.place, record.text, fields, record.problem, record.row, index)


def decoded_lines(file: BinaryIO) -> Iterator[tuple[str, str, str | None]]:
    """Yields (place, line without its end, problem or None) of UTF-8 bytes; lines end with LF or CR LF only."""
    for number, raw in enumerate(file, 1):
        line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
        text, problem = _decoded(line.removesuffix(b"\n").removesuffix(b"\r"))
        yield f"line {number}", text, problem


def _decoded(data: bytes) -> tuple[str, str | None]:
    try:
        return data.decode("utf-8"), None
    except UnicodeDecodeError as error:
        return "", f"not UTF-8: {error.reason} at byte {error.start}"


def _read_lines(file: BinaryIO, source: Source, layout: Layout) -> Iterator[Record]:  # noqa: ARG001
    for place, line, problem in decoded_lines(file):
        yield Record(place, line, {layout.text_column: line}, problem)


def _read_whole(file: BinaryIO, source: Source, layout: Layout) -> Iterator[Record]:  # noqa: ARG001
    text, problem = _decoded(file.read().removeprefix(codecs.BOM_UTF8))
    yield Record("the file", text, {layout.text_column: text}, problem)


def _read_json_lines(file: BinaryIO, source: Source, layout: Layout) -> Iterator[Record]:  # noqa: ARG001
    for place, line, problem in decoded_lines(file):
        if problem is not None:
            yield Record(place, "", {}, problem)
        elif line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:  # an integer of thousands of digits is a plain ValueError
                yield Record(place, "", {}, f"not JSON: {error}")
            else:
                yield _json_record(place, value, layout.text_column)


def _read_json(file: BinaryIO, source: Source, layout: Layout) -> Iterator[Record]:
    """Yields the objects or texts of one JSON list, or the one object, that is the whole file."""
    text, problem = _decoded(file.read().removeprefix(codecs.BOM_UTF8))
    if problem is not None:
        raise ValueError(f"{source.name} is {problem}.")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        hint = " A file of one object a line must end in .jsonl." if "Extra data" in str(error) else ""
        raise ValueError(f"{source.name} is not JSON: {error}.{hint}") from error
    for number, value in enumerate(values if isinstance(values, list) else [values], 1):
        place = f"item {number}"
        if isinstance(value, str):
            yield Record(place, value, {layout.text_column: value})
        else:
            yield _json_record(place, value, layout.text_column)


def _json_record(place: str, value: object, text_column: str) -> Record:
    if not isinstance(value, dict):
        return Record(place, "", {}, f"not a JSON object but {_json_type(value)}")
    return record_of(place, value, text_column)


def record_of(place: str, fields: dict[str, Any], text_column: str) -> Record:
    """Returns the document that `fields` hold under `text_column`, a broken one where they hold none."""
    if text_column not in fields:
        known = ", ".join(map(repr, fields)) or "none"
        return Record(place, "", fields, f"no field {text_column!r} (its fields: {known}); name it with --text-column")
    text = fields[text_column]
    if not isinstance(text, str):
        return Record(place, "", fields, f"field {text_column!r} is {_json_type(text)}, not text")
    return Record(place, text, fields)


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def _read_table(file: BinaryIO, source: Source, layout: Layout) -> Iterator[Record]:
    delimiter = "\t" if source.suffix == ".tsv" else ","
    csv.field_size_limit(sys.maxsize)  # the default refuses documents beyond 131,072 characters
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    rows = csv.reader(text, strict=True, delimiter=delimiter)
    header = next(rows, [])
    check_columns(source, header, layout.text_column, delimiter)
    while True:
        place = f"line {rows.line_num + 1}"
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield Record(place, "", {}, f"not CSV: {error}")
            continue
        if not row:
            continue
        if len(row) != len(header):
            yield Record(place, "", {}, f"{len(row)} fields, but the header has {len(header)}")
        elif any("\udc80" <= character <= "\udcff" for value in row for character in value):
            yield Record(place, "", {}, "not UTF-8")
        else:
            yield record_of(place, dict(zip(header, row, strict=True)), layout.text_column)


def check_columns(source: Source, names: Sequence[str], text_column: str, delimiter: str = "") -> None:
    """Raises a ValueError if a table lacks the text column, or has two columns of one name."""
    if text_column not in names:
        others = [mark for mark in OTHER_DELIMITERS if mark != delimiter]
        found = next((mark for mark in others if len(names) == 1 and mark in names[0]), None)
        hint = f" Its fields seem to be separated by {found!r}: {delimiter!r} is needed." if found else ""
        raise ValueError(
            f"{source.name} has no column {text_column!r}, only {list(names)}: name one with --text-column.{hint}"
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{source.name} has a column named twice: {', '.join(map(repr, twice))}; rename one.")


def _read_parquet(file: BinaryIO, source: Source, layout: Layout) -> Iterator[Record]:
    from . import parquet

    names, rows = parquet.read_rows(file, source)
    check_columns(source, names, layout.text_column)
    for row, fields in enumerate(rows):
        yield replace(record_of(f"row {row + 1}", fields, layout.text_column), row=row)


READERS: dict[str, Reader] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_table,
    ".tsv": _read_table,
    ".txt": _read_lines,
    ".md": _read_lines,
    ".parquet": _read_parquet,
}
