"""Reads and writes parquet files.

In: a file, or documents with entities. Out: rows as dicts of Python values, or a file. From parquet to parquet the
input's columns are copied with their types; from other files each field gets the one type that holds all its values.
Knows nothing of models; needs pyarrow.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO

from .inputs import Source, opened
from .records import Annotated, Annotations

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

ROWS_PER_BATCH = 1000


def pyarrow() -> tuple[ModuleType, ModuleType]:
    """Returns pyarrow and its parquet module; an ImportError that says how to install it."""
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError("parquet files need pyarrow: pip install 'decodner-hf[io]'.") from error
    return arrow, parquet


def read_rows(file: BinaryIO, source: Source) -> tuple[list[str], Iterator[dict[str, object]]]:
    """Returns the columns' names and the rows; a damaged file is a ValueError, also while rows are read."""
    arrow, _ = pyarrow()
    table = _open(file, source)
    return table.schema_arrow.names, _rows(arrow, table, source)


def _open(file: BinaryIO, source: Source) -> "pq.ParquetFile":
    arrow, parquet = pyarrow()
    try:
        return parquet.ParquetFile(file)
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(f"{source.name} is not a parquet file, or a damaged one: {error}") from error


def _rows(arrow: ModuleType, table: "pq.ParquetFile", source: Source) -> Iterator[dict[str, object]]:
    names = table.schema_arrow.names
    for batch in _read_batches(arrow, table, source):
        columns = [_python_values(arrow, column) for column in batch.columns]
        for values in zip(*columns, strict=True):
            yield dict(zip(names, values, strict=True))


def _read_batches(arrow: ModuleType, table: "pq.ParquetFile", source: Source) -> "Iterator[pa.RecordBatch]":
    batches = table.iter_batches(batch_size=ROWS_PER_BATCH)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (arrow.ArrowException, OSError) as error:
            raise ValueError(f"{source.name} is a damaged parquet file: {error}") from error
        yield batch


def _python_values(arrow: ModuleType, column: "pa.Array") -> list[object]:
    try:
        values: list[object] = column.to_pylist()
    except (ValueError, OverflowError):  # times that Python's own types cannot hold: nanoseconds, year 10000
        values = column.cast(arrow.string()).to_pylist()
    return values


def write_parquet(
    file: BinaryIO, annotations: Annotations, entities_column: str, entity_fields: Sequence[str]
) -> None:
    """Writes documents from any file, in two passes: one for the types, one for the rows.

    Raises:
        ValueError: a field whose values parquet cannot hold under one type; the first such document is named.
    """
    arrow, parquet = pyarrow()
    added = _entities_field(arrow, entities_column, entity_fields)
    tables = (_table(arrow, batch, added) for batch in _batches(annotations()))
    schema = merged_schema([arrow.schema([added]), *(table.schema for table in tables)], entities_column)
    with parquet.ParquetWriter(file, schema) as writer:
        for batch in _batches(annotations()):
            writer.write_table(_table(arrow, batch, added, schema))


def copy_parquet(
    file: BinaryIO,
    annotations: Annotations,
    entities_column: str,
    entity_fields: Sequence[str],
    sources: Sequence[tuple[int, Source]],
    added_columns: Sequence[str],
) -> None:
    """Writes documents from parquet files: their columns as they are, and the entities.

    Args:
        file: the output.
        annotations: the documents, in the order of the files.
        entities_column: the field for the entities.
        entity_fields: see `OutputFormat`.
        sources: the files with their indices in the run.
        added_columns: fields that documents have besides those of their files: texts.

    Raises:
        ValueError: files whose columns do not go together.
    """
    arrow, parquet = pyarrow()
    schema = _common_schema(arrow, sources)
    added = [arrow.field(name, arrow.string()) for name in added_columns]
    added.append(_entities_field(arrow, entities_column, entity_fields))
    whole = schema
    for field in added:
        whole = whole.append(field)
    items = annotations()
    item = next(items, None)
    with parquet.ParquetWriter(file, whole) as writer:
        for index, source in sources:
            first = 0
            with opened(source) as source_file:
                for batch in _read_batches(arrow, _open(source_file, source), source):
                    kept: list[int] = []
                    new: list[list[object]] = [[] for _ in added]
                    beyond = (index, first + batch.num_rows)
                    while item is not None and (item.record.source, item.record.row) < beyond:
                        kept.append(item.record.row - first)
                        for values, name in zip(new, added_columns, strict=False):
                            values.append(item.record.fields[name])
                        new[-1].append(item.entities)
                        item = next(items, None)
                    first += batch.num_rows
                    rows = batch if len(kept) == batch.num_rows else batch.take(arrow.array(kept, arrow.int64()))
                    columns = _columns(arrow, rows, schema)
                    columns += [arrow.array(values, field.type) for values, field in zip(new, added, strict=True)]
                    writer.write_batch(arrow.RecordBatch.from_arrays(columns, schema=whole))


