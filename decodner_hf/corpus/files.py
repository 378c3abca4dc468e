"""Reads documents from txt, jsonl, csv and parquet files, and writes them with their entities.

In: a path. Out: a stream of `Record`, the broken ones included, each with its place in the file; and the reverse, as
jsonl, parquet, conll or html. A file's suffix says its type.
Knows nothing of models: entities are dicts as the pipeline returns them.
"""

import codecs
import csv
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from .rendering import conll_block, html_page, json_lines

ROWS_PER_BATCH = 1000
OTHER_DELIMITERS = (";", "\t", "|")
WRITTEN = (".jsonl", ".parquet", ".conll", ".html")


@dataclass(frozen=True)
class Record:
    """One document of a file.

    Attributes:
        place: where it stands, for messages ("line 12").
        text: the document; empty where `problem` says why there is none.
        fields: everything the file holds for it, the text included.
        problem: what is wrong with it, None where nothing is.
        row: its index in a parquet file; 0 in files of other types.
    """

    place: str
    text: str
    fields: dict[str, Any]
    problem: str | None = None
    row: int = 0


@dataclass(frozen=True)
class Annotated:
    """A document with its entities, as the pipeline returns them."""

    record: Record
    entities: list[dict[str, Any]]


Annotations = Callable[[], Iterator[Annotated]]  # each call starts anew: parquet is written in two passes


def read_records(path: Path, text_column: str) -> Iterator[Record]:
    """Yields the records of a file in order; blank lines of a txt file are empty documents.

    Raises:
        ValueError: an unknown suffix, a table without the column `text_column` or with a column named twice.
        OSError: a file that cannot be read.
        ImportError: parquet without pyarrow.
    """
    return READERS[_known_suffix(path, READERS, "read")](path, text_column)


def write_annotated(
    path: Path, annotations: Annotations, entities_column: str, source: Path, warn: Callable[[str], None]
) -> None:
    """Writes the file whole or not at all: it appears under its name when it is complete.

    Args:
        path: the output.
        annotations: what to write.
        entities_column: the field for the entities.
        source: the input; from parquet to parquet its columns are copied as they are.
        warn: is told once of numbers that JSON has no word for.

    Raises:
        ValueError: an unknown suffix, entities the format cannot express, or values that parquet cannot hold.
        ImportError: parquet without pyarrow.
    """
    suffix = _known_suffix(path, WRITTEN, "write")
    if suffix == ".jsonl":
        documents = ((i.record.place, {**i.record.fields, entities_column: i.entities}) for i in annotations())
        _write_text(path, json_lines(documents, warn))
    elif suffix == ".conll":
        _write_text(path, (conll_block(item.record.text, item.entities) for item in annotations()))
    elif suffix == ".html":
        _write_text(path, html_page((item.record.text, item.entities) for item in annotations()))
    elif suffix == source.suffix.lower() == ".parquet":
        _copy_parquet(path, annotations, entities_column, source)
    else:
        _write_parquet(path, annotations, entities_column)


def check_files(source: Path, target: Path) -> None:
    """Raises what `read_records` and `write_annotated` would raise about paths, suffixes and missing packages."""
    if source.is_dir():
        raise ValueError(f"{source} is a folder, not a file: name one of its files.")
    suffixes = {_known_suffix(source, READERS, "read"), _known_suffix(target, WRITTEN, "write")}
    if ".parquet" in suffixes:
        _pyarrow()
    if not source.exists():
        raise FileNotFoundError(f"there is no file {source}.")
    if not source.is_file():
        raise ValueError(f"{source} is not a file.")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {target.parent} to write {target.name} to.")
    if target.is_dir():
        raise ValueError(f"{target} is a folder: name a file.")
    if target.exists() and target.samefile(source):
        raise ValueError(f"{source} is both input and output: name another output.")


def _known_suffix(path: Path, known: Iterable[str], verb: str) -> str:
    suffix = path.suffix.lower()
    if suffix not in known:
        raise ValueError(f"cannot {verb} {path.name!r}: its name must end in one of {', '.join(known)}.")
    return suffix


def decoded_lines(file: BinaryIO) -> Iterator[tuple[str, str, str | None]]:
    """Yields (place, line without its end, problem or None) of UTF-8 bytes; lines end with LF or CR LF only."""
    for number, raw in enumerate(file, 1):
        line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        try:
            yield f"line {number}", line.decode("utf-8"), None
        except UnicodeDecodeError as error:
            yield f"line {number}", "", f"not UTF-8: {error.reason} at byte {error.start}"


def _read_txt(path: Path, text_column: str) -> Iterator[Record]:
    with path.open("rb") as file:
        for place, line, problem in decoded_lines(file):
            yield Record(place, line, {text_column: line}, problem)


def _read_jsonl(path: Path, text_column: str) -> Iterator[Record]:
    with path.open("rb") as file:
        for place, line, problem in decoded_lines(file):
            if problem is not None:
                yield Record(place, "", {}, problem)
            elif line.strip():
                yield _json_record(place, line, text_column)


def _json_record(place: str, line: str, text_column: str) -> Record:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits is a plain ValueError
        return Record(place, "", {}, f"not JSON: {error}")
    if not isinstance(fields, dict):
        return Record(place, "", {}, f"not a JSON object but {_json_type(fields)}")
    return _record(place, fields, text_column)


def _record(place: str, fields: dict[str, Any], text_column: str) -> Record:
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


def _read_csv(path: Path, text_column: str) -> Iterator[Record]:
    csv.field_size_limit(sys.maxsize)  # the default refuses documents beyond 131,072 characters
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file, strict=True)
        header = next(rows, [])
        _check_names(path, header, text_column)
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
                yield _record(place, dict(zip(header, row, strict=True)), text_column)


