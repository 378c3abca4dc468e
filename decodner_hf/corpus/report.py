"""Reports what a run read and what it left out, as JSON beside the output.

In: what happened to each document. Out: a file from which a later run sees that this one is complete.
Knows nothing of models.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .records import Entities
from .side_files import finish, sync, unfinished

KIND = "decodner report 1"


@dataclass
class Report:
    """Counts of one run.

    Attributes:
        documents: documents that were annotated.
        entities: label -> entities found.
        windows: windows in which they were read; most documents are their own only one.
        truncated: where each truncated document stands, and the number of characters kept.
        words_left_out: overlong words that were not read: where the document stands, and pairs of characters.
        candidates: spans scored.
        candidates_left_out: spans not scored, by reason, see the `report` of `DecodNERPipeline`.
        skipped: documents left out: {"document": where it stands, "reason": why}.
        was_complete: there was nothing left to do.
    """

    documents: int = 0
    entities: Counter[str] = field(default_factory=Counter)
    windows: int = 0
    truncated: list[dict[str, object]] = field(default_factory=list)
    words_left_out: list[dict[str, object]] = field(default_factory=list)
    candidates: int = 0
    candidates_left_out: Counter[str] = field(default_factory=Counter)
    skipped: list[dict[str, str]] = field(default_factory=list)
    was_complete: bool = False

    def add(self, place: str, entities: Entities, reading: dict[str, Any]) -> None:
        """Counts an annotated document, and how it was read."""
        self.documents += 1
        self.entities.update(str(entity["entity_group"]) for entity in entities)
        self.windows += reading["windows"]
        self.candidates += reading["candidates"]
        self.candidates_left_out.update(reading["candidates_left_out"])
        if reading["truncated_at"] is not None:
            self.truncated.append({"document": place, "characters": reading["truncated_at"]})
        if reading["words_left_out"]:
            self.words_left_out.append({"document": place, "characters": reading["words_left_out"]})

    def skip(self, place: str, reason: str) -> None:
        """Counts a document that was left out."""
        self.skipped.append({"document": place, "reason": reason})

    def merge(self, other: "Report") -> None:
        """Adds the counts of another part of the run."""
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            elif name != "was_complete":
                setattr(self, name, getattr(self, name) + value)

    def values(self) -> dict[str, object]:
        """Returns the counts as values of JSON, labels by frequency."""
        counts = {name: value for name, value in vars(self).items() if name != "was_complete"}
        return counts | {"entities": dict(self.entities.most_common())}

    def write(self, path: Path, run: dict[str, object], outputs: list[Path]) -> None:
        """Writes the report, with what identifies the run and its outputs."""
        values = {
            "kind": KIND,
            **self.values(),
            "outputs": [[str(output), output.stat().st_size] for output in outputs],
            "run": run,
        }
        with unfinished(path) as file:
            file.write(json.dumps(values, ensure_ascii=False, indent=1).encode("utf-8", "backslashreplace"))
            sync(file)
            file.close()
            finish(path)


def finished_run(path: Path, outputs: list[Path]) -> dict[str, object] | None:
    """Returns what identifies the run that wrote the report and, as they are now, the outputs; None if none did."""
    try:
        values = json.loads(path.read_bytes())
        if values["kind"] != KIND or values["outputs"] != [[str(file), file.stat().st_size] for file in outputs]:
            return None
        run: dict[str, object] = values["run"]
    except (OSError, ValueError, KeyError, TypeError):  # no report, or some other file
        return None
    return run


def read_report(path: Path) -> Report:
    """Returns the report that a complete run wrote."""
    return report_of(json.loads(path.read_bytes()), was_complete=True)


def report_of(values: dict[str, Any], *, was_complete: bool = False) -> Report:
    """Returns the report whose `values` these are; others are ignored."""
    counters = {name: Counter(values[name]) for name in ("entities", "candidates_left_out")}
    names = (name for name in Report.__dataclass_fields__ if name in values)
    return Report(**{name: values[name] for name in names} | counters, was_complete=was_complete)