class Rows:
    """The columns of a parquet file with their types, read from the first row to the last."""

    def __init__(self, file: BinaryIO, source: Source) -> None:
        """Opens it; `take` raises a ValueError where it is damaged."""
        self.arrow, _ = pyarrow()
        self.batches = _read_batches(self.arrow, _open(file, source), source)
        self.batch: pa.RecordBatch = None
        self.first = self.beyond = 0  # rows of the batch

    def take(self, rows: Sequence[int]) -> "pa.Table":
        """Returns a table of these rows, which are at least one, ascending, and after those taken before."""
        taken = []
        position = 0
        while position < len(rows):
            while rows[position] >= self.beyond:
                self.batch = next(self.batches)
                self.first, self.beyond = self.beyond, self.beyond + self.batch.num_rows
            end = bisect_left(rows, self.beyond, position)
            taken.append(self.batch.take(self.arrow.array([row - self.first for row in rows[position:end]])))
            position = end
        return self.arrow.Table.from_batches(taken)


def documents_table(
    documents: Sequence[Annotated],
    entities_column: str,
    entity_fields: Sequence[str],
    columns: "Sequence[pa.Table]" = (),
    added_columns: Sequence[str] = (),
) -> "pa.Table":
    """Returns documents as a table, each field with the one type that holds all its values.

    Args:
        documents: what to write.
        entities_column: the field for the entities.
        entity_fields: see `OutputFormat`.
        columns: tables that together hold the documents' columns, if these come from parquet files.
        added_columns: fields that documents have besides those: texts.

    Raises:
        ValueError: a field whose values parquet cannot hold under one type; the first such document is named.
    """
    arrow, _ = pyarrow()
    entities = _entities_field(arrow, entities_column, entity_fields)
    if not columns:
        return _table(arrow, documents, entities)
    table = arrow.concat_tables(columns, promote_options="default")
    for name in added_columns:
        values = [document.record.fields[name] for document in documents]
        table = table.append_column(arrow.field(name, arrow.string()), arrow.array(values, arrow.string()))
    return table.append_column(entities, arrow.array([document.entities for document in documents], entities.type))


def merged_schema(schemas: "Sequence[pa.Schema]", entities_column: str) -> "pa.Schema":
    """Returns the schema that holds the rows of all tables with these schemas, the entities last.

    Raises:
        ValueError: types of one field that do not go together.
    """
    arrow, _ = pyarrow()
    try:
        schema = arrow.unify_schemas(list(schemas), promote_options="permissive")
    except (arrow.ArrowInvalid, arrow.ArrowTypeError) as error:
        raise ValueError(f"parquet needs one type a field: {error}; write .jsonl instead.") from error
    others = [column for column in schema if column.name != entities_column]
    return arrow.schema([*others, schema.field(entities_column)])


def _common_schema(arrow: ModuleType, sources: Sequence[tuple[int, Source]]) -> "pa.Schema":
    schemas = []
    for _, source in sources:
        with opened(source) as file:
            schemas.append(_open(file, source).schema_arrow)
    if len(schemas) == 1:
        return schemas[0]
    try:
        return arrow.unify_schemas(schemas)
    except (arrow.ArrowInvalid, arrow.ArrowTypeError) as error:
        raise ValueError(f"the columns of the parquet files do not go together: {error}; write .jsonl.") from error


def _columns(arrow: ModuleType, batch: "pa.RecordBatch", schema: "pa.Schema") -> "list[pa.Array]":
    """Returns the batch's columns in the schema's order, nulls for those that it lacks."""
    return [
        batch.column(field.name) if field.name in batch.schema.names else arrow.nulls(batch.num_rows, field.type)
        for field in schema
    ]


def _entities_field(arrow: ModuleType, entities_column: str, entity_fields: Sequence[str]) -> "pa.Field":
    text, number, score = arrow.string(), arrow.int64(), arrow.float64()
    types = {"scores": arrow.map_(text, score), "truncated_at": number}
    fields = [("entity_group", text), ("score", score), ("word", text), ("start", number), ("end", number)]
    entity = arrow.struct([*fields, *((name, types[name]) for name in entity_fields)])
    return arrow.field(entities_column, arrow.list_(entity))


def _table(
    arrow: ModuleType, batch: Sequence[Annotated], entities: "pa.Field", schema: "pa.Schema | None" = None
) -> "pa.Table":
    names = dict.fromkeys(name for item in batch for name in item.record.fields) if schema is None else schema.names
    columns = {}
    for name in names:
        if name == entities.name:
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
    columns[entities.name] = arrow.array([item.entities for item in batch], entities.type)
    return arrow.table(columns)


def _first_refused(arrow: ModuleType, values: Sequence[object], known: "pa.DataType | None") -> int:
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
