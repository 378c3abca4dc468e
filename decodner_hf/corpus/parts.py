"""Divides a run into parts that any machine can read, annotate and write, each exactly once.

In: a job. Out: per chunk of documents one parquet file, whose name says which chunk it is and whose metadata hold the
report on it: what is missing, and the report of the whole run, are read from the files that exist.
Knows nothing of pipelines or clusters.
"""

import json
import os
import re
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from . import parquet
from .chunks import Chunks, ChunkSize
from .inputs import opened
from .job import Job
from .records import Annotated, Outcome, Record
from .report import Report, report_of
from .side_files import sync
from .tally import Tally

CHUNK = ChunkSize(documents=1 << 15, characters=1 << 24)
SHARD_BYTES = 64 << 20  # of the input are read together, in whole files
NAME = re.compile(r"part-(\d+)-(\d+)\.parquet")
METADATA = b"decodner"


@dataclass(frozen=True)
class Shard:
    """Consecutive input files: those from index `first` of the run's up to `last`, which is not among them."""

    number: int
    first: int
    last: int


@dataclass(frozen=True)
class Chunk:
    """Documents on their way.

    Attributes:
        shard: number of the shard.
        number: which of the shard's chunks it is.
        is_last: whether it is the shard's last one.
        records: the documents; from parquet files without their fields, which are in `columns`.
        broken: documents that could not be read, if errors are skipped.
        columns: tables of the documents' columns, in order, where all inputs are parquet files.
    """

    shard: int
    number: int
    is_last: bool
    records: list[Record]
    broken: list[Record]
    columns: list[Any]


@dataclass(frozen=True)
class WrittenPart:
    """A file that was written: which chunk it holds, and what happened to the chunk's documents."""

    path: Path
    shard: int
    number: int
    is_last: bool
    report: Report
    schema: Any


def shards_of(job: Job) -> list[Shard]:
    """Divides the files of a job into shards of about `SHARD_BYTES`, or of one larger file."""
    shards: list[Shard] = []
    first = size = 0
    for index, source in enumerate(job.sources, 1):
        size += source.path.stat().st_size
        if size >= SHARD_BYTES or index == len(job.sources):
            shards.append(Shard(len(shards), first, index))
            first, size = index, 0
    return shards


def read_chunks(job: Job, shard: Shard, done: Collection[int], size: ChunkSize) -> Iterator[Chunk]:
    """Yields the chunks of a shard whose numbers are not in `done`; a shard without documents has one empty chunk.

    Raises:
        ValueError: files or documents that cannot be read, as `Job.documents`.
    """
    broken: list[Record] = []
    part = replace(job.parts[0], sources=job.sources[shard.first : shard.last], first=shard.first)
    chunks = Chunks(job.documents(broken.append, part=part), size)
    with ExitStack() as stack:
        columns = _Columns(job, stack)
        records = chunks.next()
        number = 0
        while chunks.failure is None:
            found = list(broken)
            broken.clear()
            following = chunks.next()
            is_last = not following and chunks.failure is None
            if number not in done:
                tables = columns.of(records)
                kept = [_without_columns(record, job) for record in records] if tables else records
                yield Chunk(shard.number, number, is_last, kept, found + broken if is_last else found, tables)
            if is_last:
                return
            records, number = following, number + 1
        raise chunks.failure


class _Columns:
    """The columns of documents from parquet files, if all files are such."""

    def __init__(self, job: Job, stack: ExitStack) -> None:
        self.job, self.stack = job, stack
        self.are_copied = all(source.suffix == ".parquet" for source in job.sources)
        self.rows: dict[int, parquet.Rows] = {}

    def of(self, records: Sequence[Record]) -> list[Any]:
        """Returns tables that together hold the rows of the documents, which come in the order of the files."""
        tables = []
        for index, group in groupby(records if self.are_copied else (), key=lambda record: record.source):
            if index not in self.rows:
                source = self.job.sources[index]
                self.rows[index] = parquet.Rows(self.stack.enter_context(opened(source)), source)
            tables.append(self.rows[index].take([record.row for record in group]))
        return tables


