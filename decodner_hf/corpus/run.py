"""Annotates the documents of files, restartable at any moment.

In: files, a pipeline. Out: files with each document's entities. Results go to a journal beside the output, one line
a document; when every document has one, the outputs are written from inputs and journal, take their names, and the
journal is removed. Nothing is lost and nothing is doubled, wherever the run stops.
Knows nothing of the command line, nor of how the pipeline works.
"""

import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from .fingerprint import fingerprint, settings_of
from .inputs import Meter
from .job import Job, Part, plan_job
from .journal import Journal, JournalWriter, Result, Written
from .progress import Progress
from .readers import Layout
from .records import Annotated, Pipe, Record, Warn
from .report import Report, finished_run, read_report
from .side_files import finish, locked, sync, unfinished
from .streaming import annotate_records
from .writers import encoded, text_parts, write_annotated

if TYPE_CHECKING:
    from ..core.pipeline import DecodNERPipeline

SECONDS_BETWEEN_FLUSHES = 1.0
WARNINGS_SHOWN = 10
ENTITY_FIELDS = frozenset({"entity_group", "score", "word", "start", "end"})
REPLACES = "replaces"  # in the journal: outputs that were there when the run began may be replaced


def annotate(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    pipe: "DecodNERPipeline",
    *,
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
    return run_job(job, lambda: pipe, resume=resume, overwrite=overwrite, progress=progress, warn=warn)


def run_job(
    job: Job,
    load: Callable[[], "DecodNERPipeline"],
    *,
    resume: bool,
    overwrite: bool,
    progress: Progress | None = None,
    warn: Warn,
) -> Report:
    """Runs a job; `load` is called once the files are known to be right. Otherwise as `annotate`."""
    for part in job.parts:
        part.target.parent.mkdir(parents=True, exist_ok=True)
    with locked(job.side_file("lock"), job.base if job.base == job.parts[0].target else job.base.parent):
        total = job.check_beginning()
        journal = Journal(job.side_file("journal"))
        begun = None if overwrite else _earlier_run(job, journal, resume)
        if begun is not None:
            _check_same(job, begun, job.identity())
        pipe = load()
        run = job.identity() | _named(settings_of(pipe)) | {"model": fingerprint(pipe)}
        if begun is not None:
            _check_same(job, begun, run)
            if journal.header() is None:
                return read_report(job.side_file("report.json"))
        else:
            journal.remove()
            journal.create(run | {REPLACES: overwrite})
        report = _Run(job, journal, progress or Progress(), warn).complete(pipe, total)
        report.write(job.side_file("report.json"), run, [part.target for part in job.parts])
        journal.remove()
    return report


def stream_job(
    job: Job, load: Callable[[], "DecodNERPipeline"], file: BinaryIO, *, progress: Progress | None = None, warn: Warn
) -> Report:
    """Writes each document as soon as it is annotated, without a journal: for standard output.

    Args:
        job: one output, of one of the `STREAMED` formats.
        load: loads the pipeline.
        file: where to.
        progress: shows how far the run is.
        warn: gets warnings.

    Returns:
        What was annotated and what was left out.

    Raises:
        ValueError: a document that cannot be read or annotated, unless errors are skipped; those before are written.
    """
    pipe = load()
    tally, meter, shown = _Tally(job, warn), Meter(), progress or Progress()
    documents = job.documents(tally.leave_out, meter)

    def annotated() -> Iterator[Annotated]:
        for record, outcome in annotate_records(partial(pipe, return_report=True), documents):
            result = tally.result_of(record, outcome)
            if result.entities is not None:
                yield Annotated(_with_reading(record, result, job), result.entities)
            shown.advance()

    with shown.over(None, 0, meter, job.bytes()):
        for part in text_parts(annotated(), job.parts[0].form, job.place, warn):
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


def _check_same(job: Job, begun: dict[str, Any], run: dict[str, Any]) -> None:
    """Raises a ValueError if the run that began differs from this one in what both say."""
    differing = sorted(name for name in begun.keys() & run.keys() if begun[name] != run[name])
    if differing:
        raise ValueError(
            f"{job.base} belongs to a run with another {', '.join(differing)}: repeat that run's command with "
            "--resume, or start anew with --overwrite."
        )


def _named(settings: dict[str, Any]) -> dict[str, Any]:
    names = {"candidate_labels": "labels"}
    return {names.get(name, name.replace("_", " ")): value for name, value in settings.items()}


class _Tally:
    """Counts what happens to documents, and decides whether one that is refused ends the run."""

    def __init__(self, job: Job, warn: Warn) -> None:
        self.job, self.warn = job, warn
        self.report = Report()
        self.entity_fields: set[str] = set()

    def result_of(self, record: Record, outcome: Any) -> Result:
        """Returns what the journal holds of a document, from what the pipeline gave or raised, and counts it.

        Raises:
            ValueError: the pipeline refused it, and errors are not skipped.
        """
        if not isinstance(outcome, ValueError):
            result = Result(record.source, record.place, outcome["entities"], None, outcome["report"])
        elif self.job.skip_errors:
            result = Result(record.source, record.place, None, str(outcome), None)
        else:
            raise ValueError(f"{self.job.place(record)}: {outcome}\nLeave it out with --on-error skip.") from outcome
        self.count(record, result)
        return result

    def count(self, record: Record, result: Result) -> None:
        """Counts a document."""
        if result.entities is None:
            self.leave_out(replace(record, problem=result.reason))
            return
        self.report.add(self.job.place(record), result.entities, result.reading or {})
        for entity in result.entities:
            self.entity_fields.update(entity)

    def leave_out(self, record: Record) -> None:
        """Counts a broken document, and warns of the first ones."""
        place, reason = self.job.place(record), record.problem or ""
        self.report.skip(place, reason)
        if len(self.report.skipped) <= WARNINGS_SHOWN:
            self.warn(f"{place} is left out: {reason}")

    def finish(self) -> None:
        """Warns of how many documents were left out, if not of each."""
        if len(self.report.skipped) > WARNINGS_SHOWN:
            self.warn(f"{len(self.report.skipped)} documents in all are left out")


class _Run:
    """One run between its journal's header and its last output."""

    def __init__(self, job: Job, journal: Journal, progress: Progress, warn: Warn) -> None:
        self.job, self.journal, self.progress, self.warn = job, journal, progress, warn
        self.tally = _Tally(job, warn)

    def complete(self, pipe: Pipe, total: int | None) -> Report:
        """Annotates what is not in the journal, then writes what is not written."""
        meter = Meter()
        documents = self.job.documents(self.tally.leave_out, meter)
        done, written = self.journal.recover(documents, self.tally.count)
        with self.journal.append() as journal:
            with self.progress.over(total, done, meter, self.job.bytes()):
                self._annotate(pipe, documents, journal)
            journal.sync()
            earlier = {output.part: output for output in written}
            for index, (part, offset) in enumerate(zip(self.job.parts, self._offsets(), strict=True)):
                if not _is_written(part, earlier.get(index)):
                    self._write(index, part, offset, journal)
        self.tally.finish()
        return self.tally.report

    def _annotate(self, pipe: Pipe, documents: Iterator[Record], journal: JournalWriter) -> None:
        flushed = 0.0  # the first result is kept at once
        for record, outcome in annotate_records(partial(pipe, return_report=True), documents):
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
                yield Annotated(_with_reading(record, result, self.job), result.entities)


def _with_reading(record: Record, result: Result, job: Job) -> Record:
    """Returns a document with how it was read as one of its fields, where the job asks for that."""
    column = job.layout.report_column
    if column is None:
        return record
    in_parquet = job.parts[0].form.suffix == ".parquet"  # whose columns have one type: text
    reading = json.dumps(result.reading) if in_parquet else result.reading
    return replace(record, fields=record.fields | {column: reading})


def _is_written(part: Part, written: Written | None) -> bool:
    """Whether the file that has the output's name is the one that this run wrote."""
    if written is None or not part.target.exists():
        return False
    status = part.target.stat()
    return (status.st_size, status.st_mtime_ns) == (written.size, written.modified_ns)
