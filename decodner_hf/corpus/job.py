"""Plans a run: which files it reads, which it writes, and what would make its results differ.

In: files, folders and patterns, an output, options. Out: a checked `Job`.
Knows nothing of models.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import parquet
from .inputs import COMPRESSIONS, Meter, Source, find_sources, split_suffixes, zstandard
from .readers import Layout, read_records
from .records import Record, Warn
from .side_files import unfinished_path
from .writers import WRITTEN, OutputFormat

CHECKED_BYTES = 64 << 20  # of the input are checked before the model is loaded
STANDARD_OUTPUT = "-"
FOLDER_FILES = "decodner"  # how the side files of a folder of outputs begin


@dataclass(frozen=True)
class Part:
    """An output, and the files whose documents it holds: those from index `first` of the run's on."""

    target: Path
    first: int
    sources: tuple[Source, ...]
    form: OutputFormat


@dataclass(frozen=True)
class Job:
    """What to read and what to write.

    Attributes:
        sources: the input files.
        parts: the outputs.
        base: what the names of the journal, the lock and the report begin with.
        layout: where in a file its documents are.
        entities_column: the outputs' field for the entities.
        skip_errors: leave out documents that cannot be read or annotated, with a warning, instead of stopping.
    """

    sources: tuple[Source, ...]
    parts: tuple[Part, ...]
    base: Path
    layout: Layout
    entities_column: str
    skip_errors: bool

    def side_file(self, kind: str) -> Path:
        """Returns the path of the run's "journal", "lock" or "report.json"."""
        return self.base.with_name(f"{self.base.name}.{kind}")

    def bytes(self) -> int | None:
        """Returns the size of the input, None where standard input is part of it."""
        if any(source.stream is not None for source in self.sources):
            return None
        return sum(source.path.stat().st_size for source in self.sources)

    def identity(self) -> dict[str, Any]:
        """Returns what makes the outputs differ, the pipeline aside; values of JSON."""
        digest = hashlib.sha256()
        for source in self.sources:
            digest.update(_described(source))
        return {
            "input": f"{len(self.sources)} {digest.hexdigest()}",
            "text column": self.layout.text_column,
            "whole file": self.layout.whole_file,
            "file column": self.layout.file_column,
            "report column": self.layout.report_column,
            "entities column": self.entities_column,
            "output format": sorted({part.form.suffix + part.form.compression for part in self.parts}),
        }

    def documents(
        self, leave_out: Callable[[Record], None], meter: Meter | None = None, part: Part | None = None
    ) -> Iterator[Record]:
        """Yields the documents that can be annotated, in order.

        Args:
            leave_out: gets each broken one, if errors are skipped.
            meter: follows how much is read.
            part: the files to read; by default all.

        Raises:
            ValueError: a broken one, unless errors are skipped; a field that has the name of one to be added.
        """
        added = {self.entities_column: "--entities-column", self.layout.report_column: "--report-column"}
        sources, first = (self.sources, 0) if part is None else (part.sources, part.first)
        for record in read_records(sources, self.layout, meter, first):
            for column, option in added.items():
                if column in record.fields:
                    raise ValueError(
                        f"{self.place(record)} has a field {column!r} already: choose another name with {option}."
                    )
            if record.problem is None:
                yield record
            elif self.skip_errors:
                leave_out(record)
            else:
                raise ValueError(
                    f"{self.place(record)}: {record.problem}. Leave broken ones out with --on-error skip."
                )

    def documents_of(self, part: Part) -> Iterator[Record]:
        """Yields the documents of one output that can be annotated."""
        records = read_records(part.sources, self.layout, first=part.first)
        return (record for record in records if record.problem is None)

    def with_reading(self, record: Record, reading: dict[str, Any] | None) -> Record:
        """Returns a document with how it was read as one of its fields, where the job asks for that."""
        column = self.layout.report_column
        if column is None:
            return record
        in_parquet = self.parts[0].form.suffix == ".parquet"  # whose columns have one type: text
        return replace(record, fields=record.fields | {column: json.dumps(reading) if in_parquet else reading})

    def place(self, record: Record) -> str:
        """Returns where a document stands, for messages."""
        return f"{self.sources[record.source].name}, {record.place}"

    def check_beginning(self) -> int | None:
        """Reads the first `CHECKED_BYTES`; returns how many documents there are, None where there is more to read.

        Raises:
            ValueError: as `documents`.
        """
        meter, total = Meter(), 0
        for _ in self.documents(lambda _: None, meter):
            total += 1
            if meter.bytes_read() > CHECKED_BYTES:
                return None
        return total


def _described(source: Source) -> bytes:
    """Returns what tells a file from others and from itself after a change: standard input by what was read of it."""
    if source.is_spooled:
        with source.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    status = source.path.stat()
    return f"{source.path.resolve()}\0{status.st_size} {status.st_mtime_ns}\n".encode(errors="replace")


