"""Annotates the documents of files, restartable at any moment.

In: files, a pipeline. Out: files with each document's entities. Results go to a journal beside the output, one line
a document; when every document has one, the outputs are written from inputs and journal, take their names, and the
journal is removed. Nothing is lost and nothing is doubled, wherever the run stops.
Knows nothing of the command line, nor of how the pipeline works.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from .engine import Engine, PipelineEngine
from .inputs import Meter
from .job import Job, Part, plan_job
from .journal import Journal, JournalWriter, Written
from .processes import copies_on
from .progress import Progress
from .readers import Layout
from .records import Annotated, Record, Warn
from .report import Report, finished_run, read_report
from .side_files import finish, locked, sync, unfinished
from .tally import Tally
from .writers import encoded, text_parts, write_annotated

if TYPE_CHECKING:
    from ..core.pipeline import DecodNERPipeline

SECONDS_BETWEEN_FLUSHES = 1.0
ENTITY_FIELDS = frozenset({"entity_group", "score", "word", "start", "end"})
REPLACES = "replaces"  # in the journal: outputs that were there when the run began may be replaced


def annotate(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    pipe: "DecodNERPipeline",
    *,
    devices: Sequence[str] | None = None,
    text_column: str = "text",
    entities_column: str = "entities",
    whole_file: bool = False,
    file_column: str | None = None,
    report_column: str | None = None,
    output_format: str | None = None,
    on_error: Literal["stop", "skip"] = "stop",
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    warn: Warn = warnings.warn,
) -> Report:
    """Annotates every document of files with a pipeline's labels and settings.

    Args:
        inputs: files (.jsonl, .json, .csv, .tsv, .txt, .md, .parquet, each also .gz or .zst), folders and patterns.
        output: a file (.jsonl, .csv, .tsv, .parquet, .conll or .html), or a folder for one output an input.
        pipe: the pipeline; its labels, thresholds and other settings are used.
        devices: annotate in one process per device of this list ("cuda:0", "cuda:1", "cpu"), each with a copy of the
            pipeline; by default in this process.
        text_column: the field that holds a document's text.
        entities_column: the outputs' field for the entities.
        whole_file: a text file is one document instead of one a line.
        file_column: a field to add that holds the name of the document's file.
        report_column: a field to add that holds how the document was read: the `report` of `DecodNERPipeline`.
        output_format: "jsonl", "csv", ...; by default what the name of the output says, in a folder "jsonl".
        on_error: at a document that cannot be read or annotated, "stop", or "skip" it, with a warning.
        resume: go on with an interrupted run, if there is one.
        overwrite: replace outputs that exist, and forget an interrupted run.
        progress: shows how far the run is.
        warn: gets warnings; by default they are Python's.

    Returns:
        What was annotated and what was left out; it is also in a file beside the output, `.report.json`.

    Raises:
        ValueError: files or documents that cannot be served, a journal of another run; results so far are kept.
        OSError: files that are missing, cannot be read, or would be replaced.
        RuntimeError: a process that ended; results so far are kept.
    """
    if resume and overwrite:
        raise ValueError("resume and overwrite exclude each other.")
    job = plan_job(
        [inputs] if isinstance(inputs, str | Path) else inputs,
        output,
        layout=Layout(text_column, whole_file, file_column, report_column),
        entities_column=entities_column,
        output_format=output_format,
        skip_errors=on_error == "skip",
        warn=warn,
    )

    def start() -> Engine:
        return PipelineEngine(pipe) if devices is None else copies_on(pipe, devices)

    return run_job(job, start, resume=resume, overwrite=overwrite, progress=progress, warn=warn)


def run_job(
    job: Job,
    start: Callable[[], Engine],
    *,
    resume: bool,
    overwrite: bool,
    progress: Progress | None = None,
    warn: Warn,
) -> Report:
    """Runs a job; `start` is called once the files are known to be right. Otherwise as `annotate`."""
    for part in job.parts:
        part.target.parent.mkdir(parents=True, exist_ok=True)
    with locked(job.side_file("lock"), job.base if job.base == job.parts[0].target else job.base.parent):
        total = job.check_beginning()
        journal = Journal(job.side_file("journal"))
        begun = None if overwrite else _earlier_run(job, journal, resume)
        if begun is not None:
            check_same(job, begun, job.identity())
        with closing(start()) as engine:
            run = job.identity() | engine.identity | {"engine": "local"}
            if begun is not None:
                check_same(job, begun, run)
                if journal.header() is None:
                    return read_report(job.side_file("report.json"))
            else:
                journal.remove()
                journal.create(run | {REPLACES: overwrite})
            report = _Run(job, journal, progress or Progress(), warn).complete(engine, total)
        report.write(job.side_file("report.json"), run, [part.target for part in job.parts])
        journal.remove()
    return report


def stream_job(
    job: Job, start: Callable[[], Engine], file: BinaryIO, *, progress: Progress | None = None, warn: Warn
) -> Report:
    """Writes each document as soon as it is annotated, without a journal: for standard output.

    Args:
        job: one output, of one of the `STREAMED` formats.
        start: starts the engine.
        file: where to.
        progress: shows how far the run is.
        warn: gets warnings.

    Returns:
        What was annotated and what was left out.

    Raises:
        ValueError: a document that cannot be read or annotated, unless errors are skipped; those before are written.
    """
    tally, meter, shown = Tally(job, warn), Meter(), progress or Progress()
    documents = job.documents(tally.leave_out, meter)

    def annotated(engine: Engine) -> Iterator[Annotated]:
        for record, outcome in engine.annotate(documents):
            result = tally.result_of(record, outcome)
            if result.entities is not None:
                yield Annotated(job.with_reading(record, result.reading), result.entities)
            shown.advance()

    with closing(start()) as engine, shown.over(None, 0, meter, job.bytes()):
        for part in text_parts(annotated(engine), job.parts[0].form, job.place, warn):
            file.write(encoded(part))
            file.flush()
    tally.finish()
    return tally.report


def _earlier_run(job: Job, journal: Journal, resume: bool) -> dict[str, Any] | None:
    """Returns what identifies the run that is to be resumed, or that is complete; None where there is none.

    Raises:
        FileExistsError: a run or an output that would be replaced.
    """
    header = journal.header()
    if header is not None:
        if not resume:
            done = sum(1 for _ in journal.results())
            raise FileExistsError(
                f"{journal.path} holds {done} documents of an interrupted run: go on with --resume, "
                "or start anew with --overwrite."
            )
        return header
    targets = [part.target for part in job.parts]
    complete = finished_run(job.side_file("report.json"), targets) if resume else None
    if complete is None:
        there = next((target for target in targets if target.exists()), None)
        if there is not None:
            raise FileExistsError(f"{there} exists: replace it with --overwrite, or name another output.")
    return complete


def check_same(job: Job, begun: dict[str, Any], run: dict[str, Any]) -> None:
    """Raises a ValueError if the run that began differs from this one in what both say."""
    differing = sorted(name for name in begun.keys() & run.keys() if begun[name] != run[name])
    if differing:
        raise ValueError(
            f"{job.base} belongs to a run with another {', '.join(differing)}: repeat that run's command with "
            "--resume, or start anew with --overwrite."
        )


class _Run:
    """One run between its journal's header and its last output."""

    def __init__(self, job: Job, journal: Journal, progress: Progress, warn: Warn) -> None:
        self.job, self.journal, self.progress, self.warn = job, journal, progress, warn
        self.tally = Tally(job, warn)

    def complete(self, engine: Engine, total: int | None) -> Report:
        """Annotates what is not in the journal, then writes what is not written."""
        meter = Meter()
        documents = self.job.documents(self.tally.leave_out, meter)
        done, written = self.journal.recover(documents, self.tally.count)
        with self.journal.append() as journal:
            with self.progress.over(total, done, meter, self.job.bytes()):
                self._annotate(engine, documents, journal)
            journal.sync()
            earlier = {output.part: output for output in written}
            for index, (part, offset) in enumerate(zip(self.job.parts, self._offsets(), strict=True)):
                if not _is_written(part, earlier.get(index)):
                    self._write(index, part, offset, journal)
        self.tally.finish()
        return self.tally.report

    def _annotate(self, engine: Engine, documents: Iterator[Record], journal: JournalWriter) -> None:
        flushed = 0.0  # the first result is kept at once
        for record, outcome in engine.annotate(documents):
            journal.add(self.tally.result_of(record, outcome))
            if monotonic() - flushed > SECONDS_BETWEEN_FLUSHES:
                journal.flush()
                flushed = monotonic()
            self.progress.advance()

    def _offsets(self) -> list[int | None]:
        """Returns where in the journal each output's results begin; None for its beginning."""
        if len(self.job.parts) == 1:
            return [None]
        first: dict[int, int] = {}
        for offset, result in self.journal.results():
            first.setdefault(result.source, offset)
        return [first.get(part.first) for part in self.job.parts]  # one file an output

    def _write(self, index: int, part: Part, offset: int | None, journal: JournalWriter) -> None:
        if part.target.exists() and not (self.journal.header() or {}).get(REPLACES):
            raise FileExistsError(
                f"{part.target} exists, and did not when the run began: move it away and go on with --resume."
            )
        with unfinished(part.target) as file:
            sources = list(enumerate(part.sources, part.first))
            form = replace(part.form, entity_fields=tuple(sorted(self.tally.entity_fields - ENTITY_FIELDS)))
            write_annotated(file, lambda: self._annotated(part, offset), form, sources, self.job.place, self.warn)
            sync(file)
            status = os.fstat(file.fileno())
            journal.add_written(Written(index, status.st_size, status.st_mtime_ns))
            file.close()
            finish(part.target)

    def _annotated(self, part: Part, offset: int | None) -> Iterator[Annotated]:
        """Yields an output's documents with the entities that the journal holds, without those left out."""
        results = self.journal.results(offset)
        for record in self.job.documents_of(part):
            _, result = next(results, (0, None))
            if result is None:
                raise ValueError(f"{self.journal.path} lacks the result of {self.job.place(record)}.")
            self.journal.check_order(result, record)
            if result.entities is not None:
                yield Annotated(self.job.with_reading(record, result.reading), result.entities)


def _is_written(part: Part, written: Written | None) -> bool:
    """Whether the file that has the output's name is the one that this run wrote."""
    if written is None or not part.target.exists():
        return False
    status = part.target.stat()
    return (status.st_size, status.st_mtime_ns) == (written.size, written.modified_ns)