def _check_names(path: Path, names: Sequence[str], text_column: str) -> None:
    if text_column not in names:
        found = next((mark for mark in OTHER_DELIMITERS if len(names) == 1 and mark in names[0]), None)
        hint = f" Its fields seem to be separated by {found!r}: commas are needed." if found else ""
        raise ValueError(f"{path} has no column {text_column!r}, only {names}: name one with --text-column.{hint}")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{path} has a column named twice: {', '.join(map(repr, twice))}; rename one.")


def _read_parquet(path: Path, text_column: str) -> Iterator[Record]:
    arrow, parquet = _pyarrow()
    try:
        file = parquet.ParquetFile(path)
    except arrow.ArrowInvalid as error:
        raise ValueError(f"{path} is not a parquet file: {error}") from error
    with file:
        names = file.schema_arrow.names
        _check_names(path, names, text_column)
        row = 0
        for batch in file.iter_batches(batch_size=ROWS_PER_BATCH):
            columns = [_python_values(arrow, column) for column in batch.columns]
            for values in zip(*columns, strict=True):
                fields = dict(zip(names, values, strict=True))
                yield replace(_record(f"row {row + 1}", fields, text_column), row=row)
                row += 1


def _python_values(arrow: Any, column: Any) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError):  # times that Python's own types cannot hold: nanoseconds, year 10000
        values = column.cast(arrow.string()).to_pylist()
    return values


def _write_text(path: Path, parts: Iterable[str]) -> None:
    with _replacing(path) as unfinished, unfinished.open("wb") as file:
        for part in parts:
            file.write(part.encode("utf-8", "backslashreplace"))  # a lone surrogate, which JSON writes so


def _write_parquet(path: Path, annotations: Annotations, entities_column: str) -> None:
    arrow, parquet = _pyarrow()
    tables = (_table(arrow, batch, entities_column) for batch in _batches(annotations()))
    try:
        schema = arrow.unify_schemas(
            [_entities_schema(arrow, entities_column), *(table.schema for table in tables)],
            promote_options="permissive",
        )
    except (arrow.ArrowInvalid, arrow.ArrowTypeError) as error:
        raise ValueError(f"parquet needs one type a field: {error}; write .jsonl instead.") from error
    schema = arrow.schema(
        [*(column for column in schema if column.name != entities_column), schema.field(entities_column)]
    )
    with _replacing(path) as unfinished, parquet.ParquetWriter(unfinished, schema) as writer:
        for batch in _batches(annotations()):
            writer.write_table(_table(arrow, batch, entities_column, schema))


def _copy_parquet(path: Path, annotations: Annotations, entities_column: str, source: Path) -> None:
    arrow, parquet = _pyarrow()
    added = _entities_schema(arrow, entities_column).field(0)
    items = annotations()
    item = next(items, None)
    with parquet.ParquetFile(source) as file, _replacing(path) as unfinished:
        if entities_column in file.schema_arrow.names:
            raise ValueError(f"{source} has a column {entities_column!r} already: name another by --entities-column.")
        schema = file.schema_arrow.append(added)
        with parquet.ParquetWriter(unfinished, schema) as writer:
            first = 0
            for batch in file.iter_batches(batch_size=ROWS_PER_BATCH):
                kept, entities = [], []
                while item is not None and item.record.row < first + batch.num_rows:
                    kept.append(item.record.row - first)
                    entities.append(item.entities)
                    item = next(items, None)
                first += batch.num_rows
                rows = batch if len(kept) == batch.num_rows else batch.take(arrow.array(kept, arrow.int64()))
                columns = [*rows.columns, arrow.array(entities, added.type)]
                writer.write_batch(arrow.RecordBatch.from_arrays(columns, schema=schema))


def _entities_schema(arrow: Any, entities_column: str) -> Any:
    text, number = arrow.string(), arrow.int64()
    entity = arrow.struct(
        [("entity_group", text), ("score", arrow.float64()), ("word", text), ("start", number), ("end", number)]
    )
    return arrow.schema([(entities_column, arrow.list_(entity))])


def _table(arrow: Any, batch: Sequence[Annotated], entities_column: str, schema: Any = None) -> Any:
    entities = _entities_schema(arrow, entities_column).field(0)
    names = dict.fromkeys(name for item in batch for name in item.record.fields) if schema is None else schema.names
    columns = {}
    for name in names:
        if name == entities_column:
            continue
        values = [item.record.fields.get(name) for item in batch]
        known = None if schema is None else schema.field(name).type
        try:
            columns[name] = arrow.array(values, known)
        except (arrow.ArrowException, OverflowError, UnicodeEncodeError) as error:
            place = batch[_first_refused(arrow, values, known)].record.place
            raise ValueError(
                f"parquet needs one type a field, but {name!r} at {place}: {error}; write .jsonl instead."
            ) from error
    columns[entities_column] = arrow.array([item.entities for item in batch], entities.type)
    return arrow.table(columns)


def _first_refused(arrow: Any, values: Sequence[Any], known: Any) -> int:
    for last in range(len(values) - 1):
        try:
            arrow.array(values[: last + 1], known)
        except (arrow.ArrowException, OverflowError, UnicodeEncodeError):
            return last
    return len(values) - 1


def _batches(items: Iterable[Annotated]) -> Iterator[list[Annotated]]:
    batch: list[Annotated] = []
    for item in items:
        batch.append(item)
        if len(batch) == ROWS_PER_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Gives a path to write to, which takes the place of `path` if all goes well and vanishes otherwise."""
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("parquet files need pyarrow: pip install 'decodner-hf[io]'.") from error
    return pyarrow, pyarrow.parquet


READERS = {".txt": _read_txt, ".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