def plan_job(
    inputs: Sequence[str | Path | Source],
    output: str | Path,
    *,
    layout: Layout,
    entities_column: str = "entities",
    output_format: str | None = None,
    skip_errors: bool = False,
    warn: Warn,
) -> Job:
    """Finds the files of a run and checks that they can be read and written.

    Args:
        inputs: files, folders and patterns; `Source`s are taken as they are.
        output: a file, or a folder (one that exists, or a name that ends in a slash) for one output an input; "-" for
            `stream_job`.
        layout: where in a file its documents are.
        entities_column: the outputs' field for the entities.
        output_format: "jsonl", "csv", ...; by default what the name of the output says, in a folder "jsonl".
        skip_errors: see `Job`.
        warn: gets the names of files that are not read.

    Raises:
        ValueError: names that cannot be served, an output that is an input.
        FileNotFoundError: no such file or folder.
        ImportError: a package that a format needs.
    """
    if str(output) == STANDARD_OUTPUT:
        sources = tuple(find_sources(inputs, (), warn))
        form = _output_format(Path(), True, output_format, entities_column, layout)
        _check_packages(sources, form)
        part = Part(Path(STANDARD_OUTPUT), 0, sources, form)
        return Job(sources, (part,), part.target, layout, entities_column, skip_errors)
    target = Path(output)
    is_folder = target.is_dir() or str(output).endswith(("/", os.sep))
    base = target / FOLDER_FILES if is_folder else target
    own = [base.with_name(f"{base.name}.{kind}") for kind in ("journal", "lock", "report.json")]
    skipped = {path.resolve() for path in [*own, unfinished_path(base)]}
    if is_folder or any(path.exists() for path in own) or not target.exists():
        skipped.add(target.resolve())  # otherwise it is an input, and refused below
    if is_folder and any(
        not isinstance(given, Source) and Path(given).resolve() == target.resolve() for given in inputs
    ):
        raise ValueError(f"{target} is both input and output: name another folder for the outputs.")
    sources = tuple(find_sources(inputs, skipped, warn))
    form = _output_format(target, is_folder, output_format, entities_column, layout)
    if is_folder:
        parts = tuple(_parts_of_folder(target, sources, form))
    else:
        if not target.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {target.parent} to write {target.name} to.")
        parts = (Part(target, 0, sources, form),)
    for part in parts:
        _check_target(part.target, sources)
    _check_packages(sources, form)
    return Job(sources, parts, base, layout, entities_column, skip_errors)


def _output_format(
    target: Path, is_folder: bool, named: str | None, entities_column: str, layout: Layout
) -> OutputFormat:
    name = Path(f"_.{named}") if named is not None else Path("_.jsonl") if is_folder else target
    suffix, compression = split_suffixes(name)
    if suffix not in WRITTEN or (suffix == ".parquet" and compression):
        raise ValueError(
            f"cannot write {target.name!r}: its name must end in one of {', '.join(WRITTEN)}, text formats also in "
            f"that and one of {', '.join(COMPRESSIONS)}; or name a format with --format."
        )
    return OutputFormat(suffix, compression, entities_column, layout.text_column, _added_columns(layout))


def _added_columns(layout: Layout) -> tuple[str, ...]:
    return tuple(column for column in (layout.file_column, layout.report_column) if column is not None)


def _parts_of_folder(folder: Path, sources: Sequence[Source], form: OutputFormat) -> Iterator[Part]:
    """Yields an output for each input: its name with another suffix, after its whole name where two would be equal."""
    suffix = form.suffix + form.compression
    short = [_without_suffixes(source) + suffix for source in sources]
    names = [
        name if short.count(name) == 1 else source.name + suffix for name, source in zip(short, sources, strict=True)
    ]
    for index, (name, source) in enumerate(zip(names, sources, strict=True)):
        if names.count(name) > 1:
            raise ValueError(f"two inputs would be written to {folder / name}: annotate them in two runs.")
        yield Part(folder / name, index, (source,), form)


def _without_suffixes(source: Source) -> str:
    return source.name[: len(source.name) - len(source.suffix) - len(source.compression)]


def _check_target(target: Path, sources: Sequence[Source]) -> None:
    if target.is_symlink():
        raise ValueError(f"{target} is a symbolic link: name the file itself as output.")
    if target.is_dir():
        raise ValueError(f"{target} is a folder: name a file.")
    if target.exists() and not target.is_file():
        raise ValueError(f"{target} is not a file (a pipe or a device): name a file, or - for standard output.")
    if target.exists() and any(target.samefile(source.path) for source in sources):
        raise ValueError(f"{target} is both input and output: name another output.")


def _check_packages(sources: Sequence[Source], form: OutputFormat) -> None:
    if ".parquet" in {form.suffix, *(source.suffix for source in sources)}:
        parquet.pyarrow()
    if ".zst" in {form.compression, *(source.compression for source in sources)}:
        zstandard()
