"""Counts what happens to the documents of a run, and decides whether one that is refused ends it.

In: documents with what the pipeline gave for them. Out: results for the journal, a report, warnings.
Knows nothing of how documents are read, annotated or written.
"""

from dataclasses import replace

from .job import Job
from .journal import Result
from .records import Outcome, Record, Warn
from .report import Report

WARNINGS_SHOWN = 10


class Tally:
    """Counts what happens to documents, and decides whether one that is refused ends the run."""

    def __init__(self, job: Job, warn: Warn) -> None:
        """Has counted nothing; `warn` gets warnings."""
        self.job, self.warn = job, warn
        self.report = Report()
        self.entity_fields: set[str] = set()

    def result_of(self, record: Record, outcome: Outcome) -> Result:
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
