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
        skipped: documents left out: {"document": where it stands, "reason": why}.
        was_complete: there was nothing left to do.
    """

    documents: int = 0
    entities: Counter[str] = field(default_factory=Counter)
    skipped: list[dict[str, str]] = field(default_factory=list)
    was_complete: bool = False

    def add(self, entities: Entities) -> None:
        """Counts an annotated document."""
        self.documents += 1
        self.entities.update(str(entity["entity_group"]) for entity in entities)

    def skip(self, place: str, reason: str) -> None:
        """Counts a document that was left out."""
        self.skipped.append({"document": place, "reason": reason})

    def write(self, path: Path, run: dict[str, Any], outputs: list[Path]) -> None:
        """Writes the report, with what identifies the run and its outputs."""
        values = {
            "kind": KIND,
            "documents": self.documents,
            "entities": dict(self.entities.most_common()),
            "skipped": self.skipped,
            "outputs": [[str(output), output.stat().st_size] for output in outputs],
            "run": run,
        }
        with unfinished(path) as file:
            file.write(json.dumps(values, ensure_ascii=False, indent=1).encode("utf-8", "backslashreplace"))
            sync(file)
            file.close()
            finish(path)


def finished_run(path: Path, outputs: list[Path]) -> dict[str, Any] | None:
    """Returns what identifies the run that wrote the report and, as they are now, the outputs; None if none did."""
    try:
        values = json.loads(path.read_bytes())
        if values["kind"] != KIND or values["outputs"] != [[str(file), file.stat().st_size] for file in outputs]:
            return None
        run: dict[str, Any] = values["run"]
    except (OSError, ValueError, KeyError, TypeError):  # no report, or some other file
        return None
    return run


def read_report(path: Path) -> Report:
    """Returns the report that a complete run wrote."""
    values = json.loads(path.read_bytes())
    return Report(values["documents"], Counter(values["entities"]), values["skipped"], was_complete=True)