def write_part(job: Job, folder: Path, chunk: Chunk, outcomes: Sequence[Outcome]) -> WrittenPart:
    """Writes a chunk's documents with their entities; the file appears when it is complete, and replaces its like.

    Raises:
        ValueError: a document that the pipeline refused, unless errors are skipped; values that parquet cannot hold.
    """
    tally = Tally(job, lambda _: None)
    for record in chunk.broken:
        tally.leave_out(record)
    results = [tally.result_of(record, outcome) for record, outcome in zip(chunk.records, outcomes, strict=True)]
    kept = [index for index, result in enumerate(results) if result.entities is not None]
    documents = [
        Annotated(job.with_reading(chunk.records[index], results[index].reading), results[index].entities or [])
        for index in kept
    ]
    form = job.parts[0].form
    columns = chunk.columns
    if columns and len(kept) < len(results):
        arrow, _ = parquet.pyarrow()
        columns = [arrow.concat_tables(columns, promote_options="default").take(arrow.array(kept, arrow.int64()))]
    table = parquet.documents_table(documents, form.entities_column, form.entity_fields, columns, form.added_columns)
    metadata = {"is_last": chunk.is_last, "report": tally.report.values()}
    path = folder / f"part-{chunk.shard:06}-{chunk.number:06}.parquet"
    _write(path, table, metadata)
    return WrittenPart(path, chunk.shard, chunk.number, chunk.is_last, tally.report, table.schema)


def find_parts(folder: Path, known: Collection[Path] = ()) -> Iterator[WrittenPart]:
    """Yields what was written in a folder, in order, without the files that are `known`.

    Raises:
        ValueError: a file of such a name that is none of ours, or damaged.
    """
    arrow, library = parquet.pyarrow()
    for path in sorted(folder.iterdir()):
        named = NAME.fullmatch(path.name)
        if named is None or path in known:
            continue
        try:
            schema = library.read_schema(path)
            values = json.loads((schema.metadata or {})[METADATA])
            report = report_of(values["report"])
        except (arrow.ArrowException, OSError, KeyError, ValueError) as error:
            raise ValueError(f"{path} is damaged, or no part of a run: remove it, and go on with --resume.") from error
        yield WrittenPart(path, int(named[1]), int(named[2]), values["is_last"], report, schema.remove_metadata())


def rewrite(path: Path, schema: Any) -> None:
    """Gives a part's columns the types of `schema`."""
    arrow, library = parquet.pyarrow()
    table = library.read_table(path)
    metadata = json.loads(table.schema.metadata[METADATA])
    arrays = [
        table.column(field.name).cast(field.type)
        if field.name in table.schema.names
        else arrow.nulls(table.num_rows, field.type)
        for field in schema
    ]
    _write(path, type(table).from_arrays(arrays, schema=schema), metadata)


def missing(shards: Sequence[Shard], parts: Sequence[WrittenPart]) -> dict[int, frozenset[int]]:
    """Returns shard -> the numbers of its chunks that are written, for the shards that are not complete."""
    done: dict[int, set[int]] = {shard.number: set() for shard in shards}
    lengths: dict[int, int] = {}
    for part in parts:
        done[part.shard].add(part.number)
        if part.is_last:
            lengths[part.shard] = part.number + 1
    return {shard: frozenset(numbers) for shard, numbers in done.items() if len(numbers) != lengths.get(shard)}


def remove_unfinished(folder: Path) -> None:
    """Removes what workers that were lost have left."""
    for path in folder.glob("part-*.parquet.unfinished-*"):
        path.unlink(missing_ok=True)


def _without_columns(record: Record, job: Job) -> Record:
    """Returns a document with the fields that its file does not have."""
    added = job.layout.file_column
    return replace(record, fields={} if added is None else {added: record.fields[added]})


def _write(path: Path, table: Any, metadata: dict[str, Any]) -> None:
    _, library = parquet.pyarrow()
    own = {METADATA: json.dumps(metadata).encode()}
    beside = path.with_name(f"{path.name}.unfinished-{uuid.uuid4().hex}")  # several workers may write one part
    try:
        with beside.open("xb") as file:
            library.write_table(table.replace_schema_metadata((table.schema.metadata or {}) | own), file)
            sync(file)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def report_on(parts: Sequence[WrittenPart]) -> Report:
    """Returns the report of all parts together."""
    report = Report()
    for part in parts:
        report.merge(part.report)
    return report


def schemas_of(parts: Sequence[WrittenPart]) -> list[Any]:
    """Returns the different schemas of the parts, in order."""
    found: list[Any] = []
    for part in parts:
        if not any(part.schema.equals(other) for other in found):
            found.append(part.schema)
    return found
