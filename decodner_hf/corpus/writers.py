"""Writes documents with their entities as JSON lines, tables, parquet, CoNLL or HTML.

In: documents with entities, an open file. Out: the file's bytes.
Knows nothing of models, nor of where the documents come from (parquet aside, whose columns are copied).
"""

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import BinaryIO

from . import parquet
from .html_view import ShownDocument, html_page
from .inputs import Source, zstandard
from .records import Annotated, Annotations, Record, Warn
from .rendering import conll_block, json_lines

WRITTEN = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".conll", ".html")
STREAMED = (".jsonl", ".ndjson", ".conll", ".html")  # written in one pass
FORMULA = (*"=+-@\t\r", *"\uff1d\uff0b\uff0d\uff20")  # how a cell begins that a spreadsheet may run; full-width, too


@dataclass(frozen=True)
class OutputFormat:
    """How an output is written.

    Attributes:
        suffix: one of `WRITTEN`.
        compression: ".gz", ".zst" or "".
        entities_column: the field for the entities.
        text_column: the field with the text, which html and conll show by itself.
        added_columns: fields that documents have besides those of their files.
        entity_fields: what entities have besides label, score, word, start and end: "scores", "truncated_at".
    """

    suffix: str
    compression: str
    entities_column: str
    text_column: str
    added_columns: tuple[str, ...] = ()
    entity_fields: tuple[str, ...] = ()


def write_annotated(
    file: BinaryIO,
    annotations: Annotations,
    form: OutputFormat,
    sources: Sequence[tuple[int, Source]],
    place: Callable[[Record], str],
    warn: Warn,
) -> None:
    """Writes the documents in one format.

    Args:
        file: where to.
        annotations: what to write.
        form: how.
        sources: the files that they come from; from parquet to parquet their columns are copied as they are.
        place: says where a document stands.
        warn: is told once of numbers that JSON has no word for.

    Raises:
        ValueError: entities the format cannot express, or values that it cannot hold.
        ImportError: parquet without pyarrow, .zst without zstandard.
    """
    with ExitStack() as stack:
        if form.compression == ".gz":
            file = stack.enter_context(gzip.GzipFile(fileobj=file, mode="wb", mtime=0))  # type: ignore[assignment]
        elif form.compression == ".zst":
            file = stack.enter_context(
                zstandard().ZstdCompressor(write_checksum=True).stream_writer(file, closefd=False)
            )
        if form.suffix == ".parquet":
            _write_parquet(file, annotations, form, sources)
        elif form.suffix in (".csv", ".tsv"):
            _write_table(file, annotations, form)
        else:
            for part in text_parts(annotations(), form, place, warn):
                file.write(encoded(part))


def text_parts(
    annotations: Iterator[Annotated], form: OutputFormat, place: Callable[[Record], str], warn: Warn
) -> Iterable[str]:
    """Yields what a file of one of the `STREAMED` formats holds, piece by piece; see `write_annotated`."""
    if form.suffix == ".conll":
        return (conll_block(i.record.text, i.entities, _other_fields(i, form)) for i in annotations)
    if form.suffix == ".html":
        return html_page(
            ShownDocument(place(i.record), i.record.text, i.entities, _other_fields(i, form)) for i in annotations
        )
    return json_lines(
        ((place(i.record), {**i.record.fields, form.entities_column: i.entities}) for i in annotations), warn
    )


def _other_fields(item: Annotated, form: OutputFormat) -> dict[str, object]:
    return {name: value for name, value in item.record.fields.items() if name != form.text_column}


def encoded(text: str) -> bytes:
    """Returns UTF-8; a lone surrogate, which JSON may hold, becomes its escape."""
    return text.encode("utf-8", "backslashreplace")


def _write_parquet(
    file: BinaryIO, annotations: Annotations, form: OutputFormat, sources: Sequence[tuple[int, Source]]
) -> None:
    if sources and all(source.suffix == ".parquet" for _, source in sources):
        parquet.copy_parquet(file, annotations, form.entities_column, form.entity_fields, sources, form.added_columns)
    else:
        parquet.write_parquet(file, annotations, form.entities_column, form.entity_fields)


def _write_table(file: BinaryIO, annotations: Annotations, form: OutputFormat) -> None:
    """Writes a header with every field that a document has, in two passes, and a row a document."""
    names = dict.fromkeys(name for item in annotations() for name in item.record.fields)
    columns = [*names, form.entities_column] if names else [form.text_column, form.entities_column]
    text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="", write_through=True)
    writer = csv.writer(text, delimiter="\t" if form.suffix == ".tsv" else ",")
    writer.writerow(map(_cell, columns))
    for item in annotations():
        values = [item.record.fields.get(name) for name in names]
        entities = json.dumps(item.entities, ensure_ascii=False)
        writer.writerow([*map(_cell, values), entities])
    text.detach()


def _cell(value: object) -> str:
    """Returns a value as a cell's text; one that a spreadsheet would run as a formula begins with an apostrophe."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False, default=str)
    return f"'{value}" if value.startswith(FORMULA) and not _is_number(value) else value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return not text.startswith(("\t", "\r"))
